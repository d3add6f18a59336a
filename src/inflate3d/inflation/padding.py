"""What stands around a clip when a kernel looks past its ends: in time, and around each frame."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TimePadding = Literal["replicate", "zeros", "causal", "valid"]
Sides = tuple[int, int, int, int]  # pixels left, right, above and below, in the order of F.pad


def present_tap(kernel: int, padding: TimePadding = "replicate") -> int:
    """Name the tap of a kernel that looks at the present frame: the last one where it looks at the past alone.

    Example:
        >>> present_tap(4), present_tap(3, "causal")
        (1, 2)
    """
    return kernel - 1 if padding == "causal" else (kernel - 1) // 2


def time_pads(num_frames: int, kernel: int, *, stride: int = 1, padding: TimePadding = "replicate") -> tuple[int, int]:
    """Frames to put before and behind, such that `num_frames` give ceil(num_frames / stride) outputs.

    Example:
        >>> time_pads(7, 4), time_pads(7, 3, stride=2), time_pads(7, 3, padding="causal")
        ((1, 2), (1, 1), (2, 0))
    """
    if padding == "valid":
        return 0, 0
    front = present_tap(kernel, padding)
    if isinstance(num_frames, torch.SymInt):  # an export for any length: what is too much makes no output
        return front, kernel - 1 - front
    needed = (-(-num_frames // stride) - 1) * stride + kernel - num_frames
    return front, max(needed - front, 0)


def pad_time(clip: Tensor, front: int, back: int, *, padding: TimePadding = "replicate") -> Tensor:
    """Lengthen `[b, c, t, h, w]` by frames before and behind: zeros, or the first and the last frame again.

    Example:
        >>> pad_time(torch.tensor([1.0, 2.0]).view(1, 1, 2, 1, 1), 1, 2).flatten().tolist()
        [1.0, 1.0, 2.0, 2.0, 2.0]
    """
    if front == 0 and back == 0:
        return clip
    # torch.cat is faster than F.pad(mode="replicate"), and along this axis it keeps channels-last memory
    first, last = clip[:, :, :1], clip[:, :, -1:]
    if padding == "zeros":
        first, last = torch.zeros_like(first), torch.zeros_like(last)
    return torch.cat([first] * front + [clip] + [last] * back, dim=2)


def pad_for(clip: Tensor, kernel: int, *, stride: int = 1, padding: TimePadding = "replicate") -> Tensor:
    """Lengthen `[b, c, t, h, w]` as a kernel over several frames wants it.

    Example:
        >>> pad_for(torch.arange(3.0).view(1, 1, 3, 1, 1), 4).flatten().tolist()
        [0.0, 0.0, 1.0, 2.0, 2.0, 2.0]
    """
    front, back = time_pads(clip.shape[2], kernel, stride=stride, padding=padding)
    return pad_time(clip, front, back, padding=padding)


def sides_of(conv2d: nn.Conv2d) -> Sides:
    """Count the pixels that a 2D convolution puts around a frame.

    Example:
        >>> sides_of(nn.Conv2d(3, 5, (3, 4), padding=(2, 1))), sides_of(nn.Conv2d(3, 5, (3, 4), padding="same"))
        ((1, 1, 2, 2), (1, 2, 1, 1))
    """
    if conv2d.padding_mode != "zeros":  # torch's own layer goes by what its constructor was given
        left, right, top, bottom = conv2d._reversed_padding_repeated_twice
        return left, right, top, bottom
    if conv2d.padding == "valid":
        return 0, 0, 0, 0
    if conv2d.padding == "same":
        height, width = (d * (k - 1) for d, k in zip(conv2d.dilation, conv2d.kernel_size, strict=True))
        return width // 2, width - width // 2, height // 2, height - height // 2
    height, width = (int(pixels) for pixels in conv2d.padding)
    return width, width, height, height


def pad_space(x: Tensor, sides: Sides, mode: str = "zeros") -> tuple[Tensor, tuple[int, int]]:
    """Pad frames `[n, c, h, w]` or those of `[b, c, t, h, w]`; what conv3d can do itself is handed on: top and left.

    Example:
        >>> clip = torch.zeros(1, 2, 3, 5, 7)
        >>> pad_space(clip, (1, 1, 2, 2))[1], pad_space(clip, (1, 2, 1, 1))[0].shape
        ((2, 1), torch.Size([1, 2, 3, 7, 10]))
    """
    left, right, top, bottom = sides
    if mode == "zeros" and (left, top) == (right, bottom):
        return x, (top, left)
    time = (0, 0) * (x.ndim - 4)
    return F.pad(x, (*sides, *time), mode="constant" if mode == "zeros" else mode), (0, 0)
