"""The ResNet-I3Ds of the literature, each a plan for torchvision's ResNet: what differs between them is a table."""

from dataclasses import dataclass, replace
from typing import Literal

import torch
import torchvision.models
from torch import nn

from inflate3d.clips.clip import ClipSpec
from inflate3d.errors import InflateError, nearest_names
from inflate3d.inflation.build import inflate
from inflate3d.inflation.plan import Attention, Insert, Rule, SubSample, TimePadding
from inflate3d.models.inflated import IMAGENET_MEAN, IMAGENET_STD, InflatedClassifier
from inflate3d.models.inputs import check_classes

Depth = Literal[50, 101]

RAW_FPS = 30.0  # of most Kinetics clips; the frames of a clip are every second or every eighth of them
GRAY, QUARTER = (0.45, 0.45, 0.45), (0.225, 0.225, 0.225)  # 114.75 and 57.375 of 255


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
    plan = _layout(layout, depth)
    check_classes("resnet_i3d", num_classes, len(plan.mean), class_names=class_names)
    net = _prepared(model2d, num_classes, plan, depth)
    pads: TimePadding = "zeros"
    kernel, stride = plan.pool
    rules = {
        "conv1": Rule(time_kernel=5, time_stride=plan.stem_stride, padding=pads),
        "maxpool": Rule(time_kernel=kernel, time_stride=stride),
        **{f"{block}.conv1": Rule(time_kernel=3, padding=pads) for block in TIMED_BLOCKS},
    }
    inserts = [Insert("layer1", "time_pool")]
    if non_local:
        block = Insert("layer1", "nonlocal", attention=plan.attention, sub_sample=plan.sub_sample)
        inserts += [replace(block, after=name) for name in NON_LOCAL_AFTER[depth]]
    inflated = inflate(net, "frames", example=torch.zeros(1, 3, 64, 64), rules=rules, inserts=inserts)
    fps = RAW_FPS / plan.frame_step
    spec = ClipSpec(fps, plan.num_frames, 1, short_side=256, crop=224, value_range=(-1.0, 1.0))
    return InflatedClassifier(inflated, spec, mean=plan.mean, std=plan.std, class_names=class_names)


def _layout(name: str, depth: int) -> Layout:
    if name not in LAYOUTS or depth not in NON_LOCAL_AFTER:
        raise InflateError(
            "there is no such ResNet-I3D",
            where="resnet_i3d",
            expected=f"layout {', '.join(LAYOUTS)}; depth {' or '.join(map(str, NON_LOCAL_AFTER))}",
            got=f"layout={name!r}, {depth=}",
            fix=f"did you mean {nearest_names(name, LAYOUTS)}?",
        )
    return LAYOUTS[name]


def _prepared(model2d: nn.Module | None, num_classes: int, layout: Layout, depth: int) -> nn.Module:
    """Give a ResNet its classes and its first pool, on a copy."""
    fresh = getattr(torchvision.models, f"resnet{depth}")(num_classes=num_classes)
    if model2d is not None:
        state, wanted = model2d.state_dict(), fresh.state_dict()
        body = {name: value for name, value in state.items() if not name.startswith("fc.")}
        faults = sorted(body.keys() ^ {name for name in wanted if not name.startswith("fc.")})
        if faults:
            raise InflateError(
                f"this is no ResNet-{depth} of torchvision",
                where="resnet_i3d",
                expected=f"torchvision.models.resnet{depth}()",
                got=f"{type(model2d).__name__}, which differs in {', '.join(faults[:3])}",
                fix="pass depth= of your model, or inflate it with a plan of your own",
            )
        fits = state.get("fc.weight", torch.empty(0)).shape == wanted["fc.weight"].shape
        fresh.load_state_dict(state if fits else {**wanted, **body})
    if not layout.pool_pads_space:
        fresh.maxpool = nn.MaxPool2d(3, 2, padding=0)
    network: nn.Module = fresh
    return network
