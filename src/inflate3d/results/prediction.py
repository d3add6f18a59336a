"""What a classifier says about a video: plain data, from one score up to a run over many files, and its files."""

import csv
import json
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from inflate3d.atomic import replacing
from inflate3d.errors import InflateError

COLUMNS = ("source", "window", "start_seconds", "end_seconds", "rank", "label", "index", "probability", "logit")


@dataclass(frozen=True)
class Score:
    """One class and how sure the network is of it.

    Attributes:
        label: The class name, or `class 17` where the network brings no names.
        index: Place of the class in the network's output.
        probability: Softmax over all classes.
        logit: The network's raw answer.
    """

    label: str
    index: int
    probability: float
    logit: float


@dataclass(frozen=True, eq=False)
class WindowPrediction:
    """The answer to one window of frames.

    Attributes:
        start_seconds: Time of the first frame, counted from the first frame of the video.
        end_seconds: Time of the last frame.
        logits: `[classes]`, float32.
        key_frame: The middle frame as a small JPEG, if asked for.
    """

    start_seconds: float
    end_seconds: float
    logits: Tensor = field(repr=False)
    key_frame: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True, eq=False)
class VideoPrediction:
    """The answer to a whole video.

    Attributes:
        source: File or folder.
        num_frames: Frames the network was given, after resampling and before looping.
        fps: Frames per second they were taken at, or "native" for the video's own.
        logits: `[classes]`, float64: the mean over windows, each weighted by the frames that only it adds.
        windows: In order of time.
        class_names: One for each logit, or None.
        streams: Of a joint answer, those of its parts ("rgb", "flow"); otherwise empty.
    """

    source: str
    num_frames: int
    fps: float | Literal["native"]
    logits: Tensor = field(repr=False)
    windows: tuple[WindowPrediction, ...] = field(repr=False)
    class_names: tuple[str, ...] | None = field(default=None, repr=False)
    streams: Mapping[str, "VideoPrediction"] = field(default_factory=dict, repr=False)

    def top(self, k: int = 5) -> tuple[Score, ...]:
        """Rank the k likeliest classes of the whole video."""
        return top_scores(self.logits, self.class_names, k)


@dataclass(frozen=True)
class Failure:
    """A source that gave no answer, and why."""

    source: str
    reason: str

    @staticmethod
    def of(source: str, error: Exception) -> "Failure":
        """Tell why a source failed: in four lines, or for an error that nobody foresaw with the place it comes from."""
        return Failure(printable(source), printable(reason_of(error)))


def reason_of(error: Exception) -> str:
    """Tell an error in words; one that is no `InflateError` with its class and the place it comes from.

    Example:
        >>> reason_of(KeyError("frames"))  # nothing raised it here
        "KeyError: 'frames'"
    """
    if isinstance(error, InflateError):
        return str(error)
    places = [f" ({at.name}, {Path(at.filename).name}:{at.lineno})" for at in traceback.extract_tb(error.__traceback__)]
    return f"{type(error).__name__}: {error}" + "".join(places[-1:])


def rate_text(fps: float | Literal["native"]) -> str:
    """Write a rate of frames in words.

    Example:
        >>> rate_text(29.97), rate_text("native")
        ('29.97 fps', 'native rate')
    """
    return "native rate" if isinstance(fps, str) else f"{fps:g} fps"


def printable(text: str) -> str:
    r"""Write the bytes of a file name that are no UTF-8 as `\udcXX`, so that any file or terminal can hold it.

    Example:
        >>> printable("caf\u00e9 \udcff.mp4").endswith(r"\udcff.mp4")
        True
    """
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def top_scores(logits: Tensor, class_names: Sequence[str] | None, k: int = 5) -> tuple[Score, ...]:
    """Rank the k likeliest classes of `[classes]` logits.

    Example:
        >>> top_scores(torch.tensor([0.0, 2.0, 1.0]), ["run", "jump", "swim"], k=1)[0].label
        'jump'
    """
    exact = logits.double()
    probabilities = exact.softmax(0)
    order = torch.argsort(exact, descending=True, stable=True)[:k].tolist()
    return tuple(
        Score(class_names[i] if class_names else f"class {i}", i, float(probabilities[i]), float(exact[i]))
        for i in order
    )


def to_json(
    predictions: Sequence[VideoPrediction], failures: Sequence[Failure] = (), *, settings: Mapping[str, str], k: int = 5
) -> str:
    """Write a run as JSON: `settings`, `videos` (each with its `top` classes and `windows`) and `failures`.

    Raises:
        ValueError: A logit is NaN or infinite, for which JSON has no word; `predict` gives none.

    Example:
        >>> json.loads(to_json([], [Failure("a.mp4", "it is empty")], settings={"fps": "25"}))["failures"]
        [{'source': 'a.mp4', 'reason': 'it is empty'}]
    """
    document = {
        "settings": dict(settings),
        "videos": [_video(prediction, k) for prediction in predictions],
        "failures": [{"source": failure.source, "reason": failure.reason} for failure in failures],
    }
    return json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def write_csv(path: Path, predictions: Sequence[VideoPrediction], k: int = 5) -> None:
    """Write a row for each rank of each window, and of each whole video (`window` is `all`); whole or not at all.

    Columns: `COLUMNS`; times in seconds from the first frame of the video.

    Example:
        >>> import tempfile
        >>> window = WindowPrediction(0.0, 2.5, torch.tensor([0.0, 1.0]))
        >>> answer = VideoPrediction("a.mp4", 64, 25.0, torch.tensor([0.0, 1.0]), (window,), ("run", "jump"))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_csv(Path(folder) / "a.csv", [answer], k=1)
        ...     (Path(folder) / "a.csv").read_text().splitlines()[1]
        'a.mp4,all,0.000,2.500,1,jump,1,0.731059,1.000000'
    """
    with replacing(path) as draft, draft.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for video in predictions:
            end = video.windows[-1].end_seconds
            spans = [("all", 0.0, end, video.top(k))]
            for number, window in enumerate(video.windows):
                top = top_scores(window.logits, video.class_names, k)
                spans.append((str(number), window.start_seconds, window.end_seconds, top))
            for name, start, stop, top in spans:
                for rank, score in enumerate(top, start=1):
                    values = (rank, score.label, score.index, f"{score.probability:.6f}", f"{score.logit:.6f}")
                    writer.writerow((video.source, name, f"{start:.3f}", f"{stop:.3f}", *values))


def _video(video: VideoPrediction, k: int) -> dict[str, Any]:
    windows = [
        {
            "start_seconds": round(window.start_seconds, 6),
            "end_seconds": round(window.end_seconds, 6),
            "top": _scores(top_scores(window.logits, video.class_names, k)),
        }
        for window in video.windows
    ]
    found = {
        "source": video.source,
        "num_frames": video.num_frames,
        "fps": video.fps,
        "top": _scores(video.top(k)),
        "windows": windows,
    }
    streams = {name: {"top": _scores(stream.top(k))} for name, stream in video.streams.items()}
    return {**found, "streams": streams} if streams else found


def _scores(scores: Sequence[Score]) -> list[dict[str, Any]]:
    return [
        {
            "label": score.label,
            "index": score.index,
            "probability": round(score.probability, 8),
            "logit": round(score.logit, 6),
        }
        for score in scores
    ]
