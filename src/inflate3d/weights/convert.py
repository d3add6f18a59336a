"""Write a checkpoint of any dialect as safetensors, or I3D in the dialects that other projects load."""

import hashlib
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Literal, get_args

import torch
from safetensors.torch import save
from torch import Tensor

from inflate3d.atomic import replacing
from inflate3d.errors import InflateError, nearest_names
from inflate3d.models.inception import I3D_CLIP
from inflate3d.weights.card import Card
from inflate3d.weights.checkpoint import Checkpoint, read_checkpoint
from inflate3d.weights.dialects import DIALECTS
from inflate3d.weights.labels import LABEL_SETS
from inflate3d.weights.names import spell_state
from inflate3d.weights.store import card_in, save_weights

Target = Literal["safetensors", "piergiaj", "hassony2"]
UNKNOWN = "unknown: ask whoever gave you the file"


def convert_checkpoint(
    source: str | Path, target: str | Path, *, to: Target = "safetensors", label_set: str | None = None
) -> Checkpoint:
    """Read a checkpoint of any dialect and write it anew; an interrupted run leaves the target as it was.

    I3D as safetensors gets a card, so that `load` takes it by its file name alone; other networks get none.

    Args:
        source: The file.
        target: The file to write.
        to: "safetensors"; or, for I3D, a file of `torch.save` with the names that these projects load.
        label_set: Names of the classes, a key of `inflate3d.weights.labels.LABEL_SETS`, for the card.

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
        data = save(_separate(checkpoint.state), metadata={"format": "pt"})
        with replacing(target) as draft:
            draft.write_bytes(data)
    return checkpoint


def _card(checkpoint: Checkpoint, target: Path, label_set: str | None) -> Card:
    known = card_in(checkpoint.path)
    classes, channels = checkpoint.num_classes or 1, checkpoint.in_channels or 3
    if label_set and LABEL_SETS[label_set] != classes:
        raise InflateError(
            "there are more or fewer labels than classes",
            where=str(checkpoint.path),
            expected=f"a label set of {classes} classes, or none",
            got=f"{label_set}: {LABEL_SETS[label_set]}",
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
        inflate3d_version=version("inflate3d"),
    )


def _sha256(path: Path) -> str:
    """Hash a file; of a TensorFlow checkpoint its index, which holds the checksums of all tensors."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _separate(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.contiguous() for name, tensor in state.items()}


def _check_target(target: Path, to: str, label_set: str | None) -> None:
    for value, known in ((to, get_args(Target)), (label_set, tuple(LABEL_SETS))):
        if value is not None and value not in known:
            raise InflateError(
                "it cannot be converted so",
                where="convert_checkpoint",
                expected=", ".join(known),
                got=repr(value),
                fix=f"did you mean {nearest_names(value, known)}?",
            )
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
