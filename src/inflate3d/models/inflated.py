"""2D classifiers inflated into networks for video, their input and classes put in order: `3d-resnet50` and others."""

from pathlib import Path

import torch
import torchvision.models
from torch import Tensor, nn

from inflate3d.clips.clip import ClipSpec
from inflate3d.errors import InflateError
from inflate3d.inflation.build import Inflated, inflate
from inflate3d.inflation.channels import with_input_channels
from inflate3d.models.inputs import ClipRule, check_classes
from inflate3d.models.sources import NO_WEIGHTS, example_shape, find_2d_model

RGB = 3
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MIN_SIDE_PIXELS = 32


class InflatedClassifier(nn.Module):
    """An inflated 2D classifier that is fed as every network here: clips in -1..1, normalized inside.

    Args:
        inflated: Made by `inflate`; it answers with logits.
        clip_spec: What it wants to be fed.
        mean: Of each channel of the pixels in 0..1, as the 2D model was trained.
        std: Their deviations.
        class_names: One for each class, carried along for those who show results.
    """

    def __init__(
        self,
        inflated: Inflated,
        clip_spec: ClipSpec,
        *,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        class_names: tuple[str, ...] | None = None,
    ) -> None:
        super().__init__()
        self.inflated, self.clip_spec, self.class_names = inflated, clip_spec, class_names
        self.in_channels, self.num_classes = len(mean), _classifier(inflated.net)[1].out_features
        self.mean, self.std = mean, std
        self.clip_rule = ClipRule(type(inflated.net).__name__, len(mean), clip_spec, MIN_SIDE_PIXELS)

    def forward(self, clip: Tensor) -> Tensor:
        """Answer a clip `[b, c, t, h, w]` in -1..1 with logits `[b, classes]`.

        Raises:
            InflateError: The clip has another shape, is not floating point, or (in eval mode) leaves -1..1.
        """
        self.clip_rule.check(clip, training=self.training)
        mean, std = (clip.new_tensor(values).view(1, -1, 1, 1, 1) for values in (self.mean, self.std))
        logits: Tensor = self.inflated((clip / 2 + 0.5 - mean) / std)
        return logits


def inflated_classifier(
    source: str,
    num_classes: int | None = None,
    in_channels: int = RGB,
    *,
    preset: str = "i3d",
    weights: str | Path = NO_WEIGHTS,
    class_names: tuple[str, ...] | None = None,
) -> InflatedClassifier:
    """Inflate a 2D classifier by name into a network for video, with classes of your own or those it has.

    Args:
        source: `torchvision/resnet50`, `timm/NAME`, `module:function`; see `find_2d_model`.
        num_classes: Classes of a new, random last layer; None keeps the 2D model's.
        in_channels: 3 for RGB; 2 for optical flow, with kernels made from those of red and green.
        preset: "i3d" has strides in time as in space; "video" has none. See `inflate`.
        weights: `none`, `pretrained` (torchvision or timm download theirs) or a file.
        class_names: One for each class, carried along for those who show results.

    Raises:
        InflateError: There is no such model, it has no linear classifier, or it cannot be inflated.

    Example:
        >>> model = inflated_classifier("torchvision/resnet18", 7).eval()
        >>> with torch.inference_mode():
        ...     model(torch.zeros(1, 3, 9, 64, 65)).shape
        torch.Size([1, 7])
    """
    model2d = find_2d_model(source, weights=weights)
    path, last = _classifier(model2d)
    num_classes = num_classes or last.out_features
    check_classes(source, num_classes, in_channels, class_names=class_names)
    if num_classes != last.out_features:
        model2d.set_submodule(path, nn.Linear(last.in_features, num_classes))
    shape = example_shape(model2d, source)
    mean, std = _mean_and_std(model2d, source)
    if in_channels != shape[0]:
        model2d = with_input_channels(model2d, in_channels, example=torch.zeros(1, *shape))
        mean, std = (
            (0.5,) * in_channels,
            (sum(std) / len(std),) * in_channels,
        )  # zero stays zero: flow that stands still
    side = shape[1]
    spec = ClipSpec(25.0, 64, 1, short_side=round(side * 8 / 7), crop=side, value_range=(-1.0, 1.0))
    inflated = inflate(model2d, preset, example=torch.zeros(1, in_channels, *shape[1:]))
    return InflatedClassifier(inflated, spec, mean=mean, std=std, class_names=class_names)


def _classifier(model2d: nn.Module) -> tuple[str, nn.Linear]:
    linear = [(path, module) for path, module in model2d.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise InflateError(
            "the 2D model has no linear classifier",
            where="inflated_classifier",
            expected="a classifier that ends in a torch.nn.Linear",
            got=type(model2d).__name__,
            fix="inflate it yourself with inflate3d.inflate, and put a head of your own behind it",
        )
    return linear[-1]


def _mean_and_std(model2d: nn.Module, source: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Tell how the pixels in 0..1 were normalized for the 2D model."""
    config = getattr(model2d, "pretrained_cfg", None) or {}
    if "mean" in config:
        return tuple(config["mean"]), tuple(config["std"])
    # torchvision's Inceptions were ported from TensorFlow: inside, behind transform_input, they want -1..1
    if getattr(model2d, "transform_input", None) is False:
        return (0.5,) * RGB, (0.5,) * RGB
    package, _, name = source.partition("/")
    if package == "torchvision":
        preset = torchvision.models.get_model_weights(name).DEFAULT.transforms()
        return tuple(preset.mean), tuple(preset.std)
    return IMAGENET_MEAN, IMAGENET_STD
