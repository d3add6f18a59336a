"""Scores of masks and of classified scans: against sets and pairs counted by hand; what is unknown is told as such."""

import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from inflate3d.clips.dataset import Sample
from inflate3d.clips.volume import Grid, Volume
from inflate3d.clips.volume_spec import VolumeSpec
from inflate3d.errors import InflateError
from inflate3d.results.answering import Answers
from inflate3d.results.volume_scores import MaskScores, answer_scans, auc, dice_of, mean_interval, score_masks

PARTS = ("ground", "dark", "bright", "nowhere")
SHAPE = (3, 4, 5)


class Levels(nn.Module):
    """Tells voxels of 0, 1/3 and 2/3 of the window apart, each its own part."""

    def forward(self, x):
        return -torch.stack([(x[:, 0] - number / 3).abs() for number in range(4)], 1)


class Mean(nn.Module):
    def forward(self, x):
        level = x.mean((1, 2, 3, 4))
        return torch.stack([0 * level, level - 0.5], 1)


def network(model, task="mask", names=PARTS):
    model.volume_spec = VolumeSpec(task, names, (1.0, 1.0, 1.0), SHAPE, window=(0.0, 3.0))
    return model.eval()


def volume(values):
    return Volume(torch.as_tensor(values).view(1, *SHAPE), Grid(SHAPE, np.eye(4)))


def named(*paths):
    return [Sample(path, ()) for path in paths]


def numbers(seed, most):
    return np.random.default_rng(seed).integers(0, most + 1, SHAPE)


def strict(text):
    """JSON as others read it: without NaN."""

    def refuse(word):
        raise AssertionError(word)

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize("seed", range(4))
def test_dice_is_that_of_sets(seed):
    one, other = numbers(seed, 2), numbers(seed + 50, 3)
    found = dice_of(torch.from_numpy(one), torch.from_numpy(other), 5)
    for part, value in enumerate(found, start=1):
        ours, theirs = ({*zip(*np.nonzero(mask == part), strict=True)} for mask in (one, other))
        if not ours | theirs:
            assert math.isnan(value) and part == 4
        else:
            assert value == pytest.approx(2 * len(ours & theirs) / (len(ours) + len(theirs)), abs=1e-12)
    assert found == pytest.approx(dice_of(torch.from_numpy(other), torch.from_numpy(one), 5), nan_ok=True)


def test_a_part_that_nobody_named_in_full():
    with pytest.raises(InflateError) as found:
        dice_of(torch.tensor([0, 1]), torch.tensor([0, 7]), 3)
    assert str(found.value) == (
        "dice_of: a mask has a part that nobody named\n"
        "  expected: numbers below 3\n"
        "  got:      numbers up to 7\n"
        "  fix:      name all parts with --labels, and train with them"
    )


def test_an_interval_holds_the_mean_and_narrows_with_the_scans():
    random = np.random.default_rng(1)
    widths = []
    for count in (4, 40, 400):
        values = random.uniform(0.4, 0.8, count)
        found = mean_interval(values)
        assert found.low <= found.value <= found.high and found.value == pytest.approx(values.mean())
        wanted = 1.96 * values.std() / math.sqrt(count)
        assert (found.high - found.low) / 2 == pytest.approx(wanted, rel=0.15)
        widths.append(found.high - found.low)
    assert widths == sorted(widths, reverse=True)
    with_gaps = np.concatenate([values, np.full(9, np.nan)])
    assert mean_interval(with_gaps) == mean_interval(values)
    assert mean_interval(values, seed=1) != mean_interval(values) == mean_interval(values, seed=0)


def test_intervals_draw_groups():
    """Ten scans of one patient tell as much as one; what is no number draws nothing."""
    alone = np.random.default_rng(2).uniform(0.4, 0.8, 30)
    copies, patients = alone.repeat(10), [f"{number:02}" for number in range(30) for _ in range(10)]
    wanted = mean_interval(alone, patients[::10])
    assert mean_interval(copies, patients) == pytest.approx(wanted)
    gaps, others = np.append(copies, [np.nan] * 5), [*patients, "00", *"abcd"]
    assert mean_interval(gaps, others) == pytest.approx(wanted)
    assert mean_interval(copies).high - mean_interval(copies).low < 0.4 * (wanted.high - wanted.low)


def test_scores_of_masks_draw_the_groups_of_their_scans():
    scans = {name: numbers(seed, 2) for seed, name in enumerate("abcd")}
    found = score_masks(
        network(Levels()),
        [Sample(name, (), group="ab" if name in "ab" else "") for name in scans],
        lambda name: (volume(scans[name].astype(np.float32)), volume((scans[name] > seen(name)).astype(np.uint8))),
    )
    assert found.groups == ("ab", "ab", "c", "d")
    assert found.scores()["dark"] == mean_interval(found.dice[:, 0], found.groups) != mean_interval(found.dice[:, 0])


