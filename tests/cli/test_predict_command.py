"""`inflate3d predict` as a stranger types it."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from inflate3d import PredictOptions, __version__
from inflate3d import predict as predict_video
from inflate3d.cli.predict import Outputs, _settings, _write
from inflate3d.errors import InflateError
from inflate3d.results.prediction import VideoPrediction, WindowPrediction
from inflate3d.weights.fetch import fetch_demo_clip

README = Path(__file__).parents[2] / "README.md"
INFLATE3D = [sys.executable, "-m", "inflate3d"]


def run(*arguments, **options):
    return subprocess.run([*INFLATE3D, *map(str, arguments)], capture_output=True, text=True, check=False, **options)


@pytest.mark.weights
def test_good_and_bad_files_in_one_folder(kinetics_weights, tmp_path):
    """17 results, 3 rows of reasons, exit code 1."""
    clip = fetch_demo_clip()
    folder = tmp_path / "videos"
    folder.mkdir()
    for i in range(17):
        shutil.copy(clip, folder / f"good{i}.mp4")
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("this is no video\n" * 99)
    (folder / "cut.mp4").write_bytes(clip.read_bytes()[1_000_000:])  # without its index
    outputs = [tmp_path / name for name in ("out.json", "out.csv", "out.html")]
    flags = [item for flag, path in zip(("--json", "--csv", "--report"), outputs, strict=True) for item in (flag, path)]
    done = run("predict", folder, "--num-frames", 9, "--window", 9, "--top", 2, "--precision", "bf16", *flags)
    assert done.returncode == 1, done.stderr
    document = json.loads(outputs[0].read_text())
    assert len(document["videos"]) == 17
    assert {failure["source"].rsplit("/", 1)[1] for failure in document["failures"]} == {
        "empty.mp4",
        "text.mp4",
        "cut.mp4",
    }
    assert all("fix:" in failure["reason"] for failure in document["failures"])
    assert "3 not read" in done.stdout
    assert outputs[1].read_text().count("good3.mp4") == 2 * 2
    assert outputs[2].read_text().count("<section>") == 17
    labels = [video["top"][0]["label"] for video in document["videos"]]
    assert labels == labels[:1] * 17


@pytest.mark.weights
def test_json_on_standard_output_is_nothing_but_json(kinetics_weights):
    done = run("predict", fetch_demo_clip(), "--num-frames", 9, "--window", 9, "--json", "-")
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["videos"][0]["top"]) == 5


@pytest.mark.weights
def test_int8_prints_what_it_costs(kinetics_weights):
    done = run("predict", fetch_demo_clip(), "--num-frames", 9, "--window", 9, "--precision", "int8", "--workers", 1)
    assert done.returncode == 0, done.stderr
    assert re.search(r"int8; 1 calibration clips: lowest cosine 0\.9\d+, same first answer for 1 of 1", done.stdout)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["video.mp4", "--workers", "0"], "workers=0, allowed is 1 or more, or None"),
        (["video.mp4", "--fps", "often"], "the frame rate is no number"),
        (["video.mp4", "--crops", "six"], "crops='six', allowed is center, three, five, ten"),
        (["video.mp4", "--fps", "0"], "fps=0.0, allowed is"),
        (["video.mp4", "--top", "0"], "greater than or equal to 1"),
        (["video.mp4", "--csv", "-"], "the results have no place of their own"),
        (["video.mp4", "--report", "-"], "the results have no place of their own"),
        (["video.mp4", "--json", "a", "--csv", "./a"], "--json a, --csv a"),
        (["video.mp4", "--json", "."], "there is a folder of that name"),
        (["video.mp4", "--model", "i3d-kinetic400"], "did you mean i3d-kinetics400?"),
    ],
)
def test_mistakes_end_with_a_fix_and_exit_code_2(arguments, message):
    done = run("predict", *arguments)
    assert done.returncode == 2
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_weights_that_are_not_there_yet_are_not_fetched_silently(tmp_path):
    done = run("predict", "video.mp4", env={"INFLATE3D_CACHE": str(tmp_path), "PATH": ""})
    assert done.returncode == 2
    assert "inflate3d weights fetch i3d-kinetics400" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.weights
def test_ctrl_c_keeps_what_is_done(kinetics_weights, tmp_path):
    """Exit code 130; the videos that were finished are in the JSON."""
    clip, out = fetch_demo_clip(), tmp_path / "out.json"
    for i in range(20):
        (tmp_path / f"video{i}.mp4").symlink_to(clip)
    command = [*INFLATE3D, "predict", *tmp_path.glob("*.mp4"), "--num-frames", "9", "--window", "9", "--json", out]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True, env=environment) as run:
        for line in run.stdout:
            if "%" in line:  # the first table
                run.send_signal(signal.SIGINT)
                break
        run.communicate()
    assert run.returncode == 130
    assert 1 <= len(json.loads(out.read_text())["videos"]) < 20


@pytest.mark.weights
def test_the_demo_says_what_readme_says(kinetics_i3d):
    lines = re.findall(r"^([a-z ]+?) +([\d.]+)%  █", README.read_text(), re.MULTILINE)
    scores = predict_video(kinetics_i3d, fetch_demo_clip(), PredictOptions(stride=16)).top(5)
    assert [label for label, _ in lines] == [score.label for score in scores]
    # printed with one digit, which other processors may round the other way
    assert [float(percent) for _, percent in lines] == pytest.approx([100 * s.probability for s in scores], abs=0.11)


def test_help_answers_at_once():
    def seconds():
        start = time.perf_counter()
        assert run("--help").returncode == 0
        return time.perf_counter() - start

    assert min(seconds() for _ in range(3)) < 0.5


def test_the_version_is_told():
    assert run("--version").stdout == f"inflate3d {__version__}\n"


def test_a_result_that_cannot_be_written_does_not_cost_the_others(tmp_path):
    (tmp_path / "file").touch()
    window = WindowPrediction(0.0, 1.0, torch.tensor([0.0, 1.0]))
    done = [VideoPrediction("a.mp4", 25, 25.0, torch.tensor([0.0, 1.0]), (window,))]
    outputs = Outputs(tmp_path / "file" / "a.json", tmp_path / "a.csv", tmp_path / "file" / "a.html")
    with pytest.raises(InflateError, match=r"not all results are written(.|\n)*a\.json(.|\n)*a\.html"):
        _write(done, [], outputs, settings={}, top=1)
    assert (tmp_path / "a.csv").read_text().count("a.mp4") == 2


@pytest.mark.weights
def test_a_file_name_that_is_no_text(kinetics_weights, tmp_path):
    """It comes out as one in every place, and costs no result."""
    outputs = [tmp_path / name for name in ("out.json", "out.csv", "out.html")]
    flags = [item for flag, path in zip(("--json", "--csv", "--report"), outputs, strict=True) for item in (flag, path)]
    done = run("predict", os.fsdecode(bytes(tmp_path / "bad") + b"\xff.mp4"), *flags)
    assert done.returncode == 1, done.stderr
    assert json.loads(outputs[0].read_text())["failures"][0]["source"].endswith("bad\\udcff.mp4")
    assert "bad\\udcff.mp4" in outputs[2].read_text()


def test_settings_tell_how_to_repeat_the_run():
    found = _settings(
        "mine\udcff.safetensors", PredictOptions(fps="native", window=9, precision="bf16", key_frames=True)
    )
    assert found == {
        "model": "mine\\udcff.safetensors",
        "fps": "native",
        "window": "9",
        "crops": "center",
        "precision": "bf16",
        "inflate3d": __version__,
        "torch": torch.__version__.partition("+")[0],
    }
