"""I3D, the inflated Inception-v1: the full network of Carreira & Zisserman (CVPR 2017), as DeepMind released it.

Names are those of DeepMind's TensorFlow scopes, so that `Mixed_3b.Branch_1.Conv3d_0b_3x3` here is
`Mixed_3b/Branch_1/Conv3d_0b_3x3` there. One scope is mended: `Mixed_5b/Branch_2/Conv3d_0a_3x3` is `Conv3d_0b_3x3`.

Deviation: batch norm has an affine scale, which TensorFlow's has not; it starts at one and no checkpoint holds it.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inflate3d.clips.clip import ClipSpec
from inflate3d.clips.transforms import to_range
from inflate3d.errors import InflateError, is_number
from inflate3d.models.blocks import (
    ClipRule,
    Padding,
    SameConv3d,
    SameMaxPool3d,
    Triple,
    check_classes,
    run_endpoints,
)

# Training: 64 frames at 25 fps, short side 256, crop 224 (paper, section 2.5); pixels -1..1 (DeepMind's README).
I3D_CLIP = ClipSpec(fps=25.0, num_frames=64, min_frames=9, short_side=256, crop=224, value_range=(-1.0, 1.0))

# Fewest frames and pixels of a side: the head pools 2 x 7 x 7. SAME halves and rounds up, 8 + 1 and 192 + 1 are enough;
# static padding rounds down once, in the first convolution.
SMALLEST: dict[Padding, tuple[int, int]] = {"same": (9, 193), "static": (10, 194)}


class Mixed(NamedTuple):
    """Output channels of a Mixed block: branch 0, branch 1 reduced and full, branch 2 likewise, branch 3."""

    b0: int
    b1_reduce: int
    b1: int
    b2_reduce: int
    b2: int
    b3: int


class Pool(NamedTuple):
    """Kernel and stride of a max pool."""

    kernel: Triple
    stride: Triple


class Conv(NamedTuple):
    """Output channels, kernel and stride of a convolution unit."""

    channels: int
    kernel: Triple
    stride: Triple = (1, 1, 1)


# Source: kinetics-i3d i3d.py; the first two pools leave time alone (paper, section 2.4).
TRUNK: dict[str, Conv | Pool | Mixed] = {
    "Conv3d_1a_7x7": Conv(64, (7, 7, 7), (2, 2, 2)),
    "MaxPool3d_2a_3x3": Pool((1, 3, 3), (1, 2, 2)),
    "Conv3d_2b_1x1": Conv(64, (1, 1, 1)),
    "Conv3d_2c_3x3": Conv(192, (3, 3, 3)),
    "MaxPool3d_3a_3x3": Pool((1, 3, 3), (1, 2, 2)),
    "Mixed_3b": Mixed(64, 96, 128, 16, 32, 32),
    "Mixed_3c": Mixed(128, 128, 192, 32, 96, 64),
    "MaxPool3d_4a_3x3": Pool((3, 3, 3), (2, 2, 2)),
    "Mixed_4b": Mixed(192, 96, 208, 16, 48, 64),
    "Mixed_4c": Mixed(160, 112, 224, 24, 64, 64),
    "Mixed_4d": Mixed(128, 128, 256, 24, 64, 64),
    "Mixed_4e": Mixed(112, 144, 288, 32, 64, 64),
    "Mixed_4f": Mixed(256, 160, 320, 32, 128, 128),
    "MaxPool3d_5a_2x2": Pool((2, 2, 2), (2, 2, 2)),
    "Mixed_5b": Mixed(256, 160, 320, 32, 128, 128),
    "Mixed_5c": Mixed(384, 192, 384, 48, 128, 128),
}

# Layers that look through time, each with those behind it that do not: a few frames of them can be run together
JOINED = (
    ("Conv3d_1a_7x7", "MaxPool3d_2a_3x3", "Conv3d_2b_1x1"),
    ("Conv3d_2c_3x3", "MaxPool3d_3a_3x3"),
)

# The head's inner steps have no name at DeepMind's; Logits and Predictions have.
HEAD = ("AvgPool_2x7x7", "Logits_per_step", "Logits", "Predictions")
ENDPOINTS = (*TRUNK, *HEAD)


RunJoined = Callable[[Sequence[nn.Module], Tensor], Tensor]


class Unit3d(nn.Sequential):
    """Convolution, batch norm, ReLU."""

    def __init__(self, in_channels: int, conv: Conv) -> None:
        super().__init__(
            OrderedDict(
                conv_3d=SameConv3d(in_channels, conv.channels, conv.kernel, stride=conv.stride, bias=False),
                # Sonnet's defaults: eps 1e-3 and decay 0.999, torch's momentum being 1 - decay
                batch_norm=nn.BatchNorm3d(conv.channels, eps=1e-3, momentum=1e-3),
                relu=nn.ReLU(inplace=True),
            )
        )


class MixedBlock(nn.ModuleDict):
    """Four branches side by side, joined along the channels."""

    def __init__(self, in_channels: int, mixed: Mixed) -> None:
        def unit(channels_in: int, channels: int, side: int) -> Unit3d:
            return Unit3d(channels_in, Conv(channels, (side, side, side)))

        super().__init__(
            {
                "Branch_0": _chain(Conv3d_0a_1x1=unit(in_channels, mixed.b0, 1)),
                "Branch_1": _chain(
                    Conv3d_0a_1x1=unit(in_channels, mixed.b1_reduce, 1),
                    Conv3d_0b_3x3=unit(mixed.b1_reduce, mixed.b1, 3),
                ),
                "Branch_2": _chain(
                    Conv3d_0a_1x1=unit(in_channels, mixed.b2_reduce, 1),
                    Conv3d_0b_3x3=unit(mixed.b2_reduce, mixed.b2, 3),
                ),
                "Branch_3": _chain(
                    MaxPool3d_0a_3x3=SameMaxPool3d((3, 3, 3), stride=(1, 1, 1)),
                    Conv3d_0b_1x1=unit(in_channels, mixed.b3, 1),
                ),
            }
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map `[b, c, t, h, w]` to `[b, b0 + b1 + b2 + b3, t, h, w]`."""
        return torch.cat([branch(x) for branch in self.values()], dim=1)


