"""The protocols of the Fréchet Video Distance by name: which clips, which pixels, which network, which covariance."""

import json
import math
from dataclasses import asdict, dataclass
from hashlib import sha256
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from inflate3d.axes import clip_to_frames, frames_to_clip
from inflate3d.clips.transforms import MAX_ASPECT, check_range, crops, to_range
from inflate3d.errors import InflateError, check_choice, is_count, is_number
from inflate3d.models.blocks import SameConv3d, SameMaxPool3d
from inflate3d.models.inception import InceptionI3d
from inflate3d.results.network import build_sha256
from inflate3d.speed.memory import values_of
from inflate3d.speed.optimize import in_training
from inflate3d.weights.checkpoint import tensors_sha256

Resize = Literal["tf1", "bilinear", "short-side", "none"]
FloatsTo = Literal["floats", "floor", "round"]
Trace = Literal["exact", "tf-gan", "tf-gan-float32", "sqrtm"]

PIXELS_AT_A_TIME = 2**22  # of one channel; bounds the memory that large frames take


class Sampling(NamedTuple):
    """Which clips of a folder of videos a protocol takes, one of each video in natural order.

    Attributes:
        offset: Where in its video a clip begins: at the start, or anywhere at random.
        num_clips: At most so many; None takes all.
        again: Go through the videos again and again, with new offsets, until there are `num_clips`.
    """

    offset: Literal["start", "random"] = "start"
    num_clips: int | None = None
    again: bool = False


ALL_FROM_START = Sampling()


@dataclass(frozen=True)
class Protocol:
    """One definition of the Fréchet Video Distance; figures of two protocols cannot be compared.

    Attributes:
        name: Its name; one that you change (`dataclasses.replace`) needs another one.
        resize: "tf1" for TensorFlow 1's `resize_bilinear`, whose grid is off by half a pixel; "bilinear" straight to a
            square; "short-side" keeps the aspect and crops the center; "none" takes frames of the right size only.
        side: Pixels of the square that the network sees.
        floats_to: What becomes of floating-point frames: they stay, or become bytes, rounded down or to the nearest.
        value_range: What black and white are for the network.
        loader_side: Frames of video files are first scaled to this short side (antialiased), cropped to a square and
            made bytes again; None leaves them as they are.
        bn_eps: Epsilon of I3D's batch norm; it does not touch other networks.
        covariance: "unbiased" divides by N - 1, "biased" by N.
        trace: How the published code takes the trace of the root: see `inflate3d.results.fvd_distance`.
        real: Which clips of the real videos.
        fake: Which clips of the generated ones.
        drops_short: Videos that are too short are left out; otherwise they are failures.
        one_is_enough: A set of one clip counts as one without spread; otherwise unbiased protocols refuse it.
        source: Whose definition it is.
    """

    name: str
    resize: Resize
    floats_to: FloatsTo
    covariance: Literal["unbiased", "biased"]
    trace: Trace
    source: str
    real: Sampling = ALL_FROM_START
    fake: Sampling = ALL_FROM_START
    bn_eps: float = 1e-3
    loader_side: int | None = None
    drops_short: bool = False
    one_is_enough: bool = False
    side: int = 224
    value_range: tuple[float, float] = (-1.0, 1.0)


# Source: the code of each, as far as it can be read; `docs/fvd.md` tells them apart in a table. Each says all that it
# sets, also what another one says, so that it can be read beside that code.
PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            "tf-original",
            resize="tf1",
            floats_to="floats",
            covariance="unbiased",
            trace="tf-gan",
            source="google-research, frechet_video_distance.py (Unterthiner et al. 2018)",
        ),
        Protocol(
            "stylegan-v",
            resize="bilinear",
            floats_to="round",
            covariance="biased",
            trace="sqrtm",
            real=Sampling("random", 2048),
            fake=Sampling("start", 2048),
            drops_short=True,
            source="universome/stylegan-v, src/metrics (Skorokhodov et al. 2022)",
        ),
        Protocol(
            "fvd-comparison",
            resize="none",
            floats_to="floats",
            covariance="unbiased",
            trace="sqrtm",
            source="universome/fvd-comparison, our_fvd.py",
        ),
        Protocol(
            "common-metrics",
            resize="short-side",
            floats_to="floats",
            covariance="unbiased",
            trace="sqrtm",
            one_is_enough=True,
            source="JunyaoHu/common_metrics_on_video_quality, fvd/styleganv",
        ),
        Protocol(
            "videogpt",
            resize="short-side",
            floats_to="floor",
            covariance="unbiased",
            trace="tf-gan-float32",
            real=Sampling("random", 256),
            fake=Sampling("start", 256),
            bn_eps=1e-5,
            drops_short=True,
            source="wilson1yan/VideoGPT, videogpt/fvd (Yan et al. 2021)",
        ),
        Protocol(
            "tats",
            resize="bilinear",
            floats_to="floor",
            covariance="unbiased",
            trace="tf-gan-float32",
            real=Sampling("random", 2048),
            fake=Sampling("start", 2048),
            bn_eps=1e-5,
            drops_short=True,
            source="songweige/TATS, tats/fvd (Ge et al. 2022)",
        ),
        Protocol(
            "cd-fvd-i3d",
            resize="bilinear",
            floats_to="floor",
            covariance="biased",
            trace="sqrtm",
            real=Sampling("random"),
            fake=Sampling("random", 2048, again=True),
            bn_eps=1e-5,
            loader_side=256,
            drops_short=True,
            source="songweige/content-debiased-fvd, cdfvd 0.1.1 (Ge et al. 2024)",
        ),
    )
}


