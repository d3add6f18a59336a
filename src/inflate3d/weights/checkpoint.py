"""Checkpoints: read any file, whoever wrote it, running nothing in it; write ours whole, with a card, or for others."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from inflate3d import __version__
from inflate3d.atomic import replacing
from inflate3d.errors import InflateError, check_choice
from inflate3d.models.inception import I3D_CLIP
from inflate3d.weights.catalogue import Card, read_labels
from inflate3d.weights.containers import Container, missing_file, open_container
from inflate3d.weights.dialects import DIALECTS
from inflate3d.weights.names import ARCHITECTURES, convert, recognize, spell_state
from inflate3d.weights.stored import MAX_BYTES, ContentError, Stored

CARD_KEY, INFLATED_KEY = "inflate3d.card", "inflate3d.inflated"  # in the metadata of our safetensors files
Target = Literal["safetensors", "piergiaj", "hassony2"]
UNKNOWN = "unknown: ask whoever gave you the file"
OWN_NAMES = "own names"
# What training scripts put a state dict under, data-parallel wrappers before its names, and what stands beside them
WRAPPERS = ("state_dict", "model_state", "model_state_dict", "model", "net", "weights", "params", "module", "_orig_mod")
BESIDE = (
    *("optim", "lr_sched", "sched", "scaler", "amp", "ema", "model_ema", "state_dict_ema", "criterion", "loss"),
    *("rng", "random", "torch_rng", "cuda_rng"),  # states of random generators, which are tensors of bytes
)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in our names.

    Attributes:
        path: The file.
        container: How the file is written.
        dialect: Whose names it has, a key of `inflate3d.weights.dialects.DIALECTS`; "own names" if nobody knows them:
            they are kept, and only a model can tell whether they fit.
        architecture: "i3d", or a 2D network's name in torchvision; None if nobody knows.
        state: The tensors. Of a 3D ResNet with the names that the inflated 2D network gives them: `net.conv1.weight`.
        num_classes: Of the last layer; None if there is none, or nobody knows.
        in_channels: Of the first convolution; None if nobody knows.
        is_2d: Whether the kernels are those of a 2D network.
        prefix: What stood before every name.
        score: Names of the network that are there, of all that either has; 0 with own names.
        notes: What was filled in, left out or changed.
    """

    path: Path
    container: str
    dialect: str
    architecture: str | None
    state: dict[str, Tensor]
    num_classes: int | None
    in_channels: int | None
    is_2d: bool
    prefix: str
    score: float
    notes: tuple[str, ...]

    def summary(self) -> dict[str, Any]:
        """Tell in plain values what this is and by what it was recognized."""
        writers = DIALECTS[self.dialect].writers if self.dialect in DIALECTS else "nobody knows whose"
        return {
            "file": str(self.path),
            "container": self.container,
            "dialect": self.dialect,
            "writers": writers,
            "recognized_by": f"its names: {self.score:.0%} of those of the network and of the file are the same",
            "prefix": self.prefix,
            "architecture": self.architecture,
            "kernels": "2D" if self.is_2d else "3D",
            "num_classes": self.num_classes,
            "in_channels": self.in_channels,
            "tensors": len(self.state),
            "values": sum(tensor.numel() for tensor in self.state.values()),
            "notes": list(self.notes),
        }


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint of any dialect; what it is, its content tells, never its name.

    Args:
        path: The file; of a TensorFlow checkpoint any of its files, or their common name.

    Raises:
        InflateError: There is no such file, it is of no known kind, damaged or hostile, or it does not hold the
            network whose names it has; everything missing, unexpected or of another shape is told together.

    Example:
        >>> import tempfile, torch
        >>> from inflate3d.models.inception import InceptionI3d
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save({"state_dict": InceptionI3d(7, 2).state_dict()}, f"{folder}/mine.bin")
        ...     found = read_checkpoint(f"{folder}/mine.bin")
        >>> found.dialect, found.architecture, found.num_classes, found.in_channels, found.prefix
        ('inflate3d', 'i3d', 7, 2, 'state_dict.')
    """
    with open_container(path) as container:
        where = str(container.path)
        found = recognize(container.tensors)
        if found is None:
            return _with_own_names(container)
        try:
            converted = convert(container.tensors, found, where=where)
        except InflateError:
            if found.dialect.needs_all:  # another network with the same names: a wide ResNet, a ResNeXt
                return _with_own_names(container)
            raise
        is_inflated = ARCHITECTURES[found.architecture] == "resnet" and not converted.is_2d
        return Checkpoint(
            path=container.path,
            container=container.kind,
            dialect=found.dialect.name,
            architecture=found.architecture,
            state=_as_inflated(converted.state) if is_inflated else converted.state,
            num_classes=converted.num_classes,
            in_channels=converted.in_channels,
            is_2d=converted.is_2d,
            prefix=found.prefix,
            score=found.score,
            notes=(*converted.notes, *container.notes),
        )


def _as_inflated(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{'inserts' if '.non_local.' in name else 'net'}.{name}": tensor for name, tensor in state.items()}


def _with_own_names(container: Container) -> Checkpoint:
    prefix, tensors = _unwrap(container)
    needed = sum(tensor.nbytes for tensor in tensors.values())
    if needed > MAX_BYTES:
        raise ContentError("the tensors take more memory than allowed", f"{needed:,} bytes, allowed: {MAX_BYTES:,}")
    kernels = [len(tensor.shape) for tensor in tensors.values()]
    left = len(container.tensors) - len(tensors)
    elsewhere = (f"{left} tensors left out: elsewhere in the file",) if left else ()
    return Checkpoint(
        path=container.path,
        container=container.kind,
        dialect=OWN_NAMES,
        architecture=None,
        state={name: tensor.read() for name, tensor in tensors.items()},
        num_classes=None,
        in_channels=None,
        is_2d=4 in kernels and 5 not in kernels,
        prefix=prefix,
        score=0.0,
        notes=(*elsewhere, *container.notes),
    )


def _unwrap(container: Container) -> tuple[str, dict[str, Stored]]:
    """Take wrappers off, as long as all names lie in one, or all but those of optimizers and the like."""
    prefix, tensors = "", container.tensors
    for _ in range(len(WRAPPERS)):
        for wrapper in WRAPPERS:
            start = f"{wrapper}{container.separator}"
            inner = {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}
            others = [name for name in tensors if not name.startswith((start, *BESIDE))]
            if inner and not others:
                prefix, tensors = f"{prefix}{start}", inner
                break
    return prefix, tensors


def convert_checkpoint(
    source: str | Path, target: str | Path, *, to: Target = "safetensors", label_set: str | None = None
) -> Checkpoint:
    """Read a checkpoint of any dialect and write it anew; an interrupted run leaves the target as it was.

    I3D as safetensors gets a card, so that `load` takes it by its file name alone; other networks get none.

    Args:
        source: The file.
        target: The file to write.
        to: "safetensors"; or, for I3D, a file of `torch.save` with the names that these projects load.
        label_set: Names of the classes, a key of `inflate3d.weights.catalogue.LABEL_SETS`, for the card.

    Returns:
        What was in the source.

    Raises:
        InflateError: What `read_checkpoint` refuses; the network cannot be written so; there are more or fewer
            labels than classes; or the target cannot be written.

    Example:
        >>> import tempfile
        >>> from inflate3d.models.inception import InceptionI3d
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save(InceptionI3d(7).state_dict(), f"{folder}/mine.pt")
        ...     found = convert_checkpoint(f"{folder}/mine.pt", f"{folder}/theirs.pt", to="piergiaj")
        ...     list(torch.load(f"{folder}/theirs.pt"))[:2]
        ['Conv3d_1a_7x7.conv3d.weight', 'Conv3d_1a_7x7.bn.weight']
    """
    target = Path(target)
    _check_target(target, to, label_set)
    checkpoint = read_checkpoint(source)
    if to != "safetensors":
        if checkpoint.architecture != "i3d" or checkpoint.num_classes is None:
            raise _only_i3d(checkpoint, to)
        spelled = spell_state(checkpoint.state, DIALECTS[to])
        with replacing(target) as draft:
            torch.save(spelled, draft)
    elif checkpoint.architecture == "i3d" and checkpoint.num_classes is not None:
        save_weights(checkpoint.state, _card(checkpoint, target, label_set), target)
    else:
        write_safetensors(checkpoint.state, target, {})
    return checkpoint


def _card(checkpoint: Checkpoint, target: Path, label_set: str | None) -> Card:
    known = card_in(checkpoint.path)
    classes, channels = checkpoint.num_classes or 1, checkpoint.in_channels or 3
    labels = len(read_labels(label_set)) if label_set else classes
    if labels != classes:
        raise InflateError(
            "there are more or fewer labels than classes",
            where=str(checkpoint.path),
            expected=f"a label set of {classes} classes, or none",
            got=f"{label_set}: {labels}",
            fix="leave the labels out, or choose those that the network was trained on",
        )
    if known:
        return replace(known, label_set=label_set or known.label_set)
    return Card(
        name=target.stem,
        architecture="i3d",
        num_classes=classes,
        label_set=label_set,
        in_channels=channels,
        clip=I3D_CLIP,
        license=UNKNOWN,
        repackaged_under="nobody: converted from a file of yours",
        source=f"{checkpoint.path.name}, {checkpoint.container}, names of {DIALECTS[checkpoint.dialect].writers}",
        source_sha256=_sha256(checkpoint.path),
        reported_accuracy="none known",
        accuracy_protocol="the file does not say which of its makers' weights these are",
        inflate3d_version=__version__,
    )


def _sha256(path: Path) -> str:
    """Hash a file; of a TensorFlow checkpoint its index, which holds the checksums of all tensors."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_target(target: Path, to: str, label_set: str | None) -> None:
    check_choice(to, get_args(Target), what="spelling to write", where="convert_checkpoint")
    if label_set is not None:
        read_labels(label_set)
    if (target.suffix == ".safetensors") != (to == "safetensors"):
        raise InflateError(
            "the name of the file says something else than what is to be written",
            where=str(target),
            expected="FILE.safetensors for safetensors, and FILE.pt for the others",
            got=f"{target.name} for {to}",
            fix="rename it, or say what you want: --to piergiaj, --to hassony2",
        )


