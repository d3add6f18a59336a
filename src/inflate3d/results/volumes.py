"""Scans through a network for volumes: classes, or a mask on the voxels of the file; in windows, a slab at a time."""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from inflate3d.clips.volume import Grid, Volume, resample_to
from inflate3d.clips.volume_files import read_volume
from inflate3d.clips.volume_spec import VolumeSpec, pad_to, scale, to_channels
from inflate3d.errors import InflateError, check_options, import_extra, is_count, is_number, lacks_package
from inflate3d.results.prediction import Failure, Score, printable, top_scores
from inflate3d.speed.memory import device_of

Run = Callable[[Tensor], Tensor]
SIGMA = 1 / 8  # of a window's length: how wide its weights are; MONAI's too
LEAST_WEIGHT = 1e-3  # of a voxel at the edge of a window; likewise
SLAB_VOXELS = 2**24  # of all classes that are brought back to the file's voxels at a time


@dataclass(frozen=True)
class VolumeOptions:
    """How a scan is shown to a network.

    Attributes:
        overlap: Of windows that follow one another, as a share of their length.
        batch_size: Windows that go through the network at a time.
        spacing_mm: Of the axes as they are stored, where a file does not say it: arrays and pictures.
        fill: What stands for values that are not finite; None refuses them.
        part: Which volume of a file or folder that holds several; see `read_volume`.

    Raises:
        InflateError: A value is out of range.
    """

    overlap: float = 0.5
    batch_size: int = 1
    spacing_mm: tuple[float, float, float] | None = None
    fill: float | None = None
    part: str | int | None = None

    def __post_init__(self) -> None:
        rules = {
            "overlap": ("from 0 to 0.9", is_number(self.overlap) and 0 <= self.overlap <= 0.9),
            "batch_size": ("1 or more", is_count(self.batch_size)),
            "spacing_mm": (
                "three numbers above 0, or None",
                self.spacing_mm is None
                or (len(self.spacing_mm) == 3 and all(is_number(size) and size > 0 for size in self.spacing_mm)),
            ),
        }
        check_options(self, rules)


@dataclass(frozen=True, eq=False)
class VolumePrediction:
    """What a network says about a scan.

    Attributes:
        source: File or folder.
        spec: What the network was fed.
        logits: `[classes]`, float64, of a classifier; else None.
        mask: Of one channel of bytes, on the voxels of the file; of a classifier None.
        scan: What was read, turned.
    """

    source: str
    spec: VolumeSpec
    logits: Tensor | None = field(default=None, repr=False)
    mask: Volume | None = field(default=None, repr=False)
    scan: Volume | None = field(default=None, repr=False)

    def top(self, k: int = 5) -> tuple[Score, ...]:
        """Rank the k likeliest classes; none where there is a mask instead."""
        return () if self.logits is None else top_scores(self.logits, self.spec.class_names, k)

    def volumes_ml(self) -> dict[str, float]:
        """Measure each part of the mask, in milliliters; the background is left out."""
        if self.mask is None:
            return {}
        names = self.spec.class_names
        counts = torch.bincount(self.mask.data.flatten(), minlength=len(names)).double()
        one = abs(float(np.linalg.det(self.mask.grid.affine[:3, :3]))) / 1000
        return {name: float(count) * one for name, count in zip(names[1:], counts[1:], strict=False)}


def spec_of(model: nn.Module) -> VolumeSpec:
    """Tell what a network for volumes wants.

    Raises:
        InflateError: It is none.
    """
    spec = getattr(model, "volume_spec", None)
    if not isinstance(spec, VolumeSpec):
        raise InflateError(
            "the network is not one for volumes",
            where="predict_volume",
            expected="a file that `inflate3d train volume-segment` or volume-classify wrote, or model.volume_spec set",
            got=type(model).__name__,
            fix="model.volume_spec = inflate3d.clips.volume_spec.VolumeSpec(...)",
        )
    return spec


def predict_volume(
    model: nn.Module, source: str | Path | Volume, options: VolumeOptions | None = None
) -> VolumePrediction:
    """Show a scan to a network: it is turned, its values are scaled, its voxels resampled, and the answer goes back.

    Args:
        model: In eval mode, with a `volume_spec`; maps `[b, c, d, h, w]` to logits `[b, classes]`, or to those of each
            voxel, `[b, classes, d, h, w]`.
        source: A file or folder that `read_volume` reads, or a turned volume.
        options: Windows; what files do not say.

    Raises:
        InflateError: The network is none for volumes, the scan cannot be read, or the answer is none.
    """
    options = options or VolumeOptions()
    spec = spec_of(model)
    if isinstance(source, Volume):
        scan = source
    else:
        scan = read_volume(source, part=options.part, spacing_mm=options.spacing_mm, fill=options.fill)
    shown = scale(scan, spec)
    if spec.task == "classes":
        return VolumePrediction(scan.source, spec, logits=class_logits(model, shown, options), scan=scan)
    probabilities = class_probabilities(model, shown, options)
    shown = replace(shown, data=probabilities)
    mask = mask_on(shown, scan.stored or scan.grid)
    return VolumePrediction(scan.source, spec, mask=mask, scan=scan)


