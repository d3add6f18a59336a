"""Make a model as fast as the processor allows, say what was done, and check that its answers stayed."""

import os
import shutil
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils import _pytree as pytree

from inflate3d.axes import clip_to_frames, frames_to_clip
from inflate3d.clips.clip import ClipSpec
from inflate3d.errors import InflateError, InflateWarning
from inflate3d.inflation.plan import Plan
from inflate3d.models.blocks import SameConv3d, SameMaxPool3d
from inflate3d.models.inception import InceptionI3d, MixedBlock
from inflate3d.speed.batch_norm import fold_batch_norms
from inflate3d.speed.closeness import close_calls, cosine, difference, full_float32, has_classes
from inflate3d.speed.int8 import quantize_int8
from inflate3d.speed.layers import (
    FrameMaxPool3d,
    HalfMaxPool3d,
    JoinedBranches,
    PairedConv3d,
    Pointwise,
    SeparableMaxPool3d,
    run_in_slices,
)
from inflate3d.speed.memory import copy_sharing, device_of, give_back_memory, keep_memory, own_values, values_of

Precision = Literal["fp32", "bf16", "int8"]

FP32_TOLERANCE = 1e-4  # of the largest logit: folding rounds by 1e-6
BF16_COSINE = 0.999  # of the logits of one clip, as a vector
CONV3D_TOLERANCE = 0.02  # of the largest value: bfloat16 rounds it by 0.004
FEW_CHANNELS = 4  # with more, pairs of columns do not pay
COMPILED = "compiled"


