"""`inflate3d export` and `inflate3d predict --backend`: what they print and write, and what they refuse."""

import json

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from inflate3d import ClipSpec, inflate
from inflate3d.cli import app
from inflate3d.errors import InflateError
from inflate3d.speed.export import export_model
from inflate3d.speed.exported import load_exported
from inflate3d.weights.inflated_file import save_inflated
from videos import write_video


class Tiny(nn.Module):
    """Tells dark videos from bright ones."""

    clip_spec = ClipSpec(fps=25.0, num_frames=4, min_frames=1, short_side=16, crop=16, value_range=(0.0, 255.0))
    class_names = ("dark", "bright")

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv3d(3, 2, 1)
        nn.init.constant_(self.conv.weight[1], 1 / 100)
        nn.init.constant_(self.conv.weight[0], -1 / 100)
        nn.init.zeros_(self.conv.bias)

    def forward(self, clip):
        return self.conv(clip).mean((2, 3, 4))


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def own_nets(tmp_path, monkeypatch):
    """A module with a small 2D model in it."""
    (tmp_path / "own_nets.py").write_text(
        "from torch import nn\n"
        "def tiny():\n"
        "    return nn.Sequential(nn.Conv2d(3, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 7)).eval()\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.fixture
def video(tmp_path):
    return write_video(tmp_path / "a.mp4", [np.full((16, 24, 3), 200, np.uint8)] * 9, fps=25)


@pytest.fixture
def network(monkeypatch, tmp_path):
    """A file of weights, and the network that it stands for."""
    network = Tiny().eval()
    monkeypatch.setattr("inflate3d.weights.load.load", lambda name: network)
    monkeypatch.setenv("INFLATE3D_CACHE", str(tmp_path / "cache"))
    (tmp_path / "tiny.safetensors").write_bytes(b"weights")
    return tmp_path / "tiny.safetensors"


def test_a_2d_model_is_inflated_and_exported(own_nets, tmp_path):
    done = run("export", "own_nets:tiny", "--weights", "none", "--size", 17, "-o", tmp_path / "a.onnx")
    assert done.exit_code == 0, done.exception
    lines = done.output.replace("\n", " ")
    assert "own_nets:tiny for onnx, clips [b, 3, t >= 1, 17, 17]" in lines
    assert "largest difference from the model: " in lines
    found = load_exported(tmp_path / "a.onnx")
    assert found.card.weights == {"weights": "2D: none", "preset": "video", "profile": "mean"}
    assert found(torch.rand(2, 3, 5, 17, 17)).shape == (2, 7)


def test_a_saved_inflated_model_is_exported(own_nets, tmp_path):
    from own_nets import tiny

    model = inflate(tiny(), "video", example=torch.zeros(1, 3, 17, 17))
    save_inflated(model, tmp_path / "a.safetensors", "own_nets:tiny", weights="mine")
    arguments = ("export", tmp_path / "a.safetensors", "-o", tmp_path / "a.onnx")
    refused = run(*arguments)
    assert "it was not run" in str(refused.exception)
    assert run(*arguments, "--trust").exit_code == 0
    found = load_exported(tmp_path / "a.onnx")
    assert found.card.weights["weights"] == "mine"
    clip = torch.rand(2, 3, 5, 17, 17)
    torch.testing.assert_close(found(clip), model(clip), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["own_nets:tiny"], "whose weights the 2D model is to have is not said"),
        (["i3d-kinetics400", "--preset", "i3d"], "these options are for a 2D model that is inflated on the way"),
        (["i3d-kinetics400", "--weights", "none", "--size", "64"], "--weights none, --size 64"),
        (["i3d-kinetic400"], "did you mean i3d-kinetics400"),
        (["own_nets:tiny", "--weights", "none", "--size", "17", "--to", "openvino"], "is none of this format"),
    ],
)
def test_mistakes(arguments, message, own_nets, tmp_path):
    done = run("export", *arguments, "-o", tmp_path / "a.onnx")
    assert isinstance(done.exception, InflateError)
    assert message in str(done.exception)


@pytest.mark.parametrize("backend", ["onnx", "openvino"])
def test_predict_exports_once_and_answers_the_same(backend, network, video, tmp_path):
    found = []
    for name in ("torch", backend, backend):
        done = run("predict", video, "--model", network, "--backend", name, "--json", tmp_path / "out.json")
        assert done.exit_code == 0, done.exception
        found.append(json.loads((tmp_path / "out.json").read_text()))
    torch_, first, second = (document["videos"][0]["top"] for document in found)
    assert first == second
    assert [score["label"] for score in first] == [score["label"] for score in torch_]
    assert [s["probability"] for s in first] == pytest.approx([s["probability"] for s in torch_], abs=1e-4)
    assert "run by" in found[1]["settings"]["made fast"]
    assert len({file.stem for file in (tmp_path / "cache" / "exports").iterdir()}) == 1


def test_predict_takes_a_file_as_its_ending_says(video, tmp_path):
    export_model(Tiny().eval(), tmp_path / "tiny.xml")
    done = run("predict", video, "--model", tmp_path / "tiny.xml", "--top", 1)
    assert done.exit_code == 0, done.exception
    assert "bright" in done.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--backend", "tensorrt"], "there is no such backend"),
        (["--backend", "onnx", "--precision", "bf16"], "--precision bf16"),
        (["--backend", "onnx", "--compile"], "got:      --compile"),
        (["--backend", "onnx", "--stream", "both", "--flow-model", "flow.pt"], "--stream both"),
        (["--backend", "onnx", "--model", "tiny.xml"], "--backend onnx for tiny.xml"),
        (["--model", "gone.onnx"], "this is no exported network"),
    ],
)
def test_what_no_exported_network_can_do(arguments, message, video):
    done = run("predict", video, *arguments)
    assert isinstance(done.exception, InflateError)
    assert message in str(done.exception)
