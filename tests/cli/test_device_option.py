"""`--device`: the network and its clips go there, the answers come back, and a device that is not here is refused.

No GPU is needed: the device is torch's "meta", which holds no numbers, and the network answers from the CPU.
"""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from inflate3d import ClipSpec
from inflate3d.cli import app
from inflate3d.clips.volume_spec import VolumeSpec
from inflate3d.errors import InflateError
from inflate3d.train.recipes import find_recipe
from inflate3d.train.run import Devices
from videos import write_video

META = torch.device("meta")
SPEC = VolumeSpec("classes", ("dark", "bright"), (1.0,) * 3, (12,) * 3, window=(0.0, 255.0))


class Elsewhere(nn.Module):
    """Answers clips that lie where its weight does, and no others."""

    clip_spec = ClipSpec(fps=25.0, num_frames=4, min_frames=1, short_side=16, crop=16, value_range=(-1.0, 1.0))
    class_names = ("dark", "bright")
    shown = 0

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))

    def forward(self, clip):
        assert clip.device == self.weight.device
        Elsewhere.shown += clip.device == META
        return torch.tensor([[0.0, 1.0]]).expand(len(clip), 2)


@pytest.fixture
def network(monkeypatch):
    """The network that every name stands for, on a machine with one device beside its CPU."""
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda *, check_available: META)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 1)
    monkeypatch.setattr(Elsewhere, "shown", 0)
    network = Elsewhere().eval()
    monkeypatch.setattr("inflate3d.weights.load.load", lambda name: network)
    return network


@pytest.fixture
def videos(tmp_path):
    """Two classes of six."""
    for number in range(12):
        pictures = np.full((9, 16, 24, 3), 20 * number, np.uint8)
        folder = tmp_path / "videos" / ("dark", "bright")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        write_video(folder / f"{number}.mp4", list(pictures), fps=25)
    return tmp_path / "videos"


def run(*arguments):
    done = CliRunner().invoke(app, [*map(str, arguments)])
    if done.exception:
        raise done.exception


@pytest.mark.parametrize("device", ["meta", "meta:0"])
def test_predict(network, videos, tmp_path, device):
    run("predict", videos, "--device", device, "--json", tmp_path / "found.json")
    found = json.loads((tmp_path / "found.json").read_text())
    assert [one["top"][0]["label"] for one in found["videos"]] == ["bright"] * 12
    assert network.weight.is_meta and Elsewhere.shown >= 12


def test_predict_of_scans(network, monkeypatch, tmp_path):
    network.volume_spec = SPEC
    monkeypatch.setattr("inflate3d.cli.volumes.is_asked", lambda ctx, model: True)
    monkeypatch.setattr("inflate3d.weights.inflated_file.load_inflated", lambda path: network)
    np.save(tmp_path / "scan.npy", np.zeros((12, 12, 12), np.uint8))
    run("predict", tmp_path / "scan.npy", "--spacing", "1,1,1", "-o", tmp_path / "found", "--device", "meta")
    found = json.loads((tmp_path / "found" / "results.json").read_text())
    assert len(found["volumes"]) == 1 and not found["failures"] and Elsewhere.shown


@pytest.mark.filterwarnings("ignore::inflate3d.errors.InflateWarning")
def test_evaluate(network, monkeypatch, videos, tmp_path):
    recipe = replace(find_recipe("finetune-small"), short_side=16, crop=16)
    monkeypatch.setattr("inflate3d.train.checkpoint.load_trained", lambda path: (network, recipe))
    command = ["evaluate", "best.ckpt", "--data", videos, "--split", "train", "--clips", 1, "--device", "meta"]
    run(*command, "--flow", "flow.ckpt", "--out", tmp_path / "found")
    found = json.loads((tmp_path / "found" / "evaluation.json").read_text())
    assert found["count"] and Elsewhere.shown == 2 * found["count"]


