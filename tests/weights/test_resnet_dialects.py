"""3D ResNets and 2D networks of every dialect arrive under the names that the inflated network has."""

import copy
import pickle

import foreign_names as names
import numpy as np
import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file

from inflate3d import InflateError, InflateWarning, inflate, load
from inflate3d.inflation.plan import Insert
from inflate3d.weights.checkpoint import read_checkpoint
from inflate3d.weights.load import load_checkpoint

BEHIND = ((2, 1), (3, 5))  # non-local blocks
SPELLERS = {
    "pyslowfast": (names.pyslowfast, "model_state"),
    "pytorchvideo": (names.pytorchvideo, "model_state"),
    "mmaction2": (names.mmaction2, "state_dict"),
    "gluoncv": (names.gluoncv, None),
    "torchvision": (names.torchvision, "state_dict"),
}


def assert_same(found, wanted):
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


def save(state, key, path):
    wrapped = {key: state, "epoch": 3, "cfg": "text"} if key else state
    torch.save(wrapped, path)


@pytest.mark.parametrize("dialect", SPELLERS)
def test_every_tensor_gets_the_inflated_networks_name(tmp_path, dialect):
    spell, key = SPELLERS[dialect]
    has_nonlocals = dialect not in ("pytorchvideo", "torchvision")
    tensors = names.resnet(nonlocals=BEHIND if has_nonlocals else ())
    save({spell(*at): tensor for at, tensor in tensors.items()}, key, tmp_path / "any")
    found = read_checkpoint(tmp_path / "any")
    assert (found.dialect, found.architecture, found.num_classes) == (dialect, "resnet50", 400)
    assert (found.in_channels, found.is_2d, found.score, found.notes) == (3, False, 1.0, ())
    assert_same(found.state, {names.inflated(*at): tensor for at, tensor in tensors.items()})


def test_spellings_that_vary(tmp_path):
    tensors = names.resnet(nonlocals=BEHIND)
    wanted = {names.inflated(*at): tensor for at, tensor in tensors.items()}
    converted = {names.pyslowfast(*at, norm="bn"): tensor for at, tensor in tensors.items()}
    save(converted, "model_state", tmp_path / "bn")
    assert_same(read_checkpoint(tmp_path / "bn").state, wanted)
    halved = {f"module.{names.mmaction2(*at, halved=True)}": tensor for at, tensor in tensors.items()}
    save(halved, "state_dict", tmp_path / "halved")
    assert_same(read_checkpoint(tmp_path / "halved").state, wanted)


def test_a_resnet_101_is_told_from_a_50(tmp_path):
    tensors = names.resnet(101, num_classes=5)
    save({names.mmaction2(*at): tensor for at, tensor in tensors.items()}, "state_dict", tmp_path / "any")
    found = read_checkpoint(tmp_path / "any")
    assert (found.architecture, found.num_classes, found.score) == ("resnet101", 5, 1.0)


def test_gluoncv_names_some_tensors_twice(tmp_path):
    tensors = names.resnet(nonlocals=BEHIND)
    state = {names.gluoncv(*at): tensor for at, tensor in tensors.items()}
    twice = {again: tensor for name, tensor in state.items() if (again := names.gluoncv_again(name))}
    save(state | twice, None, tmp_path / "any")
    found = read_checkpoint(tmp_path / "any")
    assert_same(found.state, {names.inflated(*at): tensor for at, tensor in tensors.items()})
    assert found.notes == (f"{len(twice)} tensors left out: second names of the same tensors",)


def caffe2(path, tensors):
    blobs = {names.caffe2(*at): tensor.numpy() for at, tensor in tensors.items()}
    momenta = {f"{name}_momentum": np.zeros_like(blob) for name, blob in blobs.items() if name[-2:] in ("_w", "_b")}
    beside = {"lr": np.float32(0.01), "model_iter": 400_000}
    path.write_bytes(pickle.dumps({"blobs": blobs | momenta | beside}, protocol=2))
    return momenta


def test_caffe2_with_statistics(tmp_path):
    tensors = names.resnet(nonlocals=BEHIND, counters=False)
    momenta = caffe2(tmp_path / "any", tensors)
    found = read_checkpoint(tmp_path / "any")
    assert (found.dialect, found.container, found.prefix) == ("caffe2", "pickle of numpy arrays", "blobs/")
    wanted = {names.inflated(*at): tensor for at, tensor in tensors.items()}
    counters = {name: tensor for name, tensor in found.state.items() if name.endswith("num_batches_tracked")}
    assert {int(tensor) for tensor in counters.values()} == {0}
    assert_same(found.state, wanted | counters)
    assert found.notes == (
        "1 tensors left out: counters of the training",
        f"{len(momenta)} tensors left out: slots of the optimizer",
    )


