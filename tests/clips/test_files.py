"""Which videos a path means."""

from pathlib import Path
from unittest.mock import Mock

import av
import pytest

from inflate3d.clips.stills import find_videos
from inflate3d.clips.video import open_frames
from inflate3d.errors import InflateError
from videos import paint, write_video


@pytest.fixture
def tree(tmp_path):
    for name in (
        "b10.mp4", "b2.MP4", "notes.txt", ".hidden.mp4",
        "deep/er/a.webm", "pictures/frame1.png", "pictures/frame2.png", "both/x.avi", "both/cover.jpg",
    ):  # fmt: skip
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path


def found(tree, *paths):
    return [str(path.relative_to(tree)) for path in find_videos([tree / path for path in paths])]


def test_a_folder_is_searched_to_its_depths_in_natural_order(tree):
    assert found(tree, "") == ["b2.MP4", "b10.mp4", "both/x.avi", "deep/er/a.webm", "pictures"]


def test_a_stray_picture_hides_no_video_below_it(tree):
    for name in ("cover.jpg", "deep/poster.png"):
        (tree / name).touch()
    (tree / "both" / "x.avi").unlink()
    assert found(tree, "") == ["b2.MP4", "b10.mp4", "both", "deep/er/a.webm", "pictures"]
    assert found(tree, "deep") == ["deep/er/a.webm"]


@pytest.mark.parametrize("name", ["._frame1.jpg", ".DS_Store.png", "folder.jpg/inside.txt"])
def test_what_is_hidden_or_a_folder_is_no_picture(tree, name):
    path = tree / "deep" / "er" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"no picture")
    (tree / "deep" / "er" / "a.webm").unlink()
    assert found(tree, "deep") == ["deep"]
    with pytest.raises(InflateError, match="the folder holds no frames"):
        open_frames(tree / "deep" / "er")


def test_globs_named_files_and_repeats(tree):
    assert found(tree, "*.mp4", "b10.mp4", "notes.txt") == ["b10.mp4", "notes.txt"]
    assert found(tree, "**/*.avi") == ["both/x.avi"]


def test_a_path_where_nothing_is_stays_so_that_reading_it_says_so(tree):
    assert find_videos([tree / "gone.mp4"]) == [tree / "gone.mp4"]


def test_brackets_in_a_file_name_are_no_glob(tree):
    (tree / "take[1].mp4").touch()
    assert find_videos([tree / "take[1].mp4"]) == [Path(tree / "take[1].mp4")]


def test_a_named_folder_with_nothing_in_it_stays_so_that_reading_it_says_so(tree):
    (tree / "nothing" / "inside").mkdir(parents=True)
    assert found(tree, "both", "nothing") == ["both/x.avi", "nothing"]
    with pytest.raises(InflateError, match="the folder holds no frames"):
        open_frames(tree / "nothing")


def forbid(monkeypatch, method, name):
    """Let a method of paths fail as it does for a user without permission."""
    allowed = getattr(Path, method)

    def call(path, *arguments, **options):
        if path.name == name:
            raise PermissionError(13, "Permission denied", str(path))
        return allowed(path, *arguments, **options)

    monkeypatch.setattr(Path, method, call)


def test_a_folder_that_may_not_be_read_stays_and_costs_no_other_and_reading_says_so(tree, monkeypatch):
    forbid(monkeypatch, "iterdir", "deep")
    assert found(tree, "") == ["b2.MP4", "b10.mp4", "both/x.avi", "deep", "pictures"]
    with pytest.raises(InflateError, match=r"deep: the file or folder cannot be read(.|\n)*denied(.|\n)*chmod u\+rX"):
        open_frames(tree / "deep")


@pytest.mark.parametrize("method", ["exists", "is_dir"])
def test_a_path_that_may_not_be_looked_at_stays_and_reading_says_so(tree, monkeypatch, method):
    forbid(monkeypatch, method, "b2.MP4")
    assert found(tree, "b2.MP4") == ["b2.MP4"]
    with pytest.raises(InflateError, match=r"b2\.MP4: the file or folder cannot be read"):
        open_frames(tree / "b2.MP4")


def test_a_file_that_may_not_be_read_says_so(tree, monkeypatch):
    forbid(monkeypatch, "open", "b2.MP4")
    monkeypatch.setattr(av, "open", Mock(side_effect=av.PermissionError(13, "Permission denied")))
    with pytest.raises(InflateError, match=r"b2\.MP4: the file or folder cannot be read(.|\n)*chmod u\+rX"):
        open_frames(tree / "b2.MP4")


def test_a_file_that_may_not_be_read_any_more_says_so(tmp_path, monkeypatch):
    stream = open_frames(write_video(tmp_path / "x.mp4", [paint(0)]))
    forbid(monkeypatch, "open", "x.mp4")
    monkeypatch.setattr(av, "open", Mock(side_effect=av.PermissionError(13, "Permission denied")))
    with pytest.raises(InflateError, match=r"x\.mp4: the file or folder cannot be read"):
        list(stream)


def test_a_picture_that_may_not_be_read_says_so(tree, monkeypatch):
    forbid(monkeypatch, "read_bytes", "frame1.png")
    with pytest.raises(InflateError, match=r"frame1\.png: the file or folder cannot be read"):
        list(open_frames(tree / "pictures"))


def test_links_to_folders_are_followed_once(tree):
    (tree / "deep" / "er" / "back").symlink_to(tree / "deep")
    (tree / "deep" / "er" / "other").symlink_to(tree / "both")
    assert found(tree, "deep") == ["deep/er/a.webm", "deep/er/other/x.avi"]


@pytest.mark.parametrize(
    ("paths", "got"), [([], "no paths"), ([""], "an empty path"), (["a.mp4", ""], "an empty path")]
)
def test_no_paths_are_an_error(paths, got):
    with pytest.raises(InflateError, match=rf"nothing to read(.|\n)*\.mp4(.|\n)*{got}"):
        find_videos(paths)
