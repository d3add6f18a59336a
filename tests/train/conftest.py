"""Small videos, made once."""

import pytest
from tiny import write_clips


@pytest.fixture(scope="session")
def clips_folder(tmp_path_factory):
    return write_clips(tmp_path_factory.mktemp("clips"))
