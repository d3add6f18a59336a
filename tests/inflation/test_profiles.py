"""Profiles sum to one, hold the published ones, and refuse what does not."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from inflate3d.errors import InflateError
from inflate3d.inflation.profiles import FAMILY, PROFILE_NAMES, family, phase_taps, profile_taps

NAMED = [*FAMILY, "shift", "lambda=-0.7", "lambda=0.5", "lambda=3"]


@pytest.mark.parametrize("profile", [*NAMED, lambda num_taps: np.hanning(num_taps + 2)[1:-1] / ((num_taps + 1) / 2)])
@pytest.mark.parametrize("time_kernel", range(1, 10))
def test_every_profile_sums_to_one(profile, time_kernel):
    for center in (None, *range(time_kernel)):
        taps = profile_taps(profile, time_kernel, center=center, channels=17)
        assert taps.dtype == torch.float64
        assert taps.shape[-1] == time_kernel
        torch.testing.assert_close(taps.sum(-1), torch.ones(taps.shape[:-1]).double(), rtol=0, atol=1e-14)


@pytest.mark.parametrize("num_taps", range(1, 10))
def test_the_family_holds_the_three_published_profiles(num_taps):
    for center in range(num_taps):
        others = [tap for tap in range(num_taps) if tap != center]
        for lam, name, at_center, elsewhere in [
            (0, "mean", 1 / num_taps, 1 / num_taps),
            (1, "center", 1, 0),
            (2, "negative", (2 * num_taps - 1) / num_taps, -1 / num_taps),
        ]:
            taps = profile_taps(name, num_taps, center=center)
            torch.testing.assert_close(taps, family(num_taps, center, lam))
            torch.testing.assert_close(taps, profile_taps(f"lambda={lam}", num_taps, center=center))
            assert taps[center].item() == pytest.approx(at_center, abs=1e-15)
            assert taps[others].tolist() == pytest.approx([elsewhere] * len(others), abs=1e-15)


@pytest.mark.parametrize(("time_kernel", "tap"), [(1, 0), (2, 0), (3, 1), (4, 1), (5, 2), (7, 3)])
def test_the_present_frame_is_the_middle_tap_of_an_odd_and_the_earlier_one_of_an_even_kernel(time_kernel, tap):
    assert profile_taps("center", time_kernel).argmax().item() == tap


def published_shift(clip):
    """What TSM's own code does to `[t, c]`: the first eighth moves to the left in time."""
    shifted, eighth = np.zeros_like(clip), clip.shape[1] // 8
    shifted[:-1, :eighth] = clip[1:, :eighth]
    shifted[1:, eighth : 2 * eighth] = clip[:-1, eighth : 2 * eighth]
    shifted[:, 2 * eighth :] = clip[:, 2 * eighth :]
    return shifted


@pytest.mark.parametrize("channels", [7, 8, 19, 32])
def test_shift_moves_channels_as_tsm_does(channels):
    clip = np.random.default_rng(0).normal(size=(11, channels))
    taps = profile_taps("shift", 3, channels=channels)
    moved = F.conv1d(torch.from_numpy(clip.T)[None], taps[:, None], padding=1, groups=channels)[0].T
    assert np.array_equal(moved.numpy(), published_shift(clip))


def test_a_causal_shift_only_looks_back():
    taps = profile_taps("shift", 3, center=2, channels=19)
    assert taps.argmax(-1).tolist() == [1, 1] + [2] * 17
    assert profile_taps("shift", 1, channels=19).tolist() == [[1.0]] * 19


def test_a_vector_of_ones_own_stays_as_it_is_but_for_rounding():
    assert profile_taps((0.5, 0.75, -0.25), 3).tolist() == [0.5, 0.75, -0.25]
    rounded = profile_taps(torch.full((3,), 1 / 3, dtype=torch.float32), 3)
    assert rounded.sum().item() == pytest.approx(1, abs=1e-15)


