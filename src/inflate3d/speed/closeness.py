"""How close a fast model's answers are to those it should give, and which are too close to call."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.backends import cudnn
from torch.utils import _pytree as pytree


def difference(found: Any, wanted: Any) -> float:
    """Largest difference of two answers, relative to the largest value of each tensor; infinite for other shapes.

    Example:
        >>> from torch import tensor
        >>> difference(tensor([1.0, 4.0]), tensor([2.0, 4.0])), difference(tensor([1.0]), [])
        (0.25, inf)
    """
    if [one.shape for one in _tensors(found)] != [one.shape for one in _tensors(wanted)]:
        return float("inf")
    pairs = [(a.double(), b.double()) for a, b in zip(_tensors(found), _tensors(wanted), strict=True) if b.numel()]
    return max((float((a - b).abs().amax() / b.abs().amax().clamp_min(1e-30)) for a, b in pairs), default=0.0)


def cosine(found: Any, wanted: Any) -> float:
    """Smallest cosine between the answers to one clip, as vectors; 1 for two vectors of zeros.

    Example:
        >>> from torch import tensor
        >>> cosine(tensor([[1.0, 0.0]]), tensor([[3.0, 4.0]]))
        0.6
    """
    pairs = [(a.double(), b.double()) for a, b in zip(_tensors(found), _tensors(wanted), strict=True)]
    pairs = [(a, b) for a, b in pairs if a.any() or b.any()]
    return min((float(F.cosine_similarity(a.flatten(1), b.flatten(1)).amin()) for a, b in pairs), default=1.0)


@contextmanager
def full_float32() -> Iterator[None]:
    """Convolve on a GPU in float32: TF32, which PyTorch takes there, rounds by more than what is looked for."""
    kept = {name: getattr(cudnn, name) for name in ("enabled", "benchmark", "benchmark_limit", "deterministic")}
    with cudnn.flags(**kept, allow_tf32=False):
        yield


def has_classes(answer: Any, num_clips: int) -> bool:
    """Whether an answer looks like logits of classes, `[num_clips, classes]`."""
    return isinstance(answer, Tensor) and answer.ndim == 2 and len(answer) == num_clips and answer.shape[1] > 1


def close_calls(logits: Tensor, least_lead: float) -> list[int]:
    """Find the clips whose first class leads the second by less than a part of the largest logit.

    Example:
        >>> from torch import tensor
        >>> close_calls(tensor([[1.0, 9.0, 8.95], [1.0, 9.0, 7.0]]), 0.01)
        [0]
    """
    first, second = logits.topk(2).values.unbind(1)
    rows: list[int] = (first - second < least_lead * logits.abs().amax(1)).nonzero().flatten().tolist()
    return rows


def _tensors(answer: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(answer) if isinstance(leaf, Tensor)]
