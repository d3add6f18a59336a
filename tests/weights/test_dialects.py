"""Every dialect is told by its names and gives the same network: its logits are those of an independent one."""

import pickle
import sys
from pathlib import Path

import foreign_files as files
import foreign_names as names
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from inflate3d import InflateError, InflateWarning, load
from inflate3d.models.blocks import SameConv3d
from inflate3d.weights.checkpoint import read_checkpoint

sys.path.append(str(Path(__file__).parents[1] / "models"))
from reference_i3d import run


def npz(path, arrays):
    with path.open("wb") as file:
        np.savez(file, **arrays)


def wrapped(state, key="state_dict", prefix="module."):
    return {key: {f"{prefix}{name}": value for name, value in state.items()}, "epoch": 3, "best": 0.7}


def counted(state, norm):
    """Torch since 0.4.1 counts batches as well."""
    counters = {name.replace("running_var", "num_batches_tracked"): torch.tensor(0) for name in state}
    return state | {name: value for name, value in counters.items() if f"{norm}.num" in name}


def flow(net):
    return {f"Flow{name.removeprefix('RGB')}": value for name, value in names.deepmind(*net).items()}


# how each dialect comes: dialect, and what writes its file
WRITERS = {
    "DeepMind": ("deepmind", lambda net, path: files.bundle(path.parent, path.name, names.deepmind(*net), shards=2)),
    "DeepMind's Kinetics-600": (
        "deepmind",
        lambda net, path: files.bundle(
            path.parent, path.name, names.deepmind(*net, prefix="", wide=True, momentum=True)
        ),
    ),
    "DeepMind's flow": ("deepmind", lambda net, path: npz(path, flow(net))),
    "TF-slim": ("tf-slim", lambda net, path: files.bundle(path.parent, path.name, names.slim(*net))),
    "Flax": ("flax", lambda net, path: path.write_bytes(pickle.dumps(names.flax(*net), protocol=4))),
    "piergiaj": (
        "piergiaj",
        lambda net, path: path.write_bytes(files.torch_0_3({k: v.numpy() for k, v in names.piergiaj(*net).items()})),
    ),
    "VideoGPT": ("piergiaj", lambda net, path: torch.save(counted(names.piergiaj(*net), "bn"), path)),
    "bsldict": ("piergiaj", lambda net, path: torch.save(wrapped(names.piergiaj(*net)), path)),
    "hassony2": (
        "hassony2",
        lambda net, path: torch.save(names.hassony2(*net), path, _use_new_zipfile_serialization=False),
    ),
    "FVD": ("hassony2", lambda net, path: files.script(counted(names.hassony2(*net), "batch3d"), path)),
    "mmaction": ("mmaction-v0", lambda net, path: torch.save(wrapped(names.mmaction_v0(*net), prefix=""), path)),
    "ours": ("inflate3d", lambda net, path: save_file(names.ours(*net), path)),
}
CLIPS = {channels: torch.rand(1, channels, 9, 193, 193) * 2 - 1 for channels in (2, 3)}
RUN = ("DeepMind", "DeepMind's flow", "TF-slim", "Flax", "piergiaj", "FVD", "mmaction")  # one of each dialect


@pytest.fixture(scope="module")
def expected():
    """Random networks with three and two channels, and their logits in float64."""
    made = {}
    for channels, clip in CLIPS.items():
        net = names.random_i3d(num_classes=11, in_channels=channels)
        state = {name: tensor.double() for name, tensor in names.ours(*net).items()}
        with torch.inference_mode():
            made[channels] = net, run(clip.double(), state)["Logits"]
    return made


