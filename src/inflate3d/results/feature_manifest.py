"""What a run over many videos has done, in JSON lines: a stopped run goes on from them, whatever they have become."""

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from inflate3d.clips.decoding import unreadable
from inflate3d.clips.stills import source_state
from inflate3d.errors import InflateError, is_number
from inflate3d.results.feature_files import Job, not_writable

WINDOWS = ', "windows": {'  # in a line of the manifest, the long rest; the short part is enough to go on with a run


class Shard(NamedTuple):
    """The part of a list of videos that one of several processes does: number 1, 2 ... `of` all."""

    number: int = 1
    of: int = 1

    @property
    def part(self) -> str:
        """Stands in the names of its own files; empty for the only one."""
        return f".{self.number}-of-{self.of}" if self.of > 1 else ""


class Manifest:
    """What has been done in a folder: JSON lines, one for each run and each video, those of all shards read together.

    Args:
        folder: Of the run; it is made.
        shard: Whose lines this process writes.

    Raises:
        InflateError: The folder cannot be written.
    """

    def __init__(self, folder: Path, shard: Shard = Shard()) -> None:  # noqa: B008 - it cannot change
        self.folder, self.path = folder, folder / f"manifest{shard.part}.jsonl"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.file = self.path.open("ab+", buffering=0)
            size = self.file.seek(0, os.SEEK_END)
            self.file.seek(max(size - 1, 0))
            is_torn = size > 0 and self.file.read(1) != b"\n"
        except OSError as error:
            raise not_writable(self.path, error) from error
        self._lock()
        if is_torn:  # a run was stopped while it wrote a line
            self._write(b"\n")

    def _lock(self) -> None:
        if sys.platform == "win32":
            return
        import fcntl  # noqa: PLC0415 - not on every system

        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self.file.close()
            raise InflateError(
                "another run is writing into this folder",
                where=str(self.path),
                expected="one process at a time, or several with --shard 1/2, 2/2",
                got="a manifest that another process has locked",
                fix="wait until it is done, or name another folder",
            ) from error

    def close(self) -> None:
        """Let another process write here; leaving a `with` does so."""
        self.file.close()

    def __enter__(self) -> "Manifest":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def rows(self) -> Iterator[dict[str, Any]]:
        """Read the short part of all lines; torn ones are left out."""
        for path in sorted(self.folder.glob("manifest*.jsonl")):
            try:
                with path.open(encoding="utf-8", errors="replace") as lines:
                    for line in lines:
                        short, rest, _ = line.partition(WINDOWS)
                        try:
                            row = json.loads(short + "}" if rest else line)
                        except (ValueError, RecursionError):
                            continue
                        if _is_whole(row) and (not rest or line.endswith("}}\n")):
                            yield row
            except OSError as error:
                raise unreadable(path, error) from error

    def done(self, config: str, jobs: Sequence[Job]) -> dict[str, dict[str, Any]]:
        """Give the lines of the jobs whose files are there, made so, not written over since, of the video as it is."""
        rows: dict[str, dict[str, Any]] = {}
        writers: dict[str, tuple[float, str]] = {}  # of each file, the last one
        for row in self.rows():
            if row.get("status") == "done":
                writer = (row["time"], row["config"])
                writers.update({file: max(writers.get(file, writer), writer) for file in row["files"]})
                if row["config"] == config:
                    rows[row["video"]] = row
        return {
            job.name: rows[job.name]
            for job in jobs
            if job.name in rows
            and all(writers[file][1] == config for file in rows[job.name]["files"])
            and self._holds(rows[job.name], job)
        }

    def _holds(self, row: Mapping[str, Any], job: Job) -> bool:
        try:
            same: bool = row.get("state") == source_state(job.path)
            return same and all((self.folder / file).stat().st_size == size for file, size in row["files"].items())
        except (OSError, ValueError):  # a name with a zero in it
            return False

    def add(self, row: Mapping[str, Any]) -> None:
        """Append a line.

        Raises:
            InflateError: There is no room.
        """
        self._write(json.dumps(row).encode() + b"\n")

    def _write(self, data: bytes) -> None:
        try:
            if self.file.write(data) != len(data):
                raise OSError("only a part of a line was written")
        except OSError as error:
            raise not_writable(self.path, error) from error


def _is_whole(row: object) -> bool:
    """Whether a line says all that is asked of it later; people edit manifests."""
    if not isinstance(row, dict):
        return False
    files = row.get("files")
    if row.get("status") == "done":
        texts = isinstance(row.get("video"), str) and isinstance(row.get("config"), str)
        return texts and is_number(row.get("time")) and isinstance(files, dict)
    return "collected" not in row or (isinstance(files, list) and all(isinstance(file, str) for file in files))
