"""A video and a classifier: its answer to every window and to the whole."""

import ctypes
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import Generic, NamedTuple, Protocol, TypeVar, get_args

import torch
from torch import Tensor, nn

from inflate3d.checks import is_count, is_number
from inflate3d.clips.clip import ClipSpec
from inflate3d.clips.jpeg import encode_jpeg
from inflate3d.clips.sampling import Window, windows
from inflate3d.clips.transforms import CROPS, CropKind, frames_to_input, resize_picture
from inflate3d.clips.video import FrameStream, Rate, Source, open_frames, source_name
from inflate3d.errors import InflateError
from inflate3d.results.prediction import Failure, VideoPrediction, WindowPrediction, printable
from inflate3d.speed.ahead import ahead
from inflate3d.speed.optimize import Precision, optimize

Progress = Callable[[float, float | None], None]  # seconds done; seconds in all, as far as the header tells


class Shown(Protocol):
    """What windows are cut from: anything that a network is shown, with a picture and a time."""

    @property
    def picture(self) -> Tensor:
        """`[h, w, 3]` uint8."""

    @property
    def time_seconds(self) -> float:
        """Seconds since the first frame of the source."""


T = TypeVar("T", bound=Shown)

KEY_FRAME_SHORT_SIDE = 128
MIN_FPS = 1e-4  # exact_fps keeps four digits


@dataclass(frozen=True)
class PredictOptions:
    """How a video is shown to a network.

    Attributes:
        fps: Frames per second to take, or "native" for all; 25 is what I3D was trained on.
        num_frames: Stop after this many frames; None reads to the end.
        window: Frames in a window; None takes what the network was trained on. The paper tests on up to 250 at once.
        stride: Frames from one window to the next; None sets window beside window.
        crops: "center", "three", "five" or "ten"; the logits of several crops are averaged.
        precision: "fp32", or "bf16" for autocast to bfloat16, faster where the processor knows it.
        batch_size: Windows that go through the network at a time; more need more memory.
        key_frames: Keep the middle frame of each window as a small JPEG, for reports.
    """

    fps: Rate = 25.0
    num_frames: int | None = None
    window: int | None = None
    stride: int | None = None
    crops: CropKind = "center"
    precision: Precision = "fp32"
    batch_size: int = 1
    key_frames: bool = False

    def __post_init__(self) -> None:
        rate_fits = self.fps == "native" or (is_number(self.fps) and float(self.fps) >= MIN_FPS)
        checks = [
            ("fps", f"a number of {MIN_FPS} or more, or native", rate_fits),
            ("num_frames", "1 or more, or None", self.num_frames is None or is_count(self.num_frames)),
            ("window", "1 or more, or None", self.window is None or is_count(self.window)),
            ("stride", "1 or more, or None", self.stride is None or is_count(self.stride)),
            ("crops", ", ".join(CROPS), self.crops in CROPS),
            ("precision", ", ".join(get_args(Precision)), self.precision in get_args(Precision)),
            ("batch_size", "1 or more", is_count(self.batch_size)),
        ]
        faults = [f"{name}={getattr(self, name)!r}, allowed is {allowed}" for name, allowed, fits in checks if not fits]
        if faults:
            raise InflateError(
                "an option is out of range",
                where="PredictOptions",
                expected="see `inflate3d predict --help`",
                got="; ".join(faults),
                fix="change it to an allowed value",
            )


