"""What a path or an array means: which videos, which pictures of a folder, and their times."""

import hashlib
import re
import struct
from collections.abc import Iterator, Sequence
from fractions import Fraction
from functools import partial
from glob import glob
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from av.video.frame import VideoFrame
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps
from torch import Tensor

from inflate3d.clips.clip import Clip
from inflate3d.clips.decoding import LIMITS, MAX_PIXELS, opening_options, unreadable
from inflate3d.clips.sampling import Timed
from inflate3d.clips.transforms import as_tensor, check_range, to_range
from inflate3d.errors import InflateError, is_number

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff")
PILLOW_KINDS, MIRRORED = ("JPEG", "PNG", "WEBP", "TIFF"), {2, 4, 5, 7}  # the latter are EXIF's orientations
VIDEO_SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".gif", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts"),
    *(".wmv", ".flv", ".ogv", ".3gp", ".vob", ".mxf", ".y4m", ".h264", ".hevc"),
)


def find_videos(paths: Sequence[str | Path]) -> list[Path]:
    """List the videos under files, folders and globs, each once, in natural order within a folder.

    A folder is searched to its depths for files with a video's suffix; a folder that holds pictures, and no video at
    any depth, is itself one video; one that is linked to from several places is searched once. A file that is named is
    taken whatever its suffix. A path where nothing is, a named folder with nothing in it and a folder that may not be
    read stay in the list, so that reading them can say so.

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
        there = _is_there(Path(path))
        names = [str(path)] if there else sorted(glob(str(path), recursive=True))  # noqa: PTH207 - absolute patterns too
        for named in map(Path, names or [str(path)]):
            found.update(dict.fromkeys(_under(named, set()) or [named]))
    return list(found)


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, RuntimeError):  # no permission, a name too long, links in a circle: reading it says so
        return True


def _under(path: Path, searched: set[Path]) -> list[Path]:
    """List the videos in a folder and below; none for what is no folder."""
    try:
        if path.resolve() in searched or not path.is_dir():  # links may lead back up
            return []
        searched.add(path.resolve())
        items = sorted((item for item in path.iterdir() if not item.name.startswith(".")), key=natural_key)
        videos = [item for item in items if item.suffix.lower() in VIDEO_SUFFIXES and item.is_file()]
        folders = [item for item in items if item.is_dir()]
        pictures = pictures_in(path)
    except (OSError, RuntimeError):
        return [path]
    below = [video for folder in folders for video in _under(folder, searched)]
    return [*videos, *below] or ([path] if pictures else [])


def pictures_in(folder: Path) -> list[Path]:
    """List the pictures of a folder in natural order; hidden ones, such as a Mac leaves beside each file, are none.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("f10.png", "f2.png", "._f2.png", "notes.txt"):
        ...         (Path(folder) / name).touch()
        ...     [path.name for path in pictures_in(Path(folder))]
        ['f2.png', 'f10.png']
    """
    return sorted(
        (item for item in folder.iterdir() if item.suffix.lower() in IMAGE_SUFFIXES and _is_shown(item)),
        key=natural_key,
    )


def _is_shown(item: Path) -> bool:
    return not item.name.startswith(".") and item.is_file()


def source_state(path: Path) -> str:
    """Fingerprint a video or a folder of pictures: names, sizes and last changes of the files that are read.

    A folder has a size and a time of its own, which tell nothing of pictures that were written over.

    Raises:
        OSError: There is no such file, or it may not be read.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     picture = Path(folder) / "f1.png"
        ...     _ = picture.write_bytes(b"one"); before = source_state(Path(folder))
        ...     _ = picture.write_bytes(b"another"); before == source_state(Path(folder))
        False
    """
    files = pictures_in(path) if path.is_dir() else [path]
    states = [(file.name, (state := file.stat()).st_size, state.st_mtime_ns) for file in files]
    return hashlib.sha256(repr(states).encode()).hexdigest()[:32]


def named(path: Path) -> Path:
    """Give a path with a name of its own, that of the folder for `.` and `..`; links keep theirs.

    Example:
        >>> named(Path("run.mp4")), named(Path(".")) == Path.cwd()
        (PosixPath('run.mp4'), True)
    """
    return path.resolve() if path.name in {"", ".."} else path


def natural_key(path: Path) -> list[tuple[int, str]]:
    """Sort key that puts frame2 before frame10.

    Example:
        >>> [path.name for path in sorted([Path("f10.png"), Path("f2.png")], key=natural_key)]
        ['f2.png', 'f10.png']
    """
    parts = re.split(r"(\d+)", path.name.lower())
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


def image_files(folder: Path) -> list[Path]:
    """List the pictures of a folder in natural order, at least one.

    Raises:
        InflateError: The folder holds no picture.
    """
    files = pictures_in(folder)
    if not files:
        names = sorted(path.name for path in folder.iterdir())
        raise InflateError(
            "the folder holds no frames",
            where=str(folder),
            expected=f"pictures named {', '.join(IMAGE_SUFFIXES)}",
            got=", ".join(names[:5]) + ", ..." * (len(names) > 5) if names else "an empty folder",
            fix="pass a video file, or the folder that holds the frames themselves",
        )
    return files


def read_image(path: Path) -> VideoFrame:
    """Decode one picture.

    Raises:
        InflateError: The file cannot be read, or is no picture.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Image.new("RGB", (40, 30)).save(f"{folder}/f1.png")
        ...     read_image(Path(folder) / "f1.png").width
        40
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise unreadable(path, error) from error
    if (upright := _of_pillow(data)) is not None:
        return upright
    try:
        # from memory, because FFmpeg would take a % in the name for a numbering pattern
        with av.open(BytesIO(data), "r", options=opening_options()) as container:
            container.streams.video[0].codec_context.options = LIMITS
            return next(container.decode(video=0))
    except (av.FFmpegError, StopIteration, IndexError) as error:
        raise InflateError(
            "the picture cannot be decoded",
            where=str(path),
            expected=f"a picture of one of the kinds {', '.join(IMAGE_SUFFIXES)}",
            got=f"{len(data)} bytes ({error or type(error).__name__})",
            fix="write the frame again, or take it out of the folder",
        ) from error


