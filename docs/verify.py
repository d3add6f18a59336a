"""Check everything that is claimed, command by command, and write verified.json and verified.md: `make verify`.

    python docs/verify.py [--only PATTERN] [--data FOLDER] [--peers FOLDER] [--have idle hours ...] [--reports FILE ...]
    python docs/verify.py --draw      # runs nothing: figures of other pages are taken over, and the page is written

Claims stand in claims.toml, and claims.py says how. A result stands in verified.json as soon as it is there, so that a
run that is stopped goes on where it was; what another state of the package gave is checked again (not with `--keep`).
What needs more than a checkout (see `NEEDS`) is left out unless it is said to be there. Claims that are tests are
judged by what `make test` and `make slow` reported, where that is newer than the code. A claim that fails without an
explanation in the list makes the exit code 1.
"""

import argparse
import hashlib
import html
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

from claims import NEEDS, ROOT, Claim, Row, judged, read_claims, taken_over, unexplained
from machine import Settings, describe_machine  # of benchmarks, which claims.py made known
from named_tests import find_named, is_named, read_reports, summary

from inflate3d.atomic import write_text

RESULTS, PAGE = ROOT / "docs" / "verified.json", ROOT / "docs" / "verified.md"
OUTCOMES = {"green": "green", "red": "**red**", "not run": "not run"}
HEAD = """# Verified

Everything that is claimed, checked command by command: {green} of {total} claims hold, {red} do not (the last column
says why), {not_run} were not run.

`make verify` checks what a checkout is enough for. Add `DATA=FOLDER` for clips, scans and pictures, `PEERS=FOLDER` (see
`benchmarks/README.md`), and `ARGUMENTS="--have idle hours network browser"` for what needs a quiet machine, more than
half an hour, a package registry, or Chromium; `ARGUMENTS="--only PATTERN"` checks some anew. After `make test slow`,
what is claimed by tests alone is not run again. Commands are those of bash at the root of a checkout, `$EMPTY` is an
empty folder. Where a figure comes from another page, it has the date and the machine of that page; else date, commit
and [machine](#machines-and-versions) stand beside it. The list is in `docs/claims.toml`, the raw results are in
`docs/verified.json`."""
TITLES = ("| claim | command | figure | wanted | | when | why |", "|---|---|---|---|---|---|---|")


def main() -> None:
    """Check what is not checked yet, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="regular expression of ids to check, again if they have a result")
    parser.add_argument("--data", default="", help=NEEDS["data"])
    parser.add_argument("--peers", default="", help=NEEDS["peers"])
    parser.add_argument("--have", nargs="*", default=[], choices=[*NEEDS][2:], help="what is there besides")
    parser.add_argument("--keep", action="store_true", help="keep what another state of the package gave")
    parser.add_argument("--draw", action="store_true", help="run nothing")
    parser.add_argument("--reports", nargs="*", default=[], type=Path, help="of runs of the tests, in JUnit's XML")
    options = parser.parse_args()
    claims = read_claims()
    record(claims, {claim.id: taken_over(claim) for claim in claims if claim.file})
    about, machines = ({}, {}) if options.draw else here()
    if reports := [path for path in options.reports if is_current(path)]:
        found = reported([claim for claim in claims if not claim.file and is_named(claim.run)], reports)
        print(f"{', '.join(map(str, reports))}: {len(found)} claims", flush=True)
        record(claims, {name: row | about for name, row in found.items()}, machines)
    rows = read_results()["rows"]
    jobs = [] if options.draw else [claim for claim in claims if wanted(claim, rows, options)]
    folders = {name: str(Path(given).resolve()) for name in ("data", "peers") if (given := getattr(options, name))}
    for number, (command, asked) in enumerate(by_command(jobs), start=1):
        print(f"{number}: {command}", flush=True)
        found = {claim.id: row | about for claim, row in zip(asked, checked(asked, folders), strict=True)}
        for name, row in found.items():
            print(f"   {name}: {row['outcome']}, {row['figure']}, {row['seconds']} s", flush=True)
        record(claims, found, machines)
    results = read_results()
    write_text(PAGE, page(claims, results))
    if names := unexplained(claims, results["rows"]):
        print(f"red, and no `why` explains it: {', '.join(names)}", file=sys.stderr)
    sys.exit(bool(names) and not options.draw)


def read_results() -> dict[str, Any]:
    """Read rows by claim, and machines by letter."""
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {"machines": {}, "rows": {}}


def record(claims: Sequence[Claim], rows: dict[str, Row], machines: dict[str, Row] | None = None) -> None:
    """Add rows to the results, to which other runs may have added; what is claimed no more, or otherwise, goes."""
    results = read_results()
    rows, machines = results["rows"] | rows, results["machines"] | (machines or {})
    kept = {claim.id: rows[claim.id] for claim in claims if rows.get(claim.id, {}).get("is") == claim.digest()}
    used = {row.get("machine") for row in kept.values()}
    found = {"machines": {name: about for name, about in machines.items() if name in used}, "rows": kept}
    write_text(RESULTS, json.dumps(found, indent=1) + "\n")


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


def here() -> tuple[Row, dict[str, Row]]:
    """Tell date, commit, state and machine of what is checked now; the machine, with versions, below its letter."""
    named = {re.split(r"[^\w.-]", line)[0] for line in requires("inflate3d") or []} | {"inflate3d"}
    machine = {**describe_machine(Settings()), "versions": dict(filter(all, map(_versioned, sorted(named))))}
    known = read_results()["machines"]
    free = next(chr(code) for code in range(ord("A"), sys.maxunicode) if chr(code) not in known)
    letter = next((name for name, about in known.items() if about == machine), free)
    commit = _git("rev-parse", "--short", "HEAD") + "+" * bool(_git("status", "--porcelain", "src"))
    date = datetime.now(UTC).date().isoformat()
    return {"date": date, "commit": commit, "machine": letter, "state": state()}, {letter: machine}


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


def is_current(report: Path) -> bool:
    """Whether no code is newer than a report of the tests."""
    written = report.stat().st_mtime
    code = (path for name in ("src", "tests") for path in (ROOT / name).rglob("*.py"))
    newer = [path for path in code if path.stat().st_mtime > written]
    if newer:
        print(f"{report} is older than {newer[0].relative_to(ROOT)}: its tests are run again", file=sys.stderr)
    return not newer


def reported(claims: Sequence[Claim], reports: Sequence[Path]) -> dict[str, Row]:
    """Judge claims by reports of the tests, where those hold all of a claim's tests."""
    ended, found = read_reports(reports), {}
    for claim, names in zip(claims, find_named([claim.run for claim in claims], ROOT), strict=True):
        if last := summary(names, ended):
            text, code, seconds = last
            row = judged(claim, code, text, "", seconds)
            found[claim.id] = row | {"seconds": round(seconds, 1), "is": claim.digest()}
    return found


