"""Pictures that move in a known way, and real ones."""

import warnings
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from inflate3d.clips.video import open_frames
from inflate3d.errors import InflateWarning


def texture(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Draw clouds with detail of several sizes."""
    noise = np.random.default_rng(seed)
    picture = sum(
        cv2.GaussianBlur(noise.standard_normal((height, width)), (0, 0), size) * size for size in (1.5, 4.0, 9.0)
    )
    low, high = picture.min(), picture.max()
    return np.round((picture - low) / (high - low) * 255).astype(np.uint8)


def shifted(right: int, down: int, height: int = 61, width: int = 83) -> tuple[Tensor, Tensor]:
    """Cut two grey pictures `[1, h, w]` out of one texture; the second shows it that much further right and down."""
    whole = texture(height + 20, width + 20)
    first = whole[10 : 10 + height, 10 : 10 + width]
    second = whole[10 - down : 10 - down + height, 10 - right : 10 - right + width]
    return torch.from_numpy(first.copy())[None], torch.from_numpy(second.copy())[None]


def rgb(grey: Tensor) -> Tensor:
    return grey[..., None].expand(*grey.shape, 3).contiguous()


def real_pairs(videos: Path, count: int) -> tuple[Tensor, Tensor]:
    """Take a pair of neighbouring frames (25 fps) from each of several videos: `[n, 256, 340]` uint8 twice."""
    paths = [path for path in sorted(videos.glob("singles/*/*")) if path.suffix in {".mp4", ".avi"}]
    paths += sorted(videos.glob("tennis/*/*.mp4"))[::17]
    pairs = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InflateWarning)
        for path in paths[:count]:
            frames = [frame.picture for _, frame in zip(range(10), open_frames(path, fps=25), strict=False)]
            small = [cv2.resize(frame, (340, 256), interpolation=cv2.INTER_AREA) for frame in frames[-2:]]
            pairs.append([cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in small])
    first, second = (torch.from_numpy(np.stack(side)) for side in zip(*pairs, strict=True))
    return first, second


def read_flo(path: Path) -> Tensor:
    """Read Middlebury's format: a magic number, width, height, then u and v of each pixel."""
    data = np.fromfile(path, np.float32)
    width, height = data[1:3].view(np.int32)
    return torch.from_numpy(data[3:].reshape(height, width, 2)).permute(2, 0, 1).double()


def distance(one: Tensor, other: Tensor) -> Tensor:
    """Mean end-point distance of flows `[n, 2, h, w]`, in float64."""
    return (one.double() - other.double()).norm(dim=1).mean((1, 2))
