"""A video cut into what a network is shown: frames resized and flowed once, windows, their times."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from inflate3d.axes import frames_to_clip
from inflate3d.clips.clip import ClipSpec
from inflate3d.clips.sampling import Timed
from inflate3d.clips.transforms import CROPS, MAX_ASPECT, CropKind, as_tensor, frames_to_input, resize_picture, to_range
from inflate3d.clips.video import Draw, FrameStream, Picture, Source, open_frames
from inflate3d.errors import InflateError
from inflate3d.flow.quantize import dequantize, quantize
from inflate3d.results.feature_presets import CROP_SETS, Align, FeatureOptions, Interpolation, StreamName, Tail
from inflate3d.results.network import SmallFrame
from inflate3d.results.two_stream import FlowOptions, MovingFrame, flow_to_input, moving_frames
from inflate3d.speed.stream import TimeSteps, in_pieces

T = TypeVar("T")
Told = Callable[[float, float | None], None]  # seconds done; seconds in all, as far as the header tells


class Piece(NamedTuple, Generic[T]):
    """Frames that go through the network together.

    Attributes:
        frames: None stands for a frame of zeros.
        start: Index in the video of the first one; below 0 where the window begins before the video.
        whole: Frames of the video, if it is shown as a whole: the steps that come of its pieces are rows. None for a
            window, whose answer is a row.
        is_last: Whether the video ends here.
    """

    frames: list[T | None]
    start: int
    whole: int | None = None
    is_last: bool = False


def cut(frames: Iterable[T], num_frames: int, stride: int, *, tail: Tail, align: Align) -> Iterator[Piece[T]]:
    """Cut a stream into windows; see `FeatureOptions` about `tail` and `align`. Holds one window.

    Example:
        >>> [piece.frames for piece in cut(range(6), 4, 3, tail="pad-last", align="start")]
        [[0, 1, 2, 3], [3, 4, 5, 5]]
        >>> [piece.frames for piece in cut(range(4), 3, 2, tail="pad-zero", align="center")]
        [[None, 0, 1], [1, 2, 3]]
    """
    latest: deque[T] = deque(maxlen=num_frames)
    reaches_back = tail == "right-align"
    lead = num_frames // 2 if align == "center" else 0
    count, start, covered = 0, -lead, 0

    def piece(first: int) -> Piece[T]:
        held = count - len(latest)  # index of the first one that is held
        places = range(first, first + num_frames)
        if tail != "pad-zero":
            return Piece([latest[min(max(place, held), count - 1) - held] for place in places], first)
        return Piece([latest[place - held] if held <= place < count else None for place in places], first)

    for frame in frames:
        latest.append(frame)
        count += 1
        if count == start + num_frames:
            if start >= 0 or tail != "drop":
                yield piece(start)
            covered, start = count, start + stride
            while latest and not reaches_back and count - len(latest) < start:
                latest.popleft()  # memory that nobody needs while a network is busy
    if tail == "drop":
        return
    if align == "start" and max(covered, start) < count:
        yield piece(max(count - num_frames, 0) if tail == "right-align" else start)
    while align == "center" and start + lead < count:
        yield piece(start)
        start += stride


def _pieces(frames: Iterable[T], num_frames: int, steps: TimeSteps) -> Iterator[Piece[T]]:
    """Cut a video of known length into pieces that go through the network one after the other."""
    if num_frames <= steps.lost * steps.stride:  # not a single row
        deque(frames, maxlen=0)  # but the timeline wants to know how many there are
        return
    start = 0
    for piece, is_last in in_pieces(frames):
        yield Piece([*piece], start, num_frames, is_last)
        start += len(piece)


@dataclass
class Timeline:
    """The times of the frames that have been read; beyond them, time goes on at the rate of the nearest frame."""

    starts: list[float] = field(default_factory=list)
    end: float = 0.0  # of the last frame

    @property
    def num_frames(self) -> int:
        """Frames so far."""
        return len(self.starts)

    @property
    def fps(self) -> float:
        """Frames for each second that they are shown."""
        return round(self.num_frames / self.end, 6) if self.end else 0.0

    def at(self, frame: int) -> float:
        """Tell when a frame begins."""
        count = self.num_frames
        if frame < 0:
            return self.starts[0] + frame * ((self.starts[1] if count > 1 else self.end) - self.starts[0])
        return self.starts[frame] if frame < count else self.end + (frame - count) * (self.end - self.starts[-1])

    def stamps(self, starts: list[int], num_frames: int, options: FeatureOptions) -> list[float]:
        """Tell the times that windows of `num_frames` stand for."""
        if options.stamp == "middle-frame":
            return [self.at(start + num_frames // 2) for start in starts]
        begins, ends = [self.at(start) for start in starts], [self.at(start + num_frames) for start in starts]
        if options.stamp == "center":
            return [(begin + end) / 2 for begin, end in zip(begins, ends, strict=True)]
        return begins if options.stamp == "start" else ends


@dataclass(frozen=True)
class FeatureReader:
    """Reads videos as the options say.

    Attributes:
        options: What a row is.
        spec: What the network wants, where the options leave it open.
        flow: How flow is had; None where no stream needs it.
        steps: For `window="whole"`.
        most_frames: Frames of a video that are read; None for all.
    """

    options: FeatureOptions
    spec: ClipSpec
    flow: FlowOptions | None
    steps: TimeSteps | None = None
    most_frames: int | None = None

    @property
    def num_frames(self) -> int:
        """Frames that a row stands for."""
        if self.steps:
            return (1 + self.steps.lost) * self.steps.stride
        return int(self.options.window or self.spec.num_frames)

    def read(self, source: Source, timeline: Timeline, told: Told) -> Generator[Piece[SmallFrame | MovingFrame]]:
        """Read a video and cut it.

        Args:
            source: Anything that `open_frames` takes.
            timeline: Is filled on the way.
            told: Is told the seconds that have been read.

        Raises:
            InflateError: The source cannot be read, or there are too few frames for a row.
        """
        stream = open_frames(source, fps=self.options.fps)
        length = self.num_frames
        items = self._items(stream, source, timeline, told)
        if self.steps:
            pieces = _pieces(items, sum(1 for _ in self._timed(stream)) - self._spare, self.steps)
        else:
            tail, align = self.options.tail, self.options.align
            pieces = cut(items, length, self.options.stride or length, tail=tail, align=align)
        found = 0
        for found, piece in enumerate(pieces, start=1):  # noqa: B007 - counted
            yield piece
        if not found:
            raise InflateError(
                "the video is too short for a row",
                where=stream.source,
                expected=f"{length + self._spare} frames or more"
                + ", or another tail than drop" * (self.options.tail == "drop" and not self.steps),
                got=f"{timeline.num_frames} frames at fps={self.options.fps}",
                fix="--tail pad-last fills the window up, --window makes it shorter",
            )

    @property
    def _spare(self) -> int:
        """Frames at the end that are no row's own: the last one, where its flow is missing."""
        padded = self.options.align == "center" and self.options.tail != "drop"
        return int((self.flow is not None and not padded) or self.options.spare_frame)

    def _timed(self, stream: FrameStream) -> Iterator[Timed[Draw]]:
        return islice(stream.timed(), self.most_frames)

    def _items(
        self, stream: FrameStream, source: Source, timeline: Timeline, told: Told
    ) -> Iterator[SmallFrame | MovingFrame]:
        latest: list[SmallFrame] = []

        def small() -> Iterator[SmallFrame]:
            for frame in _resized(self._timed(stream), self.options, self.spec, timeline):
                told(frame.time_seconds, stream.duration_seconds_estimate)
                latest[:] = [frame]
                yield frame

        if self.flow is None:
            yield from _without_last(small()) if self._spare else small()
            return
        moving: MovingFrame | None = None
        for moving in moving_frames(small(), self.flow, source, told=lambda _: None, limited=False):
            yield moving
        if not self._spare and moving is not None:  # a row for each frame, so that the last one's flow is padding
            yield MovingFrame(*latest[0], self._padding_flow(moving.codes))

    def _padding_flow(self, codes: Tensor) -> Tensor:
        if self.options.tail == "pad-last":
            return codes
        quantizer = "none" if codes.is_floating_point() else self.options.quantizer
        return quantize(torch.zeros_like(codes, dtype=torch.float32), quantizer)

    def views(self, piece: Piece[SmallFrame | MovingFrame], stream: StreamName, *, takes_uint8: bool = False) -> Tensor:
        """Make network input `[views, c, t, h, w]` of a piece; pictures as they are where the network takes them so.

        Raises:
            InflateError: The frames are smaller than the crop.
        """
        present = [frame for frame in piece.frames if frame is not None]
        as_it_is = takes_uint8 and self.options.tail != "pad-zero" and self.options.value_range is None
        dtype = torch.uint8 if as_it_is else torch.float32
        made = self._colors(present, dtype) if stream == "rgb" else self._motion(present)
        if len(present) == len(piece.frames):
            return made
        places = [place for place, frame in enumerate(piece.frames) if frame is not None]
        full = made.new_zeros(*made.shape[:2], len(piece.frames), *made.shape[3:])
        full[:, :, places] = made
        return full

    def _colors(self, frames: Sequence[SmallFrame | MovingFrame], dtype: torch.dtype) -> Tensor:
        pictures = [frame.picture for frame in frames]
        value_range, chosen = self.options.value_range or self.spec.value_range, CROP_SETS[self.options.crops]
        if chosen is None:
            return frames_to_clip(to_range(torch.stack(pictures).permute(0, 3, 1, 2), value_range), num_clips=1)
        short_side, crop = min(pictures[0].shape[:2]), self.options.crop or self.spec.crop
        spec = replace(self.spec, short_side=short_side, crop=crop, value_range=value_range)
        return _in_order(frames_to_input(pictures, spec, chosen[0], dtype=dtype), *chosen)

    def _motion(self, frames: Sequence[SmallFrame | MovingFrame]) -> Tensor:
        assert self.flow is not None
        codes = torch.stack([frame.codes for frame in frames if isinstance(frame, MovingFrame)])
        chosen = CROP_SETS[self.options.crops]
        if chosen is None:
            return frames_to_clip(dequantize(codes, bound=self.flow.bound) / self.flow.bound, num_clips=1)
        crop = self.options.crop or self.spec.crop
        return _in_order(flow_to_input(codes, crop, chosen[0], bound=self.flow.bound), *chosen)


