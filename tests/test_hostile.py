"""Hostile and unlucky users: hundreds of bad inputs, through the doors that users take, in a process with bounds."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

TESTS = Path(__file__).parent

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is bounded and measured as Linux does")


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """What became of each input; one on which the process ended is the last one that began."""
    folder = tmp_path_factory.mktemp("hostile")
    source = str(TESTS.parent / "src")
    done = subprocess.run(
        [sys.executable, str(TESTS / "hostile.py"), str(folder)],
        capture_output=True, text=True, timeout=600, check=False,
        env={**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert done.returncode == 0, f"{lines[-1:]} {done.stderr[-3000:]}"
    return [line for line in lines if "begins" not in line]


def test_each_bad_input_is_answered_or_refused_in_words(outcomes):
    """No traceback, nothing run, nothing touched, nothing left half-written, bounded in time and memory."""
    broken = [f"{one['name']} ({one['answer']}): " + "\n".join(one["faults"]) for one in outcomes if one["faults"]]
    assert not broken, f"{len(broken)} of {len(outcomes)}\n" + "\n\n".join(broken)


def test_there_are_enough_and_they_are_bad(outcomes):
    answers = Counter(one["answer"].split(":")[0] for one in outcomes)
    assert sum(answers.values()) >= 300
    assert answers["refused"] >= 150
    assert len({one["answer"] for one in outcomes}) >= 40  # each is told what is wrong with it


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("frames that grow", "a frame is too large"),
        ("packed zeros in an NRRD", "the volume cannot be read"),
        ("deflated DICOM", "this is not one DICOM volume"),
        ("many dicts of one list", "a tensor is not described as torch describes tensors"),
        ("code in a .pt", "the file wants to run code"),
        ("a class of a billion", "these lines are not of mmaction2's form"),
        ("classes of a .npz without end", "the list of scans cannot be understood"),
        ("times that are none", "lines of the table cannot be understood"),
        ("a table of another code page", "a list cannot be read"),
        ("strides without end", "this is no plan"),
    ],
)
def test_what_is_said(outcomes, name, problem):
    said = {one["answer"] for one in outcomes if one["name"] == name}
    assert said and all(problem in one for one in said)


def test_names_are_only_names(outcomes):
    named = [one for one in outcomes if one["name"].startswith("the name")]
    assert len(named) > 50
    assert {one["answer"] for one in named} == {"answered"}
