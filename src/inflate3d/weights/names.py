"""Recognize whose names a checkpoint has, and turn them into ours: one loop over the tables of `dialects`."""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor

from inflate3d.errors import NEXT_LINE, InflateError, list_faults
from inflate3d.models.inception import InceptionI3d
from inflate3d.weights.dialects import COUNTER, DIALECTS, STATISTICS, Dialect, Family
from inflate3d.weights.stored import Stored

# Networks whose names are known, in the order in which a tie is decided
ARCHITECTURES: dict[str, Family] = {
    "i3d": "i3d",
    **{f"resnet{depth}": "resnet" for depth in (50, 101, 152, 18, 34)},
    "googlenet": "googlenet",
    "squeezenet1_1": "squeezenet",
}
HEADS: dict[Family, str] = {
    "i3d": "Logits.Conv3d_0c_1x1.conv_3d.",
    "resnet": "fc.",
    "googlenet": "fc.",
    "squeezenet": "classifier.1.",
}
FIRST: dict[Family, str] = {
    "i3d": "Conv3d_1a_7x7.conv_3d.weight",
    "resnet": "conv1.weight",
    "googlenet": "conv1.conv.weight",
    "squeezenet": "features.0.weight",
}
NONLOCAL = (
    *(f"{part}.{kind}" for part in ("theta", "phi", "g", "out") for kind in ("weight", "bias")),
    *(f"bn.{kind}" for kind in ("weight", "bias", *STATISTICS, COUNTER)),
)
ENOUGH = 0.5  # of the names, to take a file for one of a dialect
AFFINE_EPS = 1e-5  # of batch norm in ResNets
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Recognized:
    """Whose names a file has.

    Attributes:
        dialect: The table that fits.
        architecture: A key of `ARCHITECTURES`.
        prefix: What stands before every name: wrappers, `module.` and the like.
        score: Names of the network that are there, of all that either has.
        spelled: Each name in the spelling of the table, to the name in the file.
    """

    dialect: Dialect
    architecture: str
    prefix: str
    score: float
    spelled: Mapping[str, str]


@dataclass
class Faults:
    """What keeps tensors and a network apart, told together and in order."""

    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.wrong)

    def __str__(self) -> str:
        kinds = (("missing", self.missing), ("unexpected", self.unexpected), ("of another shape or type", self.wrong))
        inner = f"{NEXT_LINE}  "
        told = (
            f"{len(names)} {word}:{inner}{list_faults(sorted(names), between=inner)}" for word, names in kinds if names
        )
        return NEXT_LINE.join(told)


@dataclass(frozen=True)
class Converted:
    """A checkpoint in our names.

    Attributes:
        state: Tensors with memory of their own.
        num_classes: Of the last layer; None where the file has none.
        in_channels: Of the first convolution.
        is_2d: Whether its kernels are those of a 2D network.
        notes: What was filled in, left out or changed.
    """

    state: dict[str, Tensor]
    num_classes: int | None
    in_channels: int
    is_2d: bool
    notes: tuple[str, ...]


@lru_cache(maxsize=64)
def network_shapes(architecture: str, num_classes: int, in_channels: int) -> Shapes:
    """List the tensors of a network, those of a 2D network as 2D.

    Example:
        >>> network_shapes("resnet50", 7, 3)["fc.weight"]
        (7, 2048)
    """
    with torch.device("meta"):
        if architecture == "i3d":
            state = InceptionI3d(num_classes, in_channels).state_dict()
        else:
            import torchvision.models  # noqa: PLC0415 - I3D does without

            options = {"aux_logits": False, "init_weights": False} if architecture == "googlenet" else {}
            state = torchvision.models.get_model(architecture, num_classes=num_classes, **options).state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    first = FIRST[ARCHITECTURES[architecture]]
    shapes[first] = (shapes[first][0], in_channels, *shapes[first][2:])
    return shapes


def nonlocal_names(architecture: str) -> Iterator[str]:
    """Name the tensors of non-local blocks that may stand behind the blocks of a ResNet."""
    if ARCHITECTURES[architecture] == "resnet":
        blocks = {".".join(name.split(".")[:2]) for name in network_shapes(architecture, 1, 3) if name[:5] == "layer"}
        for block in sorted(blocks):
            yield from (f"{block}.non_local.{part}" for part in NONLOCAL)


@lru_cache(maxsize=256)
def _spellings(dialect: Dialect, architecture: str) -> tuple[frozenset[str], frozenset[str]]:
    """List what a file of a dialect must hold, and what it may hold besides."""
    names = [name for name in network_shapes(architecture, 1, 3) if not name.endswith((*dialect.absent, COUNTER))]
    counters = [name for name in network_shapes(architecture, 1, 3) if name.endswith(COUNTER)]
    may = {dialect.spell(name) for name in (*counters, *nonlocal_names(architecture))}
    return frozenset(dialect.spell(name) for name in names), frozenset(may)


