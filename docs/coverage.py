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
from inflate3d.inflation.proof import still_float32, still_float64
from inflate3d.models.sources import example_shape, find_2d_model

HERE = Path(__file__).parent
RESULTS = HERE / "coverage.json"
LENGTHS = {"video": (1, 5, 8), "i3d": (1, 5, 8, 32)}

# One model of each family of torchvision's classifiers, and the smallest of each of timm's model files (1.0.31)
NAMES = (HERE / "coverage_models.txt").read_text().split()
# Convolutional networks, for the preset with strides in time
CONVOLUTIONAL = (HERE / "coverage_i3d.txt").read_text().split()


def main() -> None:
    """Test what is not tested yet, and write the table."""
    results: dict[str, dict[str, dict[str, Any]]] = {"video": {}, "i3d": {}}
    if RESULTS.exists():
        results |= json.loads(RESULTS.read_text())
    wanted = [("video", name) for name in NAMES] + [("i3d", name) for name in CONVOLUTIONAL]
    for number, (preset, name) in enumerate(wanted, start=1):
        if name not in results[preset]:
            result = results[preset][name] = examine(name, preset)
            print(f"{number}/{len(wanted)} {name}, {preset}: {result['outcome']}", flush=True)
            with replacing(RESULTS) as draft:
                draft.write_text(json.dumps(results, indent=1) + "\n")
            gc.collect()
    with replacing(HERE / "coverage.md") as draft:
        draft.write_text(PAGE.format(**{preset: table(found) for preset, found in results.items()}))


def examine(name: str, preset: str) -> dict[str, Any]:
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
        check = still_float32(model2d, build(plan, model2d), pictures, lengths=LENGTHS[preset])
        if not check.holds:  # random weights may amplify rounding: then float64 decides
            model2d = model2d.double()
            check = still_float64(model2d, build(plan, model2d), pictures.double(), lengths=(2,))
    except InflateError as error:
        return {"outcome": "refused", "reason": error.problem}
    trivial = not plan.looks_through_time
    outcome = ("trivial" if trivial else "exact") if check.holds else "different"
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
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)


PAGE = """# Coverage

One model of every model file of timm and of every family of torchvision's classifiers, inflated and asked about
still clips in batches of two, in float32. Every frame has to be answered as the 2D model answers the picture:
relative error at most 1e-5, or five times what the 2D model itself differs by between batches of 1 and 10; where
random weights amplify rounding beyond that, at most 1e-9 in float64. Trivial are models in which nothing would look
through time (patchify and 1x1 convolutions only): `inflate` refuses them with this preset. Two of timm's 98 files
are left out: one picture takes deepseek_vit and gemma4_vit minutes without a GPU.

Made by `make coverage`.

## Preset video: clips of 1, 5 and 8 frames

{video}

## Preset i3d, with strides in time: clips of 1, 5, 8 and 32 frames

{i3d}
"""


def table(results: dict[str, dict[str, Any]]) -> str:
    """Count the outcomes and list them."""
    count = dict.fromkeys(("exact", "trivial", "refused", "different"), 0)
    for result in results.values():
        count[result["outcome"]] += 1
    head = "**" + ", ".join(f"{number} {outcome}" for outcome, number in count.items()) + ".**"
    rows = [
        f"| {name} | {result['outcome']} | {result.get('layers_through_time', '')} | "
        + (f"{result['error']:.0e}" if "error" in result else result["reason"])
        + " |"
        for name, result in results.items()
    ]
    titles = ["| model | outcome | layers through time | relative error, or reason |", "|---|---|---|---|"]
    return "\n".join([head, "", *titles, *rows])


if __name__ == "__main__":
    main()
