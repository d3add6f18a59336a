"""Find the videos that the user means by files, folders and globs."""

from collections.abc import Iterator, Sequence
from glob import glob
from pathlib import Path

from inflate3d.clips.stills import IMAGE_SUFFIXES, natural_key
from inflate3d.errors import InflateError

VIDEO_SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".gif", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts"),
    *(".wmv", ".flv", ".ogv", ".3gp", ".vob", ".mxf", ".y4m", ".h264", ".hevc"),
)


def find_videos(paths: Sequence[str | Path]) -> list[Path]:
    """List the videos under files, folders and globs, each once, in natural order within a folder.

    A folder is searched to its depths for files with a video's suffix; a folder that holds pictures and no video is
    itself one video. A file that is named is taken whatever its suffix; a path where nothing is stays in the list,
    so that reading it can say so.

    Raises:
        InflateError: There are folders only, and nothing to read in them.

    Example:
        >>> find_videos(["not-there.mp4"])
        [PosixPath('not-there.mp4')]
    """
    found: dict[Path, None] = {}
    for path in paths:
        there = Path(path).exists()
        names = [str(path)] if there else sorted(glob(str(path), recursive=True))  # noqa: PTH207 - absolute patterns too
        names = names or [str(path)]
        for name in names:
            found.update(dict.fromkeys(_under(Path(name)) if Path(name).is_dir() else [Path(name)]))
    if not found:
        raise InflateError(
            "there is nothing to read",
            where="find_videos",
            expected=f"files named {', '.join(VIDEO_SUFFIXES)}, or folders of {', '.join(IMAGE_SUFFIXES)}",
            got=", ".join(str(path) for path in paths) or "no paths",
            fix="name the files themselves; a named file is read whatever its suffix",
        )
    return list(found)


def _under(folder: Path) -> Iterator[Path]:
    items = sorted((item for item in folder.iterdir() if not item.name.startswith(".")), key=natural_key)
    videos = [item for item in items if item.is_file() and item.suffix.lower() in VIDEO_SUFFIXES]
    if not videos and any(item.suffix.lower() in IMAGE_SUFFIXES for item in items):
        yield folder
        return
    yield from videos
    for item in items:
        if item.is_dir():
            yield from _under(item)
