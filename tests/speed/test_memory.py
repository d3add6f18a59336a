"""How many clips go through a network at a time, from what one costs and what is free."""

import pytest
import torch

from inflate3d.speed import memory
from inflate3d.speed.memory import clips_at_a_time


def test_a_cpu_takes_one_clip_at_a_time_and_tries_nothing():
    assert clips_at_a_time(torch.device("cpu"), lambda: pytest.fail("nothing has to be run")) == 1


@pytest.mark.parametrize(("free", "clips"), [(50, 1), (1_000, 8), (199, 1), (1_000_000, 16)])
def test_a_gpu_takes_as_many_clips_as_fit_into_its_free_memory(monkeypatch, free, clips):
    """One clip costs 100 bytes at its peak, beside the 7 of the weights and what the first run alone takes."""
    runs, allocated = [], {"now": 7, "peak": 0}

    def run_one():
        runs.append(1)
        allocated["peak"] = allocated["now"] + (100 if len(runs) > 1 else 5_000)

    monkeypatch.setattr(memory.torch.cuda, "memory_allocated", lambda device: allocated["now"])
    monkeypatch.setattr(memory.torch.cuda, "max_memory_allocated", lambda device: allocated["peak"])
    monkeypatch.setattr(memory.torch.cuda, "reset_peak_memory_stats", lambda device: allocated.update(peak=0))
    monkeypatch.setattr(memory.torch.cuda, "mem_get_info", lambda device: (free, 10 * free))
    assert clips_at_a_time(torch.device("cuda"), run_one) == clips
    assert len(runs) == 2
