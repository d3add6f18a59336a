"""What the layers of a network keep of a piece of a video, so that the next piece goes on where this one ended."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from inflate3d.inflation.padding import TimePadding, pad_time

Ends = Callable[[int], tuple[int, int]]  # of so many frames: what stands before and behind them


class TooFewFrames(Exception):  # noqa: N818 - no error: the frames wait for those of the next piece
    """A layer cannot make a whole step of the frames that have come so far."""


class _Kept(NamedTuple):
    """What a layer that slides over time keeps.

    Attributes:
        clip: The frames that its next step begins with, `[b, c, t, h, w]`.
        skip: Frames to come that no step sees, where the stride is larger than the kernel.
        seen: Frames so far.
    """

    clip: Tensor
    skip: int
    seen: int


class Borders:
    """The borders that all layers keep, by the number of their turn in a run.

    Every run of a network has the same turns. A run that ends in `TooFewFrames` leaves all borders as they were.

    Attributes:
        is_last: Whether the video ends with the piece that is running.
    """

    def __init__(self) -> None:
        self._kept: dict[int, _Kept | list[Tensor]] = {}
        self._next: dict[int, _Kept | list[Tensor]] = {}
        self._turn = 0
        self.is_last = False

    def begin(self, *, is_last: bool) -> None:
        """Begin the run of a piece."""
        self._next, self._turn, self.is_last = {}, 0, is_last

    def commit(self) -> None:
        """End a run that came to its end."""
        self._kept = self._next

    def slide(self, clip: Tensor, kernel: int, stride: int, *, ends: Ends, padding: TimePadding) -> Tensor:
        """Give the frames of all steps that a layer can make by now; it runs on them without padding in time.

        Args:
            clip: `[b, c, t, h, w]`: the frames that come next.
            kernel: Frames of a step.
            stride: Frames from one step to the next.
            ends: Frames to put before the first of all frames and behind the last, given how many there are.
            padding: What these are.

        Raises:
            TooFewFrames: There is no whole step yet.
        """
        kept, turn = self._kept.get(self._turn), self._turn
        self._turn += 1
        if isinstance(kept, _Kept):
            front, seen = 0, kept.seen + clip.shape[2]
            clip = torch.cat([kept.clip, clip], 2)[:, :, kept.skip :]
        else:
            front, seen = ends(clip.shape[2])[0], clip.shape[2]
        clip = pad_time(clip, front, ends(seen)[1] if self.is_last else 0, padding=padding)
        steps = (clip.shape[2] - kernel) // stride + 1
        if steps < 1:
            raise TooFewFrames
        used = steps * stride
        # a copy: a view would keep the whole piece
        self._next[turn] = _Kept(clip[:, :, used:].clone(), max(used - clip.shape[2], 0), seen)
        return clip[:, :, : used - stride + kernel]

    def waits(self) -> bool:
        """Whether something waits for the next turn."""
        return self._turn in self._kept

    def skip(self) -> None:
        """Let a turn go by, for which nothing waits."""
        self._turn += 1

    def align(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """Give of tensors `[b, t, ...]` the steps that all have by now; what some have more waits for the others.

        Raises:
            TooFewFrames: There is no such step yet.
        """
        kept, turn = self._kept.get(self._turn), self._turn
        self._turn += 1
        if isinstance(kept, list):
            parts = [torch.cat([before, part], 1) for before, part in zip(kept, parts, strict=True)]
        count = min(part.shape[1] for part in parts)
        if count < 1:
            raise TooFewFrames
        if any(part.shape[1] > count for part in parts):
            self._next[turn] = [part[:, count:].clone() for part in parts]
        return [part[:, :count] for part in parts]
