"""The distance between sets of videos, with the real network, as a metric, over processes, and as a command."""

import json
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import distributed, nn
from torch.multiprocessing import spawn
from typer.testing import CliRunner

from inflate3d.cli import app
from inflate3d.errors import InflateError, InflateWarning
from inflate3d.inflation.build import inflate
from inflate3d.results.fvd import FrechetVideoDistance, compare, measure_fvd
from inflate3d.results.fvd_distance import Gaussian, frechet_distance, kernel_distance
from inflate3d.results.fvd_protocols import PROTOCOLS, Setup
from inflate3d.results.fvd_videos import FvdOptions, VideoStatistics

SMALL = replace(PROTOCOLS["tats"], name="small", side=32)  # quick to make


class Moments(nn.Module):
    """Six features: mean and spread of each channel."""

    def forward(self, clips):
        exact = clips.double()  # so that batches of any size give the same
        return torch.cat([exact.mean((2, 3, 4)), exact.std((2, 3, 4))], 1) * 10


def clips(n, seed=0, high=256, frames=9):
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(0, high, (n, 3, frames, 16, 20), generator=draw, dtype=torch.uint8)


def silent(call, *arguments, **options):
    """Call without the warning that a handful of clips are far too few."""
    with warnings.catch_warnings(action="ignore", category=InflateWarning):
        return call(*arguments, **options)


def statistics(n, d=5, seed=0, protocol="stylegan-v", **changes):
    setup = replace(Setup(PROTOCOLS[protocol], 16, 1, "native", "Net", "0" * 64), **changes)
    features = torch.randn(n, d, generator=torch.Generator().manual_seed(seed))
    return VideoStatistics(setup, Gaussian.of(features), features)


@pytest.mark.weights
@pytest.mark.parametrize(
    ("frames", "published", "protocol"),
    [
        (10, 569.2296, "common-metrics"),  # README of common_metrics_on_video_quality: N = 8, T = 10 to 30
        (30, 151.2565, "tf-original"),
    ],
)
def test_black_against_white(kinetics_i3d, frames, published, protocol):
    n = 1 if protocol == "common-metrics" else 2
    black, white = torch.zeros(n, 1, frames, 64, 64, dtype=torch.uint8), torch.ones(n, 1, frames, 64, 64)
    options = FvdOptions(protocol, value_range=(0.0, 1.0))
    found = silent(measure_fvd, kinetics_i3d, black.float(), white, options=options)
    assert found.value == pytest.approx(published, rel=2e-3)
    if frames == 30:  # TensorFlow's own answer
        assert found.value == pytest.approx(151.39244, abs=1e-3)
        assert found.terms.spread == pytest.approx(0, abs=1e-6)


def test_all_forms_of_input_come_to_the_same(tmp_path):
    real, fake = clips(13), clips(11, seed=1, high=200)
    for name, videos in (("real", real), ("fake", fake)):
        for i, video in enumerate(videos):
            (tmp_path / name / f"{i:02}").mkdir(parents=True)
            for j, frame in enumerate(video.permute(1, 2, 3, 0).numpy()):
                Image.fromarray(frame).save(tmp_path / name / f"{i:02}" / f"{j}.png")
    protocol = replace(PROTOCOLS["tf-original"], name="small tf-original", side=32)
    model, options = Moments().eval(), FvdOptions(protocol, num_frames=9)
    tensors = silent(measure_fvd, model, real, fake, options=options)
    files = silent(measure_fvd, model, tmp_path / "real", str(tmp_path / "fake"), options=options)
    assert files.value == pytest.approx(tensors.value, rel=1e-9)
    for side, name in ((files.real, "real"), (files.fake, "fake")):
        side.save(tmp_path / f"{name}.safetensors")
    saved = silent(measure_fvd, None, tmp_path / "real.safetensors", tmp_path / "fake.safetensors", options=options)
    mixed = silent(measure_fvd, model, tmp_path / "real.safetensors", iter(fake), options=options)
    assert files.real.setup.num_frames == 9
    lengths = FvdOptions(protocol)  # files give as many frames as the statistics are of
    again = silent(measure_fvd, model, tmp_path / "real.safetensors", tmp_path / "fake", options=lengths)
    assert again.value == files.value
    assert saved.value == mixed.value == pytest.approx(tensors.value, rel=1e-9)
    x, y = tensors.real.features, tensors.fake.features
    assert tensors.value == frechet_distance(Gaussian.of(x), Gaussian.of(y)).value


