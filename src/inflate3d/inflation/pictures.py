"""The picture a 2D model was made for: its shape, from the model's own configuration, and pictures to try it on."""

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from inflate3d.errors import InflateError

Shape = tuple[int, int, int]

DEFAULT_SHAPE: Shape = (3, 224, 224)


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


def pictures_like(model: nn.Module, shape: tuple[int, ...]) -> Tensor:
    """Make three different pictures `[3, c, h, w]` of the model's dtype, on its device, always the same ones."""
    values = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3, *shape, generator=generator).to(values)
