"""Each preset's files, loaded as its project loads them: shape, dtype, order, and the time of each row."""

import json
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from feature_stand_ins import (
    SteppingWitness,
    StreamOfWitness,
    Witness,
    numbered_flow,
    numbers_of,
    numbers_of_flow,
    write_numbered,
)

from inflate3d.errors import InflateError
from inflate3d.results.feature_files import plan_jobs
from inflate3d.results.feature_presets import (
    CROP_SETS,
    NUM_CROPS,
    PRESETS,
    FeatureLayout,
    FeatureOptions,
    preset_named,
)
from inflate3d.results.feature_runs import extract_files
from inflate3d.results.features import Extractor

NUM_FRAMES, FPS = 70, 30
SMALL = 64  # pixels of a crop, to spare time
STEP = 40 / 255  # pixels between two codes of flow
PER_CODE = STEP / 0.3  # in frame numbers


def extracted(tmp_path, monkeypatch, name, *, count=NUM_FRAMES, **changes):
    """Run a preset over one video; gives the folder and the line of the manifest."""
    monkeypatch.setattr("inflate3d.results.features.find_method", lambda *_, **__: numbered_flow)
    preset = PRESETS[name]
    (tmp_path / "videos").mkdir(exist_ok=True)
    write_numbered(tmp_path / "videos" / "v_one.mp4", count, FPS)
    kind = SteppingWitness if preset.options.window == "whole" else Witness
    monkeypatch.setattr("inflate3d.results.feature_network.Stream", StreamOfWitness)
    monkeypatch.setattr("inflate3d.results.feature_network.can_stream", lambda model: True)
    width = 2048 if name == "rtfm" else 1024
    models = {"rgb": kind(3, width).eval(), "flow": kind(2, width).eval()}
    options = replace(preset.options, **{"crop": SMALL, **changes})
    run = extract_files(
        Extractor({stream: models[stream] for stream in options.stream_names}, options),
        plan_jobs([tmp_path / "videos"]),
        tmp_path,
        layout=preset.layout,
    )
    assert (run.num_done, run.failures) == (1, ())
    rows = [json.loads(line) for line in (tmp_path / "manifest.jsonl").read_text().splitlines()]
    (row,) = [row for row in rows if row.get("status") == "done"]
    return row


def at_rate(fps, count=NUM_FRAMES):
    """Which frames of a video at 30 per second a reading at `fps` gives: the nearest in time."""
    length = int(count / FPS * fps + 0.5)
    return np.array(
        [min(range(count), key=lambda i: (abs(Fraction(i, FPS) - Fraction(k, fps)), i)) for k in range(length)]
    )


def check_windows(row, shown, starts, window, fps, *, at=0.5):
    """Frames and times of the manifest: `at` says which part of a window a row's time is."""
    assert row["windows"]["start_frames"] == list(starts)
    assert row["windows"]["num_frames"] == window
    times = [(start + at * window) / fps for start in starts]
    np.testing.assert_allclose(row["windows"]["times_seconds"], times, atol=2e-6)
    assert (row["num_frames"], row["fps"]) == (len(shown), pytest.approx(fps))


def check_rows(rgb, flow, shown, starts, window):
    """Rows of colors and flow against the means of their frames' numbers."""
    wanted = [shown[start : start + window].mean() for start in starts]
    np.testing.assert_allclose(numbers_of(rgb), wanted, atol=1e-3)
    if flow is not None:
        np.testing.assert_allclose(numbers_of_flow(flow), wanted, atol=2 * PER_CODE)


def test_actionformer_thumos(tmp_path, monkeypatch):
    row = extracted(tmp_path, monkeypatch, "actionformer-thumos")
    feats = np.load(tmp_path / "v_one.npy").astype(np.float32)
    assert np.load(tmp_path / "v_one.npy").dtype == np.float32
    shown, starts = np.arange(NUM_FRAMES), range(0, NUM_FRAMES - 1 - 16 + 1, 4)  # the last frame has no flow
    assert feats.shape == (len(starts), 2048)
    check_rows(feats[:, :1024], feats[:, 1024:], shown, starts, 16)
    check_windows(row, shown, starts, 16, FPS)
    # their own formula: where on the grid of rows a time lies
    grid = np.array(row["windows"]["times_seconds"]) * row["fps"] / 4 - 0.5 * 16 / 4
    np.testing.assert_allclose(grid, range(len(starts)), atol=1e-4)