def test_numerics_and_covariance_are_those_of_the_protocol():
    for name, protocol in PROTOCOLS.items():
        one, two = statistics(40, protocol=name), statistics(30, seed=1, protocol=name)
        for numerics, trace in (("exact", "exact"), ("published", protocol.trace)):
            found = silent(compare, one, two, FvdOptions(numerics=numerics))
            wanted = frechet_distance(one.gaussian, two.gaussian, covariance=protocol.covariance, trace=trace)
            assert found.terms == wanted


def test_what_else_can_be_measured():
    one, two = statistics(600), statistics(500, seed=1)
    plain = silent(compare, one, two)
    assert plain.standard_error is plain.interval is plain.kernel is plain.infinity is None
    full = silent(compare, one, two, FvdOptions(resamples=20, kernel=True, infinity=True))
    assert full.value == plain.value
    assert full.kernel == kernel_distance(one.features, two.features)
    assert full.interval == pytest.approx(
        (full.value - 1.96 * full.standard_error, full.value + 1.96 * full.standard_error)
    )
    assert full.infinity < full.value
    assert "+-" in full.provenance
    document = json.loads(full.to_json())
    assert (document["fvd"], document["num_real"], document["num_fake"]) == (full.value, 600, 500)
    assert document["kernel_distance"]["standard_error"] == full.kernel.standard_error


def test_the_provenance_says_what_decides_on_the_figure():
    line = silent(compare, statistics(600), statistics(500, seed=1)).provenance
    for part in ("stylegan-v", "exact numerics", "biased covariance", "600 real clips", "500 fake", "16 frames"):
        assert part in line
    assert "\n" not in line


@pytest.mark.parametrize(
    ("n", "m", "protocol", "note"),
    [
        (5, 9, "tf-original", "at 5 on a side, clips do not span 5 dimensions"),
        (50, 49, "tf-original", "50 real and 49 fake clips"),
        (2048, 2047, "stylegan-v", "stylegan-v takes 2048 fake clips, not 2047"),
        (255, 255, "videogpt", "256 real clips, not 255 and 256 fake clips, not 255"),
    ],
)
def test_few_or_unequal_numbers_of_clips_are_told(n, m, protocol, note):
    with pytest.warns(InflateWarning, match=note):
        found = compare(statistics(n, protocol=protocol), statistics(m, seed=1, protocol=protocol))
    assert note in "; ".join(found.notes)


def test_enough_clips_are_not_talked_about():
    assert compare(statistics(2048), statistics(2048, seed=1)).notes == ()


def test_single_clips():
    one, two = statistics(1, protocol="common-metrics"), statistics(1, seed=1, protocol="common-metrics")
    found = silent(compare, one, two, FvdOptions(resamples=5, kernel=True, infinity=True))
    assert found.value == pytest.approx(float((one.features - two.features).double().square().sum()))
    assert "fewer than 3 clips have no standard error" in "; ".join(found.notes)
    assert "fewer than 8 clips are not extrapolated" in "; ".join(found.notes)
    assert found.kernel is found.infinity is found.standard_error is None
    with pytest.raises(InflateError, match="too few clips for a covariance"):
        compare(statistics(1, protocol="tf-original"), statistics(1, protocol="tf-original"))
    with pytest.raises(InflateError, match="too few clips for a covariance"):
        compare(one, statistics(2, protocol="common-metrics"))
    biased = silent(compare, statistics(1), statistics(7, seed=1))
    assert biased.value > 0


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"protocol": "cd-fvd-i3d"}, "name stylegan-v and cd-fvd-i3d"),
        ({"num_frames": 17}, "num_frames 16 and 17"),
        ({"frame_stride": 8}, "frame_stride 1 and 8"),
        ({"network_sha256": "1" * 64}, "network_sha256"),
    ],
)
def test_statistics_that_were_not_made_alike_refuse_to_be_compared(changes, told):
    with pytest.raises(InflateError, match="not made alike") as refused:
        compare(statistics(9), statistics(9, **changes))
    assert told in refused.value.got