def predict_volumes(
    model: nn.Module,
    sources: Sequence[str | Path],
    options: VolumeOptions | None = None,
    *,
    progress: Callable[[str, int, int], None] = lambda name, done, total: None,
) -> Iterator[VolumePrediction | Failure]:
    """Show scans to a network, one after the other; one that cannot be read becomes a `Failure`.

    Args:
        model: See `predict_volume`.
        sources: Files and folders.
        options: See `predict_volume`.
        progress: Is told the name of a scan before it begins, its number, and how many there are.

    Raises:
        InflateError: The network is none for volumes, or a package is missing.
    """
    spec_of(model)
    for number, source in enumerate(sources):
        progress(str(source), number, len(sources))
        try:
            answer: VolumePrediction | Failure = predict_volume(model, source, options)
        except (InflateError, OSError, MemoryError) as error:
            if lacks_package(error):
                raise
            answer = Failure.of(str(source), error)
        yield answer


def class_logits(model: nn.Module, shown: Volume, options: VolumeOptions) -> Tensor:
    """Average the logits `[classes]` of windows that cover a scan; what is smaller than a window is padded."""
    spec = spec_of(model)
    data, run = pad_to(shown.data, spec.patch), _runner(model, spec)
    sizes = zip(data.shape[1:], spec.patch, strict=True)
    depths, heights, widths = (window_starts(size, patch, 0.0) for size, patch in sizes)
    pd, ph, pw = spec.patch
    corners = [(d, h, w) for d in depths for h in heights for w in widths]
    parts = []
    for begin in range(0, len(corners), options.batch_size):
        some = corners[begin : begin + options.batch_size]
        parts.append(run(torch.stack([data[:, d : d + pd, h : h + ph, w : w + pw] for d, h, w in some])))
    return torch.cat(parts).double().mean(0)


def class_probabilities(model: nn.Module, shown: Volume, options: VolumeOptions) -> Tensor:
    """Give each voxel's probabilities `[classes, d, h, w]` in half precision, blended from overlapping windows.

    MONAI blends the windows of a slab as deep as a window; slabs are blended along depth by the same weights, and what
    no later slab reaches is turned into probabilities at once. Beside the answer, logits of one slab are in memory.
    """
    spec = spec_of(model)
    slide = import_extra("monai.inferers", "volume", where="predict_volume").sliding_window_inference
    depth, run = spec.patch[0], _runner(model, spec)
    data = pad_to(shown.data, (depth, 1, 1))
    weights = window_weights(depth).view(-1, 1, 1)
    starts = window_starts(data.shape[1], depth, options.overlap)
    classes = len(spec.class_names)
    found = torch.empty((classes, *data.shape[1:]), dtype=torch.float16)
    logits, total = torch.zeros((classes, depth, *data.shape[2:])), torch.zeros(depth, 1, 1)
    for start, following in pairwise([*starts, data.shape[1]]):
        slab = slide(
            data[None, :, start : start + depth],
            roi_size=spec.patch,
            sw_batch_size=options.batch_size,
            predictor=run,
            overlap=options.overlap,
            mode="gaussian",
            sigma_scale=SIGMA,
        )[0]
        logits.add_(slab.mul_(weights))
        total += weights
        done = following - start  # at the end the whole slab
        found[:, start:following] = (logits[:, :done] / total[:done]).softmax(0).half()
        logits = torch.cat([logits[:, done:], torch.zeros_like(logits[:, :done])], 1)
        total = torch.cat([total[done:], torch.zeros(done, 1, 1)])
    first = (data.shape[1] - shown.data.shape[1]) // 2
    return found[:, first : first + shown.data.shape[1]]


