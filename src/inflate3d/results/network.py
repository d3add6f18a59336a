"""A network over the windows of a video: how the video is shown, read ahead, and answered a few clips at a time."""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence, Sized
from contextlib import closing, contextmanager
from dataclasses import dataclass
from hashlib import sha256
from itertools import chain, islice
from typing import Generic, NamedTuple, Protocol, TypeVar, get_args

import torch
from torch import Tensor, nn

from inflate3d.clips.clip import ClipSpec
from inflate3d.clips.sampling import Window, windows
from inflate3d.clips.transforms import CROPS, CropKind, input_views, resize_picture
from inflate3d.clips.video import FrameStream, Rate, Source, open_frames, source_name
from inflate3d.errors import InflateError, check_options, is_count, is_number
from inflate3d.results.prediction import reason_of
from inflate3d.speed.ahead import ahead
from inflate3d.speed.lanes import in_lanes, lanes_of
from inflate3d.speed.memory import clips_at_a_time, device_of
from inflate3d.speed.optimize import Optimized, Precision

MIN_FPS = 1e-4  # exact_fps keeps four digits
Progress = Callable[[float, float | None], None]  # seconds done; seconds in all, as far as the header tells
AHEAD_WINDOWS = 2  # that are read while the network is busy; the flow of one takes half a minute


class Shown(Protocol):
    """What windows are cut from: anything that a network is shown, with a picture and a time."""

    @property
    def picture(self) -> Tensor:
        """`[h, w, 3]` uint8."""

    @property
    def time_seconds(self) -> float:
        """Seconds since the first frame of the source."""


Item = TypeVar("Item")
T = TypeVar("T", bound=Shown)


@dataclass(frozen=True)
class PredictOptions:
    """How a video is shown to a network.

    Attributes:
        fps: Frames per second to take, or "native" for all; 25 is what I3D was trained on.
        num_frames: Stop after this many frames; None reads to the end.
        window: Frames in a window; None takes what the network was trained on. The paper tests on up to 250 at once.
        stride: Frames from one window to the next; None sets window beside window.
        crops: "center", "three", "five" or "ten"; the logits of several crops are averaged.
        precision: "fp32"; "bf16", faster where the processor knows bfloat16; "int8" (extra `int8`, CPU), the fastest,
            calibrated before the run with the first windows of the first videos, 8 in all.
        batch_size: Clips, that is windows or their crops, that go through the network at a time. None takes as many as
            fit into the memory of a GPU, and one on a CPU, where more take memory and no less time.
        workers: Videos that are open at once, each read by a thread that holds four windows at most: with 2 or more,
            the next video is begun while the network still works on one; with 1 only when the one before is done. None
            takes 2 beside a network on the CPU, else one for each core.
        whole: Show each video in one pass, without windows, as the paper does: I3D and inflated models, which answer
            every step in time. The frames of a video are counted first.
        compiled: Compile the network, which repays its minute after a thousand windows or so.
        key_frames: Keep the middle frame of each window as a small JPEG, for reports.

    Example:
        >>> PredictOptions(fps="native", crops="three").num_frames is None
        True
    """

    fps: Rate = 25.0
    num_frames: int | None = None
    window: int | None = None
    stride: int | None = None
    crops: CropKind = "center"
    precision: Precision = "fp32"
    batch_size: int | None = None
    workers: int | None = None
    whole: bool = False
    compiled: bool = False
    key_frames: bool = False

    def __post_init__(self) -> None:
        rules = {
            "crops": (", ".join(CROPS), self.crops in CROPS),
            "precision": (", ".join(get_args(Precision)), self.precision in get_args(Precision)),
            "whole": (
                "False with a window, a stride, key frames, int8 or compiled",
                not (self.whole and (self.window or self.stride or self.key_frames or self.compiled))
                and not (self.whole and self.precision == "int8"),
            ),
        }
        counts = ("num_frames", "window", "stride", "batch_size", "workers")
        check_options(self, {"fps": rate_rule(self.fps), **count_rules(self, counts), **rules})


def rate_rule(fps: object) -> tuple[str, bool]:
    """Tell what a rate may be, and whether this is one; for `check_options`."""
    fits = fps == "native" or (is_number(fps) and float(fps) >= MIN_FPS)  # type: ignore[arg-type]  # a number
    return f"a number of {MIN_FPS} or more, or native", fits


