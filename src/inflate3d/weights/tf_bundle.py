"""Read TensorFlow's checkpoints (V2, "tensor bundles") without TensorFlow: `NAME.index` and `NAME.data-*-of-*`.

The index is a table of LevelDB's: blocks of sorted keys, each key sharing a prefix with the one before it, each block
with its checksum, and a footer that says where the block of blocks lies. A value describes one tensor: type, shape,
shard, offset, size and checksum (protocol buffers). The shards hold the values, one tensor behind the other.

Source: tensorflow/core/lib/io/table_format.txt and core/protobuf/tensor_bundle.proto; reference: RFC 3720 for crc32c.
"""

import math
import mmap
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from inflate3d.weights.stored import MAX_NAME, ContentError, Stored, is_shape, tensor_from

MAGIC = 0xDB4775248B80FB57
FOOTER_BYTES = 48
TRAILER_BYTES = 5  # of a block: how it is packed, and its checksum
MAX_SHARDS = 256
MAX_TENSORS = 100_000

# tensorflow/core/framework/types.proto
DTYPES = {
    1: torch.float32,
    2: torch.float64,
    3: torch.int32,
    4: torch.uint8,
    9: torch.int64,
    10: torch.bool,
    14: torch.bfloat16,
    19: torch.float16,
}

NO_TENSORS = (7, 20, 21)  # text, such as the graph of objects of TensorFlow 2; resources; variants

POLYNOMIAL = 0x82F63B78  # of crc32c, its bits reversed
ROW_BYTES = 512


@dataclass(frozen=True)
class _Entry:
    """What the index says of one tensor."""

    dtype: int = 0
    shape: tuple[int, ...] = ()
    shard: int = 0
    offset: int = 0
    size: int = 0
    checksum: int = 0
    is_sliced: bool = False


class Bundle(NamedTuple):
    """What lies in a bundle: tensors by name, and the types of those that are left out."""

    tensors: dict[str, Stored]
    left_out: dict[str, str]


def is_bundle_index(data: bytes | mmap.mmap) -> bool:
    """Whether a file ends as a table of LevelDB's does."""
    return len(data) >= FOOTER_BYTES and bytes(data[-8:]) == MAGIC.to_bytes(8, "little")


def read_bundle(index: bytes | mmap.mmap, open_shard: Callable[[int, int], mmap.mmap]) -> Bundle:
    """Read the index of a bundle; the tensors are read when they are wanted, and checked then.

    Args:
        index: The file `NAME.index`.
        open_shard: Opens one file of values, given its number and how many there are; must stay open.

    Returns:
        Tensors by name, in the order of the names, and those of types that weights do not have. Text and resources are
        left out.

    Raises:
        ContentError: The index is damaged or packed, a tensor is cut into slices, or lies outside its file.
    """
    entries = dict(_table(index))
    if "" not in entries:
        raise ContentError("the index is none of a checkpoint", f"{len(entries):,} entries, no header")
    header = _fields(entries.pop(""))
    shards = header.get(1, [1])[-1]
    if header.get(2, [0])[-1] != 0:
        raise ContentError("the tensors are of a machine with another order of bytes", "big-endian")
    if not 1 <= shards <= MAX_SHARDS:
        raise ContentError("the checkpoint has more files than allowed", f"{shards:,}, allowed: {MAX_SHARDS}")
    opened: dict[int, mmap.mmap] = {}
    tensors: dict[str, Stored] = {}
    left_out: dict[str, str] = {}
    for name, value in entries.items():
        entry = _entry(value)
        if entry.dtype in NO_TENSORS:
            continue
        if entry.dtype not in DTYPES:
            left_out[name] = f"number {entry.dtype} of TensorFlow's types.proto"
            continue
        if entry.shard not in opened and 0 <= entry.shard < shards:
            opened[entry.shard] = open_shard(entry.shard, shards)
        tensors[name] = _stored(name, entry, opened.get(entry.shard))
    return Bundle(tensors, left_out)


def _stored(name: str, entry: _Entry, shard: mmap.mmap | None) -> Stored:
    dtype = DTYPES[entry.dtype]
    if entry.is_sliced or not is_shape(entry.shape):
        raise ContentError(
            "a tensor is cut into slices, or has an impossible shape", f"{name:.80}: {entry.shape!r:.80}"
        )
    inside = shard is not None and 0 <= entry.offset <= entry.offset + entry.size <= len(shard)
    if shard is None or not inside or entry.size != math.prod(entry.shape) * dtype.itemsize:
        raise ContentError(
            "a tensor does not lie in its file whole",
            f"{name:.80}: {list(entry.shape)}, {entry.size:,} bytes from {entry.offset:,} in a file of"
            f" {0 if shard is None else len(shard):,}",
        )

    def read() -> Tensor:
        data = shard[entry.offset : entry.offset + entry.size]
        if crc32c(data) != entry.checksum:
            raise ContentError("a tensor's values are damaged: their checksum is another one", name)
        return tensor_from(data, dtype, entry.shape)

    return Stored(entry.shape, dtype, read)


def _table(data: bytes | mmap.mmap) -> Iterator[tuple[str, bytes]]:
    """Walk through the keys and values of a LevelDB table."""
    footer = bytes(data[-FOOTER_BYTES:])
    position = 0
    handle = []
    for _ in range(4):  # offset and size of the block of metadata, then of the index
        number, position = _varint(footer, position)
        handle.append(number)
    _block(data, handle[0], handle[1])  # holds nothing, but its checksum tells of damage
    count = 0
    for _key, block in _entries(_block(data, handle[2], handle[3])):
        offset, position = _varint(block, 0)
        size, _position = _varint(block, position)
        for key, value in _entries(_block(data, offset, size)):
            count += 1
            if count > MAX_TENSORS:
                raise ContentError("the index is none of a checkpoint", f"more than {MAX_TENSORS:,} entries")
            yield key.decode("utf-8"), value


