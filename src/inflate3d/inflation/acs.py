"""ACS kernels: a third of a 2D layer's kernels stands on each side of the volume: axial, coronal, sagittal.

Source: Yang et al. 2021, Reinventing 2D Convolutions for 3D Images, section III. The weight stays the 2D one. A still
clip is not answered as the picture: two thirds of the kernels see it from the side.
"""

from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inflate3d.axes import clip_to_frames, frames_to_clip
from inflate3d.errors import InflateError
from inflate3d.inflation.adapters import InflatedConv2d, adapter_for
from inflate3d.inflation.convolution import Geometry, convolve
from inflate3d.inflation.fold import Fold
from inflate3d.inflation.observe import Model, copied
from inflate3d.inflation.padding import TimePadding, pad_time
from inflate3d.inflation.plan import LayerPlan
from inflate3d.inflation.profiles import ACS

AXIAL, CORONAL, SAGITTAL = 2, 3, 4  # the axis of [o, i, t, h, w] along which a kernel is one voxel thick


class Axis(NamedTuple):
    """Where kernels stand along an axis: at voxel `first`, `first + stride`, ..., in so many places."""

    first: int
    stride: int
    places: int


class Part(NamedTuple):
    """Output channels whose kernels stand on one side: in each of the groups from `start` to `stop`, these."""

    side: int
    groups: slice
    channels: slice


