"""The error tells four things and survives a process border."""

import pickle

import pytest

from inflate3d.errors import InflateError, check_choice, import_extra, list_faults, nearest_names


def test_it_says_what_is_wrong_expected_got_and_what_to_type():
    error = InflateError("too short", where="I3D", expected="9 frames", got="8 frames", fix="loop it")
    assert str(error).splitlines() == [
        "I3D: too short",
        "  expected: 9 frames",
        "  got:      8 frames",
        "  fix:      loop it",
    ]
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_three_names_at_most_the_nearest_first():
    assert nearest_names("Mixed_4x", [f"Mixed_4{letter}" for letter in "bcdef"]).count("Mixed") == 3
    known = ["zoo", "i3d-kinetics600", "c3d", "i3d-kinetics400"]
    assert nearest_names("i3d-kinetics40", known) == "i3d-kinetics400, i3d-kinetics600, c3d"


def test_a_missing_package_is_told_with_the_extra_that_brings_it():
    with pytest.raises(InflateError, match=r"the package not_there is missing") as caught:
        import_extra("not_there.inside", "show", where="a page", instead="leave it out")
    assert str(caught.value).splitlines() == [
        "a page: the package not_there is missing",
        "  expected: not_there, which the extra show brings",
        "  got:      No module named 'not_there'",
        '  fix:      pip install "inflate3d[show]", or leave it out',
    ]


@pytest.mark.parametrize("value", ["vido", None, 3, ["video"]])
def test_a_choice_is_one_of_the_names(value):
    check_choice("video", ["video", "i3d"], what="preset", where="make_plan")
    with pytest.raises(InflateError, match="there is no such preset") as caught:
        check_choice(value, ["video", "i3d"], what="preset", where="make_plan")
    assert caught.value.expected == "video, i3d"
    assert "video" in caught.value.fix


def test_faults_beyond_the_shown_ones_are_counted():
    assert list_faults("abc", shown=3) == "a; b; c"
    assert list_faults("abcde", shown=3) == "a; b; c; and 2 more"
