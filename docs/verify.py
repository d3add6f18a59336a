"""Check everything that is claimed, command by command, and write verified.json and verified.md: `make verify`.

    python docs/verify.py [--only PATTERN] [--data FOLDER] [--peers FOLDER] [--have idle hours ...]
    python docs/verify.py --draw      # runs nothing: figures of other pages are taken over, and the page is written

Claims stand in verify_claims.toml, `Claim` says how. A result stands in verified.json as soon as it is there, so that a
run that is stopped goes on where it was; what another state of the package gave is checked again. What needs more than
a checkout (see `NEEDS`) is left out unless it is said to be there. A claim that fails without an explanation in its
list makes the exit code 1.
"""

import argparse
import hashlib
import itertools
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any, NamedTuple

from inflate3d.atomic import write_text

ROOT = Path(__file__).parents[1]
CLAIMS, RESULTS, PAGE = (ROOT / "docs" / name for name in ("verify_claims.toml", "verified.json", "verified.md"))
sys.path.insert(0, str(ROOT / "benchmarks"))

from machine import Settings, describe_machine  # noqa: E402
from page import GOALS  # noqa: E402

NEEDS = {
    "data": "the project's data folder",
    "peers": "the folder of peers (benchmarks/README.md)",
    "idle": "an idle machine",
    "hours": "more than half an hour",
    "network": "a package registry",
    "browser": "Chromium",
}
PYTEST = r"(\d+ passed(?:, \d+ skipped)?)"
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
OUTCOMES = {"green": "green", "red": "**red**", "not run": "not run"}
HEAD = """# Verified

Everything that is claimed, checked command by command: {green} of {total} claims hold, {red} do not (the last column
says why), {not_run} were not run.

`make verify` checks what a checkout is enough for. Add `DATA=FOLDER` for clips, scans and pictures, `PEERS=FOLDER` (see
`benchmarks/README.md`), and `ARGUMENTS="--have idle hours network browser"` for what needs a quiet machine, more than
half an hour, a package registry, or Chromium; `ARGUMENTS="--only PATTERN"` checks some anew. Commands are those of bash
at the root of a checkout, `$EMPTY` is an empty folder. Where a figure comes from another page, it has the date and the
machine of that page; else date, commit and [machine](#machines-and-versions) stand beside it. The list is in
`docs/verify_claims.toml`, the raw results are in `docs/verified.json`."""
TITLES = ("| claim | command | figure | wanted | | when | why |", "|---|---|---|---|---|---|---|")

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
    minutes: float = 10
    covers: tuple[str, ...] = ()
    why: str = ""

    def digest(self) -> str:
        """Name what decides on the result."""
        said = {key: value for key, value in asdict(self).items() if key not in UNDECIDING}
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:12]


