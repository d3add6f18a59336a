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
    itself one video; one that is linked to from several places is searched once. A file that is named is taken whatever
    its suffix. A path where nothing is, a named folder with nothing in it and a folder that may not be read stay in the
    list, so that reading them can say so.

    Raises:
        InflateError: There are no paths, or one is empty.

    Example:
        >>> find_videos(["not-there.mp4"])
        [PosixPath('not-there.mp4')]
    """
    if not paths or "" in map(str, paths):
        raise InflateError(
            "there is nothing to read",
            where="find_videos",
            expected=f"files named {', '.join(VIDEO_SUFFIXES)}, or folders of {', '.join(IMAGE_SUFFIXES)}",
            got="an empty path" if paths else "no paths",
            fix="name the files themselves; the current folder is .",
        )
    found: dict[Path, None] = {}
    for path in paths:
        there = Path(path).exists()
        names = [str(path)] if there else sorted(glob(str(path), recursive=True))  # noqa: PTH207 - absolute patterns too
        for named in map(Path, names or [str(path)]):
            under = list(_under(named, set())) if named.is_dir() else []
            found.update(dict.fromkeys(under or [named]))
    return list(found)


def _under(folder: Path, searched: set[Path]) -> Iterator[Path]:
    if folder.resolve() in searched:  # links may lead back up
        return
    searched.add(folder.resolve())
    try:
        items = sorted((item for item in folder.iterdir() if not item.name.startswith(".")), key=natural_key)
        videos = [item for item in items if item.suffix.lower() in VIDEO_SUFFIXES and item.is_file()]
        folders = [item for item in items if item.is_dir()]
    except PermissionError:
        yield folder
        return
    if not videos and any(item.suffix.lower() in IMAGE_SUFFIXES for item in items):
        yield folder
        return
    yield from videos
    for item in folders:
        yield from _under(item, searched)
