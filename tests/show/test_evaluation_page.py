"""The page of an evaluation: what is drawn of which numbers, and what is left out."""

import re

import numpy as np
import pytest

from inflate3d.results.evaluate import Bin, Evaluation, Interval, Mistake
from inflate3d.results.prediction import Failure
from inflate3d.show.evaluation import MOST_CLASSES, PLOT, write_evaluation


def evaluation(**changes):
    facts = {
        "count": 9,
        "num_groups": 4,
        "scores": {"top1": Interval(0.75, 0.5, 1.0)},
        "confusion": np.array([[2, 1, 0], [0, 4, 2], [0, 0, 0]]),
        "per_class": (("run", 2 / 3, 3), ("jump <1>", 2 / 3, 6)),
        "calibration": (Bin(0.25, 0.5, 1), Bin(0.75, 1.0, 4)),
        "calibration_error": 0.3,
        "mistakes": (),
        "settings": {"a<b": "c&d"},
        "warnings": (),
        "failures": (),
        "class_names": ("run", "jump <1>", "swim"),
    }
    return Evaluation(**{**facts, **changes})


def page(tmp_path, found, **how):
    write_evaluation(tmp_path / "a.html", found, **how)
    return (tmp_path / "a.html").read_text()


def test_confusions_are_counts_shaded_by_their_share_of_a_row(tmp_path):
    found = page(tmp_path, evaluation())
    cells = re.findall(r"rgba\(0,114,178,([\d.]+)\)\">(\d*)</td>", found)
    assert (
        cells
        == [("0.67", "2"), ("0.33", "1"), ("0.00", ""), ("0.00", ""), ("0.67", "4"), ("0.33", "2")] + [("0.00", "")] * 3
    )
    assert found.count("<th>swim</th>") == 2, "a class that is answered but never shown has its name as well"
    assert found.count("<th>jump &lt;1&gt;</th>") == 2 and "<dt>a&lt;b</dt><dd>c&amp;d</dd>" in found
    assert "<dt>videos</dt><dd>9 from 4 groups</dd>" in found and "75.0%" in found and "50.0% to 100.0%" in found


@pytest.mark.parametrize(
    ("change", "heading"),
    [
        ({"confusion": np.eye(MOST_CLASSES + 1, dtype=int)}, "Confusions"),
        ({"confusion": np.zeros((0, 0), int)}, "Confusions"),
        ({"calibration": ()}, "Calibration"),
        ({}, "Worst mistakes"),
        ({}, "Not read"),
        ({}, "Loss"),
    ],
)
def test_what_cannot_be_drawn_has_no_heading(tmp_path, change, heading):
    names = tuple((f"class {n}", 1.0, 1) for n in range(MOST_CLASSES + 1))
    change = {"per_class": names} | change if "confusion" in change else change
    assert f"<h2>{heading}</h2>" not in page(tmp_path, evaluation(**change))


def test_answers_stand_where_their_confidence_and_their_truth_meet(tmp_path):
    found = page(tmp_path, evaluation())
    dots = [tuple(map(float, dot)) for dot in re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)" r="([\d.]+)"', found)]
    wanted = [(30 + 0.25 * PLOT, 10 + 0.5 * PLOT, 6.5), (30 + 0.75 * PLOT, 10.0, 10.0)]
    assert [value for dot in dots for value in dot] == pytest.approx([v for dot in wanted for v in dot], abs=0.06)
    assert "Expected calibration error 30.0%" in found


def test_mistakes_and_failures_are_told_and_nothing_is_fetched(tmp_path):
    mistakes = (Mistake("x/a<b>.mp4", "run", "jump", 0.93, b"jpeg"), Mistake("b.mp4", "jump", "run", 0.5, None))
    failures = (Failure("gone<1>.mp4", "it is empty & cut"),)
    found = page(tmp_path, evaluation(mistakes=mistakes, failures=failures, warnings=("2 groups <alike>",)))
    assert found.count("<figure>") == 2 and found.count("<img ") == 1
    assert "a&lt;b&gt;.mp4: <b>run</b>, answered jump (93%)" in found
    assert "<td>gone&lt;1&gt;.mp4</td><td>it is empty &amp; cut</td>" in found
    assert '<p class="warning">2 groups &lt;alike&gt;</p>' in found
    assert not re.search(r'(src|href)="(?!data:)', found)


def test_losses_are_drawn_over_the_epochs(tmp_path):
    history = [{"train_loss_epoch": 2.0, "val_loss": 1.0}, {"train_loss_epoch": 1.0}, {"train_loss_epoch": 0.0}]
    found = page(tmp_path, evaluation(), history=history, title="Mine & yours")
    (points,) = re.findall(r'<polyline points="([^"]+)" fill="none" stroke="#\w+" stroke-width="2"/>', found)
    assert points == "40.0,10.0 340.0,100.0 640.0,190.0"  # one value of the validation is no curve
    assert "epoch 3" in found and "<h1>Mine &amp; yours</h1>" in found
