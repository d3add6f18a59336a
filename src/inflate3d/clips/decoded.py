"""Whole videos as small frames for training: decoded once, kept on disk if wanted, cut into windows and crops."""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from inflate3d.atomic import replacing
from inflate3d.clips.decoding import unreadable
from inflate3d.clips.stills import source_state
from inflate3d.clips.transforms import resize_picture
from inflate3d.clips.video import Rate, open_frames
from inflate3d.errors import check_options, is_count

HORIZONTAL = {2: 0, 5: 3}  # of so many channels, which is the horizontal part of flow
MAX_FRAMES = 20_000  # of one video, 13 minutes at 25 fps; longer ones are for `predict`, which streams


@dataclass(frozen=True)
class Decoding:
    """How videos become frames.

    Attributes:
        fps: Frames per second, or "native".
        short_side: Pixels of the shorter side.
        max_frames: Frames to read at most.
        cache: Folder that keeps what was decoded; None decodes every time.
        change: Makes something else of the frames `[t, h, w, 3]`, such as flow `[t - 1, h, w, 2]`, both uint8.
        change_name: Names that in the cache.
    """

    fps: Rate = 25.0
    short_side: int = 256
    max_frames: int = MAX_FRAMES
    cache: Path | None = None
    change: Callable[[Tensor], Tensor] | None = None
    change_name: str = ""

    def __post_init__(self) -> None:
        check_options(
            self,
            {
                "short_side": ("1 or more pixels", is_count(self.short_side)),
                "max_frames": (f"1 to {MAX_FRAMES}", is_count(self.max_frames, MAX_FRAMES)),
            },
        )


def decoded_frames(path: str, how: Decoding) -> Tensor:
    """Read a video as `[t, h, w, c]` uint8; from the cache if it is there, as a file mapped into memory.

    Raises:
        InflateError: The video cannot be read, or the cache cannot be written.
    """
    kept = _cache_file(path, how)
    if kept is not None and kept.is_file():
        try:
            return torch.from_numpy(np.load(kept, mmap_mode="c", allow_pickle=False))
        except (ValueError, OSError, EOFError):
            kept.unlink(missing_ok=True)  # of another program, or damaged: it is decoded anew
    stream = open_frames(path, fps=how.fps)
    pictures = [resize_picture(frame.picture, how.short_side) for frame in islice(stream, how.max_frames)]
    frames = torch.stack(pictures)
    frames = how.change(frames) if how.change else frames
    if kept is not None:
        with replacing(kept) as draft, draft.open("wb") as file:
            np.save(file, frames.numpy(), allow_pickle=False)
    return frames


def _cache_file(path: str, how: Decoding) -> Path | None:
    """Name the file by all that decides on its content; a video that changes gets another name."""
    if how.cache is None or not os.path.exists(path):  # noqa: PTH110 - no need for a Path of a string
        return None
    try:
        state = source_state(Path(path))
    except OSError as error:
        raise unreadable(Path(path), error) from error
    facts = (str(Path(path).resolve()), state, str(how.fps), how.short_side)
    name = hashlib.sha256(repr((*facts, how.max_frames, how.change_name)).encode()).hexdigest()[:32]
    return how.cache / f"{name}.npy"


@dataclass(frozen=True)
class View:
    """Which part of a video a network is shown.

    Attributes:
        start: First frame; a video that ends too soon is looped.
        top: Pixels above the crop.
        left: Pixels left of it.
        side: Pixels of its side, before it is scaled.
        mirrored: Whether left and right are exchanged.
    """

    start: int
    top: int
    left: int
    side: int
    mirrored: bool = False


@dataclass(frozen=True)
class Window:
    """Size of what a network is shown.

    Attributes:
        num_frames: Frames.
        frame_step: From one of them to the next; 1 takes all.
        crop: Pixels of a side.
    """

    num_frames: int
    frame_step: int
    crop: int


def cut_view(frames: Tensor, window: Window, view: View) -> Tensor:
    """Cut `[c, num_frames, crop, crop]` uint8 out of `[t, h, w, c]`, the same crop of all frames.

    Mirrored flow points the other way, see `turned`.

    Example:
        >>> frames = torch.arange(5, dtype=torch.uint8).view(5, 1, 1, 1).expand(5, 4, 6, 3)
        >>> cut_view(frames, Window(4, 2, 4), View(1, 0, 1, 4))[0, :, 0, 0].tolist()
        [1, 3, 0, 2]
    """
    index = (torch.arange(window.num_frames) * window.frame_step + view.start) % len(frames)
    cut = frames[:, view.top : view.top + view.side, view.left : view.left + view.side][index]
    if view.mirrored:
        cut = turned(cut.flip(2))
    cut = cut.permute(3, 0, 1, 2)
    if view.side == window.crop:
        return cut.contiguous()
    size = (window.crop, window.crop)
    return (
        F.interpolate(cut.transpose(0, 1).contiguous(), size, mode="bilinear", antialias=True)
        .transpose(0, 1)
        .contiguous()
    )


def turned(mirrored: Tensor, axis: int = -1) -> Tensor:
    """Change the sign of the horizontal part of flow, which points the other way in a mirror image.

    Args:
        mirrored: uint8, with two channels of flow, three of color, or three of color and two of flow behind them.
        axis: That of the channels.

    Example:
        >>> turned(torch.tensor([9, 8, 7, 100, 200], dtype=torch.uint8)).tolist()
        [9, 8, 7, 155, 200]
    """
    channels = mirrored.shape[axis]
    if channels not in HORIZONTAL:
        return mirrored
    mirrored = mirrored.clone()
    mirrored.select(axis, HORIZONTAL[channels]).bitwise_not_()  # 255 - x
    return mirrored


def center_view(frames: Tensor, window: Window, place: float = 0.5) -> View:
    """Choose the middle crop, at a place in time from 0 (first window) to 1 (last one)."""
    t, h, w, _ = frames.shape
    side = min(window.crop, h, w)
    room = max(t - (window.num_frames - 1) * window.frame_step - 1, 0)
    return View(round(place * room), (h - side) // 2, (w - side) // 2, side)


def random_view(frames: Tensor, window: Window, *, generator: torch.Generator, flip: bool, zoom: float = 1.0) -> View:
    """Draw start, crop and mirror image, as the paper does.

    Args:
        frames: `[t, h, w, c]`.
        window: What is to be cut.
        generator: The source of what is drawn; five numbers of it are used, whatever the options.
        flip: Whether to mirror one half of all.
        zoom: Smallest side of the crop before scaling, as a share of `window.crop`; 1 for none, as in the paper.

    Source: Carreira & Zisserman, CVPR 2017, section 2.5.
    """
    drawn = torch.rand(5, generator=generator).tolist()
    t, h, w, _ = frames.shape
    side = min(round(window.crop * (zoom + (1 - zoom) * drawn[4])), h, w)
    room = max(t - (window.num_frames - 1) * window.frame_step - 1, 0)
    rooms = (room, h - side, w - side)
    start, top, left = (int(share * (room_of + 1)) for share, room_of in zip(drawn[:3], rooms, strict=True))
    return View(start, top, left, side, flip and drawn[3] < 0.5)
