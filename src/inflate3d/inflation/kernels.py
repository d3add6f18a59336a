"""2D kernels laid out in time: one weight, one convolution, or a 2D checkpoint poured into a 3D network you wrote."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from inflate3d.errors import NEXT_LINE, InflateError, check_choice, list_faults
from inflate3d.inflation.convolution import Geometry, convolve
from inflate3d.inflation.padding import TimePadding, pad_for, pad_space, present_tap, sides_of
from inflate3d.inflation.profiles import Profile, check_count, is_random, phase_taps, profile_taps

Kind = Literal["inflated", "copied", "adapted"]
Names = Mapping[str, str | None] | Callable[[str], str | None]

DROPPED = "dropped by names="
RGB = 3


def inflate_weight(
    weight2d: Tensor, time_kernel: int, *, profile: Profile = "mean", center: int | None = None, groups: int = 1
) -> Tensor:
    """Lay a 2D kernel `[o, i, h, w]` out in time: `[o, i, t, h, w]`, whose sum over `t` is the 2D kernel.

    Args:
        weight2d: Weight of a convolution; `i` is its input channels divided by `groups`.
        time_kernel: Frames that the kernel spans.
        profile: See `profile_taps`; or `random`, a fresh kernel as `nn.Conv3d` would draw it.
        center: The tap that reads the present frame; see `profile_taps`.
        groups: Groups of the convolution; they matter to the profile `shift`.

    Returns:
        A new tensor of the same type, on the same device, without gradient.

    Raises:
        InflateError: The weight has other axes or whole numbers, the groups do not divide it, or there is no such
            profile.

    Example:
        >>> inflate_weight(torch.ones(7, 3, 1, 1), 4)[0, 0].flatten().tolist()
        [0.25, 0.25, 0.25, 0.25]
    """
    _check_weight(weight2d, "[o, i, h, w]", "inflate_weight")
    check_count("time_kernel", time_kernel)
    outputs, inputs, height, width = weight2d.shape
    if groups < 1 or outputs % groups:
        raise InflateError(
            "the groups do not divide the output channels",
            where="inflate_weight",
            expected=f"a divisor of {outputs}",
            got=f"groups={groups}",
            fix="pass groups=conv2d.groups",
        )
    if is_random(profile):
        fresh = weight2d.new_empty(outputs, inputs, time_kernel, height, width)
        return nn.init.kaiming_uniform_(fresh, a=math.sqrt(5))  # Source: torch, _ConvNd.reset_parameters
    taps = profile_taps(profile, time_kernel, center=center, channels=groups * inputs)
    if taps.ndim == 2:  # a row for each input channel, and each output channel sees those of its group
        rows = taps.view(groups, 1, inputs, time_kernel)
        taps = rows.expand(-1, outputs // groups, -1, -1).reshape(outputs, inputs, time_kernel)
    return spread_weight(weight2d, taps)


def spread_weight(weight2d: Tensor, taps: Tensor) -> Tensor:
    """Multiply a 2D kernel `[o, i, h, w]` by taps `[t]` or `[o, i, t]` (broadcast): `[o, i, t, h, w]`.

    Transposed convolutions `[i, o, h, w]` take their taps from `phase_taps`. Half precision is rounded only once.

    Example:
        >>> spread_weight(torch.ones(3, 7, 1, 1), phase_taps("mean", 4, 2))[0, 0].flatten().tolist()
        [0.5, 0.5, 0.5, 0.5]
    """
    wide = torch.promote_types(weight2d.dtype, torch.float32)
    weight3d = weight2d.detach().to(wide).unsqueeze(2) * taps.to(weight2d.device, wide)[..., None, None]
    return weight3d.to(weight2d.dtype).contiguous()


def deflate_weight(weight3d: Tensor) -> Tensor:
    """Sum a kernel `[o, i, t, h, w]` over time: `[o, i, h, w]`, the 2D kernel that answers a repeated picture alike.

    Returns:
        A new tensor of the same type, on the same device, without gradient.

    Raises:
        InflateError: The weight has other axes or whole numbers.

    Example:
        >>> deflate_weight(inflate_weight(torch.ones(7, 3, 1, 1), 4)).unique().tolist()
        [1.0]
    """
    _check_weight(weight3d, "[o, i, t, h, w]", "deflate_weight")
    wide = torch.promote_types(weight3d.dtype, torch.float32)
    return weight3d.detach().sum(2, dtype=wide).to(weight3d.dtype)


class InflatedConv3d(nn.Conv3d):
    """A 3D convolution made from a 2D one: in space it pads as that one did, in time as told.

    T frames give ceil(T / time_stride), or with `valid` padding (T - time_kernel) // time_stride + 1. The state dict
    is that of `nn.Conv3d`. Make it with `inflate_conv`.

    Attributes:
        time_padding: What stands before the first and behind the last frame.
        frame_padding: Pixels (left, right, top, bottom) put around each frame.
    """

    def __init__(
        self,
        conv2d: nn.Conv2d,
        time_kernel: int,
        *,
        profile: Profile = "mean",
        time_stride: int = 1,
        time_padding: TimePadding = "replicate",
    ) -> None:
        left, _, top, _ = sides = sides_of(conv2d)
        kernel, stride, dilation = conv2d.kernel_size, conv2d.stride, conv2d.dilation
        super().__init__(
            conv2d.in_channels,
            conv2d.out_channels,
            (time_kernel, kernel[0], kernel[1]),
            stride=(time_stride, stride[0], stride[1]),
            padding=(0, top, left),
            dilation=(1, dilation[0], dilation[1]),
            groups=conv2d.groups,
            padding_mode=conv2d.padding_mode,
            device="meta",  # no time is spent on random values
        )
        self.time_padding, self.frame_padding = time_padding, sides
        present = present_tap(time_kernel, time_padding)
        weight = inflate_weight(conv2d.weight, time_kernel, profile=profile, center=present, groups=conv2d.groups)
        self.weight = nn.Parameter(weight, conv2d.weight.requires_grad)
        bias = conv2d.bias
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone(), bias.requires_grad)
        self.train(conv2d.training)

    def forward(self, clip: Tensor) -> Tensor:
        """Convolve `[b, c, t, h, w]` to `[b, out_channels, t', h', w']`.

        Raises:
            InflateError: The clip has other axes or channels, no frames, or too few for `valid` padding.
        """
        self._check_clip(clip)
        clip, (top, left) = pad_space(clip, self.frame_padding, self.padding_mode)
        clip = pad_for(clip, self.kernel_size[0], stride=self.stride[0], padding=self.time_padding)
        geometry = Geometry(self.stride, (0, top, left), self.dilation, self.groups)
        return convolve(clip, self.weight, self.bias, geometry=geometry)

    def extra_repr(self) -> str:
        """Show the padding in time as well."""
        plain = super().extra_repr()  # type: ignore[no-untyped-call]
        return f"{plain}, time_padding={self.time_padding!r}"

    def _check_clip(self, clip: Tensor) -> None:
        least = self.kernel_size[0] if self.time_padding == "valid" else 1
        if clip.ndim != 5 or clip.shape[1] != self.in_channels or clip.shape[2] < least:
            raise InflateError(
                "the clip has other axes, or too few frames",
                where="InflatedConv3d",
                expected=f"[b, {self.in_channels}, t >= {least}, h, w]",
                got=f"{list(clip.shape)}",
                fix="channels stand before time: clip[None] adds a batch axis, frames[:, :, None] one frame of time",
            )


# Its arguments are those of the class, which it checks first
def inflate_conv(
    conv2d: nn.Conv2d,
    time_kernel: int,
    *,
    profile: Profile = "mean",
    time_stride: int = 1,
    time_padding: TimePadding = "replicate",
) -> InflatedConv3d:
    """Make a 3D convolution from a 2D one, which stays as it is and shares no memory with it.

    On a clip of one repeated picture, every frame that comes out is what the 2D layer puts out: with `replicate`,
    `causal` and `valid` padding for every profile but `random`; with `zeros`, which is what the I3D paper did, for
    `center` alone, because near the ends of the clip the other profiles miss some of their taps.

    Args:
        conv2d: Its groups, strides, dilations, padding, padding mode, type, device, bias, `requires_grad` and
            training mode are kept.
        time_kernel: Frames that the kernel spans; an even number looks one frame further ahead than back.
        profile: How the kernel is laid out in time; see `profile_taps`.
        time_stride: Frames from one output to the next.
        time_padding: `replicate` repeats the border frames, `zeros` puts black ones, `causal` repeats the first
            frame and looks at no later one, `valid` puts none.

    Raises:
        InflateError: The layer is not exactly an `nn.Conv2d` or carries hooks, or an argument is not allowed.

    Example:
        >>> conv3d = inflate_conv(nn.Conv2d(3, 7, 3, padding=1), 5, time_stride=2)
        >>> conv3d(torch.zeros(2, 3, 11, 13, 17)).shape
        torch.Size([2, 7, 6, 13, 17])
    """
    _check_conv(conv2d)
    check_count("time_kernel", time_kernel)
    check_count("time_stride", time_stride)
    check_choice(time_padding, get_args(TimePadding), what="padding in time", where="inflate_conv")
    return InflatedConv3d(conv2d, time_kernel, profile=profile, time_stride=time_stride, time_padding=time_padding)


@dataclass(frozen=True)
class LoadReport:
    """What became of every tensor, when a 2D checkpoint was poured into a 3D network.

    Attributes:
        inflated: 2D name to 3D name of the kernels laid out in time.
        copied: 2D name to 3D name of what stayed as it was.
        adapted: 2D name to 3D name of the kernels that were inflated and took other input channels.
        skipped_2d: 2D name to the reason why it went nowhere.
        missing_3d: 3D names that kept the values they had.
    """

    inflated: dict[str, str]
    copied: dict[str, str]
    adapted: dict[str, str]
    skipped_2d: dict[str, str]
    missing_3d: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"{len(self.inflated)} tensors inflated, {len(self.copied)} copied, {len(self.adapted)} adapted"]
        lines += [f"  new input channels: {name2d} -> {name3d}" for name2d, name3d in self.adapted.items()]
        lines += [f"  left out: {name2d} ({reason})" for name2d, reason in self.skipped_2d.items()]
        lines += [f"  not filled: {name3d}" for name3d in self.missing_3d]
        return "\n".join(lines)


def load_2d_into(
    model3d: nn.Module,
    state2d: Mapping[str, Tensor],
    *,
    names: Names | None = None,
    profile: Profile = "mean",
    allow: Sequence[str] = (),
) -> LoadReport:
    """Fill a 3D network you wrote from a 2D checkpoint: 4D kernels are inflated, everything else is copied.

    A first layer for another number of channels is adapted as timm does it: 3 to 1 are summed up, 3 to n repeated
    and scaled by 3/n. All is checked first; after an error the network is as it was.

    Args:
        model3d: Its shapes say how many frames each kernel spans.
        state2d: The flat state dict of the 2D network.
        names: 2D name to 3D name; None leaves a tensor out. A mapping may hold only the names that differ.
        profile: How kernels are laid out in time; see `profile_taps`.
        allow: Patterns (`fc.*`) of 2D names that may find no place and of 3D names that may stay unfilled.

    Raises:
        InflateError: Tensors find no place or stay unfilled and no pattern allows it, two want the same place, or
            the network has no memory yet; all faults are told together.

    Example:
        >>> net2d, net3d = nn.Sequential(nn.Conv2d(3, 7, 5)), nn.Sequential(nn.Conv3d(1, 7, (3, 5, 5)))
        >>> print(load_2d_into(net3d, net2d.state_dict()))
        0 tensors inflated, 1 copied, 1 adapted
          new input channels: 0.weight -> 0.weight
    """
    targets = {name: value for name, value in model3d.state_dict().items() if isinstance(value, Tensor)}
    layers = dict(model3d.named_modules())
    values: dict[str, Tensor] = {}
    places: dict[Kind, dict[str, str]] = {"inflated": {}, "copied": {}, "adapted": {}}
    skipped: dict[str, str] = {}
    for name2d, tensor in state2d.items():
        name3d = names(name2d) if callable(names) else (names or {}).get(name2d, name2d)
        layer = layers.get((name3d or "").rpartition(".")[0], model3d)
        reason = DROPPED if name3d is None else _misfit(tensor, targets.get(name3d), layer)
        if name3d in values:
            reason = f"{name3d} is filled already"
        if name3d is None or reason:
            skipped[name2d] = reason
        else:
            kind, values[name3d] = _fit(tensor, targets[name3d], layer, profile)
            places[kind][name2d] = name3d
    report = LoadReport(**places, skipped_2d=skipped, missing_3d=tuple(name for name in targets if name not in values))
    # what is renamed and not there is a mistyped name, most likely
    strays = [name2d for name2d in names if name2d not in state2d] if isinstance(names, Mapping) else []
    _check_gaps(report, allow, [f"{name2d}: renamed, but not in the checkpoint" for name2d in strays])
    for name3d, value in values.items():
        targets[name3d].copy_(value)
    return report


def _kind(shape2d: torch.Size, shape3d: torch.Size, layer: nn.Module) -> Kind | None:
    if shape2d == shape3d:
        return "copied"
    if len(shape2d) != 4 or len(shape3d) != 5 or (shape2d[0], *shape2d[2:]) != (shape3d[0], *shape3d[3:]):
        return None
    if shape2d[1] == shape3d[1]:
        return "inflated"
    takes_pictures = isinstance(layer, nn.Conv3d) and layer.groups == 1 and shape2d[1] == RGB
    return "adapted" if takes_pictures else None


def _misfit(tensor: object, target: Tensor | None, layer: nn.Module) -> str:
    """Tell why a tensor cannot take its place in the 3D network; empty if it can."""
    if not isinstance(tensor, Tensor):
        return f"a {type(tensor).__name__}, not a tensor"
    if target is None:
        return f"{list(tensor.shape)}: the 3D network has nothing of that name"
    if target.is_meta:
        return "the 3D network has no memory yet: model3d.to_empty(device='cpu')"
    if _kind(tensor.shape, target.shape, layer) is None:
        return f"{list(tensor.shape)}: the 3D network wants {list(target.shape)}"
    return ""


def _fit(tensor: Tensor, target: Tensor, layer: nn.Module, profile: Profile) -> tuple[Kind, Tensor]:
    kind, time_kernel = _kind(tensor.shape, target.shape, layer), target.shape[2:3].numel()
    if kind is None or kind == "copied":
        return "copied", tensor
    tensor = tensor.to(target.dtype)  # before arithmetic: checkpoints in half precision are common
    if kind == "adapted":
        tensor = adapt_channels(tensor, target.shape[1])
    if isinstance(layer, nn.ConvTranspose3d) and not is_random(profile):
        stride = layer.stride[0]
        front = max(min(int(layer.padding[0]), time_kernel - stride), 0)
        taps = phase_taps(profile, time_kernel, stride, cropped_front=front, channels=target.shape[0])
        return kind, spread_weight(tensor, taps if taps.ndim == 1 else taps[:, None])
    return kind, inflate_weight(tensor, time_kernel, profile=profile, groups=getattr(layer, "groups", 1))


def adapt_channels(weight2d: Tensor, channels: int) -> Tensor:
    """Turn a kernel for RGB `[o, 3, h, w]` into one for other channels `[o, channels, h, w]`.

    Source: timm, `models/_manipulate.py`, adapt_input_conv.

    Example:
        >>> adapt_channels(torch.ones(5, 3, 1, 1), 1).unique().tolist()
        [3.0]
    """
    if channels == 1:
        return weight2d.sum(1, keepdim=True)
    return weight2d[:, [channel % RGB for channel in range(channels)]] * (RGB / channels)


def _check_gaps(report: LoadReport, allow: Sequence[str], strays: list[str]) -> None:
    def allowed(name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in allow)

    skipped = {name: reason for name, reason in report.skipped_2d.items() if reason != DROPPED}
    faults = strays + [f"{name}: {reason}" for name, reason in skipped.items() if not allowed(name)]
    faults += [f"{name}: not filled" for name in report.missing_3d if not allowed(name)]
    if faults:
        raise InflateError(
            "the 2D checkpoint and the 3D network do not fit",
            where="load_2d_into",
            expected="a flat state dict, each tensor of which has its place, so that nothing stays unfilled",
            got=list_faults(faults, between=NEXT_LINE),
            fix="translate names with names=, or allow gaps that you mean: allow=('fc.*',)",
        )


def _check_weight(weight: Tensor, axes: str, where: str) -> None:
    if weight.ndim != axes.count(",") + 1 or not weight.is_floating_point():
        raise InflateError(
            "this is not the weight of a convolution",
            where=where,
            expected=f"floats {axes}",
            got=f"{list(weight.shape)}, {weight.dtype}",
            fix="pass conv2d.weight to inflate, conv3d.weight to deflate",
        )


def _check_conv(conv2d: nn.Module) -> None:
    if type(conv2d) is not nn.Conv2d:
        raise InflateError(
            "only plain convolutions are inflated one by one, because a subclass may compute something else",
            where="inflate_conv",
            expected="exactly torch.nn.Conv2d",
            got=f"{type(conv2d).__module__}.{type(conv2d).__qualname__}",
            fix="inflate the network that holds it: inflate3d.inflate(model) has an adapter for each type it knows",
        )
    parameters = sorted(conv2d._parameters.keys() - {"weight", "bias"})
    hooks = [*conv2d._forward_pre_hooks.values(), *conv2d._forward_hooks.values()]
    if parameters or hooks:
        raise InflateError(
            "the convolution carries hooks or a weight made of other parameters, which would be lost",
            where="inflate_conv",
            expected="weight and bias alone",
            got=", ".join([*parameters, *(type(hook).__name__ for hook in hooks)]),
            fix="remove them first, for instance with torch.nn.utils.remove_weight_norm or prune.remove",
        )
