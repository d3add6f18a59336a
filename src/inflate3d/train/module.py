"""The Lightning module: loss, mixing of clips, learning rates, what is frozen; and metrics of the validation."""

from typing import Any, TypedDict

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric
from torchmetrics.classification import MulticlassAccuracy, MultilabelAveragePrecision

from inflate3d.errors import InflateError
from inflate3d.train.network import head_of, keep_frozen_in_eval
from inflate3d.train.recipe import Recipe, Training


class Batch(TypedDict):
    """What a loader gives.

    Attributes:
        clip: `[b, c, t, h, w]` uint8, or features in floating point.
        target: `[b]` numbers of classes; `[b, classes]` of 0 and 1; or `[b, classes, t]`.
        valid: `[b]`, false where a clip could not be read.
    """

    clip: Tensor
    target: Tensor
    valid: Tensor


class Learning(L.LightningModule):
    """A network that learns by a recipe, whatever it sees: seeds, clipped gradients, optimizer, schedule.

    Args:
        model: What learns.
        recipe: How it learns.
        total_steps: Steps of the optimizer in all.
    """

    score_name = "val_score"
    val_score: Metric

    def __init__(self, model: nn.Module, recipe: Training, total_steps: int) -> None:
        super().__init__()
        self.model, self.recipe, self.total_steps = model, recipe, total_steps
        self.val_loss: Metric = MeanMetric()

    @property
    def val_batch_size(self) -> int:
        """Samples at a time in validation."""
        return self.recipe.batch_size

    def head(self) -> nn.Module | None:
        """Find the last layer, if it learns at a rate of its own."""
        return None

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Draw what is drawn in this step from its number, so that a run that goes on draws what it would have."""
        step = self.trainer.current_epoch * 1_000_003 + batch_idx
        torch.manual_seed((self.recipe.seed * 7919 + step) * 1009 + self.global_rank)

    def nothing_scored(self) -> tuple[Tensor, ...]:
        """Give what the score takes for no sample, where it keeps all of them."""
        return ()

    def on_validation_epoch_end(self) -> None:
        """Tell what the validation says; all devices ask at once, for each waits for what the others have counted."""
        self.val_loss.update(0.0, weight=0.0)  # perhaps this device could read nothing
        if not self.val_score.update_called and (nothing := self.nothing_scored()):
            self.val_score.update(*nothing)
        loss = self.val_loss.compute()
        if not loss.isnan():  # else no device could read anything
            self.log("val_loss", loss, prog_bar=True)
            self.log(self.score_name, self.val_score.compute(), prog_bar=True)
        self.val_loss.reset()
        self.val_score.reset()

    def on_before_backward(self, loss: Tensor) -> None:
        """Stop where nothing can be learned any more, before the weights are lost."""
        self._check_finite(loss, "loss")

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Clip gradients; Lightning refuses to, with fused optimizers."""
        if self.recipe.clip_norm:
            whole = getattr(self.trainer.strategy.model, "clip_grad_norm_", None)  # FSDP's own, over all devices
            if whole is not None:
                norm = whole(self.recipe.clip_norm)
            else:
                norm = nn.utils.clip_grad_norm_(self.parameters(), self.recipe.clip_norm)
            self._check_finite(norm, "norm of the gradients")

    def _check_finite(self, value: Tensor, what: str) -> None:
        if not torch.isfinite(value):
            raise InflateError(
                f"training has diverged: the {what} is no finite number",
                where=f"epoch {self.current_epoch}, step {self.global_step}",
                expected="a number",
                got=f"{float(value)}",
                fix=f"begin anew with --set lr={self.recipe.lr / 10:g}, --set warmup_steps=100 or --set precision=fp32",
            )

    def configure_optimizers(self) -> Any:
        """Make the optimizer and the schedule of the recipe."""
        recipe = self.recipe
        groups = parameter_groups(self.model, recipe, self.head())
        optimizer: torch.optim.Optimizer
        if recipe.optimizer == "sgd":
            optimizer = torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, fused=True)
        else:
            optimizer = torch.optim.AdamW(groups, lr=recipe.lr, fused=True)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: lr_factor(recipe, step, self.total_steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class ClipTask(Learning):
    """A network that learns what is in clips.

    Args:
        model: Maps clips in -1..1 to logits `[b, classes]`.
        recipe: How it learns.
        num_classes: Classes of the last layer.
        tail: What is trained of it, where the frozen part has been run before; it maps features to logits.
        total_steps: Steps of the optimizer in all.
    """

    def __init__(
        self, model: nn.Module, recipe: Recipe, num_classes: int, *, tail: nn.Module | None = None, total_steps: int = 1
    ) -> None:
        super().__init__(model, recipe, total_steps)
        self.recipe: Recipe
        self.num_classes = num_classes
        self.running = (model if tail is None else tail,)  # in a tuple, since its layers are registered as the model's
        several = recipe.task != "classes"
        self.val_score = (
            MultilabelAveragePrecision(num_classes) if several else MulticlassAccuracy(num_classes, average="micro")
        )
        self.score_name = "val_map" if several else "val_top1"

    def head(self) -> nn.Module:
        """Find the last layer."""
        return head_of(self.model, self.num_classes)[1]

    def forward(self, clip: Tensor) -> Tensor:
        """Answer clips `[b, c, t, h, w]`, uint8 or in -1..1, with logits `[b, classes]`."""
        return self.run(to_input(clip))

    def run(self, x: Tensor) -> Tensor:
        """Map clips in -1..1, or features, to logits."""
        logits: Tensor = self.running[0](x)
        return logits

    def train(self, mode: bool = True) -> "ClipTask":
        """Switch to training mode, but for what is frozen."""
        super().train(mode)
        self.running[0].train(mode)
        if mode:
            keep_frozen_in_eval(self.model, self.recipe)
        return self

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Give the loss of a batch."""
        clip, target = to_input(batch["clip"]), batch["target"]
        if self.recipe.mixup:
            clip, target = mix(clip, target, alpha=self.recipe.mixup, num_classes=self.num_classes)
        loss = self.loss(clip, target)
        self.log("train_loss", loss, on_step=True, on_epoch=True, prog_bar=True, batch_size=len(clip), sync_dist=True)
        return loss

    def loss(self, clip: Tensor, target: Tensor) -> Tensor:
        """Run the network and compare with what was wanted."""
        if self.recipe.task == "frames" or self.recipe.every_step:
            steps = self.model.endpoints(clip, "Logits_per_step")["Logits_per_step"].float()  # type: ignore[operator]  # I3D's and the LSTM's own
            return frames_loss(steps, target) if self.recipe.task == "frames" else self._every_step(steps, target)
        logits = self.run(clip).float()
        if self.recipe.task == "labels":
            return F.binary_cross_entropy_with_logits(logits, target.float())
        return F.cross_entropy(logits, target, label_smoothing=self.recipe.label_smoothing)

    def _every_step(self, steps: Tensor, target: Tensor) -> Tensor:
        if target.ndim > 1:  # mixed
            target = target[:, :, None].expand(-1, -1, steps.shape[2])
        else:
            target = target[:, None].expand(-1, steps.shape[2])
        return F.cross_entropy(steps, target, label_smoothing=self.recipe.label_smoothing)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Count what could be read; the rest is told elsewhere."""
        valid = batch["valid"]
        if not valid.any():
            return
        clip, target = to_input(batch["clip"][valid]), batch["target"][valid]
        logits = self.run(clip).float()
        if self.recipe.task == "classes":
            loss = F.cross_entropy(logits, target)
        else:
            target = target.amax(2) if target.ndim == 3 else target
            loss = F.binary_cross_entropy_with_logits(logits, target.float())
        self.val_loss.update(loss.detach(), weight=len(clip))
        self.val_score.update(logits, target.long())

    def nothing_scored(self) -> tuple[Tensor, ...]:
        """Give what the average precision takes for no clip."""
        nothing = torch.zeros(0, self.num_classes, device=self.device)
        return () if self.recipe.task == "classes" else (nothing, nothing.long())


def to_input(clip: Tensor) -> Tensor:
    """Turn bytes into -1..1, channels-last; features stay as they are.

    Example:
        >>> to_input(torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 1, 3, 1, 1)).flatten()
        tensor([-1.0000, -0.6000,  1.0000])
    """
    if clip.dtype != torch.uint8:
        return clip.float()
    return clip.to(memory_format=torch.channels_last_3d).float().div_(127.5).sub_(1)


def mix(clip: Tensor, target: Tensor, *, alpha: float, num_classes: int) -> tuple[Tensor, Tensor]:
    """Mix each clip of a batch with the one before it, and their targets likewise.

    Source: Zhang et al., mixup, ICLR 2018; one share for a batch, as in its code.
    """
    share = float(torch.distributions.Beta(alpha, alpha).sample())
    soft = F.one_hot(target, num_classes).float() if target.ndim == 1 else target.float()
    return clip.lerp(clip.roll(1, 0), share), soft.lerp(soft.roll(1, 0), share)


def frames_loss(steps: Tensor, target: Tensor) -> Tensor:
    """Compare answers over time with labels over time, at every frame and as a whole.

    Args:
        steps: Logits `[b, classes, steps]`.
        target: 0 or 1, `[b, classes, t]`.

    Source: pytorch-i3d, `train_i3d.py`: half the loss at each frame, of answers interpolated to t, and half of the
    largest answer over time.

    Example:
        >>> frames_loss(torch.zeros(1, 2, 3), torch.ones(1, 2, 7))
        tensor(0.6931)
    """
    target = target.float()
    frames = F.interpolate(steps, target.shape[2], mode="linear", align_corners=False)
    local = F.binary_cross_entropy_with_logits(frames, target)
    whole = F.binary_cross_entropy_with_logits(frames.amax(2), target.amax(2))
    return (local + whole) / 2


def parameter_groups(model: nn.Module, recipe: Training, last: nn.Module | None) -> list[dict[str, Any]]:
    """Part what is trained: decayed or not, last layer or not."""
    head = {id(value) for value in last.parameters()} if last else set()
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for value in model.parameters():
        if value.requires_grad:
            groups.setdefault((value.ndim > 1, id(value) in head), []).append(value)
    return [
        {
            "params": values,
            "lr": recipe.lr * (recipe.head_lr if of_head else 1.0),
            "weight_decay": recipe.weight_decay if decayed else 0.0,
        }
        for (decayed, of_head), values in groups.items()
    ]


def lr_factor(recipe: Training, step: int, total_steps: int) -> float:
    """Tell by how much the learning rate of a step differs from `lr`.

    Example:
        >>> recipe = Recipe("mine", schedule="steps", lr=0.1, lr_steps=((10, 0.01),), warmup_steps=2)
        >>> [round(lr_factor(recipe, step, 20), 3) for step in (0, 1, 9, 10)]
        [0.5, 1.0, 1.0, 0.1]
    """
    if step < recipe.warmup_steps:
        return (step + 1) / recipe.warmup_steps
    if recipe.schedule == "cosine":
        done = (step - recipe.warmup_steps) / max(total_steps - recipe.warmup_steps, 1)
        return float(0.5 * (1 + torch.cos(torch.tensor(min(done, 1.0) * torch.pi, dtype=torch.float64))))
    rates = [rate for start, rate in recipe.lr_steps if step >= start]
    return rates[-1] / recipe.lr if rates else 1.0
