"""Feature files: in the order of axes that a project expects, any format, the same bytes from every run."""

import json
import os
import struct
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor

from inflate3d.clips.stills import find_videos, named
from inflate3d.errors import InflateError, import_extra, list_faults
from inflate3d.results.feature_presets import FeatureLayout, StreamName
from inflate3d.results.prediction import printable

Array = NDArray[Any]

SUFFIXES = {"npy": ".npy", "npz": ".npz", "safetensors": ".safetensors", "pt": ".pt", "h5": ".npz"}
PARTS = ".parts"  # the folder of what an h5 file is made from
CARD_KEY = "inflate3d.features"
MOST_MAT_BYTES = 2**31  # MATLAB 5
MAT_SINGLE, MAT_INT8, MAT_INT32, MAT_UINT32, MAT_FLOAT32, MAT_MATRIX = 7, 1, 5, 6, 7, 14


@dataclass(frozen=True)
class VideoFeatures:
    """The features of a video.

    Attributes:
        source: File or folder.
        features: Of each stream `[n, views, ...]`, float32: a row for each window, a view for each crop.
        start_frames: `[n]` int64: where each window begins, counted in frames at `fps`; below 0 in front of the video.
        times_seconds: `[n]` float64: the time that each row stands for.
        window: Frames that a row covers.
        num_frames: Frames of the video at `fps`.
        fps: Frames per second.
    """

    source: str
    features: Mapping[StreamName, Tensor] = field(repr=False)
    start_frames: Tensor = field(repr=False)
    times_seconds: Tensor = field(repr=False)
    window: int
    num_frames: int
    fps: float


class Job(NamedTuple):
    """A video and the name of its files: its path below the folder that was named, without its suffix."""

    path: Path
    name: str


def plan_jobs(paths: Sequence[str | Path]) -> list[Job]:
    """List the videos under files, folders and globs, and name them; one stem in two folders makes two names.

    Raises:
        InflateError: There are no paths, or two videos would have one name.

    Example:
        >>> [job.name for job in plan_jobs(["one.mp4", "two.mp4"])]
        ['one', 'two']
    """
    if not paths:
        find_videos(paths)  # which says so
    found: dict[Path, tuple[str, str]] = {}  # name, and the name of the folder that was given
    for path in map(Path, paths):
        for video in find_videos([path]):
            is_folder = os.path.isdir(path)  # noqa: PTH112 - false for names too long to be
            below = video.relative_to(path) if is_folder and video != path else Path(named(video).name)
            name = below if os.path.isdir(video) else below.with_suffix("")  # noqa: PTH112
            found.setdefault(video, (name.as_posix(), path.resolve().name if is_folder else video.parent.name))
    names = [name for name, _ in found.values()]
    if len(set(names)) < len(names):
        names = [f"{folder}/{name}" if folder else name for name, folder in found.values()]
    if len(set(names)) < len(names):
        count = Counter(names)
        twice = [str(video) for video, name in zip(found, names, strict=True) if count[name] > 1]
        raise InflateError(
            "several videos would have one file of features",
            where="features",
            expected="names that differ without their suffix, within one folder",
            got=list_faults(map(printable, twice), shown=4),
            fix="name one folder that holds them all, or rename them",
        )
    return [Job(video, printable(name)) for video, name in zip(found, names, strict=True)]


def arranged(rows: Tensor, layout: FeatureLayout) -> list[Array]:
    """Order the axes of `[n, views, ...]` as a layout has it; an array for each crop with `crop-files`, else one.

    Raises:
        InflateError: The rows are no vectors, and the layout is for vectors.

    Example:
        >>> arranged(torch.zeros(7, 10, 5), FeatureLayout(axes="crops-inside"))[0].shape
        (7, 10, 5)
    """
    if rows.ndim != 3 and layout.axes in {"columns", "grid"}:
        raise InflateError(
            "this layout is for vectors",
            where=f"features, axes {layout.axes}",
            expected="pool=mean, and an endpoint that gives a vector",
            got=f"rows of {list(rows.shape[2:])}",
            fix="--pool mean, or --axes rows",
        )
    if layout.axes in {"rows", "columns", "grid"}:
        mean = rows[:, 0] if rows.shape[1] == 1 else rows.double().mean(1)
        rows = mean.t() if layout.axes == "columns" else mean[:, None, None] if layout.axes == "grid" else mean
    views = rows.unbind(1) if layout.axes == "crop-files" else (rows,)
    if layout.axes == "crops-first":
        views = (rows.transpose(0, 1),)
    return [np.ascontiguousarray(view.numpy(), dtype=layout.dtype) for view in views]


