"""What a network can be built from and which clips it takes; everything else is refused with a way out."""

from dataclasses import dataclass

import torch
from torch import Tensor

from inflate3d.checks import is_count
from inflate3d.clips.clip import ClipSpec
from inflate3d.errors import InflateError

CHANNELS = {2: "optical flow (horizontal, vertical)", 3: "red, green, blue"}


def check_classes(where: str, num_classes: int, in_channels: int, *, class_names: tuple[str, ...] | None) -> None:
    """Check the numbers that a network is built from.

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
    """

    where: str
    channels: int
    spec: ClipSpec
    min_side: int
    why_frames: str = "nothing is left of a shorter one"
    why_side: str = "nothing is left of smaller ones"
    group: int = 1
    exact: bool = False

    def check(self, clip: Tensor, *, training: bool) -> None:
        """Check a clip; values are looked at in eval mode only, since augmentation may leave the range.

        Raises:
            InflateError: The clip is no tensor, has another number of axes, channels, frames or pixels, is not floating
                point, or leaves -1..1 or holds NaN.
        """
        fault = self._shape_fault(clip) or _value_fault(clip, training)
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
        low, high = clip.detach().aminmax()
        if not (low >= -1.5 and high <= 1.5):  # false for NaN as well
            problem = "pixels leave the range -1..1, which gives confident wrong answers"
            return problem, "scale them: x / 255 * 2 - 1 for 0..255, x * 2 - 1 for 0..1; look for NaN"
    return None
