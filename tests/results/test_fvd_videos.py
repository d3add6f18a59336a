"""Which clips are taken of which videos, what becomes of bad ones, and how a stopped run goes on."""

import os
import re
import shutil
import sys
import warnings
from dataclasses import replace
from fractions import Fraction
from itertools import repeat

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from inflate3d.clips.clip import Clip
from inflate3d.clips.sampling import Timed
from inflate3d.clips.video import FrameStream
from inflate3d.errors import InflateError, InflateWarning
from inflate3d.results.fvd_protocols import PROTOCOLS, FeatureNetwork, protocol_named
from inflate3d.results.fvd_videos import FvdOptions, VideoStatistics, embed_videos
from videos import write_video


class Witness(nn.Module):
    """Answers with the brightness of the first, the second and the last frame, in 0..255."""

    def __init__(self, stop_after=None):
        super().__init__()
        self.calls, self._stop_after = [], stop_after

    def forward(self, clips):
        if len(self.calls) == self._stop_after:
            raise KeyboardInterrupt
        self.calls.append(len(clips))
        return (clips[:, :, [0, 1, -1]].mean((1, 3, 4)) + 1) * 127.5


def pictures(folder, count, first=0):
    """A folder of pictures of which number i has brightness i everywhere."""
    folder.mkdir(parents=True)
    for i in range(first, first + count):
        Image.new("RGB", (24, 16), (i, i, i)).save(folder / f"{i:03}.png")
    return folder


def video(path, count):
    """A lossless video whose frame i has brightness i."""
    frames = [np.full((16, 24, 3), i, np.uint8) for i in range(count)]
    return write_video(path, frames, codec="png", pix_fmt="rgb24", fps=10)


def small(name):
    """A protocol, but on clips that are quick to make."""
    return replace(PROTOCOLS[name], name=f"small {name}", side=32, loader_side=None)


def embed(videos, role="fake", model=None, **options):
    options = FvdOptions(**{"protocol": small("tats"), "num_frames": 5} | options)
    network = FeatureNetwork((model or Witness()).eval(), protocol_named(options.protocol))
    return embed_videos(network, videos, options, role=role)


def seen(found):
    """First, second and last frame of each clip."""
    return found.features.round().int().tolist()


@pytest.fixture
def folder(tmp_path):
    """Three videos: 9, 23 and 5 frames."""
    pictures(tmp_path / "videos" / "a", 9)
    video(tmp_path / "videos" / "b.avi", 23)
    pictures(tmp_path / "videos" / "c", 5, first=100)
    return tmp_path / "videos"


def test_clips_from_the_start(folder):
    found = embed(folder)
    assert seen(found) == [[0, 1, 4], [0, 1, 4], [100, 101, 104]]
    assert found.sampling == "from the start"
    assert (found.setup.num_frames, found.setup.frame_stride, found.setup.fps) == (5, 1, "native")
    assert found.gaussian.count == 3
    assert not found.failures


def test_strides_skip_frames_and_need_longer_videos(folder):
    found = embed(folder, frame_stride=2, num_frames=4)
    assert seen(found) == [[0, 2, 6], [0, 2, 6]]
    assert [name.rsplit("/", 1)[1] for name in found.too_short] == ["c"]
    assert seen(embed(folder, frame_stride=3, num_frames=4)) == [[0, 3, 9]]  # 12 frames, the gap behind the last too


def test_rates_are_resampled_if_asked_for(folder):
    assert seen(embed([folder / "b.avi"], fps=5)) == [[0, 2, 8]]


def test_random_offsets_reach_every_frame_and_repeat_with_the_seed(folder):
    starts = [seen(embed(folder / "a", role="real", seed=seed))[0] for seed in range(40)]
    assert {start for start, _, _ in starts} == {0, 1, 2, 3, 4}
    assert all((second, last) == (start + 1, start + 4) for start, second, last in starts)
    assert seen(embed(folder / "a", role="real", seed=7))[0] == starts[7]
    # StyleGAN-V: with a stride, the last frame of the video is reached as well
    starts = {
        seen(embed(folder / "a", role="real", seed=seed, frame_stride=2, num_frames=4))[0][0] for seed in range(40)
    }
    assert starts == {0, 1, 2}


