"""Layers that compute what others compute, faster on a processor: separable max pools, pointwise convolutions."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inflate3d.models.same import SameMaxPool3d, same_padding


class SeparableMaxPool3d(nn.Module):
    """A max pool with SAME padding that takes the largest along one axis after the other.

    For 3x3x3 these are 6 comparisons instead of 26, each over whole slices of memory.
    """

    def __init__(self, pool: SameMaxPool3d) -> None:
        super().__init__()
        self.kernel_size, self.stride = pool.kernel_size, pool.stride

    def forward(self, x: Tensor) -> Tensor:
        """Pool `[b, c, t, h, w]` to `[b, c, ceil(t/st), ceil(h/sh), ceil(w/sw)]`."""
        for axis, (kernel, stride) in enumerate(zip(self.kernel_size, self.stride, strict=True), start=2):
            x = _largest_along(x, axis, kernel, stride)
        return x


def _largest_along(x: Tensor, axis: int, kernel: int, stride: int) -> Tensor:
    if kernel == 1:
        return x
    size = x.shape[axis]
    front = same_padding(size, kernel, stride)[0]
    found = _every(x, axis, 0, stride, -(-size // stride)).clone(memory_format=torch.preserve_format)
    for tap in range(-front, kernel - front):
        if tap == 0:
            continue
        first = max(-(tap // stride), 0)  # output whose tap falls into the input first
        last = (size - 1 - tap) // stride
        count = min(last + 1, found.shape[axis]) - first
        if count > 0:
            there = found.narrow(axis, first, count)
            torch.maximum(there, _every(x, axis, first * stride + tap, stride, count), out=there)
    return found


def _every(x: Tensor, axis: int, start: int, stride: int, count: int) -> Tensor:
    index = [slice(None)] * x.ndim
    index[axis] = slice(start, start + (count - 1) * stride + 1, stride)
    return x[tuple(index)]


class Pointwise(nn.Module):
    """A 1x1x1 convolution as one matrix product over channels-last positions."""

    def __init__(self, convolution: nn.Conv3d) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(convolution.weight.detach().flatten(1)), convolution.bias

    def forward(self, x: Tensor) -> Tensor:
        """Map `[b, c, t, h, w]` to `[b, out, t, h, w]`."""
        return F.linear(x.permute(0, 2, 3, 4, 1), self.weight, self.bias).permute(0, 4, 1, 2, 3)
