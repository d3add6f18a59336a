"""A video and a classifier: its answer to every window and to the whole."""

from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import dataclass
from itertools import chain, islice
from typing import Literal, NamedTuple, get_args

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

Precision = Literal["fp32", "bf16"]
Progress = Callable[[float, float | None], None]  # seconds done; seconds in all, as far as the header tells

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
    spec = _check_model(model, options)
    stream = open_frames(source, fps=options.fps)
    found: list[WindowPrediction] = []
    weights: list[int] = []
    length = options.window or spec.num_frames
    cut = windows(_small_frames(stream, spec, options), length, options.stride or length)
    for batch in _batches(cut, options.batch_size):
        for window, logits in zip(batch, _answer(model, batch, spec, options), strict=True):
            found.append(_window_prediction(window, logits, options))
            weights.append(window.num_new)
        if progress:
            progress(found[-1].end_seconds, stream.duration_seconds_estimate)
    share = torch.tensor(weights, dtype=torch.float64) / sum(weights)
    logits = (torch.stack([window.logits for window in found]).double() * share[:, None]).sum(0)
    return VideoPrediction(
        source=printable(stream.source),
        num_frames=sum(weights),
        fps=None if isinstance(options.fps, str) else float(options.fps),
        logits=logits,
        windows=tuple(found),
        class_names=getattr(model, "class_names", None),
    )


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
    _check_model(model, options or PredictOptions())
    return _predict_each(model, sources, options, progress)


def _predict_each(
    model: nn.Module,
    sources: Iterable[Source],
    options: PredictOptions | None,
    progress: Callable[[Source], Progress] | None,
) -> Iterator[VideoPrediction | Failure]:
    for source in sources:
        try:
            yield predict(model, source, options, progress=progress(source) if progress else None)
        except InflateError as error:
            yield Failure(printable(source_name(source)), printable(str(error)))
        except Exception as error:  # whatever a strange file sets off must not cost the results of the others
            yield Failure(printable(source_name(source)), printable(f"{type(error).__name__}: {error}"))


def _check_model(model: nn.Module, options: PredictOptions) -> ClipSpec:
    """Find out before anything is read what would fail with every source."""
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


class _SmallFrame(NamedTuple):
    picture: Tensor  # [h, w, 3] uint8
    time_seconds: float


def _small_frames(stream: FrameStream, spec: ClipSpec, options: PredictOptions) -> Iterator[_SmallFrame]:
    """Resize each frame as it comes, so that only small ones wait for their window."""
    for frame in islice(stream, options.num_frames):
        yield _SmallFrame(resize_picture(frame.picture, spec.short_side), frame.time_seconds)


def _batches(cut: Iterator[Window[_SmallFrame]], size: int) -> Iterator[list[Window[_SmallFrame]]]:
    while batch := list(islice(cut, size)):
        yield batch


def _answer(model: nn.Module, batch: list[Window[_SmallFrame]], spec: ClipSpec, options: PredictOptions) -> Tensor:
    """Give logits `[windows, classes]` in float32, averaged over the crops."""
    clips = [frames_to_input([frame.picture for frame in window.frames], spec, options.crops) for window in batch]
    clip = torch.cat(clips)
    values = chain(model.parameters(), model.buffers())
    like = next((value for value in values if value.is_floating_point()), clip)  # a module may have none
    device = like.device
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=options.precision == "bf16"):
        logits = model(clip.to(device, like.dtype))
    _check_logits(logits, len(clip), getattr(model, "class_names", None))
    per_window: Tensor = logits.float().view(len(batch), -1, logits.shape[-1]).mean(1).cpu()
    return per_window


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


def _window_prediction(window: Window[_SmallFrame], logits: Tensor, options: PredictOptions) -> WindowPrediction:
    seen = window.frames[: max(window.num_new, 1)] if window.start == 0 else window.frames
    key_frame = (
        encode_jpeg(resize_picture(seen[len(seen) // 2].picture, KEY_FRAME_SHORT_SIDE)) if options.key_frames else None
    )
    return WindowPrediction(seen[0].time_seconds, seen[-1].time_seconds, logits, key_frame)