def checked(claims: Sequence[Claim], folders: dict[str, str]) -> list[Row]:
    """Run the command of some claims, and judge each."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as empty:
        places = {name.upper(): folder for name, folder in {**folders, "empty": empty}.items()}
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        env = {**os.environ, **places, "PATH": path}
        limit = max(claim.minutes for claim in claims)
        code, printed, errors, seconds = run(claims[0].run, env, 60 * limit)
    took = {"seconds": round(seconds, 1)}
    return [judged(claim, code, printed, errors, seconds) | took | {"is": claim.digest()} for claim in claims]


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


def page(claims: Sequence[Claim], results: dict[str, Any]) -> str:
    """Write the page."""
    rows = {claim.id: results["rows"].get(claim.id, {"outcome": "not run", "figure": ""}) for claim in claims}
    counts = Counter(row["outcome"] for row in rows.values())
    parts = [HEAD.format(total=len(rows), **{name.replace(" ", "_"): counts[name] for name in OUTCOMES})]
    for topic, below in itertools.groupby(claims, key=lambda claim: claim.topic):
        lines = [_line(claim, rows[claim.id]) for claim in below]
        parts.append(f"## {topic}\n\n" + "\n".join([*TITLES, *lines]))
    parts += ["## Machines and versions", *(_about(*known) for known in sorted(results["machines"].items()))]
    return "\n\n".join(parts) + "\n"


def _line(claim: Claim, row: Row) -> str:
    if "from" in row:
        name = Path(row["from"]).with_suffix(".md").name
        page = f"[{name}]({name})" if (PAGE.parent / name).exists() else f"`{row['from']}`"
        where = f"{row['date']}, {page}" if "date" in row else ""
    else:
        where = f"{row['date']}, `{row['commit']}`, {row['machine']}" if "date" in row else ""
    why = {"red": claim.why, "not run": row["figure"] or _missing(claim)}.get(row["outcome"], "")
    figure = _cell(row["figure"]) * (row["outcome"] != "not run")
    unit = f" {claim.unit}" * bool(claim.unit and figure)
    cells = [
        claim.claim,
        f"`{claim.run}`",
        figure + unit,
        row.get("bound", claim.bound),
        OUTCOMES[row["outcome"]],
        where,
        _cell(why),
    ]
    return f"| {' | '.join(cells)} |"


def _cell(text: str) -> str:
    return html.escape(text, quote=False).replace("|", "&#124;")


def _missing(claim: Claim) -> str:
    return f"needs {' and '.join(NEEDS[need] for need in claim.needs)}" if claim.needs else ""


def _about(letter: str, machine: dict[str, Any]) -> str:
    what = f"{machine['cores']} cores of {machine['processor']} ({', '.join(machine['flags'])})"
    versions = ", ".join(f"{name} {number.partition('+')[0]}" for name, number in machine["versions"].items())
    return f"**{letter}**: {what}, {machine['memory_gb']:.0f} GB, {machine['system']}. {versions}."


if __name__ == "__main__":
    main()
