"""The proof: on a still clip the 3D model answers as the 2D model does, and on a moving one it sees the motion."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from inflate3d.errors import InflateError, in_a_line, is_count, list_faults
from inflate3d.inflation.acs import has_acs, with_axial_kernels
from inflate3d.inflation.build import build, check_model, deflate
from inflate3d.inflation.inflated import Inflated, check_inflated
from inflate3d.inflation.motion import look, per_step
from inflate3d.inflation.observe import copied
from inflate3d.inflation.pictures import picture_shape, pictures_like
from inflate3d.inflation.profiles import is_random

EXACT = 1e-9  # relative, float64
CASTING = 1e-5  # where the 2D code itself goes down to float32 on the way
SINGLE = 1e-5  # relative, float32, at least
DEFLATED = 1e-6
APART, TRAINED = 1e-5, 1e-6  # training mode divides by small batch deviations
APART_SINGLE, TRAINED_SINGLE = 1e-4, 1e-3  # the same where float32 has to do
ACS_UNCLAIMED = "a still clip is answered as the picture: two thirds of the ACS kernels see it from the side"
FLOAT64_UNCLAIMED = "anything finer than float32, in which all is tested: the 2D code does not run in float64"


@dataclass(frozen=True)
class Check:
    """One law that was tested.

    Attributes:
        law: What was claimed.
        holds: Whether it does.
        error: The largest relative error found, or 0 where the law is not about numbers.
        limit: The error allowed.
        where: On which clips, or where it broke.
    """

    law: str
    holds: bool
    error: float
    limit: float
    where: str


@dataclass(frozen=True)
class Proof:
    """A certificate: what was tested on a 3D model, and what was found.

    Attributes:
        model: Class of the 2D model.
        preset: Preset of the plan.
        layers_through_time: How many layers mix frames; where it is 0 the proof is trivial.
        checks: In the order in which they were made.
        inserts: What the 3D model has and the 2D model has not, by the names of its parameters.
        not_claimed: Laws of other models that this one does not keep, and so was not tested for.
    """

    model: str
    preset: str
    layers_through_time: int
    checks: tuple[Check, ...]
    inserts: tuple[str, ...] = ()
    not_claimed: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        """Whether every law that is claimed holds."""
        return all(check.holds for check in self.checks)

    def __str__(self) -> str:
        lines = [
            f"{self.model}, preset {self.preset}, {self.layers_through_time} layers look through time: "
            + ("PROVED" if self.holds else "NOT PROVED")
            + (", but not for still clips" if self.holds and ACS_UNCLAIMED in self.not_claimed else "")
        ]
        lines += [f"  not claimed: {law}" for law in self.not_claimed]
        lines += ["  inserted: " + ", ".join(self.inserts)] if self.inserts else []
        for check in self.checks:
            mark = "holds" if check.holds else "FAILS"
            numbers = f": error {check.error:.1e}, allowed {check.limit:.0e}" if check.limit else ""
            lines.append(f"  {mark}  {check.law}{numbers}  ({check.where})")
        return "\n".join(lines)

    def to_json(self) -> str:
        """Write the certificate as JSON."""
        return json.dumps({**asdict(self), "holds": self.holds}, indent=1)


def prove(
    model2d: nn.Module, model3d: Inflated, *, example: Tensor | None = None, lengths: Sequence[int] = (1, 5, 8)
) -> Proof:
    """Test that a 3D model lost nothing of the 2D model it was inflated from, and that it looks where its plan says.

    In float32 the model itself is tested. The laws that need float64, and those about frames that differ, are tested on
    its plan carried out anew in float64, because kernels laid out in float32 are rounded. Where the 2D code cannot run
    in float64 they are tested in float32, and the proof says so. What is inserted and learns has to be as it was at the
    start: zero.

    Args:
        model2d: The 2D model; left as it is.
        model3d: What `inflate` made of it; left as it is.
        example: A picture `[1, c, h, w]`, for its size alone; else the size the plan was made with.
        lengths: Frames of the still clips.

    Raises:
        InflateError: The models are not of each other, of one dtype and on one device; or a length is no count.

    Example:
        >>> from inflate3d.inflation.build import inflate
        >>> model2d = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.ReLU())
        >>> picture = torch.rand(1, 3, 11, 13)
        >>> prove(model2d, inflate(model2d, example=picture), example=picture).holds
        True
    """
    _check_pair(model2d, model3d, lengths)
    shape = picture_shape(model2d, example) if example is not None else model3d.plan.input_shape
    flat, deep = copied(model2d).eval(), copied(model3d).eval()
    pictures = pictures_like(flat, shape)[:2]
    wide, why_not = _in_float64(flat, pictures)
    shown = pictures.float() if why_not else pictures.double()
    lost, acs = deep.plan.frames_lost, has_acs(deep.plan)
    lengths = [length + lost for length in lengths]
    with _default_dtype(shown.dtype):
        # kernels laid out in float32 are rounded: these laws are tested on the same plan carried out in float64
        deep64 = build(deep.plan, wide)
        # with ACS kernels the law is not claimed; turned to the pictures they have to keep it
        still64 = with_axial_kernels(deep64) if acs else deep64
        exact = None if why_not else _if_axial(still_float64(wide, still64, shown, lengths=lengths), acs)
        apart = _pictures_stay_apart(wide, shown)
        trains = _batch_norm_trains(wide, deep64, shown) if not (lost or acs) else None
        sights = [Check(law, holds, 0.0, 0.0, where) for law, holds, where in look(deep64, shown[:1])]
    still = with_axial_kernels(deep) if acs else deep
    single = _if_axial(still_float32(flat, still, pictures, lengths=lengths), acs)
    returns = _state_dict_returns(flat, deep, pictures) if not lost else None
    checks = (exact, single, apart, _deflates(flat, deep), trains, returns, *sights)
    plan, made = model3d.plan, tuple(check for check in checks if check)
    through = sum(layer.looks_through_time for layer in plan.steps)
    inserts = tuple(insert.layer.path for insert in plan.inserts)
    not_claimed = [ACS_UNCLAIMED] * acs + [f"{FLOAT64_UNCLAIMED} ({why_not})"] * bool(why_not)
    return Proof(plan.model, plan.preset, through, made, inserts, tuple(not_claimed))


def _in_float64(flat: nn.Module, pictures: Tensor) -> tuple[nn.Module, str]:
    """Copy a 2D model in float64, with the tensors that it keeps as plain attributes.

    Where it cannot run so, because its code names float32 itself, a copy in float32 is given, and what went wrong.
    """
    wide = copied(flat).double()
    for module in wide.modules():
        for name, value in list(vars(module).items()):
            held = any(isinstance(leaf, Tensor) and leaf.is_floating_point() for leaf in pytree.tree_leaves(value))
            if held and name not in ("_parameters", "_buffers"):
                vars(module)[name] = pytree.tree_map_only(
                    Tensor, lambda one: one.double() if one.is_floating_point() else one, value
                )
    try:
        with _default_dtype(torch.float64), torch.no_grad():
            wide(pictures.double())
    except Exception as error:  # whatever it is: what fails in float32 too is refused there
        return copied(flat).float(), in_a_line(error)
    return wide, ""


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Let what code makes without naming a type have this one: grids, constants, masks."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _if_axial(check: Check, acs: bool) -> Check:
    return replace(check, law=f"{check.law}, were all ACS kernels axial") if acs else check


def _check_pair(model2d: nn.Module, model3d: Inflated, lengths: Sequence[int]) -> None:
    check_model(model2d, "prove")
    check_inflated(model3d, "prove")
    names2d, names3d = set(model2d.state_dict()), set(model3d.net.state_dict())
    kinds = [{(p.dtype, p.device) for p in model.parameters()} for model in (model2d, model3d.net)]
    faults = [f"{type(model2d).__name__} and a plan for {model3d.plan.model}"] * (
        type(model2d).__name__ != model3d.plan.model
    )
    faults += [f"{name} in one of them alone" for name in sorted(names2d ^ names3d)]
    faults += [f"{_kinds(kinds[0])} and {_kinds(kinds[1])}"] * (kinds[0] != kinds[1])
    faults += ["no lengths"] * (not lengths) + [f"{length!r} frames" for length in lengths if not is_count(length)]
    if faults:
        raise InflateError(
            "nothing can be proved of this pair",
            where="prove",
            expected="a 2D model, what inflate made of it, of one dtype on one device; and lengths of 1 frame or more",
            got=list_faults(faults, shown=5),
            fix="prove(model2d, inflate(model2d))",
        )


def _kinds(found: set[tuple[torch.dtype, torch.device]]) -> str:
    return ", ".join(sorted(f"{dtype} on {device}" for dtype, device in found)) or "no parameters"


def still_float64(flat: nn.Module, deep: Inflated, pictures: Tensor, *, lengths: Sequence[int]) -> Check:
    """Test the first law alone, in float64; models and pictures come in float64, in eval mode."""
    with _FindsSingles() as finder, torch.no_grad():
        answer = flat(pictures)
    limit = CASTING if finder.found else EXACT
    where = f"the plan in float64, T = {', '.join(map(str, lengths))}"
    where += "; the 2D code casts to float32" if finder.found else ""
    error = max(_still_error(answer, deep, pictures, length) for length in lengths)
    if not error <= limit:
        where = f"first differs at {_first_difference(flat, deep, pictures, limit)}"
    return Check("a still clip, every frame, float64", error <= limit, error, limit, where)


def still_float32(flat: nn.Module, deep: Inflated, pictures: Tensor, *, lengths: Sequence[int]) -> Check:
    """Test the first law alone, in float32: a still clip of each length, every frame. Both models are set to eval."""
    pictures = pictures.float()
    flat, given = copied(flat).float().eval(), deep
    deep = copied(deep).float().eval()
    if any(parameter.dtype in (torch.float16, torch.bfloat16) for parameter in given.parameters()):
        deep = build(deep.plan, flat)  # half precision rounds the very kernels when they are laid out
    with torch.no_grad():
        answer, ten = flat(pictures), flat(pictures[:1].expand(10, -1, -1, -1))
        alone = flat(pictures[:1])
    forms = deep.outputs_of("forward").forms
    pairs = zip(_pairs(ten, alone, all_leaves=True), forms, strict=True)
    own = max((_relative(a[:1], b[:1]) for (a, b), form in pairs if form != "same"), default=0.0)
    limit = max(SINGLE, 5 * own)
    error = max(_still_error(answer, deep, pictures, length) for length in lengths)
    where = f"T = {', '.join(map(str, lengths))}"
    return Check("a still clip, every frame, float32", error <= limit < 1, error, limit, where)


def _pictures_stay_apart(flat: nn.Module, pictures: Tensor) -> Check:
    """Compare a picture's answer alone with its answer beside another picture."""
    with torch.no_grad():
        both, alone = flat(pictures), flat(pictures[:1])
    errors = [_relative(a[:1], b) for a, b in _pairs(both, alone) if a.shape[:1] == (2,) and b.shape[:1] == (1,)]
    error = max(errors, default=0.0)
    limit = APART if pictures.dtype == torch.float64 else APART_SINGLE
    return Check("a picture is answered as if it were alone", error <= limit, error, limit, "batches of 1 and 2")