def test_actionformer_anet_by_file_and_by_hdf5(tmp_path, monkeypatch):
    h5py = pytest.importorskip("h5py")
    row = extracted(tmp_path, monkeypatch, "actionformer-anet")
    feats = np.load(tmp_path / ("v_" + "one" + ".npy")).astype(np.float32)
    shown = at_rate(25)
    starts = range(0, len(shown) - 1 - 16 + 1, 16)
    assert feats.shape == (len(starts), 2048)
    check_rows(feats[:, :1024], feats[:, 1024:], shown, starts, 16)
    check_windows(row, shown, starts, 16, 25)
    layout = replace(PRESETS["actionformer-anet"].layout, format="h5", collected="hdf5", collected_name="anet.h5")
    models = {"rgb": Witness().eval(), "flow": Witness(2).eval()}
    extractor = Extractor(models, replace(PRESETS["actionformer-anet"].options, crop=SMALL))
    run = extract_files(extractor, plan_jobs([tmp_path / "videos"]), tmp_path, layout=layout)
    assert run.collected == ("anet.h5",)
    with h5py.File(tmp_path / "anet.h5", "r") as h5_fid:
        np.testing.assert_array_equal(np.asarray(h5_fid["v_" + "one"][()]), feats)


def test_wtalc(tmp_path, monkeypatch):
    row = extracted(tmp_path, monkeypatch, "wtalc")
    features = np.load(tmp_path / "I3D-JOINTFeatures.npy", encoding="bytes", allow_pickle=True)
    names = np.load(tmp_path / "videoname.npy", encoding="bytes")
    shown = at_rate(25)
    starts = range(0, len(shown) - 1 - 16 + 1, 16)
    assert features.shape == (1,) and names[0].decode("utf-8") == "v_one"
    feat = np.array(features[0])
    assert feat.shape == (len(starts), 2048) and feat.dtype == np.float32
    check_rows(feat[:, :1024], feat[:, 1024:], shown, starts, 16)
    check_windows(row, shown, starts, 16, 25)
    np.testing.assert_array_equal(np.load(tmp_path / "v_one.npy"), feat)


# (right, down) of corners, center; a mirrored frame's top left corner shows what is at the top right
LOW, MID, HIGH = -1, 0, 1
TORCHVISION_FIVE = [(LOW, LOW), (HIGH, LOW), (LOW, HIGH), (HIGH, HIGH), (MID, MID)]


def check_crops(crops, wanted):
    """Order of crops: `wanted` is (right, down) of each, and whether it is mirrored."""
    middle = np.array([np.mean([crop[1] for crop in crops]), np.mean([crop[2] for crop in crops])])
    for crop, (right, down, mirrored) in zip(crops, wanted, strict=True):
        found = np.array([crop[1], crop[2]]) - middle
        assert [int(np.sign(round(value, 2))) for value in found] == [right, down]
        assert (crop[4] < 0) == mirrored


def test_rtfm(tmp_path, monkeypatch):
    row = extracted(tmp_path, monkeypatch, "rtfm")
    features = np.load(str(tmp_path / "v_one_i3d.npy") + "\n".strip("\n"), allow_pickle=True)
    features = np.array(features, dtype=np.float32)
    shown, starts = np.arange(NUM_FRAMES), range(0, NUM_FRAMES - 16 + 1, 16)
    assert features.shape == (len(starts), 10, 2048)
    features = features.transpose(1, 0, 2)  # [10, B, T, F]
    for crop in features:
        check_rows(crop, None, shown, starts, 16)
    mirrored = [(-right, down, True) for right, down in TORCHVISION_FIVE]
    check_crops(features[:, 0], [(*place, False) for place in TORCHVISION_FIVE] + mirrored)
    check_windows(row, shown, starts, 16, FPS)


def test_xd_violence(tmp_path, monkeypatch):
    row = extracted(tmp_path, monkeypatch, "xd-violence")
    shown = at_rate(24)
    starts = range(0, len(shown) - 1 - 16 + 1, 16)
    crops = []
    for crop in range(5):
        features1 = np.array(np.load(tmp_path / "rgb" / f"v_one__{crop}.npy"), dtype=np.float32)
        features2 = np.array(np.load(tmp_path / "flow" / f"v_one__{crop}.npy"), dtype=np.float32)
        assert features1.shape[0] == features2.shape[0]  # else their loader drops a row
        features = np.concatenate((features1, features2), axis=1)
        assert features.shape == (len(starts), 2048)
        check_rows(features1, features2, shown, starts, 16)
        crops.append(features1[0])
    check_crops(crops, [(MID, MID, False), *((*place, False) for place in TORCHVISION_FIVE[:4])])
    check_windows(row, shown, starts, 16, 24)


