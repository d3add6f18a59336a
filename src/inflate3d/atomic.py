"""Writing a file whole or not at all."""

import errno
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from inflate3d.errors import InflateError

NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EPIPE}  # only writing fails so


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary file in the folder of `path`; it takes the place of `path` when the block ends well.

    A block that fails or is interrupted leaves neither a half-written file nor a trace of the temporary one. A link
    goes on pointing where it did, at the new content; a file that is replaced keeps its permissions; a pipe or device
    cannot be replaced and is itself yielded.

    Raises:
        InflateError: The folder or the file cannot be written. An `OSError` of the block that has nothing to do with
            this file, such as one from reading another, comes out as it is.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> with replacing(folder / "answer.txt") as draft:
        ...     _ = draft.write_text("42")
        >>> [file.name for file in folder.iterdir()]
        ['answer.txt']
    """
    with _told(path):
        replaceable = path.is_file() or not path.exists()
        target = path.resolve()
        draft = _draft_beside(target) if replaceable else path
    try:
        try:
            yield draft
        except OSError as error:
            if error.errno in NO_ROOM or str(error.filename) == str(draft):
                raise _not_writable(path, error) from error
            raise
        with _told(path):
            if replaceable:
                if target.exists():
                    draft.chmod(stat.S_IMODE(target.stat().st_mode))
                draft.replace(target)
    finally:
        if replaceable:
            draft.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text as UTF-8, whole or not at all; see `replacing`.

    Raises:
        InflateError: The folder or the file cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_text(Path(folder) / "answer.txt", "größer")
        ...     (Path(folder) / "answer.txt").read_text(encoding="utf-8")
        'größer'
    """
    with replacing(path) as draft:
        draft.write_text(text, encoding="utf-8")


def check_writable(path: Path) -> None:
    """Find out before long work whether its result can be written; makes the folder.

    Raises:
        InflateError: The folder or the file cannot be written, or there is a folder of that name.
    """
    with _told(path):
        if path.is_dir():
            raise InflateError(
                "there is a folder of that name",
                where=str(path),
                expected="the name of a file",
                got="a folder",
                fix=f"name a file in it: {path / 'results'}",
            )
        if not path.exists() or path.is_file():  # nothing is tried on a pipe, whose reader would take it for the result
            _draft_beside(path.resolve()).unlink()


def _draft_beside(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{secrets.token_hex(8)}.part")
    draft.touch(exist_ok=False)  # with the permissions that any new file of this user gets
    return draft


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Tell each `OSError` as one of writing."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # the latter of links that lead in a circle
        raise _not_writable(path, error) from error


def _not_writable(path: Path, error: Exception) -> InflateError:
    return InflateError(
        "the file cannot be written",
        where=str(path),
        expected="a path in a folder with room that you may write to",
        got=f"{type(error).__name__}: {error}",
        fix="make room, mend the permissions or name another place (for the cache: export INFLATE3D_CACHE=FOLDER)",
    )