def seen(name):
    """A mask of another part for some, so that scans differ."""
    return int(name in "bd")


@pytest.mark.parametrize("values", [[], [np.nan], [np.nan] * 3])
def test_of_nothing_the_mean_is_no_number(values):
    assert all(map(math.isnan, mean_interval(np.array(values))))


def test_a_part_that_no_scan_has_is_no_zero():
    """Neither in the scores, nor in their mean, nor in the JSON, which has null there."""
    dice = np.array([[0.5, np.nan, 1.0], [0.7, np.nan, np.nan], [np.nan] * 3])
    scores = MaskScores(("a", "b", "c"), ("liver", "cyst", "vein"), dice)
    found = scores.scores()
    assert [round(found[name].value, 6) for name in ("liver", "vein", "mean")] == [0.6, 1.0, 0.725]
    assert math.isnan(found["cyst"].value) and math.isnan(found["cyst"].low)
    told = strict(scores.to_json())
    assert told["scores"]["cyst"] == {"value": None, "low": None, "high": None}
    assert told["scores"]["liver"]["value"] == pytest.approx(0.6)
    assert told["dice"] == {"a": [0.5, None, 1.0], "b": [0.7, None, None], "c": [None, None, None]}
    nothing = MaskScores(("a",), ("cyst",), np.array([[np.nan]]))
    assert all(math.isnan(score.value) for score in nothing.scores().values())


def test_masks_of_a_network_are_compared_on_the_voxels_of_the_files():
    scans = {name: numbers(seed, 2) for seed, name in enumerate(("a", "b"))}
    wrong = {"a": scans["a"], "b": np.where(scans["b"] == 2, 1, scans["b"])}

    def load(name):
        if name == "gone":
            raise InflateError("no such scan", where=name, expected="", got="", fix="")
        return volume(scans[name].astype(np.float32)), volume(wrong[name].astype(np.uint8))

    told = []
    found = score_masks(
        network(Levels()), named("a", "gone", "b"), load, progress=lambda done, total: told.append((done, total))
    )
    assert (found.sources, found.parts) == (("a", "b"), PARTS[1:])
    assert found.dice[0].tolist() == pytest.approx([1.0, 1.0, math.nan], nan_ok=True)
    dark = 2 * (scans["b"] == 1).sum() / ((scans["b"] == 1).sum() + (scans["b"] > 0).sum())
    assert found.dice[1].tolist() == pytest.approx([dark, 0.0, math.nan], nan_ok=True)
    assert [failure.source for failure in found.failures] == ["gone"]
    assert told == [(0, 3), (1, 3), (2, 3)]
    assert strict(found.to_json())["scores"]["nowhere"]["value"] is None


def test_a_mask_that_lies_elsewhere_is_told_and_not_counted():
    """As one from a file that has lost its place: it would be compared with what its scan shows elsewhere."""
    scan = volume(numbers(1, 2).astype(np.float32))
    mask = replace(scan, data=scan.data.to(torch.uint8))
    away = np.eye(4)
    away[:3, 3] = (0, 0, 2)

    def load(name):
        return scan, mask if name == "here" else replace(mask, grid=Grid(SHAPE, away))

    found = score_masks(network(Levels()), named("here", "away"), load)
    assert found.sources == ("here",) and found.dice[0, 0] == 1.0
    assert [failure.source for failure in found.failures] == ["away"]
    assert "2.00 mm apart" in found.failures[0].reason


def test_the_command_says_in_words_that_no_scan_has_a_part(tmp_path, capsys, monkeypatch):
    from rich.console import Console

    from inflate3d.cli.train import Shown, _show_masks
    from inflate3d.clips.dataset import Splits
    from inflate3d.train.volume_data import VolumeSplits

    scan = numbers(3, 2)
    monkeypatch.setattr("inflate3d.train.volume_data.load_scan", lambda path: volume(scan.astype(np.float32)))
    monkeypatch.setattr("inflate3d.train.volume_data.load_mask", lambda path: volume(scan.astype(np.uint8)))
    splits = Splits((), (), (Sample("a", ()), Sample("b", ())), PARTS, "mine")
    shown = Shown(network(Levels()), VolumeSplits(splits, {"a": "a", "b": "b"}), {"overlap": "0.5"})
    _show_masks(shown, Console(width=80), tmp_path)
    rows = {
        line.split()[0]: line.split(maxsplit=2)[1:] for line in capsys.readouterr().out.splitlines() if line.strip()
    }
    assert [part.strip() for part in rows["nowhere"]] == ["-", "in none of the scans"]
    assert [part.strip() for part in rows["dark"]] == ["1.000", "1.000 to 1.000"]
    assert strict((tmp_path / "evaluation.json").read_text())["scores"]["mean"]["value"] == 1.0


