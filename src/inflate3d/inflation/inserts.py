"""What a 2D model has not and is run behind its modules: pools over time, temporal convolutions, non-local blocks."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inflate3d.errors import InflateError, list_faults, nearest_names
from inflate3d.inflation.fold import Fold, Folded
from inflate3d.inflation.observe import copied
from inflate3d.inflation.outputs import look_at_outputs
from inflate3d.inflation.padding import TimePadding, pad_for
from inflate3d.inflation.pictures import pictures_like
from inflate3d.inflation.plan import Insert, Plan

STD = 0.01  # Source: Wang et al. 2018, the authors' code, configs: NONLOCAL.CONV_INIT_STD


class Inserted(Folded):
    """Something that runs on the map that a module gives, in clip form."""

    def __init__(self, insert: Insert, channels: int, fold: Fold) -> None:  # of the map, for those that learn
        super().__init__()
        self.plan, self.fold, self.runs = insert.layer, fold, {}

    def padded(self, clip: Tensor) -> Tensor:
        """Pad in time as the plan says."""
        return pad_for(clip, self.plan.time_kernel, stride=self.plan.time_stride, padding=self.plan.padding)


class TimePool(Inserted):
    """A maximum over frames."""

    def through_time(self, x: Tensor) -> Tensor:
        """Take the maximum of `[b, c, t, h, w]` over windows in time."""
        return F.max_pool3d(self.padded(x), (self.plan.time_kernel, 1, 1), (self.plan.time_stride, 1, 1))


class TemporalConv(Inserted):
    """A convolution over frames, added to its input; zero at the start."""

    def __init__(self, insert: Insert, channels: int, fold: Fold) -> None:
        super().__init__(insert, channels, fold)
        self.conv = nn.Conv3d(channels, channels, (self.plan.time_kernel, 1, 1))
        for parameter in self.conv.parameters():
            nn.init.zeros_(parameter)

    def through_time(self, x: Tensor) -> Tensor:
        """Convolve `[b, c, t, h, w]` in time and add the input."""
        added: Tensor = self.conv(self.padded(x))
        return x + added


class NonLocal(Inserted):
    """A non-local block over all positions of the clip, added to its input; batch norm makes it zero at the start.

    Source: Wang et al. 2018, Non-local Neural Networks, sections 3.2 and 3.3; the attention "softmax" and the
    sub-sampling "before" are those of the authors' code (`lib/models/nonlocal_helper.py`), not of the paper.
    """

    def __init__(self, insert: Insert, channels: int, fold: Fold) -> None:
        super().__init__(insert, channels, fold)
        self.attention, self.sub_sample = insert.attention, insert.sub_sample
        inner = max(channels // 2, 1)
        if self.attention != "gaussian":
            self.theta, self.phi = nn.Conv3d(channels, inner, 1), nn.Conv3d(channels, inner, 1)
        self.g, self.out = nn.Conv3d(channels, inner, 1), nn.Conv3d(inner, channels, 1)
        self.bn = nn.BatchNorm3d(channels)
        nn.init.zeros_(self.bn.weight)
        for part in self.children():
            if isinstance(part, nn.Conv3d):
                nn.init.normal_(part.weight, std=STD)
                assert part.bias is not None
                nn.init.zeros_(part.bias)

    def through_time(self, x: Tensor) -> Tensor:
        """Let every position of `[b, c, t, h, w]` see all others, and add the input."""
        source = _halved(x) if self.sub_sample == "before" else x
        theta, phi = (x, source) if self.attention == "gaussian" else (self.theta(x), self.phi(source))
        g = self.g(source)
        if self.sub_sample == "after":
            phi, g = _halved(phi), _halved(g)
        theta, phi, g = (value.flatten(2).transpose(1, 2) for value in (theta, phi, g))  # [b, positions, channels]
        if self.attention == "dot_product":
            y = theta @ (phi.transpose(1, 2) @ g) / phi.shape[1]
        else:
            scale = None if self.attention == "softmax" else 1.0  # None: over the root of the channels
            y = F.scaled_dot_product_attention(theta[:, None], phi[:, None], g[:, None], scale=scale)[:, 0]
        added: Tensor = self.bn(self.out(y.transpose(1, 2).unflatten(2, x.shape[2:])))
        return x + added


def _halved(clip: Tensor) -> Tensor:
    return F.max_pool3d(clip, (1, 2, 2))


CLASSES: dict[str, type[Inserted]] = {"time_pool": TimePool, "temporal_conv": TemporalConv, "nonlocal": NonLocal}


class RunsInsert:
    """A hook behind a module: what is inserted runs on what the module gives."""

    def __init__(self, inserted: Inserted) -> None:
        self.inserted = inserted

    def __call__(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        """Hand the module's output on."""
        changed: Tensor = self.inserted(output)
        return changed


