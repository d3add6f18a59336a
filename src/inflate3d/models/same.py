"""TensorFlow's SAME padding, which depends on the input's size: the convolution and the max pool of I3D.

Beside it stands the padding of ports that took SAME for a constant of the layer, so that their features can be had too.
"""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

Triple = tuple[int, int, int]
Pads = list[tuple[int, int]]  # in front and behind, for each axis
Padding = Literal["same", "static"]


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Zeros in front of and behind one axis, such that the output has `ceil(size / stride)` positions.

    Source: TensorFlow's definition of SAME; an odd total puts the larger half behind.

    Example:
        >>> same_padding(64, kernel=7, stride=2), same_padding(79, kernel=7, stride=2)
        ((2, 3), (3, 3))
    """
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def static_padding(kernel: int, stride: int) -> tuple[int, int]:
    """Zeros in front of and behind one axis, whatever its size: what SAME is where the stride divides the size.

    Source: hassony2/kinetics_i3d_pytorch before its pull request 27, `src/i3dpt.py`; video_features uses it still.

    Example:
        >>> static_padding(kernel=7, stride=2), static_padding(kernel=3, stride=1)
        ((2, 3), (1, 1))
    """
    total = max(kernel - stride, 0)
    return total // 2, total - total // 2


class SameConv3d(nn.Conv3d):
    """A 3D convolution with zero padding: SAME for any `[b, c, t, h, w]`, or `static`."""

    rule: Padding = "same"

    def __init__(self, in_channels: int, out_channels: int, kernel: Triple, *, stride: Triple, bias: bool) -> None:
        super().__init__(in_channels, out_channels, kernel, stride=stride, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve `[b, c, t, h, w]` to `[b, out_channels, ceil(t/st), ceil(h/sh), ceil(w/sw)]`.

        With static padding, the first convolution of I3D rounds odd sizes down.
        """
        pads = _pads(x, self)
        front = tuple(pad[0] for pad in pads)
        if _lopsided(pads):
            x = F.pad(x, _for_torch(pads))
            front = (0, 0, 0)
        return F.conv3d(x, self.weight, self.bias, self.stride, front)


class SameMaxPool3d(nn.Module):
    """A 3D max pool whose padded cells never win, as in TensorFlow: SAME, or `static`."""

    rule: Padding = "same"

    def __init__(self, kernel: Triple, *, stride: Triple) -> None:
        super().__init__()
        self.kernel_size, self.stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        """Pool `[b, c, t, h, w]` to `[b, c, ceil(t/st), ceil(h/sh), ceil(w/sw)]`."""
        pads = _pads(x, self)
        front = [pad[0] for pad in pads]
        if self.rule == "static" and _lopsided(pads):
            x = F.pad(x, _for_torch(pads), value=float("-inf"))
            front = [0, 0, 0]
        # ceil_mode adds the one cell that SAME may want behind and not in front; no padded copy is made. This holds
        # for every kernel and stride of I3D: an odd total padding occurs only where the stride is 2.
        return F.max_pool3d(x, self.kernel_size, self.stride, front, ceil_mode=True)

    def extra_repr(self) -> str:
        """Show kernel and stride."""
        return f"kernel_size={self.kernel_size}, stride={self.stride}"


def _pads(x: Tensor, layer: SameConv3d | SameMaxPool3d) -> Pads:
    axes = zip(x.shape[2:], layer.kernel_size, layer.stride, strict=True)
    if layer.rule == "static":
        return [static_padding(k, s) for _, k, s in axes]
    return [same_padding(n, k, s) for n, k, s in axes]


def _lopsided(pads: Pads) -> bool:
    return any(before != behind for before, behind in pads)


def _for_torch(pads: Pads) -> list[int]:
    return [side for pad in reversed(pads) for side in pad]
