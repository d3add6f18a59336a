"""Weights as files: safetensors with a card in the metadata, written whole and checked by hash."""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from inflate3d.atomic import replacing
from inflate3d.errors import InflateError
from inflate3d.weights.cache import weights_path
from inflate3d.weights.card import Card

__all__ = ["card_in", "read_card", "read_weights", "save_weights", "tensors_sha256", "weights_path"]

CARD_KEY = "inflate3d.card"


def save_weights(state: Mapping[str, Tensor], card: Card, path: Path) -> Card:
    """Write a state dict and its card; an interrupted run leaves the file as it was.

    Returns:
        The card as it was written, with the hash of the tensors filled in.

    Raises:
        InflateError: The file cannot be written.

    Example:
        >>> import tempfile
        >>> from inflate3d.clips.clip import ClipSpec
        >>> spec = ClipSpec(fps=25.0, num_frames=64, min_frames=9, short_side=256, crop=224, value_range=(-1.0, 1.0))
        >>> about = dict.fromkeys(("license", "repackaged_under", "source", "source_sha256"), "mine")
        >>> about |= dict.fromkeys(("reported_accuracy", "accuracy_protocol", "inflate3d_version"), "none")
        >>> card = Card("tiny", "i3d", num_classes=3, label_set=None, in_channels=2, clip=spec, **about)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "tiny.safetensors"
        ...     card = save_weights({"w": torch.arange(3)}, card, path)
        ...     read_weights(path), read_card(path) == card
        ({'w': tensor([0, 1, 2])}, True)
    """
    card = replace(card, tensors_sha256=tensors_sha256(state))
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    with replacing(path) as draft:
        draft.write_bytes(save(tensors, metadata={"format": "pt", CARD_KEY: card.to_json()}))
    return card


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file.

    Raises:
        InflateError: There is no such file, or it is no whole safetensors file.
    """
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, error) from error


def read_card(path: Path) -> Card:
    """Read the card of a file that `save_weights` wrote; the tensors are not read.

    Raises:
        InflateError: There is no such file, it is no whole safetensors file, or it has no card.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
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
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError):
        return None
    return Card.from_json(metadata[CARD_KEY], where=str(path)) if CARD_KEY in metadata else None


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


def _unreadable(path: Path, error: Exception) -> InflateError:
    return InflateError(
        "the weights cannot be read",
        where=str(path),
        expected="a whole safetensors file; the catalogue's are fetched by inflate3d weights fetch NAME",
        got=f"{type(error).__name__}: {error}",
        fix="fetch it anew (inflate3d weights fetch NAME --force), or mend the path",
    )
