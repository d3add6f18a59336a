"""3D convolution on a CPU, where torch's own is slow or wrong: small clips, gradients of some kernels."""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils._python_dispatch import _get_current_dispatch_mode

Sizes = tuple[int, ...]


class Geometry(NamedTuple):
    """Where a kernel goes, as `F.conv3d` takes it: time, height, width."""

    stride: Sizes
    padding: Sizes
    dilation: Sizes = (1, 1, 1)
    groups: int = 1


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, *, geometry: Geometry) -> Tensor:
    """Convolve `[b, c, t, h, w]` as `F.conv3d` does, by the fastest way there is.

    For one small clip in float32, `F.conv3d` copies the input once for each place of the kernel instead of asking
    oneDNN (torch 2.14, ATen/native/Convolution.cpp, use_mkldnn). oneDNN in turn has no fast gradients for depthwise 3D
    kernels: the gradient of the input is a convolution with the kernel turned around, that of a kernel of up to 3x3
    pixels a 2D convolution for each frame of the kernel. And in bfloat16 it leaves the gradient of a kernel that is
    longer than the clip unwritten in part, or writes beside it (torch 2.14.1: two frames and three taps are enough), so
    that such a clip gets its zeros here.

    Example:
        >>> kernel, once = torch.ones(1, 1, 3, 3, 3), Geometry(stride=(1, 1, 1), padding=(0, 0, 0))
        >>> convolve(torch.ones(1, 1, 3, 4, 5), kernel, None, geometry=once).shape
        torch.Size([1, 1, 1, 2, 3])
    """
    stride, padding, dilation, groups = geometry
    reach = dilation[0] * (weight.shape[2] - 1) + 1
    if padding[0] and torch.is_grad_enabled() and _is_half(x) and x.shape[2] < reach:
        x = F.pad(x, (0, 0, 0, 0, padding[0], padding[0]))
        padding = (0, *padding[1:])
        geometry = geometry._replace(padding=padding)
    if torch.compiler.is_compiling() or not _runs_here(x, weight):
        return F.conv3d(x, weight, bias, *geometry)
    if groups == x.shape[1] == weight.shape[0] and torch.is_grad_enabled() and set(stride) == set(dilation) == {1}:
        if torch.is_autocast_enabled("cpu"):
            dtype = torch.get_autocast_dtype("cpu")
            x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
        with torch.autocast("cpu", enabled=False):
            y: Tensor = _Depthwise.apply(x, weight, padding)
            return y if bias is None else y + bias.view(-1, 1, 1, 1)
    if x.shape[0] > 1 or x.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
        return F.conv3d(x, weight, bias, *geometry)
    bias = None if bias is None else bias.contiguous()  # its strides are not looked at
    return torch.mkldnn_convolution(x, weight, bias, padding, stride, dilation, groups)


def _is_half(x: Tensor) -> bool:
    """Whether values on a CPU are, or become, bfloat16."""
    if x.device.type != "cpu":
        return False
    autocast = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
    return autocast or x.dtype == torch.bfloat16


def _runs_here(x: Tensor, weight: Tensor) -> bool:
    """Whether values are computed now, by oneDNN; compilers, exporters and counters know `F.conv3d` alone."""
    return bool(
        type(x) is Tensor
        and type(weight) in (Tensor, nn.Parameter)
        and x.device.type == "cpu"
        and (x.dtype == weight.dtype or torch.is_autocast_enabled("cpu"))
        and x.dtype in (torch.float32, torch.bfloat16)
        and x.numel() > 0
        and torch.backends.mkldnn.is_available()
        and torch.backends.mkldnn.enabled
        and not torch._C._get_tracing_state()
        and _get_current_dispatch_mode() is None
        and torch._C._functorch.maybe_current_level() is None
        and forward_ad._current_level < 0
    )


class _Depthwise(torch.autograd.Function):
    """A depthwise convolution without strides, with gradients by fast ways."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, padding: Sizes) -> Tensor:
        """Convolve `[b, c, t, h, w]` with `[c, 1, kt, kh, kw]`."""
        ctx.save_for_backward(x, weight)
        ctx.padding = padding
        return F.conv3d(x, weight, None, 1, padding, 1, x.shape[1])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        """Give the gradients of input and kernel."""
        x, weight = ctx.saved_tensors
        around = [kernel - 1 - pad for kernel, pad in zip(weight.shape[2:], ctx.padding, strict=True)]
        of_x = of_weight = None
        if ctx.needs_input_grad[0]:
            # where more zeros stand than the kernel reaches, nothing of the input is seen
            seen = F.pad(gradient, [min(size, 0) for size in reversed(around) for _ in range(2)])
            of_x = F.conv3d(seen, weight.flip(2, 3, 4), None, 1, [max(size, 0) for size in around], 1, x.shape[1])
        if ctx.needs_input_grad[1]:
            of_weight = _of_kernel(gradient, x, weight, ctx.padding)
        return of_x, of_weight, None


def _of_kernel(gradient: Tensor, x: Tensor, weight: Tensor, padding: Sizes) -> Tensor:
    if max(weight.shape[3:]) > 3 or padding[0]:  # there 2D convolutions are no faster
        return _gradient(gradient, x, weight, padding)
    frames, length = _frames(gradient), gradient.shape[2]
    taps = [
        _gradient(frames, _frames(x[:, :, start : start + length]), weight[:, :, start], padding[1:])
        for start in range(weight.shape[2])
    ]
    return torch.stack(taps, 2)


def _gradient(gradient: Tensor, x: Tensor, weight: Tensor, padding: Sizes) -> Tensor:
    ones, zeros, mask = [1] * len(padding), [0] * len(padding), [False, True, False]
    found: Tensor = torch.ops.aten.convolution_backward(
        gradient, x, weight, None, ones, list(padding), ones, False, zeros, x.shape[1], mask
    )[1]
    return found


def _frames(clip: Tensor) -> Tensor:
    return clip.movedim(2, 1).flatten(0, 1)
