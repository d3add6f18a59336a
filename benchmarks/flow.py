"""Optical flow against OpenCV's, by turns in one run: how far apart they are, and what a pair costs.

    python benchmarks/flow.py [FILE_OR_FOLDER ...] [--pairs 24] [--batch 8] [--plain]
    python benchmarks/flow.py --truth first.png second.png flow.flo

The first form takes pairs of neighbouring frames (25 fps, 340 x 256) from videos, by default from the demo clip, solves
them with OpenCV's TV-L1 and with ours in batches, and prints the mean distance of the two (pixels), the share of
quantized values within 1, and the ratio of times per pair: of the clock, and of processor time. The second one prints
the mean end-point error of the methods against a ground truth (Middlebury .flo).
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import resize

from inflate3d.clips.stills import find_videos
from inflate3d.clips.video import open_frames
from inflate3d.flow.methods import find_method, to_grey
from inflate3d.flow.quantize import quantize
from inflate3d.weights.fetch import fetch_demo_clip

PAIRS_OF_A_VIDEO = 2
FRAMES_BETWEEN = 20
SIZE = [256, 340]


class Cost(NamedTuple):
    """Seconds for each pair."""

    wall: float
    processor: float


def pairs_of(paths: list[str], count: int) -> Iterator[tuple[Tensor, Tensor]]:
    videos = find_videos(paths)
    each = max(PAIRS_OF_A_VIDEO, -(-count // len(videos)))
    for video in videos[:: max(len(videos) * each // count, 1)]:
        frames = iter(open_frames(video, fps=25))
        for _ in range(each):
            found = [resized(frame.picture) for _, frame in zip(range(FRAMES_BETWEEN), frames, strict=False)][-2:]
            if len(found) == 2:
                yield found[0], found[1]


def resized(picture: np.ndarray) -> Tensor:
    return resize(torch.from_numpy(picture).permute(2, 0, 1), SIZE, antialias=True).permute(1, 2, 0)


def timed(run: Callable[[], Tensor], count: int) -> tuple[Tensor, Cost]:
    wall, processor = time.perf_counter(), time.process_time()
    found = run()
    return found, Cost((time.perf_counter() - wall) / count, (time.process_time() - processor) / count)


def measure(paths: list[str], pairs: int = 24, *, batch: int = 8, compiled: bool = True) -> dict[str, Any]:
    """Solve pairs with OpenCV and with ours by turns, batch by batch."""
    ours, theirs = find_method("tvl1", compiled=compiled), find_method("tvl1-opencv")
    chosen = [pair for pair, _ in zip(pairs_of(paths, pairs), range(pairs), strict=False)]
    ours(chosen[0][0][None, :64, :64], chosen[0][1][None, :64, :64])  # compile
    costs, distances, within = [], [], []
    for start in range(0, len(chosen), batch):
        first, second = (torch.stack(side) for side in zip(*chosen[start : start + batch], strict=True))
        flow, cost = timed(lambda a=first, b=second: ours(a, b), len(first))
        reference, reference_cost = timed(lambda a=first, b=second: theirs(a, b), len(first))
        costs.append((cost, reference_cost))
        distances += (flow - reference).double().norm(dim=1).mean((1, 2)).tolist()
        difference = quantize(flow, "mediapipe").int() - quantize(reference, "mediapipe").int()
        within += (difference.abs() <= 1).double().mean((1, 2, 3)).tolist()
        print(
            f"pairs {start + 1} to {start + len(first)}: {cost.wall:.3f} s against {reference_cost.wall:.3f} s each",
            file=sys.stderr,
            flush=True,
        )
    others = {
        name: timed(lambda name=name: find_method(name)(first, second), len(first))[1].processor
        for name in ("dis", "farneback")
    }
    return {
        "pairs": len(chosen),
        "mean_pixels": statistics.mean(distances),
        "worst_pixels": max(distances),
        "mean_within": statistics.mean(within),
        "worst_within": min(within),
        "others_processor_seconds": others,
    } | {name: _ratio(costs, name) for name in Cost._fields}


def _ratio(costs: list[tuple[Cost, Cost]], name: str) -> dict[str, float]:
    mine, others = ([getattr(pair[side], name) for pair in costs] for side in (0, 1))
    ratio = statistics.median(a / b for a, b in zip(mine, others, strict=True))
    return {"ours": statistics.mean(mine), "theirs": statistics.mean(others), "ratio": ratio}


def report(found: dict[str, Any]) -> None:
    print(f"distance from OpenCV: mean {found['mean_pixels']:.4f} px, worst pair {found['worst_pixels']:.4f} px")
    print(f"quantized values within 1: mean {found['mean_within']:.3%}, worst pair {found['worst_within']:.3%}")
    for name in Cost._fields:
        times = f"{found[name]['ours']:.3f} s against {found[name]['theirs']:.3f} s"
        print(f"{name} time of a pair: {times}, median ratio of the batches {found[name]['ratio']:.2f}")
    for name, cost in found["others_processor_seconds"].items():
        print(f"{name}: {cost:.3f} s of processor time for a pair")


def truth(files: list[str]) -> None:
    first, second = (torch.from_numpy(np.array(Image.open(file).convert("RGB")))[None] for file in files[:2])
    data = np.fromfile(files[2], np.float32)
    width, height = data[1:3].view(np.int32)
    expected = torch.from_numpy(data[3:].reshape(height, width, 2)).permute(2, 0, 1).double()
    known = (expected.abs() < 1e9).all(0)
    for name in ("tvl1", "tvl1-opencv", "dis", "farneback"):
        flow = find_method(name)(first, second)[0].double()
        print(f"{name}: {float((flow - expected).norm(dim=0)[known].mean()):.4f} px")
    print(f"no motion: {float(expected.norm(dim=0)[known].mean()):.4f} px; {to_grey(first).shape[1:]} pixels")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="*")
    parser.add_argument("--pairs", type=int, default=24)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--plain", action="store_true", help="without compiling")
    parser.add_argument("--truth", nargs=3, metavar="FILE")
    arguments = parser.parse_args()
    if arguments.truth:
        truth(arguments.truth)
    else:
        paths = arguments.paths or [str(fetch_demo_clip())]
        report(measure(paths, arguments.pairs, batch=arguments.batch, compiled=not arguments.plain))


if __name__ == "__main__":
    main()