@pytest.mark.parametrize("who", WRITERS)
def test_every_tensor_arrives_and_logits_are_those_of_an_independent_network(tmp_path, expected, who):
    dialect, write = WRITERS[who]
    channels = 2 if "flow" in who else 3
    net, logits = expected[channels]
    write(net, tmp_path / "weights.bin")
    found = read_checkpoint(tmp_path / "weights.bin")
    assert (found.dialect, found.architecture, found.num_classes) == (dialect, "i3d", 11)
    assert (found.in_channels, found.is_2d, found.score) == (channels, False, 1.0)
    wanted = names.ours(*net)
    assert found.state.keys() == wanted.keys()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in found.state.items())
    if who in RUN:
        with torch.inference_mode():
            assert (load(tmp_path / "weights.bin")(CLIPS[channels]).double() - logits).abs().max() < 1e-5


def test_what_was_done_is_said(tmp_path):
    net = names.random_i3d(5)
    files.bundle(tmp_path, "k600", names.deepmind(*net, prefix="", wide=True, momentum=True))
    found = read_checkpoint(tmp_path / "k600")
    assert found.prefix == ""
    assert found.notes == (
        "116 tensors left out: slots of the optimizer",
        "57 scales of batch norm set to one: these files have none",
    )
    state = {name: tensor.half() for name, tensor in names.piergiaj(*net).items()}
    torch.save(wrapped(state) | {"optimizer": {"state": {0: {"momentum": torch.zeros(3)}}}}, tmp_path / "half")
    found = read_checkpoint(tmp_path / "half")
    assert found.prefix == "state_dict.module."
    assert found.notes == ("287 tensors made float32: they were float16", "1 tensors left out: elsewhere in the file")
    summary = found.summary()
    assert summary["writers"] == "piergiaj/pytorch-i3d, VideoGPT, TATS, cd-fvd"
    assert (summary["tensors"], summary["kernels"], summary["num_classes"]) == (344, "3D", 5)


def test_averages_of_the_weights_do_not_come_in_their_place(tmp_path):
    net, other = names.random_i3d(3, seed=1), names.random_i3d(3, seed=2)
    torch.save({"state_dict": names.piergiaj(*net), "state_dict_ema": names.piergiaj(*other)}, tmp_path / "both")
    found = read_checkpoint(tmp_path / "both")
    assert found.prefix == "state_dict."
    assert torch.equal(
        found.state["Mixed_5c.Branch_0.Conv3d_0a_1x1.batch_norm.bias"],
        torch.from_numpy(net[0]["Mixed_5c/Branch_0/Conv3d_0a_1x1"][1]),
    )


def test_a_damaged_checkpoint_ends_in_one_report(tmp_path):
    state = names.piergiaj(*names.random_i3d(5))
    del state["Mixed_4c.b2a.bn.bias"], state["Conv3d_1a_7x7.conv3d.weight"], state["Mixed_3b.b0.bn.running_var"]
    state["Mixed_3c.b0.conv3d.weight"] = torch.zeros(128, 256, 1, 1, 3)
    state["Mixed_3c.b1a.bn.weight"] = torch.zeros(128, dtype=torch.int64)
    state |= {"extra.bias": torch.zeros(2), "epoch": torch.tensor(3)}
    torch.save({f"module.{name}": tensor for name, tensor in state.items()}, tmp_path / "damaged")
    with pytest.raises(InflateError, match="the checkpoint does not hold this network") as caught:
        load(tmp_path / "damaged")
    assert caught.value.got.split("\n            ") == [
        "3 missing:",
        "  module.Conv3d_1a_7x7.conv3d.weight",
        "  module.Mixed_3b.b0.bn.running_var",
        "  module.Mixed_4c.b2a.bn.bias",
        "2 unexpected:",
        "  module.epoch: [] int64",
        "  module.extra.bias: [2] float32",
        "2 of another shape or type:",
        "  module.Mixed_3c.b0.conv3d.weight: [128, 256, 1, 1, 3] float32, wanted [128, 256, 1, 1, 1] floats",
        "  module.Mixed_3c.b1a.bn.weight: [128] int64, wanted [128] floats",
    ]


