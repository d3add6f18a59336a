"""Weights as files: they come back bit for bit with their card, and a damaged file is told, never read."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from inflate3d.clips.clip import ClipSpec
from inflate3d.errors import InflateError
from inflate3d.weights.catalogue import Card, cache_folder, demo_clip_path, weights_path
from inflate3d.weights.checkpoint import CARD_KEY, read_card, read_weights, save_weights, tensors_sha256

SPEC = ClipSpec(fps=25.0, num_frames=64, min_frames=9, short_side=256, crop=224, value_range=(-1.0, 1.0))
CARD = Card(
    name="tiny",
    architecture="i3d",
    num_classes=3,
    label_set=None,
    in_channels=2,
    clip=SPEC,
    license="Apache-2.0",
    repackaged_under="MIT",
    source='a "quoted" source, naïve',
    source_sha256="0" * 64,
    reported_accuracy="none published",
    accuracy_protocol="none",
    inflate3d_version="0",
)
STATE = {
    "b.weight": torch.arange(30.0).reshape(2, 3, 5).transpose(0, 2),
    "a.count": torch.tensor(0),
    "c": torch.randn(7, dtype=torch.float16),
    "empty": torch.zeros(0, 3),
}


def test_weights_and_card_come_back(tmp_path):
    path = tmp_path / "deep" / "tiny.safetensors"
    written = save_weights(STATE, CARD, path)
    assert written == dataclasses.replace(CARD, tensors_sha256=tensors_sha256(STATE))
    assert read_card(path) == written
    found = read_weights(path)
    assert found.keys() == STATE.keys()
    assert all(found[name].equal(STATE[name]) and found[name].dtype == STATE[name].dtype for name in STATE)
    assert tensors_sha256(found) == written.tensors_sha256


def test_tensors_that_share_memory_are_written_one_by_one(tmp_path):
    table = torch.randn(6, 5)
    state = {"whole": table, "again": table, "part": table[2:4], "turned": table.T, "tied": torch.nn.Parameter(table)}
    save_weights(state, CARD, tmp_path / "w.safetensors")
    found = read_weights(tmp_path / "w.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())


def test_the_hash_sees_names_types_shapes_and_bytes():
    base = {"a": torch.zeros(6), "b": torch.ones(1)}
    changed = [
        {"x": base["a"], "b": base["b"]},
        {**base, "a": torch.zeros(6, dtype=torch.int32)},
        {**base, "a": torch.zeros(2, 3)},
        {**base, "a": torch.tensor([0, 0, 0, 0, 0, -0.0])},
        {"a": base["a"]},
    ]
    hashes = [tensors_sha256(state) for state in [base, *changed]]
    assert len(set(hashes)) == len(hashes)
    assert tensors_sha256(dict(reversed(base.items()))) == hashes[0]


@pytest.mark.parametrize("reader", [read_weights, read_card])
def test_malformed_files_are_told(tmp_path, reader):
    path = tmp_path / "w.safetensors"
    save_weights(STATE, CARD, path)
    whole = path.read_bytes()
    huge_header = (2**62).to_bytes(8, "little") + b"{}"
    for damaged in (b"", b"short", whole[:100], whole[:-1], whole + b"!", huge_header, b"\x80\x04." * 9):
        path.write_bytes(damaged)
        with pytest.raises(InflateError, match="the weights cannot be read"):
            reader(path)
    with pytest.raises(InflateError, match=r"there is no such file(.|\n)*did you mean w.safetensors"):
        reader(tmp_path / "nowhere")
    with pytest.raises(InflateError, match="the weights cannot be read"):
        reader(tmp_path)


def test_a_file_of_somebody_else_has_no_card(tmp_path):
    save_file({"a": torch.zeros(2)}, tmp_path / "w.safetensors")
    with pytest.raises(InflateError, match="the file has no card"):
        read_card(tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "null",
        "{}",
        "[" * 100_000,
        json.dumps({**dataclasses.asdict(CARD), "extra": 1}),
        json.dumps({key: value for key, value in dataclasses.asdict(CARD).items() if key != "license"}),
        json.dumps({**dataclasses.asdict(CARD), "clip": {"fps": 25.0}}),
        json.dumps({**dataclasses.asdict(CARD), "clip": 3}),
        json.dumps({**dataclasses.asdict(CARD), "num_classes": "400"}),
        json.dumps({**dataclasses.asdict(CARD), "num_classes": True}),
        json.dumps({**dataclasses.asdict(CARD), "num_classes": 10**9}),
        json.dumps({**dataclasses.asdict(CARD), "in_channels": 0}),
        json.dumps({**dataclasses.asdict(CARD), "label_set": "kinetics-400"}),
        json.dumps({**dataclasses.asdict(CARD), "clip": {**dataclasses.asdict(SPEC), "crop": -1}}),
        json.dumps({**dataclasses.asdict(CARD), "clip": {**dataclasses.asdict(SPEC), "value_range": [1.0, -1.0]}}),
    ],
)
def test_a_card_that_cannot_be_read(tmp_path, text):
    path = tmp_path / "w.safetensors"
    save_file({"a": torch.zeros(2)}, path, metadata={CARD_KEY: text})
    with pytest.raises(InflateError, match="the card in the file cannot be read") as caught:
        read_card(path)
    assert caught.value.where == str(path)


def test_an_interrupt_leaves_the_old_file_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "w.safetensors"
    save_weights(STATE, CARD, path)
    before = path.read_bytes()

    def interrupt(*_):
        raise KeyboardInterrupt

    for step in ("write_bytes", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(Path, step, interrupt)
            with pytest.raises(KeyboardInterrupt):
                save_weights({"a": torch.ones(1)}, CARD, path)
        assert [file.name for file in tmp_path.iterdir()] == [path.name]
        assert path.read_bytes() == before


def test_the_cache_folder_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("INFLATE3D_CACHE", str(tmp_path))
    assert weights_path("x") == tmp_path / "weights" / "x.safetensors"
    assert demo_clip_path().is_relative_to(tmp_path)
    monkeypatch.setenv("INFLATE3D_CACHE", "~/here")
    assert cache_folder() == Path.home() / "here"
    for empty in ("", None):
        monkeypatch.setenv("INFLATE3D_CACHE", "") if empty == "" else monkeypatch.delenv("INFLATE3D_CACHE")
        assert cache_folder().name == "inflate3d"
        assert cache_folder().is_absolute()
