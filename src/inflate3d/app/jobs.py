"""What several visitors at once may ask of one network: uploads are checked, work is bounded, everybody gets a turn."""

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from time import monotonic

import av
import torch
from torch import Tensor, nn

from inflate3d.clips.clip import ClipSpec
from inflate3d.clips.decoding import at_most, frame_interval, open_container, video_stream
from inflate3d.errors import InflateError, check_options, is_count, is_number, list_faults
from inflate3d.results.feature_network import EndpointNetwork
from inflate3d.results.feature_presets import FeatureOptions
from inflate3d.results.features import Extractor
from inflate3d.results.network import PredictOptions, Progress
from inflate3d.results.predict import optimize_for, predict
from inflate3d.results.prediction import VideoPrediction, printable
from inflate3d.show.saliency import Saliency, SaliencyOptions, find_saliency

MEGABYTE = 2**20  # bytes, as gradio counts them when it refuses a file
MOST_FRAMES_PER_SECOND = 240  # of a video, on average; what is beyond is made to keep a decoder busy
FEWEST_STEPS, MOST_STEPS = 16, 12  # frames from one window to the next, at least; windows of a short video
COMPARED_WINDOWS = 16  # of each video, at most
LONGEST_NAME = 80  # letters of a file's name that are shown
EVERY_PIXEL = 3840 * 2160


@dataclass(frozen=True)
class Limits:
    """What a visitor may send and ask for.

    Attributes:
        megabytes: Of a file.
        seconds: Of a video.
        pixels: Of a frame.
        work_seconds: Of the network's time, for one question.

    Raises:
        InflateError: A limit is no number above 0.

    Example:
        >>> Limits(seconds=30).megabytes
        100
    """

    megabytes: float = 100
    seconds: float = 120
    pixels: int = EVERY_PIXEL
    work_seconds: float = 180

    def __post_init__(self) -> None:
        above = {name: getattr(self, name) for name in ("megabytes", "seconds", "work_seconds")}
        rules = {name: ("a number above 0", is_number(value) and value > 0) for name, value in above.items()}
        check_options(self, {**rules, "pixels": ("1 or more", is_count(self.pixels))})


@dataclass(frozen=True)
class Upload:
    """A file that a visitor sent, checked.

    Attributes:
        path: Where it lies.
        name: What the visitor called it, for showing; not to be trusted.
        seconds: Of its video, from the first frame to the end of the last.
    """

    path: Path
    name: str
    seconds: float


def check_upload(given: str | Path | None, limits: Limits, folder: Path) -> Upload:
    """Find out what was sent before anything is decoded: its size, its length by the times of all packets, its pixels.

    Args:
        given: The file.
        limits: What is allowed.
        folder: Uploads lie in it; nothing else is opened.

    Raises:
        InflateError: There is none, it is too large, or it is no video; several faults are told together.
    """
    path = Path(given or "").resolve()
    if given is None or not path.is_file() or not path.is_relative_to(folder.resolve()):
        raise InflateError(
            "there is no video",
            where="upload",
            expected="a video file, or a recording",
            got="nothing" if given is None else "an upload that is not here, or not any more",
            fix="upload one",
        )
    name = _shown(path.name)
    size = path.stat().st_size
    if size > limits.megabytes * MEGABYTE:
        raise _too_large(name, [(f"{limits.megabytes:g} MB", f"{size / MEGABYTE:.1f} MB")])
    with without_paths(path, name):
        pixels, num_frames, seconds = _measure(path)
    side = f"{pixels[0]} x {pixels[1]} pixels"
    most_frames = ceil(limits.seconds * MOST_FRAMES_PER_SECOND)
    faults = [(f"frames of {limits.pixels:,} pixels", side)] * (pixels[0] * pixels[1] > limits.pixels)
    faults += [(f"{limits.seconds:g} seconds", f"{seconds:.1f} seconds")] * (seconds > limits.seconds)
    faults += [(f"{most_frames:,} frames", f"{num_frames:,} frames")] * (num_frames > most_frames)
    if faults:
        raise _too_large(name, faults)
    return Upload(path, name, seconds)


