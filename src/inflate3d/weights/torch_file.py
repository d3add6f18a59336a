"""Read files of `torch.save`, old and new, and TorchScript archives: their tensors alone, without torch's unpickler.

An archive holds a pickle, which describes tensors by storage, offset, shape and strides, and each storage as a file of
its own. Before torch 1.6 (the published piergiaj and hassony2 weights are that old) one file held it all, the storages
behind the pickle. Of a TorchScript archive the attributes of its modules are taken; its code is not looked at.

Source: torch/serialization.py and torch/csrc/jit/serialization, which write these files.
"""

import io
import math
import mmap
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from inflate3d.weights.pickles import Call, Named, Names, numpy_calls, run_pickle, short
from inflate3d.weights.stored import MAX_BYTES, ContentError, Stored, is_shape, tensor_from

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001
MAX_PICKLE_BYTES = 2**28  # without its tensors; the configuration and the history of a training run are in it

# What the standard library raises for a member of an archive that is damaged or packed in an odd way
DAMAGED_ZIP = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError, struct.error)

DTYPES: dict[str, torch.dtype] = {
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.DoubleStorage": torch.float64,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
}


@dataclass(eq=False)
class _Storage:
    """A run of values in the file, of which tensors are views; `get` brings its bytes."""

    dtype: torch.dtype
    numel: int
    first: int
    get: Callable[[], bytes]


@dataclass(repr=False)
class Module:
    """Stands in for a module of TorchScript: its attributes, among them tensors and other modules."""

    attributes: dict[str, Any] = field(default_factory=dict)

    def build(self, state: Any) -> None:
        """Keep the attributes."""
        self.attributes = state if isinstance(state, dict) else {}


def _rebuild_tensor(args: tuple[Any, ...]) -> Stored:
    storage, offset, shape, strides = args[:4]
    if not isinstance(storage, _Storage) or not is_shape(shape) or not is_shape(strides) or not is_shape((offset,)):
        raise ContentError("a tensor is not described as torch describes tensors", short(args))
    count = math.prod(shape)
    start = storage.first + offset
    span = 1 + sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True)) if count else 0
    # a view that repeats values could be made as large as one likes
    if count > storage.numel or start + span > storage.numel:
        raise ContentError(
            "a tensor and its storage disagree",
            f"shape {short(shape)}, strides {short(strides)}, offset {offset} in {storage.numel:,} values",
        )

    def read() -> Tensor:
        size = storage.dtype.itemsize
        values = tensor_from(storage.get()[start * size : (start + span) * size], storage.dtype, (span,))
        return values.as_strided(shape, strides).contiguous() if count else values.reshape(shape)

    return Stored(shape, storage.dtype, read)


def _ordered_dict(args: tuple[Any, ...]) -> dict[Any, Any]:
    """Make a dict; Python 2 gave the pairs as a list, Python 3 sets them afterwards."""
    pairs = args[0] if args else []
    wrong = (
        [pair for pair in pairs if type(pair) not in (list, tuple) or len(pair) != 2] if type(pairs) is list else [0]
    )
    if wrong or not all(type(key) in (str, int) for key, _ in pairs):
        raise ContentError("a dict has keys that are neither text nor whole numbers", short(pairs))
    made = dict(pairs)
    pairs.clear()  # one list that made many dicts would make a small file as large as it likes
    return made


def _first(args: tuple[Any, ...]) -> Any:
    return args[0]


def _size(args: tuple[Any, ...]) -> tuple[int, ...]:
    if not is_shape(args[0]):
        raise ContentError("a tensor is not described as torch describes tensors", short(args))
    return tuple(args[0])


CALLS: dict[str, Call | None] = {
    **dict.fromkeys(DTYPES),
    "torch._utils._rebuild_tensor": _rebuild_tensor,  # torch 0.3
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_parameter": _first,
    "torch.Size": _size,
    "collections.OrderedDict": _ordered_dict,
}
SCRIPT_LISTS = ("build_intlist", "build_doublelist", "build_boollist", "build_tensorlist", "restore_type_tag")
SCRIPT_CALLS: dict[str, Call | None] = dict.fromkeys((f"torch.jit._pickle.{name}" for name in SCRIPT_LISTS), _first)


def _describe_storage(described: Any) -> tuple[torch.dtype, str, int, Any]:
    """Check what a pickle says of a storage: its type, key, number of values, and which part of it is meant."""
    fine = isinstance(described, tuple) and len(described) in (5, 6) and described[0] == "storage"
    if fine:
        _, kind, key, _place, numel = described[:5]
        fine = isinstance(kind, Named) and kind.name in DTYPES and isinstance(key, str) and is_shape((numel,))
    if not fine:
        raise ContentError("a storage is not described as torch describes storages", short(described))
    return DTYPES[kind.name], key, numel, described[5] if len(described) == 6 else None


