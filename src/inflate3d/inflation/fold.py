"""The Fold: how many clips the batch of frames holds that a 2D network is running on."""

import threading
from typing import Any

import torch
from torch import Tensor, nn

from inflate3d.axes import clip_to_frames, frames_to_clip
from inflate3d.errors import InflateError
from inflate3d.inflation.plan import LayerPlan


class Fold:
    """What an Inflated tells its layers while it runs: the number of clips in the batch of frames.

    The number lives on a stack of the running thread, so that two threads may run one model, and an Inflated may run
    inside another. A copy or a pickle of a model brings an empty Fold of its own.
    """

    def __init__(self) -> None:
        self._local = threading.local()
        self.backward: int | None = None  # the clips of the forward whose backward began last

    @property
    def _stack(self) -> list[int]:
        try:
            stack: list[int] = self._local.stack
        except AttributeError:
            stack = self._local.stack = []
        return stack

    @property
    def modes(self) -> list[Any]:
        """The modes under which modules of this thread's run are running, innermost last."""
        try:
            modes: list[Any] = self._local.modes
        except AttributeError:
            modes = self._local.modes = []
        return modes

    def push(self, num_clips: int) -> None:
        """Begin a run on so many clips."""
        self._stack.append(num_clips)

    def pop(self) -> None:
        """End the run that began last."""
        self._stack.pop()

    @property
    def num_clips(self) -> int | None:
        """Clips of the run that is going on in this thread, or None between runs."""
        return self._stack[-1] if self._stack else None

    def begins_backward(self, num_clips: int, output: Tensor) -> None:
        """Remember, when the gradient reaches this output, whose backward is going on."""

        def remember(gradient: Tensor) -> None:
            self.backward = num_clips

        output.register_hook(remember)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Fold":
        return Fold()

    def __reduce__(self) -> tuple[type["Fold"], tuple[()]]:
        return Fold, ()


class Folded(nn.Module):
    """A layer of a 2D network that looks through time: it leaves frame form for what it does.

    Attributes:
        fold: The Fold of the Inflated it belongs to.
        plan: What the layer became.
        runs: For each shape of frames, the numbers of clips that gradient-mode runs held: a checkpoint recomputes a
            layer when no run is going on.
    """

    fold: Fold
    plan: LayerPlan
    runs: dict[tuple[int, ...], set[int]]

    @classmethod
    def take_over(cls, layer: nn.Module, plan: LayerPlan, fold: Fold) -> None:
        """Turn a 2D layer into one of this class, in place; names, hooks and attributes stay."""
        layer.__class__ = cls
        assert isinstance(layer, cls)
        layer.fold, layer.plan, layer.runs = fold, plan, {}

    def num_clips(self, frames: Tensor) -> int:
        """Find out how many clips a batch of frames holds.

        Raises:
            InflateError: No run is going on, and the runs before do not tell.
        """
        running = self.fold.num_clips
        shape = tuple(frames.shape)
        if running is not None:
            if torch.is_grad_enabled() and not torch.compiler.is_compiling():
                self.runs.setdefault(shape, set()).add(running)
            return running
        known = self.runs.get(shape, set())
        if len(known) == 1:
            return next(iter(known))
        if self.fold.backward is not None and self.fold.backward in known:
            return self.fold.backward
        raise InflateError(
            "a layer that looks through time was run on frames alone, and cannot know where clips begin",
            where=f"layer {self.plan.path or 'of the whole model'}",
            expected="clips [b, c, t, h, w], or a call through the Inflated: model.call(method, clip)",
            got=f"frames {list(shape)}" + (f", which held {sorted(known)} clips before" if known else ""),
            fix="call the Inflated, not its .net; or run the backward pass before a forward with another batch",
        )

    def unfold(self, frames: Tensor) -> Tensor:
        """Frames `[b*t*r, c, h, w]` to `[b*r, c, t, h, w]`; r is the batch factor of the plan. A view where r = 1."""
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
        if factor == 1:
            return frames_to_clip(frames, num_clips)
        order = (num_clips, -1, factor) if self.plan.rows_inside else (factor, num_clips, -1)
        rows: Tensor = frames.unflatten(0, order)
        rows = rows.movedim(2, 1) if self.plan.rows_inside else rows.transpose(0, 1)
        return rows.flatten(0, 1).transpose(1, 2)

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