@pytest.mark.parametrize("profile", NAMED)
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_each_output_frame_of_a_transposed_convolution_sees_a_whole_picture(profile, stride):
    for time_kernel in range(stride, 10):
        for cropped in (None, *range(time_kernel - stride + 1)):
            taps = phase_taps(profile, time_kernel, stride, cropped_front=cropped, channels=17)
            for phase in range(stride):
                sums = taps[..., phase::stride].sum(-1)
                torch.testing.assert_close(sums, torch.ones_like(sums), rtol=0, atol=1e-14)


@pytest.mark.parametrize(("time_kernel", "stride"), [(3, 1), (4, 1), (2, 2), (4, 2), (5, 2), (7, 3)])
def test_a_transposed_center_repeats_each_frame_stride_times(time_kernel, stride):
    clip = torch.randn(1, 1, 11, dtype=torch.float64)
    for cropped in range(time_kernel - stride + 1):
        taps = phase_taps("center", time_kernel, stride, cropped_front=cropped)
        longer = F.conv_transpose1d(clip, taps[None, None], stride=stride)[..., cropped:]
        assert torch.equal(longer[0, 0, : 11 * stride], clip[0, 0].repeat_interleave(stride))


def test_a_transposed_profile_runs_from_past_to_future():
    past_only = phase_taps([0.25, 0.75], 4, 2)
    clip = torch.tensor([[[0.0, 1.0, 0.0]]], dtype=torch.float64)
    assert F.conv_transpose1d(clip, past_only[None, None], stride=2)[0, 0].tolist() == [
        0,
        0,
        0.75,
        0.75,
        0.25,
        0.25,
        0,
        0,
    ]
    back = phase_taps("shift", 3, 1, channels=8)
    moved = F.conv_transpose1d(clip.expand(1, 8, 3).contiguous(), back[:, None], padding=1, groups=8)[0]
    assert moved[:3].argmax(-1).tolist() == [0, 2, 1]  # seen one frame ahead, one frame back, at the present


@pytest.mark.parametrize(
    ("profile", "message"),
    [
        ("centre", "no profile of this name.*\n.*\n.*'centre'\n.*did you mean center"),
        ("random", "a random kernel is drawn anew"),
        ("lambda=", "lambda has to be a finite number"),
        ("lambda=nan", "lambda has to be a finite number"),
        ("shift", "differs from channel to channel"),
        ([0.5, 0.5], "3 finite numbers that sum to one"),
        ([0.5, 0.5, 0.5], "which sum to 1.5"),
        ([0.3333, 0.3333, 0.3333], "which sum to 0.9999"),
        ([math.nan, 0.5, 0.5], "which sum to nan"),
        ([math.inf, -math.inf, 1.0], "which sum to nan"),
        ([[0.2, 0.3, 0.5]], "not a profile for a kernel of that length"),
        (["a", "b", "c"], "not a profile for a kernel of that length"),
        (lambda num_taps: None, "got: +None"),
        (3.0, "not a profile for a kernel of that length"),
    ],
)
def test_what_is_no_profile_is_refused(profile, message):
    with pytest.raises(InflateError, match=message):
        profile_taps(profile, 3)


@pytest.mark.parametrize("wrong", [0, -3, 3.0, True, "3", None])
def test_kernels_and_strides_count_frames(wrong):
    with pytest.raises(InflateError, match="time_kernel is no number of frames"):
        profile_taps("mean", wrong)
    with pytest.raises(InflateError, match="stride is no number of frames"):
        phase_taps("mean", 3, wrong)


def test_a_present_frame_outside_the_kernel_is_refused():
    for center in (-1, 3):
        with pytest.raises(InflateError, match="the present frame lies outside the kernel"):
            profile_taps("mean", 3, center=center)


@pytest.mark.parametrize(("time_kernel", "stride", "cropped"), [(2, 3, None), (4, 2, 3), (4, 2, -1)])
def test_output_frames_that_would_see_nothing_are_refused(time_kernel, stride, cropped):
    with pytest.raises(InflateError, match="some output frames have no present frame"):
        phase_taps("mean", time_kernel, stride, cropped_front=cropped)


def test_all_names_are_told():
    with pytest.raises(InflateError) as caught:
        profile_taps("nothing", 3)
    assert all(name in caught.value.expected for name in PROFILE_NAMES)
