"""One video file to decoded frames: which stream, what is damaged, how large a frame may be."""

import errno
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from fractions import Fraction
from functools import cache
from itertools import islice
from pathlib import Path

import av
from av.container import InputContainer
from av.stream import Disposition
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from inflate3d.clips.timestamps import MAX_PAUSE_SECONDS, Stamped
from inflate3d.errors import InflateError, InflateWarning

# Formats that lead to other files, or to none: a stranger's "video" must not open what lies beside it
ELSEWHERE = {"applehttp", "concat", "dash", "hls", "image2", "imf", "lavfi", "rtsp", "sdp", "webm_dash_manifest"}
MAX_PIXELS = 2**26  # of a frame: 8192 x 8192, twice 8K; a decoder takes memory for whatever a stream asks for
LIMITS = {"max_pixels": str(MAX_PIXELS)}  # an option of FFmpeg's decoders
NO_MEMORY = (errno.ENOMEM, errno.ERANGE)  # the latter is dav1d's for frames of more than `max_pixels`
MAX_READ_ERRORS = 64  # in a row, before the rest of a file is given up
MAX_LOST_SECONDS = 60  # between the last frame before damage and the same one found again

Decoded = Stamped[VideoFrame]


def open_container(path: Path) -> InputContainer:
    """Open a file that FFmpeg knows.

    Raises:
        InflateError: The file cannot be read, is empty, was cut off before its index was written, or is no video.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "still.gif"
        ...     Image.new("L", (16, 16)).save(path)
        ...     with open_container(path) as container:
        ...         container.format.name, video_stream(container, path).codec_context.name
        ('gif', 'gif')
    """
    try:
        # absolute, so that FFmpeg takes no colon in a name for a protocol
        return av.open(str(path.absolute()), options=opening_options())
    except av.FFmpegError as error:
        raise _refused(path, error) from error


@cache
def opening_options() -> dict[str, str]:
    """Tell FFmpeg which formats a file may have, and how large a frame may be while it looks for the streams."""
    return {"format_whitelist": ",".join(sorted(av.formats_available - ELSEWHERE)), **LIMITS}


_most_pixels = ContextVar("most_pixels", default=MAX_PIXELS)