def _only_i3d(checkpoint: Checkpoint, to: str) -> InflateError:
    return InflateError(
        f"{to} spells I3D only, with its classifier",
        where=str(checkpoint.path),
        expected="i3d with classes",
        got=f"{checkpoint.architecture or 'a network that nobody knows'}, {checkpoint.num_classes} classes",
        fix="write it as safetensors",
    )


def save_weights(state: Mapping[str, Tensor], card: Card, path: Path) -> Card:
    """Write a state dict and its card; an interrupted run leaves the file as it was.

    Args:
        state: Tensors by name; those that share memory are written one by one.
        card: What is known about them.
        path: The file to write.

    Returns:
        The card as it was written, with the hash of the tensors filled in.

    Raises:
        InflateError: The file cannot be written.

    Example:
        >>> import tempfile
        >>> about = dict.fromkeys(("license", "repackaged_under", "source", "source_sha256"), "mine")
        >>> about |= dict.fromkeys(("reported_accuracy", "accuracy_protocol", "inflate3d_version"), "none")
        >>> card = Card("tiny", "i3d", num_classes=3, label_set=None, in_channels=2, clip=I3D_CLIP, **about)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "tiny.safetensors"
        ...     card = save_weights({"w": torch.arange(3)}, card, path)
        ...     read_weights(path), read_card(path) == card
        ({'w': tensor([0, 1, 2])}, True)
    """
    card = replace(card, tensors_sha256=tensors_sha256(state))
    write_safetensors(state, path, {CARD_KEY: card.to_json()})
    return card


