"""Peak memory and time of long videos: it must not grow with the length.

    python benchmarks/memory.py [predict|features|two-streams] [--minutes 10] [--precision fp32]

makes a 1280x720 video with moving noise (H.264, 30 fps) in a temporary folder, and predicts it (by RGB, or by RGB and
flow from DIS, with a random network for flow) or takes its features. That runs in a process of its own; the peak
resident memory is printed as the operating system counts it; above the bound of that work it exits with 1.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import av
import numpy as np

LIMIT_BYTES = {"predict": 1.5e9, "features": 2e9, "two-streams": 2e9}


def make_video(path: Path, minutes: float) -> None:
    texture = np.random.default_rng(0).integers(0, 255, (90, 400, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    with av.open(path, "w") as file:
        stream = file.add_stream("libx264", rate=30, options={"preset": "ultrafast", "crf": "30"})
        stream.width, stream.height, stream.pix_fmt = 1280, 720, "yuv420p"
        for i in range(int(minutes * 60 * 30)):
            left = 8 * (i % 240)
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(texture[:, left : left + 1280]), format="rgb24")
            file.mux(stream.encode(frame))
        file.mux(stream.encode())


def make_flow_network(path: Path) -> None:
    """A random I3D for flow, as a file."""
    import torch

    from inflate3d import InceptionI3d
    from inflate3d.weights.checkpoint import convert_checkpoint

    torch.save(InceptionI3d(400, in_channels=2).state_dict(), path.with_suffix(".pt"))
    convert_checkpoint(path.with_suffix(".pt"), path)


def command(work: str, folder: Path, minutes: float, precision: str) -> list[str]:
    """Make what is needed in a folder, and say what to run."""
    make_video(folder / "long.mp4", minutes)
    if work == "features":
        return ["features", str(folder / "long.mp4"), "-o", str(folder / "features"), "--precision", precision]
    flags = ["--precision", precision]
    if work == "two-streams":
        make_flow_network(folder / "flow.safetensors")
        flags += ["--stream", "both", "--flow-model", str(folder / "flow.safetensors"), "--flow-method", "dis"]
    return ["predict", str(folder / "long.mp4"), *flags]


def measure(minutes: float, precision: str, work: str = "predict") -> dict[str, Any]:
    """Work on a long video in a process of its own: seconds, and the most memory it had."""
    with tempfile.TemporaryDirectory() as folder:
        words = command(work, Path(folder), minutes, precision)
        start = time.perf_counter()
        # as a child of a child: the system counts the most that any process beneath had
        again = [sys.executable, __file__, "--run", *words]
        found = subprocess.run(again, check=True, stdout=subprocess.PIPE, text=True).stdout
        seconds = time.perf_counter() - start
    return {"minutes": minutes, "precision": precision, "seconds": seconds, "peak_bytes": int(found.split()[-1])}


def run(words: list[str]) -> None:
    """Run the program, and tell the most memory it had."""
    subprocess.run([sys.executable, "-m", "inflate3d", *words], check=True, stdout=sys.stderr)
    print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)  # Linux counts in KiB


def main() -> None:
    if sys.argv[1:2] == ["--run"]:
        run(sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", nargs="?", default="predict", choices=LIMIT_BYTES)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--precision", default="fp32")
    given = parser.parse_args()
    found = measure(given.minutes, given.precision, given.work)
    print(
        f"{given.work}, {given.minutes:g} minutes of 1280x720, {given.precision}: {found['seconds']:.0f} s, "
        f"peak resident memory {found['peak_bytes'] / 1e9:.2f} GB"
    )
    sys.exit(found["peak_bytes"] > LIMIT_BYTES[given.work])


if __name__ == "__main__":
    main()