@contextmanager
def at_most(pixels: int) -> Iterator[None]:
    """Refuse videos in the block one of whose frames is larger; `speed.ahead` takes this along into its threads.

    Example:
        >>> with at_most(1920 * 1080):
        ...     pass
    """
    token = _most_pixels.set(min(pixels, MAX_PIXELS))
    try:
        yield
    finally:
        _most_pixels.reset(token)


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
    of them the more cores there are; so from there on one thread decodes, starting again behind the scenes. At the end
    of a file fewer frames than packets are such a sign too. They are none in a few old kinds of files with packets that
    show nothing (VP8 with alternative reference frames, fields in packets of their own): these are decoded twice.

    Raises:
        InflateError: Not a single frame can be decoded, or the file cannot be opened.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> pictures = [Image.new("L", (16, 16), 40 * i) for i in range(3)]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     pictures[0].save(f"{folder}/a.gif", save_all=True, append_images=pictures[1:], duration=100)
        ...     [str(frame.time) for frame in decode(Path(folder) / "a.gif")]
        ['0', '1/10', '1/5']
    """
    given = 0
    last: Fraction | None = None
    try:
        for frame in _Pass(path, threads=True).frames():
            yield frame
            given, last = given + 1, frame.time
    except _DamageError:
        yield from _behind(_Pass(path, threads=False).frames(), given, last, path)


def _behind(frames: Iterator[Decoded], given: int, last: Fraction | None, path: Path) -> Iterator[Decoded]:
    """Leave out what was given already, up to the frame of the time `last`; by count where it has none."""
    rest = islice(frames, max(given - 1, 0), None)
    lost = 0
    for frame in rest if given else ():
        if last is None or frame.time == last:
            break
        if frame.time is None or not last - MAX_LOST_SECONDS < frame.time < last:
            yield frame
            break
        lost += 1  # with threads fewer frames came out up to the last one than there are
    if lost:
        warnings.warn(
            f"{path}: {lost} frames before {float(last or 0):.2f} s were lost beside damage",
            InflateWarning,
            stacklevel=2,
        )
    yield from rest


class _DamageError(Exception):
    """The decoder with threads met damage."""


class _Pass:
    """One run through a file, with the count of what was lost."""

    def __init__(self, path: Path, *, threads: bool) -> None:
        self.path, self.threads, self.most_pixels = path, threads, _most_pixels.get()
        self.num_packets = self.num_frames = self.num_damaged = self.num_refused = 0
        self.decoder: VideoCodecContext | None = None
        self.first: Fraction | None = None  # the timestamp that counts as zero: the smallest one, unless they jump
        self.latest: Fraction | None = None
        self.end = Fraction(0)  # where the frames so far end, counted from the first
        self.paused = Fraction(0)

    def frames(self) -> Iterator[Decoded]:
        with open_container(self.path) as container:
            stream = video_stream(container, self.path)
            # decoders work on whole blocks, so that a frame of just the allowed size is larger there
            self.decoder = stream.codec_context
            self.decoder.options = {"max_pixels": str(min(2 * self.most_pixels, MAX_PIXELS))}
            if self.threads:
                stream.thread_type = "AUTO"
            try:
                for packet in self.packets(container, stream):
                    for frame in self.decoded(packet):
                        yield self.stamped(frame)
            finally:
                # ends the decoder's threads while they may still write to a log of PyAV's (torchvision sets one), which
                # waits for Python's lock; PyAV holds that lock when it frees a decoder, and both would wait for ever
                self.decoder.flush_buffers()
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
        except (av.FFmpegError, ValueError) as error:  # PyAV 19: the latter, once the decoder could not be opened
            if not packet.is_corrupt:
                self.damaged()
            self.refused(error)
            return
        self.num_refused = 0
        for frame in frames:
            if isinstance(frame, VideoFrame):
                if frame.width * frame.height > self.most_pixels:
                    raise self.too_large(f"{frame.width}x{frame.height}")
                if frame.is_corrupt and not packet.is_corrupt:
                    self.damaged()
                yield frame

    def refused(self, error: av.FFmpegError | ValueError) -> None:
        """Tell damage, of which the next packet knows nothing, from frames that the decoder takes no memory for."""
        width, height = (self.decoder.width, self.decoder.height) if self.decoder else (1, 1)
        number = error.errno if isinstance(error, av.FFmpegError) else None
        asked = width * height > self.most_pixels or number in NO_MEMORY
        forgot = not width and (number == errno.EINVAL or self.num_refused > 0)  # some forget the size then
        self.num_refused = self.num_refused + 1 if asked or forgot else 0
        if self.num_refused > 1 or number in NO_MEMORY:
            raise self.too_large("a stream that asks for more") from error

    def too_large(self, got: str) -> InflateError:
        return InflateError(
            "a frame is too large",
            where=str(self.path),
            expected=f"at most {self.most_pixels:,} pixels in each frame",
            got=f"{got}, after {self.num_frames} frames",
            fix="scale it: ffmpeg -i IN.mp4 -vf scale=-2:1080 OUT.mp4",
        )

    def stamped(self, frame: VideoFrame) -> Decoded:
        self.num_frames += 1
        base = frame.time_base
        # an unknown base is None, and 0 from PyAV 19 on
        time = frame.pts * base if frame.pts is not None and base else None
        duration = frame.duration * base if frame.duration and base else None
        if time is not None:
            if self.first is None or self.latest is None:
                self.first = time
            elif abs(time - self.latest) > MAX_PAUSE_SECONDS:
                self.first = time - self.end
            self.first, self.latest = min(self.first, time), time
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
        if self.num_refused:
            raise self.too_large("a stream that asks for more")
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


def unreadable(path: Path, error: OSError) -> InflateError:
    """Tell that the system does not let a file or folder be read."""
    return InflateError(
        "the file or folder cannot be read",
        where=str(path),
        expected="a file or folder that you may read",
        got=f"{type(error).__name__}: {error.strerror or error}",
        fix=f"chmod u+rX '{path}'",
    )


def _refused(path: Path, error: av.FFmpegError) -> InflateError:
    """Find out why FFmpeg does not open a file."""
    try:
        size, boxes = path.stat().st_size, _boxes(path)
        with path.open("rb") as file:
            start = file.read(24)
    except OSError as failure:
        return unreadable(path, failure)
    if size == 0:
        return InflateError(
            "the file is empty",
            where=str(path),
            expected="a video file",
            got="0 bytes",
            fix="copy or download the file again",
        )
    if "mdat" in boxes and "moov" not in boxes:
        return InflateError(
            "the index (moov) is missing, so the file was probably cut off while it was written or copied",
            where=str(path),
            expected="an MP4 or MOV file with the boxes ftyp, mdat and moov",
            got=f"{size} bytes with the boxes {', '.join(boxes)}",
            fix="copy or download it again, or rebuild the index from an intact file of the same camera with `untrunc`",
        )
    return InflateError(
        "FFmpeg cannot open the file",
        where=str(path),
        expected="a video in a format that FFmpeg knows (MP4, MOV, MKV, WebM, AVI, MPEG, GIF, ...)",
        got=f"{size} bytes that begin with {start!r} ({error.strerror})",
        fix="pass a video, or copy or download this one again",
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
