"""Layers of torch and torchvision that change when time comes in: one small class for each type.

`@adapts(nn.Conv2d)` says that the class below takes over layers of exactly that type. A class takes over in place
(`Folded.take_over`), so that a layer keeps its name, its hooks and whatever its model reads from it. Convolutions that
cannot be taken over, because their class or what remakes their weight is unknown, get frames that are mixed already.
"""

from collections.abc import Callable
from typing import Any, ClassVar, Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import SqueezeExcitation, StochasticDepth

from inflate3d.axes import clip_to_frames, frames_to_clip
from inflate3d.inflation.convolution import Geometry, convolve
from inflate3d.inflation.fold import Fold, Folded
from inflate3d.inflation.kernels import deflate_weight, inflate_weight, spread_weight
from inflate3d.inflation.padding import TimePadding, pad_for, pad_space, pad_time, present_tap, sides_of
from inflate3d.inflation.plan import LayerPlan
from inflate3d.inflation.profiles import around_present, is_random, phase_taps, profile_taps

Kind = Literal["conv", "transposed", "pool", "resize", "gate", "drop", "attention"]
Adapter = TypeVar("Adapter", bound=type["Adapted"])


# What a subclass may define and still run as its parent does
HARMLESS = {
    "__init__", "__module__", "__qualname__", "__doc__", "__dict__", "__weakref__", "__annotations__",
    "__firstlineno__", "__static_attributes__", "__orig_bases__", "__parameters__", "__constants__",
    "extra_repr", "reset_parameters",
}  # fmt: skip
PACKAGES_BY_NAME = ("transformers.", "segmentation_models_pytorch.")
DROPS_BY_NAME = ("DropPath", "StochasticDepth", "DropConnect")  # stochastic depth, which many copy into their code


class Adapted(Folded):
    """A Folded layer that the registry knows.

    Attributes:
        kind: What a preset has to know of it.
    """

    kind: ClassVar[Kind]

    def deflate_(self) -> None:
        """Become the 2D layer again, in place."""
        self.__class__ = self.type2d  # type: ignore[assignment]
        del self.fold, self.plan, self.runs, self.type2d

    def forward2d(self, x: Tensor) -> Tensor:
        """Run the 2D layer's own code."""
        answer: Tensor = self.type2d.forward(self, x)
        return answer


ADAPTERS: dict[type[nn.Module], type[Adapted]] = {}


def adapts(type2d: type[nn.Module]) -> Callable[[Adapter], Adapter]:
    """Register the class below for layers of exactly this type.

    A class that is no subclass of it may serve several types.

    Example:
        >>> class MyConv(nn.Conv2d): ...
        >>> @adapts(MyConv)
        ... class InflatedMyConv(InflatedConv2d, MyConv): ...
        >>> ADAPTERS.pop(MyConv).__name__
        'InflatedMyConv'
    """

    def register(adapter: Adapter) -> Adapter:
        if issubclass(adapter, type2d):
            ADAPTERS[type2d] = adapter
        else:
            ADAPTERS.pop(type2d, None)
            derive(adapter, type2d)
        return adapter

    return register


def adapter_for(layer: nn.Module) -> type[Adapted] | None:
    """Find the class that takes over a layer, or None."""
    from inflate3d.inflation.filters import Filter, FilterTransposed  # noqa: PLC0415 - they need this file

    type2d = type(layer)
    if any(above.__module__.startswith("timm.") for above in type2d.__mro__):
        import inflate3d.inflation.adapters_packages  # noqa: PLC0415 - registers; a second of import for users of timm
        import inflate3d.inflation.attention_timm  # noqa: F401, PLC0415
    adapter = ADAPTERS.get(type2d) or derived_adapter(type2d)
    if adapter is None and drops_rows(layer) and not [*layer.parameters(), *layer.children()]:
        return derive(WholeClipDropByName, type2d)
    convolution = isinstance(layer, nn.Conv2d | nn.ConvTranspose2d) and not isinstance(layer, Adapted)
    if convolution and (adapter is None or "weight" not in layer._parameters):
        return FilterTransposed if isinstance(layer, nn.ConvTranspose2d) else Filter
    return adapter


def drops_rows(layer: nn.Module) -> bool:
    """Whether a layer is stochastic depth by its name, which drops rows of a batch in training.

    Example:
        >>> class DropPath(nn.Module): ...
        >>> drops_rows(DropPath()), drops_rows(nn.Dropout())
        (True, False)
    """
    return type(layer).__name__.endswith(DROPS_BY_NAME) and not isinstance(layer, Adapted)