def _of_pillow(data: bytes) -> VideoFrame | None:
    """Decode what FFmpeg does otherwise than the programs that frames are written for, or give None.

    Those are JPEGs in color, whose coarser planes of color libjpeg interpolates and FFmpeg repeats, and photographs
    that are stored mirrored, which FFmpeg does not tell.
    """
    try:
        with Image.open(BytesIO(data), formats=PILLOW_KINDS) as image:
            is_photograph = image.format in {"JPEG", "MPO"} and image.mode in {"RGB", "CMYK"}
            orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
            if not (is_photograph or orientation in MIRRORED) or image.width * image.height > MAX_PIXELS:
                return None
            upright = image if orientation == 1 else ImageOps.exif_transpose(image)  # which always copies
            picture = np.asarray(upright if upright.mode == "RGB" else upright.convert("RGB"))
    except (OSError, ValueError, SyntaxError, struct.error, Image.DecompressionBombError):
        return None  # damaged: FFmpeg saves more of it, or says what is wrong
    return VideoFrame.from_ndarray(picture, format="rgb24")


def at_even_times(items: Iterator[Any], frames_fps: Fraction) -> Iterator[Timed[Any]]:
    """Give items the times 0, 1/fps, 2/fps, ...

    Example:
        >>> [(str(time), item) for time, _, item in at_even_times(iter("abc"), Fraction(10))]
        [('0', 'a'), ('1/10', 'b'), ('1/5', 'c')]
    """
    for i, item in enumerate(items):
        yield Timed(i / frames_fps, 1 / frames_fps, item)