def thirds(number: int) -> list[slice]:
    """Cut a number into three parts; what three does not divide goes to the first ones.

    Example:
        >>> [(part.start, part.stop) for part in thirds(8)]
        [(0, 3), (3, 6), (6, 8)]
    """
    ends = [0, -(-number // 3), number - number // 3, number]
    return [slice(start, stop) for start, stop in pairwise(ends)]


def spans(layer: nn.Conv2d) -> int:
    """Count the frames that its kernel spans when its rows stand along time."""
    return int(layer.dilation[0]) * (int(layer.kernel_size[0]) - 1) + 1


def can_stand_on_sides(layer: nn.Module) -> bool:
    """Whether a layer is a plain convolution: one that runs with its weight as it is.

    Example:
        >>> can_stand_on_sides(nn.Conv2d(3, 7, 3)), can_stand_on_sides(nn.ConvTranspose2d(3, 7, 3))
        (True, False)
    """
    adapter = adapter_for(layer)
    alike = ("through_time", "kernel_in_use", "inflated_weight")
    return (
        adapter is not None
        and issubclass(adapter, InflatedConv2d)
        and all(getattr(adapter, name) is getattr(InflatedConv2d, name) for name in alike)
    )


class AcsConv2d(InflatedConv2d):
    """A 2D convolution over volumes, its weight `[o, i, h, w]` as it was.

    All kernels of an output stand with their central tap on the same voxel, whatever strides, dilation and padding;
    height and width of the output are those of the 2D layer, time has ceil(T / stride). The channels of one or two
    groups are cut in thirds, more groups are cut in thirds themselves, so that each stays whole. They run as three
    convolutions of k x k taps: one of k x k x k, two thirds of them zeros, would compute k times as much.
    """

    pad2d: Callable[[Any, Tensor], tuple[Tensor, tuple[int, int]]]
    taps: Tensor | None
    all_axial: bool

    @classmethod
    def take_over(cls, layer: nn.Module, plan: LayerPlan, fold: Fold) -> None:
        """Keep the weight, and how the layer pads pictures.

        Raises:
            InflateError: It is no plain convolution, or the plan has another kernel in time than its own.
        """
        own = isinstance(layer, nn.Conv2d) and can_stand_on_sides(layer)
        if not own or plan.time_kernel != spans(layer) or plan.padding == "valid":  # type: ignore[arg-type]
            raise InflateError(
                "this layer cannot have ACS kernels as planned",
                where=f"layer {plan.path}",
                expected="a plain convolution, as many frames as its kernel has rows, and padding in time",
                got=f"{plan.layer}, {plan.time_kernel} frames, padding {plan.padding}",
                fix=f"rules={{{plan.path!r}: Rule(profile='mean')}}, or leave its time_kernel out",
            )
        adapter = adapter_for(layer)
        assert adapter is not None
        assert issubclass(adapter, InflatedConv2d)
        super().take_over(layer, plan, fold)
        assert isinstance(layer, AcsConv2d)
        layer.pad2d, layer.taps, layer.all_axial = adapter.pad_space, None, False

    def inflated_weight(self) -> Tensor:
        """Leave the 2D weight."""
        return self.weight.detach()

    def deflated_weight(self) -> Tensor:
        """Give the 2D weight."""
        return self.weight.detach()

    def deflate_(self) -> None:
        """Become the 2D layer again."""
        super().deflate_()
        del self.pad2d, self.taps, self.all_axial

    def lay_out(self, taps: Tensor) -> None:
        """Weigh rows that stand along time by taps from the past to the future; for proofs."""
        self.taps = taps[:: int(self.dilation[0])].to(self.weight)

    def parts(self) -> list[Part]:
        """Tell which output channels stand on which side."""
        each = slice(0, self.out_channels // self.groups)
        if self.all_axial or tuple(self.kernel_size) == (1, 1):
            return [Part(AXIAL, slice(0, self.groups), each)]
        sides = (AXIAL, CORONAL, SAGITTAL)
        if self.groups > 2:
            cut = [Part(side, groups, each) for side, groups in zip(sides, thirds(self.groups), strict=True)]
        else:
            channels = thirds(each.stop)
            cut = [Part(side, slice(0, self.groups), some) for side, some in zip(sides, channels, strict=True)]
        return [part for part in cut if part.channels.stop > part.channels.start]

    def through_time(self, x: Tensor) -> Tensor:
        """Convolve `[b, c, t, h, w]` with the kernels of all three sides."""
        frames, pads = self.pad2d(self, clip_to_frames(x))
        clip = frames_to_clip(frames, x.shape[0])
        axes = [Axis(0, self.plan.time_stride, -(-x.shape[2] // self.plan.time_stride))]
        for size, kernel, stride, dilation, pad in zip(
            clip.shape[3:], self.kernel_size, self.stride, self.dilation, pads, strict=True
        ):
            places = (size + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1
            axes.append(Axis((kernel - 1) // 2 * dilation - pad, stride, places))
        answers = [self.of_part(clip, part, axes) for part in self.parts()]
        if self.groups > 2:
            return torch.cat(answers, dim=1)
        return torch.cat([each.unflatten(1, (self.groups, -1)) for each in answers], dim=2).flatten(1, 2)

    def of_part(self, clip: Tensor, part: Part, axes: list[Axis]) -> Tensor:
        """Convolve with the kernels of one side."""
        groups = part.groups.stop - part.groups.start
        weight = self.weight.unflatten(0, (self.groups, -1))[part.groups, part.channels].flatten(0, 1)
        bias = self.bias
        if bias is not None:
            # oneDNN reads it as if it were contiguous
            bias = bias.unflatten(0, (self.groups, -1))[part.groups, part.channels].flatten().contiguous()
        if self.taps is not None and part.side != AXIAL:
            weight = weight * self.taps[:, None]
        if groups < self.groups:
            clip = clip.unflatten(1, (self.groups, -1))[:, part.groups].flatten(1, 2)
        # of channels-last kernels in groups torch 2.14 makes wrong numbers (oneDNN) if the last axis is the thin one
        weight = weight.unsqueeze(part.side).contiguous()
        dilation = [int(step) for step in self.dilation]
        dilation.insert(part.side - AXIAL, 1)
        pads = [0, 0, 0]
        for axis, (kernel, step, where) in enumerate(zip(weight.shape[2:], dilation, axes, strict=True)):
            clip, pads[axis] = _reaching(clip, axis + 2, where, (kernel, step), padding=self.plan.padding)
        geometry = Geometry(tuple(axis.stride for axis in axes), tuple(pads), tuple(dilation), groups)
        return convolve(clip, weight, bias, geometry=geometry)


def _reaching(
    clip: Tensor, dim: int, axis: Axis, kernel: tuple[int, int], *, padding: TimePadding
) -> tuple[Tensor, int]:
    """Cut and pad a clip along an axis to what a kernel of so many taps, so far apart, reaches.

    Zeros on both sides of the plane are left to the convolution: their number is what else is returned.
    """
    taps, step = kernel
    center = taps - 1 if dim == AXIAL and padding == "causal" else (taps - 1) // 2
    start, size = axis.first - center * step, clip.shape[dim]
    stop = start + (axis.places - 1) * axis.stride + (taps - 1) * step + 1
    if dim != AXIAL and start <= 0 and (size - 2 * start - (taps - 1) * step - 1) // axis.stride + 1 == axis.places:
        return clip, -start
    front, back = max(-start, 0), max(stop - size, 0)
    if dim == AXIAL:  # frames that are left over behind the last place are fewer than the stride, and do no harm
        return pad_time(clip, front, back, padding=padding), 0
    first = max(start, 0)
    inside = clip.narrow(dim, first, min(stop, size) - first)
    around = [0, 0] * (4 - dim) + [front, back]
    return (F.pad(inside, around) if front or back else inside), 0


def with_axial_kernels(model3d: Model) -> Model:
    """Copy a model and turn all its ACS kernels to the pictures, as if it had been inflated in space alone."""
    twin = copied(model3d)
    for part in twin.modules():
        if isinstance(part, AcsConv2d):
            part.all_axial = True
    return twin


def has_acs(layers: Iterable[LayerPlan]) -> bool:
    """Whether a plan gives layers ACS kernels."""
    return any(layer.action == "inflate" and layer.profile == ACS for layer in layers)
