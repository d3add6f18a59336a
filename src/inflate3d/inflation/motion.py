"""Where a 3D model looks: gradients of one step of its answer, followed back to the frames of a moving clip."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from math import gcd, prod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from inflate3d.inflation.adapters import InflatedConv2d, WholeClip
from inflate3d.inflation.attention import JointAttention
from inflate3d.inflation.filters import Filter
from inflate3d.inflation.fold import Folded
from inflate3d.inflation.inflated import Inflated
from inflate3d.inflation.inserted import NonLocal, TemporalAttention, TemporalConv
from inflate3d.inflation.intercept import beside
from inflate3d.inflation.observe import copied
from inflate3d.inflation.padding import present_tap
from inflate3d.inflation.plan import LayerPlan, Plan
from inflate3d.inflation.profiles import phases

PAST, FUTURE, POOLS = "taps of the past", "taps of the future", "pools over time"
SHIFTS, BLOCKS, ATTENTION = "shifted channels", "non-local blocks", "attention over time"
SHORTEST = 5  # frames of a moving clip
OTHER_WAY = 1e-4  # relative; another way through a layer rounds otherwise
STEPS = 3  # at least, of every answer: one before and one after the middle


class Sight(NamedTuple):
    """What was claimed about where a model looks, whether it holds, and what was seen."""

    law: str
    holds: bool
    where: str


def look(deep: Inflated, picture: Tensor) -> list[Sight]:
    """Test that steps of the answer see the frames they should, and no others.

    With taps of the present alone, a step sees one frame: its own. Then one kind of looking through time after the
    other is let in: with taps of the past nothing may come from later frames, with taps of the future nothing from
    earlier ones. Gates see each frame alone for this, and taps are random.

    Args:
        deep: In float64, in eval mode; left as it is.
        picture: `[1, c, h, w]`, for its size.
    """
    clip = _moving_clip(deep, picture)
    num_frames = clip.shape[2]
    own = frames_seen(_letting_in(deep, ""), clip)
    alone = all(_is_own_frame(deep.plan, num_frames, length, frames) for length, frames in own.items())
    where = "; ".join(f"step {(length - 1) // 2} of {length} sees {frames}" for length, frames in own.items())
    law = "with taps of the present alone, a step sees its own frame"
    law += " and those where coarser steps begin" if deep.plan.clip_multiple > 1 else ""
    sights = [Sight(law, alone, where or "it has no gradient")]
    for kind, (back, ahead) in (_directions(deep.plan) if alone else {}).items():
        trial = _letting_in(deep, kind)
        seen, answer = _look_back(trial, clip)
        earlier = any(frame < own[length][0] for length, frames in seen.items() for frame in frames)
        later = any(frame > own[length][-1] for length, frames in seen.items() for frame in frames)
        sees = " and ".join(name for name, wanted in (("earlier", back), ("later", ahead)) if wanted) or "no other"
        where = f"of {num_frames} frames they see {sorted({frame for frames in seen.values() for frame in frames})}"
        same = _as_without_gradients(trial, clip, answer)
        where += "" if same else "; without gradients it answers otherwise"
        holds = (earlier, later) == (back, ahead) and same
        sights.append(Sight(f"with {kind}, steps see {sees} frames", holds, where))
    return sights


def frames_seen(deep: Inflated, clip: Tensor) -> dict[int, list[int]]:
    """Find the frames on which middle steps of the answer depend, by the number of steps that an answer has."""
    return _look_back(deep, clip)[0]


def _look_back(deep: Inflated, clip: Tensor) -> tuple[dict[int, list[int]], list[Any]]:
    """Find these frames, and give the answer itself as well, leaf by leaf."""
    clip = clip.clone().requires_grad_()
    totals: dict[int, Tensor] = {}
    with per_step(deep), torch.enable_grad():
        answer = pytree.tree_leaves(deep(clip))
        for leaf, form in zip(answer, deep.outputs_of("forward").forms, strict=True):
            if form != "same" and leaf.requires_grad:
                axis = 2 if form == "map" else 1
                length = leaf.shape[axis]
                part = leaf.select(axis, (length - 1) // 2).square().sum()
                totals[length] = totals[length] + part if length in totals else part
    seen = {}
    for length, total in totals.items():
        (gradient,) = torch.autograd.grad(total, clip, retain_graph=True, allow_unused=True)
        frames = [] if gradient is None else gradient.unbind(2)
        seen[length] = [number for number, frame in enumerate(frames) if frame.any()]
    return seen, [leaf.detach() if isinstance(leaf, Tensor) else leaf for leaf in answer]


def _as_without_gradients(deep: Inflated, clip: Tensor, answer: Sequence[Any]) -> bool:
    """Whether a model answers as it did with gradients; without, some code of torch goes past what was adapted."""
    with per_step(deep), torch.no_grad():
        leaves = pytree.tree_leaves(deep(clip))
    pairs = [(a, b) for a, b in zip(answer, leaves, strict=True) if isinstance(a, Tensor) and a.is_floating_point()]
    return all(bool((a == b).all() or (a - b).abs().max() <= OTHER_WAY * a.abs().max()) for a, b in pairs)


@contextmanager
def per_step(deep: Inflated) -> Iterator[None]:
    """Let vectors come out for each step."""
    pool, deep.time_pool = deep.time_pool, "none"
    try:
        yield
    finally:
        deep.time_pool = pool


def _directions(plan: Plan) -> dict[str, tuple[bool, bool]]:
    """Tell, for each kind of looking through time in a plan, whether steps see earlier and later frames by it."""
    found: dict[str, list[tuple[bool, bool]]] = {}
    for layer in plan.steps:
        present = present_tap(layer.time_kernel, layer.padding)
        back, ahead = present > 0, present < layer.time_kernel - 1
        if layer.kind == "transposed" and layer.time_scale > 1:  # the step that is looked at is of the first phase
            taps, present = phases(layer.time_kernel, layer.time_scale)[0]
            back, ahead = present > 0, present < taps - 1
        if layer.action == "inflate" and layer.time_kernel > 1:
            found.setdefault(PAST, []).append((back, False))
            found.setdefault(FUTURE, []).append((False, ahead))
        if layer.action == "pool" and layer.time_kernel > 1:
            found.setdefault(POOLS, []).append((back, ahead))
        if layer.action == "shift":
            found.setdefault(SHIFTS, []).append((True, layer.padding != "causal"))
        if layer.kind in ("nonlocal", "attention", "temporal_attention") and layer.looks_through_time:
            found.setdefault(BLOCKS if layer.kind == "nonlocal" else ATTENTION, []).append((True, True))
    return {kind: (any(one[0] for one in ways), any(one[1] for one in ways)) for kind, ways in found.items()}


def _is_own_frame(plan: Plan, num_frames: int, length: int, frames: list[int]) -> bool:
    """Whether the middle one of so many steps sees one frame alone, and the one that the strides lead to.

    Where time was made longer again it also sees, from coarser levels, the frames at which the steps there begin.
    """
    if plan.clip_multiple > 1:
        ran, step = num_frames + -num_frames % plan.clip_multiple, (length - 1) // 2
        sizes = (size for size in range(1, ran + 1) if plan.clip_multiple % size == 0)
        size = next((size for size in sizes if -(-num_frames // size) == length), ran)
        first = step * size  # of the clip's frames, where this step begins
        begins = {first // coarse * coarse for coarse in range(size, ran + 1) if plan.clip_multiple % coarse == 0}
        return bool(frames) and set(frames) <= begins
    if len(frames) != 1 or plan.frames_lost:  # `valid` padding moves the steps along
        return len(frames) == 1
    step = (length - 1) // 2
    stride, rest = divmod(frames[0], step) if step else (1, frames[0])
    fits = rest == 0 and stride > 0 and -(-num_frames // stride) == length
    all_strides = prod(layer.time_stride for layer in plan.steps)
    while fits and (common := gcd(stride, all_strides)) > 1:  # a layer that is used twice strides twice
        stride //= common
    return fits and stride == 1


def _moving_clip(deep: Inflated, picture: Tensor) -> Tensor:
    """Make a clip of random frames, so long that every answer has a step before and one after its middle."""
    most = 2 * prod(layer.time_stride for layer in deep.plan.steps) + SHORTEST
    generator = torch.Generator().manual_seed(0)
    # the middle step then has a coarse step before its own
    length = SHORTEST if deep.plan.clip_multiple == 1 else 2 * deep.plan.clip_multiple + 1
    while True:
        shape = (1, picture.shape[1], length + deep.plan.frames_lost, *picture.shape[2:])
        clip = torch.randn(shape, generator=generator).to(picture)
        if length >= most or _fewest_steps(deep, clip) >= STEPS:
            return clip
        length = 2 * length - 1


def _fewest_steps(deep: Inflated, clip: Tensor) -> int:
    with per_step(deep), torch.no_grad():
        leaves = pytree.tree_leaves(deep(clip))
    forms = deep.outputs_of("forward").forms
    lengths = [
        leaf.shape[2 if form == "map" else 1] for leaf, form in zip(leaves, forms, strict=True) if form != "same"
    ]
    return min(lengths, default=STEPS)


def _letting_in(deep: Inflated, kind: str) -> Inflated:
    """Copy a model, with random taps; of what looks through time, only one kind still does."""
    trial = copied(deep).eval().requires_grad_(False)  # gradients of the clip alone: half the memory
    generator = torch.Generator().manual_seed(1)
    for parameter in trial.net.parameters():
        if parameter.is_floating_point() and not parameter.any():  # a head of zeros would hide everything
            _draw(parameter, generator)
    for part in [*trial.modules(), *beside(trial.net)]:
        if isinstance(part, WholeClip | NonLocal | JointAttention | TemporalAttention):
            _let_in_all(part, kind, generator)
        elif isinstance(part, Folded):
            _let_in(part, kind, generator)
    return trial


def _let_in_all(part: Folded, kind: str, generator: torch.Generator) -> None:
    """Let what sees the whole clip see it, or each frame alone."""
    if isinstance(part, NonLocal) and kind == BLOCKS:
        nn.init.ones_(part.bn.weight)
    if isinstance(part, TemporalAttention) and kind == ATTENTION:
        _draw(part.proj.weight, generator)
    if isinstance(part, WholeClip) or (isinstance(part, JointAttention) and kind != ATTENTION):
        part.deflate_()


def _let_in(part: Folded, kind: str, generator: torch.Generator) -> None:
    plan = part.plan
    if isinstance(part, TemporalConv):
        taps = _random_taps(plan, kind, generator).to(part.conv.weight)
        _draw(part.conv.weight, generator)
        part.conv.weight.data = part.conv.weight.data[:, :, :1] * taps.view(-1, 1, 1)
    elif plan.action == "shift" and kind != SHIFTS:
        part.plan = replace(plan, action="frame")
        if isinstance(part, InflatedConv2d):
            part.plan = plan
            part.deflate_()
    elif plan.action == "inflate" and isinstance(part, InflatedConv2d | Filter):
        part.lay_out(_random_taps(plan, kind, generator))
    elif plan.action == "resize":
        part.plan = replace(plan, time_kernel=1)  # the nearest frame
    elif plan.action == "pool" and kind != POOLS:
        part.plan = replace(plan, time_kernel=1)
        if isinstance(part, Filter):
            part.plan = plan
            part.lay_out(_random_taps(plan, kind, generator))


def _draw(value: Tensor, generator: torch.Generator) -> None:
    """Fill a parameter with the same numbers on every device."""
    drawn = torch.empty_like(value, device="cpu").normal_(std=0.1, generator=generator)
    value.data.copy_(drawn)


def _random_taps(plan: LayerPlan, kind: str, generator: torch.Generator) -> Tensor:
    """Draw taps: of the present alone, or of the past or the future as well."""
    present = present_tap(plan.time_kernel, plan.padding)
    taps = torch.rand(plan.time_kernel, generator=generator).double() + 0.5
    if kind != PAST:
        taps[:present] = 0
    if kind != FUTURE:
        taps[present + 1 :] = 0
    return taps
