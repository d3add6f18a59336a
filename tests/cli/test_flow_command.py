"""`inflate3d flow` and `inflate3d predict --stream` as a stranger types them."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from inflate3d import InceptionI3d, InflateError
from inflate3d.cli import app, main
from inflate3d.cli.predict import FlowStream, _check_stream
from inflate3d.weights.checkpoint import convert_checkpoint
from videos import write_video

INFLATE3D = [sys.executable, "-m", "inflate3d"]


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def moving_video(path, count, height=64, width=84):
    texture = np.random.default_rng(0).integers(0, 256, (height + 99, width + 99, 3), dtype=np.uint8)
    texture = texture.repeat(4, 0).repeat(4, 1)
    pictures = [texture[i : i + height, 2 * i : 2 * i + width] for i in range(count)]
    return write_video(path, pictures, fps=25, crf="5")


def test_flow_of_good_and_bad_videos(tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    moving_video(folder / "good.mp4", 4)
    moving_video(folder / "one.mp4", 1)
    (folder / "text.mp4").write_text("no video")
    flags = ("--method", "dis", "--short-side", 48, "--layout", "tsn", "--images", "--overlay")
    done = run("flow", folder, "-o", tmp_path / "out", *flags)
    assert done.exit_code == 1, done.output
    assert "2 not read" in done.stdout
    assert not (tmp_path / "out" / "one").exists()
    assert "good: 3 flows" in done.stdout
    names = {path.name for path in (tmp_path / "out" / "good").iterdir()}
    flows = {f"flow_{axis}_0000{i}.jpg" for axis in "xy" for i in (1, 2, 3)}
    assert names == flows | {f"img_0000{i}.jpg" for i in (1, 2, 3, 4)} | {"flow.json", "overlay.mp4", "wheel.png"}
    record = json.loads((tmp_path / "out" / "good" / "flow.json").read_text())
    assert (record["num_flows"], record["settings"]["method"], record["settings"]["fps"]) == (3, "dis", "25")
    again = run("flow", folder / "good.mp4", "-o", tmp_path / "out", *flags)
    assert again.exit_code == 0, again.output
    assert "good: 3 flows, 3 of them before" in again.stdout
    other = run("flow", folder / "good.mp4", "-o", tmp_path / "out", *flags, "--fps", 5)
    assert other.exit_code == 1
    assert "made" in other.stdout
    assert "otherwise" in other.stdout


def test_the_output_may_lie_among_the_videos(tmp_path, monkeypatch):
    moving_video(tmp_path / "a.mp4", 3)
    monkeypatch.chdir(tmp_path)
    for layout, before in (("mp4", ""), ("mp4", ", 2 of them before")):
        done = run("flow", ".", "-o", "flow", "--method", "dis", "--short-side", 48, "--layout", layout)
        assert done.exit_code == 0, done.output
        assert done.stdout.split() == f"flow/a: 2 flows{before}".split()


@pytest.mark.parametrize("elsewhere", [True, False])
def test_pictures_of_one_name_are_not_taken_for_another(tmp_path, elsewhere):
    """Two folders have the same size, whatever is in them."""
    for number, place in enumerate(("one", "two" if elsewhere else "one")):
        folder = tmp_path / place / "clip"
        folder.mkdir(parents=True, exist_ok=True)
        for i in range(3):
            Image.new("RGB", (40, 30), (i, number, i)).save(folder / f"{i}.png")
        done = run("flow", folder, "-o", tmp_path / "out", "--method", "dis", "--short-side", 30)
    assert done.exit_code == 1 and "made otherwise" in " ".join(done.stdout.split())


def test_the_current_folder_gets_a_folder_of_its_name(tmp_path, monkeypatch):
    (tmp_path / "jump").mkdir()
    for i in range(3):
        Image.new("RGB", (40, 30), (i, i, i)).save(tmp_path / "jump" / f"{i}.png")
    monkeypatch.chdir(tmp_path / "jump")
    done = run("flow", ".", "-o", tmp_path / "out", "--method", "dis", "--short-side", 30)
    assert done.exit_code == 0, done.output
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["jump"]
    assert json.loads((tmp_path / "out" / "jump" / "flow.json").read_text())["settings"]["source"] == "jump"


@pytest.mark.usefixtures("heard_ctrl_c")
def test_ctrl_c_and_then_the_rest(tmp_path):
    video = moving_video(tmp_path / "long.mp4", 30)
    command = ["flow", video, "-o", tmp_path / "out", "--no-compile", "--short-side", 64, "--batch-size", 1]
    folder = tmp_path / "out" / "long"
    with subprocess.Popen([*INFLATE3D, *map(str, command)], stdout=subprocess.PIPE) as process:
        while not list(folder.glob("flow_y_*.jpg")) and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        process.communicate()
    assert process.returncode == 130
    before = {path.name: path.stat().st_mtime_ns for path in folder.glob("flow_?_*.jpg")}
    assert 2 <= len(before) < 2 * 29
    done = run(*command)
    assert done.exit_code == 0, done.output
    after = {path.name: path.stat().st_mtime_ns for path in folder.glob("flow_?_*.jpg")}
    assert len(after) == 2 * 29
    whole = {name for name in before if name.replace("_x_", "_y_") in before}
    assert all(after[name] == before[name] for name in whole)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.mp4", "b/a.avi", "-o", "out", "--method", "dis"], "several videos have one name"),
        (["a.mp4", "-o", "out", "--layout", "denseflo"], "layout='denseflo'"),
        (["a.mp4", "-o", "out", "--method", "tvl"], "did you mean tvl1"),
        (["a.mp4", "-o", "out", "--fps", "often"], "inflate3d flow --fps: the frame rate is no number"),
        (["a.mp4", "-o", "out", "--fps", "0"], "fps: a number of 0.0001 or more, or native got: fps=0.0"),
        (["a.mp4", "-o", "out", "--quantizer", "none"], "quantizer='none'"),
        (["a.mp4", "-o", "out", "--method", "raft"], "--flow-weights download"),
    ],
)
def test_mistakes_end_with_a_fix_and_exit_code_2(arguments, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["inflate3d", "flow", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("stream", "message"),
    [
        (FlowStream("both"), r"the flow stream has no weights(.|\n)*flow_imagenet"),
        (FlowStream("flow"), r"inflate3d weights convert flow_imagenet\.pt i3d-flow\.safetensors"),
        (FlowStream("depth"), r"--stream: there is no such stream(.|\n)*'depth'"),
        (FlowStream("rgb", "a.pt"), r"a stream that is not asked for(.|\n)*--stream both, or leave --flow-model out"),
        (FlowStream("rgb", stored=Path("out"), method="dis"), r"got: +--stream rgb --flow-method dis --flow-from out"),
        (FlowStream("flow", "a.pt", fusion="probabilities"), "--stream both, or leave --fusion out"),
    ],
)
def test_the_flow_stream_needs_weights(stream, message):
    with pytest.raises(InflateError, match=message):
        _check_stream(stream)


def test_without_weights_predict_ends_with_a_fix():
    done = run("predict", "a.mp4", "--stream", "both")
    assert "inflate3d weights convert" in str(done.exception)


@pytest.fixture(scope="module")
def two_networks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    for name, channels in (("rgb", 3), ("flow", 2)):
        torch.save(InceptionI3d(5, in_channels=channels).state_dict(), folder / f"{name}.pt")
        convert_checkpoint(folder / f"{name}.pt", folder / f"{name}.safetensors")
    return folder


def test_two_streams(tmp_path, two_networks):
    video = moving_video(tmp_path / "clip.mp4", 9, 256, 256)
    models = ("--model", two_networks / "rgb.safetensors", "--flow-model", two_networks / "flow.safetensors")
    flags = ("--window", 9, "--flow-method", "dis", "--json", tmp_path / "out.json")
    done = run("predict", video, "--stream", "both", *models, *flags)
    assert done.exit_code == 0, done.output
    assert "rgb" in done.stdout
    assert "joint" in done.stdout
    document = json.loads((tmp_path / "out.json").read_text())
    (found,) = document["videos"]
    assert found["num_frames"] == 8
    joint, rgb, flow = (
        {score["index"]: score["logit"] for score in one["top"]}
        for one in (found, found["streams"]["rgb"], found["streams"]["flow"])
    )
    assert joint == pytest.approx({index: rgb[index] + flow[index] for index in rgb}, abs=1e-5)
    assert document["settings"]["flow_quantizer"] == "mediapipe"
    assert document["settings"]["fusion"] == "logits"
    alone = run("predict", video, "--stream", "flow", *models[2:], *flags)
    assert alone.exit_code == 0, alone.output
    (found,) = json.loads((tmp_path / "out.json").read_text())["videos"]
    assert {score["index"]: score["logit"] for score in found["top"]} == pytest.approx(flow, abs=1e-4)
    assert run("flow", video, "-o", tmp_path / "flow", "--method", "dis", "--layout", "npz").exit_code == 0
    stored = run("predict", video, "--stream", "flow", *models[2:], "--flow-from", tmp_path / "flow", *flags)
    assert stored.exit_code == 0, stored.output
    (found,) = json.loads((tmp_path / "out.json").read_text())["videos"]
    assert {score["index"]: score["logit"] for score in found["top"]} == pytest.approx(flow, abs=1e-4)
