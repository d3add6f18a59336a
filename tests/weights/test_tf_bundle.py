"""TensorFlow's checkpoints: exact where they are whole, refused where they are not."""

import struct

import foreign_files as foreign
import numpy as np
import pytest
import torch

from inflate3d.errors import InflateError
from inflate3d.weights.checkpoint import read_checkpoint
from inflate3d.weights.containers import open_container
from inflate3d.weights.tf_bundle import crc32c


def arrays():
    rng = np.random.default_rng(3)
    shapes = {"a/w": (7, 3, 2, 5), "a/w/Momentum": (7, 3, 2, 5), "ab/b": (11,), "global_step": (), "z/empty": (0, 4)}
    found = {name: rng.normal(size=shape).astype("<f4") for name, shape in shapes.items()}
    found |= {f"scope_{number:03d}/beta": rng.normal(size=5).astype("<f4") for number in range(97)}
    return found | {"global_step": np.array(70_000, "<i8"), "half": np.ones(3, "<f2"), "double": np.full(2, 0.1)}


def read(path):
    with open_container(path) as container:
        return {name: stored.read() for name, stored in container.tensors.items()}


@pytest.mark.parametrize(
    ("data", "checksum"),
    [
        (b"", 0),
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),  # RFC 3720, B.4, bytes reversed there
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
    ],
)
def test_checksums_of_the_standard(data, checksum):
    assert crc32c(data) == foreign.crc32c(data) == checksum


@pytest.mark.parametrize("size", [511, 512, 513, 16_384, 50_001, 3_000_017])
def test_checksums_of_long_data(size):
    data = np.random.default_rng(size).bytes(size)
    assert crc32c(data) == foreign.crc32c(data)


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("spelled", ["model.ckpt.index", "model.ckpt", "model.ckpt.data-00000-of-0000{}"])
def test_tensors_come_back(tmp_path, shards, spelled):
    wanted = arrays()
    foreign.bundle(tmp_path, "model.ckpt", wanted, shards)
    found = read(tmp_path / spelled.format(shards))
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        assert found[name].shape == array.shape
        np.testing.assert_array_equal(found[name].numpy(), array)


def test_the_folder_of_a_saved_model(tmp_path):
    (tmp_path / "hub" / "variables").mkdir(parents=True)
    foreign.bundle(tmp_path / "hub" / "variables", "variables", {"w": np.arange(3, dtype="<f4")})
    assert read(tmp_path / "hub")["w"].tolist() == [0, 1, 2]


def test_text_is_left_out(tmp_path):
    path = foreign.bundle(
        tmp_path, "m", {"graph": np.zeros(3, "<f4"), "w": np.ones(2, "<f4")}, change={"graph": {"dtype": 7}}
    )
    assert list(read(path)) == ["w"]


def test_what_is_left_out_for_its_type_is_told(tmp_path):
    arrays = {"b": np.zeros(2, "<f4"), "w": np.ones(2, "<f4")}
    found = read_checkpoint(foreign.bundle(tmp_path, "m", arrays, change={"b": {"dtype": 8}}))
    assert list(found.state) == ["w"]
    (note,) = found.notes
    assert note.startswith("1 tensors left out: of a type that is no weight's (number 8")


def refused(path, match):
    with pytest.raises(InflateError, match=match) as caught:
        read(path)
    return caught.value


def test_a_wrong_checksum_of_a_tensor(tmp_path):
    path = foreign.bundle(tmp_path, "m", arrays())
    data = tmp_path / "m.data-00000-of-00001"
    changed = bytearray(data.read_bytes())
    changed[5] ^= 1
    data.write_bytes(changed)
    assert refused(path, "a tensor's values are damaged").got == "a/w"


def test_a_file_of_values_that_is_cut_short_or_missing(tmp_path):
    path = foreign.bundle(tmp_path, "m", arrays())
    data = tmp_path / "m.data-00000-of-00001"
    data.write_bytes(data.read_bytes()[:-1])
    refused(path, "a tensor does not lie in its file whole")
    data.unlink()
    refused(path, r"cannot be read(.|\n)*m\.data-00000-of-00001")