def _chain(**layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(layers))


class InceptionI3d(nn.Module):
    """I3D: Inception-v1 with every filter and pool inflated into time.

    Args:
        num_classes: 400 for Kinetics-400, 600 for Kinetics-600, any other for your own data.
        in_channels: 3 for RGB, 2 for optical flow (horizontal, vertical).
        dropout: Probability of dropping a pooled feature while training.
        class_names: One for each class, carried along for those who show results.
        bn_eps: Added to the variances of batch norm: 1e-3 at DeepMind's. Many ports have 1e-5, and so have the features
            and Fréchet Video Distances made with them.
        padding: "same" is TensorFlow's, for any size; "static" is that of ports which took it for a constant: equal for
            64 frames of 224 x 224 pixels, shifted by a position wherever a size on the way is odd.

    Raises:
        InflateError: A number of classes or channels is not 1 or more, there are more or fewer names than classes, or
            there is no such padding or epsilon.

    Source: paper, section 2.4 and figure 3; kinetics-i3d `i3d.py`.

    Example:
        >>> model = InceptionI3d(num_classes=7).eval()
        >>> with torch.inference_mode():
        ...     model(torch.zeros(1, 3, 9, 193, 224)).shape
        torch.Size([1, 7])
    """

    def __init__(
        self,
        num_classes: int = 400,
        in_channels: int = 3,
        *,
        dropout: float = 0.5,
        class_names: tuple[str, ...] | None = None,
        bn_eps: float = 1e-3,
        padding: Padding = "same",
    ) -> None:
        super().__init__()
        check_classes("InceptionI3d", num_classes, in_channels, class_names=class_names)
        if not is_number(bn_eps) or bn_eps <= 0 or padding not in get_args(Padding):
            raise InflateError(
                "there is no such variant of the network",
                where="InceptionI3d",
                expected=f"bn_eps > 0, padding one of {', '.join(get_args(Padding))}",
                got=f"{bn_eps=}, {padding=}",
                fix="leave both out for DeepMind's network; video_features is bn_eps=1e-5, padding='static'",
            )
        self.num_classes, self.in_channels = num_classes, in_channels
        self.class_names = class_names
        min_frames, min_side = SMALLEST[padding]
        self.clip_spec = replace(I3D_CLIP, min_frames=min_frames)
        self.clip_rule = ClipRule(
            "InceptionI3d",
            in_channels,
            self.clip_spec,
            min_side,
            why_frames="after three halvings of time the head needs two steps",
            why_side="after five halvings the head pools 7 x 7 positions",
        )
        channels = in_channels
        for name, layer in TRUNK.items():
            self.add_module(name, _build(layer, channels))
            channels = _out_channels(layer, channels)
        self.run_joined: RunJoined | None = None  # in place of one layer of `JOINED` after the other
        self.dropout = nn.Dropout(dropout)
        classifier = SameConv3d(channels, num_classes, (1, 1, 1), stride=(1, 1, 1), bias=True)
        self.Logits = nn.ModuleDict({"Conv3d_0c_1x1": nn.ModuleDict({"conv_3d": classifier})})
        self.apply(_initialize)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm3d):
                module.eps = bn_eps
            elif isinstance(module, SameConv3d | SameMaxPool3d):
                module.rule = padding

    def forward(self, clip: Tensor) -> Tensor:
        """Answer a clip `[b, c, t, h, w]` with logits `[b, classes]`, the mean over time of the logits per step.

        Pixels lie in -1..1. Frames: 9 or more; sides: 193 pixels or more (above 224 the logits of all positions are
        averaged as well: the fully convolutional test of the paper); with static padding 10 and 194.

        Raises:
            InflateError: The clip is no tensor, has another number of axes or channels, is too short or too small, is
                not floating point, or (in eval mode) leaves -1..1 or holds NaN.
        """
        return self.endpoints(clip, ["Logits"])["Logits"]

    def endpoints(self, clip: Tensor, names: str | Iterable[str]) -> dict[str, Tensor]:
        """Run a clip `[b, c, t, h, w]` up to the last of the named endpoints (or the one) and return those asked for.

        `ENDPOINTS` lists the names in order. Feature maps are `[b, channels, t', h', w']`; `AvgPool_2x7x7` is
        `[b, 1024, steps, h'', w'']` before dropout (`h'' = w'' = 1` for sides of 193 to 224); `Logits_per_step` is
        `[b, classes, steps]` with `steps = ceil(t / 8) - 1`; `Logits` and `Predictions` (softmax) are `[b, classes]`.

        Raises:
            InflateError: An unknown name, or a clip that `forward` refuses.

        Example:
            >>> model = InceptionI3d().eval()
            >>> with torch.inference_mode():
            ...     found = model.endpoints(torch.zeros(1, 3, 17, 193, 193), ["MaxPool3d_3a_3x3", "Mixed_3b"])
            >>> {name: list(value.shape) for name, value in found.items()}
            {'MaxPool3d_3a_3x3': [1, 192, 9, 25, 25], 'Mixed_3b': [1, 256, 9, 25, 25]}
        """
        wanted = {names} if isinstance(names, str) else set(names := list(names))
        rest = {name: first for first, *rest in JOINED if not wanted & {first, *rest[:-1]} for name in rest}

        def step(name: str, x: Tensor) -> Tensor:
            if self.run_joined and name in rest:
                return x  # it ran with the first one
            if self.run_joined and name in rest.values():
                group = [name, *(other for other, first in rest.items() if first == name)]
                return self.run_joined([self.get_submodule(one) for one in group], x)
            return self.step(name, to_range(x) if x.dtype == torch.uint8 else x)

        return run_endpoints(step, clip, names, known=ENDPOINTS, rule=self.clip_rule, training=self.training)

    def step(self, name: str, x: Tensor) -> Tensor:
        """Run one endpoint: what the one before it gave, to what it gives."""
        if name == "AvgPool_2x7x7":
            return F.avg_pool3d(x, (2, 7, 7), stride=1)
        if name == "Logits_per_step":
            logits: Tensor = self.get_submodule("Logits.Conv3d_0c_1x1.conv_3d")(self.dropout(x))
            return logits.mean(dim=(3, 4))
        if name == "Logits":
            return x.mean(dim=2)
        if name == "Predictions":
            return x.softmax(dim=1)
        layer: Tensor = self.get_submodule(name)(x)
        return layer


def _build(layer: Conv | Pool | Mixed, in_channels: int) -> nn.Module:
    if isinstance(layer, Conv):
        return Unit3d(in_channels, layer)
    if isinstance(layer, Pool):
        return SameMaxPool3d(layer.kernel, stride=layer.stride)
    return MixedBlock(in_channels, layer)


def _out_channels(layer: Conv | Pool | Mixed, in_channels: int) -> int:
    if isinstance(layer, Conv):
        return layer.channels
    if isinstance(layer, Pool):
        return in_channels
    return layer.b0 + layer.b1 + layer.b2 + layer.b3


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Conv3d):  # Sonnet's default: truncated normal, deviation 1 / sqrt(fan in); zero bias
        nn.init.trunc_normal_(module.weight, std=module.weight[0].numel() ** -0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
