"""Whether reading a video hides behind the network: a whole run against the network alone and half of the decoding.

    python benchmarks/overlap.py [VIDEO] [--precision bf16] [--runs 3]

Without a VIDEO the demo clip is scaled to 1280x720 and repeated to 20 seconds (H.264, 30 fps). By turns three things
are timed: the network on as many windows as the video has; reading the frames, in seconds of all processors together;
and `predict`. It exits with 1 where the median ratio of the whole run to (network + reading / 2) is above 1.1.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import torch
from torch import nn

from inflate3d import InceptionI3d, PredictOptions, predict
from inflate3d.clips.video import open_frames
from inflate3d.speed.optimize import optimize
from inflate3d.weights.fetch import fetch_demo_clip

LIMIT = 1.1
RATE = 30


class Round(NamedTuple):
    """What one round took.

    Attributes:
        network_seconds: Of the network alone.
        decode_seconds: Of all processors together, for the frames alone.
        run_seconds: Of the whole run.
    """

    network_seconds: float
    decode_seconds: float
    run_seconds: float

    @property
    def ratio(self) -> float:
        """The whole run against the network and half of the decoding."""
        return self.run_seconds / (self.network_seconds + self.decode_seconds / 2)


def make_video(path: Path, seconds: float) -> None:
    """Scale the demo clip to 1280x720 and repeat it."""
    with av.open(path, "w") as file:
        stream = file.add_stream("libx264", rate=RATE, options={"preset": "medium", "crf": "23"})
        stream.width, stream.height, stream.pix_fmt = 1280, 720, "yuv420p"
        written = 0
        while written < seconds * RATE:
            with av.open(str(fetch_demo_clip())) as clip:
                for frame in clip.decode(video=0):
                    small = frame.reformat(1280, 720, "yuv420p")
                    small.pts, small.time_base = written, Fraction(1, RATE)
                    file.mux(stream.encode(small))
                    written += 1
        file.mux(stream.encode())


def timed(run: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds that a run takes."""
    start = clock()
    run()
    return clock() - start


def measure(model: nn.Module, video: Path, precision: str = "bf16", runs: int = 3) -> list[Round]:
    """Time the three by turns; the first round warms up and is not counted."""
    fast = optimize(model, precision)  # type: ignore[arg-type]  # optimize checks it
    options = PredictOptions()
    num_windows = len(predict(fast, video, options).windows)
    clip = torch.rand(1, 3, 64, 224, 224) * 2 - 1

    def network() -> None:
        with torch.inference_mode():
            for _ in range(num_windows):
                fast.call("forward", clip)  # of noise bfloat16 cannot tell the first class, and would ask again

    def read() -> None:
        for _ in open_frames(video, fps=25.0):
            pass

    rounds = [
        Round(timed(network), timed(read, time.process_time), timed(lambda: predict(fast, video, options)))
        for _ in range(runs + 1)
    ]
    return rounds[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("video", nargs="?", type=Path)
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        video = arguments.video or Path(folder) / "demo720.mp4"
        if arguments.video is None:
            make_video(video, arguments.seconds)
        torch.manual_seed(0)
        rounds = measure(InceptionI3d().eval(), video, arguments.precision, arguments.runs)
    for one in rounds:
        print(
            f"network {one.network_seconds:.2f} s, decoding {one.decode_seconds:.2f} s of processor time, "
            f"run {one.run_seconds:.2f} s, ratio {one.ratio:.3f}"
        )
    ratio = statistics.median(one.ratio for one in rounds)
    print(f"{os.cpu_count()} cores, {arguments.precision}: median ratio {ratio:.3f}, at most {LIMIT} is wanted")
    sys.exit(ratio > LIMIT)


if __name__ == "__main__":
    main()
