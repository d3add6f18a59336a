"""ConvNet+LSTM, architecture (a) of the paper: Inception-v1 on single frames, and an LSTM that reads them in order."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inflate3d.axes import clip_to_frames
from inflate3d.clips.clip import ClipSpec
from inflate3d.models.endpoints import check_endpoints, run_endpoints
from inflate3d.models.googlenet import MIN_SIDE_PIXELS, TRUNK_CHANNELS, InceptionTrunk
from inflate3d.models.inputs import ClipRule, check_classes

# Paper, table 1 and section 2.1: one frame of every five at 25 fps, 25 of them (5 s) in training and 50 in testing
LSTM_CLIP = ClipSpec(fps=5.0, num_frames=25, min_frames=1, short_side=256, crop=224, value_range=(-1.0, 1.0))
HIDDEN = 512

ENDPOINTS = ("AvgPool_7x7", "LSTM", "Logits_per_step", "Logits", "Predictions")


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
        wanted = check_endpoints(names, ENDPOINTS, where="ConvNetLstm")
        self.clip_rule.check(clip, training=self.training)
        return run_endpoints(self._step, clip, wanted=wanted, known=ENDPOINTS)

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