def derived_adapter(type2d: type[nn.Module]) -> type[Adapted] | None:
    """Make the class that takes over layers of this type, if they run as layers of a known type do.

    Example:
        >>> class Stem(nn.Conv2d):
        ...     def __init__(self, channels):
        ...         super().__init__(channels, 8, 7)
        >>> class Odd(nn.Conv2d):
        ...     def forward(self, x):
        ...         return super().forward(x).relu()
        >>> derived_adapter(Stem).__name__, derived_adapter(Odd)
        ('InflatedConv2d_Stem', None)
    """
    if issubclass(type2d, Adapted):
        return None
    parent = _parent_by_name(type2d) or _parent_by_descent(type2d)
    return derive(parent, type2d) if parent else None


def _parent_by_name(type2d: type[nn.Module]) -> type[Adapted] | None:
    if not type2d.__module__.startswith(PACKAGES_BY_NAME):
        return None
    from inflate3d.inflation.adapters_packages import BY_NAME  # noqa: PLC0415 - for the users of these packages

    for package, adapters in BY_NAME.items():
        for ending, adapter in adapters.items():
            if type2d.__module__.startswith(package) and type2d.__name__.endswith(ending):
                return adapter
    return None


def _parent_by_descent(type2d: type[nn.Module]) -> type[Adapted] | None:
    """Find the adapter of the nearest known class above, if no class in between changes how it runs."""
    known = next((above for above in type2d.__mro__ if above in ADAPTERS), None)
    if known is None:
        return None
    between = type2d.__mro__[: type2d.__mro__.index(known)]
    own = {name: value for cls in between for name, value in vars(cls).items() if name not in HARMLESS}
    # parametrizations hide the weight behind a property
    changed = any(n.startswith("__") or hasattr(known, n) or isinstance(value, property) for n, value in own.items())
    return None if changed else ADAPTERS[known]


def derive(adapter: type[Adapted], type2d: type[nn.Module]) -> type[Adapted]:
    """Make, and register, the class that takes over layers of a type as an adapter takes over those of another."""
    if type2d in ADAPTERS:
        return ADAPTERS[type2d]

    def reduce(self: nn.Module, protocol: Any) -> tuple[Any, ...]:
        made = object.__reduce_ex__(self, protocol)
        assert isinstance(made, tuple)
        # a class made on the spot cannot be found by its name, but made again
        return _new, (adapter, type2d), *made[2:]

    name = f"{adapter.__name__}_{type2d.__name__}"
    derived = type(name, (adapter, type2d), {"__reduce_ex__": reduce, "__doc__": adapter.__doc__})
    ADAPTERS[type2d] = derived
    return derived


def _new(adapter: type[Adapted], type2d: type[nn.Module]) -> nn.Module:
    derived = derive(adapter, type2d)
    layer: nn.Module = derived.__new__(derived)
    return layer


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
        kernel, profile = self.plan.time_kernel, self.plan.profile
        present = present_tap(kernel, self.plan.padding)
        return inflate_weight(self.weight.detach(), kernel, profile=profile, center=present, groups=self.groups)

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
        return pad_space(frames, sides_of(self), self.padding_mode)

    def through_time(self, x: Tensor) -> Tensor:
        """Convolve `[b, c, t, h, w]` in time and space."""
        num_clips, plan = x.shape[0], self.plan
        if plan.action == "shift":
            return frames_to_clip(self.forward2d(clip_to_frames(shift_channels(x, plan.padding))), num_clips)
        frames, (top, left) = self.pad_space(clip_to_frames(x))
        clip = frames_to_clip(frames, num_clips)
        clip = pad_for(clip, plan.time_kernel, stride=plan.time_stride, padding=plan.padding)
        stride, dilation = (plan.time_stride, *self.stride), (1, *self.dilation)
        geometry = Geometry(stride, (0, top, left), dilation, self.groups)
        return convolve(clip, self.kernel_in_use(), self.bias, geometry=geometry)


