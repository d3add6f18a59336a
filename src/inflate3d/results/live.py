"""A live source and a classifier: a running answer, never far behind."""

import time
from collections import deque
from collections.abc import Iterator
from contextlib import closing
from typing import NamedTuple

import torch
from torch import Tensor, nn

from inflate3d.clips.live import LiveFrames
from inflate3d.clips.transforms import input_views
from inflate3d.results.network import PredictOptions, check_logits
from inflate3d.results.predict import check_model
from inflate3d.results.prediction import Score, top_scores
from inflate3d.speed.optimize import Precision, optimize
from inflate3d.speed.stream import Stream

SHOWN_STEPS = 8  # of which the running answer is the mean: I3D's 64 frames


class LiveAnswer(NamedTuple):
    """What a network says at a moment.

    Attributes:
        time_seconds: Of the last frame that it has seen, since the first frame of the source.
        delay_seconds: From that frame's arrival to this answer. A network that looks ahead speaks of what was before:
            I3D of the frames about two seconds earlier.
        logits: `[classes]`, the mean of the last steps.
        num_frames: That came in so far, at the wanted rate.
        num_dropped: Of these.
        num_reconnects: How often the source came back.
    """

    time_seconds: float
    delay_seconds: float
    logits: Tensor
    num_frames: int
    num_dropped: int
    num_reconnects: int

    def top(self, class_names: tuple[str, ...] | None, k: int = 5) -> tuple[Score, ...]:
        """Rank the k likeliest classes."""
        return top_scores(self.logits, class_names, k)


def predict_live(model: nn.Module, live: LiveFrames, *, precision: Precision = "fp32") -> Iterator[LiveAnswer]:
    """Answer a live source piece by piece; each layer goes on where it was, and nothing is computed twice.

    Where frames were dropped, the network sees the next ones as if nothing lay between.

    Args:
        model: I3D or an inflated classifier with a `clip_spec`, in eval mode.
        live: What is read, at the network's own rate and size.
        precision: "fp32" or "bf16".

    Returns:
        An answer for each piece, as soon as there is a whole step. Memory does not grow.

    Raises:
        InflateError: The model is another one, or the source cannot be read, or it stays away.

    Example:
        >>> from inflate3d import InceptionI3d
        >>> from inflate3d.weights.fetch import fetch_demo_clip
        >>> live = LiveFrames(str(fetch_demo_clip()), fps=8.0)
        >>> answers = list(predict_live(InceptionI3d(5).eval(), live))
        >>> answers[-1].num_frames, answers[-1].logits.shape
        (61, torch.Size([5]))
    """
    spec = check_model(model, PredictOptions(precision=precision))
    fast = optimize(model, precision)
    stream = Stream(fast)
    steps: deque[Tensor] = deque(maxlen=SHOWN_STEPS)
    with closing(iter(live)) as pieces:  # type: ignore[type-var]  # a generator
        for piece in pieces:
            (clip,) = input_views(piece.pictures, spec)
            with torch.inference_mode():
                found = stream(clip[None], is_last=piece.is_last)
            if found is None:
                continue
            steps.extend(found[0].float().cpu())
            logits = torch.stack(list(steps)).mean(0)
            check_logits(logits[None], 1, getattr(model, "class_names", None))
            delay = time.monotonic() - piece.arrived_seconds
            yield LiveAnswer(piece.time_seconds, delay, logits, live.num_frames, live.num_dropped, live.num_reconnects)