def test_ms_tcn(tmp_path, monkeypatch):
    row = extracted(tmp_path, monkeypatch, "ms-tcn")
    features_path, vid = f"{tmp_path}/", "v_one.txt"
    features = np.load(features_path + vid.split(".", maxsplit=1)[0] + ".npy")
    content = ["walk"] * NUM_FRAMES
    assert features.shape == (2048, NUM_FRAMES) and features.dtype == np.float32
    assert len(np.zeros(min(np.shape(features)[1], len(content)))) == NUM_FRAMES  # a column for each label
    rgb, flow = features[:1024].T, features[1024:].T
    inner = range(10, NUM_FRAMES - 11)
    np.testing.assert_allclose(numbers_of(rgb[inner]), inner, atol=1e-3)
    np.testing.assert_allclose(numbers_of_flow(flow[inner]), inner, atol=1e-3)  # as floats, not as codes
    # at the borders frames of zeros: 21 frames, of which the first 10 and frames 0 to 10 are shown
    value = np.mean([0.0] * 10 + [i / 127.5 - 1 for i in range(11)])
    np.testing.assert_allclose(rgb[0, 0], value, atol=1e-5)
    last = [(i - 64) * 0.3 / 20 for i in range(NUM_FRAMES - 11, NUM_FRAMES - 1)]  # ten flows, then no more
    np.testing.assert_allclose(flow[-1, 0], np.sum(last) / 21, atol=1e-5)
    assert row["windows"]["start_frames"] == list(range(-10, NUM_FRAMES - 10))
    np.testing.assert_allclose(row["windows"]["times_seconds"], np.arange(NUM_FRAMES) / FPS, atol=2e-6)


@pytest.mark.parametrize("streams", ["both", "rgb"])
def test_video_features(tmp_path, monkeypatch, streams):
    row = extracted(tmp_path, monkeypatch, "video-features", count=129, streams=streams)
    rgb = np.load(tmp_path / "v_one_rgb.npy")
    fps, timestamps = np.load(tmp_path / "v_one_fps.npy"), np.load(tmp_path / "v_one_timestamps_ms.npy")
    shown, starts = np.arange(129), (0, 64)  # 2 x 64 frames and the one that the last flow leads to
    assert rgb.shape == (2, 1024) and rgb.dtype == np.float64
    assert fps.shape == () and fps == pytest.approx(FPS)
    np.testing.assert_allclose(timestamps, [64 / FPS * 1000, 128 / FPS * 1000], atol=1e-3)
    flow = np.load(tmp_path / "v_one_flow.npy") if streams == "both" else None
    check_rows(rgb, flow, shown, starts, 64)
    check_windows(row, shown, starts, 64, FPS, at=1.0)


def test_video_features_has_no_row_for_frames_without_flow(tmp_path, monkeypatch):
    extracted(tmp_path, monkeypatch, "video-features", count=128, streams="rgb")
    assert np.load(tmp_path / "v_one_rgb.npy").shape == (1, 1024)


@pytest.mark.parametrize("crops", ["center", "ten-center-third"])
def test_finspire(tmp_path, monkeypatch, crops):
    row = extracted(tmp_path, monkeypatch, "finspire", crops=crops)
    shown, starts = np.arange(NUM_FRAMES), range(0, NUM_FRAMES - 1 - 16 + 1, 16)
    rgb, flow = (dict(np.load(tmp_path / f"v_one-{stream}.npz")) for stream in ("rgb", "flow"))
    count = NUM_CROPS[crops]
    assert rgb["feature"].shape == flow["feature"].shape == (count, len(starts), 1024)
    assert (int(rgb["frame_cnt"]), str(rgb["video_name"])) == (NUM_FRAMES, "v_one")
    joint = np.concatenate([rgb["feature"].mean(0), flow["feature"].mean(0)], 1)  # what CMCS's users do
    assert joint.shape == (len(starts), 2048)
    check_rows(rgb["feature"][0], flow["feature"][0], shown, starts, 16)
    if count == 10:
        five = [TORCHVISION_FIVE[i] for i in (0, 1, 4, 2, 3)]
        check_crops(rgb["feature"][:, 0], [(*a, False) for a in five] + [(-a[0], a[1], True) for a in five])
        # the horizontal flow of a mirrored crop has its sign changed
        np.testing.assert_allclose(flow["feature"][:5, :, 0], -flow["feature"][5:, :, 0], atol=1e-6)
    check_windows(row, shown, starts, 16, FPS)


