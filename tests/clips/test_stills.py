"""Folders of pictures and arrays read like videos."""

import av
import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from inflate3d.clips.clip import Clip, ClipSpec
from inflate3d.clips.sampling import loop_frames
from inflate3d.clips.video import open_frames, read_clip
from inflate3d.errors import InflateError, InflateWarning
from videos import looks_upright, number_in, paint

PICTURES = np.stack([paint(number) for number in range(12)])


def read(source, **options):
    frames = list(open_frames(source, **options))
    return [number_in(frame.picture) for frame in frames], [frame.time_seconds for frame in frames], frames


# --- folders ---


def fill(folder, suffix=".png", names=None):
    for number, picture in enumerate(PICTURES):
        name = names[number] if names else f"frame{number}"
        Image.fromarray(picture).save(folder / f"{name}{suffix}", quality=95)
    return folder


@pytest.mark.parametrize("suffix", [".jpg", ".JPEG", ".png", ".bmp", ".webp", ".ppm", ".tif"])
def test_frames_are_sorted_as_people_count_whatever_their_format(tmp_path, suffix):
    (tmp_path / "labels.txt").write_text("no frame")
    numbers, times, frames = read(fill(tmp_path, suffix))
    assert numbers == list(range(12))
    assert times == [i / 25 for i in range(12)]
    assert looks_upright(frames[0].picture)


def test_percent_signs_and_colons_in_names_are_only_names(tmp_path):
    folder = tmp_path / "50%d: a"
    folder.mkdir()
    assert read(fill(folder, names=[f"f%03d:{i}" for i in range(12)]))[0] == list(range(12))


def test_folders_are_taken_to_be_at_the_wanted_rate_unless_told(tmp_path):
    fill(tmp_path)
    assert read(tmp_path, fps=10)[:2] == (list(range(12)), [i / 10 for i in range(12)])
    assert read(tmp_path, fps="native")[1] == [i / 25 for i in range(12)]
    assert read(tmp_path, fps="native", frames_fps=30)[1] == [i / 30 for i in range(12)]
    assert read(tmp_path, fps=10, frames_fps=30)[0] == [0, 3, 6, 9]
    assert open_frames(tmp_path, frames_fps=30).duration_seconds_estimate == 0.4
    assert open_frames(tmp_path).source == str(tmp_path)


def test_only_the_pictures_that_are_taken_are_opened(tmp_path):
    fill(tmp_path)
    (tmp_path / "frame1.png").write_bytes(b"broken")
    assert read(tmp_path, fps=10, frames_fps=30)[0] == [0, 3, 6, 9]
    with pytest.raises(InflateError, match=r"(?s)frame1\.png: the picture cannot be decoded.*6 bytes"):
        read(tmp_path)


def test_pictures_of_other_sizes_are_scaled_to_the_first(tmp_path):
    fill(tmp_path)
    Image.fromarray(paint(5, 62, 94)).save(tmp_path / "frame5.png")
    with pytest.warns(InflateWarning, match="the frames change from 72x46 to 94x62 pixels"):
        numbers, _, frames = read(tmp_path)
    assert numbers == list(range(12))
    assert {frame.picture.shape for frame in frames} == {(46, 72, 3)}


def test_each_photograph_is_turned_by_its_own_note(tmp_path):
    Image.fromarray(paint(1)).save(tmp_path / "1.png")
    for number, orientation, turn in ((2, 6, 1), (3, 8, -1), (4, 3, 2)):
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(np.rot90(paint(number), turn)).save(tmp_path / f"{number}.jpg", quality=95, exif=exif)
    numbers, _, frames = read(tmp_path)
    assert numbers == [1, 2, 3, 4]
    assert all(looks_upright(frame.picture) for frame in frames)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_photographs_are_upright_as_elsewhere(tmp_path, orientation, suffix):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"1.{suffix}"
    Image.fromarray(paint(1)).save(path, exif=exif)
    wanted = np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("RGB"))
    _, _, (frame,) = read(tmp_path)
    assert np.array_equal(frame.picture, wanted)


def test_colors_of_jpegs_are_those_of_the_programs_that_frames_are_written_for(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (24, 36, 3), np.uint8)
    Image.fromarray(noise).resize((72, 46)).save(tmp_path / "1.jpg", quality=90)  # color at half the size
    _, _, (frame,) = read(tmp_path)
    assert np.array_equal(frame.picture, np.asarray(Image.open(tmp_path / "1.jpg").convert("RGB")))


def test_gray_and_transparent_pictures_come_out_as_rgb(tmp_path):
    Image.fromarray(paint(1)).convert("L").save(tmp_path / "1.png")
    Image.fromarray(paint(2)).convert("RGBA").save(tmp_path / "2.png")
    Image.fromarray(paint(3)).convert("P").save(tmp_path / "3.png")
    assert read(tmp_path)[0] == [1, 2, 3]


def test_folders_without_pictures_are_refused(tmp_path):
    with pytest.raises(InflateError, match=r"(?s)the folder holds no frames.*an empty folder"):
        open_frames(tmp_path)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(InflateError, match=r"(?s)the folder holds no frames.*\.jpg.*notes\.txt"):
        open_frames(tmp_path)


# --- arrays ---


@pytest.mark.parametrize("make", [np.asarray, torch.from_numpy])
def test_arrays_of_bytes_are_read_as_they_are(make):
    numbers, times, frames = read(make(PICTURES))
    assert numbers == list(range(12))
    assert times == [i / 25 for i in range(12)]
    np.testing.assert_array_equal(frames[7].picture, PICTURES[7])
    assert open_frames(make(PICTURES)).source == "array [12, 46, 72, 3]"