def write_safetensors(state: Mapping[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write tensors and texts about them as safetensors; an interrupted run leaves the file as it was."""
    tensors, taken = dict[str, Tensor](), set[int]()
    for name, tensor in state.items():
        own = tensor.detach().cpu().contiguous()
        own = own.clone() if own.untyped_storage().data_ptr() in taken else own  # safetensors refuses to share memory
        taken.add(own.untyped_storage().data_ptr())
        tensors[name] = own
    data = save(tensors, metadata={"format": "pt", **metadata})
    with replacing(path) as draft:
        draft.write_bytes(data)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file into memory of their own: no change of the file reaches them.

    Raises:
        InflateError: There is no such file, or it is no whole safetensors file.
    """
    _check_there(path)
    try:
        return {name: tensor.clone() for name, tensor in load_file(path).items()}
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, error) from error


def read_card(path: Path) -> Card:
    """Read the card of a file that `save_weights` wrote; the tensors are not read.

    Raises:
        InflateError: There is no such file, it is no whole safetensors file, or it has no card.
    """
    _check_there(path)
    try:
        metadata = _metadata(path)
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, error) from error
    if CARD_KEY not in metadata:
        raise InflateError(
            "the file has no card, so nobody knows what its tensors are",
            where=str(path),
            expected=f"a safetensors file with {CARD_KEY!r} in its metadata",
            got=f"metadata {sorted(metadata)}",
            fix="use a file that inflate3d wrote; save_weights(state, card, path) writes one",
        )
    return Card.from_json(metadata[CARD_KEY], where=str(path))


