"""Layers of torch and torchvision that change when time comes in: one small class for each type.

`@adapts(nn.Conv2d)` says that the class below takes over layers of exactly that type. A class takes over in place
(`Folded.take_over`), so that a layer keeps its name, its hooks and whatever its model reads from it.
"""

from collections.abc import Callable
from typing import ClassVar, Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import SqueezeExcitation, StochasticDepth

from inflate3d.axes import clip_to_frames, frames_to_clip
from inflate3d.inflation.fold import Fold, Folded
from inflate3d.inflation.kernels import deflate_weight, inflate_weight, spread_weight
from inflate3d.inflation.padding import pad_time, time_pads
from inflate3d.inflation.plan import LayerPlan, TimePadding

Kind = Literal["conv", "transposed", "pool", "gate", "drop"]
Adapter = TypeVar("Adapter", bound=type["Adapted"])


class Adapted(Folded):
    """A Folded layer that the registry knows.

    Attributes:
        kind: What a preset has to know of it.
    """

    kind: ClassVar[Kind]

    def deflate_(self) -> None:
        """Become the 2D layer again, in place."""
        self.__class__ = self.two_dimensional()  # type: ignore[assignment]
        del self.fold, self.plan, self.runs

    @classmethod
    def two_dimensional(cls) -> type[nn.Module]:
        """Name the 2D type that this class takes over."""
        return next(type2d for type2d, adapter in ADAPTERS.items() if adapter is cls)


ADAPTERS: dict[type[nn.Module], type[Adapted]] = {}


def adapts(type2d: type[nn.Module]) -> Callable[[Adapter], Adapter]:
    """Register the class below for layers of exactly this type.

    Example:
        >>> class MyConv(nn.Conv2d): ...
        >>> @adapts(MyConv)
        ... class InflatedMyConv(InflatedConv2d, MyConv): ...
        >>> ADAPTERS.pop(MyConv).__name__
        'InflatedMyConv'
    """

    def register(adapter: Adapter) -> Adapter:
        ADAPTERS[type2d] = adapter
        return adapter

    return register


def adapter_for(type2d: type[nn.Module]) -> type[Adapted] | None:
    """Find the class that takes over layers of exactly this type, or None."""
    if type2d.__module__.startswith("timm."):
        import inflate3d.inflation.adapters_timm  # noqa: F401, PLC0415 - registers; a second of import for users of timm
    return ADAPTERS.get(type2d)


