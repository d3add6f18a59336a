"""Fewer threads of torch for one Python thread: the others, and those to come, keep theirs."""

import threading

import pytest
import torch

from inflate3d.threads import fewer_threads, take_share


@pytest.fixture(autouse=True)
def four_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def number_in_a_new_thread():
    found = []
    thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    return found[0]


class Inside(threading.Thread):
    """A thread that is inside between `enter` and `leave`."""

    def __init__(self):
        super().__init__()
        self.inside, self.may_leave, self.numbers = threading.Event(), threading.Event(), []
        self.start()
        assert self.inside.wait(10)

    def run(self):
        with fewer_threads(1):
            self.numbers.append(torch.get_num_threads())
            self.inside.set()
            assert self.may_leave.wait(10)
            self.numbers.append(torch.get_num_threads())
        self.numbers.append(torch.get_num_threads())

    def leave(self):
        self.may_leave.set()
        self.join()


def test_threads_that_overlap_leave_no_trace():
    first = Inside()
    second = Inside()
    assert (torch.get_num_threads(), number_in_a_new_thread()) == (4, 4)
    first.leave()
    assert number_in_a_new_thread() == 4
    second.leave()
    assert first.numbers == second.numbers == [1, 1, 4]
    assert (torch.get_num_threads(), number_in_a_new_thread()) == (4, 4)


def test_it_only_ever_lowers_the_number_and_an_error_restores_it():
    with fewer_threads(9):
        assert torch.get_num_threads() == 4
        with pytest.raises(ZeroDivisionError), fewer_threads(2):
            assert torch.get_num_threads() == 2
            1 / 0  # noqa: B018
        assert torch.get_num_threads() == 4
    assert torch.get_num_threads() == 4


def test_many_at_once():
    def work():
        for _ in range(20):
            with fewer_threads(1):
                numbers.append(torch.get_num_threads())

    numbers: list[int] = []
    workers = [threading.Thread(target=work) for _ in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert numbers == [1] * 120
    assert (torch.get_num_threads(), number_in_a_new_thread()) == (4, 4)


def test_a_share_is_taken_again_when_asked_for_and_never_more_than_there_were():
    granted = 1
    with fewer_threads(lambda: granted):
        assert torch.get_num_threads() == 1
        granted = 3
        assert torch.get_num_threads() == 1
        take_share()
        assert torch.get_num_threads() == 3
        granted = 9
        take_share()
        assert torch.get_num_threads() == 4
        with fewer_threads(2):
            take_share()
            assert torch.get_num_threads() == 2
        granted = 1
        take_share()
        assert (torch.get_num_threads(), number_in_a_new_thread()) == (1, 4)
    assert torch.get_num_threads() == 4
    take_share()  # of nobody
    assert torch.get_num_threads() == 4