def _in_order(views: Tensor, kind: CropKind, names: tuple[str, ...]) -> Tensor:
    known = [place.name for place in CROPS[kind](0, 0)]
    order = [known.index(name) for name in names]
    return views if order in ([], list(range(len(known)))) else views[order]


def _resized(
    timed: Iterator[Timed[Draw]], options: FeatureOptions, spec: ClipSpec, timeline: Timeline
) -> Iterator[SmallFrame]:
    """Draw and resize each frame once, also where resampling repeats it, and keep its time."""
    last: Draw | None = None
    picture = torch.empty(0)
    for time, duration, draw in timed:
        if draw is not last:
            last, picture = draw, resize(draw(), options.resize or spec.short_side, options.interpolation)
        timeline.starts.append(float(time))
        timeline.end = float(time + duration)
        yield SmallFrame(picture, float(time))


def _without_last(frames: Iterator[T]) -> Iterator[T]:
    before = next(frames, None)
    for frame in frames:
        if before is not None:
            yield before
        before = frame


def resize(picture: Picture | Tensor, size: int | tuple[int, int], interpolation: Interpolation) -> Tensor:
    """Scale one picture `[h, w, 3]` to a short side, or to (width, height).

    Raises:
        InflateError: One side is more than 32 times the other.

    Example:
        >>> resize(torch.zeros(45, 67, 3, dtype=torch.uint8), (34, 25), "bicubic").shape
        torch.Size([25, 34, 3])
    """
    frame = as_tensor(picture)
    height, width = frame.shape[:2]
    if isinstance(size, int):
        shorter, longer = sorted((height, width))
        if interpolation == "bilinear" or longer > MAX_ASPECT * shorter:  # which it refuses
            return resize_picture(frame, size)
        other = size * longer // shorter
        wanted = (size, other) if height < width else (other, size)
    else:
        wanted = (size[1], size[0])
    if wanted == (height, width):
        return frame
    mode, smooth = interpolation.removesuffix("-aliased"), not interpolation.endswith("-aliased")
    batch = frame.permute(2, 0, 1)[None]
    scaled = F.interpolate(batch, wanted, mode=mode, antialias=smooth, align_corners=False)
    return scaled[0].permute(1, 2, 0)
