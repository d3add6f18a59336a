"""Checkpoints: written whole or not at all, read without running anything, and made into a network again."""

import os
import warnings
from collections.abc import Callable
from dataclasses import asdict, fields
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from torch import Tensor, nn

from inflate3d.atomic import replacing
from inflate3d.clips.dataset import Splits
from inflate3d.errors import InflateError, InflateWarning, in_a_line
from inflate3d.inflation.inflated import Inflated
from inflate3d.train.network import build_for
from inflate3d.train.recipe import Recipe, Training, VolumeRecipe

FORMAT = 1
KEY = "inflate3d"
MODEL = "model."
KINDS: dict[str, type[Training]] = {"clips": Recipe, "volumes": VolumeRecipe}


class AtomicCheckpoints(TorchCheckpointIO):
    """Lightning's way to the disk: a full one leaves the old checkpoint whole."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write a checkpoint in place of an older one, once it is whole.

        Raises:
            InflateError: The disk is full, or may not be written.
        """
        try:
            with replacing(Path(path)) as draft:
                torch.save(checkpoint, draft)
        except RuntimeError as error:  # torch's archive writer tells of a full disk so
            raise InflateError(
                "the checkpoint cannot be written; the older one is whole",
                where=str(path),
                expected="room on the disk",
                got=in_a_line(error),
                fix="make room, then go on with --resume",
            ) from error

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = True) -> dict[str, Any]:
        """Read a checkpoint; only tensors and plain values are made of it."""
        return read_training(Path(path))


def describe_run(recipe: Training, class_names: tuple[str, ...], model: nn.Module, *, data: str = "") -> dict[str, Any]:
    """Gather what makes a network out of a checkpoint again, as plain values, and what the data are: `digest_of`."""
    plans = [part.plan.to_json() for part in model.modules() if isinstance(part, Inflated)]
    return {
        "format": FORMAT,
        "kind": next(name for name, kind in KINDS.items() if isinstance(recipe, kind)),
        "recipe": asdict(recipe),
        "class_names": list(class_names),
        "plans": plans,
        "data": data,
        "versions": {name: version(name) for name in ("inflate3d", "torch", "lightning")},
    }


def digest_of(splits: Splits) -> str:
    """Tell the samples of training and validation and their labels from others, in 32 letters.

    Their order does not count, nor where the folder of all of them lies: it may have been moved.

    Example:
        >>> from dataclasses import replace
        >>> from inflate3d.clips.dataset import Sample
        >>> here, there = (tuple(Sample(f"{top}/{i}.mp4", (i % 2,)) for i in range(4)) for top in ("a/b", "c"))
        >>> parts = [Splits(one[:3], one[3:], (), ("run", "jump"), "") for one in (here, there)]
        >>> digest_of(parts[0]) == digest_of(parts[1]) != digest_of(replace(parts[0], val=()))
        True
    """
    parts = (splits.train, splits.val)
    paths = [sample.path for part in parts for sample in part]
    top = os.path.dirname(os.path.commonprefix(paths))  # noqa: PTH120, RUF071 - of texts, and then up to a folder
    facts = [sorted((one.path.removeprefix(top).lstrip("/\\"), one.labels) for one in part) for part in parts]
    return sha256(repr(facts).encode()).hexdigest()[:32]


def read_training(path: Path) -> dict[str, Any]:
    """Read a checkpoint of a training run.

    Raises:
        InflateError: It is not there, holds more than tensors and plain values, or is none of ours.
    """
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(found, dict) or found.get(KEY, {}).get("format") != FORMAT:
            raise ValueError(f"no entry {KEY!r} of format {FORMAT}")
    except Exception as error:  # torch raises whatever its unpickler stumbles over
        raise InflateError(
            "this is no checkpoint of a training run",
            where=str(path),
            expected="a .ckpt that `inflate3d train` has written",
            got=in_a_line(error),
            fix="name best.ckpt or last.ckpt in the folder of a run; other weights: inflate3d.load",
        ) from error
    return found


def recipe_in(checkpoint: dict[str, Any], where: str) -> tuple[Training, tuple[str, ...]]:
    """Give the recipe and the classes of a checkpoint.

    Raises:
        InflateError: They are of another version, or no such values.
    """
    try:
        stored = dict(checkpoint[KEY]["recipe"])
        stored["lr_steps"] = tuple(tuple(pair) for pair in stored["lr_steps"])
        kind = KINDS[checkpoint[KEY].get("kind", "clips")]
        return kind(**stored), tuple(map(str, checkpoint[KEY]["class_names"]))
    except (KeyError, TypeError, ValueError) as error:
        raise InflateError(
            "the recipe in the checkpoint is not one of this version",
            where=where,
            expected=f"values for {', '.join(field.name for field in fields(Recipe))}",
            got=f"{type(error).__name__}: {error}",
            fix="read it with the version of inflate3d that wrote it",
        ) from error


def check_data(checkpoint: dict[str, Any], splits: Splits, *, where: str) -> None:
    """Refuse to go on with other samples: some might be validated with that the network has learned from.

    Raises:
        InflateError: The checkpoint has learned from others, or was chosen by others.
    """
    known = checkpoint[KEY].get("data", "")
    if known and known != digest_of(splits):
        raise InflateError(
            "the run in the folder has learned from other samples",
            where=where,
            expected="the list, --fold and --val-share that it was begun with",
            got=f"{splits.source}: others, {len(splits.train)} for training and {len(splits.val)} for validation",
            fix="give the list and the fold it was begun with, or name another folder",
        )
    if not known:
        words = f"{where} does not tell what it has learned from: whether these are the same samples is not checked"
        warnings.warn(words, InflateWarning, stacklevel=3)


def weights_in(checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    """Give the network's weights, by its own names."""
    state = checkpoint["state_dict"]
    return {name.removeprefix(MODEL): state[name] for name in state if name.startswith(MODEL)}


def load_trained(
    path: str | Path, *, build: Callable[[Recipe, tuple[str, ...]], nn.Module] | None = None
) -> tuple[nn.Module, Recipe]:
    """Make the network of a checkpoint again, in eval mode.

    Args:
        path: `best.ckpt` or `last.ckpt` of a run.
        build: Makes a network of your own, of which the recipe does not know how it is built.

    Raises:
        InflateError: The file is no such checkpoint, or its weights do not fit the network.
    """
    path = Path(path)
    checkpoint = read_training(path)
    recipe, class_names = recipe_in(checkpoint, str(path))
    if not isinstance(recipe, Recipe):
        raise InflateError(
            "the checkpoint is of a network for volumes",
            where=str(path),
            expected="a network for videos",
            got=f"recipe {recipe.name}",
            fix=f"take {path.parent / 'model.safetensors'}, with inflate3d evaluate or predict --model",
        )
    model = build(recipe, class_names) if build else build_for(recipe, class_names, start=False)
    try:
        model.load_state_dict(weights_in(checkpoint))
    except RuntimeError as error:
        raise InflateError(
            "the weights are not those of the network that the recipe names",
            where=str(path),
            expected=f"{recipe.network} with {len(class_names)} classes",
            got=str(error).strip().splitlines()[1].strip()[:200],
            fix="was it trained as a network of your own? then pass build=",
        ) from error
    return model.eval(), recipe
