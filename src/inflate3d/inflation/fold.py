"""The Fold: how many clips the batch of frames holds that a 2D network is running on."""

import threading
from typing import Any

import torch
from torch import Tensor, nn

from inflate3d.axes import clip_to_frames, frames_to_clip
from inflate3d.errors import InflateError
from inflate3d.inflation.plan import LayerPlan

MAX_BACKWARDS = 64  # that are remembered: far more than run at a time
MAX_SHAPES = 64  # of batches that a layer remembers

OUTSIDE = -1  # torch's number of the backward pass where there is none
Runs = dict[tuple[int, ...], set[int]]  # for each shape of frames, the numbers of clips that runs held


class Fold:
    """What an Inflated tells its layers while it runs: the number of clips in the batch of frames.

    The number lives on a stack of the running thread, so that two threads may run one model, and an Inflated may run
    inside another. A copy or a pickle of a model brings an empty Fold of its own.

    Args:
        strides: The strides in time of the plan, from which the lengths follow that time may have on the way; None if
            they do not.
        scales: How many times longer layers of the plan make time.
    """

    def __init__(self, strides: frozenset[int] | None = frozenset(), scales: frozenset[int] = frozenset()) -> None:
        self.strides, self.scales = strides, scales
        self._local = threading.local()
        self._backward: dict[int, int] = {}  # by backward pass: the clips of the forward it has come to

    @property
    def _stack(self) -> list[tuple[int, int, int]]:
        try:
            stack: list[tuple[int, int, int]] = self._local.stack
        except AttributeError:
            stack = self._local.stack = []
        return stack

    @property
    def modes(self) -> list[Any]:
        """The modes under which modules of this thread's run are running, innermost last; None for parts of such."""
        try:
            modes: list[Any] = self._local.modes
        except AttributeError:
            modes = self._local.modes = []
        return modes

    def push(self, num_clips: int, num_frames: int = 1) -> None:
        """Begin a run on so many clips of so many frames."""
        self._stack.append((num_clips, num_frames, len(self.modes)))

    def pop(self) -> None:
        """End the run that began last, and with it the modes that an interrupt left open."""
        *_, outer_modes = self._stack.pop()
        while len(self.modes) > outer_modes:
            self.close_mode()

    def close_mode(self) -> None:
        """Close the mode that was opened last."""
        mode = self.modes.pop()
        if mode is not None:
            mode.__exit__(None, None, None)

    @property
    def num_clips(self) -> int | None:
        """Clips of the run that is going on in this thread, or None between runs."""
        return self._stack[-1][0] if self._stack else None

    def may_have(self, num_frames: int) -> bool:
        """Whether time can have this length on some level of the run that is going on."""
        if self.strides is None or not self._stack:
            return True
        longest = self._stack[-1][1]
        reached = fresh = {longest}
        while fresh:
            shorter = {-(-length // stride) for length in fresh for stride in self.strides}
            longer = {length * scale for length in fresh for scale in self.scales if length * scale <= longest}
            fresh = (shorter | longer) - reached
            reached = reached | fresh
        return num_frames in reached

    def begins_backward(self, num_clips: int, output: Tensor) -> None:
        """Remember, when a gradient reaches this output, to whose forward the backward pass has come."""

        def remember(gradient: Tensor) -> None:
            while len(self._backward) >= MAX_BACKWARDS:
                self._backward.pop(next(iter(list(self._backward)), 0), None)  # another thread may have been quicker
            self._backward[_backward_pass()] = num_clips

        output.register_hook(remember)

    def num_clips_in(self, rows: Tensor, runs: Runs, module: str) -> int:
        """Find out how many clips a batch holds: of the run that is going on, or of the one that is being recomputed.

        Args:
            rows: The batch that a module was given.
            runs: What the module's runs held; added to.
            module: What to call it in an error.

        Raises:
            InflateError: No run is going on, and the runs before do not tell.
        """
        shape, running = tuple(rows.shape), self.num_clips
        if running is not None:
            if not torch.compiler.is_compiling():
                runs.setdefault(shape, set()).add(running)
                if len(runs) > MAX_SHAPES:
                    del runs[next(iter(runs))]
            return running
        known = runs.get(shape, set())
        recomputed = self._backward.get(_backward_pass())
        if recomputed in known:
            return recomputed
        if len(known) == 1 and in_backward():  # a checkpoint's; anything else may be of any other batch
            return next(iter(known))
        raise InflateError(
            "a layer that looks through time was run on frames alone, and cannot know where clips begin",
            where=module,
            expected="clips [b, c, t, h, w], or a call through the Inflated: model.call(method, clip)",
            got=f"frames {list(shape)}" + (f", which held {sorted(known)} clips before" if known else ""),
            fix="call the Inflated, not its .net (pictures [b, c, h, w] are welcome too); with activation checkpoints, "
            "run the backward pass before a forward with another batch",
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> "Fold":
        return Fold(self.strides, self.scales)

    def __reduce__(self) -> tuple[type["Fold"], tuple[frozenset[int] | None, frozenset[int]]]:
        return Fold, (self.strides, self.scales)


def in_backward() -> bool:
    """Whether a backward pass is going on in this thread, in which checkpoints run modules anew."""
    return _backward_pass() != OUTSIDE


def _backward_pass() -> int:
    return int(torch._C._current_graph_task_id())


class Folded(nn.Module):
    """A layer of a 2D network that looks through time: it leaves frame form for what it does.

    Attributes:
        fold: The Fold of the Inflated it belongs to.
        plan: What the layer became.
        runs: What its runs held: a checkpoint recomputes a layer when no run is going on.
        type2d: Its class in 2D.
    """

    fold: Fold
    plan: LayerPlan
    runs: Runs
    type2d: type[nn.Module]

    @classmethod
    def take_over(cls, layer: nn.Module, plan: LayerPlan, fold: Fold) -> None:
        """Turn a 2D layer into one of this class, in place; names, hooks and attributes stay."""
        type2d, layer.__class__ = type(layer), cls
        assert isinstance(layer, cls)
        layer.fold, layer.plan, layer.runs, layer.type2d = fold, plan, {}, type2d

    def num_clips(self, frames: Tensor) -> int:
        """Find out how many clips a batch of frames holds.

        Raises:
            InflateError: No run is going on, and the runs before do not tell.
        """
        return self.fold.num_clips_in(frames, self.runs, f"layer {self.plan.path or 'of the whole model'}")

    def unfold(self, frames: Tensor) -> Tensor:
        """Frames `[b*t*r, c, h, w]` to `[b*r, c, t, h, w]`; r is the batch factor of the plan. A view where r = 1.

        Raises:
            InflateError: The batch does not hold whole clips, or other ones than in planning.
        """
        num_clips, factor = self.num_clips(frames), self.plan.batch_factor
        if frames.shape[0] % (num_clips * factor):
            raise InflateError(
                "the batch does not hold whole clips",
                where=f"layer {self.plan.path}",
                expected=f"a multiple of {num_clips} clips x {factor} rows for each frame",
                got=f"{frames.shape[0]} rows",
                fix="this layer changes its batch from call to call; leave it per frame: "
                f"rules={{{self.plan.path!r}: Rule(time_kernel=1)}}",
            )
        self._check_length(frames.shape[0] // (num_clips * factor))
        if factor == 1:
            return frames_to_clip(frames, num_clips)
        order = (num_clips, -1, factor) if self.plan.rows_inside else (factor, num_clips, -1)
        rows: Tensor = frames.unflatten(0, order)
        rows = rows.movedim(2, 1) if self.plan.rows_inside else rows.transpose(0, 1)
        return rows.flatten(0, 1).transpose(1, 2)

    def _check_length(self, num_frames: int) -> None:
        """Notice windows of another number than in planning, as pictures of another size have."""
        if not torch.compiler.is_compiling() and not self.fold.may_have(num_frames):
            raise InflateError(
                "the batch holds another number of rows for each frame than when the model was planned",
                where=f"layer {self.plan.path}",
                expected=f"{self.plan.batch_factor} rows for each frame of each clip",
                got=f"rows for {num_frames} frames",
                fix="plan with a picture of the size that is run: inflate(model2d, example=torch.zeros(1, c, h, w))",
            )

    def refold(self, clip: Tensor) -> Tensor:
        """Undo `unfold`; time may have another length by now."""
        factor = self.plan.batch_factor
        if factor == 1:
            return clip_to_frames(clip)
        rows: Tensor = clip.transpose(1, 2).unflatten(0, (-1, factor))  # [b, r, t, c, h, w]
        rows = rows.transpose(1, 2) if self.plan.rows_inside else rows.transpose(0, 1)
        return rows.flatten(0, 2)

    def through_time(self, x: Tensor) -> Tensor:
        """Do the layer's work on a clip `[b, c, t, h, w]`."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Run on frames `[n, c, h, w]`, or directly on a clip `[b, c, t, h, w]`."""
        return self.through_time(x) if x.ndim == 5 else self.refold(self.through_time(self.unfold(x)))
