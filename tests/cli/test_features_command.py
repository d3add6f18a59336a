"""`inflate3d features`: options to a run, exit codes, and with the real weights the class of a real video."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from inflate3d.cli import app
from inflate3d.clips.transforms import frames_to_input
from inflate3d.clips.video import read_clip
from inflate3d.errors import InflateError
from inflate3d.results.feature_presets import PRESETS, FeatureOptions
from inflate3d.results.features import extract

sys.path.append(str(Path(__file__).parents[1] / "results"))
from feature_stand_ins import numbered_flow, write_numbered

NET = ["--model", "timm/test_resnet", "--weights", "none", "--resize", "64", "--crop", "64"]


def run(*arguments):
    return CliRunner().invoke(app, ["features", *map(str, arguments)])


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return write_numbered(tmp_path_factory.mktemp("video") / "one.mp4", 12)


def test_a_preset_with_changes(tmp_path, video, monkeypatch):
    """A small flow network stands where none can be had; a second run finds nothing to do."""
    monkeypatch.setattr("inflate3d.results.features.find_method", lambda *_, **__: numbered_flow)
    arguments = (video, "-o", tmp_path, "--preset", "actionformer-thumos", *NET, "--flow-model", "timm/test_resnet")
    arguments = (*arguments, "--window", 4, "--crops", "five", "--dtype", "float16")
    first = run(*arguments)
    assert first.exit_code == 0, first.output
    assert "1 videos done" in first.output
    found = np.load(tmp_path / "one.npy")
    assert found.dtype == np.float16 and found.shape[0] == 2  # starts 0 and 4 of 11 frames with flow
    made = json.loads((tmp_path / "manifest.jsonl").read_text().splitlines()[0])["made"]
    assert made["options"]["crops"] == "five" and made["options"]["quantizer"] == "denseflow"
    assert made["layout"]["join"] is True and set(made["weights"]) == {"rgb", "flow"}
    again = run(*arguments)
    assert again.exit_code == 0 and "0 videos done, 1 done before" in again.output


def test_failures_end_in_exit_code_1(tmp_path, video):
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.mp4").write_bytes(b"no video")
    result = run(video, tmp_path, "-o", tmp_path / "out", *NET, "--window", 4, "--format", "h5")
    assert result.exit_code == 1
    assert "3 not read" in result.output and "1 videos done, 3 failed" in result.output
    rows = [json.loads(line) for line in (tmp_path / "out" / "manifest.jsonl").read_text().splitlines()]
    assert ["FFmpeg cannot open" in row["error"] for row in rows if row.get("status") == "failed"] == [True] * 3
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "out" / "features.h5", "r") as file:
        assert file["one/i3d_features/rgb"].shape[0] == 2


def test_presets_are_listed():
    result = run("--presets")
    assert result.exit_code == 0
    assert all(name in result.output for name in PRESETS)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--preset", "thumos"], "no such preset"),
        (["--window", "some", "--resize", "3x", "--value-range", "a,b"], "out of range"),
        (["--shard", "3/2"], "no such shard"),
        (["--ray", "--shard", "1/2", *NET], "no shards"),
        (["--streams", "both", *NET], "the flow stream has no network"),
        (["--model", "timm/test_resnet"], "network and weights do not go together"),
        (["--fps", "fast"], "no number"),
    ],
)
def test_mistakes_are_told(tmp_path, video, arguments, problem):
    result = run(video, "-o", tmp_path / "out", *arguments)
    assert isinstance(result.exception, InflateError)
    assert problem in result.exception.problem


def test_sizes_and_shards_are_read(tmp_path, video):
    options = ("--window", 4, "--value-range", "0,1", "--shard", "2/2", "--fps", "native", "--stride", 8)
    result = run(video, "-o", tmp_path, *NET, "--resize", "80x64", *options)
    assert result.exit_code == 0 and "0 videos done" in result.output  # the one video is the first shard's
    made = json.loads((tmp_path / "manifest.2-of-2.jsonl").read_text().splitlines()[0])["made"]["options"]
    assert (made["resize"], made["value_range"], made["fps"]) == ([80, 64], [0.0, 1.0], "native")


def by_hand(shared, name):
    path, *_ = (shared / "data" / "videos" / "singles" / name).iterdir()
    return path, read_clip(path, fps="native").data.permute(1, 2, 3, 0)


@pytest.mark.weights
@pytest.mark.shared
def test_features_of_a_real_video_are_those_of_the_network_run_by_hand(tmp_path, shared, kinetics_i3d):
    path, frames = by_hand(shared, "walking_the_dog")
    result = run(path, "-o", tmp_path, "--window", 16, "--stride", 150, "--fps", "native")
    assert result.exit_code == 0, result.output
    found = torch.from_numpy(np.load(tmp_path / f"{path.stem}_rgb.npy"))
    starts = range(0, len(frames) - 16 + 1, 150)
    assert len(found) == len(starts) > 1
    for row, start in zip(found, starts, strict=True):
        clip = frames_to_input(list(frames[start : start + 16]), kinetics_i3d.clip_spec)
        with torch.inference_mode():
            pooled = kinetics_i3d.endpoints(clip, ["AvgPool_2x7x7"])["AvgPool_2x7x7"]
        torch.testing.assert_close(row, pooled.mean((2, 3, 4))[0].clone(), rtol=1e-5, atol=1e-5)


@pytest.mark.weights
@pytest.mark.shared
def test_the_mean_of_the_logits_names_the_class(shared, kinetics_i3d):
    path, _ = by_hand(shared, "walking_the_dog")
    options = FeatureOptions(endpoint="logits", window=32, stride=150, fps="native")
    logits = extract(kinetics_i3d, path, options).features["rgb"][:, 0].double().mean(0)
    assert kinetics_i3d.class_names[int(logits.argmax())] == "walking the dog"
