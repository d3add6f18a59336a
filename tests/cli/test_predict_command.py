"""`inflate3d predict` as a stranger types it: mostly in this process with a tiny network, twice with the real one."""

import json
import os
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from inflate3d import ClipSpec, PredictOptions, __version__
from inflate3d import predict as predict_video
from inflate3d.cli import app, main
from inflate3d.cli.predict import FlowStream, Outputs, _settings, _write
from inflate3d.errors import InflateError
from inflate3d.results.prediction import VideoPrediction, WindowPrediction
from inflate3d.speed.optimize import Optimized
from inflate3d.weights.fetch import fetch_demo_clip
from videos import write_video

README = Path(__file__).parents[2] / "README.md"
INFLATE3D = [sys.executable, "-m", "inflate3d"]


class Tiny(nn.Module):
    """Tells dark videos from bright ones; two things can be made to go wrong."""

    clip_spec = ClipSpec(fps=25.0, num_frames=4, min_frames=1, short_side=16, crop=16, value_range=(0.0, 255.0))
    class_names = ("dark", "bright")
    coarse = broken = False

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv3d(3, 2, 1)
        nn.init.constant_(self.conv.weight[1], 1 / 100)
        nn.init.constant_(self.conv.weight[0], -1 / 100)
        nn.init.zeros_(self.conv.bias)

    def forward(self, clip):
        if self.broken and clip.mean() > 100:
            raise TypeError("a bug of the model")
        sign = -1 if self.coarse and torch.is_autocast_enabled(clip.device.type) else 1
        return sign * self.conv(clip).float().mean((2, 3, 4))


@pytest.fixture
def network(monkeypatch):
    """The network that every name stands for."""
    network = Tiny().eval()
    monkeypatch.setattr("inflate3d.weights.load.load", lambda name: network)
    return network


def video(path, brightness, count=9):
    return write_video(path, [np.full((16, 24, 3), brightness, np.uint8)] * count, fps=25)


def run(*arguments):
    return CliRunner().invoke(app, ["predict", *map(str, arguments)])


def flags_for(outputs):
    return [item for flag, path in zip(("--json", "--csv", "--report"), outputs, strict=True) for item in (flag, path)]


@pytest.fixture
def outputs(tmp_path):
    return [tmp_path / name for name in ("out.json", "out.csv", "out.html")]


def test_good_and_bad_files_in_one_folder(network, outputs, tmp_path):
    """3 results, 3 rows of reasons, exit code 1."""
    folder = tmp_path / "videos"
    folder.mkdir()
    for i in range(3):
        video(folder / f"good{i}.mp4", 200)
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("this is no video\n" * 99)
    (folder / "cut.mp4").write_bytes((folder / "good1.mp4").read_bytes()[:-400])  # without its index
    done = run(folder, "--num-frames", 6, "--top", 2, "--precision", "bf16", *flags_for(outputs))
    assert done.exit_code == 1, done.output
    document = json.loads(outputs[0].read_text())
    assert [entry["num_frames"] for entry in document["videos"]] == [6] * 3
    failed = {failure["source"].rsplit("/", 1)[1] for failure in document["failures"]}
    assert failed == {"empty.mp4", "text.mp4", "cut.mp4"}
    assert all("fix:" in failure["reason"] for failure in document["failures"])
    assert "3 not read" in done.stdout
    assert outputs[1].read_text().count("good2.mp4") == 3 * 2  # two windows and the whole
    assert outputs[2].read_text().count("<section>") == 3
    assert [entry["top"][0]["label"] for entry in document["videos"]] == ["bright"] * 3
    assert document["settings"]["precision"] == "bf16"


def test_the_precision_that_is_written_is_the_one_that_was_used(network, outputs, tmp_path):
    network.coarse = True
    done = run(video(tmp_path / "a.mp4", 200), "--precision", "bf16", *flags_for(outputs))
    assert done.exit_code == 0, done.output
    assert "bfloat16 is too coarse" in " ".join(done.stdout.split())
    settings = json.loads(outputs[0].read_text())["settings"]
    assert settings["precision"] == "fp32"
    assert "back to float32: bfloat16 was too coarse" in settings["made fast"]
    assert "<dt>precision</dt><dd>fp32</dd>" in outputs[2].read_text()


def test_int8_without_a_video_to_be_calibrated_with_is_written_as_float32(network, outputs, tmp_path):
    done = run(tmp_path / "gone.mp4", "--precision", "int8", *flags_for(outputs))
    assert "int8 has nothing to be calibrated with" in " ".join(done.stdout.split())
    assert json.loads(outputs[0].read_text())["settings"]["precision"] == "fp32"


def test_a_bug_of_the_network_ends_the_run_and_what_is_done_is_written(network, outputs, tmp_path):
    network.broken = True
    videos = [video(tmp_path / "a.mp4", 50), video(tmp_path / "b.mp4", 200), video(tmp_path / "c.mp4", 50)]
    done = run(*videos, *flags_for(outputs))
    assert isinstance(done.exception, TypeError)
    document = json.loads(outputs[0].read_text())
    assert [entry["source"] for entry in document["videos"]] == [str(videos[0])]
    assert document["failures"] == []


def test_int8_prints_what_it_costs(network, tmp_path):
    done = run(video(tmp_path / "a.mp4", 200), "--precision", "int8", "--workers", 1)
    assert done.exit_code == 0, done.output
    assert re.search(
        r"int8; 3 calibration clips: lowest cosine (0\.9\d+|1\.0+), same first answer for 3 of 3", done.stdout
    )


