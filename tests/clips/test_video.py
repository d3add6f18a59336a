"""Videos of every kind: the right frames, upright and in colour, at the right times."""

import gc
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from inflate3d.clips import video
from inflate3d.clips.clip import Clip
from inflate3d.clips.video import open_frames, read_clip
from inflate3d.errors import InflateError, InflateWarning
from videos import looks_upright, number_in, paint, remux, with_display_matrix, with_late_start, write_video


def numbered(count, height=46, width=72):
    return [paint(number, height, width) for number in range(count)]


def read(source, **options):
    """Numbers and times of all frames, and the frames."""
    frames = list(open_frames(source, **options))
    return [number_in(frame.picture) for frame in frames], [frame.time_seconds for frame in frames], frames


def nearest_by_hand(times, end, fps):
    """The definition, by trying all frames: which frame is nearest to k/fps."""
    outputs, k = [], 0
    while k == 0 or (k + Fraction(1, 2)) / fps <= end:
        outputs.append(min(range(len(times)), key=lambda i: (abs(times[i] - Fraction(k) / fps), i)))
        k += 1
    return outputs


@pytest.fixture(scope="module")
def thirty(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("videos") / "thirty.mp4", numbered(53))


# --- what every kind of file has in common: the frames that went in come out ---

KINDS = {
    "h264.mp4": ("libx264", "yuv420p"),
    "h265-10bit.mp4": ("libx265", "yuv420p10le"),
    "h264.mkv": ("libx264", "yuv420p"),
    "h264.ts": ("libx264", "yuv420p"),
    "vp9.webm": ("libvpx-vp9", "yuv420p"),
    "vp8.webm": ("libvpx", "yuv420p"),
    "xvid.avi": ("mpeg4", "yuv420p"),
    "mpeg2.mkv": ("mpeg2video", "yuv420p"),
    "motion-jpeg.avi": ("mjpeg", "yuvj420p"),
    "prores.mov": ("prores", "yuv422p10le"),
    "ffv1-10bit.mkv": ("ffv1", "yuv420p10le"),
    "alpha-qtrle.mov": ("qtrle", "argb"),
    "alpha-png.mov": ("png", "rgba"),
    "animated.gif": ("gif", "rgb8"),
}


@pytest.mark.parametrize("name", KINDS)
def test_every_frame_comes_out_upright_and_in_color(tmp_path, name):
    codec, pix_fmt = KINDS[name]
    options = {"x265-params": "log-level=none"} if codec == "libx265" else {}
    fps = 25  # a whole number of hundredths, which is how GIF counts
    path = write_video(tmp_path / name, numbered(11), codec=codec, pix_fmt=pix_fmt, fps=fps, **options)
    numbers, times, frames = read(path, fps="native")
    assert numbers == list(range(11))
    assert times == pytest.approx([i / fps for i in range(11)], abs=6e-4)  # MKV counts in milliseconds
    assert times[0] == 0
    assert all(looks_upright(frame.picture) for frame in frames)
    assert {(frame.picture.shape, frame.picture.dtype) for frame in frames} == {((46, 72, 3), np.dtype(np.uint8))}


@pytest.mark.parametrize(("height", "width"), [(45, 67), (64, 8), (8, 64), (331, 17)])
@pytest.mark.parametrize("codec", ["ffv1", "libx264"])
def test_odd_and_tiny_sizes(tmp_path, height, width, codec):
    path = write_video(tmp_path / "odd.mkv", numbered(7, height, width), codec=codec, pix_fmt="yuv444p")
    numbers, _, frames = read(path, fps="native")
    assert numbers == list(range(7))
    assert frames[0].picture.shape == (height, width, 3)


@pytest.mark.parametrize("count", [1, 8])
def test_short_videos(tmp_path, count):
    assert read(write_video(tmp_path / "short.mp4", numbered(count)), fps="native")[0] == list(range(count))


def test_a_single_picture_lasts_one_frame_whatever_the_rate(tmp_path):
    path = write_video(tmp_path / "one.mp4", numbered(1), fps=30)
    assert read(path, fps=1)[0] == [0]
    assert read(path, fps=90)[0] == [0, 0, 0]


