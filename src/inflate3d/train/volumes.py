"""Training on volumes: a 2D network by name, inflated, that learns to classify scans or to segment them."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAUROC
from torchmetrics.utilities import dim_zero_cat

from inflate3d.clips.volume_spec import VolumeSpec, to_channels
from inflate3d.errors import InflateError, import_extra, list_faults
from inflate3d.inflation.build import inflate
from inflate3d.inflation.channels import with_input_channels
from inflate3d.inflation.inflated import Inflated
from inflate3d.models.inflated import mean_and_std
from inflate3d.models.sources import NO_WEIGHTS, PRETRAINED, find_2d_model
from inflate3d.results.volumes import logits_in
from inflate3d.train.data import TrainBatches
from inflate3d.train.module import Batch, Learning
from inflate3d.train.network import head_of, keep_frozen_in_eval
from inflate3d.train.recipe import VolumeRecipe
from inflate3d.train.run import FitOptions, Fitted, Run, check_folder
from inflate3d.train.volume_data import VolumePatches, VolumeSplits, spec_for
from inflate3d.weights.checkpoint import read_checkpoint
from inflate3d.weights.inflated_file import save_inflated

MODEL = "model.safetensors"
CACHE = "volumes"
VAL_OVERLAP = 0.25
PLANNED_PIXELS = 96


def options_for(recipe: VolumeRecipe, num_classes: int) -> dict[str, Any]:
    """Tell what the builder of the 2D network is handed; a file can name all of it again."""
    source = recipe.network.partition("/")[0]
    options: dict[str, Any] = {"first_stride": recipe.first_stride} if recipe.first_stride else {}
    if source == "smp":
        options["classes"] = num_classes
        options |= {"encoder_depth": recipe.encoder_depth} if recipe.encoder_depth else {}
        options |= {"decoder_channels": list(recipe.decoder_channels)} if recipe.decoder_channels else {}
    elif source in ("timm", "torchvision"):
        options["num_classes"] = num_classes
    elif source == "hf":
        options["num_labels"] = num_classes
    return options


def flat_network(recipe: VolumeRecipe, num_classes: int, *, start: bool = True) -> nn.Module:
    """Build the 2D network of a recipe, with its weights to start from, for as many channels as it says.

    Raises:
        InflateError: There is no such network, or its weights cannot be had or do not fit.
    """
    torch.manual_seed(recipe.seed)
    weights = recipe.init if start and recipe.init == PRETRAINED else NO_WEIGHTS
    model2d = find_2d_model(recipe.network, weights=weights, **options_for(recipe, num_classes))
    for layer in model2d.modules():
        # timm's EfficientNets draw a last layer of few classes so wide that it begins with losses of 4
        if start and isinstance(layer, nn.Linear) and layer.out_features == num_classes:
            layer.reset_parameters()
    if start and recipe.init not in (NO_WEIGHTS, PRETRAINED):
        start_from(model2d, Path(recipe.init))
    if recipe.channels == 1:
        model2d = with_input_channels(model2d, 1, example=_picture(3, recipe.patch))
    return model2d


def volume_network(recipe: VolumeRecipe, spec: VolumeSpec, *, start: bool = True) -> Inflated:
    """Build the network of a recipe: a 2D network, inflated for what it is fed.

    Args:
        recipe: Its network, weights, preset and profile are used.
        spec: What it is fed.
        start: Fill it with the weights that it starts from; no, where those of a checkpoint follow.

    Raises:
        InflateError: There is no such network, its weights do not fit, or it cannot be inflated.
    """
    model2d = flat_network(recipe, len(spec.class_names), start=start)
    example = _picture(spec.channels, spec.patch)
    spacing = spec.spacing_mm if recipe.preset == "anisotropic" else None
    model = inflate(model2d, recipe.preset, profile=recipe.profile, example=example, spacing_mm=spacing)
    model.volume_spec = spec  # type: ignore[assignment]  # nn.Module knows no others
    model.class_names = spec.class_names  # type: ignore[assignment]  # likewise
    return model


def _picture(channels: int, patch: Sequence[int]) -> Tensor:
    """Make a picture to plan by, of whole patches: on one of few pixels the levels of a network fall together."""
    height, width = (size * -(-PLANNED_PIXELS // size) for size in patch[1:])
    return torch.zeros(1, channels, height, width)


def normalization(recipe: VolumeRecipe) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Tell mean and deviation of the pixels in 0..1 that the 2D network was trained with, for each channel."""
    source, _, rest = recipe.network.partition("/")
    timm_name = rest.partition("-tu-")[2] if source == "smp" else ""
    name = f"timm/{timm_name}" if timm_name else recipe.network
    known = timm_name or source in ("timm", "torchvision")
    mean, std = mean_and_std(find_2d_model(name) if known else nn.Identity(), name)
    if recipe.channels == 1:
        return (sum(mean) / len(mean),), (sum(std) / len(std),)
    return mean, std


