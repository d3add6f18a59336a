"""Files of tensors are told by their content, read exactly, and refused when they are damaged or want to run code."""

import argparse
import datetime
import io
import os
import pickle
import resource
import struct
import zipfile
from collections import OrderedDict, defaultdict, deque
from pathlib import Path
from types import SimpleNamespace

import foreign_files as foreign
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from inflate3d.errors import InflateError
from inflate3d.weights import torch_file
from inflate3d.weights.checkpoint import read_checkpoint
from inflate3d.weights.containers import open_container

DTYPES = (
    *(torch.float32, torch.float16, torch.bfloat16, torch.float64),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
)


def tensors():
    made = {f"t{number}.w": (torch.randn(2, 3, 5) * 9).to(dtype) for number, dtype in enumerate(DTYPES)}
    big = torch.randn(7, 11)
    views = {"columns": big[:, 2:9:3], "turned": big.T, "scalar": torch.tensor(3.5), "empty": torch.zeros(0, 4)}
    return made | views | {"parameter": torch.nn.Parameter(torch.randn(3)), "last": big[6, 10:]}


def read(path):
    with open_container(path) as container:
        return container.kind, {name: stored.read() for name, stored in container.tensors.items()}


def assert_same(found, wanted):
    assert list(found) == list(wanted)
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name
        assert found[name].is_contiguous()


@pytest.mark.parametrize("old", [False, True])
def test_what_torch_saves_comes_back(tmp_path, old):
    wanted = tensors()
    beside = {"epoch": 3, "lr": 0.1, "args": argparse.Namespace(a=[1]), "steps": [{"a": (1, None)}], 7: "seven"}
    state = torch.nn.Sequential(torch.nn.BatchNorm1d(3)).state_dict()
    torch.save({"tensors": wanted, **beside, "state": state}, tmp_path / "any", _use_new_zipfile_serialization=not old)
    kind, found = read(tmp_path / "any")
    assert kind == ("torch.save file of before torch 1.6" if old else "torch.save archive")
    assert_same(found, {f"tensors.{n}": t for n, t in wanted.items()} | {f"state.{n}": t for n, t in state.items()})
    loaded = torch.load(tmp_path / "any", weights_only=False)  # torch's own reader as the judge
    assert_same({name: found[f"tensors.{name}"] for name in wanted}, loaded["tensors"])


@pytest.mark.parametrize("old", [False, True])
def test_what_training_scripts_keep_beside_their_tensors_is_passed_over(tmp_path, old):
    """Optimizers, schedules (whose milestones are a Counter), settings: no reason to refuse."""
    model = torch.nn.Conv3d(2, 3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.ones(1, 2, 1, 1, 1)).sum().backward()
    optimizer.step()
    counted, listed = defaultdict(list), deque([1, 2], maxlen=3)
    counted["a"].append(1)
    beside = {
        "scheduler": torch.optim.lr_scheduler.MultiStepLR(optimizer, [30, 60]).state_dict(),
        "seen": [{1, 2}, slice(1, 2), counted, listed, OrderedDict(a=OrderedDict(b=None))],
        "about": [datetime.datetime(2020, 1, 1), Path("a/b"), torch.device("cpu"), torch.float16, torch.Size((2, 3))],
        "args": SimpleNamespace(lr=0.1, inner=argparse.Namespace(a=1)),
    }
    whole = {"state_dict": model.state_dict(), "optimizer": optimizer.state_dict(), **beside}
    torch.save(whole, tmp_path / "any", _use_new_zipfile_serialization=not old)
    found = read(tmp_path / "any")[1]
    kept = torch.load(tmp_path / "any", weights_only=False)  # torch's own reader as the judge
    moments = {number: state["momentum_buffer"] for number, state in kept["optimizer"]["state"].items()}
    wanted = {f"state_dict.{name}": tensor for name, tensor in kept["state_dict"].items()}
    assert_same(found, wanted | {f"optimizer.state.{number}.momentum_buffer": one for number, one in moments.items()})
    assert_same(read_checkpoint(tmp_path / "any").state, dict(model.state_dict()))