def test_gray_comes_out_as_three_equal_channels(tmp_path):
    path = write_video(tmp_path / "gray.mkv", numbered(5), codec="ffv1", pix_fmt="gray")
    numbers, _, frames = read(path, fps="native")
    assert numbers == list(range(5))
    assert (frames[3].picture == frames[3].picture[..., :1]).all()


def test_interlaced_frames_are_woven_not_dropped(tmp_path):
    options = {"flags": "+ildct+ilme", "top": "1"}
    path = write_video(tmp_path / "i.mkv", numbered(9), codec="mpeg2video", **options)
    with av.open(str(path)) as container:
        assert any(frame.interlaced_frame for frame in container.decode(video=0))
    assert read(path, fps="native")[0] == list(range(9))


# --- times ---


@pytest.mark.parametrize("fps", [25, 24, 30, 12.5, 7, 60, 30000 / 1001, 1])
def test_resampling_takes_the_nearest_frame(thirty, fps):
    numbers, times, _ = read(thirty, fps=fps)
    rate = Fraction(fps).limit_denominator(10_000)
    assert numbers == nearest_by_hand([Fraction(i, 30) for i in range(53)], Fraction(53, 30), rate)
    assert times == [float(k / rate) for k in range(len(numbers))]


def test_twenty_five_is_the_default(thirty):
    assert read(thirty)[0] == read(thirty, fps=25)[0] != read(thirty, fps="native")[0]


def test_variable_frame_rate_keeps_its_times_and_resamples_by_them(tmp_path):
    ticks = [0, 1, 2, 12, 13, 20]
    path = write_video(tmp_path / "vfr.mp4", numbered(6), ticks=ticks)
    assert read(path, fps="native")[:2] == ([0, 1, 2, 3, 4, 5], [tick / 30 for tick in ticks])
    times = [Fraction(tick, 30) for tick in ticks]
    end = times[-1] + Fraction(1, 30)
    assert read(path, fps=25)[0][:17] == nearest_by_hand(times, end, Fraction(25))[:17]


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
def test_time_starts_with_the_first_frame(tmp_path, suffix):
    late = write_video(tmp_path / f"late.{suffix}", numbered(6), ticks=range(900, 906))
    numbers, times, _ = read(late, fps="native")
    assert numbers == list(range(6))
    assert times == pytest.approx([i / 30 for i in range(6)], abs=1.1e-3)


@pytest.mark.parametrize("num_hidden", [10, 47])
def test_an_edit_list_hides_frames_and_the_header_still_counts_them(tmp_path, num_hidden):
    path = with_late_start(write_video(tmp_path / "cut.mp4", numbered(53)), num_hidden)
    numbers, times, _ = read(path, fps="native")
    assert numbers == list(range(num_hidden, 53))
    assert times[0] == 0
    with av.open(str(path)) as container:
        assert container.streams.video[0].frames == 53


def test_webm_counts_no_frames_in_its_header(tmp_path):
    path = write_video(tmp_path / "x.webm", numbered(7), codec="libvpx-vp9")
    with av.open(str(path)) as container:
        assert container.streams.video[0].frames == 0
    stream = open_frames(path)
    assert stream.duration_seconds_estimate == pytest.approx(7 / 30, abs=2e-3)


def test_a_stream_without_any_header_says_nothing_of_its_length_and_counts_frames(tmp_path):
    path = write_video(tmp_path / "bare.h264", numbered(11), fps=25)
    assert open_frames(path).duration_seconds_estimate is None
    with pytest.warns(InflateWarning, match=r"bare\.h264: some frames have no timestamp"):
        numbers, times, _ = read(path, fps="native")
    assert numbers == list(range(11))
    assert times == [i / 25 for i in range(11)]


def test_streams_joined_end_to_end_go_on(tmp_path):
    first = write_video(tmp_path / "first.ts", numbered(31))
    second = write_video(tmp_path / "second.ts", numbered(7))
    first.write_bytes(first.read_bytes() + second.read_bytes())
    with pytest.warns(InflateWarning) as warned:
        numbers, times, _ = read(first, fps="native")
    assert "timestamps jump back" in " ".join(str(warning.message) for warning in warned)
    assert numbers == [*range(31), *range(7)]
    assert times == pytest.approx([i / 30 for i in range(38)])