def test_the_protocols_of_the_table_take_their_clips(folder):
    for name, protocol in PROTOCOLS.items():
        if name == "fvd-comparison":  # takes frames of one size only
            continue
        options = {"protocol": name, "num_clips": 3 if protocol.fake.again else None}
        real = embed(folder, role="real", **options)
        moved = {tuple(embed(folder, role="real", seed=s, **options).features[1].tolist()) for s in range(5)}
        assert (len(moved) > 1) == (protocol.real.offset == "random"), name
        assert real.gaussian.count == 3


def test_cd_fvd_counts_the_same_videos_again_and_again(folder):
    model = Witness()
    found = embed(folder, protocol=small("cd-fvd-i3d"), num_clips=11, model=model)
    assert found.gaussian.count == 11
    assert found.sampling == "at random (seed 0), 3 videos again and again"
    hundreds = sum(first == 100 for first, _, _ in seen(found))
    assert hundreds in {3, 4}
    assert len({tuple(row) for row in seen(found)}) > 3  # with new offsets
    assert embed(folder, protocol=small("cd-fvd-i3d"), role="real").gaussian.count == 3  # real ones once


def test_no_more_clips_than_the_protocol_takes(folder):
    few = replace(small("tats"), name="few", fake=PROTOCOLS["tats"].fake._replace(num_clips=2))
    assert seen(embed(folder, protocol=few)) == [[0, 1, 4], [0, 1, 4]]
    assert seen(embed(folder, num_clips=1)) == [[0, 1, 4]]
    made = []
    endless = (made.append(1) or torch.zeros(2, 3, 5, 16, 16, dtype=torch.uint8) for _ in repeat(None))
    assert embed(endless, protocol=few, num_frames=None).gaussian.count == 2
    assert made == [1]
    boundless = replace(few, name="boundless", fake=few.fake._replace(num_clips=None, again=True))
    assert embed(folder, protocol=boundless).gaussian.count == 3


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere names of files are text")
def test_names_that_are_no_text_are_read_too(folder):
    (folder / "a").rename(os.fsdecode(os.fsencode(folder) + b"/caf\xe9"))
    assert embed(folder, role="real").gaussian.count == 3


def test_short_videos_are_left_out_or_failures(folder):
    found = embed(folder, num_frames=7)
    assert len(found.too_short) == 1
    assert not found.failures
    found = embed(folder, num_frames=7, protocol=small("tf-original"))
    assert not found.too_short
    assert [failure.reason for failure in found.failures] == ["5 frames, a clip covers 7"]
    with pytest.raises(InflateError, match="no clip is left"):
        embed(folder, num_frames=24)


def test_bad_files_are_failures_and_do_not_end_the_run(folder):
    (folder / "bad.mp4").write_text("this is no video")
    (folder / "empty").mkdir()
    found = embed([folder, folder / "gone.mp4", folder / "empty"])
    assert len(seen(found)) == 3
    assert [failure.source.rsplit("/", 1)[1] for failure in found.failures] == ["bad.mp4", "gone.mp4", "empty"]
    assert "there is no such file" in found.failures[1].reason
    again = embed(folder, protocol=small("cd-fvd-i3d"), num_clips=7)
    assert len(again.failures) == 1  # and not one in each round
    assert again.gaussian.count == 7


def read_as(timed):
    """Stands for `open_frames`."""
    return lambda path, fps: FrameStream(str(path), None, timed)


@pytest.mark.parametrize(("role", "passes", "place"), [("fake", 1, 4), ("real", 2, 4), ("real", 2, 8)])
def test_damage_is_told_once_and_clips_from_the_start_are_read_once(role, passes, place, tmp_path, monkeypatch):
    """For a random place the frames are counted first."""
    begun, drawn = [], []

    def timed():
        begun.append(1)
        for i in range(9):
            yield Timed(Fraction(i), Fraction(1), lambda i=i: drawn.append(i) or np.full((16, 24, 3), i, np.uint8))
            if i == place:
                warnings.warn("damaged in 3 places", InflateWarning, stacklevel=2)

    monkeypatch.setattr("inflate3d.results.fvd_videos.open_frames", read_as(timed))
    with pytest.warns(InflateWarning, match="damaged in 3 places") as told:
        (row,) = seen(embed([tmp_path / "a.mp4"], role=role, num_frames=3, frame_stride=3))
    assert (len(begun), len(told)) == (passes, 1)
    assert row == drawn == [row[0], row[0] + 3, row[0] + 6]


