"""What a classifier says about a video: plain data, from one score up to a run over many files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


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


@dataclass(frozen=True)
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


@dataclass(frozen=True)
class VideoPrediction:
    """The answer to a whole video.

    Attributes:
        source: File or folder.
        num_frames: Frames the network was given, after resampling and before looping.
        fps: Frames per second they were taken at, or None for the video's own.
        logits: `[classes]`: the mean over windows, each weighted by the frames that only it adds.
        windows: In order of time.
        class_names: One for each logit, or None.
        streams: Of a joint answer, those of its parts ("rgb", "flow"); otherwise empty.
    """

    source: str
    num_frames: int
    fps: float | None
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
