"""What a 3D model costs before it is run: parameters, arithmetic, activations, receptive field in time."""

from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from inflate3d.errors import InflateError, is_count
from inflate3d.inflation.inflated import Inflated, check_inflated
from inflate3d.inflation.observe import copied
from inflate3d.inflation.plan import Plan


@dataclass(frozen=True)
class Cost:
    """What one forward pass of one clip costs.

    Attributes:
        parameters: Numbers in all of its parameters.
        gmacs: Multiplications with their addition, in billions: half as many as FLOP.
        activation_megabytes: All outputs of layers together, in the dtype of the model: about what training keeps.
        receptive_frames: At most so many frames have a say in one output; gates, non-local blocks and attention, which
            see the whole clip, are not counted.
    """

    parameters: int
    gmacs: float
    activation_megabytes: float
    receptive_frames: int

    def __str__(self) -> str:
        return (
            f"{self.parameters / 1e6:.1f} M parameters, {self.gmacs:.1f} GMAC, "
            f"{self.activation_megabytes:.0f} MB of activations, {self.receptive_frames} frames seen by one output"
        )


def estimate_cost(model3d: Inflated, clip_shape: tuple[int, int, int, int]) -> Cost:
    """Count what a clip costs, on shapes alone: nothing is computed and no memory is taken.

    Args:
        model3d: Left as it is.
        clip_shape: `(c, t, h, w)`.

    Raises:
        InflateError: The model is no Inflated, cannot be run on shapes alone, or not on such a clip.

    Example:
        >>> from inflate3d.inflation.build import inflate
        >>> model2d = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.ReLU())
        >>> print(estimate_cost(inflate(model2d, example=torch.zeros(1, 3, 11, 13)), (3, 7, 110, 130)))
        0.0 M parameters, 0.0 GMAC, 4 MB of activations, 3 frames seen by one output
    """
    check_inflated(model3d, "estimate_cost")
    if len(clip_shape) != 4 or not all(map(is_count, clip_shape)):
        raise InflateError(
            "this is no shape of a clip",
            where="estimate_cost",
            expected="(c, t, h, w), whole numbers from 1",
            got=repr(tuple(clip_shape)),
            fix="estimate_cost(model3d, (3, 16, 224, 224)), without the batch",
        )
    ghost = copied(model3d, device="meta").eval()
    dtype = next((p.dtype for p in model3d.parameters() if p.is_floating_point()), torch.float32)
    activations = 0

    def count(module: nn.Module, args: Any, output: Any) -> None:
        nonlocal activations
        if isinstance(output, Tensor):
            activations += output.numel() * output.element_size()

    for module in ghost.modules():
        if not any(module.children()):
            module.register_forward_hook(count, prepend=True)  # before what is inserted behind it changes its output
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as flops:
            ghost(torch.empty(1, *clip_shape, device="meta", dtype=dtype))
    except InflateError:
        raise
    except (RuntimeError, NotImplementedError, ValueError) as error:
        raise InflateError(
            "the cost cannot be counted on shapes alone",
            where="estimate_cost",
            expected="a model whose forward depends on no values, and a clip (c, t, h, w) that it accepts",
            got=f"{type(error).__name__}: {error}, for {clip_shape}",
            fix=f"estimate_cost(model3d, {_planned_clip(model3d.plan)}), the size it was planned with; if that fails "
            "too, measure a run: with torch.utils.flop_counter.FlopCounterMode() as flops: model3d(clip)",
        ) from error
    parameters = sum(parameter.numel() for parameter in model3d.parameters())
    return Cost(parameters, flops.get_total_flops() / 2e9, activations / 1e6, receptive_frames(model3d.plan))


def _planned_clip(plan: Plan) -> tuple[int, int, int, int]:
    channels, height, width = plan.input_shape
    return channels, 16, height, width


def receptive_frames(plan: Plan) -> int:
    """Bound the frames that have a say in one output: as if all layers stood one after the other.

    Example:
        >>> from inflate3d.inflation.plan import LayerPlan
        >>> layers = (LayerPlan("a", "Conv2d", "inflate", (7, 7), 7, 2), LayerPlan("b", "Conv2d", "inflate", (3, 3), 3))
        >>> receptive_frames(Plan("Net", "i3d", (3, 9, 9), layers))
        11
    """
    frames, step = 1, 1
    strides = [layer.time_stride for layer in plan.steps]
    # of branches, one strides as much as all together; plans without that number are of sequences
    longest = plan.clip_multiple if plan.clip_multiple > 1 else prod(strides)
    for layer in plan.steps:
        reach = 2 if layer.action == "shift" else layer.time_kernel - 1
        frames += reach * step
        step = min(step * layer.time_stride, longest)
    return frames