def test_whatever_a_strange_file_sets_off_fails_with_the_place_it_comes_from(folder, monkeypatch):
    def timed():
        yield Timed(Fraction(0), Fraction(1), lambda: np.zeros((16, 24, 3), np.uint8))
        raise RecursionError("too deep")

    monkeypatch.setattr("inflate3d.results.fvd_videos.open_frames", read_as(timed))
    with pytest.raises(InflateError, match="no clip is left") as refused:
        embed([folder / "b.avi"])
    assert re.search(r"RecursionError: too deep \(timed, test_fvd_videos.py:\d+\)", refused.value.got)


def test_a_bug_of_the_network_ends_a_run(folder):
    class Broken(Witness):
        def forward(self, clips):
            raise TypeError("a bug of the network")

    with pytest.raises(TypeError, match="a bug of the network"):
        embed(folder, model=Broken())


def test_statistics_are_compared_by_what_they_are(folder):
    one, two = embed(folder), embed(folder)
    assert one != two
    assert [two, one].index(one) == 1


def test_a_stopped_run_goes_on(folder, tmp_path):
    cache, first, second, third = tmp_path / "cache", Witness(stop_after=1), Witness(), Witness()
    options = {"cache": cache, "batch_size": 2, "role": "real"}
    with pytest.raises(KeyboardInterrupt):
        embed(folder, model=first, **options)
    whole = embed(folder, model=second, **options)
    assert (first.calls, second.calls) == ([2], [1])
    assert torch.equal(whole.features, embed(folder, model=third, **options).features)
    assert torch.equal(whole.features, embed(folder, **options | {"cache": None}).features)
    assert third.calls == []
    assert not list(cache.rglob("*.part"))


def test_networks_with_the_same_tensors_have_features_of_their_own(folder, tmp_path):
    class Pooled(nn.Module):
        def __init__(self, kind):
            super().__init__()
            self.kind = kind

        def forward(self, clips):
            return (clips.amax if self.kind == "max" else clips.mean)((2, 3, 4))

    found = [embed(folder, model=Pooled(kind), cache=tmp_path).features for kind in ("mean", "max", "mean")]
    assert not torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_kept_features_belong_to_one_video_network_and_choice(folder, tmp_path):
    cache = tmp_path / "cache"

    def calls(**options):
        model = options.pop("model", Witness())
        embed([folder / "a"], model=model, cache=cache, **options)
        return sum(model.calls)

    other = Witness()
    other.register_buffer("more", torch.ones(1))
    assert calls() == 1
    assert calls() == 0
    for options in (
        {"num_frames": 6},
        {"fps": 5},
        {"seed": 1},
        {"protocol": small("stylegan-v")},
        {"num_frames": 3, "frame_stride": 2},
        {"num_frames": 2, "frame_stride": 3},
    ):
        assert calls(**options) == 1
    assert calls(model=other) == 1
    shutil.copy(folder / "c" / "100.png", folder / "a" / "999.png")  # a frame more
    assert calls() == 1
    (entry, *_) = sorted(cache.rglob("*.safetensors"))
    for path in cache.rglob("*.safetensors"):
        path.write_bytes(b"damaged")
    with pytest.warns(InflateWarning, match="damaged, made anew"):
        assert calls() == 1
    assert entry.exists()


def test_progress_tells_done_and_all(folder):
    told = []
    options = FvdOptions(protocol=small("tats"), num_frames=5, batch_size=2)
    network = FeatureNetwork(Witness().eval(), small("tats"))
    embed_videos(network, folder, options, role="fake", progress=lambda done, total: told.append((done, total)))
    assert told == [(2, 3), (3, 3)]
    told.clear()
    clips = torch.zeros(3, 3, 5, 16, 16, dtype=torch.uint8)
    embed_videos(network, clips, options, role="fake", progress=lambda done, total: told.append((done, total)))
    assert told == [(2, 2048), (3, 2048)]


def test_tensors_arrays_clips_and_iterables_are_the_same_videos():
    numbers = torch.arange(3 * 6, dtype=torch.uint8).view(3, 1, 6, 1, 1).expand(3, 3, 6, 16, 24)
    wanted = [[0, 1, 5], [6, 7, 11], [12, 13, 17]]
    times = torch.arange(6).double()
    forms = {
        "tensor": numbers,
        "array": numbers.permute(0, 2, 3, 4, 1).numpy(),
        "list of clips": list(numbers),
        "generator of batches": (part for part in numbers.split(2)),
        "arrays": [clip.permute(1, 2, 3, 0).numpy() for clip in numbers],
        "Clips": [Clip(clip, times, "mine") for clip in numbers],
        "Clips of floats": [Clip(clip / 255, times, "mine", (0.0, 1.0)) for clip in numbers],
    }
    for name, videos in forms.items():
        found = embed(videos, num_frames=None, role="real", protocol=small("tf-original"))
        assert seen(found) == wanted, name
        assert found.setup.num_frames == 6
        assert found.sampling == "tensors"
    floats = embed(numbers / 127.5 - 1, num_frames=None, value_range=(-1.0, 1.0), protocol=small("tf-original"))
    assert seen(floats) == wanted