def _measure(path: Path) -> tuple[tuple[int, int], int, float]:
    """Tell width and height, how many frames there are and how long they last, by their own times: headers may lie."""
    with open_container(path) as container:
        stream = video_stream(container, path)
        size = stream.codec_context.width, stream.codec_context.height
        interval, times, num_frames = float(frame_interval(stream)), [], 0
        with suppress(av.FFmpegError):  # damage: reading it tells what is lost
            for packet in container.demux(stream):
                num_frames += bool(packet.size)
                if packet.pts is not None and packet.time_base:
                    times.append(float(packet.pts * packet.time_base))
    lasted = max(times) - min(times) + interval if times else num_frames * interval
    return size, num_frames, lasted


def _shown(name: str) -> str:
    name = printable(name)
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME // 2]}…{name[-LONGEST_NAME // 2 :]}"


def _too_large(name: str, faults: list[tuple[str, str]]) -> InflateError:
    return InflateError(
        "the video is too large for this page",
        where=name,
        expected="at most " + list_faults(allowed for allowed, _ in faults),
        got=list_faults(got for _, got in faults),
        fix="cut or scale it: ffmpeg -i IN.mp4 -t 10 -vf scale=-2:360 OUT.mp4",
    )


@contextmanager
def without_paths(path: Path, name: str) -> Iterator[None]:
    """Tell errors about an upload by the name its owner knows: where it lies here is nobody's business.

    Raises:
        InflateError: The block raises one.

    Example:
        >>> try:
        ...     with without_paths(Path("/tmp/x/a.mp4"), "a.mp4"):
        ...         raise InflateError("p", where="/tmp/x/a.mp4", expected="e", got="g", fix="ffprobe /tmp/x/a.mp4")
        ... except InflateError as error:
        ...     error.where, error.fix
        ('a.mp4', 'ffprobe a.mp4')
    """
    try:
        yield
    except InflateError as error:
        where, expected, got, fix = (
            text.replace(str(path), name) for text in (error.where, error.expected, error.got, error.fix)
        )
        problem = error.problem.replace(str(path), name)
        raise InflateError(problem, where=where, expected=expected, got=got, fix=fix) from None


