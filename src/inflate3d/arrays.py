"""Headers of numpy's files, read within bounds: what an array says of itself before memory is taken for it."""

import math
import tokenize
import zipfile
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

MOST_PACKED = 1100  # bytes in one: DEFLATE reaches 1032, and what says more is made up


class ArrayHeader(NamedTuple):
    """What an array in a file says of itself."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool

    @property
    def nbytes(self) -> int:
        """Memory that its values take."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_array_header(file: IO[bytes]) -> ArrayHeader:
    """Read the header of an array; the file then stands at its values.

    Raises:
        ValueError: There is none of numpy's format 1.0 (later ones may have headers of any length).

    Example:
        >>> import io
        >>> file = io.BytesIO()
        >>> np.save(file, np.zeros((2, 3), np.float32))
        >>> _ = file.seek(0)
        >>> read_array_header(file).nbytes
        24
    """
    version = np.lib.format.read_magic(file)
    if version != (1, 0):
        raise ValueError(f"no array of numpy's format 1.0, but of {version}")
    try:
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    except (tokenize.TokenError, TypeError, KeyError, RecursionError, MemoryError) as error:  # of Python's own parser
        raise ValueError(f"a header that is none ({type(error).__name__})") from error
    if min(shape, default=0) < 0:
        raise ValueError(f"an array of the shape {shape!r:.80}")
    return ArrayHeader(shape, dtype, fortran)


def check_npz(path: Path, at_most_bytes: int) -> None:
    """See that each array of an .npz is as large as it says, and not too large, before any is read.

    Raises:
        ValueError: One is not; likewise those of `zipfile` for what is no archive.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.savez(f"{folder}/a.npz", a=np.zeros(7))
        ...     check_npz(Path(folder) / "a.npz", 55)
        Traceback (most recent call last):
        ValueError: a.npy: (7,) float64, 184 bytes
    """
    at_most_bytes = min(at_most_bytes, MOST_PACKED * path.stat().st_size)
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            with archive.open(member) as file:
                header = read_array_header(file)
                begin = file.tell()
            if begin + header.nbytes != member.file_size or header.nbytes > at_most_bytes:
                raise ValueError(
                    f"{member.filename:.80}: {header.shape!r:.80} {header.dtype}, {member.file_size:,} bytes"
                )
