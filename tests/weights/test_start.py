"""`load(..., init=)`: networks of the zoo start from 2D weights that are on this machine, and nothing is downloaded."""

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torchvision.models import GoogLeNet, resnet18

from inflate3d import InceptionI3d, InflateError, InflateWarning, load
from inflate3d.models.sources import find_2d_model
from inflate3d.models.streams import ConvNetLstm
from inflate3d.models.zoo import build_network
from inflate3d.weights.catalogue import Card
from inflate3d.weights.checkpoint import save_weights
from inflate3d.weights.load import load_checkpoint


@pytest.fixture(scope="module")
def googlenet_file(tmp_path_factory):
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("hub") / "hub" / "checkpoints" / "googlenet-1378be20.pth"
    file.parent.mkdir(parents=True)
    torch.save(GoogLeNet(init_weights=False).state_dict(), file)
    return file


def first_kernel(file):
    return torch.load(file, weights_only=True)["conv1.conv.weight"]


@pytest.mark.parametrize(("stream", "channels", "scale"), [("rgb", 3, 1.0), ("flow", 2, 1.5)])
def test_i3d_starts_from_what_torchvision_has_downloaded(googlenet_file, monkeypatch, stream, channels, scale):
    monkeypatch.setenv("TORCH_HOME", str(googlenet_file.parents[2]))
    model = load("i3d", init="torchvision/googlenet", stream=stream, label_set="hmdb-51")
    assert isinstance(model, InceptionI3d)
    assert not model.training
    assert (model.in_channels, model.num_classes, model.class_names[-1]) == (channels, 51, "wave")
    kernel = model.Conv3d_1a_7x7.conv_3d.weight
    torch.testing.assert_close(kernel.sum(2), first_kernel(googlenet_file)[:, :channels] * scale, rtol=1e-5, atol=1e-6)


def test_other_networks_of_the_paper_start_from_a_file_as_well(googlenet_file):
    model = load("convnet-lstm", init=googlenet_file, num_classes=7)
    assert isinstance(model, ConvNetLstm)
    assert torch.equal(model.trunk.conv1.conv.weight, first_kernel(googlenet_file))
    pair = load("two-stream", init=googlenet_file, num_classes=7)
    assert [stream.trunk.conv1.conv.weight.shape[1] for stream in (pair.rgb, pair.flow)] == [3, 20]


def test_a_network_of_two_streams_is_saved_and_loaded(tmp_path):
    """2D and 3D kernels side by side: channels-last memory is for the latter alone."""
    model = build_network("3d-fused", 5)
    about = dict.fromkeys(
        ("license", "repackaged_under", "source", "source_sha256", "reported_accuracy", "accuracy_protocol"), "none"
    )
    card = Card("tiny", "3d-fused", 5, None, 3, model.clip_spec, **about, inflate3d_version="0")
    save_weights(model.state_dict(), card, tmp_path / "tiny.safetensors")
    found = load(tmp_path / "tiny.safetensors")
    assert type(found) is type(model)
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in found.state_dict().items())


def test_inflated_networks_start_from_the_weights_of_their_2d_model(tmp_path):
    net = resnet18()
    torch.save(net.state_dict(), tmp_path / "net.pth")
    model = load("inflated/torchvision/resnet18", init=tmp_path / "net.pth", num_classes=5)
    kernel = model.inflated.net.conv1.weight
    torch.testing.assert_close(kernel.sum(2), net.conv1.weight, rtol=1e-5, atol=1e-6)
    assert model.num_classes == 5