# --- display matrix, sizes ---

# how a phone's matrix [a b; c d] shows the stored picture
TURNS = {
    "clockwise": ((0, 1, -1, 0), lambda stored: np.rot90(stored, -1)),
    "counter-clockwise": ((0, -1, 1, 0), lambda stored: np.rot90(stored, 1)),
    "upside down": ((-1, 0, 0, -1), lambda stored: stored[::-1, ::-1]),
    "mirrored": ((-1, 0, 0, 1), lambda stored: stored[:, ::-1]),
    "flipped": ((1, 0, 0, -1), lambda stored: stored[::-1]),
    "transposed": ((0, 1, 1, 0), lambda stored: stored.swapaxes(0, 1)),
}


@pytest.mark.parametrize("turn", TURNS)
def test_the_display_matrix_is_applied(tmp_path, turn):
    matrix, shown = TURNS[turn]
    stored = read(write_video(tmp_path / "x.mp4", numbered(3)), fps="native")[2]
    turned = read(with_display_matrix(tmp_path / "x.mp4", matrix), fps="native")[2]
    for before, after in zip(stored, turned, strict=True):
        np.testing.assert_array_equal(after.picture, shown(before.picture))


def test_a_video_filmed_upright_comes_out_upright(tmp_path):
    sideways = [np.rot90(picture, 1) for picture in numbered(5)]  # the sensor lies on its side
    path = with_display_matrix(write_video(tmp_path / "phone.mp4", sideways), (0, 1, -1, 0))
    numbers, _, frames = read(path, fps="native")
    assert numbers == list(range(5))
    assert looks_upright(frames[0].picture)


def test_a_change_of_size_is_scaled_away_and_said(tmp_path):
    first = write_video(tmp_path / "first.ts", numbered(19))
    write_video(tmp_path / "second.ts", numbered(7, 62, 94), ticks=range(19, 26))
    first.write_bytes(first.read_bytes() + (tmp_path / "second.ts").read_bytes())
    with pytest.warns(InflateWarning) as warned:
        numbers, _, frames = read(first, fps="native")
    text = " ".join(str(warning.message) for warning in warned)
    assert "the frames change from 72x46 to 94x62 pixels" in text
    assert {frame.picture.shape for frame in frames} == {(46, 72, 3)}
    assert numbers == [*range(19), *range(7)]


# --- streaming ---


def open_files():
    gc.collect()
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts open files the Linux way")
def test_a_stream_is_read_as_often_as_wanted_and_closes_its_file(thirty):
    before = open_files()
    stream = open_frames(thirty)
    assert open_files() == before
    assert [frame.time_seconds for frame in stream] == [frame.time_seconds for frame in stream]
    for frame in stream:
        if frame.time_seconds > 0.1:
            break
    assert open_files() == before


def test_reading_the_beginning_decodes_the_beginning_only(tmp_path, monkeypatch):
    path = write_video(tmp_path / "long.mp4", (paint(i % 256) for i in range(700)), codec="mpeg4")
    decoded = []
    monkeypatch.setattr(
        video, "decode", lambda path, decode=video.decode: (decoded.append(1) or f for f in decode(path))
    )
    frames = iter(open_frames(path, fps="native"))
    assert [number_in(next(frames).picture) for _ in range(10)] == list(range(10))
    assert len(decoded) <= 10 + 17


def test_only_frames_that_are_given_out_become_pictures(thirty, monkeypatch):
    drawn = []
    call = video.Drawer.__call__
    monkeypatch.setattr(video.Drawer, "__call__", lambda self, frame: drawn.append(frame.pts) or call(self, frame))
    assert len(list(open_frames(thirty, fps=5))) == len(drawn) == 9
    drawn.clear()
    assert len(list(open_frames(thirty, fps=90))) == 159
    assert len(drawn) == 53


def test_frames_are_freed_without_the_garbage_collector(thirty):
    gc.collect()
    gc.disable()
    try:
        before = sum(type(thing) is av.VideoFrame for thing in gc.get_objects())
        list(open_frames(thirty, fps="native"))
        assert sum(type(thing) is av.VideoFrame for thing in gc.get_objects()) - before <= 1
    finally:
        gc.enable()


