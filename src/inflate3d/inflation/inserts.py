"""Where layers that a 2D model has not go in: behind its modules, or ahead of them; found, hooked in, taken out."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from inflate3d.errors import InflateError, list_faults, nearest_names
from inflate3d.inflation.fold import Fold
from inflate3d.inflation.inserted import CLASSES, ON_TOKENS, Inserted, Site, as_map
from inflate3d.inflation.observe import copied, first_tensor
from inflate3d.inflation.outputs import look_at_outputs
from inflate3d.inflation.padding import TimePadding
from inflate3d.inflation.pictures import pictures_like
from inflate3d.inflation.plan import Insert, Plan


class Spot(NamedTuple):
    """Where something is inserted: behind a module, or ahead of it."""

    module: str
    before: bool


class RunsInsert:
    """A hook behind a module: what is inserted runs on what the module gives."""

    def __init__(self, inserted: Inserted) -> None:
        self.inserted = inserted

    def __call__(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        """Hand the module's output on."""
        changed: Tensor = self.inserted(output)
        return changed


class RunsInsertBefore:
    """A hook ahead of a module: what is inserted runs on the first tensor that the module is given."""

    def __init__(self, inserted: Inserted) -> None:
        self.inserted = inserted

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        """Change it."""
        name, x = first_tensor(args, kwargs)
        given = {**dict(enumerate(args)), **kwargs, name: self.inserted(x)}
        return tuple(given[place] for place in range(len(args))), {name: given[name] for name in kwargs}


def place(plan: Plan, inserts: Sequence[Insert], net: nn.Module, *, padding: TimePadding) -> Plan:
    """Add inserts to a plan: patterns become names, and each gets its place in the order in which the model runs.

    Args:
        plan: Of the model; inserts that it has already stay.
        inserts: As the user wrote them.
        net: The 2D model; left as it is.
        padding: In time, for those that say none.

    Raises:
        InflateError: An insert has no place: see `sites_in`.
    """
    names = [name for name, _ in net.named_modules() if name]
    named = list(plan.inserts)
    for insert in inserts:
        found = [name for name in names if fnmatchcase(name, insert.after)] or [insert.after]
        named += [replace(insert, after=name, padding=insert.padding or padding) for name in found]
    positions = {spot: position for spot, (position, _) in _run(plan, named, net).items()}
    placed = [replace(insert, position=positions[_spot(insert)]) for insert in named]
    order = list(positions)  # of execution
    return replace(plan, inserts=tuple(sorted(placed, key=lambda insert: order.index(_spot(insert)))))


def sites_in(plan: Plan, net: nn.Module) -> dict[Spot, Site]:
    """Give what runs through the spots where a plan inserts something.

    Raises:
        InflateError: A module is not there, does not run exactly once for each forward(), gives (or is given) no map of
            the picture, or lies inside a layer that is taken over whole.
    """
    return {spot: site for spot, (_, site) in _run(plan, plan.inserts, net).items()} if plan.inserts else {}


def _spot(insert: Insert) -> Spot:
    return Spot(insert.after, insert.before)


def insert_into(net: nn.Module, plan: Plan, sites: dict[Spot, Site], *, fold: Fold) -> nn.Module | None:
    """Make what a plan inserts and hook it to the modules of a net; the hooks hold it, but the net does not.

    Returns:
        What was inserted, in a tree of modules with the net's names, so that names in the net stay as they are.
    """
    made: dict[str, Inserted] = {}
    for insert in plan.inserts:
        site = sites[_spot(insert)]
        inserted = CLASSES[insert.what](insert, site, fold).to(site.map.device, site.map.dtype)
        made[insert.layer.path] = inserted
        module = net.get_submodule(insert.after)
        if insert.before:
            module.register_forward_pre_hook(RunsInsertBefore(inserted), with_kwargs=True)
        else:
            module.register_forward_hook(RunsInsert(inserted))
    if not made:
        return None
    root = nn.Module()
    for path in sorted(made, key=lambda path: path.count(".")):  # outer ones first: a name may be taken inside them
        home, *parents, name = root, *path.split(".")[1:]
        for parent in parents:
            if parent not in home._modules:
                home.add_module(parent, nn.Module())
            home = home.get_submodule(parent)
        home.add_module(name, made[path])
    return root


def forget_inserts(module: nn.Module, fold: Fold) -> None:
    """Undo `insert_into` for one module of a net."""
    for number, hook in list(module._forward_hooks.items()):
        if isinstance(hook, RunsInsert) and hook.inserted.fold is fold:
            del module._forward_hooks[number]
    for number, before in list(module._forward_pre_hooks.items()):
        if isinstance(before, RunsInsertBefore) and before.inserted.fold is fold:
            del module._forward_pre_hooks[number]
            module._forward_pre_hooks_with_kwargs.pop(number, None)


