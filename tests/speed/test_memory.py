"""How many clips go through a network at a time, from what one costs and what is free."""

import pytest
import torch

from inflate3d.speed import memory
from inflate3d.speed.memory import clips_at_a_time, clips_side_by_side


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


@pytest.mark.parametrize(
    ("machine", "value_bytes", "clips"),  # gibibytes, threads
    [
        ((16, 2), 2, 2),
        ((16, 2), 4, 1),
        ((0, 2), 2, 2),
        ((16, 1), 2, 1),
        ((256, 64), 2, 37),
        ((256, 8), 2, 8),
        ((0, 8), 400, 1),
    ],
)
def test_a_cpu_answers_as_many_clips_at_once_as_threads_and_memory_allow(
    monkeypatch, tmp_path, machine, value_bytes, clips
):
    available_gib, threads = machine
    meminfo = tmp_path / "meminfo"
    meminfo.write_text(f"MemTotal: 5 kB\nMemAvailable:   {available_gib * 2**20} kB\nHugetlb: 0 kB\n")
    monkeypatch.setattr(memory, "MEMINFO", meminfo)
    monkeypatch.setattr(memory.torch, "get_num_threads", lambda: threads)
    assert clips_side_by_side(3 * 64 * 224 * 224, value_bytes) == clips
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "not-there")
    assert clips_side_by_side(3 * 64 * 224 * 224, 2) == min(2, threads)