def main() -> None:
    """Check what is not checked yet, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="regular expression of ids to check, again if they have a result")
    parser.add_argument("--data", default="", help=NEEDS["data"])
    parser.add_argument("--peers", default="", help=NEEDS["peers"])
    parser.add_argument("--have", nargs="*", default=[], choices=[*NEEDS][2:], help="what is there besides")
    parser.add_argument("--keep", action="store_true", help="keep what another state of the package gave")
    parser.add_argument("--draw", action="store_true", help="run nothing")
    options = parser.parse_args()
    claims, results = read_claims(), json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    rows, environments = results.get("rows", {}), results.get("environments", {})

    def write() -> None:
        kept = {claim.id: rows[claim.id] for claim in claims if rows.get(claim.id, {}).get("is") == claim.digest()}
        used = {row.get("environment") for row in kept.values()}
        known = {name: about for name, about in environments.items() if name in used}
        write_text(RESULTS, json.dumps({"environments": known, "rows": kept}, indent=1) + "\n")

    for claim in claims:
        if claim.file:
            rows[claim.id] = taken_over(claim)
    write()
    jobs = [] if options.draw else [claim for claim in claims if wanted(claim, rows, options)]
    about = environment(environments) if jobs else {}
    folders = {name: str(Path(given).resolve()) for name in ("data", "peers") if (given := getattr(options, name))}
    for number, (command, asked) in enumerate(by_command(jobs), start=1):
        print(f"{number}: {command}", flush=True)
        for claim, row in zip(asked, checked(asked, folders), strict=True):
            rows[claim.id] = {**row, **about, "is": claim.digest()}
            print(f"   {claim.id}: {row['outcome']}, {row['figure']}, {row['seconds']} s", flush=True)
        write()
    results = json.loads(RESULTS.read_text())
    write_text(PAGE, page(claims, results))
    if names := unexplained(claims, results["rows"]):
        print(f"red, and no `why` explains it: {', '.join(names)}", file=sys.stderr)
    sys.exit(bool(names))


def read_claims() -> list[Claim]:
    """Read the list: topics, and below each its claims."""
    claims = []
    for topic in tomllib.loads(CLAIMS.read_text(encoding="utf-8"))["topic"]:
        for said in topic["claims"]:
            fields = {key: tuple(value) if isinstance(value, list) else value for key, value in said.items()}
            claims.append(Claim(topic=topic["title"], **fields))
    return claims


def wanted(claim: Claim, rows: dict[str, Row], options: argparse.Namespace) -> bool:
    """Whether a claim is to be checked now."""
    given = {*options.have, *(name for name in ("data", "peers") if getattr(options, name))}
    if claim.file or not given.issuperset(claim.needs):
        return False
    if options.only:
        return bool(re.search(options.only, claim.id))
    row = rows.get(claim.id, {})
    return row.get("is") != claim.digest() or (row.get("state") != state() and not options.keep)


def state() -> str:
    """Name the state of the package's code."""
    files = sorted((ROOT / "src").rglob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]


def environment(known: dict[str, Row]) -> Row:
    """Tell where and on what the checks run; machine and versions stand in `known`, under a letter."""
    named = {re.split(r"[^\w.-]", line)[0] for line in requires("inflate3d") or []} | {"inflate3d"}
    here = {**describe_machine(Settings()), "versions": dict(filter(all, map(_versioned, sorted(named))))}
    letter = next((name for name, about in known.items() if about == here), None)
    if letter is None:
        letter = next(chr(code) for code in range(ord("A"), sys.maxunicode) if chr(code) not in known)
        known[letter] = here
    commit = _git("rev-parse", "--short", "HEAD") + "+" * bool(_git("status", "--porcelain", "src"))
    return {"date": datetime.now(UTC).date().isoformat(), "commit": commit, "environment": letter, "state": state()}


def _versioned(package: str) -> tuple[str, str]:
    try:
        return package, version(package)
    except PackageNotFoundError:
        return package, ""


def _git(*words: str) -> str:
    run = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=False)
    return run.stdout.strip()


def by_command(claims: Sequence[Claim]) -> Iterator[tuple[str, list[Claim]]]:
    """Put claims together that share a command."""
    commands = dict.fromkeys(claim.run for claim in claims)
    return ((command, [claim for claim in claims if claim.run == command]) for command in commands)


def checked(claims: Sequence[Claim], folders: dict[str, str]) -> list[Row]:
    """Run the command of some claims, and judge each."""
    with tempfile.TemporaryDirectory() as empty:
        places = {name.upper(): folder for name, folder in {**folders, "empty": empty}.items()}
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        env = {**os.environ, **places, "PATH": path}
        limit = max(claim.minutes for claim in claims)
        code, printed, errors, seconds = run(claims[0].run, env, 60 * limit)
    return [{**judged(claim, code, printed, errors, seconds), "seconds": round(seconds, 1)} for claim in claims]


