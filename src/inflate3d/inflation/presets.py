"""The presets: which layers get time, and how much of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from torch import nn

from inflate3d.errors import InflateError
from inflate3d.inflation.observe import Seen
from inflate3d.inflation.padding import TimePadding, present_tap
from inflate3d.inflation.plan import LayerPlan
from inflate3d.inflation.profiles import Profile, write_profile

MAX_TIME_KERNEL = 7


class Timing(NamedTuple):
    """Frames that a kernel spans, and frames from one of its outputs to the next."""

    kernel: int
    stride: int = 1


Decide = Callable[[Sequence[Seen]], dict[str, Timing]]


@dataclass(frozen=True)
class Preset:
    """How a preset treats time.

    Attributes:
        meaning: One line for the reader.
        timings: From the layers that ran to the timings of those that get time.
        context: "clip": gates and per-sample norms see the whole clip; "frame": each frame alone.
        padding: What stands before the first and behind the last frame.
        shifts: The chosen layers shift channels in time, and their kernels stay 2D.
    """

    meaning: str
    timings: Decide
    context: str = "clip"
    padding: TimePadding = "replicate"
    shifts: bool = False


def kernel_of(layer: nn.Module) -> tuple[int, int] | None:
    """Height and width of a layer's kernel, or None."""
    return _pair(getattr(layer, "kernel_size", None) or getattr(layer, "filt_size", None))


def stride_of(layer: nn.Module) -> tuple[int, int]:
    """Stride down and to the right; a pool without one strides by its kernel."""
    return _pair(getattr(layer, "stride", None)) or kernel_of(layer) or (1, 1)


def _pair(size: object) -> tuple[int, int] | None:
    if isinstance(size, int):
        return size, size
    return (int(size[0]), int(size[1])) if isinstance(size, tuple | list) and len(size) == 2 else None


def overlaps(layer: nn.Module) -> bool:
    """Whether neighbouring outputs of a convolution share pixels: neither 1x1 nor a patchify (kernel = stride)."""
    kernel = kernel_of(layer)
    return kernel is not None and any(k > s for k, s in zip(kernel, stride_of(layer), strict=True)) and max(kernel) > 1


def _convolutions(seen: Sequence[Seen]) -> list[Seen]:
    return [one for one in seen if one.adapter and one.adapter.kind in ("conv", "transposed") and one.batch_factor]


def _none(seen: Sequence[Seen]) -> dict[str, Timing]:
    return {}


def _cube(layer: nn.Module) -> int:
    return min(max(kernel_of(layer) or (1,)), MAX_TIME_KERNEL)


def _cubic(seen: Sequence[Seen]) -> dict[str, Timing]:
    return {one.path: Timing(_cube(one.layer)) for one in _convolutions(seen) if overlaps(one.layer)}