def test_gray_arrays_become_rgb():
    picture = next(iter(open_frames(PICTURES[..., 0]))).picture
    np.testing.assert_array_equal(picture, np.repeat(PICTURES[0, ..., :1], 3, -1))


@pytest.mark.parametrize("value_range", [(0.0, 1.0), (-1.0, 1.0), (0.0, 255.0)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_floating_arrays_come_back_exactly_through_their_range(value_range, dtype):
    low, high = value_range
    floating = (PICTURES / 255 * (high - low) + low).astype(dtype)
    clip = read_clip(floating, value_range=value_range)
    np.testing.assert_array_equal(clip.data.permute(1, 2, 3, 0).numpy(), PICTURES)


def test_floating_arrays_have_to_say_their_range():
    with pytest.raises(InflateError, match=r"(?s)do not say what black and white are.*values from 0 to 255"):
        open_frames(PICTURES.astype(np.float32))
    with pytest.raises(
        InflateError, match=r"(?s)open_frames: values lie outside.*declare value_range=\(0\.0, 255\.0\)"
    ):
        open_frames(PICTURES.astype(np.float32), value_range=(0.0, 1.0))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (PICTURES.transpose(0, 3, 1, 2), "(?s)another shape than frames have.*move the channels last"),
        (PICTURES[0, 0], "another shape than frames have"),
        (PICTURES[..., :2], "another shape than frames have"),
        (PICTURES[:0], "the array holds no pixel"),
        (PICTURES.astype(np.int64), "the range does not fit the dtype"),
    ],
)
def test_other_arrays_are_refused(array, message):
    with pytest.raises(InflateError, match=message):
        open_frames(array)


def test_a_single_picture_file_is_a_video_of_one_frame(tmp_path):
    Image.fromarray(paint(77)).save(tmp_path / "one.png")
    assert read(tmp_path / "one.png")[0] == [77]
    with av.open(str(tmp_path / "one.png")) as container:
        assert container.streams.video


def test_arrays_that_run_backwards_through_memory_are_read(tmp_path):
    picture = next(iter(open_frames(PICTURES[..., ::-1]))).picture
    np.testing.assert_array_equal(picture, PICTURES[0, ..., ::-1])


def test_other_things_are_no_source():
    with pytest.raises(InflateError, match=r"(?s)this is no source of frames.*builtins\.list.*numpy\.stack"):
        open_frames(list(PICTURES))


def test_the_range_is_for_floating_arrays_only(tmp_path):
    with pytest.raises(InflateError, match="files and clips know their own range"):
        open_frames(tmp_path, value_range=(0.0, 1.0))
    with pytest.raises(InflateError, match="the range does not fit the dtype"):
        open_frames(PICTURES, value_range=(0.0, 1.0))


# --- clips ---


def test_a_clip_comes_back_with_its_times():
    clip = read_clip(PICTURES, fps=10)
    numbers, times, frames = read(clip, fps="native")
    assert (numbers, times) == (list(range(12)), clip.times_seconds.tolist())
    np.testing.assert_array_equal(frames[7].picture, PICTURES[7])
    assert read(clip, fps=5)[0] == list(range(0, 12, 2))
    assert read(clip, fps=20)[0] == [number for number in range(12) for _ in range(2)]


def test_a_clip_knows_its_own_clock_and_range():
    clip = read_clip(PICTURES)
    with pytest.raises(InflateError, match="files and clips know their own range"):
        open_frames(clip, value_range=(0.0, 255.0))
    with pytest.raises(InflateError, match="has its own clock, and so has a clip"):
        open_frames(clip, frames_fps=30)
    with pytest.raises(InflateError, match="the times of the clip do not rise"):
        open_frames(loop_frames(clip, 20))
    with pytest.raises(InflateError, match="outside of the declared range"):
        open_frames(Clip(clip.data / 255 + 1, clip.times_seconds, "mine", value_range=(0.0, 1.0)))


def test_clips_can_be_looked_for_and_hashed():
    one, other = read_clip(PICTURES), read_clip(PICTURES)
    assert one in [other, one]
    assert one != other
    assert len({one, other, one}) == 2


def test_a_clip_has_a_time_for_each_frame():
    with pytest.raises(InflateError, match=r"do not belong together(.|\n)*\[3, 5, 2, 2\] and times_seconds \[4\]"):
        Clip(torch.zeros(3, 5, 2, 2), torch.zeros(4), "mine")


# --- what networks want ---


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"fps": 0}, "fps: a number above 0"),
        ({"fps": "25"}, "fps: a number above 0"),
        ({"num_frames": 0}, "num_frames: a whole number from 1 to 100000"),
        ({"crop": 2.5}, "crop: a whole number"),
        ({"short_side": 10**9}, "short_side: a whole number"),
        ({"min_frames": True}, "min_frames: a whole number"),
        ({"value_range": 1}, r"value_range: \(smallest, largest\)"),
        ({"value_range": (1.0, 1.0)}, r"value_range: \(smallest, largest\)"),
        ({"crop": 257}, "crop: short_side at most"),
        ({"min_frames": 65}, "min_frames: num_frames at most"),
    ],
)
def test_a_spec_that_cannot_be_is_refused(change, rule):
    right = {"fps": 25, "num_frames": 64, "min_frames": 9, "short_side": 256, "crop": 224, "value_range": (-1, 1)}
    (name,) = change
    with pytest.raises(InflateError, match=rf"no description of an input: {name}(.|\n)*{rule}(.|\n)*{name}="):
        ClipSpec(**right | change)