def place(plan: Plan, inserts: Sequence[Insert], net: nn.Module, *, padding: TimePadding) -> Plan:
    """Add inserts to a plan: patterns become names, and each gets its place in the order in which the model runs.

    Args:
        plan: Of the model; inserts that it has already stay.
        inserts: As the user wrote them.
        net: The 2D model; left as it is.
        padding: In time, for those that say none.

    Raises:
        InflateError: An insert has no place: see `maps_behind`.
    """
    names = [name for name, _ in net.named_modules() if name]
    named = list(plan.inserts)
    for insert in inserts:
        found = [name for name in names if fnmatchcase(name, insert.after)] or [insert.after]
        named += [replace(insert, after=name, padding=insert.padding or padding) for name in found]
    positions = {name: position for name, (position, _) in _run(plan, named, net).items()}
    placed = [replace(insert, position=positions[insert.after]) for insert in named]
    order = list(positions)  # of execution
    return replace(plan, inserts=tuple(sorted(placed, key=lambda insert: order.index(insert.after))))


def maps_behind(plan: Plan, net: nn.Module) -> dict[str, Tensor]:
    """Give the maps `[n, c, h, w]` behind which a plan inserts something, by the names of the modules they come from.

    Raises:
        InflateError: A module is not there, does not run exactly once for each forward(), gives no map of the
            picture, or lies inside a layer that is taken over whole.
    """
    return {name: output for name, (_, output) in _run(plan, plan.inserts, net).items()} if plan.inserts else {}


def insert_into(net: nn.Module, plan: Plan, maps: dict[str, Tensor], *, fold: Fold) -> nn.Module | None:
    """Make what a plan inserts and hook it behind the modules of a net; the hooks hold it, but the net does not.

    Returns:
        What was inserted, in a tree of modules with the net's names, so that names in the net stay as they are.
    """
    made: dict[str, Inserted] = {}
    for insert in plan.inserts:
        output = maps[insert.after]
        inserted = CLASSES[insert.what](insert, output.shape[1], fold).to(output.device, output.dtype)
        made[insert.layer.path] = inserted
        net.get_submodule(insert.after).register_forward_hook(RunsInsert(inserted))
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


def _run(plan: Plan, inserts: Sequence[Insert], net: nn.Module) -> dict[str, tuple[int, Tensor]]:
    """Run a copy of the net; give place and map of each module behind which something goes, in order of execution."""
    trial = copied(net).eval()
    modules = dict(trial.named_modules())
    wanted = {insert.after for insert in inserts}
    numbers = {layer.path: number for number, layer in enumerate(plan.layers, start=1) if layer.path in modules}
    outputs: dict[str, list[Any]] = {}
    places: dict[str, int] = {}
    reached = 0

    def listen(name: str) -> Any:
        def heard(module: nn.Module, args: Any, output: Any) -> None:
            nonlocal reached
            reached = max(reached, numbers.get(name, 0))
            if name in wanted:
                places.setdefault(name, reached)
                outputs.setdefault(name, []).append(output)

        return heard

    for name in (wanted | numbers.keys()) & modules.keys():
        modules[name].register_forward_hook(listen(name))
    pictures = pictures_like(trial, plan.input_shape)
    with torch.no_grad():
        trial(pictures)
        runs = {name: list(outputs.get(name, ())) for name in wanted}
        faults = _faults(inserts, runs, modules, plan)

        def maps(frames: Tensor) -> list[Tensor]:
            outputs.clear()
            trial(frames)
            return [outputs[name][0] for name in places]

        forms = dict(zip(places, look_at_outputs(maps, pictures).forms, strict=True)) if not faults else {}
    faults += [f"{name}: channels do not stand first in what it gives" for name in forms if forms[name] != "map"]
    _refuse(faults, [name for name in modules if name])
    return {name: (position, runs[name][0]) for name, position in places.items()}


def _faults(
    inserts: Sequence[Insert], runs: dict[str, list[Any]], modules: dict[str, nn.Module], plan: Plan
) -> list[str]:
    whole = [layer.path + "." for layer in plan.layers if layer.action != "frame" and layer.path]
    faults = [
        f"{insert}: twice"
        for insert, count in Counter(f"{one.what} after {one.after}" for one in inserts).items()
        if count > 1
    ]
    for insert in inserts:
        name, given = insert.after, runs[insert.after]
        outer = next((path for path in whole if name.startswith(path)), "")
        if name not in modules:
            faults.append(f"{name}: no such module")
        elif outer:
            faults.append(f"{name}: inside {outer[:-1]}, which is taken over whole")
        elif len(given) != 1:
            faults.append(f"{name}: runs {len(given)} times for each forward()")
        elif not isinstance(given[0], Tensor) or given[0].ndim != 4 or given[0].shape[0] != 3:
            what = list(given[0].shape) if isinstance(given[0], Tensor) else type(given[0]).__name__
            faults.append(f"{name}: gives {what} for three pictures")
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
