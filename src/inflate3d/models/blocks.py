"""What the networks share: what they are built from and fed with, inner layers by name, and TensorFlow's SAME padding.

Beside SAME, which depends on the input's size, stands the padding of ports that took it for a constant of the layer, so
that their features can be had too.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inflate3d.clips.clip import ClipSpec
from inflate3d.errors import InflateError, is_count, nearest_names
from inflate3d.inflation.convolution import Geometry, convolve

CHANNELS = {2: "optical flow (horizontal, vertical)", 3: "red, green, blue"}

Triple = tuple[int, int, int]
Pads = list[tuple[int, int]]  # in front and behind, for each axis
Padding = Literal["same", "static"]


def check_classes(where: str, num_classes: int, in_channels: int, *, class_names: tuple[str, ...] | None) -> None:
    """Check the numbers that a network is built from.

    Args:
        where: The network, for messages.
        num_classes: Classes of the last layer.
        in_channels: Channels of a clip.
        class_names: One for each class, or None.

    Raises:
        InflateError: A number of classes or channels is not 1 or more, or there are more or fewer names than classes.
    """
    if not (is_count(num_classes) and is_count(in_channels)) or (class_names and len(class_names) != num_classes):
        raise InflateError(
            "there is no such network",
            where=where,
            expected="num_classes >= 1, in_channels >= 1, and class_names for each class or None",
            got=f"{num_classes=}, {in_channels=}, {len(class_names) if class_names else 'no'} class_names",
            fix="pass whole numbers, and as many names as classes",
        )


@dataclass(frozen=True)
class ClipRule:
    """Which clips `[b, c, t, h, w]` a network takes.

    Attributes:
        where: The network, for messages.
        channels: Number of channels.
        spec: What it was trained on; `spec.min_frames` is the least that it takes.
        min_side: Fewest pixels of a side.
        why_frames: Why fewer frames do not do.
        why_side: Why smaller frames do not do.
        group: Frames come in groups of so many.
        exact: Neither more frames nor larger ones do.
        takes_uint8: Pixels of 0..255, as uint8, do as well; the network scales them.
    """

    where: str
    channels: int
    spec: ClipSpec
    min_side: int
    why_frames: str = "nothing is left of a shorter one"
    why_side: str = "nothing is left of smaller ones"
    group: int = 1
    exact: bool = False
    takes_uint8: bool = False

    def check(self, clip: Tensor, *, training: bool) -> None:
        """Check a clip; values are looked at in eval mode only, since augmentation may leave the range.

        Raises:
            InflateError: The clip is no tensor, has another number of axes, channels, frames or pixels, is not floating
                point, or leaves -1..1 or holds NaN.
        """
        fault = self._shape_fault(clip)
        if fault is None and not (self.takes_uint8 and clip.dtype == torch.uint8):
            fault = _value_fault(clip, training)
        if fault is None:
            return
        problem, fix = fault
        least = "" if self.exact else ">= "
        steps = f" in steps of {self.group}" if self.group > 1 else ""
        frames, side = f"t {least}{self.spec.min_frames}{steps}", f"{least}{self.min_side}"
        got = f"{list(clip.shape)}, {clip.dtype}" if isinstance(clip, Tensor) else type(clip).__name__
        if isinstance(clip, Tensor) and clip.numel() and not clip.is_meta:
            got += f", values in {float(clip.detach().amin()):.4g}..{float(clip.detach().amax()):.4g}"
        raise InflateError(
            problem,
            where=self.where,
            expected=f"floats in -1..1, [b, {self.channels}, {frames}, h {side}, w {side}]",
            got=got,
            fix=fix,
        )

    def _shape_fault(self, clip: Tensor) -> tuple[str, str] | None:  # noqa: PLR0911 - one line for each fault
        if not isinstance(clip, Tensor):
            return "the clip is no tensor", "convert it: torch.from_numpy(clip)"
        if clip.ndim != 5:
            return "the clip has another number of axes", "add a batch axis with clip[None]; channels before time"
        if clip.shape[1] != self.channels:
            wanted = CHANNELS.get(self.channels, "your own")
            return "the clip has another number of channels", f"pass {wanted}; channels stand before time"
        frames, least = clip.shape[2], self.spec.min_frames
        if frames < least:
            looped = f"clip[:, :, torch.arange({least}) % clip.shape[2]]"
            return f"the clip is too short: {self.why_frames}", f"loop the clip, as the paper does: {looped}"
        if frames % self.group or (self.exact and frames > least):
            return f"the clip has another number of frames: {self.why_frames}", f"cut it: clip[:, :, :{least}]"
        resize = f"resize the short side to {self.spec.short_side} pixels and crop {self.spec.crop}"
        if min(clip.shape[3:]) < self.min_side:
            return f"the frames are too small: {self.why_side}", f"{resize}, as the network was trained"
        if self.exact and max(clip.shape[3:]) > self.min_side:
            return f"the frames have another size: {self.why_side}", f"{resize}, as the network was trained"
        return None


def _value_fault(clip: Tensor, training: bool) -> tuple[str, str] | None:
    if not clip.is_floating_point():
        return "pixels are whole numbers", "scale them: clip.float() / 255 * 2 - 1"
    # a compiled graph must not depend on values, and a meta tensor has none
    has_values = clip.numel() and not clip.is_meta and not torch.compiler.is_compiling()
    if has_values and not training:
        # of channels-last memory, in its own order: aminmax copies what does not lie in a row
        values = clip.detach() if clip.is_contiguous() else clip.detach().movedim(1, -1)
        low, high = values.aminmax()
        if not (low >= -1.5 and high <= 1.5):  # false for NaN as well
            problem = "pixels leave the range -1..1, which gives confident wrong answers"
            return problem, "scale them: x / 255 * 2 - 1 for 0..255, x * 2 - 1 for 0..1; look for NaN"
    return None


def run_endpoints(
    step: Callable[[str, Tensor], Tensor],
    clip: Tensor,
    names: str | Iterable[str],
    *,
    known: Sequence[str],
    rule: ClipRule,
    training: bool,
) -> dict[str, Tensor]:
    """Run a network up to the last of the named layers and return those asked for, in the order of asking.

    Args:
        step: Runs one layer: its name and what the layer before it gave, to what it gives.
        clip: `[b, c, t, h, w]`.
        names: One name, or several.
        known: All names, in the order in which the layers run.
        rule: Which clips the network takes.
        training: Whether the network is being trained.

    Raises:
        InflateError: The network has no layer of such a name, or does not take the clip.

    Example:
        >>> spec = ClipSpec(25.0, 8, min_frames=1, short_side=9, crop=7, value_range=(-1.0, 1.0))
        >>> found = run_endpoints(lambda name, x: x + 1, torch.zeros(1, 3, 1, 2, 2), "second",
        ...                       known=["first", "second"], rule=ClipRule("tiny", 3, spec, min_side=1), training=False)
        >>> {name: float(value.mean()) for name, value in found.items()}
        {'second': 2.0}
    """
    wanted = [names] if isinstance(names, str) else list(names)
    if unknown := [name for name in wanted if name not in known]:
        raise InflateError(
            f"there is no endpoint called {', '.join(map(str, unknown))}",
            where=f"{rule.where}.endpoints",
            expected=", ".join(known),
            got=repr(unknown),
            fix="did you mean " + "; ".join(nearest_names(str(name), known) for name in unknown) + "?",
        )
    rule.check(clip, training=training)
    last = max((known.index(name) for name in wanted), default=-1)
    x = clip
    found: dict[str, Tensor] = {}
    for name in known[: last + 1]:
        x = step(name, x)
        if name in wanted:
            found[name] = x
    return {name: found[name] for name in wanted}


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Zeros in front of and behind one axis, such that the output has `ceil(size / stride)` positions.

    Source: TensorFlow's definition of SAME; an odd total puts the larger half behind.

    Example:
        >>> same_padding(64, kernel=7, stride=2), same_padding(79, kernel=7, stride=2)
        ((2, 3), (3, 3))
    """
    # no division of negative numbers, which OpenVINO rounds up, and no question about a size that is a symbol
    total = kernel - 1 if stride == 1 else ((size + stride - 1) // stride - 1) * stride + kernel - size
    if kernel < stride:
        total = max(total, 0)
    return total // 2, total - total // 2


def static_padding(kernel: int, stride: int) -> tuple[int, int]:
    """Zeros in front of and behind one axis, whatever its size: what SAME is where the stride divides the size.

    Source: hassony2/kinetics_i3d_pytorch before its pull request 27, `src/i3dpt.py`; video_features uses it still.

    Example:
        >>> static_padding(kernel=7, stride=2), static_padding(kernel=3, stride=1)
        ((2, 3), (1, 1))
    """
    total = max(kernel - stride, 0)
    return total // 2, total - total // 2


class SameConv3d(nn.Conv3d):
    """A 3D convolution with zero padding: SAME for any `[b, c, t, h, w]`, or `static`."""

    rule: Padding = "same"

    def __init__(self, in_channels: int, out_channels: int, kernel: Triple, *, stride: Triple, bias: bool) -> None:
        super().__init__(in_channels, out_channels, kernel, stride=stride, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve `[b, c, t, h, w]` to `[b, out_channels, ceil(t/st), ceil(h/sh), ceil(w/sw)]`.

        With static padding, the first convolution of I3D rounds odd sizes down.
        """
        return self.padded(x, pads_of(x, self))

    def padded(self, x: Tensor, pads: Pads) -> Tensor:
        """Convolve `[b, c, t, h, w]` with so many zeros in front of each axis and behind it."""
        front = tuple(pad[0] for pad in pads)
        if _lopsided(pads):
            x = F.pad(x, _for_torch(pads))
            front = (0, 0, 0)
        return convolve(x, self.weight, self.bias, geometry=Geometry(self.stride, front))


class SameMaxPool3d(nn.Module):
    """A 3D max pool whose padded cells never win, as in TensorFlow: SAME, or `static`."""

    rule: Padding = "same"

    def __init__(self, kernel: Triple, *, stride: Triple) -> None:
        super().__init__()
        self.kernel_size, self.stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        """Pool `[b, c, t, h, w]` to `[b, c, ceil(t/st), ceil(h/sh), ceil(w/sw)]`."""
        pads = pads_of(x, self)
        front = [pad[0] for pad in pads]
        if (self.rule == "static" or not _known(pads)) and _lopsided(pads):
            x = F.pad(x, _for_torch(pads), value=float("-inf"))
            front = [0, 0, 0]
        # ceil_mode adds the one cell that SAME may want behind and not in front; no padded copy is made. This holds
        # for every kernel and stride of I3D: an odd total padding occurs only where the stride is 2.
        return F.max_pool3d(x, self.kernel_size, self.stride, front, ceil_mode=True)

    def extra_repr(self) -> str:
        """Show kernel and stride."""
        return f"kernel_size={self.kernel_size}, stride={self.stride}"


class _Padded(Protocol):
    rule: Padding

    @property
    def kernel_size(self) -> Sequence[int]: ...

    @property
    def stride(self) -> Sequence[int]: ...


def pads_of(x: Tensor, layer: _Padded) -> Pads:
    """Tell what a layer puts around a clip `[b, c, t, h, w]`, along time, height and width.

    Example:
        >>> pads_of(torch.zeros(1, 3, 9, 10, 11), SameMaxPool3d((1, 3, 3), stride=(1, 2, 2)))
        [(0, 0), (0, 1), (1, 1)]
    """
    axes = zip(x.shape[2:], layer.kernel_size, layer.stride, strict=True)
    if layer.rule == "static":
        return [static_padding(k, s) for _, k, s in axes]
    return [same_padding(n, k, s) for n, k, s in axes]


def _lopsided(pads: Pads) -> bool:
    return not _known(pads) or any(before != behind for before, behind in pads)


def _known(pads: Pads) -> bool:
    """Whether they are numbers; in an export for clips of any length they are symbols."""
    return all(isinstance(side, int) for pad in pads for side in pad)


def _for_torch(pads: Pads) -> list[int]:
    return [side for pad in reversed(pads) for side in pad]
