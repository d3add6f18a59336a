"""A whole video in one pass, as the paper tests: a network that goes on from piece to piece, with an answer a step."""

from collections.abc import Generator, Iterator
from contextlib import closing
from itertools import cycle, islice
from typing import NamedTuple

import torch
from torch import Tensor

from inflate3d.clips.clip import ClipSpec
from inflate3d.clips.video import FrameStream, Source
from inflate3d.errors import InflateError
from inflate3d.results.feature_network import LOGITS, EndpointNetwork
from inflate3d.results.network import (
    Network,
    PredictOptions,
    Progress,
    SmallFrame,
    color_views,
    open_source,
    small_frames,
    told_as_unreadable,
)
from inflate3d.results.prediction import VideoPrediction, WindowPrediction, printable
from inflate3d.speed.ahead import ahead
from inflate3d.speed.optimize import Optimized
from inflate3d.speed.stream import PIECE_FRAMES, TimeSteps, in_pieces


class WholeReading(NamedTuple):
    """A video that a thread is reading, whose length is known.

    Attributes:
        stream: What is read.
        frames: In the size that the network wants; closing it ends the thread.
        num_frames: How many there are, looped ones counted.
        num_read: How many there are without them.
    """

    stream: FrameStream
    frames: Generator[SmallFrame]
    num_frames: int
    num_read: int


def begin_whole(source: Source, spec: ClipSpec, options: PredictOptions) -> WholeReading:
    """Count the frames of a source, on which the padding of I3D depends, and begin to read it in a thread.

    A video that is too short for the network is looped up to its fewest frames.

    Raises:
        InflateError: The source cannot be read, or has no frames.
    """
    stream = open_source(source, options)
    with told_as_unreadable(source):
        count = sum(1 for _ in islice(stream.timed(), options.num_frames))
    frames: Iterator[SmallFrame] = islice(small_frames(stream, spec.short_side), options.num_frames)
    shown = max(count, spec.min_frames) if count else 0
    if shown > count:
        frames = islice(cycle(frames), shown)
    return WholeReading(stream, ahead(frames, 2 * PIECE_FRAMES), shown, count)


def logits_of_steps(network: Network[SmallFrame]) -> tuple[EndpointNetwork, TimeSteps]:
    """Make of a network what answers every step in time, and tell how steps lie over frames.

    Raises:
        InflateError: The network cannot go on from piece to piece.
    """
    model = network.model
    precision = model.asked if isinstance(model, Optimized) else "fp32"
    endpoint = EndpointNetwork(model, LOGITS, pool="per-step", precision=precision)
    steps = endpoint.time_steps()
    if steps is None:
        inner = model.model if isinstance(model, Optimized) else model
        raise InflateError(
            "this network cannot be shown a video in one pass",
            where="predict, whole",
            expected="I3D, or an inflated model",
            got=type(inner).__name__,
            fix="leave --whole out: windows beside each other",
        )
    return endpoint, steps


def answer_whole(
    endpoint: EndpointNetwork,
    steps: TimeSteps,
    reading: WholeReading,
    *,
    options: PredictOptions,
    progress: Progress | None = None,
) -> VideoPrediction:
    """Show a video as a whole; the answer is the mean of its steps, as that of the network to one clip.

    Memory does not grow with the video, but for its answers.

    Raises:
        InflateError: The source cannot be read to its end, or the network does not answer with finite logits.

    Source: Carreira & Zisserman 2017, section 2.5: the whole video at once, centre crop.
    """
    video, times, rows = endpoint.whole_video(reading.num_frames), list[float](), list[Tensor]()
    with closing(reading.frames) as frames:
        for piece, is_last in in_pieces(frames):
            clips = torch.stack(list(color_views(piece, endpoint.spec, options.crops)))
            times += [frame.time_seconds for frame in piece]
            found = video(clips, is_last=is_last)
            if found is not None:
                rows += found.mean(0).unbind(0)
            if progress:
                progress(times[-1], reading.stream.duration_seconds_estimate)
    span = (1 + steps.lost) * steps.stride
    starts = range(0, len(rows) * steps.stride, steps.stride)
    return VideoPrediction(
        source=printable(reading.stream.source),
        num_frames=reading.num_read,
        fps=options.fps if isinstance(options.fps, str) else float(options.fps),
        logits=torch.stack(rows).double().mean(0),
        windows=tuple(
            WindowPrediction(times[start], max(times[start : start + span]), row)
            for start, row in zip(starts, rows, strict=True)
        ),
        class_names=getattr(endpoint.model, "class_names", None),
    )
