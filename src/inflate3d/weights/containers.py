"""Open a file of tensors, whatever wrote it; what it is, its first and last bytes tell, never its name."""

import io
import mmap
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from inflate3d.arrays import read_array_header
from inflate3d.errors import InflateError, list_faults, nearest_names
from inflate3d.weights.pickles import DAMAGED_PICKLE, DTYPES, Array, Names, no_weight, numpy_calls, run_pickle
from inflate3d.weights.stored import MAX_NAME, ContentError, Stored, is_shape
from inflate3d.weights.tf_bundle import is_bundle_index, read_bundle
from inflate3d.weights.torch_file import Module, check_zip, read_member, read_torch_legacy, read_torch_zip

KINDS = (
    "safetensors, torch.save (new and old), TorchScript, a TensorFlow checkpoint (NAME.index beside NAME.data-*), a"
    " pickle of numpy arrays (Flax, Caffe2), .npz"
)
# The first bytes of what people have in its place
MISTAKES: dict[bytes, tuple[str, str]] = {
    b"version https://git-lfs": ("the file is a pointer of git-lfs, not the weights", "git lfs pull"),
    b"<": ("the file is a web page, not the weights", "download it again; the link may have expired"),
    b"\x89HDF": ("the file is HDF5", "load it with its own program and save it as .npz or safetensors"),
    b"\x1f\x8b": ("the file is packed", "unpack it first: tar -xzf FILE, or gunzip FILE"),
    b"\x08\x01": ("the file is a graph of TensorFlow, not a checkpoint", "pass the checkpoint: NAME.index"),
}
LEGACY_HEAD = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."  # torch's magic number as a pickle
MAX_DEPTH, MAX_VISITS = 32, 1_000_000  # of a tree; sharing makes a small file as large as it likes
MAX_LISTED = 1000  # files of a folder, in which names like a wrong one are looked for
# What libraries raise for a file that is damaged: while it is opened, and while a tensor in it is read
DAMAGED_TENSOR = (OSError, EOFError, SafetensorError, zipfile.BadZipFile, zlib.error)
DAMAGED_FILE = (*DAMAGED_TENSOR, *DAMAGED_PICKLE, struct.error, RuntimeError, NotImplementedError)
SHARD_NAME = re.compile(r"\.(?:data-\d{5}-of-\d{5}|index|meta)$")


