"""Memory: copies that share it, how many clips fit into it, and how freed memory goes back to the system."""

import copy
import ctypes
import os
import sys
from collections.abc import Callable, Iterator
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

MOST_CLIPS = 16  # at a time; more bring nothing even to small networks
# glibc, malloc.h
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
MOST_KEPT, LARGE_BYTES = 1 << 30, 8 << 20
FREE_SHARE = 0.8  # of the free memory of a device; the rest is for what its allocator cannot join


def device_of(model: nn.Module) -> torch.device:
    """Tell where a model is; one without parameters and buffers is on the CPU.

    Example:
        >>> device_of(nn.Linear(2, 3)), device_of(nn.ReLU())
        (device(type='cpu'), device(type='cpu'))
    """
    return next((value.device for value in values_of(model)), torch.device("cpu"))


def values_of(model: nn.Module) -> Iterator[Tensor]:
    """Give the parameters and buffers of a model."""
    return chain(model.parameters(), model.buffers())


def copy_sharing(model: nn.Module) -> nn.Module:
    """Copy a model, but for the memory of its values: replace those, or give the copy its own with `own_values`."""
    memo: dict[int, Any] = {}
    for module in model.modules():  # old weight norm keeps what it made in the last run
        for value in pytree.tree_leaves(list(vars(module).values())):
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    for value in values_of(model):
        if type(value) is nn.Parameter:
            memo[id(value)] = nn.Parameter(value.detach(), value.requires_grad)
        elif type(value) is Tensor:
            memo[id(value)] = value.detach()
    return copy.deepcopy(model, memo)


def own_values(model: nn.Module, other: nn.Module) -> None:
    """Copy those values of a model that lie in the memory of another model's, in place."""
    taken = {value.untyped_storage().data_ptr() for value in values_of(other)}
    for value in values_of(model):
        if value.untyped_storage().data_ptr() in taken:
            value.data = value.data.clone()


def clips_at_a_time(device: torch.device, run_one: Callable[[], object]) -> int:
    """Choose how many clips go through a network at a time: one on a CPU, on a GPU as many as its free memory holds.

    On a CPU the time of a clip hardly depends on it: measured, I3D on 16 frames took 0.94 of it with 2 or 4 at a time.

    Args:
        device: Where the network is.
        run_one: Runs it on one clip; on a GPU this is done twice, and its peak is what a clip costs.
    """
    if device.type != "cuda":
        return 1
    run_one()  # what happens only once is not counted
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    run_one()
    peak = torch.cuda.max_memory_allocated(device) - before
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(device)
    return min(max(int(FREE_SHARE * free) // max(peak, 1), 1), MOST_CLIPS)


@cache
def keep_memory() -> None:
    """Let glibc keep what the layers of a network free for the next ones, for this process from now on.

    Otherwise it gives pieces above 32 MiB back at once and gets them anew, page by page and zeroed: measured on I3D, a
    tenth of the time in bfloat16. Pieces above 8 MiB given back: 30 to 60 MB less, a tenth of the time more.
    """
    libc = _glibc()
    if libc:
        libc.mallopt(M_MMAP_THRESHOLD, MOST_KEPT)
        libc.mallopt(M_TRIM_THRESHOLD, MOST_KEPT)
        libc.mallopt(M_ARENA_MAX, 1)  # a thread that reads would keep frames that others free, in an arena of its own


@cache
def give_back_large() -> None:
    """Let glibc give large pieces back as soon as they are freed, in this process, but where `keep_memory` was called.

    It finds out by itself what is large, up to 32 MiB, and what is not lies in one heap, whose gaps depend on chance:
    measured on I3D without faster layers, peaks between 1.1 and 1.4 GB. With 8 MiB they are 1.1 GB, and the time is an
    eighth more.
    """
    libc = _glibc()
    if libc and not keep_memory.cache_info().currsize:
        libc.mallopt(M_MMAP_THRESHOLD, LARGE_BYTES)


def resident_bytes() -> int:
    """Tell how much memory this process holds; 0 where the system does not say."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.exists() else 0


def give_back_memory() -> None:
    """Return freed memory to the system; glibc keeps what lies between living tensors, more with each window."""
    libc = _glibc()
    if libc:
        libc.malloc_trim(0)


class SteadyMemory:
    """Gives freed memory back when a process holds more than after the first step of a long work.

    What is given back has to be zeroed when it is taken again, so some of it is kept.

    Example:
        >>> memory = SteadyMemory()
        >>> for _ in range(3):
        ...     memory.after_step()
    """

    def __init__(self, kept_bytes: int = 128 * 2**20) -> None:
        self.kept_bytes, self.after_first = kept_bytes, 0

    def after_step(self) -> None:
        """Look at what the process holds now."""
        self.after_first = self.after_first or resident_bytes()
        if resident_bytes() > self.after_first + self.kept_bytes:
            give_back_memory()


@cache
def _glibc() -> ctypes.CDLL | None:
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    return libc if hasattr(libc, "malloc_trim") and hasattr(libc, "mallopt") else None
