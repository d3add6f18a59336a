"""The page about speed says what its JSON says, and nothing else; sides of a comparison take turns as told."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks"
MACHINE = {
    "processor": "a processor",
    "flags": ["avx2"],
    "cores": 3,
    "memory_gb": 17.2,
    "system": "Linux",
    "versions": {"torch": "2.7.0+cpu"},
    "peers": {},
}
ABOUT = {"date": "2026-01-02", "load_before": 0.25, "took_seconds": 90.0, "quick": False}


@pytest.fixture
def page(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from page import page

    return page


@pytest.fixture
def turns(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import turns

    return turns


def way(seconds, ratio, **more):
    return {"seconds": seconds, "ratio": ratio, "gflop": 221.0, "peak_gb": 1.37, "difference": 3e-7, **more}


def network(fp32_ratio):
    rows = {
        "piergiaj": way(2.413, 1.0),
        "fp32": way(1.237, fp32_ratio, share_of_matrix_rate=0.923),
        "bf16": way(0.719, 3.53, share_of_matrix_rate=0.871),
    }
    rates = {"float32": 157.0, "bfloat16": 331.0}
    found = {"shape": [1, 3, 64, 224, 224], "base": "piergiaj", "rows": rows, "matrix_gflops": rates}
    return {**ABOUT, **found, "not_run": {"jax": "ask pip"}}


def test_the_page_in_the_docs_is_made_of_its_json(page):
    document = json.loads((ROOT / "docs" / "benchmarks.json").read_text())
    assert (ROOT / "docs" / "benchmarks.md").read_text() == page(document)


def test_the_figures_of_a_section_stand_in_the_page(page):
    text = page({"machine": MACHINE, "sections": {"network": network(1.931)}})
    assert "| piergiaj/pytorch-i3d, eager | 2.413 | 1.00 | 221 | 92 | 1.37 | 3e-07 |" in text
    assert "157 GFLOP/s in float32 and 331 in bfloat16" in " ".join(text.split())
    assert "fp32 reaches 92% of that rate and bf16 87%" in " ".join(text.split())
    assert "3 cores of a processor (avx2), 17 GB" in text
    assert "| network | 2026-01-02 | 1.5 | 0.2 |" in text
    assert "| jax | ask pip |" in text


def test_goals_are_met_missed_or_not_run(page):
    text = page({"machine": MACHINE, "sections": {"network": network(1.931)}})
    assert "| I3D against piergiaj's, fp32 | >= 1.85 | 1.93 | met |" in text
    assert "| resnet50 inflated, bf16 against eager | >= 1.5 | not run |  |" in text
    text = page({"machine": MACHINE, "sections": {"network": network(1.839)}})
    assert "| I3D against piergiaj's, fp32 | >= 1.85 | 1.84 | **missed** |" in text


def test_without_their_side_no_ratio_is_claimed(page):
    row = {"seconds": 30.0, "ratio": 1.0, "peak_gb": 1.1, "peak_ratio": 1.0, "libraries_gb": 0.7, "start_seconds": 5.0}
    row |= {"lowest_cosine": 1.0, "windows_done": [2], "seconds_done": [30.0], "peaks_gb": [1.1]}
    found = {**ABOUT, "rows": {"fp32": row, "bf16": row}, "videos": 1, "windows": 2, "not_run": {}}
    text = page({"machine": MACHINE, "sections": {"pipeline": found}})
    assert "| videos to features against video_features, bf16 | >= 3 | not run |  |" in text
    alone = {**network(1.9), "rows": {name: row for name, row in network(1.9)["rows"].items() if name != "piergiaj"}}
    text = page({"machine": MACHINE, "sections": {"network": alone}})
    assert "| I3D against piergiaj's, fp32 | >= 1.85 | not run |  |" in text


def test_a_section_that_failed_is_told_and_quick_ones_are_called_provisional(page):
    sections = {"network": {**network(1.9), "quick": True}, "fvd": {**ABOUT, "failed": "its process ended with code 1"}}
    text = page({"machine": MACHINE, "sections": sections})
    assert "**Provisional**" in text and "round in network;" in text
    assert "| fvd | its process ended with code 1 |" in text
    assert "Fréchet distance" not in text


def side(tmp_path, body):
    """A command that starts a side; `body` is what a job does."""
    file = tmp_path / "side.py"
    file.write_text(
        f"import sys; sys.path.insert(0, {str(BENCHMARKS)!r})\nfrom turns import serve\n"
        f"def run(value):\n    print('noise')\n    {body}\nserve(lambda: run)\n"
    )
    return [sys.executable, str(file)]


def test_sides_do_all_jobs_in_turns_and_warm_up_does_not_count(turns, tmp_path):
    sides, failed = turns.start_sides({"one": side(tmp_path, "return {'seconds': value, 'twice': 2 * value}")})
    answers, failed_later = turns.by_turns(sides, [{"value": 3}, {"value": 5}], runs=2)
    assert failed == failed_later == {}
    assert [[job["twice"] for job in jobs] for jobs in answers["one"]] == [[6, 10], [6, 10]]
    assert answers["one"][0][0]["peak_bytes"] > 1e6


def test_a_side_that_fails_is_left_out_with_its_reason(turns, tmp_path):
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    commands = {
        "good": side(tmp_path / "a", "return {}"),
        "bad": side(tmp_path / "b", "raise ValueError('no such weights')"),
        "absent": [sys.executable, "-c", "import no_such_package"],
    }
    sides, failed = turns.start_sides(commands)
    assert failed == {"absent": "ModuleNotFoundError: No module named 'no_such_package'"}
    answers, failed = turns.by_turns(sides, [{"value": 1}], runs=1)
    assert list(answers) == ["good"]
    assert failed == {"bad": "ValueError: no such weights"}


def test_ratios_are_taken_round_by_round(turns):
    assert turns.median_ratio([2.0, 4.0, 90.0], [1.0, 2.0, 3.0]) == 2.0


def test_unknown_sections_are_refused():
    run = subprocess.run(
        [sys.executable, str(BENCHMARKS / "report.py"), "speeed"], capture_output=True, text=True, check=False
    )
    assert run.returncode == 2
    assert "there is no section speeed; there are network, pipeline" in run.stderr
