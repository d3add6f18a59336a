"""A camera, a network stream or a pipe: pieces of frames as they come; what the reader is too slow for is dropped."""

import queue
import sys
import threading
import time
from collections.abc import Iterator
from fractions import Fraction
from typing import IO, NamedTuple

import av
from av.container import InputContainer
from av.video.frame import VideoFrame
from torch import Tensor

from inflate3d.clips.decoding import LIMITS, opening_options
from inflate3d.clips.sampling import exact_fps
from inflate3d.clips.transforms import resize_picture
from inflate3d.clips.video import Drawer, Rate
from inflate3d.errors import InflateError, is_number

STDIN = "-"
MAX_GAP_SECONDS = Fraction(2)  # between two frames; after a longer one time goes on as if there had been none
OPEN_SECONDS, READ_SECONDS = 10.0, 10.0  # without an answer: the source has died
MAX_WAIT_SECONDS = 5.0  # before the next attempt to reach it again
# A playlist must not lead to files of this machine
PROTOCOLS = "http,https,httpproxy,tcp,tls,udp,rtp,rtsp,rtmp,rtmps,srt,hls,crypto,data"
CAMERAS = {"linux": ("v4l2", "/dev/video{}"), "darwin": ("avfoundation", "{}")}


class LivePiece(NamedTuple):
    """Frames one after the other, without a gap.

    Attributes:
        pictures: Each `[h, w, 3]` uint8.
        time_seconds: Of the last one, since the first frame of the source.
        arrived_seconds: When the last one came, by `time.monotonic`.
        is_last: Whether the source has ended for good.
    """

    pictures: list[Tensor]
    time_seconds: float
    arrived_seconds: float
    is_last: bool


class _Arrived(NamedTuple):
    frame: VideoFrame
    moment: Fraction
    seconds: float


