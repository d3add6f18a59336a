"""Features of videos: networks for colors and flow over the windows of several videos at a time."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from inflate3d.clips.video import Source, source_name
from inflate3d.errors import InflateError
from inflate3d.flow.methods import FlowMethod, find_method
from inflate3d.results.feature_clips import FeatureReader, Piece, Timeline
from inflate3d.results.feature_files import VideoFeatures
from inflate3d.results.feature_network import CHANNELS, EndpointNetwork, WholeVideo
from inflate3d.results.feature_presets import NUM_CROPS, WHOLE, FeatureOptions, Pool, StreamName, plain
from inflate3d.results.network import SmallFrame, not_compared
from inflate3d.results.prediction import Failure, printable, reason_of
from inflate3d.results.two_stream import FlowOptions, MovingFrame
from inflate3d.speed.ahead import ahead
from inflate3d.speed.memory import SteadyMemory, clips_at_a_time, device_of, give_back_memory
from inflate3d.speed.stream import TimeSteps

Told = Callable[[int, float, float | None], None]  # which video; seconds done; seconds in all, as the header has it
Shown = Piece[SmallFrame | MovingFrame]
FLOW_FILES = (
    "No weights of the flow stream are public here; those that work: flow_imagenet or flow_scratch of DeepMind "
    "(TensorFlow), flow_imagenet.pt of pytorch-i3d, model_flow.pth of kinetics_i3d_pytorch, "
    "i3d_flow.pt of video_features"
)


@dataclass(eq=False)
class _Video:
    """A video under way."""

    index: int
    source: Source
    timeline: Timeline = field(default_factory=Timeline)
    starts: list[int] = field(default_factory=list)
    rows: dict[StreamName, list[Tensor]] = field(default_factory=dict)
    whole: dict[StreamName, WholeVideo] = field(default_factory=dict)  # where it is shown as a whole
    waiting: int = 0  # pieces that the networks have not answered yet
    is_read: bool = False
    failure: str = ""

    def fail(self, error: Exception) -> None:
        self.failure = self.failure or printable(reason_of(error))
        self.rows.clear()
        self.whole.clear()


def _until_it_fails(video: _Video, pieces: Generator[Shown]) -> Iterator[Shown]:
    try:
        yield from pieces
    except Exception as error:  # whatever a strange file sets off must not cost the features of the others
        video.fail(error)


class Extractor:
    """Networks for colors and flow, ready to make the features of any number of videos.

    Args:
        models: By stream: "rgb" with 3 input channels, "flow" with 2; each with a `clip_spec`, in eval mode.
        options: What a row is.
        most_frames: Frames of each video that are read; None for all.

    Raises:
        InflateError: A stream has no network, the networks do not go together or with the options, or they have no such
            endpoint; or what `find_method` raises about flow.

    Example:
        >>> import numpy as np
        >>> from inflate3d import InceptionI3d
        >>> extractor = Extractor({"rgb": InceptionI3d(5).eval()}, FeatureOptions(window=9, stride=4))
        >>> extractor.one(np.zeros((14, 32, 40, 3), np.uint8)).features["rgb"].shape
        torch.Size([2, 1, 1024])
    """

    def __init__(
        self, models: Mapping[StreamName, nn.Module], options: FeatureOptions, *, most_frames: int | None = None
    ) -> None:
        self.options = options
        if missing := [name for name in options.stream_names if name not in models]:
            raise InflateError(
                f"the {missing[0]} stream has no network",
                where="features",
                expected=f"models for {' and '.join(options.stream_names)}",
                got=", ".join(models) or "none",
                fix="pass one, or leave the stream out: streams='rgb'. " + FLOW_FILES * ("flow" in missing),
            )
        pool: Pool = "per-step" if options.window == WHOLE else options.pool
        self.networks = {
            name: EndpointNetwork(models[name], options.endpoint, pool=pool, precision=options.precision)
            for name in options.stream_names
        }
        self._check()
        first = next(iter(self.networks.values()))
        steps = self._time_steps() if options.window == WHOLE else None
        flow = None
        if "flow" in self.networks:
            flow = FlowOptions(self._flow_method(), options.flow_from, options.quantizer)
        self.reader = FeatureReader(options, first.spec, flow, steps, most_frames)
        self.num_views, self.memory = NUM_CROPS[options.crops], SteadyMemory()
        self.memory.after_step()  # no more than the networks: what waits between living frames goes back each time
        alone = options.window == WHOLE or options.crops == "none"  # their clips differ in size
        self.at_a_time = 1 if alone else options.batch_size or min(map(self._fitting, self.networks))
        self.pieces_at_a_time = 1 if alone else max(self.at_a_time // self.num_views, 1)

    def describe(self) -> dict[str, Any]:
        """Tell what decides on the values of features: options, hashes of weights and networks."""
        weights = {name: network.sha256 for name, network in self.networks.items()}
        builds = {name: network.build for name, network in self.networks.items()}
        return {"options": plain(self.options), "weights": weights, "networks": builds}

    def one(self, source: Source) -> VideoFeatures:
        """Make the features of one video.

        Args:
            source: A path, a folder of pictures, a `Clip` or an array (see `open_frames`).

        Raises:
            InflateError: The source cannot be read, or is too short for a row.
        """
        _, found = next(self.many([source]))
        if isinstance(found, Failure):
            raise InflateError(
                "this video has no features",
                where=found.source,
                expected="a video that can be read, and is long enough for a row",
                got=found.reason,
                fix="see what is told above",
            )
        return found

    def many(
        self, sources: Iterable[Source], *, told: Told | None = None
    ) -> Iterator[tuple[int, VideoFeatures | Failure]]:
        """Make the features of one video after the other; a batch may hold windows of several.

        Args:
            sources: As for `one`.
            told: Is told how far a video has been read, from the threads that read.

        Returns:
            The number of each video with its features, or with why there are none.

        Raises:
            InflateError: A network does not answer with finite features.
        """
        under_way: deque[_Video] = deque()
        waiting: list[tuple[_Video, Shown]] = []
        for video, pieces in self._begun(sources, told):
            under_way.append(video)
            for piece in _until_it_fails(video, pieces):
                waiting.append((video, piece))
                video.waiting += 1
                if len(waiting) == self.pieces_at_a_time:
                    self._answer(waiting)
                    yield from self._finished(under_way)
            video.is_read = True
            yield from self._finished(under_way)
        self._answer(waiting)
        yield from self._finished(under_way)

    def _begun(self, sources: Iterable[Source], told: Told | None) -> Iterator[tuple[_Video, Generator[Shown]]]:
        """Give videos in order, some of them read ahead by threads."""
        workers = self.options.workers or (1 if self.reader.flow else 2)  # a method of flow is for one thread
        begun: deque[tuple[_Video, Generator[Shown]]] = deque()
        for index, source in enumerate(sources):
            video = _Video(index, source)

            def tell(seconds: float, total: float | None, index: int = index) -> None:
                if told:
                    told(index, seconds, total)

            begun.append((video, ahead(self.reader.read(source, video.timeline, tell))))
            if len(begun) == workers:
                yield begun.popleft()
        while begun:
            yield begun.popleft()

    def _answer(self, waiting: list[tuple[_Video, Shown]]) -> None:
        """Show the networks what waits, and keep the rows."""
        for video, _ in waiting:
            video.waiting -= 1
        *_, last = self.networks
        for name, network in self.networks.items():
            shown: list[tuple[_Video, Shown, Tensor]] = []
            for video, piece in waiting:
                try:
                    if not video.failure:
                        as_it_is = network.takes_uint8 and not self.reader.steps
                        shown.append((video, piece, self.reader.views(piece, name, takes_uint8=as_it_is)))
                except InflateError as error:  # frames smaller than the crop
                    video.fail(error)
                if name == last:
                    piece.frames.clear()  # the networks need not hold them
            if shown and self.reader.steps:
                self._go_on(name, *shown[0])
            elif shown:
                clips = [views for *_, views in shown]
                together = torch.cat(clips) if len(clips) > 1 else clips[0]  # no needless copy
                answers = self._through(network, together).split(self.num_views)
                for (video, _, _), answer in zip(shown, answers, strict=True):
                    video.rows.setdefault(name, []).append(answer)
        for video, piece in waiting:
            if not video.failure and not self.reader.steps:
                video.starts.append(piece.start)
        waiting.clear()
        self.memory.after_step()

    def _through(self, network: EndpointNetwork, clips: Tensor) -> Tensor:
        """Run clips, always as many at a time, so that an answer does not depend on what stands beside it."""
        answers = []
        for part in clips.split(self.at_a_time):
            spare = self.at_a_time - len(part)
            full = torch.cat([part, part[-1:].expand(spare, *part.shape[1:])]) if spare else part
            answers.append(network(full)[: len(part)])
        return torch.cat(answers)

    def _go_on(self, name: StreamName, video: _Video, piece: Shown, views: Tensor) -> None:
        """Show a network the next piece of a video that it is shown as a whole."""
        if name not in video.whole:
            video.whole[name] = self.networks[name].whole_video(int(piece.whole or 0))
        steps = video.whole[name](views, is_last=piece.is_last)
        if steps is not None:
            video.rows.setdefault(name, []).extend(steps.unbind(1))

    def _finished(self, under_way: deque[_Video]) -> Iterator[tuple[int, VideoFeatures | Failure]]:
        while under_way and under_way[0].is_read and not under_way[0].waiting:
            video = under_way.popleft()
            name = printable(source_name(video.source))
            yield video.index, Failure(name, video.failure) if video.failure else self._features(video, name)
            give_back_memory()

    def _features(self, video: _Video, name: str) -> VideoFeatures:
        length = self.reader.num_frames
        if self.reader.steps:
            rows = next(iter(video.rows.values()))
            video.starts = [step * self.reader.steps.stride for step in range(len(rows))]
        return VideoFeatures(
            source=name,
            features={stream: torch.stack(rows) for stream, rows in video.rows.items()},
            start_frames=torch.tensor(video.starts),
            times_seconds=torch.tensor(video.timeline.stamps(video.starts, length, self.options), dtype=torch.float64),
            window=length,
            num_frames=video.timeline.num_frames,
            fps=video.timeline.fps,
        )

    def _flow_method(self) -> FlowMethod | None:
        options, device = self.options, str(device_of(self.networks["flow"].model))
        if options.flow_from:
            return None
        compiled, weights = options.flow_compiled and options.flow_method == "tvl1", options.flow_weights
        return find_method(options.flow_method, compiled=compiled, device=device, weights=weights)

    def _fitting(self, stream: StreamName) -> int:
        network, spec = self.networks[stream], self.networks[stream].spec
        side = self.options.crop or spec.crop
        length = spec.num_frames if self.options.window in {None, WHOLE} else int(self.options.window or 1)
        clip = torch.zeros(1, CHANNELS[stream], length, side, side)

        def run_one() -> None:
            with not_compared(network.model):
                network(clip)

        return clips_at_a_time(device_of(network.model), run_one)

    def _time_steps(self) -> TimeSteps:
        """Find out how steps lie over a video that is shown as a whole.

        Raises:
            InflateError: A network cannot be shown a video as a whole, has no steps there, or others than another one.
        """
        found = {name: network.time_steps() for name, network in self.networks.items()}
        steps, *others = found.values()
        if steps is None or any(other != steps for other in others):
            raise InflateError(
                "this endpoint has no steps in time over a whole video",
                where="features, window whole",
                expected="I3D with the endpoint features, AvgPool_2x7x7, Logits_per_step or logits; an inflated model; "
                "both streams alike",
                got=f"{type(next(iter(self.networks.values())).model).__name__}, endpoint {self.options.endpoint!r}: "
                + ", ".join(f"{name} {told}" for name, told in found.items()),
                fix="leave --window whole (or --dense) out, for a row for each window",
            )
        return steps

    def _check(self) -> None:
        """Refuse networks that do not go together, or not with the options; all faults are told at once."""
        options, first = self.options, next(iter(self.networks.values()))
        faults = []
        for name, network in self.networks.items():
            if network.in_channels not in {None, CHANNELS[name]}:
                faults.append(f"{network.in_channels} input channels for {name}, not {CHANNELS[name]}")
            for fact in ("num_frames", "short_side", "crop"):
                if getattr(network.spec, fact) != getattr(first.spec, fact):
                    faults.append(f"{fact} {getattr(first.spec, fact)} and {getattr(network.spec, fact)}")
            if isinstance(options.window, int) and options.window < network.spec.min_frames:
                faults.append(f"window {options.window}, the network needs {network.spec.min_frames}")
        size, crop = options.resize or first.spec.short_side, options.crop or first.spec.crop
        shorter = size if isinstance(size, int) else min(size)
        faults += [f"crop {crop} of frames resized to {size}"] * (crop > shorter and options.crops != "none")
        if faults:
            raise InflateError(
                "the networks and the options do not go together",
                where="features",
                expected="rgb with 3 channels and flow with 2, of one window and size; a window that is long enough; a "
                "crop within the frames",
                got="; ".join(faults),
                fix="change what is named",
            )


def extract(
    models: Mapping[StreamName, nn.Module] | nn.Module, source: Source, options: FeatureOptions | None = None
) -> VideoFeatures:
    """Make the features of one video, in memory.

    Args:
        models: A network for colors, or networks by stream, see `Extractor`.
        source: A path, a folder of pictures, a `Clip` or an array.
        options: What a row is.

    Raises:
        InflateError: What `Extractor` and its `one` raise.

    Example:
        >>> import numpy as np
        >>> from inflate3d import InceptionI3d
        >>> found = extract(InceptionI3d(5).eval(), np.zeros((14, 32, 40, 3), np.uint8), FeatureOptions(window=9))
        >>> found.start_frames.tolist(), found.times_seconds.tolist()
        ([0], [0.18])
    """
    by_stream: Mapping[StreamName, nn.Module] = {"rgb": models} if isinstance(models, nn.Module) else models
    return Extractor(by_stream, options or FeatureOptions()).one(source)
