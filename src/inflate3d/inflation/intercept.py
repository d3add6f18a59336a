"""Functions of torch that a model calls inside forward(): heard while planning, and given time while running.

The k-th call of a function of `CALLS` that a module's own forward() makes is `path#k`; what its parts call is theirs.
Only modules that make a call with time run under a `TorchFunctionMode`.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import FrameType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import checkpoint

from inflate3d.errors import InflateError
from inflate3d.inflation.adapters import Adapted, PooledInTime, WholeClip, WholeClipChannels
from inflate3d.inflation.filters import Beside, Filter, FiltersInput, FilterTransposed
from inflate3d.inflation.fold import Fold
from inflate3d.inflation.plan import LayerPlan
from inflate3d.inflation.resize import resize_time

# Of the functions that have a kernel or a mode, the arguments from which a plan reads it
ARGUMENTS = {
    "conv2d": ("input", "weight", "bias", "stride"),
    "conv_transpose2d": ("input", "weight", "bias", "stride"),
    "max_pool2d": ("input", "kernel_size", "stride"),
    "avg_pool2d": ("input", "kernel_size", "stride"),
    "interpolate": ("input", "size", "scale_factor", "mode", "align_corners"),
    "pixel_unshuffle": ("input", "downscale_factor"),
}


@dataclass(frozen=True)
class Call:
    """A function and what it was called with."""

    function: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @property
    def name(self) -> str:
        """What the plan calls it."""
        return f"{self.function.__name__}()"

    @property
    def x(self) -> Tensor:
        """Its first argument."""
        x: Tensor = self.args[0] if self.args else self.kwargs["input"]
        return x

    def given(self, name: str) -> Any:
        """Look up an argument of a pool or a convolution by its name; None if it was not given."""
        names = ARGUMENTS.get(self.function.__name__, ())
        given = {**dict(zip(names, self.args, strict=False)), **self.kwargs}
        return given.get(name) if name in names else None

    def run(self, x: Tensor) -> Any:
        """Call it with another first argument."""
        if self.args:
            return self.function(x, *self.args[1:], **self.kwargs)
        return self.function(**{**self.kwargs, "input": x})


class Called(Beside):
    """What gives time to a call."""

    def around(self, call: Call) -> Tensor:
        """Run the call on frames, with what has to come before or after it."""
        raise NotImplementedError

    def deflate_(self) -> None:
        """Leave each frame alone."""
        self.plan = replace(self.plan, action="frame")


class CalledMaximum(Called, PooledInTime):
    """A maximum over several frames, after the call has taken it in space."""

    takes_maximum = True

    def around(self, call: Call) -> Tensor:
        """Pool in space, then in time."""
        return self(call.run(call.x))  # type: ignore[no-any-return]

    def pool_space(self, frames: Tensor) -> Tensor:
        """Leave them as they are."""
        return frames


class CalledMean(CalledMaximum):
    """A mean over several frames, after the call has taken it in space."""

    takes_maximum = False


class CalledConv(Called, Filter):
    """A convolution over several frames, whatever its weight is."""

    def around(self, call: Call) -> Tensor:
        """Mix the frames, then convolve them in space.

        Raises:
            InflateError: The call uses a weight of a layer that was inflated.
        """
        weight = call.given("weight")
        if weight is not None and weight.ndim != 4:
            raise InflateError(
                "a call uses a weight that has become 3D",
                where=f"call {self.plan.path}",
                expected="a 2D weight, [o, i, h, w]",
                got=f"{call.name} with a weight {list(weight.shape)}",
                fix="leave the layer that owns the weight per frame: rules={NAME: Rule(time_kernel=1)}",
            )
        return call.run(self(call.x))  # type: ignore[no-any-return]


class CalledTransposed(CalledConv, FilterTransposed):
    """A transposed convolution over several frames."""


class CalledBlur(CalledConv):
    """A convolution with a fixed kernel: what a mean is to pools."""

    kind = "pool"


class CalledResize(Called):
    """An interpolation, or a pixel shuffle, in time as well."""

    kind = "resize"

    def around(self, call: Call) -> Tensor:
        """Resize in time, then in space."""
        align = bool(call.given("align_corners"))
        clip = resize_time(self.unfold(call.x), self.plan, align_corners=align)
        return call.run(self.refold(clip))  # type: ignore[no-any-return]


class CalledNorm(Called, WholeClip):
    """A norm that sees the whole clip."""

    def around(self, call: Call) -> Tensor:
        """Run it on tall pictures."""
        return self.on_tall(call.run, call.x)


class CalledDropout(CalledNorm, WholeClipChannels):
    """Dropout of channels, by clips."""

    kind = "drop"


# What gives each function time; None where nothing does, so that it is listed and stays per frame
CALLS: dict[Any, type[Called] | None] = {
    torch.conv2d: CalledConv,
    torch.conv_transpose2d: CalledTransposed,
    F.max_pool2d: CalledMaximum,
    torch.max_pool2d: CalledMaximum,
    F.avg_pool2d: CalledMean,
    F.group_norm: CalledNorm,
    F.instance_norm: CalledNorm,
    F.dropout2d: CalledDropout,
    F.feature_alpha_dropout: CalledDropout,
    F.interpolate: CalledResize,
    torch.pixel_shuffle: CalledResize,
    torch.pixel_unshuffle: CalledMean,
    F.grid_sample: None,
    F.unfold: None,
    F.lp_pool2d: None,
    F.fractional_max_pool2d: None,
    F.max_pool2d_with_indices: None,
    F.max_unpool2d: None,
}


class HearsCalls(TorchFunctionMode):
    """Hands calls of the functions of `CALLS` to a listener, whose answer is theirs."""

    def __init__(self, heard: Callable[[Call], Any]) -> None:
        super().__init__()
        self.heard = heard

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.heard(Call(func, args, kwargs or {})) if func in CALLS else func(*args, **(kwargs or {}))


class BeginsCalls:
    """A hook before a module's forward(): puts it under a mode that gives time to the calls with a plan."""

    def __init__(self, calls: Mapping[int, Called], fold: Fold) -> None:
        self.calls, self.fold = dict(calls), fold

    def __call__(self, module: nn.Module, args: Any) -> None:
        """Open the mode; it counts the calls from here on."""
        count = 0

        def heard(call: Call) -> Any:
            nonlocal count
            if self.fold.modes[-1] is not mode:  # a part of the module has called it
                return call.run(call.x)
            timed = self.calls.get(count)
            count += 1
            if timed is None or timed.plan.action == "frame":
                return call.run(call.x)
            _check_call(timed.plan, call)
            return timed.around(call)

        mode = HearsCalls(heard)
        self.fold.modes.append(mode)
        mode.__enter__()  # type: ignore[no-untyped-call]


