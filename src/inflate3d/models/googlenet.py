"""torchvision's GoogLeNet, a 2D Inception-v1: the trunk of the paper's 2D streams, and what I3D is inflated from."""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Literal

from torch import Tensor, nn
from torchvision.models import GoogLeNet

from inflate3d.errors import InflateError, check_choice, list_faults
from inflate3d.inflation.kernels import adapt_channels, load_2d_into
from inflate3d.inflation.profiles import Profile
from inflate3d.models.inception import InceptionI3d

Stream = Literal["rgb", "flow"]
STREAM_CHANNELS: dict[Stream, int] = {"rgb": 3, "flow": 2}

TRUNK_CHANNELS = 1024
MIN_SIDE_PIXELS = 15  # torchvision's own word: GoogLeNet_Weights, min_size

# torchvision's layers and DeepMind's scopes for them. Source: both networks' code, layer by layer.
STEM = {"conv1": "Conv3d_1a_7x7", "conv2": "Conv3d_2b_1x1", "conv3": "Conv3d_2c_3x3"}
BLOCKS = {"3a": "3b", "3b": "3c", "4a": "4b", "4b": "4c", "4c": "4d", "4d": "4e", "4e": "4f", "5a": "5b", "5b": "5c"}
BRANCHES = {
    "branch1": "Branch_0.Conv3d_0a_1x1",
    "branch2.0": "Branch_1.Conv3d_0a_1x1",
    "branch2.1": "Branch_1.Conv3d_0b_3x3",
    "branch3.0": "Branch_2.Conv3d_0a_1x1",
    "branch3.1": "Branch_2.Conv3d_0b_3x3",
    "branch4.1": "Branch_3.Conv3d_0b_1x1",
}
UNITS = STEM | {
    f"inception{block2d}.{branch2d}": f"Mixed_{block3d}.{branch3d}"
    for block2d, block3d in BLOCKS.items()
    for branch2d, branch3d in BRANCHES.items()
}
PARTS = {"conv": "conv_3d", "bn": "batch_norm"}
CLASSIFIER = {"fc": "Logits.Conv3d_0c_1x1.conv_3d"}


class InceptionTrunk(nn.Sequential):
    """Inception-v1 up to its last block: `[n, in_channels, h, w]` to `[n, 1024, ceil(h / 32), ceil(w / 32)]`.

    Layers keep torchvision's names. It takes pixels in -1..1, which is what torchvision's weights want inside, behind
    `transform_input`.

    Example:
        >>> import torch
        >>> with torch.device("meta"):
        ...     InceptionTrunk(20)(torch.empty(2, 20, 224, 192)).shape
        torch.Size([2, 1024, 7, 6])
    """

    def __init__(self, in_channels: int = 3) -> None:
        net = GoogLeNet(aux_logits=False, init_weights=False)
        if in_channels != net.conv1.conv.in_channels:
            net.conv1.conv = nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False)
        layers = OrderedDict(net.named_children())  # in the order in which forward() runs them
        for head in ("avgpool", "dropout", "fc"):
            del layers[head]
        super().__init__(layers)


def i3d_from_googlenet(
    googlenet: nn.Module | Mapping[str, Tensor],
    *,
    stream: Stream = "rgb",
    num_classes: int | None = None,
    profile: Profile = "mean",
) -> InceptionI3d:
    """Inflate ImageNet's Inception-v1 into I3D: the start of the paper's own training.

    A clip of one repeated picture is answered as a 2D network with TensorFlow's SAME padding answers the picture, in
    every frame whose kernels do not reach beyond the ends of the clip, where zeros stand (with the profile "center" in
    every frame). torchvision pads its first convolution alike on both sides, by which its grid is one pixel off that of
    SAME; its weights were ported from TensorFlow. For a proof on torchvision's own grid inflate the model itself.

    Args:
        googlenet: torchvision's GoogLeNet, or its state dict; heads that only training runs are left out. Its kernels
            have to want pixels in -1..1, as torchvision's ImageNet weights do behind `transform_input`.
        stream: "rgb", or "flow": two channels, the kernels of red and green times 3/2. How DeepMind made theirs is not
            documented.
        num_classes: Classes of a new, random classifier; None keeps that of the 2D network.
        profile: How kernels are laid out in time; see `inflate3d.inflation.profiles.profile_taps`.

    Raises:
        InflateError: There is no such stream or profile, tensors are missing or of another shape, or the third branch
            is a true 5x5, as in BVLC's GoogLeNet.

    Source: paper, section 2.4; TensorFlow-slim's Inception-v1, which torchvision's is a port of.
    """
    check_choice(stream, STREAM_CHANNELS, what="stream", where="i3d_from_googlenet")
    state2d = _flat(googlenet)
    kept = state2d["fc.bias"].shape[0] if "fc.bias" in state2d else 1
    model = InceptionI3d(kept if num_classes is None else num_classes, STREAM_CHANNELS[stream])
    _fill_i3d(model, state2d, profile, keep_classifier=num_classes is None)
    return model