def _mirrored(seen: Sequence[Seen]) -> dict[str, Timing]:
    """Cubic kernels and strides as in space, except that the first two pools that stride in space leave time alone.

    Source: Carreira & Zisserman 2017, section 2.4. Time has one length on each level (height and width) of the
    network, so that branches that meet again fit: the first layer that reaches a level decides.
    """
    shrinks: dict[tuple[int, ...], int] = {}  # level to the factor by which time is shorter there
    sparing_pools = 2
    timings = {}
    for one in seen:
        kind = one.adapter.kind if one.adapter and one.batch_factor else None
        here, there = one.in_shape[2:], one.out_shape[2:]
        heads_pool = kind == "pool" and there == (1, 1)
        if kind not in ("conv", "pool") or len(here) != 2 or heads_pool:
            continue
        shrink = shrinks.setdefault(here, 1)
        stride = max(stride_of(one.layer))
        patchify = kind == "conv" and stride > 1 and not overlaps(one.layer) and _cube(one.layer) > 1
        if stride > 1 and there not in shrinks and kind == "pool" and sparing_pools:
            sparing_pools -= 1
            shrinks[there] = shrink
        shrinks.setdefault(there, shrink * (2 if patchify else stride))
        time_stride = max(shrinks[there] // shrink, 1) if stride > 1 else 1
        spared = stride > 1 and time_stride == 1 and kind == "pool"
        kernel = time_stride if patchify else 1 if spared else _cube(one.layer)
        timings[one.path] = Timing(kernel, time_stride)
    return timings


def _blocks(seen: Sequence[Seen]) -> list[Seen]:
    """Name the first convolution of each block that begins with a pointwise one and has an overlapping one inside.

    A block is the smallest module that holds a pointwise convolution and the overlapping one that runs after it.
    """
    convolutions = _convolutions(seen)
    found: dict[str, Seen] = {}
    for i, one in enumerate(convolutions):
        following = next((later for later in convolutions[i + 1 :] if overlaps(later.layer)), None)
        if kernel_of(one.layer) != (1, 1) or following is None:
            continue
        block = _common_module(one.path, following.path)
        inside = [other for other in convolutions if other.path.startswith(f"{block}.")] if block else []
        if inside and inside[0] is one:
            found.setdefault(block, one)
    return list(found.values())


def _common_module(a: str, b: str) -> str:
    shared = []
    for left, right in zip(a.split("."), b.split("."), strict=False):
        if left != right:
            break
        shared.append(left)
    return ".".join(shared)


def _pointwise_of_every_second_block(seen: Sequence[Seen]) -> dict[str, Timing]:
    blocks = _blocks(seen)
    if not blocks:
        raise InflateError(
            "the model has no blocks that begin with a pointwise convolution",
            where="preset i3d-3x1x1",
            expected="bottlenecks: 1x1, then a larger kernel, as in ResNet-50 or MobileNet",
            got="none of them",
            fix='use preset "video" or "tsm"',
        )
    return {block.path: Timing(3) for block in blocks[::2]}


def _after_the_stem(seen: Sequence[Seen]) -> dict[str, Timing]:
    return {one.path: Timing(3) for one in _convolutions(seen)[1:] if overlaps(one.layer) and one.in_shape[1] >= 8}


PRESETS: dict[str, Preset] = {
    "video": Preset("kernels as long as they are wide (at most 7), no strides in time", _cubic),
    "i3d": Preset("as I3D: cubic kernels, strides in time as in space but for the first two pools", _mirrored),
    "i3d-3x1x1": Preset(
        "3 frames in the first pointwise convolution of every second block", _pointwise_of_every_second_block
    ),
    "causal": Preset("as video, looking at the past only", _cubic, "frame", "causal"),
    "frames": Preset("no kernels in time: each frame alone, the C2D baseline", _none, "frame"),
    "tsm": Preset(
        "1/8 of the channels from the frame before, 1/8 from the one after, ahead of every overlapping convolution",
        _after_the_stem,
        "frame",
        shifts=True,
    ),
}


def decide(seen: Sequence[Seen], preset: Preset, profile: Profile) -> tuple[LayerPlan, ...]:
    """Write the plan of every layer that could look through time, in the order in which they run.

    Args:
        seen: All that ran, in that order.
        preset: Which kernels and strides in time.
        profile: How kernels are laid out in time.

    Raises:
        InflateError: There is no such profile, or the preset has nothing to work on.
    """
    if isinstance(profile, str):
        write_profile(profile, MAX_TIME_KERNEL)  # also where no kernel will use it
    timings = preset.timings(seen)
    plans = []
    for one in seen:
        plan = _decide_one(one, timings.get(one.path, Timing(1)), preset, profile)
        if plan:
            plans.append(plan)
    return tuple(plans)


def _decide_one(  # noqa: PLR0911 - one line for each kind of layer
    one: Seen, timing: Timing, preset: Preset, profile: Profile
) -> LayerPlan | None:
    kind, kernel = one.adapter.kind if one.adapter else None, kernel_of(one.layer)
    plan = LayerPlan(
        one.path,
        one.label,
        kernel=kernel,
        profile=profile if isinstance(profile, str) else "",
        padding=preset.padding,
        batch_factor=max(one.batch_factor, 1),
        rows_inside=one.rows_inside,
        kind=kind or "",
    )
    if one.batch_factor == 0 and (kind or kernel):
        return replace(plan, reason="its batch does not grow with the pictures")
    if kind in ("conv", "transposed"):
        if timing == Timing(1):
            return plan
        if preset.shifts:
            return replace(plan, action="shift")
        laid_out = write_profile(profile, timing.kernel, center=present_tap(timing.kernel, preset.padding))
        return replace(plan, action="inflate", time_kernel=timing.kernel, time_stride=timing.stride, profile=laid_out)
    if kind == "pool":
        timed = replace(plan, action="pool", time_kernel=timing.kernel, time_stride=timing.stride)
        return timed if timing != Timing(1) else plan
    if kind == "gate" and len(one.in_shape) != 4:
        return replace(plan, reason="it runs on tokens here")
    if kind == "gate":
        return replace(plan, action="clip" if preset.context == "clip" else "frame")
    if kind == "drop":
        return replace(plan, action="drop")
    if kernel and max(kernel) > 1:
        return replace(plan, reason=one.reason or "no adapter knows its type")
    return replace(plan, reason=one.reason) if one.reason else None
