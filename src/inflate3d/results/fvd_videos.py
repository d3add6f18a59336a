"""Videos to statistics, a clip of each: which frames, what fails, files, a cache from which a stopped run goes on."""

import json
import random
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from importlib.metadata import version
from itertools import count, islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from inflate3d.atomic import replacing
from inflate3d.clips.clip import Clip
from inflate3d.clips.stills import find_videos, source_state
from inflate3d.clips.transforms import as_tensor
from inflate3d.clips.video import Rate, open_frames
from inflate3d.errors import InflateError, InflateWarning, check_options, in_a_line, is_count, is_pair
from inflate3d.results.fvd_distance import Gaussian
from inflate3d.results.fvd_protocols import FeatureNetwork, Protocol, Sampling, Setup, pixels, protocol_named
from inflate3d.results.network import count_rules, rate_rule, readable, told_as_unreadable
from inflate3d.results.prediction import Failure, printable
from inflate3d.speed.memory import device_of
from inflate3d.weights.checkpoint import tensors_sha256

Numerics = Literal["exact", "published"]
Role = Literal["real", "fake"]
Clips = Tensor | NDArray[Any] | Clip
Videos = str | Path | Sequence[str | Path] | Tensor | NDArray[Any] | Iterable[Clips]
ClipProgress = Callable[[int, int | None], None]  # clips done; clips in all, as far as it is known

STATISTICS_KEY = "inflate3d.fvd"
FILE_FRAMES = 16  # of a clip, unless something else is asked for: most published figures have 16


@dataclass(frozen=True)
class FvdOptions:
    """How two sets of videos are compared.

    Attributes:
        protocol: A name (`inflate3d.results.fvd_protocols.PROTOCOLS`) or a `Protocol` of your own.
        numerics: "exact": the trace term by singular values, in float64; "published": the arithmetic of the protocol's
            own code.
        num_frames: Frames in a clip; None takes 16 of each file, and tensors as they are.
        frame_stride: Frames of the video from one frame of a clip to the next; of tensors it is only recorded.
        fps: "native" as in all published protocols, or frames per second to resample video files to.
        num_clips: At most so many clips on each side; None takes the protocol's number.
        seed: Of random offsets, bootstrap and extrapolation.
        batch_size: Clips that go through the network at a time.
        value_range: What black and white are in floating-point tensors.
        cache: Folder in which the features of each clip of a file are kept.
        resamples: Draws for the standard error (bootstrap), from three clips on; 0 leaves it out.
        kernel: Measure the kernel distance as well, from three clips on.
        infinity: Extrapolate to endlessly many clips as well, from eight clips on.
    """

    protocol: str | Protocol = "stylegan-v"
    numerics: Numerics = "exact"
    num_frames: int | None = None
    frame_stride: int = 1
    fps: Rate = "native"
    num_clips: int | None = None
    seed: int = 0
    batch_size: int = 4
    value_range: tuple[float, float] | None = None
    cache: Path | None = None
    resamples: int = 0
    kernel: bool = False
    infinity: bool = False

    def __post_init__(self) -> None:
        rules = {
            "numerics": (", ".join(get_args(Numerics)), self.numerics in get_args(Numerics)),
            "frame_stride": ("1 or more", is_count(self.frame_stride)),
            "fps": rate_rule(self.fps),
            "seed": ("a whole number, 0 or more", self.seed == 0 or is_count(self.seed)),
            "batch_size": ("1 or more", is_count(self.batch_size)),
            "value_range": ("(low, high), or None", self.value_range is None or is_pair(self.value_range)),
            "resamples": ("2 or more, or 0", self.resamples == 0 or (is_count(self.resamples) and self.resamples > 1)),
        }
        check_options(self, {**rules, **count_rules(self, ("num_frames", "num_clips"))})
        protocol_named(self.protocol)