@adapts(nn.Conv2d)
class InflatedConv2d(Adapted, nn.Conv2d):
    """A convolution whose weight is `[out, in, t, h, w]`."""

    kind: ClassVar[Kind] = "conv"

    @classmethod
    def take_over(cls, layer: nn.Module, plan: LayerPlan, fold: Fold) -> None:
        """Inflate the weight as the plan says."""
        super().take_over(layer, plan, fold)
        assert isinstance(layer, InflatedConv2d)
        if plan.action == "inflate":
            layer.weight = nn.Parameter(layer.inflated_weight(), requires_grad=layer.weight.requires_grad)

    def inflated_weight(self) -> Tensor:
        """Lay the 2D weight out in time."""
        present = self.present_tap()
        return inflate_weight(
            self.weight.detach(), self.plan.time_kernel, profile=self.plan.profile, center=present, groups=self.groups
        )

    def present_tap(self) -> int | None:
        """Name the tap that looks at the present frame; None is the one in the middle."""
        return self.plan.time_kernel - 1 if self.plan.padding == "causal" else None

    def deflate_(self) -> None:
        """Sum the weight over time and become the 2D layer again."""
        if self.plan.action == "inflate":
            self.weight = nn.Parameter(self.deflated_weight(), requires_grad=self.weight.requires_grad)
        super().deflate_()

    def deflated_weight(self) -> Tensor:
        """Give the 2D weight that answers a repeated picture as this one does."""
        return deflate_weight(self.weight.detach())

    def lay_out(self, taps: Tensor) -> None:
        """Lay the 2D kernel out anew, by taps `[t]` from the past to the future; for proofs."""
        self.weight.data = spread_weight(self.deflated_weight(), taps).to(self.weight)

    def kernel_in_use(self) -> Tensor:
        """Give the 5D kernel that the convolution runs with."""
        return self.weight

    def pad_space(self, frames: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Pad frames `[n, c, h, w]` as the 2D layer does; what conv3d can do itself is handed on as a pair."""
        if self.padding_mode != "zeros":
            return F.pad(frames, self._reversed_padding_repeated_twice, mode=self.padding_mode), (0, 0)
        if self.padding == "valid":
            return frames, (0, 0)
        if self.padding == "same":
            totals = [d * (k - 1) for d, k in zip(self.dilation, self.kernel_size, strict=True)]
            if any(total % 2 for total in totals):
                (top, left), (height, width) = (total // 2 for total in totals), totals
                return F.pad(frames, [left, width - left, top, height - top]), (0, 0)
            return frames, (totals[0] // 2, totals[1] // 2)
        return frames, (int(self.padding[0]), int(self.padding[1]))

    def through_time(self, x: Tensor) -> Tensor:
        """Convolve `[b, c, t, h, w]` in time and space."""
        num_clips, plan = x.shape[0], self.plan
        if plan.action == "shift":
            frames = clip_to_frames(shift_channels(x, plan.padding))
            return frames_to_clip(self.two_dimensional().forward(self, frames), num_clips)
        frames, (top, left) = self.pad_space(clip_to_frames(x))
        clip = frames_to_clip(frames, num_clips)
        front, back = time_pads(clip.shape[2], plan.time_kernel, stride=plan.time_stride, padding=plan.padding)
        clip = pad_time(clip, front, back, padding=plan.padding)
        stride, dilation = (plan.time_stride, *self.stride), (1, *self.dilation)
        return F.conv3d(clip, self.kernel_in_use(), self.bias, stride, (0, top, left), dilation, self.groups)


@adapts(nn.ConvTranspose2d)
class InflatedConvTranspose2d(InflatedConv2d, nn.ConvTranspose2d):  # type: ignore[misc]
    """A transposed convolution whose weight is `[in, out, t, h, w]`; time keeps its length."""

    kind = "transposed"

    def inflated_weight(self) -> Tensor:
        """Lay the 2D weight out in time; the taps of a transposed convolution run backwards."""
        return super().inflated_weight().flip(2)

    def lay_out(self, taps: Tensor) -> None:
        """The same, turned round."""
        super().lay_out(taps.flip(0))

    def through_time(self, x: Tensor) -> Tensor:
        """Convolve `[b, c, t, h, w]` transposed in space; in time it is a convolution with the taps turned round."""
        kernel, padding = self.plan.time_kernel, self.plan.padding
        front, back = time_pads(x.shape[2], kernel, padding=padding)
        clip = pad_time(x, front, back, padding=padding)
        stride, dilation = (1, *self.stride), (1, *self.dilation)
        space = (0, *self.output_padding)
        y = F.conv_transpose3d(clip, self.weight, self.bias, stride, (0, *self.padding), space, self.groups, dilation)
        return y[:, :, kernel - 1 : y.shape[2] - kernel + 1]


def shift_channels(clip: Tensor, padding: TimePadding) -> Tensor:
    """Take the first eighth of the channels from the frame after and the second eighth from the one before.

    Source: Lin et al. 2019, TSM, section 4, in the order of its code; the ends repeat the border frame, where TSM has
    zeros, so that a still clip stays as it is. A causal plan takes the first eighth from the frame before, no other.

    Example:
        >>> clip = torch.arange(3.0).view(1, 1, 3, 1, 1).expand(1, 8, 3, 1, 1)
        >>> shift_channels(clip, "replicate")[0, :3, :, 0, 0].tolist()
        [[1.0, 2.0, 2.0], [0.0, 0.0, 1.0], [0.0, 1.0, 2.0]]
    """
    eighth = clip.shape[1] // 8
    first, second, still = clip.split([eighth, eighth, clip.shape[1] - 2 * eighth], dim=1)
    if padding == "causal":
        return torch.cat([pad_time(first, 1, 0, padding=padding)[:, :, :-1], second, still], dim=1)
    ahead, back = pad_time(first, 0, 1, padding=padding)[:, :, 1:], pad_time(second, 1, 0, padding=padding)[:, :, :-1]
    return torch.cat([ahead, back, still], dim=1)


class PooledInTime(Adapted):
    """A pool over several frames: the 2D layer's own pool on every frame, then the same over the frames.

    What a maximum or a mean over a box is, taken one axis after the other.
    """

    kind = "pool"
    takes_maximum: ClassVar[bool]

    def through_time(self, x: Tensor) -> Tensor:
        """Pool `[b, c, t, h, w]` in space, then in time."""
        plan = self.plan
        clip = frames_to_clip(self.pool_space(clip_to_frames(x)), x.shape[0])
        front, back = time_pads(clip.shape[2], plan.time_kernel, stride=plan.time_stride, padding=plan.padding)
        pool = F.max_pool3d if self.takes_maximum else F.avg_pool3d
        # a repeated border frame lies in the window already, so it changes no maximum
        return pool(
            pad_time(clip, front, back, padding=plan.padding), (plan.time_kernel, 1, 1), (plan.time_stride, 1, 1)
        )

    def pool_space(self, frames: Tensor) -> Tensor:
        """Pool frames `[n, c, h, w]` as the 2D layer does."""
        pooled: Tensor = self.two_dimensional().forward(self, frames)
        return pooled


@adapts(nn.MaxPool2d)
class MaxPooledInTime(PooledInTime, nn.MaxPool2d):
    """A maximum over several frames."""

    takes_maximum = True


@adapts(nn.AvgPool2d)
class AvgPooledInTime(PooledInTime, nn.AvgPool2d):
    """A mean over several frames."""

    takes_maximum = False


class WholeClip(Adapted):
    """A gate or norm that takes its statistics over height and width: here over time as well.

    The frames of a clip are set on top of each other, so that the layer's own code runs on one tall picture.
    """

    kind = "gate"

    def forward(self, x: Tensor) -> Tensor:
        """Run the 2D layer on the tall pictures of all clips; in channels-last memory they are views."""
        if x.ndim not in (4, 5):
            return self.forward2d(x)
        clip = x if x.ndim == 5 else self.unfold(x)
        tall = clip.flatten(2, 3)  # [b, c, t*h, w]
        answer = self.forward2d(tall).unflatten(2, clip.shape[2:4])
        return answer if x.ndim == 5 else self.refold(answer)

    def forward2d(self, x: Tensor) -> Tensor:
        """Run the 2D layer's own code."""
        answer: Tensor = self.two_dimensional().forward(self, x)
        return answer


@adapts(SqueezeExcitation)
class ClipSqueezeExcitation(WholeClip, SqueezeExcitation):  # type: ignore[misc]
    """torchvision's squeeze-and-excitation over the clip."""


@adapts(nn.GroupNorm)
class ClipGroupNorm(WholeClip, nn.GroupNorm):
    """Group norm over the clip."""


@adapts(nn.InstanceNorm2d)
class ClipInstanceNorm2d(WholeClip, nn.InstanceNorm2d):
    """Instance norm over the clip."""


class WholeClipDrop(Adapted):
    """Stochastic depth that drops whole clips: a mask for each frame would tear them apart."""

    kind = "drop"

    def forward(self, x: Tensor) -> Tensor:
        """Run the 2D layer with one row for each clip."""
        if not self.training:
            return x
        num_clips, plan = self.num_clips(x), self.plan
        if plan.rows_inside:
            rows: Tensor = x.unflatten(0, (num_clips, -1))
            answer: Tensor = self.two_dimensional().forward(self, rows)
            return answer.flatten(0, 1)
        rows = x.unflatten(0, (plan.batch_factor, num_clips, -1)).transpose(0, 1)
        answer = self.two_dimensional().forward(self, rows)
        return answer.transpose(0, 1).flatten(0, 2)


@adapts(StochasticDepth)
class ClipStochasticDepth(WholeClipDrop, StochasticDepth):  # type: ignore[misc]
    """torchvision's stochastic depth, by clips."""