def test_what_cannot_be_compared_is_told_before_any_video_is_seen(tmp_path):
    class Untouched:
        def __iter__(self):
            raise AssertionError("a video was looked at")

    statistics(9).save(tmp_path / "real.safetensors")
    with pytest.raises(InflateError, match="not made alike"):
        measure_fvd(Moments().eval(), tmp_path / "real.safetensors", Untouched())
    with pytest.raises(InflateError, match="no network to look"):
        measure_fvd(None, tmp_path / "real.safetensors", Untouched())
    with pytest.raises(InflateError, match="features were not kept"):
        silent(compare, replace(statistics(9), features=None), statistics(9), FvdOptions(kernel=True))


def test_an_inflated_model_is_a_network_like_others():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    model = inflate(net, "video", example=torch.zeros(1, 3, 32, 32))
    found = silent(measure_fvd, model, clips(7), clips(7, seed=1), options=FvdOptions(SMALL))
    assert found.value > 0
    assert found.real.features.shape == (7, 4)


def test_the_metric_is_fed_in_batches():
    real, fake = clips(13), clips(11, seed=1)
    model, options = Moments().eval(), FvdOptions(SMALL, batch_size=3)
    whole = silent(measure_fvd, model, real, fake, options=options)
    metric = FrechetVideoDistance(model, options)
    for start in range(0, 13, 5):
        metric.update(real[start : start + 5], real=True)
        metric.update(fake[start : start + 5], real=False)
    first = silent(metric.compute)
    assert first.value == pytest.approx(whole.value, rel=1e-9)
    assert silent(metric.compute).value == first.value
    assert torch.equal(metric.statistics(real=True).features, whole.real.features)
    metric.reset(real=False)
    metric.update(real, real=False)
    assert abs(silent(metric.compute).value) < 1e-6
    metric.reset()
    with pytest.raises(InflateError, match="no real videos yet"):
        metric.compute()


def test_metrics_are_merged():
    real, fake = clips(12), clips(12, seed=1)
    model, options = Moments().eval(), FvdOptions(SMALL, kernel=True)
    whole, *parts = (FrechetVideoDistance(model, options) for _ in range(4))
    whole.update(real, real=True)
    whole.update(fake, real=False)
    for i, part in enumerate(parts):
        part.update(real[i::3], real=True)
        part.update(fake[i::3], real=False)
        if i:
            parts[0].merge(part)
    merged, together = silent(parts[0].compute), silent(whole.compute)
    assert merged.value == pytest.approx(together.value, rel=1e-9)
    assert merged.kernel == pytest.approx(together.kernel)
    other = FrechetVideoDistance(model, FvdOptions("stylegan-v"))
    other.update(real, real=True)
    with pytest.raises(InflateError, match="not made alike"):
        other.merge(whole)


def test_a_metric_without_features_does_not_grow():
    model, options = Moments().eval(), FvdOptions(SMALL)
    lean = FrechetVideoDistance(model, options, keep_features=False)
    full = FrechetVideoDistance(model, options)
    for metric in (lean, full):
        for seed in range(6):
            metric.update(clips(5, seed), real=True)
            metric.update(clips(4, seed + 50), real=False)
    found = silent(lean.compute)
    assert found.value == pytest.approx(silent(full.compute).value, rel=1e-9)
    assert found.real.features is None
    assert len(lean.statistics(real=True).gaussian.rows) <= 12
    full.merge(lean)  # then the features are no longer those of all clips
    assert full.statistics(real=True).features is None
    assert full.statistics(real=True).gaussian.count == 60


def test_a_metric_refuses_clips_of_another_length():
    metric = FrechetVideoDistance(Moments().eval(), FvdOptions(SMALL))
    metric.update(clips(2), real=True)
    with pytest.raises(InflateError, match="clips differ in length"):
        metric.update(clips(2, frames=10), real=False)


