"""Pickles as data: numpy arrays in nested dicts come out, nothing that the file names is imported, and nothing is run.

Python's own unpickler, even with its imports restricted, can be made to take all memory (memo indices, bytearrays) or
to crash (hashing deeply nested keys). So the instructions are read from the standard library's list of them; this file
carries out the few that checkpoints need, and refuses all others. What a name in the file stands for, the reader of a
format says (`Names`). Pickle protocols 2 to 5, of Python 2 as well.
"""

import io
import math
import mmap
import pickletools
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from inflate3d.weights.stored import ContentError, is_shape

MAX_INSTRUCTIONS = 2_000_000  # the 230 arrays of I3D take 7,000; a ResNet-101 with its optimizer 60,000
DTYPES = ("f2", "f4", "f8", "i4", "i8", "u1", "b1")  # of arrays that are weights
# Of those that training scripts put beside them: numpy's random state is u4
RECORDED = (*DTYPES, "i1", "i2", "u2", "u4", "u8", "c8", "c16")

# What pickletools and the machine raise for a file that is cut short or was never a pickle
DAMAGED_PICKLE = (ValueError, IndexError, KeyError, TypeError, AttributeError, OSError, OverflowError)

_BUILTINS = ("dict", "list", "set", "int", "float", "slice")
# Settings and records that training scripts put beside their tensors. They are named, never imported, and stay empty.
HARMLESS = frozenset(
    {
        *("argparse.Namespace", "types.SimpleNamespace", "collections.defaultdict", "collections.deque"),
        "collections.Counter",  # milestones of torch's MultiStepLR
        *(f"builtins.{name}" for name in _BUILTINS),
        *(f"__builtin__.{name}" for name in _BUILTINS),  # as Python 2 and the pickles of torch.save spell it
        *("datetime.datetime", "datetime.timedelta", "pathlib.PosixPath", "pathlib.Path", "pathlib.WindowsPath"),
        *("torch.device", "torch.float32", "torch.float16", "torch.bfloat16", "torch.int64", "torch.Generator"),
        *("yacs.config.CfgNode", "fvcore.common.config.CfgNode", "addict.addict.Dict", "easydict.EasyDict"),
        *("mmcv.utils.config.ConfigDict", "mmengine.config.config.ConfigDict"),
        *("mmengine.logging.history_buffer.HistoryBuffer", "mmengine.logging.message_hub.MessageHub"),
        *("omegaconf.dictconfig.DictConfig", "omegaconf.listconfig.ListConfig", "omegaconf.base.ContainerMetadata"),
    }
)

_SHORT = reprlib.Repr()  # what a file holds may be nested without end, and so would its plain repr be
_SHORT.maxlevel = 2
short = _SHORT.repr


@dataclass(frozen=True)
class Named:
    """The name of something that the file wants imported; it never is."""

    name: str


@dataclass(repr=False)
class Empty:
    """Stands in for an object whose content nobody needs."""

    def build(self, state: Any) -> None:
        """Forget the state."""


Call = Callable[[tuple[Any, ...]], Any]
"""What a call of a name gives, from its arguments."""


@dataclass(frozen=True)
class Names:
    """What the names in a file stand for.

    Attributes:
        calls: Name to what its call gives. None: the name is an argument, and is never called.
        objects: Start of names whose objects are kept as their attributes; called without arguments.
        make_object: Makes the stand-in for such an object; it has a `build`.
        storage: Makes the stand-in for bytes that lie elsewhere in the file, from what the pickle says of them.
    """

    calls: Mapping[str, Call | None]
    objects: str | None = None
    make_object: Callable[[], Any] = Empty
    storage: Callable[[Any], Any] | None = None


