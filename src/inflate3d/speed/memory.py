"""Memory: how many clips fit into it at a time, and how freed memory goes back to the system."""

import ctypes
import os
import sys
from collections.abc import Callable
from functools import cache
from itertools import chain
from pathlib import Path

import torch
from torch import nn

MOST_CLIPS = 16  # at a time; more bring nothing even to small networks
# glibc, malloc.h
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
MOST_KEPT = 1 << 30  # bytes
FREE_SHARE = 0.8  # of the free memory of a device; the rest is for what its allocator cannot join


def device_of(model: nn.Module) -> torch.device:
    """Tell where a model is; one without parameters and buffers is on the CPU.

    Example:
        >>> device_of(nn.Linear(2, 3)), device_of(nn.ReLU())
        (device(type='cpu'), device(type='cpu'))
    """
    return next((value.device for value in chain(model.parameters(), model.buffers())), torch.device("cpu"))


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
    tenth of the time in bfloat16.
    """
    libc = _glibc()
    if libc:
        libc.mallopt(M_MMAP_THRESHOLD, MOST_KEPT)
        libc.mallopt(M_TRIM_THRESHOLD, MOST_KEPT)


def resident_bytes() -> int:
    """Tell how much memory this process holds; 0 where the system does not say."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.exists() else 0


def give_back_memory() -> None:
    """Return freed memory to the system; glibc keeps what lies between living tensors, more with each window."""
    libc = _glibc()
    if libc:
        libc.malloc_trim(0)


@cache
def _glibc() -> ctypes.CDLL | None:
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    return libc if hasattr(libc, "malloc_trim") and hasattr(libc, "mallopt") else None