@pytest.mark.parametrize(
    ("function", "argument", "match"),
    [
        (OrderedDict, [((1, 2), 3)], "keys that are neither text nor whole numbers"),
        (OrderedDict, [(1, 2, 3)], "keys that are neither text nor whole numbers"),
        (OrderedDict, "ab", "keys that are neither text nor whole numbers"),
        (torch.Size, (2, -3), "not described as torch describes tensors"),
        (torch.Size, "ab", "not described as torch describes tensors"),
        (torch._utils._rebuild_tensor_v2, (1, 2), "damaged or cannot be read"),
        (torch._utils._rebuild_parameter, (), "damaged or cannot be read"),
    ],
)
def test_calls_with_other_arguments_than_torchs(tmp_path, function, argument, match):
    arguments = argument if function.__module__ == "torch._utils" else (argument,)
    archive_of(tmp_path / "any", pickle.dumps({"a": Runs(function, *arguments)}, protocol=2), {})
    refused(tmp_path / "any", match)


def test_a_pickle_is_bounded_before_it_is_read(tmp_path, monkeypatch):
    archive_of(tmp_path / "any", tensor_pickle((2, 3), (3, 1)), {"0": bytes(24)})
    assert read(tmp_path / "any")[1]["w"].shape == (2, 3)
    monkeypatch.setattr(torch_file, "MAX_PICKLE_BYTES", 100)
    refused(tmp_path / "any", "the pickle is too long")


def test_a_file_of_python_2_and_torch_0_3(tmp_path):
    wanted = {"b.w": np.random.default_rng(1).normal(size=(2, 3, 5)).astype("f4"), "a.b": np.arange(7.0, dtype="f4")}
    (tmp_path / "any").write_bytes(foreign.torch_0_3(wanted))
    kind, found = read(tmp_path / "any")
    assert kind == "torch.save file of before torch 1.6"
    assert_same(found, {name: torch.from_numpy(array) for name, array in wanted.items()})
    assert_same(
        torch.load(tmp_path / "any", weights_only=True, encoding="ascii"), found
    )  # torch agrees with the writer


def test_storages_that_are_parts_of_others(tmp_path):
    """Before torch 0.4 a storage could be a window on another; its place stands in the pickle."""
    data = foreign.torch_0_3({"a": np.arange(9, dtype="f4")})
    whole = b"J" + struct.pack("<i", 9) + b"NtQ"
    part = b"J" + struct.pack("<i", 9) + b"(U\1vK\2K\5ttQ"
    narrow = b"(J" + struct.pack("<i", 9) + b"t"
    data = data.replace(whole, part).replace(narrow, b"(J" + struct.pack("<i", 5) + b"t")
    (tmp_path / "any").write_bytes(data)
    assert read(tmp_path / "any")[1]["a"].tolist() == [2, 3, 4, 5, 6]
    (tmp_path / "any").write_bytes(data.replace(b"(U\1vK\2K\5t", b"(U\1vNK\5t"))
    refused(tmp_path / "any", "not described as torch describes storages")


def test_torchscript_gives_its_tensors_and_runs_nothing(tmp_path):
    wanted = {"a.0.weight": torch.randn(2, 3), "a.1.running_mean": torch.randn(5), "b.c.bias": torch.randn(7).half()}
    foreign.script(wanted, tmp_path / "any")
    with zipfile.ZipFile(tmp_path / "any") as archive, zipfile.ZipFile(tmp_path / "changed", "w") as changed:
        for member in archive.infolist():
            data = archive.read(member)
            changed.writestr(member.filename, b"raise SystemExit" if member.filename.endswith(".py") else data)
    for name in ("any", "changed"):  # its code is not even looked at
        kind, found = read(tmp_path / name)
        assert kind == "TorchScript archive"
        assert_same({key: found[key] for key in wanted}, wanted)


def test_lists_and_dicts_of_torchscript(tmp_path):
    class Lists(torch.nn.Module):
        pads: list[int]

        def __init__(self):
            super().__init__()
            self.pads, self.names, self.rate = [1, 2], {"a": 1}, (1, 2.5)
            self.conv = torch.nn.Conv3d(2, 3, 1)

        def forward(self, x):
            return self.conv(x)

    module = Lists()
    torch.jit.script(module).save(str(tmp_path / "any"))
    assert_same(read(tmp_path / "any")[1], dict(module.state_dict()))


