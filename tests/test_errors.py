"""The error tells four things and survives a process border."""

import pickle
from dataclasses import dataclass, field

import pytest

from inflate3d.errors import (
    InflateError,
    check_choice,
    check_options,
    import_extra,
    is_count,
    is_number,
    is_pair,
    list_faults,
    nearest_names,
)


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


@dataclass(frozen=True)
class Options:
    fps: float = 25.0
    crops: str = "center"
    size: int = field(kw_only=True)

    def check(self):
        rules = {"fps": ("a number above 0", self.fps > 0), "crops": ("center, ten", self.crops in {"center", "ten"})}
        check_options(self, {**rules, "size": ("1 or more", self.size >= 1)}, fix="pass size=224")


def test_options_are_told_with_their_rules_and_defaults_all_together():
    Options(size=3).check()
    with pytest.raises(InflateError, match="out of range") as caught:
        Options(0.0, "two", size=3).check()
    assert str(caught.value).splitlines() == [
        "Options: an option is out of range: fps, crops",
        "  expected: fps: a number above 0; crops: center, ten",
        "  got:      fps=0.0, crops='two'",
        "  fix:      take the defaults: fps=25.0, crops='center'",
    ]


def test_an_option_without_a_default_gets_the_advice_of_its_owner():
    with pytest.raises(InflateError, match=r"size: 1 or more(.|\n)*size=0(.|\n)*fix:      pass size=224"):
        Options(size=0).check()


def test_a_choice_may_say_more_than_the_names():
    with pytest.raises(InflateError, match=r"expected: a, or a number(.|\n)*did you mean a"):
        check_choice("b", ["a"], what="profile", where="here", expected="a, or a number")


@pytest.mark.parametrize("value", [True, float("nan"), float("inf"), "3", None, 1j])
def test_what_is_no_number(value):
    assert not is_number(value)
    assert not is_count(value)
    assert not is_pair((1.0, value))
