"""A network over a video of any length: piece by piece, with memory that does not grow, as one pass over the whole."""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from inflate3d.clips.clip import ClipSpec
from inflate3d.errors import InflateError, is_count
from inflate3d.inflation.inflated import Inflated
from inflate3d.inflation.padding import pad_time
from inflate3d.models.inception import InceptionI3d
from inflate3d.models.inflated import InflatedClassifier
from inflate3d.speed.borders import Borders, TooFewFrames
from inflate3d.speed.memory import SteadyMemory, copy_sharing, give_back_large, give_back_memory
from inflate3d.speed.optimize import Optimized, Precision, run_method
from inflate3d.speed.stream_i3d import HALVINGS, StreamedI3d
from inflate3d.speed.stream_inflated import stream_inflated

Item = TypeVar("Item")

PIECE_FRAMES = 64  # a multiple of the strides in time of all networks here
# Freed memory that stays beside what lives between pieces; an optimized network keeps it on purpose (`keep_memory`),
# and with less its pieces take a quarter longer
KEPT_BYTES, KEPT_BYTES_OPTIMIZED = 64 * 2**20, 256 * 2**20
ENDLESS = HALVINGS << 40  # frames: a number that strides in time divide


class TimeSteps(NamedTuple):
    """How a network's steps in time lie over the frames of a video of any length.

    Attributes:
        stride: Frames from one step to the next.
        lost: Steps fewer than `ceil(frames / stride)`.
    """

    stride: int
    lost: int


class Stream(nn.Module):
    """A network that is given one video, piece by piece, and answers as in one pass over the whole video.

    Each layer keeps the frames at its border for the next piece. Layers that look ahead hold their answers back until
    they have seen enough, so the first answers come later than the first pieces.

    Args:
        model: `InceptionI3d`, an `Inflated`, an `InflatedClassifier`, or what `optimize` made of them, in eval mode. It
            is copied without its values and stays as it is.
        num_frames: Of the whole video. I3D pads as TensorFlow does, which depends on it; None, for videos without an
            end, is as if the last frame were repeated until eight divide the number. Inflated models do not ask.

    Raises:
        InflateError: The model is another one, is in training mode, or a part of it needs the whole clip.

    Example:
        >>> from inflate3d import InceptionI3d
        >>> model, video = InceptionI3d(num_classes=5).eval(), torch.zeros(1, 3, 23, 193, 193)
        >>> stream = Stream(model, num_frames=23)
        >>> with torch.inference_mode():
        ...     first, last = stream(video[:, :, :16]), stream(video[:, :, 16:], is_last=True)
        >>> first is None, last.shape
        (True, torch.Size([1, 2, 5]))
    """

    def __init__(self, model: nn.Module, num_frames: int | None = None) -> None:
        super().__init__()
        _check(model, model.model if isinstance(model, Optimized) else model, num_frames)
        self._source = (model,)  # no part of this one
        self.borders, self.num_frames = Borders(), num_frames
        self._build()
        self._waiting: Tensor | None = None  # the first frames, of which no layer can make a step
        self._seen = 0
        if not isinstance(model, Optimized):
            give_back_large()
        self._memory = SteadyMemory(KEPT_BYTES_OPTIMIZED if isinstance(model, Optimized) else KEPT_BYTES)

    def _build(self) -> None:
        (model,) = self._source
        self.precision: Precision = model.precision if isinstance(model, Optimized) else "fp32"
        net = copy_sharing(model.model if isinstance(model, Optimized) else model)
        self.net: nn.Module = net
        if isinstance(net, InceptionI3d):
            self.net = StreamedI3d(net, self.borders, self.num_frames or ENDLESS)
            return
        inflated = net.inflated if isinstance(net, InflatedClassifier) else net
        assert isinstance(inflated, Inflated)
        stream_inflated(inflated, self.borders)

    def settle(self, piece: Tensor) -> None:
        """Compare bfloat16 with float32 on a first piece `[b, c, t, h, w]`, where the model has not done so yet."""
        (model,) = self._source
        spec = getattr(model, "clip_spec", None)
        too_short = isinstance(spec, ClipSpec) and piece.shape[2] < spec.min_frames  # no step comes of it either
        if not isinstance(model, Optimized) or not model.unsettled or too_short:
            return
        model.settle(piece)
        if model.precision != self.precision:
            self._build()

    def forward(self, piece: Tensor, *, is_last: bool = False) -> Tensor | None:
        """Give the logits of the next steps, `[b, steps, classes]`, of an inflated model what its 2D model gives.

        Args:
            piece: The next frames, `[b, c, t, h, w]`, `PIECE_FRAMES` or another multiple of the network's stride in
                time; the last piece may be shorter, but not empty.
            is_last: Whether the video ends here.

        Returns:
            None where there is no whole step yet.

        Raises:
            InflateError: The model refuses the piece, or the video is too short for a step.
        """
        found = self.call("forward", piece, is_last=is_last)
        if found is None or isinstance(self.net, StreamedI3d):
            return found  # type: ignore[no-any-return]
        steps: Tensor = found.unflatten(0, (piece.shape[0], -1))
        return steps

    def call(self, method: str, piece: Tensor, *args: Any, is_last: bool = False) -> Any:
        """Run a method of the network on the next frames; an inflated model's answers come in frame form.

        Raises:
            InflateError: See `forward`.
        """
        self._seen += piece.shape[2]
        if is_last and self.num_frames is None and isinstance(self.net, StreamedI3d):
            piece = pad_time(piece, 0, -self._seen % HALVINGS)
        if self._waiting is not None:
            piece = torch.cat([self._waiting, piece], 2)
        self.settle(piece)
        self.borders.begin(is_last=is_last)
        try:
            found = run_method(self.net, method, piece, args=args, precision=self.precision)
        except TooFewFrames:
            if is_last:
                raise _too_short(self._seen) from None
            self._waiting = piece
            return None
        self._waiting = None
        self.borders.commit()
        if not self._memory.after_first:  # what it holds then shall not depend on what lies about
            give_back_memory()
        self._memory.after_step()
        return pytree.tree_map_only(Tensor, _unmarked, found)