@adapts(nn.ConvTranspose2d)
class InflatedConvTranspose2d(InflatedConv2d, nn.ConvTranspose2d):
    """A transposed convolution whose weight is `[in, out, t, h, w]`; time keeps its length, or becomes longer."""

    kind = "transposed"

    def inflated_weight(self) -> Tensor:
        """Lay the 2D weight `[in, out, h, w]` out in time; the taps of a transposed convolution run backwards."""
        if is_random(self.plan.profile):
            return super().inflated_weight()
        kernel, profile, scale = self.plan.time_kernel, self.plan.profile, self.plan.time_scale
        if scale == 1:
            present = present_tap(kernel, self.plan.padding)
            taps = profile_taps(profile, kernel, center=present, channels=self.in_channels).flip(-1)
        elif isinstance(profile, str):
            taps = phase_taps(profile, kernel, scale, channels=self.in_channels)
        else:
            taps = torch.tensor(profile, dtype=torch.float64)
        return spread_weight(self.weight, taps if taps.ndim == 1 else taps[:, None])

    def lay_out(self, taps: Tensor) -> None:
        """The same, turned round, and by phases."""
        super().lay_out(around_present(taps, self.plan.time_scale))

    def deflated_weight(self) -> Tensor:
        """Give the 2D weight; the taps of each phase sum to one, and all together to the number of phases."""
        return super().deflated_weight() / self.plan.time_scale

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Run on frames `[n, c, h, w]` or a clip `[b, c, t, h, w]`; of a wanted size height and width count."""
        clip = x if x.ndim == 5 else self.unfold(x)
        space: tuple[int, ...] = self.output_padding
        if output_size is not None:
            stride, padding, kernel, dilation = (
                [int(n) for n in each] for each in (self.stride, self.padding, self.kernel_size, self.dilation)
            )
            wanted = list(output_size[-2:])
            space = tuple(self._output_padding(clip[:, :, 0], wanted, stride, padding, kernel, 2, dilation))
        answer = self.convolve(clip, space)
        return answer if x.ndim == 5 else self.refold(answer)

    def convolve(self, x: Tensor, space: tuple[int, ...]) -> Tensor:
        """Convolve transposed in space; in time too where it becomes longer, else with the taps turned round.

        Args:
            x: `[b, c, t, h, w]`.
            space: Rows and columns added below and to the right.
        """
        kernel, padding, groups, scale = self.plan.time_kernel, self.plan.padding, self.groups, self.plan.time_scale
        if self.plan.action == "shift":
            x = shift_channels(x, padding)
        around = -(-kernel // scale)  # frames at both ends, so that no phase misses taps
        clip = pad_for(x, kernel, padding=padding) if scale == 1 else pad_time(x, around, around, padding=padding)
        stride, dilation = (scale, *self.stride), (1, *self.dilation)
        weight = self.weight if self.weight.ndim == 5 else self.weight.unsqueeze(2)
        y = F.conv_transpose3d(clip, weight, self.bias, stride, (0, *self.padding), (0, *space), groups, dilation)
        if scale == 1:
            return y[:, :, kernel - 1 : y.shape[2] - kernel + 1]
        first = around * scale + (kernel - scale) // 2
        return y[:, :, first : first + scale * x.shape[2]]


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
        # a repeated border frame lies in the window already, so it changes no maximum
        clip = pad_for(clip, plan.time_kernel, stride=plan.time_stride, padding=plan.padding)
        pool = F.max_pool3d if self.takes_maximum else F.avg_pool3d
        return pool(clip, (plan.time_kernel, 1, 1), (plan.time_stride, 1, 1))

    def pool_space(self, frames: Tensor) -> Tensor:
        """Pool frames `[n, c, h, w]` as the 2D layer does."""
        return self.forward2d(frames)


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

    kind: ClassVar[Kind] = "gate"

    def forward(self, x: Tensor) -> Tensor:
        """Run the 2D layer on the tall pictures of all clips; in channels-last memory they are views."""
        return self.on_tall(self.forward2d, x)

    def on_tall(self, run: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """Run any function of pictures on tall ones."""
        if x.ndim not in (4, 5):
            return run(x)
        clip = x if x.ndim == 5 else self.unfold(x)
        answer = run(clip.flatten(2, 3)).unflatten(2, clip.shape[2:4])  # [b, c, t*h, w]
        return answer if x.ndim == 5 else self.refold(answer)


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
            return self.drop(rows, x.ndim).flatten(0, 1)
        rows = x.unflatten(0, (plan.batch_factor, num_clips, -1)).transpose(0, 1)
        return self.drop(rows, x.ndim).transpose(0, 1).flatten(0, 2)

    def drop(self, rows: Tensor, num_axes: int) -> Tensor:
        """Run the 2D layer on `[b, ...]`, which has more axes than in 2D."""
        return self.forward2d(rows)


class WholeClipDropByName(WholeClipDrop):
    """Stochastic depth in code of your own, which may be written for maps, or for tokens, alone."""

    def drop(self, rows: Tensor, num_axes: int) -> Tensor:
        """Run the 2D layer on `[b, r, 1, 1]`, with as many axes as in 2D."""
        flat = rows.flatten(1)
        return self.forward2d(flat.view(*flat.shape, *[1] * (num_axes - 2))).view_as(rows)


@adapts(StochasticDepth)
class ClipStochasticDepth(WholeClipDrop, StochasticDepth):  # type: ignore[misc]
    """torchvision's stochastic depth, by clips."""


class WholeClipChannels(WholeClip):
    """Drops channels at random, the same ones in every frame of a clip."""

    kind = "drop"

    def on_tall(self, run: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """Draw one mask for each clip; of tokens `[n, c, l]` as well."""
        return super().on_tall(run, x.unsqueeze(-1)).squeeze(-1) if x.ndim == 3 else super().on_tall(run, x)


@adapts(nn.Dropout2d)
class ClipDropout2d(WholeClipChannels, nn.Dropout2d):
    """Dropout of channels, by clips."""


@adapts(nn.FeatureAlphaDropout)
class ClipFeatureAlphaDropout(WholeClipChannels, nn.FeatureAlphaDropout):
    """Alpha dropout of channels, by clips."""
