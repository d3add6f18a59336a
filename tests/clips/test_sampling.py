"""Laws of sampling: nearest frames, windows that cover all and hold little, loops."""

import random
from fractions import Fraction
from itertools import pairwise

import pytest
import torch

from inflate3d.clips.clip import Clip
from inflate3d.clips.sampling import Timed, exact_fps, loop_frames, nearest_frames, windows
from inflate3d.errors import InflateError


def timed_frames(times, last_duration):
    ends = [b - a for a, b in pairwise(times)] + [last_duration]
    return [Timed(time, duration, i) for i, (time, duration) in enumerate(zip(times, ends, strict=True))]


@pytest.mark.parametrize("seed", range(30))
def test_each_output_is_the_nearest_frame_and_their_number_is_the_duration_rounded(seed):
    chance = random.Random(seed)
    ticks = sorted(chance.sample(range(1, 500), chance.randrange(1, 40)))
    times = [Fraction(tick - ticks[0], 60) for tick in ticks]
    last = Fraction(chance.randrange(1, 30), 60)
    fps = Fraction(chance.choice([1, 3, 10, 25, 24, 60, 97]), chance.choice([1, 1, 2]))
    out = list(nearest_frames(timed_frames(times, last), fps))
    assert [output.time for output in out] == [k / fps for k in range(len(out))]
    assert {output.duration for output in out} == {1 / fps}
    for output in out:
        assert output.item == min(range(len(times)), key=lambda i: (abs(times[i] - output.time), i))
    assert len(out) == max(1, int((times[-1] + last) * fps + Fraction(1, 2)))


def test_the_earlier_of_two_equally_near_frames_is_taken():
    frames = timed_frames([Fraction(0), Fraction(1), Fraction(3)], Fraction(1))
    assert [output.item for output in nearest_frames(frames, 2)][:4] == [0, 0, 1, 1]
    assert [output.item for output in nearest_frames(frames, 1)] == [0, 1, 1, 2]


def test_the_same_rate_changes_nothing_whatever_it_is():
    for fps in (25, 30000 / 1001, 7.5):
        step = 1 / exact_fps(fps)
        frames = timed_frames([i * step for i in range(53)], step)
        assert [output.item for output in nearest_frames(frames, fps)] == list(range(53))


def test_resampling_holds_two_frames():
    read = 0

    def frames():
        nonlocal read
        for read in range(1, 1000):
            yield Timed(Fraction(read - 1, 30), Fraction(1, 30), read - 1)

    for output in nearest_frames(frames(), 25):
        assert read <= output.item + 4
        if output.item > 100:
            break


def test_no_frames_give_no_frames():
    assert list(nearest_frames([], 25)) == []
    assert list(windows([], 4, 2)) == []


def test_rates_are_positive():
    with pytest.raises(InflateError, match=r"(?s)nearest_frames: frames per second have to be positive.*0"):
        nearest_frames([], 0)


# --- windows ---


@pytest.mark.parametrize("num_frames", [1, 4, 7])
@pytest.mark.parametrize("stride", [1, 3, 4, 7, 11])
@pytest.mark.parametrize("length", [1, 3, 4, 5, 7, 11, 12, 29])
def test_windows_obey_their_laws(length, num_frames, stride):
    found = list(windows(range(length), num_frames, stride))
    assert all(len(window.frames) == num_frames for window in found)
    for window in found:
        expected = [window.start + i for i in range(num_frames)]
        assert window.frames == [index % length if length < num_frames else index for index in expected]
    starts = [window.start for window in found]
    assert starts[:-1] == [i * stride for i in range(len(found) - 1)]
    assert starts[-1] in {(len(found) - 1) * stride, max(length - num_frames, 0)}
    # num_new counts each frame that any window holds exactly once
    assert sum(window.num_new for window in found) == len({frame for window in found for frame in window.frames})
    assert all(window.num_new > 0 for window in found)
    if stride <= num_frames:
        assert {frame for window in found for frame in window.frames} == set(range(length))


def test_windows_work_on_tensors():
    clip = torch.arange(7 * 3 * 2 * 5, dtype=torch.uint8).view(7, 3, 2, 5)
    second = list(windows(clip, 4, 3))[1]
    torch.testing.assert_close(torch.stack(second.frames), clip[3:7], rtol=0, atol=0)


class Counted:
    """Counts how many of its kind are alive."""

    alive = most = 0

    def __init__(self):
        Counted.alive += 1
        Counted.most = max(Counted.most, Counted.alive)

    def __del__(self):
        Counted.alive -= 1


@pytest.mark.parametrize(("num_frames", "stride"), [(8, 8), (8, 3), (8, 1), (3, 11)])
def test_windows_hold_no_more_than_they_say(num_frames, stride):
    Counted.most = 0
    for window in windows((Counted() for _ in range(500)), num_frames, stride):
        assert len(window.frames) == num_frames
    del window
    assert Counted.alive == 0
    assert Counted.most <= num_frames + stride + 1  # and the one being read


def test_windows_refuse_sizes_below_one():
    with pytest.raises(InflateError, match=r"(?s)a window needs frames.*num_frames=0, stride=2"):
        windows(range(5), 0, 2)
    with pytest.raises(InflateError, match="windows have to move on"):
        windows(range(5), 2, 0)


# --- loops ---


@pytest.mark.parametrize("shape", [(3, 5, 2, 7), (2, 3, 5, 2, 7), (5, 2, 7)])
def test_loops_repeat_time_and_nothing_else(shape):
    clip = torch.rand(shape)
    looped = loop_frames(clip, 13)
    assert looped.shape[-3] == 13
    for t in range(13):
        torch.testing.assert_close(looped.select(-3, t), clip.select(-3, t % 5), rtol=0, atol=0)


def test_a_looped_clip_says_which_moment_each_frame_shows():
    clip = Clip(torch.zeros(3, 3, 2, 5), torch.tensor([0.0, 0.5, 2.0]), "x", (0.0, 1.0))
    looped = loop_frames(clip, 7)
    assert looped.times_seconds.tolist() == [0.0, 0.5, 2.0, 0.0, 0.5, 2.0, 0.0]
    assert (looped.source, looped.value_range) == ("x", (0.0, 1.0))


def test_long_enough_clips_stay_as_they_are():
    clip = torch.rand(3, 5, 2, 7)
    assert loop_frames(clip, 5) is clip
    assert loop_frames(clip, 2) is clip


def test_nothing_cannot_be_looped():
    with pytest.raises(InflateError, match="a clip without frames cannot be looped"):
        loop_frames(torch.zeros(3, 0, 2, 7), 5)
