"""Frames to network input: resize the short side, crop, change the range of values."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from inflate3d.clips.clip import Clip, ClipSpec
from inflate3d.errors import InflateError, check_choice, is_pair

ClipOrTensor = TypeVar("ClipOrTensor", Clip, Tensor)
CropKind = Literal["center", "three", "five", "ten"]

KNOWN_RANGES = ((0.0, 1.0), (-1.0, 1.0), (0.0, 255.0))
MAX_ASPECT = 32  # a side of 256 makes 256 x 8192 at most


class Place(NamedTuple):
    """Where a crop lies: its name, the pixels above and left of it, and whether it is mirrored."""

    name: str
    top: int
    left: int
    flipped: bool = False


def _center(down: int, right: int) -> list[Place]:
    return [Place("center", down // 2, right // 2)]


def _three(down: int, right: int) -> list[Place]:
    if down > right:
        return [Place("top", 0, right // 2), *_center(down, right), Place("bottom", down, right // 2)]
    return [Place("left", down // 2, 0), *_center(down, right), Place("right", down // 2, right)]


def _five(down: int, right: int) -> list[Place]:
    corners = [
        Place("top-left", 0, 0),
        Place("top-right", 0, right),
        Place("bottom-left", down, 0),
        Place("bottom-right", down, right),
    ]
    return corners + _center(down, right)


def _ten(down: int, right: int) -> list[Place]:
    # torchvision's TenCrop takes five crops of the mirrored frame, so its sixth is the top left one of the mirror
    # image: the top right one of the frame, mirrored
    mirrored = [Place(f"mirrored-{name}", top, right - left, True) for name, top, left, _ in _five(down, right)]
    return _five(down, right) + mirrored


CROPS: dict[CropKind, Callable[[int, int], list[Place]]] = {
    "center": _center,
    "three": _three,
    "five": _five,
    "ten": _ten,
}


def resize_short_side(frames: Tensor, short_side: int) -> Tensor:
    """Scale frames so that the shorter side has `short_side` pixels; the other one keeps the aspect, rounded down.

    Bilinear with antialiasing, as Pillow and torchvision do it. Frames that fit already are returned as they are.

    Args:
        frames: `[..., c, h, w]`, uint8 or floating point; fastest when channels-last in memory.
        short_side: Pixels.

    Raises:
        InflateError: One side is more than 32 times the other, which would take unbounded memory.

    Example:
        >>> resize_short_side(torch.zeros(5, 3, 45, 67, dtype=torch.uint8), 32).shape
        torch.Size([5, 3, 32, 47])
    """
    height, width = frames.shape[-2:]
    shorter, longer = sorted((height, width))
    if longer > MAX_ASPECT * shorter:
        raise InflateError(
            "the frames are too long and narrow",
            where="resize_short_side",
            expected=f"a longer side of at most {MAX_ASPECT} times the shorter one",
            got=f"{width}x{height} pixels",
            fix="crop the video first",
        )
    if shorter == short_side:
        return frames
    other = short_side * longer // shorter
    size = (short_side, other) if height < width else (other, short_side)
    batch = frames.reshape(-1, *frames.shape[-3:])
    resized = F.interpolate(batch, size, mode="bilinear", antialias=True, align_corners=False)
    return resized.reshape(*frames.shape[:-2], *size)


def as_tensor(array: NDArray[Any] | Tensor) -> Tensor:
    """Share the memory of an array, or copy it where torch cannot: `array[..., ::-1]` runs backwards through it.

    Example:
        >>> as_tensor(np.arange(3)[::-1]).tolist()
        [2, 1, 0]
    """
    return array if isinstance(array, Tensor) else torch.from_numpy(np.ascontiguousarray(array))


def resize_picture(picture: NDArray[Any] | Tensor, short_side: int) -> Tensor:
    """Scale one picture `[h, w, 3]` like `resize_short_side`; keeps windows of a stream small in memory.

    Raises:
        InflateError: One side is more than 32 times the other.

    Example:
        >>> resize_picture(torch.zeros(45, 67, 3, dtype=torch.uint8), 32).shape
        torch.Size([32, 47, 3])
    """
    return resize_short_side(as_tensor(picture).permute(2, 0, 1), short_side).permute(1, 2, 0)


def crops(frames: Tensor, size: int, kind: CropKind = "center") -> dict[str, Tensor]:
    """Cut square crops, named and in a fixed order.

    * `center`: begins at `(h - size) // 2`, `(w - size) // 2`;
    * `three`: left, center, right, or in portrait frames top, center, bottom; in the middle of the other side;
    * `five`: top-left, top-right, bottom-left, bottom-right, center;
    * `ten`: these five, then the same five of the mirrored frame (so `mirrored-top-left` shows what is at the top
      right, mirrored).

    Source: torchvision's FiveCrop and TenCrop, for the last two orders; its center crop rounds halves to even, ours
    down.

    Args:
        frames: `[..., h, w]`.
        size: Pixels of a side.
        kind: A key of `CROPS`.

    Returns:
        Views `[..., size, size]` by name; mirrored ones are copies.

    Raises:
        InflateError: The frames are smaller than the crop, or `kind` is unknown.

    Example:
        >>> list(crops(torch.zeros(3, 32, 47), 28, "three"))
        ['left', 'center', 'right']
    """
    height, width = frames.shape[-2:]
    cut = {
        place: frames[..., place.top : place.top + size, place.left : place.left + size]
        for place in _places(height, width, size, kind)
    }
    return {place.name: crop.flip(-1) if place.flipped else crop for place, crop in cut.items()}


def _places(height: int, width: int, size: int, kind: CropKind) -> list[Place]:
    check_choice(kind, CROPS, what="crop", where="crops")
    if min(height, width) < size:
        raise InflateError(
            "the frames are smaller than the crop",
            where="crops",
            expected=f"{size} pixels or more on each side",
            got=f"{width}x{height} pixels",
            fix=f"resize first: resize_short_side(frames, {size}) or more",
        )
    return CROPS[kind](height - size, width - size)


def check_range(data: Tensor, value_range: tuple[float, float], *, where: str = "check_range") -> None:
    """Check that values lie in the range that was declared for them, up to a thousandth of it.

    Args:
        data: uint8, whose range is 0..255, or floating point.
        value_range: Declared smallest and largest value.
        where: Who asks, for the message.

    Raises:
        InflateError: The range is no pair of numbers or empty, the dtype holds no pixels, or values are not finite or
            outside of it.

    Example:
        >>> check_range(torch.tensor([0.0, 0.7]), (0.0, 1.0))
    """
    if not is_pair(value_range):
        raise InflateError(
            "the range is no pair of numbers",
            where=where,
            expected="value_range=(smallest, largest)",
            got=f"value_range={value_range!r}",
            fix="pass value_range=(0.0, 1.0), (-1.0, 1.0) or (0.0, 255.0)",
        )
    low, high = value_range
    dtype_fits = data.is_floating_point() or (data.dtype == torch.uint8 and (low, high) == (0, 255))
    if not dtype_fits or not low < high:
        raise InflateError(
            "the range does not fit the dtype" if low < high else "the range is empty",
            where=where,
            expected="uint8 with value_range (0, 255), or floating point with (smallest, largest)",
            got=f"{data.dtype} with value_range {value_range}",
            fix="convert other integers: data.to(torch.uint8) if they lie in 0..255"
            if low < high
            else "name the smaller value first: value_range=(0.0, 1.0)",
        )
    if data.dtype == torch.uint8 or data.numel() == 0:
        return
    smallest, largest = (value.item() for value in data.aminmax())
    slack = (high - low) / 1000
    if low - slack <= smallest and largest <= high + slack:  # false for NaN as well
        return
    likely = next((known for known in KNOWN_RANGES if known[0] <= smallest and largest <= known[1]), None)
    raise InflateError(
        "there are values that are no number" if math.isnan(smallest) else "values lie outside of the declared range",
        where=where,
        expected=f"values in {low:g}..{high:g}, as declared by value_range",
        got=f"{data.dtype} values from {smallest:.6g} to {largest:.6g}",
        fix=f"declare value_range={likely} if that is what black and white are"
        if likely
        else f"if they mean nothing: data.nan_to_num().clamp({low:g}, {high:g})",
    )


def to_range(
    clip: ClipOrTensor, wanted: tuple[float, float] = (-1.0, 1.0), *, value_range: tuple[float, float] | None = None
) -> ClipOrTensor:
    """Map values linearly from their range to another one, as float32: uint8 to -1..1 is x / 255 * 2 - 1.

    Args:
        clip: A `Clip`, which knows its range, or a tensor of any shape.
        wanted: Smallest and largest value of the result.
        value_range: What black and white are in a floating-point tensor.

    Raises:
        InflateError: A floating-point tensor comes without a range, or values lie outside of the declared range.

    Example:
        >>> to_range(torch.tensor([0, 51, 255], dtype=torch.uint8))
        tensor([-1.0000, -0.6000,  1.0000])
    """
    if isinstance(clip, Clip):
        return replace(clip, data=_mapped(clip.data, clip.value_range, wanted), value_range=wanted)
    if value_range is None and clip.dtype != torch.uint8:
        raise InflateError(
            "a floating-point tensor does not say what black and white are",
            where="to_range",
            expected="value_range=(0.0, 1.0), (-1.0, 1.0) or (0.0, 255.0), or uint8",
            got=f"{list(clip.shape)} {clip.dtype} without value_range",
            fix="pass value_range=(darkest, brightest)",
        )
    return _mapped(clip, value_range or (0.0, 255.0), wanted)


def _mapped(data: Tensor, value_range: tuple[float, float], wanted: tuple[float, float]) -> Tensor:
    check_range(data, value_range, where="to_range")
    low, high = value_range
    mapped = data.to(torch.float32, copy=True)  # one copy, changed in place: a clip is large
    if low:
        mapped.sub_(low)
    return mapped.div_(high - low).mul_(wanted[1] - wanted[0]).add_(wanted[0])


def frames_to_input(
    frames: Sequence[NDArray[Any] | Tensor] | NDArray[Any] | Tensor,
    spec: ClipSpec,
    kind: CropKind = "center",
    *,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Make network input from the pictures of one clip: resize, crop, change the range.

    Args:
        frames: Pictures `[h, w, 3]` uint8, all of one size, or a stack `[t, h, w, 3]`; those whose short side is
            right already (`resize_picture`) are not resized again.
        spec: What the network wants; its `short_side`, `crop` and `value_range` are used.
        kind: A key of `CROPS`.
        dtype: float32, or uint8 for a network that scales pixels itself (`Optimized.takes_uint8`).

    Returns:
        `[n_crops, 3, t, crop, crop]`, channels-last in memory, the crops in the order of their names.

    Raises:
        InflateError: No frames, frames of other shapes or dtypes, or a crop larger than the short side.

    Example:
        >>> spec = ClipSpec(fps=25, num_frames=5, min_frames=1, short_side=32, crop=28, value_range=(-1, 1))
        >>> frames_to_input(torch.zeros(5, 45, 67, 3, dtype=torch.uint8), spec, "three").shape
        torch.Size([3, 3, 5, 28, 28])
    """
    pictures = [as_tensor(frame) for frame in frames]
    shapes = {(*picture.shape, picture.dtype) for picture in pictures}
    if len(shapes) != 1 or pictures[0].ndim != 3 or pictures[0].shape[-1] != 3 or pictures[0].dtype != torch.uint8:
        raise InflateError(
            "these are no frames of one clip",
            where="frames_to_input",
            expected="one or more pictures [h, w, 3] uint8, all of one size",
            got=", ".join(sorted(str(list(shape)) for shape in shapes)) or "no frames",
            fix="pass Frame.picture of each frame, or a stack [t, h, w, 3]",
        )
    small = [resize_picture(picture, spec.short_side) for picture in pictures]
    places = _places(small[0].shape[0], small[0].shape[1], spec.crop, kind)
    batch = torch.empty(len(places), len(small), spec.crop, spec.crop, 3, dtype=dtype)
    for view, place in zip(batch, places, strict=True):
        _show(small, place, spec, view)
    return batch.permute(0, 4, 1, 2, 3)