def predict(
    model: nn.Module, source: Source, options: PredictOptions | None = None, *, progress: Progress | None = None
) -> VideoPrediction:
    """Show a video to a classifier window by window; memory does not grow with the video's length.

    Windows have the length the network was trained on; what is left over at the end is covered by a last window that
    reaches back, and a video shorter than a window is looped. The answer to the whole is the mean of the windows'
    logits, each weighted by the frames that it adds.

    Args:
        model: A classifier with a `clip_spec` (and `class_names`), such as `inflate3d.load("i3d-kinetics400")`.
        source: Video file, folder of pictures, `Clip` or array (see `open_frames`).
        options: How the video is shown; the defaults are those of the paper.
        progress: Called after each batch of windows.

    Raises:
        InflateError: The source cannot be read; the model does not say what it wants to be fed, is in training mode,
            cannot run on so short a window, or does not answer with finite logits `[b, classes]`.

    Source: Carreira & Zisserman 2017, section 2.5 (25 fps, short side 256, centre crop 224, short videos looped; the
    paper averages over one pass of the whole video, here over windows of its training length, so that memory is
    bounded).

    Example:
        >>> import numpy as np
        >>> from inflate3d import InceptionI3d
        >>> answer = predict(InceptionI3d(num_classes=5).eval(), np.zeros((20, 32, 40, 3), np.uint8))
        >>> answer.num_frames, answer.logits.shape, len(answer.windows)
        (20, torch.Size([5]), 1)
    """
    options = options or PredictOptions()
    spec = check_model(model, options)
    network = Network[SmallFrame](
        optimize(model, options.precision),
        lambda frames: frames_to_input([frame.picture for frame in frames], spec, options.crops),
    )
    stream = open_frames(source, fps=options.fps)
    cut = cut_windows(islice(small_frames(stream, spec.short_side), options.num_frames), spec, options)
    answers = Answers(stream, options)
    for batch in batches(cut, options.batch_size):
        answers.add(batch, network.answer(batch))
        if progress:
            progress(answers.windows[-1].end_seconds, stream.duration_seconds_estimate)
    return answers.whole(getattr(model, "class_names", None))


def predict_many(
    model: nn.Module,
    sources: Iterable[Source],
    options: PredictOptions | None = None,
    *,
    progress: Callable[[Source], Progress] | None = None,
) -> Iterator[VideoPrediction | Failure]:
    """Predict one source after the other; one that fails gives a `Failure` and does not end the run.

    Args:
        model: As for `predict`, likewise `options`.
        sources: Files, folders of pictures, clips, arrays.
        options: How the videos are shown.
        progress: Called with each source before it is read; gives back what `predict` calls.

    Returns:
        One answer or failure for each source, in order, as soon as it is there.

    Raises:
        InflateError: At once, for what would fail with every source: see `predict` about the model.
    """
    options = options or PredictOptions()
    check_model(model, options)
    fast = optimize(model, options.precision)
    return predict_each(lambda source, told: predict(fast, source, options, progress=told), sources, progress)


def predict_each(
    run: Callable[[Source, Progress | None], VideoPrediction],
    sources: Iterable[Source],
    progress: Callable[[Source], Progress] | None = None,
) -> Iterator[VideoPrediction | Failure]:
    """Run one source after the other; one that fails gives a `Failure`."""
    for source in sources:
        try:
            yield run(source, progress(source) if progress else None)
        except InflateError as error:
            yield Failure(printable(source_name(source)), printable(str(error)))
        except Exception as error:  # whatever a strange file sets off must not cost the results of the others
            yield Failure(printable(source_name(source)), printable(f"{type(error).__name__}: {error}"))


def check_model(model: nn.Module, options: PredictOptions) -> ClipSpec:
    """Find out before anything is read what would fail with every source.

    Raises:
        InflateError: See `predict` about the model.
    """
    spec = getattr(model, "clip_spec", None)
    if not isinstance(spec, ClipSpec):
        raise InflateError(
            "the model does not say what it wants to be fed",
            where="predict",
            expected="a model with an attribute clip_spec (frames per second, window, size, range)",
            got=f"{type(model).__name__} without one",
            fix="set model.clip_spec = inflate3d.ClipSpec(...)",
        )
    training = [name or type(model).__name__ for name, module in model.named_modules() if module.training]
    if training:
        raise InflateError(
            "the model is in training mode: it would answer at random and change",
            where="predict",
            expected="a model in eval mode",
            got=f"training mode in {', '.join(training[:3])}" + ", ..." * (len(training) > 3),
            fix="model.eval()",
        )
    if options.window is not None and options.window < spec.min_frames:
        raise InflateError(
            "the window is too short for the network",
            where="predict",
            expected=f"window >= {spec.min_frames}; it learned on {spec.num_frames} frames",
            got=f"window={options.window}",
            fix=f"leave it out, or pass window={spec.min_frames} or more",
        )
    return spec


