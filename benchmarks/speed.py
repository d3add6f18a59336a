"""How fast I3D and inflated models run, beside the ports people use, in one run by turns: medians and ratios.

    git clone https://github.com/piergiaj/pytorch-i3d /tmp/pytorch-i3d
    python benchmarks/speed.py [--runs 5] [--piergiaj /tmp/pytorch-i3d] [--compiled] [--int8] [--inflated]

One window is 64 x 224 x 224 for I3D (random weights, which cost as much as trained ones) and 8 x 224 x 224 for inflated
2D models. The first round of each warms up and is not counted. The processor's own rate is that of a product of two
matrices of 2048 x 2048 in the same precision.
"""

import argparse
import importlib.util
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import timm
import torch
from torch import nn

from inflate3d import InceptionI3d, inflate
from inflate3d.speed.optimize import optimize

GFLOP = 222.3  # of one window


def read_module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def timed(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def by_turns(ways: dict[str, Callable[[], object]], runs: int) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    with torch.inference_mode():
        for round_ in range(runs + 1):
            for name, run in ways.items():
                took = timed(run)
                if round_:
                    seconds[name].append(took)
    return seconds


def report(title: str, seconds: dict[str, list[float]], gflop: float | None = None) -> None:
    """Print medians, and ratios to the first way, round by round."""
    print(f"\n{title}")
    first = next(iter(seconds.values()))
    for name, took in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(first, took, strict=True))
        rate = f"  {gflop / statistics.median(took):5.0f} GFLOP/s" if gflop else ""
        print(f"  {name:34} {statistics.median(took):7.3f} s  {ratio:5.2f} times as fast{rate}", flush=True)


def matrix_rate(dtype: torch.dtype) -> float:
    a, b = (torch.rand(2048, 2048).to(dtype) for _ in range(2))
    best = min(timed(lambda: a @ b) for _ in range(20))
    return 2 * 2048**3 / best / 1e9


def i3d(runs: int, peer: Path | None, *, compiled: bool, int8: bool) -> None:
    torch.manual_seed(0)
    model = InceptionI3d().eval()
    clip = torch.rand(1, 3, 64, 224, 224) * 2 - 1
    ways: dict[str, nn.Module] = {}
    if peer:
        ways["piergiaj/pytorch-i3d, eager"] = read_module(peer / "pytorch_i3d.py").InceptionI3d(400, 3).eval()
    ways["not optimized, contiguous"] = model
    ways["fp32"], ways["bf16"] = optimize(model), optimize(model, "bf16")
    if compiled:
        ways["fp32, compiled"] = optimize(model, compiled=True)
        ways["bf16, compiled"] = optimize(model, "bf16", compiled=True)
    if int8:
        clips = [torch.rand(1, 3, 64, 224, 224) * 2 - 1 for _ in range(4)]
        ways["int8 (OpenVINO)"] = optimize(model, "int8", calibration=clips)
    wanted = model(clip)
    for name, way in ways.items():
        if "piergiaj" not in name:
            found = way(clip)
            cosine = float(torch.cosine_similarity(found, wanted))
            print(f"{name}: logits differ by {float((found - wanted).abs().max()):.1e}, cosine {cosine:.6f}")
    seconds = by_turns({name: (lambda way=way: way(clip)) for name, way in ways.items()}, runs)
    report("I3D, one window of 64 x 224 x 224", seconds, GFLOP)
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        rate = matrix_rate(dtype)
        share = GFLOP / statistics.median(seconds[name]) / rate
        print(f"  {name}: {share:.0%} of the {rate:.0f} GFLOP/s of a matrix product")


def inflated(runs: int) -> None:
    for name in ("resnet50", "efficientnet_b0", "convnext_tiny"):
        torch.manual_seed(0)
        model = inflate(timm.create_model(name).eval())
        clip = torch.rand(1, 3, 8, 224, 224)
        fast, short = optimize(model), optimize(model, "bf16")
        ways = {"not optimized, contiguous": model, "fp32": fast, "bf16": short}
        report(
            f"{name} inflated, 8 x 224 x 224",
            by_turns({key: (lambda way=way, clip=clip: way(clip)) for key, way in ways.items()}, runs),
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--piergiaj", type=Path)
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--int8", action="store_true")
    parser.add_argument("--inflated", action="store_true")
    arguments = parser.parse_args()
    with torch.no_grad():
        i3d(arguments.runs, arguments.piergiaj, compiled=arguments.compiled, int8=arguments.int8)
        if arguments.inflated:
            inflated(arguments.runs)


if __name__ == "__main__":
    main()