@dataclass(frozen=True, eq=False)
class VideoStatistics:
    """What is kept of a set of videos: mean and spread of its features, and how they were made.

    Attributes:
        setup: How the features were made; only sets with the same one are compared.
        gaussian: Mean and spread.
        features: `[n, d]` float32, or None where they were not kept: then there is no kernel distance, standard error
            or extrapolation.
        sampling: Which clips they are, in words.
        failures: Videos that could not be read, and why; not kept in files.
        too_short: Videos that the protocol leaves out; not kept in files.
    """

    setup: Setup
    gaussian: Gaussian
    features: Tensor | None = field(default=None, repr=False)
    sampling: str = "tensors"
    failures: tuple[Failure, ...] = ()
    too_short: tuple[str, ...] = ()

    def save(self, path: Path) -> None:
        """Write a safetensors file, whole or not at all, with setup and hash in its metadata.

        Raises:
            InflateError: The file cannot be written.
        """
        tensors = {"mean": self.gaussian.mean, "rows": self.gaussian.rows}
        if self.features is not None:
            tensors = {"features": self.features}
        card = {
            "setup": self.setup.to_json(),
            "count": self.gaussian.count,
            "sampling": self.sampling,
            "tensors_sha256": tensors_sha256(tensors),
            "inflate3d": version("inflate3d"),
        }
        tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
        with replacing(path) as draft:
            draft.write_bytes(save(tensors, metadata={STATISTICS_KEY: json.dumps(card)}))

    @staticmethod
    def load(path: Path) -> "VideoStatistics":
        """Read what `save` wrote.

        Raises:
            InflateError: There is no such file, or it is not whole or not such a file.
        """
        try:
            with safe_open(path, framework="pt") as file:
                card = json.loads((file.metadata() or {})[STATISTICS_KEY])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
            return _from_card(card, tensors)
        except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
            raise InflateError(
                "these are no statistics of videos",
                where=str(path),
                expected="a whole file that VideoStatistics.save or inflate3d fvd --save-stats wrote",
                got=in_a_line(error),
                fix="make it anew: inflate3d fvd REAL FAKE --save-stats FOLDER",
            ) from error


def _from_card(card: Mapping[str, object], tensors: dict[str, Tensor]) -> VideoStatistics:
    if tensors_sha256(tensors) != card["tensors_sha256"]:
        raise ValueError("the tensors are not those that were written")
    setup, count, sampling = Setup.from_json(str(card["setup"])), card["count"], str(card["sampling"])
    if "features" in tensors:
        features = tensors["features"]
        if features.ndim != 2 or not len(features) or features.dtype != torch.float32 or not features.isfinite().all():
            raise ValueError(f"features are {list(features.shape)} {features.dtype}, or not finite")
        return VideoStatistics(setup, Gaussian.of(features), features, sampling)
    gaussian = Gaussian()
    gaussian.mean, gaussian.rows = tensors["mean"], tensors["rows"]
    shapes_fit = gaussian.mean.ndim == 1 and gaussian.rows.ndim == 2 and gaussian.rows.shape[1] == len(gaussian.mean)
    numbers_fit = all(tensor.dtype == torch.float64 and tensor.isfinite().all() for tensor in tensors.values())
    if not (shapes_fit and numbers_fit and isinstance(count, int) and is_count(count)):
        raise ValueError("mean, rows and count do not belong together")
    gaussian.count = count
    return VideoStatistics(setup, gaussian, None, sampling)


def embed_videos(
    network: FeatureNetwork,
    videos: Videos,
    options: FvdOptions,
    *,
    role: Role,
    progress: ClipProgress | None = None,
) -> VideoStatistics:
    """Take a clip of each video, as the protocol has it, and run it through the network.

    Args:
        network: The network, as the protocol wants it.
        videos: Files, folders and globs (a folder of pictures is one video); or a tensor `[n, c, t, h, w]`, an array
            `[n, t, h, w, c]`, or an iterable, endless if need be, of such batches, of single clips `[c, t, h, w]` or of
            `Clip`s. Tensors are clips already: they are taken whole, and have to be of one length.
        options: How.
        role: Protocols take clips of real videos otherwise than of generated ones.
        progress: Called after each batch.

    Raises:
        InflateError: No clip is left; clips are too short for the network, differ in length or are of another shape,
            dtype or range than they should be. A file that cannot be read is a `Failure`.
    """
    sampling: Sampling = getattr(protocol_named(options.protocol), role)
    limit = options.num_clips or sampling.num_clips
    sampling = sampling._replace(num_clips=limit)
    paths = _paths(videos)
    run = _Gathering(network, options, sampling, limit if paths is None or sampling.again else len(paths), progress)
    if paths is None:
        run.take_clips(_batches(videos, options))
    else:
        run.take_files(paths)
    run.flush()
    if not run.rows:
        raise InflateError(
            "no clip is left to compare",
            where=f"embed_videos, {role} videos",
            expected=f"videos of {run.span} frames or more" if paths is not None else "clips [c, t, h, w]",
            got=f"{len(run.failures)} not read, {len(run.too_short)} too short"
            + "".join(f"; {failure.source}: {failure.reason}" for failure in run.failures[:1]),
            fix="mend the paths, or ask for fewer frames: num_frames, --num-frames",
        )
    features = torch.stack([row for _, row in sorted(run.rows.items())])
    setup = setup_of(options, network, run.num_frames or FILE_FRAMES)
    failures, too_short = tuple(run.failures), tuple(run.too_short)
    return VideoStatistics(setup, Gaussian.of(features), features, run.in_words(paths), failures, too_short)


