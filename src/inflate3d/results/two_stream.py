"""A video and two classifiers, one for colors and one for optical flow: the answer of each and of both together."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple, get_args

import torch
from torch import Tensor, nn

from inflate3d.clips.clip import ClipSpec
from inflate3d.clips.transforms import CropKind, crops
from inflate3d.clips.video import Source, source_name
from inflate3d.errors import InflateError, check_options
from inflate3d.flow.methods import FlowMethod, find_method, with_flow
from inflate3d.flow.quantize import BOUND_PIXELS, Quantizer, check_quantizer, dequantize, quantize
from inflate3d.flow.stored import StoredFlow, find_flow, open_flow
from inflate3d.models.streams import Fusion
from inflate3d.results.network import (
    Network,
    PredictOptions,
    Progress,
    SmallFrame,
    color_views,
    cut_windows,
    open_source,
    readable,
    small_frames,
    views_at_a_time,
)
from inflate3d.results.predict import Answers, check_model, predict_each
from inflate3d.results.prediction import Failure, VideoPrediction
from inflate3d.speed.optimize import Optimized, optimize

FLOW_CHANNELS = 2
PAIRS_AT_A_TIME = 8


@dataclass(frozen=True)
class FlowOptions:
    """How the flow stream is fed.

    Attributes:
        method: Computes the flow (`inflate3d.flow.methods.find_method`); None takes TV-L1.
        stored: Flow that was computed before, instead: a folder or file that `inflate3d.flow.stored.open_flow` takes,
            or a folder that holds one such for each video, under the video's name without its suffix. Flow that is
            stored as codes is not quantized again.
        quantizer: What stood between flow and network in training. DeepMind's flow was kept in 256 steps; the
            quantizer of their released pipeline is `mediapipe`. `none` leaves the steps out.
        bound: Motion in pixels that becomes -1 and 1.
        fusion: "logits": the sum of both streams' logits, as DeepMind's script has it; "probabilities": the mean of
            both softmaxes, as the paper says; the joint logits are then its logarithm.

    Raises:
        InflateError: The quantizer, bound or fusion is not allowed.

    Source: kinetics-i3d README (bound 20), `evaluate_sample.py` (sum of logits) and issue 24 (256 steps); mediapipe
    `tvl1_flow_and_rgb_from_file.pbtxt`; Carreira & Zisserman 2017, section 2.5. The JPEG of quality 100 that the
    pipeline has after the quantizer is left out.
    """

    method: FlowMethod | None = None
    stored: Path | None = None
    quantizer: Quantizer = "mediapipe"
    bound: float = BOUND_PIXELS
    fusion: Fusion = "logits"

    def __post_init__(self) -> None:
        check_quantizer(self.quantizer, self.bound)
        rules = {
            "fusion": (" or ".join(get_args(Fusion)), self.fusion in get_args(Fusion)),
            "stored": ("None beside a method, which would compute anew", not (self.method and self.stored)),
        }
        check_options(self, rules, problem="the flow stream cannot be fed so")


class Streams(NamedTuple):
    """The networks of the streams.

    Attributes:
        flow: For optical flow, with two input channels.
        rgb: For colors; None to ask the flow stream alone.
    """

    flow: nn.Module
    rgb: nn.Module | None = None


class MovingFrame(NamedTuple):
    """A frame with the flow that leads from it to the next one.

    Attributes:
        picture: `[h, w, 3]` uint8.
        time_seconds: Seconds since the first frame of the source.
        codes: `[2, h, w]`, quantized to bytes; or pixels as floats, four times as large, if the quantizer is "none".
    """

    picture: Tensor
    time_seconds: float
    codes: Tensor


def predict_streams(
    streams: Streams,
    source: Source,
    options: PredictOptions | None = None,
    *,
    flow: FlowOptions | None = None,
    progress: Progress | None = None,
) -> VideoPrediction:
    """Show a video and its optical flow to two classifiers, window by window, as `predict` does with one.

    Frames are scaled to the network's short side, flow is computed on the scaled frames. Flow k leads from frame k to
    frame k + 1 and is shown together with frame k. So t frames make t - 1 steps for both streams, and the last frame is
    only seen by way of its flow; where `num_frames` ends a video early, one frame more is read. Windows, crops,
    looping and averages are those of `predict`; the horizontal flow of a mirrored crop changes its sign.

    Args:
        streams: The networks, in eval mode, each with a `clip_spec`; both of the same size, rate and window.
        source: Video file, folder of pictures, `Clip` or array.
        options: How the video is shown.
        flow: How the flow stream is fed.
        progress: Called after each pair of frames, from the thread that reads ahead of the networks.

    Returns:
        The joint answer, whose `streams` holds those of "rgb" and "flow"; or that of the flow stream alone.

    Raises:
        InflateError: What `predict` raises; the video has one frame only; the two networks do not go together; or
            stored flow is not that of this video.

    Example:
        >>> import numpy as np
        >>> from inflate3d import InceptionI3d
        >>> streams = Streams(InceptionI3d(5, in_channels=2).eval(), InceptionI3d(5).eval())
        >>> options = PredictOptions(window=9)
        >>> answer = predict_streams(streams, np.zeros((10, 32, 40, 3), np.uint8), options)
        >>> answer.num_frames, list(answer.streams), torch.equal(
        ...     answer.logits, answer.streams["rgb"].logits + answer.streams["flow"].logits)
        (9, ['rgb', 'flow'], True)
    """
    options, flow = options or PredictOptions(), flow or FlowOptions()
    return _answer(_stream_networks(streams, options, flow), source, options, flow=flow, progress=progress)


def predict_streams_many(
    streams: Streams,
    sources: Iterable[Source],
    options: PredictOptions | None = None,
    *,
    flow: FlowOptions | None = None,
    progress: Callable[[Source], Progress] | None = None,
) -> Iterator[VideoPrediction | Failure]:
    """Do so with one source after the other; one that fails gives a `Failure` and does not end the run.

    An error that is not the source's ends it: one of a network's, of the flow method's or of `progress`.

    Args:
        streams: As for `predict_streams`, likewise `options` and `flow`.
        sources: Files, folders of pictures, clips, arrays.
        options: How the videos are shown.
        flow: How the flow stream is fed.
        progress: Called with each source before it is read; gives back what `predict_streams` calls.

    Raises:
        InflateError: At once, for what would fail with every source.
    """
    options, flow = options or PredictOptions(), flow or FlowOptions()
    networks = _stream_networks(streams, options, flow)
    return predict_each(
        lambda source: source,
        lambda source, told: _answer(networks, source, options, flow=flow, progress=told),
        sources,
        progress=progress,
    )


def optimize_streams(streams: Streams, options: PredictOptions) -> Streams:
    """Make the fast copies of both networks that `predict_streams` runs; their `steps` say what was done.

    Args:
        streams: As for `predict_streams`; those that are optimized already stay as they are.
        options: How the videos are shown.

    Raises:
        InflateError: The networks cannot be asked together, see `check_streams`.
    """
    check_streams(streams, options)
    return _optimized(streams, options)


def _optimized(streams: Streams, options: PredictOptions) -> Streams:
    def fast(model: nn.Module) -> Optimized:
        if isinstance(model, Optimized) and options.precision == "fp32":  # the default asks for nothing
            return model
        return optimize(model, options.precision, compiled=options.compiled)

    return Streams(fast(streams.flow), None if streams.rgb is None else fast(streams.rgb))


def _stream_networks(streams: Streams, options: PredictOptions, flow: FlowOptions) -> dict[str, Network[MovingFrame]]:
    """Make both networks ready; "flow" comes first, "rgb" may be missing."""
    spec = check_streams(streams, options)
    fast = _optimized(streams, options)

    def motion_views(frames: list[MovingFrame]) -> Iterator[Tensor]:
        return _flow_views(torch.stack([frame.codes for frame in frames]), spec.crop, options.crops, bound=flow.bound)

    def colors(frames: list[MovingFrame]) -> Iterator[Tensor]:
        return color_views(frames, spec, options.crops)

    inputs = {"flow": (fast.flow, motion_views), "rgb": (fast.rgb, colors)}
    return {
        name: Network[MovingFrame](model, spec, input_of, views_at_a_time(model, spec, options))
        for name, (model, input_of) in inputs.items()
        if model is not None
    }


def _answer(
    networks: Mapping[str, Network[MovingFrame]],
    source: Source,
    options: PredictOptions,
    *,
    flow: FlowOptions,
    progress: Progress | None,
) -> VideoPrediction:
    spec = networks["flow"].spec
    stream = open_source(source, options)

    def told(seconds: float) -> None:
        if progress:
            progress(seconds, stream.duration_seconds_estimate)

    limit = None if options.num_frames is None else options.num_frames + 1
    frames = islice(small_frames(stream, spec.short_side), limit)
    moving = moving_frames(frames, flow, source, told=told, limited=limit is not None)
    answers = {name: Answers(stream, options) for name in networks}
    with closing(cut_windows(moving, spec, options)) as cut:
        for batch, logits in networks["flow"].answers(cut, options.crops):
            answers["flow"].add(batch, logits)
            if "rgb" in networks:
                answers["rgb"].add(batch, networks["rgb"].answer(batch))
    if not answers["flow"].windows:
        raise InflateError(
            "the video has one frame, from which no flow leads anywhere",
            where=stream.source,
            expected="two frames or more",
            got=f"one frame at fps={options.fps}",
            fix="take all frames (--fps native), or the rgb stream alone",
        )
    found = {name: one.whole(getattr(networks[name].model, "class_names", None)) for name, one in answers.items()}
    return join(found["rgb"], found["flow"], flow.fusion) if "rgb" in found else found["flow"]


def check_streams(streams: Streams, options: PredictOptions) -> ClipSpec:
    """Find out before anything is read whether two networks can be asked together.

    Raises:
        InflateError: One of them does not fit `predict`, has another number of input channels, or they differ in what
            they want to be fed or in their classes; or int8, several workers or the whole video at once are wanted.
    """
    if options.precision == "int8" or (options.workers or 1) > 1 or options.whole:
        raise InflateError(
            "the flow stream cannot be run so",
            where="predict_streams",
            expected="precision fp32 or bf16 (calibrating int8 would take the flow of many windows), workers=None "
            "(flow takes all cores, one video after the other), and windows",
            got=f"precision={options.precision!r}, workers={options.workers}, whole={options.whole}",
            fix='precision="bf16", and leave workers and whole out',
        )
    spec = check_model(streams.flow, options)
    faults = _channel_fault(streams.flow, "flow", FLOW_CHANNELS)
    if streams.rgb is not None:
        rgb = check_model(streams.rgb, options)
        faults += _channel_fault(streams.rgb, "rgb", 3)
        for name in ("fps", "num_frames", "short_side", "crop", "value_range"):
            if getattr(rgb, name) != getattr(spec, name):
                faults.append(f"{name} {getattr(rgb, name)} for rgb and {getattr(spec, name)} for flow")
        names = [getattr(net, "class_names", None) for net in (streams.rgb, streams.flow)]
        if all(names) and names[0] != names[1]:
            faults.append("other classes, or in another order")
    if faults:
        raise InflateError(
            "these networks are no two streams of one classifier",
            where="predict_streams",
            expected="a network for flow with 2 input channels and one for rgb with 3, of one window, size and classes",
            got="; ".join(faults),
            fix="load both streams of one training, such as rgb_imagenet and flow_imagenet",
        )
    return spec


def _channel_fault(model: nn.Module, stream: str, wanted: int) -> list[str]:
    channels = getattr(model, "in_channels", wanted)  # a network of the user's own may not tell
    return [f"{channels} input channels for {stream}"] * (channels != wanted)


def join(rgb: VideoPrediction, flow: VideoPrediction, fusion: Fusion = "logits") -> VideoPrediction:
    """Fuse the answers of two streams, for the whole video and for each window.

    Args:
        rgb: The answer to the colors.
        flow: The answer to the flow, for the same windows.
        fusion: "logits" or "probabilities", see `FlowOptions`.

    Raises:
        InflateError: The two do not have the same windows and number of classes.

    Example:
        >>> rgb, flow = (VideoPrediction("a", 1, 25.0, torch.tensor(logits), ()) for logits in ([1.0, 4], [3.0, 0]))
        >>> join(rgb, flow).logits.tolist()
        [4.0, 4.0]
    """
    shapes = [(len(one.windows), len(one.logits)) for one in (rgb, flow)]
    if shapes[0] != shapes[1]:
        raise InflateError(
            "the two streams do not go together",
            where="join",
            expected=f"{shapes[0][0]} windows and {shapes[0][1]} classes, as rgb has",
            got=f"{shapes[1][0]} windows and {shapes[1][1]} classes for flow",
            fix="predict both streams of one video, by networks for the same classes",
        )
    windows = tuple(
        replace(one, logits=_fused(one.logits, other.logits, fusion))
        for one, other in zip(rgb.windows, flow.windows, strict=True)
    )
    return replace(
        rgb,
        logits=_fused(rgb.logits, flow.logits, fusion),
        windows=windows,
        class_names=rgb.class_names or flow.class_names,
        streams={"rgb": rgb, "flow": flow},
    )


def _fused(rgb: Tensor, flow: Tensor, fusion: Fusion) -> Tensor:
    if fusion == "logits":
        return rgb + flow
    mean = torch.logaddexp(rgb.double().log_softmax(0), flow.double().log_softmax(0)) - math.log(2)
    return mean.to(rgb.dtype)


def moving_frames(
    frames: Iterator[SmallFrame], flow: FlowOptions, source: Source, *, told: Callable[[float], None], limited: bool
) -> Iterator[MovingFrame]:
    """Put frames and flow together, quantized as soon as it is there, so that it takes little memory while it waits.

    Args:
        frames: In the size that the network wants.
        flow: How flow is had.
        source: Where the frames come from, for flow that is stored under its name.
        told: Is told the seconds up to which flow has been computed.
        limited: Whether frames may end before the stored flow does.

    Raises:
        InflateError: Stored flow is not that of this video.
    """
    quantizer = flow.quantizer
    if flow.stored is not None:
        stored = open_flow(find_flow(flow.stored, source_name(source)), bound=flow.bound)
        pairs = _with_stored(frames, stored, limited=limited)
        quantizer = "none" if stored.quantized else quantizer  # a second time would move codes by one
    else:
        method = flow.method or find_method("tvl1")
        pairs = with_flow(frames, lambda frame: frame.picture, method, batch_size=PAIRS_AT_A_TIME)
    for frame, pixels in pairs:
        yield MovingFrame(*frame, quantize(pixels, quantizer, bound=flow.bound))
        told(frame.time_seconds)


def _with_stored(
    frames: Iterator[SmallFrame], stored: StoredFlow, *, limited: bool
) -> Iterator[tuple[SmallFrame, Tensor]]:
    flows = readable(stored, stored.source)
    count, previous = 0, None
    for frame in frames:
        if previous is not None:
            pixels = next(flows, None)
            if pixels is None or pixels.shape[1:] != frame.picture.shape[:2]:
                got = "none left" if pixels is None else f"one of {pixels.shape[2]}x{pixels.shape[1]}"
                raise _not_of_this_video(stored, f"flow {count} of {_size(frame)} pixels", got)
            yield previous, pixels
            count += 1
        previous = frame
    # some tools write as many flows as there are frames, the last one being of no use
    if not limited and next(flows, None) is not None and next(flows, None) is not None:
        raise _not_of_this_video(stored, f"{count} flows for {count + 1} frames", f"{count + 2} or more")


def _size(frame: SmallFrame) -> str:
    return f"{frame.picture.shape[1]}x{frame.picture.shape[0]}"


def _not_of_this_video(stored: StoredFlow, expected: str, got: str) -> InflateError:
    return InflateError(
        "the stored flow is not that of this video at this rate and size",
        where=str(stored.source),
        expected=expected,
        got=got,
        fix="pass the rate at which the flow was computed (--fps), or compute it: inflate3d flow VIDEO -o FOLDER",
    )


def flow_to_input(codes: Tensor, crop: int, kind: CropKind = "center", *, bound: float = BOUND_PIXELS) -> Tensor:
    """Make network input from quantized flow: crop, and map the bound to 1.

    Args:
        codes: `[t, 2, h, w]`, what `quantize` gives: bytes, or pixels as floats.
        crop: Pixels of a side.
        kind: A key of `inflate3d.clips.transforms.CROPS`; mirrored crops change the sign of the horizontal flow.
        bound: Motion in pixels that becomes 1.

    Returns:
        `[n_crops, 2, t, crop, crop]` float32.

    Raises:
        InflateError: The crop is larger than the flow, or there are no such crops.

    Example:
        >>> flow_to_input(torch.full((3, 2, 16, 20), 255, dtype=torch.uint8), 16)[0, :, 0, 0, 0].tolist()
        [1.0, 1.0]
    """
    views = list(_flow_views(codes, crop, kind, bound=bound))
    return torch.stack(views).contiguous(memory_format=torch.channels_last_3d)


def _flow_views(codes: Tensor, crop: int, kind: CropKind, *, bound: float) -> Iterator[Tensor]:
    """Make the views `[2, t, crop, crop]` one after the other; codes that are bytes take a quarter of the memory."""
    for name, view in crops(codes, crop, kind).items():
        values = dequantize(view, bound=bound) / bound
        sign = values.new_tensor([-1.0 if name.startswith("mirrored-") else 1.0, 1.0])
        yield (values * sign[:, None, None]).transpose(0, 1)
