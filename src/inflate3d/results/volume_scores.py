"""How good a network is on labelled scans: Dice of each part, or what a classifier's answers are worth; intervals."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from inflate3d.clips.dataset import Sample
from inflate3d.clips.volume import Grid, Volume, resample, resample_to
from inflate3d.clips.volume_spec import VolumeSpec
from inflate3d.errors import InflateError, lacks_package
from inflate3d.results.answering import Answers, EvaluateOptions
from inflate3d.results.evaluate import Interval, draw_groups
from inflate3d.results.prediction import Failure
from inflate3d.results.volumes import VolumeOptions, predict_volume, spec_of

RESAMPLES = 2000
MEAN = "mean"
Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class MaskScores:
    """How well masks agree with those that were wanted.

    Attributes:
        sources: The scans.
        parts: Names, without the background.
        dice: `[scans, parts]`, float64; NaN where a part is in neither mask.
        groups: One for each scan, such as its patient; by default each scan is one by itself.
        settings: What a reader needs to repeat it.
        failures: What could not be read, and masks that do not fit their scans.
    """

    sources: tuple[str, ...]
    parts: tuple[str, ...]
    dice: NDArray[np.float64] = field(repr=False)
    groups: tuple[str, ...] = ()
    settings: Mapping[str, str] = field(default_factory=dict)
    failures: tuple[Failure, ...] = ()

    def scores(self) -> dict[str, Interval]:
        """Average Dice over scans, for each part and over all; NaN where no scan has it. The intervals draw groups."""
        columns = {name: self.dice[:, number] for number, name in enumerate(self.parts)}
        known = ~np.isnan(self.dice)
        rows = np.where(known, self.dice, 0).sum(1) / np.maximum(known.sum(1), 1)
        columns[MEAN] = np.where(known.any(1), rows, np.nan)
        return {name: mean_interval(values, self.groups) for name, values in columns.items()}

    def to_json(self) -> str:
        """Write it as JSON; a part that is in neither mask of a scan has null there, and likewise one of no scan."""

        def or_null(value: float) -> float | None:
            return None if np.isnan(value) else value

        scores = {name: score._asdict().items() for name, score in self.scores().items()}
        document = {
            "count": len(self.sources),
            "scores": {name: {key: or_null(value) for key, value in score} for name, score in scores.items()},
            "dice": {
                source: [or_null(round(float(value), 6)) for value in row]
                for source, row in zip(self.sources, self.dice, strict=True)
            },
            "settings": dict(self.settings),
            "failures": [{"source": failure.source, "reason": failure.reason} for failure in self.failures],
        }
        return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def score_masks(
    model: nn.Module,
    samples: Sequence[Sample],
    load: Callable[[str], tuple[Volume, Volume]],
    *,
    options: VolumeOptions | None = None,
    progress: Progress = lambda done, total: None,
) -> MaskScores:
    """Segment scans and compare with their masks, on the voxels of the files.

    Args:
        model: With a `volume_spec` for masks; in eval mode.
        samples: Scans, and the groups that intervals draw.
        load: Gives a scan and its mask.
        options: See `predict_volume`.
        progress: Is told how many of how many are done.

    Raises:
        InflateError: The network is none for masks, not one scan can be read with its mask, or a package is missing.
    """
    spec, options = spec_of(model), options or VolumeOptions()
    rows, kept, failures = [], list[Sample](), []
    for number, sample in enumerate(samples):
        progress(number, len(samples))
        try:
            scan, wanted = load(sample.path)
            _check_place(wanted, scan, spec)
            found = predict_volume(model, scan, options).mask
            if found is None:
                break
            there = resample_to(wanted, found.grid, sampling="nearest")
            rows.append(dice_of(found.data, there.data, len(spec.class_names)))
            kept.append(sample)
        except (InflateError, OSError) as error:
            if lacks_package(error):
                raise
            failures.append(Failure.of(sample.path, error))
    if not rows:
        raise InflateError(
            "there is nothing to compare masks with",
            where="score_masks",
            expected="a network for masks, and scans that can be read",
            got=failures[0].reason if failures else f"task {spec.task}, {len(samples)} scans",
            fix="check the paths of the list",
        )
    settings = {"overlap": str(options.overlap), "spacing_mm": str(spec.spacing_mm), "patch": str(spec.patch)}
    paths, groups = [one.path for one in kept], [one.group or one.path for one in kept]
    return MaskScores(tuple(paths), spec.class_names[1:], np.array(rows), tuple(groups), settings, tuple(failures))


def check_mask(mask: Volume, grid: Grid, count: int, *, where: str) -> None:
    """Refuse a mask that does not lie where its scan does, as from a file without places, or has too many parts.

    Args:
        mask: At the spacing of the grid.
        grid: Of the scan.
        count: Parts, with the background.
        where: What the mask was read from.

    Raises:
        InflateError: It lies elsewhere, or has parts that nobody named.
    """
    apart = np.abs(mask.grid.affine - grid.affine).max()
    if mask.grid.shape != grid.shape or apart > min(grid.spacing_mm) / 2 or int(mask.data.max()) >= count:
        raise InflateError(
            "a mask does not fit its scan",
            where=where,
            expected=f"voxels {list(grid.shape)} in the same place, numbers below {count}",
            got=f"{list(mask.grid.shape)}, {apart:.2f} mm apart, numbers up to {int(mask.data.max())}",
            fix="write masks on the voxels of their scans; name all parts with --labels",
        )


def _check_place(mask: Volume, scan: Volume, spec: VolumeSpec) -> None:
    """Check a mask where training does: at the spacing of the network."""
    empty = replace(scan, data=scan.data[:0])  # its grid alone is wanted
    there = resample(empty, spec.spacing_mm).grid
    found = resample(mask, spec.spacing_mm, sampling="nearest")
    check_mask(found, there, len(spec.class_names), where=mask.source)


def answer_scans(
    model: nn.Module,
    samples: Sequence[Sample],
    load: Callable[[str], Volume],
    *,
    progress: Progress = lambda done, total: None,
) -> Answers:
    """Classify labelled scans, for `evaluate`.

    Args:
        model: With a `volume_spec` for classes; in eval mode.
        samples: Scans and their classes.
        load: Reads a scan.
        progress: Is told how many of how many are done.

    Raises:
        InflateError: The network is none for classes, not one scan can be read, or a package is missing.
    """
    spec = spec_of(model)
    rows, kept, failures = list[Tensor](), list[Sample](), list[Failure]()
    for number, sample in enumerate(samples):
        progress(number, len(samples))
        try:
            logits = predict_volume(model, load(sample.path)).logits
            if logits is None:
                break
            rows.append(logits)
            kept.append(sample)
        except (InflateError, OSError) as error:
            if lacks_package(error):
                raise
            failures.append(Failure.of(sample.path, error))
    if not rows:
        raise InflateError(
            "there is nothing to classify",
            where="answer_scans",
            expected="a network for classes, and scans that can be read",
            got=failures[0].reason if failures else f"task {spec.task}, {len(samples)} scans",
            fix="check the paths of the list",
        )
    settings = {"spacing_mm": str(spec.spacing_mm), "patch": str(spec.patch)}
    return Answers(tuple(kept), torch.stack(rows), spec.class_names, settings, tuple(failures))


def dice_of(mask: Tensor, wanted: Tensor, count: int) -> list[float]:
    """Compare two masks: twice what both have of a part, as a share of what each has; NaN if neither has it.

    Raises:
        InflateError: A mask has numbers of `count` or more.

    Example:
        >>> dice_of(torch.tensor([0, 1, 1, 2]), torch.tensor([0, 1, 2, 2]), 4)
        [0.6666666666666666, 0.6666666666666666, nan]
    """
    ours, theirs = mask.flatten().long(), wanted.flatten().long()
    if (most := int(torch.cat([ours, theirs]).max())) >= count:
        raise InflateError(
            "a mask has a part that nobody named",
            where="dice_of",
            expected=f"numbers below {count}",
            got=f"numbers up to {most}",
            fix="name all parts with --labels, and train with them",
        )
    both = torch.bincount(ours[ours == theirs], minlength=count).double()
    each = torch.bincount(ours, minlength=count).double() + torch.bincount(theirs, minlength=count).double()
    shares: list[float] = (2 * both / each)[1:count].tolist()
    return shares


def auc(answers: Answers, *, seed: int = 0) -> Interval:
    """Tell how likely the second class is rated higher where it is true: the area under the ROC curve, two classes.

    The interval draws groups, as `evaluate` does.

    Raises:
        InflateError: There are other classes than two, or one of them never occurs.

    Example:
        >>> samples = tuple(Sample(f"{number}.nii", (number % 2,)) for number in range(4))
        >>> logits = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 2.0], [0.0, 3.0]])
        >>> auc(Answers(samples, logits, ("well", "ill"))).value
        0.75
    """
    labels = np.array([sample.labels[0] for sample in answers.samples])
    if answers.logits.shape[1] != 2 or set(labels.tolist()) != {0, 1}:
        raise InflateError(
            "the area under a curve is that of two classes",
            where="auc",
            expected="two classes, both of which occur",
            got=f"{answers.logits.shape[1]} classes, of which {len(set(labels.tolist()))} occur",
            fix="take another score",
        )
    scores = (answers.logits[:, 1] - answers.logits[:, 0]).double().numpy()
    groups = [sample.group or sample.path for sample in answers.samples]
    drawn = draw_groups(groups, EvaluateOptions(resamples=RESAMPLES, seed=seed))[1].astype(np.int64)
    rows = [np.repeat(np.arange(len(labels)), times) for times in drawn]
    values = [_area(scores[row], labels[row]) for row in rows if 0 < labels[row].sum() < len(row)]
    low, high = np.percentile(values, [2.5, 97.5])
    return Interval(_area(scores, labels), float(low), float(high))


def mean_interval(values: NDArray[np.float64], groups: Sequence[str] = (), *, seed: int = 0) -> Interval:
    """Average what is a number, with the interval of 95 of 100 draws of groups (by default values); NaN where none is.

    Example:
        >>> mean_interval(np.array([0.5, 0.7, np.nan])).value
        0.6
        >>> mean_interval(np.array([np.nan])).value
        nan
    """
    places = np.flatnonzero(~np.isnan(values))
    if not places.size:
        return Interval(np.nan, np.nan, np.nan)
    known = values[places]
    names = [groups[place] for place in places.tolist()] if groups else [str(number) for number in range(len(known))]
    times = draw_groups(names, EvaluateOptions(resamples=RESAMPLES, seed=seed))[1]
    low, high = np.percentile(times @ known / times.sum(1), [2.5, 97.5])
    return Interval(float(known.mean()), float(low), float(high))


def _area(scores: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """Rank all scores; equal ones share their ranks."""
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]
    ill, well = int(labels.sum()), int((1 - labels).sum())
    return float((ranks[labels == 1].sum() - ill * (ill + 1) / 2) / (ill * well))
