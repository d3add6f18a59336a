"""A video and a classifier: its answer to every window and to the whole."""

import os
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from io import BytesIO
from itertools import chain, islice
from typing import TypeVar

import torch
from torch import Tensor, nn

from inflate3d.clips.clip import ClipSpec
from inflate3d.clips.sampling import Window
from inflate3d.clips.transforms import resize_picture
from inflate3d.clips.video import FrameStream, Source, source_name
from inflate3d.errors import InflateError, InflateWarning
from inflate3d.results.network import (
    Network,
    PredictOptions,
    Progress,
    Reading,
    SmallFrame,
    T,
    begin_reading,
    color_views,
    views_at_a_time,
)
from inflate3d.results.prediction import Failure, VideoPrediction, WindowPrediction, printable
from inflate3d.results.whole import answer_whole, begin_whole, logits_of_steps
from inflate3d.speed.memory import SteadyMemory, device_of, give_back_memory
from inflate3d.speed.optimize import Optimized, in_training, optimize

Begun = TypeVar("Begun")

KEY_FRAME_SHORT_SIDE = 128
CALIBRATION_CLIPS = 8
MOST_WORKERS = 8


def predict(
    model: nn.Module, source: Source, options: PredictOptions | None = None, *, progress: Progress | None = None
) -> VideoPrediction:
    """Show a video to a classifier window by window; memory does not grow with the video's length.

    The model is copied and made fast for each call: for several videos take `predict_many`, or pass the copy that
    `inflate3d.speed.optimize.optimize` makes.

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
    network = _color_network(model, [source], options)
    if options.whole:
        endpoint, steps = logits_of_steps(network)
        reading = begin_whole(source, network.spec, options)
        return answer_whole(endpoint, steps, reading, options=options, progress=progress)
    return _answer(network, begin_reading(source, network.spec, options), options, progress)


def predict_many(
    model: nn.Module,
    sources: Iterable[Source],
    options: PredictOptions | None = None,
    *,
    progress: Callable[[Source], Progress] | None = None,
) -> Iterator[VideoPrediction | Failure]:
    """Predict one source after the other; one that fails gives a `Failure` and does not end the run.

    An error that is not the source's ends it: one of the model's own code, or of `progress`.

    Args:
        model: As for `predict`, likewise `options`.
        sources: Files, folders of pictures, clips, arrays.
        options: How the videos are shown.
        progress: Called with each source when the network comes to it; gives back what `predict` calls.

    Returns:
        One answer or failure for each source, in order, as soon as it is there.

    Raises:
        InflateError: At once, for what would fail with every source: see `predict` about the model.

    Example:
        >>> from inflate3d import InceptionI3d
        >>> for answer in predict_many(InceptionI3d(num_classes=5).eval(), ["not-there.mp4"]):
        ...     print(type(answer).__name__, answer.source)
        Failure not-there.mp4
    """
    options, sources = options or PredictOptions(), iter(sources)
    first = list(islice(sources, CALIBRATION_CLIPS if options.precision == "int8" else 0))
    network = _color_network(model, first, options)
    beside_cpu = device_of(network.model).type == "cpu"
    if options.whole:
        endpoint, steps = logits_of_steps(network)
        return predict_each(
            lambda source: begin_whole(source, network.spec, options),
            lambda reading, told: answer_whole(endpoint, steps, reading, options=options, progress=told),
            chain(first, sources),
            progress=progress,
            workers=options.workers or 1,
        )
    return predict_each(
        lambda source: begin_reading(source, network.spec, options),
        lambda reading, told: _answer(network, reading, options, told),
        chain(first, sources),
        progress=progress,
        workers=options.workers or (2 if beside_cpu else min(os.cpu_count() or 1, MOST_WORKERS)),
    )


def predict_each(
    begin: Callable[[Source], Begun],
    finish: Callable[[Begun, Progress | None], VideoPrediction],
    sources: Iterable[Source],
    *,
    progress: Callable[[Source], Progress] | None = None,
    workers: int = 1,
) -> Iterator[VideoPrediction | Failure]:
    """Begin so many sources at once and finish one after the other; one that fails gives a `Failure`.

    A source fails with an `InflateError`, as which reading tells all that it meets (`told_as_unreadable`). Any other
    error comes from the model or from `progress`, would come again with the next source, and ends the run.

    Args:
        begin: Opens a source; may raise an `InflateError`.
        finish: Makes the answer from what `begin` gave.
        sources: Files, folders of pictures, clips, arrays.
        progress: Called with each source when its turn comes; gives back what `finish` calls.
        workers: Sources that are begun at a time.
    """
    for source, begun in _begun(begin, sources, workers):
        told = progress(source) if progress else None
        answer: VideoPrediction | Failure
        try:
            answer = Failure.of(source_name(source), begun) if isinstance(begun, InflateError) else finish(begun, told)
        except InflateError as error:
            answer = Failure.of(source_name(source), error)
        yield answer


def _begun(
    begin: Callable[[Source], Begun], sources: Iterable[Source], workers: int
) -> Iterator[tuple[Source, Begun | InflateError]]:
    """Give sources with what beginning them gave or raised, in order, `workers` of them begun at a time."""
    waiting: deque[tuple[Source, Begun | InflateError]] = deque()
    for source in sources:
        try:
            waiting.append((source, begin(source)))
        except InflateError as error:  # told when it is this one's turn
            waiting.append((source, error))
        if len(waiting) == workers:
            yield waiting.popleft()
    while waiting:
        yield waiting.popleft()


def optimize_for(model: nn.Module, sources: Sequence[Source], options: PredictOptions) -> Optimized:
    """Make the fast copy of a model that `predict` runs; its `steps` say what was done, and what int8 costs.

    Args:
        model: As for `predict`; one that is optimized already stays as it is, unless another precision is asked for.
        sources: For int8: the first windows of the first ones, 8 in all, calibrate it; those that cannot be read are
            left out, with a warning and float32 if none can.
        options: How the videos are shown.

    Raises:
        InflateError: See `predict` about the model; the extra `int8` is not installed.
    """
    return _optimized(model, check_model(model, options), sources, options)


def _optimized(model: nn.Module, spec: ClipSpec, sources: Sequence[Source], options: PredictOptions) -> Optimized:
    precision = options.precision
    if isinstance(model, Optimized) and precision == "fp32":  # the default asks for nothing
        return model
    clips: list[Tensor] = []
    if precision == "int8" and not isinstance(model, Optimized):
        clips = _calibration_clips(sources[:CALIBRATION_CLIPS], spec, options)
        if not clips:
            precision = "fp32"
            warnings.warn(
                "int8 has nothing to be calibrated with, because none of the first videos can be read; float32 is used",
                InflateWarning,
                stacklevel=3,
            )
    return optimize(model, precision, calibration=clips, compiled=options.compiled)


def _calibration_clips(sources: Sequence[Source], spec: ClipSpec, options: PredictOptions) -> list[Tensor]:
    clips: list[Tensor] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InflateWarning)  # the run meets warnings and errors again, and tells them
        for source in sources:
            with suppress(InflateError), closing(begin_reading(source, spec, options).windows) as found:
                few = islice(found, -(-CALIBRATION_CLIPS // len(sources)))
                clips += [next(color_views(window.frames, spec, "center"))[None] for window in few]
    return clips[:CALIBRATION_CLIPS]


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
    if in_training(model):
        raise InflateError(
            "the model is in training mode: it would answer at random and change",
            where="predict",
            expected="a model in eval mode",
            got=in_training(model),
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


def _color_network(model: nn.Module, sources: Sequence[Source], options: PredictOptions) -> Network[SmallFrame]:
    spec = check_model(model, options)
    fast = _optimized(model, spec, sources, options)
    dtype = torch.uint8 if fast.takes_uint8 else torch.float32

    def input_of(frames: list[SmallFrame]) -> Iterator[Tensor]:
        return color_views(frames, spec, options.crops, dtype=dtype)

    return Network[SmallFrame](fast, spec, input_of, views_at_a_time(fast, spec, options))


def _answer(
    network: Network[SmallFrame], reading: Reading, options: PredictOptions, progress: Progress | None
) -> VideoPrediction:
    answers = Answers(reading.stream, options)
    with closing(reading.windows) as cut:  # else an error's traceback keeps the thread alive that reads
        for batch, logits in network.answers(cut, options.crops):
            answers.add(batch, logits)
            if progress:
                progress(answers.windows[-1].end_seconds, reading.stream.duration_seconds_estimate)
    return answers.whole(getattr(network.model, "class_names", None))


class Answers:
    """The answers to the windows of a video, which become one to the whole."""

    def __init__(self, stream: FrameStream, options: PredictOptions) -> None:
        self.stream, self.options = stream, options
        self.memory = SteadyMemory()
        self.windows: list[WindowPrediction] = []
        self.num_new: list[int] = []  # frames that each window adds

    def add(self, batch: Sequence[Window[T]], logits: Tensor) -> None:
        """Take the logits `[windows, classes]` of a batch."""
        for window, row in zip(batch, logits, strict=True):
            self.windows.append(_window_prediction(window, row, self.options))
            self.num_new.append(window.num_new)
        self.memory.after_step()

    def whole(self, class_names: tuple[str, ...] | None) -> VideoPrediction:
        """Average over the windows, each weighted by the frames that it adds."""
        give_back_memory()
        share = torch.tensor(self.num_new, dtype=torch.float64) / sum(self.num_new)
        logits = (torch.stack([window.logits for window in self.windows]).double() * share[:, None]).sum(0)
        return VideoPrediction(
            source=printable(self.stream.source),
            num_frames=sum(self.num_new),
            fps=self.options.fps if isinstance(self.options.fps, str) else float(self.options.fps),
            logits=logits,
            windows=tuple(self.windows),
            class_names=class_names,
        )


def _window_prediction(window: Window[T], logits: Tensor, options: PredictOptions) -> WindowPrediction:
    seen = window.frames[: max(window.num_new, 1)] if window.start == 0 else window.frames
    key_frame = _small_jpeg(seen[len(seen) // 2].picture) if options.key_frames else None
    return WindowPrediction(seen[0].time_seconds, seen[-1].time_seconds, logits, key_frame)


def _small_jpeg(picture: Tensor) -> bytes:
    from PIL import Image  # noqa: PLC0415 - comes with torchvision

    buffer = BytesIO()
    Image.fromarray(resize_picture(picture, KEY_FRAME_SHORT_SIDE).numpy()).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()