def card_in(path: Path) -> Card | None:
    """Read the card of a file if it has one; None for every other file, whatever it is.

    Raises:
        InflateError: There is a card and it cannot be read.
    """
    metadata = metadata_in(path)
    return Card.from_json(metadata[CARD_KEY], where=str(path)) if CARD_KEY in metadata else None


def metadata_in(path: Path) -> dict[str, str]:
    """Read the texts that stand beside the tensors of a safetensors file; none for every other file."""
    try:
        return _metadata(path)
    except (SafetensorError, OSError):
        return {}


def tensors_sha256(state: Mapping[str, Tensor]) -> str:
    """Hash names, types, shapes and bytes of all tensors, in the order of the names.

    Example:
        >>> tensors_sha256({"a": torch.zeros(2)}) == tensors_sha256({"a": torch.zeros(1, 2)})
        False
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def read_unchanged(path: Path, sha256: str) -> dict[str, Tensor]:
    """Read the tensors of a file of this package, and see that they are those that its card tells of.

    Raises:
        InflateError: They have another hash, or cannot be read.
    """
    state = read_weights(path)
    found = tensors_sha256(state)
    if found != sha256:
        raise InflateError(
            "the weights are not those that were saved",
            where=str(path),
            expected=f"tensors with the hash {sha256[:16]}...",
            got=f"{found[:16]}...",
            fix="take an undamaged copy, or save the model anew",
        )
    return state


def _metadata(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata() or {})


def _check_there(path: Path) -> None:
    if not os.path.exists(path):  # noqa: PTH110 - false for names too long to be
        raise missing_file(path)


def _unreadable(path: Path, error: Exception) -> InflateError:
    return InflateError(
        "the weights cannot be read",
        where=str(path),
        expected="a whole safetensors file; the catalogue's are fetched by inflate3d weights fetch NAME",
        got=f"{type(error).__name__}: {error}",
        fix="fetch it anew (inflate3d weights fetch NAME --force), or name another file",
    )
