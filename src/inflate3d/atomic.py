"""Writing a file whole or not at all."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from inflate3d.errors import InflateError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary file in the folder of `path`; it takes the place of `path` when the block ends well.

    A block that fails or is interrupted leaves neither a half-written file nor a trace of the temporary one.

    Raises:
        InflateError: The folder or the file cannot be written.

    Example:
        >>> folder = Path(tempfile.mkdtemp())
        >>> with replacing(folder / "answer.txt") as draft:
        ...     _ = draft.write_text("42")
        >>> [file.name for file in folder.iterdir()]
        ['answer.txt']
    """
    try:
        draft = _draft_beside(path)
        try:
            yield draft
            draft.chmod(0o644)
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)
    except OSError as error:
        raise InflateError(
            "the file cannot be written",
            where=str(path),
            expected="a path in a folder with room that you may write to",
            got=f"{type(error).__name__}: {error}",
            fix="make room, mend the permissions or name another place (for the cache: export INFLATE3D_CACHE=FOLDER)",
        ) from error


def check_writable(path: Path) -> None:
    """Find out before long work whether its result can be written; makes the folder.

    Raises:
        InflateError: The folder or the file cannot be written.
    """
    with replacing(path.with_name(f"{path.name}.trial")) as trial:
        trial.write_bytes(b"")
    path.with_name(f"{path.name}.trial").unlink()
    if path.is_dir():
        raise InflateError(
            "there is a folder of that name",
            where=str(path),
            expected="the name of a file",
            got="a folder",
            fix=f"name a file in it: {path / 'results'}",
        )


def _draft_beside(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    os.close(handle)
    return Path(name)
