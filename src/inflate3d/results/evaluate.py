"""How good a classifier is on labelled videos: accuracies with intervals, confusions, calibration, worst mistakes."""

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from inflate3d.clips.dataset import Sample
from inflate3d.errors import InflateError, InflateWarning, list_faults
from inflate3d.results.answering import Answers, EvaluateOptions
from inflate3d.results.prediction import Failure

BINS = 10  # of the calibration
WORST = 12  # mistakes that are told


class Interval(NamedTuple):
    """A share with the bounds between which it lies in 95 of 100 draws of the groups."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.1%} ({self.low:.1%} to {self.high:.1%})"


class Bin(NamedTuple):
    """Answers of about the same confidence: its mean, how many of them are right, and how many there are."""

    confidence: float
    accuracy: float
    size: int


class Mistake(NamedTuple):
    """A sample that a classifier was wrong about, and how sure it was."""

    path: str
    label: str
    answer: str
    probability: float
    key_frame: bytes | None


@dataclass(frozen=True, eq=False)
class Evaluation:
    """How good a classifier is.

    Attributes:
        count: Samples.
        num_groups: Groups that they come from; the intervals draw groups.
        scores: "top1", "top5", "mean_class"; or "map" where samples have several labels.
        confusion: `[true, answered]` counts; empty where samples have several labels.
        per_class: Name, share of right answers (or average precision) and count of each class that occurs.
        calibration: By confidence.
        calibration_error: Mean difference of confidence and accuracy, weighted by counts.
        mistakes: The surest ones first.
        settings: What a reader needs to repeat it.
        warnings: What makes the scores look better than they are.
        failures: What could not be read.
        class_names: Of the rows and columns of `confusion`.
    """

    count: int
    num_groups: int
    scores: Mapping[str, Interval]
    confusion: NDArray[np.int64] = field(repr=False)
    per_class: tuple[tuple[str, float, int], ...] = field(repr=False)
    calibration: tuple[Bin, ...] = field(repr=False)
    calibration_error: float
    mistakes: tuple[Mistake, ...] = field(repr=False)
    settings: Mapping[str, str] = field(repr=False)
    warnings: tuple[str, ...] = ()
    failures: tuple[Failure, ...] = ()
    class_names: tuple[str, ...] = field(default=(), repr=False)

    def to_json(self) -> str:
        """Write it as JSON, without pictures."""
        document = {
            "count": self.count,
            "num_groups": self.num_groups,
            "scores": {name: score._asdict() for name, score in self.scores.items()},
            "per_class": [{"class": name, "score": score, "count": count} for name, score, count in self.per_class],
            "class_names": list(self.class_names),
            "confusion": self.confusion.tolist(),
            "calibration_error": self.calibration_error,
            "calibration": [one._asdict() for one in self.calibration],
            "mistakes": [{name: getattr(one, name) for name in Mistake._fields[:-1]} for one in self.mistakes],
            "settings": dict(self.settings),
            "warnings": list(self.warnings),
            "failures": [{"source": failure.source, "reason": failure.reason} for failure in self.failures],
        }
        return json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def evaluate(
    answers: Answers,
    *,
    train: Sequence[Sample] = (),
    options: EvaluateOptions | None = None,
    settings: Mapping[str, str] | None = None,
) -> Evaluation:
    """Compare answers with labels, in float64.

    Args:
        answers: What a classifier said.
        train: What it has learned from: a warning tells if groups are in both.
        options: Resamples and seed of the bootstrap.
        settings: More of what a reader needs to repeat it.

    Raises:
        InflateError: A sample has no label where each has one class, or none has any.

    Example:
        >>> import torch
        >>> samples = tuple(Sample(f"{i}.mp4", (i % 2,), group=f"scene {i // 2}") for i in range(6))
        >>> logits = torch.tensor([[1.0, 0.0], [0.0, 1.0]] * 2 + [[0.0, 1.0]] * 2, dtype=torch.float64)
        >>> found = evaluate(Answers(samples, logits, ("run", "jump")))
        >>> round(found.scores["top1"].value, 3), found.confusion.tolist(), found.num_groups
        (0.833, [[2, 1], [0, 3]], 3)
    """
    options = options or EvaluateOptions()
    unlabelled = [sample.path for sample in answers.samples if not sample.labels]
    several = answers.several or any(len(sample.labels) > 1 for sample in answers.samples)
    if unlabelled and (not several or len(unlabelled) == len(answers.samples)):
        raise InflateError(
            "samples have no labels to compare with",
            where="evaluate",
            expected="a label or more for each; with several labels for at least one",
            got=list_faults(unlabelled, shown=3),
            fix="take a split whose labels are known",
        )
    groups = [sample.group or sample.path for sample in answers.samples]
    told = _group_warnings(answers.samples, train)
    found = _several(answers, groups, options) if several else _one(answers, groups, options)
    return Evaluation(
        count=len(answers.samples),
        num_groups=len(set(groups)),
        settings={**answers.settings, **(settings or {})},
        warnings=tuple(told),
        failures=answers.failures,
        class_names=tuple(answers.class_names),
        **found,
    )


def _group_warnings(samples: Sequence[Sample], train: Sequence[Sample]) -> list[str]:
    shared = {one.group for one in samples if one.group} & {one.group for one in train}
    shared |= {one.path for one in samples} & {one.path for one in train}
    if not shared:
        return []
    words = f"{len(shared)} groups are in training and here alike: {list_faults(sorted(shared), shown=3)}"
    warnings.warn(words, InflateWarning, stacklevel=3)
    return [words]


def _one(answers: Answers, groups: list[str], options: EvaluateOptions) -> dict[str, Any]:
    """Score answers where each sample has one class."""
    logits = answers.logits.double().numpy()
    labels = np.array([sample.labels[0] for sample in answers.samples])
    order = np.argsort(-logits, axis=1, kind="stable")
    guess = order[:, 0]
    right = {"top1": guess == labels, "top5": (order[:, :5] == labels[:, None]).any(1)}
    draws = draw_groups(groups, options)
    scores = {name: _interval(values.mean(), _drawn_share(values, draws)) for name, values in right.items()}
    per_class = {c: right["top1"][labels == c] for c in np.unique(labels).tolist()}
    means = np.stack([_drawn_share(right["top1"], draws, labels == c) for c in per_class])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a draw without a class leaves it out
        drawn = np.nanmean(means, axis=0)
    scores["mean_class"] = _interval(float(np.mean([values.mean() for values in per_class.values()])), drawn)
    confusion = np.zeros((logits.shape[1],) * 2, np.int64)
    np.add.at(confusion, (labels, guess), 1)
    probabilities = answers.logits.double().softmax(1).numpy()
    bins, error = _calibration(probabilities.max(1), right["top1"])
    wrong = [i for i in np.argsort(-probabilities.max(1), kind="stable").tolist() if not right["top1"][i]][:WORST]
    names = answers.class_names
    return {
        "scores": scores,
        "confusion": confusion,
        "per_class": tuple((names[c], float(v.mean()), len(v)) for c, v in per_class.items()),
        "calibration": bins,
        "calibration_error": error,
        "mistakes": tuple(
            Mistake(
                answers.samples[i].path,
                names[labels[i]],
                names[guess[i]],
                float(probabilities[i].max()),
                answers.key_frames[i] if answers.key_frames else None,
            )
            for i in wrong
        ),
    }


def _several(answers: Answers, groups: list[str], options: EvaluateOptions) -> dict[str, Any]:
    """Score answers where samples have several classes, by mean average precision."""
    logits = answers.logits.double().numpy()
    wanted = np.zeros(logits.shape, bool)
    for row, sample in enumerate(answers.samples):
        wanted[row, list(sample.labels)] = True
    whole = np.ones(len(logits))
    precisions = average_precisions(logits, wanted, whole)
    weights = draw_groups(groups, options)[1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a draw without any label is left out
        drawn = np.array([np.nanmean(average_precisions(logits, wanted, row)) for row in weights[:200]])
    present = np.flatnonzero(wanted.any(0))
    return {
        "scores": {"map": _interval(float(np.nanmean(precisions)), drawn)},
        "confusion": np.zeros((0, 0), np.int64),
        "per_class": tuple((answers.class_names[c], float(precisions[c]), int(wanted[:, c].sum())) for c in present),
        "calibration": (),
        "calibration_error": 0.0,
        "mistakes": (),
    }


def average_precisions(scores: NDArray[Any], wanted: NDArray[Any], weights: NDArray[Any]) -> NDArray[Any]:
    """Compute the average precision of each class: the mean of the precisions at each right answer, by score.

    Args:
        scores: `[samples, classes]`.
        wanted: Which are right, of the same shape.
        weights: How often each sample counts.

    Returns:
        `[classes]`, NaN where a class does not occur.

    Example:
        >>> average_precisions(np.array([[3.0], [2.0], [1.0]]), np.array([[True], [False], [True]]), np.ones(3))
        array([0.83333333])
    """
    found = np.full(scores.shape[1], np.nan)
    for c in range(scores.shape[1]):
        order = np.argsort(-scores[:, c], kind="stable")
        hits, seen = (wanted[order, c] * weights[order]).cumsum(), weights[order].cumsum()
        if hits[-1]:
            precision = hits / np.maximum(seen, 1)
            found[c] = (precision * wanted[order, c] * weights[order]).sum() / hits[-1]
    return found


def draw_groups(groups: Sequence[str], options: EvaluateOptions) -> tuple[NDArray[Any], NDArray[Any]]:
    """Draw groups with replacement: how often each group, and each sample, counts in each resample.

    Args:
        groups: That of each sample.
        options: Its resamples and seed are used.

    Returns:
        `[resamples, groups]` and `[resamples, samples]`.

    Example:
        >>> times, counts = draw_groups(["a", "a", "b"], EvaluateOptions(resamples=100))
        >>> times.shape, counts.shape, bool((counts[:, 0] == counts[:, 1]).all())
        ((100, 2), (100, 3), True)
    """
    names, place = np.unique(np.array(groups), return_inverse=True)
    generator = np.random.default_rng(options.seed)
    drawn = generator.integers(len(names), size=(options.resamples, len(names)))
    times = np.stack([np.bincount(row, minlength=len(names)) for row in drawn]).astype(np.float64)
    return times, times[:, place]


def _drawn_share(
    right: NDArray[Any], draws: tuple[NDArray[Any], NDArray[Any]], chosen: NDArray[Any] | None = None
) -> NDArray[Any]:
    weights = draws[1] if chosen is None else draws[1] * chosen
    totals = weights.sum(1)
    shares: NDArray[Any] = np.divide(
        weights @ right.astype(np.float64), totals, out=np.full(len(totals), np.nan), where=totals > 0
    )
    return shares


def _interval(value: float, drawn: NDArray[Any]) -> Interval:
    low, high = np.nanpercentile(drawn, [2.5, 97.5]).tolist()
    return Interval(float(value), low, high)


def _calibration(confidence: NDArray[Any], right: NDArray[Any]) -> tuple[tuple[Bin, ...], float]:
    place = np.minimum((confidence * BINS).astype(int), BINS - 1)
    bins = [
        Bin(float(confidence[place == b].mean()), float(right[place == b].mean()), int((place == b).sum()))
        for b in range(BINS)
        if (place == b).any()
    ]
    error = sum(one.size * abs(one.confidence - one.accuracy) for one in bins) / len(confidence)
    return tuple(bins), float(error)