class Optimized(nn.Module):
    """A model made fast; it answers as the one it was made from.

    Attributes:
        model: The fast copy.
        precision: "fp32"; "bf16": inputs, convolutions and products in bfloat16; "int8". Outputs are float32.
        asked: The precision that was asked for; bfloat16 may have fallen back to float32.
        least_lead: Clips whose first class leads the second by less, in parts of the largest logit, are answered once
            more in float32: what bfloat16 was off by in the first answer. 0 asks nothing again; None before `forward`
            has compared, and for what has no classes.
        steps: What was done, in words.
    """

    def __init__(self, model: nn.Module, precision: Precision, steps: Iterable[str]) -> None:
        super().__init__()
        self.model, self.precision, self.steps = model, precision, tuple(steps)
        self.asked: Precision = precision
        self.exact: nn.Module | None = None  # float32, which the first answer in bfloat16 is compared with
        self.least_lead: float | None = None

    @property
    def unsettled(self) -> bool:
        """Whether bfloat16 is still to be compared with float32, on a first clip."""
        return self.exact is not None and self.least_lead is None

    @property
    def takes_uint8(self) -> bool:
        """Whether clips may be uint8, 0..255, which take a quarter of the memory: I3D on a CPU, eager."""
        rule = getattr(self.model, "clip_rule", None)
        return bool(getattr(rule, "takes_uint8", False)) and COMPILED not in self.steps

    def forward(self, clip: Tensor) -> Any:
        """Answer a clip `[b, c, t, h, w]` as the model does, in float32, with its first class: see `least_lead`."""
        if torch.compiler.is_compiling():  # an export holds one way only
            return self.call("forward", clip)
        self.settle(clip, keep=True)
        found = self.call("forward", clip)
        if self.exact is not None and self.least_lead and has_classes(found, len(clip)):
            for row in close_calls(found, self.least_lead):  # one by one, for memory
                found[row] = run_method(self.exact, "forward", clip[row : row + 1])[0]
        return found

    def endpoints(self, clip: Tensor, names: str | Iterable[str]) -> Any:
        """Run a clip `[b, c, t, h, w]` up to the named endpoints, as `InceptionI3d.endpoints`, in float32."""
        return self.call("endpoints", clip, names)

    def call(self, method: str, clip: Tensor, *args: Any) -> Any:
        """Run a method of the model on a clip `[b, c, t, h, w]`, once; what floats comes out in float32.

        In bfloat16 some frames of the first clip are answered in float32 as well (all of them, where the model does not
        say how few are enough); where the answers differ, float32 stays.

        Raises:
            InflateError: An int8 model is asked for another method than `forward`.
        """
        if self.precision == "int8" and method != "forward":
            raise InflateError(
                "an int8 model has one output",
                where=f"Optimized.{method}",
                expected="forward",
                got=method,
                fix='optimize with precision "bf16" or "fp32"',
            )
        if torch.compiler.is_compiling():  # what an export answers is not known yet
            return run_method(self.model, method, clip, args=args, precision=self.precision)
        self.settle(clip, method, *args)
        return run_method(self.model, method, clip, args=args, precision=self.precision)

    def settle(self, clip: Tensor, method: str = "forward", *args: Any, keep: bool = False) -> None:
        """Compare bfloat16 with float32 on a first clip `[b, c, t, h, w]`, where that is still to be done.

        With `keep` the float32 model stays, for classes that are close.
        """
        if self.unsettled:
            self._compare(method, self._sample(clip), args, keep=keep)

    def _sample(self, clip: Tensor) -> Tensor:
        """Take from the first clip a few frames from beginning to end, or all, where nobody says how few will do."""
        spec = getattr(self, "clip_spec", None)
        if not isinstance(spec, ClipSpec) or clip.ndim != 5:
            return clip[:1]
        return clip[:1, :, :: max(clip.shape[2] // spec.min_frames, 1)]

    def _compare(self, method: str, clip: Tensor, args: tuple[Any, ...], *, keep: bool) -> None:
        """Answer a clip in bfloat16 and in float32, and stay with float32 if the answers differ."""
        exact = self.exact
        assert exact is not None
        found = run_method(self.model, method, clip, args=args, precision=self.precision)
        wanted = run_method(exact, method, clip, args=args)
        closeness = cosine(found, wanted)
        if closeness >= BF16_COSINE and keep and has_classes(wanted, len(clip)):
            self.least_lead = difference(found, wanted)
            return
        self.exact = None  # only now: a clip that cannot be answered compares nothing
        if closeness >= BF16_COSINE:
            del exact
            give_back_memory()
            return
        warnings.warn(
            "bfloat16 is too coarse for this model: the cosine of its first answer with that in float32 is "
            f"{closeness:.4f} (wanted: {BF16_COSINE}); float32 is used from now on",
            InflateWarning,
            stacklevel=3,
        )
        self.model, self.precision = exact, "fp32"
        self.steps = (*self.steps, "back to float32: bfloat16 was too coarse")

    def extra_repr(self) -> str:
        """Show what was done."""
        again = f"leads below {self.least_lead:.1e} asked again in float32" if self.least_lead else ""
        return "; ".join([*self.steps, *filter(None, [again])])

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        self.least_lead = None
        if not any(key.startswith(f"{prefix}exact.") for key in state_dict):
            self.exact = None  # these are the values of a model whose first answer has been compared
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        if COMPILED in self.steps:  # copies and files hold no compiled code
            self.model.compile(dynamic=False)


def optimize(
    model: nn.Module,
    precision: Precision = "fp32",
    *,
    example: Tensor | None = None,
    calibration: Sequence[Tensor] = (),
    compiled: bool = False,
) -> Optimized:
    """Make a fast copy of a model, for inference: batch norms folded, channels-last memory, faster layers, bfloat16.

    On Linux the whole process keeps the memory that layers free for the next ones, from now on (`keep_memory`).
    A model is copied; one that is optimized already for this precision is returned as it is.

    Args:
        model: I3D, an `Inflated`, or any module that maps clips `[b, c, t, h, w]`; in eval mode; left as it is.
        precision: "fp32" answers within 1e-4 of the largest logit; "bf16" is compared with float32 on the first clips
            it is shown, and falls back with a warning; "int8" (extra `int8`) is the fastest and coarsest.
        example: A clip that the model can run on; else one is made from its `clip_spec` or its plan.
        calibration: For int8: clips `[1, c, t, h, w]` as the model will be shown, all of one size, a few dozen. What
            int8 changes in their answers is said in `steps`.
        compiled: Compile `forward` with `torch.compile` as well: a minute for each size of clips, then up to a tenth
            faster, so that it pays after a thousand windows or so. Where there is no C++ compiler a warning says so.

    Returns:
        A module that saves, is copied and (fp32, bf16) exported as any other.

    Raises:
        InflateError: An unknown precision, a model in training mode, one that does not tell what it is fed, or one that
            was optimized for another precision; int8 without clips, or of a model that OpenVINO and NNCF cannot take.

    Example:
        >>> from inflate3d import InceptionI3d
        >>> optimize(InceptionI3d(num_classes=7).eval()).steps[:2]
        ('57 batch norms folded', '11 max pools made separable')
    """
    _check(model, precision, example)
    if isinstance(model, Optimized):
        return model
    if precision == "int8":
        return _to_int8(model, calibration)
    fast, steps = _with_faster_layers(model, example)
    if precision == "bf16" and conv3d_is_right(device_of(model)):
        optimized = Optimized(_to_bf16(copy_sharing(fast)), "bf16", [*steps, "bfloat16"])
        own_values(optimized.model, fast)
        optimized.exact = fast
    else:
        optimized = Optimized(fast, "fp32", steps)
        if precision == "bf16":
            optimized.steps = (*steps, "float32, because conv3d in bfloat16 is wrong here")
            warnings.warn(
                f"conv3d in bfloat16 gives wrong results with torch {torch.__version__} on this "
                f"{device_of(model).type} device (cuDNN 9.8 to 9.10 are known for that); float32 is used",
                InflateWarning,
                stacklevel=2,
            )
    if compiled and _has_compiler():
        optimized.model.compile(dynamic=False)
        optimized.steps = (*optimized.steps, COMPILED)
    give_back_memory()
    keep_memory()  # only now: what was needed on the way would be kept as well
    return _described(optimized, model)


def conv3d_is_right(device: torch.device) -> bool:
    """Find out on a small tensor whether conv3d in bfloat16 is what it is in float32.

    Source: pytorch issue 163539: with cuDNN 9.8 to 9.10 it is silently wrong on some GPUs.

    Example:
        >>> conv3d_is_right(torch.device("cpu"))
        True
    """
    generator = torch.Generator().manual_seed(0)
    clip = torch.randn(2, 16, 5, 14, 14, generator=generator).to(device, torch.bfloat16)
    for kernel, stride in ((3, 1), (1, 1), (3, 2)):
        weight = torch.randn(32, 16, kernel, kernel, kernel, generator=generator).to(clip)
        for layout in (torch.contiguous_format, torch.channels_last_3d):
            x, w = clip.contiguous(memory_format=layout), weight.contiguous(memory_format=layout)
            with torch.no_grad():
                found, wanted = (
                    F.conv3d(x.to(kind), w.to(kind), None, stride).float() for kind in (x.dtype, torch.float32)
                )
            if not (found - wanted).abs().amax() <= CONV3D_TOLERANCE * wanted.abs().amax():
                return False
    return True


def _has_compiler() -> bool:
    names = filter(None, (os.environ.get("CXX"), "g++", "clang++", "cl"))
    found = any(shutil.which(name) for name in names)
    if not found:
        warnings.warn(
            "the model runs uncompiled, because no C++ compiler is found; g++ mends that", InflateWarning, stacklevel=3
        )
    return found


def _with_faster_layers(model: nn.Module, example: Tensor | None) -> tuple[nn.Module, list[str]]:
    """Copy a model and make the copy faster in float32; say how."""
    fast, steps = to_channels_last(copy_sharing(model)), list[str]()
    if any(isinstance(layer, _BatchNorm | SameMaxPool3d | SameConv3d) for layer in model.modules()):
        steps = _replace_layers(fast, _example(model) if example is None else example)
        if not steps:
            fast = to_channels_last(copy_sharing(model))
    own_values(fast, model)
    if isinstance(fast, InceptionI3d) and device_of(fast).type == "cpu":
        fast.run_joined = run_in_slices
        fast.clip_rule = replace(fast.clip_rule, takes_uint8=fast.clip_spec.value_range == (-1, 1))
        _replaced(fast, MixedBlock, JoinedBranches, "blocks whose branches are written side by side")
    return fast, [*steps, "channels-last"]


def _replace_layers(fast: nn.Module, clip: Tensor) -> list[str]:
    """Put faster layers into a model, in place, and say which; nothing where its answers change, with a warning."""

    def run() -> Any:
        with torch.no_grad(), full_float32():
            return run_method(fast, "forward", clip)

    wanted = run()
    folded = fold_batch_norms(fast, run)
    give_back_memory()  # the steps of this lie far apart
    steps = [f"{len(folded)} batch norms folded"] if folded else []
    steps += _replaced(fast, SameMaxPool3d, _separable, "max pools made separable")
    steps += _replaced(fast, SameMaxPool3d, _few_frames, "max pools over few frames at a time")
    steps += _replaced(fast, SameConv3d, _pointwise, "pointwise convolutions as products")
    try:
        off_by = difference(run(), wanted)
    except Exception:  # code that reads a layer's parts, such as self.bn.weight, finds them gone
        off_by = float("inf")
    if off_by <= FP32_TOLERANCE:
        return steps
    warnings.warn(
        f"{type(fast).__name__} answers otherwise with faster layers (by {off_by:.1e} of the largest value, "
        f"allowed: {FP32_TOLERANCE:g}), perhaps for code that uses an output twice or reads what a layer holds; "
        "its layers stay as they were",
        InflateWarning,
        stacklevel=3,
    )
    return []


def to_channels_last(model: nn.Module) -> nn.Module:
    """Lay out kernels `[out, in, (t,) h, w]` channels-last, in place; `Module.to(memory_format=)` refuses a mixture."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    for tensor in values_of(model):
        if tensor.ndim in formats:
            tensor.data = tensor.data.to(memory_format=formats[tensor.ndim])
    return model


def run_method(
    model: nn.Module, method: str, clip: Tensor, *, args: tuple[Any, ...] = (), precision: Precision = "fp32"
) -> Any:
    """Run a method of a model on a clip, with the device, layout and type that the precision wants."""
    like = next((value for value in values_of(model) if value.is_floating_point()), clip)  # a module may have none
    half = precision == "bf16"
    layout = torch.channels_last_3d if clip.ndim == 5 else torch.preserve_format
    in_slices = isinstance(model, InceptionI3d) and model.run_joined is not None  # which are rounded one by one
    as_it_is = in_slices and (half or clip.dtype == torch.uint8)
    dtype = clip.dtype if as_it_is else torch.bfloat16 if half else like.dtype
    eager = not torch.compiler.is_compiling()  # the size of a batch may be a symbol
    if eager and clip.ndim == 5 and len(clip) == 1 and clip.is_contiguous(memory_format=layout):
        # of `clip[None]` torch does not see by the strides that it is channels-last, and would copy it
        clip = frames_to_clip(clip_to_frames(clip))
    clip = clip.to(like.device, dtype, memory_format=layout)
    # autocast does not know shapes without values
    with nullcontext() if clip.is_meta else torch.autocast(clip.device.type, torch.bfloat16, enabled=half):
        output = (model if method == "forward" else getattr(model, method))(clip, *args)
    return pytree.tree_map_only(Tensor, lambda value: value.float(), output) if half else output


def _separable(pool: SameMaxPool3d) -> nn.Module | None:
    # within frames, torch's own pool is twice as fast
    return SeparableMaxPool3d(pool) if pool.kernel_size[0] > 1 and pool.rule == "same" else None


def _few_frames(pool: SameMaxPool3d) -> nn.Module | None:
    return FrameMaxPool3d(pool) if pool.kernel_size[0] == pool.stride[0] == 1 else None


def _paired(layer: SameConv3d) -> nn.Module | None:
    if layer.in_channels > FEW_CHANNELS or layer.stride[2] != 2:
        return None
    return PairedConv3d(layer)


def _pointwise(layer: SameConv3d) -> nn.Module | None:
    plain = layer.kernel_size == layer.stride == (1, 1, 1)
    return Pointwise(layer) if plain else None


def _replaced(model: nn.Module, kind: type[Any], make: Callable[[Any], nn.Module | None], words: str) -> list[str]:
    """Put faster layers in the places of those of one type, in place, and say how many."""
    count = 0
    for name, layer in list(model.named_modules()):
        new = make(layer) if type(layer) is kind else None
        if new is not None:
            owner, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(owner), attribute, new.eval())
            count += 1
    return [f"{count} {words}"] if count else []


def _to_bf16(model: nn.Module) -> nn.Module:
    """Turn kernels and matrices into bfloat16, in place; norms and what the model adds or multiplies stay float32."""
    _replaced(model, SameConv3d, _paired, "convolutions over pairs of columns")
    _replaced(model, SameMaxPool3d, HalfMaxPool3d, "max pools in bfloat16")
    for layer in model.modules():
        if isinstance(layer, nn.modules.conv._ConvNd | nn.Linear | Pointwise | PairedConv3d):
            layer.to(torch.bfloat16)
    return to_channels_last(model)


def _to_int8(model: nn.Module, clips: Sequence[Tensor]) -> Optimized:
    short = quantize_int8(model, clips)
    with torch.inference_mode():
        pairs = [(short(clip), run_method(model, "forward", clip)) for clip in clips]
    lowest = min(cosine(found, wanted) for found, wanted in pairs)
    same = sum(bool((found.argmax(1) == wanted.argmax(1)).all()) for found, wanted in pairs)
    cost = f"calibration clips: lowest cosine {lowest:.4f}, same first answer for {same} of {len(clips)}"
    return _described(Optimized(short, "int8", ["int8", f"{len(clips)} {cost}"]), model)


def _described(optimized: Optimized, model: nn.Module) -> Optimized:
    """Hand on what a model says about itself: what it is fed, what its classes are called."""
    for name in ("clip_spec", "class_names", "in_channels"):
        if hasattr(model, name):
            setattr(optimized, name, getattr(model, name))
    return optimized.requires_grad_(False).eval()


def _example(model: nn.Module) -> Tensor:
    """Make a small clip of noise, always the same, such as the model wants.

    Two where it has convolutions of torch's own: for a single one these take another way, with 27 times the memory.
    """
    count = 2 if any(type(layer) is nn.Conv3d for layer in model.modules()) else 1
    plan = getattr(model, "plan", None)
    if isinstance(plan, Plan):
        channels, height, width = plan.input_shape
        shape = (count, channels, 3, height, width)
    else:
        spec: ClipSpec = model.clip_spec  # type: ignore[assignment]  # _check has seen to it
        shape = (count, int(getattr(model, "in_channels", 3)), spec.min_frames, spec.crop, spec.crop)
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


def in_training(model: nn.Module) -> str:
    """Name the parts of a model that are in training mode; empty where none is.

    Example:
        >>> in_training(nn.Sequential(nn.ReLU().eval(), nn.Dropout()).eval()), in_training(nn.Dropout())
        ('', 'training mode in Dropout')
    """
    names = [name or type(model).__name__ for name, module in model.named_modules() if module.training]
    return f"training mode in {', '.join(names[:3])}" + ", ..." * (len(names) > 3) if names else ""


def _check(model: nn.Module, precision: str, example: Tensor | None) -> None:
    training = in_training(model)
    tells = isinstance(getattr(model, "plan", None), Plan) or isinstance(getattr(model, "clip_spec", None), ClipSpec)
    checks = [
        (precision in get_args(Precision), f"precision={precision!r}", " or ".join(get_args(Precision))),
        (not training, training, "a model in eval mode: model.eval()"),
        (
            not isinstance(model, Optimized) or model.asked == precision,
            f"a model that is optimized already, for {getattr(model, 'asked', '')}",
            f"a model as it was before, or one for {precision}",
        ),
        (tells or example is not None, "no example, no clip_spec", "example=, a clip that the model can run on"),
    ]
    faults = [(got, expected) for fine, got, expected in checks if not fine]
    if faults:
        raise InflateError(
            "this model cannot be optimized so",
            where=f"optimize({type(model).__name__})",
            expected="; ".join(expected for _, expected in faults),
            got="; ".join(got for got, _ in faults),
            fix='optimize(model.eval(), "fp32", example=torch.zeros(1, 3, 16, 224, 224))',
        )