class SmallFrame(NamedTuple):
    """A frame in the size that the network wants.

    Attributes:
        picture: `[h, w, 3]` uint8.
        time_seconds: Seconds since the first frame of the source.
    """

    picture: Tensor
    time_seconds: float


def small_frames(stream: FrameStream, short_side: int) -> Iterator[SmallFrame]:
    """Resize each frame as it comes, so that only small ones wait for their window."""
    for frame in stream:
        yield SmallFrame(resize_picture(frame.picture, short_side), frame.time_seconds)


def cut_windows(items: Iterator[T], spec: ClipSpec, options: PredictOptions) -> Iterator[Window[T]]:
    """Cut a stream as the options say, working ahead in a thread."""
    length = options.window or spec.num_frames
    return ahead(windows(items, length, options.stride or length))


def batches(cut: Iterator[Window[T]], size: int) -> Iterator[list[Window[T]]]:
    """Take so many windows at a time."""
    while batch := list(islice(cut, size)):
        yield batch


class Network(NamedTuple, Generic[T]):
    """A model and what makes its input.

    Attributes:
        model: Maps `[b, c, t, h, w]` to logits `[b, classes]`.
        input_of: Maps the items of a window to its views `[views, c, t, h, w]`.
    """

    model: nn.Module
    input_of: Callable[[list[T]], Tensor]

    def answer(self, batch: list[Window[T]]) -> Tensor:
        """Give logits `[windows, classes]` in float32, averaged over the views.

        Raises:
            InflateError: The model does not answer with finite logits.
        """
        clip = torch.cat([self.input_of(window.frames) for window in batch])
        with torch.inference_mode():
            logits = self.model(clip)
        _check_logits(logits, len(clip), getattr(self.model, "class_names", None))
        per_window: Tensor = logits.float().view(len(batch), -1, logits.shape[-1]).mean(1).cpu()
        return per_window


class Answers:
    """The answers to the windows of a video, which become one to the whole."""

    def __init__(self, stream: FrameStream, options: PredictOptions) -> None:
        self.stream, self.options = stream, options
        self.windows: list[WindowPrediction] = []
        self.weights: list[int] = []

    def add(self, batch: Sequence[Window[T]], logits: Tensor) -> None:
        """Take the logits `[windows, classes]` of a batch."""
        for window, row in zip(batch, logits, strict=True):
            self.windows.append(_window_prediction(window, row, self.options))
            self.weights.append(window.num_new)
        _give_back_memory()

    def whole(self, class_names: tuple[str, ...] | None) -> VideoPrediction:
        """Average over the windows, each weighted by the frames that it adds."""
        share = torch.tensor(self.weights, dtype=torch.float64) / sum(self.weights)
        logits = (torch.stack([window.logits for window in self.windows]).double() * share[:, None]).sum(0)
        return VideoPrediction(
            source=printable(self.stream.source),
            num_frames=sum(self.weights),
            fps=None if isinstance(self.options.fps, str) else float(self.options.fps),
            logits=logits,
            windows=tuple(self.windows),
            class_names=class_names,
        )


@cache
def _malloc_trim() -> Callable[[int], object] | None:
    return getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None


def _give_back_memory() -> None:
    """Return freed memory to the system; glibc would keep what lies between living frames, more with each window."""
    trim = _malloc_trim()
    if trim:
        trim(0)


def _check_logits(logits: object, num_views: int, class_names: Sized | None) -> None:
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


def _window_prediction(window: Window[T], logits: Tensor, options: PredictOptions) -> WindowPrediction:
    seen = window.frames[: max(window.num_new, 1)] if window.start == 0 else window.frames
    key_frame = (
        encode_jpeg(resize_picture(seen[len(seen) // 2].picture, KEY_FRAME_SHORT_SIDE)) if options.key_frames else None
    )
    return WindowPrediction(seen[0].time_seconds, seen[-1].time_seconds, logits, key_frame)
