"""Where a network looked: Grad-CAM in space and time, integrated gradients; as numbers, and over the frames."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inflate3d.clips.clip import ClipSpec
from inflate3d.clips.sampling import Window, windows
from inflate3d.clips.transforms import crops
from inflate3d.clips.video import Rate, Source
from inflate3d.errors import InflateError, check_options, import_extra, is_count, nearest_names
from inflate3d.models.inception import InceptionI3d
from inflate3d.results.network import (
    PredictOptions,
    SmallFrame,
    color_views,
    count_rules,
    open_source,
    rate_rule,
    small_frames,
)
from inflate3d.results.predict import check_model
from inflate3d.results.prediction import Score, top_scores
from inflate3d.show.pictures import Words, check_ending, heat_colors, put_words, write_animation, write_picture
from inflate3d.speed.memory import copy_sharing, device_of
from inflate3d.speed.optimize import Optimized

Method = Literal["grad-cam", "integrated-gradients"]
Progress = Callable[[int, int], None]  # windows done, of how many

I3D_LAYER = "Mixed_5c"
MOST_STEPS = 1000
BLUR = 1 / 64  # of a side: the attribution of single pixels is grain
STRENGTH = 0.85  # of the color where the map is largest
GRAYED = 0.6  # of a frame's colors that are taken away, so that those of the map are seen
STRIP = 26  # pixels of a line of words above a frame
SHOWN_FRAMES = 6  # in a still picture
WIDE = 400  # pixels: room for more words
STILL_ENDING = ".png"
ENDINGS = (".mp4", ".gif", ".webp", STILL_ENDING)
MOST_TOKENS = 8  # that stand in front of those of the places


@dataclass(frozen=True)
class SaliencyOptions:
    """What is asked, and how the video is shown.

    Attributes:
        method: "grad-cam": how much each place of an inner map speaks for a class; "integrated-gradients" (extra
            `show`): how much each pixel does, finer and many times slower.
        label: A class by its name or number; None takes the likeliest one over the frames that are looked at.
        layer: Of Grad-CAM: name of a module; None takes the last map before the head.
        steps: Of integrated gradients, from gray to the video.
        fps: Frames per second to take, or "native" for all.
        num_frames: Stop after so many frames.
        window: Frames in a window; None takes what the network was trained on.

    Raises:
        InflateError: A value is out of range.
    """

    method: Method = "grad-cam"
    label: str | int | None = None
    layer: str | None = None
    steps: int = 16
    fps: Rate = 25.0
    num_frames: int = 250
    window: int | None = None

    def __post_init__(self) -> None:
        check_options(
            self,
            {
                "method": (", ".join(get_args(Method)), self.method in get_args(Method)),
                "layer": ("None with integrated-gradients", self.layer is None or self.method == "grad-cam"),
                "steps": (f"1 to {MOST_STEPS}", is_count(self.steps, MOST_STEPS)),
                "fps": rate_rule(self.fps),
                **count_rules(self, ["window"]),
                "num_frames": ("1 or more", is_count(self.num_frames)),
            },
        )


@dataclass(frozen=True, eq=False)
class Saliency:
    """Where a network looked for a class.

    Attributes:
        maps: `[t, h, w]` float32, from 0 to 1 where most of it is; all zero if nothing speaks for the class.
        frames: `[t, h, w, 3]` uint8: what the network was shown, its crop.
        times_seconds: Of each frame.
        score: The class that was asked about, and how sure the network is of it over these frames.
        method: How the maps were made.
        layer: The map of Grad-CAM, or "input".
    """

    maps: Tensor = field(repr=False)
    frames: Tensor = field(repr=False)
    times_seconds: tuple[float, ...] = field(repr=False)
    score: Score
    method: Method
    layer: str


def find_saliency(
    model: nn.Module, source: Source, options: SaliencyOptions | None = None, *, progress: Progress | None = None
) -> Saliency:
    """Find where a classifier looks in a video, window by window; the model stays as it is.

    Several threads may ask the same model at once.

    Args:
        model: A classifier with a `clip_spec`, as for `inflate3d.predict`, in eval mode and not optimized.
        source: Video file, folder of pictures, `Clip` or array (see `open_frames`).
        options: What is asked.
        progress: Is told how many windows of how many are done.

    Raises:
        InflateError: The source cannot be read; the model is none, or has no such class or layer, or no map of places.

    Source: Selvaraju et al. 2017, Grad-CAM, section 3, with time as a third axis; Sundararajan et al. 2017, Axiomatic
        Attribution for Deep Networks, section 3, by captum. Deviation: the attribution of a pixel is the sum of the
        sizes of its colors', blurred.

    Example:
        >>> import numpy as np
        >>> found = find_saliency(InceptionI3d(5).eval(), np.zeros((9, 32, 40, 3), np.uint8), SaliencyOptions(window=9))
        >>> found.maps.shape, found.layer
        (torch.Size([9, 224, 224]), 'Mixed_5c')
    """
    options = options or SaliencyOptions()
    _check_plain(model)
    how = PredictOptions(fps=options.fps, num_frames=options.num_frames, window=options.window)
    spec = check_model(model, how)
    stream = open_source(source, how)
    length = options.window or spec.num_frames
    cut = list(windows(islice(small_frames(stream, spec.short_side), options.num_frames), length, length))
    frozen = copy_sharing(model).requires_grad_(False).eval()
    attend = _GradCam(frozen, spec, options) if options.method == "grad-cam" else _Gradients(frozen, spec, options)
    told = progress or (lambda done, total: None)
    told(0, len(cut))
    device = device_of(frozen)
    clips = (next(color_views(window.frames, spec, "center"))[None].to(device) for window in cut)
    logits = torch.stack([attend.begin(clip).cpu() for clip in clips])
    share = torch.tensor([window.num_new for window in cut], dtype=torch.float64)
    whole = (logits.double() * (share / share.sum())[:, None]).sum(0)
    score = _score_of(whole, getattr(model, "class_names", None), options.label)
    maps, shown = list[Tensor](), list[SmallFrame]()
    for done, window in enumerate(cut, start=1):
        raw = attend.finish(score.index).float().cpu()
        full = F.interpolate(raw[None, None], (length, spec.crop, spec.crop), mode="trilinear")[0, 0]
        new = _new_part(window)
        maps.append(full[new])
        shown += window.frames[new]
        told(done, len(cut))
    joined = torch.cat(maps)
    frames = torch.stack(
        [crops(frame.picture.permute(2, 0, 1), spec.crop)["center"].permute(1, 2, 0) for frame in shown]
    )
    times = tuple(frame.time_seconds for frame in shown)
    return Saliency(joined / joined.max().clamp(min=1e-30), frames, times, score, options.method, attend.layer)


class _GradCam:
    """Grad-CAM: a map's channels, each weighted by the mean of the class's gradient, summed where that is positive."""

    def __init__(self, frozen: nn.Module, spec: ClipSpec, options: SaliencyOptions) -> None:
        self.model = frozen
        self.layer = options.layer or (I3D_LAYER if isinstance(frozen, InceptionI3d) else _last_map(frozen, spec))
        paths = [path for path, _ in frozen.named_modules() if path]
        if self.layer not in paths:
            raise _no_such_layer(self.layer, nearest_names(self.layer, paths))
        self.waiting: list[tuple[Tensor, Tensor]] = []  # of each window the logits, and the map they were made from

    def begin(self, clip: Tensor) -> Tensor:
        """Answer a clip; gradients are kept from the layer on, and what lies before it is not."""
        seen: list[Tensor] = []

        def start(module: nn.Module, args: Any, output: Any) -> Any:
            if not isinstance(output, Tensor):
                return output
            seen.append(output.detach().requires_grad_())
            return seen[-1].clone()  # what follows may work in place

        handle = self.model.get_submodule(self.layer).register_forward_hook(start)
        try:
            with torch.enable_grad():
                logits = _logits(self.model(clip))
        finally:
            handle.remove()
        if not seen or not logits.requires_grad:
            raise _no_such_layer(self.layer, "one whose output leads to the answer")
        self.waiting.append((logits, seen[-1]))
        return logits.detach()

    def finish(self, index: int) -> Tensor:
        """Give the map `[t, h, w]` of the next window."""
        logits, found = self.waiting.pop(0)
        (gradient,) = torch.autograd.grad(logits[index], found)
        here, slope = (_in_clip_form(one, self.layer) for one in (found.detach(), gradient))
        return (slope.mean((1, 2, 3), keepdim=True) * here).sum(0).relu()


class _Gradients:
    """Integrated gradients, from a gray clip to the one that is shown."""

    layer = "input"

    def __init__(self, frozen: nn.Module, spec: ClipSpec, options: SaliencyOptions) -> None:
        captum = import_extra("captum.attr", "show", where="integrated gradients", instead='method="grad-cam"')
        self.model, self.steps, self.gray = frozen, options.steps, sum(spec.value_range) / 2
        self.gradients = captum.IntegratedGradients(frozen)
        self.waiting: list[Tensor] = []

    def begin(self, clip: Tensor) -> Tensor:
        """Answer a clip."""
        self.waiting.append(clip)
        with torch.no_grad():
            return _logits(self.model(clip))

    def finish(self, index: int) -> Tensor:
        """Give the map `[t, h, w]` of the next window."""
        clip = self.waiting.pop(0)
        how = {"baselines": self.gray, "n_steps": self.steps, "internal_batch_size": 1}
        return _blurred(self.gradients.attribute(clip, target=index, **how).detach().abs().sum(1)[0].float().cpu())


def _last_map(frozen: nn.Module, spec: ClipSpec) -> str:
    """Find the last module that gives a map of places."""
    found: list[str] = []

    def watch(path: str) -> Callable[[nn.Module, Any, Any], None]:
        def note(module: nn.Module, args: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.ndim in (4, 5):
                sides = output.shape[-2:] if output.shape[-1] == output.shape[-2] else output.shape[-3:-1]
                found.extend([path] * (min(sides) > 1))

        return note

    handles = [module.register_forward_hook(watch(path)) for path, module in frozen.named_modules() if path]
    channels = int(getattr(frozen, "in_channels", 3))
    try:
        with torch.no_grad():
            frozen(torch.zeros(1, channels, spec.min_frames, spec.crop, spec.crop, device=device_of(frozen)))
    finally:
        for handle in handles:
            handle.remove()
    if not found:
        raise InflateError(
            "the network has no map of places",
            where="find_saliency",
            expected="a module that gives [b, c, t, h, w], or frames [b * t, c, h, w]",
            got=f"{type(frozen).__name__}, which has none",
            fix='method="integrated-gradients"; or name a layer of tokens with layer=',
        )
    return found[-1]


def _in_clip_form(found: Tensor, layer: str) -> Tensor:
    """Bring what a layer gives for one clip into `[c, t, h, w]`: frames, channels last, tokens."""
    if found.ndim == 5 and len(found) == 1:
        return found[0]
    if found.ndim == 4:
        last = found.shape[1] == found.shape[2] != found.shape[3]
        return found.permute(3, 0, 1, 2) if last else found.transpose(0, 1)
    for ahead in range(MOST_TOKENS if found.ndim == 3 else 0):
        side = math.isqrt(max(found.shape[1] - ahead, 0))
        if side > 1 and side * side == found.shape[1] - ahead:
            return found[:, ahead:].reshape(len(found), side, side, -1).permute(3, 0, 1, 2)
    raise _no_such_layer(layer, "one that gives a map of places", got=f", which gives {list(found.shape)}")


def _blurred(maps: Tensor) -> Tensor:
    """Blur `[t, h, w]` in space by a Gaussian."""
    deviation = maps.shape[-1] * BLUR
    reach = max(round(3 * deviation), 1)
    offsets = torch.arange(-reach, reach + 1, dtype=torch.float32)
    taps = torch.exp(-(offsets**2) / (2 * deviation**2))
    taps = (taps / taps.sum()).view(1, 1, 1, -1)
    padded = F.pad(maps[:, None], (reach,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(padded, taps), taps.transpose(2, 3))[:, 0]


def _new_part(window: Window[SmallFrame]) -> slice:
    """Tell which frames of a window none before it has: its first ones where it was looped, else its last ones."""
    looped = window.start == 0
    return slice(0, window.num_new) if looped else slice(len(window.frames) - window.num_new, None)


def _logits(answer: Any) -> Tensor:
    if not isinstance(answer, Tensor) or answer.ndim != 2 or len(answer) != 1:
        raise InflateError(
            "the model does not answer with logits",
            where="find_saliency",
            expected="a tensor [1, classes]",
            got=str(list(answer.shape)) if isinstance(answer, Tensor) else type(answer).__name__,
            fix="wrap it in a module that returns logits, averaged over time if there are several",
        )
    return answer[0]


def _score_of(logits: Tensor, class_names: Sequence[str] | None, label: str | int | None) -> Score:
    ranked = top_scores(logits, class_names, len(logits))
    if label is None:
        return ranked[0]
    found = next((score for score in ranked if label in (score.label, score.index, str(score.index))), None)
    if found is None:
        known = [score.label for score in ranked]
        raise InflateError(
            "the network has no such class",
            where="find_saliency",
            expected=f"the name of a class, or its number from 0 to {len(ranked) - 1}",
            got=repr(label),
            fix=f"did you mean {nearest_names(str(label), known)}?",
        )
    return found


def _check_plain(model: nn.Module) -> None:
    if isinstance(model, Optimized):
        raise InflateError(
            "an optimized model has no gradients",
            where="find_saliency",
            expected="the model that it was made from",
            got=type(model).__name__,
            fix='find_saliency(inflate3d.load("i3d-kinetics400"), ...), without optimize',
        )


def _no_such_layer(layer: str, fix: str, got: str = "") -> InflateError:
    return InflateError(
        "Grad-CAM has no map at this layer",
        where="find_saliency",
        expected="a module whose output is a map of places and leads to the answer",
        got=repr(layer) + got,
        fix=f"take {fix}; or layer=None",
    )


def overlay_saliency(saliency: Saliency) -> Tensor:
    """Lay the maps over the grayed frames, in colors from black over red to yellow.

    Returns:
        `[t, h, w, 3]` uint8.
    """
    drawn = torch.empty_like(saliency.frames)
    for there, frame, one in zip(drawn, saliency.frames.float(), saliency.maps, strict=True):
        gray = frame.mean(-1, keepdim=True)
        ground = frame + GRAYED * (gray - frame)
        share = STRENGTH * one[..., None]
        there.copy_((ground * (1 - share) + 255 * heat_colors(one) * share).round())
    return drawn


def write_saliency(path: Path, saliency: Saliency, *, fps: float = 25.0) -> None:
    """Write the frames under their maps, with the class above: MP4, GIF or WebP moving, PNG six of them.

    Args:
        path: Its ending says which.
        saliency: What `find_saliency` gives.
        fps: Frames per second of what moves.

    Raises:
        InflateError: The ending is another one, or the file cannot be written.
    """
    check_ending(path, ENDINGS, where=str(path))
    if path.suffix.lower() == STILL_ENDING:
        write_picture(path, still_saliency(saliency))
    else:
        write_animation(path, captioned(saliency), fps=fps)


def captioned(saliency: Saliency) -> Iterator[Tensor]:
    """Give the overlaid frames one after the other, `[h', w, 3]` uint8, with the class and the method above."""
    strip = _strip(saliency, saliency.frames.shape[2])
    for frame in overlay_saliency(saliency):
        yield torch.cat([strip, frame])


def still_saliency(saliency: Saliency) -> Tensor:
    """Draw six frames side by side, evenly over time, above the same under their maps: `[h, w, 3]` uint8."""
    count = min(SHOWN_FRAMES, len(saliency.frames))
    chosen = [(2 * i + 1) * len(saliency.frames) // (2 * count) for i in range(count)]
    rows = [torch.cat(list(part[chosen]), 1) for part in (saliency.frames, overlay_saliency(saliency))]
    return torch.cat([_strip(saliency, rows[0].shape[1]), *rows])


def _strip(saliency: Saliency, width: int) -> Tensor:
    ground = torch.zeros(STRIP, width, 3, dtype=torch.uint8)
    words = f"{saliency.score.label} {saliency.score.probability:.0%}"
    method = f"{saliency.method}, {saliency.layer}" if width > WIDE else ""
    named = [Words(words, 6, STRIP / 2, color="#ffffff"), Words(method, width - 6, STRIP / 2, "r", color="#aaaaaa")]
    return put_words(ground, named)
