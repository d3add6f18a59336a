"""What comes out of a 2D model, leaf by leaf, and how each leaf gets its time back."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from inflate3d.axes import frames_to_clip
from inflate3d.errors import InflateError

TimePool = Literal["mean", "max", "none"]
Form = Literal[
    "vector",  # [n, d] becomes [b, d], pooled over time, or [b, t, d] where time is not pooled
    "tokens",  # [n, l, d] becomes [b, t, l, d]
    "map",  # [n, c, h, w] becomes [b, c, t, h, w]; attention weights [n, heads, l, l] are taken for maps
    "map-last",  # [n, h, w, c] becomes [b, t, h, w, c]
    "other",  # [n, ...] becomes [b, t, ...]
    "same",  # does not grow with the batch and passes through
]


@dataclass(frozen=True)
class Outputs:
    """The structure of an output and the form of each tensor in it.

    Attributes:
        structure: The nest.
        forms: Of its leaves.
        axes: How many each leaf has; None for what is no tensor. Nothing where nobody looked.
    """

    structure: pytree.TreeSpec
    forms: tuple[Form, ...]
    axes: tuple[int | None, ...] = ()

    def fit(self, output: Any) -> bool:
        """Whether an output has this structure, and its tensors as many axes."""
        leaves, structure = pytree.tree_flatten(output)
        return bool(structure == self.structure) and self.axes in ((), _axes_of(leaves))

    def unfold(self, output: Any, num_clips: int, time_pool: TimePool) -> Any:
        """Give every leaf of an output that ran on frames its clips and times back.

        Args:
            output: Of the 2D model, run on frames.
            num_clips: Clips in the batch.
            time_pool: What becomes of vectors.

        Raises:
            InflateError: The output has another structure, or other axes, than when it was looked at.
        """
        leaves, structure = pytree.tree_flatten(output)
        if not self.fit(output):
            raise InflateError(
                "the output has another structure than in the run on single pictures",
                where="Inflated",
                expected=_in_words(self.structure, self.axes),
                got=_in_words(structure, _axes_of(leaves)),
                fix="give the same structure for all inputs of one mode; attention over time has no weights to give",
            )
        unfolded = [_unfold(leaf, form, num_clips, time_pool) for leaf, form in zip(leaves, self.forms, strict=True)]
        return pytree.tree_unflatten(unfolded, structure)

    def cut(self, output: Any, num_clips: int, *, num_frames: int, ran: int) -> Any:
        """Take away the steps of an output that lie behind the end of its clips, in frame form.

        Args:
            output: Of the 2D model, run on frames.
            num_clips: Clips in the batch.
            num_frames: Of a clip.
            ran: Frames that the model was run on, with those put behind each clip.

        Raises:
            InflateError: Steps of an output do not divide the frames that it was made from.
        """
        leaves, structure = pytree.tree_flatten(output)
        if not self.fit(output):
            return output  # which is refused when it is unfolded
        kept = [
            leaf if form == "same" else _cut(leaf, num_clips, num_frames=num_frames, ran=ran)
            for leaf, form in zip(leaves, self.forms, strict=True)
        ]
        return pytree.tree_unflatten(kept, structure)


def _axes_of(leaves: Sequence[Any]) -> tuple[int | None, ...]:
    return tuple(leaf.ndim if isinstance(leaf, Tensor) else None for leaf in leaves)


def _in_words(structure: pytree.TreeSpec, axes: Sequence[int | None]) -> str:
    each = ", ".join("no tensor" if count is None else f"{count} axes" for count in axes)
    return f"{structure.num_leaves} tensors: {structure}" + f" ({each})" * bool(each)


def _cut(leaf: Tensor, num_clips: int, *, num_frames: int, ran: int) -> Tensor:
    steps = leaf.shape[0] // num_clips
    if leaf.shape[0] % num_clips or ran % steps:
        raise InflateError(
            "an output has a length of time that does not come from strides",
            where="Inflated",
            expected=f"a number of steps that divides {ran} frames",
            got=f"{leaf.shape[0]} rows for {num_clips} clips",
            fix="give layers ahead of it no stride in time: rules={NAME: Rule(time_stride=1)}",
        )
    kept: Tensor = leaf.unflatten(0, (num_clips, steps))[:, : -(-num_frames * steps // ran)]
    return kept.flatten(0, 1)


def look_at_outputs(run: Callable[[Tensor], Any], pictures: Tensor) -> Outputs:
    """Find the form of each leaf from two runs, on two and on three pictures.

    Args:
        run: Maps pictures `[n, c, h, w]` to any nest of tuples, lists, dicts and the like.
        pictures: `[3, c, h, w]`.

    Raises:
        InflateError: The method fails on single pictures, or what comes out cannot be unfolded.
    """
    leaves, structure = pytree.tree_flatten(_answer(run, pictures[:2]))
    more, _ = pytree.tree_flatten(_answer(run, pictures))
    ratio = pictures.shape[2] / pictures.shape[3]

    forms = [_form(a, b, ratio) for a, b in zip(leaves, more, strict=True)]
    if None in forms:
        taller = _leaves_of_taller(run, pictures)
        if len(taller) != len(leaves):
            taller = leaves
        forms = [form or _form_by_height(a, b, ratio) for form, a, b in zip(forms, leaves, taller, strict=True)]
    return Outputs(structure, tuple(form for form in forms if form), _axes_of(leaves))


def _answer(run: Callable[[Tensor], Any], pictures: Tensor) -> Any:
    try:
        return run(pictures)
    except InflateError:
        raise
    except Exception as error:
        raise InflateError(
            "the 2D method cannot be run on single pictures with these arguments",
            where="Inflated",
            expected="a method of pictures [n, c, h, w], and arguments that fit any n",
            got=f"{type(error).__name__}: {error} (for {len(pictures)} pictures)",
            fix="leave out what is as long as the batch, such as labels=: take the loss of what the model returns",
        ) from error


def _leaves_of_taller(run: Callable[[Tensor], Any], pictures: Tensor) -> list[Any]:
    try:
        return pytree.tree_leaves(run(pictures[:2].repeat(1, 1, 2, 1)))
    except Exception:  # a model for one size of pictures: its own shapes have to do
        return []


def _form(two: Any, three: Any, ratio: float) -> Form | None:
    """Tell the form of a leaf from its shapes for two and three pictures; None for maps that may be channels-last."""
    if two is None or isinstance(two, str | bool | int | float):
        return "same"
    if not isinstance(two, Tensor):
        raise _unclear(f"an output of type {type(two).__name__}")
    if two.shape == three.shape:
        return "same"
    if (two.shape[0], three.shape[0]) != (2, 3) or two.shape[1:] != three.shape[1:]:
        raise _unclear(f"an output {list(two.shape)} for two pictures and {list(three.shape)} for three")
    if two.ndim == 4:
        first, last = _readings(two, ratio)
        return "map" if (first and not last) or two[0].numel() == 1 else None
    forms: dict[int, Form] = {1: "vector", 2: "vector", 3: "tokens"}
    return forms.get(two.ndim, "other")


def _readings(map2d: Tensor, ratio: float, slack: float = 1) -> tuple[bool, bool]:
    """Whether a map has the ratio of the picture, up to `slack` pixels, as `[n, c, h, w]` and as `[n, h, w, c]`."""
    _, a, b, c = map2d.shape
    return abs(b - c * ratio) <= slack, abs(a - b * ratio) <= slack


def _form_by_height(two: Tensor, taller: Any, ratio: float) -> Form:
    """Tell the axes of a map by what grows when the picture does.

    Raises:
        InflateError: Nothing grows, as in models for pictures of one size, and both readings of the map fit.
    """
    if isinstance(taller, Tensor) and taller.ndim == two.ndim and taller.shape != two.shape:
        return "map-last" if taller.shape[1] > two.shape[1] else "map"
    loosely, exactly = _readings(two, ratio), _readings(two, ratio, slack=0)
    first, last = loosely if not all(loosely) else exactly
    if first == last and any(loosely):
        raise InflateError(
            "it cannot be told where the channels of an output stand",
            where="Inflated",
            expected="maps whose sides differ from their channels, or a model that takes pictures of any size",
            got=f"a map {list(two.shape)}",
            fix="plan with a picture that is not square: example=torch.zeros(1, c, h, w)",
        )
    return "map-last" if last else "map"


def _unclear(got: str) -> InflateError:
    return InflateError(
        "an output of the model cannot be unfolded",
        where="Inflated",
        expected="tensors whose first axis is the batch, or that do not grow with it; None, numbers and text",
        got=got,
        fix="let the model return tuples, lists or dicts of such tensors (torch.utils._pytree registers other types)",
    )


def _unfold(leaf: Any, form: Form, num_clips: int, time_pool: TimePool) -> Any:
    if form == "same":
        return leaf
    assert isinstance(leaf, Tensor)
    if form == "map":
        return frames_to_clip(leaf, num_clips)
    timed: Tensor = leaf.unflatten(0, (num_clips, -1))
    if form == "vector" and time_pool != "none" and timed.is_floating_point():
        return timed.mean(1) if time_pool == "mean" else torch.amax(timed, 1)
    return timed
