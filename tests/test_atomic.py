"""A file is written whole or not at all."""

import pytest

from inflate3d.atomic import check_writable, replacing
from inflate3d.errors import InflateError


def test_an_interruption_leaves_the_old_file_and_no_trace(tmp_path):
    path = tmp_path / "results.json"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), replacing(path) as draft:
        draft.write_text("half of the n")
        raise KeyboardInterrupt
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]
    assert path.read_text() == "old"


def test_folders_are_made(tmp_path):
    with replacing(tmp_path / "a" / "b" / "c.txt") as draft:
        draft.write_text("new")
    assert (tmp_path / "a" / "b" / "c.txt").read_text() == "new"


@pytest.mark.parametrize("write", [check_writable, lambda path: replacing(path).__enter__()])
def test_a_place_that_cannot_be_written_is_told(tmp_path, write):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InflateError, match=r"cannot be written(.|\n)*INFLATE3D_CACHE"):
        write(tmp_path / "file" / "results.json")


def test_the_check_before_long_work_leaves_nothing_and_knows_folders(tmp_path):
    check_writable(tmp_path / "new" / "results.json")
    assert list((tmp_path / "new").iterdir()) == []
    with pytest.raises(InflateError, match="a folder of that name"):
        check_writable(tmp_path)