def _still_error(answer: Any, deep: Inflated, pictures: Tensor, length: int) -> float:
    """Compare every frame of the answer to a still clip with the answer to the picture."""
    clip = pictures.unsqueeze(2).repeat(1, 1, length, 1, 1)
    with torch.no_grad(), per_step(deep):
        answer3d = deep(clip)
    forms = deep.outputs_of("forward").forms
    errors = [0.0]
    for (a, b), form in zip(_pairs(answer, answer3d, all_leaves=True), forms, strict=True):
        if form == "same":
            errors.append(_same_error(a, b))
        else:
            time_axis = 2 if form == "map" else 1
            errors.append(_relative(a.unsqueeze(time_axis).expand_as(b), b) if b.ndim > a.ndim else float("inf"))
    compared = [form for form in forms if form != "same"]
    return max(errors) if compared else float("inf")  # an answer that does not grow with the batch proves nothing


def _same_error(a: Any, b: Any) -> float:
    """Compare what is the same for any number of pictures; words and nothing are not compared."""
    if not isinstance(a, Tensor | int | float):
        return 0.0
    if not isinstance(b, Tensor | int | float):
        return float("inf")
    return _relative(torch.as_tensor(a).detach(), torch.as_tensor(b).detach())


def _deflates(flat: nn.Module, deep: Inflated) -> Check | None:
    law = "deflate gives the 2D weights back"
    if any(is_random(layer.profile) for layer in deep.plan):
        return None
    back, wanted = deflate(deep).state_dict(), flat.state_dict()
    if back.keys() != wanted.keys():
        return Check(law, False, float("inf"), DEFLATED, f"names differ: {sorted(back.keys() ^ wanted.keys())[:3]}")
    # state dicts of quantized layers hold types and pairs as well
    floats = {name: value for name, value in wanted.items() if isinstance(value, Tensor) and value.is_floating_point()}
    errors = {name: _relative(value, back[name]) for name, value in floats.items()}
    worst = max(errors, key=errors.__getitem__, default="no weights")
    error = errors.get(worst, 0.0)
    rounding = max((torch.finfo(value.dtype).eps for value in floats.values()), default=0)
    limit = max(DEFLATED, 4 * rounding)
    return Check(law, error <= limit, error, limit, worst)


