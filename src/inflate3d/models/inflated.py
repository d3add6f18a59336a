"""2D classifiers inflated into networks for video, input and classes put in order; the ResNet-I3Ds among them.

Each of these is a plan for torchvision's ResNet: what differs between them is a table, `LAYOUTS`.
"""

import copy
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torchvision.models
from torch import Tensor, nn

from inflate3d.clips.clip import ClipSpec
from inflate3d.errors import InflateError, check_choice, list_faults
from inflate3d.inflation.build import inflate
from inflate3d.inflation.channels import with_input_channels
from inflate3d.inflation.inflated import Inflated
from inflate3d.inflation.padding import TimePadding
from inflate3d.inflation.pictures import DEFAULT_SHAPE
from inflate3d.inflation.plan import Attention, Insert, Rule, SubSample
from inflate3d.models.blocks import ClipRule, check_classes
from inflate3d.models.sources import example_shape, find_2d_model

Depth = Literal[50, 101]

RGB = DEFAULT_SHAPE[0]
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MIN_SIDE_PIXELS = 32
RAW_FPS = 30.0  # of most Kinetics clips; the frames of a clip are every second or every eighth of them
GRAY, QUARTER = (0.45, 0.45, 0.45), (0.225, 0.225, 0.225)  # 114.75 and 57.375 of 255


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
    model2d: nn.Module | None = None,
    class_names: tuple[str, ...] | None = None,
) -> InflatedClassifier:
    """Inflate a 2D classifier by name into a network for video, with classes of your own or those it has.

    Args:
        source: `torchvision/resnet50`, `timm/NAME`, `module:function`; see `find_2d_model`.
        num_classes: Classes of a new, random last layer; None keeps the 2D model's.
        in_channels: 3 for RGB; 2 for optical flow, with kernels made from those of red and green.
        preset: "i3d" has strides in time as in space; "video" has none. See `inflate`.
        model2d: The model of that name, such as one with weights; it stays as it is. None starts at random.
        class_names: One for each class, carried along for those who show results.

    Raises:
        InflateError: There is no such model, it has no linear classifier, or it cannot be inflated.

    Example:
        >>> model = inflated_classifier("torchvision/resnet18", 7).eval()
        >>> with torch.inference_mode():
        ...     model(torch.zeros(1, 3, 9, 64, 65)).shape
        torch.Size([1, 7])
    """
    model2d = find_2d_model(source) if model2d is None else copy.deepcopy(model2d)
    path, last = _classifier(model2d)
    num_classes = last.out_features if num_classes is None else num_classes
    check_classes(source, num_classes, in_channels, class_names=class_names)
    if num_classes != last.out_features:
        model2d.set_submodule(path, nn.Linear(last.in_features, num_classes))
    shape = example_shape(model2d, source)
    mean, std = mean_and_std(model2d, source)
    if in_channels != shape[0]:
        model2d = with_input_channels(model2d, in_channels, example=torch.zeros(1, *shape))
        # zero stays zero: flow that stands still
        mean, std = (0.5,) * in_channels, (sum(std) / len(std),) * in_channels
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


