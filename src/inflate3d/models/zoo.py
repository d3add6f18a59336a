"""The networks of the zoo by name: how they are built, what they cost, and what their makers report about them."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import nn

from inflate3d.errors import InflateError, check_choice
from inflate3d.models.c3d import C3D
from inflate3d.models.inception import InceptionI3d
from inflate3d.models.inflated import LAYOUTS, Depth, inflated_classifier, resnet_i3d
from inflate3d.models.streams import ConvNetLstm, FusedTwoStream, two_stream, two_stream_i3d

CARREIRA = "Carreira & Zisserman, Quo Vadis, Action Recognition?, CVPR 2017"
TRAN = "Tran et al., Learning Spatiotemporal Features with 3D Convolutional Networks, ICCV 2015"
TABLE_2, TABLE_3 = "arXiv 1705.07750v3, table 2", "arXiv 1705.07750v3, table 3"
README = "README of google-deepmind/kinetics-i3d"
TEST = "Kinetics-400 test set, whole videos"
WANG = "Wang et al., Non-local Neural Networks, CVPR 2018"
BOTH, SCRATCH = "ImageNet, then Kinetics-400", "Kinetics-400 alone"

VIEWS = "Kinetics-400 validation set, 10 clips x 3 crops"
ZOO, NONLOCAL = "its model zoo", "video-nonlocal-net, README"

INFLATED = "inflated/"  # any 2D classifier by its name behind it


@dataclass(frozen=True)
class Reported:
    """An accuracy that somebody else has measured.

    Attributes:
        what: Stream, or streams.
        training: What it was trained on.
        protocol: On which split, and how.
        top1: Percent.
        top5: Percent, where it is told.
        source: Where it is printed.
    """

    what: str
    training: str
    protocol: str
    top1: float
    top5: float | None
    source: str

    def __str__(self) -> str:
        top5 = f" / {self.top5:.1f}" if self.top5 else ""
        return f"{self.what}: {self.top1:.1f}{top5}, {self.training}; {self.protocol}; {self.source}"


@dataclass(frozen=True)
class Network:
    """A network of the zoo.

    Attributes:
        title: One line for the reader.
        build: Makes it: `build(num_classes=, class_names=)`, and `in_channels=` where it has one stream.
        paper: Who made it up.
        clips: What one training example is, `(c, t, h, w)` for each stream.
        parameters: Of the network with the classes that `build()` gives it, the scales of batch norm counted.
        gmacs: Multiply-adds (a multiplication with its addition is one) for one training example, in billions.
        reported: What its makers report, the best first.
        note: What a reader has to know about these figures.
        made_from: Name of the 2D model that is run to build it, which cannot be done on shapes alone; "" if none is.
    """

    title: str
    build: Callable[..., nn.Module]
    paper: str
    clips: dict[str, tuple[int, int, int, int]]
    parameters: int
    gmacs: float
    reported: tuple[Reported, ...] = ()
    note: str = ""
    made_from: str = ""


NOBODY = "Nobody has published an accuracy for this network; its kernels are inflated from a 2D checkpoint of yours."
I3D_64, FLOW_64 = (3, 64, 224, 224), (2, 64, 224, 224)


def _resnet(
    layout: str,
    *reported: tuple[str, float, float | None, str],
    gmacs: float,
    depth: Depth = 50,
    non_local: bool = False,
) -> Network:
    """Describe a ResNet-I3D; `reported` tells training, top-1, top-5 and source, all of them by VIEWS of RGB."""
    known = LAYOUTS[layout]
    parameters = {(50, False): 28_043_472, (50, True): 35_401_936, (101, False): 51_754_192}
    blocks = ", with five non-local blocks" if non_local else ""
    return Network(
        f"ResNet-{depth}-I3D as in {known.project}{blocks}",
        partial(resnet_i3d, layout, depth=depth, non_local=non_local),
        WANG,
        {"rgb": (3, known.num_frames, 224, 224)},
        parameters=parameters[depth, non_local],
        gmacs=gmacs,
        reported=tuple(Reported("RGB", one[0], VIEWS, *one[1:]) for one in reported),
        note="" if reported else "Its project reports no figure of its own for it.",
        made_from=f"torchvision/resnet{depth}",
    )


def _as_i3d(name: str, title: str, paper: str, *, parameters: int, gmacs: float, side: int = 224) -> Network:
    """Describe a 2D classifier of torchvision that is inflated as I3D was."""
    source = f"torchvision/{name}"
    return Network(
        title,
        partial(inflated_classifier, source, num_classes=400),
        f"{paper}, inflated",
        {"rgb": (3, 64, side, side)},
        parameters=parameters,
        gmacs=gmacs,
        note=NOBODY,
        made_from=source,
    )


MODELS: dict[str, Network] = {
    "i3d": Network(
        "I3D: Inception-v1 inflated, one stream",
        InceptionI3d,
        CARREIRA,
        {"rgb": I3D_64},
        parameters=12_697_264,
        gmacs=111.15,
        reported=(
            Reported("RGB", BOTH, TEST, 71.1, 89.3, README),
            Reported("RGB", SCRATCH, TEST, 68.4, 88.0, README),
            Reported("flow", BOTH, TEST, 63.4, 84.9, README),
            Reported("flow", SCRATCH, TEST, 61.5, 83.4, README),
            Reported(
                "RGB", BOTH, "Kinetics-400 validation, the 79 middle frames", 65.96, 86.01, "OpenVINO, i3d-rgb-tf"
            ),
        ),
    ),
    "two-stream-i3d": Network(
        "(e) Two-Stream I3D: I3D on colors and I3D on optical flow",
        two_stream_i3d,
        CARREIRA,
        {"rgb": I3D_64, "flow": FLOW_64},
        parameters=25_372_576,
        gmacs=213.49,
        reported=(
            Reported("RGB and flow", BOTH, TEST, 74.2, 91.3, README),
            Reported("RGB and flow", SCRATCH, TEST, 71.6, 90.0, README),
        ),
    ),
    "convnet-lstm": Network(
        "(a) ConvNet+LSTM: Inception-v1 on single frames, read in order by an LSTM",
        ConvNetLstm,
        CARREIRA,
        {"rgb": (3, 25, 224, 224)},
        parameters=8_958_000,
        gmacs=37.52,
        reported=(
            Reported("RGB", BOTH, TEST, 63.3, None, TABLE_2),
            Reported("RGB", SCRATCH, TEST, 53.9, None, TABLE_3),
        ),
        note="Batch norm inside the LSTM as in Cooijmans et al. 2017, with statistics for each of 25 steps.",
    ),
    "3d-convnet": Network(
        "(b) 3D-ConvNet: C3D with batch norm, its first pool halving time",
        C3D,
        CARREIRA,
        {"rgb": (3, 16, 112, 112)},
        parameters=79_645_520,
        gmacs=19.82,
        reported=(Reported("RGB", SCRATCH, TEST, 56.1, None, TABLE_2),),
    ),
    "c3d": Network(
        "C3D, the original",
        partial(C3D, num_classes=487, paper="tran2015"),
        TRAN,
        {"rgb": (3, 16, 112, 112)},
        parameters=79_991_015,
        gmacs=38.55,
        reported=(
            Reported(
                "RGB",
                "I380K, then Sports-1M",
                "Sports-1M test set, 487 classes, mean over 10 random clips of a video",
                61.1,
                85.5,
                "Tran et al. 2015, table 2",
            ),
        ),
        note="61.1 is of another data set than all other figures here: it must not be set beside I3D's 71.1.",
    ),
    "two-stream": Network(
        "(c) Two-Stream: Inception-v1 on one frame, and on ten optical flow maps",
        two_stream,
        CARREIRA,
        {"rgb": (3, 1, 224, 224), "flow": (2, 10, 224, 224)},
        parameters=12_073_120,
        gmacs=3.66,
        reported=(
            Reported("RGB and flow", BOTH, TEST, 65.6, None, TABLE_2),
            Reported("RGB and flow", SCRATCH, TEST, 62.8, None, TABLE_3),
            Reported("RGB", BOTH, TEST, 62.2, None, TABLE_2),
            Reported("flow", BOTH, TEST, 52.4, None, TABLE_2),
        ),
    ),
    "3d-fused": Network(
        "(d) 3D-Fused Two-Stream: two Inception-v1 joined by a 3D convolution",
        FusedTwoStream,
        CARREIRA,
        {"rgb": (3, 5, 224, 224), "flow": (2, 50, 224, 224)},
        parameters=39_770_896,
        gmacs=25.25,
        reported=(
            Reported("RGB and flow", BOTH, TEST, 67.2, None, TABLE_2),
            Reported("RGB and flow", SCRATCH, TEST, 62.7, None, TABLE_3),
        ),
    ),
    "i3d-r50-8x8": _resnet(
        "pyslowfast-8x8",
        (SCRATCH, 73.5, 90.8, "PySlowFast, " + ZOO),
        (SCRATCH, 73.27, 90.70, "PyTorchVideo, " + ZOO),
        gmacs=28.41,
    ),
    "i3d-nl-r50-8x8": _resnet(
        "pyslowfast-8x8", (SCRATCH, 74.0, 91.1, "PySlowFast, " + ZOO), gmacs=36.54, non_local=True
    ),
    "i3d-r101-8x8": _resnet("pyslowfast-8x8", gmacs=46.96, depth=101),
    "i3d-r50-nonlocal-8f": _resnet("nonlocal-8f", (BOTH, 73.4, None, NONLOCAL), gmacs=28.11),
    "i3d-nl-r50-nonlocal-8f": _resnet("nonlocal-8f", (BOTH, 74.7, None, NONLOCAL), gmacs=36.24, non_local=True),
    "i3d-r50-nonlocal-32f": _resnet("nonlocal-32f", (BOTH, 73.6, 90.8, NONLOCAL), gmacs=32.83),
    "i3d-nl-r50-nonlocal-32f": _resnet("nonlocal-32f", (BOTH, 74.9, None, NONLOCAL), gmacs=40.96, non_local=True),
    "i3d-r50-mmaction2-32x2": _resnet("mmaction2-32x2", (BOTH, 73.47, 91.27, "MMAction2, " + ZOO), gmacs=33.13),
    "i3d-nl-r50-mmaction2-32x2": _resnet(
        "mmaction2-32x2", (BOTH, 74.73, None, "MMAction2, " + ZOO), gmacs=44.34, non_local=True
    ),
    "i3d-r50-gluoncv-32x2": _resnet("gluoncv-32x2", (BOTH, 74.87, None, "GluonCV, " + ZOO), gmacs=33.13),
    "i3d-nl-r50-gluoncv-32x2": _resnet(
        "gluoncv-32x2", (BOTH, 75.17, None, "GluonCV, " + ZOO), gmacs=53.31, non_local=True
    ),
    "i3d-r101-gluoncv-32x2": _resnet("gluoncv-32x2", (BOTH, 75.10, None, "GluonCV, " + ZOO), gmacs=51.68, depth=101),
    "3d-vgg16": _as_i3d(
        "vgg16", "VGG-16 inflated as I3D was", "Simonyan & Zisserman, ICLR 2015", parameters=165_320_272, gmacs=2303.83
    ),
    "3d-resnet50": _as_i3d(
        "resnet50",
        "ResNet-50 inflated as I3D was, 3x3x3 in every block",
        "He et al., CVPR 2016",
        parameters=47_018_576,
        gmacs=132.95,
    ),
    "3d-densenet121": _as_i3d(
        "densenet121",
        "DenseNet-121 inflated as I3D was",
        "Huang et al., CVPR 2017",
        parameters=11_696_528,
        gmacs=172.99,
    ),
    "3d-inception-v3": _as_i3d(
        "inception_v3",
        "Inception-v3 inflated as I3D was",
        "Szegedy et al., CVPR 2016",
        side=299,
        parameters=72_963_120,
        gmacs=442.03,
    ),
}


def build_network(
    name: str,
    num_classes: int | None = None,
    *,
    in_channels: int | None = None,
    model2d: nn.Module | None = None,
    class_names: tuple[str, ...] | None = None,
) -> nn.Module:
    """Build a network of the zoo, with random weights if none are named.

    Args:
        name: A key of `MODELS`, or `inflated/SOURCE` for any 2D classifier that `find_2d_model` knows.
        num_classes: Classes of the last layer; None leaves what the network has by itself.
        in_channels: 3 for RGB, 2 for optical flow, where a network can be built for either; None leaves 3.
        model2d: The 2D model that the network is inflated from (`Network.made_from`), such as one with weights.
        class_names: One for each class, carried along for those who show results.

    Raises:
        InflateError: There is no such network, or it is not built with such options.

    Example:
        >>> build_network("i3d", 7, in_channels=2).num_classes
        7
    """
    given = {"num_classes": num_classes, "in_channels": in_channels, "model2d": model2d, "class_names": class_names}
    options = {key: value for key, value in given.items() if value is not None}
    if name.startswith(INFLATED):
        build: Callable[..., nn.Module] = partial(inflated_classifier, name.removeprefix(INFLATED))
    else:
        build = find_network(name).build
    known = inspect.signature(build).parameters
    if unknown := [f"{key}={value!r:.80}" for key, value in options.items() if key not in known]:
        raise InflateError(
            "this network is not built with such options",
            where=name,
            expected=", ".join(key for key in known if key in given),
            got=", ".join(unknown),
            fix="leave them out: two streams have channels of their own, and model2d is for networks made from 2D",
        )
    return build(**options)


def find_network(name: str) -> Network:
    """Look up a network by the name that users type.

    Raises:
        InflateError: The zoo has no such network.

    Example:
        >>> find_network("3d-convnet").title
        '(b) 3D-ConvNet: C3D with batch norm, its first pool halving time'
    """
    sources = f", or {INFLATED}SOURCE for a 2D classifier: {INFLATED}torchvision/resnet18"
    check_choice(name, MODELS, what="network", where="zoo", expected=", ".join(MODELS) + sources)
    return MODELS[name]
