"""Texts and tables that people wrote, read as text alone: a clear word where they are none, bounds on their numbers."""

import csv
import io
from pathlib import Path

from inflate3d.errors import InflateError

MOST_DIGITS = 6  # of the number of a class or fold: a name is made for each one below the largest


def is_index(text: str) -> bool:
    """Whether it is a whole number that a class or fold can have.

    Example:
        >>> is_index("17"), is_index("-1"), is_index("9" * 7)
        (True, False, False)
    """
    return text.isdecimal() and len(text) <= MOST_DIGITS


def read_list(path: Path) -> str:
    """Read the text of a list.

    Raises:
        InflateError: It cannot be read, or is no text.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            return file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise _no_text(path, error) from error


def read_table(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Read the columns and the lines of a table; what a line lacks is "", what it has beyond the columns is left out.

    Raises:
        InflateError: It is no table, or cannot be read.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = (Path(folder) / "a.csv").write_text("path,label\\na.mp4\\n")
        ...     read_table(Path(folder) / "a.csv")
        (['path', 'label'], [{'path': 'a.mp4', 'label': ''}])
    """
    try:
        file = io.StringIO(read_list(path), newline="")
        reader = csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
        columns = list(reader.fieldnames or [])
        return columns, [{name: line[name] or "" for name in columns} for line in reader]
    except csv.Error as error:
        raise _no_text(path, error) from error


def _no_text(path: Path, error: Exception) -> InflateError:
    return InflateError(
        "a list cannot be read",
        where=str(path),
        expected="a text file in UTF-8; of UCF-101 and HMDB-51 all official split files in one folder",
        got=f"{type(error).__name__}: {error!s:.200}",
        fix="save it anew as UTF-8, or copy it again",
    )
