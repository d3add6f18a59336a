"""How many threads torch computes with, changed for one Python thread and no other."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

import torch

T = TypeVar("T")

_LOCK = threading.Lock()
_SHARE = threading.local()  # what `take_share` calls


@contextmanager
def fewer_threads(count: int | Callable[[], int]) -> Iterator[None]:
    """Let torch compute with at most `count` threads in the Python thread that says so.

    torch keeps a number for each Python thread, and one that a thread takes over when it first computes. Setting the
    first sets the second too, so that a thread which begins meanwhile would compute slowly for good; here the second
    is put back at once, by a thread of its own.

    Args:
        count: Threads, 1 or more; or a call that tells, now and at each `take_share`.

    Example:
        >>> with fewer_threads(1):
        ...     torch.get_num_threads()
        1
    """
    before, outer = torch.get_num_threads(), getattr(_SHARE, "take", None)

    def take() -> None:
        wanted = min(count() if callable(count) else count, before)
        if wanted != torch.get_num_threads():
            _set_own(wanted)

    take()
    _SHARE.take = take
    try:
        yield
    finally:
        _SHARE.take = outer
        _set_own(before)


def take_share() -> None:
    """Take as many threads as `fewer_threads` around this grants by now; nothing where it is not around.

    For networks, between their layers.
    """
    take: Callable[[], None] | None = getattr(_SHARE, "take", None)
    if take:
        take()


def _set_own(count: int) -> None:
    with _LOCK:
        of_new_threads = _in_new_thread(torch.get_num_threads)
        torch.set_num_threads(count)
        _in_new_thread(partial(torch.set_num_threads, of_new_threads))


def _in_new_thread(call: Callable[[], T]) -> T:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call).result()
