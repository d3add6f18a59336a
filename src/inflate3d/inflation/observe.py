"""Watch a 2D model at work: which layers run and which functions are called, in what order, on how many rows."""

import copy
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils import _pytree as pytree
from torch.utils.weak import WeakTensorKeyDictionary

from inflate3d.errors import InflateError, list_faults
from inflate3d.inflation.adapters import Adapted, adapter_for, drops_rows
from inflate3d.inflation.filters import Filter
from inflate3d.inflation.fold import Fold
from inflate3d.inflation.intercept import CALLS, Call, CalledBlur, CalledConv, HearsCalls
from inflate3d.inflation.pictures import check_pictures_stay_apart

ROWS_TOLERANCE = 1e-3  # of rows of a batch that are the same but for rounding
SPACE_ALONE = "it works in space alone"

Model = TypeVar("Model", bound=nn.Module)


class Heard(nn.Module):
    """What a plan has to know of the call of a function.

    Attributes:
        name: Of the function.
        kernel_size: Height and width; None where the function has no kernel.
        stride: Down and to the right.
        mode: Of an interpolation.
        adapter: What can give it time, or None.
    """

    def __init__(self, call: Call, adapter: type[Adapted] | None) -> None:
        super().__init__()
        self.name, self.adapter = call.name, adapter
        weight = call.given("weight")
        self.kernel_size = call.given("kernel_size") if weight is None else tuple(weight.shape[2:])
        self.kernel_size = self.kernel_size or call.given("downscale_factor")
        self.stride = call.given("stride") or (self.kernel_size if weight is None else 1)
        self.mode = call.given("mode") or ""


class Passage(NamedTuple):
    """One run of a layer or function, and where what it was given came from.

    Attributes:
        number: Its place among all runs.
        sources: Numbers of the runs, of what can have time, that its input was made from last.
        here: Shape of its input.
        there: Shape of its output.
    """

    number: int
    sources: frozenset[int]
    here: tuple[int, ...]
    there: tuple[int, ...]


@dataclass(frozen=True)
class Seen:
    """One layer that ran, or one function that was called.

    Attributes:
        path: Its name in the model.
        layer: The layer itself; a `Heard` for a call.
        adapter: The class that can give it time, or None.
        in_shape: Of its first input, batch first.
        out_shape: Of its output.
        batch_factor: Rows of its batch for each picture; 0 if its batch does not grow with the pictures.
        rows_inside: Whether these rows stand beside each other.
        reason: Why it has to stay per frame; empty if nothing speaks against time.
        passages: Its runs, if it can have time.
        fixed_tokens: Of the first tokens it was given, how many were the same for all pictures.
    """

    path: str
    layer: nn.Module = field(repr=False)
    adapter: type[Adapted] | None
    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    batch_factor: int
    rows_inside: bool
    reason: str = ""
    passages: tuple[Passage, ...] = ()
    fixed_tokens: int = 0

    @property
    def label(self) -> str:
        """What the plan calls it: the name of its class or function."""
        return self.layer.name if isinstance(self.layer, Heard) else type(self.layer).__name__


def observe(model2d: nn.Module, example: Tensor) -> list[Seen]:
    """Run a copy of a 2D model on two and on three pictures and write down the layers in order of their first run.

    Args:
        model2d: Left as it is.
        example: `[3, c, h, w]`.

    Raises:
        InflateError: The model cannot be copied or run on the pictures, lets one picture change the answer to another,
            holds compiled code or layers without weights, or its copy is tied to it.
    """
    _check_can_be_seen(model2d)
    net = copied(model2d).eval()
    two, answer_two = _run(net, example[:2], model2d)
    three, answer_three = _run(net, example, model2d)
    check_pictures_stay_apart(answer_two, answer_three, type(model2d).__name__)
    _check_answer_grows(answer_two, answer_three)
    originals = dict(getattr(model2d, "_orig_mod", model2d).named_modules())
    # of a layer that no adapter knows, the calls that it makes say more
    told = {path.rpartition("#")[0] for path in two if "#" in path}
    return [
        _seen(path, originals.get(path) or runs[0].layer, runs, three[path])
        for path, runs in two.items()
        if path in three and (path not in told or adapter_for(runs[0].layer))
    ]