def check_one_length(clips: Tensor, num_frames: int, *, where: str) -> None:
    """Check that clips `[b, c, t, h, w]` are as long as those before them.

    Raises:
        InflateError: They have another number of frames.
    """
    if clips.shape[2] != num_frames:
        raise InflateError(
            "clips differ in length",
            where=where,
            expected=f"{num_frames} frames in each clip",
            got=f"{clips.shape[2]} frames",
            fix=f"cut them to one length: clips[:, :, :{min(clips.shape[2], num_frames)}]",
        )


def setup_of(options: FvdOptions, network: FeatureNetwork, num_frames: int) -> Setup:
    """Tell what features will have been made with."""
    fps = options.fps if isinstance(options.fps, str) else f"{float(options.fps):g}"
    protocol = protocol_named(options.protocol)
    return Setup(protocol, num_frames, options.frame_stride, fps, network.name, network.sha256)


class _Waiting(NamedTuple):
    slot: int
    entry: Path | None  # where its features will be kept
    pixels: Tensor


class _TooShortError(Exception):
    """A video has too few frames; its argument is how many."""


class _Gathering:
    """One pass over one set of videos."""

    def __init__(
        self,
        network: FeatureNetwork,
        options: FvdOptions,
        sampling: Sampling,
        total: int | None,
        progress: ClipProgress | None,
    ) -> None:
        self.network, self.options, self.sampling, self.progress = network, options, sampling, progress
        self.total = min(total, sampling.num_clips) if total and sampling.num_clips else total
        self.protocol = protocol_named(options.protocol)
        self.num_frames = options.num_frames
        self.rows: dict[int, Tensor] = {}
        self.waiting: list[_Waiting] = []
        self.failures: list[Failure] = []
        self.too_short: list[str] = []

    @property
    def span(self) -> int:
        """Frames of a video that a clip covers; StyleGAN-V and cd-fvd count the gap behind the last one too."""
        return (self.num_frames or FILE_FRAMES) * self.options.frame_stride

    @property
    def full(self) -> bool:
        return len(self.rows) + len(self.waiting) == self.sampling.num_clips

    def in_words(self, paths: list[Path] | None) -> str:
        if paths is None:
            return "tensors"
        words = "from the start" if self.sampling.offset == "start" else f"at random (seed {self.options.seed})"
        return words + f", {len(paths)} videos again and again" * self.sampling.again

    def take_clips(self, batches: Iterator[tuple[Tensor, tuple[float, float] | None]]) -> None:
        for batch, value_range in batches:
            self.num_frames = self.num_frames or batch.shape[2]
            check_one_length(batch, self.num_frames, where="embed_videos")
            for clip in batch.split(1):
                self._wait(None, pixels(clip, self.protocol, value_range=value_range))
                if self.full:  # asked before the next batch is, which may be costly to make
                    return

    def take_files(self, paths: list[Path]) -> None:
        self.num_frames = self.num_frames or FILE_FRAMES
        self.network.check_length(self.num_frames)
        lost: set[Path] = set()
        for number in count() if self.sampling.again and self.sampling.num_clips else range(1):
            usable = [path for path in paths if path not in lost]
            if self.sampling.again:
                random.Random(f"{self.options.seed}/{number}").shuffle(usable)
            for path in usable:
                if self.full:
                    return
                if not self._take_file(path, number):
                    lost.add(path)
            if len(lost) == len(paths):
                return

    def _take_file(self, path: Path, number: int) -> bool:
        """Give false if there is no clip in it."""
        name, known = printable(str(path)), len(self.rows) + len(self.waiting)
        try:
            with told_as_unreadable(path):
                entry = self._entry(path, number)
            row = _kept(entry) if entry else None
            if row is not None:
                self.rows[known] = row
                self._tell()
                return True
            draw = random.Random(f"{self.options.seed}/{number}/{printable(path.name)}")
            clip = _read(path, self.options, draw if self.sampling.offset == "random" else None, span=self.span)
            made = pixels(clip, self.protocol, from_file=True)
        except _TooShortError as error:
            if self.protocol.drops_short:
                self.too_short.append(name)
            else:
                self.failures.append(Failure(name, f"{error.args[0]} frames, a clip covers {self.span}"))
            return False
        except InflateError as error:
            self.failures.append(Failure.of(name, error))
            return False
        self._wait(entry, made)
        return True

    def _wait(self, entry: Path | None, made: Tensor) -> None:
        self.waiting.append(_Waiting(len(self.rows) + len(self.waiting), entry, made))
        if len(self.waiting) == self.options.batch_size:
            self.flush()

    def flush(self) -> None:
        """Run what waits through the network, and keep it."""
        if self.waiting:
            features = self.network(torch.cat([item.pixels for item in self.waiting]))
            for item, row in zip(self.waiting, features, strict=True):
                self.rows[item.slot] = row.clone()
                if item.entry:
                    with replacing(item.entry) as draft:
                        draft.write_bytes(save({"features": row.clone()}))
            self.waiting.clear()
        self._tell()

    def _tell(self) -> None:
        if self.progress:
            self.progress(len(self.rows), self.total)

    def _entry(self, path: Path, number: int) -> Path | None:
        if self.options.cache is None or not path.exists():
            return None
        setup = setup_of(self.options, self.network, self.num_frames or FILE_FRAMES).fingerprint()
        made = (version("inflate3d"), device_of(self.network.module).type, self.network.build, setup)
        choice = (made, str(path.resolve()), source_state(path), self.sampling.offset, self.options.seed, number)
        key = sha256(json.dumps(choice).encode()).hexdigest()
        return Path(self.options.cache) / key[:2] / f"{key}.safetensors"


