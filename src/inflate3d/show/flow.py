"""Optical flow as pictures and videos."""

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from inflate3d.atomic import replacing
from inflate3d.errors import InflateError
from inflate3d.show.pictures import write_animation

# Steps from one color to the next on the wheel: red, yellow, green, cyan, blue, magenta and back.
# Source: Baker et al., A Database and Evaluation Methodology for Optical Flow, IJCV 2011
WHEEL_STEPS = (15, 6, 4, 11, 13, 6)
WHEEL_CORNERS = ((1, 0, 0), (1, 1, 0), (0, 1, 0), (0, 1, 1), (0, 0, 1), (1, 0, 1))

LARGEST_PIXELS = 10.0  # motion that gets the full color
STRENGTH = 0.8  # of a full color over a frame
SMALLEST_KEY_PIXELS = 3  # below, no direction is left in it


def flow_picture(flow: Tensor, largest_pixels: float | None = None) -> Tensor:
    """Color flow by its direction, and by its size from white to the full color.

    Args:
        flow: `[2, h, w]`, pixels to the right and down.
        largest_pixels: Motion that gets the full color; what is beyond gets darker. None takes the largest there is.

    Returns:
        `[h, w, 3]` uint8.

    Raises:
        InflateError: The flow has another shape, or the largest motion is not positive.

    Source: Baker et al. 2011, section 3.3 and figure 7 (the Middlebury color code).

    Example:
        >>> flow_picture(torch.tensor([[[0.0, 5.0, -5.0]], [[0.0, 0.0, 0.0]]])).tolist()
        [[[255, 255, 255], [255, 0, 0], [0, 209, 255]]]
    """
    if flow.ndim != 3 or len(flow) != 2 or (largest_pixels is not None and not largest_pixels > 0):
        raise InflateError(
            "this is no flow to draw",
            where="flow_picture",
            expected="flow [2, h, w] and largest_pixels > 0",
            got=f"{list(flow.shape)}, largest_pixels={largest_pixels}",
            fix="pass one flow at a time",
        )
    u, v = flow.double()
    size = (u * u + v * v).sqrt()
    size = size / (largest_pixels or size.max().clamp(min=1e-9))
    colors = _wheel()
    place = (torch.atan2(-v, -u) / torch.pi + 1) / 2 * (len(colors) - 1)
    low = place.long()
    share = (place - low)[..., None]
    color = (1 - share) * colors[low] + share * colors[(low + 1) % len(colors)]
    inside = (size <= 1)[..., None]
    color = torch.where(inside, 1 - size[..., None] * (1 - color), 0.75 * color)
    picture: Tensor = (255 * color).floor().to(torch.uint8)
    return picture


def _wheel() -> Tensor:
    """List the 55 colors, `[55, 3]` in 0..1."""
    corners = torch.tensor(WHEEL_CORNERS, dtype=torch.float64)
    runs = []
    for steps, start, end in zip(WHEEL_STEPS, corners, corners.roll(-1, 0), strict=True):
        share = (255 * torch.arange(steps, dtype=torch.float64) / steps).floor()[:, None] / 255
        runs.append(start + torch.where(end > start, share, -share) * (end != start))
    return torch.cat(runs)


def wheel_picture(side: int = 151) -> Tensor:
    """Draw the key to `flow_picture`: a disk in which each point has the color of the motion from the middle to it.

    Args:
        side: Pixels, 2 or more.

    Returns:
        `[side, side, 3]` uint8.

    Example:
        >>> wheel_picture(11)[5, [0, 5, 10]].tolist()  # left, middle, right
        [[0, 209, 255], [255, 255, 255], [255, 0, 0]]
    """
    axis = (2 * torch.arange(side, dtype=torch.float64) - (side - 1)) / (side - 1)  # exactly zero in the middle
    flow = torch.stack([axis.expand(side, side), axis[:, None].expand(side, side)])
    outside = flow.square().sum(0) > 1 + 1e-9
    return flow_picture(torch.where(outside, 0, flow), 1 + 1e-9)


def overlay(picture: Tensor, flow: Tensor, largest_pixels: float = LARGEST_PIXELS) -> Tensor:
    """Lay the colors of flow over its frame, the stronger the larger the motion; the key is at the lower right.

    Args:
        picture: `[h, w, 3]` uint8.
        flow: `[2, h, w]`, pixels.
        largest_pixels: Motion that gets the full color.

    Returns:
        `[h, w, 3]` uint8.

    Raises:
        InflateError: The flow has another shape than its frame.

    Example:
        >>> overlay(torch.full((24, 32, 3), 90, dtype=torch.uint8), torch.zeros(2, 24, 32))[0, 0].tolist()
        [90, 90, 90]
    """
    if flow.shape[1:] != picture.shape[:2]:
        raise InflateError(
            "frame and flow differ in size",
            where="overlay",
            expected=f"flow [2, {picture.shape[0]}, {picture.shape[1]}]",
            got=str(list(flow.shape)),
            fix="scale the frames to the size on which the flow was computed",
        )
    share = STRENGTH * (flow.double().norm(dim=0) / largest_pixels).clamp(max=1)[..., None]
    grey = picture.double().mean(-1, keepdim=True)
    mixed = (1 - share) * grey + share * flow_picture(flow, largest_pixels)
    if (side := min(picture.shape[:2]) // 4) >= SMALLEST_KEY_PIXELS:
        mixed[-side:, -side:] = wheel_picture(side)
    drawn: Tensor = mixed.round().to(torch.uint8)
    return drawn


def write_png(path: Path, picture: Tensor) -> None:
    """Write `[h, w, 3]` uint8 as PNG, whole or not at all.

    Raises:
        InflateError: The file cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_png(Path(folder) / "wheel.png", wheel_picture())
        ...     (Path(folder) / "wheel.png").read_bytes()[1:4]
        b'PNG'
    """
    from PIL import Image  # noqa: PLC0415 - comes with torchvision

    with replacing(path) as draft:
        Image.fromarray(picture.numpy()).save(draft, "PNG")


def write_overlay(
    path: Path, moving: Iterable[tuple[Tensor, Tensor]], *, fps: float = 25.0, largest_pixels: float = LARGEST_PIXELS
) -> None:
    """Write an H.264 video of frames under the colors of their flow; whole or not at all.

    Args:
        path: An .mp4 file.
        moving: Frames `[h, w, 3]` uint8 with their flow `[2, h, w]`, such as `with_flow` gives; read once.
        fps: Frames per second of the video.
        largest_pixels: Motion that gets the full color.

    Raises:
        InflateError: There are no frames, or the file cannot be written.

    Example:
        >>> import tempfile
        >>> moving = [(torch.zeros(32, 48, 3, dtype=torch.uint8), torch.ones(2, 32, 48))] * 3
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_overlay(Path(folder) / "overlay.mp4", moving, fps=10.0)
        ...     (Path(folder) / "overlay.mp4").stat().st_size > 500
        True
    """
    write_animation(path, (overlay(picture, flow, largest_pixels) for picture, flow in moving), fps=fps)