def copied(model: Model, *, device: str | None = None) -> Model:
    """Copy a model, also one whose weights are remade by hooks (old weight norm, pruning), which torch refuses.

    Args:
        model: Left as it is; of a compiled one, what was compiled.
        device: "meta" copies shapes alone, and takes no memory.

    Raises:
        InflateError: It has an attribute that cannot be copied, such as a lock.
    """
    model = getattr(model, "_orig_mod", model)  # what torch.compile holds
    memo: dict[int, Any] = {}
    for module in model.modules():
        for value in pytree.tree_leaves(list(vars(module).values())):  # LeViT keeps some in a dict
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
        for value in (*module._parameters.values(), *module._buffers.values()):
            if device is not None and value is not None:
                empty = torch.empty_like(value, device=device, requires_grad=False)
                memo[id(value)] = nn.Parameter(empty, value.requires_grad) if isinstance(value, nn.Parameter) else empty
    try:
        return copy.deepcopy(model, memo)
    except TypeError as error:
        raise _cannot_be_copied(model, memo) or error from error


def _cannot_be_copied(model: nn.Module, memo: dict[int, Any]) -> InflateError | None:
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            try:
                copy.deepcopy(value, dict(memo)) if name != "_modules" else None
            except TypeError as error:
                return InflateError(
                    "the model cannot be copied",
                    where=f"{path or type(model).__name__}, attribute {name}",
                    expected="attributes that copy.deepcopy copies",
                    got=f"{type(value).__name__}: {error}",
                    fix="make it where it is needed, or set it after inflating",
                )
    return None


def first_tensor(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, Any]:
    """Find the first tensor with axes that a module is given: its place or name, and the tensor; None twice if none is.

    Example:
        >>> first_tensor((None, torch.zeros(2)), {})
        (1, tensor([0., 0.]))
    """
    given = [*enumerate(args), *kwargs.items()]
    return next(((name, value) for name, value in given if isinstance(value, Tensor) and value.ndim), (None, None))


def fixed_tokens(x: Tensor) -> int:
    """Count the tokens at the front of `[n, l, c]` that are the same for all pictures: class tokens, registers.

    Example:
        >>> fixed_tokens(torch.tensor([[[1.0], [2.0]], [[1.0], [3.0]]]))
        1
    """
    if x.ndim != 3 or not x.shape[1]:
        return 0
    same = (x == x[:1]).all(-1).all(0)
    return 0 if same.all() else int(same.long().cumprod(0).sum())


class _Run(NamedTuple):
    layer: nn.Module
    shape: tuple[int, ...]
    rows: Tensor | None  # the input itself, where the batch holds more than the pictures
    out_shape: tuple[int, ...]
    reason: str
    passage: Passage | None
    fixed_tokens: int = 0


