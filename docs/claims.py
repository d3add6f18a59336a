"""What docs/verify.py checks: the claims of claims.toml, where their figures stand, and how they are judged."""

import hashlib
import json
import re
import statistics
import subprocess
import sys
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
LIST = ROOT / "docs" / "claims.toml"
sys.path.insert(0, str(ROOT / "benchmarks"))

from page import GOALS  # noqa: E402

NEEDS = {
    "data": "the project's data folder",
    "peers": "the folder of peers (benchmarks/README.md)",
    "idle": "an idle machine",
    "hours": "more than half an hour",
    "network": "a package registry",
    "browser": "Chromium",
}
PYTEST = r"((?:\d+ failed, )?\d+ passed(?:, \d+ skipped)?)"
SKIPPED = re.compile(r"\d+ skipped")
NUMBER = re.compile(r"[-+]?\d[\d,]*\.?\d*(?:e[-+]?\d+)?")
COUNTS = ("count", "above")
UNDECIDING = {"topic", "claim", "unit", "needs", "minutes", "covers", "why"}  # of a claim: for its result
BOUNDS: dict[str, Callable[[float, float], bool]] = {
    ">=": lambda value, bound: value >= bound,
    "<=": lambda value, bound: value <= bound,
    "=": lambda value, bound: value == bound,
}
TAKE: dict[str, Callable[[Sequence[float]], float]] = {
    "largest": max,
    "smallest": min,
    "median": statistics.median,
    "sum": sum,
}
SHOWN = 100  # letters of a last line

Row = dict[str, Any]


class NoFigureError(Exception):
    """What should hold a figure holds none; the text says why."""


@dataclass(frozen=True)
class Claim:
    """A row of the page.

    Attributes:
        id: Names its result.
        topic: Heading that it stands below.
        claim: What is claimed.
        run: Command for bash at the root of the checkout. `$DATA` and `$PEERS` are the folders that were given,
            `$EMPTY` is an empty one, deleted afterwards. Claims with the same command share one run.
        figure: Where the figure stands in what the command prints: a regular expression with a group, or `seconds` for
            the time it takes. Of pytest it is the number of tests that passed.
        file: Page or JSON file that an earlier run of the command wrote; the figure comes from there, with its date.
        path: Where the figure stands in a file of JSON (without `file`: in what is printed), key by key; `*` is any.
        date: Likewise, for the date; without it, it is that of the commit which wrote the file.
        goal: A goal of benchmarks/page.py, which gives figure and bound.
        take: Of several figures the `first`, `largest`, `smallest`, `median`, `sum`, their `count`, or how many lie
            `above` those that stand at `against`.
        against: Likewise a path.
        equal: Values of which alone are counted.
        bound: Such as `<= 0.05`, for the number that the figure begins with; without it the exit code decides.
        unit: Of the figure.
        needs: Of `NEEDS`.
        minutes: After which the command is stopped.
        covers: Commands of the pages that their tests do not run, and this does.
        why: What explains that it fails.
    """

    id: str
    topic: str
    claim: str
    run: str
    figure: str = ""
    file: str = ""
    path: tuple[str, ...] = ()
    date: tuple[str, ...] = ()
    goal: str = ""
    take: str = "first"
    against: tuple[str, ...] = ()
    equal: tuple[str, ...] = ()
    bound: str = ""
    unit: str = ""
    needs: tuple[str, ...] = ()
    minutes: float = 20
    covers: tuple[str, ...] = ()
    why: str = ""

    def is_pytest(self) -> bool:
        """Whether it is a run of tests."""
        return re.search(r"\bpytest -q ", self.run) is not None

    def digest(self) -> str:
        """Name what decides on the result."""
        said = {key: value for key, value in asdict(self).items() if key not in UNDECIDING}
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:12]


def read_claims() -> list[Claim]:
    """Read the list: topics, and below each its claims."""
    claims = []
    for topic in tomllib.loads(LIST.read_text(encoding="utf-8"))["topic"]:
        for said in topic["claims"]:
            fields = {key: tuple(value) if isinstance(value, list) else value for key, value in said.items()}
            claims.append(Claim(topic=topic["title"], **fields))
    return claims


def judged(claim: Claim, code: int | None, printed: str, errors: str, seconds: float) -> Row:
    """Judge what a command printed: `green`, `red`, or `not run` where all its tests were skipped."""
    if code is None:
        return {"outcome": "red", "figure": f"stopped after {claim.minutes:g} minutes"}
    try:
        if claim.figure == "seconds":
            figure = figure_of(claim, [seconds])
        elif claim.path:
            figure = figure_of(claim, values_of(claim, json.loads(printed)))
        else:
            figure = figure_of(claim, texts_of(claim, f"{printed}\n{errors}", code))
        outcome = "green" if code == 0 and holds(claim.bound, figure) else "red"
    except (NoFigureError, ValueError) as nothing:
        if code == 0 and SKIPPED.search(printed):
            return {"outcome": "not run", "figure": "its tests were skipped"}
        last = [line.strip() for line in f"{printed}\n{errors}".splitlines() if line.strip()][-1:]
        return {"outcome": "red", "figure": last[0][:SHOWN] if code and last else str(nothing)}
    return {"outcome": outcome, "figure": str(figure)}