@pytest.mark.parametrize(
    ("videos", "options", "message"),
    [
        (torch.zeros(2, 3, 6, 16, 16, dtype=torch.uint8), {"num_frames": 5}, "clips differ in length"),
        ([torch.zeros(3, t, 16, 16, dtype=torch.uint8) for t in (5, 6)], {"num_frames": None}, "differ in length"),
        (torch.zeros(2, 3, 5, 16, 16), {}, "does not say what black and white are"),
        (torch.zeros(5, 16, 16, dtype=torch.uint8), {}, "these are no videos"),
        ([1, 2], {}, "these are no videos"),
        (3, {}, "these are no videos"),
        ((), {}, "nothing to read"),
        (iter(()), {}, "no clip is left"),
        ("not-there.mp4", {}, "no clip is left"),
    ],
)
def test_what_is_no_set_of_videos_is_refused(videos, options, message):
    with pytest.raises(InflateError, match=message):
        embed(videos, **options)


def test_clips_too_short_for_the_network_are_told_before_anything_is_read(folder):
    model = Witness()
    model.clip_spec = type("Spec", (), {"min_frames": 9})
    with pytest.raises(InflateError, match="too short for the network") as refused:
        embed(folder, model=model, num_frames=8)
    assert "9 frames or more" in str(refused.value)
    assert model.calls == []


@pytest.mark.parametrize(
    "options",
    [
        {"numerics": "fast"},
        {"num_frames": 0},
        {"frame_stride": 0},
        {"fps": "quick"},
        {"fps": 0},
        {"num_clips": 0},
        {"seed": -1},
        {"batch_size": 2.5},
        {"value_range": 1.0},
        {"resamples": 1},
    ],
    ids=str,
)
def test_options_out_of_range_are_refused_by_name(options):
    with pytest.raises(InflateError, match="out of range") as refused:
        FvdOptions(**options)
    (name,) = options
    assert refused.value.got.startswith(f"{name}=")
    assert refused.value.expected.startswith(f"{name}: ")
    assert refused.value.fix == f"take the default: {name}={getattr(FvdOptions(), name)!r}"


def test_unknown_protocols_are_refused_at_once():
    with pytest.raises(InflateError, match="no such protocol"):
        FvdOptions("fid")


@pytest.mark.parametrize("kept", [True, False])
def test_statistics_are_written_and_read(folder, tmp_path, kept):
    found = embed(folder, role="real")
    found = found if kept else replace(found, features=None)
    found.save(tmp_path / "deep" / "real.safetensors")
    again = VideoStatistics.load(tmp_path / "deep" / "real.safetensors")
    assert (again.setup, again.sampling, again.gaussian.count) == (found.setup, found.sampling, 3)
    torch.testing.assert_close(again.gaussian.mean, found.gaussian.mean, rtol=0, atol=0)
    torch.testing.assert_close(again.gaussian.covariance("biased"), found.gaussian.covariance("biased"))
    assert torch.equal(again.features, found.features) if kept else again.features is None


def test_damaged_and_foreign_files_are_no_statistics(folder, tmp_path):
    path = tmp_path / "real.safetensors"
    replace(embed(folder), features=None).save(path)
    whole = path.read_bytes()
    numbers = bytearray(whole)
    numbers[-3] ^= 1
    for damaged in (b"", whole[:-8], bytes(numbers), whole.replace(b"inflate3d.fvd", b"inflate3d.abc")):
        path.write_bytes(damaged)
        with pytest.raises(InflateError, match="no statistics of videos"):
            VideoStatistics.load(path)
    path.write_bytes(whole.replace(b'\\"count\\": 3', b'\\"count\\": 0'))
    with pytest.raises(InflateError, match="count do not belong together"):
        VideoStatistics.load(path)
    with pytest.raises(InflateError, match="no statistics of videos"):
        VideoStatistics.load(tmp_path / "not-there.safetensors")
