"""Resizing, crops and ranges against torchvision and Pillow, and what frames_to_input promises."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as TF

from inflate3d.clips.clip import Clip, ClipSpec
from inflate3d.clips.transforms import (
    CROPS,
    check_range,
    crops,
    frames_to_input,
    resize_picture,
    resize_short_side,
    to_range,
)
from inflate3d.errors import InflateError

SPEC = ClipSpec(fps=25.0, num_frames=5, min_frames=1, short_side=32, crop=28, value_range=(-1.0, 1.0))


def noise(*shape):
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, shape, np.uint8))


# --- resizing ---


@pytest.mark.parametrize(("height", "width"), [(45, 67), (67, 45), (19, 23), (97, 97), (241, 8)])
def test_resizing_is_that_of_torchvision_and_pillow(height, width):
    frames = noise(2, 3, height, width)
    ours = resize_short_side(frames, 32)
    short, long = sorted((height, width))
    other = int(32 * long / short)
    size = [32, other] if height <= width else [other, 32]
    assert list(ours.shape) == [2, 3, *size]
    torch.testing.assert_close(ours, TF.resize(frames, size, antialias=True), rtol=0, atol=0)
    picture = Image.fromarray(frames[0].permute(1, 2, 0).numpy()).resize(size[::-1], Image.Resampling.BILINEAR)
    assert np.abs(np.asarray(picture).astype(int) - ours[0].permute(1, 2, 0).numpy()).max() <= 1


def test_one_frame_and_a_picture_are_resized_alike():
    frame = noise(3, 45, 67)
    resized = resize_short_side(frame, 32)
    assert resized.shape == (3, 32, 47)
    picture = frame.permute(1, 2, 0).contiguous().numpy()
    # channels-last and channels-first take different kernels
    assert (resize_picture(picture, 32).permute(2, 0, 1).int() - resized.int()).abs().max() <= 1


def test_frames_that_fit_are_returned_untouched():
    frames = noise(2, 3, 32, 47)
    assert resize_short_side(frames, 32) is frames


def test_slim_frames_are_refused():
    assert resize_short_side(noise(3, 2, 64), 4).shape == (3, 4, 128)
    with pytest.raises(InflateError, match=r"(?s)too long and narrow.*at most 32 times.*65x2 pixels"):
        resize_short_side(noise(3, 2, 65), 256)


# --- crops ---


@pytest.mark.parametrize(("height", "width"), [(32, 46), (46, 32), (28, 28), (29, 31)])
def test_five_and_ten_crops_are_those_of_torchvision(height, width):
    frames = noise(3, height, width)
    named = crops(frames, 28, "ten")
    if (height - 28) % 2 == (width - 28) % 2 == 0:  # torchvision rounds halves of odd differences to even
        for ours, theirs in zip(named.values(), TF.ten_crop(frames, 28), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    five = crops(frames, 28, "five")
    assert list(five) == ["top-left", "top-right", "bottom-left", "bottom-right", "center"]
    assert list(named) == [*five, *(f"mirrored-{name}" for name in five)]
    mirrored = crops(frames.flip(-1), 28, "five")
    for name in five:
        torch.testing.assert_close(named[name], five[name], rtol=0, atol=0)
        torch.testing.assert_close(named[f"mirrored-{name}"], mirrored[name], rtol=0, atol=0)


def test_three_crops_go_along_the_longer_side():
    wide, tall = noise(3, 31, 47), noise(3, 47, 31)
    named = crops(wide, 28, "three")
    assert list(named) == ["left", "center", "right"]
    for crop, left in zip(named.values(), (0, 9, 19), strict=True):
        assert torch.equal(crop, wide[:, 1:29, left : left + 28])
    named = crops(tall, 28, "three")
    assert list(named) == ["top", "center", "bottom"]
    for crop, top in zip(named.values(), (0, 9, 19), strict=True):
        assert torch.equal(crop, tall[:, top : top + 28, 1:29])


def test_the_center_crop_rounds_down():
    frames = noise(2, 3, 33, 48)
    assert torch.equal(crops(frames, 28)["center"], frames[..., 2:30, 10:38])


def test_crops_refuse_small_frames_and_unknown_kinds():
    with pytest.raises(InflateError, match=r"(?s)smaller than the crop.*28 pixels or more.*47x27"):
        crops(noise(3, 27, 47), 28)
    with pytest.raises(InflateError, match=r"(?s)there is no such crop.*center, three, five, ten.*did you mean ten"):
        crops(noise(3, 32, 47), 28, "tenn")


# --- ranges ---


def test_uint8_goes_to_the_range_of_i3d_by_its_formula():
    values = torch.arange(256, dtype=torch.uint8)
    expected = values.float() / 255 * 2 - 1
    torch.testing.assert_close(to_range(values), expected, rtol=0, atol=0)
    assert to_range(values).dtype == torch.float32


@pytest.mark.parametrize("value_range", [(0.0, 1.0), (-1.0, 1.0), (0.0, 255.0), (16.0, 235.0)])
@pytest.mark.parametrize("wanted", [(0.0, 1.0), (-1.0, 1.0), (0.0, 255.0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_ranges_map_ends_to_ends_and_middle_to_middle(value_range, wanted, dtype):
    low, high = value_range
    data = torch.tensor([low, (low + high) / 2, high], dtype=dtype)
    before = data.clone()
    mapped = to_range(data, wanted, value_range=value_range)
    atol = 1e-2 * (wanted[1] - wanted[0]) if dtype == torch.bfloat16 else 1e-4
    torch.testing.assert_close(
        mapped, torch.tensor([wanted[0], sum(wanted) / 2, wanted[1]], dtype=torch.float32), rtol=0, atol=atol
    )
    assert torch.equal(data, before)  # never in place


def test_a_clip_knows_its_range_before_and_after():
    clip = Clip(noise(3, 2, 5, 7), torch.zeros(2), "x")
    mapped = to_range(clip, (0.0, 1.0))
    assert mapped.value_range == (0.0, 1.0)
    torch.testing.assert_close(mapped.data, clip.data / 255)
    torch.testing.assert_close(to_range(mapped, (-1.0, 1.0)).data, to_range(clip).data)


@pytest.mark.parametrize("declared", [(0.0, 1.0), (-1.0, 1.0)])
def test_values_to_255_that_were_declared_as_ones_are_refused(declared):
    data = noise(3, 5, 7).float()
    with pytest.raises(InflateError) as caught:
        to_range(data, value_range=declared)
    text = str(caught.value)
    assert "values lie outside of the declared range" in text
    assert f"values in {declared[0]:g}..1, as declared" in text
    assert "from 0 to 255" in text or f"to {data.max():g}" in text
    assert "declare value_range=(0.0, 255.0)" in text


def test_the_declared_range_of_a_clip_is_checked_too():
    with pytest.raises(InflateError, match=r"declare value_range=\(-1\.0, 1\.0\)"):
        to_range(Clip(torch.full((3, 2, 5, 7), -0.5), torch.zeros(2), "x", (0.0, 1.0)))


def test_what_else_does_not_fit_its_range():
    with pytest.raises(InflateError, match="a floating-point tensor does not say what black and white are"):
        to_range(torch.rand(5))
    with pytest.raises(InflateError, match="there are values that are no number"):
        check_range(torch.tensor([0.0, float("nan")]), (0.0, 1.0))
    with pytest.raises(InflateError, match=r"(?s)outside of the declared range.*inf.*nan_to_num"):
        check_range(torch.tensor([0.0, float("inf")]), (0.0, 1.0))
    with pytest.raises(InflateError, match=r"(?s)the range does not fit the dtype.*int64"):
        check_range(torch.arange(3), (0.0, 255.0))
    with pytest.raises(InflateError, match="the range does not fit the dtype"):
        check_range(torch.zeros(3, dtype=torch.uint8), (0.0, 1.0))
    with pytest.raises(InflateError, match="the range is empty"):
        check_range(torch.rand(3), (1.0, 0.0))
    with pytest.raises(InflateError, match=r"(?s)the range is no pair of numbers.*value_range=1"):
        check_range(torch.rand(3), 1)
    with pytest.raises(InflateError, match="my_function"):
        check_range(torch.full((3,), 2.0), (0.0, 1.0), where="my_function")


def test_a_thousandth_beyond_the_range_is_forgiven():
    check_range(torch.tensor([-0.0009, 1.0009]), (0.0, 1.0))
    check_range(torch.zeros(0), (0.0, 1.0))
    with pytest.raises(InflateError, match="outside"):
        check_range(torch.tensor([1.01]), (0.0, 1.0))


# --- all together ---


@pytest.mark.parametrize("kind", CROPS)
def test_frames_to_input_is_its_parts_in_channels_last_memory(kind):
    frames = noise(5, 45, 67, 3)
    batch = frames_to_input(frames, SPEC, kind)
    assert batch.dtype == torch.float32
    assert batch.is_contiguous(memory_format=torch.channels_last_3d)
    resized = torch.stack([resize_picture(frame, 32) for frame in frames]).permute(3, 0, 1, 2)
    for ours, crop in zip(batch, crops(resized, 28, kind).values(), strict=True):
        torch.testing.assert_close(ours, crop.float() / 255 * 2 - 1, rtol=0, atol=0)


def test_frames_to_input_takes_lists_arrays_and_resized_pictures_alike():
    frames = noise(5, 45, 67, 3)
    expected = frames_to_input(frames, SPEC)
    for same in (
        list(frames.numpy()),
        frames.numpy(),
        list(frames),
        [resize_picture(frame, SPEC.short_side) for frame in frames],
    ):
        torch.testing.assert_close(frames_to_input(same, SPEC), expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    "frames",
    [
        [],
        [torch.zeros(45, 67, 3, dtype=torch.uint8), torch.zeros(46, 67, 3, dtype=torch.uint8)],
        torch.zeros(5, 45, 67, 3),
        torch.zeros(5, 3, 45, 67, dtype=torch.uint8),
        torch.zeros(45, 67, dtype=torch.uint8),
    ],
)
def test_frames_to_input_refuses_what_is_no_clip(frames):
    with pytest.raises(InflateError, match="these are no frames of one clip"):
        frames_to_input(frames, SPEC)