def test_shapes_are_told_in_their_order_of_axes(tmp_path):
    arrays = names.deepmind(*names.random_i3d(5))
    arrays["RGB/inception_i3d/Conv3d_2c_3x3/conv_3d/w"] = np.zeros((192, 64, 3, 3, 3), "f4")
    npz(tmp_path / "any", arrays)
    with pytest.raises(InflateError, match=r"\[192, 64, 3, 3, 3\] float32, wanted \[3, 3, 3, 64, 192\] floats"):
        load(tmp_path / "any")


def test_declared_shapes_that_no_network_has_are_refused_unread(tmp_path):
    arrays = {name: np.zeros(1, "f4") for name in names.deepmind(*names.random_i3d(5))}
    files.bundle(tmp_path, "any", arrays)
    (tmp_path / "any.data-00000-of-00001").write_bytes(b"\x01" * 4 * len(arrays))  # checksums are wrong now
    with pytest.raises(InflateError, match="the checkpoint does not hold this network"):
        load(tmp_path / "any")


def test_another_number_of_classes(tmp_path):
    net = names.random_i3d(5)
    torch.save(names.hassony2(*net), tmp_path / "five")
    with pytest.warns(InflateWarning, match=r"a classifier for 7 classes is not filled(.|\n)*the file has 5 classes"):
        model = load(tmp_path / "five", num_classes=7)
    assert model.num_classes == 7
    assert model.get_parameter("Logits.Conv3d_0c_1x1.conv_3d.weight").std() > 0.01  # not on meta, not zero
    trunk = {name: tensor for name, tensor in names.ours(*net).items() if not name.startswith("Logits")}
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in trunk.items())
    assert load(tmp_path / "five", num_classes=5).num_classes == 5


def test_a_file_without_a_classifier(tmp_path):
    state = {name: tensor for name, tensor in names.piergiaj(*names.random_i3d(5)).items() if "logits" not in name}
    torch.save(state, tmp_path / "features")
    assert read_checkpoint(tmp_path / "features").num_classes is None
    with pytest.raises(InflateError, match="the file has no classifier"):
        load(tmp_path / "features")
    with pytest.warns(InflateWarning, match="the file has no classifier"):
        assert load(tmp_path / "features", num_classes=3).num_classes == 3


COMPAT = {None: (1e-3, "same"), "videogpt": (1e-5, "same"), "tats": (1e-5, "same"), "cd-fvd": (1e-5, "same")}
COMPAT |= {"video-features": (1e-5, "static")}


def test_networks_as_others_have_them(tmp_path):
    torch.save(names.hassony2(*names.random_i3d(5)), tmp_path / "any")
    for compat, (eps, padding) in COMPAT.items():
        model = load(tmp_path / "any", compat=compat)
        assert {module.eps for module in model.modules() if isinstance(module, torch.nn.BatchNorm3d)} == {eps}
        assert {module.rule for module in model.modules() if isinstance(module, SameConv3d)} == {padding}
        assert model.clip_spec.min_frames == (10 if padding == "static" else 9)


def test_options_that_are_not_there(tmp_path):
    torch.save(names.piergiaj(*names.random_i3d(5)), tmp_path / "any")
    with pytest.raises(InflateError, match=r"there is no such compat(.|\n)*did you mean video-features"):
        load(tmp_path / "any", compat="videofeatures")
    with pytest.raises(InflateError, match=r"no such label set(.|\n)*did you mean kinetics-[46]00"):
        load(tmp_path / "any", label_set="kinetics")
    with pytest.raises(InflateError, match=r"there is no such network(.|\n)*400 class_names"):
        load(tmp_path / "any", label_set="kinetics-400")


def test_labels(tmp_path):
    torch.save(names.piergiaj(*names.random_i3d(400)), tmp_path / "any")
    assert load(tmp_path / "any").class_names is None
    assert load(tmp_path / "any", label_set="kinetics-400").class_names[0] == "abseiling"
