"""Choose frames: resample to a rate, cut into windows, loop what is too short; pure functions that stream."""

import math
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from inflate3d.clips.clip import Clip
from inflate3d.errors import InflateError

T = TypeVar("T")
ClipOrTensor = TypeVar("ClipOrTensor", Clip, Tensor)


class Timed(NamedTuple, Generic[T]):
    """Something with its exact time, both times in seconds.

    Attributes:
        time: Seconds since the first frame of the source.
        duration: Seconds for which it is shown.
        item: A frame in any form.
    """

    time: Fraction
    duration: Fraction
    item: T


@dataclass(frozen=True, eq=False)
class Window(Generic[T]):
    """Consecutive frames of a stream.

    Attributes:
        frames: `num_frames` of them.
        start: Index in the stream of the first one.
        num_new: How many of them no earlier window held; the weight of this window in a mean over the stream.
    """

    frames: list[T]
    start: int
    num_new: int


def exact_fps(fps: float | Fraction, where: str = "fps") -> Fraction:
    """Turn a rate into the fraction that is meant: 29.97 is 2997/100, and 30000/1001 survives being a float.

    Raises:
        InflateError: The rate is not a positive, finite number.

    Example:
        >>> exact_fps(30000 / 1001)
        Fraction(30000, 1001)
    """
    rate = Fraction(fps).limit_denominator(10_000) if math.isfinite(fps) else Fraction(0)
    if rate <= 0:
        raise InflateError(
            "frames per second have to be positive",
            where=where,
            expected="a positive number",
            got=repr(fps),
            fix="pass a rate such as 25.0",
        )
    return rate


def nearest_frames(timed: Iterable[Timed[T]], fps: float | Fraction) -> Iterator[Timed[T]]:
    """Resample to `fps`: the output at time k/fps is the frame whose time is nearest, the earlier one of two.

    Output k exists while (k + 1/2)/fps <= the time at which the last frame ends, so the number of outputs is
    duration x fps, rounded (a half up), and at least one. Holds two frames at a time.

    Args:
        timed: Frames in rising order of time, the first one at 0.
        fps: Wanted frames per second.

    Raises:
        InflateError: `fps` is not positive.

    Example:
        >>> third = Fraction(1, 3)
        >>> [output.item for output in nearest_frames([Timed(i * third, third, i) for i in range(6)], 2)]
        [0, 1, 3, 4]
    """
    return _nearest_frames(timed, 1 / exact_fps(fps, "nearest_frames"))


def _nearest_frames(timed: Iterable[Timed[T]], step: Fraction) -> Iterator[Timed[T]]:
    # Outputs leave one late: output k - 1 is sure to exist once the frames reach output k.
    before: Timed[T] | None = None
    waiting: Timed[T] | None = None
    time = Fraction(0)
    for frame in timed:
        while before and time <= (before.time + frame.time) / 2:
            if waiting:
                yield waiting
            waiting = Timed(time, step, before.item)
            time += step
        before = frame
    if before is None:
        return
    end = before.time + before.duration
    if waiting and (waiting.time == 0 or waiting.time + step / 2 <= end):
        yield waiting
    while time == 0 or time + step / 2 <= end:
        yield Timed(time, step, before.item)
        time += step


def windows(frames: Iterable[T], num_frames: int, stride: int) -> Iterator[Window[T]]:
    """Cut a stream into windows of `num_frames`, starting every `stride` frames.

    * The tail: frames left over at the end get a last window that ends with the last frame, so it overlaps the one
      before and `num_new` says by how much less it counts.
    * A stream shorter than one window is looped to fill it, and `num_new` is its true length.
    * A stride longer than a window leaves out the frames between two windows, because that was asked for; at the end
      only frames at which another window would have started count as left over.

    Holds `num_frames` frames, and `num_frames + stride` while a caller still holds the window before.

    Source: Carreira & Zisserman 2017, section 2.5, for the looping ("as many times as necessary").

    Args:
        frames: Frames in any form: pictures, tensors, `Frame` or `Timed` objects; a tensor `[t, ...]` works too.
        num_frames: Frames in each window.
        stride: Frames from the start of one window to the start of the next.

    Raises:
        InflateError: `num_frames` or `stride` is less than one.

    Example:
        >>> [(window.frames, window.num_new) for window in windows(range(7), 4, 2)]
        [([0, 1, 2, 3], 4), ([2, 3, 4, 5], 2), ([3, 4, 5, 6], 1)]
    """
    if num_frames < 1 or stride < 1:
        raise InflateError(
            "a window needs frames, and windows have to move on",
            where="windows",
            expected="num_frames >= 1 and stride >= 1",
            got=f"num_frames={num_frames}, stride={stride}",
            fix=f"try num_frames={max(num_frames, 1)}, stride={max(stride, 1)}",
        )
    return _windows(frames, num_frames, stride)


def _windows(frames: Iterable[T], num_frames: int, stride: int) -> Iterator[Window[T]]:
    latest: deque[T] = deque(maxlen=num_frames)
    count = 0  # frames seen so far
    covered = 0  # the end of the last window
    following = 0  # where the next window starts
    for frame in frames:
        latest.append(frame)
        count += 1
        if count == following + num_frames:
            yield Window(list(latest), following, count - max(covered, following))
            covered, following = count, following + stride
    if count > max(covered, following):
        start = max(count - num_frames, 0)
        looped = [latest[i % len(latest)] for i in range(num_frames)]
        yield Window(looped, start, count - max(covered, start))


def loop_frames(clip: ClipOrTensor, num_frames: int) -> ClipOrTensor:
    """Repeat a short clip from its start until it has `num_frames` frames; a long enough one stays as it is.

    Source: Carreira & Zisserman 2017, section 2.5: "short videos looped as many times as necessary".

    Args:
        clip: A `Clip`, or a tensor `[..., t, h, w]`. The times of a looped `Clip` go back to the start as well.
        num_frames: The length to reach.

    Raises:
        InflateError: The clip has no frame.

    Example:
        >>> loop_frames(torch.arange(3).view(1, 3, 1, 1), 7).flatten().tolist()
        [0, 1, 2, 0, 1, 2, 0]
    """
    data = clip.data if isinstance(clip, Clip) else clip
    length = data.shape[-3]
    if length == 0:
        raise InflateError(
            "a clip without frames cannot be looped",
            where="loop_frames",
            expected="at least one frame",
            got=f"{list(data.shape)}, time is the third axis from the end",
            fix="read at least one frame: read_clip(source, num_frames=1)",
        )
    if length >= num_frames:
        return clip
    index = torch.arange(num_frames, device=data.device) % length
    looped = data.index_select(data.ndim - 3, index)
    if isinstance(clip, Clip):
        times = clip.times_seconds[index.to(clip.times_seconds.device)]
        return replace(clip, data=looped, times_seconds=times)
    return looped