def _run(plan: Plan, inserts: Sequence[Insert], net: nn.Module) -> dict[Spot, tuple[int, Site]]:
    """Run a copy of the net; give place and site of each spot where something goes, in order of execution."""
    trial = copied(net).eval()
    modules = dict(trial.named_modules())
    wanted = {_spot(insert) for insert in inserts}
    numbers = {layer.path: number for number, layer in enumerate(plan.layers, start=1) if layer.path in modules}
    values: dict[Spot, list[Any]] = {}
    places: dict[Spot, int] = {}
    reached = 0

    def note(spot: Spot, value: Any) -> None:
        if spot in wanted:
            places.setdefault(spot, reached)
            values.setdefault(spot, []).append(value)

    def listen(name: str) -> Any:
        def begins(module: nn.Module, args: Any, kwargs: Any) -> None:
            note(Spot(name, True), first_tensor(args, kwargs)[1])

        def ends(module: nn.Module, args: Any, output: Any) -> None:
            nonlocal reached
            reached = max(reached, numbers.get(name, 0))
            note(Spot(name, False), output)

        return begins, ends

    for name in ({spot.module for spot in wanted} | numbers.keys()) & modules.keys():
        begins, ends = listen(name)
        modules[name].register_forward_pre_hook(begins, with_kwargs=True)
        modules[name].register_forward_hook(ends)
    pictures = pictures_like(trial, plan.input_shape)
    with torch.no_grad():
        trial(pictures)
        runs = {spot: list(values.get(spot, ())) for spot in wanted}
        faults = _faults(inserts, runs, modules, plan)

        def maps(frames: Tensor) -> list[Tensor]:
            values.clear()
            trial(frames)
            return [values[spot][0] for spot in places]

        forms = dict(zip(places, look_at_outputs(maps, pictures).forms, strict=True)) if not faults else {}
    faults += [
        f"{insert.after}: channels do not stand first in what it gives"
        for insert in inserts
        if forms and forms[_spot(insert)] not in ("map", *("map-last", "tokens") * (insert.what in ON_TOKENS))
    ]
    _refuse(list(dict.fromkeys(faults)), [name for name in modules if name])
    sites = {spot: Site(as_map(runs[spot][0], forms[spot]), forms[spot]) for spot in places}
    return {spot: (position, sites[spot]) for spot, position in places.items()}


def _faults(
    inserts: Sequence[Insert], runs: dict[Spot, list[Any]], modules: dict[str, nn.Module], plan: Plan
) -> list[str]:
    whole = [layer.path + "." for layer in plan.layers if layer.action != "frame" and layer.path]
    faults = [
        f"{insert}: twice"
        for insert, count in Counter(f"{one.what} after {one.after}" for one in inserts).items()
        if count > 1
    ]
    for insert in inserts:
        name, given = insert.after, runs[_spot(insert)]
        axes = (3, 4) if insert.what in ON_TOKENS else (4,)
        outer = next((path for path in whole if name.startswith(path)), "")
        if name not in modules:
            faults.append(f"{name}: no such module")
        elif outer:
            faults.append(f"{name}: inside {outer[:-1]}, which is taken over whole")
        elif len(given) != 1:
            faults.append(f"{name}: runs {len(given)} times for each forward()")
        elif not isinstance(given[0], Tensor) or given[0].ndim not in axes or given[0].shape[0] != 3:
            what = list(given[0].shape) if isinstance(given[0], Tensor) else type(given[0]).__name__
            faults.append(f"{name}: {'is given' if insert.before else 'gives'} {what} for three pictures")
        elif insert.what == "nonlocal" and insert.sub_sample != "none" and min(given[0].shape[2:]) < 2:
            faults.append(f'{name}: maps {list(given[0].shape[2:])} are too small for sub_sample="{insert.sub_sample}"')
    return list(dict.fromkeys(faults))


def _refuse(faults: Sequence[str], names: Sequence[str]) -> None:
    if not faults:
        return
    missing = next((fault.partition(":")[0] for fault in faults if fault.endswith("no such module")), None)
    raise InflateError(
        "something cannot be inserted where it is wanted",
        where="inserts",
        expected="after a module that runs once for each forward() and gives one map [n, c, h, w], and each kind once",
        got=list_faults(faults, shown=5),
        fix=f"did you mean {nearest_names(missing, names)}?" if missing else "name a block or stage of the model",
    )