def checked_array(array: NDArray[Any] | Tensor, value_range: tuple[float, float] | None) -> Tensor:
    """Check an array of frames and its declared range.

    Args:
        array: `[t, h, w, 3]` or grey `[t, h, w]`, uint8 or floating point.
        value_range: What black and white are in a floating-point array.

    Raises:
        InflateError: Another shape or dtype, no frame, no declared range, or values outside of it.

    Example:
        >>> checked_array(np.zeros((5, 32, 40, 3), np.uint8), None).shape
        torch.Size([5, 32, 40, 3])
    """
    frames = as_tensor(array)
    fault = None
    if frames.ndim not in {3, 4} or (frames.ndim == 4 and frames.shape[-1] != 3):
        fault = "the array has another shape than frames have"
    elif frames.numel() == 0:
        fault = "the array holds no pixel"
    if fault:
        channels_first = frames.ndim == 4 and frames.shape[1] == 3
        raise InflateError(
            fault,
            where="open_frames",
            expected="[t, h, w, 3] in the order red, green, blue, or grey [t, h, w]",
            got=f"{list(frames.shape)} {frames.dtype}",
            fix="move the channels last: array.transpose(0, 2, 3, 1)"
            if channels_first
            else "stack pictures [h, w, 3]: numpy.stack(pictures)",
        )
    if frames.is_floating_point() and value_range is None:
        raise InflateError(
            "floating-point frames do not say what black and white are",
            where="open_frames",
            expected="value_range=(0.0, 1.0), (-1.0, 1.0) or (0.0, 255.0), or a uint8 array",
            got=f"{list(frames.shape)} {frames.dtype}, values from {frames.min():.4g} to {frames.max():.4g}",
            fix="pass value_range=(darkest, brightest), or wrap it into a Clip, which carries its range: "
            'inflate3d.Clip(data, times_seconds, "mine", value_range=(0.0, 1.0)) with data [3, t, h, w]',
        )
    check_range(frames, value_range or (0.0, 255.0), where="open_frames")
    return frames


def clip_times(clip: Clip) -> list[Fraction]:
    """Exact times of a clip's frames, from 0 on.

    Raises:
        InflateError: The times do not rise.

    Example:
        >>> clip_times(Clip(torch.zeros(3, 2, 8, 8), torch.tensor([7.0, 7.5]), "mine", (0.0, 1.0)))
        [Fraction(0, 1), Fraction(1, 2)]
    """
    seconds = clip.times_seconds.tolist()
    if not all(map(is_number, seconds)) or any(later <= earlier for earlier, later in pairwise(seconds)):
        raise InflateError(
            "the times of the clip do not rise",
            where=clip.source,
            expected="times_seconds, each later than the one before",
            got=f"{seconds[:5]}" + " and so on" * (len(seconds) > 5),
            fix="leave the looping of short clips to predict, or give the frames times: torch.arange(t) / 25",
        )
    return [Fraction(time - seconds[0]).limit_denominator(1_000_000) for time in seconds]


def at_clip_times(items: Iterator[Any], times: list[Fraction], interval: Fraction) -> Iterator[Timed[Any]]:
    """Give items the times of a clip's frames; the last is shown as long as the one before, or for `interval`.

    Example:
        >>> times = [Fraction(0), Fraction(1, 2)]
        >>> [str(duration) for _, duration, _ in at_clip_times(iter("ab"), times, Fraction(1, 25))]
        ['1/2', '1/2']
    """
    ends = [*times[1:], times[-1] + (times[-1] - times[-2] if len(times) > 1 else interval)]
    return (Timed(time, end - time, item) for time, end, item in zip(times, ends, items, strict=True))


def picture_at(frames: Tensor, value_range: tuple[float, float], index: int) -> NDArray[np.uint8]:
    """Take one frame of a checked array as `[h, w, 3]` uint8.

    Example:
        >>> picture_at(torch.ones(5, 2, 2), (0.0, 1.0), 4)[0, 0].tolist()
        [255, 255, 255]
    """
    frame = frames[index]
    if frame.is_floating_point():
        frame = to_range(frame, (0.0, 255.0), value_range=value_range).round_().clamp_(0, 255).to(torch.uint8)
    if frame.ndim == 2:
        frame = frame[..., None].expand(-1, -1, 3)
    picture: NDArray[np.uint8] = frame.cpu().numpy()
    return picture


def array_items(frames: Tensor, value_range: tuple[float, float] | None) -> Iterator[partial[NDArray[np.uint8]]]:
    """Give each frame of an array as a call that makes its picture.

    Example:
        >>> [draw().shape for draw in array_items(torch.zeros(2, 30, 40, 3, dtype=torch.uint8), None)]
        [(30, 40, 3), (30, 40, 3)]
    """
    return (partial(picture_at, frames, value_range or (0.0, 255.0), index) for index in range(len(frames)))
