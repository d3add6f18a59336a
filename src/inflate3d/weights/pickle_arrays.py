"""Read a pickle of nested dicts of numpy arrays without running anything that the file asks for.

Python's own unpickler, even with its imports restricted, can be made to take all memory (memo indices, bytearrays) or
to crash (hashing deeply nested keys). So the instructions are read as data, from the standard library's list of them;
this file carries out the few that arrays in dicts need, and refuses all others. Pickle protocols 2 to 4 as numpy
writes them, under Python 2 as well.
"""

import math
import pickletools
import reprlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inflate3d.errors import InflateError

ArrayTree = dict[str, Any]
"""Nested dicts with text keys whose leaves are arrays, text, whole numbers, bytes, booleans or None."""

GIBIBYTE = 2**30
MAX_INSTRUCTIONS = 1_000_000  # the 230 arrays of I3D take 7,000
MAX_DEPTH = 32
MAX_AXES = 32  # of an array, numpy's own limit for long

DTYPES = ("f2", "f4", "f8", "i4", "i8", "u1", "b1")

_SHORT = reprlib.Repr()  # what a file holds may be nested without end, and so would its plain repr be
_SHORT.maxlevel = 2


class _ContentError(Exception):
    """What a file holds that no file of arrays does: the problem, and what was found."""

    def __init__(self, problem: str, got: str) -> None:
        super().__init__(problem)
        self.problem, self.got = problem, got


@dataclass(frozen=True)
class _Global:
    """The name of something that the file wants imported; it never is."""

    name: str


@dataclass(repr=False)
class _Dtype:
    """Stands in for numpy.dtype."""

    args: tuple[Any, ...]
    value: np.dtype[Any] | None = None

    def build(self, state: tuple[Any, ...], _max_bytes: int) -> None:
        code, order, plain = self.args[0], state[1], all(part is None for part in state[2:5])
        if code not in DTYPES or order not in ("<", ">", "|") or not plain:
            raise _ContentError(
                "an array is of a type that weights are not",
                f"dtype {_SHORT.repr(code)}, byte order {_SHORT.repr(order)}",
            )
        self.value = np.dtype(code).newbyteorder(order)


@dataclass(repr=False)
class _Array:
    """Stands in for numpy's empty array, which the file then fills."""

    args: tuple[Any, ...]
    value: NDArray[Any] | None = None

    def build(self, state: tuple[Any, ...], max_bytes: int) -> None:
        _version, shape, dtype, fortran, data = state
        data = data.encode("latin-1") if isinstance(data, str) else data  # Python 2 wrote its bytes as text
        if not isinstance(dtype, _Dtype) or dtype.value is None or not isinstance(data, bytes):
            raise _ContentError("an array is not described as numpy describes arrays", _SHORT.repr(state))
        if not _is_shape(shape, max_bytes) or math.prod(shape) * dtype.value.itemsize != len(data):
            raise _ContentError(
                "an array's shape and bytes disagree", f"shape {_SHORT.repr(shape)}, {len(data):,} bytes"
            )
        values = np.frombuffer(data, dtype.value).reshape(shape, order="F" if fortran else "C")
        self.value = values.astype(dtype.value.newbyteorder("="), order="C")


def _is_shape(shape: object, max_bytes: int) -> bool:
    # each length is bounded before any product is taken: a product of huge numbers would itself take all the time
    if not isinstance(shape, tuple) or len(shape) > MAX_AXES:
        return False
    return all(type(length) is int and 0 <= length <= max_bytes for length in shape)


STAND_INS: dict[str, type[_Array] | type[_Dtype] | None] = {
    "numpy.core.multiarray._reconstruct": _Array,
    "numpy._core.multiarray._reconstruct": _Array,  # numpy 2
    "numpy.dtype": _Dtype,
    "numpy.ndarray": None,  # named as an argument, never called
}


@dataclass
class _Machine:
    """The unpickler's stack machine: a stack, marks on it, and a memo."""

    max_bytes: int
    stack: list[Any] = field(default_factory=list)
    marks: list[int] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)
    array_bytes: int = 0

    def push(self, value: object) -> None:
        self.stack.append(value)

    def take(self, count: int) -> list[Any]:
        """Take the last `count` values off the stack, in the order in which they were put there."""
        start = len(self.stack) - count
        if start < 0:
            raise IndexError("the stack holds too few values")
        taken = self.stack[start:]
        del self.stack[start:]
        return taken

    def take_to_mark(self) -> list[Any]:
        return self.take(len(self.stack) - self.marks.pop())

    def name(self, name: str) -> None:
        if name not in STAND_INS:
            raise _ContentError("the file wants to run code", name)
        self.push(_Global(name))

    def call(self) -> None:
        function, args = self.take(2)
        stand_in = STAND_INS[function.name] if isinstance(function, _Global) else None
        if stand_in is None or not isinstance(args, tuple):
            raise _ContentError("the file calls something that is no array", _SHORT.repr(function))
        self.push(stand_in(args))

    def build(self) -> None:
        target, state = self.take(2)
        if not isinstance(target, _Array | _Dtype) or target.value is not None or not isinstance(state, tuple):
            raise _ContentError("the file changes something that is no array", _SHORT.repr(target))
        target.build(state, self.max_bytes)
        # one run of bytes may serve many arrays, each of which becomes a copy
        self.array_bytes += target.value.nbytes if isinstance(target, _Array) and target.value is not None else 0
        if self.array_bytes > self.max_bytes:
            raise _ContentError("the arrays take more memory than allowed", f"more than {self.max_bytes:,} bytes")
        self.push(target)

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict) or not all(isinstance(key, str) for key in items[::2]):
            raise _ContentError("a dict has keys that are not text", _SHORT.repr(items[:1]))
        target.update(zip(items[::2], items[1::2], strict=True))