def test_safetensors_npz_and_pickles(tmp_path):
    wanted = {name: tensor.detach().contiguous() for name, tensor in tensors().items()}
    save_file(wanted, tmp_path / "one.pt")
    kind, found = read(tmp_path / "one.pt")
    assert kind == "safetensors"
    assert_same(dict(sorted(found.items())), dict(sorted(wanted.items())))

    arrays = {"a/w": np.asfortranarray(np.arange(6.0).reshape(2, 3)), "b": np.array(2.5, "f4")}
    for save in (np.savez, np.savez_compressed):
        with (tmp_path / "two.safetensors").open("wb") as file:
            save(file, **arrays, words=np.array(["no", "weights"]))
        kind, found = read(tmp_path / "two.safetensors")
        assert kind == ".npz"
        assert_same(found, {name: torch.from_numpy(array) for name, array in arrays.items()})

    (tmp_path / "three").write_bytes(pickle.dumps({"blobs": arrays, "cfg": "text", "list": [1]}, protocol=2))
    kind, found = read(tmp_path / "three")
    assert kind == "pickle of numpy arrays"
    assert_same(found, {f"blobs/{name}": torch.from_numpy(array) for name, array in arrays.items()})


def refused(path, match):
    with pytest.raises(InflateError, match=match) as caught:
        read(path)
    return caught.value


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "the file is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "a pointer of git-lfs(.|\n)*git lfs pull"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"\x89HDF\r\n\x1a\n", "the file is HDF5"),
        (b"\x1f\x8b\x08\x00", "the file is packed"),
        (b"\x08\x01\x12\x00", "a graph of TensorFlow"),
        (b"no weights at all", "nobody knows what this file is"),
        (b"PK\3\4", "damaged or cannot be read"),
        (struct.pack("<Q", 2**60) + b"{}", "nobody knows what this file is"),
        (struct.pack("<Q", 4) + b"{[}]", "damaged or cannot be read"),
        (b"\x80\x02}q\x00.", "there are no tensors in the file"),
    ],
)
def test_files_that_are_no_checkpoints(tmp_path, content, match):
    (tmp_path / "any.pth").write_bytes(content)
    refused(tmp_path / "any.pth", match)


def test_what_is_not_there(tmp_path):
    (tmp_path / "somewhere.pt").write_bytes(b"")
    error = refused(tmp_path / "nowhere.pt", "there is no such file")
    assert error.fix == "did you mean somewhere.pt?"
    assert error.got == f"the folder {tmp_path}, without it"
    error = refused(tmp_path / "gone" / "nowhere.pt", "there is no such file")
    assert error.got == f"no folder {tmp_path / 'gone'} either"
    refused(tmp_path, "IsADirectoryError")


def test_what_is_left_out_for_its_type_is_told(tmp_path):
    state = {"a": torch.ones(2), "b": torch.ones(2).to(torch.float8_e4m3fn), "c": torch.ones(2, dtype=torch.uint16)}
    save_file(state, tmp_path / "one")
    with (tmp_path / "two").open("wb") as file:
        np.savez(file, a=np.ones(2, "f4"), b=np.ones(2, "c16"), c=np.array(["no", "weights"]))
    for name, kinds in (("one", "F8_E4M3; U16"), ("two", "<U7; <c16")):
        found = read_checkpoint(tmp_path / name)
        assert list(found.state) == ["a"]
        assert found.notes == (f"2 tensors left out: of a type that is no weight's ({kinds})",)
    save_file({"b": state["b"]}, tmp_path / "one")
    assert "F8_E4M3" in refused(tmp_path / "one", "there are no tensors in the file").got


def test_arrays_beside_the_tensors_of_torch_are_no_tensors(tmp_path):
    records = {"best": np.float64(0.7), "losses": np.arange(3.0)}
    torch.save({"state_dict": {"w": torch.ones(2)}, **records}, tmp_path / "any")
    assert list(read(tmp_path / "any")[1]) == ["state_dict.w"]
    assert list(read_checkpoint(tmp_path / "any").state) == ["w"]


