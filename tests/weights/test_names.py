"""Every tensor of a checkpoint lands under our name, moved and not changed; every fault is told."""

import numpy as np
import pytest
import torch
from i3d_names import flax_leaf, flax_tree, units

from inflate3d.errors import InflateError
from inflate3d.models.inception import InceptionI3d
from inflate3d.weights.names import FLAX, Dialect, convert, flax_to_inflate3d


def random_tree(**options):
    rng = np.random.default_rng(3)
    return flax_tree(lambda shape: rng.random(shape, dtype=np.float32), **options)


def zeros(shape):
    return np.zeros(shape, np.float32)


def test_a_whole_tree_lands_under_our_names():
    tree = random_tree()
    state = flax_to_inflate3d(tree)
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
    state = flax_to_inflate3d(random_tree(num_classes=7, in_channels=2), num_classes=7, in_channels=2)
    with torch.device("meta"):
        model = InceptionI3d(num_classes=7, in_channels=2)
    model.load_state_dict(state, strict=True, assign=True)
    model.get_parameter("Conv3d_1a_7x7.conv_3d.weight").data.zero_()  # memory of its own


def test_all_faults_are_told_together():
    tree = flax_tree(zeros)
    del tree["params"]["Conv3d_2b_1x1"]["BatchNorm_0"]
    tree["params"]["Conv3d_1a_7x7"]["Conv_0"]["kernel"] = zeros((7, 7, 7, 64, 3))
    tree["params"]["Mixed_5b"]["Branch_2/Conv3d_0a_3x3"] = {"Conv_0": {"kernel": zeros((3, 3, 3, 32, 128))}}
    tree["batch_stats"]["Conv3d_2c_3x3"]["BatchNorm_0"]["mean"] = zeros((2, 96))
    tree["batch_stats"]["Conv3d_2c_3x3"]["BatchNorm_0"]["var"] = np.zeros(192)
    tree["params"]["Logits/Conv3d_0c_1x1"]["Conv_0"]["bias"] = "text"
    with pytest.raises(InflateError, match="the checkpoint does not hold this network") as caught:
        flax_to_inflate3d(tree)
    assert caught.value.got.split("\n            ") == [
        f"{path}: {fault}"
        for path, fault in [
            (
                "params/Conv3d_1a_7x7/Conv_0/kernel",
                "[7, 7, 7, 64, 3] float32; Conv3d_1a_7x7.conv_3d.weight wants [7, 7, 7, 3, 64] float32",
            ),
            (
                "params/Conv3d_2b_1x1/BatchNorm_0/bias",
                "missing; Conv3d_2b_1x1.batch_norm.bias wants [64] float32",
            ),
            (
                "batch_stats/Conv3d_2c_3x3/BatchNorm_0/mean",
                "[2, 96] float32; Conv3d_2c_3x3.batch_norm.running_mean wants [192] float32",
            ),
            (
                "batch_stats/Conv3d_2c_3x3/BatchNorm_0/var",
                "[192] float64; Conv3d_2c_3x3.batch_norm.running_var wants [192] float32",
            ),
            (
                "params/Logits/Conv3d_0c_1x1/Conv_0/bias",
                "'text'; Logits.Conv3d_0c_1x1.conv_3d.bias wants [400] float32",
            ),
            ("params/Mixed_5b/Branch_2/Conv3d_0a_3x3/Conv_0/kernel", "unknown"),
        ]
    ]


def test_many_faults_are_counted():
    with pytest.raises(InflateError, match="and 223 more"):  # 230 tensors are missing, one is unknown, eight are shown
        flax_to_inflate3d({"state_dict": 3})


def test_another_number_of_classes_is_named():
    with pytest.raises(InflateError, match=r"\[1, 1, 1, 1024, 400\] float32; \S+ wants \[1, 1, 1, 1024, 600\]"):
        flax_to_inflate3d(flax_tree(zeros), num_classes=600)


def test_a_dialect_is_one_small_entry():
    short = Dialect(
        leaves={"conv_3d.weight": "{unit}.w", "batch_norm.bias": "{unit}.beta"},
        kernel_axes=(0, 1, 2, 3, 4),
        separator=".",
        renames=((".Branch_1.Conv3d_0a_1x1", ".b1a"),),
    )
    unit, kernel, beta = (
        "Mixed_3b.Branch_1.Conv3d_0a_1x1",
        np.ones((2, 3, 5, 7, 11), np.float32),
        np.ones(2, np.float32),
    )
    shapes = {
        f"{unit}.conv_3d.weight": (2, 3, 5, 7, 11),
        f"{unit}.batch_norm.weight": (2,),
        f"{unit}.batch_norm.bias": (2,),
    }
    state = convert({"Mixed_3b.b1a.w": kernel, "Mixed_3b.b1a.beta": beta}, short, shapes=shapes)
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == shapes


def test_no_two_names_share_a_path():
    paths = [FLAX.path(scope.replace("/", "."), leaf) for scope in units() for leaf in FLAX.leaves]
    assert len(set(paths)) == len(paths)