# --- read_clip ---


def test_read_clip_gives_channels_first_with_times(thirty):
    clip = read_clip(thirty, fps=10)
    assert isinstance(clip, Clip)
    assert (clip.data.shape, clip.data.dtype) == ((3, 18, 46, 72), torch.uint8)
    assert clip.times_seconds.tolist() == [k / 10 for k in range(18)]
    assert clip.times_seconds.dtype == torch.float64
    assert clip.source == str(thirty)
    assert [number_in(frame.numpy()) for frame in clip.data.permute(1, 2, 3, 0)] == [3 * k for k in range(18)]


def test_read_clip_reads_a_part_with_the_frames_of_the_whole(thirty):
    whole = read_clip(thirty)
    part = read_clip(thirty, start_seconds=0.12, num_frames=7)
    torch.testing.assert_close(part.data, whole.data[:, 3:10], rtol=0, atol=0)
    assert part.times_seconds.tolist() == whole.times_seconds[3:10].tolist()


def test_read_clip_gives_fewer_frames_where_the_video_ends(thirty):
    assert read_clip(thirty, start_seconds=1.6, num_frames=64).data.shape[1] == 4


def test_read_clip_refuses_what_cannot_be(thirty):
    with pytest.raises(InflateError, match=r"(?s)ends before the part to read.*start_seconds below 1\.76"):
        read_clip(thirty, start_seconds=5)


@pytest.mark.parametrize("part", [
    {"num_frames": 0}, {"num_frames": 2.5}, {"num_frames": True}, {"start_seconds": -1},
    {"start_seconds": float("nan")}, {"start_seconds": float("inf")}, {"start_seconds": None},
])  # fmt: skip
def test_read_clip_refuses_parts_that_are_none(thirty, part):
    with pytest.raises(InflateError, match="this is no part of a video"):
        read_clip(thirty, **part)


# --- real files ---

REAL = [
    "clean_and_jerk/v_GGSY1Qvo990.mp4",
    "k400_cleaning_pool/test.mp4",
    "ucf101_ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi",
    "ucf101_BabyCrawling/video3.avi",
    "ucf101_Basketball/v_Basketball_g01_c01.avi",
    "walking_the_dog/v_ZNVhz7ctTq0.mp4",
]


@pytest.mark.shared
@pytest.mark.parametrize("name", REAL)
def test_real_clips_give_all_frames_in_the_order_of_the_decoder(shared, name):
    path = shared / "data" / "videos" / "singles" / name
    with av.open(str(path)) as container:
        plain = list(container.decode(video=0))
        times = sorted(frame.pts * frame.time_base for frame in plain)
    if path.suffix == ".avi" and "Basketball" not in name:  # XviD with frames that look ahead
        with pytest.warns(InflateWarning, match="timestamps do not rise") as warned:
            frames = list(open_frames(path, fps="native"))
        assert len(warned) == 1
    else:
        frames = list(open_frames(path, fps="native"))
    assert [frame.time_seconds for frame in frames] == [float(time - times[0]) for time in times]
    for frame, expected in zip(frames[:40:13], plain[:40:13], strict=True):
        np.testing.assert_array_equal(frame.picture, expected.to_ndarray(format="rgb24"))


def test_copying_packets_changes_nothing(thirty, tmp_path):
    assert read(remux(thirty, tmp_path / "x.mkv"), fps="native")[0] == list(range(53))


def test_a_reader_that_stops_early_waits_for_no_log(tmp_path):
    """PyAV frees a decoder with Python's lock held, for which its log waits in the decoder's threads: both would hang.

    The torchvision of torch 2.8 switches that log on when it is imported.
    """
    noise = np.random.default_rng(0).integers(0, 256, (60, 30, 40, 3), np.uint8).repeat(8, 1).repeat(8, 2)
    video = write_video(tmp_path / "a.mp4", list(noise), fps=25)
    code = f"""
import logging, pathlib, av
from inflate3d.clips.video import open_frames
av.logging.set_level(av.logging.DEBUG)
logging.disable()
for number in range(60):
    frames = iter(open_frames(pathlib.Path({str(video)!r}), fps=25))
    for _ in range(number % 7 + 1):
        next(frames)
    del frames
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
