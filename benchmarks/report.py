"""Measure everything and write docs/benchmarks.md: `make bench PEERS=FOLDER DATA=FOLDER`.

    python benchmarks/report.py [SECTION ...] [--peers FOLDER] [--data FOLDER] [--quick] [--draw]

Each section is a process of its own; its figures stand in docs/benchmarks.json as soon as they are there, so that a run
that is stopped keeps what it has. Sections that are named are measured anew, the others stay. `--draw` measures nothing
and makes page and picture of the figures. `--quick` takes small sizes and one round, to see that everything runs.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from machine import Settings, describe_machine, now
from page import page, picture
from turns import Answer, print_figures, rounded, say

DOCS = Path(__file__).parents[1] / "docs"
FIGURES = DOCS / "benchmarks.json"


def network(settings: Settings) -> Answer:
    import speed

    return speed.network(settings)


def growth(settings: Settings) -> Answer:
    import speed

    return speed.growth(settings)


def inflated(settings: Settings) -> Answer:
    import speed

    return speed.inflated(settings)


def pipeline(settings: Settings) -> Answer:
    import pipeline

    return pipeline.measure(settings)


def accuracy(settings: Settings) -> Answer:
    import accuracy

    return {"i3d": accuracy.i3d(settings), "pictures": accuracy.pictures(settings)}


def overlap(settings: Settings) -> Answer:
    """A run over 720p video; the file is made of the demo clip."""
    import statistics
    import tempfile

    import overlap

    from inflate3d import fetch, load

    fetch("i3d-kinetics400")
    with tempfile.TemporaryDirectory() as folder:
        video = Path(folder) / "demo720.mp4"
        seconds = 5 if settings.quick else 20
        overlap.make_video(video, seconds)
        rounds = overlap.measure(load("i3d-kinetics400"), video, "bf16", settings.rounds(3))
    middle = sorted(rounds, key=lambda one: one.ratio)[len(rounds) // 2]
    return {
        "video_seconds": seconds,
        "network_seconds": middle.network_seconds,
        "decode_seconds": middle.decode_seconds,
        "run_seconds": middle.run_seconds,
        "ratio": statistics.median(one.ratio for one in rounds),
    }


def memory(settings: Settings) -> Answer:
    import memory

    return {"runs": [memory.measure(minutes, "bf16") for minutes in ((0.2, 0.4) if settings.quick else (1, 3))]}


def stream(settings: Settings) -> Answer:
    import stream

    return stream.measure(settings.quick)


def engine(settings: Settings) -> Answer:
    import engine

    return engine.measure(settings.rounds(5))


def flow(settings: Settings) -> Answer:
    import flow

    return flow.measure([str(video) for video in settings.videos()], 4 if settings.quick else 24)


def fvd(settings: Settings) -> Answer:
    import fvd

    return fvd.measure(settings.rounds(5), 512 if settings.quick else 2048)


SECTIONS: dict[str, Callable[[Settings], Answer]] = {
    function.__name__: function
    for function in (network, pipeline, growth, inflated, accuracy, overlap, memory, stream, engine, flow, fvd)
}


def measure(name: str, settings: Settings) -> Answer:
    """Measure a section in a process of its own."""
    command = [sys.executable, __file__, name, "--alone"]
    for option, value in (("--peers", settings.peers), ("--data", settings.data)):
        command += [option, str(value)] if value else []
    about = now()
    start = time.perf_counter()
    run = subprocess.run([*command, *["--quick"] * settings.quick], stdout=subprocess.PIPE, text=True, check=False)
    if run.returncode:
        return {**about, "failed": f"its process ended with code {run.returncode}"}
    return {**about, "quick": settings.quick, "took_seconds": time.perf_counter() - start, **json.loads(run.stdout)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="|".join(SECTIONS))
    parser.add_argument("--peers", type=lambda text: Path(text).resolve() if text else None)
    parser.add_argument("--data", type=lambda text: Path(text).resolve() if text else None)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--draw", action="store_true")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    settings = Settings(options.peers, options.data, options.quick)
    unknown = set(options.sections) - set(SECTIONS)
    if unknown:
        parser.error(f"there is no section {', '.join(unknown)}; there are {', '.join(SECTIONS)}")
    if options.alone:
        print_figures(lambda: SECTIONS[options.sections[0]](settings))
        return
    document: dict[str, Any] = json.loads(FIGURES.read_text()) if FIGURES.exists() else {"sections": {}}
    names = [] if options.draw else options.sections or list(SECTIONS)
    if names:
        document["machine"] = describe_machine(settings)
    for number, name in enumerate(names, start=1):
        say(f"{number}/{len(names)} {name}")
        found = measure(name, settings)
        say(f"  failed: {found['failed']}" if "failed" in found else f"  {found['took_seconds']:.0f} s in all")
        document["sections"][name] = rounded(found)
        write(FIGURES, json.dumps(document, indent=1) + "\n")
    document["sections"] = {name: document["sections"][name] for name in SECTIONS if name in document["sections"]}
    write(FIGURES, json.dumps(document, indent=1) + "\n")
    write(DOCS / "benchmarks.md", page(document))
    if "frames" in document["sections"].get("growth", {}):
        write(DOCS / "figures" / "benchmarks.svg", picture(document))
    sys.exit(any("failed" in document["sections"][name] for name in names))


def write(path: Path, text: str) -> None:
    from inflate3d.atomic import replacing

    with replacing(path) as draft:
        draft.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
