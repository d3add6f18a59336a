"""An inflated model over a video that comes in pieces: its own code runs on each, and sums wait for the slower side.

A layer that looks ahead gives its frames later than what runs beside it. So where a model's code joins two tensors, by
`x + y` or `torch.cat`, the frames that one of them has more wait for the next piece.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from inflate3d.axes import clip_to_frames, frames_to_clip
from inflate3d.errors import InflateError, list_faults
from inflate3d.inflation.acs import AcsConv2d
from inflate3d.inflation.adapters import WholeClipDrop
from inflate3d.inflation.filters import Filter
from inflate3d.inflation.fold import Folded
from inflate3d.inflation.inflated import Inflated
from inflate3d.inflation.inserted import Inserted, TemporalConv, TimePool, as_map, from_map
from inflate3d.inflation.intercept import beside
from inflate3d.inflation.padding import present_tap, time_pads
from inflate3d.inflation.plan import LayerPlan
from inflate3d.speed.borders import Borders

SHAPED = {"view", "reshape", "expand", "unflatten"}  # functions that are told a number of rows
FRAMES = "_frames_of_piece"  # an attribute of tensors: how many they have
STALE = "_changed_in_place"  # an attribute of tensors that code must not look at again


def stream_inflated(model3d: Inflated, borders: Borders) -> None:
    """Let an Inflated answer pieces of a video, `[b, c, t, h, w]`, in place: its next steps, `[b * steps, ...]`.

    Args:
        model3d: A copy, in eval mode; it can be used for nothing else from now on.
        borders: What its layers keep.

    Raises:
        InflateError: A part of it sees the whole clip, or makes time longer.
    """
    layers = [part for part in [*model3d.modules(), *beside(model3d.net)] if isinstance(part, Folded)]
    _check(layers, model3d)
    mode = JoinsInTime(borders)
    for layer in layers:
        if layer.plan.looks_through_time or layer.plan.time_stride > 1:
            _keep_borders(layer, mode)
    net = model3d.net

    def forward(piece: Tensor) -> Any:
        mode.begin(piece.shape[0])
        frames = clip_to_frames(piece)
        mode.mark(frames, len(frames))
        model3d.fold.push(piece.shape[0], piece.shape[2])
        try:
            with mode:
                answer = net(frames)
            mode.check_rows(answer)
            return answer
        finally:
            model3d.fold.pop()

    model3d.forward = forward  # type: ignore[method-assign, assignment]


def _check(layers: Sequence[Folded], model3d: Inflated) -> None:
    faults = [f"{layer.plan.path}: {why}" for layer in layers if (why := _why_not(layer))]
    if sum(isinstance(part, Inflated) for part in model3d.modules()) > 1:
        faults.append("an Inflated inside another one")
    if faults:
        raise InflateError(
            "this model cannot answer a video in pieces",
            where="streaming",
            expected="layers that see a few frames each",
            got=list_faults(faults, shown=5),
            fix='gates and norms that see one frame: the preset "causal" or "tsm"; otherwise take windows',
        )


def _why_not(layer: Folded) -> str:
    plan = layer.plan
    if plan.action == "clip" and not isinstance(layer, WholeClipDrop):
        return f"{plan.layer} sees the whole clip"
    if isinstance(layer, Inserted) and not isinstance(layer, TemporalConv | TimePool):
        return f"{plan.layer} sees the whole clip"
    if plan.time_scale > 1:
        return "makes time longer"
    if isinstance(layer, AcsConv2d) and plan.looks_through_time:
        return "kernels that stand on the sides of a volume"
    if plan.batch_factor > 1 and (plan.looks_through_time or plan.time_stride > 1):
        return f"{plan.batch_factor} rows of the batch for each frame"
    by_channel = isinstance(layer, Filter) and plan.profile == "shift" and plan.padding == "causal"
    return "a causal filter with the profile shift" if by_channel else ""


class JoinsInTime(TorchFunctionMode):
    """Watches a model's code: tensors with frames of the piece are joined at the frames that all of them have.

    Attributes:
        num_clips: Videos in the batch.
        resting: Whether a layer that keeps its borders is running, whose inner steps are its own.
    """

    def __init__(self, borders: Borders) -> None:
        super().__init__()
        self.borders, self.num_clips, self.resting = borders, 1, False
        self._counts = set[int]()  # of frames that tensors of this run have

    def begin(self, num_clips: int) -> None:
        """Begin the run of a piece of so many videos."""
        self.num_clips = num_clips
        self._counts.clear()

    def mark(self, answer: Any, num_frames: int) -> None:
        """Note of tensors `[n, ...]` how many frames of the piece they have, in all clips; others have none."""
        self._counts.add(num_frames)
        for leaf in pytree.tree_leaves(answer):
            if isinstance(leaf, Tensor) and leaf.ndim and leaf.shape[0] % num_frames == 0:
                setattr(leaf, FRAMES, num_frames)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if self.resting or name.startswith("new_"):
            return func(*args, **kwargs)
        leaves, structure = pytree.tree_flatten((args, kwargs))
        timed = {id(leaf): leaf for leaf in leaves if isinstance(leaf, Tensor) and hasattr(leaf, FRAMES)}
        if not timed:
            return func(*args, **kwargs)
        if any(hasattr(tensor, STALE) for tensor in timed.values()):
            raise _cannot_wait(f"{name} of a tensor that was changed in place before")
        joined = self._joined(list(timed.values()), name) if len(timed) > 1 else list(timed.values())
        if len(timed) > 1:
            found = dict(zip(timed, joined, strict=True))
            args, kwargs = pytree.tree_unflatten([found.get(id(leaf), leaf) for leaf in leaves], structure)
        num_frames = getattr(joined[0], FRAMES)
        try:
            answer = func(*args, **kwargs)
        except (RuntimeError, IndexError) as error:
            sizes = [leaf.shape[0] if isinstance(leaf, Tensor) and leaf.ndim else leaf for leaf in leaves]
            if self._counts - {num_frames} and self._counts.intersection(s for s in sizes if isinstance(s, int)):
                raise _cannot_wait(f"{name}: {error}") from error
            raise
        if name in SHAPED and answer.ndim and self._of_others(answer.shape[0], num_frames):
            raise _cannot_wait(f"{name} of {list(joined[0].shape)} to {list(answer.shape)}")
        self.mark(answer, num_frames)
        return answer

    def _of_others(self, num_rows: int, num_frames: int) -> bool:
        """Whether rows are none of so many frames, but of those of other tensors: a number that was read too early."""
        foreign = num_rows > 1 and num_rows % num_frames != 0  # one row may hold all frames as groups of channels
        return foreign and any(num_rows % other == 0 for other in self._counts)

    def check_rows(self, answer: Any) -> None:
        """Refuse what the model gives, if it has the rows of other tensors than those that it was made from.

        Raises:
            InflateError: Code has read the size of the batch ahead of a layer that gives its frames later.
        """
        for leaf in pytree.tree_leaves(answer):
            num_frames = getattr(leaf, FRAMES, None)
            if num_frames and len(leaf) != num_frames and len(leaf) in self._counts:
                raise _cannot_wait(f"an answer {list(leaf.shape)} for {num_frames} frames")

    def _joined(self, tensors: list[Tensor], name: str) -> list[Tensor]:
        """Cut tensors to the frames that all of them have by now."""
        counts = [getattr(tensor, FRAMES) for tensor in tensors]
        if not self.borders.waits() and len(set(counts)) == 1:
            self.borders.skip()
            return tensors
        if name == "__setitem__" or any(len(one) != count for one, count in zip(tensors, counts, strict=True)):
            raise _cannot_wait(f"{name} of {', '.join(str(list(tensor.shape)) for tensor in tensors)}")
        rows = self.borders.align([tensor.unflatten(0, (self.num_clips, -1)) for tensor in tensors])
        found = [part.flatten(0, 1) for part in rows]
        for part in found:
            self.mark(part, len(part))
        if name.endswith("_"):  # x += y is a tensor of its own here; one who looks at the old x must not find it
            setattr(tensors[0], STALE, True)
        return found


def _cannot_wait(got: str) -> InflateError:
    return InflateError(
        "the model's code joins tensors whose frames come at different times, in a way that cannot wait",
        where="streaming",
        expected="sums that are tensors of their own, x = x + y, of maps with a row for each frame; a number of "
        "rows that is read behind the convolutions",
        got=got,
        fix="rewrite it in the 2D model (read y.shape[0], not x.shape[0]), or take windows",
    )


def _keep_borders(layer: Folded, mode: JoinsInTime) -> None:
    """Let a layer run on the frames of whole steps, which it is given without padding."""
    plan = layer.plan
    if plan.action != "shift":  # which mixes neighbours whatever stands at the ends; those of a piece are cut off
        layer.plan = replace(plan, padding="valid")
    run = _sliding(layer, plan, mode)

    def forward(x: Tensor, *args: Any) -> Tensor:
        mode.resting = True
        try:
            frames = as_map(x, layer.form) if isinstance(layer, Inserted) else x
            answer = clip_to_frames(run(frames_to_clip(frames, mode.num_clips)))
            answer = from_map(answer, layer.form) if isinstance(layer, Inserted) else answer
        finally:
            mode.resting = False
        mode.mark(answer, len(answer))
        return answer

    layer.forward = forward  # type: ignore[method-assign]


def _sliding(layer: Folded, plan: LayerPlan, mode: JoinsInTime) -> Callable[[Tensor], Tensor]:
    kernel, stride, padding = plan.time_kernel, plan.time_stride, plan.padding
    if plan.action == "shift":
        past, future = 1, int(padding != "causal")

        def shifted(clip: Tensor) -> Tensor:
            given = mode.borders.slide(clip, past + 1 + future, 1, ends=lambda _: (past, future), padding="replicate")
            return layer.through_time(given)[:, :, past : given.shape[2] - future]

        return shifted

    def ends(num_frames: int) -> tuple[int, int]:
        return time_pads(num_frames, kernel, stride=stride, padding=padding)

    def slid(clip: Tensor) -> Tensor:
        given = mode.borders.slide(clip, kernel, stride, ends=ends, padding=padding)
        if isinstance(layer, TemporalConv):  # which adds the present frames to what it makes of all
            added: Tensor = layer.conv(given)
            return given.narrow(2, present_tap(kernel, padding), added.shape[2]) + added
        return layer.through_time(given)

    return slid