def _block(data: bytes | mmap.mmap, offset: int, size: int) -> bytes:
    end = offset + size + TRAILER_BYTES
    if end > len(data):
        raise ContentError("the index is damaged or cut short", f"a block ends at {end:,} of {len(data):,} bytes")
    whole = bytes(data[offset:end])
    if crc32c(whole[:-4]) != _unmask(struct.unpack("<I", whole[-4:])[0]):
        raise ContentError("the index is damaged: a checksum is another one", f"block at {offset:,}")
    if whole[-TRAILER_BYTES] != 0:
        raise ContentError("the index is packed, which TensorFlow's own are not", f"method {whole[-TRAILER_BYTES]}")
    return whole[:-TRAILER_BYTES]


def _entries(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    restarts = struct.unpack("<I", block[-4:])[0]
    end = len(block) - 4 * (restarts + 1)
    position, key = 0, b""
    while position < end:
        shared, position = _varint(block, position)
        fresh, position = _varint(block, position)
        size, position = _varint(block, position)
        stop = position + fresh + size
        if shared > len(key) or stop > end:
            raise ContentError("the index is damaged or cut short", f"an entry ends at {stop:,} of {end:,} bytes")
        if shared + fresh > MAX_NAME:  # a few bytes for each of a hundred thousand long names would fill the memory
            raise ContentError("the index is none of a checkpoint", f"a name of {shared + fresh:,} bytes")
        key = key[:shared] + block[position : position + fresh]
        yield key, block[position + fresh : stop]
        position = stop


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 64, 7):
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ContentError("the index is damaged: a number does not end", f"at {position:,}")


def _fields(message: bytes) -> dict[int, list[Any]]:
    """Take a message of protocol buffers apart: number of the field to its values."""
    found: dict[int, list[Any]] = {}
    value: int | bytes
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        kind = tag & 7
        if kind == 0:
            value, position = _varint(message, position)
        elif kind == 2:
            size, position = _varint(message, position)
            value, position = message[position : position + size], position + size
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
            value, position = int.from_bytes(message[position : position + size], "little"), position + size
        else:
            raise ContentError("the index is damaged: an entry is no message", f"wire type {kind}")
        if position > len(message):
            raise ContentError("the index is damaged or cut short", f"a field ends at {position:,} of {len(message):,}")
        found.setdefault(tag >> 3, []).append(value)
    return found


def _entry(message: bytes) -> _Entry:
    fields = _fields(message)

    def number(field: int) -> int:
        value = fields.get(field, [0])[-1]
        if not isinstance(value, int):
            raise ContentError("the index is damaged: an entry is none of a tensor", f"field {field}")
        return value

    shape = _fields(fields[2][-1]) if isinstance(fields.get(2, [0])[-1], bytes) else {}
    dims = [_fields(dim).get(1, [0])[-1] if isinstance(dim, bytes) else -1 for dim in shape.get(2, [])]
    return _Entry(number(1), tuple(dims), number(3), number(4), number(5), _unmask(number(6)), bool(fields.get(7)))


def _unmask(masked: int) -> int:
    rotated = (masked - 0xA282EAD8) & 0xFFFFFFFF  # a checksum of data that hold checksums is no good one
    return (rotated >> 17 | rotated << 15) & 0xFFFFFFFF


def crc32c(data: bytes) -> int:
    """Compute the checksum crc32c (Castagnoli), many rows of the data at once: 50 MB take half a second.

    Example:
        >>> hex(crc32c(b"123456789"))
        '0xe3069283'
    """
    table = _table_of_bytes()
    rows = np.frombuffer(data, np.uint8, count=len(data) // ROW_BYTES * ROW_BYTES).reshape(-1, ROW_BYTES)
    checksums = np.zeros(len(rows), np.uint32)
    for column in np.ascontiguousarray(rows.T) if len(rows) else ():  # the checksum of each row, starting at zero
        checksums = table[(checksums ^ column) & 0xFF] ^ (checksums >> 8)
    shift = _shift_by_a_row()
    state = 0xFFFFFFFF
    for checksum in checksums.tolist():
        state = _apply(shift, state) ^ checksum
    single = _table_as_list()
    for byte in data[rows.size :]:
        state = single[(state ^ byte) & 0xFF] ^ (state >> 8)
    return state ^ 0xFFFFFFFF


@cache
def _table_of_bytes() -> NDArray[np.uint32]:
    values = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        values = np.where(values & 1, (values >> 1) ^ np.uint32(POLYNOMIAL), values >> 1)
    return values.astype(np.uint32)


@cache
def _table_as_list() -> list[int]:
    return [int(value) for value in _table_of_bytes()]


@cache
def _shift_by_a_row() -> Sequence[Sequence[int]]:
    """Tabulate, for each of the four bytes of a checksum, what a row of zeros makes of it: the checksum is linear."""
    states = np.concatenate([np.arange(256, dtype=np.uint32) << np.uint32(8 * place) for place in range(4)])
    for _ in range(ROW_BYTES):
        states = _table_of_bytes()[states & 0xFF] ^ (states >> 8)
    return [part.tolist() for part in states.reshape(4, 256)]


def _apply(shift: Sequence[Sequence[int]], state: int) -> int:
    return shift[0][state & 0xFF] ^ shift[1][state >> 8 & 0xFF] ^ shift[2][state >> 16 & 0xFF] ^ shift[3][state >> 24]