# What each instruction does; the standard library's pickletools documents them
INSTRUCTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(("PROTO", "FRAME", "STOP"), lambda machine, value: None),
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1"), lambda machine, value: machine.push(value)),
    **dict.fromkeys(("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"), lambda machine, value: machine.push(value)),
    **dict.fromkeys(("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"), lambda machine, value: machine.push(value)),
    **dict.fromkeys(("BINSTRING", "SHORT_BINSTRING"), lambda machine, value: machine.push(value)),  # Python 2
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "MARK": lambda machine, _: machine.marks.append(len(machine.stack)),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.take_to_mark())),
    "TUPLE1": lambda machine, _: machine.push(tuple(machine.take(1))),
    "TUPLE2": lambda machine, _: machine.push(tuple(machine.take(2))),
    "TUPLE3": lambda machine, _: machine.push(tuple(machine.take(3))),
    "SETITEM": lambda machine, _: machine.set_items(machine.take(2)),
    "SETITEMS": lambda machine, _: machine.set_items(machine.take_to_mark()),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT"), lambda machine, index: machine.memo.update({index: machine.stack[-1]})),
    "MEMOIZE": lambda machine, _: machine.memo.update({len(machine.memo): machine.stack[-1]}),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), lambda machine, index: machine.push(machine.memo[index])),
    "GLOBAL": lambda machine, name: machine.name(name.replace(" ", ".")),
    "STACK_GLOBAL": lambda machine, _: machine.name(".".join(machine.take(2))),
    "REDUCE": lambda machine, _: machine.call(),
    "BUILD": lambda machine, _: machine.build(),
}


def read_array_pickle(source: Path | bytes, *, max_bytes: int = GIBIBYTE) -> ArrayTree:
    """Read nested dicts of numpy arrays; nothing in the file is run, whatever it says.

    Arrays come in native byte order, contiguous, and own their memory.

    Args:
        source: A file, or what stands in one.
        max_bytes: Largest size in bytes of the file, and of all its arrays together.

    Raises:
        InflateError: The file cannot be read, is larger than `max_bytes`, is no pickle, is cut short, wants to run
            code, or holds anything but text-keyed dicts of arrays and plain values.

    Example:
        >>> import pickle
        >>> read_array_pickle(pickle.dumps({"a": {"b": np.arange(3)}}, protocol=4))
        {'a': {'b': array([0, 1, 2])}}
    """
    where = str(source) if isinstance(source, Path) else "read_array_pickle"
    try:
        data = source if isinstance(source, bytes) else _read_bounded(source, max_bytes)
        if len(data) > max_bytes:
            raise _ContentError("the file is too large", f"more than {max_bytes:,} bytes")
        tree: ArrayTree = _tree(_run(data, max_bytes), depth=0, seen=set())
        return tree
    except _ContentError as refused:
        problem, got, cause = refused.problem, refused.got, None
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OSError) as error:
        # what pickletools and the machine raise for a file that is cut short or was never a pickle
        problem, got, cause = "the file is damaged or no pickle", f"{type(error).__name__}: {error!s:.200}", error
    raise InflateError(
        problem,
        where=where,
        expected=f"a pickle of nested dicts of numpy arrays ({', '.join(DTYPES)}), at most {max_bytes:,} bytes",
        got=got,
        fix="get the file anew; if it is your own, save it anew: pickle.dump(dicts_of_arrays, file, protocol=4)",
    ) from cause


def _read_bounded(path: Path, max_bytes: int) -> bytes:
    with path.open("rb") as file:
        return file.read(max_bytes + 1)


def _run(data: bytes, max_bytes: int) -> object:
    machine, end = _Machine(max_bytes), 0
    for count, (instruction, value, position) in enumerate(pickletools.genops(data)):
        if count >= MAX_INSTRUCTIONS:
            raise _ContentError("the pickle is too long", f"more than {MAX_INSTRUCTIONS:,} instructions")
        if instruction.name not in INSTRUCTIONS:
            found = f"{instruction.name} {'' if value is None else _SHORT.repr(value)}"
            raise _ContentError("the pickle holds more than arrays in dicts", found.strip())
        INSTRUCTIONS[instruction.name](machine, value)
        end = (position or 0) + 1
    if len(machine.stack) != 1 or machine.marks or end != len(data):
        raise _ContentError("the pickle goes on after its end", f"{len(data) - end:,} more bytes")
    return machine.stack.pop()


def _tree(value: object, depth: int, seen: set[int]) -> Any:
    """Replace the stand-ins by their arrays; each dict is visited once, so that nothing grows by being shared."""
    if depth and isinstance(value, _Array) and value.value is not None:
        return value.value
    if isinstance(value, dict):
        if depth == MAX_DEPTH or id(value) in seen:
            raise _ContentError("the dicts are no tree", f"one in itself, at two places, or deeper than {MAX_DEPTH}")
        seen.add(id(value))
        return {key: _tree(item, depth + 1, seen) for key, item in value.items()}
    if depth and (value is None or isinstance(value, str | int | bytes)):
        return value
    raise _ContentError("the pickle holds more than arrays in dicts", _SHORT.repr(value))