def start_from(model2d: nn.Module, path: Path) -> None:
    """Fill a 2D network, or its encoder, from a file of a classifier; classifiers of other classes stay as they are.

    Raises:
        InflateError: The file does not hold all of the network, or of one part of it.
    """
    state, wanted = read_checkpoint(path).state, model2d.state_dict()
    starts = {key.removesuffix(name) for key in wanted for name in list(state)[:1] if key.endswith(name)} | {""}
    found = {start: {f"{start}{name}": value for name, value in state.items()} for start in starts}
    start, values = max(found.items(), key=lambda pair: len(pair[1].keys() & wanted.keys()))
    of_part = [name for name in wanted if name.startswith(start) and not name.endswith("num_batches_tracked")]
    last = {name for name in of_part if not start and name.rpartition(".")[0] == of_part[-1].rpartition(".")[0]}
    fits = {name: value for name, value in values.items() if name in wanted and value.shape == wanted[name].shape}
    faults = [name for name in of_part if name not in fits and name not in last]
    if faults:
        raise InflateError(
            "the weights are not those of the network, nor of its encoder",
            where=str(path),
            expected=f"{', '.join(of_part[:2])}, ...: {len(of_part)} tensors",
            got=f"{len(fits)} that fit; without {list_faults(faults, shown=3)}",
            fix="take a file of the same 2D network in the names of its package",
        )
    model2d.load_state_dict({**wanted, **fits})


class OccurringAUROC(MulticlassAUROC):
    """Average the area under the ROC curve, of each class against the others, over classes that occur.

    Torchmetrics counts a class that does not as 0. NaN if fewer than two occur.

    Args:
        num_classes: All of them.

    Example:
        >>> area = OccurringAUROC(3)
        >>> area.update(torch.tensor([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1]]), torch.tensor([0, 1]))
        >>> area.compute()
        tensor(1.)
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes, average=None)

    def compute(self) -> Tensor:  # type: ignore[override]  # as its own class does
        """Average what is known."""
        classes = dim_zero_cat(self.target).unique()
        return super().compute()[classes].mean() if len(classes) > 1 else torch.tensor(torch.nan, device=self.device)


class VolumeTask(Learning):
    """A network that learns to classify scans or to segment them.

    Args:
        model: With a `volume_spec`.
        recipe: How it learns.
        total_steps: Steps of the optimizer in all.
    """

    def __init__(self, model: nn.Module, recipe: VolumeRecipe, total_steps: int = 1) -> None:
        super().__init__(model, recipe, total_steps)
        self.recipe: VolumeRecipe
        spec = model.volume_spec
        assert isinstance(spec, VolumeSpec)
        self.spec, count = spec, len(spec.class_names)
        if spec.task == "mask":
            losses = import_extra("monai.losses", "volume", where="training")
            metrics = import_extra("monai.metrics", "volume", where="training")
            self.dice_loss: Callable[..., Tensor] = losses.DiceCELoss(to_onehot_y=True, softmax=True)
            self.dice = metrics.DiceMetric(include_background=False, num_classes=count, ignore_empty=False)
            self.val_score = MeanMetric()
            self.score_name = "val_dice"
        else:
            self.val_score = OccurringAUROC(count)
            self.score_name = "val_auc"

    @property
    def val_batch_size(self) -> int:
        """Samples at a time in validation: whole scans differ in size."""
        return 1 if self.spec.task == "mask" else self.recipe.batch_size

    def head(self) -> nn.Module | None:
        """Find the last layer of a classifier, which may learn at a rate of its own."""
        if self.recipe.head_lr == 1.0:
            return None
        return head_of(self.model, len(self.spec.class_names))[1]

    def forward(self, patches: Tensor) -> Tensor:
        """Answer patches `[b, 1, d, h, w]` in 0..1 with logits."""
        return logits_in(self.model(to_channels(patches, self.spec))).float()

    def train(self, mode: bool = True) -> "VolumeTask":
        """Switch to training mode, but for batch norms that are frozen."""
        super().train(mode)
        if mode:
            keep_frozen_in_eval(self.model, self.recipe)
        return self

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Give the loss of a batch."""
        loss = self.loss(self(batch["clip"]), batch["target"])
        count = len(batch["clip"])
        self.log("train_loss", loss, on_step=True, on_epoch=True, prog_bar=True, batch_size=count, sync_dist=True)
        return loss

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Compare with what was wanted: Dice and cross-entropy of each voxel, or cross-entropy of each scan."""
        if self.spec.task == "mask":
            return self.dice_loss(logits, target)
        return F.cross_entropy(logits, target, label_smoothing=self.recipe.label_smoothing)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Count what could be read; masks are compared on whole scans, at the network's spacing."""
        valid = batch["valid"]
        if not valid.any():
            return
        clip, target = batch["clip"][valid], batch["target"][valid]
        if self.spec.task == "classes":
            logits = self(clip)
            self.val_loss.update(F.cross_entropy(logits, target).detach(), weight=len(clip))
            self.val_score.update(logits.softmax(1), target)
            return
        slide = import_extra("monai.inferers", "volume", where="training").sliding_window_inference
        logits = slide(clip, self.spec.patch, 1, self, overlap=VAL_OVERLAP, mode="gaussian")
        dice = self.dice(logits.argmax(1, keepdim=True), target).mean(1)
        self.dice.reset()  # MONAI would gather from all devices, and wait for one that could read nothing
        self.val_score.update(dice)
        self.val_loss.update(1 - dice)

    def nothing_scored(self) -> tuple[Tensor, ...]:
        """Give what the area takes for no scan."""
        nothing = torch.zeros(0, len(self.spec.class_names), device=self.device)
        return () if self.spec.task == "mask" else (nothing, nothing.argmax(1))