class Runs:
    """Pickles as a call of any function."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize(
    "payload", [Runs(os.system, "touch ran"), Runs(eval, "open('ran', 'w')"), Runs(torch.load, "x")]
)
def test_code_is_named_and_not_run(tmp_path, monkeypatch, payload, old):
    monkeypatch.chdir(tmp_path)
    torch.save({"w": torch.zeros(3), "z": payload}, "any", _use_new_zipfile_serialization=not old)
    error = refused(tmp_path / "any", "the file wants to run code")
    assert error.got.split(".")[-1] in ("system", "eval", "load")
    (tmp_path / "pickle").write_bytes(pickle.dumps({"w": np.zeros(3), "z": payload}))
    refused(tmp_path / "pickle", "the file wants to run code")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["any", "pickle"]


def test_names_of_torchscript_are_for_torchscript_alone(tmp_path):
    with zipfile.ZipFile(tmp_path / "any", "w") as archive:
        archive.writestr("x/data.pkl", b"\x80\x02c__torch__\nNet\n)\x81.")
    refused(tmp_path / "any", "the file wants to run code")


def archive_of(path, pickled, storages, **others):
    """An archive like those of torch.save, with any pickle in it."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", pickled)
        for key, data in storages.items():
            archive.writestr(f"x/data/{key}", data)
        for name, data in others.items():
            archive.writestr(f"x/{name}", data)


def tensor_pickle(shape, strides, offset=0, numel=6, kind=b"FloatStorage"):
    def numbers(values):
        return b"(" + b"".join(b"\x8a\x09" + value.to_bytes(9, "little", signed=True) for value in values) + b"t"

    storage = b"(X\7\0\0\0storagectorch\n" + kind + b"\nX\1\0\0\x000X\3\0\0\0cpu" + numbers([numel])[1:-1] + b"tQ"
    rest = numbers([offset])[1:-1] + numbers(shape) + numbers(strides)
    return b"\x80\x02}X\1\0\0\0wctorch._utils\n_rebuild_tensor_v2\n(" + storage + rest + b"\x89}tRs."


def test_the_hand_made_tensor_is_read(tmp_path):
    archive_of(tmp_path / "any", tensor_pickle((2, 2), (3, 1), 1), {"0": np.arange(6, dtype="f4").tobytes()})
    assert read(tmp_path / "any")[1]["w"].tolist() == [[1, 2], [4, 5]]


@pytest.mark.parametrize(
    ("described", "match"),
    [
        (tensor_pickle((2, 4), (4, 1)), "a tensor and its storage disagree"),
        (tensor_pickle((6,), (1,), 1), "a tensor and its storage disagree"),
        (tensor_pickle((2**33,), (0,)), "a tensor and its storage disagree"),
        (tensor_pickle((2**40,), (0,)), "not described as torch describes tensors"),
        (tensor_pickle((7, 2), (0, 1)), "a tensor and its storage disagree"),
        (tensor_pickle((2**62, 2**62), (1, 1)), "not described as torch describes tensors"),
        (tensor_pickle((-2, -3), (3, 1)), "not described as torch describes tensors"),
        (tensor_pickle((2, 3), (-3, 1)), "not described as torch describes tensors"),
        (tensor_pickle((2, 3), (3,)), "damaged or cannot be read"),
        (tensor_pickle((1,) * 40, (1,) * 40), "not described as torch describes tensors"),
        (tensor_pickle((2, 3), (3, 1), numel=2**33), "a storage has another size than declared"),
        (tensor_pickle((2, 3), (3, 1), numel=2**40), "not described as torch describes storages"),
        (tensor_pickle((2, 3), (3, 1), numel=5), "a storage has another size than declared"),
        (tensor_pickle((2, 3), (3, 1), kind=b"DoubleStorage"), "a storage has another size than declared"),
        (tensor_pickle((2, 3), (3, 1)).replace(b"storagec", b"nothingc"), "not described as torch describes storages"),
    ],
)
def test_tensors_that_lie(tmp_path, described, match):
    archive_of(tmp_path / "any", described, {"0": bytes(24)})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(tmp_path / "any", match)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kilobytes


