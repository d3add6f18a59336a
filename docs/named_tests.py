"""Which tests a command of pytest names, and what became of them in runs that `make test` and `make slow` reported.

Claims whose commands are tests need no runs of their own then: one run of all tests answers them all.
"""

import json
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import pytest

PLAIN = ("pytest", "-q")
SHELL = set(";&|<>$`")
XFAIL = "pytest.xfail"


@dataclass(frozen=True)
class Ended:
    """What became of a test: `passed`, `failed`, `skipped` or `xfailed`, and after how many seconds."""

    outcome: str
    seconds: float


def is_named(command: str) -> bool:
    """Whether a command does nothing but run tests."""
    words = shlex.split(command) if not SHELL & set(command) else []
    return tuple(words[:2]) == PLAIN


def read_reports(paths: Sequence[Path]) -> dict[str, Ended]:
    """Read what became of each test from JUnit's XML (`--junitxml` with `-o junit_family=xunit1`)."""
    found = {}
    for case in (case for path in paths for case in ElementTree.parse(path).iter("testcase")):
        ends = [below for below in case if below.tag in ("failure", "error", "skipped")]
        outcome = "passed"
        if ends:
            outcome = "failed" if ends[0].tag != "skipped" else "xfailed" if ends[0].get("type") == XFAIL else "skipped"
        found[f"{case.get('file')}::{case.get('name')}"] = Ended(outcome, float(case.get("time", 0)))
    return found


def find_named(commands: Sequence[str], root: Path) -> list[list[str]]:
    """Collect the tests that each command names, in a process of its own."""
    child = [sys.executable, str(Path(__file__).resolve())]
    given = json.dumps([shlex.split(command)[1:] for command in commands])
    run = subprocess.run(child, input=given, capture_output=True, text=True, cwd=root, check=True)
    found: list[list[str]] = json.loads(run.stdout.splitlines()[-1])
    return found


def summary(names: Sequence[str], ended: Mapping[str, Ended]) -> tuple[str, int, float] | None:
    """Write the last line of pytest for some tests, with exit code and seconds; None where the reports lack one."""
    if not names or not ended.keys() >= set(names):
        return None
    counts = Counter(ended[name].outcome for name in names)
    told = [f"{counts[outcome]} {outcome}" for outcome in ("failed", "passed", "skipped", "xfailed") if counts[outcome]]
    return ", ".join(told), int(counts["failed"] > 0), sum(ended[name].seconds for name in names)


class _Collected:
    """A plugin that keeps the names of the tests."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.names = [item.nodeid for item in session.items]


def main() -> None:
    """Answer lists of options with lists of names, both in JSON."""
    found = []
    for options in json.load(sys.stdin):
        plugin = _Collected()
        pytest.main(["--collect-only", "-qq", "-p", "no:xdist", *_without_xdist(options)], plugins=[plugin])
        found.append(plugin.names)
    print(f"\n{json.dumps(found)}")


def _without_xdist(options: Sequence[str]) -> list[str]:
    kept, left = [], iter(options)
    for option in left:
        if option in ("-n", "--dist"):
            next(left)
        else:
            kept.append(option)
    return kept


if __name__ == "__main__":
    main()
