"""A tensor that lies in a file, known by its shape and read when it is wanted; and the refusal of what lies there."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

# Of one file's tensors together: ten times the largest network that is inflated in practice
MAX_BYTES = 8 * 2**30
MAX_AXES = 32
MAX_NAME = 1000  # letters


class ContentError(Exception):
    """What a file holds that no checkpoint does: the problem, and what was found."""

    def __init__(self, problem: str, got: str) -> None:
        super().__init__(problem)
        self.problem, self.got = problem, got


@dataclass(frozen=True)
class Stored:
    """A tensor that lies in a file.

    Attributes:
        shape: As the file declares it; the reader has checked that the file holds as many values.
        dtype: Type of its values.
        read: Brings the values into memory, whole and in order.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]

    @property
    def nbytes(self) -> int:
        """Memory that its values take."""
        return math.prod(self.shape) * self.dtype.itemsize

    def __str__(self) -> str:
        return shape_and_type(self)


def shape_and_type(tensor: Stored | Tensor) -> str:
    """Tell the shape and the type of a tensor, wherever it lies.

    Example:
        >>> shape_and_type(torch.zeros(2, 3))
        '[2, 3] float32'
    """
    return f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def is_shape(shape: object) -> bool:
    """Whether it is a tuple of lengths that could be a tensor's; checked before any product of them is taken.

    Example:
        >>> is_shape((2, 0, 3)), is_shape((2, -1)), is_shape((2**80,)), is_shape([2])
        (True, False, False, False)
    """
    if not isinstance(shape, tuple) or len(shape) > MAX_AXES:
        return False
    if not all(type(length) is int and 0 <= length <= MAX_BYTES for length in shape):
        return False
    return (
        math.prod(length or 1 for length in shape) <= MAX_BYTES
    )  # torch multiplies, and overflows, even where one is 0


def tensor_from(data: bytes | memoryview, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """Copy bytes in the machine's order into a tensor of its own.

    Example:
        >>> tensor_from(bytes([1, 0, 2, 0]), torch.int16, (2, 1)).tolist()
        [[1], [2]]
    """
    own = bytearray(data)  # torch wants memory that can be written
    return torch.frombuffer(own, dtype=dtype).reshape(shape) if own else torch.empty(shape, dtype=dtype)