def count_rules(options: object, names: Iterable[str]) -> dict[str, tuple[str, bool]]:
    """Tell of options that count and may be left out whether they do; for `check_options`."""
    values = {name: getattr(options, name) for name in names}
    return {name: ("1 or more, or None", value is None or is_count(value)) for name, value in values.items()}


class SmallFrame(NamedTuple):
    """A frame in the size that the network wants.

    Attributes:
        picture: `[h, w, 3]` uint8.
        time_seconds: Seconds since the first frame of the source.
    """

    picture: Tensor
    time_seconds: float


def build_sha256(model: nn.Module) -> str:
    """Hash what tells two networks with the same tensors apart: their modules' classes, numbers and texts.

    The code of a `forward` is not among them.

    Example:
        >>> build_sha256(torch.nn.AvgPool2d(2)) == build_sha256(torch.nn.AvgPool2d(3))
        False
    """
    plain = bool | int | float | str | None
    lines = []
    for path, module in model.named_modules():
        facts = {**vars(type(module)), **vars(module)}
        told = {
            name: value
            for name, value in sorted(facts.items())
            if not name.startswith("_")
            and name != "training"
            and (
                isinstance(value, plain) or (isinstance(value, tuple) and all(isinstance(one, plain) for one in value))
            )
        }
        lines.append(f"{path} {type(module).__name__} {told}")
    return sha256("\n".join(lines).encode()).hexdigest()


@contextmanager
def told_as_unreadable(source: Source) -> Iterator[None]:
    """Tell whatever reading a source sets off as an `InflateError`: a strange file is no fault of the caller's.

    Raises:
        InflateError: The block raises an error.

    Example:
        >>> try:
        ...     with told_as_unreadable("a.mp4"):
        ...         raise EOFError("3 bytes are missing")
        ... except InflateError as error:
        ...     error.where, error.problem, error.got[:29]
        ('a.mp4', 'the source cannot be read', 'EOFError: 3 bytes are missing')
    """
    try:
        yield
    except InflateError:
        raise
    except Exception as error:
        name = source_name(source)
        raise InflateError(
            "the source cannot be read",
            where=name,
            expected="a video, a folder of pictures, a Clip or an array, whole",
            got=reason_of(error),
            fix=f"try whether another program reads it (ffprobe {name}); if one does, report this text as a bug",
        ) from error


def readable(items: Iterable[Item], source: Source) -> Iterator[Item]:
    """Give what is read from a source; whatever that sets off is told as an `InflateError`."""
    with told_as_unreadable(source):
        yield from items


def small_frames(stream: FrameStream, short_side: int) -> Iterator[SmallFrame]:
    """Resize each frame as it comes, so that only small ones wait for their window."""
    for frame in readable(stream, stream.source):
        yield SmallFrame(resize_picture(frame.picture, short_side), frame.time_seconds)


def cut_windows(items: Iterator[T], spec: ClipSpec, options: PredictOptions) -> Generator[Window[T]]:
    """Cut a stream as the options say; a thread works two windows ahead from now on, until this is closed."""
    length = options.window or spec.num_frames
    running = _cut(ahead(items, AHEAD_WINDOWS * length), length, options.stride or length)
    next(running)
    return running  # type: ignore[return-value]  # from now on there are windows only


def _cut(items: Generator[T], num_frames: int, stride: int) -> Generator[Window[T] | None]:
    with closing(items):
        yield None  # so that closing it before the first window comes by here as well
        yield from windows(items, num_frames, stride)


class Reading(NamedTuple):
    """A video that a thread is reading.

    Attributes:
        stream: What is read.
        windows: What is cut from it, in the size that the network wants; closing it ends the thread.
    """

    stream: FrameStream
    windows: Generator[Window[SmallFrame]]


def open_source(source: Source, options: PredictOptions) -> FrameStream:
    """Open a source for reading at the rate that is wanted.

    Raises:
        InflateError: It cannot be opened.
    """
    with told_as_unreadable(source):
        return open_frames(source, fps=options.fps)


def begin_reading(source: Source, spec: ClipSpec, options: PredictOptions) -> Reading:
    """Open a source and read it in a thread, a few windows ahead.

    Raises:
        InflateError: The source cannot be opened; what turns out later is raised among its windows.
    """
    stream = open_source(source, options)
    frames = islice(small_frames(stream, spec.short_side), options.num_frames)
    return Reading(stream, cut_windows(frames, spec, options))


