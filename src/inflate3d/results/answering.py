"""Labelled videos shown to a classifier, whole or in views, and the answers of two streams joined."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from typing import get_args

import torch
from torch import Tensor, nn

from inflate3d.clips.dataset import Sample
from inflate3d.clips.decoded import Decoding, Window, decoded_frames, turned
from inflate3d.clips.sampling import loop_frames
from inflate3d.clips.transforms import CropKind, crops, resize_picture
from inflate3d.errors import InflateError, check_options, is_count, list_faults
from inflate3d.models.streams import Fusion
from inflate3d.results.network import check_logits
from inflate3d.results.prediction import Failure
from inflate3d.speed.memory import device_of
from inflate3d.speed.optimize import Precision, optimize

KEY_FRAME_SHORT_SIDE = 96
FLOW_CHANNELS = 2


@dataclass(frozen=True)
class EvaluateOptions:
    """How videos are shown, and how sure one can be of the result.

    Attributes:
        num_clips: Windows spread evenly over a video; 0 shows the whole video at once, as the paper does.
        crops: "center", as in the paper, "three", "five" or "ten".
        max_frames: Of a whole video; the paper's 250 are its 10 s at 25 fps.
        precision: "fp32", or "bf16", which is several times as fast on processors that know it.
        backwards: Videos are shown from their end to their beginning.
        resamples: Of the bootstrap.
        seed: Of the bootstrap.

    Raises:
        InflateError: A value is out of range.
    """

    num_clips: int = 0
    crops: CropKind = "center"
    max_frames: int = 250
    precision: Precision = "fp32"
    backwards: bool = False
    resamples: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        check_options(
            self,
            {
                "num_clips": ("0 for the whole video, or more", is_count(self.num_clips + 1)),
                "crops": (", ".join(get_args(CropKind)), self.crops in get_args(CropKind)),
                "max_frames": ("1 or more", is_count(self.max_frames)),
                "precision": ("fp32, bf16", self.precision in ("fp32", "bf16")),
                "resamples": ("100 to 100000", is_count(self.resamples, 100_000) and self.resamples >= 100),
            },
        )


@dataclass(frozen=True, eq=False)
class Answers:
    """What a classifier answers to labelled videos.

    Attributes:
        samples: Those that could be read.
        logits: `[samples, classes]`, float64.
        class_names: One for each class.
        settings: What a reader needs to repeat it.
        failures: What could not be read.
        key_frames: A small JPEG of each sample's middle.
        several: Samples may have several classes, or none; else that is seen from their labels.
    """

    samples: tuple[Sample, ...]
    logits: Tensor = field(repr=False)
    class_names: tuple[str, ...] = field(repr=False)
    settings: Mapping[str, str] = field(default_factory=dict)
    failures: tuple[Failure, ...] = ()
    key_frames: tuple[bytes, ...] = field(default=(), repr=False)
    several: bool = False


def answer_samples(
    model: nn.Module,
    samples: Sequence[Sample],
    how: Decoding,
    *,
    window: Window,
    options: EvaluateOptions | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Answers:
    """Show labelled videos to a classifier; logits are averaged over the views of a video.

    Args:
        model: Maps clips in -1..1 to logits, and has `class_names`; in eval mode.
        samples: Videos and their labels.
        how: How they are read.
        window: What the network was trained on: its frame step and crop are used, its frames with `num_clips`.
        options: How they are shown.
        progress: Is told how many of how many are done.

    Raises:
        InflateError: There is nothing to show, or not one video can be read.

    Source: Carreira & Zisserman, CVPR 2017, section 2.5 (the whole video at once, centre crop).
    """
    options = options or EvaluateOptions()
    fast, device = optimize(model, options.precision), device_of(model)
    kept, rows, pictures, failures = list[Sample](), list[Tensor](), list[bytes](), list[Failure]()
    for done, sample in enumerate(samples):
        progress(done, len(samples))
        try:
            frames = decoded_frames(sample.path, how)
            frames = frames.flip(0) if options.backwards else frames
            clips = _views(frames, window, options, model)
            with torch.inference_mode():
                logits = torch.cat([fast(clip.to(device)).cpu() for clip in clips]).double()
            check_logits(logits, len(clips), getattr(model, "class_names", None))
        except Exception as error:  # whatever a strange file sets off must not cost the others
            failures.append(Failure.of(sample.path, error))
            continue
        kept.append(sample)
        rows.append(logits.mean(0))
        pictures.append(_key_frame(frames))
    if not rows:
        raise InflateError(
            "not one video could be shown",
            where="evaluate",
            expected="videos that can be read",
            got=list_faults([failure.reason for failure in failures], shown=2) or "no samples",
            fix="check the list, its root (--root) and the split",
        )
    names = tuple(getattr(model, "class_names", None) or map(str, range(rows[0].numel())))
    return Answers(
        tuple(kept), torch.stack(rows), names, _settings(how, window, options), tuple(failures), tuple(pictures)
    )


def _settings(how: Decoding, window: Window, options: EvaluateOptions) -> dict[str, str]:
    shown = f"{options.num_clips} clips of {window.num_frames} frames" if options.num_clips else "the whole video, "
    return {
        "fps": str(how.fps),
        "frames": shown if options.num_clips else shown + f"{options.max_frames} frames at most",
        "frame_step": str(window.frame_step),
        "crops": f"{options.crops}, {window.crop} of a short side of {how.short_side}",
        "precision": options.precision,
    } | ({"backwards": "yes"} if options.backwards else {})


def _views(frames: Tensor, window: Window, options: EvaluateOptions, model: nn.Module) -> list[Tensor]:
    """Cut what is shown of a video, each `[1, c, t, crop, crop]` in -1..1."""
    frames = frames[:: window.frame_step]
    rule = getattr(model, "clip_rule", None)
    length, group = window.num_frames, int(getattr(rule, "group", 1))
    if options.num_clips:
        room = max(len(frames) - length, 0)
        starts = [round(room * (i + 0.5) / options.num_clips) for i in range(options.num_clips)]
    elif getattr(rule, "exact", False):  # it knows one length only
        starts = [*range(0, max(len(frames) - length, 0), length), max(len(frames) - length, 0)]
    else:
        shown = min(len(frames), options.max_frames)
        starts, length = [0], max(shown // group * group, _least(rule))
    looped = loop_frames(frames.permute(3, 0, 1, 2), max(starts) + length).transpose(0, 1)
    found = []
    for name, cut in crops(looped, window.crop, options.crops).items():
        crop = turned(cut, axis=1) if name.startswith("mirrored") else cut
        for start in starts:
            clip = crop[start : start + length].transpose(0, 1)[None]
            found.append(clip.contiguous(memory_format=torch.channels_last_3d).float().div_(127.5).sub_(1))
    return found


def _least(rule: object) -> int:
    return int(rule.spec.min_frames) if hasattr(rule, "spec") else 1


def _key_frame(frames: Tensor) -> bytes:
    from PIL import Image  # noqa: PLC0415 - comes with torchvision

    picture = frames[len(frames) // 2, :, :, :3]
    if picture.shape[2] == FLOW_CHANNELS:
        picture = torch.cat([picture, picture.new_full((*picture.shape[:2], 1), 127)], dim=2)
    buffer = BytesIO()
    Image.fromarray(resize_picture(picture, KEY_FRAME_SHORT_SIDE).numpy()).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def fuse(rgb: Answers, flow: Answers, fusion: Fusion = "probabilities") -> Answers:
    """Join the answers of two streams to the same videos.

    Args:
        rgb: Of the one stream.
        flow: Of the other.
        fusion: "probabilities", their mean, as the paper says; "logits", their sum, as DeepMind's script does.

    Raises:
        InflateError: They have other classes, or no video in common.
    """
    places = {sample.path: index for index, sample in enumerate(flow.samples)}
    both = [index for index, sample in enumerate(rgb.samples) if sample.path in places]
    if rgb.class_names != flow.class_names or not both:
        raise InflateError(
            "the streams have not answered the same question",
            where="fuse",
            expected="answers to the same videos, with the same classes",
            got=f"{len(rgb.class_names)} and {len(flow.class_names)} classes, {len(both)} videos in common",
            fix="train and evaluate both on the same list",
        )
    a = rgb.logits[both]
    b = flow.logits[[places[rgb.samples[index].path] for index in both]]
    joint = a + b if fusion == "logits" else torch.logaddexp(a.log_softmax(1), b.log_softmax(1)) - math.log(2)
    settings = {**rgb.settings, "streams": "rgb and flow", "fusion": fusion}
    pictures = tuple(rgb.key_frames[index] for index in both) if rgb.key_frames else ()
    samples, failures = tuple(rgb.samples[index] for index in both), (*rgb.failures, *flow.failures)
    return Answers(samples, joint, rgb.class_names, settings, failures, pictures, rgb.several)