@dataclass(frozen=True)
class Container:
    """What lies in a file.

    Attributes:
        path: The file; of a TensorFlow checkpoint its index.
        kind: How it is written.
        tensors: Names, those of dicts and modules around them in front, joined by the separator.
        separator: "." or "/".
        left_out: Names of what is stored in a type that weights do not have, to that type.
    """

    path: Path
    kind: str
    tensors: dict[str, Stored]
    separator: str = "."
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader should know: that tensors were left out."""
        if not self.left_out:
            return ()
        kinds = list_faults(sorted(set(self.left_out.values())))
        return (f"{len(self.left_out)} tensors left out: of a type that is no weight's ({kinds})",)


@contextmanager
def open_container(path: str | Path) -> Iterator[Container]:
    """Open a file of tensors; they can be read until the block ends. No memory is taken for them here.

    Args:
        path: The file. Of a TensorFlow checkpoint `NAME.index`, or `NAME` alone, or one of its other files, or the
            folder of a SavedModel.

    Raises:
        InflateError: There is no such file, it is none of the kinds, is damaged, or wants to run code. The same for
            what is read in the block.
    """
    path = find_index(Path(path))
    if not os.path.exists(path):  # noqa: PTH110 - false for names too long to be
        raise missing_file(path)
    with ExitStack() as stack:
        with _refusing(path, DAMAGED_FILE):
            container = _open(path, stack)
            if not container.tensors:
                raise ContentError("there are no tensors in the file", "; ".join((container.kind, *container.notes)))
        with _refusing(path, DAMAGED_TENSOR):
            yield container


@contextmanager
def _refusing(path: Path, damaged: tuple[type[Exception], ...]) -> Iterator[None]:
    try:
        yield
        return
    except ContentError as refused:
        problem, got, cause = refused.problem, refused.got, None
    except InflateError:
        raise
    except damaged as error:
        problem, got, cause = "the file is damaged or cannot be read", f"{type(error).__name__}: {error!s:.200}", error
    fix = next((fix for known, fix in MISTAKES.values() if known == problem), None)
    raise InflateError(
        problem,
        where=str(path),
        expected=KINDS,
        got=got,
        fix=fix
        or "get the file anew; if it is your own, save the tensors alone: safetensors.torch.save_file(state, FILE)",
    ) from cause


def find_index(path: Path) -> Path:
    """Name the index of a TensorFlow checkpoint, given its folder, a file or their name; other files as they are."""
    is_file, is_folder = os.path.isfile(path), os.path.isdir(path)  # noqa: PTH112, PTH113 - false for names too long
    if is_file and not SHARD_NAME.search(path.name):
        return path
    common = path / "variables" / "variables" if is_folder else path  # of a SavedModel, as on TensorFlow Hub
    index = common.with_name(SHARD_NAME.sub("", common.name) + ".index")
    return index if os.path.isfile(index) else path  # noqa: PTH113


def is_path(name: str | Path) -> bool:
    """Whether it can only be meant as a file: it is a path, or names a folder or a suffix.

    Example:
        >>> is_path("runs/best"), is_path("best.pt"), is_path("i3d-kinetics400")
        (True, True, False)
    """
    return isinstance(name, Path) or Path(name).name != name or Path(name).suffix != ""


def missing_file(path: Path) -> InflateError:
    """Tell that there is no such file, and what else there is in its folder."""
    folder = path.absolute().parent
    try:
        names = [other.name for other in islice(folder.iterdir(), MAX_LISTED)]
    except OSError:
        names = []
    near = nearest_names(path.name, names)
    return InflateError(
        "there is no such file",
        where=str(path),
        expected="a file of weights",
        got=f"the folder {folder}, without it" if folder.is_dir() else f"no folder {folder} either",
        fix=f"did you mean {near}?" if near else f"see what is there: ls '{folder if folder.is_dir() else Path.cwd()}'",
    )


def _open(path: Path, stack: ExitStack) -> Container:
    file = stack.enter_context(path.open("rb"))
    size = file.seek(0, 2)
    if size == 0:
        raise ContentError("the file is empty", "0 bytes")
    data = stack.enter_context(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    if is_bundle_index(data):

        def open_shard(number: int, count: int) -> mmap.mmap:
            shard = path.with_name(f"{path.name.removesuffix('.index')}.data-{number:05d}-of-{count:05d}")
            handle = stack.enter_context(shard.open("rb"))
            return stack.enter_context(mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ))

        bundle = read_bundle(data, open_shard)
        return Container(path, "TensorFlow checkpoint", bundle.tensors, "/", bundle.left_out)
    head = data[:32]
    if head.startswith(b"PK"):
        archive = stack.enter_context(zipfile.ZipFile(path))
        if archive.namelist() and all(name.endswith(".npy") for name in archive.namelist()):
            tensors, left_out = _read_npz(archive, size)
            return Container(path, ".npz", tensors, "/", left_out)
        kind, tree = read_torch_zip(archive, size)
        return Container(path, kind, flatten(tree, ".", arrays=False))
    if head.startswith(LEGACY_HEAD):
        return Container(
            path, "torch.save file of before torch 1.6", flatten(read_torch_legacy(data), ".", arrays=False)
        )
    if head.startswith(b"\x80"):
        # arrays of Python 2 stand there as text, twice as long, and are copied once
        tree = run_pickle(data, Names(numpy_calls(4 * size)))
        if data.tell() != size:
            raise ContentError("the pickle goes on after its end", f"{size - data.tell():,} more bytes")
        return Container(path, "pickle of numpy arrays", flatten(tree, "/"), "/")
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= size - 8:
        return _read_safetensors(path, stack)
    mistake = next((problem for start, (problem, _) in MISTAKES.items() if head.startswith(start)), None)
    raise ContentError(mistake or "nobody knows what this file is", f"{size:,} bytes that start with {head[:16]!r}")


def _read_safetensors(path: Path, stack: ExitStack) -> Container:
    file = stack.enter_context(safe_open(path, framework="pt"))
    tensors: dict[str, Stored] = {}
    left_out: dict[str, str] = {}
    for name in file.keys():  # noqa: SIM118 - no mapping
        part = file.get_slice(name)
        dtype = SAFETENSORS_DTYPES.get(part.get_dtype())
        if dtype is None:
            left_out[name] = part.get_dtype()
        else:
            tensors[name] = Stored(tuple(part.get_shape()), dtype, partial(file.get_tensor, name))
    return Container(path, "safetensors", tensors, left_out=left_out)


SAFETENSORS_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def _read_npz(archive: zipfile.ZipFile, file_bytes: int) -> tuple[dict[str, Stored], dict[str, str]]:
    """Read the arrays of an archive, and name those that are no weights."""
    tensors: dict[str, Stored] = {}
    left_out: dict[str, str] = {}
    for name, member in check_zip(archive, file_bytes).items():
        with archive.open(member) as file:
            header = read_array_header(file)
            shape, dtype, header_bytes = header.shape, header.dtype, file.tell()
        if dtype.kind not in "fiub" or dtype.byteorder == ">" or dtype.str[1:] in ("f16", "u2", "u4", "u8"):
            left_out[name.removesuffix(".npy")] = f"{dtype.str:.20}"
            continue
        if not is_shape(shape) or header_bytes + header.nbytes != member.file_size:
            raise ContentError(
                "an array's shape and bytes disagree", f"{name}: {shape!r:.80}, {member.file_size:,} bytes"
            )
        empty = torch.from_numpy(np.empty(0, dtype))

        def read(member: zipfile.ZipInfo = member) -> torch.Tensor:
            array = np.lib.format.read_array(io.BytesIO(read_member(archive, member)), allow_pickle=False)
            return torch.from_numpy(np.asarray(array, order="C"))

        tensors[name.removesuffix(".npy")] = Stored(shape, empty.dtype, read)
    return tensors, left_out


def flatten(tree: Any, separator: str, *, arrays: bool = True) -> dict[str, Stored]:
    """Name every tensor in nested dicts and modules by the names on the way to it; what is no tensor is left out.

    Args:
        tree: What the pickle holds.
        separator: Stands between the names.
        arrays: Whether numpy's arrays are tensors; beside those of torch they are records of the training.

    Raises:
        ContentError: They are nested too deep, one stands in itself, or an array was never filled or is of a type that
            weights are not.

    Example:
        >>> list(flatten({"a": {"b": np.zeros(3), "lr": 0.1}, "c": np.zeros(2)}, "/"))
        ['a/b', 'c']
    """
    found: dict[str, Stored] = {}
    visits = 0

    def visit(value: Any, name: str, depth: int) -> None:
        nonlocal visits
        visits += 1
        if len(name) > MAX_NAME:  # each leaf below repeats it
            raise ContentError("a name is longer than those of tensors are", f"{len(name):,} letters: {name:.40}...")
        if depth > MAX_DEPTH or visits > MAX_VISITS:
            raise ContentError("the dicts are no tree", f"one in itself, deeper than {MAX_DEPTH}, or too many")
        if isinstance(value, Module):
            value = value.attributes
        elif isinstance(value, Array) and arrays:
            value = value.filled()
        if isinstance(value, dict):
            for key, item in value.items():
                visit(item, f"{name}{separator}{key}" if name else str(key), depth + 1)
        elif isinstance(value, Stored):
            found[name] = value
        elif isinstance(value, np.ndarray) and arrays:
            if value.dtype.str[1:] not in DTYPES:
                raise no_weight(f"{name}, dtype {value.dtype}")
            tensor = torch.from_numpy(value)
            found[name] = Stored(tuple(tensor.shape), tensor.dtype, lambda: tensor)

    visit(tree, "", 0)
    return found
