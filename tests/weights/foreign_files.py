"""Writers of other programs' files, made from the formats' descriptions and sharing nothing with the package."""

import pickle
import struct
from functools import cache

import numpy as np
import torch

POLYNOMIAL = 0x82F63B78


def crc32c(data):
    """Castagnoli's checksum: columns of the data side by side, joined as zlib's crc32_combine joins two checksums."""
    table = _bytes()
    rows, state = len(data) // 256, 0xFFFFFFFF
    if rows > 64:
        lookup, parts = np.array(table, np.uint32), np.frombuffer(data[: rows * 256], np.uint8).reshape(rows, 256)
        sums = np.full(rows, 0xFFFFFFFF, np.uint32)
        for column in range(256):
            sums = lookup[(sums ^ parts[:, column]) & 255] ^ (sums >> 8)
        zeros = _zeros(256)
        state = int(sums[0])
        for one in sums[1:].tolist():  # one started with all bits set, as if nothing stood before it
            state = _times(zeros, state ^ 0xFFFFFFFF) ^ one
        data = data[rows * 256 :]
    for byte in data:
        state = table[(state ^ byte) & 255] ^ state >> 8
    return state ^ 0xFFFFFFFF


@cache
def _bytes():
    table = []
    for byte in range(256):
        value = byte
        for _ in range(8):
            value = value >> 1 ^ (POLYNOMIAL if value & 1 else 0)
        table.append(value)
    return table


def _times(matrix, vector):
    product = 0
    for bit in range(32):
        if vector >> bit & 1:
            product ^= matrix[bit]
    return product


@cache
def _zeros(count):
    """The matrix over two elements that takes a checksum past `count` bytes of zeros; `count` is a power of two."""
    matrix = [POLYNOMIAL] + [1 << bit for bit in range(31)]
    for _ in range((8 * count).bit_length() - 1):
        matrix = [_times(matrix, row) for row in matrix]
    return matrix


def masked(checksum):
    return ((checksum >> 15 | checksum << 17) + 0xA282EAD8) & 0xFFFFFFFF


def varint(number):
    out = b""
    while number > 127:
        out, number = out + bytes([number & 127 | 128]), number >> 7
    return out + bytes([number])


def block(entries, restart_interval=16, packing=0):
    """A block of a LevelDB table, with its trailer."""
    body, restarts, before = b"", [], b""
    for count, (key, value) in enumerate(entries):
        shared = 0
        if count % restart_interval == 0:
            restarts.append(len(body))
        else:
            while shared < min(len(key), len(before)) and key[shared] == before[shared]:
                shared += 1
        body += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        before = key
    body += b"".join(struct.pack("<I", place) for place in restarts or [0])
    body += struct.pack("<I", len(restarts or [0])) + bytes([packing])
    return body + struct.pack("<I", masked(crc32c(body)))


def table(entries, per_block=40, packing=0):
    """A whole LevelDB table from sorted keys and values."""
    out, index = b"", []
    for start in range(0, len(entries), per_block):
        part = entries[start : start + per_block]
        written = block(part, packing=packing)
        index.append((part[-1][0] + b"\0", varint(len(out)) + varint(len(written) - 5)))
        out += written
    handles = b""
    for written in (block([]), block(index, restart_interval=1)):
        handles += varint(len(out)) + varint(len(written) - 5)
        out += written
    return out + handles.ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57)


NUMBERS = {"<f4": 1, "<f8": 2, "<i4": 3, "<i8": 9, "<f2": 19}


def entry(array, shard, offset, **changed):
    """BundleEntryProto of one array."""
    shape = b"".join(b"\x12" + varint(len(dim)) + dim for dim in (b"\x08" + varint(n) for n in array.shape))
    shape = changed.get("shape", shape)
    fields = b"\x08" + varint(changed.get("dtype", NUMBERS[array.dtype.newbyteorder("<").str]))
    fields += b"\x12" + varint(len(shape)) + shape
    fields += (b"\x18" + varint(shard)) * (shard > 0) + (b"\x20" + varint(offset)) * (offset > 0)
    fields += b"\x28" + varint(changed.get("size", array.nbytes))
    return fields + b"\x35" + struct.pack("<I", changed.get("checksum", masked(crc32c(array.tobytes()))))


def bundle(folder, name, arrays, shards=1, change=None, **options):
    """A TensorFlow checkpoint: an index and its files of values. `change` maps a name to wrong fields."""
    header = b"\x08" + varint(shards) + b"\x1a\x02\x08\x01"
    entries, values = [(b"", options.pop("header", header))], [b""] * shards
    pieces = [[] for _ in range(shards)]
    offsets = [0] * shards
    for count, key in enumerate(sorted(arrays)):
        shard, array = count * shards // len(arrays), np.asarray(arrays[key], order="C")
        entries.append((key.encode(), entry(array, shard, offsets[shard], **(change or {}).get(key, {}))))
        pieces[shard].append(array.tobytes())
        offsets[shard] += array.nbytes
    values = [b"".join(part) for part in pieces]
    for number, data in enumerate(values):
        (folder / f"{name}.data-{number:05d}-of-{shards:05d}").write_bytes(data)
    (folder / f"{name}.index").write_bytes(table(entries, **options))
    return folder / f"{name}.index"


STORAGES = {"float32": b"FloatStorage", "int64": b"LongStorage", "float16": b"HalfStorage"}


def torch_0_3(arrays):
    """A file as Python 2 and torch 0.3 wrote an OrderedDict of tensors: magic, versions, pickle, storages."""

    def text(value):
        return b"U" + bytes([len(value)]) + value.encode()

    def number(value):
        return b"J" + struct.pack("<i", value)

    def numbers(values):
        return b"(" + b"".join(number(value) for value in values) + b"t"

    head = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2)
    head += pickle.dumps({"protocol_version": 1001, "little_endian": True, "type_sizes": {"int": 4}}, 2)
    body, tail = b"", b""
    for key, name in enumerate(arrays, start=94000000):
        array = np.asarray(arrays[name], order="C")
        strides = [stride // array.itemsize for stride in array.strides]
        storage = b"(" + text("storage") + b"ctorch\n" + STORAGES[array.dtype.name] + b"\n" + text(str(key))
        storage += text("cpu") + number(array.size) + b"NtQ"
        body += b"](" + text(name) + b"ctorch._utils\n_rebuild_tensor\n"
        body += b"(" + storage + b"K\0" + numbers(array.shape) + numbers(strides) + b"tRe"
        tail += struct.pack("<q", array.size) + array.tobytes()
    keys = pickle.dumps([str(key) for key in range(94000000, 94000000 + len(arrays))], 2)
    pairs = b"\x80\x02ccollections\nOrderedDict\n](" + body + b"e\x85R."
    return head + pairs + keys + tail


def script(tensors, path, forward="return x"):
    """A TorchScript archive of modules nested as the names say, written by torch itself."""

    def nest(names):
        module = torch.nn.Module()
        inner = {}
        for name, value in names.items():
            child, _, rest = name.partition(".")
            if rest:
                inner.setdefault(child, {})[rest] = value
            elif value.is_floating_point() and "running" not in name:
                module.register_parameter(child, torch.nn.Parameter(value))
            else:
                module.register_buffer(child, value)
        for child, rest in inner.items():
            module.add_module(child, nest(rest))
        return module

    class Root(torch.nn.Module):
        def forward(self, x):
            return x

    root = Root()
    for name, module in nest(tensors).named_children():
        root.add_module(name, module)
    torch.jit.script(root).save(str(path))
