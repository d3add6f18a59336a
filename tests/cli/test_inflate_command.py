"""`inflate3d inflate`, `plan` and `prove`: what they print and write, and what they refuse before the work."""

import json

import pytest
import timm
import torch
from typer.testing import CliRunner

from inflate3d import load
from inflate3d.cli import app
from inflate3d.errors import InflateError
from inflate3d.models import sources


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The command, a folder, and a module with a small model in it."""
    (tmp_path / "own_nets.py").write_text(
        "from torch import nn\n"
        "def tiny():\n"
        "    return nn.Sequential(nn.Conv2d(3, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 7))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    return lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_a_plan_is_printed_and_written(run, tmp_path):
    found = run("plan", "own_nets:tiny", "--size", 17, "--json", tmp_path / "plan.json")
    assert found.exit_code == 0
    assert "3x3x3" in found.output
    assert json.loads((tmp_path / "plan.json").read_text())["input_shape"] == [3, 17, 17]


def test_a_spacing_is_read(run, tmp_path):
    command = ("plan", "own_nets:tiny", "--size", 17, "--preset", "anisotropic")
    found = run(*command, "--spacing", "5,0.8,0.8", "--json", tmp_path / "plan.json")
    assert "preset anisotropic (spacing 5 x 0.8 x 0.8 mm)" in found.output
    assert "say in one output: at most 1, 5 mm" in found.output
    assert json.loads((tmp_path / "plan.json").read_text())["spacing_mm"] == [5, 0.8, 0.8]
    for wrong in ((), ("--spacing", "5,wide")):
        assert "how large voxels are" in str(run(*command, *wrong).exception)


def test_a_proof_is_printed_and_written(run, tmp_path):
    found = run("prove", "own_nets:tiny", "--size", 11, "--json", tmp_path / "proof.json")
    assert found.exit_code == 0
    assert "PROVED" in found.output
    assert json.loads((tmp_path / "proof.json").read_text())


@pytest.mark.parametrize("command", ["plan", "prove"])
@pytest.mark.parametrize("size", [0, -4])
def test_sizes_that_are_none_are_refused(run, command, size):
    found = run(command, "own_nets:tiny", f"--size={size}")
    assert found.exit_code == 2
    assert "--size" in found.output


@pytest.mark.parametrize("command", ["plan", "prove"])
def test_a_file_that_cannot_be_written_is_told_before_the_work(run, command, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "find_2d_model", None)
    (tmp_path / "taken").mkdir()
    found = run(command, "own_nets:tiny", "--json", tmp_path / "taken")
    assert isinstance(found.exception, InflateError)
    assert "there is a folder of that name" in str(found.exception)


@pytest.mark.parametrize("command", ["plan", "prove"])
@pytest.mark.parametrize("name", [":tiny", "own_nets:"])
def test_halves_of_a_name_are_refused(run, command, name):
    found = run(command, name)
    assert isinstance(found.exception, InflateError)


def test_a_model_is_inflated_into_a_file(run, tmp_path):
    found = run("inflate", "timm/resnet10t", "--weights", "none", "-o", tmp_path / "a.safetensors", "--size", 64)
    assert found.exit_code == 0, found.exception
    assert "2D weights: random" in found.output
    assert load(tmp_path / "a.safetensors").plan.input_shape == (3, 64, 64)


def test_a_file_of_2d_weights_is_inflated(run, tmp_path):
    model2d = timm.create_model("resnet10t").eval()
    torch.save(model2d.state_dict(), tmp_path / "2d.pth")
    assert (
        run("inflate", "timm/resnet10t", "--weights", tmp_path / "2d.pth", "-o", tmp_path / "a.safetensors").exit_code
        == 0
    )
    picture = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        wanted, found = model2d(picture), load(tmp_path / "a.safetensors")(picture.unsqueeze(2).repeat(1, 1, 4, 1, 1))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_weights_have_to_be_named(run, tmp_path):
    found = run("inflate", "timm/resnet10t", "-o", tmp_path / "a.safetensors")
    assert found.exit_code == 2
    assert "--weights" in found.output