def mask_on(probabilities: Volume, grid: Grid) -> Volume:
    """Bring probabilities onto another grid and take the likeliest class there: a mask of one channel of bytes.

    It goes slab by slab, along the axis there that is depth here.
    """
    here = probabilities.grid
    between = np.linalg.solve(here.affine, grid.affine)  # from an index there to one here
    axis = int(np.abs(between[0, :3]).argmax())
    classes, size = len(probabilities.data), here.shape[0]
    plane = math.prod(grid.shape) // grid.shape[axis]
    count = max(SLAB_VOXELS // (classes * max(plane, math.prod(here.shape[1:]))), 1)
    reach = math.ceil(max(abs(between[0, axis]), 1)) + 1
    mask = torch.empty(grid.shape, dtype=torch.uint8)
    for begin in range(0, grid.shape[axis], count):
        end = min(begin + count, grid.shape[axis])
        centers = between[0, axis] * np.array([begin, end - 1]) + between[0, 3]
        low, high = math.floor(centers.min()) - reach, math.ceil(centers.max()) + reach + 1
        low, high = min(max(low, 0), size - 1), max(min(high, size), 1)
        part = Volume(probabilities.data[:, low:high], _cut(here, 0, low, high), probabilities.source)
        slab = resample_to(part, _cut(grid, axis, begin, end))
        mask.narrow(axis, begin, end - begin).copy_(slab.data.argmax(0))
    return Volume(mask[None], grid, probabilities.source)


def window_starts(size: int, patch: int, overlap: float) -> list[int]:
    """Tell where windows begin so that they cover an axis; the last one ends where it does.

    Example:
        >>> window_starts(100, 40, 0.5), window_starts(30, 40, 0.5)
        ([0, 20, 40, 60], [0])
    """
    step = max(int(patch * (1 - overlap)), 1)
    last = max(size - patch, 0)
    return [*range(0, last, step), last]


def window_weights(size: int) -> Tensor:
    """Weigh the voxels of a window along an axis: a Gaussian around its middle, as MONAI's.

    Example:
        >>> [round(float(value), 3) for value in window_weights(5)]
        [0.006, 0.278, 1.0, 0.278, 0.006]
    """
    away = (torch.arange(size) - (size - 1) / 2) / (SIGMA * size)
    return torch.exp(-(away**2) / 2).clamp_(min=LEAST_WEIGHT)


def facts_of(prediction: VolumePrediction) -> dict[str, Any]:
    """Tell in plain values what a network says about a scan: its classes, or the milliliters of its parts."""
    scores = {score.label: round(score.probability, 8) for score in prediction.top(len(prediction.spec.class_names))}
    said = {"probabilities": scores} if prediction.mask is None else {"volumes_ml": prediction.volumes_ml()}
    grid = prediction.scan and (prediction.scan.stored or prediction.scan.grid)
    size = {"shape": list(grid.shape), "spacing_mm": [round(one, 6) for one in grid.spacing_mm]} if grid else {}
    return {"source": printable(prediction.source), **size, **said}


def volumes_json(
    facts: Sequence[Mapping[str, Any]], failures: Sequence[Failure] = (), *, settings: Mapping[str, str]
) -> str:
    """Write a run as JSON: `settings`, `volumes` (what `facts_of` tells of each) and `failures`.

    Example:
        >>> json.loads(volumes_json([], [Failure("a.nii", "it is empty")], settings={}))["failures"]
        [{'source': 'a.nii', 'reason': 'it is empty'}]
    """
    document = {
        "settings": dict(settings),
        "volumes": list(facts),
        "failures": [{"source": failure.source, "reason": failure.reason} for failure in failures],
    }
    return json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _runner(model: nn.Module, spec: VolumeSpec) -> Run:
    """Make what maps windows `[b, 1, d, h, w]` to logits on the CPU."""
    device = device_of(model)

    def run(patches: Tensor) -> Tensor:
        with torch.inference_mode():
            logits = logits_in(model(to_channels(patches.to(device), spec)))
        wanted = [len(patches), len(spec.class_names), *(patches.shape[2:] if spec.task == "mask" else ())]
        fits = list(logits.shape) == wanted
        if not fits or not logits.isfinite().all():
            raise InflateError(
                "the network's answer is not a number" if fits else "the network does not answer as it should",
                where="predict_volume",
                expected=f"finite logits {wanted}",
                got=f"{list(logits.shape)}" if not fits else "NaN or infinite",
                fix="check its weights, and the task, patch and class_names of its volume_spec",
            )
        return logits.float().cpu().clone()  # inference tensors cannot be changed in place

    return run


def logits_in(answer: object) -> Tensor:
    """Take the logits out of what a network returns: torchvision's segmentation networks have them under `out`.

    Raises:
        InflateError: There are none.
    """
    found = answer.get("out") if isinstance(answer, Mapping) else answer
    if not isinstance(found, Tensor):
        raise InflateError(
            "the network does not return logits",
            where="a network for volumes",
            expected="a tensor, or a dict with one under out",
            got=type(answer).__name__,
            fix="wrap it in a module that returns its logits alone",
        )
    return found


def _cut(grid: Grid, axis: int, begin: int, end: int) -> Grid:
    shape, affine = list(grid.shape), grid.affine.copy()
    shape[axis] = end - begin
    affine[:3, 3] += begin * affine[:3, axis]
    depth, height, width = shape
    return Grid((depth, height, width), affine)