def _paths(videos: Videos) -> list[Path] | None:
    if isinstance(videos, str | Path):
        return find_videos([videos])
    if isinstance(videos, list | tuple) and all(isinstance(item, str | Path) for item in videos):
        return find_videos(videos)
    return None


def _read(path: Path, options: FvdOptions, draw: random.Random | None, *, span: int) -> Tensor:
    """Read a clip `[1, 3, t, h, w]` of uint8 from the start of a video, or from where `draw` says."""
    with told_as_unreadable(path):
        stream = open_frames(path, fps=options.fps)
    start, needed, stride = 0, span, options.frame_stride
    with warnings.catch_warnings():
        if draw:
            length = sum(1 for _ in readable(stream.timed(), path))  # counted, because headers lie
            if length < span:
                raise _TooShortError(length)
            start, needed = draw.randint(0, length - span + stride - 1), span - stride + 1
            warnings.simplefilter("ignore", InflateWarning)  # that pass has told all
        pictures, num_read = [], 0
        for timed in readable(islice(stream.timed(), start, start + needed), path):
            if num_read % stride == 0:
                pictures.append(torch.from_numpy(timed.item()))
            num_read += 1
    if num_read < needed:
        raise _TooShortError(num_read)
    return torch.stack(pictures).permute(3, 0, 1, 2)[None]


def _kept(entry: Path) -> Tensor | None:
    """Read what an earlier run kept; a damaged file is told and made anew."""
    if not entry.exists():
        return None
    try:
        row = load_file(entry)["features"]
    except (SafetensorError, OSError, KeyError) as error:
        warnings.warn(f"{entry}: damaged, made anew ({error})", InflateWarning, stacklevel=2)
        return None
    return row


def _batches(videos: Videos, options: FvdOptions) -> Iterator[tuple[Tensor, tuple[float, float] | None]]:
    """Give clips `[b, c, t, h, w]`, and their range if they are floating point."""
    if isinstance(videos, Tensor | np.ndarray):
        videos = [videos]
    if isinstance(videos, Clip) or not isinstance(videos, Iterable):
        raise _no_videos(videos)
    for item in videos:
        if isinstance(item, Clip):
            yield item.data[None], item.value_range
            continue
        if not isinstance(item, Tensor | np.ndarray) or item.ndim not in {4, 5}:
            raise _no_videos(item)
        clips = as_tensor(item)
        clips = clips if clips.ndim == 5 else clips[None]
        if isinstance(item, np.ndarray):
            clips = clips.permute(0, 4, 1, 2, 3)
        yield clips, options.value_range


def _no_videos(got: object) -> InflateError:
    shape = f" {list(got.shape)}" if isinstance(got, Tensor | np.ndarray) else ""
    return InflateError(
        "these are no videos",
        where="embed_videos",
        expected="paths; a tensor [n, c, t, h, w]; an array [n, t, h, w, c]; or an iterable of tensors or Clips",
        got=f"{type(got).__name__}{shape}",
        fix="pass a folder, or stack the clips: torch.stack(clips)",
    )
