"""Watch a 2D model at work: which layers run, in what order, on how many rows of the batch."""

import copy
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from inflate3d.errors import InflateError
from inflate3d.inflation.adapters import Adapted, adapter_for
from inflate3d.inflation.intercept import CalledPool, ListensForPools

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
    two, answer_two = _run(net, example[:2])
    three, answer_three = _run(net, example)
    _check_pictures_stay_apart(answer_two, answer_three, type(model2d).__name__)
    originals = dict(model2d.named_modules())
    return [
        _seen(path, originals.get(path) or calls[0].layer, calls, three[path])
        for path, calls in two.items()
        if path in three
    ]


class _Call(NamedTuple):
    layer: nn.Module
    shape: tuple[int, ...]
    rows: Tensor | None  # the input itself, where the batch holds more than the pictures
    out_shape: tuple[int, ...]


def _is_layer(module: nn.Module) -> bool:
    # leaves, those with parts (gates) that an adapter takes over whole, and convolutions with parametrized weights
    convolution = isinstance(module, nn.Conv2d | nn.ConvTranspose2d)
    return adapter_for(type(module)) is not None or convolution or not any(module.children())


class _Watch:
    """Writes down, by path, the layers that run and the pools that are called in between."""

    def __init__(self, net: nn.Module, num_pictures: int) -> None:
        self.paths = {module: path for path, module in net.named_modules()}
        self.num_pictures = num_pictures
        self.running: list[tuple[nn.Module, list[int]]] = []  # with the number of pools called so far
        self.calls: dict[str, list[_Call]] = {}

    def _begins(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self.running.append((module, [0]))

    def _ends(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        self.running.pop()
        x = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor) and value.ndim), None)
        if _is_layer(module) and x is not None and isinstance(output, Tensor):
            self._note(self.paths[module], module, x, output)

    def pools(self, pool: CalledPool, x: Tensor, result: Tensor) -> Tensor:
        owner, count = self.running[-1]
        if adapter_for(type(owner)) is None:  # a layer that pools is taken over whole
            self._note(f"{self.paths[owner]}#{count[0]}", pool, x, result)
        for _, outer in self.running:
            outer[0] += 1
        return result

    def _note(self, path: str, layer: nn.Module, x: Tensor, output: Tensor) -> None:
        rows = x.clone() if x.shape[0] != self.num_pictures else None
        self.calls.setdefault(path, []).append(_Call(layer, tuple(x.shape), rows, tuple(output.shape)))


def _run(net: nn.Module, pictures: Tensor) -> tuple[dict[str, list[_Call]], Any]:
    watch = _Watch(net, len(pictures))
    handles = [module.register_forward_pre_hook(watch._begins) for module in watch.paths]
    handles += [module.register_forward_hook(watch._ends, with_kwargs=True) for module in watch.paths]
    try:
        with torch.no_grad(), ListensForPools(watch.pools):
            return watch.calls, net(pictures)
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
    insides = {_rows_inside(a, b) for a, b in zip(two, three, strict=True)} if factor > 1 else {True}
    factor, inside = (factor, insides.pop()) if len(insides) == 1 else (0, True)
    adapter = CalledPool if isinstance(layer, CalledPool) else adapter_for(type(layer))
    return Seen(path, layer, adapter, two[0].shape, two[0].out_shape, factor, inside)


def _factor(two: _Call, three: _Call) -> int:
    """Rows for each picture, from the runs on two and on three; 0 if the batch does not grow with the pictures."""
    factor = three.shape[0] - two.shape[0]
    return factor if factor > 0 and two.shape[0] == 2 * factor else 0


def _rows_inside(two: _Call, three: _Call) -> bool:
    """Tell rows that stand picture by picture (a a b b) from those that do not (a b a b)."""
    assert two.rows is not None
    assert three.rows is not None
    scale = two.rows.abs().max().clamp_min(1e-30)
    return bool((two.rows - three.rows[: len(two.rows)]).abs().max() <= MIXING_TOLERANCE * scale)


def _check_pictures_stay_apart(two: Any, three: Any, model: str) -> None:
    leaves = pytree.tree_leaves(two), pytree.tree_leaves(three)
    if len(leaves[0]) != len(leaves[1]):
        raise InflateError(
            "the structure of the model's output grows with the batch",
            where="make_plan",
            expected="tensors whose first axis is the batch, in a nest of one structure",
            got=f"{model}: {len(leaves[0])} leaves for two pictures, {len(leaves[1])} for three",
            fix="stack the answers to the pictures into one tensor",
        )
    for a, b in zip(*leaves, strict=True):
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
