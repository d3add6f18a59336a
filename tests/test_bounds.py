"""What pyproject.toml allows at least is what `make lowest` runs the tests on, and nothing that is refused."""

import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINNED = [
    Requirement(line) for line in (ROOT / "tests" / "lowest.txt").read_text().splitlines() if not line.startswith("#")
]


def requirements(extra: str) -> list[Requirement]:
    """The requirements of an extra, with those of the extras that it names."""
    found = []
    for one in map(Requirement, PROJECT["optional-dependencies"][extra]):
        found += [each for name in one.extras for each in requirements(name)] if one.name == "inflate3d" else [one]
    return found


def test_the_lowest_versions_are_those_that_are_tested():
    wanted: dict[str, Version] = {}
    for one in (*map(Requirement, PROJECT["dependencies"]), *requirements("test")):
        (least,) = [Version(bound.version) for bound in one.specifier if bound.operator == ">="]
        assert wanted.setdefault(one.name, least) == least, f"{one.name} has two lower bounds"
        assert least in one.specifier, f"{one} refuses its own lower bound"
    tested = {one.name: Version(next(iter(one.specifier)).version) for one in PINNED}
    assert tested == wanted


def test_the_pins_name_one_version_each():
    assert all([bound.operator for bound in one.specifier] == ["=="] for one in PINNED)
    assert len({one.name for one in PINNED}) == len(PINNED)