def files_of(name: str, video: VideoFeatures, layout: FeatureLayout, *, card: str) -> dict[str, bytes]:
    """Make the files of a video.

    Args:
        name: Of the job.
        video: Its features.
        layout: How they look.
        card: What is written into files that can hold it: how the features were made.

    Returns:
        Contents by path, relative to the folder of the run.

    Raises:
        InflateError: The features do not fit the layout.
    """
    parts = {str(stream): rows for stream, rows in video.features.items()}
    if layout.join and len(parts) > 1:
        channels = {4: 3, 5: 4}.get(next(iter(parts.values())).ndim, 2)  # of steps and of tokens they come last
        parts = {"joined": torch.cat(list(parts.values()), channels)}
    facts = _facts(Path(name).name, video)
    files: dict[str, bytes] = {}
    for stream, rows in parts.items():
        for crop, array in enumerate(arranged(rows, layout)):
            path = _path(name, layout.name, stream, crop) + SUFFIXES[layout.format]
            made = _encoded(array, facts, layout, key=_path(name, layout.name, stream, crop), card=card)
            files[f"{PARTS}/{path}" if layout.format == "h5" else path] = made
    for pattern, fact in layout.beside.items():
        files[_path(name, pattern, "", 0) + ".npy"] = _npy(facts[fact])
    return files


def check_paths(names: Sequence[str], layout: FeatureLayout, streams: Sequence[str]) -> None:
    """Find out before anything is made whether two videos would write one file.

    Args:
        names: Of the jobs.
        layout: How the files look.
        streams: Whose features are made.

    Raises:
        InflateError: They would; or in an h5 file one would stand where another one needs a group.
    """
    writers: dict[str, str] = {}
    twice: list[str] = []
    for name in names:
        patterns = [(layout.name, stream) for stream in (streams if "{stream}" in layout.name else ("",))]
        for pattern, stream in [*patterns, *((beside, "") for beside in layout.beside)]:
            path = PurePosixPath(_path(name, pattern, stream, 0)).as_posix()
            if path in writers:
                twice.append(f"{writers[path]} and {name}: {path}")
            writers[path] = name
    if layout.format == "h5":
        inside = ((path, parent.as_posix()) for path in writers for parent in PurePosixPath(path).parents)
        twice += [f"{writers[parent]} and {writers[path]}: {path}" for path, parent in inside if parent in writers]
    if twice:
        raise InflateError(
            "several videos would have one file of features",
            where=f"features, name {layout.name!r}",
            expected="a name that tells all videos and streams apart, with {stem} in it",
            got=list_faults(map(printable, twice), shown=4),
            fix="--name '{stem}_{stream}', or give the videos names that differ",
        )


def _path(name: str, pattern: str, stream: str, crop: int) -> str:
    folder, _, stem = name.rpartition("/")
    made = pattern.format(stem=stem, id=stem.removeprefix("v_"), stream=stream, crop=crop)
    return f"{folder}/{made}" if folder else made


def _facts(stem: str, video: VideoFeatures) -> dict[str, Array]:
    times = video.times_seconds.numpy()
    return {
        "video": np.array(stem),
        "num_frames": np.array(video.num_frames),
        "fps": np.array(video.fps),
        "start_frames": video.start_frames.numpy(),
        "times_seconds": times,
        "times_ms": times * 1000,
    }


def _encoded(array: Array, facts: Mapping[str, Array], layout: FeatureLayout, *, key: str, card: str) -> bytes:
    if layout.format == "npy":
        return _npy(array)
    if layout.format == "h5":
        return _npz({key: array})
    if layout.format == "npz":
        return _npz({key: array if what == "features" else facts[what] for key, what in layout.keys.items()})
    numbers = {"features": array, **{key: facts[key] for key in ("start_frames", "times_seconds")}}
    tensors = {key: torch.from_numpy(value) for key, value in numbers.items()}
    about = {key: facts[key].item() for key in ("video", "num_frames", "fps")}
    if layout.format == "safetensors":  # one entry, since the order of several is not always the same
        return save(tensors, metadata={CARD_KEY: json.dumps({**about, "made": json.loads(card)}, sort_keys=True)})
    buffer = BytesIO()
    torch.save({**tensors, **about, "made": card}, buffer)
    return buffer.getvalue()