@pytest.mark.filterwarnings("ignore::inflate3d.errors.InflateWarning")
def test_what_is_trained_elsewhere_is_tested_there(network, monkeypatch, videos, tmp_path):
    assert (Devices("gpu").tested_on, Devices("cpu").tested_on) == ("cuda", "cpu")
    recipe = replace(find_recipe("finetune-small"), short_side=16, crop=16)
    trained = SimpleNamespace(seconds=0, checkpoint=tmp_path / "best.ckpt", history=())
    monkeypatch.setattr("inflate3d.train.run.fit", lambda *given, **how: trained)
    monkeypatch.setattr("inflate3d.train.checkpoint.load_trained", lambda path: (network, recipe))
    monkeypatch.setattr(Devices, "tested_on", "meta")
    run("train", "finetune-small", "--data", videos, "--set", "precision=fp32", "--out", tmp_path / "found")
    found = json.loads((tmp_path / "found" / "evaluation.json").read_text())
    assert found["count"] and Elsewhere.shown == found["count"]


@pytest.mark.filterwarnings("ignore::inflate3d.errors.InflateWarning")
def test_evaluate_of_scans(network, monkeypatch, tmp_path):
    network.volume_spec = SPEC
    monkeypatch.setattr("inflate3d.weights.inflated_file.load_inflated", lambda path: network)
    arrays = {}
    for part in ("train", "val", "test"):
        arrays |= {f"{part}_images": np.zeros((4, 12, 12, 12), np.uint8), f"{part}_labels": np.arange(4)[:, None] % 2}
    np.savez(tmp_path / "scans.npz", **arrays)
    run("evaluate", "m.safetensors", "--data", tmp_path / "scans.npz", "--device", "meta", "--out", tmp_path / "found")
    assert json.loads((tmp_path / "found" / "evaluation.json").read_text())["count"] == 4 and Elsewhere.shown == 4


@pytest.mark.filterwarnings("ignore::inflate3d.errors.InflateWarning")
def test_fvd(network, monkeypatch, videos, tmp_path):
    monkeypatch.setattr("inflate3d.results.fvd_protocols.tensors_sha256", lambda tensors: "")  # of what has no numbers
    given = ("--num-frames", 4, "--no-cache", "--device", "meta", "--json", tmp_path / "found.json")
    run("fvd", videos / "dark", videos / "bright", *given)
    assert json.loads((tmp_path / "found.json").read_text())["fvd"] == 0 and Elsewhere.shown


def test_live(network, monkeypatch):
    monkeypatch.setattr("inflate3d.clips.live.LiveFrames.close", lambda self: None)
    monkeypatch.setattr("inflate3d.results.live.predict_live", lambda model, live, *, precision: iter(()))
    run("predict", "--live", "0", "--device", "meta")
    assert network.weight.is_meta


@pytest.mark.parametrize("command", ["predict a", "features a -o b", "flow a -o b", "fvd a b", "evaluate a --data b"])
@pytest.mark.parametrize("device", ["cuda", "cpu:0", "meta", "gpu", ""])
def test_devices_that_are_not_here(monkeypatch, command, device):
    """They are refused before anything is read, also those that torch knows by name."""
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda *, check_available: None)
    with pytest.raises(InflateError, match="there is no such device") as found:
        run(*command.split(), f"--device={device}")
    assert (found.value.where, found.value.got) == ("--device", repr(device))
    assert found.value.expected == "cpu: there is no other device here that can do it"


def test_apples_device_knows_no_float64(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda *, check_available: torch.device("mps"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 1)
    with pytest.raises(InflateError, match="there is no such device"):
        run("predict", "a.mp4", "--device", "mps")


def test_those_that_are_here_are_named(network):
    with pytest.raises(InflateError) as found:
        run("predict", "a.mp4", "--device", "cuda:1")
    assert found.value.expected == "cpu, meta, meta:0"


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (["--precision", "int8"], "there are options that would change nothing"),
        (["--backend", "onnx"], "an exported network does not know these options"),
        (["--model", "net.onnx"], "an exported network does not know these options"),
    ],
)
def test_what_runs_on_the_cpu_alone_goes_nowhere_else(network, given, problem):
    with pytest.raises(InflateError, match=problem) as found:
        run("predict", "a.mp4", "--device", "meta", *given)
    assert "--device" in found.value.expected
