"""A training run: recipe and data to a folder with checkpoints, logs and a list of what could not be read."""

import json
import logging
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, EMAWeightAveraging, RichProgressBar
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from torch import nn

from inflate3d.atomic import check_writable, write_text
from inflate3d.clips.dataset import Splits
from inflate3d.errors import InflateError
from inflate3d.speed.memory import keep_memory
from inflate3d.train.checkpoint import KEY, AtomicCheckpoints, describe_run, read_training, recipe_in, weights_in
from inflate3d.train.data import (
    ClipDataset,
    FeatureDataset,
    Kept,
    Loader,
    TrainBatches,
    Unreadable,
    compute_features,
    decoding_of,
    val_loader,
)
from inflate3d.train.module import ClipTask
from inflate3d.train.network import build_for, describe, frozen_digest, prepare, split
from inflate3d.train.recipe import Recipe

MAY_CHANGE = ("epochs", "max_steps", "patience", "workers", "max_unreadable", "save_steps")
# of Lightning, about what is done on purpose here
KNOWN_WARNINGS = (
    ".*does not have many workers.*",
    ".*module\\(s\\) in eval mode.*",
    ".*Checkpoint directory.*",
    ".*number of training batches.*",
    ".*`isinstance\\(treespec, LeafSpec\\)`.*",
)
LAST, BEST = "last.ckpt", "best.ckpt"
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Devices:
    """Where a run computes.

    Attributes:
        accelerator: "auto", "cpu", "gpu".
        count: Devices of each machine; "auto" takes all.
        nodes: Machines, started by torchrun.
        strategy: "auto", "ddp", "fsdp", or another of Lightning's.
    """

    accelerator: str = "cpu" if not torch.cuda.is_available() else "gpu"
    count: int | str = "auto" if torch.cuda.is_available() else 1
    nodes: int = 1
    strategy: Any = "auto"


@dataclass(frozen=True)
class FitOptions:
    """How a run is carried out; nothing of it changes what comes out, but for the number of devices.

    Attributes:
        devices: Where it computes.
        progress: Is told what is done, how many of how many, while features are computed.
        quiet: No progress bar.
        clips: Folder that keeps decoded clips for several runs; the recipe's `cache` keeps them in the run's own.
        features: Folder that keeps what frozen layers give for several runs.
        callbacks: More of Lightning's.
    """

    devices: Devices = Devices()
    progress: Progress = lambda what, done, total: None
    quiet: bool = False
    clips: Path | None = None
    features: Path | None = None
    callbacks: tuple[Callback, ...] = ()


@dataclass(frozen=True)
class Fitted:
    """What came out of a run.

    Attributes:
        model: The network with its best weights (the last ones without a validation), in eval mode.
        checkpoint: Their file.
        history: Of each epoch: loss, score and seconds.
        unreadable: Clips that could not be read, with the reason.
        seconds: That it took, without what was done before `--resume`.
    """

    model: nn.Module
    checkpoint: Path
    history: tuple[dict[str, float], ...]
    unreadable: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0