def can_stream(model: nn.Module) -> bool:
    """Whether a model is of a kind that `Stream` knows."""
    return isinstance(model, InceptionI3d | Inflated | InflatedClassifier)


def in_pieces(frames: Iterable[Item], size: int = PIECE_FRAMES) -> Iterator[tuple[list[Item], bool]]:
    """Cut a stream into pieces, of which the last one is told and never empty.

    Example:
        >>> list(in_pieces(range(4), 2))
        [([0, 1], False), ([2, 3], True)]
    """
    piece: list[Item] = []
    for frame in frames:
        if len(piece) == size:
            yield piece, False
            piece = []
        piece.append(frame)
    if piece:
        yield piece, True


def _unmarked(value: Tensor) -> Tensor:
    return value.detach()  # another object, which says nothing about frames of a piece


def _too_short(num_frames: int) -> InflateError:
    return InflateError(
        "the video is too short for the network",
        where="streaming",
        expected="frames for one step: 9 for I3D",
        got=f"{num_frames} frames",
        fix="show it as a window, which is looped: inflate3d.predict(model, source)",
    )


def _check(model: nn.Module, inner: nn.Module, num_frames: int | None) -> None:
    int8 = isinstance(model, Optimized) and model.precision == "int8"
    if not can_stream(inner) or int8 or model.training or not (num_frames is None or is_count(num_frames)):
        raise InflateError(
            "this network cannot answer a video in pieces",
            where="Stream",
            expected="I3D, an Inflated or an InflatedClassifier in eval mode, as it is or optimized for fp32 or bf16; "
            "a number of frames of 1 or more, or None",
            got=f"{type(inner).__name__}" + " in int8" * int8 + " in training mode" * model.training
            + f", num_frames={num_frames!r}",
            fix="take windows: inflate3d.predict(model, source)",
        )  # fmt: skip
