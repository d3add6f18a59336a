"""Flow that somebody has computed before: folders and archives of pictures, arrays, videos, flow by flow."""

import json
import os
import re
import struct
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from av.video.frame import VideoFrame
from numpy.typing import NDArray
from torch import Tensor

from inflate3d.arrays import ArrayHeader, read_array_header
from inflate3d.errors import InflateError, import_extra, in_a_line, is_number
from inflate3d.flow.quantize import BOUND_PIXELS, check_quantizer, dequantize

# flow_x_00001.jpg (denseflow, TSN), x_00001.jpg (mmaction2), both components in flow_00001.png (denseflow)
COMPONENT = re.compile(r"(?:flow_)?([xy])_(\d{1,9})\.(?:jpe?g|png)", re.IGNORECASE)
BOTH = re.compile(r"flow_(\d{1,9})\.png", re.IGNORECASE)
SUFFIXES = ("", ".zip", ".h5", ".hdf5", ".npz")  # of a folder and of files
DATASET = re.compile(r"flow_([xy])_(\d{1,9})")

Parts = dict[int, dict[str, str]]  # number of a flow: its components and their names

MAX_PICTURE_BYTES, MAX_PIXELS = 2**26, 2**25  # one flow; far above any video

# What the standard library raises for an archive that is damaged or packed in an odd way
DAMAGED_ZIP = (zipfile.BadZipFile, zlib.error, struct.error, OSError, EOFError, RuntimeError, ValueError, KeyError)
# Pillow's, for a picture
DAMAGED_PICTURE = (*DAMAGED_ZIP, SyntaxError, TypeError, IndexError, AttributeError, ArithmeticError, MemoryError)


@dataclass(frozen=True, eq=False)
class StoredFlow:
    """Flows to iterate over, in order, as often as wanted, one in memory at a time.

    Attributes:
        source: The file or folder.
        num_flows: How many there are, where it is known without reading.
        opened: Makes one pass over them: `[2, h, w]` float32, pixels.
        quantized: Whether they were kept as codes, so that they have to be taken as they are.
    """

    source: Path
    num_flows: int | None
    opened: Callable[[], Iterator[Tensor]]
    quantized: bool = True

    def __iter__(self) -> Iterator[Tensor]:
        return self.opened()


def open_flow(path: str | Path, *, bound: float = BOUND_PIXELS) -> StoredFlow:
    """Open flow that was computed before.

    * A folder, or a zip of one, with pictures as denseflow, mmaction2 and TSN name them, counted from any number;
    * what `inflate3d flow` wrote, in any layout;
    * `.h5` with datasets `flow_x_00000`, `flow_y_00000` and so on, of denseflow: floats are pixels, bytes are codes;
    * `.npz` with an array `flow` `[n, 2, h, w]`: floats are pixels, bytes are codes.

    Args:
        path: File or folder.
        bound: Motion in pixels that the largest code stands for, where the files do not say so themselves.

    Raises:
        InflateError: There is no flow at this path, some of it is missing, or it is too large. What is wrong with a
            single picture turns out while reading.

    Source: denseflow `src/common.cpp`, mmaction2 `tools/misc/flow_extraction.py` for names and codes.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.savez(f"{folder}/run.npz", flow=np.zeros((5, 2, 24, 32), np.float32))
        ...     stored = open_flow(f"{folder}/run.npz")
        ...     stored.num_flows, next(iter(stored)).shape
        (5, torch.Size([2, 24, 32]))
    """
    path = Path(path)
    check_quantizer("none", bound)
    if os.path.isdir(path):  # noqa: PTH112 - false for names too long to be
        return _folder(path, bound)
    kinds = {".zip": _archive, ".h5": _hdf5, ".hdf5": _hdf5, ".npz": _npz}
    if path.suffix.lower() not in kinds or not os.path.isfile(path):  # noqa: PTH113 - likewise
        raise InflateError(
            "there is no flow at this path",
            where=str(path),
            expected="a folder of pictures such as flow_x_00000.jpg, or a file .zip, .h5, .npz",
            got="a file of another kind" if os.path.exists(path) else "nothing",  # noqa: PTH110
            fix="compute it: inflate3d flow VIDEO -o FOLDER",
        )
    return kinds[path.suffix.lower()](path, bound)


def flow_name(video: str | Path) -> str:
    """Name the flow of a video among that of others: as the video, without its suffix.

    Example:
        >>> flow_name("videos/run.mp4")
        'run'
    """
    path = Path(video)
    return (path.resolve() if path.name in {"", ".."} else path).stem