class Keep(Callback):
    """Keeps last.ckpt, best.ckpt and the history; counts what could not be read."""

    def __init__(self, folder: Path, facts: dict[str, Any], unreadable: Unreadable) -> None:
        self.folder, self.facts, self.unreadable = folder, facts, unreadable
        self.history: list[dict[str, float]] = []
        self.best: float | None = None
        self.began = time.monotonic()

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, *rest: Any) -> None:
        """Count, and write a checkpoint every so many steps."""
        _, batch, batch_idx = rest
        self._count(batch)
        every, step = module.recipe.save_steps, trainer.global_step
        whole = (batch_idx + 1) % module.recipe.accumulate == 0
        if every and whole and step % every == 0 and batch_idx + 1 < trainer.num_training_batches:
            trainer.save_checkpoint(self.folder / LAST)

    def on_validation_batch_end(self, trainer: L.Trainer, module: Any, *rest: Any) -> None:
        """Count."""
        self._count(rest[1])

    def _count(self, batch: Any) -> None:
        for path, reason in batch["failed"]:
            self.unreadable.add(path, reason)

    def on_train_epoch_end(self, trainer: L.Trainer, module: Any) -> None:
        """Write the last checkpoint, and the best one if it is better."""
        names = ("train_loss_epoch", "val_loss", module.score_name)
        values = {name: float(trainer.callback_metrics[name]) for name in names if name in trainer.callback_metrics}
        self.history.append({"epoch": trainer.current_epoch, "seconds": time.monotonic() - self.began, **values})
        score = values.get(module.score_name)
        better = score is not None and (self.best is None or score > self.best)
        self.best = score if better else self.best
        if better:
            trainer.save_checkpoint(self.folder / BEST)
        trainer.save_checkpoint(self.folder / LAST)
        loader: Any = trainer.train_dataloader
        loader.batches.begin(trainer.current_epoch + 1)

    def on_save_checkpoint(self, trainer: L.Trainer, module: Any, checkpoint: dict[str, Any]) -> None:
        """Add what makes the network again."""
        checkpoint[KEY] = self.facts

    def state_dict(self) -> dict[str, Any]:
        """Keep what a run that goes on has to know."""
        return {"history": self.history, "best": self.best, "unreadable": self.unreadable.reasons}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it up again."""
        self.history, self.best = list(state_dict["history"]), state_dict["best"]
        self.unreadable.reasons.update(state_dict["unreadable"])


def fit(
    recipe: Recipe,
    splits: Splits,
    folder: str | Path,
    *,
    model: nn.Module | None = None,
    resume: bool = False,
    options: FitOptions | None = None,
) -> Fitted:
    """Train a network by a recipe, and keep what comes out in a folder.

    Args:
        recipe: What is trained and how.
        splits: What it learns from; `test` is not looked at.
        folder: For checkpoints and logs.
        model: A network of your own, with as many outputs as there are classes; else the recipe builds one.
        resume: Go on from last.ckpt, bit for bit as if the run had not ended there.
        options: Devices, progress.

    Raises:
        InflateError: The network cannot be built, too many clips cannot be read, the folder holds another run or
            cannot be written.
    """
    options = options or FitOptions()
    folder = Path(folder)
    classes = splits.class_names
    last = _check_folder(folder, recipe, splits, resume=resume)
    began = time.monotonic()
    keep_memory()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # tips, and what a reader of run.json knows
    network = build_for(recipe, classes, start=last is None) if model is None else describe(model, recipe)
    network = prepare(network, recipe, len(classes))
    unreadable = Unreadable(len(splits.train) + len(splits.val), recipe.max_unreadable)
    keep = Keep(folder, describe_run(recipe, classes, network), unreadable)
    trainer = L.Trainer(
        **_trainer_options(recipe, folder, options, _callbacks(recipe, keep, bool(splits.val), options))
    )
    table = folder / f"features-{trainer.global_rank}"
    parts, tail = _data(recipe, splits, network, table, (unreadable, options))
    batches = TrainBatches(
        len(parts[0]),
        recipe,
        classes=_labels(parts[0]) if recipe.balance else None,
        rank=trainer.global_rank,
        world=trainer.world_size,
    )
    steps = recipe.max_steps or recipe.epochs * len(batches) // recipe.accumulate
    task = ClipTask(network, recipe, len(classes), tail=tail, total_steps=steps).train()  # Lightning leaves modes alone

    def place() -> tuple[int, int]:
        return trainer.current_epoch, trainer.fit_loop.epoch_loop.batch_progress.current.ready

    workers = recipe.workers if tail is None else 0
    loader = Loader(parts[0], batches, place=place, workers=workers)
    if last is not None:
        loader.load_state_dict(read_training(last)["loops"]["fit_loop"]["state_dict"]["combined_loader"][0])
    val = [val_loader(part, recipe, workers, rank=trainer.global_rank, world=trainer.world_size) for part in parts[1:]]
    with warnings.catch_warnings():
        for words in KNOWN_WARNINGS:
            warnings.filterwarnings("ignore", words)
        trainer.fit(task, loader, val or None, ckpt_path=last, weights_only=True)
    best = folder / (BEST if (folder / BEST).is_file() else LAST)
    _fill(network, best)
    if trainer.is_global_zero:
        _write_facts(folder, recipe, splits, keep)
    return Fitted(network.eval(), best, tuple(keep.history), dict(unreadable.reasons), time.monotonic() - began)


def _trainer_options(recipe: Recipe, folder: Path, options: FitOptions, callbacks: list[Callback]) -> dict[str, Any]:
    devices = options.devices
    loggers: list[Logger] = [CSVLogger(folder, name="logs"), TensorBoardLogger(folder, name="logs")]
    gpu = devices.accelerator == "gpu"
    return {
        "accelerator": devices.accelerator,
        "devices": devices.count,
        "num_nodes": devices.nodes,
        "strategy": devices.strategy,
        "precision": "bf16-mixed" if recipe.precision == "bf16" else "32-true",
        "max_epochs": -1 if recipe.max_steps else recipe.epochs,
        "max_steps": recipe.max_steps or -1,
        "accumulate_grad_batches": recipe.accumulate,
        "callbacks": callbacks,
        "plugins": [AtomicCheckpoints()],
        "logger": loggers,
        "default_root_dir": folder,
        "enable_checkpointing": False,
        "enable_progress_bar": not options.quiet,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "use_distributed_sampler": False,
        "sync_batchnorm": gpu and not recipe.freeze_norm,
        "log_every_n_steps": 1,
    }


def _callbacks(recipe: Recipe, keep: Keep, validates: bool, options: FitOptions) -> list[Callback]:
    found: list[Callback] = [] if options.quiet else [RichProgressBar()]
    if recipe.ema:
        found.append(EMAWeightAveraging(decay=recipe.ema))
    if recipe.patience and validates:
        found.append(EarlyStopping("val_loss", patience=recipe.patience))
    return [*found, *options.callbacks, keep]


def _data(
    recipe: Recipe, splits: Splits, network: nn.Module, table: Path, told: tuple[Unreadable, FitOptions]
) -> tuple[list[ClipDataset | FeatureDataset], nn.Module | None]:
    """Give the data sets of training and (if there is one) validation, and what is trained on them if not all is."""
    unreadable, options = told
    how = decoding_of(recipe, options.clips or (table.parent / "clips" if recipe.cache else None))
    count = len(splits.class_names)
    clips = {
        name: ClipDataset(samples, recipe, how, num_classes=count, train=name == "train")
        for name, samples in (("train", splits.train), ("val", splits.val))
        if samples
    }
    if not recipe.cached_views:
        return list(clips.values()), None
    front, tail = split(network, recipe, count)
    digest = frozen_digest(network)
    features = [
        compute_features(
            front,
            part,
            Kept(table / f"{name}.npy", options.features, digest),
            unreadable=unreadable,
            progress=partial(options.progress, f"frozen layers, {name}"),
        )
        for name, part in clips.items()
    ]
    return list(features), tail


def _labels(data: ClipDataset | FeatureDataset) -> list[int]:
    if isinstance(data, FeatureDataset):
        return [int(target) for target in data.targets]
    return [sample.labels[0] for sample in data.samples]


def _check_folder(folder: Path, recipe: Recipe, splits: Splits, *, resume: bool) -> Path | None:
    """Find the checkpoint to go on from; refuse to write over another run."""
    last = folder / LAST
    check_writable(last)
    if last.is_file() and not resume:
        raise InflateError(
            "the folder holds a run already",
            where=str(folder),
            expected="a new folder, or --resume",
            got=LAST,
            fix="name another folder with --out, or go on with --resume",
        )
    if not last.is_file():
        return None
    found, classes = recipe_in(read_training(last), str(last))
    given, stored = asdict(recipe), asdict(found)
    other = [f"{name}={stored[name]!r}, not {given[name]!r}" for name in given if given[name] != stored[name]]
    other = [fault for fault in other if fault.partition("=")[0] not in MAY_CHANGE]
    if other or classes != splits.class_names:
        raise InflateError(
            "the run in the folder is another one",
            where=str(last),
            expected="the recipe, settings and classes that it was begun with; "
            + ", ".join(MAY_CHANGE)
            + " may change",
            got="; ".join(other) or f"classes {', '.join(classes)}",
            fix="give the settings it was begun with (run.json has them), or name another folder",
        )
    return last


def _fill(network: nn.Module, path: Path) -> None:
    network.load_state_dict(weights_in(read_training(path)))


def _write_facts(folder: Path, recipe: Recipe, splits: Splits, keep: Keep) -> None:
    """Write what a reader needs to know of the run."""
    facts = {
        "recipe": asdict(recipe),
        "versions": keep.facts["versions"],
        "data": {"source": splits.source} | {name: len(getattr(splits, name)) for name in ("train", "val", "test")},
        "class_names": list(splits.class_names),
        "history": keep.history,
        "unreadable": keep.unreadable.reasons,
    }
    write_text(folder / "run.json", json.dumps(facts, indent=1, ensure_ascii=False) + "\n")
