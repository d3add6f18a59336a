"""Layers of timm, transformers and segmentation_models_pytorch that change when time comes in.

Every model file of transformers defines its own stochastic depth, and some their own gates and convolutions: those of
the two last packages are known by the ends of their names.
"""

import math

import torch
import torch.nn.functional as F
from timm import layers
from timm.layers import DropPath, cbam, evo_norm, filter_response_norm, grn, pool2d_same
from timm.layers.padding import pad_same
from timm.models import _efficientnet_blocks as efficientnet
from timm.models import hgnet, senet
from torch import Tensor, nn

from inflate3d.errors import InflateError
from inflate3d.inflation.adapters import (
    ADAPTERS,
    Adapted,
    ClipGroupNorm,
    InflatedConv2d,
    MaxPooledInTime,
    PooledInTime,
    WholeClip,
    WholeClipDrop,
    adapts,
)
from inflate3d.inflation.filters import Filter
from inflate3d.inflation.fold import Fold, Folded
from inflate3d.inflation.kernels import inflate_weight
from inflate3d.inflation.padding import present_tap
from inflate3d.inflation.plan import LayerPlan
from inflate3d.inflation.profiles import is_random


@adapts(layers.Conv2dSame)
class InflatedConv2dSame(InflatedConv2d, layers.Conv2dSame):  # type: ignore[misc]
    """A convolution with TensorFlow's padding in space."""

    def pad_space(self, frames: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Pad by the size of the frames."""
        return pad_same(frames, self.kernel_size, self.stride, self.dilation), (0, 0)


class WeightStandardized(InflatedConv2d):
    """A convolution that standardizes its weight, so that a scale in the weight does nothing.

    The 2D weight is repeated as it is, which leaves its mean and variance alone, and the profile comes after the
    standardization. The mean over time of the weight gives the 2D weight back.
    """

    @classmethod
    def take_over(cls, layer: nn.Module, plan: LayerPlan, fold: Fold) -> None:
        """Repeat the weight in time and keep the taps of the profile beside it."""
        ones = torch.ones_like(layer.get_parameter("weight")[:, :, :1, :1])
        super().take_over(layer, plan, fold)
        if plan.action == "inflate":
            assert isinstance(layer, WeightStandardized)
            center = present_tap(plan.time_kernel, plan.padding)
            laid_out = not is_random(plan.profile)  # else the weight itself is drawn
            taps = ones.unsqueeze(2)
            if laid_out:
                taps = inflate_weight(ones, plan.time_kernel, profile=plan.profile, center=center, groups=layer.groups)
            layer.register_buffer("taps", taps, persistent=False)

    def inflated_weight(self) -> Tensor:
        """Repeat the 2D weight in time; a random one is drawn."""
        if is_random(self.plan.profile):
            return super().inflated_weight()
        return self.weight.detach().unsqueeze(2).repeat(1, 1, self.plan.time_kernel, 1, 1)

    def deflated_weight(self) -> Tensor:
        """Average the weight over time: the 2D weight, as long as all frames of the weight are alike.

        After training they differ, and then no 2D weight answers a still clip as this one does: what the frames of a
        standardized kernel sum up to has neither the mean nor the variance of a standardized 2D kernel.
        """
        return self.weight.detach().mean(2)

    def deflate_(self) -> None:
        """Forget the taps as well."""
        super().deflate_()
        self._buffers.pop("taps", None)
        self._non_persistent_buffers_set.discard("taps")

    def lay_out(self, taps: Tensor) -> None:
        """Standardization would undo taps in the weight: they go beside it."""
        self.taps = taps.to(self.weight).view(1, 1, -1, 1, 1)

    def standard_gain(self) -> Tensor | None:
        """Give the factor of each output channel after standardization."""
        return None

    def kernel_in_use(self) -> Tensor:
        """Standardize over the whole 3D kernel, then lay it out in time."""
        flat = self.weight.reshape(1, self.out_channels, -1)
        gain, eps = self.standard_gain(), float(self.eps)  # type: ignore[arg-type]
        standard = F.batch_norm(flat, None, None, weight=gain, training=True, momentum=0.0, eps=eps)
        return standard.reshape_as(self.weight) * self.get_buffer("taps")

    def pad_space(self, frames: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Pad by the size of the frames where the 2D layer does."""
        if getattr(self, "same_pad", False):
            return pad_same(frames, self.kernel_size, self.stride, self.dilation), (0, 0)
        return super().pad_space(frames)


@adapts(layers.StdConv2d)
class InflatedStdConv2d(WeightStandardized, layers.StdConv2d):  # type: ignore[misc]
    """Weight standardization (BiT)."""


@adapts(layers.StdConv2dSame)
class InflatedStdConv2dSame(WeightStandardized, layers.StdConv2dSame):  # type: ignore[misc]
    """Weight standardization with TensorFlow's padding (ViT hybrids)."""


class ScaledStandardized(WeightStandardized):
    """Weight standardization with a learned gain (NFNets)."""

    def standard_gain(self) -> Tensor | None:
        """Gain times the scale that the 2D fan-in sets."""
        gain: Tensor = (self.gain * self.scale).view(-1)  # type: ignore[operator]
        return gain


@adapts(layers.ScaledStdConv2d)
class InflatedScaledStdConv2d(ScaledStandardized, layers.ScaledStdConv2d):  # type: ignore[misc]
    """Scaled weight standardization (NFNets)."""


@adapts(layers.ScaledStdConv2dSame)
class InflatedScaledStdConv2dSame(ScaledStandardized, layers.ScaledStdConv2dSame):  # type: ignore[misc]
    """Scaled weight standardization with TensorFlow's padding (NFNets of DeepMind)."""


@adapts(pool2d_same.MaxPool2dSame)
class MaxPooledInTimeSame(PooledInTime, pool2d_same.MaxPool2dSame):  # type: ignore[misc]
    """A maximum over several frames, with TensorFlow's padding in space."""

    takes_maximum = True


@adapts(layers.AvgPool2dSame)
class AvgPooledInTimeSame(PooledInTime, layers.AvgPool2dSame):  # type: ignore[misc]
    """A mean over several frames, with TensorFlow's padding in space."""

    takes_maximum = False


@adapts(layers.BlurPool2d)
class BlurPooledInTime(PooledInTime, layers.BlurPool2d):  # type: ignore[misc]
    """A blur in space and a mean in time."""

    takes_maximum = False


# Its kernels are sums that each picture weighs in its own way, so that its frames are mixed ahead of it
ADAPTERS[layers.CondConv2d] = Filter


@adapts(DropPath)
class ClipDropPath(WholeClipDrop, DropPath):  # type: ignore[misc]
    """timm's stochastic depth, by clips."""


@adapts(layers.SplitBatchNorm2d)
class ClipSplitBatchNorm2d(Adapted, layers.SplitBatchNorm2d):  # type: ignore[misc]
    """Batch norms for the parts of a batch: no clip may lie in two of them."""

    kind = "drop"
    num_splits: int

    def forward(self, x: Tensor) -> Tensor:
        """Run the 2D layer, whose parts follow each other in the batch.

        Raises:
            InflateError: In training, a part would end amid a clip.
        """
        if self.training and self.num_clips(x) % self.num_splits:
            raise InflateError(
                "a batch norm would split the batch amid a clip",
                where=f"layer {self.plan.path}",
                expected=f"a multiple of {self.num_splits} clips",
                got=f"{self.num_clips(x)} clips",
                fix="train on batches of such a size",
            )
        return self.forward2d(x)


# Gates and per-sample norms that take their statistics over height and width in whatever way
GATES: tuple[type[nn.Module], ...] = (
    layers.SEModule,
    layers.EffectiveSEModule,
    layers.EcaModule,
    layers.CircularEfficientChannelAttn,
    layers.GlobalContext,
    cbam.ChannelAttn,
    cbam.LightChannelAttn,
    efficientnet.SqueezeExcite,
    hgnet.EseModule,
    senet.SEModule,
    layers.GroupNorm,
    layers.GroupNorm1,
    layers.GroupNormAct,
    layers.GroupNorm1Act,
    *(getattr(evo_norm, f"EvoNorm2d{version}") for version in ("B0", "B1", "B2")),
    *(getattr(evo_norm, f"EvoNorm2d{version}") for version in ("S0", "S0a", "S1", "S1a", "S2", "S2a")),
    filter_response_norm.FilterResponseNormTlu2d,
    filter_response_norm.FilterResponseNormAct2d,
)
for gate in GATES:
    adapts(gate)(WholeClip)


class WholeClipResponse(WholeClip):
    """Global response norm over the clip; its 2D layer has `weight`, `bias` and `eps`.

    Norms are divided by the root of the number of frames, so that `eps` weighs the same however long the clip is.
    """

    eps = 1e-6

    def is_channels_last(self) -> bool:
        """Whether its maps are."""
        return True

    def forward(self, x: Tensor) -> Tensor:
        """Run on frames `[n, c, h, w]` or `[n, h, w, c]`, or on clips of the same order."""
        if not self.is_channels_last():
            return Folded.forward(self, x)
        return Folded.forward(self, x.movedim(-1, 1)).movedim(1, -1)

    def through_time(self, x: Tensor) -> Tensor:
        """Scale each channel of `[b, c, t, h, w]` by its norm, relative to that of the others."""
        norms = torch.linalg.vector_norm(x, dim=(2, 3, 4), keepdim=True) / math.sqrt(x.shape[2])
        weight, bias = (self.get_parameter(name).view(1, -1, 1, 1, 1) for name in ("weight", "bias"))
        scaled = x * (norms / (norms.mean(1, keepdim=True) + self.eps))
        return x + torch.addcmul(bias, weight, scaled)


@adapts(grn.GlobalResponseNorm)
class ClipGlobalResponseNorm(WholeClipResponse, grn.GlobalResponseNorm):  # type: ignore[misc]
    """ConvNeXt V2's global response norm over the clip."""

    def is_channels_last(self) -> bool:
        """Whether its maps are: timm's layer knows."""
        return bool(self.channel_dim == -1)


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
