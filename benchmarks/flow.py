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
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import resize

from inflate3d.clips.files import find_videos
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


def compare(paths: list[str], arguments: argparse.Namespace) -> None:
    ours, theirs = find_method("tvl1", compiled=not arguments.plain), find_method("tvl1-opencv")
    pairs = [pair for pair, _ in zip(pairs_of(paths, arguments.pairs), range(arguments.pairs), strict=False)]
    ours(pairs[0][0][None, :64, :64], pairs[0][1][None, :64, :64])  # compile
    costs, distances, within = [], [], []
    for start in range(0, len(pairs), arguments.batch):
        first, second = (torch.stack(side) for side in zip(*pairs[start : start + arguments.batch], strict=True))
        flow, cost = timed(lambda a=first, b=second: ours(a, b), len(first))
        reference, reference_cost = timed(lambda a=first, b=second: theirs(a, b), len(first))
        costs.append((cost, reference_cost))
        distances += (flow - reference).double().norm(dim=1).mean((1, 2)).tolist()
        difference = quantize(flow, "mediapipe").int() - quantize(reference, "mediapipe").int()
        within += (difference.abs() <= 1).double().mean((1, 2, 3)).tolist()
        print(f"pairs {start + 1} to {start + len(first)}: {cost.wall:.3f} s against {reference_cost.wall:.3f} s each")
    report(costs, distances, within)
    for name in ("dis", "farneback"):
        method = find_method(name)
        _, cost = timed(lambda a=first, b=second: method(a, b), len(first))  # noqa: B023 - run at once
        print(f"{name}: {cost.processor:.3f} s of processor time for a pair")


def report(costs: list[tuple[Cost, Cost]], distances: list[float], within: list[float]) -> None:
    print(f"distance from OpenCV: mean {statistics.mean(distances):.4f} px, worst pair {max(distances):.4f} px")
    print(f"quantized values within 1: mean {statistics.mean(within):.3%}, worst pair {min(within):.3%}")
    for name in Cost._fields:
        mine, others = (sum(getattr(pair[side], name) for pair in costs) / len(costs) for side in (0, 1))
        median = statistics.median(getattr(a, name) / getattr(b, name) for a, b in costs)
        times = f"{mine:.3f} s against {others:.3f} s"
        print(f"{name} time of a pair: {times}, ratio {mine / others:.2f}, median of the batches {median:.2f}")


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
        compare([str(Path(path)) for path in arguments.paths] or [str(fetch_demo_clip())], arguments)


if __name__ == "__main__":
    main()