def recognize(names: Collection[str]) -> Recognized | None:
    """Find the dialect, network and prefix whose names a file has; None if there is none.

    Example:
        >>> recognize([f"module.{name}" for name in network_shapes("resnet50", 400, 3)]).prefix
        'module.'
    """
    best: Recognized | None = None
    for dialect in DIALECTS.values():
        spelled = {_respell(name, dialect): name for name in names}
        for architecture, family in ARCHITECTURES.items():
            if family != dialect.family:
                continue
            must, may = _spellings(dialect, architecture)
            for prefix in _prefixes(must, spelled):
                inside = {name.removeprefix(prefix): own for name, own in spelled.items() if name.startswith(prefix)}
                others = [name for name in inside if name not in must | may and not _left_out(name, dialect)]
                score = len(must & inside.keys()) / (len(must) + len(others))
                if score >= (1.0 if dialect.needs_all else ENOUGH) and (best is None or score > best.score):
                    best = Recognized(dialect, architecture, prefix, score, inside)
    return best


def _respell(name: str, dialect: Dialect) -> str:
    for theirs, ours in dialect.respelled:
        name = re.sub(theirs, ours, name)
    return name


def _prefixes(must: frozenset[str], names: Iterable[str]) -> list[str]:
    """List what stands before the names of a network, as three of them tell, in the order of the file."""
    ordered = sorted(must)
    probes = {ordered[0], ordered[len(ordered) // 2], ordered[-1]}
    found = [
        name.removesuffix(probe)
        for name in names
        for probe in probes
        if name.endswith(probe) and (name == probe or name[-len(probe) - 1] in "./")
    ]
    return list(dict.fromkeys(found))


def _left_out(name: str, dialect: Dialect) -> str | None:
    return next((what for pattern, what in dialect.left_out if re.search(pattern, name)), None)


def convert(tensors: Mapping[str, Stored], found: Recognized, *, where: str) -> Converted:
    """Bring a recognized checkpoint into our names, shapes and axes; all is checked before anything is read.

    Args:
        tensors: By their names in the file.
        found: What `recognize` says of these names.
        where: The file, for messages.

    Raises:
        InflateError: Tensors are missing, unknown, or of another shape or type; all faults are told together.
        ContentError: A tensor is damaged.
    """
    dialect, family = found.dialect, ARCHITECTURES[found.architecture]
    stored = {name: tensors[own] for name, own in found.spelled.items()}
    usual = network_shapes(found.architecture, 1, 3)
    heads = [_arranged(stored.get(dialect.spell(f"{HEADS[family]}{leaf}")), dialect) for leaf in ("bias", "weight")]
    num_classes = next((shape[0] for shape in heads if shape and shape[0]), None)
    first = _arranged(stored.get(dialect.spell(FIRST[family])), dialect)
    in_channels = first[1] if len(first) > 1 and first[0] == usual[FIRST[family]][0] and first[1] else 3
    is_2d = family != "i3d" and len(first) == 4
    shapes: dict[str, tuple[int, ...] | None] = dict(network_shapes(found.architecture, num_classes or 1, in_channels))
    headless = not any(dialect.spell(name) in stored for name in shapes if name.startswith(HEADS[family]))
    if headless:
        shapes = {name: shape for name, shape in shapes.items() if not name.startswith(HEADS[family])}
    shapes |= dict.fromkeys(nonlocal_names(found.architecture))
    places, filled, faults = _find(stored, shapes, found, is_2d=is_2d)
    beside = {name: _left_out(name, dialect) for name in stored.keys() - {dialect.spell(name) for name in shapes}}
    faults.unexpected += [
        f"{found.spelled[name]}: {tensors[found.spelled[name]]}" for name in beside if not beside[name]
    ]
    if faults:
        raise misfit(faults, where, f"{found.architecture}, as {dialect.writers} spell it")
    notes = _notes(filled, places, [what for what in beside.values() if what], len(tensors) - len(stored))
    state = {
        name: filled[name] if name in filled else places[name].read() for name in shapes if name in {*filled, *places}
    }
    return Converted(state, None if headless else num_classes, in_channels, is_2d, notes)


def _find(
    stored: Mapping[str, Stored], shapes: Mapping[str, tuple[int, ...] | None], found: Recognized, *, is_2d: bool
) -> tuple[dict[str, "_Place"], dict[str, Tensor], Faults]:
    """Find each of our tensors among theirs, or what stands in for it; a shape of None leaves that to the model."""
    dialect = found.dialect
    statistics = (dialect.spell(name) for name in shapes if name.endswith(STATISTICS))
    is_folded = dialect.may_be_folded and not any(path in stored for path in statistics)
    places, filled, faults = dict[str, _Place](), dict[str, Tensor](), Faults()
    for name, wanted in shapes.items():
        path = dialect.spell(name)
        tensor = stored.get(path)
        if tensor is not None:
            shape = _fit(_arranged(tensor, dialect), wanted, is_2d=is_2d)
            if shape is None or (tensor.dtype not in FLOATS and not name.endswith(COUNTER)):
                faults.wrong.append(f"{found.spelled[path]}: {tensor}, wanted {_wish(wanted, dialect, is_2d=is_2d)}")
            else:
                places[name] = _Place(tensor, shape, dialect.kernel_axes)
        elif wanted is not None:
            if name.endswith((*dialect.absent, COUNTER)) or (is_folded and name.endswith(STATISTICS)):
                filled[name] = _filling(name, wanted)
            else:
                faults.missing.append(f"{found.prefix}{path}")
    return places, filled, faults


@dataclass(frozen=True)
class _Place:
    """Where one of our tensors lies, and the shape it takes."""

    stored: Stored
    shape: tuple[int, ...]
    axes: tuple[int, ...]

    def read(self) -> Tensor:
        tensor = self.stored.read()
        tensor = tensor.permute(self.axes) if tensor.ndim == len(self.axes) else tensor
        tensor = tensor.float() if tensor.is_floating_point() else tensor
        return tensor.reshape(self.shape).contiguous()


def _arranged(tensor: Stored | None, dialect: Dialect) -> tuple[int, ...]:
    """Bring the lengths of a tensor into our order of axes."""
    if tensor is None or len(tensor.shape) != len(dialect.kernel_axes):
        return tensor.shape if tensor else ()
    return tuple(tensor.shape[axis] for axis in dialect.kernel_axes)


def _fit(shape: tuple[int, ...], wanted: tuple[int, ...] | None, *, is_2d: bool) -> tuple[int, ...] | None:
    """Find the shape that a tensor takes in the network; None if it does not fit."""
    if wanted is None or shape == wanted:
        return shape
    if len(wanted) == 4 and len(shape) == 5 and not is_2d:  # the 2D network's kernel, with an axis of time
        return shape if (*shape[:2], *shape[3:]) == wanted else None
    plain = [length for length in shape if length != 1] == [length for length in wanted if length != 1]
    return wanted if plain and not (len(wanted) == 4 and not is_2d) else None


def _wish(wanted: tuple[int, ...] | None, dialect: Dialect, *, is_2d: bool) -> str:
    if wanted is None:
        return "floats"
    lengths: list[int | str] = list(wanted)
    if len(wanted) == 4 and not is_2d:
        lengths.insert(2, "t")
    if len(lengths) == len(dialect.kernel_axes):
        lengths = [lengths[dialect.kernel_axes.index(axis)] for axis in range(len(lengths))]
    return f"[{', '.join(map(str, lengths))}] floats"


def _filling(name: str, shape: tuple[int, ...]) -> Tensor:
    """Make what a dialect does not hold: a scale of one, no batches counted, statistics that do nothing."""
    if name.endswith(COUNTER):
        return torch.tensor(0)
    value = {"running_mean": 0.0, "running_var": 1 - AFFINE_EPS}.get(name.rpartition(".")[2], 1.0)
    return torch.full(shape, value)


def _notes(
    filled: Mapping[str, Tensor], places: Mapping[str, _Place], left_out: list[str], elsewhere: int
) -> tuple[str, ...]:
    scales = sum(name.endswith("batch_norm.weight") for name in filled)
    statistics = sum(name.endswith(STATISTICS) for name in filled)
    types = Counter(place.stored.dtype for place in places.values() if place.stored.dtype in FLOATS[1:])
    lines = [f"{count} tensors left out: {what}" for what, count in sorted(Counter(left_out).items())]
    lines += [f"{scales} scales of batch norm set to one: these files have none"] * (scales > 0)
    lines += [f"{statistics} statistics of batch norm set to do nothing: they are folded into its scale"] * (
        statistics > 0
    )
    lines += [f"{count} tensors made float32: they were {str(kind)[6:]}" for kind, count in types.items()]
    lines += [f"{elsewhere} tensors left out: elsewhere in the file"] * (elsewhere > 0)
    return tuple(lines)


def misfit(faults: Faults, where: str, network: str) -> InflateError:
    """Make the one report of everything that keeps a checkpoint and a network apart."""
    return InflateError(
        "the checkpoint does not hold this network",
        where=where,
        expected=f"all tensors of {network}, and no others",
        got=str(faults),
        fix="get the file anew; or choose the network, classes and input channels that it was made for",
    )


def spell_state(state: Mapping[str, Tensor], dialect: Dialect) -> dict[str, Tensor]:
    """Spell our state dict in another dialect; the inverse of `convert`.

    Example:
        >>> kernel = torch.zeros(2, 3, 5, 7, 11)
        >>> spelled = spell_state({"Conv3d_1a_7x7.conv_3d.weight": kernel}, DIALECTS["deepmind"])
        >>> {name: list(tensor.shape) for name, tensor in spelled.items()}
        {'Conv3d_1a_7x7/conv_3d/w': [5, 7, 11, 3, 2]}
    """
    axes = [dialect.kernel_axes.index(axis) for axis in range(len(dialect.kernel_axes))]
    return {
        dialect.spell(name): (tensor.permute(axes) if tensor.ndim == len(axes) else tensor).contiguous()
        for name, tensor in state.items()
        if not name.endswith(dialect.absent)
    }
