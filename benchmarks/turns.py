"""Take turns: each side of a comparison is a process of its own, and one after the other does the same job.

Other work on the machine so hits all sides alike, and the memory of each is its own. This file needs no package, so
that a side may run in another environment.
"""

import contextlib
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Answer = dict[str, Any]
ERROR = re.compile(r"[\w.]+(Error|Exception|Interrupt|Exit)\b")


class NotRunError(Exception):
    """A side that cannot be run, and why."""


class Side:
    """A process that does a job whenever it is told to.

    Attributes:
        start_seconds: From its start until it was ready.
        told: What it said about itself then.
    """

    def __init__(self, command: list[str], *, threads: int | None = None) -> None:
        count = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)} if threads else {}
        start = time.perf_counter()
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the process
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            env={**os.environ, **count},
        )
        self.told = self._answer()
        self.start_seconds = time.perf_counter() - start

    def do(self, **job: Any) -> Answer:
        """Do a job once and wait for the answer: `seconds`, `peak_bytes` until now, and what the side adds."""
        assert self.process.stdin
        try:
            self.process.stdin.write(json.dumps(job) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended, and the reason is read there
        return self._answer()

    def _answer(self) -> Answer:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if line:
            answer: Answer = json.loads(line)
            return answer
        code = self.process.wait()
        self.errors.seek(0)
        lines = [line for line in self.errors.read().splitlines() if ERROR.match(line)]
        raise NotRunError(lines[-1][:200] if lines else f"its process ended with code {code}")

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.communicate()
        self.errors.close()


def serve(make: Callable[[], Callable[..., Answer]], told: Callable[[], Answer] = dict) -> None:
    """Be a side: make what does the job, say that it is ready, and do jobs until there are no more."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print
    run = make()
    print(json.dumps(told()), file=out, flush=True)
    for line in sys.stdin:
        answer = run(**json.loads(line))
        print(json.dumps({**answer, "peak_bytes": peak_bytes()}), file=out, flush=True)


def peak_bytes() -> int:
    """Most memory that this process had at a time."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would count what the parent had before
        return int(status.read_text().split("VmHWM:")[1].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def forget_peak() -> None:
    """Count the most memory from now on, where the system can."""
    switch = Path("/proc/self/clear_refs")
    if switch.exists():
        switch.write_text("5")


def start_sides(commands: dict[str, list[str]], *, threads: int | None = None) -> tuple[dict[str, Side], Answer]:
    """Start the sides one after the other; those that cannot be run are named with the reason."""
    sides: dict[str, Side] = {}
    failed: Answer = {}
    for name, command in commands.items():
        try:
            sides[name] = Side(command, threads=threads)
            say(f"  {name}: ready after {sides[name].start_seconds:.0f} s")
        except NotRunError as error:
            failed[name] = str(error)
            say(f"  {name}: not run, {error}")
    return sides, failed


def by_turns(
    sides: dict[str, Side], jobs: list[Answer], *, runs: int, warm_up: bool = True
) -> tuple[dict[str, list[list[Answer]]], Answer]:
    """Let the sides do the jobs, one after the other, again and again.

    Args:
        sides: They are closed at the end.
        jobs: Done in this order, each by all sides before the next one is begun.
        runs: Rounds that count.
        warm_up: One round more in front, which does not count.

    Returns:
        For each side, for each round, its answers to the jobs; and the sides that failed in the first round, with the
        reason.
    """
    answers: dict[str, list[list[Answer]]] = {name: [] for name in sides}
    failed: Answer = {}
    try:
        for number in range(runs + warm_up):
            start = time.perf_counter()
            for name in sides:
                answers[name].append([])
            for job in jobs:
                for name in [name for name in sides if name not in failed]:
                    try:
                        answers[name][-1].append(sides[name].do(**job))
                    except NotRunError as error:
                        if number:
                            raise
                        failed[name] = str(error)
                        say(f"  {name}: not run, {error}")
            title = "warm-up" if warm_up and not number else f"round {number + 1 - warm_up}/{runs}"
            say(f"  {title}: {len(sides) - len(failed)} sides, {time.perf_counter() - start:.0f} s")
    finally:
        for side in sides.values():
            side.close()
    return {name: found[warm_up:] for name, found in answers.items() if name not in failed}, failed


def median_ratio(one: list[float], other: list[float]) -> float:
    """Take the median over the rounds of how many times as long the one takes."""
    return statistics.median(a / b for a, b in zip(one, other, strict=True))


def rounded(value: Any, digits: int = 7) -> Any:
    """Keep so many digits that count of each number, all through a document."""
    if isinstance(value, dict):
        return {key: rounded(item, digits) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item, digits) for item in value]
    return float(f"{value:.{digits}g}") if isinstance(value, float) else value


def print_figures(measure: Callable[[], Answer]) -> None:
    """Measure and print JSON; what libraries print meanwhile goes where progress goes."""
    with contextlib.redirect_stdout(sys.stderr):
        found = measure()
    json.dump(rounded(found), sys.stdout, indent=1)
    print()


def say(line: str) -> None:
    """Show that work goes on."""
    print(line, file=sys.stderr, flush=True)