class BeginsPart:
    """A hook before the forward() of a part of such a module, whose own calls are not the module's."""

    def __init__(self, fold: Fold) -> None:
        self.fold = fold

    def __call__(self, module: nn.Module, args: Any) -> None:
        """Let no mode hear."""
        self.fold.modes.append(None)


class EndsCalls(BeginsPart):
    """A hook behind either forward(), also if it fails."""

    def __call__(self, module: nn.Module, args: Any, output: Any = None) -> None:
        """Close what was opened last."""
        self.fold.close_mode()


def time_calls(net: nn.Module, layers: Iterable[LayerPlan], fold: Fold) -> None:
    """Give time to the calls that a plan names, in the forward() of the modules that make them."""
    calls: dict[nn.Module, dict[int, Called]] = {}
    for layer in layers:
        path, _, number = layer.path.partition("#")
        names = {f"{function.__name__}()": adapter for function, adapter in CALLS.items()}
        adapter = names.get(layer.layer)
        assert adapter is not None
        calls.setdefault(net.get_submodule(path), {})[int(number)] = adapter(layer, fold)
    parts = dict.fromkeys(part for owner in calls for part in owner.modules() if part not in calls)
    for module in [*calls, *parts]:
        begins = BeginsCalls(calls[module], fold) if module in calls else BeginsPart(fold)
        module.register_forward_pre_hook(begins)
        module.register_forward_hook(EndsCalls(fold), always_call=True)


def forget_calls(module: nn.Module, fold: Fold) -> None:
    """Take away the hooks by which a module of this Fold has time."""
    for hooks in (module._forward_pre_hooks, module._forward_hooks):
        for number, hook in list(hooks.items()):
            if isinstance(hook, BeginsCalls | BeginsPart | FiltersInput) and hook.fold is fold:
                del hooks[number]
                module._forward_pre_hooks_with_kwargs.pop(number, None)
                module._forward_hooks_always_called.pop(number, None)


def beside(net: nn.Module) -> Iterator[Adapted]:
    """Go over what looks through time beside the modules of a model: it is none of them."""
    for module in net.modules():
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, FiltersInput):
                yield hook.filter
            if isinstance(hook, BeginsCalls):
                yield from hook.calls.values()


def _check_call(plan: LayerPlan, call: Call) -> None:
    if call.name != plan.layer:
        raise InflateError(
            "a forward() calls its functions in another order than when it was planned",
            where=f"call {plan.path or 'of the whole model'}",
            expected=plan.layer,
            got=call.name,
            fix=f"give the calls no time: rules={{'{plan.path.partition('#')[0]}#*': Rule(time_kernel=1)}}",
        )
    if not torch.compiler.is_compiling() and _in_checkpoint(sys._getframe()):
        raise InflateError(
            "a call with time stands inside a checkpoint that its own forward() made, which would run it anew without",
            where=f"call {plan.path}",
            expected="checkpoints around whole modules, or calls outside of them",
            got=f"{call.name} inside torch.utils.checkpoint.checkpoint",
            fix=f"give it no time: rules={{{plan.path!r}: Rule(time_kernel=1)}}",
        )


def _in_checkpoint(frame: FrameType | None) -> bool:
    """Whether a checkpoint was made after the module that is running began."""
    while frame is not None and frame.f_code is not nn.Module._call_impl.__code__:
        if frame.f_code.co_filename == checkpoint.__file__:
            return True
        frame = frame.f_back
    return False
