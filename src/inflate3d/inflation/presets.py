"""The presets: which layers get time, and how much of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from torch import nn

from inflate3d.errors import InflateError
from inflate3d.inflation.acs import can_stand_on_sides, spans
from inflate3d.inflation.attention import joint_plans
from inflate3d.inflation.observe import SPACE_ALONE, Seen
from inflate3d.inflation.padding import TimePadding, present_tap
from inflate3d.inflation.plan import LayerPlan, Plan
from inflate3d.inflation.profiles import ACS, Profile, write_profile
from inflate3d.inflation.strides import (
    Given,
    Timing,
    check_spacing,
    kernel_of,
    kind_of,
    overlaps,
    pools_all,
    stride_of,
    walk,
    walk_like_space,
)

MAX_TIME_KERNEL = 7


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
        attention: "joint": it sees the tokens of several frames; "divided": one over time is added to each block.
    """

    meaning: str
    timings: Decide
    context: str = "clip"
    padding: TimePadding = "replicate"
    shifts: bool = False
    attention: Literal["", "joint", "divided"] = ""


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
        kind, here, there = kind_of(one), one.in_shape[2:], one.out_shape[2:]
        if kind not in ("conv", "pool") or len(here) != 2 or pools_all(one):
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
    return walk(seen, Given(timings)).timings


def _like_space(seen: Sequence[Seen]) -> dict[str, Timing]:
    return walk_like_space(seen, (1.0, 1.0, 1.0))


def _by_spacing(seen: Sequence[Seen]) -> dict[str, Timing]:
    check_spacing(None)
    return {}


def with_spacing(preset: Preset, spacing_mm: object) -> Preset:
    """Tell the preset "anisotropic" how large voxels are.

    Raises:
        InflateError: Another preset, which does not go by it; or no spacing.
    """
    if preset is not PRESETS["anisotropic"]:
        raise InflateError(
            "this preset does not go by the spacing of voxels",
            where="make_plan",
            expected='spacing_mm= with preset "anisotropic" alone',
            got=f"spacing_mm={spacing_mm!r}",
            fix=f'make_plan(model2d, "anisotropic", spacing_mm={spacing_mm!r}), or leave spacing_mm out',
        )
    spacing = check_spacing(spacing_mm)
    return replace(preset, timings=lambda seen: walk_like_space(seen, spacing))


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
    "isotropic": Preset("time as height and width: cubic kernels of any size, the strides of space", _like_space),
    "anisotropic": Preset(
        "as isotropic from where voxels have become about as deep as wide, flat before; wants spacing_mm", _by_spacing
    ),
    "causal": Preset("as video, looking at the past only", _cubic, "frame", "causal"),
    "frames": Preset("no kernels in time: each frame alone, the C2D baseline", _none, "frame"),
    "tsm": Preset(
        "1/8 of the channels from the frame before, 1/8 from the one after, ahead of every overlapping convolution",
        _after_the_stem,
        "frame",
        shifts=True,
    ),
    "joint": Preset("attention sees the tokens of all frames, or of several", _none, "frame", attention="joint"),
    "divided": Preset("attention over time ahead of each block of attention", _none, "frame", attention="divided"),
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
        if one.adapter and one.adapter.kind == "attention" and preset.attention != "joint":
            continue
        plan = _decide_one(one, timings.get(one.path, Timing()), preset, profile)
        if plan:
            plans.append(plan)
    return joint_plans(plans, seen) if preset.attention == "joint" else tuple(plans)


def follow_strides(plan: Plan, seen: Sequence[Seen], profile: Profile) -> Plan:
    """Let what enlarges maps follow a plan's strides, which rules may have changed; note how short time gets."""
    timings = {one.path: Timing(one.time_kernel, one.time_stride, one.time_scale) for one in plan.layers}
    if all(timing[1:] == (1, 1) for timing in timings.values()):
        return plan
    walked = walk(seen, Given(timings))
    layers = tuple(_following(layer, walked.timings.get(layer.path, Timing()), profile) for layer in plan.layers)
    return replace(plan, layers=layers, time_shrink=walked.shrink)


def _following(layer: LayerPlan, timing: Timing, profile: Profile) -> LayerPlan:
    if (layer.time_stride, layer.time_scale) == timing[1:] or layer.kind not in ("transposed", "resize"):
        return layer
    kernel = timing.kernel if layer.kind == "resize" else max(layer.time_kernel, timing.scale)
    timed = replace(layer, time_kernel=kernel, time_stride=timing.stride, time_scale=timing.scale)
    if layer.kind == "transposed":
        present = present_tap(kernel, layer.padding)
        by_name = isinstance(layer.profile, str) and layer.profile  # taps of your own are as many as they are
        written = write_profile(by_name or profile, kernel, center=present, scale=timing.scale)
        return replace(timed, action="inflate", profile=written)
    resized = timing.stride > 1 or timing.scale > 1
    return replace(timed, action="resize" if resized else "frame", reason="" if resized else SPACE_ALONE)


def _laid_out(one: Seen, timed: LayerPlan, preset: Preset, profile: Profile) -> LayerPlan:
    """Plan the kernel in time of a convolution."""
    if profile == ACS:
        cubic = timed.time_kernel == max(timed.kernel or (0,))
        if cubic and isinstance(one.layer, nn.Conv2d) and can_stand_on_sides(one.layer):
            return replace(timed, action="inflate", time_kernel=spans(one.layer), profile=ACS)
        profile = "mean"
    present = present_tap(timed.time_kernel, preset.padding)
    written = write_profile(profile, timed.time_kernel, center=present, scale=timed.time_scale)
    return replace(timed, action="inflate", profile=written)


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
    if kind == "resize" and (timing == Timing() or one.batch_factor == 0):
        return replace(plan, reason=SPACE_ALONE)
    if one.batch_factor == 0 and (kind or kernel):
        return replace(plan, reason="its batch does not grow with the pictures")
    timed = replace(plan, time_kernel=timing.kernel, time_stride=timing.stride, time_scale=timing.scale)
    if kind in ("conv", "transposed", "pool", "resize") and timing == Timing():
        return plan
    if kind in ("conv", "transposed"):
        return replace(plan, action="shift") if preset.shifts else _laid_out(one, timed, preset, profile)
    if kind in ("pool", "resize"):
        return replace(timed, action=kind)
    if kind == "gate" and len(one.in_shape) != 4:
        return replace(plan, reason="it runs on tokens here")
    if kind == "gate":
        return replace(plan, action="clip" if preset.context == "clip" else "frame")
    if kind in ("drop", "attention"):
        return replace(plan, action="drop" if kind == "drop" else "frame")
    if kernel and max(kernel) > 1:
        return replace(plan, reason=one.reason or "no adapter knows its type")
    return replace(plan, reason=one.reason) if one.reason else None
