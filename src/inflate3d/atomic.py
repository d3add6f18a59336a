"""Writing a file whole or not at all."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary file in the folder of `path`; it takes the place of `path` when the block ends well.

    A block that fails or is interrupted leaves neither a half-written file nor a trace of the temporary one.

    Example:
        >>> folder = Path(tempfile.mkdtemp())
        >>> with replacing(folder / "answer.txt") as draft:
        ...     _ = draft.write_text("42")
        >>> [file.name for file in folder.iterdir()]
        ['answer.txt']
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    os.close(handle)
    draft = Path(name)
    try:
        yield draft
        draft.chmod(0o644)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