def input_views(
    pictures: Sequence[Tensor], spec: ClipSpec, kind: CropKind = "center", *, dtype: torch.dtype = torch.float32
) -> Iterator[Tensor]:
    """Make network input one view at a time, as `frames_to_input` makes them together; only that one takes memory.

    Args:
        pictures: Of one clip, `[h, w, 3]` uint8, in the size that the network wants.
        spec: What the network wants; its `crop` and `value_range` are used.
        kind: A key of `CROPS`.
        dtype: As for `frames_to_input`.

    Returns:
        Views `[3, t, crop, crop]`, channels-last in memory, in the order of their names.

    Raises:
        InflateError: A crop larger than the pictures.

    Example:
        >>> spec = ClipSpec(fps=25, num_frames=5, min_frames=1, short_side=32, crop=28, value_range=(-1, 1))
        >>> [list(view.shape) for view in input_views([torch.zeros(32, 47, 3, dtype=torch.uint8)] * 5, spec, "three")]
        [[3, 5, 28, 28], [3, 5, 28, 28], [3, 5, 28, 28]]
    """
    for place in _places(pictures[0].shape[0], pictures[0].shape[1], spec.crop, kind):
        view = torch.empty(len(pictures), spec.crop, spec.crop, 3, dtype=dtype)
        _show(pictures, place, spec, view)
        yield view.permute(3, 0, 1, 2)


def _show(pictures: Sequence[Tensor], place: Place, spec: ClipSpec, out: Tensor) -> None:
    """Write a crop of each picture to `[t, h, w, 3]`; a clip at a time would go through memory five times."""
    _, top, left, flipped = place
    for picture, there in zip(pictures, out, strict=True):
        crop = picture[top : top + spec.crop, left : left + spec.crop]
        crop = crop.flip(1) if flipped else crop
        there.copy_(crop if out.dtype == torch.uint8 else to_range(crop, spec.value_range))
