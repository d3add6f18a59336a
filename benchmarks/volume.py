"""Peak memory and time of `inflate3d predict` on a CT of 512x512x300 voxels.

    python benchmarks/volume.py [--shape 300 512 512] [--network smp/Unet-tu-tf_efficientnet_lite0]

The network is that of the recipe volume-segment with a stem that strides and windows of 64x128x128 voxels, with random
weights; the scan is noise, in a compressed NIfTI file whose voxels the network takes as they are, so that nothing
becomes smaller. A process of its own predicts it; above 4 GB of resident memory it exits with 1.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from inflate3d.clips.volume_spec import VolumeSpec
from inflate3d.train.recipes import find_recipe
from inflate3d.train.volumes import options_for, volume_network
from inflate3d.weights.inflated_file import save_inflated

LIMIT_BYTES = 4e9
NAMES = ("background", "organ", "tumor")
SPACING_MM, PATCH, WINDOW = (1.0, 0.8, 0.8), (64, 128, 128), (-160.0, 240.0)


def write_scan(path: Path, shape: tuple[int, ...]) -> None:
    """Write a scan of noise `[d, h, w]` in Hounsfield units."""
    voxels = np.random.default_rng(0).integers(-1000, 1000, shape[::-1], dtype=np.int16)  # NIfTI: columns first
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([*SPACING_MM[::-1], 1.0])), path)


def write_network(path: Path, name: str) -> None:
    """Write an inflated network for masks."""
    recipe = replace(
        find_recipe("volume-segment"), network=name, init="none", encoder_depth=5, decoder_channels=(), first_stride=0
    )
    spec = VolumeSpec("mask", NAMES, SPACING_MM, PATCH, WINDOW)
    options = options_for(recipe, len(NAMES))
    save_inflated(volume_network(recipe, spec).eval(), path, name, options=options, class_names=NAMES)


def measure(shape: tuple[int, ...], name: str) -> dict[str, Any]:
    """Predict a scan in a process of its own: seconds, and the most memory it had."""
    with tempfile.TemporaryDirectory() as folder:
        scan, network = Path(folder) / "scan.nii.gz", Path(folder) / "network.safetensors"
        write_scan(scan, shape)
        write_network(network, name)
        start = time.perf_counter()
        # By way of memory.py, which tells the most that any process beneath it had
        command = ["predict", str(scan), "--model", str(network), "-o", str(Path(folder) / "masks")]
        teller = Path(__file__).with_name("memory.py")
        found = subprocess.run(
            [sys.executable, str(teller), "--run", *command], check=True, stdout=subprocess.PIPE, text=True
        )
        seconds = time.perf_counter() - start
    return {"shape": list(shape), "network": name, "seconds": seconds, "peak_bytes": int(found.stdout.split()[-1])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", nargs=3, type=int, default=(300, 512, 512), metavar=("D", "H", "W"))
    parser.add_argument("--network", default="smp/Unet-tu-tf_efficientnet_lite0")
    given = parser.parse_args()
    found = measure(tuple(given.shape), given.network)
    print(f"{found['network']}, {given.shape}: {found['seconds']:.0f} s, peak {found['peak_bytes'] / 1e9:.2f} GB")
    sys.exit(found["peak_bytes"] > LIMIT_BYTES)


if __name__ == "__main__":
    main()
