"""TensorFlow's SAME padding, which depends on the input's size: the convolution and the max pool of I3D."""

import torch.nn.functional as F
from torch import Tensor, nn

Triple = tuple[int, int, int]


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Zeros in front of and behind one axis, such that the output has `ceil(size / stride)` positions.

    Source: TensorFlow's definition of SAME; an odd total puts the larger half behind.

    Example:
        >>> same_padding(64, kernel=7, stride=2), same_padding(79, kernel=7, stride=2)
        ((2, 3), (3, 3))
    """
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


class SameConv3d(nn.Conv3d):
    """A 3D convolution with SAME zero padding for any `[b, c, t, h, w]`."""

    def __init__(self, in_channels: int, out_channels: int, kernel: Triple, *, stride: Triple, bias: bool) -> None:
        super().__init__(in_channels, out_channels, kernel, stride=stride, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve `[b, c, t, h, w]` to `[b, out_channels, ceil(t/st), ceil(h/sh), ceil(w/sw)]`."""
        pads = [same_padding(n, k, s) for n, k, s in zip(x.shape[2:], self.kernel_size, self.stride, strict=True)]
        front = tuple(pad[0] for pad in pads)
        if any(before != behind for before, behind in pads):
            x = F.pad(x, [side for pad in reversed(pads) for side in pad])
            front = (0, 0, 0)
        return F.conv3d(x, self.weight, self.bias, self.stride, front)


class SameMaxPool3d(nn.Module):
    """A 3D max pool with SAME padding whose padded cells never win, as in TensorFlow."""

    def __init__(self, kernel: Triple, *, stride: Triple) -> None:
        super().__init__()
        self.kernel_size, self.stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        """Pool `[b, c, t, h, w]` to `[b, c, ceil(t/st), ceil(h/sh), ceil(w/sw)]`."""
        # ceil_mode adds the one cell that SAME may want behind and not in front; no padded copy is made. This holds
        # for every kernel and stride of I3D: an odd total padding occurs only where the stride is 2.
        front = [same_padding(n, k, s)[0] for n, k, s in zip(x.shape[2:], self.kernel_size, self.stride, strict=True)]
        return F.max_pool3d(x, self.kernel_size, self.stride, front, ceil_mode=True)

    def extra_repr(self) -> str:
        """Show kernel and stride."""
        return f"kernel_size={self.kernel_size}, stride={self.stride}"