def read_torch_zip(archive: zipfile.ZipFile, file_bytes: int) -> tuple[str, Any]:
    """Read the pickle of an archive of `torch.save` or `torch.jit.save`; tensors in it become `Stored`.

    Args:
        archive: Must stay open while tensors are read.
        file_bytes: Size of the file.

    Returns:
        The kind of the archive, and what was saved.

    Raises:
        ContentError: The archive is none of torch's, or it holds what no checkpoint does.
    """
    members = check_zip(archive, file_bytes)
    pickles = [name for name in members if name.endswith("/data.pkl")]
    if len(pickles) != 1:
        old = any(name.endswith("/model.json") for name in members)
        problem = "the TorchScript archive is of before torch 1.3" if old else "the archive is none of torch's"
        raise ContentError(problem, ", ".join(list(members)[:5]) or "no files in it")
    folder = pickles[0].removesuffix("data.pkl")
    order = _start(archive, members[f"{folder}byteorder"]) if f"{folder}byteorder" in members else b"little"
    if order != b"little":
        raise ContentError("the tensors are of a machine with another order of bytes", short(order))
    if members[pickles[0]].file_size > MAX_PICKLE_BYTES:
        raise ContentError("the pickle is too long", f"{members[pickles[0]].file_size:,} bytes")
    latest: dict[str, bytes] = {}  # of many tensors in one storage each would else read it all

    def storage(described: Any) -> _Storage:
        dtype, key, numel, _view = _describe_storage(described)
        member = members.get(f"{folder}data/{key}")
        if member is None or member.file_size != numel * dtype.itemsize:
            size = "missing" if member is None else f"{member.file_size:,} bytes"
            raise ContentError("a storage has another size than declared", f"data/{key}: {size}, not {numel:,} values")

        def get() -> bytes:
            if key not in latest:
                latest.clear()
                latest[key] = read_member(archive, member)
            return latest[key]

        return _Storage(dtype, numel, 0, get)

    script = f"{folder}constants.pkl" in members
    calls = {**numpy_calls(MAX_PICKLE_BYTES), **CALLS, **(SCRIPT_CALLS if script else {})}
    names = Names(calls, "__torch__." if script else None, Module, storage)
    tree = run_pickle(io.BytesIO(read_member(archive, members[pickles[0]])), names)
    return "TorchScript archive" if script else "torch.save archive", tree


def check_zip(archive: zipfile.ZipFile, file_bytes: int) -> dict[str, zipfile.ZipInfo]:
    """Bound what an archive declares before anything in it is unpacked; gives its members by name.

    Raises:
        ContentError: Members are larger than the file, together too large, encrypted or packed in an odd way.
    """
    members = {member.filename: member for member in archive.infolist()}
    total = sum(member.file_size for member in members.values())
    for member in members.values():
        packed = member.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) and not member.flag_bits & 1
        if not packed or member.compress_size > file_bytes or total > MAX_BYTES:
            raise ContentError(
                "the archive declares what it cannot hold, or is packed in an odd way",
                f"{member.filename!r:.80}: {member.compress_size:,} of {file_bytes:,} bytes, {total:,} in all unpacked",
            )
    return members


def _start(archive: zipfile.ZipFile, member: zipfile.ZipInfo, most: int = 16) -> bytes:
    with archive.open(member) as file:
        return file.read(most)


def read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    """Unpack one member whole, and check its checksum.

    Raises:
        ContentError: It is damaged.
    """
    try:
        with archive.open(member) as file:
            data = file.read(member.file_size + 1)
    except DAMAGED_ZIP as error:
        raise ContentError("the archive is damaged", f"{member.filename!r:.80}: {error!s:.200}") from error
    if len(data) != member.file_size:
        raise ContentError("the archive is damaged", f"{member.filename!r:.80}: {len(data):,} bytes")
    return data


def read_torch_legacy(data: mmap.mmap) -> Any:
    """Read a file as `torch.save` wrote it before torch 1.6; tensors in it become `Stored`.

    Args:
        data: The file; must stay open while tensors are read.

    Raises:
        ContentError: The file holds what no checkpoint does, or storages are missing or cut short.
    """
    plain = Names({})
    if (head := [run_pickle(data, plain), run_pickle(data, plain)]) != [LEGACY_MAGIC, LEGACY_PROTOCOL]:
        raise ContentError("the file is no torch.save of a version that is known", short(head))
    machine = run_pickle(data, plain)
    if not isinstance(machine, dict) or machine.get("little_endian") is not True:
        raise ContentError("the tensors are of a machine with another order of bytes", short(machine))
    wanted: dict[str, tuple[torch.dtype, int]] = {}
    places: dict[str, int] = {}

    def storage(described: Any) -> _Storage:
        dtype, key, numel, view = _describe_storage(described)
        if wanted.setdefault(key, (dtype, numel)) != (dtype, numel):
            raise ContentError("two tensors disagree about one storage", short(described))
        first = view[1] if isinstance(view, tuple) and len(view) == 3 else 0
        if not is_shape((first,)):
            raise ContentError("a storage is not described as torch describes storages", short(described))

        def get() -> bytes:
            return data[places[key] : places[key] + numel * dtype.itemsize]

        return _Storage(dtype, numel, first, get)

    tree = run_pickle(data, Names({**numpy_calls(MAX_PICKLE_BYTES), **CALLS}, storage=storage))
    keys = run_pickle(data, plain)
    position = data.tell()
    for key in keys if isinstance(keys, list) else ():
        # whatever else stands there may be nested so deep that to look it up would end Python
        dtype, numel = wanted.pop(key, (torch.uint8, None)) if type(key) is str else (torch.uint8, None)
        found = struct.unpack_from("<q", data, position)[0] if position + 8 <= len(data) else None
        if numel is None or found != numel:
            raise ContentError(
                "a storage has another size than declared, or the file is cut short", f"storage {short(key)}"
            )
        places[key] = position + 8
        position += 8 + numel * dtype.itemsize
    if wanted or position != len(data):
        got = f"{len(data):,} bytes, {position:,} declared; missing: {', '.join(wanted) or 'nothing'}"
        raise ContentError("the file is cut short, or longer than it says", f"{got:.200}")
    return tree