def test_caffe2_with_folded_statistics(tmp_path):
    """Where training froze batch norm there is a scale and a bias alone: y = s x + b."""
    tensors = names.resnet(counters=False)
    tensors = {at: tensor for at, tensor in tensors.items() if not at[3].startswith("running")}
    caffe2(tmp_path / "any", tensors)
    found = read_checkpoint(tmp_path / "any")
    assert "106 statistics of batch norm set to do nothing: they are folded into its scale" in found.notes
    norm = torch.nn.BatchNorm3d(64).eval()  # eps 1e-5, as in every ResNet here
    norm.load_state_dict({k.removeprefix("net.bn1."): v for k, v in found.state.items() if k.startswith("net.bn1.")})
    x = torch.randn(2, 64, 3, 5, 7)
    scale, bias = (tensors[0, 0, "bn1", leaf][:, None, None, None] for leaf in ("weight", "bias"))
    assert torch.allclose(norm(x), scale * x + bias, rtol=1e-6, atol=1e-6)


def test_faults_of_a_resnet_are_told_in_their_names(tmp_path):
    state = {names.pyslowfast(*at): tensor for at, tensor in names.resnet().items()}
    del state["s3.pathway0_res1.branch2.b.weight"]
    state["s2.pathway0_res0.branch2.a.weight"] = torch.zeros(64, 64, 3, 3, 3)
    save(state, "model_state", tmp_path / "any")
    with pytest.raises(InflateError, match="does not hold this network") as caught:
        read_checkpoint(tmp_path / "any")
    assert caught.value.got.split("\n            ") == [
        "1 missing:",
        "  model_state.s3.pathway0_res1.branch2.b.weight",
        "1 of another shape or type:",
        "  model_state.s2.pathway0_res0.branch2.a.weight: [64, 64, 3, 3, 3] float32, wanted [64, 64, t, 1, 1] floats",
    ]


def test_an_inflated_network_takes_them(tmp_path):
    net2d = torchvision.models.resnet50(num_classes=400).eval()
    inserts = [Insert(f"layer{stage}.{block}", "nonlocal") for stage, block in BEHIND]
    model = inflate(net2d, "i3d-3x1x1", inserts=inserts, example=torch.zeros(1, 3, 65, 67))
    state, tensors = model.state_dict(), names.resnet(nonlocals=BEHIND)
    for at, tensor in tensors.items():  # kernels as long in time as this network has them
        target = state[names.inflated(*at)]
        if tensor.ndim == 5 and tensor.shape[2:] != target.shape[2:]:
            frames = target.shape[2] if target.ndim == 5 else 1
            tensors[at] = tensor[:, :, :1].expand(-1, -1, frames, -1, -1).contiguous()
    save({names.pyslowfast(*at): tensor for at, tensor in tensors.items()}, "model_state", tmp_path / "any")
    assert load_checkpoint(model, tmp_path / "any").dialect == "pyslowfast"
    for at, tensor in tensors.items():
        assert torch.equal(model.state_dict()[names.inflated(*at)].flatten(), tensor.flatten()), at
    torch.save(model.state_dict(), tmp_path / "own")  # the network's own file comes back too
    other = copy.deepcopy(model)
    for parameter in other.parameters():
        torch.nn.init.zeros_(parameter)
    load_checkpoint(other, tmp_path / "own")
    assert_same(other.state_dict(), model.state_dict())
    other.net.fc = torch.nn.Linear(2048, 7)
    with pytest.warns(InflateWarning, match=r"a classifier for 7 classes(.|\n)*the file has 400 classes"):
        load_checkpoint(other, tmp_path / "any")


def save_zip(state, path):
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}, path)


def save_old(state, path):
    torch.save(state, path, _use_new_zipfile_serialization=False)


@pytest.fixture(scope="module")
def resnet18():
    net2d = torchvision.models.resnet18(num_classes=11).eval()
    return net2d, inflate(net2d, example=torch.zeros(1, 3, 33, 35))


@pytest.mark.parametrize("save_as", [save_zip, save_old, save_file])
def test_2d_checkpoints(tmp_path, resnet18, save_as):
    net2d, _ = resnet18
    save_as(net2d.state_dict(), tmp_path / "any")
    found = read_checkpoint(tmp_path / "any")
    assert (found.dialect, found.architecture, found.is_2d, found.num_classes) == ("torchvision", "resnet18", True, 11)
    assert_same(found.state, net2d.state_dict())


def test_2d_checkpoints_are_inflated_on_loading(tmp_path, resnet18):
    net2d, wanted = resnet18
    torch.save(net2d.state_dict(), tmp_path / "any")
    model = copy.deepcopy(wanted)
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    load_checkpoint(model, tmp_path / "any")
    assert_same(model.state_dict(), wanted.state_dict())
    model.net.fc = torch.nn.Linear(512, 5)
    head = model.net.fc.weight.clone()
    torch.nn.init.zeros_(model.net.conv1.weight)
    with pytest.warns(InflateWarning, match="a classifier for 5 classes"):
        load_checkpoint(model, tmp_path / "any")
    assert torch.equal(model.net.fc.weight, head)
    assert torch.equal(model.net.conv1.weight, wanted.net.conv1.weight)
    with pytest.raises(InflateError, match=r"has to be built before it is loaded(.|\n)*torchvision/resnet18"):
        load(tmp_path / "any")