def test_a_file_name_that_is_no_text(network, outputs, tmp_path):
    """It comes out as one in every place, and costs no result."""
    done = run(os.fsdecode(bytes(tmp_path / "bad") + b"\xff.mp4"), *flags_for(outputs))
    assert done.exit_code == 1, done.output
    assert json.loads(outputs[0].read_text())["failures"][0]["source"].endswith("bad\\udcff.mp4")
    assert "bad\\udcff.mp4" in outputs[2].read_text()


@pytest.mark.weights
def test_json_on_standard_output_is_nothing_but_json(kinetics_weights):
    command = [*INFLATE3D, "predict", str(fetch_demo_clip()), "--num-frames", "9", "--window", "9", "--json", "-"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(done.stdout)["videos"]
    assert (len(found["top"]), found["fps"]) == (5, 25.0)
    assert "%" in done.stderr  # the table


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["video.mp4", "--workers", "0"], "workers: 1 or more, or None got: workers=0"),
        (["video.mp4", "--fps", "often"], "the frame rate is no number"),
        (["video.mp4", "--crops", "six"], "crops: center, three, five, ten got: crops='six' fix: take the default:"),
        (["video.mp4", "--fps", "0"], "got: fps=0.0"),
        (["video.mp4", "--top", "0"], "Invalid value for '--top'"),
        (["video.mp4", "--csv", "-"], "the results have no place of their own"),
        (["video.mp4", "--report", "-"], "the results have no place of their own"),
        (["video.mp4", "--json", "a", "--csv", "./a"], "--json a, --csv a"),
        (["video.mp4", "--json", "."], "there is a folder of that name"),
        (["video.mp4", "--model", "i3d-kinetic400"], "did you mean i3d-kinetics400"),
        (["video.mp4", "--flow-method", "dis"], "a stream that is not asked for"),
    ],
)
def test_mistakes_end_with_a_fix_and_exit_code_2(arguments, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["inflate3d", "predict", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_weights_that_are_not_there_yet_are_not_fetched_silently(tmp_path, monkeypatch):
    monkeypatch.setenv("INFLATE3D_CACHE", str(tmp_path))
    done = run("video.mp4")
    assert isinstance(done.exception, InflateError)
    assert "inflate3d weights fetch i3d-kinetics400" in done.exception.fix
    assert list(tmp_path.iterdir()) == []


@pytest.mark.weights
@pytest.mark.usefixtures("heard_ctrl_c")
def test_ctrl_c_keeps_what_is_done(kinetics_weights, tmp_path):
    """Exit code 130; the videos that were finished are in the JSON."""
    clip, out = fetch_demo_clip(), tmp_path / "out.json"
    for i in range(20):
        (tmp_path / f"video{i}.mp4").symlink_to(clip)
    command = [*INFLATE3D, "predict", *tmp_path.glob("*.mp4"), "--num-frames", "9", "--window", "9", "--json", out]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True, env=environment) as process:
        for line in process.stdout:
            if "%" in line:  # the first table
                process.send_signal(signal.SIGINT)
                break
        process.communicate()
    assert process.returncode == 130
    assert 1 <= len(json.loads(out.read_text())["videos"]) < 20


@pytest.mark.weights
def test_the_demo_says_what_readme_says(kinetics_i3d):
    lines = re.findall(r"^([a-z ]+?) +([\d.]+)%  █", README.read_text(), re.MULTILINE)
    scores = predict_video(kinetics_i3d, fetch_demo_clip(), PredictOptions(stride=16)).top(5)
    assert [label for label, _ in lines] == [score.label for score in scores]
    # printed with one digit, which other processors may round the other way
    assert [float(percent) for _, percent in lines] == pytest.approx([100 * s.probability for s in scores], abs=0.11)


def test_help_answers_at_once():
    """Seconds of the processor, which others who use the machine do not add to."""

    def seconds():
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([*INFLATE3D, "--help"], capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(seconds() for _ in range(3)) < 0.5


def test_the_version_is_told():
    assert CliRunner().invoke(app, ["--version"]).stdout == f"inflate3d {__version__}\n"


def test_a_result_that_cannot_be_written_does_not_cost_the_others(tmp_path):
    (tmp_path / "file").touch()
    window = WindowPrediction(0.0, 1.0, torch.tensor([0.0, 1.0]))
    done = [VideoPrediction("a.mp4", 25, 25.0, torch.tensor([0.0, 1.0]), (window,))]
    outputs = Outputs(tmp_path / "file" / "a.json", tmp_path / "a.csv", tmp_path / "file" / "a.html")
    with pytest.raises(InflateError, match=r"not all results are written(.|\n)*a\.json(.|\n)*a\.html"):
        _write(done, [], outputs, settings={}, top=1)
    assert (tmp_path / "a.csv").read_text().count("a.mp4") == 2


def test_settings_tell_how_to_repeat_the_run():
    options = PredictOptions(fps="native", window=9, precision="bf16", key_frames=True)
    fast = [Optimized(nn.Identity(), precision, ["folded", precision]) for precision in ("bf16", "fp32")]
    own = {"inflate3d": __version__, "torch": torch.__version__.partition("+")[0]}
    shown = {"fps": "native", "window": "9", "crops": "center"}
    assert _settings("mine\udcff.safetensors", options, FlowStream(), fast[:1]) == {
        "model": "mine\\udcff.safetensors",
        **shown,
        "precision": "bf16",
        "made fast": "folded; bf16",
        **own,
    }
    assert _settings("rgb.pt", options, FlowStream("both", "flow.pt", stored=Path("out")), fast) == {
        "model": "rgb.pt",
        **shown,
        "precision": "bf16, fp32",
        "made fast": "folded; bf16, then folded; fp32",
        "stream": "both",
        "flow_model": "flow.pt",
        "flow_from": "out",
        "flow_quantizer": "mediapipe",
        "fusion": "logits",
        **own,
    }