@dataclass
class _Machine:
    """The unpickler's stack machine: a stack, marks on it, and a memo."""

    names: Names
    stack: list[Any] = field(default_factory=list)
    marks: list[int] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)

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
        known = name in self.names.calls or name in HARMLESS
        if not known and not (self.names.objects and name.startswith(self.names.objects)):
            raise ContentError("the file wants to run code", name)
        self.push(Named(name))

    def call(self) -> None:
        function, args = self.take(2)
        call = self.names.calls.get(function.name) if isinstance(function, Named) else None
        if isinstance(function, Named) and isinstance(args, tuple) and function.name in HARMLESS:
            self.push(Empty())
        elif call is None or not isinstance(args, tuple):
            raise ContentError("the file calls something that is no array", short(function))
        else:
            self.push(call(args))

    def new_object(self) -> None:
        kind, args = self.take(2)
        if not isinstance(kind, Named) or not isinstance(args, tuple):
            raise ContentError("the file makes something that is no array", short(kind))
        if kind.name in HARMLESS:
            self.push(Empty())
        elif self.names.objects and kind.name.startswith(self.names.objects):
            self.push(self.names.make_object())
        else:
            raise ContentError("the file makes something that is no array", short(kind))

    def build(self) -> None:
        target, state = self.take(2)
        if hasattr(target, "build"):
            target.build(state)
        elif type(target) is not dict:  # an ordered dict of torch carries versions of its layers, which nobody needs
            raise ContentError("the file changes something that is no array", short(target))
        self.push(target)

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, Empty):
            return
        # the hash of a nested key may crash the interpreter
        if type(target) is not dict or not all(type(key) in (str, int) for key in items[::2]):
            raise ContentError("a dict has keys that are neither text nor whole numbers", short(items[:1]))
        target.update(zip(items[::2], items[1::2], strict=True))

    def append(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, Empty):
            return
        if type(target) is not list:
            raise ContentError("the file appends to something that is no list", short(target))
        target.extend(items)

    def storage(self) -> None:
        if self.names.storage is None:
            raise ContentError("the pickle speaks of bytes outside itself", short(self.stack[-1:]))
        self.push(self.names.storage(self.take(1)[0]))


# What each instruction does; the standard library's pickletools documents them
INSTRUCTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(("PROTO", "FRAME", "STOP"), lambda machine, value: None),
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1"), lambda machine, value: machine.push(value)),
    **dict.fromkeys(("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"), lambda machine, value: machine.push(value)),
    **dict.fromkeys(("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"), lambda machine, value: machine.push(value)),
    **dict.fromkeys(("BINSTRING", "SHORT_BINSTRING"), lambda machine, value: machine.push(value)),  # Python 2
    "BINFLOAT": lambda machine, value: machine.push(value),
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "MARK": lambda machine, _: machine.marks.append(len(machine.stack)),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.take_to_mark())),
    "TUPLE1": lambda machine, _: machine.push(tuple(machine.take(1))),
    "TUPLE2": lambda machine, _: machine.push(tuple(machine.take(2))),
    "TUPLE3": lambda machine, _: machine.push(tuple(machine.take(3))),
    "SETITEM": lambda machine, _: machine.set_items(machine.take(2)),
    "SETITEMS": lambda machine, _: machine.set_items(machine.take_to_mark()),
    "APPEND": lambda machine, _: machine.append(machine.take(1)),
    "APPENDS": lambda machine, _: machine.append(machine.take_to_mark()),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT"), lambda machine, index: machine.memo.update({index: machine.stack[-1]})),
    "MEMOIZE": lambda machine, _: machine.memo.update({len(machine.memo): machine.stack[-1]}),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), lambda machine, index: machine.push(machine.memo[index])),
    "GLOBAL": lambda machine, name: machine.name(name.replace(" ", ".")),
    "STACK_GLOBAL": lambda machine, _: machine.name(".".join(machine.take(2))),
    "REDUCE": lambda machine, _: machine.call(),
    "NEWOBJ": lambda machine, _: machine.new_object(),
    "BUILD": lambda machine, _: machine.build(),
    "BINPERSID": lambda machine, _: machine.storage(),
}


def run_pickle(file: io.BytesIO | mmap.mmap, names: Names) -> Any:
    """Carry out one pickle; the file then stands behind its end.

    Args:
        file: Holds the pickle at its present place. It must not take memory for bytes that are not there: `io.BytesIO`
            and `mmap` do not, a file opened plainly does.
        names: What the names in it stand for.

    Raises:
        ContentError: The pickle wants to run code or holds what no checkpoint does.
        ValueError: It is cut short or no pickle; likewise the others of `DAMAGED_PICKLE`.

    Example:
        >>> import io, pickle
        >>> run_pickle(io.BytesIO(pickle.dumps({"a": [1, 2.5]})), Names(calls={}))
        {'a': [1, 2.5]}
    """
    machine = _Machine(names)
    for count, (instruction, value, _position) in enumerate(pickletools.genops(cast(io.BytesIO, file))):
        if count >= MAX_INSTRUCTIONS:
            raise ContentError("the pickle is too long", f"more than {MAX_INSTRUCTIONS:,} instructions")
        if instruction.name not in INSTRUCTIONS:
            found = f"{instruction.name} {'' if value is None else short(value)}"
            raise ContentError("the pickle holds more than arrays in dicts", found.strip())
        INSTRUCTIONS[instruction.name](machine, value)
    if len(machine.stack) != 1 or machine.marks:
        raise ContentError("the pickle ends before it is complete", f"{len(machine.stack)} values are left over")
    return machine.stack.pop()


