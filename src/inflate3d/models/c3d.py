"""C3D, as Tran et al. and as Carreira & Zisserman had it: eight convolutions over 3 x 3 x 3, two wide linear layers.

Layers are named as in the authors' `c3d_sport1m_feature_extractor_frm.prototxt`.
"""

from collections import OrderedDict
from collections.abc import Iterable
from typing import Literal, NamedTuple

from torch import Tensor, nn

from inflate3d.clips.clip import ClipSpec
from inflate3d.errors import check_choice
from inflate3d.models.blocks import ClipRule, SameConv3d, SameMaxPool3d, check_classes, run_endpoints

# Tran et al., section 3.3: frames of 128 x 171, crop 112, clips of 16 frames
C3D_CLIP = ClipSpec(fps=25.0, num_frames=16, min_frames=16, short_side=128, crop=112, value_range=(-1.0, 1.0))

# Output channels of the convolutions, None for the pools
TRUNK: dict[str, int | None] = {
    "conv1a": 64,
    "pool1": None,
    "conv2a": 128,
    "pool2": None,
    "conv3a": 256,
    "conv3b": 256,
    "pool3": None,
    "conv4a": 512,
    "conv4b": 512,
    "pool4": None,
    "conv5a": 512,
    "conv5b": 512,
    "pool5": None,
}
ENDPOINTS = (*TRUNK, "fc6", "fc7", "Logits", "Predictions")

FLAT = 512 * 1 * 4 * 4  # what is left of 16 x 112 x 112: 7 x 7 are pooled to 4 x 4, not to 3 x 3
WIDE = 4096

Paper = Literal["tran2015", "carreira2017"]


class Variant(NamedTuple):
    """In what the two papers differ."""

    batch_norm: bool
    first_time_stride: int


VARIANTS: dict[Paper, Variant] = {
    "tran2015": Variant(batch_norm=False, first_time_stride=1),
    "carreira2017": Variant(batch_norm=True, first_time_stride=2),
}


class C3D(nn.Module):
    """C3D: it takes 16 frames of 112 x 112 pixels, no more and no less.

    Args:
        num_classes: Classes of the last layer.
        in_channels: 3 for RGB, 2 for optical flow.
        paper: "carreira2017" has batch norm after every convolution and fully connected layer, and a first pool that
            halves time; "tran2015" is the original.
        dropout: Probability of dropping a value behind fc6 and fc7 while training.
        class_names: One for each class, carried along for those who show results.

    Raises:
        InflateError: A number of classes or channels is not 1 or more, there are more or fewer names than classes, or
            there is no such variant.

    Source: Tran et al., ICCV 2015, section 3 and figure 3; Carreira & Zisserman, CVPR 2017, section 2.2. Pools round
    up, as Caffe's do: `pooling3d_layer.cpp` of facebookarchive/C3D. PyTorch ports pad pool5 on both sides instead,
    which is another grid. Deviation: pixels in -1..1, where Tran et al. subtract the mean clip from 0..255.

    Example:
        >>> import torch
        >>> with torch.device("meta"):
        ...     C3D(101, paper="tran2015").eval()(torch.empty(2, 3, 16, 112, 112)).shape
        torch.Size([2, 101])
    """

    clip_spec = C3D_CLIP

    def __init__(
        self,
        num_classes: int = 400,
        in_channels: int = 3,
        *,
        paper: Paper = "carreira2017",
        dropout: float = 0.5,
        class_names: tuple[str, ...] | None = None,
    ) -> None:
        super().__init__()
        check_classes("C3D", num_classes, in_channels, class_names=class_names)
        check_choice(paper, VARIANTS, what="variant of the network", where="C3D")
        self.num_classes, self.in_channels, self.class_names = num_classes, in_channels, class_names
        self.clip_rule = ClipRule(
            "C3D",
            in_channels,
            C3D_CLIP,
            min_side=112,
            why_frames="the fully connected layers are made for 16 frames",
            why_side="the fully connected layers are made for 112 x 112 pixels",
            exact=True,
        )
        variant, channels = VARIANTS[paper], in_channels
        for name, width in TRUNK.items():
            if width is None:
                time = variant.first_time_stride if name == "pool1" else 2
                self.add_module(name, SameMaxPool3d((time, 2, 2), stride=(time, 2, 2)))
            else:
                self.add_module(name, _convolution(channels, width, variant.batch_norm))
                channels = width
        self.fc6 = _connection(FLAT, variant.batch_norm, dropout)
        self.fc7 = _connection(WIDE, variant.batch_norm, dropout)
        self.fc8 = nn.Linear(WIDE, num_classes)

    def forward(self, clip: Tensor) -> Tensor:
        """Answer a clip `[b, c, 16, 112, 112]` with logits `[b, classes]`; longer videos are answered clip by clip.

        Raises:
            InflateError: The clip has another shape, is not floating point, or (in eval mode) leaves -1..1.
        """
        return self.endpoints(clip, "Logits")["Logits"]

    def endpoints(self, clip: Tensor, names: str | Iterable[str]) -> dict[str, Tensor]:
        """Run a clip up to the last of the named layers and return those asked for; `ENDPOINTS` lists the names.

        Raises:
            InflateError: An unknown name, or a clip that `forward` refuses.
        """
        return run_endpoints(self._step, clip, names, known=ENDPOINTS, rule=self.clip_rule, training=self.training)

    def _step(self, name: str, x: Tensor) -> Tensor:
        if name == "Predictions":
            return x.softmax(dim=1)
        layer = self.get_submodule("fc8" if name == "Logits" else name)
        y: Tensor = layer(x.flatten(1) if name == "fc6" else x)
        return y


def _convolution(in_channels: int, channels: int, batch_norm: bool) -> nn.Sequential:
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv=SameConv3d(in_channels, channels, (3, 3, 3), stride=(1, 1, 1), bias=not batch_norm)
    )
    if batch_norm:
        layers["norm"] = nn.BatchNorm3d(channels, eps=1e-3)
    layers["relu"] = nn.ReLU(inplace=True)
    return nn.Sequential(layers)


def _connection(width: int, batch_norm: bool, dropout: float) -> nn.Sequential:
    layers: OrderedDict[str, nn.Module] = OrderedDict(linear=nn.Linear(width, WIDE, bias=not batch_norm))
    if batch_norm:
        layers["norm"] = nn.BatchNorm1d(WIDE, eps=1e-3)
    layers["relu"] = nn.ReLU(inplace=True)
    layers["dropout"] = nn.Dropout(dropout)
    return nn.Sequential(layers)
