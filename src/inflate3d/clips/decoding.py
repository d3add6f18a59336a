"""One video file to decoded frames with their timestamps: which stream, what is damaged, what FFmpeg refuses."""

import warnings
from collections.abc import Iterator
from fractions import Fraction
from itertools import islice
from pathlib import Path

import av
from av.container import InputContainer
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from inflate3d.clips.timestamps import Stamped
from inflate3d.errors import InflateError, InflateWarning

MAX_READ_ERRORS = 64  # in a row, before the rest of a file is given up

Decoded = Stamped[VideoFrame]


def open_container(path: Path) -> InputContainer:
    """Open a file that FFmpeg knows.

    Raises:
        InflateError: The file is empty, was cut off before its index was written, or is no video.
    """
    try:
        # absolute, so that FFmpeg takes no colon in a name for a protocol
        return av.open(str(path.absolute()))
    except av.FFmpegError as error:
        raise _refused(path, error) from error


def video_stream(container: InputContainer, path: Path) -> VideoStream:
    """Find the video among the streams; a cover picture attached to music is none.

    Raises:
        InflateError: There is no video stream, or no decoder for it.
    """
    videos = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    if not videos:
        kinds = ", ".join(sorted({stream.type for stream in container.streams})) or "no streams"
        raise InflateError(
            "there is no video in this file",
            where=str(path),
            expected="a file with a video stream (a cover picture is none)",
            got=f"{container.format.name} with {kinds}",
            fix="pass the file that holds the pictures",
        )
    best = container.streams.best("video")
    stream = best if isinstance(best, VideoStream) and best in videos else videos[0]
    if stream.codec_context is None:
        raise InflateError(
            "this PyAV has no decoder for the video stream",
            where=str(path),
            expected="a codec that `python -m av --codecs` lists",
            got=f"{container.format.name}, stream {stream.index}",
            fix="convert the file to H.264",
        )
    return stream


def frame_interval(stream: VideoStream) -> Fraction:
    """Seconds from one frame to the next as far as the header knows, else 1/25."""
    rate = stream.guessed_rate or stream.average_rate
    return 1 / rate if rate else Fraction(1, 25)


def header_seconds(container: InputContainer, stream: VideoStream) -> float | None:
    """Length in seconds according to the header, which may be wrong or missing."""
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    return container.duration / av.time_base if container.duration else None


def decode(path: Path) -> Iterator[Decoded]:
    """Decode a file in the order of the decoder, keeping all that can be decoded.

    Threads decode until the first sign of damage. Decoders with threads lose intact frames around a damaged one, more
    of them the more cores there are; so from there on one thread decodes, starting again behind the scenes.

    Raises:
        InflateError: Not a single frame can be decoded, or the file cannot be opened.
    """
    given = 0
    try:
        for frame in _Pass(path, threads=True).frames():
            yield frame
            given += 1
    except _DamageError:
        yield from islice(_Pass(path, threads=False).frames(), given, None)


class _DamageError(Exception):
    """The decoder with threads met damage."""