def protocol_named(protocol: str | Protocol) -> Protocol:
    """Look a protocol up by its name; one of your own is given back as it is.

    Raises:
        InflateError: There is none of that name, or a changed one goes by a known name.

    Example:
        >>> protocol_named("tats").bn_eps
        1e-05
    """
    if isinstance(protocol, str):
        check_choice(protocol, PROTOCOLS, what="protocol", where="protocol_named")
        return PROTOCOLS[protocol]
    if PROTOCOLS.get(protocol.name, protocol) != protocol:
        raise InflateError(
            "a changed protocol goes by the name of a known one",
            where="protocol_named",
            expected=f"a name of its own, none of {', '.join(PROTOCOLS)}",
            got=f"name={protocol.name!r}",
            fix=f"dataclasses.replace(protocol, name='my-{protocol.name}', ...)",
        )
    return protocol


@dataclass(frozen=True)
class Setup:
    """All that two sets of features have to share to be compared.

    Attributes:
        protocol: Which pixels, network and covariance.
        num_frames: Frames in a clip.
        frame_stride: Frames of the video from one frame of a clip to the next.
        fps: Frames per second that videos were resampled to, or "native".
        network: Class of the network.
        network_sha256: Hash of its tensors.
    """

    protocol: Protocol
    num_frames: int
    frame_stride: int
    fps: str
    network: str
    network_sha256: str

    def to_json(self) -> str:
        """Write it as one line of JSON, always the same."""
        return json.dumps(asdict(self), sort_keys=True)

    @staticmethod
    def from_json(text: str) -> "Setup":
        """Read what `to_json` wrote.

        Raises:
            ValueError, TypeError, KeyError: The text is not such JSON.
        """
        found = json.loads(text)
        fields = dict(found["protocol"])
        for role in ("real", "fake"):
            fields[role] = Sampling(*fields[role])
        fields["value_range"] = tuple(fields["value_range"])
        setup = Setup(**{**found, "protocol": protocol_named(Protocol(**fields))})
        texts = (setup.protocol.name, setup.protocol.source, setup.fps, setup.network, setup.network_sha256)
        counts = [setup.num_frames, setup.frame_stride]
        counts += [side.num_clips for side in (setup.protocol.real, setup.protocol.fake) if side.num_clips is not None]
        fits = all(isinstance(text, str) for text in texts) and all(map(is_count, counts))
        if not fits or not is_number(setup.protocol.bn_eps):
            raise ValueError("a field of another type than a setup has")
        return setup

    def fingerprint(self) -> str:
        """Hash it, to name what was made with it."""
        return sha256(self.to_json().encode()).hexdigest()

    def differences(self, other: "Setup") -> list[str]:
        """Name what differs from another setup; nothing if the two may be compared."""
        mine, theirs = ({**asdict(one), **asdict(one.protocol)} for one in (self, other))
        names = [name for name in mine if name not in {"protocol", "source"} and mine[name] != theirs[name]]
        return [f"{name} {_short(mine[name])} and {_short(theirs[name])}" for name in names]


def _short(value: Any) -> str:
    return str(value)[:16] if isinstance(value, str) else str(value)


