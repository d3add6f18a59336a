"""Distances between two sets of feature vectors: Fréchet, kernel, their errors and the limit of many samples."""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from inflate3d.checks import is_count
from inflate3d.errors import InflateError
from inflate3d.results.fvd_protocols import Trace

Covariance = Literal["unbiased", "biased"]

ROWS_AT_A_TIME = 1024  # of a kernel matrix; bounds its memory
UNROOTED = 1e-10  # TF-GAN leaves singular values below it as they are


class Gaussian:
    """Mean and spread of feature vectors, gathered batch by batch in float64.

    Not the second moments are kept but a triangular factor R of the scatter, `R.T @ R = sum (x - mean)(x - mean).T`,
    which no subtraction of large numbers makes and from which the Fréchet distance follows without a root of a matrix.
    It has at most 2 d rows, however many vectors there are.

    Source: for merging, Chan, Golub & LeVeque 1983, "Algorithms for computing the sample variance".

    Example:
        >>> both = Gaussian.of(torch.eye(3)).merge(Gaussian.of(torch.zeros(1, 3)))
        >>> both.count, both.mean.tolist()
        (4, [0.25, 0.25, 0.25])
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = torch.zeros(0, dtype=torch.float64)
        self.rows = torch.zeros(0, 0, dtype=torch.float64)

    @staticmethod
    def of(features: Tensor) -> "Gaussian":
        """Take the mean and the spread of features `[n, d]`.

        Raises:
            InflateError: They are no finite numbers `[n, d]`.
        """
        _check_features(features)
        found = Gaussian()
        exact = features.detach().cpu().double()
        found.count, found.mean = len(exact), exact.mean(0)
        found.rows = _triangle(exact - found.mean)
        return found

    def merge(self, other: "Gaussian") -> "Gaussian":
        """Give the mean and the spread of both together; neither of them changes.

        Raises:
            InflateError: Their vectors differ in length.
        """
        if not self.count or not other.count:
            return self if self.count else other
        _check_lengths(len(self.mean), len(other.mean))
        both = Gaussian()
        both.count = self.count + other.count
        shift = other.mean - self.mean
        both.mean = self.mean + shift * (other.count / both.count)
        between = shift * math.sqrt(self.count * other.count / both.count)
        both.rows = _triangle(torch.cat([self.rows, other.rows, between[None]]), at_most=2 * len(shift))
        return both

    def factor(self, covariance: Covariance) -> Tensor:
        """Give F `[k, d]` with `F.T @ F` the covariance and k at most d.

        Raises:
            InflateError: There are too few vectors for a covariance.
        """
        divisor = self.count - (covariance == "unbiased")
        if divisor < 1:
            raise InflateError(
                "there are too few clips for a covariance",
                where="fvd",
                expected="two clips or more on each side",
                got=f"{self.count}",
                fix="compare more clips: hundreds at the least, 2048 are usual",
            )
        return _triangle(self.rows) / math.sqrt(divisor)

    def covariance(self, covariance: Covariance) -> Tensor:
        """Give the covariance `[d, d]`.

        Raises:
            InflateError: There are too few vectors.
        """
        factor = self.factor(covariance)
        return factor.T @ factor


class FrechetTerms(NamedTuple):
    """A Fréchet distance (squared, as it is reported) and what it is the sum of.

    Attributes:
        value: The distance.
        mean: Squared distance of the means.
        spread: What the covariances add.
    """

    value: float
    mean: float
    spread: float


class KernelDistance(NamedTuple):
    """Squared maximum mean discrepancy, and its standard error."""

    value: float
    standard_error: float


@dataclass(frozen=True)
class Extrapolation:
    """A distance as it would be for endlessly many clips.

    Attributes:
        value: Where the line through the points meets 1/N = 0; it can come out below zero.
        points: Share of both sets, and the mean distance between such shares.
    """

    value: float
    points: tuple[tuple[float, float], ...]


def frechet_distance(
    real: Gaussian, fake: Gaussian, *, covariance: Covariance = "unbiased", trace: Trace = "exact"
) -> FrechetTerms:
    """Measure `|m1 - m2|^2 + tr C1 + tr C2 - 2 tr (C1 C2)^(1/2)`.

    With `C = F.T F` on each side the last trace is the sum of the singular values of `F1 F2.T`. Forms of other codes:

    * "exact": these singular values, in float64;
    * "tf-gan": TF-GAN's symmetric roots by singular values, in float64, the result rounded to float32;
    * "tf-gan-float32": the same with everything in float32 from the covariances on;
    * "sqrtm": the trace of `scipy.linalg.sqrtm(C1 C2)`, real part: the sum of the roots of the eigenvalues, without
      SciPy, whose versions disagree on how it is called and sometimes on what comes out.

    Args:
        real: One side.
        fake: The other one.
        covariance: "unbiased" (over N - 1) or "biased" (over N).
        trace: Whose arithmetic.

    Raises:
        InflateError: The vectors differ in length, or a side has too few for its covariance.

    Source: Dowson & Landau 1982; TF-GAN, `classifier_metrics.py`.

    Example:
        >>> x = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0]])
        >>> round(frechet_distance(Gaussian.of(x), Gaussian.of(x + 3)).value, 9)
        18.0
    """
    _check_lengths(len(real.mean), len(fake.mean))
    if trace == "exact":
        one, two = real.factor(covariance), fake.factor(covariance)
        shared = torch.linalg.svdvals(one @ two.T).sum()
        spread = one.square().sum() + two.square().sum() - 2 * shared
        return _terms(real.mean - fake.mean, spread)
    dtype = torch.float32 if trace == "tf-gan-float32" else torch.float64
    one, two = (side.covariance(covariance).to(dtype) for side in (real, fake))
    shared = _sqrtm_trace(two @ one) if trace == "sqrtm" else _tf_gan_trace(one, two)
    terms = _terms(real.mean.to(dtype) - fake.mean.to(dtype), (one + two).trace() - 2 * shared)
    if trace == "tf-gan":
        return terms._replace(value=float(torch.tensor(terms.value, dtype=torch.float32)))
    return terms


def mean_distance(real: Gaussian, fake: Gaussian) -> FrechetTerms:
    """Measure `|m1 - m2|^2` alone, which is what is left of the distance for single clips."""
    _check_lengths(len(real.mean), len(fake.mean))
    return _terms(real.mean - fake.mean, torch.zeros((), dtype=torch.float64))


def kernel_distance(real: Tensor, fake: Tensor, *, block_size: int | None = None) -> KernelDistance:
    """Measure the kernel distance (KVD) of features, unbiased: it may be negative, and does not fall with N.

    The kernel is `(x.y / d + 1)^3`.

    Args:
        real: `[n, d]`.
        fake: `[m, d]`.
        block_size: None compares all with all, as TATS does; the standard error is that of the jackknife, which errs
            on the large side. A number splits both sets into blocks of at most so many, as TF-GAN does (1024 there):
            the mean over blocks, and its error from their scatter; NaN for a single block.

    Raises:
        InflateError: No features, vectors of different lengths, fewer than three clips, or too small blocks.

    Source: TF-GAN, `kernel_classifier_distance_and_std_from_activations`; TATS, `polynomial_mmd`; for the jackknife,
        Efron & Stein 1981.
    """
    for features in (real, fake):
        _check_features(features)
    _check_lengths(real.shape[1], fake.shape[1])
    fewest, most = sorted((len(real), len(fake)))
    blocks = 1 if block_size is None else math.ceil(most / block_size) if is_count(block_size) else 0
    if not blocks or fewest // blocks < (3 if block_size is None else 2):
        raise InflateError(
            "there are too few clips for a kernel distance",
            where="kernel_distance",
            expected="three clips or more on each side, two in each block",
            got=f"{len(real)} and {len(fake)} clips, block_size={block_size}",
            fix="compare more clips, or in larger blocks",
        )
    one, two = real.detach().cpu().double(), fake.detach().cpu().double()
    if block_size is None:
        return _all_with_all(one, two)
    # TF-GAN puts the larger blocks last, tensor_split first
    pairs = zip(one.flip(0).tensor_split(blocks), two.flip(0).tensor_split(blocks), strict=True)
    found = torch.tensor([_all_with_all(a, b).value for a, b in pairs], dtype=torch.float64)
    error = float(found.std()) / math.sqrt(blocks) if blocks > 1 else math.nan
    return KernelDistance(float(found.mean()), error)


def bootstrap_error(
    real: Tensor, fake: Tensor, distance: Callable[[Tensor, Tensor], float], *, resamples: int = 100, seed: int = 0
) -> float:
    """Estimate the standard error of a distance by drawing both sets anew from themselves, with repetitions.

    Only the scatter of the resampled distances is used: their mean is too large, because a set with repetitions spans
    less.

    Args:
        real: Features `[n, d]`.
        fake: Features `[m, d]`.
        distance: Measures two sets of features.
        resamples: How often to draw.
        seed: Of the draws.

    Raises:
        InflateError: Fewer than two resamples.

    Source: Efron 1979.
    """
    if not is_count(resamples) or resamples < 2:
        raise InflateError(
            "one resample has no scatter",
            where="bootstrap_error",
            expected="resamples >= 2, 100 or so",
            got=f"resamples={resamples!r}",
            fix="resamples=100",
        )
    draw = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(resamples):
        one, two = (side[torch.randint(len(side), (len(side),), generator=draw)] for side in (real, fake))
        found.append(distance(one, two))
    return float(torch.tensor(found, dtype=torch.float64).std())


def extrapolate(
    real: Tensor, fake: Tensor, distance: Callable[[Tensor, Tensor], float], *, num_points: int = 10, seed: int = 0
) -> Extrapolation:
    """Estimate a distance for endlessly many clips: a line in 1/N through distances between parts of both sets.

    The points lie evenly in 1/N from the whole sets to a quarter of them; each is the mean over disjoint parts, as
    many as there are.

    Args:
        real: Features `[n, d]`, in any order.
        fake: Features `[m, d]`.
        distance: Measures two sets of features.
        num_points: How many sizes.
        seed: Of the order in which clips are dealt out.

    Raises:
        InflateError: Fewer than eight clips on a side, or fewer than two points.

    Source: Chong & Forsyth 2020, "Effectively unbiased FID and Inception Score and where to find them"; there from 5000
        samples on, without parts.
    """
    fewest = min(len(real), len(fake))
    if fewest < 8 or not is_count(num_points) or num_points < 2:
        raise InflateError(
            "there are too few clips or points to draw a line",
            where="extrapolate",
            expected="8 clips or more on each side, num_points >= 2",
            got=f"{len(real)} and {len(fake)} clips, num_points={num_points!r}",
            fix="compare more clips; a line is of use from about 500 on",
        )
    orders = [random.Random(f"{seed}/{side}") for side in range(2)]
    one, two = (
        side[torch.tensor(order.sample(range(len(side)), len(side)))]
        for side, order in zip((real, fake), orders, strict=True)
    )
    points = []
    for inverse in torch.linspace(1, 4, num_points, dtype=torch.float64).tolist():
        sizes = [int(len(side) / inverse) for side in (one, two)]
        parts = [
            distance(one[i * sizes[0] : (i + 1) * sizes[0]], two[i * sizes[1] : (i + 1) * sizes[1]])
            for i in range(int(inverse))
        ]
        points.append((sizes[0] / len(one), sum(parts) / len(parts)))
    inverses = torch.tensor([1 / share for share, _ in points], dtype=torch.float64)
    values = torch.tensor([value for _, value in points], dtype=torch.float64)
    line = torch.linalg.lstsq(torch.stack([torch.ones_like(inverses), inverses], 1), values[:, None]).solution
    return Extrapolation(float(line[0]), tuple(points))


def _triangle(rows: Tensor, at_most: int | None = None) -> Tensor:
    """Give `R` with `R.T @ R = rows.T @ rows` and no more rows than columns; rows are few enough up to `at_most`."""
    if len(rows) <= (at_most or rows.shape[1]):
        return rows
    triangle: Tensor = torch.linalg.qr(rows, mode="r").R
    return triangle


def _terms(shift: Tensor, spread: Tensor) -> FrechetTerms:
    mean = shift.square().sum()
    return FrechetTerms(float(mean + spread), float(mean), float(spread))


def _tf_gan_trace(one: Tensor, two: Tensor) -> Tensor:
    u, s, v = _tf_gan_root(one)
    root = (u * s) @ v.T
    u, s, v = _tf_gan_root(root @ (two @ root))
    return ((u * s) * v).sum()


def _tf_gan_root(symmetric: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    u, s, vh = torch.linalg.svd(symmetric)
    return u, torch.where(s < UNROOTED, s, s.sqrt()), vh.T


def _sqrtm_trace(product: Tensor) -> Tensor:
    # sqrtm roots a triangular Schur form, whose diagonal holds the eigenvalues; roundoff makes some of them negative,
    # and their imaginary roots are dropped with the imaginary part
    eigenvalues: Tensor = torch.linalg.eigvals(product)
    return eigenvalues.sqrt().real.sum()


def _all_with_all(one: Tensor, two: Tensor) -> KernelDistance:
    n, m = len(one), len(two)
    own_one, own_two = ((side.square().mean(1) + 1) ** 3 for side in (one, two))
    within_one = _kernel_sums(one, one) - own_one  # no vector is compared with itself
    within_two = _kernel_sums(two, two) - own_two
    across_one, across_two = _kernel_sums(one, two), _kernel_sums(two, one)
    value = within_one.sum() / (n * (n - 1)) + within_two.sum() / (m * (m - 1)) - 2 * across_one.sum() / (n * m)
    variance = _jackknife(within_one, across_one, m) + _jackknife(within_two, across_two, n)
    return KernelDistance(float(value), math.sqrt(float(variance)))


def _jackknife(within: Tensor, across: Tensor, others: int) -> Tensor:
    """Scatter of the distance when one vector after the other is left out of a side; its other terms do not change."""
    n = len(within)
    left = (within.sum() - 2 * within) / ((n - 1) * (n - 2)) - 2 * (across.sum() - across) / ((n - 1) * others)
    return (n - 1) / n * (left - left.mean()).square().sum()


def _kernel_sums(one: Tensor, two: Tensor) -> Tensor:
    """Sum the kernel of each row of `one` over all rows of `two`."""
    parts = [((part @ two.T / one.shape[1] + 1) ** 3).sum(1) for part in one.split(ROWS_AT_A_TIME)]
    return torch.cat(parts)


def _check_features(features: Tensor) -> None:
    fits = isinstance(features, Tensor) and features.ndim == 2 and features.numel() and features.is_floating_point()
    if not fits or not features.isfinite().all():
        raise InflateError(
            "these are no features",
            where="fvd",
            expected="finite numbers [n, d], a floating-point tensor",
            got=f"{list(features.shape)} {features.dtype}" if isinstance(features, Tensor) else type(features).__name__,
            fix="one row for each clip; pool over time and space; look for NaN",
        )


def _check_lengths(one: int, two: int) -> None:
    if one != two:
        raise InflateError(
            "the two sets come from different networks",
            where="fvd",
            expected="vectors of one length",
            got=f"{one} and {two} numbers",
            fix="use the same network on both sides",
        )