def shares(rank, size, folder):
    """Each process sees its share of the real videos; the second alone sees the generated ones."""
    distributed.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=size)
    metric = FrechetVideoDistance(Moments().eval(), FvdOptions(SMALL))
    metric.update(clips(13)[rank::size], real=True)
    if rank:
        metric.update(clips(11, seed=1), real=False)
    values = [silent(metric.compute).value for _ in range(2)]
    (folder / f"{rank}.json").write_text(json.dumps([*values, metric.statistics(real=True).gaussian.count]))
    distributed.destroy_process_group()


def test_processes_bring_their_clips_together(tmp_path):
    spawn(shares, (2, tmp_path), nprocs=2)
    alone = silent(measure_fvd, Moments().eval(), clips(13), clips(11, seed=1), options=FvdOptions(SMALL))
    for rank, own in ((0, 7), (1, 6)):
        first, second, count = json.loads((tmp_path / f"{rank}.json").read_text())
        assert first == second == pytest.approx(alone.value, rel=1e-9)
        assert count == own


@pytest.fixture
def two_folders(tmp_path):
    folder = tmp_path / "videos"
    draw = np.random.default_rng(0)
    for name, high in (("real", 256), ("fake", 128)):
        for i in range(2):
            (folder / name / str(i)).mkdir(parents=True)
            for j in range(9):
                Image.fromarray(draw.integers(0, high, (24, 32, 3), np.uint8)).save(folder / name / str(i) / f"{j}.png")
    return folder


def run(*arguments):
    return CliRunner().invoke(app, ["fvd", *map(str, arguments)])


@pytest.fixture
def _moments(monkeypatch):
    """The network that every name stands for."""
    monkeypatch.setattr("inflate3d.weights.load.load", lambda name: Moments().eval())


@pytest.mark.usefixtures("_moments")
def test_the_command(two_folders, tmp_path):
    real, fake, stats = two_folders / "real", two_folders / "fake", tmp_path / "stats"
    options = ("--num-frames", 9, "--cache", tmp_path / "cache", "--protocol", "tf-original")
    done = run(real, fake, *options, "--save-stats", stats, "--json", tmp_path / "out.json")
    assert done.exit_code == 0, done.output
    document = json.loads((tmp_path / "out.json").read_text())
    assert document["provenance"] in done.output.replace("\n", "")
    assert f"{document['fvd']:.4f}" in done.output
    assert document["num_fake"] == 2
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 4
    saved = (stats / "real.safetensors", stats / "fake.safetensors")
    # clips of 9 frames, as the statistics are of, though 16 are usual
    for sides, protocol in ((saved, ()), ((saved[0], fake), ("--protocol", "tf-original", "--no-cache"))):
        again = run(*sides, *protocol, "--json", tmp_path / "again.json")
        assert again.exit_code == 0, again.output
        assert json.loads((tmp_path / "again.json").read_text())["fvd"] == document["fvd"]
    for arguments in ((saved[0], fake, *options[2:], "--num-frames", 8), (saved[0], fake, "--no-cache")):
        with pytest.raises(InflateError, match="not made alike"):
            raise run(*arguments).exception
    with pytest.raises(InflateError, match=r"would change nothing(.|\n)*--protocol, --num-clips with videos"):
        raise run(*saved, "--protocol", "tats", "--num-clips", 2).exception
    with pytest.raises(InflateError, match="fvd --fps: the frame rate is no number"):
        raise run(real, fake, "--fps", "quick").exception


@pytest.mark.usefixtures("_moments")
def test_bad_videos_become_a_table_and_the_exit_code_one(two_folders):
    (two_folders / "fake" / "bad.mp4").write_text("no video")
    sides = [two_folders / name for name in ("real", "fake")]
    done = run(*sides, "--num-frames", 9, "--no-cache", "--resamples", 0, "--protocol", "tats")
    assert done.exit_code == 1, done.output
    assert "1 not read" in done.stdout
    assert "FVD" in done.stdout
