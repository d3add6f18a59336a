"""Damaged and wrong files: what can be read is kept and what is lost is said; the rest is refused with advice."""

import struct
import warnings
from types import SimpleNamespace
from unittest.mock import Mock

import av
import pytest

from inflate3d.clips import decoding
from inflate3d.clips.video import open_frames
from inflate3d.errors import InflateError, InflateWarning
from inflate3d.speed.ahead import ahead
from videos import cut_off, damage, number_in, paint, remux, write_video


def numbers_in(path):
    return [number_in(frame.picture) for frame in open_frames(path, fps="native")]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """150 frames, a key frame every 30."""
    return write_video(tmp_path_factory.mktemp("whole") / "whole.mp4", map(paint, range(150)), g="30")


@pytest.fixture
def streamable(whole, tmp_path):
    """The same with the index in front, so that the tail can be lost."""
    return remux(whole, tmp_path / "front.mp4", movflags="faststart")


@pytest.mark.parametrize("text", ["ffconcat version 1.0\nfile whole.mp4\n", "#EXTM3U\n#EXTINF:8,\nwhole.mp4\n"])
def test_a_list_of_other_files_is_no_video(whole, text):
    """A stranger's upload must not open what lies beside it."""
    path = whole.with_name("list.mp4")
    path.write_text(text)
    with pytest.raises(InflateError, match=r"list\.mp4"):
        next(iter(open_frames(path)))


def test_a_tail_cut_off_keeps_what_came_before(streamable):
    cut_off(streamable, 0.66)
    with pytest.warns(InflateWarning, match=r"front\.mp4: damaged in \d+ places.* frames \(2\.\d+ s\) were read"):
        numbers = numbers_in(streamable)
    assert numbers == list(range(len(numbers)))
    assert 80 < len(numbers) < 100


@pytest.mark.parametrize(("suffix", "codec"), [("mkv", "libx264"), ("webm", "libvpx-vp9")])
def test_a_tail_that_ends_between_packets_is_noticed_by_the_header(tmp_path, suffix, codec):
    path = cut_off(write_video(tmp_path / f"x.{suffix}", map(paint, range(150)), codec=codec), 0.66)
    with pytest.warns(InflateWarning, match=r"probably cut off, its header promises 5\.00 s; \d+ frames"):
        numbers = numbers_in(path)
    assert numbers[:90] == list(range(90))  # of the last ones some look ahead to what is lost


def test_noise_at_the_end_is_left_out(streamable):
    damage(streamable, 0.66, 1)
    with pytest.warns(InflateWarning, match="damaged in"):
        numbers = numbers_in(streamable)
    assert numbers[:80] == list(range(80))


@pytest.mark.parametrize(
    ("suffix", "codec"), [("mp4", "libx264"), ("mkv", "libx264"), ("avi", "mpeg4"), ("ts", "libx264")]
)
def test_reading_goes_on_behind_a_damaged_middle(tmp_path, suffix, codec):
    path = write_video(tmp_path / f"x.{suffix}", map(paint, range(150)), codec=codec, g="30")
    damage(path, 0.50, 0.53)
    with pytest.warns(InflateWarning, match="damaged in|no frames for"):
        frames = list(open_frames(path, fps="native"))
    numbers = [number_in(frame.picture) for frame in frames]
    assert numbers[:50] == list(range(50))
    assert numbers[-20:] == list(range(130, 150))
    if suffix in {"mp4", "mkv"}:  # these know each frame's time, so that what was lost leaves a gap
        assert frames[-1].time_seconds == pytest.approx(149 / 30, abs=1e-3)


def test_damage_gives_the_same_frames_with_and_without_threads(streamable):
    damage(streamable, 0.50, 0.53)
    with pytest.warns(InflateWarning, match="damaged in"):
        alone = [frame.time for frame in decoding._Pass(streamable, threads=False).frames()]
        assert [frame.time for frame in decoding.decode(streamable)] == alone


def test_frames_that_a_decoder_with_threads_loses_at_the_end_are_found(whole, monkeypatch):
    frames = decoding._Pass.decoded

    def losing_the_last(self, packet):
        return () if self.threads and packet.size == 0 else frames(self, packet)

    monkeypatch.setattr(decoding._Pass, "decoded", losing_the_last)
    assert numbers_in(whole) == list(range(150))


def test_frames_lost_in_the_middle_are_neither_repeated_nor_hushed_up(whole, monkeypatch):
    frames = decoding._Pass.decoded

    def losing_some(self, packet):
        found = list(frames(self, packet))
        return [] if self.threads and 40 <= self.num_packets < 43 else found

    monkeypatch.setattr(decoding._Pass, "decoded", losing_some)
    with pytest.warns(InflateWarning, match=r"whole\.mp4: 3 frames before 4\.97 s were lost beside damage"):
        found = list(open_frames(whole, fps="native"))
    numbers = [number_in(frame.picture) for frame in found]
    assert len(numbers) == 147
    assert numbers == sorted(set(numbers))
    assert [round(frame.time_seconds * 30) for frame in found] == numbers


