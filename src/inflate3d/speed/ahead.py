"""Work ahead: an iterator runs in a thread of its own, so that reading a video and the network overlap."""

import contextlib
import contextvars
import queue
import threading
from collections.abc import Generator, Iterator
from typing import TypeVar

Item = TypeVar("Item")


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

    run = contextvars.copy_context().run  # what the caller has set for the block that it is in, such as `at_most`
    worker = threading.Thread(target=run, args=(work,), name="inflate3d-ahead", daemon=True)
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
