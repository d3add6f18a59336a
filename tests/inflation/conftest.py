"""What the tests of small networks share."""

import pytest
import torch


@pytest.fixture(scope="module")
def one_thread():
    """So small are these networks that threads would mostly wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