@dataclass
class _Budget:
    """How many bytes arrays may still take: one run of bytes in a file may serve many, each of which is a copy."""

    left: int

    def take(self, size: int) -> None:
        self.left -= size
        if self.left < 0:
            raise ContentError("the arrays take more memory than allowed", f"{-self.left:,} bytes too many")


def no_weight(got: str) -> ContentError:
    """Make the error about an array that can be none of a network's."""
    return ContentError("an array is of a type that weights are not", got)


@dataclass(repr=False)
class _Dtype:
    """Stands in for numpy.dtype."""

    code: Any
    value: np.dtype[Any] | None = None

    def build(self, state: tuple[Any, ...]) -> None:
        order, plain = state[1], all(part is None for part in state[2:5])
        if self.code not in RECORDED or order not in ("<", ">", "|") or not plain:
            raise no_weight(f"dtype {short(self.code)}, byte order {short(order)}")
        self.value = np.dtype(self.code).newbyteorder(order)


@dataclass(repr=False)
class Array:
    """Stands in for numpy's empty array, which the file then fills."""

    budget: _Budget
    value: NDArray[Any] | None = None

    def build(self, state: tuple[Any, ...]) -> None:
        """Make the array as the pickle describes it."""
        _version, shape, dtype, fortran, data = state
        if self.value is not None:
            raise ContentError("the file changes an array that it has filled", short(shape))
        self.value = _fill(shape, dtype, data, fortran=bool(fortran), budget=self.budget)

    def filled(self) -> NDArray[Any]:
        """Give the array.

        Raises:
            ContentError: The file never filled it.
        """
        if self.value is None:
            raise ContentError("an array is not described as numpy describes arrays", "one without values")
        return self.value


def _fill(shape: Any, dtype: Any, data: Any, *, fortran: bool, budget: _Budget) -> NDArray[Any]:
    data = data.encode("latin-1") if isinstance(data, str) else data  # Python 2 wrote its bytes as text
    if not isinstance(dtype, _Dtype) or dtype.value is None or not isinstance(data, bytes):
        raise ContentError("an array is not described as numpy describes arrays", short((shape, dtype)))
    if not is_shape(shape) or math.prod(shape) * dtype.value.itemsize != len(data):
        raise ContentError("an array's shape and bytes disagree", f"shape {short(shape)}, {len(data):,} bytes")
    budget.take(len(data))
    values = np.frombuffer(data, dtype.value).reshape(shape, order="F" if fortran else "C")
    return values.astype(dtype.value.newbyteorder("="), order="C")


def _make_dtype(args: tuple[Any, ...]) -> _Dtype:
    return _Dtype(args[0])


def _to_bytes(args: tuple[Any, ...], budget: _Budget) -> bytes:
    """Turn text back into bytes, which Python 3 writes as text where it writes for Python 2."""
    text, encoding = args
    if encoding != "latin1" or not isinstance(text, str):
        raise ContentError("the file encodes something else than bytes", short(encoding))
    budget.take(len(text))
    return text.encode("latin-1")


def numpy_calls(max_bytes: int) -> dict[str, Call | None]:
    """Say what the names of numpy in a pickle stand for; all its arrays take at most `max_bytes`.

    Example:
        >>> sorted(numpy_calls(10))[:2]
        ['_codecs.encode', 'numpy._core.multiarray._reconstruct']
    """
    budget = _Budget(max_bytes)
    calls: dict[str, Call | None] = {
        "numpy.dtype": _make_dtype,
        "numpy.ndarray": None,
        "_codecs.encode": lambda args: _to_bytes(args, budget),
    }
    for core in ("numpy.core", "numpy._core"):  # numpy 2 has moved it
        calls[f"{core}.multiarray._reconstruct"] = lambda args: Array(budget)
        calls[f"{core}.multiarray.scalar"] = lambda args: _fill((), *args, fortran=False, budget=budget)
    return calls
