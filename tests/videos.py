"""Small videos with their frame numbers painted in, and byte surgery on the files that hold them."""

import struct
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

NUM_BITS = 8
RED, BLUE = (255, 0, 0), (0, 0, 255)


def paint(number: int, height: int = 46, width: int = 72) -> NDArray[np.uint8]:
    """Draw a frame: above, the number as 8 white or black blocks; below, a quarter red and the rest blue."""
    picture = np.zeros((height, width, 3), np.uint8)
    for bit, columns in enumerate(np.array_split(np.arange(width), NUM_BITS)):
        picture[: height // 2, columns] = 255 * (number >> bit & 1)
    picture[height // 2 :] = BLUE
    picture[height // 2 :, : width // 4] = RED
    return picture


def number_in(picture: NDArray[np.uint8]) -> int:
    """Read the painted number back."""
    height, width, _ = picture.shape
    rows = picture[height // 8 : height * 3 // 8].mean((0, 2))
    columns = [part[len(part) // 2] for part in np.array_split(np.arange(width), NUM_BITS)]
    return sum(int(rows[column] > 127) << bit for bit, column in enumerate(columns))


def looks_upright(picture: NDArray[np.uint8], tolerance: int = 40) -> bool:
    """Whether red is below on the left and blue below on the right: no channel swap, rotation or mirror."""
    height, width, _ = picture.shape
    row = picture[height * 3 // 4].astype(int)
    return bool(
        np.abs(row[width // 8] - RED).max() <= tolerance and np.abs(row[width * 5 // 8] - BLUE).max() <= tolerance
    )


def write_video(
    path: Path,
    pictures: Iterable[NDArray[np.uint8]],
    *,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    fps: Fraction | int = 30,
    ticks: Sequence[int] | None = None,
    **options: str,
) -> Path:
    """Encode pictures; `ticks` are their timestamps in units of 1/fps, by default 0, 1, 2, ..."""
    lossless = {"libx264": {"crf": "8", "preset": "veryfast"}, "libvpx-vp9": {"crf": "8", "cpu-used": "8"}}
    pictures = list(pictures)
    height, width, _ = pictures[0].shape
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps, options=lossless.get(codec, {}) | options)
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        stream.codec_context.time_base = 1 / Fraction(fps)
        if codec in {"mpeg4", "mpeg2video", "libvpx", "libvpx-vp9"}:
            stream.codec_context.bit_rate = 4_000_000
        for tick, picture in zip(ticks or range(len(pictures)), pictures, strict=True):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), "rgb24").reformat(format=pix_fmt)
            frame.pts, frame.time_base = tick, 1 / Fraction(fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def with_display_matrix(path: Path, matrix: tuple[int, int, int, int]) -> Path:
    """Write a display matrix [a b; c d] into the track header of an MP4; QuickTime File Format, "tkhd"."""
    data = bytearray(path.read_bytes())
    a, b, c, d = (value << 16 for value in matrix)
    struct.pack_into(">9i", data, data.index(b"tkhd") + 44, a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return path


def with_late_start(path: Path, num_hidden: int, fps: int = 30) -> Path:
    """Hide the first frames of an MP4 by its edit list, as a cut without re-encoding does."""
    with av.open(str(path)) as container:
        time_base = container.streams.video[0].time_base
    assert time_base
    data = bytearray(path.read_bytes())
    entry = data.index(b"elst") + 12  # behind name, version and flags, number of entries
    duration, media_time = struct.unpack_from(">II", data, entry)
    hidden_ms, hidden_ticks = num_hidden * 1000 // fps, int(num_hidden / fps / time_base)  # FFmpeg writes lengths in ms
    struct.pack_into(">II", data, entry, duration - hidden_ms, media_time + hidden_ticks)
    path.write_bytes(data)
    return path


def remux(source: Path, target: Path, **options: str) -> Path:
    """Copy the packets into another container."""
    with av.open(str(source)) as reader, av.open(str(target), "w", container_options=options) as writer:
        stream = writer.add_stream_from_template(reader.streams.video[0])
        for packet in reader.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                writer.mux(packet)
    return target


def damage(path: Path, start: float, stop: float) -> Path:
    """Overwrite a part of a file, given in shares of its length, with noise."""
    data = bytearray(path.read_bytes())
    first, last = int(len(data) * start), int(len(data) * stop)
    data[first:last] = np.random.default_rng(0).integers(0, 256, last - first, np.uint8).tobytes()
    path.write_bytes(data)
    return path


def cut_off(path: Path, share: float) -> Path:
    """Keep the first part of a file."""
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path
