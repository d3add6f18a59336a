"""The Fréchet Video Distance: two sets of videos to one figure, with all that is needed to trust and to repeat it."""

import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor, distributed, nn

from inflate3d.errors import InflateError, InflateWarning
from inflate3d.results.fvd_distance import (
    FEWEST,
    FEWEST_ON_A_LINE,
    FrechetTerms,
    Gaussian,
    KernelDistance,
    bootstrap_error,
    extrapolate,
    frechet_distance,
    kernel_distance,
    mean_distance,
)
from inflate3d.results.fvd_protocols import FeatureNetwork, Setup, pixels, protocol_named
from inflate3d.results.fvd_videos import (
    ClipProgress,
    FvdOptions,
    Role,
    Videos,
    VideoStatistics,
    check_one_length,
    embed_videos,
    setup_of,
)
from inflate3d.results.prediction import Failure


@dataclass(frozen=True, eq=False)
class FvdResult:
    """A Fréchet Video Distance, and what it takes to judge and to repeat it.

    Attributes:
        value: The distance (squared, as it is always reported).
        terms: What it is the sum of.
        numerics: "exact" or "published".
        real: Statistics of the real videos.
        fake: Statistics of the generated ones.
        standard_error: From the bootstrap, if asked for; it tells about chance, not about the bias of small sets.
        resamples: How many draws that is from.
        kernel: The kernel distance (KVD), if asked for.
        infinity: The distance for endlessly many clips, extrapolated, if asked for.
        notes: What to mind about the numbers of clips, also given as a warning.
    """

    value: float
    terms: FrechetTerms
    numerics: str
    real: VideoStatistics = field(repr=False)
    fake: VideoStatistics = field(repr=False)
    standard_error: float | None = None
    resamples: int = 0
    kernel: KernelDistance | None = None
    infinity: float | None = None
    notes: tuple[str, ...] = ()

    @property
    def failures(self) -> tuple[Failure, ...]:
        """Videos of both sides that could not be read."""
        return (*self.real.failures, *self.fake.failures)

    @property
    def interval(self) -> tuple[float, float] | None:
        """The range in which 95 of 100 repetitions with as many clips would lie, if errors are normal."""
        if self.standard_error is None:
            return None
        return self.value - 1.96 * self.standard_error, self.value + 1.96 * self.standard_error

    @property
    def provenance(self) -> str:
        """One line for a paper or a log: all that decides on the figure."""
        setup, protocol = self.real.setup, self.real.setup.protocol
        error = "" if self.standard_error is None else f" +- {self.standard_error:.2f} ({self.resamples} resamples)"
        network = f"{setup.network} {setup.network_sha256[:12]}"
        parts = (
            f"FVD {self.value:.4f}{error}",
            f"protocol {protocol.name}, {self.numerics} numerics, {protocol.covariance} covariance",
            f"{self.real.gaussian.count} real clips ({self.real.sampling})",
            f"{self.fake.gaussian.count} fake clips ({self.fake.sampling})",
            f"{setup.num_frames} frames, stride {setup.frame_stride}, fps {setup.fps}",
            network + f", batch-norm epsilon {protocol.bn_eps:g}" * (setup.network == "InceptionI3d"),
            f"inflate3d {version('inflate3d')}, torch {version('torch')}",
        )
        return "; ".join(parts)

    def to_json(self) -> str:
        """Write it as a JSON object, without the features."""
        document = {
            "fvd": self.value,
            "mean_term": self.terms.mean,
            "spread_term": self.terms.spread,
            "standard_error": self.standard_error,
            "interval": self.interval,
            "kernel_distance": self.kernel._asdict() if self.kernel else None,
            "fvd_infinity": self.infinity,
            "num_real": self.real.gaussian.count,
            "num_fake": self.fake.gaussian.count,
            "provenance": self.provenance,
            "notes": self.notes,
            "too_short": [*self.real.too_short, *self.fake.too_short],
            "failures": [{"source": failure.source, "reason": failure.reason} for failure in self.failures],
        }
        return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def measure_fvd(
    model: nn.Module | None,
    real: Videos | VideoStatistics,
    fake: Videos | VideoStatistics,
    *,
    options: FvdOptions | None = None,
    progress: Callable[[Role], ClipProgress] | None = None,
) -> FvdResult:
    """Measure the Fréchet Video Distance between real and generated videos.

    Args:
        model: `inflate3d.load("i3d-kinetics400")`; or any module that maps `[b, 3, t, 224, 224]` in -1..1 to features
            `[b, d]`, in eval mode. None will do for two saved statistics.
        real: Files and folders, tensors, arrays, an iterable of clips (see `embed_videos`); or statistics, as an object
            or as the `.safetensors` file that they were saved in.
        fake: Likewise.
        options: Protocol, number and length of clips, what else to measure.
        progress: Called with "real" and "fake"; gives back what is called with clips done and clips in all.

    Raises:
        InflateError: See `embed_videos` about the videos, `compare` about the statistics; no model where one is needed.

    Source: Unterthiner et al. 2018, "Towards accurate generative models of video"; see `PROTOCOLS` for each protocol.

    Example:
        >>> means = nn.Sequential(nn.AdaptiveAvgPool3d(1), nn.Flatten()).eval()  # in earnest: i3d-kinetics400
        >>> clips = torch.randint(0, 256, (5, 3, 9, 32, 32), dtype=torch.uint8)
        >>> with warnings.catch_warnings(action="ignore"):  # 5 clips are far too few
        ...     result = measure_fvd(means, clips, clips, options=FvdOptions("tats"))
        >>> abs(result.value) < 1e-6, result.real.gaussian.count
        (True, 5)
    """
    options = options or FvdOptions()
    sides: dict[Role, Videos | VideoStatistics] = {"real": _saved(real), "fake": _saved(fake)}
    network = FeatureNetwork(model, protocol_named(options.protocol)) if model is not None else None
    options = _check_early(sides, network, options)
    found: dict[Role, VideoStatistics] = {}
    for role, side in sides.items():
        if isinstance(side, VideoStatistics):
            found[role] = side
        elif network:
            found[role] = embed_videos(network, side, options, role=role, progress=progress(role) if progress else None)
    return compare(found["real"], found["fake"], options)


