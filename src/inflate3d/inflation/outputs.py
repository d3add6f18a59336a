"""What comes out of a 2D model, leaf by leaf, and how each leaf gets its time back."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from inflate3d.axes import frames_to_clip
from inflate3d.errors import InflateError

TimePool = Literal["mean", "max", "none"]
Form = Literal["vector", "tokens", "map", "map-last", "other", "same"]

FORMS: dict[Form, str] = {
    "vector": "[n, d] becomes [b, d], pooled over time, or [b, t, d] where time is not pooled",
    "tokens": "[n, l, d] becomes [b, t, l, d]",
    "map": "[n, c, h, w] becomes [b, c, t, h, w]",
    "map-last": "[n, h, w, c] becomes [b, t, h, w, c]",
    "other": "[n, ...] becomes [b, t, ...]",
    "same": "does not grow with the batch and passes through",
}


@dataclass(frozen=True)
class Outputs:
    """The structure of an output and the form of each tensor in it."""

    structure: pytree.TreeSpec
    forms: tuple[Form, ...]

    def unfold(self, output: Any, num_clips: int, time_pool: TimePool) -> Any:
        """Give every leaf of an output that ran on frames its clips and times back.

        Raises:
            InflateError: The output has another structure than when it was looked at.
        """
        leaves, structure = pytree.tree_flatten(output)
        if structure != self.structure:
            raise InflateError(
                "the output has another structure than in the run on single pictures",
                where="Inflated",
                expected=str(self.structure),
                got=str(structure),
                fix="make the model's output depend on its input's values or mode no longer, or run it per frame",
            )
        unfolded = [_unfold(leaf, form, num_clips, time_pool) for leaf, form in zip(leaves, self.forms, strict=True)]
        return pytree.tree_unflatten(unfolded, structure)


def look_at_outputs(run: Callable[[Tensor], Any], pictures: Tensor) -> Outputs:
    """Find the form of each leaf from two runs, on two and on three pictures.

    Args:
        run: Maps pictures `[n, c, h, w]` to any nest of tuples, lists, dicts and the like.
        pictures: `[3, c, h, w]`.
    """
    leaves, structure = pytree.tree_flatten(run(pictures[:2]))
    more, _ = pytree.tree_flatten(run(pictures))
    ratio = pictures.shape[2] / pictures.shape[3]
    return Outputs(structure, tuple(_form(a, b, ratio) for a, b in zip(leaves, more, strict=True)))


def _form(two: Any, three: Any, ratio: float) -> Form:
    if not isinstance(two, Tensor) or two.ndim == 0 or (two.shape[0], three.shape[0]) != (2, 3):
        return "same"
    if two.ndim == 4:
        _, a, b, c = two.shape
        # a map keeps the ratio of its sides; where both readings do, channels stand first, as is usual
        first, last = abs(b / c - ratio), abs(a / b - ratio)
        return "map-last" if last < first and last < 0.2 * ratio else "map"
    forms: dict[int, Form] = {1: "vector", 2: "vector", 3: "tokens"}
    return forms.get(two.ndim, "other")


def _unfold(leaf: Any, form: Form, num_clips: int, time_pool: TimePool) -> Any:
    if form == "same":
        return leaf
    assert isinstance(leaf, Tensor)
    if form == "map":
        return frames_to_clip(leaf, num_clips)
    timed = leaf.unflatten(0, (num_clips, -1))
    if form == "vector" and time_pool != "none":
        return timed.mean(1) if time_pool == "mean" else torch.amax(timed, 1)
    return timed
