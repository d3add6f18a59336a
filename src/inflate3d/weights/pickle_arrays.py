"""Read a pickle of nested dicts of numpy arrays without running anything that the file asks for: Flax, Caffe2."""

import io
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inflate3d.errors import InflateError
from inflate3d.weights.pickle_machine import DAMAGED_PICKLE, Call, Names, run_pickle, short
from inflate3d.weights.stored import ContentError, is_shape

ArrayTree = dict[str, Any]
"""Nested dicts with text keys whose leaves are arrays, or plain values beside them."""

GIBIBYTE = 2**30
MAX_DEPTH = 32
MAX_NODES = 200_000  # of a tree; sharing makes a small file as large as it likes

DTYPES = ("f2", "f4", "f8", "i4", "i8", "u1", "b1")


@dataclass
class _Budget:
    """How many bytes arrays may still take: one run of bytes in a file may serve many, each of which is a copy."""

    left: int

    def take(self, size: int) -> None:
        self.left -= size
        if self.left < 0:
            raise ContentError("the arrays take more memory than allowed", f"{-self.left:,} bytes too many")


@dataclass(repr=False)
class _Dtype:
    """Stands in for numpy.dtype."""

    code: Any
    value: np.dtype[Any] | None = None

    def build(self, state: tuple[Any, ...]) -> None:
        order, plain = state[1], all(part is None for part in state[2:5])
        if self.code not in DTYPES or order not in ("<", ">", "|") or not plain:
            raise ContentError(
                "an array is of a type that weights are not",
                f"dtype {short(self.code)}, byte order {short(order)}",
            )
        self.value = np.dtype(self.code).newbyteorder(order)


@dataclass(repr=False)
class _Array:
    """Stands in for numpy's empty array, which the file then fills."""

    budget: _Budget
    value: NDArray[Any] | None = field(default=None)

    def build(self, state: tuple[Any, ...]) -> None:
        _version, shape, dtype, fortran, data = state
        if self.value is not None:
            raise ContentError("the file changes an array that it has filled", short(shape))
        self.value = _fill(shape, dtype, data, fortran=bool(fortran), budget=self.budget)


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
        calls[f"{core}.multiarray._reconstruct"] = lambda args: _Array(budget)
        calls[f"{core}.multiarray.scalar"] = lambda args: _fill((), *args, fortran=False, budget=budget)
    return calls


def read_array_pickle(source: Path | bytes, *, max_bytes: int = GIBIBYTE) -> ArrayTree:
    """Read nested dicts of numpy arrays; nothing in the file is run, whatever it says.

    Arrays come in native byte order, contiguous, and own their memory.

    Args:
        source: A file, or what stands in one.
        max_bytes: Largest size in bytes of the file, and of all its arrays together.

    Raises:
        InflateError: The file cannot be read, is larger than `max_bytes`, is no pickle, is cut short, wants to run
            code, or holds anything but dicts of arrays and plain values.

    Example:
        >>> import pickle
        >>> read_array_pickle(pickle.dumps({"a": {"b": np.arange(3)}}, protocol=4))
        {'a': {'b': array([0, 1, 2])}}
    """
    where = str(source) if isinstance(source, Path) else "read_array_pickle"
    try:
        data = source if isinstance(source, bytes) else _read_bounded(source, max_bytes)
        if len(data) > max_bytes:
            raise ContentError("the file is too large", f"more than {max_bytes:,} bytes")
        file = io.BytesIO(data)
        tree = run_pickle(file, Names(numpy_calls(max_bytes)))
        if file.tell() != len(data):
            raise ContentError("the pickle goes on after its end", f"{len(data) - file.tell():,} more bytes")
        if not isinstance(tree, dict):
            raise ContentError("the pickle holds more than arrays in dicts", short(tree))
        plain: ArrayTree = plain_tree(tree)
        return plain
    except ContentError as refused:
        problem, got, cause = refused.problem, refused.got, None
    except DAMAGED_PICKLE as error:
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


def plain_tree(value: Any) -> Any:
    """Replace the stand-ins in nested dicts by their arrays; lists and objects become None, plain values stay.

    Raises:
        ContentError: A dict stands in itself, they are nested too deep, or they are too many.
    """
    nodes = 0

    def visit(value: Any, depth: int) -> Any:
        nonlocal nodes
        nodes += 1
        if depth > MAX_DEPTH or nodes > MAX_NODES:
            raise ContentError("the dicts are no tree", f"one in itself, deeper than {MAX_DEPTH}, or too many")
        if isinstance(value, _Array):
            if value.value is None:
                raise ContentError("an array is not described as numpy describes arrays", "one without values")
            return value.value
        if isinstance(value, dict):
            return {str(key): visit(item, depth + 1) for key, item in value.items()}
        return value if value is None or isinstance(value, str | int | float | bytes | np.ndarray) else None

    return visit(value, 0)
