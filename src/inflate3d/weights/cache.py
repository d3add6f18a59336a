"""The cache folder: where fetched files lie, and how they get there whole or not at all."""

import os
from pathlib import Path

import platformdirs

from inflate3d.atomic import replacing
from inflate3d.errors import InflateError


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


def write_whole(path: Path, data: bytes) -> None:
    """Write a file whole or not at all, and make its folder.

    Whatever goes wrong, Ctrl-C included, an older file stays as it was.

    Raises:
        InflateError: The folder or the file cannot be written.
    """
    try:
        with replacing(path) as draft:
            draft.write_bytes(data)
    except OSError as error:
        raise InflateError(
            "the file cannot be written",
            where=str(path),
            expected=f"a folder with room for {len(data):,} bytes that you may write to",
            got=f"{type(error).__name__}: {error}",
            fix="make room, mend the permissions, or choose another folder: export INFLATE3D_CACHE=FOLDER",
        ) from error
