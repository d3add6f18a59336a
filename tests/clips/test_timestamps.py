"""Laws of mended timestamps: the frames keep their order, the times rise, and little waits."""

import random
import warnings
from fractions import Fraction
from itertools import pairwise

import pytest

from inflate3d.clips.timestamps import LOOK_AHEAD, Stamped, rising_times
from inflate3d.errors import InflateWarning

TICK = Fraction(1001, 30000)


def mended(ticks, durations=None):
    """Give ticks to frames named 0, 1, 2, ...; return what comes out, the times in ticks, and the warnings."""
    frames = [
        Stamped(None if tick is None else tick * TICK, durations and durations[i] * TICK, i)
        for i, tick in enumerate(ticks)
    ]
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        out = list(rising_times(frames, TICK, source="x.avi"))
    assert [timed.item for timed in out] == list(range(len(ticks)))  # the order is never touched
    times = [timed.time / TICK for timed in out]
    assert all(a < b for a, b in pairwise(times))
    return times, [str(warning.message) for warning in warned]


def test_rising_timestamps_are_only_moved_to_zero():
    assert mended([7, 8, 9, 12, 31]) == ([0, 1, 2, 5, 24], [])
    assert mended([-3, -2, 0]) == ([0, 1, 3], [])


def test_what_xvid_in_avi_says_is_sorted_with_one_warning():
    times, warned = mended([1, 2, 4, 3, 5, 7, 6, 8, 10, 9, 11, 12, 13])
    assert times == list(range(13))
    assert len(warned) == 1
    assert "x.avi: timestamps do not rise" in warned[0]


@pytest.mark.parametrize("seed", range(20))
def test_any_order_within_the_look_ahead_is_sorted(seed):
    chance = random.Random(seed)
    ticks = sorted(chance.sample(range(1000), 211))
    block = LOOK_AHEAD // 2 + 1
    blocks = [ticks[i : i + block] for i in range(0, 211, block)]
    shuffled = [tick for part in blocks for tick in chance.sample(part, len(part))]
    assert mended(shuffled)[0] == [tick - ticks[0] for tick in ticks]


def test_a_restart_goes_on_one_interval_after_the_last_frame():
    first, second = [100 + i for i in range(41)], [3 + 2 * i for i in range(23)]
    times, warned = mended(first + second)
    assert times == [*range(41), *(41 + 2 * i for i in range(23))]
    assert len(warned) == 1
    assert "jump back" in warned[0]


def test_restarts_may_follow_each_other_and_warn_once():
    times, warned = mended([*range(30)] * 3)
    assert times == list(range(90))
    assert len(warned) == 1


DAY = 30 * 86_400  # about, in ticks


def test_a_jump_ahead_by_hours_goes_on_one_interval_after_the_last_frame():
    times, warned = mended([*range(41), *range(DAY, DAY + 23)])
    assert times == list(range(64))
    assert len(warned) == 1
    assert "jump ahead by more than 10 minutes" in warned[0]


@pytest.mark.parametrize("place", [0, 1, 30, 62, 63])
@pytest.mark.parametrize("wrong", [DAY, -DAY])
def test_one_wrong_timestamp_among_right_ones_does_no_harm(place, wrong):
    times, warned = mended([*range(place), wrong, *range(place + 1, 64)])
    assert times == list(range(64))
    assert 1 <= len(warned) <= 2


def test_a_pause_of_minutes_is_kept():
    minute = 60 * 30_000 // 1001
    assert mended([0, 9 * minute, 18 * minute]) == ([0, 9 * minute, 18 * minute], [])


def test_frames_without_timestamps_count():
    times, warned = mended([None] * 5)
    assert times == list(range(5))
    assert len(warned) == 1
    assert "no timestamp" in warned[0]
    assert mended([4, None, 6, None, 8])[0] == [0, 1, 2, 3, 4]


def test_a_repeated_timestamp_does_not_delay_the_frames_behind_it():
    times, warned = mended([0, 1, 2, 2, 4, 5, 6])
    assert times == [0, 1, 2, 3, 4, 5, 6]
    assert "do not rise" in warned[0]
    assert mended([0, 1, 2, 2, 3, 4])[0] == [0, 1, 2, Fraction(5, 2), 3, 4]


def test_durations_are_kept_and_else_one_interval():
    frames = [Stamped(Fraction(0), Fraction(1, 7), "a"), Stamped(Fraction(1), None, "b")]
    assert [timed.duration for timed in rising_times(frames, TICK, source="x")] == [Fraction(1, 7), TICK]


def test_no_frames_give_none():
    assert mended([]) == ([], [])


def test_few_frames_wait():
    read = 0

    def frames():
        nonlocal read
        for read in range(1, 10_000):
            yield Stamped(read * TICK, None, read)

    for given, _ in enumerate(rising_times(frames(), TICK, source="x"), 1):
        assert read <= given + LOOK_AHEAD
        if given == 50:
            break


def test_warnings_are_errors_where_the_user_wants_that():
    with pytest.raises(InflateWarning, match="do not rise"):
        list(rising_times([Stamped(TICK, None, 0), Stamped(Fraction(0), None, 1)], TICK, source="x"))
