"""Watch a 2D model at work: which layers run, in what order, on how many rows of the batch."""

import copy
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from inflate3d.errors import InflateError
from inflate3d.inflation.adapters import Adapted, adapter_for

# Rows of a picture may differ by rounding between batches of different sizes, not by more
MIXING_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Seen:
    """One layer that ran.

    Attributes:
        path: Its name in the model.
        layer: The layer itself.
        adapter: The class that can take it over, or None.
        in_shape: Of its first input, batch first.
        out_shape: Of its output.
        batch_factor: Rows of its batch for each picture; 0 if its batch does not grow with the pictures.
        rows_inside: Whether these rows stand beside each other.
    """

    path: str
    layer: nn.Module = field(repr=False)
    adapter: type[Adapted] | None
    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    batch_factor: int
    rows_inside: bool


def observe(model2d: nn.Module, example: Tensor) -> list[Seen]:
    """Run a copy of a 2D model on two and on three pictures and write down the layers in order of their first run.

    Args:
        model2d: Left as it is.
        example: `[3, c, h, w]`.

    Raises:
        InflateError: The model cannot be run on the pictures, or lets one picture change the answer to another.
    """
    net = copy.deepcopy(model2d).eval()
    paths = {module: path for path, module in net.named_modules() if _is_layer(module)}
    two, answer_two = _run(net, paths, example[:2])
    three, answer_three = _run(net, paths, example)
    _check_pictures_stay_apart(answer_two, answer_three, type(model2d).__name__)
    originals = dict(model2d.named_modules())
    return [
        _seen(paths[module], originals[paths[module]], calls, three[module])
        for module, calls in two.items()
        if module in three
    ]


class _Call(NamedTuple):
    shape: tuple[int, ...]
    rows: Tensor | None  # the input itself, where the batch holds more than the pictures
    out_shape: tuple[int, ...]


def _is_layer(module: nn.Module) -> bool:
    # leaves, and those with parts (gates) that an adapter takes over whole
    return adapter_for(type(module)) is not None or not any(module.children())


def _run(net: nn.Module, paths: dict[nn.Module, str], pictures: Tensor) -> tuple[dict[nn.Module, list[_Call]], Any]:
    calls: dict[nn.Module, list[_Call]] = {}

    def heard(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if args and isinstance(args[0], Tensor) and args[0].ndim and isinstance(output, Tensor):
            rows = args[0].clone() if args[0].shape[0] != len(pictures) else None
            calls.setdefault(module, []).append(_Call(tuple(args[0].shape), rows, tuple(output.shape)))

    handles = [module.register_forward_hook(heard) for module in paths]
    try:
        with torch.no_grad():
            return calls, net(pictures)
    except Exception as error:
        raise InflateError(
            "the 2D model cannot be run on a picture",
            where="make_plan",
            expected="a module that maps pictures [n, c, h, w]",
            got=f"{type(error).__name__}: {error} (for pictures {list(pictures.shape)})",
            fix="pass a picture of the right size: example=torch.zeros(1, channels, height, width)",
        ) from error
    finally:
        for handle in handles:
            handle.remove()


def _seen(path: str, layer: nn.Module, two: list[_Call], three: list[_Call]) -> Seen:
    factors = {_factor(a, b) for a, b in zip(two, three, strict=False)}
    if len(two) != len(three) or len(factors) != 1:
        factors = {0}  # it runs on something else each time: leave it alone
    factor = factors.pop()
    inside = factor < 2 or _rows_inside(two[0], three[0])
    return Seen(path, layer, adapter_for(type(layer)), two[0].shape, two[0].out_shape, factor, inside)


def _factor(two: _Call, three: _Call) -> int:
    """Rows for each picture, from the runs on two and on three; 0 if the batch does not grow with the pictures."""
    factor = three.shape[0] - two.shape[0]
    return factor if factor > 0 and two.shape[0] == 2 * factor else 0


def _rows_inside(two: _Call, three: _Call) -> bool:
    """Tell rows that stand picture by picture (a a b b) from those that do not (a b a b)."""
    assert two.rows is not None
    assert three.rows is not None
    return torch.allclose(two.rows, three.rows[: len(two.rows)], rtol=MIXING_TOLERANCE, atol=MIXING_TOLERANCE)


def _check_pictures_stay_apart(two: Any, three: Any, model: str) -> None:
    for a, b in zip(pytree.tree_leaves(two), pytree.tree_leaves(three), strict=True):
        if not isinstance(a, Tensor) or not isinstance(b, Tensor) or a.ndim == 0 or b.shape[0] == a.shape[0]:
            continue
        same = b[: a.shape[0]]
        scale = same.double().abs().max().clamp_min(1e-12)
        difference = float((a.double() - same.double()).abs().max() / scale)
        if not difference <= MIXING_TOLERANCE:
            raise InflateError(
                "the model's answer to a picture depends on the other pictures of the batch",
                where="make_plan",
                expected="the same answer to a picture in a batch of two and of three (eval mode)",
                got=f"{model}: relative difference {difference:.3g}",
                fix="frames of a clip would disturb each other; take the mixing (or randomness) out of the model",
            )