def test_every_cut_of_the_index(tmp_path):
    path = foreign.bundle(tmp_path, "m", {name: array for name, array in arrays().items() if name[0] in "az"})
    whole = path.read_bytes()
    assert len(whole) < 1000
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        refused(path, "nobody knows what this file is|the file is empty|damaged")


def test_every_damaged_byte_of_the_index(tmp_path):
    wanted = {name: array for name, array in arrays().items() if name[0] in "az"}
    path = foreign.bundle(tmp_path, "m", wanted)
    whole = path.read_bytes()
    refusals = 0
    for place in range(len(whole)):
        changed = bytearray(whole)
        changed[place] ^= 0x10
        path.write_bytes(changed)
        try:
            found = read(path)
        except InflateError:
            refusals += 1
        else:
            assert len(whole) - 48 <= place < len(whole) - 8  # what pads the footer
            assert found.keys() == wanted.keys()
    assert refusals > len(whole) - 40


HUGE = b"\x12\x0b\x08" + b"\xff" * 9 + b"\x01"


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"shape": HUGE}, "impossible shape"),  # -1 of 64 bits
        ({"shape": b"\x12\x06\x08" + foreign.varint(2**33)}, "impossible shape|does not lie"),
        ({"shape": b"\x12\x02\x08\x08"}, "does not lie in its file whole"),
        ({"size": 2**62}, "does not lie in its file whole"),
        ({"size": 27}, "does not lie in its file whole"),
        ({"checksum": 1}, "values are damaged"),
    ],
)
def test_entries_that_lie(tmp_path, change, match):
    path = foreign.bundle(tmp_path, "m", {"w": np.zeros(7, "<f4")}, change={"w": change})
    refused(path, match)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"packing": 1}, "the index is packed"),
        ({"header": b"\x08\x01\x10\x01"}, "another order of bytes"),
        ({"header": b"\x08" + foreign.varint(10**6)}, "more files than allowed"),
        ({"header": b"\x0b"}, "an entry is no message"),
        ({"header": b"\x0a\x7f"}, "damaged or cut short"),
    ],
)
def test_indexes_that_lie(tmp_path, options, match):
    refused(foreign.bundle(tmp_path, "m", {"w": np.zeros(7, "<f4")}, **options), match)


def test_long_names_are_refused(tmp_path):
    """An index tells of a name what differs from the one before: a few bytes for each of many long ones."""
    long = "a" * 2000
    refused(foreign.bundle(tmp_path, "m", {long: np.zeros(7, "<f4")}), "a name of 2,001 bytes")


def test_slices_and_other_tables_are_refused(tmp_path):
    entry = foreign.entry(np.zeros(2, "<f4"), 0, 0)
    (tmp_path / "m.data-00000-of-00001").write_bytes(bytes(8))
    (tmp_path / "m.index").write_bytes(foreign.table([(b"", b"\x08\x01"), (b"w", entry + b"\x3a\x00")]))
    refused(tmp_path / "m.index", "cut into slices")
    (tmp_path / "m.index").write_bytes(foreign.table([(b"w", entry)]))
    refused(tmp_path / "m.index", "none of a checkpoint")
    (tmp_path / "m.index").write_bytes(
        foreign.table([(b"", b"\x08\x01"), (b"w", entry.replace(b"\x08\x01", b"\x0a\x00", 1))])
    )
    refused(tmp_path / "m.index", "an entry is none of a tensor")


def test_a_number_that_does_not_end(tmp_path):
    footer = b"\xff" * 40 + struct.pack("<Q", 0xDB4775248B80FB57)
    (tmp_path / "m.index").write_bytes(bytes(100) + footer)
    refused(tmp_path / "m.index", "a number does not end")


def test_tensors_own_their_memory(tmp_path):
    path = foreign.bundle(tmp_path, "m", {"w": np.zeros((2, 3), "<f4")})
    found = read(path)["w"]
    found += 1
    assert found.equal(torch.ones(2, 3))
