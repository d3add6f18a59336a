"""Layers of transformers and of segmentation_models_pytorch that change when time comes in.

Every model file of transformers defines its own stochastic depth, and some their own gates and convolutions: they are
known by the ends of their names.
"""

from torch import Tensor, nn

from inflate3d.inflation.adapters import (
    Adapted,
    ClipGroupNorm,
    InflatedConv2d,
    MaxPooledInTime,
    WholeClip,
    WholeClipDrop,
)
from inflate3d.inflation.adapters_timm import WeightStandardized, WholeClipResponse


class PaddedByALayer(InflatedConv2d):
    """A convolution with a layer that pads in front of it: `pad` in BiT, `static_padding` in EfficientNet."""

    def pad_space(self, frames: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Pad by the layer, where there is one, and then as told."""
        layer = self._modules.get("pad") or self._modules.get("static_padding")
        return super().pad_space(layer(frames) if isinstance(layer, nn.Module) else frames)


class PaddedWeightStandardized(PaddedByALayer, WeightStandardized):
    """BiT's convolution."""


# By package: ends of the names of classes
BY_NAME: dict[str, dict[str, type[Adapted]]] = {
    "transformers.models.": {
        "DropPath": WholeClipDrop,
        "SELayer": WholeClip,
        "SqueezeExciteLayer": WholeClip,
        "SqueezeExcitationModule": WholeClip,
        "GRN": WholeClipResponse,
        "BitGroupNormActivation": ClipGroupNorm,
        "BitMaxPool2d": MaxPooledInTime,
        "WeightStandardizedConv2d": PaddedWeightStandardized,
    },
    "segmentation_models_pytorch.": {
        "SEModule": WholeClip,
        "SEBlock": WholeClip,
        "Conv2dStaticSamePadding": PaddedByALayer,
    },
}
