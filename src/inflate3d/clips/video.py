"""Read frames from a video file, a folder of pictures or an array, streaming, with exact times."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from itertools import islice
from numbers import Real
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import torch
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray
from torch import Tensor

from inflate3d.clips.clip import Clip
from inflate3d.clips.decoding import (
    decode,
    frame_interval,
    header_seconds,
    open_container,
    unreadable,
    video_stream,
)
from inflate3d.clips.sampling import Timed, exact_fps, nearest_frames
from inflate3d.clips.stills import (
    array_items,
    at_clip_times,
    at_even_times,
    checked_array,
    clip_times,
    image_files,
    read_image,
)
from inflate3d.clips.timestamps import rising_times
from inflate3d.errors import InflateError, InflateWarning, is_count, is_number, nearest_names

Picture = NDArray[np.uint8]
Source = str | Path | Clip | NDArray[Any] | Tensor
Rate = float | Fraction | Literal["native"]
Draw = Callable[[], Picture]  # makes the picture of a frame; not called for frames that resampling leaves out


@dataclass(frozen=True, eq=False)
class Frame:
    """One picture and its time.

    Attributes:
        picture: `[h, w, 3]` uint8, red, green, blue. A frame that resampling repeats shares its picture.
        time_seconds: Seconds since the first frame of the source.
    """

    picture: Picture
    time_seconds: float


@dataclass(frozen=True, eq=False)
class FrameStream:
    """Frames to iterate over, as often as wanted; each iteration opens the source anew and closes it at its end.

    Attributes:
        source: The file, folder or array.
        duration_seconds_estimate: Length in seconds; of a video file it is what the header says, which is often
            wrong, so it is good for progress bars only. None if the header does not say.
        timed: Makes one pass over the frames: times, and calls that make the pictures.
    """

    source: str
    duration_seconds_estimate: float | None
    timed: Callable[[], Iterator[Timed[Draw]]]

    def __iter__(self) -> Iterator[Frame]:
        return drawn(self.timed())


def open_frames(
    source: Source,
    *,
    fps: Rate = 25.0,
    frames_fps: float | Fraction | None = None,
    value_range: tuple[float, float] | None = None,
) -> FrameStream:
    """Open a video file, a folder of pictures, a clip or an array for reading frame by frame.

    Memory does not grow with the length of a video. Frames come as they are decoded: upright (the rotation that a
    phone wrote down is applied), interlaced ones woven and not deinterlaced, pixels taken for square, alpha dropped,
    10 bits rounded to 8, all of the size of the first one. Times start at 0 with the first frame. What was mended
    (timestamps, damage, sizes) is warned about while reading.

    Args:
        source: A path to a video file; a path to a folder of pictures, taken in natural order; a `Clip`, which has
            its own times and range; or an array `[t, h, w, 3]` or grey `[t, h, w]`, uint8, or floating point with a
            `value_range`.
        fps: Frames per second to resample to, nearest frame; or "native": all frames as they are.
        frames_fps: The rate at which the frames of a folder or array were taken; by default they count as being at
            the wanted rate already (25 if that is "native"). A video file and a clip have their own clock.
        value_range: What black and white are in a floating-point array.

    Raises:
        InflateError: The source does not exist, cannot be read or holds no frames, or an argument does not fit it. That
            no frame of a video file can be decoded turns out while reading.

    Example:
        >>> stream = open_frames(np.zeros((6, 32, 40, 3), np.uint8), fps=10, frames_fps=30)
        >>> [frame.time_seconds for frame in stream]
        [0.0, 0.1]
    """
    wanted = None if fps == "native" else _rate(fps, "fps")
    try:
        _check_source(source, value_range, frames_fps)
        stream = _stream_of(source, wanted or Fraction(25), frames_fps, value_range)
    except OSError as error:
        raise unreadable(Path(source_name(source)), error) from error
    if wanted is None:
        return stream
    return FrameStream(stream.source, stream.duration_seconds_estimate, lambda: nearest_frames(stream.timed(), wanted))


def _stream_of(
    source: Source, fps: Fraction, frames_fps: float | Fraction | None, value_range: tuple[float, float] | None
) -> FrameStream:
    """Open a source at its own rate; where that is not known it is `fps`."""
    if isinstance(source, Clip):
        return _clip_stream(source, fps)
    if isinstance(source, str | Path) and not Path(source).is_dir():
        return _file_stream(Path(source))
    taken = fps if frames_fps is None else _rate(frames_fps, "frames_fps")
    return _still_stream(source, taken, value_range)


def read_clip(
    source: Source,
    *,
    fps: Rate = 25.0,
    start_seconds: float = 0.0,
    num_frames: int | None = None,
    frames_fps: float | Fraction | None = None,
    value_range: tuple[float, float] | None = None,
) -> Clip:
    """Read a whole video, or a part of it, into memory.

    Args:
        source: As for `open_frames`, likewise `fps`, `frames_fps` and `value_range`.
        fps: Frames per second, or "native".
        start_seconds: Leave out the frames before this time. All frames before it are decoded, so that the frames
            and times are the same ones as in a reading of the whole.
        num_frames: At most this many frames, fewer where the video ends (`sampling.loop_frames` repeats them).
        frames_fps: The rate at which the frames of a folder or array were taken.
        value_range: What black and white are in a floating-point array.

    Returns:
        A clip `[3, t, h, w]` uint8, channels-last in memory.

    Raises:
        InflateError: As `open_frames`; or the video ends before `start_seconds`; or that or `num_frames` is no such
            number.

    Example:
        >>> read_clip(np.zeros((6, 32, 40, 3), np.uint8), num_frames=4)
        Clip('array [6, 32, 40, 3]', data=[3, 4, 32, 40] torch.uint8, value_range=(0.0, 255.0))
    """
    if not (num_frames is None or is_count(num_frames)) or not is_number(start_seconds) or start_seconds < 0:
        raise InflateError(
            "this is no part of a video",
            where="read_clip",
            expected="a whole num_frames >= 1, or None for all; start_seconds >= 0",
            got=f"num_frames={num_frames!r}, start_seconds={start_seconds!r}",
            fix="leave both out to read all",
        )
    stream = open_frames(source, fps=fps, frames_fps=frames_fps, value_range=value_range)
    frames = _part(stream, Fraction(start_seconds).limit_denominator(1_000_000), num_frames)
    data = torch.from_numpy(np.stack([frame.picture for frame in frames])).permute(3, 0, 1, 2)
    times = torch.tensor([frame.time_seconds for frame in frames], dtype=torch.float64)
    return Clip(data, times, stream.source)


def _part(stream: FrameStream, start: Fraction, num_frames: int | None) -> list[Frame]:
    end = Fraction(0)

    def from_start() -> Iterator[Timed[Draw]]:
        nonlocal end
        for timed in stream.timed():
            end = timed.time + timed.duration
            if timed.time >= start:
                yield timed

    frames = list(islice(drawn(from_start()), num_frames))
    if not frames:
        raise InflateError(
            "the video ends before the part to read",
            where=stream.source,
            expected=f"start_seconds below {float(end):.2f}",
            got=f"start_seconds={float(start):g}",
            fix=f"for its last second: start_seconds={max(float(end) - 1, 0):.2f}",
        )
    return frames


def drawn(timed: Iterator[Timed[Draw]]) -> Iterator[Frame]:
    """Make the pictures of the frames that are given out, each one once.

    Example:
        >>> stream = open_frames(np.zeros((3, 32, 40, 3), np.uint8), fps=50, frames_fps=25)
        >>> frames = list(drawn(stream.timed()))
        >>> len(frames), frames[0].picture is frames[1].picture
        (6, True)
    """
    last: Draw | None = None
    picture: Picture | None = None
    for time, _, draw in timed:
        if picture is None or draw is not last:
            last, picture = draw, draw()
        yield Frame(picture, float(time))


def source_name(source: Source) -> str:
    """Name a source in one line.

    Example:
        >>> source_name("a.mp4"), source_name(np.zeros((6, 32, 40, 3), np.uint8))
        ('a.mp4', 'array [6, 32, 40, 3]')
    """
    if isinstance(source, np.ndarray | Tensor):
        return f"array {list(source.shape)}"
    return source.source if isinstance(source, Clip) else str(source)


def _check_source(source: Source, value_range: tuple[float, float] | None, frames_fps: float | Fraction | None) -> None:
    if not isinstance(source, str | Path | Clip | np.ndarray | Tensor):
        raise InflateError(
            "this is no source of frames",
            where="open_frames",
            expected="a path to a video or to a folder of pictures, a Clip, or an array [t, h, w, 3]",
            got=f"{type(source).__module__}.{type(source).__qualname__}",
            fix="stack a list of pictures: numpy.stack(pictures)",
        )
    if value_range is not None and isinstance(source, str | Path | Clip):
        raise InflateError(
            "files and clips know their own range",
            where=source_name(source),
            expected="value_range for floating-point arrays only",
            got=f"value_range={value_range}",
            fix="leave value_range out",
        )
    has_clock = isinstance(source, Clip) or (isinstance(source, str | Path) and not Path(source).is_dir())
    if frames_fps is not None and has_clock:
        raise InflateError(
            "a video file has its own clock, and so has a clip",
            where=source_name(source),
            expected="frames_fps for folders and arrays only",
            got=f"frames_fps={frames_fps}",
            fix="leave frames_fps out; fps= is the rate you get",
        )


def _rate(fps: Rate, name: str) -> Fraction:
    if isinstance(fps, bool) or not isinstance(fps, Real):  # NaN and infinity are told by exact_fps
        raise InflateError(
            "frames per second are a number",
            where=f"open_frames, {name}",
            expected="a positive number" + ', or "native"' * (name == "fps"),
            got=repr(fps),
            fix=f"pass {name}=25.0",
        )
    return exact_fps(cast(float | Fraction, fps), f"open_frames, {name}")


def _file_stream(path: Path) -> FrameStream:
    if not path.exists():
        raise _missing(path)
    with open_container(path) as container:
        stream = video_stream(container, path)
        interval, seconds = frame_interval(stream), header_seconds(container, stream)

    def timed() -> Iterator[Timed[Draw]]:
        draw = Drawer(str(path))
        for time, duration, frame in rising_times(decode(path), interval, source=str(path)):
            yield Timed(time, duration, partial(draw, frame))

    return FrameStream(str(path), seconds, timed)


def _missing(path: Path) -> InflateError:
    folder = next(above for above in path.absolute().parents if above.is_dir())
    names = [item.name for item in folder.iterdir()] if folder == path.absolute().parent else []
    return InflateError(
        "there is no such file",
        where=str(path),
        expected="a video file or a folder of pictures",
        got=f"nothing at this path; the folder that is there is {folder}",
        fix=f"did you mean {nearest_names(path.name, names)}?" if names else f"see what is there: ls '{folder}'",
    )


def _clip_stream(clip: Clip, fps: Fraction) -> FrameStream:
    frames, times = checked_array(clip.data.permute(1, 2, 3, 0), clip.value_range), clip_times(clip)
    return FrameStream(
        clip.source,
        float(times[-1] + 1 / fps),
        lambda: at_clip_times(array_items(frames, clip.value_range), times, 1 / fps),
    )


def _still_stream(
    source: str | Path | NDArray[Any] | Tensor, taken_fps: Fraction, value_range: tuple[float, float] | None
) -> FrameStream:
    if isinstance(source, str | Path):
        files = image_files(Path(source))
        seconds = float(len(files) / taken_fps)

        def pictures() -> Iterator[Draw]:
            draw = Drawer(str(source))
            return (partial(_draw_file, draw, file) for file in files)

        return FrameStream(str(source), seconds, lambda: at_even_times(pictures(), taken_fps))
    frames = checked_array(source, value_range)
    return FrameStream(
        source_name(source),
        float(len(frames) / taken_fps),
        lambda: at_even_times(array_items(frames, value_range), taken_fps),
    )


def _draw_file(draw: "Drawer", file: Path) -> Picture:
    draw.turns.clear()  # each photograph has a turn of its own
    return draw(read_image(file))


class _Turn(NamedTuple):
    """How to make a picture upright: swap its axes, then mirror them."""

    swap: bool = False
    down: int = 1
    right: int = 1


QUARTER_TURNS = (_Turn(), _Turn(True, -1, 1), _Turn(False, -1, -1), _Turn(True, 1, -1))  # counter-clockwise


class Drawer:
    """Turns decoded frames into upright RGB pictures of the first one's size."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.reformatter = VideoReformatter()
        self.turns: dict[int, _Turn] = {}
        self.size: tuple[int, int] | None = None
        self.warned = False

    def __call__(self, frame: VideoFrame) -> Picture:
        """Make the picture `[h, w, 3]` uint8 of a frame."""
        if frame.rotation not in self.turns:
            # not for each frame: looking makes a reference cycle, so that frames outlive their use
            self.turns[frame.rotation] = _turn(frame)
        turn = self.turns[frame.rotation]
        size = (frame.height, frame.width) if turn.swap else (frame.width, frame.height)
        self.size = self.size or size
        if size != self.size and not self.warned:
            self.warned = True
            warnings.warn(
                f"{self.source}: the frames change from {self.size[0]}x{self.size[1]} to {size[0]}x{size[1]} pixels; "
                "all are scaled to the first size",
                InflateWarning,
                stacklevel=2,
            )
        width, height = reversed(self.size) if turn.swap else self.size
        picture = cast(Picture, self.reformatter.reformat(frame, width, height, format="rgb24").to_ndarray())
        if turn == _Turn():
            return picture
        picture = picture.swapaxes(0, 1) if turn.swap else picture
        return np.ascontiguousarray(picture[:: turn.down, :: turn.right])


def _turn(frame: VideoFrame) -> _Turn:
    """Read the display matrix, to the nearest quarter turn, mirrors too.

    A pixel (x, y) is shown at (a x + c y, b x + d y) for the matrix [a b u; c d v; ...].

    Source: Apple, QuickTime File Format Specification, "Matrices".
    """
    try:
        side_data = cast(Mapping[str, bytes], frame.side_data).get("DISPLAYMATRIX")
    except ValueError:  # PyAV 18 stumbles over kinds it does not know, such as EXIF; the angle it can tell
        return QUARTER_TURNS[round(frame.rotation / 90) % 4]
    if side_data is None:
        return _Turn()
    a, b, _, c, d = np.frombuffer(side_data, np.int32)[:5].tolist()
    if abs(b) > abs(a):  # x and y change places: b x decides on the new y, c y on the new x
        return _Turn(True, -1 if b < 0 else 1, -1 if c < 0 else 1)
    return _Turn(False, -1 if d < 0 else 1, -1 if a < 0 else 1)
