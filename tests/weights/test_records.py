"""What training scripts keep beside their tensors: numpy's random state and other arrays that are no weights."""

import pickle
import random

import numpy as np
import pytest
import torch

from inflate3d.errors import InflateError
from inflate3d.weights.checkpoint import read_checkpoint
from inflate3d.weights.containers import open_container

STATE = {"conv.weight": torch.arange(24.0).view(2, 3, 4), "conv.bias": torch.ones(2)}


def names(path):
    with open_container(path) as container:
        return list(container.tensors)


@pytest.mark.parametrize("old", [False, True])
def test_random_states_are_no_reason_to_refuse_a_checkpoint(tmp_path, old):
    """Those of Python, numpy (624 words of 32 bits, unsigned) and torch (bytes), as resumable scripts keep them."""
    records = {
        "random": {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()},
        "numpy dict": np.random.RandomState(3).get_state(legacy=False),
        "generator": np.random.default_rng(7).bit_generator.state,
    }
    path = tmp_path / "last.pth"
    torch.save({"state_dict": STATE, **records}, path, _use_new_zipfile_serialization=not old)
    assert names(path) == [*(f"state_dict.{name}" for name in STATE), "random.torch"]
    found = read_checkpoint(path).state
    assert {name: value.tolist() for name, value in found.items()} == {n: v.tolist() for n, v in STATE.items()}


@pytest.mark.parametrize("dtype", ["u2", "u4", "u8", "i1", "i2", "c8", "c16", ">u4", "u1", "i8", "f8", "?"])
def test_arrays_of_any_numbers_may_stand_beside_tensors(tmp_path, dtype):
    values = np.ones((3, 5), dtype)
    torch.save(
        {"state_dict": STATE, "seen": values, "last": values[1, 2], "all": [values, {"a": values}]}, tmp_path / "a"
    )
    assert names(tmp_path / "a") == [f"state_dict.{name}" for name in STATE]


@pytest.mark.parametrize("dtype", ["u2", "u4", "u8", "i1", "i2", "c8", "c16"])
def test_as_weights_such_arrays_are_refused_by_name(tmp_path, dtype):
    """Where a file holds numpy's arrays alone they are its weights."""
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"blobs": {"conv1_w": np.ones(3, "f4"), "odd": np.ones(3, dtype)}}))
    with pytest.raises(InflateError, match="an array is of a type that weights are not") as found:
        read_checkpoint(tmp_path / "a.pkl")
    assert f"blobs/odd, dtype {np.dtype(dtype)}" in found.value.got


@pytest.mark.parametrize(
    "array", [np.array(["a", "bc"]), np.array([1, None], object), np.array(["2020-01-01"], "M8[D]")]
)
def test_arrays_of_what_is_no_number_are_refused_as_before(tmp_path, array):
    torch.save({"state_dict": STATE, "seen": array}, tmp_path / "a")
    with pytest.raises(InflateError, match=r"of a type that weights are not|more than arrays|wants to run code"):
        read_checkpoint(tmp_path / "a")


def test_records_count_as_memory(tmp_path, monkeypatch):
    """A small file must not become large by arrays that nobody needs."""
    monkeypatch.setattr("inflate3d.weights.torch_file.MAX_PICKLE_BYTES", 6_000)
    torch.save({"state_dict": STATE, "seen": [np.full(500, n, np.uint32) for n in range(4)]}, tmp_path / "a")
    with pytest.raises(InflateError, match=r"take more memory than allowed|the pickle is too long"):
        read_checkpoint(tmp_path / "a")
