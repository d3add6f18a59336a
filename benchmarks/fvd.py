"""Statistics and distance for many clips against SciPy's square root, and the figures that others published.

    python benchmarks/fvd.py [--runs 5] [--clips 2048]
    python benchmarks/fvd.py --published      # needs the weights; half an hour without a GPU

The first runs both by turns on the same features, so that other jobs on the machine hit both, and prints medians, the
ratio and the memory that our side takes beyond the features. The second compares black with white videos of 10 to 30
frames (README of common_metrics_on_video_quality) and two sets of 128 videos of noise (README of fvd-comparison).
"""

import argparse
import resource
import statistics
import time
from collections.abc import Callable, Iterator

import numpy as np
import scipy.linalg
import torch

from inflate3d import load
from inflate3d.results.fvd import measure_fvd
from inflate3d.results.fvd_distance import Gaussian, frechet_distance
from inflate3d.results.fvd_videos import FvdOptions

BLACK_AND_WHITE = (
    *(569.2296, 486.3584, 551.9611, 146.3664, 172.8545, 133.7031, 152.9175, 357.7403, 382.4669, 306.7384),
    *(338.4152, 78.1726, 82.3345, 64.5886, 66.0628, 314.4804, 316.6871, 288.9720, 287.7805, 152.1525, 151.2565),
)
NOISE = {"TensorFlow": 10.13808536529541, "SciPy": 10.138084766713924}


def by_scipy(one: np.ndarray, two: np.ndarray) -> float:
    means = np.sum((one.mean(0) - two.mean(0)) ** 2)
    covariances = [np.cov(side, rowvar=False) for side in (one, two)]
    root = scipy.linalg.sqrtm(covariances[1] @ covariances[0])
    return float(means + np.trace(sum(covariances) - 2 * root).real)


def ours(one: torch.Tensor, two: torch.Tensor) -> float:
    return frechet_distance(Gaussian.of(one), Gaussian.of(two)).value


def seconds(call: Callable[[], float]) -> tuple[float, float]:
    start = time.perf_counter()
    value = call()
    return time.perf_counter() - start, value


def measure(runs: int = 5, clips: int = 2048) -> dict[str, float]:
    """Time both by turns on the same features."""
    mix = torch.randn(400, 400) / torch.arange(1, 401).sqrt()
    one, two = torch.randn(clips, 400) @ mix.T, torch.randn(clips, 400) @ mix.T
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ours(one, two)
    memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024  # Linux counts in KiB
    arrays = [side.double().numpy() for side in (one, two)]
    pairs = [(seconds(lambda: ours(one, two)), seconds(lambda: by_scipy(*arrays))) for _ in range(runs)]
    mine, theirs = ([pair[i][0] for pair in pairs] for i in range(2))
    ratio = statistics.median(b / a for a, b in zip(mine, theirs, strict=True))
    error = abs(pairs[0][0][1] / pairs[0][1][1] - 1)
    return {
        "clips": clips,
        "ours": statistics.median(mine),
        "theirs": statistics.median(theirs),
        "ratio": ratio,
        "memory_mb": memory,
        "relative_difference": error,
    }


def noise(seed: int) -> Iterator[torch.Tensor]:
    draw = np.random.RandomState(seed)
    for _ in range(64):
        yield torch.from_numpy(draw.rand(2, 16, 224, 224, 3).astype(np.float32)).permute(0, 4, 1, 2, 3)


def published() -> None:
    model = load("i3d-kinetics400")
    options = FvdOptions("common-metrics", value_range=(0.0, 1.0))
    for frames, theirs in enumerate(BLACK_AND_WHITE, start=10):
        black = torch.zeros(1, 3, frames, 64, 64)
        found = measure_fvd(model, black, black + 1, options=options).value
        print(
            f"black against white, T = {frames}: {found:.4f}, published {theirs}, {found / theirs - 1:+.2%}", flush=True
        )
    options = FvdOptions("fvd-comparison", numerics="published", value_range=(-1.0, 1.0))
    found = measure_fvd(model, noise(2), noise(1), options=options).value
    print(f"noise: {found:.6f}, published {NOISE}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--clips", type=int, default=2048)
    parser.add_argument("--published", action="store_true")
    arguments = parser.parse_args()
    if arguments.published:
        published()
    else:
        found = measure(arguments.runs, arguments.clips)
        print(
            f"{found['clips']} x 400: ours {found['ours']:.2f} s and {found['memory_mb']:.0f} MB, SciPy "
            f"{found['theirs']:.2f} s, ratio {found['ratio']:.1f}, "
            f"relative difference {found['relative_difference']:.1g}"
        )


if __name__ == "__main__":
    main()
