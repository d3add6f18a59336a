"""Time for 2D convolutions that cannot be taken over: the frames are mixed before they get them.

A kernel laid out in time, `a[t] * W2d`, does the same as mixing the frames by `a` and convolving with `W2d`. So a
convolution of an unknown class, or whose weight is made anew in every run (weight norm, pruning), may stay as it is.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from inflate3d.errors import InflateError
from inflate3d.inflation.adapters import Adapted, Kind, shift_channels
from inflate3d.inflation.fold import Fold
from inflate3d.inflation.padding import pad_for, pad_time, present_tap
from inflate3d.inflation.plan import LayerPlan
from inflate3d.inflation.profiles import around_present, is_random, phase_taps, phases, profile_taps


def mix_frames(clip: Tensor, taps: Sequence[float] | Tensor, stride: int = 1) -> Tensor:
    """Sum frames of `[b, c, t, h, w]` by taps `[k]`, or by taps of each channel `[c, k]`: (t - k) // stride + 1 frames.

    Example:
        >>> import torch
        >>> mix_frames(torch.arange(5.0).view(1, 1, 5, 1, 1), [0.5, 0.0, 0.5], stride=2).flatten().tolist()
        [1.0, 3.0]
    """
    columns: list[Any] = list(taps.to(clip)[..., None, None, None].unbind(1) if isinstance(taps, Tensor) else taps)
    num_frames = (clip.shape[2] - len(columns)) // stride + 1
    mixed: Tensor | None = None
    for first, weight in enumerate(columns):
        if isinstance(weight, Tensor) or weight != 0:
            part = clip[:, :, first : first + stride * (num_frames - 1) + 1 : stride] * weight
            mixed = part if mixed is None else mixed + part
    assert mixed is not None  # taps sum to one
    return mixed


class Beside(Adapted):
    """Stands beside a layer, or a call of a function, that stays what it is in 2D."""

    def __init__(self, plan: LayerPlan, fold: Fold) -> None:
        super().__init__()
        self.plan, self.fold, self.runs = plan, fold, {}


class Filter(Beside):
    """Mixes frames by a profile ahead of a 2D convolution, whatever its weight is made of.

    The same as a kernel `a[t] * W2d` over several frames, but nothing in it is learned.
    """

    kind: ClassVar[Kind] = "conv"

    def __init__(self, plan: LayerPlan, fold: Fold) -> None:
        super().__init__(plan, fold)
        self.profile = plan.profile if plan.action == "inflate" else "mean"  # a fixed kernel is pooled
        if is_random(self.profile):
            raise InflateError(
                "the kernel is made anew in every run, so a random one has no place to stay",
                where=f"layer {plan.path}",
                expected="a profile that lays a 2D kernel out in time",
                got="profile random",
                fix=f"rules={{{plan.path!r}: Rule(profile='mean')}}",
            )
        self.taps: list[float] = [] if self.profile == "shift" else self._taps_of(1).tolist()

    @classmethod
    def take_over(cls, layer: nn.Module, plan: LayerPlan, fold: Fold) -> None:
        """Stand before the layer."""
        layer.register_forward_pre_hook(FiltersInput(cls(plan, fold)), with_kwargs=True)

    def through_time(self, x: Tensor) -> Tensor:
        """Mix the frames of `[b, c, t, h, w]`."""
        plan = self.plan
        if plan.action == "shift":
            return shift_channels(x, plan.padding)
        clip = pad_for(x, plan.time_kernel, stride=plan.time_stride, padding=plan.padding)
        return mix_frames(clip, self.taps or self._taps_of(x.shape[1]), plan.time_stride)

    def _taps_of(self, channels: int) -> Tensor:
        plan = self.plan
        present = present_tap(plan.time_kernel, plan.padding)
        return profile_taps(self.profile, plan.time_kernel, center=present, channels=channels)

    def lay_out(self, taps: Tensor) -> None:
        """Take other taps, from the past to the future; for proofs."""
        self.taps = taps.tolist()


class FilterTransposed(Filter):
    """The same ahead of a transposed convolution; where time becomes longer, each phase mixes frames in its own way."""

    kind = "transposed"

    def through_time(self, x: Tensor) -> Tensor:
        """Mix the frames of `[b, c, t, h, w]`."""
        kernel, scale = self.plan.time_kernel, self.plan.time_scale
        if scale == 1:
            return super().through_time(x)
        taps = torch.tensor(self.taps, dtype=torch.float64) if self.taps else self._taps_of(x.shape[1])
        clip, length = pad_time(x, kernel, kernel, padding=self.plan.padding), x.shape[2]
        mixed = []
        for present, (count, center) in enumerate(phases(kernel, scale), start=(kernel - scale) // 2):
            row = taps[..., present % scale :: scale].flip(-1)
            part = clip[:, :, kernel - center : kernel - center + length + count - 1]
            mixed.append(mix_frames(part, row if row.ndim == 2 else row.tolist()))
        return torch.stack(mixed, dim=3).flatten(2, 3)

    def _taps_of(self, channels: int) -> Tensor:
        kernel, scale = self.plan.time_kernel, self.plan.time_scale
        if scale == 1:
            return super()._taps_of(channels)
        if isinstance(self.profile, str):
            return phase_taps(self.profile, kernel, scale, channels=channels)
        return torch.tensor(self.profile, dtype=torch.float64)

    def lay_out(self, taps: Tensor) -> None:
        """Take other taps, by phases."""
        self.taps = (around_present(taps, self.plan.time_scale) if self.plan.time_scale > 1 else taps).tolist()


class FiltersInput:
    """A hook before a layer's forward(), which then gets frames that are mixed."""

    def __init__(self, filter_in_time: Filter) -> None:
        self.filter = filter_in_time

    @property
    def fold(self) -> Fold:
        """The Fold of the Inflated it belongs to."""
        return self.filter.fold

    def __call__(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        """Mix the first map, or the first tensor where none is one: before it may stand a style, or a mask."""
        given: dict[Any, Any] = {**dict(enumerate(args)), **kwargs}
        tensors = [name for name, value in given.items() if isinstance(value, Tensor) and value.ndim]
        first = next((name for name in tensors if given[name].ndim in (4, 5)), tensors[0])
        given[first] = self.filter(given[first])
        return tuple(given[place] for place in range(len(args))), {name: given[name] for name in kwargs}
