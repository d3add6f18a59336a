"""The tables of names are one-to-one, and the loop over them recognizes every file whole, damaged or wrapped."""

import numpy as np
import pytest
import torch
from i3d_names import flax_leaf, flax_tree, units

from inflate3d.errors import InflateError
from inflate3d.models.inception import InceptionI3d
from inflate3d.weights.containers import flatten
from inflate3d.weights.dialects import DIALECTS
from inflate3d.weights.names import (
    ARCHITECTURES,
    Faults,
    Recognized,
    convert,
    network_shapes,
    nonlocal_names,
    recognize,
    spell_state,
)
from inflate3d.weights.stored import Stored


def zeros(shape):
    return np.zeros(shape, np.float32)


def convert_flax(tree):
    tensors = flatten(tree, "/")
    found = Recognized(DIALECTS["flax"], "i3d", prefix="", score=1.0, spelled={name: name for name in tensors})
    return convert(tensors, found, where="test")


def of(dialect):
    return [architecture for architecture, family in ARCHITECTURES.items() if family == dialect.family]


def must(dialect, architecture):
    names = network_shapes(architecture, 400, 3)
    return [dialect.spell(name) for name in names if not name.endswith((*dialect.absent, "num_batches_tracked"))]


@pytest.mark.parametrize("dialect", DIALECTS.values(), ids=DIALECTS)
def test_no_two_names_share_a_spelling(dialect):
    for architecture in of(dialect):
        names = [*network_shapes(architecture, 400, 3), *nonlocal_names(architecture)]
        assert len({dialect.spell(name) for name in names}) == len(names)


@pytest.mark.parametrize("prefix", ["", "module.", "state_dict/model.", "RGB/inception_i3d/"])
def test_every_file_is_recognized_behind_any_prefix(prefix):
    for dialect in DIALECTS.values():
        for architecture in of(dialect):
            names = [prefix + name for name in must(dialect, architecture)]
            found = recognize([*names, "optimizer.0.step", "epoch"])
            if dialect.needs_all and not prefix:  # what stands beside it is then taken for a part of it
                found = recognize(names)
            assert (found.dialect, found.architecture, found.prefix) == (dialect, architecture, prefix)