def find_flow(stored: Path, video: str | Path) -> Path:
    """Find the flow of a video in a folder that holds that of several; else what is stored is taken to be its own.

    Example:
        >>> find_flow(Path("not-there"), "videos/run.mp4")
        PosixPath('not-there')
    """
    places = [stored / f"{flow_name(video)}{suffix}" for suffix in SUFFIXES]
    return next((place for place in places if place.exists()), stored)


def _folder(path: Path, bound: float) -> StoredFlow:
    if not (path / "flow.json").is_file():
        return _unrecorded(path, bound)
    num_flows, bound = _read_record(path / "flow.json")
    found = _unrecorded(path, bound)
    if found.num_flows not in {None, num_flows}:
        raise InflateError(
            "some of the flow is missing",
            where=str(path),
            expected=f"{num_flows} flows, as flow.json says",
            got=f"{found.num_flows}",
            fix="run the same inflate3d flow again: it does what is missing",
        )
    return replace(found, num_flows=num_flows)


def _unrecorded(path: Path, bound: float) -> StoredFlow:
    if (path / "flow.npz").is_file():
        return _npz(path / "flow.npz", bound)
    videos = [path / f"flow_{axis}.mp4" for axis in "xy"]
    if all(video.is_file() for video in videos):
        return StoredFlow(path, None, lambda: _video_flows(videos, bound))
    files = _ordered(path, [item.name for item in path.iterdir()])

    def flows() -> Iterator[Tensor]:
        for names in files:
            datas = []
            for name in names:
                if (size := (path / name).stat().st_size) > MAX_PICTURE_BYTES:
                    raise _too_large(path / name, f"{size:,} bytes")
                datas.append((path / name).read_bytes())
            yield _from_pictures(datas, bound, path / names[0])

    return StoredFlow(path, len(files), flows)


def _read_record(path: Path) -> tuple[int, float]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        num_flows, bound = record["num_flows"], record["bound"]
        if not (num_flows is None or isinstance(num_flows, int)) or not is_number(bound) or bound <= 0:
            raise ValueError(f"num_flows {num_flows!r}, bound {bound!r}")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise _unreadable(path, in_a_line(error)) from error
    if num_flows is None:
        raise InflateError(
            "the flow in this folder is not whole: its computation was stopped",
            where=str(path.parent),
            expected="a folder that inflate3d flow has finished",
            got="a part of it",
            fix="run the same inflate3d flow again: it does what is missing",
        )
    return num_flows, float(bound)


def _archive(path: Path, bound: float) -> StoredFlow:
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = {member.filename: member.file_size for member in archive.infolist()}
    except DAMAGED_ZIP as error:
        raise _unreadable(path, in_a_line(error)) from error
    files = _ordered(path, list(sizes))

    def flows() -> Iterator[Tensor]:
        with zipfile.ZipFile(path) as archive:
            for names in files:
                if (size := max(sizes[name] for name in names)) > MAX_PICTURE_BYTES:
                    raise _too_large(path, f"{size:,} bytes")
                try:
                    datas = [_member(archive, name, sizes[name]) for name in names]
                except DAMAGED_ZIP as error:
                    raise _unreadable(path, f"{names[0]}: {in_a_line(error)}") from error
                yield _from_pictures(datas, bound, path / names[0])

    return StoredFlow(path, len(files), flows)


def _member(archive: zipfile.ZipFile, name: str, size: int) -> bytes:
    with archive.open(name) as file:
        return file.read(size + 1)  # without a number zipfile unpacks all there is, whatever the archive says of it


def _ordered(path: Path, names: Sequence[str]) -> list[list[str]]:
    """Find the flows among the names, in the order of their numbers: [x, y] or [both]."""
    found: dict[str, Parts] = defaultdict(lambda: defaultdict(dict))
    for name in names:
        folder, _, last = name.replace("\\", "/").rpartition("/")
        if match := COMPONENT.fullmatch(last):
            found[folder][int(match[2])][match[1].lower()] = name
        elif match := BOTH.fullmatch(last):
            found[folder][int(match[1])]["both"] = name
    if len(found) != 1:
        raise InflateError(
            "there is flow in several folders" if found else "there is no flow",
            where=str(path),
            expected="pictures of one video, named flow_x_00000.jpg and flow_y_00000.jpg, x_00001.jpg and y_00001.jpg, "
            "or flow_00000.png",
            got=", ".join(sorted(found or names)[:5]) or "nothing",
            fix="name the folder of one video" if found else "compute it: inflate3d flow VIDEO -o FOLDER",
        )
    return _gapless(path, *found.values())


