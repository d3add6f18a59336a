"""Layers that compute what others compute, faster on a CPU: max pools and convolutions."""

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inflate3d.clips.transforms import to_range
from inflate3d.inflation.convolution import Geometry, convolve
from inflate3d.models.blocks import Pads, SameConv3d, SameMaxPool3d, pads_of, same_padding
from inflate3d.models.inception import MixedBlock
from inflate3d.speed.memory import give_back_memory
from inflate3d.threads import take_share

FRAMES_AT_A_TIME = 4  # which stay in the processor's cache
FRAMES_IN_A_SLICE = 8  # for each, oneDNN lays the kernel out anew
LARGE_BYTES = 8 * 2**20
HUGE_BYTES = 32 * 2**20  # what lies free between living tensors has no room for it, and is given back first


class SeparableMaxPool3d(nn.Module):
    """A max pool with SAME padding that takes the largest along one axis after the other.

    For 3x3x3 these are 6 comparisons instead of 26, each over whole slices of memory, within frames a few at a time.
    """

    def __init__(self, pool: SameMaxPool3d) -> None:
        super().__init__()
        self.pool, self.kernel_size, self.stride = pool, pool.kernel_size, pool.stride

    def forward(self, x: Tensor) -> Tensor:
        """Pool `[b, c, t, h, w]` to `[b, c, ceil(t/st), ceil(h/sh), ceil(w/sw)]`."""
        if isinstance(x.shape[2], torch.SymInt):  # an export for clips of any length
            return cast(Tensor, self.pool(x))
        x = _largest_along(x, 2, self.kernel_size[0], self.stride[0])
        if torch.compiler.is_compiling():  # a compiler joins the axes itself
            return self.within_frames(x)
        parts = x.split(FRAMES_AT_A_TIME, 2)
        if set(self.stride[1:]) != {1} or self.kernel_size[0] == 1:
            return torch.cat([self.within_frames(frames) for frames in parts], 2)
        for frames in parts:
            frames.copy_(self.within_frames(frames))
        return x

    def within_frames(self, x: Tensor) -> Tensor:
        """Pool `[b, c, t, h, w]` along height and width alone."""
        for axis in (3, 4):
            x = _largest_along(x, axis, self.kernel_size[axis - 2], self.stride[axis - 2])
        return x


class HalfMaxPool3d(nn.Module):
    """A max pool that takes bfloat16 as it is; autocast would make float32 of it first, for the same answer."""

    def __init__(self, pool: SameMaxPool3d) -> None:
        super().__init__()
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        """Pool `[b, c, t, h, w]` as the pool does."""
        with torch.autocast(x.device.type, enabled=False):
            pooled: Tensor = self.pool(x)
            return pooled


class FrameMaxPool3d(nn.Module):
    """A max pool within frames, over a few frames at a time.

    torch's own also writes down where each largest value was, in 8 bytes: for a whole clip this is the largest tensor
    of I3D.
    """

    def __init__(self, pool: SameMaxPool3d) -> None:
        super().__init__()
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        """Pool `[b, c, t, h, w]` as the pool does."""
        if torch.compiler.is_compiling():  # the number of frames may be a symbol, and a compiler keeps no places
            return cast(Tensor, self.pool(x))
        parts = [self.pool(frames) for frames in x.split(FRAMES_AT_A_TIME, 2)]
        return torch.cat(parts, 2) if len(parts) > 1 else parts[0]