def _batch_norm_trains(flat: nn.Module, deep: Inflated, pictures: Tensor) -> Check | None:
    """With batch norm in training mode, outputs and running means agree; running variances up to n / (n - 1)."""
    flat, deep = copied(flat), copied(deep)
    norms = [(a, b) for a, b in zip(flat.modules(), deep.net.modules(), strict=True) if _has_statistics(a)]
    if not norms:
        return None
    for pair in norms:
        for norm in pair:
            setattr(norm.train(), "momentum", 1.0)  # noqa: B010 - typed as a module; the statistics of this one batch
    with torch.no_grad():
        answer = flat(pictures)
    error = _still_error(answer, deep, pictures, 5)
    means = [_mean_error(a, b) for a, b in norms]
    exact, error = pictures.dtype == torch.float64, max(error, *means)
    limit = TRAINED if exact else TRAINED_SINGLE
    where = f"the plan in {'float64' if exact else 'float32'}, T = 5"
    return Check("batch norm in training mode: outputs, running means", error <= limit, error, limit, where)


def _mean_error(a: nn.Module, b: nn.Module) -> float:
    """Compare running means in units of the deviation: a mean may be nothing but rounding."""
    mean, deviation = a.get_buffer("running_mean"), a.get_buffer("running_var").sqrt()
    return float(((mean - b.get_buffer("running_mean")).abs() / (deviation + mean.abs() + 1e-30)).max())


