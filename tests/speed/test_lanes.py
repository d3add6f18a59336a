"""Two clips at a time: the same answers, in order, with half of the threads each."""

import threading

import numpy as np
import pytest
import torch

from inflate3d import InceptionI3d, InflateError, PredictOptions, predict
from inflate3d.speed.lanes import LANES, in_lanes, lanes_of
from inflate3d.speed.optimize import Optimized, optimize
from inflate3d.threads import fewer_threads, take_share


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def fast():
    torch.manual_seed(0)
    return optimize(InceptionI3d(num_classes=5).eval(), "bf16")


@pytest.mark.parametrize("count", range(6))
def test_answers_come_in_order_and_none_is_lost(count):
    assert list(in_lanes(str, iter(range(count)))) == [(number, str(number)) for number in range(count)]


@pytest.mark.usefixtures("two_threads")
def test_two_run_at_a_time_with_a_thread_each_and_the_one_that_settles_with_both():
    meeting = threading.Barrier(LANES, timeout=20)

    def run(number):
        if number:
            meeting.wait()  # breaks unless two are there at a time
        return torch.get_num_threads()

    assert [threads for _, threads in in_lanes(run, iter(range(5)), first_alone=True)] == [2, 1, 1, 1, 1]
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("two_threads")
def test_whoever_is_left_takes_the_threads_of_the_others_and_before_that_they_are_the_readers():
    may_end, is_over, found = threading.Event(), threading.Event(), []

    def items():
        yield 0
        assert first_seen.wait(20)  # while item 0 runs alone, there may be more
        yield 1
        is_over.set()

    first_seen = threading.Event()

    def run(number):
        take_share()
        found.append((number, torch.get_num_threads()))
        if number:
            assert is_over.wait(20)
            may_end.set()  # item 0 may, and then this one is left
            while torch.get_num_threads() == 1:
                take_share()
            found.append((number, torch.get_num_threads()))
        else:
            first_seen.set()
            assert may_end.wait(20)

    assert [number for number, _ in in_lanes(run, items())] == [0, 1]
    assert found == [(0, 1), (1, 1), (1, 2)]


def test_a_lane_that_is_free_takes_the_next_item_before_the_others_have_ended():
    second_done, order = threading.Event(), []

    def run(number):
        if number == 0:
            assert second_done.wait(20)  # for ever, if items went by pairs
        if number == 2:
            second_done.set()
        order.append(number)

    assert [number for number, _ in in_lanes(run, iter(range(4)))] == [0, 1, 2, 3]
    assert order[:2] == [1, 2]


def test_an_error_comes_out_in_its_place_and_leaves_no_thread():
    def run(number):
        if number == 2:
            raise InflateError("stop", where="here", expected="1", got="2", fix="none")
        return number

    found = []
    with pytest.raises(InflateError, match="stop"):
        found += (number for number, _ in in_lanes(run, iter(range(9))))
    lanes = in_lanes(run, iter(range(9)))
    assert [next(lanes)[0], next(lanes)[0]] == [0, 1]
    lanes.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("inflate3d-lane")]


@pytest.mark.usefixtures("two_threads")
def test_only_i3d_in_bfloat16_on_several_cores_runs_so(fast):
    float32 = Optimized(fast.model, "fp32", ())
    assert [lanes_of(model) for model in (fast, float32, fast.model, torch.nn.Identity())] == [2, 1, 1, 1]
    with fewer_threads(1):
        assert lanes_of(fast) == 1


@pytest.mark.usefixtures("two_threads")
def test_a_video_is_answered_as_one_window_after_the_other(fast):
    video = np.random.default_rng(0).integers(0, 255, (60, 226, 230, 3), dtype=np.uint8)
    options = PredictOptions(window=16, fps="native")
    found = predict(fast, video, options)
    with fewer_threads(1):
        one_by_one = predict(fast, video, options)
    assert len(found.windows) == 4
    for side_by_side, alone in zip(found.windows, one_by_one.windows, strict=True):
        torch.testing.assert_close(
            side_by_side.logits, alone.logits, atol=0.01 * float(alone.logits.abs().amax()), rtol=0
        )