class _Pass:
    """One run through a file, with the count of what was lost."""

    def __init__(self, path: Path, *, threads: bool) -> None:
        self.path, self.threads = path, threads
        self.num_packets = self.num_frames = self.num_damaged = 0
        self.first: Fraction | None = None  # the smallest timestamp
        self.end = Fraction(0)  # where the frames so far end, counted from it
        self.paused = Fraction(0)

    def frames(self) -> Iterator[Decoded]:
        with open_container(self.path) as container:
            stream = video_stream(container, self.path)
            if self.threads:
                stream.thread_type = "AUTO"
            for packet in self.packets(container, stream):
                for frame in self.decoded(packet):
                    yield self.stamped(frame)
            self.report(header_seconds(container, stream) if len(container.streams) == 1 else None)

    def packets(self, container: InputContainer, stream: VideoStream) -> "Iterator[av.Packet[VideoStream]]":
        """Read packets; a read error ends a demuxer, so another one goes on behind the damage."""
        num_errors = 0
        demuxer = container.demux(stream)
        while num_errors < MAX_READ_ERRORS:
            try:
                packet = next(demuxer, None)
            except av.FFmpegError:
                self.damaged()
                num_errors += 1
                demuxer = container.demux(stream)
                continue
            if packet is None:
                return
            num_errors = 0
            # a packet before the start of an edit list is decoded for the others' sake and never shown
            self.num_packets += bool(packet.size and not packet.is_discard)
            yield packet

    def decoded(self, packet: "av.Packet[VideoStream]") -> Iterator[VideoFrame]:
        if packet.is_corrupt:
            self.damaged()
        try:
            frames = packet.decode()
        except av.EOFError:
            return  # a second demuxer ends with a second flush
        except av.FFmpegError:
            if not packet.is_corrupt:
                self.damaged()
            return
        for frame in frames:
            if isinstance(frame, VideoFrame):
                if frame.is_corrupt and not packet.is_corrupt:
                    self.damaged()
                yield frame

    def stamped(self, frame: VideoFrame) -> Decoded:
        self.num_frames += 1
        base = frame.time_base
        time = None if frame.pts is None or base is None else frame.pts * base
        duration = frame.duration * base if frame.duration and base else None
        if time is not None:
            self.first = time if self.first is None else min(self.first, time)
            pause = time - self.first - self.end
            self.paused += pause if pause > 1 else 0
            self.end = max(self.end, time - self.first + (duration or 0))
        return Stamped(time, duration, frame)

    def damaged(self) -> None:
        self.num_damaged += 1
        if self.threads:
            raise _DamageError

    def report(self, promised_seconds: float | None) -> None:
        """Tell at the end of the file what was lost."""
        if self.threads and self.num_frames < self.num_packets:
            # PyAV drops an error, and the frames behind it, if a frame came out before it in the same call
            raise _DamageError
        if not self.num_frames:
            raise InflateError(
                "no frame can be decoded",
                where=str(self.path),
                expected="a video with at least one intact frame",
                got=f"{self.num_packets} packets, {self.num_damaged} of them damaged",
                fix="copy or download the file again",
            )
        faults = []
        if self.num_damaged:
            faults.append(f"damaged in {self.num_damaged} places, which were skipped or mended by FFmpeg")
        if self.paused:  # a demuxer that looks for the next intact place does not say so
            faults.append(f"no frames for {float(self.paused):.2f} s in between, the nearest ones stand in for them")
        # some formats count the length from zero, others from the first frame
        reached = self.end + max(self.first or Fraction(0), Fraction(0))
        if not faults and promised_seconds and promised_seconds - reached > max(1.0, 0.1 * promised_seconds):
            faults.append(f"probably cut off, its header promises {promised_seconds:.2f} s")
        if faults:
            kept = f"{self.num_frames} frames ({float(self.end):.2f} s) were read"
            warnings.warn(f"{self.path}: {'; '.join([*faults, kept])}", InflateWarning, stacklevel=2)


def _refused(path: Path, error: av.FFmpegError) -> InflateError:
    """Find out why FFmpeg does not open a file."""
    size = path.stat().st_size
    if size == 0:
        return InflateError(
            "the file is empty",
            where=str(path),
            expected="a video file",
            got="0 bytes",
            fix="copy or download the file again",
        )
    boxes = _boxes(path)
    if "mdat" in boxes and "moov" not in boxes:
        return InflateError(
            "the index (moov) is missing, so the file was probably cut off while it was written or copied",
            where=str(path),
            expected="an MP4 or MOV file with the boxes ftyp, mdat and moov",
            got=f"{size} bytes with the boxes {', '.join(boxes)}",
            fix="copy or download it again, or rebuild the index from an intact file of the same camera with `untrunc`",
        )
    with path.open("rb") as file:
        start = file.read(24)
    return InflateError(
        "FFmpeg cannot open the file",
        where=str(path),
        expected="a video in a format that FFmpeg knows (MP4, MOV, MKV, WebM, AVI, MPEG, GIF, ...)",
        got=f"{size} bytes that begin with {start!r} ({error.strerror})",
        fix="check that the file is a video, and copy or download it again",
    )


def _boxes(path: Path) -> list[str]:
    """Walk the boxes of an MP4 file, each a length and a name; ISO/IEC 14496-12, 4.2. Empty for other files."""
    names: list[str] = []
    size = path.stat().st_size
    with path.open("rb") as file:
        position = 0
        while position + 8 <= size:
            file.seek(position)
            head = file.read(16)
            length, name = int.from_bytes(head[:4], "big"), head[4:8].decode("latin-1")
            if length == 1:  # the length follows in 64 bits
                length = int.from_bytes(head[8:16], "big")
            if not name.isalnum() or 0 < length < 8:
                break
            names.append(name)
            position += length or size
    return names if names and names[0] in {"ftyp", "wide", "free", "skip", "mdat"} else []
