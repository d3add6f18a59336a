"""Networks on Inception-v1's trunk: (a) ConvNet+LSTM, and those that look at colors and at optical flow, (c) to (e)."""

import math
from collections.abc import Iterable
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inflate3d.axes import clip_to_frames
from inflate3d.clips.clip import ClipSpec
from inflate3d.errors import InflateError, check_choice
from inflate3d.models.blocks import ClipRule, SameConv3d, SameMaxPool3d, check_classes, run_endpoints
from inflate3d.models.googlenet import MIN_SIDE_PIXELS, STREAM_CHANNELS, TRUNK_CHANNELS, InceptionTrunk
from inflate3d.models.inception import InceptionI3d

# Paper, table 1 and section 2.1: one frame of every five at 25 fps, 25 of them (5 s) in training and 50 in testing
LSTM_CLIP = ClipSpec(fps=5.0, num_frames=25, min_frames=1, short_side=256, crop=224, value_range=(-1.0, 1.0))
HIDDEN = 512

LSTM_ENDPOINTS = ("AvgPool_7x7", "LSTM", "Logits_per_step", "Logits", "Predictions")

# Paper, table 1: for each RGB frame, ten frames apart at 25 fps, the ten flow maps that begin with it
FLOW_STACK = 10
RGB_FPS, FLOW_FPS = 2.5, 25.0
FUSED_FRAMES = 5
FUSED_CHANNELS = 512

Fusion = Literal["logits", "probabilities"]