def compare(real: VideoStatistics, fake: VideoStatistics, options: FvdOptions | None = None) -> FvdResult:
    """Measure the distance between two sets whose statistics are there.

    Args:
        real: Statistics of the real videos.
        fake: Statistics of the generated ones.
        options: Its `numerics`, `resamples`, `kernel`, `infinity` and `seed` are used; the protocol is that of the
            statistics.

    Raises:
        InflateError: The statistics were not made alike, there are too few clips, or features are needed that were not
            kept.
    """
    options = options or FvdOptions()
    _check_alike(real.setup, fake.setup)
    protocol = real.setup.protocol
    if real.gaussian.count == fake.gaussian.count == 1 and protocol.one_is_enough:
        terms = mean_distance(real.gaussian, fake.gaussian)
    elif options.numerics == "published":
        terms = frechet_distance(real.gaussian, fake.gaussian, covariance=protocol.covariance, trace=protocol.trace)
    else:
        terms = frechet_distance(real.gaussian, fake.gaussian, covariance=protocol.covariance)
    result = FvdResult(terms.value, terms, options.numerics, real, fake, notes=_notes(real, fake, options))
    if result.notes:
        warnings.warn("; ".join(result.notes), InflateWarning, stacklevel=2)
    return _with_extras(result, options) if options.resamples or options.kernel or options.infinity else result


def _with_extras(result: FvdResult, options: FvdOptions) -> FvdResult:
    one, two = _features(result.real), _features(result.fake)
    covariance = result.real.setup.protocol.covariance

    def distance(a: Tensor, b: Tensor) -> float:
        return frechet_distance(Gaussian.of(a), Gaussian.of(b), covariance=covariance).value

    enough = min(len(one), len(two)) >= FEWEST
    if options.resamples and enough:
        error = bootstrap_error(one, two, distance, resamples=options.resamples, seed=options.seed)
        result = replace(result, standard_error=error, resamples=options.resamples)
    if options.kernel and enough:
        result = replace(result, kernel=kernel_distance(one, two))
    if options.infinity and min(len(one), len(two)) >= FEWEST_ON_A_LINE:
        result = replace(result, infinity=extrapolate(one, two, distance, seed=options.seed))
    return result


