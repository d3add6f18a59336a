"""What stands before the first frame and behind the last one when a kernel looks past the ends of a clip."""

import torch
from torch import Tensor

from inflate3d.inflation.plan import TimePadding


def time_pads(num_frames: int, kernel: int, *, stride: int = 1, padding: TimePadding = "replicate") -> tuple[int, int]:
    """Frames to put before and behind, such that `num_frames` give ceil(num_frames / stride) outputs.

    The present frame is tap (kernel - 1) // 2, and the last tap where `padding` is "causal".

    Example:
        >>> time_pads(7, 4), time_pads(7, 3, stride=2), time_pads(7, 3, padding="causal")
        ((1, 2), (1, 1), (2, 0))
    """
    if padding == "valid":
        return 0, 0
    front = kernel - 1 if padding == "causal" else (kernel - 1) // 2
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
