"""Two clips at a time through a network, each with half of the threads, so that none waits for a reader beside it."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from threading import Lock
from typing import TypeVar

import torch
from torch import nn

from inflate3d.models.inception import InceptionI3d
from inflate3d.speed.memory import device_of
from inflate3d.speed.optimize import COMPILED, Optimized
from inflate3d.threads import fewer_threads

Item = TypeVar("Item")
Answer = TypeVar("Answer")

LANES = 2  # more take memory


def lanes_of(model: nn.Module) -> int:
    """Tell how many clips a network is best shown side by side: two for I3D in bfloat16 on a CPU of several cores.

    I3D keeps nothing from one call to the next, which cannot be said of everybody's network. In float32 reading takes a
    smaller part of the time, and two clips 0.4 GB more.

    Example:
        >>> lanes_of(nn.Identity())
        1
    """
    if not isinstance(model, Optimized) or model.precision != "bf16" or COMPILED in model.steps:
        return 1
    fits = isinstance(model.model, InceptionI3d)
    return LANES if fits and device_of(model).type == "cpu" and torch.get_num_threads() >= LANES else 1


def in_lanes(
    run: Callable[[Item], Answer], items: Iterator[Item], lanes: int = LANES, *, first_alone: bool = False
) -> Iterator[tuple[Item, Answer]]:
    """Run a function on items and give them with their answers, in order, so many at a time.

    A layer that two threads share equally is as slow as the slower one: where a reader takes half of a core, the other
    waits. Clips with threads of their own never wait for one another: each is begun as soon as it is there and a lane
    is free. Only when there are no more items do those still under way take the threads of the others, at their next
    `inflate3d.threads.take_share`.

    Args:
        run: Called from several threads at a time.
        items: Used by the caller's thread alone, one further than what is under way.
        lanes: Items at a time; 1 takes no threads at all.
        first_alone: Whether the first item settles things for the others.

    Example:
        >>> list(in_lanes(lambda item: item + 1, iter(range(4))))
        [(0, 1), (1, 2), (2, 3), (3, 4)]
    """
    for item in items if lanes == 1 else islice(items, int(first_alone)):
        yield item, run(item)
    shares = _Shares(torch.get_num_threads(), lanes)

    def beside_others(item: Item) -> Answer:
        try:
            with fewer_threads(shares.one):
                return run(item)
        finally:
            shares.finished()

    under_way: deque[tuple[Item, Future[Answer]]] = deque()
    with ThreadPoolExecutor(lanes, "inflate3d-lane") as pool:
        for item in items:
            shares.begun()
            under_way.append((item, pool.submit(beside_others, item)))
            if len(under_way) > lanes:  # one waits, so that a lane need not
                yield _first(under_way)
        shares.has_more = False
        while under_way:
            yield _first(under_way)


def _first(under_way: deque[tuple[Item, "Future[Answer]"]]) -> tuple[Item, Answer]:
    item, answer = under_way.popleft()
    return item, answer.result()


class _Shares:
    """How many of the threads an item may take.

    Attributes:
        has_more: Whether items are still to come: until then a lane without one leaves its threads to whoever reads.
    """

    def __init__(self, threads: int, lanes: int) -> None:
        self.threads, self.lanes, self.has_more = threads, lanes, True
        self.under_way, self.lock = 0, Lock()

    def begun(self) -> None:
        with self.lock:
            self.under_way += 1

    def finished(self) -> None:
        with self.lock:
            self.under_way -= 1

    def one(self) -> int:
        lanes = self.lanes if self.has_more else min(self.under_way, self.lanes)
        return max(self.threads // max(lanes, 1), 1)
