"""Copies that share memory, how many clips fit into it, and how much of it is held."""

import pytest
import torch
from torch import nn

from inflate3d.speed import memory
from inflate3d.speed.memory import (
    SteadyMemory,
    clips_at_a_time,
    copy_sharing,
    give_back_memory,
    own_values,
    resident_bytes,
)


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


def test_a_copy_shares_memory_until_it_owns_its_values():
    model = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5))
    model[0].weight.requires_grad_(False)
    tied = nn.ModuleDict({"one": model, "same": model})
    copied = copy_sharing(tied)
    assert copied["one"] is copied["same"]
    assert not copied["one"][0].weight.requires_grad
    assert copied["one"][0].weight.data_ptr() == model[0].weight.data_ptr()
    own_values(copied, tied)
    wanted = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        for value in copied.state_dict().values():
            value.zero_()
    for name, value in model.state_dict().items():
        assert torch.equal(value, wanted[name])


def test_a_weight_that_the_last_run_left_behind_is_copied():
    with pytest.warns(FutureWarning):
        model = nn.Sequential(torch.nn.utils.weight_norm(nn.Linear(3, 5)))
    x = torch.rand(2, 3)
    wanted = model(x)  # with gradients: a weight that torch does not copy
    copied = copy_sharing(model)
    torch.testing.assert_close(copied(x), wanted)
    assert copied[0].weight_v.data_ptr() == model[0].weight_v.data_ptr()


@pytest.mark.skipif(not resident_bytes(), reason="the system does not say")
def test_memory_that_is_taken_is_held_and_given_back():
    give_back_memory()  # what other tests have freed would be taken first
    before = resident_bytes()
    ballast = [torch.ones(250_000) for _ in range(200)]  # 200 MB in pieces that are no mappings of their own
    taken = resident_bytes() - before
    assert taken > 150e6
    del ballast
    give_back_memory()
    assert resident_bytes() - before < taken - 100e6


@pytest.mark.skipif(not resident_bytes(), reason="the system does not say")
def test_a_long_work_holds_no_more_than_after_its_first_step_and_what_it_may_keep():
    give_back_memory()
    memory, living = SteadyMemory(kept_bytes=32 * 2**20), []
    for step in range(1, 7):  # 25 MB, 50 MB, ... in small pieces, of which every hundredth lives on
        pieces = [torch.ones(12_500) for _ in range(500 * step)]
        living += pieces[::100]
        del pieces
        memory.after_step()
    assert memory.after_first > 0
    assert resident_bytes() < memory.after_first + 64 * 2**20 < memory.after_first + 5 * 25e6