class FrechetVideoDistance:
    """The distance as a metric that is fed batch by batch, as metrics of torchmetrics are.

    Under `torch.distributed`, `compute` brings the clips of all processes together; all of them have to call it. Deal
    the clips out without repeating any (`DistributedSampler` repeats some to make the shares equal).

    Args:
        model: As for `measure_fvd`.
        options: As for `measure_fvd`; those about files do not count here.
        keep_features: Keep them all (1.6 kB a clip for I3D), for kernel distance, standard error and extrapolation;
            otherwise memory does not grow.

    Raises:
        InflateError: The model is no module or in training mode.

    Example:
        >>> means = nn.Sequential(nn.AdaptiveAvgPool3d(1), nn.Flatten()).eval()  # in earnest: i3d-kinetics400
        >>> metric = FrechetVideoDistance(means, FvdOptions("tats"))
        >>> for real in (True, False):
        ...     metric.update(torch.randint(0, 256, (5, 3, 9, 32, 32), dtype=torch.uint8), real=real)
        >>> with warnings.catch_warnings(action="ignore"):  # 5 clips are far too few
        ...     metric.compute().value > 0
        True
    """

    def __init__(self, model: nn.Module, options: FvdOptions | None = None, *, keep_features: bool = True) -> None:
        self.options = options or FvdOptions()
        self.protocol = protocol_named(self.options.protocol)
        self.network = FeatureNetwork(model, self.protocol)
        self.keep_features = keep_features
        self._sides: dict[Role, _Side] = {"real": _Side(), "fake": _Side()}

    def update(self, clips: Tensor, *, real: bool) -> None:
        """Take in clips `[b, c, t, h, w]`, uint8 or in `options.value_range`.

        Raises:
            InflateError: The clips are of another shape, dtype, range or length than they should be.
        """
        made = pixels(clips, self.protocol, value_range=self.options.value_range)
        num_frames = self.options.num_frames or self._num_frames() or made.shape[2]
        check_one_length(made, num_frames, where="FrechetVideoDistance")
        features = torch.cat([self.network(part) for part in made.split(self.options.batch_size)])
        self._sides["real" if real else "fake"].join(_Side(num_frames, Gaussian.of(features), [features]))
        if not self.keep_features:
            self._sides["real" if real else "fake"].features.clear()

    def merge(self, other: "FrechetVideoDistance") -> None:
        """Take in all that another metric of the same setup was fed.

        Raises:
            InflateError: It has another setup.
        """
        if self._num_frames() and other._num_frames():
            _check_alike(self._setup(), other._setup())
        for role, side in other._sides.items():
            self._sides[role].join(side)

    def statistics(self, *, real: bool) -> VideoStatistics:
        """Give the statistics of one side, of this process.

        Raises:
            InflateError: It was fed nothing yet.
        """
        return self._statistics(self._sides, "real" if real else "fake")

    def compute(self) -> FvdResult:
        """Measure the distance of all that was fed so far, in all processes.

        Raises:
            InflateError: A side was fed nothing or too little, or processes have different setups.
        """
        sides = self._sides
        if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
            sides = self._gathered()
        return compare(self._statistics(sides, "real"), self._statistics(sides, "fake"), self.options)

    def reset(self, *, real: bool = True) -> None:
        """Forget the generated videos, and unless `real` is false the real ones."""
        self._sides["fake"] = _Side()
        if real:
            self._sides["real"] = _Side()

    def _gathered(self) -> "dict[Role, _Side]":
        """Bring the sides of all processes together, in the order of their ranks; what they keep does not change."""
        own = (self._setup() if self._num_frames() else None, self._sides)
        found: list[tuple[Setup | None, dict[Role, _Side]]] = [own] * distributed.get_world_size()
        distributed.all_gather_object(found, own)
        setups = [setup for setup, _ in found if setup]
        for setup in setups[1:]:
            _check_alike(setups[0], setup)
        together: dict[Role, _Side] = {"real": _Side(), "fake": _Side()}
        for _, sides in found:
            for role, side in sides.items():
                together[role].join(side)
        return together

    def _num_frames(self) -> int:
        return self._sides["real"].num_frames or self._sides["fake"].num_frames

    def _setup(self) -> Setup:
        return setup_of(self.options, self.network, self._num_frames())

    def _statistics(self, sides: "Mapping[Role, _Side]", role: Role) -> VideoStatistics:
        side = sides[role]
        if not side.num_frames:
            raise InflateError(
                f"there are no {role} videos yet",
                where="FrechetVideoDistance",
                expected="clips on both sides",
                got="none",
                fix=f"metric.update(clips, real={role == 'real'})",
            )
        setup = setup_of(self.options, self.network, side.num_frames)
        return VideoStatistics(setup, side.gaussian, torch.cat(side.features) if side.features else None)


