"""Checkpoints: written whole or not at all, read without running anything, and made into a network again."""

from collections.abc import Callable
from dataclasses import asdict, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from torch import Tensor, nn

from inflate3d.atomic import replacing
from inflate3d.errors import InflateError, in_a_line
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


def describe_run(recipe: Training, class_names: tuple[str, ...], model: nn.Module) -> dict[str, Any]:
    """Gather what makes a network out of a checkpoint again, as plain values."""
    plans = [part.plan.to_json() for part in model.modules() if isinstance(part, Inflated)]
    return {
        "format": FORMAT,
        "kind": next(name for name, kind in KINDS.items() if isinstance(recipe, kind)),
        "recipe": asdict(recipe),
        "class_names": list(class_names),
        "plans": plans,
        "versions": {name: version(name) for name in ("inflate3d", "torch", "lightning")},
    }


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
