"""The picture a 2D model was made for: its shape, from the model's own configuration, and pictures to try it on."""

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from inflate3d.errors import InflateError

Shape = tuple[int, int, int]

DEFAULT_SHAPE: Shape = (3, 224, 224)
# Answers to a picture may differ by rounding between batches of different sizes, not by more; half precisions round
# coarsely, and so do convolutions on a GPU (TF32)
EXACT_TOLERANCE, MIXING_TOLERANCE = 1e-4, 1e-3


def input_shape_of(model2d: nn.Module, *, otherwise: Shape = DEFAULT_SHAPE) -> Shape:
    """Tell which picture `(c, h, w)` a model was made for.

    Asked in this order: timm's configuration, Hugging Face's or segmentation_models_pytorch's, the model itself
    (torchvision's ViT knows its size).

    Args:
        model2d: Any 2D model.
        otherwise: The answer for a model that does not say.

    Example:
        >>> input_shape_of(nn.Conv2d(3, 7, 1))
        (3, 224, 224)
    """
    timm_config = getattr(model2d, "pretrained_cfg", None) or getattr(model2d, "default_cfg", None)
    if isinstance(timm_config, Mapping) and timm_config.get("input_size"):
        return _timm_shape(model2d, timm_config)
    config = getattr(model2d, "config", None)
    config = SimpleNamespace(**config) if isinstance(config, Mapping) else getattr(config, "vision_config", config)
    channels = getattr(config, "num_channels", getattr(config, "in_channels", otherwise[0]))
    size = getattr(config, "image_size", None) or getattr(model2d, "image_size", None)
    return int(channels), *_sides(size, otherwise[1:])


def picture_shape(model2d: nn.Module, example: Tensor | None) -> Shape:
    """Take the shape `(c, h, w)` from an example, or else from the model.

    Raises:
        InflateError: The example is no picture `[1, c, h, w]`.

    Example:
        >>> picture_shape(nn.Conv2d(5, 7, 1), torch.zeros(1, 5, 11, 13))
        (5, 11, 13)
    """
    if example is None:
        return input_shape_of(model2d)
    if not isinstance(example, Tensor) or example.ndim != 4 or 0 in example.shape:
        raise InflateError(
            "the example is no picture",
            where="example",
            expected="a tensor [1, c, h, w]",
            got=f"{list(example.shape)}" if isinstance(example, Tensor) else type(example).__name__,
            fix="example=torch.zeros(1, 3, 224, 224), say",
        )
    _, channels, height, width = example.shape
    return channels, height, width


def _sides(size: object, otherwise: Sequence[int]) -> tuple[int, int]:
    sides = [size] if isinstance(size, int) else size if isinstance(size, list | tuple) else otherwise
    return int(sides[0]), int(sides[-1])


def _timm_shape(model2d: nn.Module, config: Mapping[str, Any]) -> Shape:
    """Read timm's config; what the user changed (`in_chans=1`, `img_size=96`) stands in the layers alone."""
    channels, height, width = config["input_size"]
    first = config.get("first_conv")
    layer = dict(model2d.named_modules()).get(first if isinstance(first, str) else "")
    if isinstance(layer, nn.Conv2d) and layer.groups == 1 and channels == 3:
        # TResNet's stem moves blocks of pixels into the channels first
        blocks = [int(getattr(part, "bs")) ** 2 for part in model2d.modules() if type(part).__name__ == "SpaceToDepth"]  # noqa: B009
        channels = layer.in_channels // (blocks[0] if blocks else 1)
    # the model itself or, in the order of its parts, its first embedding of patches
    size = next((part.img_size for part in model2d.modules() if getattr(part, "img_size", None)), None)
    return int(channels), *_sides(size, (height, width))


def pictures_like(model: nn.Module, shape: tuple[int, ...], example: Tensor | None = None) -> Tensor:
    """Make three different pictures `[3, c, h, w]` of the model's dtype, on its device, always the same ones.

    They differ in brightness and contrast, so that what is taken over a batch depends on who is in it.

    Args:
        model: Whose parameters tell dtype and device.
        shape: `(c, h, w)`.
        example: Its least and largest value are theirs; without one, or if all its values are the same, 0 and 1.

    Example:
        >>> [f"{picture.mean():.1f}" for picture in pictures_like(nn.Conv2d(3, 5, 1), (3, 7, 11))]
        ['0.3', '0.6', '0.2']
    """
    values = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
    generator = torch.Generator().manual_seed(0)
    # the last one, with which answers are compared, is dark and has the darkest and the brightest spots
    each = torch.tensor([[0.1, 0.3, 0.0], [0.4, 0.6, 1.0], [1.0, 1.0, 4.0]])
    darkest, contrast, power = each.view(3, 3, *[1] * len(shape))
    pictures: Tensor = darkest + contrast * torch.rand(3, *shape, generator=generator) ** power
    if example is not None and example.min() < example.max():
        low, high = float(example.min()), float(example.max())
        pictures = low + (high - low) * pictures
    return pictures.to(values)


def check_pictures_stay_apart(two: Any, three: Any, model: str) -> None:
    """Compare a model's answers to two pictures with those to the same two and a third one.

    Args:
        two: A nest of tensors.
        three: The same, for a batch of three.
        model: What to call it in an error.

    Raises:
        InflateError: A picture's answer depends on the others, is no number, or does not stand in its row.
    """
    leaves = pytree.tree_leaves(two), pytree.tree_leaves(three)
    if len(leaves[0]) != len(leaves[1]):
        raise InflateError(
            "the structure of the model's output grows with the batch",
            where="make_plan",
            expected="tensors whose first axis is the batch, in a nest of one structure",
            got=f"{model}: {len(leaves[0])} leaves for two pictures, {len(leaves[1])} for three",
            fix="stack the answers to the pictures into one tensor",
        )
    for a, b in zip(*leaves, strict=True):
        if not isinstance(a, Tensor) or not isinstance(b, Tensor) or a.ndim == 0 or b.shape[0] == a.shape[0]:
            continue
        if a.shape[1:] != b.shape[1:]:  # the batch shows in other axes too, which is refused with the outputs
            continue
        _check_same(a, b[: a.shape[0]], model)


def _check_same(answer: Tensor, among_more: Tensor, model: str) -> None:
    a, b = answer.double(), among_more.double()
    if torch.isnan(a).any() or torch.isnan(b).any():
        raise InflateError(
            "the model's answer to a picture is not a number",
            where="make_plan",
            expected="numbers, for pictures with the values of the example, or from 0 to 1",
            got=f"{model}: NaN",
            fix="pass a picture with values that the model takes: example=torch.rand(1, channels, height, width)",
        )
    apart = torch.where(a == b, 0.0, (a - b).abs())  # infinities are equal too
    size = torch.where(a.isfinite(), a.abs(), 0.0)
    difference = float(apart.max() / size.max().clamp_min(1e-12)) if apart.any() else 0.0
    exact = answer.device.type == "cpu" and answer.dtype not in (torch.float16, torch.bfloat16)
    if not difference <= (EXACT_TOLERANCE if exact else MIXING_TOLERANCE):
        raise InflateError(
            "the model's answer to a picture depends on the other pictures of the batch",
            where="make_plan",
            expected="the same answer to a picture in a batch of two and of three (eval mode)",
            got=f"{model}: relative difference {difference:.3g}",
            fix="frames of a clip would disturb each other; take the mixing (or randomness) out of the model",
        )