def start_from_googlenet(
    model: nn.Module, googlenet: nn.Module | Mapping[str, Tensor], *, profile: Profile = "mean"
) -> None:
    """Fill every Inception-v1 inside a network in place, 2D or inflated; classifiers and what else there is stay.

    First convolutions take the channels of their stream, as in `i3d_from_googlenet`.

    Args:
        model: The network.
        googlenet: torchvision's GoogLeNet, or its state dict, as in `i3d_from_googlenet`.
        profile: How kernels are laid out in time; see `inflate3d.inflation.profiles.profile_taps`.

    Raises:
        InflateError: The network holds no Inception-v1, or what `i3d_from_googlenet` refuses.

    Source: paper, section 2: all architectures but the 3D-ConvNet start from ImageNet.
    """
    state2d = _flat(googlenet)
    parts = [part for part in model.modules() if isinstance(part, InceptionTrunk | InceptionI3d)]
    if not parts:
        raise InflateError(
            "there is no Inception-v1 in this network",
            where="start_from_googlenet",
            expected="I3D, ConvNet+LSTM, Two-Stream, 3D-Fused or Two-Stream I3D",
            got=type(model).__name__,
            fix="train it from scratch, as the paper does with its 3D-ConvNet",
        )
    for part in parts:
        if isinstance(part, InceptionI3d):
            _fill_i3d(part, state2d, profile, keep_classifier=False)
        else:
            _fill_trunk(part, state2d)


def _fill_i3d(model: InceptionI3d, state2d: dict[str, Tensor], profile: Profile, *, keep_classifier: bool) -> None:
    _refuse_true_5x5(state2d)
    names = UNITS | CLASSIFIER if keep_classifier else UNITS
    state2d = {name: value for name, value in state2d.items() if keep_classifier or not name.startswith("fc.")}
    if "fc.weight" in state2d:  # as a kernel, so that it is inflated like the others
        state2d["fc.weight"] = state2d["fc.weight"][:, :, None, None]
    allow = () if keep_classifier else ("Logits.*",)
    load_2d_into(model, state2d, names=lambda name2d: _name_3d(name2d, names), profile=profile, allow=allow)


def _fill_trunk(trunk: InceptionTrunk, state2d: dict[str, Tensor]) -> None:
    _refuse_true_5x5(state2d)
    first = "conv1.conv.weight"
    state2d = {name: value for name, value in state2d.items() if not name.startswith("fc.")}
    if first in state2d and state2d[first].shape[1] == 3:
        state2d[first] = adapt_channels(state2d[first], trunk.get_parameter(first).shape[1])
    load_2d_into(trunk, state2d, allow=("aux*",))


def _flat(googlenet: nn.Module | Mapping[str, Tensor]) -> dict[str, Tensor]:
    return dict(googlenet.state_dict() if isinstance(googlenet, nn.Module) else googlenet)


def _name_3d(name2d: str, names: Mapping[str, str]) -> str | None:
    """Translate `inception3a.branch2.1.bn.bias`; None for the heads of training, the name itself if it is unknown."""
    if name2d.startswith(("aux1.", "aux2.")):
        return None
    unit, _, kind = name2d.rpartition(".")
    if unit in names:  # the classifier, which has no batch norm
        return f"{names[unit]}.{kind}"
    unit, _, part = unit.rpartition(".")
    return f"{names[unit]}.{PARTS[part]}.{kind}" if unit in names and part in PARTS else name2d


def _refuse_true_5x5(state2d: Mapping[str, Tensor]) -> None:
    true_5x5 = [(name, value) for name, value in state2d.items() if value.ndim == 4 and value.shape[-2:] == (5, 5)]
    wide = [f"{name}: {list(value.shape)}, as in BVLC's GoogLeNet" for name, value in true_5x5]
    if wide:
        raise InflateError(
            "the third branch of this Inception-v1 is a true 5x5, and I3D's is 3x3x3",
            where="i3d_from_googlenet",
            expected="TensorFlow-slim's Inception-v1, which torchvision's googlenet is a port of",
            got=list_faults(wide, shown=1),
            fix='inflate the 2D network itself: inflate3d.inflate(model2d, "i3d")',
        )
