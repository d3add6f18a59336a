"""Which videos a path means."""

from pathlib import Path

import pytest

from inflate3d.clips.files import find_videos
from inflate3d.clips.video import open_frames
from inflate3d.errors import InflateError


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


def test_a_folder_that_may_not_be_read_stays_and_costs_no_other(tree, monkeypatch):
    list_folder = Path.iterdir

    def iterdir(folder):
        if folder.name == "deep":
            raise PermissionError(13, "Permission denied")
        return list_folder(folder)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    assert found(tree, "") == ["b2.MP4", "b10.mp4", "both/x.avi", "deep", "pictures"]


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
