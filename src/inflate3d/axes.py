"""Clip form [b c t h w] and frame form [b*t c h w]: the only file that decides a layout."""

import torch
from torch import Tensor


def clip_to_frames(clip: Tensor) -> Tensor:
    """Fold time into the batch: `[b, c, t, h, w]` to `[b*t, c, h, w]`.

    A view, without a copy, when the clip is channels-last in memory.

    Example:
        >>> clip_to_frames(torch.zeros(2, 3, 5, 7, 11)).shape
        torch.Size([10, 3, 7, 11])
    """
    b, c, t, h, w = clip.shape
    frames = clip.transpose(1, 2).reshape(b * t, c, h, w)
    # of a single clip they are a view of neither order, whose strides torch.compile gets wrong behind a batch norm
    return frames if frames.is_contiguous(memory_format=torch.channels_last) else frames.contiguous()


def frames_to_clip(frames: Tensor, num_clips: int = 1) -> Tensor:
    """Unfold the batch into time: `[b*t, c, h, w]` to `[b, c, t, h, w]` with `b = num_clips`, a view.

    Example:
        >>> frames_to_clip(torch.zeros(10, 3, 7, 11), num_clips=2).shape
        torch.Size([2, 3, 5, 7, 11])
    """
    n, c, h, w = frames.shape
    return frames.view(num_clips, n // num_clips, c, h, w).transpose(1, 2)