def test_the_second_pass_goes_on_behind_the_last_frame_that_was_given():
    def rest(times, given, last):
        frames = (decoding.Stamped(time, None, i) for i, time in enumerate(times))
        return [frame.item for frame in decoding._behind(frames, given, last, "x")]

    assert rest(range(9), 0, None) == list(range(9))
    assert rest(range(9), 4, 3) == [4, 5, 6, 7, 8]
    assert rest([None] * 9, 4, None) == [4, 5, 6, 7, 8]
    assert rest([0, 1, 3, 2, 4], 4, 2) == [4]  # out of order, as XviD in AVI says
    assert rest([0, 1, 2, 0, 1, 2], 4, 0) == [4, 5]  # two streams joined
    assert rest([0, 1, 2, 4, 5], 4, 3) == [3, 4]  # the last one given does not come again
    assert rest([0, 1, 2, 3, 0, 1], 4, 90) == [3, 4, 5]
    assert rest(range(3), 4, 3) == []


def test_a_jump_of_the_timestamps_is_no_pause_and_no_cut(tmp_path):
    path = write_video(tmp_path / "x.ts", map(paint, range(60)), ticks=[*range(30), *range(10**6, 10**6 + 30)])
    with pytest.warns(InflateWarning, match="jump ahead") as warned:
        frames = list(open_frames(path, fps=30))
    assert [number_in(frame.picture) for frame in frames] == list(range(60))
    assert len(warned) == 1


class FailingDemuxer:
    """Fails for each second packet, and ends when it does."""

    def __init__(self, container):
        self.container = container

    def demux(self, stream):
        for count, packet in enumerate(self.container.demux(stream)):
            if count % 2:
                raise av.InvalidDataError(1, "broken")
            yield packet


def test_read_errors_are_counted_and_passed_by(whole):
    with av.open(str(whole)) as container:
        run = decoding._Pass(whole, threads=False)
        packets = list(run.packets(FailingDemuxer(container), container.streams.video[0]))
    assert run.num_damaged == 75
    assert len(packets) >= 75


def test_a_file_that_only_fails_is_given_up(whole):
    class Broken:
        def demux(self, stream):
            raise av.InvalidDataError(1, "broken")
            yield

    run = decoding._Pass(whole, threads=False)
    assert list(run.packets(Broken(), None)) == []
    assert run.num_damaged == decoding.MAX_READ_ERRORS


def test_no_frame_at_all_is_an_error(streamable):
    data = streamable.read_bytes()
    damage(streamable, (data.index(b"mdat") + 4) / len(data), 1)
    with av.open(str(streamable)) as container:
        assert container.streams.video
    with pytest.raises(InflateError, match=r"(?s)no frame can be decoded.*packets.*damaged"):
        numbers_in(streamable)


def test_a_video_without_its_index_was_cut_off(whole, tmp_path):
    path = tmp_path / "no-index.mp4"
    path.write_bytes(whole.read_bytes())
    with pytest.raises(InflateError, match=r"(?s)index \(moov\) is missing.*cut off.*untrunc"):
        open_frames(cut_off(path, 0.66))


def test_boxes_of_more_than_four_gigabytes_are_known(tmp_path):
    path = tmp_path / "long.mp4"
    box = struct.pack(">I4sQ", 1, b"mdat", 16 + 100) + bytes(100)  # the length is 1, the true one follows in 64 bits
    path.write_bytes(struct.pack(">I4s4sI", 16, b"ftyp", b"isom", 0) + box + struct.pack(">I4s", 8, b"free"))
    with pytest.raises(InflateError, match=r"(?s)index \(moov\) is missing.*boxes ftyp, mdat, free"):
        open_frames(path)


@pytest.mark.parametrize(
    ("error", "corrupt", "count"),
    [(av.EOFError, False, 0), (av.InvalidDataError, False, 1), (av.InvalidDataError, True, 1), (None, True, 1)],
)
def test_each_damaged_packet_counts_once_and_the_end_of_a_stream_not(whole, error, corrupt, count):
    run = decoding._Pass(whole, threads=False)
    decode = Mock(side_effect=error and error(1, "broken"), return_value=[])
    assert list(run.decoded(SimpleNamespace(is_corrupt=corrupt, decode=decode))) == []
    assert run.num_damaged == count


def test_an_empty_file(tmp_path):
    (tmp_path / "empty.mp4").touch()
    with pytest.raises(InflateError, match=r"empty\.mp4: the file is empty"):
        open_frames(tmp_path / "empty.mp4")


def test_text_named_video(tmp_path):
    (tmp_path / "text.mp4").write_text("<html>404 Not Found</html>\n" * 30)
    with pytest.raises(InflateError, match=r"(?s)FFmpeg cannot open the file.*b'<html>404"):
        open_frames(tmp_path / "text.mp4")


