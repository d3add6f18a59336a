"""Layers of timm that change when time comes in."""

import torch
import torch.nn.functional as F
from timm import layers
from timm.layers import DropPath, pool2d_same
from timm.layers.padding import pad_same
from timm.models import _efficientnet_blocks as efficientnet
from torch import Tensor, nn

from inflate3d.inflation.adapters import InflatedConv2d, PooledInTime, WholeClip, WholeClipDrop, adapts
from inflate3d.inflation.fold import Fold
from inflate3d.inflation.kernels import inflate_weight
from inflate3d.inflation.plan import LayerPlan


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
            center = layer.present_tap()
            laid_out = plan.profile != "random"  # else the weight itself is drawn
            taps = ones.unsqueeze(2)
            if laid_out:
                taps = inflate_weight(ones, plan.time_kernel, profile=plan.profile, center=center, groups=layer.groups)
            layer.register_buffer("taps", taps, persistent=False)

    def inflated_weight(self) -> Tensor:
        """Repeat the 2D weight in time; a random one is drawn."""
        if self.plan.profile == "random":
            return super().inflated_weight()
        return self.weight.detach().unsqueeze(2).repeat(1, 1, self.plan.time_kernel, 1, 1)

    def deflated_weight(self) -> Tensor:
        """Average the weight over time."""
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


@adapts(DropPath)
class ClipDropPath(WholeClipDrop, DropPath):  # type: ignore[misc]
    """timm's stochastic depth, by clips."""


@adapts(layers.SEModule)
class ClipSEModule(WholeClip, layers.SEModule):  # type: ignore[misc]
    """Squeeze-and-excitation over the clip."""


@adapts(efficientnet.SqueezeExcite)
class ClipEfficientNetGate(WholeClip, efficientnet.SqueezeExcite):  # type: ignore[misc]
    """EfficientNet's squeeze-and-excitation over the clip."""


@adapts(layers.EffectiveSEModule)
class ClipEffectiveSEModule(WholeClip, layers.EffectiveSEModule):  # type: ignore[misc]
    """Effective squeeze-and-excitation (VoVNet) over the clip."""


@adapts(layers.EcaModule)
class ClipEcaModule(WholeClip, layers.EcaModule):  # type: ignore[misc]
    """Efficient channel attention over the clip."""


@adapts(layers.CircularEfficientChannelAttn)
class ClipCecaModule(WholeClip, layers.CircularEfficientChannelAttn):  # type: ignore[misc]
    """Circular efficient channel attention over the clip."""


@adapts(layers.GlobalContext)
class ClipGlobalContext(WholeClip, layers.GlobalContext):  # type: ignore[misc]
    """Global context over the clip."""


@adapts(layers.GroupNorm)
class ClipTimmGroupNorm(WholeClip, layers.GroupNorm):  # type: ignore[misc]
    """timm's group norm over the clip."""


@adapts(layers.GroupNorm1)
class ClipGroupNorm1(WholeClip, layers.GroupNorm1):  # type: ignore[misc]
    """Group norm with one group over the clip."""


@adapts(layers.GroupNormAct)
class ClipGroupNormAct(WholeClip, layers.GroupNormAct):  # type: ignore[misc]
    """Group norm and activation over the clip."""


@adapts(layers.GroupNorm1Act)
class ClipGroupNorm1Act(WholeClip, layers.GroupNorm1Act):  # type: ignore[misc]
    """Group norm with one group, and activation, over the clip."""
