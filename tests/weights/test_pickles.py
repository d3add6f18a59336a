"""Pickles as data: arrays come out exactly, and everything else is refused, damaged or hostile."""

import argparse
import builtins
import datetime
import io
import os
import pickle
import resource
import struct

import numpy as np
import pytest

from inflate3d.errors import InflateError
from inflate3d.weights import pickles
from inflate3d.weights.containers import flatten, open_container
from inflate3d.weights.pickles import DAMAGED_PICKLE, Names, numpy_calls, run_pickle
from inflate3d.weights.stored import ContentError

DTYPES = ["<f2", "<f4", "<f8", "<i4", "<i8", "|u1", "|b1", ">f2", ">f4", ">f8", ">i4", ">i8"]


def read(data, max_bytes=2**30):
    """Read a pickle as `open_container` reads files of them; gives arrays by name."""
    try:
        tensors = flatten(run_pickle(io.BytesIO(data), Names(numpy_calls(max_bytes))), "|")
    except DAMAGED_PICKLE as error:
        raise ContentError("damaged or no pickle", str(error)) from error
    return {name: stored.read().numpy() for name, stored in tensors.items()}


def flat(tree, before=""):
    """List the arrays of nested dicts by the names on the way to them."""
    found = {}
    for key, value in tree.items():
        found |= flat(value, f"{before}{key}|") if isinstance(value, dict) else {before + key: value}
    return found


def random_tree(rng, depth=3):
    tree = {}
    for number in range(int(rng.integers(1, 5))):
        if depth and rng.random() < 0.5:
            tree[f"Branch_{number}/x"] = random_tree(rng, depth - 1)
            continue
        shape = tuple(rng.integers(0, 6, size=rng.integers(0, 6)))
        dtype = DTYPES[rng.integers(len(DTYPES))]
        array = np.asarray(rng.normal(size=shape) * 9).astype(dtype)
        tree[f"leaf_{number}"] = np.asfortranarray(array) if rng.random() < 0.5 else array
    return tree


def assert_same(found, wanted):
    assert list(found) == list(wanted)
    for key, value in wanted.items():
        assert found[key].dtype == value.dtype.newbyteorder("=")
        assert found[key].dtype.isnative
        assert found[key].flags.c_contiguous
        assert found[key].flags.writeable
        np.testing.assert_array_equal(found[key], value)


@pytest.mark.parametrize("protocol", [3, 4])
@pytest.mark.parametrize("seed", range(25))
def test_random_trees_come_back(seed, protocol):
    tree = random_tree(np.random.default_rng(seed))
    assert_same(read(pickle.dumps(tree, protocol=protocol)), flat(tree))


def test_both_spellings_of_numpys_inner_module():
    data = pickle.dumps({"a": np.arange(5)}, protocol=3)  # protocol 3 writes names as lines
    old, new = b"numpy.core.multiarray\n", b"numpy._core.multiarray\n"
    for spelling in (data.replace(new, old), data.replace(old, new)):
        np.testing.assert_array_equal(read(spelling)["a"], np.arange(5))


def test_plain_values_and_shared_arrays():
    shared = np.arange(7.0)
    tree = {"a": shared, "b": shared, "n": 3, "t": "text", "no": None, "yes": True, "raw": b"\0\1"}
    found = read(pickle.dumps(tree, protocol=4))
    assert list(found) == ["a", "b"]
    for array in found.values():
        np.testing.assert_array_equal(array, shared)


def test_a_file_as_python_2_wrote_it():
    def text(value):
        return b"U" + bytes([len(value)]) + value

    array = np.array([1.5, -2.0], "<f4")
    dtype = (
        b"cnumpy\ndtype\n"
        + text(b"f4")
        + b"K\0K\1\x87R(K\3"
        + text(b"<")
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb"
    )
    empty = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85" + text(b"b") + b"\x87R"
    state = b"(K\1\x8a\1\2\x85" + dtype + b"\x89" + text(array.tobytes()) + b"tb"
    found = read(b"\x80\2}q\0" + text(b"w") + b"q\1" + empty + state + b"s.")
    np.testing.assert_array_equal(found["w"], array)


def test_a_file_ends_where_its_pickle_ends(tmp_path):
    data = pickle.dumps({"a": np.arange(3)}, protocol=4)
    for name, content in (("whole", data), ("longer", data + b"more")):
        (tmp_path / name).write_bytes(content)
    with open_container(tmp_path / "whole") as container:
        assert container.tensors["a"].read().tolist() == [0, 1, 2]
    with pytest.raises(InflateError, match="goes on after its end"), open_container(tmp_path / "longer"):
        pass


def refused(data, match, **options):
    with pytest.raises(ContentError, match=match) as caught:
        read(data, **options)
    return caught.value


