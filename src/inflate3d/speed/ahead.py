"""Threads: an iterator works ahead in one of its own, and a network answers several clips side by side."""

import contextlib
import queue
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Answer = TypeVar("Answer")


def ahead(items: Iterator[Item], depth: int = 2) -> Generator[Item]:
    """Run an iterator in a thread, at most `depth` items ahead; its errors come out where its items would.

    The thread starts at once. It ends when the caller stops iterating or drops what this returns, and closes the
    iterator, as leaving a loop over it would.

    Args:
        items: Used by that thread alone from now on.
        depth: Items that may wait; each takes memory.

    Example:
        >>> list(ahead(iter(range(5))))
        [0, 1, 2, 3, 4]
    """
    running = _ahead(items, depth)
    next(running)
    return running  # type: ignore[return-value]  # from now on there are items only


def _ahead(items: Iterator[Item], depth: int) -> Generator[Item | None]:
    waiting: queue.Queue[tuple[bool, Item | BaseException | None]] = queue.Queue(maxsize=depth)
    stopped = threading.Event()

    def put(more: bool, item: Item | BaseException | None) -> None:
        while not stopped.is_set():
            with contextlib.suppress(queue.Full):
                waiting.put((more, item), timeout=0.1)
                return

    def work() -> None:
        try:
            for item in items:
                put(True, item)
                if stopped.is_set():
                    break
            put(False, None)
        except BaseException as error:  # handed on to the caller, whatever it is
            put(False, error)
        finally:
            close = getattr(items, "close", None)
            if close:
                close()

    worker = threading.Thread(target=work, name="inflate3d-ahead", daemon=True)
    worker.start()
    try:
        yield None  # so that leaving before the first item comes by `finally` as well
        while True:
            more, item = waiting.get()
            if more:
                yield item  # type: ignore[misc]  # an item, as `more` says
            elif isinstance(item, BaseException):
                raise item
            else:
                return
    finally:
        stopped.set()
        worker.join()


def side_by_side(run: Callable[[Item], Answer], items: Sequence[Item], count: int) -> list[Answer]:
    """Run items in so many threads, among which torch's own threads are shared out.

    Threads that share one clip wait for each other at the end of each layer, all the longer where a decoder takes one
    of the cores for a while; threads that have a clip of their own do not.

    Example:
        >>> side_by_side(lambda x: x.square().sum().item(), list(torch.arange(6.0).view(3, 2)), 2)
        [1.0, 13.0, 41.0]
    """
    count = min(count, len(items))
    if count <= 1:
        return [run(item) for item in items]
    threads = torch.get_num_threads()
    torch.set_num_threads(max(threads // count, 1))  # holds for threads that start from now on
    try:
        with ThreadPoolExecutor(count, "inflate3d-clip") as pool:
            return list(pool.map(run, items))
    finally:
        torch.set_num_threads(threads)