class LiveFrames:
    """A live source, read by a thread of its own: iterate over its pieces, and leave the loop or `close` to end.

    While nobody takes pieces, two are kept, and what comes then is dropped and counted: so pieces are never older than
    it takes to work on three of them. A source that dies is opened again, until it has been away for too long, and what
    came before is given as a shorter piece; one that tells how long it is, such as a file, is no live one and simply
    ends.

    Args:
        source: A URL (http, rtsp, rtmp, srt and others), the number of a camera, a device or file, or "-" for standard
            input, or an open binary file.
        fps: Frames per second to take, by the source's clock: the nearest one at each moment, as from a file; or
            "native" for all.
        short_side: Pixels of the shorter side, to which frames are resized.
        piece_frames: Frames of a piece, at most.
        patience_seconds: How long a source may be away.

    Attributes:
        num_frames: Frames that came in, at the wanted rate.
        num_dropped: Those of them that nobody had time for.
        num_reconnects: How often the source came back.

    Raises:
        InflateError: A number is none; while iterating: the source cannot be opened, or stays away.

    Example:
        >>> from inflate3d.weights.fetch import fetch_demo_clip
        >>> live = LiveFrames(str(fetch_demo_clip()), fps=5.0, short_side=32)
        >>> piece = next(iter(live))
        >>> len(piece.pictures), min(piece.pictures[0].shape[:2]), piece.time_seconds
        (16, 32, 3.0)
        >>> live.close()
    """

    def __init__(
        self,
        source: str | IO[bytes],
        *,
        fps: Rate = 25.0,
        short_side: int = 256,
        piece_frames: int = 16,
        patience_seconds: float = 60.0,
    ) -> None:
        if not is_number(patience_seconds) or patience_seconds < 0 or piece_frames < 1:
            raise InflateError(
                "a live source cannot be read so",
                where="LiveFrames",
                expected="patience_seconds >= 0, piece_frames >= 1",
                got=f"{patience_seconds=}, {piece_frames=}",
                fix="leave them out",
            )
        self.source, self.short_side, self.piece_frames = source, short_side, piece_frames
        self.step = None if fps == "native" else 1 / exact_fps(fps, "LiveFrames")
        self.patience_seconds = patience_seconds
        self.num_frames = self.num_dropped = self.num_reconnects = 0
        self.name = source if isinstance(source, str) else getattr(source, "name", "a pipe")
        self._drawer = Drawer(str(self.name))
        self._pieces: queue.Queue[LivePiece | InflateError | None] = queue.Queue(maxsize=1)
        self._pictures: list[Tensor] = []
        self._before: _Arrived | None = None  # the last frame that came
        self._latest: Fraction | None = None  # its time
        self._interval = Fraction(1, 25)  # for which a frame is shown
        self._next = Fraction(0)  # the moment that the next frame is wanted for
        self._shift: Fraction | None = None  # from the source's clock to ours
        self._last = 0.0, 0.0  # of the last frame that was taken: its time, and when it came
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def __iter__(self) -> Iterator[LivePiece]:
        """Begin to read, and give pieces as they come."""
        self._thread = threading.Thread(target=self._work, name="inflate3d-live", daemon=True)
        self._thread.start()
        try:
            while True:
                piece = self._pieces.get()
                if isinstance(piece, InflateError):
                    raise piece
                if piece is None:
                    return
                yield piece
        finally:
            self.close()

    def close(self) -> None:
        """End reading. The thread ends with it, or as soon as the source gives a sign."""
        self._stopped.set()

    def _put(self, piece: LivePiece | InflateError | None) -> None:
        while not self._stopped.is_set():
            try:
                self._pieces.put(piece, timeout=0.1)
                return
            except queue.Full:
                continue

    def _work(self) -> None:
        try:
            self._read_and_return()
            if self._before and self.step:
                self._give_until(self._before, self._before.moment + self._interval - self.step / 2)
            if self._pictures:
                self._put(self._piece(is_last=True))
            self._put(None)
        except InflateError as error:
            self._put(error)
        except Exception as error:  # handed on to the one who iterates, whatever it is
            self._put(self._broken(error))

    def _read_and_return(self) -> None:
        """Read the source, again and again while it comes back."""
        lost_since, wait, reason = 0.0, 0.5, "the stream ended"
        while not self._stopped.is_set():
            before = self.num_frames
            try:
                with self._opened() as container:
                    self.num_reconnects += self.num_frames > 0
                    is_recording = container.duration is not None
                    self._read(container)
                if is_recording or not isinstance(self.source, str) or self.source == STDIN:
                    return
                reason = "the stream ended"
            except (OSError, av.FFmpegError) as error:
                if self.num_frames == 0 or not isinstance(self.source, str):
                    raise self._broken(error) from error
                reason = f"{type(error).__name__}: {error}"
            if self.num_frames > before:
                lost_since, wait = time.monotonic(), 0.5
            stays_away = time.monotonic() + wait - lost_since > self.patience_seconds
            if self._pictures:  # an answer must not wait for what may never come
                self._put(self._piece(is_last=stays_away))
                self._pictures = []
            if stays_away:
                raise InflateError(
                    "the live source has gone and did not come back",
                    where=str(self.name),
                    expected=f"frames again within {self.patience_seconds:g} s",
                    got=reason,
                    fix="--patience 600 waits longer; otherwise start the source and then this again",
                )
            self._stopped.wait(wait)
            wait = min(2 * wait, MAX_WAIT_SECONDS)
            self._shift = None

    def _opened(self) -> InputContainer:
        if self.source == STDIN:
            return av.open(sys.stdin.buffer, mode="r", options=opening_options())
        if not isinstance(self.source, str):
            return av.open(self.source, mode="r", options=opening_options())
        timeouts = (OPEN_SECONDS, READ_SECONDS)
        if "://" in self.source:
            return av.open(self.source, mode="r", timeout=timeouts, options={"protocol_whitelist": PROTOCOLS, **LIMITS})
        kind, device = CAMERAS.get(sys.platform, ("", ""))
        if self.source.isdigit() and kind:
            return av.open(device.format(self.source), mode="r", format=kind, timeout=timeouts)
        if kind == "v4l2" and self.source.startswith("/dev/video"):
            return av.open(self.source, mode="r", format=kind, timeout=timeouts)
        return av.open(self.source, mode="r", timeout=timeouts, options=opening_options())

    def _read(self, container: InputContainer) -> None:
        stream = next(iter(container.streams.video), None)
        if stream is None:
            raise InflateError(
                "the live source has no video",
                where=str(self.name),
                expected="a video stream",
                got=", ".join(one.type for one in container.streams) or "no stream",
                fix="take another source",
            )
        stream.thread_type = "SLICE"  # threads over frames would hold some of them back
        self._interval = min(1 / (stream.average_rate or Fraction(25)), MAX_GAP_SECONDS)
        stream.codec_context.options = LIMITS
        for frame in container.decode(stream):
            if self._stopped.is_set():
                return
            stamp = frame.pts * frame.time_base if frame.pts is not None and frame.time_base else None
            self._take(frame, self._time_of(stamp, self._interval))

    def _time_of(self, stamp: Fraction | None, interval: Fraction) -> Fraction:
        """Bring a timestamp to our clock, which neither jumps nor stands still when the source begins anew."""
        if self._latest is None:
            self._latest, self._shift = Fraction(0), -stamp if stamp is not None else None
            return self._latest
        expected = self._latest + interval
        if stamp is None:
            self._latest = expected
            return expected
        if self._shift is None or not 0 < stamp + self._shift - self._latest <= MAX_GAP_SECONDS:
            self._shift = expected - stamp
        self._latest = stamp + self._shift
        return self._latest

    def _take(self, frame: VideoFrame, moment: Fraction) -> None:
        """Give the frame before this one for all moments that are nearer to it, as `nearest_frames` does."""
        before, self._before = self._before, _Arrived(frame, moment, time.monotonic())
        if self.step is None:
            self._give(self._before, 1)
        elif before is not None:
            self._give_until(before, (before.moment + moment) / 2)

    def _give_until(self, frame: "_Arrived", moment: Fraction) -> None:
        assert self.step is not None
        count = max(int((moment - self._next) // self.step) + 1, 0)
        self._next += count * self.step
        self._give(frame, count)

    def _give(self, frame: "_Arrived", count: int) -> None:
        picture: Tensor | None = None
        for _ in range(count):
            self.num_frames += 1
            if len(self._pictures) == self.piece_frames:
                try:
                    self._pieces.put_nowait(self._piece(is_last=False))
                except queue.Full:
                    self.num_dropped += 1
                    continue
                self._pictures = []
            if picture is None:  # what is dropped is never drawn
                picture = resize_picture(self._drawer(frame.frame), self.short_side)
            self._pictures.append(picture)
            self._last = float(frame.moment), frame.seconds

    def _piece(self, *, is_last: bool) -> LivePiece:
        return LivePiece(self._pictures, *self._last, is_last)

    def _broken(self, error: Exception) -> InflateError:
        return InflateError(
            "the live source cannot be read",
            where=str(self.name),
            expected="a URL, the number of a camera, a device, or - for a video on standard input",
            got=f"{type(error).__name__}: {error}",
            fix="try whether ffplay shows it; a pipe wants a format that needs no seeking: mkv, mpegts, nut",
        )
