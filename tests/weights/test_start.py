"""`load(..., init=)`: networks of the zoo start from 2D weights that are on this machine, and nothing is downloaded."""

import pytest
import torch
from torchvision.models import GoogLeNet, resnet18

from inflate3d import InceptionI3d, InflateError, load
from inflate3d.models.lstm import ConvNetLstm
from inflate3d.models.zoo import build_network
from inflate3d.weights.card import Card
from inflate3d.weights.store import save_weights


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
        ("i4d", {"init": "a.pth"}, r"no network of that name"),
        ("i3d", {"stream": "flow"}, r"do not go together(.|\n)*stream= with init="),
        ("i3d", {"init": "a.pth", "compat": "tats"}, r"do not go together(.|\n)*compat='tats'"),
        ("i3d", {"init": "no-such-file.pth"}, r"no-such-file.pth"),
    ],
)
def test_what_cannot_be_is_refused(name, options, message):
    with pytest.raises(InflateError, match=message):
        load(name, **options)