def run(command: str, env: dict[str, str], limit: float) -> tuple[int | None, str, str, float]:
    """Run a command of bash, all of it ended after `limit` seconds: exit code (None), both outputs, seconds."""
    began = time.perf_counter()
    words = ["bash", "-euo", "pipefail", "-c", command]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL}
    with subprocess.Popen(words, cwd=ROOT, env=env, start_new_session=True, errors="replace", **pipes) as process:
        try:
            printed, errors = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return None, *process.communicate(), time.perf_counter() - began
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    return process.returncode, printed, errors, time.perf_counter() - began


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
            figure = figure_of(claim, texts_of(claim, f"{printed}\n{errors}"))
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
    date = _at(document, claim.date)[0] if claim.date else _git("log", "-1", "--format=%cs", "--", claim.file)
    try:
        if claim.goal:
            figure, bound = goal_of(claim.goal, document["sections"])
        else:
            figure = figure_of(claim, values_of(claim, document) if claim.path else texts_of(claim, text))
    except NoFigureError as nothing:
        return {"outcome": "not run", "figure": str(nothing), **about}
    return {
        "outcome": "green" if holds(bound, figure) else "red",
        "figure": str(figure),
        "bound": bound,
        "date": date,
        **about,
    }


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
    if not found:
        raise NoFigureError("the figure is missing")
    if claim.take == "first":
        return Figure.of(found[0])
    numbers = [Figure.of(one).value for one in found]
    if None in numbers:
        raise NoFigureError(f"no number: {found[numbers.index(None)]}")
    return Figure.of(TAKE[claim.take](numbers))


def texts_of(claim: Claim, text: str) -> list[str]:
    """Find what the regular expression of a claim finds; without one the exit code is the figure."""
    expression = claim.figure or PYTEST * claim.run.startswith("pytest ")
    return re.findall(expression, text, re.MULTILINE) if expression else ["exit code 0"]


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


def page(claims: Sequence[Claim], results: dict[str, Any]) -> str:
    """Write the page."""
    rows = {claim.id: results["rows"].get(claim.id, {"outcome": "not run", "figure": ""}) for claim in claims}
    counts = Counter(row["outcome"] for row in rows.values())
    parts = [HEAD.format(total=len(rows), **{name.replace(" ", "_"): counts[name] for name in OUTCOMES})]
    for topic, below in itertools.groupby(claims, key=lambda claim: claim.topic):
        lines = [_line(claim, rows[claim.id]) for claim in below]
        parts.append(f"## {topic}\n\n" + "\n".join([*TITLES, *lines]))
    parts += ["## Machines and versions", *(_about(*known) for known in sorted(results["environments"].items()))]
    return "\n\n".join(parts) + "\n"


def _line(claim: Claim, row: Row) -> str:
    if "from" in row:
        name = Path(row["from"]).name.replace(".json", ".md")
        where = f"{row['date']}, [{name}]({name})" if "date" in row else ""
    else:
        where = f"{row['date']}, `{row['commit']}`, {row['environment']}" if "date" in row else ""
    why = {"red": claim.why, "not run": row["figure"] or _missing(claim)}.get(row["outcome"], "")
    figure = row["figure"] * (row["outcome"] != "not run")
    unit = f" {claim.unit}" * bool(claim.unit and figure)
    cells = [
        claim.claim,
        f"`{claim.run}`",
        figure + unit,
        row.get("bound", claim.bound),
        OUTCOMES[row["outcome"]],
        where,
        why,
    ]
    return f"| {' | '.join(cells)} |"


def _missing(claim: Claim) -> str:
    return f"needs {' and '.join(NEEDS[need] for need in claim.needs)}" if claim.needs else ""


def _about(letter: str, machine: dict[str, Any]) -> str:
    what = f"{machine['cores']} cores of {machine['processor']} ({', '.join(machine['flags'])})"
    versions = ", ".join(f"{name} {number.partition('+')[0]}" for name, number in machine["versions"].items())
    return f"**{letter}**: {what}, {machine['memory_gb']:.0f} GB, {machine['system']}. {versions}."


if __name__ == "__main__":
    main()