def mean_and_std(model2d: nn.Module, source: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
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


@dataclass(frozen=True)
class Layout:
    """How one project inflates a ResNet; kernels of 3 frames stand in the same places in all of them.

    Attributes:
        project: Whose layout it is.
        num_frames: Of a clip.
        frame_step: Raw frames from one frame of the clip to the next.
        stem_stride: In time, of the first convolution, which spans 5 frames.
        pool: Frames that the first pool spans, and its stride in time.
        pool_pads_space: Whether that pool is padded by a pixel on each side.
        mean: Of the pixels in 0..1, by channel.
        std: Their deviations.
        attention: Of non-local blocks, where the layout is built with them.
        sub_sample: Likewise, see `Insert`.
    """

    project: str
    num_frames: int
    frame_step: int
    stem_stride: int
    pool: tuple[int, int]
    pool_pads_space: bool = True
    mean: tuple[float, ...] = GRAY
    std: tuple[float, ...] = QUARTER
    attention: Attention = "softmax"
    sub_sample: SubSample = "before"


LAYOUTS: dict[str, Layout] = {
    "nonlocal-8f": Layout("video-nonlocal-net (Caffe2), resnet_video.py", 8, 8, 1, (1, 1), pool_pads_space=False),
    "nonlocal-32f": Layout("video-nonlocal-net (Caffe2), resnet_video_org.py", 32, 2, 2, (2, 2), pool_pads_space=False),
    "pyslowfast-8x8": Layout("PySlowFast and PyTorchVideo", 8, 8, 1, (1, 1)),
    "mmaction2-32x2": Layout(
        "MMAction2", 32, 2, 2, (1, 2), True, IMAGENET_MEAN, IMAGENET_STD, "embedded_gaussian", "after"
    ),
    "gluoncv-32x2": Layout("GluonCV", 32, 2, 2, (1, 2), True, IMAGENET_MEAN, IMAGENET_STD, "softmax", "none"),
}

# Convolutions that open every second block look at 3 frames; in res2 of every block, in res5 of the middle one.
TIMED_BLOCKS = ("layer1.*", "layer2.[02]", "layer3.*[02468]", "layer4.1")
NON_LOCAL_AFTER: dict[int, tuple[str, ...]] = {
    50: ("layer2.1", "layer2.3", "layer3.1", "layer3.3", "layer3.5"),
    101: ("layer2.1", "layer2.3", "layer3.6", "layer3.13", "layer3.20"),
}


def resnet_i3d(
    layout: str = "pyslowfast-8x8",
    num_classes: int = 400,
    *,
    depth: Depth = 50,
    non_local: bool = False,
    model2d: nn.Module | None = None,
    class_names: tuple[str, ...] | None = None,
) -> InflatedClassifier:
    """Build a ResNet-I3D by inflating torchvision's ResNet, fed with clips in -1..1 and normalized inside.

    Args:
        layout: A key of `LAYOUTS`.
        num_classes: Classes of the last layer.
        depth: 50 or 101.
        non_local: With five non-local blocks, which change nothing until they are trained or loaded.
        model2d: torchvision's ResNet of this depth, such as one with ImageNet weights: its kernels are inflated, its
            classifier is kept if it has as many classes. None starts at random.
        class_names: One for each class, carried along for those who show results.

    Raises:
        InflateError: There is no such layout or depth, or the model is no ResNet with bottlenecks of this depth.

    Source: `video-nonlocal-net` resnet_video.py, PySlowFast configs/Kinetics/c2/I3D_8x8_R50.yaml, PyTorchVideo
    models/hub/resnet.py, MMAction2 resnet3d.py, GluonCV i3d_resnet.py; Wang et al. 2018, table 1.

    Example:
        >>> model = resnet_i3d(num_classes=7).eval()
        >>> with torch.inference_mode():
        ...     model(torch.zeros(1, 3, 8, 64, 65)).shape
        torch.Size([1, 7])
    """
    known = _layout(layout, depth)
    check_classes("resnet_i3d", num_classes, RGB, class_names=class_names)
    net = _prepared(model2d, num_classes, known, depth)
    pads: TimePadding = "zeros"
    kernel, stride = known.pool
    rules = {
        "conv1": Rule(time_kernel=5, time_stride=known.stem_stride, padding=pads),
        "maxpool": Rule(time_kernel=kernel, time_stride=stride),
        **{f"{block}.conv1": Rule(time_kernel=3, padding=pads) for block in TIMED_BLOCKS},
    }
    inserts = [Insert("layer1", "time_pool")]
    if non_local:
        block = Insert("layer1", "nonlocal", attention=known.attention, sub_sample=known.sub_sample)
        inserts += [replace(block, after=name) for name in NON_LOCAL_AFTER[depth]]
    inflated = inflate(net, "frames", example=torch.zeros(1, 3, 64, 64), rules=rules, inserts=inserts)
    fps = RAW_FPS / known.frame_step
    spec = ClipSpec(fps, known.num_frames, 1, short_side=256, crop=224, value_range=(-1.0, 1.0))
    return InflatedClassifier(inflated, spec, mean=known.mean, std=known.std, class_names=class_names)


def _layout(name: str, depth: int) -> Layout:
    check_choice(name, LAYOUTS, what="layout of a ResNet-I3D", where="resnet_i3d")
    if depth not in NON_LOCAL_AFTER:
        raise InflateError(
            "there is no ResNet-I3D of this depth",
            where="resnet_i3d",
            expected=" or ".join(map(str, NON_LOCAL_AFTER)),
            got=repr(depth),
            fix=f'inflate it with a plan of your own: inflate3d.inflate(torchvision.models.resnet{depth}(), "i3d")',
        )
    return LAYOUTS[name]


def _prepared(model2d: nn.Module | None, num_classes: int, layout: Layout, depth: int) -> nn.Module:
    """Give a ResNet its classes and its first pool, on a copy."""
    fresh = getattr(torchvision.models, f"resnet{depth}")(num_classes=num_classes)
    if model2d is not None:
        state, wanted = _state_of(model2d), fresh.state_dict()
        body = {name: value for name, value in state.items() if not name.startswith("fc.")}
        shapes = [
            {name: value.shape for name, value in tensors.items() if not name.startswith("fc.")}
            for tensors in (state, wanted)
        ]
        if faults := sorted({name for name, _ in shapes[0].items() ^ shapes[1].items()}):
            raise InflateError(
                f"this is no ResNet-{depth} of torchvision",
                where="resnet_i3d",
                expected=f"torchvision.models.resnet{depth}()",
                got=f"{type(model2d).__name__}, which differs in {list_faults(faults, shown=3)}",
                fix="pass depth= of your model, or inflate it with a plan of your own",
            )
        fits = state.get("fc.weight", torch.empty(0)).shape == wanted["fc.weight"].shape
        fresh.load_state_dict(state if fits else {**wanted, **body})
    if not layout.pool_pads_space:
        fresh.maxpool = nn.MaxPool2d(3, 2, padding=0)
    network: nn.Module = fresh
    return network


def _state_of(model2d: nn.Module) -> dict[str, Tensor]:
    if not isinstance(model2d, nn.Module):
        raise InflateError(
            "the 2D model is no module",
            where="resnet_i3d",
            expected="torchvision's ResNet as a torch.nn.Module, or None",
            got=type(model2d).__name__,
            fix="build it and fill it: model2d = torchvision.models.resnet50(); model2d.load_state_dict(state)",
        )
    return dict(model2d.state_dict())
