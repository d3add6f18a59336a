"""Peak memory and time of `inflate3d predict` on a long video: it must not grow with the length.

    python benchmarks/memory.py [--minutes 10] [--precision fp32]

makes a 1280x720 video with moving noise (H.264, 30 fps) in a temporary folder, predicts it in a process of its own, and
prints the peak resident memory as the operating system counts it; above 1.5 GB it exits with 1.
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

LIMIT_BYTES = 1.5e9


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


def measure(minutes: float = 10, precision: str = "fp32") -> dict[str, Any]:
    """Predict a long video in a process of its own: seconds, and the most memory it had."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "long.mp4"
        make_video(path, minutes)
        start = time.perf_counter()
        # as a child of a child: the system counts the most that any process beneath had
        command = [sys.executable, __file__, "--run", "predict", str(path), "--precision", precision]
        found = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        seconds = time.perf_counter() - start
    return {"minutes": minutes, "precision": precision, "seconds": seconds, "peak_bytes": int(found.split()[-1])}


def run(command: list[str]) -> None:
    """Run the program, and tell the most memory it had."""
    subprocess.run([sys.executable, "-m", "inflate3d", *command], check=True, stdout=sys.stderr)
    print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)  # Linux counts in KiB


def main() -> None:
    if sys.argv[1:2] == ["--run"]:
        run(sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--precision", default="fp32")
    arguments = parser.parse_args()
    found = measure(arguments.minutes, arguments.precision)
    print(
        f"{found['minutes']:g} minutes of 1280x720, {found['precision']}: {found['seconds']:.0f} s, "
        f"peak resident memory {found['peak_bytes'] / 2**30:.2f} GiB"
    )
    sys.exit(found["peak_bytes"] > LIMIT_BYTES)


if __name__ == "__main__":
    main()