def _npy(array: Array) -> bytes:
    buffer = BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def _npz(arrays: Mapping[str, Array]) -> bytes:
    buffer = BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]  # entries of 1980, so that the bytes do not tell the hour
    return buffer.getvalue()


def write_files(folder: Path, files: Mapping[str, bytes], drafts: Path) -> dict[str, int]:
    """Write files whole or not at all, by way of a folder of drafts; give the size of each.

    Raises:
        InflateError: There is no room, or no permission.
    """
    sizes = {}
    for path, data in files.items():
        target, draft = folder / path, drafts / sha256(path.encode()).hexdigest()
        try:
            for place in (target.parent, drafts):
                place.mkdir(parents=True, exist_ok=True)
            draft.write_bytes(data)
            draft.replace(target)
        except OSError as error:
            raise not_writable(target, error) from error
        sizes[path] = len(data)
    return sizes


def not_writable(path: Path, error: OSError) -> InflateError:
    """Tell that the run cannot go on, and that what is done is done."""
    return InflateError(
        "the features cannot be written; what was done before is whole",
        where=str(path),
        expected="a folder with room that you may write to",
        got=f"{type(error).__name__}: {error}",
        fix="make room or mend the permissions, and run the same command again: it goes on where it was",
    )


def collect(
    folder: Path, made: Mapping[str, Sequence[str]], layout: FeatureLayout, *, part: str, drafts: Path
) -> list[str]:
    """Put the features of all videos into one file, in the order of their names; give the names of the files.

    Args:
        folder: Of the run.
        made: The files of each job that is done, by its name.
        layout: Says which file.
        part: Put before the suffix of the file, for one of several shards.
        drafts: Where the file grows.

    Raises:
        InflateError: There is no room; h5py is missing; or the file would be larger than its format allows.
    """
    path = Path(layout.collected_name or f"features.{layout.collected}")
    path = path.with_suffix(part + path.suffix)
    ordered = sorted(made)
    try:
        drafts.mkdir(parents=True, exist_ok=True)
        if layout.collected == "hdf5":
            parts = [folder / file for name in ordered for file in made[name] if file.startswith(f"{PARTS}/")]
            _write_hdf5(parts, drafts / path.name)
            (drafts / path.name).replace(folder / path)
            return [str(path)]
    except OSError as error:
        raise not_writable(folder / path, error) from error
    arrays = [np.load(folder / (_path(name, layout.name, "joined", 0) + ".npy")) for name in ordered]
    if layout.collected == "mat":
        files = {str(path): _mat("preds", np.concatenate(arrays))}
    else:
        every = np.empty(len(arrays), object)
        every[:] = arrays
        files = {str(path): _npy(every), f"videoname{part}.npy": _npy(np.array(ordered, "S"))}
    return list(write_files(folder, files, drafts))


def import_h5py() -> Any:
    """Import what writes h5 files.

    Raises:
        InflateError: It is missing.
    """
    return import_extra("h5py", "hdf5", where="features, format h5", instead="take --format npz")


def _write_hdf5(parts: Sequence[Path], draft: Path) -> None:
    with import_h5py().File(draft, "w") as file:
        for part in parts:
            with np.load(part) as arrays:
                for key in arrays.files:
                    file.create_dataset(key, data=arrays[key], track_times=False)


def _mat(name: str, array: Array) -> bytes:
    """Write a matrix as MATLAB 5 does, without the hour that scipy puts into the header.

    Source: MathWorks, MAT-File Format, level 5.
    """
    if array.nbytes >= MOST_MAT_BYTES:
        raise InflateError(
            "the matrix is too large for a file of MATLAB 5",
            where="features, collected mat",
            expected=f"fewer than {MOST_MAT_BYTES:,} bytes",
            got=f"{array.nbytes:,}",
            fix="run fewer videos at a time, with another -o; their own .npy files are written",
        )

    def element(kind: int, data: bytes) -> bytes:
        return struct.pack("<II", kind, len(data)) + data + bytes(-len(data) % 8)

    values = np.asfortranarray(array, dtype="<f4")
    body = element(MAT_UINT32, struct.pack("<II", MAT_SINGLE, 0)) + element(MAT_INT32, struct.pack("<2i", *array.shape))
    body += element(MAT_INT8, name.encode()) + element(MAT_FLOAT32, values.tobytes(order="F"))
    header = b"MATLAB 5.0 MAT-file, written by inflate3d".ljust(124) + struct.pack("<H2s", 0x0100, b"IM")
    return header + element(MAT_MATRIX, body)
