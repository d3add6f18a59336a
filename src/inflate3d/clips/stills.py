"""Folders of pictures and arrays as sources of timed frames."""

import re
from collections.abc import Iterator
from fractions import Fraction
from functools import partial
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from av.video.frame import VideoFrame
from numpy.typing import NDArray
from torch import Tensor

from inflate3d.checks import is_number
from inflate3d.clips.clip import Clip
from inflate3d.clips.sampling import Timed
from inflate3d.clips.transforms import as_tensor, check_range, to_range
from inflate3d.errors import InflateError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff")


def natural_key(path: Path) -> list[tuple[int, str]]:
    """Sort key that puts frame2 before frame10.

    Example:
        >>> [path.name for path in sorted([Path("f10.png"), Path("f2.png")], key=natural_key)]
        ['f2.png', 'f10.png']
    """
    parts = re.split(r"(\d+)", path.name.lower())
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


def image_files(folder: Path) -> list[Path]:
    """List the pictures of a folder in natural order.

    Raises:
        InflateError: The folder holds no picture.
    """
    files = sorted((path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES), key=natural_key)
    if not files:
        names = sorted(path.name for path in folder.iterdir())
        raise InflateError(
            "the folder holds no frames",
            where=str(folder),
            expected=f"pictures named {', '.join(IMAGE_SUFFIXES)}",
            got=", ".join(names[:5]) + ", ..." * (len(names) > 5) if names else "an empty folder",
            fix="pass a video file, or the folder that holds the frames themselves",
        )
    return files


def read_image(path: Path) -> VideoFrame:
    """Decode one picture.

    Raises:
        InflateError: The file is no picture.
    """
    try:
        # from memory, because FFmpeg would take a % in the name for a numbering pattern
        with av.open(BytesIO(path.read_bytes()), "r") as container:
            return next(container.decode(video=0))
    except (av.FFmpegError, StopIteration, IndexError) as error:
        raise InflateError(
            "the picture cannot be decoded",
            where=str(path),
            expected=f"a picture of one of the kinds {', '.join(IMAGE_SUFFIXES)}",
            got=f"{path.stat().st_size} bytes ({error or type(error).__name__})",
            fix="write the frame again, or take it out of the folder",
        ) from error


def at_even_times(items: Iterator[Any], frames_fps: Fraction) -> Iterator[Timed[Any]]:
    """Give items the times 0, 1/fps, 2/fps, ..."""
    for i, item in enumerate(items):
        yield Timed(i / frames_fps, 1 / frames_fps, item)


def checked_array(array: NDArray[Any] | Tensor, value_range: tuple[float, float] | None) -> Tensor:
    """Check an array of frames and its declared range.

    Args:
        array: `[t, h, w, 3]` or grey `[t, h, w]`, uint8 or floating point.
        value_range: What black and white are in a floating-point array.

    Raises:
        InflateError: Another shape or dtype, no frame, no declared range, or values outside of it.
    """
    frames = as_tensor(array)
    fault = None
    if frames.ndim not in {3, 4} or (frames.ndim == 4 and frames.shape[-1] != 3):
        fault = "the array has another shape than frames have"
    elif frames.numel() == 0:
        fault = "the array holds no pixel"
    if fault:
        channels_first = frames.ndim == 4 and frames.shape[1] == 3
        raise InflateError(
            fault,
            where="open_frames",
            expected="[t, h, w, 3] in the order red, green, blue, or grey [t, h, w]",
            got=f"{list(frames.shape)} {frames.dtype}",
            fix="move the channels last: array.transpose(0, 2, 3, 1)" if channels_first else "reshape the array",
        )
    if frames.is_floating_point() and value_range is None:
        raise InflateError(
            "floating-point frames do not say what black and white are",
            where="open_frames",
            expected="value_range=(0.0, 1.0), (-1.0, 1.0) or (0.0, 255.0), or a uint8 array",
            got=f"{list(frames.shape)} {frames.dtype}, values from {frames.min():.4g} to {frames.max():.4g}",
            fix="pass value_range=(darkest, brightest), or wrap it into a Clip, which carries its range: "
            'inflate3d.Clip(data, times_seconds, "mine", value_range=(0.0, 1.0)) with data [3, t, h, w]',
        )
    check_range(frames, value_range or (0.0, 255.0), where="open_frames")
    return frames


def clip_times(clip: Clip) -> list[Fraction]:
    """Exact times of a clip's frames, from 0 on.

    Raises:
        InflateError: The times do not rise.
    """
    seconds = clip.times_seconds.tolist()
    if not all(map(is_number, seconds)) or any(later <= earlier for earlier, later in pairwise(seconds)):
        raise InflateError(
            "the times of the clip do not rise",
            where=clip.source,
            expected="times_seconds, each later than the one before",
            got=f"{seconds[:5]}" + " and so on" * (len(seconds) > 5),
            fix="leave the looping of short clips to predict, or give the frames times: torch.arange(t) / 25",
        )
    return [Fraction(time - seconds[0]).limit_denominator(1_000_000) for time in seconds]


def at_clip_times(items: Iterator[Any], times: list[Fraction], interval: Fraction) -> Iterator[Timed[Any]]:
    """Give items the times of a clip's frames; the last is shown as long as the one before, or for `interval`."""
    ends = [*times[1:], times[-1] + (times[-1] - times[-2] if len(times) > 1 else interval)]
    return (Timed(time, end - time, item) for time, end, item in zip(times, ends, items, strict=True))


def picture_at(frames: Tensor, value_range: tuple[float, float], index: int) -> NDArray[np.uint8]:
    """Take one frame of a checked array as `[h, w, 3]` uint8."""
    frame = frames[index]
    if frame.is_floating_point():
        frame = to_range(frame, (0.0, 255.0), value_range=value_range).round_().clamp_(0, 255).to(torch.uint8)
    if frame.ndim == 2:
        frame = frame[..., None].expand(-1, -1, 3)
    picture: NDArray[np.uint8] = frame.cpu().numpy()
    return picture


def array_items(frames: Tensor, value_range: tuple[float, float] | None) -> Iterator[partial[NDArray[np.uint8]]]:
    """Give each frame of an array as a call that makes its picture."""
    return (partial(picture_at, frames, value_range or (0.0, 255.0), index) for index in range(len(frames)))