TINY = """
from torch import nn
def tiny():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))
"""


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A 2D classifier that has a name, and random weights for it."""
    (tmp_path / "tiny_nets.py").write_text(TINY)
    monkeypatch.syspath_prepend(str(tmp_path))
    return {name: torch.randn_like(value) for name, value in find_2d_model("tiny_nets:tiny").state_dict().items()}


def write(state, path, kind):
    if kind == "safetensors":
        save_file(state, path)
    elif kind == "npz":
        with path.open("wb") as file:
            np.savez(file, **{name: tensor.numpy() for name, tensor in state.items()})
    else:
        wrapped = {"optimizer": {}, "net": {f"module.{name}": tensor for name, tensor in state.items()}}
        torch.save(wrapped if kind == "wrapped" else state, path, _use_new_zipfile_serialization=kind != "old")


@pytest.mark.parametrize("kind", ["safetensors", "npz", "torch", "old", "wrapped"])
def test_2d_weights_are_read_as_all_others_are(tiny, tmp_path, kind):
    write(tiny, tmp_path / "any.name", kind)
    model = load("inflated/tiny_nets:tiny", init=tmp_path / "any.name")
    torch.testing.assert_close(model.inflated.net[0].weight.sum(2), tiny["0.weight"], rtol=1e-5, atol=1e-6)
    assert torch.equal(model.inflated.net[3].weight, tiny["3.weight"])
    plain = find_2d_model("tiny_nets:tiny")
    load_checkpoint(plain, tmp_path / "any.name")
    assert all(torch.equal(value, tiny[name]) for name, value in plain.state_dict().items())


def test_damaged_2d_weights_end_in_our_error_or_in_other_numbers(tiny, tmp_path):
    write(tiny, tmp_path / "file", "torch")
    whole, rng, refusals = (tmp_path / "file").read_bytes(), np.random.default_rng(3), 0
    for _ in range(100):
        damaged = bytearray(whole)
        for place in rng.integers(len(whole), size=rng.integers(1, 4)):
            damaged[place] = rng.integers(256)
        (tmp_path / "file").write_bytes(damaged)
        try:
            load_checkpoint(find_2d_model("tiny_nets:tiny"), tmp_path / "file")
        except InflateError:
            refusals += 1
    assert refusals > 20


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"0.weight": torch.zeros(4, 3, 1, 1)}, r"0.weight: \[4, 3, 1, 1\] float32, wanted \[4, 3, 3, 3\]"),
        ({"0.bias": None}, r"all tensors of tiny_nets:tiny(.|\n)*1 missing:\n +0.bias"),
        ({"fc.weight": torch.zeros(5)}, r"1 unexpected:\n +fc.weight: \[5\]"),
    ],
)
def test_2d_weights_of_another_model_are_refused(tiny, tmp_path, change, message):
    save_file({name: value for name, value in (tiny | change).items() if value is not None}, tmp_path / "any")
    with pytest.raises(InflateError, match=message):
        load("inflated/tiny_nets:tiny", init=tmp_path / "any")


def test_a_classifier_of_the_2d_weights_that_is_not_taken_is_told(tiny, tmp_path):
    save_file(tiny | {"3.weight": torch.zeros(9, 4), "3.bias": torch.zeros(9)}, tmp_path / "any")
    with pytest.warns(InflateWarning, match=r"a classifier for 5 classes(.|\n)*the file has 9 classes") as told:
        load("inflated/tiny_nets:tiny", init=tmp_path / "any")
    assert [warning.filename for warning in told] == [__file__]


@pytest.mark.parametrize(("name", "head"), [("googlenet", "aux2.fc2.bias"), ("inception_v3", "AuxLogits.fc.bias")])
def test_heads_that_only_training_runs_are_left_out(tmp_path, name, head):
    net = torchvision.models.get_model(name, init_weights=False)
    assert head in net.state_dict()
    torch.save(net.state_dict(), tmp_path / "net.pth")
    model = load(f"inflated/torchvision/{name}", init=tmp_path / "net.pth")
    assert torch.equal(model.inflated.net.fc.weight, net.fc.weight)
    assert head not in model.inflated.net.state_dict()


def test_resnet_i3ds_start_from_a_2d_resnet(tmp_path):
    net = torchvision.models.resnet50(num_classes=1000)
    torch.save(net.state_dict(), tmp_path / "net.pth")
    model = load("i3d-r50-8x8", init=tmp_path / "net.pth", num_classes=7)
    kernel = model.inflated.net.layer2[1].conv2.weight
    assert torch.equal(kernel.flatten(2), net.layer2[1].conv2.weight.flatten(2))
    assert model.num_classes == 7


@pytest.mark.parametrize("name", ["i3d", "convnet-lstm", "inflated/tiny_nets:tiny"])
def test_no_classes_are_refused(tiny, googlenet_file, tmp_path, name):
    save_file(tiny, tmp_path / "tiny")
    init = tmp_path / "tiny" if "tiny" in name else googlenet_file
    with pytest.raises(InflateError, match=r"there is no such network(.|\n)*num_classes=0"):
        load(name, init=init, num_classes=0)


def test_nothing_is_downloaded(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(InflateError, match=r"not on this machine(.|\n)*googlenet-1378be20.pth(.|\n)*download it once"):
        load("i3d", init="torchvision/googlenet")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("i3d", {"init": "torchvision/googlenot"}, r"torchvision has no such model(.|\n)*did you mean googlenet"),
        ("i3d", {"init": "a.pth", "stream": "depth"}, r"no such stream(.|\n)*rgb, flow"),
        ("i4d", {"init": "a.pth"}, r"no such network"),
        ("i3d", {"stream": "flow"}, r"do not go together(.|\n)*stream= with init="),
        ("i3d", {"init": "a.pth", "compat": "tats"}, r"do not go together(.|\n)*compat='tats'"),
        ("i3d", {"init": "no-such-file.pth"}, r"no-such-file.pth: there is no such file"),
    ],
)
def test_what_cannot_be_is_refused(name, options, message):
    with pytest.raises(InflateError, match=message):
        load(name, **options)
