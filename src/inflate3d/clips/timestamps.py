"""Timestamps as files have them to times that rise: sorted, mended where they jump or are missing, and told about."""

import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from fractions import Fraction
from heapq import heappop, heappush
from typing import Generic, NamedTuple, TypeVar

from inflate3d.clips.sampling import Timed
from inflate3d.errors import InflateWarning

T = TypeVar("T")

LOOK_AHEAD = 16  # H.264 and HEVC reorder frames by 16 at most
MAX_PAUSE_SECONDS = 600  # from one frame to the next; what is longer is taken for a wrong timestamp
MISSING = "some frames have no timestamp; each is taken to come one frame interval after the one before"
UNSORTED = "timestamps do not rise; the frames keep the decoder's order and get the sorted timestamps"
RESTARTED = "timestamps jump back (streams joined end to end?); time goes on from the last frame"
JUMPED = "timestamps jump ahead by more than 10 minutes; time goes on from the last frame"


class Stamped(NamedTuple, Generic[T]):
    """A frame as the decoder gave it out, with its own timestamp and duration in seconds, where it has them."""

    time: Fraction | None
    duration: Fraction | None
    item: T


def rising_times(stamped: Iterable[Stamped[T]], interval: Fraction, *, source: str) -> Iterator[Timed[T]]:
    """Give frames strictly rising times from 0 on; the order of the frames is not touched.

    The decoder's order is believed, its timestamps are not (XviD in AVI says 1, 2, 4, 3, 5, 7, 6):

    * the sorted timestamps are given out in the order of the frames, sorting `LOOK_AHEAD` frames at most;
    * a jump back further than that (streams joined end to end), or ahead by more than `MAX_PAUSE_SECONDS`, goes on one
      interval after the frame before;
    * a frame without a timestamp comes one interval after the frame before;
    * a frame whose timestamp was given out already comes halfway between the frame before and the next timestamp.

    Each kind is warned about once. Holds `LOOK_AHEAD + 1` frames.

    Args:
        stamped: Frames in the order of the decoder.
        interval: Seconds from one frame to the next, where the timestamps do not say.
        source: The file, for warnings.

    Example:
        >>> frames = [Stamped(Fraction(seconds), None, name) for seconds, name in [(7, "a"), (8, "b"), (11, "c")]]
        >>> [(str(time), name) for time, _, name in rising_times(frames, Fraction(1), source="x.avi")]
        [('0', 'a'), ('1', 'b'), ('4', 'c')]
    """
    clock = _Clock[T](interval)
    warned: set[str] = set()
    newest: Fraction | None = None
    for frame in stamped:
        fault = clock.fault(frame.time, newest)
        if fault and fault not in warned:
            warned.add(fault)
            warnings.warn(f"{source}: {fault}", InflateWarning, stacklevel=2)
        if fault in {RESTARTED, JUMPED}:
            yield from clock.drain()
        newest = frame.time if frame.time is not None else newest
        clock.push(frame)
        if len(clock.queue) > LOOK_AHEAD:
            yield clock.pop()
    yield from clock.drain()


class _Clock(Generic[T]):
    """The frames that wait, their timestamps sorted apart from them, and the time given out last."""

    def __init__(self, interval: Fraction) -> None:
        self.interval = interval
        self.queue: deque[Stamped[T]] = deque()
        self.times: list[Fraction] = []
        self.last: Fraction | None = None
        self.offset: Fraction | None = None  # from timestamps to times, known once the smallest timestamp is

    def fault(self, time: Fraction | None, newest: Fraction | None) -> str | None:
        """Name what is wrong with a timestamp, given the one before."""
        if time is None:
            return MISSING
        if newest is not None and time - newest > MAX_PAUSE_SECONDS:
            return JUMPED
        behind = self.last is not None and self.offset is not None and time + self.offset < self.last
        if behind or (newest is not None and newest - time > MAX_PAUSE_SECONDS):
            return RESTARTED
        return UNSORTED if newest is not None and time <= newest else None

    def push(self, frame: Stamped[T]) -> None:
        self.queue.append(frame)
        if frame.time is not None:
            heappush(self.times, frame.time)

    def pop(self) -> Timed[T]:
        """Give out the frame that waited longest, with the smallest timestamp."""
        frame = self.queue.popleft()
        time = soonest = Fraction(0) if self.last is None else self.last + self.interval
        if frame.time is not None:
            stamp = heappop(self.times)
            if self.offset is None:
                self.offset = soonest - stamp
            time = stamp + self.offset
            if self.last is not None and time <= self.last:
                time = self.between(soonest)
        self.last = time
        return Timed(time, frame.duration or self.interval, frame.item)

    def between(self, soonest: Fraction) -> Fraction:
        """Halfway from the time given out last to the next one known, so that a delay does not build up."""
        assert self.last is not None
        assert self.offset is not None
        later = [stamp + self.offset for stamp in self.times if stamp + self.offset > self.last]
        return (self.last + min(later)) / 2 if later else soonest

    def drain(self) -> Iterator[Timed[T]]:
        """Give out all that wait, and take the next timestamp for the start of another stream."""
        while self.queue:
            yield self.pop()
        self.offset = None