@dataclass
class _Side:
    """What a metric was fed on one side; features are kept of all clips or of none."""

    num_frames: int = 0
    gaussian: Gaussian = field(default_factory=Gaussian)
    features: list[Tensor] = field(default_factory=list)

    def join(self, other: "_Side") -> None:
        whole = all(side.features or not side.num_frames for side in (self, other))
        self.features = [*self.features, *other.features] if whole else []
        self.num_frames = other.num_frames or self.num_frames
        self.gaussian = self.gaussian.merge(other.gaussian)


def _saved(side: Videos | VideoStatistics) -> Videos | VideoStatistics:
    if isinstance(side, str | Path) and Path(side).suffix == ".safetensors":
        return VideoStatistics.load(Path(side))
    return side


def _check_early(
    sides: Mapping[Role, Videos | VideoStatistics], network: FeatureNetwork | None, options: FvdOptions
) -> FvdOptions:
    """Find out before long work what cannot be compared; clips get the length that saved statistics are of."""
    saved = [side.setup for side in sides.values() if isinstance(side, VideoStatistics)]
    if network is None and len(saved) < len(sides):
        raise InflateError(
            "there is no network to look at the videos",
            where="measure_fvd",
            expected="a model, or statistics on both sides",
            got="model=None",
            fix='pass inflate3d.load("i3d-kinetics400")',
        )
    if network and len(saved) == 1:
        num_frames = options.num_frames or saved[0].num_frames
        _check_alike(saved[0], setup_of(options, network, num_frames))
        options = replace(options, num_frames=num_frames)
    return options


def _check_alike(one: Setup, two: Setup) -> None:
    differences = one.differences(two)
    if differences:
        raise InflateError(
            "the two sets were not made alike, so that they cannot be compared",
            where="compare",
            expected="the same protocol, network, and number and rate of frames",
            got="; ".join(differences),
            fix="make the statistics of both sets anew with the same options",
        )


def _features(side: VideoStatistics) -> Tensor:
    if side.features is None:
        raise InflateError(
            "the features were not kept",
            where="compare",
            expected="features of all clips, for kernel distance, standard error and extrapolation",
            got="mean and spread only",
            fix="keep_features=True when the statistics are made, or leave resamples, kernel and infinity out",
        )
    return side.features


def _notes(real: VideoStatistics, fake: VideoStatistics, options: FvdOptions) -> tuple[str, ...]:
    """Tell what a reader has to mind about the numbers of clips."""
    counts = {"real": real.gaussian.count, "fake": fake.gaussian.count}
    protocol, length = real.setup.protocol, len(real.gaussian.mean)
    fewest, notes = min(counts.values()), []
    if fewest <= length:
        notes.append(
            f"at {fewest} on a side, clips do not span {length} dimensions: the distance is far above that of many "
            "clips, and comparable at equal numbers only"
        )
    if fewest < FEWEST and (options.resamples or options.kernel):
        notes.append(f"fewer than {FEWEST} clips have no standard error and no kernel distance")
    if fewest < FEWEST_ON_A_LINE and options.infinity:
        notes.append(f"fewer than {FEWEST_ON_A_LINE} clips are not extrapolated")
    if len(set(counts.values())) > 1:
        notes.append(f"{counts['real']} real and {counts['fake']} fake clips: the distance depends on both numbers")
    usual = {"real": protocol.real.num_clips or 0, "fake": protocol.fake.num_clips or 0}
    missing = [f"{usual[role]} {role} clips, not {count}" for role, count in counts.items() if count < usual[role]]
    if missing:
        notes.append(f"{protocol.name} takes {' and '.join(missing)}")
    for role, side in (("real", real), ("fake", fake)):
        if side.too_short:
            notes.append(f"{len(side.too_short)} {role} videos are too short and left out")
    return tuple(notes)