def write_sound(path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame(format="fltp", layout="mono", samples=1024)
        frame.sample_rate, frame.pts = 44100, 0
        for plane in frame.planes:
            plane.update(bytes(plane.buffer_size))
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def test_sound_alone(tmp_path):
    with pytest.raises(InflateError, match=r"(?s)there is no video in this file.*with audio"):
        open_frames(write_sound(tmp_path / "sound.m4a"))


def test_a_cover_picture_is_no_video(tmp_path):
    path = write_video(tmp_path / "cover.mp4", [paint(0)], codec="mjpeg", pix_fmt="yuvj420p")
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert decoding.video_stream(container, path) is stream
        stream.disposition = av.stream.Disposition.attached_pic
        with pytest.raises(InflateError, match="there is no video in this file"):
            decoding.video_stream(container, path)


def test_a_codec_that_nobody_knows(tmp_path):
    path = write_video(tmp_path / "x.mkv", map(paint, range(3)), codec="ffv1")
    path.write_bytes(path.read_bytes().replace(b"V_FFV1", b"V_XXXX"))
    with pytest.raises(InflateError, match="no decoder for the video stream"):
        open_frames(path)


def test_a_missing_file_names_its_neighbors(tmp_path):
    for name in ("clip_01.mp4", "clip_02.mp4", "other.txt"):
        (tmp_path / name).touch()
    with pytest.raises(InflateError, match=r"(?s)there is no such file.*did you mean clip_01\.mp4"):
        open_frames(tmp_path / "clip_1.mp4")
    with pytest.raises(InflateError, match=rf"(?s)there is no such file.*ls '{tmp_path}'"):
        open_frames(tmp_path / "nowhere" / "clip.mp4")


def test_a_video_file_has_its_own_clock(whole):
    with pytest.raises(InflateError, match="a video file has its own clock"):
        open_frames(whole, frames_fps=30)


@pytest.mark.parametrize("fps", [0, -25, float("nan"), float("inf")])
def test_rates_are_positive(whole, fps):
    with pytest.raises(InflateError, match="frames per second have to be positive"):
        open_frames(whole, fps=fps)


@pytest.mark.parametrize("fps", ["fast", None, True])
def test_rates_are_numbers(whole, fps):
    with pytest.raises(InflateError, match=r"(?s)frames per second are a number.*or \"native\""):
        open_frames(whole, fps=fps)


@pytest.mark.parametrize(
    ("codec", "suffix", "skipped"),
    [("libx264", "ts", 0), ("mpeg2video", "ts", 0), ("libvpx", "ivf", 32), ("libvpx-vp9", "ivf", 32),
     ("libx265", "ts", 0), ("mjpeg", "mjpeg", 0)],
)  # fmt: skip
def test_frames_that_grow_beyond_a_limit_are_refused(tmp_path, codec, suffix, skipped):
    """Two streams in one file; the header knows the first, and the decoder takes no memory for the second.

    No AV1: the encoder (SVT) gives this process real-time priority for good where it may, and all else starves.
    """
    pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    sizes = ((46, 72), (480, 640))
    parts = [
        write_video(tmp_path / f"{h}.{suffix}", (paint(i, h, w) for i in range(20)), codec=codec, pix_fmt=pix_fmt)
        for h, w in sizes
    ]
    path = tmp_path / f"joined.{suffix}"
    path.write_bytes(parts[0].read_bytes() + parts[1].read_bytes()[skipped:])
    for limit in (20_000, 200_000):  # beyond the second one decoders give a frame out, which is measured
        with (
            warnings.catch_warnings(action="ignore"),
            decoding.at_most(limit),
            pytest.raises(InflateError, match=rf"(?s)a frame is too large.*at most {limit:,} pixels"),
        ):
            numbers_in(path)
    with warnings.catch_warnings(action="ignore"), decoding.at_most(640 * 480):
        assert len(numbers_in(path)) >= 36


def test_a_limit_goes_along_into_the_thread_that_reads_ahead(whole):
    with decoding.at_most(1000), pytest.raises(InflateError, match=r"(?s)a frame is too large.*72x46|asks for more"):
        list(ahead(iter(open_frames(whole, fps="native"))))


def test_a_damaged_size_is_skipped_like_other_damage(tmp_path):
    """One key frame of VP8 that asks for 16,383 x 16,383 pixels, among whole ones that all are key frames."""
    path = write_video(tmp_path / "x.webm", map(paint, range(9)), codec="libvpx", g="1")
    head, *parts = path.read_bytes().split(b"\x9d\x01\x2a")
    parts[4] = b"\xff\x3f\xff\x3f" + parts[4][4:]
    path.write_bytes(b"\x9d\x01\x2a".join([head, *parts]))
    with pytest.warns(InflateWarning, match="damaged in 1 places"):
        assert [number for number in numbers_in(path) if number != 4] == [0, 1, 2, 3, 5, 6, 7, 8]