class Turns:
    """Lets jobs use one network step by step, in the order in which they ask for a step.

    A job asks anew for each window, so that a short video beside a long one waits for single windows of it. Each job
    has so many seconds of the network's time; waiting costs none.

    Example:
        >>> turns = Turns()
        >>> with turns.job(seconds=10):
        ...     with turns.turn():
        ...         pass
    """

    def __init__(self) -> None:
        self._change = threading.Condition()
        self._waiting = deque[object]()
        self._own = threading.local()

    @contextmanager
    def job(self, seconds: float) -> Iterator[None]:
        """Give what this thread does in the block so many seconds of the network's time."""
        self._own.left, self._own.given = seconds, seconds
        try:
            yield
        finally:
            self._own.left = None

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wait for a turn, and hold it in the block; a block in a block belongs to the same turn.

        Raises:
            InflateError: The job has used up its time.
        """
        self.take()
        try:
            self._check_time()
            yield
        finally:
            self.give()

    def take(self) -> None:
        """Wait for a turn."""
        self._own.depth = getattr(self._own, "depth", 0) + 1
        if self._own.depth > 1:
            return
        me = object()
        with self._change:
            self._waiting.append(me)
            self._change.wait_for(lambda: self._waiting[0] is me)
        self._own.began = monotonic()

    def give(self) -> None:
        """End a turn."""
        self._own.depth -= 1
        if self._own.depth:
            return
        if getattr(self._own, "left", None) is not None:
            self._own.left -= monotonic() - self._own.began
        with self._change:
            self._waiting.popleft()
            self._change.notify_all()

    def pass_on(self) -> None:
        """Let the others have a turn first, inside a turn of one's own.

        Raises:
            InflateError: The job has used up its time.
        """
        self.give()
        self.take()
        self._check_time()

    def _check_time(self) -> None:
        left = getattr(self._own, "left", None)
        if left is not None and left <= 0:
            raise InflateError(
                "this takes longer than a visitor may use the network",
                where="network",
                expected=f"at most {self._own.given:g} seconds of its time",
                got=f"{self._own.given - left:.1f} seconds so far",
                fix="a shorter video, or on your own machine: inflate3d predict FILE",
            )

    def guard(self, model: nn.Module) -> None:
        """Make each run of a model a turn."""

        def before(module: nn.Module, args: object) -> None:
            self.take()  # given back behind the run, also if the run does not come about
            self._check_time()

        def behind(module: nn.Module, args: object, output: object) -> None:
            self.give()

        model.register_forward_pre_hook(before)
        model.register_forward_hook(behind, always_call=True)


class _InTurn(EndpointNetwork):
    """A network for features that takes turns: it listens to a module that others run as well."""

    def __init__(self, network: EndpointNetwork, turns: Turns) -> None:
        vars(self).update(vars(network))
        self.turns = turns

    def __call__(self, clips: Tensor) -> Tensor:
        with self.turns.turn():
            return super().__call__(clips)


@dataclass(frozen=True, eq=False)
class Comparison:
    """How alike two videos are to the network.

    Attributes:
        names: Of both.
        times_seconds: Of the middles of their windows, each `[windows]`.
        cosines: Of the features of each window of the first with each of the second, `[windows, windows]`, float64.
        whole: Of the mean features of both.
    """

    names: tuple[str, str]
    times_seconds: tuple[Tensor, Tensor]
    cosines: Tensor
    whole: float


class Desk:
    """A network that answers several visitors at once.

    Args:
        model: A classifier with a `clip_spec`, in eval mode.
        name: What it is called.
        limits: What each visitor may ask for.

    Raises:
        InflateError: The model is none that `predict` takes.
    """

    def __init__(self, model: nn.Module, name: str, limits: Limits) -> None:
        self.name, self.limits, self.model, self.turns = name, limits, model, Turns()
        self.fast = optimize_for(model, [], PredictOptions())
        self.turns.guard(self.fast)
        self.spec: ClipSpec = model.clip_spec  # type: ignore[assignment]  # optimize_for has seen to it

    def predict(self, upload: Upload, progress: Progress | None = None) -> VideoPrediction:
        """Answer a video; the windows of a short one overlap, so that there is a timeline.

        Raises:
            InflateError: It cannot be read, or takes too long.
        """
        stride = self._stride(upload, MOST_STEPS, most=self.spec.num_frames)
        num_frames = ceil(self.limits.seconds * self.spec.fps) + 1
        options = PredictOptions(fps=self.spec.fps, num_frames=num_frames, stride=stride, key_frames=True)
        with self._job(upload, self.limits.work_seconds):
            answer = predict(self.fast, upload.path, options, progress=progress)
        return replace(answer, source=upload.name)

    def compare(self, first: Upload, second: Upload) -> Comparison:
        """Compare the features of two videos, window by window and as a whole.

        Raises:
            InflateError: One cannot be read, or they take too long.
        """
        found = []
        for upload in (first, second):
            stride = self._stride(upload, COMPARED_WINDOWS)
            options = FeatureOptions(fps=self.spec.fps, stride=stride, tail="right-align")
            extractor = Extractor({"rgb": self.fast}, options)
            extractor.networks["rgb"] = _InTurn(extractor.networks["rgb"], self.turns)
            with self._job(upload, self.limits.work_seconds / 2):
                found.append(extractor.one(upload.path))
        rows = [one.features["rgb"].flatten(1).double() for one in found]
        a, b = (torch.nn.functional.normalize(row, dim=1) for row in rows)
        whole = torch.nn.functional.cosine_similarity(rows[0].mean(0), rows[1].mean(0), dim=0)
        times = found[0].times_seconds, found[1].times_seconds
        return Comparison((first.name, second.name), times, a @ b.T, float(whole))

    def saliency(self, upload: Upload, class_index: int) -> Saliency:
        """Show where the network looks for a class, in the first seconds of a video.

        Raises:
            InflateError: It cannot be read, or takes too long.
        """
        options = SaliencyOptions(label=class_index, fps=self.spec.fps)
        with self._job(upload, self.limits.work_seconds), self.turns.turn():
            return find_saliency(self.model, upload.path, options, progress=lambda *_: self.turns.pass_on())

    @contextmanager
    def _job(self, upload: Upload, seconds: float) -> Iterator[None]:
        """Bound the work in the block, and what its frames grow to: the header tells of the first one alone."""
        with without_paths(upload.path, upload.name), self.turns.job(seconds), at_most(self.limits.pixels):
            yield

    def _stride(self, upload: Upload, windows: int, *, most: int | None = None) -> int:
        """Spread so many windows over a video, not too close and, where asked, none beyond the one before."""
        room = upload.seconds * self.spec.fps - self.spec.num_frames
        stride = max(ceil(room / max(windows - 1, 1)), FEWEST_STEPS)
        return min(stride, most) if most else stride