def pixels(
    clips: Tensor, protocol: Protocol, *, value_range: tuple[float, float] | None = None, from_file: bool = False
) -> Tensor:
    """Make what the network sees, as the protocol's own code does it.

    Args:
        clips: `[b, c, t, h, w]`, 3 channels or 1, uint8 or floating point.
        protocol: Whose pixels.
        value_range: What black and white are in floating-point clips.
        from_file: The frames come from video files: `Protocol.loader_side` counts.

    Returns:
        `[b, 3, t, side, side]` float32 in `Protocol.value_range`.

    Raises:
        InflateError: Another shape or dtype, values outside of the range, or frames of a size that the protocol does
            not take.

    Example:
        >>> pixels(torch.zeros(2, 3, 9, 32, 40, dtype=torch.uint8), PROTOCOLS["tats"]).shape
        torch.Size([2, 3, 9, 224, 224])
    """
    _check_clips(clips, protocol)
    levels = _levels(clips.expand(-1, 3, -1, -1, -1), protocol.floats_to, value_range)
    frames = clip_to_frames(levels)
    step = max(PIXELS_AT_A_TIME // (frames.shape[-1] * frames.shape[-2]), 1)
    made = [_frames(part.float(), protocol, from_file) for part in frames.split(step)]
    low, high = protocol.value_range
    return frames_to_clip(torch.cat(made).div_(255).mul_(high - low).add_(low), num_clips=len(clips))


def _check_clips(clips: Tensor, protocol: Protocol) -> None:
    fault = None
    if not isinstance(clips, Tensor) or clips.ndim != 5 or clips.shape[1] not in {1, 3}:
        fault, fix = (
            "these are no clips",
            "channels stand before time: clips.permute(0, 4, 1, 2, 3) from [b, t, h, w, 3]",
        )
    elif clips.numel() == 0:
        fault, fix = "the clips hold no pixel", "pass at least one frame of one pixel: read_clip(PATH).data[None]"
    elif protocol.resize == "none" and clips.shape[-2:] != (protocol.side, protocol.side):
        fault, fix = "this protocol does not resize", "resize them, or take a protocol that does, such as tats"
    elif max(clips.shape[-2:]) > MAX_ASPECT * min(clips.shape[-2:]):
        fault, fix = "the frames are too long and narrow", "crop them: clips[..., top : top + side, left : left + side]"
    if fault:
        square = f"{protocol.side}x{protocol.side} pixels" if protocol.resize == "none" else "any size"
        raise InflateError(
            fault,
            where=f"pixels, protocol {protocol.name}",
            expected=f"[b, 3, t, h, w] or grey [b, 1, t, h, w], {square}, sides up to 1:{MAX_ASPECT}",
            got=f"{list(clips.shape)} {clips.dtype}" if isinstance(clips, Tensor) else type(clips).__name__,
            fix=fix,
        )


def _levels(clips: Tensor, floats_to: FloatsTo, value_range: tuple[float, float] | None) -> Tensor:
    """Give pixels in 0..255, bytes as they are and floats as the protocol has them."""
    if not clips.is_floating_point():
        check_range(clips, value_range or (0.0, 255.0), where="pixels")
        return clips
    if floats_to == "round":  # StyleGAN-V: (x * 127.5 + 128).clamp(0, 255).to(uint8) for x in -1..1
        return to_range(clips, (-1.0, 1.0), value_range=value_range).mul_(127.5).add_(128).clamp_(0, 255).floor_()
    levels = to_range(clips, (0.0, 255.0), value_range=value_range)
    return levels.floor_().clamp_(0, 255) if floats_to == "floor" else levels


def _frames(frames: Tensor, protocol: Protocol, from_file: bool) -> Tensor:
    """Resize `[n, 3, h, w]` of 0..255."""
    size = (protocol.side, protocol.side)
    if from_file and protocol.loader_side:
        loaded = _short_side_center(frames / 255, protocol.loader_side, antialias=True)
        frames = (loaded * 255).floor_().clamp_(0, 255)
    if protocol.resize == "short-side":
        return _short_side_center(frames, protocol.side)
    if protocol.resize == "bilinear":
        return F.interpolate(frames, size, mode="bilinear", align_corners=False)
    if protocol.resize == "none":
        return frames
    return _tf1_bilinear(_tf1_bilinear(frames, -2, protocol.side), -1, protocol.side)


def _short_side_center(frames: Tensor, side: int, *, antialias: bool = False) -> Tensor:
    height, width = frames.shape[-2:]
    scale = side / min(height, width)  # as VideoGPT's code has it, so that its rounding errors are ours
    size = (side, math.ceil(width * scale)) if height < width else (math.ceil(height * scale), side)
    resized = F.interpolate(frames, size, mode="bilinear", align_corners=False, antialias=antialias)
    return crops(resized, side)["center"]


def _tf1_bilinear(frames: Tensor, dim: int, side: int) -> Tensor:
    """Resize one axis as TensorFlow 1 does: output i lies at i * in / out, not at (i + 1/2) * in / out - 1/2.

    Source: TensorFlow, `image_resizer_state.h` with align_corners and half_pixel_centers both false.
    """
    size = frames.shape[dim]
    place = torch.arange(side, dtype=torch.float32, device=frames.device) * (size / side)
    before = place.floor().long().clamp_(max=size - 1)
    after = (before + 1).clamp_(max=size - 1)
    share = (place - before).view(-1, *[1] * (-dim - 1))
    low, high = frames.index_select(dim, before), frames.index_select(dim, after)
    return low + (high - low) * share


class FeatureNetwork:
    """A network as a protocol wants it, its name and the hash of its tensors.

    Args:
        model: A module that maps `[b, 3, t, side, side]` to features `[b, d]`, in eval mode. An `InceptionI3d` is run
            with the protocol's epsilon and TensorFlow's padding, whatever it was loaded with.
        protocol: Whose network.

    Attributes:
        module: What is run: the model, or of I3D a variant that shares its tensors.
        name: The model's class.
        sha256: Hash of its tensors, by which kept features and statistics know the network again.
        build: Hash of how it is built besides; of an I3D, which is run as the protocol says, none.
        min_frames: Shortest clip that it takes.

    Raises:
        InflateError: The model is no module or in training mode.
    """

    def __init__(self, model: nn.Module, protocol: Protocol) -> None:
        _check_model(model)
        self.module = _variant(model, protocol.bn_eps) if type(model) is InceptionI3d else model
        self.name = type(model).__name__
        tensors = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
        self.sha256 = tensors_sha256(tensors)
        self.build = "" if type(model) is InceptionI3d else build_sha256(model)
        self.min_frames = int(getattr(getattr(self.module, "clip_spec", None), "min_frames", 1))

    def __call__(self, clips: Tensor) -> Tensor:
        """Map what `pixels` makes to features `[b, d]`, float32 on the CPU.

        Raises:
            InflateError: The clips are too short for the network, or its answer is no finite tensor `[b, d]`.
        """
        self.check_length(clips.shape[2])
        values = (value for value in values_of(self.module) if value.is_floating_point())
        like = next(values, clips)  # a module may have none
        with torch.inference_mode():
            features = self.module(clips.to(like.device, like.dtype))
        fits = isinstance(features, Tensor) and features.ndim == 2 and len(features) == len(clips)
        if not fits or not features.isfinite().all():
            raise InflateError(
                "the network does not answer with features",
                where=f"FeatureNetwork({self.name})",
                expected=f"a finite tensor [{len(clips)}, d]",
                got=str(list(features.shape)) if isinstance(features, Tensor) else type(features).__name__,
                fix="wrap it in a module that pools over time and space; look for NaN",
            )
        answer: Tensor = features.float().cpu()
        return answer

    def check_length(self, num_frames: int) -> None:
        """Check that clips are long enough.

        Raises:
            InflateError: They are too short for the network.
        """
        if num_frames < self.min_frames:
            raise InflateError(
                "the clips are too short for the network",
                where=f"FeatureNetwork({self.name})",
                expected=f"{self.min_frames} frames or more",
                got=f"{num_frames} frames",
                fix="compare longer clips; no published figure is for shorter ones",
            )


def _check_model(model: nn.Module) -> None:
    training = in_training(model) if isinstance(model, nn.Module) else ""
    if training or not isinstance(model, nn.Module):
        raise InflateError(
            "the model is in training mode: its answers are random" if training else "the model is no module",
            where="FeatureNetwork",
            expected="a torch.nn.Module in eval mode that maps [b, 3, t, h, w] to [b, d]",
            got=training or type(model).__name__,
            fix="model.eval()" if training else 'pass inflate3d.load("i3d-kinetics400")',
        )


def _variant(model: InceptionI3d, bn_eps: float) -> InceptionI3d:
    """Give the network itself if it has this epsilon and SAME padding, else one that has, of the same tensors."""
    right_norms = all(norm.eps == bn_eps for norm in model.modules() if isinstance(norm, nn.BatchNorm3d))
    padded = [layer for layer in model.modules() if isinstance(layer, SameConv3d | SameMaxPool3d)]
    if right_norms and all(layer.rule == "same" for layer in padded):
        return model
    with torch.device("meta"):
        variant = InceptionI3d(model.num_classes, model.in_channels, bn_eps=bn_eps)
    variant.load_state_dict(model.state_dict(), strict=True, assign=True)
    return variant.eval()