class BatchNormLstm(nn.Module):
    """An LSTM with batch norm inside: on what comes in, on what comes back, and on the cell before it is put out.

    Each step has statistics of its own, because the first ones see an empty memory; steps beyond `num_steps` use those
    of the last. Scales start at 0.1, which lets gradients through.

    Args:
        in_features: Values of a step.
        hidden: Values of the memory.
        num_steps: Steps that have statistics of their own.

    Source: Cooijmans et al., Recurrent Batch Normalization, ICLR 2017, section 3.

    Example:
        >>> BatchNormLstm(7, 5, num_steps=3).eval()(torch.zeros(2, 11, 7)).shape
        torch.Size([2, 11, 5])
    """

    def __init__(self, in_features: int, hidden: int, *, num_steps: int) -> None:
        super().__init__()
        self.hidden, self.num_steps = hidden, num_steps
        self.from_input = nn.Linear(in_features, 4 * hidden)
        self.from_memory = nn.Linear(hidden, 4 * hidden, bias=False)
        nn.init.orthogonal_(self.from_memory.weight)
        self.norm_input = StepNorm(4 * hidden, num_steps)
        self.norm_memory = StepNorm(4 * hidden, num_steps)
        self.norm_cell = StepNorm(hidden, num_steps, with_bias=True)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[b, t, in_features]` to what is put out at each step, `[b, t, hidden]`."""
        memory = cell = x.new_zeros(x.shape[0], self.hidden)
        weight, bias = self.from_input.weight, self.from_input.bias
        outputs = []
        for step, incoming in enumerate(F.linear(x, weight).unbind(1)):
            gates = self.norm_input(incoming, step) + self.norm_memory(self.from_memory(memory), step) + bias
            write, forget, new, read = gates.chunk(4, dim=1)
            cell = forget.sigmoid() * cell + write.sigmoid() * new.tanh()
            memory = read.sigmoid() * self.norm_cell(cell, step).tanh()
            outputs.append(memory)
        return torch.stack(outputs, dim=1)


class StepNorm(nn.Module):
    """Batch norm of `[b, features]` with statistics for each of the first steps, and one scale for all."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, features: int, num_steps: int, *, with_bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((features,), 0.1))
        self.bias = nn.Parameter(torch.zeros(features)) if with_bias else None
        self.register_buffer("running_mean", torch.zeros(num_steps, features))
        self.register_buffer("running_var", torch.ones(num_steps, features))

    def forward(self, x: Tensor, step: int) -> Tensor:
        """Normalize the values of one step."""
        step = min(step, len(self.running_mean) - 1)
        mean, var = self.running_mean[step], self.running_var[step]  # views: training updates the buffers
        return F.batch_norm(x, mean, var, self.weight, self.bias, training=self.training, eps=1e-3)


class ConvNetLstm(nn.Module):
    """ConvNet+LSTM: what it says after the last frame counts; in training every step is asked.

    Args:
        num_classes: Classes of the last layer.
        in_channels: 3 for RGB, 2 for optical flow.
        class_names: One for each class, carried along for those who show results.

    Raises:
        InflateError: A number of classes or channels is not 1 or more, or there are more or fewer names than classes.

    Source: Carreira & Zisserman, CVPR 2017, section 2.1.

    Example:
        >>> with torch.device("meta"):
        ...     model = ConvNetLstm(7).eval()
        ...     model(torch.empty(2, 3, 5, 224, 192)).shape
        torch.Size([2, 7])
    """

    clip_spec = LSTM_CLIP

    def __init__(
        self, num_classes: int = 400, in_channels: int = 3, *, class_names: tuple[str, ...] | None = None
    ) -> None:
        super().__init__()
        check_classes("ConvNetLstm", num_classes, in_channels, class_names=class_names)
        self.num_classes, self.in_channels, self.class_names = num_classes, in_channels, class_names
        self.clip_rule = ClipRule("ConvNetLstm", in_channels, LSTM_CLIP, MIN_SIDE_PIXELS)
        self.trunk = InceptionTrunk(in_channels)
        self.lstm = BatchNormLstm(TRUNK_CHANNELS, HIDDEN, num_steps=LSTM_CLIP.num_frames)
        self.classifier = nn.Linear(HIDDEN, num_classes)

    def forward(self, clip: Tensor) -> Tensor:
        """Answer a clip `[b, c, t, h, w]` with the logits after its last frame, `[b, classes]`.

        The paper trains with a loss at every step: take `Logits_per_step` from `endpoints` for that.

        Raises:
            InflateError: The clip has another shape, is not floating point, or (in eval mode) leaves -1..1.
        """
        return self.endpoints(clip, "Logits")["Logits"]

    def endpoints(self, clip: Tensor, names: str | Iterable[str]) -> dict[str, Tensor]:
        """Run a clip up to the last of the named layers and return those asked for.

        `AvgPool_7x7` is `[b, 1024, t]`, `LSTM` `[b, 512, t]`, `Logits_per_step` `[b, classes, t]`; `Logits` and
        `Predictions` (softmax) are `[b, classes]`.

        Raises:
            InflateError: An unknown name, or a clip that `forward` refuses.
        """
        return run_endpoints(self._step, clip, names, known=LSTM_ENDPOINTS, rule=self.clip_rule, training=self.training)

    def _step(self, name: str, x: Tensor) -> Tensor:
        if name == "AvgPool_7x7":
            features: Tensor = self.trunk(clip_to_frames(x)).mean(dim=(2, 3)).unflatten(0, (x.shape[0], x.shape[2]))
            return features.transpose(1, 2)
        if name == "LSTM":
            remembered: Tensor = self.lstm(x.transpose(1, 2))
            return remembered.transpose(1, 2)
        if name == "Logits_per_step":
            logits: Tensor = self.classifier(x.transpose(1, 2))
            return logits.transpose(1, 2)
        return x[:, :, -1] if name == "Logits" else x.softmax(dim=1)


def _spec(fps: float, num_frames: int) -> ClipSpec:
    return ClipSpec(fps, num_frames, min_frames=num_frames, short_side=256, crop=224, value_range=(-1.0, 1.0))


class StackedInception(nn.Module):
    """Inception-v1 on stacks of frames: one stream of (c); the logits of all stacks of a clip are averaged.

    Args:
        num_classes: Classes of the last layer.
        in_channels: 3 for RGB, 2 for optical flow.
        stack: Frames that are one picture to the network, channel upon channel.
        dropout: Probability of dropping a pooled feature while training.
        class_names: One for each class, carried along for those who show results.

    Raises:
        InflateError: A number of classes or channels is not 1 or more, or there are more or fewer names than classes.

    Source: Simonyan & Zisserman, NIPS 2014; Carreira & Zisserman, CVPR 2017, section 2.3.
    """

    def __init__(
        self,
        num_classes: int = 400,
        in_channels: int = 3,
        *,
        stack: int = 1,
        dropout: float = 0.5,
        class_names: tuple[str, ...] | None = None,
    ) -> None:
        super().__init__()
        check_classes("StackedInception", num_classes, in_channels, class_names=class_names)
        self.num_classes, self.in_channels, self.class_names = num_classes, in_channels, class_names
        self.stack, self.clip_spec = stack, _spec(FLOW_FPS if stack > 1 else RGB_FPS, stack)
        self.clip_rule = ClipRule("StackedInception", in_channels, self.clip_spec, MIN_SIDE_PIXELS, group=stack)
        self.trunk = InceptionTrunk(in_channels * stack)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(TRUNK_CHANNELS, num_classes)

    def forward(self, clip: Tensor) -> Tensor:
        """Answer a clip `[b, c, n * stack, h, w]` with logits `[b, classes]`, the mean over its n stacks.

        Raises:
            InflateError: The clip has another shape, is not floating point, or (in eval mode) leaves -1..1.
        """
        self.clip_rule.check(clip, training=self.training)
        features = self.trunk(stack_frames(clip, self.stack)).mean(dim=(2, 3))
        logits: Tensor = self.classifier(self.dropout(features)).unflatten(0, (clip.shape[0], -1))
        return logits.mean(dim=1)


def stack_frames(clip: Tensor, stack: int) -> Tensor:
    """Lay frames upon each other: `[b, c, n * stack, h, w]` to `[b * n, stack * c, h, w]`, frame after frame.

    Example:
        >>> clip = torch.tensor([[1.0, 2.0, 3.0, 4.0], [-1.0, -2.0, -3.0, -4.0]]).view(1, 2, 4, 1, 1)
        >>> stack_frames(clip, 2).flatten(1).tolist()
        [[1.0, -1.0, 2.0, -2.0], [3.0, -3.0, 4.0, -4.0]]
    """
    b, c, t, h, w = clip.shape
    return clip.transpose(1, 2).reshape(b * t // stack, stack * c, h, w)


class TwoStream(nn.Module):
    """Two networks side by side, one for colors and one for optical flow, that are trained apart and asked together.

    Args:
        rgb: Maps clips `[b, 3, t, h, w]` to logits `[b, classes]`; it has a `clip_spec`, and `num_classes`.
        flow: Maps clips `[b, 2, t', h, w]` to logits of the same classes.
        fusion: "logits" adds them up, as DeepMind's script does; "probabilities" takes the mean of the two softmaxes,
            as the paper says, and its logarithm, so that the softmax of what comes out is that mean.

    Raises:
        InflateError: There is no such fusion, or the streams are no classifiers of the same classes.

    Source: kinetics-i3d `evaluate_sample.py` (sum of logits); paper, section 2.5 (mean of predictions).

    Example:
        >>> with torch.device("meta"):
        ...     model = two_stream_i3d(7).eval()
        ...     model(torch.empty(1, 3, 11, 224, 224), torch.empty(1, 2, 10, 224, 224)).shape
        torch.Size([1, 7])
    """

    def __init__(self, rgb: nn.Module, flow: nn.Module, *, fusion: Fusion = "logits") -> None:
        super().__init__()
        check_choice(fusion, get_args(Fusion), what="fusion of two streams", where="TwoStream")
        classes = [getattr(stream, "num_classes", None) for stream in (rgb, flow)]
        if (
            None in classes
            or classes[0] != classes[1]
            or not (hasattr(rgb, "clip_spec") and hasattr(flow, "clip_spec"))
        ):
            raise InflateError(
                "the streams are no classifiers of the same classes",
                where="TwoStream",
                expected="two networks with a clip_spec and the same num_classes",
                got=f"{type(rgb).__name__} with {classes[0]} and {type(flow).__name__} with {classes[1]} classes",
                fix="build both for the same classes, and set clip_spec and num_classes on networks of your own",
            )
        self.rgb, self.flow, self.fusion = rgb, flow, fusion
        self.clip_spec, self.flow_clip_spec = rgb.clip_spec, flow.clip_spec
        self.num_classes, self.class_names = rgb.num_classes, getattr(rgb, "class_names", None)

    def forward(self, rgb: Tensor, flow: Tensor) -> Tensor:
        """Answer a clip's colors `[b, 3, t, h, w]` and its flow `[b, 2, t', h, w]` with logits `[b, classes]`.

        The two may differ in length: 79 frames have 78 flow maps between them.

        Raises:
            InflateError: There are more clips in the one than in the other, or a stream refuses its clip.
        """
        _check_pair("TwoStream", rgb, flow)
        colors, motion = self.rgb(rgb), self.flow(flow)
        if self.fusion == "logits":
            fused: Tensor = colors + motion
            return fused
        return torch.logaddexp(colors.log_softmax(dim=1), motion.log_softmax(dim=1)) - math.log(2)


def two_stream(num_classes: int = 400, *, class_names: tuple[str, ...] | None = None) -> TwoStream:
    """Build (c) Two-Stream: Inception-v1 on one RGB frame, and on ten flow maps; for longer clips on each ten of them.

    Args:
        num_classes: Classes of the last layers.
        class_names: One for each class, carried along for those who show results.

    Raises:
        InflateError: What `StackedInception` refuses.

    Source: paper, section 2.3 and table 1. Ten maps of two channels make 20 input channels.
    """
    return TwoStream(
        StackedInception(num_classes, STREAM_CHANNELS["rgb"], class_names=class_names),
        StackedInception(num_classes, STREAM_CHANNELS["flow"], stack=FLOW_STACK, class_names=class_names),
        fusion="probabilities",
    )


def two_stream_i3d(
    num_classes: int = 400, *, fusion: Fusion = "logits", class_names: tuple[str, ...] | None = None
) -> TwoStream:
    """Build (e) Two-Stream I3D: one I3D for colors, one for optical flow.

    Args:
        num_classes: Classes of the last layers.
        fusion: How their answers become one; see `TwoStream`.
        class_names: One for each class, carried along for those who show results.

    Raises:
        InflateError: What `InceptionI3d` and `TwoStream` refuse.

    Source: paper, section 2.4.
    """
    return TwoStream(
        InceptionI3d(num_classes, STREAM_CHANNELS["rgb"], class_names=class_names),
        InceptionI3d(num_classes, STREAM_CHANNELS["flow"], class_names=class_names),
        fusion=fusion,
    )


class FusedTwoStream(nn.Module):
    """(d) 3D-Fused Two-Stream: Inception-v1 on five frames and on their flow, joined by a 3D convolution.

    Args:
        num_classes: Classes of the last layer.
        dropout: Probability of dropping a pooled feature while training.
        class_names: One for each class, carried along for those who show results.

    Raises:
        InflateError: A number of classes is not 1 or more, or there are more or fewer names than classes.

    Source: paper, section 2.3; Feichtenhofer et al., CVPR 2016. The paper gives kernels, but neither strides nor
    padding: here the convolution keeps the 5 x 7 x 7 positions, the pool halves them, and the mean of what is left goes
    to the last layer, which is what table 1's number of parameters has room for.

    Example:
        >>> with torch.device("meta"):
        ...     model = FusedTwoStream(7).eval()
        ...     model(torch.empty(2, 3, 5, 224, 192), torch.empty(2, 2, 50, 224, 192)).shape
        torch.Size([2, 7])
    """

    clip_spec, flow_clip_spec = _spec(RGB_FPS, FUSED_FRAMES), _spec(FLOW_FPS, FUSED_FRAMES * FLOW_STACK)

    def __init__(
        self, num_classes: int = 400, *, dropout: float = 0.5, class_names: tuple[str, ...] | None = None
    ) -> None:
        super().__init__()
        check_classes("FusedTwoStream", num_classes, 3, class_names=class_names)
        self.num_classes, self.class_names = num_classes, class_names
        self.clip_rules = [
            ClipRule("FusedTwoStream", channels, spec, MIN_SIDE_PIXELS, group=spec.num_frames)
            for channels, spec in ((3, self.clip_spec), (2, self.flow_clip_spec))
        ]
        self.rgb = InceptionTrunk(STREAM_CHANNELS["rgb"])
        self.flow = InceptionTrunk(STREAM_CHANNELS["flow"] * FLOW_STACK)
        self.fuse = nn.Sequential(
            SameConv3d(2 * TRUNK_CHANNELS, FUSED_CHANNELS, (3, 3, 3), stride=(1, 1, 1), bias=False),
            nn.BatchNorm3d(FUSED_CHANNELS, eps=1e-3),
            nn.ReLU(inplace=True),
            SameMaxPool3d((3, 3, 3), stride=(2, 2, 2)),
        )
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(FUSED_CHANNELS, num_classes)
        for layer in (self.fuse[0], self.classifier):  # "initialized with Gaussian noise", of no stated deviation
            nn.init.normal_(layer.weight, std=0.01)  # type: ignore[arg-type]

    def forward(self, rgb: Tensor, flow: Tensor) -> Tensor:
        """Answer colors `[b, 3, 5 n, h, w]` and flow `[b, 2, 50 n, h, w]` with logits `[b, classes]`, the mean over n.

        Raises:
            InflateError: A clip has another shape, is not floating point, or (in eval mode) leaves -1..1.
        """
        for rule, clip in zip(self.clip_rules, (rgb, flow), strict=True):
            rule.check(clip, training=self.training)
        _check_pair("FusedTwoStream", rgb, flow, flow_per_frame=FLOW_STACK)
        colors, motion = self.rgb(stack_frames(rgb, 1)), self.flow(stack_frames(flow, FLOW_STACK))
        grid = torch.cat([colors, motion], dim=1).unflatten(0, (-1, FUSED_FRAMES)).transpose(1, 2)
        features = self.fuse(grid).mean(dim=(2, 3, 4))
        logits: Tensor = self.classifier(self.dropout(features)).unflatten(0, (rgb.shape[0], -1))
        return logits.mean(dim=1)


def _check_pair(where: str, rgb: Tensor, flow: Tensor, *, flow_per_frame: int | None = None) -> None:
    belong = rgb.shape[0] == flow.shape[0]
    if flow_per_frame:
        belong = belong and flow.shape[2] == flow_per_frame * rgb.shape[2]
    if not belong:
        raise InflateError(
            "the two streams are not of the same clips",
            where=where,
            expected="rgb [b, 3, t, h, w] and flow [b, 2, t', h, w] with one b"
            + (f", and t' = {flow_per_frame} t" if flow_per_frame else ""),
            got=f"{list(rgb.shape)} and {list(flow.shape)}",
            fix="pass both streams of the same clips, in the same order",
        )
