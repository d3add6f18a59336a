"""`inflate3d predict` as a stranger types it."""

import json
import shutil
import subprocess
import sys

import pytest

from inflate3d.weights.fetch import fetch_demo_clip

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
    (folder / "cut.mp4").write_bytes(clip.read_bytes()[:1_000_000])
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["video.mp4", "--fps", "often"], "the frame rate is no number"),
        (["video.mp4", "--crops", "six"], "crops='six', allowed is center, three, five, ten"),
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
