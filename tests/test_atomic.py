"""A file is written whole or not at all."""

import errno
import os
from pathlib import Path

import av
import pytest

from inflate3d.atomic import check_writable, replacing, write_text
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
    for folder in (tmp_path, Path()):
        with pytest.raises(InflateError, match="a folder of that name"):
            check_writable(folder)


def test_the_check_before_long_work_touches_no_file(tmp_path):
    for name in ("results.json", "results.json.trial"):
        (tmp_path / name).write_text("mine")
    check_writable(tmp_path / "results.json")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == dict.fromkeys(
        ("results.json", "results.json.trial"), "mine"
    )


def test_a_link_goes_on_pointing_and_permissions_stay(tmp_path):
    target, link = tmp_path / "target.txt", tmp_path / "link.txt"
    target.write_text("old")
    target.chmod(0o604)
    link.symlink_to(target)
    with replacing(link) as draft:
        draft.write_text("new")
    assert link.is_symlink()
    assert target.read_text() == "new"
    assert target.stat().st_mode & 0o777 == 0o604


def test_a_new_file_gets_the_permissions_of_any_new_file(tmp_path):
    (tmp_path / "other").touch()
    with replacing(tmp_path / "mine") as draft:
        draft.write_text("new")
    assert (tmp_path / "mine").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_pipes_are_written_into(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    check_writable(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    with replacing(pipe) as draft:
        draft.write_text("new")
    assert os.read(reader, 99) == b"new"
    os.close(reader)
    assert pipe.is_fifo()


def test_a_text_is_written_whole(tmp_path):
    write_text(tmp_path / "new" / "a.txt", "größer")
    assert (tmp_path / "new" / "a.txt").read_bytes() == "größer".encode()
    with pytest.raises(InflateError, match="cannot be written"):
        write_text(tmp_path / "new" / "a.txt" / "b.txt", "")


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EIO, "the disk with the video fails"),
        PermissionError(errno.EACCES, "Permission denied", "the video"),
        av.InvalidDataError(1, "a damaged video"),
    ],
)
def test_errors_of_reading_are_none_of_writing(tmp_path, error):
    with pytest.raises(type(error)) as caught, replacing(tmp_path / "new.txt"):
        raise error
    assert caught.value is error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_full_disk_is_told(tmp_path, number):
    told = pytest.raises(InflateError, match=r"new\.txt: the file cannot be written(.|\n)*make room")
    with told, replacing(tmp_path / "new.txt"):
        raise OSError(number, os.strerror(number))
    assert list(tmp_path.iterdir()) == []


def test_a_draft_that_may_not_be_opened_is_told(tmp_path):
    told = pytest.raises(InflateError, match=r"new\.txt: the file cannot be written")
    with told, replacing(tmp_path / "new.txt") as draft:
        raise PermissionError(errno.EACCES, "Permission denied", str(draft))
