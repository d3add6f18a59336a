"""Distances between two sets of feature vectors: Fréchet, kernel, their errors and the limit of many samples."""

import math
import random
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from inflate3d.errors import InflateError, is_count
from inflate3d.results.fvd_protocols import Trace

Covariance = Literal["unbiased", "biased"]

ROWS_AT_A_TIME = 1024  # of a kernel matrix; bounds its memory
UNROOTED = 1e-10  # TF-GAN leaves singular values below it as they are
FEWEST = 3  # clips for a standard error and a kernel distance
FEWEST_ON_A_LINE, POINTS_ON_A_LINE = 8, 10  # clips to extrapolate; sizes of sets that are measured for it


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
                where="Gaussian.factor",
                expected=f"{self.count - divisor + 1} clips or more on each side",
                got=f"{self.count} clips",
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


def kernel_distance(real: Tensor, fake: Tensor) -> KernelDistance:
    """Measure the kernel distance (KVD) of features, unbiased: it may be negative, and does not fall with N.

    The kernel is `(x.y / d + 1)^3`; all are compared with all, as TATS does it. The standard error is that of the
    jackknife, which errs on the large side.

    Args:
        real: `[n, d]`.
        fake: `[m, d]`.

    Raises:
        InflateError: No features, vectors of different lengths, or fewer than three clips.

    Source: TATS, `polynomial_mmd`; for the jackknife, Efron & Stein 1981.

    Example:
        >>> real = torch.tensor([[0.0], [1.0], [2.0]])
        >>> round(kernel_distance(real, real + 2).value, 3)  # by hand: 29/3 + 3269/3 - 2 * 1416/9
        784.667
    """
    for features in (real, fake):
        _check_features(features)
    _check_lengths(real.shape[1], fake.shape[1])
    if min(len(real), len(fake)) < FEWEST:
        raise InflateError(
            "there are too few clips for a kernel distance",
            where="kernel_distance",
            expected=f"{FEWEST} clips or more on each side",
            got=f"{len(real)} and {len(fake)} clips",
            fix="compare more clips, or leave the kernel distance out: kernel=False, --no-kernel",
        )
    one, two = real.detach().cpu().double(), fake.detach().cpu().double()
    n, m = len(one), len(two)
    own_one, own_two = ((side.square().mean(1) + 1) ** 3 for side in (one, two))
    within_one = _kernel_sums(one, one) - own_one  # no vector is compared with itself
    within_two = _kernel_sums(two, two) - own_two
    across_one, across_two = _kernel_sums(one, two), _kernel_sums(two, one)
    value = within_one.sum() / (n * (n - 1)) + within_two.sum() / (m * (m - 1)) - 2 * across_one.sum() / (n * m)
    variance = _jackknife(within_one, across_one, m) + _jackknife(within_two, across_two, n)
    return KernelDistance(float(value), math.sqrt(float(variance)))


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

    Example:
        >>> numbers = torch.arange(100.0)[:, None]
        >>> error = bootstrap_error(numbers, numbers, lambda one, two: float(one.mean()), resamples=1000)
        >>> abs(error - 28.9 / 100**0.5) < 0.2  # standard deviation over the root of the number
        True
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


def extrapolate(real: Tensor, fake: Tensor, distance: Callable[[Tensor, Tensor], float], *, seed: int = 0) -> float:
    """Estimate a distance for endlessly many clips: a line in 1/N through distances between parts of both sets.

    Ten points lie evenly in 1/N from the whole sets to a quarter of them; each is the mean over disjoint parts, as many
    as there are. Where the line meets 1/N = 0 can lie below zero.

    Args:
        real: Features `[n, d]`, in any order.
        fake: Features `[m, d]`.
        distance: Measures two sets of features.
        seed: Of the order in which clips are dealt out.

    Raises:
        InflateError: Fewer than eight clips on a side.

    Source: Chong & Forsyth 2020, "Effectively unbiased FID and Inception Score and where to find them"; there from 5000
        samples on, without parts.

    Example:
        >>> clips = torch.zeros(64, 3)
        >>> round(extrapolate(clips, clips, lambda one, two: 5 + 100 / len(one)), 6)
        5.0
    """
    if min(len(real), len(fake)) < FEWEST_ON_A_LINE:
        raise InflateError(
            "there are too few clips to draw a line",
            where="extrapolate",
            expected=f"{FEWEST_ON_A_LINE} clips or more on each side; the line is of use from about 500 on",
            got=f"{len(real)} and {len(fake)} clips",
            fix="compare more clips, or leave the extrapolation out: infinity=False",
        )
    one, two = (_shuffled(side, f"{seed}/{number}") for number, side in enumerate((real, fake)))
    inverses, values = [], []
    for inverse in torch.linspace(1, 4, POINTS_ON_A_LINE, dtype=torch.float64).tolist():
        sizes = [int(len(side) / inverse) for side in (one, two)]
        parts = [
            distance(one[i * sizes[0] : (i + 1) * sizes[0]], two[i * sizes[1] : (i + 1) * sizes[1]])
            for i in range(int(inverse))
        ]
        inverses.append(len(one) / sizes[0])
        values.append(sum(parts) / len(parts))
    places = torch.tensor(inverses, dtype=torch.float64)
    basis = torch.stack([torch.ones_like(places), places], 1)
    line = torch.linalg.lstsq(basis, torch.tensor(values, dtype=torch.float64)[:, None]).solution
    return float(line[0])


def _shuffled(features: Tensor, seed: str) -> Tensor:
    return features[torch.tensor(random.Random(seed).sample(range(len(features)), len(features)))]


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
            where="Gaussian.of",
            expected="finite numbers [n, d], a floating-point tensor",
            got=f"{list(features.shape)} {features.dtype}" if isinstance(features, Tensor) else type(features).__name__,
            fix="one row for each clip: features.mean((2, 3, 4)) of [n, d, t, h, w]; where NaN, run in float32",
        )


def _check_lengths(one: int, two: int) -> None:
    if one != two:
        raise InflateError(
            "the two sets come from different networks",
            where="frechet_distance",
            expected="vectors of one length",
            got=f"{one} and {two} numbers",
            fix="use the same network on both sides",
        )