def test_archives_that_lie(tmp_path):
    good = tensor_pickle((2, 3), (3, 1))
    archive_of(tmp_path / "any", good, {"0": bytes(24)}, byteorder=b"big")
    refused(tmp_path / "any", "another order of bytes")
    archive_of(tmp_path / "any", good, {"1": bytes(24)})
    refused(tmp_path / "any", r"data/0: missing")
    archive_of(tmp_path / "any", good, {"0": b"abcd" * 6})
    data = (tmp_path / "any").read_bytes()
    (tmp_path / "any").write_bytes(data.replace(b"abcdabcd", b"abcdabce"))
    refused(tmp_path / "any", "the archive is damaged")
    with zipfile.ZipFile(tmp_path / "any", "w") as archive:
        archive.writestr("x/model.json", "{}")
    refused(tmp_path / "any", "of before torch 1.3")
    with zipfile.ZipFile(tmp_path / "any", "w") as archive:
        archive.writestr("x/readme", "{}")
    refused(tmp_path / "any", "the archive is none of torch's")
    with zipfile.ZipFile(tmp_path / "any", "w", compression=zipfile.ZIP_LZMA) as archive:
        archive.writestr("x/data.pkl", good)
    refused(tmp_path / "any", "packed in an odd way")


def test_declared_sizes_are_bounded_before_anything_is_unpacked(tmp_path):
    archive_of(tmp_path / "any", tensor_pickle((2, 3), (3, 1)), {"0": bytes(24)})
    data = bytearray((tmp_path / "any").read_bytes())
    place = data.rindex(b"PK\1\2")  # the last entry of the central directory
    struct.pack_into("<II", data, place + 20, 2**31, 2**31)
    (tmp_path / "any").write_bytes(data)
    refused(tmp_path / "any", "declares what it cannot hold")


def npy(shape, dtype="'<f4'", data=bytes(24)):
    header = f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header + data


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (npy("(2, 4)"), "shape and bytes disagree"),
        (npy("(1099511627776, 1099511627776)"), "shape and bytes disagree"),
        (npy("(-2, -3)"), r"an array of the shape \(-2, -3\)"),
        (npy("(2, 3)", "'|O'"), "there are no tensors"),
        (npy("(2, 3)").replace(b"NUMPY\1", b"NUMPY\7"), "no array of numpy.s format 1\\.0"),
        (b"no array", "damaged or cannot be read"),
    ],
)
def test_arrays_that_lie(tmp_path, content, match):
    with zipfile.ZipFile(tmp_path / "any", "w") as archive:
        archive.writestr("w.npy", content)
    refused(tmp_path / "any", match)


def legacy(**changes):
    """A small file of before torch 1.6, in parts that a test may change."""
    parts = {
        "magic": pickle.dumps(0x1950A86A20F9469CFC6C, 2),
        "version": pickle.dumps(1001, 2),
        "machine": pickle.dumps({"little_endian": True}, 2),
        "tree": tensor_pickle((2, 3), (3, 1)),
        "keys": pickle.dumps(["0"], 2),
        "storage": struct.pack("<q", 6) + bytes(24),
    }
    return b"".join((parts | changes).values())


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"version": pickle.dumps(1002, 2)}, "no torch.save of a version that is known"),
        ({"machine": pickle.dumps({"little_endian": False}, 2)}, "another order of bytes"),
        ({"machine": pickle.dumps([], 2)}, "another order of bytes"),
        ({"keys": pickle.dumps(["1"], 2)}, "another size than declared"),
        ({"keys": pickle.dumps(["0", "0"], 2)}, "another size than declared"),
        ({"keys": b"\x80\x02](N" + b"\x85" * 300_000 + b"e."}, "another size than declared"),
        ({"keys": pickle.dumps([], 2)}, "the file is cut short"),
        ({"storage": struct.pack("<q", 2**40) + bytes(24)}, "another size than declared"),
        ({"storage": struct.pack("<q", 6) + bytes(23)}, "the file is cut short"),
        ({"storage": struct.pack("<q", 6) + bytes(25)}, "or longer than it says"),
        ({"tree": tensor_pickle((2, 3), (3, 1), numel=2**33)}, "another size than declared"),
    ],
)
def test_old_files_that_lie(tmp_path, changes, match):
    (tmp_path / "any").write_bytes(legacy())
    assert read(tmp_path / "any")[1]["w"].shape == (2, 3)
    (tmp_path / "any").write_bytes(legacy(**changes))
    refused(tmp_path / "any", match)