class _Watch:
    """Writes down, by path, the layers that run and the functions that are called in between."""

    def __init__(self, net: nn.Module, num_pictures: int, original: nn.Module) -> None:
        self.paths = {module: path for path, module in net.named_modules()}
        self.num_pictures = num_pictures
        self.running: list[tuple[nn.Module, list[int]]] = []  # with the number of functions called so far
        self.runs: dict[str, list[_Run]] = {}
        self.learned, self.fixed = ({_memory(t) for t in ts} for ts in (net.parameters(), net.buffers()))
        self.outside = (
            {_memory(t) for t in [*original.parameters(), *original.buffers()]} - self.learned - self.fixed - {0}
        )
        self.users: dict[int, str] = {}  # of learned weights: the first call that uses one
        self.owners: dict[int, set[nn.Module]] = {}  # of kernels: the layers that run with one
        for module in self.paths:
            weight = module._parameters.get("weight")
            if weight is not None and weight.ndim == 4:
                self.owners.setdefault(_memory(weight), set()).add(module)
        self.numbers = itertools.count()
        self.origins = WeakTensorKeyDictionary()  # of a tensor: the runs it was made from last

    def _begins(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self.running.append((module, [0]))

    def _ends(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        self.running.pop()
        _, x = first_tensor(args, kwargs)
        # leaves, and those with parts (gates, parametrized weights) that an adapter takes over whole
        if x is None or (any(module.children()) and adapter_for(module) is None):
            return
        several = isinstance(output, tuple | list) and bool(output)
        reasons = {
            "an Inflated inside decides on it": self._inside_inflated(),
            "it gives more than one tensor": several and not isinstance(module, nn.MultiheadAttention),
            "it may drop single frames of a clip in training": drops_rows(module) and adapter_for(module) is None,
        }
        reason = next((why for why, holds in reasons.items() if holds), "")
        self._note(self.paths[module], module, x, output[0] if several else output, reason)

    def _inside_inflated(self) -> bool:
        return any(isinstance(vars(module).get("fold"), Fold) for module, _ in self.running)

    def heard(self, call: Call) -> Any:
        """Run a call and write it down, if it is no layer's own business."""
        result = call.run(call.x)
        owner, count = self.running[-1] if self.running else (nn.Identity(), [0])
        number, count[0] = count[0], count[0] + 1
        own = adapter_for(owner) or type(owner).__module__.startswith("torch.nn.modules.")
        if own or self._inside_inflated():
            return result  # a layer that calls a function is taken over whole
        path, adapter, weight = f"{self.paths[owner]}#{number}", CALLS[call.function], call.given("weight")
        if isinstance(weight, Tensor) and _memory(weight) in self.fixed and adapter is CalledConv:
            adapter = CalledBlur
        if isinstance(weight, Tensor) and _memory(weight) in self.learned:
            self.users.setdefault(_memory(weight), path)
        first = result[0] if isinstance(result, tuple) else result
        self._note(path, Heard(call, adapter), call.x, first, "" if adapter else SPACE_ALONE)
        return result

    def _note(self, path: str, layer: nn.Module, x: Tensor, output: Any, reason: str) -> None:
        if not isinstance(output, Tensor):
            return
        rows = x.clone() if x.shape[0] != self.num_pictures else None
        here, there, passage = tuple(x.shape), tuple(output.shape), None
        adapter = layer.adapter if isinstance(layer, Heard) else adapter_for(layer)
        attends = adapter is not None and adapter.kind == "attention"
        if adapter and not attends:
            passage = Passage(next(self.numbers), self.origins.get(x, frozenset()), here, there)
            self.origins[output] = frozenset([passage.number])
        run = _Run(layer, here, rows, there, reason, passage, fixed_tokens(x) if attends else 0)
        self.runs.setdefault(path, []).append(run)

    def follow(self, given: Any, result: Any) -> None:
        """Write down that what a function gave was made from what it was given."""
        tensors = [leaf for leaf in pytree.tree_leaves(given) if isinstance(leaf, Tensor)]
        sources = frozenset[int]().union(*(self.origins.get(tensor, ()) for tensor in tensors))
        for leaf in pytree.tree_leaves(result) if sources else ():
            if isinstance(leaf, Tensor) and (leaf not in self.origins or any(leaf is one for one in tensors)):
                self.origins[leaf] = sources

    def uses(self, func: Any, given: tuple[Any, ...], result: Any) -> None:
        """Write down which kernels code reads while no layer that they belong to is running.

        Raises:
            InflateError: It reads what belongs to the model that this one is a copy of.
        """
        name = getattr(func, "__name__", "")
        if any(_memory(leaf) in self.outside for leaf in pytree.tree_leaves(given) if isinstance(leaf, Tensor)):
            raise _of_others("a copy of the model uses the model's own weights", f"{name}() of such a weight")
        made = {_memory(leaf) for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)}
        if func in CALLS or not made or name.startswith("new_"):
            return
        changes = name.endswith("_") and not name.endswith("__")
        # x.to(kernel) does not read its values, and a view is read by what is made from it
        read = given[0][:1] if name in ("to", "type_as") else given
        for memory in {_memory(leaf) for leaf in pytree.tree_leaves(read) if isinstance(leaf, Tensor)}:
            owners = self.owners.get(memory)
            if owners and (changes or memory not in made) and not any(module in owners for module, _ in self.running):
                path = self.paths[self.running[-1][0]] if self.running else ""
                self.users.setdefault(memory, f"{name}() in {path or 'the model'}")

    def noted(self) -> dict[str, list[_Run]]:
        """Give what was written down; a layer has to keep a weight that something uses as a 2D one."""
        weights = {path: runs[0].layer._parameters.get("weight") for path, runs in self.runs.items()}
        for path, weight in weights.items():
            if weight is not None and issubclass(adapter_for(self.runs[path][0].layer) or nn.Module, Filter):
                self.users.setdefault(_memory(weight), path)
        for path, runs in self.runs.items():
            weight = weights[path]
            user = None if weight is None else self.users.get(_memory(weight))
            if user not in (None, path):
                self.runs[path] = [run._replace(reason=f"its weight is used by {user} too") for run in runs]
        return self.runs


class _Follows(HearsCalls):
    """Lets a watch hear calls, and follow tensors from function to function."""

    def __init__(self, watch: _Watch) -> None:
        super().__init__(watch.heard)
        self.watch = watch

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = super().__torch_function__(func, types, args, kwargs)
        self.watch.uses(func, (args, kwargs), result)
        self.watch.follow((args, kwargs), args[0] if func is Tensor.__setitem__ else result)
        return result


def _memory(tensor: Tensor) -> int:
    """Name the memory of a tensor, which its views share; 0 for those without any of their own (vmap, sparse)."""
    try:
        return tensor.untyped_storage().data_ptr()
    except RuntimeError:
        return 0


def _run(net: nn.Module, pictures: Tensor, original: nn.Module) -> tuple[dict[str, list[_Run]], Any]:
    watch = _Watch(net, len(pictures), original)
    handles = [module.register_forward_pre_hook(watch._begins) for module in watch.paths]
    handles += [module.register_forward_hook(watch._ends, with_kwargs=True) for module in watch.paths]
    try:
        with torch.no_grad(), _Follows(watch):
            answer = net(pictures)
        return watch.noted(), answer
    except InflateError:
        raise
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


def _seen(path: str, layer: nn.Module, two: list[_Run], three: list[_Run]) -> Seen:
    factors = {_factor(a, b) for a, b in zip(two, three, strict=False)}
    if len(two) != len(three) or len(factors) != 1:
        factors = {0}  # it runs on something else each time: leave it alone
    factor = factors.pop()
    insides = {_rows_inside(a, b) for a, b in zip(two, three, strict=True)} if factor > 1 else {True}
    inside = insides.pop() if len(insides) == 1 else None
    adapter = layer.adapter if isinstance(layer, Heard) else adapter_for(layer)
    reason = next((call.reason for call in two if call.reason), "")
    if inside is None and not reason:
        reason = "the rows of its batch stand neither picture by picture nor part by part"
    passages = tuple(run.passage for run in two if run.passage)
    shapes = two[0].shape, two[0].out_shape
    adapter, fixed = None if reason else adapter, two[0].fixed_tokens
    return Seen(path, layer, adapter, *shapes, factor, inside is not False, reason, passages, fixed)


def _factor(two: _Run, three: _Run) -> int:
    """Rows for each picture, from the runs on two and on three; 0 if the batch does not grow with the pictures."""
    factor = three.shape[0] - two.shape[0]
    return factor if factor > 0 and two.shape[0] == 2 * factor else 0


def _rows_inside(two: _Run, three: _Run) -> bool | None:
    """Tell rows that stand picture by picture (a a b b) from those part by part (a b a b); None for other orders."""
    assert two.rows is not None
    assert three.rows is not None
    rows, more = two.rows.unflatten(0, (-1, 2)), three.rows.unflatten(0, (-1, 3))[:, :2]
    if _same(two.rows, three.rows[: len(two.rows)]):
        return True
    return False if _same(rows, more) else None


def _same(rows: Tensor, others: Tensor) -> bool:
    if rows.shape != others.shape or not rows.numel():
        return False
    scale = rows.abs().max().clamp_min(1e-30)
    return bool((rows - others).abs().max() <= ROWS_TOLERANCE * scale)


def _check_can_be_seen(model2d: nn.Module) -> None:
    unmade = [path for path, value in (*model2d.named_parameters(), *model2d.named_buffers()) if is_lazy(value)]
    if unmade:
        raise InflateError(
            "layers of the model have no weights yet",
            where="make_plan",
            expected="lazy layers that have seen a picture",
            got=list_faults(unmade, shown=5),
            fix="run it once on a picture: model2d(torch.zeros(1, channels, height, width))",
        )
    parts = model2d.named_modules()
    compiled = [path or "the model" for path, part in parts if isinstance(part, torch.jit.ScriptModule)]
    if compiled:
        raise InflateError(
            "parts of the model were compiled by torch.jit, so that nobody can see what they call",
            where="make_plan",
            expected="modules in Python",
            got=list_faults(compiled, shown=5),
            fix="build the model without torch.jit.script and torch.jit.trace (timm: scriptable=False)",
        )


def _check_answer_grows(two: Any, three: Any) -> None:
    pairs = zip(pytree.tree_leaves(two), pytree.tree_leaves(three), strict=True)
    shapes = [(a.shape, b.shape) for a, b in pairs if isinstance(a, Tensor) and isinstance(b, Tensor)]
    if shapes and all(a == b for a, b in shapes):
        got = f"an answer {list(shapes[0][0])} to two pictures and to three"
        raise _of_others("the model's answer does not grow with the batch", got)


def _of_others(problem: str, got: str) -> InflateError:
    return InflateError(
        problem,
        where="make_plan",
        expected="answers to the pictures alone, by code that reaches weights and what it stores through self",
        got=got,
        fix="functions that are set on a model (hooks, m.forward = ...) hold on to the model they were made for: take "
        "the model from the hook's first argument, or make a class with a forward(); take means over the batch outside",
    )
