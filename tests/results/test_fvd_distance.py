"""Fréchet and kernel distances against small references in numpy and SciPy, and against what is known of Gaussians."""

import math
import warnings

import numpy as np
import pytest
import scipy.linalg
import torch

from inflate3d.errors import InflateError
from inflate3d.results.fvd_distance import (
    Gaussian,
    bootstrap_error,
    extrapolate,
    frechet_distance,
    kernel_distance,
    mean_distance,
)

TRACES = ("exact", "tf-gan", "tf-gan-float32", "sqrtm")


def features(n, d=37, seed=0, shift=0.0):
    """Correlated features whose spread falls as 1/k, as that of networks does."""
    draw = torch.Generator().manual_seed(seed)
    mix = torch.randn(d, d, generator=torch.Generator().manual_seed(99)) / torch.arange(1, d + 1).sqrt()
    return torch.randn(n, d, generator=draw) @ mix.T + shift


def by_scipy(x, y, ddof):
    x, y = x.double().numpy(), y.double().numpy()
    one, two = np.cov(x, rowvar=False, ddof=ddof), np.cov(y, rowvar=False, ddof=ddof)
    with warnings.catch_warnings(action="ignore"):  # for few vectors the product is singular
        root = scipy.linalg.sqrtm(two @ one)
    return np.sum((x.mean(0) - y.mean(0)) ** 2) + np.trace(one + two - 2 * root).real


def by_tf_gan(x, y, dtype):
    """TF-GAN's form with singular values, in numpy."""

    def root(matrix):
        u, s, vh = np.linalg.svd(matrix)
        return (u * np.where(s < 1e-10, s, np.sqrt(s))) @ vh

    x, y = x.numpy().astype(dtype), y.numpy().astype(dtype)
    centered = [side - side.mean(0) for side in (x, y)]
    one, two = (side.T @ side / dtype(len(side) - 1) for side in centered)
    half = root(one)
    trace = np.trace(one + two) - dtype(2) * np.trace(root(half @ two @ half))
    return float(trace + np.sum((x.mean(0) - y.mean(0)) ** 2))


@pytest.mark.parametrize(("n", "m"), [(211, 307), (41, 39), (23, 17), (2, 53)], ids=str)
@pytest.mark.parametrize("covariance", ["unbiased", "biased"])
def test_exact_distance_is_that_of_scipy(n, m, covariance):
    x, y = features(n, seed=1), features(m, seed=2, shift=0.3)
    found = frechet_distance(Gaussian.of(x), Gaussian.of(y), covariance=covariance)
    assert found.value == pytest.approx(by_scipy(x, y, ddof=covariance == "unbiased"), rel=1e-6)
    assert found.value == pytest.approx(found.mean + found.spread)
    swapped = frechet_distance(Gaussian.of(y), Gaussian.of(x), covariance=covariance)
    assert swapped.value == pytest.approx(found.value, rel=1e-12)


@pytest.mark.parametrize(("n", "m"), [(211, 307), (23, 17)], ids=str)
def test_published_forms_are_those_of_their_code(n, m):
    x, y = features(n, seed=1), features(m, seed=2, shift=0.3)
    one, two = Gaussian.of(x), Gaussian.of(y)
    single = frechet_distance(one, two, trace="tf-gan").value
    assert single == pytest.approx(by_tf_gan(x, y, np.float64), rel=1e-6)
    assert single == float(np.float32(single))
    biased = frechet_distance(one, two, covariance="biased", trace="sqrtm").value
    assert biased == pytest.approx(by_scipy(x, y, ddof=0), rel=1e-6)


@pytest.mark.parametrize(("n", "m"), [(211, 307), (23, 17)], ids=str)
def test_the_float32_form_is_as_sure_as_float32_is(n, m):
    """Its rounding errors are a part of the traces, and so a larger part of a distance that is small beside them."""
    x, y = torch.randn(n, 37), torch.randn(m, 37) * 1.5 + 0.3
    found = frechet_distance(Gaussian.of(x), Gaussian.of(y), trace="tf-gan-float32")
    assert found.value == pytest.approx(by_tf_gan(x, y, np.float32), rel=1e-3)
    x, y = features(n, seed=1), features(m, seed=2, shift=0.3)
    found = frechet_distance(Gaussian.of(x), Gaussian.of(y), trace="tf-gan-float32")
    traces = float(x.var(0).sum() + y.var(0).sum())
    assert found.value == pytest.approx(by_tf_gan(x, y, np.float32), abs=1e-3 * traces)


