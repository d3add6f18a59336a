"""A training run: recipe and data to a folder with checkpoints, logs and a list of what could not be read."""

import json
import logging
import math
import signal
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, EMAWeightAveraging, RichProgressBar
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from torch import nn
from torch.utils.data import Dataset

from inflate3d.atomic import check_writable, write_text
from inflate3d.clips.dataset import Splits
from inflate3d.errors import InflateError, list_faults
from inflate3d.speed.memory import keep_memory
from inflate3d.train.checkpoint import (
    KEY,
    AtomicCheckpoints,
    check_data,
    describe_run,
    digest_of,
    read_training,
    recipe_in,
    weights_in,
)
from inflate3d.train.data import (
    ClipDataset,
    FeatureDataset,
    Kept,
    Loader,
    TrainBatches,
    Unreadable,
    check_validation,
    compute_features,
    decoding_of,
    val_loader,
)
from inflate3d.train.module import ClipTask, Learning
from inflate3d.train.network import SyncedNorms, build_for, describe, frozen_digest, prepare, split
from inflate3d.train.recipe import Recipe, Training

MAY_CHANGE = ("epochs", "max_steps", "patience", "workers", "max_unreadable", "save_steps")
# of Lightning, about what is done on purpose here
KNOWN_WARNINGS = (
    ".*does not have many workers.*",
    ".*module\\(s\\) in eval mode.*",
    ".*Checkpoint directory.*",
    ".*number of training batches.*",
    ".*was called before the ``update`` method.*",  # of torchmetrics, about a device that could read nothing
    ".*samples in targets.*",  # of torchmetrics, about a validation that lacks a class
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

    @property
    def tested_on(self) -> str:
        """Where the network is tested when it is trained: on one of the devices."""
        return "cuda" if self.accelerator == "gpu" else "cpu"


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
        values = {name: value for name, value in values.items() if not math.isnan(value)}  # nothing to be judged by
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
        seconds = time.monotonic() - self.began
        return {"history": self.history, "best": self.best, "unreadable": self.unreadable.reasons, "seconds": seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it up again."""
        self.history, self.best = list(state_dict["history"]), state_dict["best"]
        self.unreadable.reasons.update(state_dict["unreadable"])
        self.began -= state_dict.get("seconds", 0.0)  # older ones do not have it


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
        InflateError: The network cannot be built, too many clips cannot be read, not every clip has one class where
            the task is classes, the folder holds another run or cannot be written.
    """
    options = options or FitOptions()
    folder = Path(folder)
    classes = splits.class_names
    splits.check_training()
    check_labels(recipe, splits)
    last = check_folder(folder, recipe, splits, resume=resume)
    network = build_for(recipe, classes, start=last is None) if model is None else describe(model, recipe)
    network = prepare(network, recipe, len(classes))
    run = Run(network, recipe, splits, folder=folder, options=options)
    table = folder / f"features-{run.trainer.global_rank}"
    parts, tail = _data(recipe, splits, network, table, (run.keep.unreadable, options))
    batches = run.batches(len(parts[0]), _labels(parts[0]) if recipe.balance else None)
    task = ClipTask(network, recipe, len(classes), tail=tail, total_steps=run.steps(batches))
    return run.fit(task, parts, batches, last=last, workers=recipe.workers if tail is None else 0)


class Run:
    """What all runs share: the trainer, the order of samples, checkpoints, and the facts written at the end.

    Args:
        network: What learns.
        recipe: How.
        splits: What from.
        folder: For checkpoints and logs.
        options: Devices, progress.
    """

    def __init__(
        self, network: nn.Module, recipe: Training, splits: Splits, *, folder: Path, options: FitOptions
    ) -> None:
        self.network, self.recipe, self.splits, self.folder = network, recipe, splits, folder
        self.began = time.monotonic()
        keep_memory()
        logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # tips, and what a reader of run.json knows
        unreadable = Unreadable(len(splits.train) + len(splits.val), recipe.max_unreadable)
        facts = describe_run(recipe, splits.class_names, network, data=digest_of(splits))
        self.keep = Keep(folder, facts, unreadable)
        callbacks = _callbacks(recipe, self.keep, bool(splits.val), options)
        self.trainer = L.Trainer(**_trainer_options(recipe, folder, options, callbacks))
        check_validation(splits, self.trainer.world_size)

    def batches(self, count: int, classes: Sequence[int] | None = None) -> TrainBatches:
        """Order so many samples."""
        rank, world = self.trainer.global_rank, self.trainer.world_size
        return TrainBatches(count, self.recipe, classes=classes, rank=rank, world=world)

    def steps(self, batches: TrainBatches) -> int:
        """Count the steps of the optimizer in all."""
        return self.recipe.max_steps or self.recipe.epochs * len(batches) // self.recipe.accumulate

    def fit(
        self, task: Learning, data: Sequence[Dataset[Any]], batches: TrainBatches, *, last: Path | None, workers: int
    ) -> Fitted:
        """Train, and fill the network with what came out best.

        Args:
            task: Learns.
            data: To train on, and to validate with if there is more.
            batches: The order.
            last: The checkpoint to go on from.
            workers: Processes that read.
        """
        trainer, network = self.trainer, self.network

        def place() -> tuple[int, int]:
            return trainer.current_epoch, trainer.fit_loop.epoch_loop.batch_progress.current.ready

        loader = Loader(data[0], batches, place=place, workers=workers)
        if last is not None:
            loader.load_state_dict(read_training(last)["loops"]["fit_loop"]["state_dict"]["combined_loader"][0])
        rank, world = trainer.global_rank, trainer.world_size
        val = [val_loader(part, task.val_batch_size, workers, rank=rank, world=world) for part in data[1:]]
        with warnings.catch_warnings():
            for words in KNOWN_WARNINGS:
                warnings.filterwarnings("ignore", words)
            with _interruptible(trainer):
                # Lightning leaves modes alone
                trainer.fit(task.train(), loader, val or None, ckpt_path=last, weights_only=True)
        best = self.folder / (BEST if (self.folder / BEST).is_file() else LAST)
        network.load_state_dict(weights_in(read_training(best)))
        if trainer.is_global_zero:
            _write_facts(self.folder, self.recipe, self.splits, self.keep)
        reasons = dict(self.keep.unreadable.reasons)
        return Fitted(network.eval(), best, tuple(self.keep.history), reasons, time.monotonic() - self.began)


@contextmanager
def _interruptible(trainer: L.Trainer) -> Iterator[None]:
    """Let Ctrl-C end a run as it ends all else: Lightning would end the process, and take no Ctrl-C any more."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit:
        if not trainer.interrupted:
            raise
        signal.signal(signal.SIGINT, handler)
        raise KeyboardInterrupt from None


def _trainer_options(recipe: Training, folder: Path, options: FitOptions, callbacks: list[Callback]) -> dict[str, Any]:
    devices = options.devices
    loggers: list[Logger] = [CSVLogger(folder, name="logs"), TensorBoardLogger(folder, name="logs")]
    synced = devices.accelerator == "gpu" and not recipe.freeze_norm
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
        "plugins": [AtomicCheckpoints(), *[SyncedNorms()] * synced],
        "logger": loggers,
        "default_root_dir": folder,
        "enable_checkpointing": False,
        "enable_progress_bar": not options.quiet,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "use_distributed_sampler": False,
        "log_every_n_steps": 1,
    }


def _callbacks(recipe: Training, keep: Keep, validates: bool, options: FitOptions) -> list[Callback]:
    found: list[Callback] = [] if options.quiet else [RichProgressBar()]
    if recipe.ema:
        found.append(EMAWeightAveraging(decay=recipe.ema))
    if recipe.patience and validates:
        found.append(EarlyStopping("val_loss", patience=recipe.patience, strict=False))  # perhaps none could be read
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


def check_labels(recipe: Recipe, splits: Splits) -> None:
    """Refuse samples without a class, or with several, where each is to have one.

    Raises:
        InflateError: There are some.
    """
    wrong = [sample for sample in (*splits.train, *splits.val) if len(sample.labels) != 1]
    if wrong and recipe.task == "classes":
        raise InflateError(
            "not every clip has one class",
            where=splits.source,
            expected="one label for each clip of training and validation, with task classes",
            got=list_faults((f"{sample.path}: {len(sample.labels)}" for sample in wrong), shown=3),
            fix="train with --set task=labels, or leave these clips out of the list",
        )


def check_folder(folder: Path, recipe: Training, splits: Splits, *, resume: bool) -> Path | None:
    """Find the checkpoint to go on from; refuse to write over another run.

    Raises:
        InflateError: The folder cannot be written, or holds another run, or one on other samples.
    """
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
    checkpoint = read_training(last)
    found, classes = recipe_in(checkpoint, str(last))
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
    check_data(checkpoint, splits, where=str(last))
    return last


def _write_facts(folder: Path, recipe: Training, splits: Splits, keep: Keep) -> None:
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
