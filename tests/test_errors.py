"""The error tells four things and survives a process border."""

import pickle

from inflate3d.errors import InflateError, nearest_names


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