@pytest.mark.parametrize("n", [23, 37, 307])
def test_identical_sets(n):
    x = features(n) * 10
    one = Gaussian.of(x)
    two = Gaussian.of(x[torch.randperm(n)])  # another factor of the same covariance
    total = float(one.covariance("unbiased").trace())
    for trace in TRACES:
        for other in (one, two):
            assert abs(frechet_distance(one, other, trace=trace).value) <= (1e-6 if trace == "exact" else 1e-3 * total)


def test_known_gaussians():
    """Independent axes: the sum of (s1 - s2)^2, and the squared distance of the means."""
    axes = torch.eye(4).double() * math.sqrt(7 / 2)
    x = torch.cat([axes, -axes])  # covariance 1, unbiased
    scale = torch.tensor([1.0, 2.0, 5.0, 0.0]).double()
    found = frechet_distance(Gaussian.of(x), Gaussian.of(x * scale + 2))
    assert found.mean == pytest.approx(16)
    assert found.spread == pytest.approx(0 + 1 + 16 + 1)
    assert mean_distance(Gaussian.of(x), Gaussian.of(x * scale + 2)) == (found.mean, found.mean, 0.0)


@pytest.mark.parametrize("sizes", [(1, 1, 1, 50, 1), (13, 29, 11), (200, 3), (1,) * 53], ids=str)
def test_batches_in_any_order_give_what_the_whole_gives(sizes):
    x = features(sum(sizes), d=11)
    whole, pieces = Gaussian.of(x), [Gaussian.of(part) for part in x.split(list(sizes))]
    for order in (pieces, pieces[::-1]):
        merged = Gaussian()
        for piece in order:
            merged = merged.merge(piece)
            assert len(merged.rows) <= 22
        assert merged.count == len(x)
        torch.testing.assert_close(merged.mean, whole.mean, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(merged.covariance("biased"), whole.covariance("biased"), rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(whole.covariance("unbiased"), torch.cov(x.double().T), rtol=1e-11, atol=1e-12)


def test_merging_changes_neither_side_and_nothing_is_lost_to_large_means():
    x = features(60, d=5).double() + 1e7
    one, two = Gaussian.of(x[:20]), Gaussian.of(x[20:])
    before = one.rows.clone()
    merged = one.merge(two)
    assert (one.count, two.count) == (20, 40)
    assert torch.equal(one.rows, before)
    exact = torch.cov((x - 1e7).T)
    torch.testing.assert_close(merged.covariance("unbiased"), exact, rtol=1e-6, atol=1e-8)
    naive = (x.T @ x / 60 - torch.outer(x.mean(0), x.mean(0))) * 60 / 59  # the sums of published codes
    assert (naive - exact).abs().max() > 1e-3


def kernel_by_loops(x, y):
    def kernel(a, b):
        return (float(a @ b) / len(a) + 1) ** 3

    n, m = len(x), len(y)
    one = sum(kernel(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    two = sum(kernel(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return one + two - 2 * sum(kernel(a, b) for a in x for b in y) / (n * m)


def test_kernel_distance_is_the_unbiased_one_and_its_error_that_of_leaving_one_out():
    x, y = features(11, d=5, seed=1).double(), features(7, d=5, seed=2, shift=0.5).double()
    found = kernel_distance(x, y)
    assert found.value == pytest.approx(kernel_by_loops(x.numpy(), y.numpy()))
    without_x = [kernel_by_loops(np.delete(x.numpy(), i, 0), y.numpy()) for i in range(11)]
    without_y = [kernel_by_loops(x.numpy(), np.delete(y.numpy(), i, 0)) for i in range(7)]
    variance = 10 * np.var(without_x) + 6 * np.var(without_y)
    assert found.standard_error == pytest.approx(math.sqrt(variance))


def test_kernel_errors_and_bootstrap_errors_tell_how_much_repetitions_scatter():
    def distance(a, b):
        return frechet_distance(Gaussian.of(a), Gaussian.of(b)).value

    pairs = [(features(90, d=4, seed=2 * i), features(70, d=4, seed=2 * i + 1, shift=2.0)) for i in range(100)]
    truth = np.std([distance(x, y) for x, y in pairs])
    guesses = [bootstrap_error(x, y, distance, resamples=60) for x, y in pairs[:10]]
    assert truth * 0.9 < np.mean(guesses) < truth * 1.4  # it errs on the large side
    kernels = [kernel_distance(x, y) for x, y in pairs]
    truth = np.std([found.value for found in kernels])
    assert truth * 0.8 < np.mean([found.standard_error for found in kernels]) < truth * 1.4


def test_bootstrap_repeats_with_its_seed():
    x, y = features(20), features(30, seed=1)
    first, again, other = (bootstrap_error(x, y, lambda a, b: float(a.sum() + b.sum()), seed=s) for s in (3, 3, 4))
    assert first == again != other


def test_extrapolation_finds_the_constant_of_what_falls_as_one_over_n():
    sizes = []

    def distance(one, two):
        sizes.append((len(one), len(two)))
        return 3 + 100 / len(one)

    assert extrapolate(torch.zeros(840, 1), torch.zeros(420, 1), distance) == pytest.approx(3)
    assert len(set(sizes)) == 10
    assert (sizes[0], sizes[-4:]) == ((840, 420), [(210, 105)] * 4)


def test_extrapolation_takes_the_bias_away():
    def distance(a, b):
        return frechet_distance(Gaussian.of(a), Gaussian.of(b)).value

    pairs = [(features(300, d=12, seed=2 * i), features(300, d=12, seed=2 * i + 1)) for i in range(30)]
    bias = np.mean([distance(x, y) for x, y in pairs])
    assert abs(np.mean([extrapolate(x, y, distance) for x, y in pairs])) < 0.2 * bias


def test_kernel_matrices_are_made_in_parts(monkeypatch):
    x, y = features(50, d=5).double(), features(33, d=5, seed=1).double()
    whole = kernel_distance(x, y)
    monkeypatch.setattr("inflate3d.results.fvd_distance.ROWS_AT_A_TIME", 7)
    assert kernel_distance(x, y) == pytest.approx(whole)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Gaussian.of(torch.zeros(3)), "these are no features"),
        (lambda: Gaussian.of(torch.zeros(3, 2, dtype=torch.int64)), "these are no features"),
        (lambda: Gaussian.of(torch.full((3, 2), torch.nan)), "these are no features"),
        (lambda: Gaussian.of([[1.0]]), "these are no features"),
        (lambda: Gaussian.of(torch.ones(2, 3)).merge(Gaussian.of(torch.ones(2, 4))), "different networks"),
        (
            lambda: frechet_distance(Gaussian.of(torch.ones(2, 3)), Gaussian.of(torch.ones(2, 4))),
            "different networks",
        ),
        (lambda: mean_distance(Gaussian.of(torch.ones(2, 3)), Gaussian.of(torch.ones(2, 4))), "different networks"),
        (
            lambda: frechet_distance(Gaussian.of(torch.ones(1, 3)), Gaussian.of(torch.ones(2, 3))),
            "too few clips for a covariance",
        ),
        (lambda: kernel_distance(torch.ones(2, 3), torch.ones(9, 3)), "too few clips for a kernel distance"),
        (lambda: kernel_distance(torch.ones(9, 3), torch.ones(9, 4)), "different networks"),
        (lambda: bootstrap_error(torch.ones(9, 3), torch.ones(9, 3), max, resamples=1), "no scatter"),
        (lambda: extrapolate(torch.ones(7, 3), torch.ones(9, 3), max), "too few clips to draw a line"),
    ],
)
def test_what_has_no_distance_is_refused(call, message):
    with pytest.raises(InflateError, match=message):
        call()


def test_a_single_clip_has_a_biased_covariance():
    x, y = features(1), features(19, seed=1)
    found = frechet_distance(Gaussian.of(x), Gaussian.of(y), covariance="biased")
    assert found.spread == pytest.approx(float(y.double().var(0, correction=0).sum()))