@pytest.mark.parametrize(
    "make", [lambda: timm.create_model("resnet18d", num_classes=3), torchvision.models.wide_resnet50_2]
)
def test_networks_that_nobody_knows_keep_their_names(tmp_path, make):
    with torch.device("meta"):
        net2d = make()
    state = {name: torch.zeros(tensor.shape, dtype=tensor.dtype) for name, tensor in net2d.state_dict().items()}
    torch.save({"model": state, "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}}}, tmp_path / "any")
    found = read_checkpoint(tmp_path / "any")
    assert (found.dialect, found.architecture, found.is_2d, found.prefix) == ("own names", None, True, "model.")
    assert found.notes == ("1 tensors left out: elsewhere in the file",)
    assert_same(found.state, state)
    with pytest.raises(InflateError, match="has to be built before it is loaded"):
        load(tmp_path / "any")


def test_a_5d_network_of_ones_own_takes_a_2d_checkpoint(tmp_path):
    net2d = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 3), torch.nn.BatchNorm2d(5))
    net3d = torch.nn.Sequential(torch.nn.Conv3d(3, 5, (7, 3, 3)), torch.nn.BatchNorm3d(5))
    torch.save(net2d.state_dict(), tmp_path / "any")
    load_checkpoint(net3d, tmp_path / "any")
    assert torch.allclose(net3d[0].weight.sum(2), net2d[0].weight, atol=1e-6)


def test_faults_of_a_network_of_ones_own_are_told_together(tmp_path):
    torch.save({"0.weight": torch.zeros(2, 3), "extra": torch.zeros(1)}, tmp_path / "any")
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with pytest.raises(InflateError, match="does not hold this network") as caught:
        load_checkpoint(net, tmp_path / "any")
    assert caught.value.got.split("\n            ") == [
        "1 missing:",
        "  0.bias",
        "1 unexpected:",
        "  extra: [1] float32",
        "1 of another shape or type:",
        "  0.weight: [2, 3] float32, wanted [4, 3] float32",
    ]
    assert_same(net.state_dict(), before)


def test_googlenet_is_inflated_into_i3d(tmp_path):
    net2d = torchvision.models.googlenet(num_classes=9, aux_logits=True, init_weights=False)
    torch.save(net2d.state_dict(), tmp_path / "any")
    found = read_checkpoint(tmp_path / "any")
    assert (found.dialect, found.architecture, found.is_2d) == ("torchvision-googlenet", "googlenet", True)
    assert found.notes[0].endswith("tensors left out: heads that only training runs")
    model = load(tmp_path / "any")
    kernel = model.get_parameter("Mixed_4c.Branch_1.Conv3d_0b_3x3.conv_3d.weight")
    assert torch.allclose(kernel.sum(2), net2d.inception4b.branch2[1].conv.weight, atol=1e-6)
    assert load(tmp_path / "any", num_classes=400, label_set="kinetics-400").class_names[0] == "abseiling"
    with pytest.raises(InflateError, match=r"there is no such network(.|\n)*400 class_names"):
        load(tmp_path / "any", label_set="kinetics-400")
    with pytest.warns(InflateWarning, match="the classifier is not filled"):
        load_checkpoint(model, tmp_path / "any")


@pytest.mark.shared
def test_caffes_dumps(shared):
    found = read_checkpoint(shared / "data/weights/squeezenet1_1.npz")
    assert (found.dialect, found.architecture, found.num_classes) == ("caffe-squeezenet", "squeezenet1_1", 1000)
    model = torchvision.models.squeezenet1_1()
    load_checkpoint(model, shared / "data/weights/squeezenet1_1.npz")
    with np.load(shared / "data/weights/squeezenet1_1.npz") as arrays:
        for theirs, ours in (("conv1", "0"), ("fire4/squeeze1x1", "6.squeeze"), ("fire9/expand3x3", "12.expand3x3")):
            for leaf in ("weight", "bias"):
                array = arrays[f"{theirs}.{leaf}"]
                np.testing.assert_array_equal(model.features.get_parameter(f"{ours}.{leaf}").detach(), array)
    plain = read_checkpoint(shared / "data/weights/googlenet_bvlc.npz")
    assert (plain.dialect, plain.is_2d, len(plain.state)) == ("own names", True, 116)
    assert plain.state["inception_3a/3x3.weight"].shape == (128, 96, 3, 3)


@pytest.mark.parametrize("dialect", ["pyslowfast", "mmaction2"])
def test_load_builds_the_network_that_a_projects_file_holds(tmp_path, dialect):
    spell, key = SPELLERS[dialect]
    tensors = names.resnet(nonlocals=((2, 1), (2, 3), (3, 1), (3, 3), (3, 5)))
    save({spell(*at): tensor for at, tensor in tensors.items()}, key, tmp_path / "any")
    model = load(tmp_path / "any")
    state = model.inflated.state_dict()
    for at, tensor in tensors.items():
        assert torch.equal(state[names.inflated(*at)].flatten(), tensor.flatten())
    assert model.clip_spec.num_frames == (8 if dialect == "pyslowfast" else 32)
