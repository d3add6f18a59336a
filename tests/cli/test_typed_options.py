"""What people type: options that nobody would look at are refused, and words become numbers or a clear refusal."""

import math
import sys
from types import SimpleNamespace

import pytest
from rich.console import Console
from typer.testing import CliRunner

from inflate3d.cli import app, features, main, volumes
from inflate3d.cli.terminal import frame_rate, progress_on, refuse_idle, warnings_on
from inflate3d.errors import InflateError, InflateWarning
from inflate3d.results.feature_manifest import Shard

SMALL = ("--model", "timm/test_resnet", "--weights", "none", "-o", "rows")


def refused(*arguments):
    found = CliRunner().invoke(app, [str(argument) for argument in arguments]).exception
    assert isinstance(found, InflateError), found
    return found


@pytest.mark.parametrize(
    ("command", "idle", "goes_with"),
    [
        ("predict --live 0 --window 8 --json out.json", "--window, --json", "videos that have an end"),
        ("predict --live 0 --stream both --flow-model f.pt", "--stream, --flow-model", "videos that have an end"),
        ("predict --live 0 --compile", "--compile", "videos that have an end"),
        ("predict a.mp4 --patience 9", "--patience", "--live"),
        ("evaluate m.safetensors --data d --clips 3 --flow f.ckpt", "--flow, --clips", "a network for videos (.ckpt)"),
        ("evaluate m.safetensors --data d --only a=b --root r", "--root, --only", "a network for videos (.ckpt)"),
        ("evaluate m.safetensors --data d --precision bf16", "--precision", "a network for videos (.ckpt)"),
        ("evaluate best.ckpt --data d --overlap 0.5", "--overlap", "one for scans (.safetensors)"),
        ("features a.mp4 -o rows --dense --window 16", "--window", "no --dense"),
        ("features a.mp4 -o rows --flow-model f.pt", "--flow-model", "--streams flow or both"),
        ("features a.mp4 -o rows --flow-method dis --flow-from d", "--flow-method, --flow-from", "--streams flow"),
        ("features a.mp4 -o rows --preset rtfm --flow-quantizer none", "--flow-quantizer", "--streams flow"),
    ],
)
def test_options_that_would_change_nothing_are_refused_before_any_work(command, idle, goes_with, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = refused(*command.split())
    assert found.problem == "there are options that would change nothing"
    assert found.expected.startswith(f"{idle} with {goes_with}")
    assert found.fix == f"leave {idle} out"
    assert not list(tmp_path.iterdir())


def test_the_defaults_are_no_idle_options(monkeypatch):
    """Also an option that is typed with its default is typed; one that is not typed is not."""
    seen = []
    monkeypatch.setattr("inflate3d.cli.predict.show_live", lambda *found: seen.append(found))
    done = CliRunner().invoke(app, ["predict", "--live", "0", "--fps", "native", "--top", "2", "--patience", "3"])
    assert done.exit_code == 0, done.exception
    ((paths, model, look),) = seen
    assert (paths, model, look.fps, look.precision) == (["0"], "i3d-kinetics400", "native", "fp32")
    assert (look.patience_seconds, look.top) == (3.0, 2)
    assert refused("predict", "--live", "0", "--crops", "center").expected.startswith("--crops with")


def test_the_refusal_in_full(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["inflate3d", "predict", "--live", "0", "--whole"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert capsys.readouterr().err.splitlines() == [
        "inflate3d predict: there are options that would change nothing",
        "  expected: --whole with videos that have an end",
        "  got:      --live",
        "  fix:      leave --whole out",
    ]
    refuse_idle([], where="", goes_with="", got="")  # none is fine


@pytest.mark.parametrize(("text", "rate"), [("native", "native"), ("25", 25.0), ("29.97", 29.97), ("1e1", 10.0)])
def test_rates(text, rate):
    assert frame_rate(text) == rate


@pytest.mark.parametrize("text", ["", "often", "25fps", "30000/1001", "Native"])
def test_rates_that_are_none(text):
    with pytest.raises(InflateError) as found:
        frame_rate(text, "inflate3d flow --fps")
    assert str(found.value) == (
        "inflate3d flow --fps: the frame rate is no number\n"
        "  expected: a positive number, or native\n"
        f"  got:      {text!r}\n"
        "  fix:      --fps 25, or --fps native"
    )


@pytest.mark.parametrize("rate", ["0", "-5", "nan", "inf"])
@pytest.mark.parametrize("command", ["predict", "features", "show clips", "fvd"])
def test_rates_that_no_video_has_are_refused_before_a_network_is_loaded(command, rate, monkeypatch, tmp_path):
    for place in ("weights.load.load", "cli.show.load_any", "results.feature_network.network_named"):
        monkeypatch.setattr(f"inflate3d.{place}", None)
    more = {"predict": ["--model", "i3d"], "features": ["-o", tmp_path], "show clips": ["-o", tmp_path / "a.png"]}
    found = refused(*command.split(), "a.mp4", *more.get(command, ["b.mp4"]), f"--fps={rate}")
    assert f"fps={float(rate)}" in found.got


@pytest.mark.parametrize(
    ("text", "size"), [(None, None), ("256", 256), ("340x256", (340, 256)), ("3x", "3x"), ("x", "x"), ("axb", "axb")]
)
def test_sizes(text, size):
    assert features._size(text) == (size if text else text)


@pytest.mark.parametrize(
    ("text", "found"), [(None, None), ("0,1", (0.0, 1.0)), ("-1,1,3", (-1.0, 1.0, 3.0)), ("a,b", "a,b"), ("", "")]
)
def test_pairs_are_read_and_what_is_none_is_left_to_the_options(text, found):
    assert features._pair(text) == found


@pytest.mark.parametrize(
    ("text", "frames"), [(None, None), ("16", 16), ("whole", "whole"), ("-4", "-4"), ("1.5", "1.5")]
)
def test_frames(text, frames):
    assert features._frames(text) == frames


@pytest.mark.parametrize("text", ["0/4", "5/4", "4", "a/b", "1/", "-1/4", "1/4/2", ""])
def test_shards_that_are_none(text):
    with pytest.raises(InflateError, match="there is no such shard") as found:
        features._shard(text, ray=False)
    assert (found.value.got, found.value.expected) == (repr(text), "I/N with I from 1 to N")


def test_shards_part_all_videos_among_them():
    shards = [features._shard(f"{number}/4", ray=False) for number in range(1, 5)]
    assert shards == [Shard(number, 4) for number in range(1, 5)]
    assert features._shard("1/1", ray=True) == Shard(1, 1)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (None, ""),
        (0.4, "about 0 s left"),
        (119.4, "about 119 s left"),
        (120, "about 2 min left"),
        (7199, "about 120 min left"),
        (7200, "about 2 h left"),
        (86_400, "about 24 h left"),
    ],
)
def test_the_time_that_is_left_has_no_more_digits_than_are_known(seconds, words):
    assert features._left(SimpleNamespace(seconds_left=seconds)) == words


@pytest.mark.parametrize(
    ("kind", "preset", "name", "found"),
    [
        (None, False, None, {}),
        ("npy", True, None, {}),
        ("npz", True, None, {"collected": ""}),
        ("h5", True, None, {"collected": "hdf5", "collected_name": "features.h5"}),
        ("h5", False, "{stem}", {"collected": "hdf5", "collected_name": "features.h5"}),
    ],
)
def test_what_a_format_changes_besides(kind, preset, name, found):
    assert features._collected(kind, preset, name) == found
    if kind == "h5":  # without a name of one's own the key tells the stream, so that both fit into one file
        assert features._collected(kind, False, None)["name"] == "{stem}/i3d_features/{stream}"


def test_workers_of_a_ray_run_are_counted_as_well(tmp_path):
    found = refused("features", "a.mp4", *SMALL, "--ray", "--workers", "0")
    assert "workers=0" in found.got


def test_volumes_options_are_read():
    options = volumes.options_of(0.25, None, "2.5,0.8,0.7", -1000.0, "3")
    assert (options.overlap, options.batch_size, options.spacing_mm) == (0.25, 1, (2.5, 0.8, 0.7))
    assert (options.fill, options.part) == (-1000.0, 3)
    assert volumes.options_of(0.5, 4, None, None, "T1 axial").part == "T1 axial"


@pytest.mark.parametrize("spacing", ["2.5", "1,2,wide", "1,,2", "1;2;3", "0,1,1", "1,1,nan"])
def test_spacings_that_are_none(spacing):
    with pytest.raises(InflateError) as found:
        volumes.options_of(0.5, None, spacing, None, None)
    assert "spacing" in str(found.value)


def test_no_scan_at_a_time_is_no_number_of_scans():
    with pytest.raises(InflateError, match="batch_size"):
        volumes.options_of(0.5, 0, None, None, None)


def test_each_scan_gets_files_of_its_own(tmp_path):
    taken, names = set(), []
    for path in ("a.nii.gz", "b/a.nii", "c/A.NRRD", "a-2.npy", "scan.1.dcm", "folder", "x.nhdr", "d/a.nii.gz"):
        names.append(volumes._name_of(tmp_path / path, taken))
    assert names == [
        ("a", ".nii.gz"),
        ("a-2", ".nii.gz"),
        ("A", ".nrrd"),
        ("a-2-2", ".nii.gz"),
        ("scan.1", ".nii.gz"),
        ("folder", ".nii.gz"),
        ("x", ".nrrd"),
        ("a-3", ".nii.gz"),
    ]
    assert len(taken) == len(names)


def test_warnings_stand_above_the_bar_each_time():
    """Those of others go where they went; a markup in a name of a file is no markup."""
    import warnings

    console = Console(record=True, width=200)
    with warnings_on(console), progress_on(console) as bar:
        bar.add_task("one", total=3)
        for _ in range(2):
            warnings.warn("video [b].mp4 is cut short", InflateWarning, stacklevel=1)
    assert console.export_text().count("InflateWarning: video [b].mp4 is cut short") == 2
    assert "one" not in console.export_text()  # the bar vanishes
    with pytest.warns(InflateWarning):
        warnings.warn("afterwards they are warnings again", InflateWarning, stacklevel=1)


def test_numbers_are_no_numbers_where_they_are_not():
    assert math.isnan(frame_rate("nan"))  # whoever takes it says what it is to be
