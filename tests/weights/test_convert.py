"""Writing checkpoints anew: what was read is what stands there, in every dialect that can be written."""

import os
import pickle

import foreign_names as names
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from inflate3d import InflateError, load
from inflate3d.weights.checkpoint import convert_checkpoint, read_card, read_checkpoint


@pytest.fixture(scope="module")
def net():
    return names.random_i3d(num_classes=101)


@pytest.fixture
def source(tmp_path, net):
    torch.save(names.ours(*net), tmp_path / "source.bin")
    return tmp_path / "source.bin"


def assert_bits(found, wanted):
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name].reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8)), name


@pytest.mark.parametrize("dialect", ["piergiaj", "hassony2"])
def test_there_and_back_bit_for_bit(tmp_path, source, net, dialect):
    convert_checkpoint(source, tmp_path / "theirs.pt", to=dialect)
    theirs = torch.load(tmp_path / "theirs.pt", weights_only=True)
    wanted = getattr(names, dialect)(*net)
    counters = {name for name in theirs if name.endswith("num_batches_tracked")}
    assert len(counters) == 57
    assert_bits({name: tensor for name, tensor in theirs.items() if name not in counters}, wanted)
    found = convert_checkpoint(tmp_path / "theirs.pt", tmp_path / "ours.safetensors")
    assert (found.dialect, found.num_classes) == (dialect, 101)
    assert_bits(load_file(tmp_path / "ours.safetensors"), names.ours(*net))


def test_safetensors_carry_a_card(tmp_path, source, net):
    convert_checkpoint(source, tmp_path / "mine.safetensors", label_set="ucf-101")
    card = read_card(tmp_path / "mine.safetensors")
    assert (card.name, card.architecture, card.num_classes, card.in_channels) == ("mine", "i3d", 101, 3)
    assert card.source.startswith("source.bin, torch.save archive")
    assert card.license.startswith("unknown")
    model = load(tmp_path / "mine.safetensors")
    assert len(model.class_names) == 101
    assert_bits(model.state_dict(), names.ours(*net))
    convert_checkpoint(tmp_path / "mine.safetensors", tmp_path / "again.safetensors")
    assert read_card(tmp_path / "again.safetensors") == card


def test_other_networks_become_plain_safetensors(tmp_path):
    state = {"a.weight": torch.randn(3, 5), "a.bias": torch.randn(3)}
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}, tmp_path / "any")
    convert_checkpoint(tmp_path / "any", tmp_path / "plain.safetensors")
    assert_bits(load_file(tmp_path / "plain.safetensors"), state)
    assert_bits(read_checkpoint(tmp_path / "plain.safetensors").state, state)
    with pytest.raises(InflateError, match="piergiaj spells I3D only"):
        convert_checkpoint(tmp_path / "any", tmp_path / "theirs.pt", to="piergiaj")


def test_tensors_that_share_memory_are_written_one_by_one(tmp_path):
    array = np.arange(12.0, dtype="f4").reshape(3, 4)
    (tmp_path / "tied").write_bytes(pickle.dumps({"a": array, "b": array}))
    convert_checkpoint(tmp_path / "tied", tmp_path / "plain.safetensors")
    found = load_file(tmp_path / "plain.safetensors")
    assert all(torch.equal(found[name], torch.from_numpy(array)) for name in "ab")


@pytest.mark.parametrize(
    ("target", "options", "match"),
    [
        ("a.pt", {}, "says something else than what is to be written"),
        ("a.safetensors", {"to": "piergiaj"}, "says something else than what is to be written"),
        ("a.pt", {"to": "piergiai"}, r"no such spelling to write(.|\n)*did you mean piergiaj"),
        ("a.safetensors", {"label_set": "ucf"}, r"no such label set(.|\n)*ucf-101"),
        ("a.safetensors", {"label_set": "hmdb-51"}, "more or fewer labels than classes"),
    ],
)
def test_what_cannot_be_written(tmp_path, source, target, options, match):
    with pytest.raises(InflateError, match=match):
        convert_checkpoint(source, tmp_path / target, **options)
    assert os.listdir(tmp_path) == ["source.bin"]  # noqa: PTH208


def test_an_interrupted_run_leaves_the_target_as_it_was(tmp_path, source, monkeypatch):
    (tmp_path / "theirs.pt").write_bytes(b"before")

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", interrupt)
    with pytest.raises(KeyboardInterrupt):
        convert_checkpoint(source, tmp_path / "theirs.pt", to="piergiaj")
    assert (tmp_path / "theirs.pt").read_bytes() == b"before"
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.weights
def test_the_real_weights_there_and_back(tmp_path, kinetics_weights):
    wanted = load_file(kinetics_weights)
    for dialect in ("piergiaj", "hassony2"):
        convert_checkpoint(kinetics_weights, tmp_path / "theirs.pt", to=dialect)
        convert_checkpoint(tmp_path / "theirs.pt", tmp_path / "ours.safetensors", label_set="kinetics-400")
        assert_bits(load_file(tmp_path / "ours.safetensors"), wanted)
    assert load(tmp_path / "ours.safetensors").class_names == load(kinetics_weights).class_names
    card = read_card(kinetics_weights)
    convert_checkpoint(kinetics_weights, tmp_path / "copy.safetensors")
    assert read_card(tmp_path / "copy.safetensors") == card