def test_bsl1k(tmp_path, monkeypatch):
    loadmat = pytest.importorskip("scipy.io").loadmat
    row = extracted(tmp_path, monkeypatch, "bsl1k")
    shown = at_rate(25)
    features = loadmat(tmp_path / "features.mat")["preds"]
    num_frames_list = [max(len(shown) - (16 - 1), 0)]
    assert features.shape == (sum(num_frames_list), 1024) and features.dtype == np.float32
    starts = range(len(shown) - 15)
    wanted = [shown[start : start + 16].mean() for start in starts]
    np.testing.assert_allclose(numbers_of(features, (-0.5, 0.5)), wanted, atol=1e-3)
    labels = np.arange(len(shown))[int(16 / 2) : -int(16 / 2) + 1]  # theirs: the middle frame of each window
    np.testing.assert_allclose(row["windows"]["times_seconds"], labels / 25, atol=2e-6)
    np.testing.assert_array_equal(np.load(tmp_path / "v_one.npy"), features)


def test_bsl1k_fills_a_short_video_with_its_last_frame(tmp_path, monkeypatch):
    extracted(tmp_path, monkeypatch, "bsl1k", count=12)
    shown = at_rate(25, 12)
    (row,) = np.load(tmp_path / "v_one.npy")
    filled = [*shown, *[shown[-1]] * (16 - len(shown))]
    np.testing.assert_allclose(numbers_of(row, (-0.5, 0.5)), np.mean(filled), atol=1e-3)


@pytest.mark.parametrize(("streams", "count"), [("rgb", 70), ("flow", 70), ("rgb", 230)])
def test_charades_piergiaj(tmp_path, monkeypatch, streams, count):
    row = extracted(tmp_path, monkeypatch, "charades-piergiaj", count=count, streams=streams, fps="native")
    features = np.load(tmp_path / "v_one.npy")
    usable = count - (streams == "flow")
    steps = -(-usable // 8) - 1
    assert features.shape == (steps, 1, 1, 1024) and features.dtype == np.float32
    wanted = [np.arange(8 * i, min(8 * i + 16, usable)).mean() for i in range(steps)]
    read = numbers_of if streams == "rgb" else numbers_of_flow
    np.testing.assert_allclose(read(features[:, 0, 0]), wanted, atol=1e-3 if streams == "rgb" else 2 * PER_CODE)
    assert row["windows"]["start_frames"] == [8 * i for i in range(steps)]
    np.testing.assert_allclose(row["windows"]["times_seconds"], [(8 * i + 8) / FPS for i in range(steps)], atol=2e-6)


def test_every_preset_has_its_test():
    assert {f"test_{name.replace('-', '_')}" for name in PRESETS} <= {
        name.removesuffix("_by_file_and_by_hdf5") for name in globals()
    }
    assert all(preset.load and preset.source for preset in PRESETS.values())


@pytest.mark.shared
def test_the_published_rows_and_times_of_video_features(tmp_path, shared):
    """Their own sample video, by their defaults; its values are of other weights than those that we have."""
    golden = np.load(shared / "golden" / "video_features_i3d_raft_refs.npz")
    (video,) = (shared / "data" / "videos" / "singles" / "clean_and_jerk").iterdir()
    preset = PRESETS["video-features"]
    extractor = Extractor({"rgb": Witness().eval()}, replace(preset.options, streams="rgb"))
    assert extract_files(extractor, plan_jobs([video]), tmp_path, layout=preset.layout).num_done == 1
    start = "v_GGSY1Qvo990_rgb_raft_None_None_None"
    for kind in ("rgb", "fps", "timestamps_ms"):
        found, wanted = np.load(tmp_path / f"v_GGSY1Qvo990_{kind}.npy"), golden[f"{start}_{kind}"]
        assert (found.shape, found.dtype) == (wanted.shape, np.float64)
        if kind != "rgb":
            np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_unknown_presets_are_refused():
    with pytest.raises(InflateError, match="no such preset") as caught:
        preset_named("action-former")
    assert "actionformer" in caught.value.fix


def test_all_faults_of_options_are_told_together():
    with pytest.raises(InflateError, match="out of range") as caught:
        FeatureOptions("all", window=0, resize=(1, 2, 3), crops="six", tail="right-align", align="center")
    for word in ("streams", "window", "resize", "crops", "tail"):
        assert word in caught.value.got


def test_layouts_that_lose_something_are_refused():
    with pytest.raises(InflateError, match="out of range") as caught:
        FeatureLayout("h5", axes="crop-files", name="{stem}")
    assert "{crop}" in caught.value.got and "hdf5" in caught.value.got
    for name in ("../{stem}", "{other}", "{"):
        with pytest.raises(InflateError, match="out of range"):
            FeatureLayout(name=name)


def test_crop_sets_are_permutations():
    for name, chosen in CROP_SETS.items():
        if chosen and chosen[1]:
            assert len(set(chosen[1])) == len(chosen[1]) == NUM_CROPS[name]
