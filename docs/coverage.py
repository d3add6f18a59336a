"""Inflate one model of every family and test it on still clips: `make coverage` writes coverage.json and coverage.md.

A run that is stopped goes on where it was; delete coverage.json to begin anew. Weights are random, and every parameter
that starts as a constant (scales of zero or one) is made random too, so that nothing hides behind a zero.
"""

import gc
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from inflate3d import InflateError, build, make_plan
from inflate3d.atomic import replacing
from inflate3d.inflation.build import pictures_like
from inflate3d.inflation.proof import still_float32
from inflate3d.models.sources import example_shape, find_2d_model

HERE = Path(__file__).parent
RESULTS = HERE / "coverage.json"
LENGTHS = (1, 5, 8)

# One model of each family of torchvision's classifiers, and the smallest of each of timm's model files (1.0.31)
NAMES = (HERE / "coverage_models.txt").read_text().split()


def main() -> None:
    """Test what is not tested yet, and write the table."""
    results: dict[str, dict[str, Any]] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for number, name in enumerate(NAMES, start=1):
        if name not in results:
            results[name] = examine(name)
            print(f"{number}/{len(NAMES)} {name}: {results[name]['outcome']}", flush=True)
            with replacing(RESULTS) as draft:
                draft.write_text(json.dumps(results, indent=1) + "\n")
            gc.collect()
    with replacing(HERE / "coverage.md") as draft:
        draft.write_text(table({name: results[name] for name in NAMES}))


def examine(name: str, preset: str = "video") -> dict[str, Any]:
    """Plan, build and test one model."""
    start = time.perf_counter()
    model2d = find_2d_model(name)
    no_constants(model2d)
    try:
        plan = make_plan(model2d, preset, example=torch.zeros(1, *example_shape(model2d, name)))
        facts = {
            "layers_through_time": sum(layer.looks_through_time for layer in plan),
            "convolutions_left": sum(bool(layer.reason) for layer in plan),
        }
        pictures = pictures_like(model2d, plan.input_shape)[:2]
        check = still_float32(model2d, build(plan, model2d), pictures, LENGTHS)
    except InflateError as error:
        return {"outcome": "refused", "reason": error.problem}
    trivial = not plan.looks_through_time
    outcome = ("trivial" if trivial else "exact") if check.holds else "DIFFERS"
    seconds = round(time.perf_counter() - start, 1)
    return {"outcome": outcome, **facts, "error": check.error, "allowed": check.limit, "seconds": seconds}


def no_constants(model: nn.Module) -> None:
    """Give statistics, scales and whatever else starts as a constant values of its own."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
                module.running_mean.copy_(torch.randn(module.running_mean.shape, generator=generator) * 0.1)
                module.running_var.copy_(torch.rand(module.running_var.shape, generator=generator) + 0.5)
        for parameter in model.parameters():
            if parameter.numel() > 1 and parameter.min() == parameter.max():
                parameter.copy_(torch.rand(parameter.shape, generator=generator) + 0.5)


def table(results: dict[str, dict[str, Any]]) -> str:
    """Write the page."""
    count = dict.fromkeys(("exact", "trivial", "refused", "DIFFERS"), 0)
    for result in results.values():
        count[result["outcome"]] += 1
    rows = [
        f"| {name} | {result['outcome']} | {result.get('layers_through_time', '')} | "
        + (f"{result['error']:.0e}" if "error" in result else result["reason"])
        + " |"
        for name, result in results.items()
    ]
    return "\n".join(
        [
            "# Coverage",
            "",
            "One model of every model file of timm and of every family of torchvision's classifiers, inflated with",
            "the preset `video` and asked about still clips of 1, 5 and 8 frames, batch 2, float32.",
            "Every frame has to be answered as the 2D model answers the picture: relative error at most 1e-5, or five",
            "times what the 2D model itself differs by between batches of 1 and 10. Weights are random.",
            "",
            f"**{count['exact']} exact, {count['trivial']} trivially exact** (nothing in them would look through time:",
            "patchify and 1x1 convolutions only, so that `inflate` refuses them with this preset), "
            f"**{count['refused']} refused** with a reason, **{count['DIFFERS']} different**.",
            "",
            "Made by `make coverage`.",
            "",
            "| model | outcome | layers through time | relative error, or reason |",
            "|---|---|---|---|",
            *rows,
            "",
        ]
    )


if __name__ == "__main__":
    main()