def taken_over(claim: Claim) -> Row:
    """Judge a figure that stands in a file which an earlier run of the command wrote."""
    file = ROOT / claim.file
    about = {"is": claim.digest(), "from": claim.file}
    if not file.exists():
        return {"outcome": "not run", "figure": f"{claim.file} is not there", **about}
    text = file.read_text(encoding="utf-8")
    document, bound = json.loads(text) if file.suffix == ".json" else {}, claim.bound
    try:
        date = first_of(_at(document, claim.date)) if claim.date else date_of_commit(file)
        if claim.goal:
            figure, bound = goal_of(claim.goal, document["sections"])
        else:
            figure = figure_of(claim, values_of(claim, document) if claim.path else texts_of(claim, text))
    except NoFigureError as nothing:
        return {"outcome": "not run", "figure": str(nothing), **about}
    outcome = "green" if holds(bound, figure) else "red"
    return {"outcome": outcome, "figure": str(figure), "bound": bound, "date": date, **about}


def date_of_commit(file: Path) -> str:
    """Tell when a file was last committed."""
    command = ["git", "-C", str(file.parent), "log", "-1", "--format=%cs", "--", file.name]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


class Figure(NamedTuple):
    """What was found: as it is shown, and the number to be judged (None: there is none)."""

    text: str
    value: float | None

    def __str__(self) -> str:
        return self.text

    @classmethod
    def of(cls, found: Any) -> "Figure":
        """Read a number, or a text that may begin with one."""
        if isinstance(found, int | float):
            return cls(f"{found:.4g}" if isinstance(found, float) else str(found), float(found))
        number = NUMBER.match(str(found))
        return cls(str(found), float(number[0].replace(",", "")) if number else None)


def figure_of(claim: Claim, found: Sequence[Any]) -> Figure:
    """Make one figure of all that was found."""
    if claim.take in COUNTS:
        return Figure.of(len(found))
    first = first_of(found)
    if claim.take == "first":
        return Figure.of(first)
    numbers = [Figure.of(one).value for one in found]
    if None in numbers:
        raise NoFigureError(f"no number: {found[numbers.index(None)]}")
    return Figure.of(TAKE[claim.take](numbers))


def first_of(found: Sequence[Any]) -> Any:
    """Take the first of what was found, if anything was."""
    if not found:
        raise NoFigureError("the figure is missing")
    return found[0]


def texts_of(claim: Claim, text: str, code: int = 0) -> list[str]:
    """Find what the regular expression of a claim finds; without one the exit code is the figure, if it is 0."""
    expression = claim.figure or PYTEST * claim.is_pytest()
    return re.findall(expression, text, re.MULTILINE) if expression else ["exit code 0"] * (code == 0)


def values_of(claim: Claim, document: Any) -> list[Any]:
    """Find the values at the path of a claim: all, those that are to be counted, or those above their counterparts."""
    found = _at(document, claim.path)
    if claim.take == "above":
        return [one for one, other in zip(found, _at(document, claim.against), strict=True) if one > other]
    return [value for value in found if not claim.equal or value in claim.equal]


def _at(document: Any, path: Sequence[str]) -> list[Any]:
    if not path:
        return [document]
    pairs = enumerate(document) if isinstance(document, list) else document.items()
    return [value for key, below in pairs if fnmatchcase(str(key), path[0]) for value in _at(below, path[1:])]


def goal_of(name: str, sections: dict[str, Any]) -> tuple[Figure, str]:
    """Look up a goal of the benchmarks: the figure, and the bound."""
    sign, limit, found = next((sign, limit, found) for what, sign, limit, found in GOALS if what == name)
    try:
        return Figure.of(float(found(sections))), f"{sign} {limit:g}"
    except KeyError as missing:
        raise NoFigureError("it was not measured: peers or data were missing") from missing


def holds(bound: str, figure: Figure) -> bool:
    """Whether a figure is within its bound."""
    if not bound:
        return True
    if figure.value is None:
        raise NoFigureError(f"no number: {figure}")
    sign, _, limit = bound.partition(" ")
    return BOUNDS[sign](figure.value, float(limit))


def unexplained(claims: Sequence[Claim], rows: dict[str, Row]) -> list[str]:
    """Name the claims that fail, and nothing says why."""
    return [claim.id for claim in claims if rows.get(claim.id, {}).get("outcome") == "red" and not claim.why]