@pytest.mark.parametrize(
    ("sources", "task", "got"),
    [(["gone"], "mask", "the disk"), ([], "mask", "task mask, 0 scans"), (["a"], "classes", "task classes, 1 scans")],
)
def test_where_there_is_nothing_to_compare(sources, task, got):
    def load(name):
        if name == "gone":
            raise OSError("the disk")
        return volume(np.zeros(SHAPE, np.float32)), volume(np.zeros(SHAPE, np.uint8))

    model = network(Mean(), "classes", ("low", "high")) if task == "classes" else network(Levels())
    with pytest.raises(InflateError, match="there is nothing to compare masks with") as found:
        score_masks(model, named(*sources), load)
    assert got in found.value.got


def test_scans_are_classified_and_those_that_fail_are_told():
    levels = {"low.nii": 0.3, "high.nii": 2.4, "middle.nii": 1.8}

    def load(path):
        if path not in levels:
            raise OSError(f"{path} is gone")
        return volume(np.full(SHAPE, levels[path], np.float32))

    samples = [Sample(name, (int(level > 1),)) for name, level in levels.items()]
    told = []
    answers = answer_scans(
        network(Mean(), "classes", ("low", "high")),
        [samples[0], Sample("gone.nii", (0,)), *samples[1:]],
        load,
        progress=lambda *place: told.append(place),
    )
    assert answers.samples == tuple(samples) and answers.class_names == ("low", "high")
    assert answers.logits[:, 1].tolist() == pytest.approx([-0.4, 0.3, 0.1], abs=1e-5)
    assert [failure.source for failure in answers.failures] == ["gone.nii"]
    assert told == [(number, 4) for number in range(4)]
    assert auc(answers).value == 1.0
    with pytest.raises(InflateError, match="there is nothing to classify") as found:
        answer_scans(network(Mean(), "classes", ("low", "high")), [Sample("gone.nii", (0,))], load)
    assert "gone.nii is gone" in found.value.got
    with pytest.raises(InflateError, match="there is nothing to classify") as found:
        answer_scans(network(Levels()), samples, load)
    assert found.value.got == "task mask, 3 scans"


@pytest.mark.parametrize("seed", range(3))
def test_the_area_is_the_share_of_pairs_in_order(seed):
    """Of every ill and every well one; equal scores count half."""
    random = np.random.default_rng(seed)
    labels = np.array([0, 1, *random.integers(0, 2, 15)])
    scores = random.integers(0, 5, len(labels)) / 4.0
    samples = tuple(Sample(f"{number}", (int(label),)) for number, label in enumerate(labels))
    logits = torch.stack([torch.zeros(len(labels)), torch.from_numpy(scores)], 1)
    pairs = itertools.product(scores[labels == 1], scores[labels == 0])
    wanted = np.mean([1.0 if ill > well else 0.5 if ill == well else 0.0 for ill, well in pairs])
    found = auc(Answers(samples, logits, ("well", "ill")))
    assert found.value == pytest.approx(wanted, abs=1e-12)
    assert found.low <= found.value <= found.high


def test_the_interval_of_an_area_draws_groups():
    """Ten scans of a patient tell as much as one."""
    random = np.random.default_rng(0)
    labels = np.arange(20) % 2
    scores = labels + random.normal(0, 1, 20)

    def answers(scans):
        samples = [Sample(f"{p}-{k}", (int(labels[p]),), group=f"p{p:02}") for p in range(20) for k in range(scans)]
        logits = torch.tensor([[0.0, scores[p]] for p in range(20) for _ in range(scans)], dtype=torch.float64)
        return Answers(tuple(samples), logits, ("well", "ill"))

    assert auc(answers(10)) == pytest.approx(auc(answers(1)), abs=1e-12)


@pytest.mark.parametrize(
    ("labels", "classes", "got"),
    [((0, 1), 3, "3 classes, of which 2 occur"), ((1, 1), 2, "2 classes, of which 1 occur")],
)
def test_areas_that_are_none(labels, classes, got):
    samples = tuple(Sample(f"{number}", (label,)) for number, label in enumerate(labels))
    with pytest.raises(InflateError, match="the area under a curve is that of two classes") as found:
        auc(Answers(samples, torch.zeros(2, classes), tuple("abc"[:classes])))
    assert (found.value.got, found.value.expected) == (got, "two classes, both of which occur")
