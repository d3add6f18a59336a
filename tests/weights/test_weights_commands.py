"""The commands `inflate3d weights ...` print what the API answers."""

import json

import foreign_files as files
import foreign_names as names
import pytest
import torch
from typer.testing import CliRunner

from inflate3d.cli.weights import app
from inflate3d.errors import InflateError
from inflate3d.weights import fetch as fetching
from inflate3d.weights.catalogue import CATALOGUE, weights_path
from inflate3d.weights.checkpoint import save_weights

NAME = "i3d-kinetics400"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("INFLATE3D_CACHE", str(tmp_path))
    return tmp_path


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def put_small_file(path):
    return save_weights({"a": torch.zeros(3)}, CATALOGUE[NAME].card, path)


def test_list(cache):
    assert NAME in run("list").stdout
    assert " no " in run("list").stdout
    put_small_file(weights_path(NAME))
    assert " yes " in run("list").stdout


def test_info_of_a_name_and_of_a_file(cache):
    card = put_small_file(weights_path(NAME))
    for spelled in (NAME, weights_path(NAME)):
        assert json.loads(run("info", spelled).stdout) == json.loads(card.to_json())


def test_verify(cache, monkeypatch):
    assert "nothing is fetched yet" in run("verify").stdout
    card = put_small_file(weights_path(NAME))
    assert isinstance(run("verify").exception, InflateError)
    monkeypatch.setattr(fetching, "verify", lambda name: card)
    assert run("verify").stdout == run("verify", NAME).stdout == f"{NAME}: whole, {card.tensors_sha256}\n"


def test_verify_tells_all_that_are_damaged(cache, monkeypatch):
    monkeypatch.setitem(CATALOGUE, "another", CATALOGUE[NAME])
    for name in (NAME, "another"):
        put_small_file(weights_path(name))
    error = run("verify").exception
    assert isinstance(error, InflateError)
    assert error.problem == "2 of 2 files are damaged"
    assert error.got.count("the tensors are not those of") == 2


def test_fetch_passes_its_options_on(cache, monkeypatch):
    def note(name, *, archive, force, report):
        report(f"[bold] {name} {archive} {force}")
        return weights_path(name)

    monkeypatch.setattr(fetching, "fetch", note)
    done = run("fetch", NAME, "--from", "a.tar.gz", "--force")
    assert done.stdout == f"{weights_path(NAME)}\n"
    assert done.stderr == f"[bold] {NAME} a.tar.gz True\n"


def test_mistakes_are_left_to_main(cache):
    for arguments in (
        ["info", "nothing"],
        ["verify", NAME],
        ["fetch", "nothing"],
        ["fetch", NAME, "--from", "nowhere"],
    ):
        assert isinstance(run(*arguments).exception, InflateError)
    assert [path for path in cache.rglob("*") if path.is_file()] == []


def test_info_of_a_path_to_nothing(cache):
    put_small_file(cache / "tiny.safetensors")
    with pytest.raises(InflateError, match=r"no such file(.|\n)*did you mean tiny.safetensors"):
        raise run("info", cache / "tony.safetensors").exception
    with pytest.raises(InflateError, match=r"no such entry in the catalogue(.|\n)*did you mean i3d-kinetics400"):
        raise run("info", "i3d-kinetics").exception


def test_info_of_a_file_that_others_wrote(cache):
    path = cache / "any.bin"
    torch.save({"state_dict": names.piergiaj(*names.random_i3d(5, in_channels=2))}, path)
    found = json.loads(run("info", path).stdout)
    assert (found["dialect"], found["architecture"], found["num_classes"]) == ("piergiaj", "i3d", 5)
    assert (found["container"], found["in_channels"], found["tensors"]) == ("torch.save archive", 2, 344)
    assert found["recognized_by"].startswith("its names: 100%")


def test_info_of_a_checkpoint_by_its_name(cache):
    files.bundle(cache, "model.ckpt", names.deepmind(*names.random_i3d(5)))
    assert json.loads(run("info", cache / "model.ckpt").stdout)["container"] == "TensorFlow checkpoint"


def test_convert(cache):
    files.bundle(cache, "model.ckpt", names.deepmind(*names.random_i3d(5), momentum=True))
    done = run("convert", cache / "model.ckpt", cache / "mine.safetensors")
    assert done.stdout == f"{cache / 'mine.safetensors'}\n"
    assert done.stderr.splitlines() == [
        f"{cache / 'model.ckpt'}: i3d, deepmind, TensorFlow checkpoint",
        "116 tensors left out: slots of the optimizer",
        "57 scales of batch norm set to one: these files have none",
    ]
    done = run("convert", cache / "mine.safetensors", cache / "theirs.pt", "--to", "hassony2")
    assert done.stdout == f"{cache / 'theirs.pt'}\n"
    assert json.loads(run("info", cache / "theirs.pt").stdout)["dialect"] == "hassony2"
    assert isinstance(run("convert", cache / "theirs.pt", cache / "x.pt", "--to", "tf").exception, InflateError)
