"""How much faster I3D is in bfloat16 than in float32 on this machine.

    python benchmarks/precision.py [--runs 5]

runs one window (64 x 224 x 224, random weights, channels-last) in both precisions by turns, so that other jobs on the
machine hit both, and prints the median of the ratios.
"""

import argparse
import statistics
import time

import torch

from inflate3d import InceptionI3d


def seconds(model: torch.nn.Module, clip: torch.Tensor, *, bf16: bool) -> float:
    start = time.perf_counter()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        model(clip)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    model = InceptionI3d().eval().to(memory_format=torch.channels_last_3d)
    clip = (torch.rand(1, 3, 64, 224, 224) * 2 - 1).to(memory_format=torch.channels_last_3d)
    pairs = [(seconds(model, clip, bf16=False), seconds(model, clip, bf16=True)) for _ in range(arguments.runs + 1)]
    plain, short = zip(*pairs[1:], strict=True)  # the first pair warms up
    ratio = statistics.median(a / b for a, b in pairs[1:])
    print(f"fp32 {statistics.median(plain):.2f} s, bf16 {statistics.median(short):.2f} s, ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
