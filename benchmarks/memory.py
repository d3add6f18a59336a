"""Peak memory and time of long work: it must not grow with the length.

    python benchmarks/memory.py [predict|features|two-streams|volume] [--minutes 10] [--precision fp32] [--slices 300]

makes a 1280x720 video with moving noise (H.264, 30 fps) in a temporary folder, or a scan of 512x512 voxels in so many
slices, and has it predicted (by RGB, or by RGB and flow from DIS with a random network for flow; the scan by a random
U-Net with three classes) or its features taken. That runs in a process of its own; the peak resident memory is printed
as the operating system counts it; above the bound of that work it exits with 1.
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

LIMIT_BYTES = {"predict": 1.5e9, "features": 2e9, "two-streams": 2e9, "volume": 4e9}


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


def make_scan(path: Path, slices: int) -> None:
    import nibabel

    voxels = np.random.default_rng(0).integers(-1000, 1000, (512, 512, slices), dtype=np.int16)
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([0.8, 0.8, 1.0, 1.0])), path)


def make_flow_network(path: Path) -> None:
    """A random I3D for flow, as a file."""
    import torch

    from inflate3d import InceptionI3d
    from inflate3d.weights.checkpoint import convert_checkpoint

    torch.save(InceptionI3d(400, in_channels=2).state_dict(), path.with_suffix(".pt"))
    convert_checkpoint(path.with_suffix(".pt"), path)


def make_volume_network(path: Path) -> None:
    """A random U-Net for masks of three classes, of the recipe `volume-segment`, as a file."""
    from inflate3d.clips.volume_spec import VolumeSpec
    from inflate3d.train.recipes import find_recipe
    from inflate3d.train.volumes import options_for, volume_network
    from inflate3d.weights.inflated_file import save_inflated

    recipe, names = find_recipe("volume-segment"), ("ground", "one", "other")
    model = volume_network(recipe, VolumeSpec("mask", names, (1.0, 0.8, 0.8), recipe.patch, window=(-160, 240)))
    save_inflated(model, path, recipe.network, options=options_for(recipe, len(names)), class_names=names)


def command(work: str, folder: Path, size: float, precision: str) -> list[str]:
    """Make what is needed in a folder, and say what to run."""
    if work == "volume":
        make_scan(folder / "long.nii", int(size))
        make_volume_network(folder / "network.safetensors")
        return ["predict", str(folder / "long.nii"), "--model", str(folder / "network.safetensors"), "-o", str(folder)]
    make_video(folder / "long.mp4", size)
    if work == "features":
        return ["features", str(folder / "long.mp4"), "-o", str(folder / "features"), "--precision", precision]
    flags = ["--precision", precision]
    if work == "two-streams":
        make_flow_network(folder / "flow.safetensors")
        flags += ["--stream", "both", "--flow-model", str(folder / "flow.safetensors"), "--flow-method", "dis"]
    return ["predict", str(folder / "long.mp4"), *flags]


def measure(size: float, precision: str, work: str = "predict") -> dict[str, Any]:
    """Do long work in a process of its own: seconds, and the most memory it had. `size` is in minutes, or slices."""
    with tempfile.TemporaryDirectory() as folder:
        words = command(work, Path(folder), size, precision)
        start = time.perf_counter()
        # as a child of a child: the system counts the most that any process beneath had
        again = [sys.executable, __file__, "--run", *words]
        found = subprocess.run(again, check=True, stdout=subprocess.PIPE, text=True).stdout
        seconds = time.perf_counter() - start
    return {"seconds": seconds, "peak_bytes": int(found.split()[-1])}


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
    parser.add_argument("--slices", type=int, default=300)
    given = parser.parse_args()
    size = given.slices if given.work == "volume" else given.minutes
    found = measure(size, given.precision, given.work)
    what = f"{size} slices of 512x512" if given.work == "volume" else f"{size:g} minutes of 1280x720, {given.precision}"
    print(f"{given.work}, {what}: {found['seconds']:.0f} s, peak resident memory {found['peak_bytes'] / 1e9:.2f} GB")
    sys.exit(found["peak_bytes"] > LIMIT_BYTES[given.work])


if __name__ == "__main__":
    main()
