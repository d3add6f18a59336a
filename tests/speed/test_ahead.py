"""Working ahead changes nothing about what comes out, errors included, and leaves no thread behind."""

import threading
import time

import pytest

from inflate3d.speed.ahead import ahead


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "inflate3d-ahead"]


def test_items_come_in_order_and_the_thread_ends():
    assert list(ahead(iter(range(100)), depth=3)) == list(range(100))
    assert not threads()


def test_it_runs_at_most_so_many_items_ahead():
    made = []

    def items():
        for i in range(10):
            made.append(i)
            yield i

    running = ahead(items(), depth=2)
    assert next(running) == 0
    time.sleep(0.3)
    assert made == [0, 1, 2, 3]  # one is out, two wait, one stands in front of the queue
    assert list(running) == list(range(1, 10))


def test_errors_come_out_after_the_items_before_them():
    def items():
        yield 1
        raise ValueError("the file ends here")

    running = ahead(items())
    assert next(running) == 1
    with pytest.raises(ValueError, match="ends here"):
        next(running)
    assert not threads()


def test_leaving_early_closes_the_iterator():
    closed = threading.Event()

    def items():
        try:
            while True:
                yield 1
        finally:
            closed.set()

    for _ in ahead(items()):
        break
    assert closed.wait(2)
    assert not threads()


def test_it_starts_before_it_is_asked_and_ends_unasked():
    begun, closed = threading.Event(), threading.Event()

    def items():
        try:
            begun.set()
            yield 1
        finally:
            closed.set()

    running = ahead(items())
    assert begun.wait(2)
    del running
    assert closed.wait(2)
    assert not threads()