def _largest_along(x: Tensor, axis: int, kernel: int, stride: int) -> Tensor:
    if kernel == 1:
        return x
    size = x.shape[axis]
    front = same_padding(size, kernel, stride)[0]
    if stride == 1 and front == 1 and size > 1:  # the first two taps without a copy of one of them
        found = torch.empty_like(x)
        torch.maximum(x.narrow(axis, 1, size - 1), x.narrow(axis, 0, size - 1), out=found.narrow(axis, 1, size - 1))
        found.select(axis, 0).copy_(x.select(axis, 0))
        taps = list(range(1, kernel - front))
    else:
        found = _every(x, axis, 0, stride, -(-size // stride)).clone(memory_format=torch.preserve_format)
        taps = [tap for tap in range(-front, kernel - front) if tap]
    for tap in taps:
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
        rows = x.permute(0, 2, 3, 4, 1)
        found = F.linear(rows, self.weight, self.bias)
        return found.permute(0, 4, 1, 2, 3)


class PairedConv3d(nn.Module):
    """A convolution of few channels with a stride of 2 along w, over pairs of columns that stand for one.

    Twice the channels and half the columns: in bfloat16 the first convolution of I3D takes 0.82 of the time, in float32
    it would take longer. In channels-last memory the pairs are a free view.
    """

    def __init__(self, convolution: SameConv3d) -> None:
        super().__init__()
        weight, self.bias = convolution.weight.detach(), convolution.bias
        weight = F.pad(weight, (0, weight.shape[-1] % 2)).unflatten(-1, (-1, 2))  # [out, c, t, h, w / 2, 2]
        self.weight = nn.Parameter(weight.permute(0, 5, 1, 2, 3, 4).flatten(1, 2))
        self.kernel_size, self.stride, self.rule = convolution.kernel_size, convolution.stride, convolution.rule

    def forward(self, x: Tensor) -> Tensor:
        """Map `[b, c, t, h, w]` to `[b, out, ceil(t/st), ceil(h/sh), ceil(w/2)]`, as the convolution does."""
        return self.padded(x, pads_of(x, self))

    def padded(self, x: Tensor, pads: Pads) -> Tensor:
        """Convolve `[b, c, t, h, w]` with so many zeros in front of each axis and behind it."""
        width, front = x.shape[4], pads[2][0]
        columns = (width + sum(pads[2]) - self.kernel_size[2]) // 2 + self.weight.shape[-1]  # pairs that are needed
        pads = [*pads[:2], (front, 2 * columns - width - front)]
        x = F.pad(x, [side for pad in reversed(pads) for side in pad])
        x = x.permute(0, 2, 3, 4, 1).unflatten(3, (columns, 2)).flatten(4).permute(0, 4, 1, 2, 3)
        geometry = Geometry((*self.stride[:2], 1), (0, 0, 0))
        return convolve(x, self.weight, self.bias, geometry=geometry)


def run_in_slices(layers: Sequence[nn.Module], x: Tensor) -> Tensor:
    """Run layers over a few frames at a time, so that what lies between them is never there as a whole.

    Args:
        layers: The first one a sequence of a convolution and what works on each value alone, as `Unit3d`; the others
            work within frames.
        x: `[b, c, t, h, w]`; uint8 becomes -1..1.

    Returns:
        What they give one after the other.
    """
    convolution, *values = cast(nn.Sequential, layers[0])
    plain = torch.is_grad_enabled() or torch.compiler.is_compiling()
    if plain or not isinstance(convolution, SameConv3d | PairedConv3d):
        x = to_range(x) if x.dtype == torch.uint8 else x
        for layer in layers:
            x = layer(x)
        return x
    (front, back), *around = pads_of(x, convolution)
    length, kernel, stride = x.shape[2], convolution.kernel_size[0], convolution.stride[0]
    total = (length + front + back - kernel) // stride + 1
    found = x
    for first in range(0, total, FRAMES_IN_A_SLICE):
        take_share()
        last = min(first + FRAMES_IN_A_SLICE, total)
        start, stop = first * stride - front, (last - 1) * stride - front + kernel  # of the input, zeros counted
        part = x[:, :, max(start, 0) : min(stop, length)]
        part = (to_range(part) if part.dtype == torch.uint8 else part).to(convolution.weight.dtype)
        part = convolution.padded(part, [(max(-start, 0), max(stop - length, 0)), *around])
        for layer in (*values, *layers[1:]):
            part = layer(part)
        if first == 0:
            found = _empty(part, 2, total)
        found[:, :, first:last] = part
    return found


class JoinedBranches(nn.ModuleDict):
    """A Mixed block whose branches, where they are large, are written side by side as they come.

    Joined at the end they would be there twice.
    """

    def __init__(self, block: MixedBlock) -> None:
        super().__init__(dict(block.items()))

    def forward(self, x: Tensor) -> Tensor:
        """Map `[b, c, t, h, w]` to the outputs of all branches, one after the other along the channels."""
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or x.nbytes < LARGE_BYTES:
            take_share()
            return torch.cat([branch(x) for branch in self.values()], 1)
        widths = [[value for value in branch.parameters() if value.ndim > 1][-1].shape[0] for branch in self.values()]
        found, start = x, 0
        for branch, width in zip(self.values(), widths, strict=True):
            take_share()
            part = branch(x)
            if start == 0:
                if part.nbytes // width * sum(widths) >= HUGE_BYTES:
                    give_back_memory()
                found = _empty(part, 1, sum(widths))
            found[:, start : start + width] = part
            start += width
            del part  # not kept beside the next one
        return found


def _empty(like: Tensor, axis: int, size: int) -> Tensor:
    shape = list(like.shape)
    shape[axis] = size
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last_3d)