def _gapless(path: Path, parts: Parts) -> list[list[str]]:
    """Put the parts of each flow in order, and refuse gaps."""
    first, count = min(parts), len(parts)
    missing = [first + step for step in range(count) if {*parts.get(first + step, ())} not in ({"x", "y"}, {"both"})]
    if missing:
        raise InflateError(
            "some of the flow is missing",
            where=str(path),
            expected=f"both components of each flow from {first} to {max(parts)}",
            got=f"not those of {', '.join(map(str, missing[:5]))}" + " and others" * (len(missing) > 5),
            fix="compute it anew: inflate3d flow VIDEO -o FOLDER",
        )
    orders = (("both",), ("x", "y"))
    return [[parts[index][axis] for axis in orders["x" in parts[index]]] for index in sorted(parts)]


def _from_pictures(datas: Sequence[bytes], bound: float, where: Path) -> Tensor:
    planes = [_decoded(data, where, color=len(datas) == 1) for data in datas]
    if len(planes) == 1:
        # denseflow's PNG holds, as OpenCV orders channels, x, y and a quarter of the bound: of x above, of y below
        quarter, y, x = planes[0].double()
        bounds = 4 * quarter[0, 0], 4 * quarter[-1, 0]
        return torch.stack([(x - 128) / 128 * bounds[0], (y - 128) / 128 * bounds[1]]).float()
    if planes[0].shape != planes[1].shape:
        raise _unreadable(where, f"components of {list(planes[0].shape)} and {list(planes[1].shape)}")
    return dequantize(torch.cat(planes), bound=bound)


def _decoded(data: bytes, where: Path, *, color: bool) -> Tensor:
    """Decode a picture, once its header has told that it is not too large; `[1, h, w]`, or `[3, h, w]` in color."""
    from PIL import Image  # noqa: PLC0415 - comes with torchvision

    try:
        with Image.open(BytesIO(data), formats=("JPEG", "PNG")) as picture:
            size = picture.size
            fits = size[0] * size[1] <= MAX_PIXELS
            pixels = np.array(picture.convert("RGB" if color else "L")) if fits else None
    except Image.DecompressionBombError as error:
        raise _too_large(where, str(error)) from error
    except DAMAGED_PICTURE as error:
        raise _unreadable(where, in_a_line(error)) from error
    if pixels is None:
        raise _too_large(where, f"{size[0]}x{size[1]} pixels")
    return torch.from_numpy(pixels).view(*pixels.shape[:2], -1).permute(2, 0, 1)


def _hdf5(path: Path, bound: float) -> StoredFlow:
    h5py = import_extra("h5py", "hdf5", where=str(path))
    parts: Parts = defaultdict(dict)
    kinds = set()
    try:
        with h5py.File(path, "r") as file:
            for match in filter(None, map(DATASET.fullmatch, file)):
                parts[int(match[2])][match[1]] = name = match[0]
                # nothing of another file: neither by a link nor as the storage of a dataset
                own = isinstance(file.get(name, getlink=True), h5py.HardLink) and isinstance(file[name], h5py.Dataset)
                if not own or file[name].external or file[name].is_virtual or file[name].ndim != 2:
                    raise _unreadable(path, f"{name} is no array [h, w] of this file")
                kinds.add(file[name].dtype.kind)
                if file[name].size > MAX_PIXELS:
                    raise _too_large(path, f"{file[name].shape[1]}x{file[name].shape[0]} pixels")
    except InflateError:
        raise
    except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
        raise _unreadable(path, in_a_line(error)) from error
    if not parts or kinds not in ({"f"}, {"u"}):
        raise _unreadable(path, f"no datasets flow_x_00000, flow_y_00000 and so on of one kind, {kinds or 'none'}")
    names = _gapless(path, parts)

    def flows() -> Iterator[Tensor]:
        with h5py.File(path, "r") as file:
            for pair in names:
                try:
                    planes = [file[name][()] for name in pair]
                except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:  # of a file that was cut off
                    raise _unreadable(path, f"{pair[0]}: {in_a_line(error)}") from error
                if planes[0].shape != planes[1].shape:
                    raise _unreadable(path, f"{pair[0]}: components of {planes[0].shape} and {planes[1].shape}")
                yield _pixels(np.stack(planes), bound)

    return StoredFlow(path, len(names), flows, quantized=kinds != {"f"})