def test_a_damaged_file_is_recognized_as_long_as_half_of_it_is_there():
    rng = np.random.default_rng(0)
    for dialect in DIALECTS.values():
        if dialect.needs_all:
            continue
        names = must(dialect, of(dialect)[0])
        kept = [name for name in names if rng.random() < 0.9]
        found = recognize(kept)
        assert found.dialect is dialect
        assert found.score == len(kept) / len(names)
        assert recognize(names[: len(names) // 3]) is None or dialect.family == "resnet"
    assert recognize(["nothing", "that.anybody", "knows"]) is None


def test_a_whole_tree_lands_under_our_names():
    rng = np.random.default_rng(3)
    tree = flax_tree(lambda shape: rng.random(shape, dtype=np.float32))
    state = convert_flax(tree).state
    assert len(state) == 57 * 6 + 2
    for scope, (side, channels_in, channels) in units().items():
        ours = scope.replace("/", ".")
        kernel = state[f"{ours}.conv_3d.weight"]
        assert kernel.shape == (channels, channels_in, side, side, side)
        assert kernel.is_contiguous()
        theirs = flax_leaf(tree, "params", scope, "Conv_0", "kernel")
        o, i, t, h, w = channels - 1, channels_in // 2, side - 1, side // 2, 0
        assert kernel[o, i, t, h, w] == theirs[t, h, w, i, o]
        np.testing.assert_array_equal(kernel.permute(2, 3, 4, 1, 0).numpy(), theirs)
        for leaf, part, key in [
            ("bias", "params", "bias"),
            ("running_mean", "batch_stats", "mean"),
            ("running_var", "batch_stats", "var"),
        ]:
            values = state[f"{ours}.batch_norm.{leaf}"].numpy()
            np.testing.assert_array_equal(values, flax_leaf(tree, part, scope, "BatchNorm_0", key).reshape(channels))
        assert state[f"{ours}.batch_norm.weight"].equal(torch.ones(channels))
        assert state[f"{ours}.batch_norm.num_batches_tracked"].equal(torch.tensor(0))
    logits = tree["params"]["Logits/Conv3d_0c_1x1"]["Conv_0"]
    np.testing.assert_array_equal(
        state["Logits.Conv3d_0c_1x1.conv_3d.weight"][:, :, 0, 0, 0].T, logits["kernel"][0, 0, 0]
    )
    np.testing.assert_array_equal(state["Logits.Conv3d_0c_1x1.conv_3d.bias"], logits["bias"])


def test_the_network_takes_them_strictly():
    converted = convert_flax(flax_tree(zeros, num_classes=7, in_channels=2))
    assert (converted.num_classes, converted.in_channels, converted.is_2d) == (7, 2, False)
    with torch.device("meta"):
        model = InceptionI3d(num_classes=7, in_channels=2)
    model.load_state_dict(converted.state, strict=True, assign=True)
    model.get_parameter("Conv3d_1a_7x7.conv_3d.weight").data.add_(1)  # memory of its own


def test_all_faults_are_told_together_and_in_order():
    tree = flax_tree(zeros)
    del tree["params"]["Conv3d_2b_1x1"]["BatchNorm_0"]
    tree["params"]["Conv3d_1a_7x7"]["Conv_0"]["kernel"] = zeros((7, 7, 7, 64, 3))
    tree["params"]["Mixed_5b"]["Branch_2/Conv3d_0a_3x3"] = {"Conv_0": {"kernel": zeros((3, 3, 3, 32, 128))}}
    tree["batch_stats"]["Conv3d_2c_3x3"]["BatchNorm_0"]["mean"] = zeros((2, 96))
    tree["params"]["Logits/Conv3d_0c_1x1"]["Conv_0"]["bias"] = "text"
    with pytest.raises(InflateError, match="the checkpoint does not hold this network") as caught:
        convert_flax(tree)
    assert caught.value.got.split("\n            ") == [
        "2 missing:",
        "  params/Conv3d_2b_1x1/BatchNorm_0/bias",
        "  params/Logits/Conv3d_0c_1x1/Conv_0/bias",
        "1 unexpected:",
        "  params/Mixed_5b/Branch_2/Conv3d_0a_3x3/Conv_0/kernel: [3, 3, 3, 32, 128] float32",
        "2 of another shape or type:",
        "  batch_stats/Conv3d_2c_3x3/BatchNorm_0/mean: [2, 96] float32, wanted [192] floats",
        "  params/Conv3d_1a_7x7/Conv_0/kernel: [7, 7, 7, 64, 3] float32, wanted [7, 7, 7, 3, 64] floats",
    ]


def test_many_faults_are_counted():
    with pytest.raises(InflateError, match=r"228 missing:(.|\n)*and 220 more"):  # without the classifier's two
        convert_flax({"state_dict": zeros(3)})


def test_nothing_is_read_before_all_is_checked():
    def explode():
        raise AssertionError

    shapes = network_shapes("i3d", 5, 3)
    tensors = {name: Stored(shape, torch.float32, explode) for name, shape in shapes.items()}
    tensors["Conv3d_1a_7x7.conv_3d.weight"] = Stored((2**31, 3, 7, 7, 7), torch.float32, explode)
    with pytest.raises(InflateError, match=r"\[2147483648, 3, 7, 7, 7\] float32, wanted \[64, 3, 7, 7, 7\]"):
        convert(tensors, recognize(tensors), where="test")


def test_spelling_is_the_inverse_of_converting():
    with torch.device("meta"):
        model = InceptionI3d(5, 2)
    state = {name: torch.randn(tensor.shape) for name, tensor in model.state_dict().items()}
    for name, tensor in state.items():
        if name.endswith("batch_norm.weight"):
            state[name] = torch.ones_like(tensor)
        elif name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(0)
    for dialect in DIALECTS.values():
        if dialect.family != "i3d":
            continue
        spelled = spell_state(state, dialect)
        tensors = {name: Stored(tuple(t.shape), t.dtype, lambda t=t: t) for name, t in spelled.items()}
        back = convert(tensors, recognize(tensors), where="test").state
        assert back.keys() == state.keys()
        assert all(torch.equal(back[name], tensor) for name, tensor in state.items())


def test_faults_are_sorted():
    faults = Faults(missing=["b", "a"], wrong=["c: [1] float32, wanted [2] floats"])
    assert str(faults).split("\n            ")[:3] == ["2 missing:", "  a", "  b"]
    assert faults
    assert not Faults()
