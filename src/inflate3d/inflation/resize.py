"""Interpolation and pixel shuffle in time: what resizes pictures brings time back to the length it had there."""

import torch.nn.functional as F
from torch import Tensor, nn

from inflate3d.axes import clip_to_frames, frames_to_clip
from inflate3d.inflation.adapters import Adapted, PooledInTime, adapts
from inflate3d.inflation.plan import LayerPlan


def resize_time(clip: Tensor, plan: LayerPlan, *, align_corners: bool = False) -> Tensor:
    """Make time of `[b, c, t, h, w]` longer or shorter, by repeating (or leaving out) frames or linearly.

    T frames become T * time_scale, or ceil(T / time_stride). A kernel of two frames mixes neighbours as the bilinear
    interpolation of pictures does, with the same meaning of `align_corners`; one of a single frame takes the nearest.

    Example:
        >>> import torch
        >>> clip = torch.tensor([0.0, 4.0]).view(1, 1, 2, 1, 1)
        >>> repeated = LayerPlan("up", "Upsample", "resize", time_scale=2)
        >>> linear = LayerPlan("up", "Upsample", "resize", time_kernel=2, time_scale=2)
        >>> resize_time(clip, repeated).flatten().tolist(), resize_time(clip, linear).flatten().tolist()
        ([0.0, 0.0, 4.0, 4.0], [0.0, 1.0, 3.0, 4.0])
    """
    _, _, length, height, width = clip.shape
    if plan.time_kernel == 1:
        return clip.repeat_interleave(plan.time_scale, 2) if plan.time_scale > 1 else clip[:, :, :: plan.time_stride]
    length = length * plan.time_scale if plan.time_scale > 1 else -(-length // plan.time_stride)
    return F.interpolate(clip, (length, height, width), mode="trilinear", align_corners=align_corners)


class Resized(Adapted):
    """Makes time longer or shorter ahead of what does so with height and width: there are fewer pixels."""

    kind = "resize"
    align_corners: bool | None = None

    def through_time(self, x: Tensor) -> Tensor:
        """Resize `[b, c, t, h, w]` in time, then in space."""
        clip = resize_time(x, self.plan, align_corners=bool(self.align_corners))
        return frames_to_clip(self.forward2d(clip_to_frames(clip)), x.shape[0])


@adapts(nn.Upsample)
class ResizedUpsample(Resized, nn.Upsample):
    """Interpolation."""


@adapts(nn.PixelShuffle)
class ResizedPixelShuffle(Resized, nn.PixelShuffle):
    """Channels become pixels, and frames are repeated: for time there are no channels."""


@adapts(nn.PixelUnshuffle)
class PooledPixelUnshuffle(PooledInTime, nn.PixelUnshuffle):
    """Pixels become channels, and the mean is taken over as many frames."""

    takes_maximum = False