def _pixels(array: NDArray[Any], bound: float) -> Tensor:
    # torch knows neither all numbers of numpy nor foreign orders of their bytes
    return dequantize(torch.from_numpy(array.astype(np.float32 if array.dtype.kind == "f" else np.int32)), bound=bound)


def _npz(path: Path, bound: float) -> StoredFlow:
    try:
        with zipfile.ZipFile(path) as archive:
            with archive.open("flow.npy") as file:
                header = _npy_header(file)
            if "bound.npy" in archive.namelist():
                with archive.open("bound.npy") as file:
                    bound = float(np.frombuffer(_scalar(file), np.float64)[0])
    except DAMAGED_ZIP as error:
        raise _unreadable(path, in_a_line(error)) from error
    n, h, w = header.shape[0], *header.shape[2:]
    check_quantizer("none", bound)

    def flows() -> Iterator[Tensor]:
        with ExitStack() as stack:
            archive = stack.enter_context(zipfile.ZipFile(path))
            file = stack.enter_context(archive.open("flow.npy"))
            _npy_header(file)
            for _ in range(n):
                try:
                    data = file.read(2 * h * w * header.dtype.itemsize)
                except DAMAGED_ZIP as error:
                    raise _unreadable(path, in_a_line(error)) from error
                if len(data) < 2 * h * w * header.dtype.itemsize:
                    raise _unreadable(path, "the array ends before its shape says so")
                yield _pixels(np.frombuffer(data, header.dtype).reshape(2, h, w), bound)

    return StoredFlow(path, n, flows, quantized=header.dtype.kind != "f")


def _npy_header(file: Any) -> ArrayHeader:
    header = read_array_header(file)
    shape, dtype, fortran = header
    fits = len(shape) == 4 and shape[0] >= 1 and shape[1] == 2 and 0 < shape[2] * shape[3] <= MAX_PIXELS
    if fortran or not fits or dtype.kind not in "fui" or dtype.itemsize > 8:
        raise ValueError(f"flow is {shape} {dtype}, not [n, 2, h, w] of floats or bytes")
    return header


def _scalar(file: Any) -> bytes:
    shape, dtype, _ = read_array_header(file)
    if shape != () or dtype != np.float64:
        raise ValueError(f"bound is {shape} {dtype}")
    return bytes(file.read(8))


def _video_flows(videos: Sequence[Path], bound: float) -> Iterator[Tensor]:
    with ExitStack() as stack:
        try:
            decoders = [_decoder(stack, video) for video in videos]
            for frames in zip(*decoders, strict=True):
                yield _pixels(np.stack([_brightness(frame) for frame in frames]), bound)
        except (av.FFmpegError, IndexError, ValueError) as error:
            raise _unreadable(videos[0].parent, in_a_line(error)) from error


def _decoder(stack: ExitStack, video: Path) -> Iterator[VideoFrame]:
    """Decode a video as `inflate3d flow` writes it, and no list of other files under its name."""
    limits = {"max_pixels": str(MAX_PIXELS)}
    container = stack.enter_context(av.open(str(video.absolute()), format="mp4", options=limits))
    container.streams.video[0].codec_context.options = limits
    return container.decode(video=0)


def _brightness(frame: VideoFrame) -> NDArray[np.uint8]:
    """Take the first plane as it is, without a conversion that would stretch its range."""
    if frame.width * frame.height > MAX_PIXELS or frame.format.components[0].bits != 8:
        raise ValueError(f"frames of {frame.width}x{frame.height}, {frame.format.name}")
    rows = np.frombuffer(bytes(frame.planes[0]), np.uint8).reshape(-1, frame.planes[0].line_size)
    picture: NDArray[np.uint8] = rows[: frame.height, : frame.width]
    return picture


def _unreadable(path: Path, got: str) -> InflateError:
    return InflateError(
        "the flow cannot be read",
        where=str(path),
        expected="flow as inflate3d flow, denseflow, mmaction2 or TSN write it",
        got=got,
        fix="compute it anew: inflate3d flow VIDEO -o FOLDER",
    )


def _too_large(path: Path, got: str) -> InflateError:
    return InflateError(
        "a picture of flow is too large",
        where=str(path),
        expected=f"at most {MAX_PICTURE_BYTES:,} bytes and {MAX_PIXELS:,} pixels",
        got=got,
        fix="compute the flow on smaller frames: inflate3d flow VIDEO -o FOLDER --short-side 256",
    )
