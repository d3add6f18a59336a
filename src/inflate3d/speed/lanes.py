"""Two clips at a time through a network, each with half of the threads, so that none waits for a reader beside it."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
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


def in_lanes(run: Callable[[Item], Answer], items: Iterator[Item], lanes: int = LANES) -> Iterator[tuple[Item, Answer]]:
    """Run a function on items and give them with their answers, in order, so many at a time.

    A layer that two threads share equally is as slow as the slower one: where a reader takes half of a core, the other
    waits. Clips with threads of their own never wait for one another. Measured on two cores, 20 seconds of 1280x720 and
    I3D in bfloat16: 0.9 of the time. The first item goes alone, since it settles things, and so does one that is left
    at the end.

    Args:
        run: Called from several threads at a time.
        items: Used by the caller's thread alone.
        lanes: Items at a time; 1 takes no threads at all.

    Example:
        >>> list(in_lanes(lambda item: item + 1, iter(range(4))))
        [(0, 1), (1, 2), (2, 3), (3, 4)]
    """
    threads = max(torch.get_num_threads() // lanes, 1)

    def beside_others(item: Item) -> Answer:
        with fewer_threads(threads):
            return run(item)

    for item in islice(items, 1):
        yield item, run(item)
    with ThreadPoolExecutor(lanes, "inflate3d-lane") as pool:
        while together := list(islice(items, lanes)):
            if len(together) == lanes > 1:
                yield from zip(together, pool.map(beside_others, together), strict=True)
            else:
                yield from ((item, run(item)) for item in together)