def color_views(
    frames: Sequence[Shown], spec: ClipSpec, kind: CropKind, *, dtype: torch.dtype = torch.float32
) -> Iterator[Tensor]:
    """Make the views `[3, t, crop, crop]` of a window one after the other, see `input_views`."""
    return input_views([frame.picture for frame in frames], spec, kind, dtype=dtype)


class Network(NamedTuple, Generic[T]):
    """A model, what it wants, and what makes its input.

    Attributes:
        model: Maps `[b, c, t, h, w]` to logits `[b, classes]`.
        spec: Of its clips.
        input_of: Maps the items of a window to its views `[c, t, h, w]`, made one after the other or stacked.
        at_a_time: Views that it is shown at a time.
    """

    model: nn.Module
    spec: ClipSpec
    input_of: Callable[[list[T]], Iterable[Tensor]]
    at_a_time: int

    def answers(self, cut: Iterator[Window[T]], crops: CropKind) -> Iterator[tuple[list[Window[T]], Tensor]]:
        """Give windows with their answers, as many at once as fit."""
        views = len(CROPS[crops](0, 0))
        batches = iter(lambda: list(islice(cut, max(self.at_a_time // views, 1))), [])
        unsettled = getattr(self.model, "unsettled", False)  # of Optimized, until its first answer
        yield from in_lanes(self.answer, batches, lanes_of(self.model), first_alone=unsettled)

    def answer(self, batch: list[Window[T]]) -> Tensor:
        """Give logits `[windows, classes]` in float32, averaged over the views.

        Raises:
            InflateError: The model does not answer with finite logits.
        """
        views = chain.from_iterable(self.input_of(window.frames) for window in batch)
        parts = []
        while shown := [view[None] for view in islice(views, self.at_a_time)]:
            parts.append(self._logits(torch.cat(shown) if len(shown) > 1 else shown[0]))
        logits = torch.cat(parts)
        return logits.view(len(batch), -1, logits.shape[-1]).mean(1)

    def _logits(self, views: Tensor) -> Tensor:
        model = self.model
        with torch.inference_mode():  # no window is asked again in float32, for they are averaged
            logits = model.call("forward", views) if isinstance(model, Optimized) else model(views)
        check_logits(logits, len(views), getattr(model, "class_names", None))
        found: Tensor = logits.float().cpu()
        return found


def views_at_a_time(model: nn.Module, spec: ClipSpec, options: PredictOptions) -> int:
    """Tell how many clips are shown to a model at a time: as many as the options say, or as memory allows."""
    shape = (1, int(getattr(model, "in_channels", 3)), options.window or spec.num_frames, spec.crop, spec.crop)

    def run_one() -> None:
        with not_compared(model), torch.inference_mode():
            model(torch.zeros(shape))

    return options.batch_size or clips_at_a_time(device_of(model), run_one)


@contextmanager
def not_compared(model: nn.Module) -> Iterator[None]:
    """Keep what bfloat16 is compared with for a clip of the user's: a blank one tells nothing."""
    exact = getattr(model, "exact", None)
    if exact is not None:
        model.exact = None  # type: ignore[assignment]  # of Optimized
    try:
        yield
    finally:
        if exact is not None:
            model.exact = exact


def check_logits(logits: object, num_views: int, class_names: Sized | None) -> None:
    """Refuse answers that are no finite logits `[num_views, classes]`, a class for each name.

    Raises:
        InflateError: They are not.
    """
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != num_views:
        raise InflateError(
            "the model does not answer with logits",
            where="predict",
            expected=f"a tensor [{num_views}, classes]",
            got=str(list(logits.shape)) if isinstance(logits, Tensor) else type(logits).__name__,
            fix="wrap it in a module that returns logits, averaged over time if there are several",
        )
    if class_names and len(class_names) != logits.shape[1]:
        raise InflateError(
            "names and classes differ in number",
            where="predict",
            expected=f"{logits.shape[1]} class_names, one for each logit, or None",
            got=f"{len(class_names)} class_names",
            fix="set model.class_names anew, or to None",
        )
    if not logits.isfinite().all():
        raise InflateError(
            "the model's answer is not a number",
            where="predict",
            expected="finite logits",
            got=f"{int((~logits.isfinite()).sum())} of {logits.numel()} are NaN or infinite",
            fix='check the weights (inflate3d weights verify), or take precision="fp32"',
        )
