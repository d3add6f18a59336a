"""The cache folder: where fetched files lie."""

import os
from pathlib import Path

import platformdirs


def cache_folder() -> Path:
    """Name the folder of fetched files: the environment variable `INFLATE3D_CACHE`, else the user's cache folder."""
    chosen = os.environ.get("INFLATE3D_CACHE")
    return Path(chosen).expanduser() if chosen else platformdirs.user_cache_path("inflate3d")


def weights_path(name: str) -> Path:
    """Name the file in which the weights `name` lie once they are fetched; it need not exist."""
    return cache_folder() / "weights" / f"{name}.safetensors"


def demo_clip_path() -> Path:
    """Name the file in which the demo clip lies once it is fetched; it need not exist."""
    return cache_folder() / "clips" / "demo.mp4"