def test_names_are_of_a_tensors_length(tmp_path):
    """Each leaf repeats the names around it: a file of 1 MB would fill the memory."""
    tree = {"a" * 2000: {str(number): np.zeros(1, np.float32) for number in range(3)}}
    (tmp_path / "any").write_bytes(pickle.dumps(tree, 2))
    refused(tmp_path / "any", "a name is longer")


def test_one_storage_told_in_two_ways(tmp_path):
    one, two = tensor_pickle((2, 3), (3, 1)), tensor_pickle((2, 2), (2, 1), numel=4)
    both = one[:-1] + two[two.index(b"X\1\0\0\0w") :].replace(b"X\1\0\0\0w", b"X\1\0\0\0v", 1)
    (tmp_path / "any").write_bytes(legacy(tree=both))
    refused(tmp_path / "any", "two tensors disagree about one storage")


@pytest.mark.parametrize("kind", ["new", "old", "script", "npz", "safetensors"])
def test_damage_and_cuts_end_in_our_error_or_in_other_numbers(tmp_path, kind):
    state = {"a.w": torch.arange(6.0).reshape(2, 3), "a.b": torch.ones(3)}
    path = tmp_path / "any"
    if kind in ("new", "old"):
        torch.save(state, path, _use_new_zipfile_serialization=kind == "new")
    elif kind == "script":
        foreign.script(state, path)
    elif kind == "npz":
        with path.open("wb") as file:
            np.savez(file, **{name: tensor.numpy() for name, tensor in state.items()})
    else:
        save_file(state, path)
    whole = path.read_bytes()
    rng = np.random.default_rng(5)
    for length in rng.integers(len(whole), size=150):
        path.write_bytes(whole[:length])
        refused(path, "damaged|nobody knows|cut short|is empty|is packed|disagree|declare")
    refusals = 0
    for _ in range(500):
        damaged = bytearray(whole)
        for place in rng.integers(len(whole), size=rng.integers(1, 4)):
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            for tensor in read(path)[1].values():
                assert tensor.numel() <= 10_000
        except InflateError:
            refusals += 1
    assert refusals > 50


def test_a_deep_or_circular_tree_is_refused(tmp_path):
    tree = {"w": torch.zeros(2)}
    for _ in range(40):
        tree = {"a": tree}
    torch.save(tree, tmp_path / "any")
    refused(tmp_path / "any", "the dicts are no tree")
    circle = {}
    circle["self"] = circle
    (tmp_path / "any").write_bytes(pickle.dumps(circle, protocol=2))
    refused(tmp_path / "any", "the dicts are no tree")


def test_arrays_of_a_pickle_take_no_more_than_the_file_could_hold(tmp_path):
    """One run of bytes in the file, and an array made of it again and again."""
    empty = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85C\1b\x87R"
    dtype = b"cnumpy\ndtype\nX\2\0\0\0f4K\0K\1\x87R(K\3X\1\0\0\0<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb"
    data = b"B" + struct.pack("<I", 400_000) + bytes(400_000) + b"q\0"
    content = b"\x80\3}"
    for number in range(9):
        name = b"X\2\0\0\0w" + str(number).encode()
        content += name + empty + b"(K\1J" + struct.pack("<i", 100_000) + b"\x85" + dtype + b"\x89" + data + b"tbs"
        data = b"h\0"
    (tmp_path / "any").write_bytes(content + b".")
    refused(tmp_path / "any", "the arrays take more memory than allowed")


def test_reading_takes_nothing_until_it_is_asked(tmp_path):
    with io.BytesIO() as file:
        torch.save({"w": torch.zeros(30_000_000)}, file)
        (tmp_path / "any").write_bytes(file.getvalue())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with open_container(tmp_path / "any") as container:
        assert container.tensors["w"].nbytes == 120_000_000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kilobytes