class Runs:
    """Pickles as a call of any function."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize(
    ("code", "name"),
    [
        (Runs(os.system, "touch ran"), "system"),
        (Runs(builtins.eval, "open('ran', 'w')"), "eval"),
        (Runs(np.load, "ran.npy"), "numpy.load"),
        (Runs(np.zeros, (10**9,)), "zeros"),
        (Runs(getattr, "", "join"), "getattr"),
        (datetime.date(2020, 1, 1), "datetime.date"),
    ],
)
def test_code_is_named_and_not_run(tmp_path, monkeypatch, protocol, code, name):
    monkeypatch.chdir(tmp_path)
    error = refused(pickle.dumps({"a": code}, protocol=protocol), "the file wants to run code")
    assert name in error.got
    assert list(tmp_path.iterdir()) == []


def test_what_may_be_named_cannot_be_called_or_changed_at_will():
    ndarray = b"\x80\4cnumpy\nndarray\n"
    refused(ndarray + b"K\5\x85R.", "calls something that is no array")
    refused(ndarray + b"}b.", "changes something that is no array")
    refused(b"\x80\4cnumpy\ndtype\n}b.", "changes something that is no array")
    refused(b"\x80\4K\1)R.", "calls something that is no array")
    refused(ndarray + b")\x81.", "makes something that is no array")
    refused(b"\x80\4]}b.", "changes something that is no array")
    refused(b"\x80\4K\1Na.", "appends to something that is no list")


@pytest.mark.parametrize(
    ("data", "instruction"),
    [
        (b"Px\n.", "PERSID"),
        (b"(ios\nsystem\n.", "INST 'os system'"),
        (b"\x80\2\x82\1.", "EXT1 1"),
        (b"\x80\5\x97.", "NEXT_BUFFER"),
        (b"\x80\5\x96" + struct.pack("<Q", 3) + b"abc.", "BYTEARRAY8"),
        (pickle.dumps({"a": {1}}), "EMPTY_SET"),
        (pickle.dumps({"a": frozenset({1})}), "FROZENSET"),
    ],
)
def test_instructions_that_arrays_do_not_need(data, instruction):
    assert refused(data, "the pickle holds more than arrays in dicts").got.startswith(instruction)


@pytest.mark.parametrize("value", [(1, 2), 7, "text", [np.arange(3)]])
def test_values_that_are_no_tree_of_arrays_hold_none(value):
    assert read(pickle.dumps(value, protocol=4)) == {}


@pytest.mark.parametrize("key", [1.5, None, (1, 2), b"a", True])
def test_keys_that_are_neither_text_nor_whole_numbers(key):
    refused(pickle.dumps({key: 1}, protocol=4), "keys that are neither text nor whole numbers")


def test_what_training_scripts_put_beside_their_arrays():
    beside = {"lr": 0.1, "steps": [1, 2], "args": argparse.Namespace(a=1), "at": datetime.datetime(2020, 1, 1), 3: 4}
    found = read(pickle.dumps({"blobs": {"w": np.arange(3)}, **beside}, protocol=2))
    assert list(found) == ["blobs|w"]
    np.testing.assert_array_equal(found["blobs|w"], np.arange(3))


def test_numbers_of_numpy():
    found = read(pickle.dumps({"a": np.float32(1.5), "b": np.int64(7)}, protocol=4))
    assert [(found[key].shape, found[key].item()) for key in "ab"] == [((), 1.5), ((), 7)]


def test_python_3_writing_for_python_2():
    array = np.arange(-3, 3, dtype="<f4")
    data = pickle.dumps({"w": array}, protocol=2)
    assert b"_codecs\nencode" in data
    np.testing.assert_array_equal(read(data)["w"], array)
    refused(data.replace(b"latin1", b"base64"), "encodes something else than bytes")


def test_text_made_bytes_again_and_again_counts_each_time():
    text = b"X" + struct.pack("<I", 4000) + b"a" * 4000 + b"q\0"
    again = b"c_codecs\nencode\nh\0X\6\0\0\0latin1\x86R"
    twice = b"sX\1\0\0\0b" + again + b"sX\1\0\0\0c" + again
    refused(b"\x80\2}X\1\0\0\0a" + text + twice + b"s.", "more memory", max_bytes=7_999)


def test_bytes_outside_the_pickle():
    refused(b"\x80\4}\x8c\1xQ.", "speaks of bytes outside itself")


@pytest.mark.parametrize("dtype", [object, "c8", "U3", "S3", "M8[s]", "i2", [("x", "f4")], [("x", "f4", (2,))]])
def test_types_that_weights_have_not(dtype):
    data = pickle.dumps({"a": np.zeros(3, dtype)}, protocol=4)
    refused(data, "of a type that weights are not|more than arrays in dicts")


def test_object_arrays_are_named():
    assert (
        "O8" in refused(pickle.dumps({"a": np.array([print], object)}, protocol=4), "a type that weights are not").got
    )


def array_item(key, shape, data):
    """A key and an array with any shape, spelled by hand; `data` is the instruction that brings its bytes."""
    numbers = b"(" + b"".join(b"\x8a\x09" + int(n).to_bytes(9, "little", signed=True) for n in shape) + b"t"
    dtype = b"cnumpy\ndtype\n\x8c\x02f4\x89\x88\x87R(K\3\x8c\1<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb"
    empty = b"cnumpy._core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85C\1b\x87R"
    return b"\x8c\1" + key + empty + b"(K\1" + numbers + dtype + b"\x89" + data + b"tbs"


def array_pickle(shape, data):
    return b"\x80\4}" + array_item(b"a", shape, b"C" + bytes([len(data)]) + data) + b"."


def test_the_hand_made_array_is_read():
    np.testing.assert_array_equal(read(array_pickle((2, 3), bytes(24)))["a"], np.zeros((2, 3), "f4"))


@pytest.mark.parametrize("shape", [(2, 4), (2,), (-2, -3), (2**62,), (2**62, 4), (10**12, 0), (6,) + (1,) * 40, (0,)])
def test_shape_and_bytes_must_agree(shape):
    refused(array_pickle(shape, bytes(24)), "shape and bytes disagree")


def test_a_huge_declared_shape_takes_no_memory():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(array_pickle((2**40,), bytes(4)), "shape and bytes disagree")
    refused(b"\x80\4B" + struct.pack("<I", 2**32 - 1) + b"x.", "damaged or no pickle")
    refused(b"\x80\4\x8e" + struct.pack("<Q", 2**63) + b"x.", "damaged or no pickle")
    refused(b"\x80\4Nr" + struct.pack("<I", 2**31) + b"j" + struct.pack("<I", 2**31) + b"0.", "more than arrays")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kilobytes


def test_an_array_that_is_not_described_as_one():
    whole = array_pickle((6,), bytes(24))
    refused(whole.replace(b"C\x18" + bytes(24), b"N"), "not described as numpy describes arrays")
    refused(whole.replace(b"(K\1(", b"(K\1K\1("), "damaged or no pickle")
    unfilled = b"\x80\4}\x8c\1acnumpy._core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85C\1b\x87Rs."
    refused(unfilled, "not described as numpy describes arrays")
    refused(whole[:-2] + b"\x94" + whole[whole.index(b"(K\1(") : -2] + b"s.", "changes an array that it has filled")


def test_arrays_that_share_bytes_count_each_time():
    remembered = b"B" + struct.pack("<I", 4000) + bytes(4000) + b"\x94"
    data = b"\x80\4}" + array_item(b"a", (1000,), remembered)
    twice = data + array_item(b"b", (1000,), b"h\0") + b"."
    assert read(twice, max_bytes=8_000).keys() == {"a", "b"}
    refused(twice, "the arrays take more memory", max_bytes=7_999)


def test_dicts_that_are_no_tree():
    circle = {}
    circle["self"] = circle
    refused(pickle.dumps(circle, protocol=4), "the dicts are no tree")
    laughs = {"ha": 1}
    for _ in range(30):
        laughs = {"a": laughs, "b": laughs}
    refused(pickle.dumps(laughs, protocol=4), "the dicts are no tree")


def test_a_deep_nest_neither_crashes_nor_hangs():
    depth = 100_000
    refused(b"\x80\4" + b"}\x8c\1a" * depth + b"}" + b"s" * depth + b".", "the dicts are no tree")
    refused(b"\x80\4}" + b")" + b"\x85" * depth + b"Ns.", "keys that are neither text")
    assert read(b"\x80\4}\x8c\1a" + b")" + b"\x85" * depth + b"s.") == {}
    doubled = b")\x94" + b"".join(
        b"j" + struct.pack("<I", n) + b"j" + struct.pack("<I", n) + b"\x86\x94" for n in range(60)
    )
    refused(b"\x80\4}\x8c\1a" + doubled + b"s.", "keys that are neither text")


def test_a_long_pickle_is_left_early(monkeypatch):
    monkeypatch.setattr(pickles, "MAX_INSTRUCTIONS", 1000)
    refused(b"\x80\4" + b"N" * 2000 + b".", "the pickle is too long")


def test_every_truncation_is_refused():
    data = pickle.dumps({"a": {"b": np.arange(4.0)}, "c": np.ones((2, 3), "f4")}, protocol=4)
    for length in range(len(data)):
        refused(data[:length], "damaged or no pickle|more than arrays|shape and bytes")
    refused(b"\x80\4NN.", "ends before it is complete")


def test_damaged_bytes_never_do_anything_but_raise_what_is_known():
    rng = np.random.default_rng(7)
    data = pickle.dumps({"a": {"b": np.arange(4.0)}, "c": np.ones((2, 3), "f4"), "d": (None)}, protocol=4)
    refusals = 0
    for _ in range(4000):
        damaged = bytearray(data)
        for position in rng.integers(len(data), size=rng.integers(1, 4)):
            damaged[position] = rng.integers(256)
        try:
            read(bytes(damaged), max_bytes=10_000)
        except ContentError:
            refusals += 1
    assert refusals > 1000