def _state_dict_returns(flat: nn.Module, deep: Inflated, pictures: Tensor) -> Check:
    again = build(deep.plan, flat, time_pool=deep.time_pool)
    again.load_state_dict(deep.state_dict())
    clip = torch.stack([pictures, pictures.flip(-1), pictures.flip(-2)], dim=2)
    with torch.no_grad():
        error = max((_relative(a, b) for a, b in _pairs(deep(clip), again.eval()(clip))), default=0.0)
    names = list(deep.net.state_dict()) == list(flat.state_dict())
    where = "same names as in 2D" if names else "the names differ from those in 2D"
    return Check("the state dict restores the model", names and error <= SINGLE, error, SINGLE, where)


def _first_difference(flat: nn.Module, deep: Inflated, pictures: Tensor, limit: float) -> str:
    """Name the first layer, in order of execution, whose output on a still clip differs from the 2D one."""
    outputs2d: dict[str, list[Tensor]] = {}
    with torch.no_grad(), _outputs_into(flat, outputs2d):
        flat(pictures)
    length = 5
    outputs3d: dict[str, list[Tensor]] = {}
    with torch.no_grad(), _outputs_into(deep.net, outputs3d):
        deep(pictures.unsqueeze(2).repeat(1, 1, length, 1, 1))
    for path, tensors in outputs3d.items():
        for a, b in zip(outputs2d.get(path, []), tensors, strict=False):
            repeats = b.shape[0] / a.shape[0]
            if not repeats.is_integer() or a.shape[1:] != b.shape[1:]:
                return f"{path}: {list(b.shape)} for {list(a.shape)}"
            expected = a.unflatten(0, (len(pictures), -1)).repeat_interleave(int(repeats), dim=0).flatten(0, 1)
            if not _relative(expected, b) <= limit:
                return path or "the model itself"
    return "no layer, but the output"


@contextmanager
def _outputs_into(model: nn.Module, found: dict[str, list[Tensor]]) -> Iterator[None]:
    def listen(path: str) -> Callable[[nn.Module, Any, Any], None]:
        def heard(module: nn.Module, args: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.ndim and output.is_floating_point():
                found.setdefault(path, []).append(output.clone())

        return heard

    handles = [module.register_forward_hook(listen(path)) for path, module in model.named_modules()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _FindsSingles(TorchFunctionMode):
    """Notices whether a float64 run makes float32 numbers on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.found = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.dtype in (torch.float32, torch.bfloat16, torch.float16):
            self.found = True
        return result


def _has_statistics(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None


def _pairs(a: Any, b: Any, *, all_leaves: bool = False) -> list[tuple[Tensor, Tensor]]:
    pairs = list(zip(pytree.tree_leaves(a), pytree.tree_leaves(b), strict=True))
    return pairs if all_leaves else [pair for pair in pairs if isinstance(pair[0], Tensor)]


def _relative(expected: Tensor, found: Tensor) -> float:
    """Largest difference over largest value; infinite where shapes differ or a number is none."""
    if expected.shape != found.shape:
        return float("inf")
    if bool((expected == found).all()):  # masks may hold what is infinite
        return 0.0
    scale = expected.double().abs().max().clamp_min(1e-30)
    error = float((expected.double() - found.double()).abs().max() / scale)
    return error if error == error else float("inf")  # noqa: PLR0124 - NaN is not equal to itself