def fit_volumes(
    recipe: VolumeRecipe,
    data: VolumeSplits,
    folder: str | Path,
    *,
    resume: bool = False,
    options: FitOptions | None = None,
) -> Fitted:
    """Train a network on scans by a recipe, and keep what comes out in a folder, with a file for `predict`.

    Args:
        recipe: What is trained and how.
        data: What it learns from; the test is not looked at.
        folder: For checkpoints, logs and `model.safetensors`.
        resume: Go on from last.ckpt, bit for bit as if the run had not ended there.
        options: Devices, progress; its `clips` keeps scaled scans for several runs.

    Raises:
        InflateError: The network cannot be built, too many scans cannot be read, the folder holds another run or
            cannot be written.
    """
    options, folder, splits = options or FitOptions(), Path(folder), data.splits
    splits.check_training()
    last = check_folder(folder, recipe, splits, resume=resume)
    spec = spec_for(recipe, data, normalization(recipe))
    network = volume_network(recipe, spec, start=last is None)
    for layer in network.modules():
        if recipe.freeze_norm and isinstance(layer, _BatchNorm):
            layer.requires_grad_(False)
    run = Run(network, recipe, splits, folder=folder, options=options)
    kept = options.clips or folder / CACHE
    parts = [
        VolumePatches(samples, data, recipe, spec=spec, folder=kept, train=name == "train")
        for name, samples in (("train", splits.train), ("val", splits.val))
        if samples
    ]
    labels = [sample.labels[0] for sample in splits.train] if recipe.balance and spec.task == "classes" else None
    batches: TrainBatches = run.batches(len(parts[0]), labels)
    task = VolumeTask(network, recipe, run.steps(batches))
    fitted = run.fit(task, parts, batches, last=last, workers=recipe.workers)
    if options.clips is None:
        shutil.rmtree(kept, ignore_errors=True)
    save_inflated(
        network,
        folder / MODEL,
        recipe.network,
        options=options_for(recipe, len(spec.class_names)),
        weights=f"trained by {recipe.name} from {recipe.init}",
        class_names=spec.class_names,
    )
    return fitted
