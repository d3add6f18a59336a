"""`inflate3d train` and `inflate3d evaluate`, from a folder of videos to the page."""

import json

import pytest
from typer.testing import CliRunner

from inflate3d import InflateError
from inflate3d.cli import app

SMALL = {
    "network": "inflated/torchvision/shufflenet_v2_x0_5",
    "init": "none",
    "num_frames": 3,
    "short_side": 33,
    "crop": 33,
    "epochs": 2,
    "freeze": "head",
    "cached_views": 2,
    "batch_size": 4,
    "max_unreadable": 0.3,
}


def settings(**changes):
    return [part for key, value in (SMALL | changes).items() for part in ("--set", f"{key}={value}")]


@pytest.mark.filterwarnings("ignore::inflate3d.errors.InflateWarning")
def test_from_a_folder_to_a_page(clips_folder, tmp_path):
    out = tmp_path / "run"
    run = CliRunner().invoke(
        app, ["train", "finetune-small", "--data", str(clips_folder), "--out", str(out), *settings()]
    )
    assert run.exit_code == 0, run.output
    assert "3 classes" in run.output and "top-1" in run.output
    assert "Worst mistakes" in (out / "report.html").read_text() or "100.0%" in run.output
    facts = json.loads((out / "run.json").read_text())
    assert len(facts["history"]) == 2 and facts["recipe"]["cached_views"] == 2
    found = json.loads((out / "evaluation.json").read_text())
    wanted = {"fps", "frames", "crops", "weights", "recipe", "network", "stream", "frame_step", "precision"}
    assert wanted <= found["settings"].keys() and found["count"] == facts["data"]["test"]

    video = next(clips_folder.rglob("*.mp4"))
    run = CliRunner().invoke(app, ["predict", str(video), "--model", str(out / "best.ckpt"), "--top", "3"])
    assert run.exit_code == 0, run.output
    assert all(folder.name in run.output for folder in clips_folder.iterdir())
    command = ["features", str(video), "--model", str(out / "best.ckpt"), "--window", "3", "-o", str(tmp_path / "rows")]
    run = CliRunner().invoke(app, command)
    assert run.exit_code == 0, run.output

    again = tmp_path / "again"
    command = ["evaluate", str(out / "last.ckpt"), "--data", str(clips_folder), "--split", "train", "--clips", "2"]
    run = CliRunner().invoke(app, [*command, "--flow", str(out / "best.ckpt"), "--out", str(again)])
    assert run.exit_code == 0, run.output
    found = json.loads((again / "evaluation.json").read_text())
    assert found["count"] == facts["data"]["train"] and found["settings"]["fusion"] == "probabilities"

    (tmp_path / "broken.mp4").write_bytes(b"none")
    good = [next(folder.glob("*.mp4")) for folder in sorted(clips_folder.iterdir())]
    labels = [(path, path.parent.name) for path in good] + [(tmp_path / "broken.mp4", good[0].parent.name)]
    rows = [f"{path},{label},test" for path, label in labels]
    (tmp_path / "list.csv").write_text("\n".join(["path,label,split", *rows]))  # of a test alone
    command = ["evaluate", str(out / "last.ckpt"), "--data", str(tmp_path / "list.csv"), "--out", str(again)]
    run = CliRunner().invoke(app, command)
    assert run.exit_code == 1 and "not read: " in run.output
    assert json.loads((again / "evaluation.json").read_text())["count"] == len(good)
    (tmp_path / "list.csv").write_text(f"path,label,split\n{good[2]},{good[2].parent.name},test\n")  # of one class
    command = ["evaluate", str(out / "last.ckpt"), "--data", str(tmp_path / "list.csv"), "--out", str(again)]
    assert CliRunner().invoke(app, command).exit_code == 0
    found = json.loads((again / "evaluation.json").read_text())
    assert found["class_names"] == facts["class_names"] and sum(found["confusion"][2]) == 1
    assert found["per_class"][0]["class"] == good[2].parent.name
    (tmp_path / "list.csv").write_text(f"path,label,split\n{good[2]},sideways,test\n")
    assert CliRunner().invoke(app, command).exception.problem == "lines of the list cannot be understood"
    (tmp_path / "list.csv").write_text("\n".join(["path,label,split", *rows]))
    command = ["train", "finetune-small", "--data", str(tmp_path / "list.csv"), "--out", str(tmp_path / "none")]
    assert CliRunner().invoke(app, [*command, *settings()]).exception.problem == "there is nothing to learn from"


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        (["train", "finetune"], "there is no such recipe"),
        (["train", "finetune-small", "--set", "lrr=1"], "settings cannot be understood"),
        (["train", "finetune-small", "--only", "dataset"], "a choice of rows cannot be understood"),
        (["train", "finetune-small", "--devices", "two"], "there is no such number of devices"),
        (["evaluate", "none.ckpt", "--split", "tset"], "there is no such split"),
        (["evaluate", "none.ckpt", "--fusion", "product"], "there is no such fusion"),
        (["evaluate", "none.ckpt"], "this is no checkpoint of a training run"),
    ],
)
@pytest.mark.filterwarnings("ignore::inflate3d.errors.InflateWarning")
def test_mistakes_are_told_before_anything_runs(clips_folder, tmp_path, command, problem):
    out = ["--out", str(tmp_path / "out")]
    with pytest.raises(InflateError, match=problem):
        CliRunner().invoke(app, [*command, "--data", str(clips_folder), *out], catch_exceptions=False)
    assert not (tmp_path / "out").exists()
