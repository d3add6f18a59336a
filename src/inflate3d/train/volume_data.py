"""Volumes for training: lists as people have them, scans scaled once and kept, patches drawn and changed by MONAI."""

import json
import math
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from inflate3d.arrays import check_npz
from inflate3d.atomic import replacing
from inflate3d.clips.dataset import (
    ROW_WORDS,
    SPLIT_NAMES,
    Listing,
    Sample,
    Splits,
    class_folders,
    fold_in,
    make_splits,
    row_faults,
)
from inflate3d.clips.tables import MOST_DIGITS, read_table
from inflate3d.clips.volume import MAX_VOXELS, Grid, Volume, resample
from inflate3d.clips.volume_files import find_volumes, read_volume
from inflate3d.clips.volume_spec import VolumeSpec, VolumeTask, pad_to, scale
from inflate3d.errors import InflateError, import_extra, in_a_line, list_faults
from inflate3d.results.volume_scores import check_mask
from inflate3d.train.data import SampleDataset
from inflate3d.train.recipe import VolumeRecipe

Normalized = tuple[tuple[float, ...], tuple[float, ...]]  # mean and deviation of each channel

PARTS = ("train", "val", "test")
IN_FILE = re.compile(rf"\.npz#({'|'.join(PARTS)}):\d+$")  # one of an .npz file: scans.npz#train:17
IMAGES, LABELS = ("images", "imagesTr"), ("labels", "labelsTr", "masks")
IMAGE_COLUMNS, MASK_COLUMNS = ("path", "image", "file"), ("mask", "segmentation", "label")
CHANNEL = "_0000"  # behind the name of a scan, where nnU-Net keeps several
FOLDS = 5
SIZED_SCANS = 32  # of which the median spacing is taken
WIDE = 2.0  # a voxel so many times as deep as wide is not turned over


@dataclass(frozen=True)
class VolumeSplits:
    """Scans to learn from, to choose by and to judge with, and the masks of those that have one.

    Attributes:
        splits: The scans; their classes, or the parts of their masks with the background first.
        masks: By the path of the scan.
    """

    splits: Splits
    masks: Mapping[str, str]


def read_volume_splits(
    path: str | Path,
    task: VolumeTask,
    *,
    fold: int | None = None,
    val_share: float = 0.15,
    seed: int = 0,
    class_names: Sequence[str] = (),
) -> VolumeSplits:
    """Read a list of labelled scans, in whatever form it is, and cut it.

    | form | how it is known |
    |---|---|
    | MedMNIST | .npz with `train_images`, `train_labels`, and likewise `val_` and `test_` |
    | Medical Segmentation Decathlon, nnU-Net | a folder with `images(Tr)` and `labels(Tr)`, perhaps `dataset.json` |
    | table | .csv with `path` and `label` or `mask`, and if you like `split`, `group` and `fold` |
    | folder of classes | a folder of folders of scans; above them there may be `train`, `val`, `test` |

    A mask in a folder has the name of its scan and lies in the same folder below `labels(Tr)`. Folds are drawn by whole
    groups.

    Args:
        path: The folder or the file.
        task: Whether labels are classes or masks.
        fold: The one to test on; a folder without folds is cut into five, drawn by `seed`.
        val_share: Part of the training held out, where none is named.
        seed: Of what is drawn.
        class_names: All classes, or parts with the background first, where the list does not name them, or only some.

    Raises:
        InflateError: There is no such list, it does not fit the task, or it has classes that are not among the names.
    """
    path = Path(path)
    if path.suffix == ".npz":
        samples, masks, names = _arrays_list(path, task)
    elif path.suffix == ".csv":
        samples, masks, names = _table(path, task, class_names)
    elif task == "mask":
        samples, masks, names = _decathlon(path, class_names)
    else:
        samples, masks, names = _classes(path, class_names)
    if fold is not None and all(sample.fold is None for sample in samples):
        samples = _with_folds(samples, seed)
    names = tuple(class_names) or names or _part_names(masks)
    most = max((label for sample in samples for label in sample.labels), default=0)
    if most >= len(names):
        raise _misfit(path, f"numbers of classes below {len(names)}: {', '.join(names)}", f"numbers up to {most}")
    listing = Listing(tuple(samples), names, str(path))
    return VolumeSplits(make_splits(listing, fold=fold, val_share=val_share, seed=seed), masks)


def _arrays_list(path: Path, task: VolumeTask) -> tuple[list[Sample], dict[str, str], tuple[str, ...]]:
    found = _arrays(str(path))
    samples, masks, most = [], {}, 0
    for part in PARTS:
        images, labels = found.get(f"{part}_images"), found.get(f"{part}_labels")
        wanted = (4, 4 if task == "mask" else 2)
        labels = labels if labels is not None and labels.size and labels.dtype.kind in "bui" else None
        if images is None or labels is None or len(images) != len(labels) or (images.ndim, labels.ndim) != wanted:
            shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in found.items())
            raise _misfit(
                path,
                f"{part}_images [n, d, h, w] and {part}_labels " + ("likewise" if wanted[1] == 4 else "[n, 1]"),
                shapes,
            )
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= 10**MOST_DIGITS:
            raise _misfit(path, f"{part}_labels from 0 to {10**MOST_DIGITS - 1:,}", f"from {low:,} to {high:,}")
        most = max(most, high)
        for number in range(len(images)):
            name = f"{path}#{part}:{number}"
            classes = () if task == "mask" else (int(labels[number].ravel()[0]),)
            samples.append(Sample(name, classes, split=part))
            if task == "mask":
                masks[name] = name
    first, word = ("background", "part") if task == "mask" else ("class 0", "class")
    return samples, masks, (first, *(f"{word} {number}" for number in range(1, max(most, 1) + 1)))


def _with_folds(samples: list[Sample], seed: int) -> list[Sample]:
    """Draw folds, whole groups at a time; a sample without a group is one by itself."""
    groups = list(dict.fromkeys(sample.group or sample.path for sample in samples))
    order = np.random.default_rng(seed).permutation(len(groups))
    folds = {group: int(place) % FOLDS for group, place in zip(groups, order, strict=True)}
    return [replace(sample, fold=folds[sample.group or sample.path]) for sample in samples]


def _decathlon(path: Path, class_names: Sequence[str]) -> tuple[list[Sample], dict[str, str], tuple[str, ...]]:
    folders = [next((path / name for name in names if (path / name).is_dir()), None) for names in (IMAGES, LABELS)]
    if None in folders:
        raise _misfit(path, f"{' or '.join(IMAGES)}, and {' or '.join(LABELS)}", _listed(path))
    images, labels = ([(_name_below(one, top), one) for one in find_volumes([top])] for top in folders if top)
    by_name, counts = dict(labels), [Counter(name for name, _ in pairs) for pairs in (images, labels)]
    faults = [str(image) for name, image in images if name not in by_name]
    faults += [f"{name} {number} times" for count in counts for name, number in count.items() if number > 1]
    if faults:
        raise _misfit(path, "one mask of the same name and folder for each scan", list_faults(faults, shown=3))
    names: tuple[str, ...] = ()
    if (path / "dataset.json").is_file():
        names = _names_in(path / "dataset.json")
    moved = [name for name, known in zip(names, class_names, strict=False) if name != known and name in class_names]
    if moved or (class_names and len(names) > len(class_names)):
        raise _misfit(path / "dataset.json", f"the parts {', '.join(class_names)}, in this order", ", ".join(names))
    masks = {str(image): str(by_name[name]) for name, image in images}
    return [Sample(image, ()) for image in masks], masks, names


def _names_in(path: Path) -> tuple[str, ...]:
    """Read the parts of a mask: the Decathlon writes numbers to names, nnU-Net names to numbers."""
    try:
        labels = json.loads(path.read_text(encoding="utf-8"))["labels"]
        pairs = [(key, value) if str(key).isdecimal() else (value, key) for key, value in labels.items()]
        by_number = {int(number): str(name) for number, name in pairs}
        return tuple(by_number[number] for number in range(len(by_number)))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise _misfit(path, "labels: numbers from 0 to names, or names to numbers", in_a_line(error)) from error


def _table(
    path: Path, task: VolumeTask, class_names: Sequence[str]
) -> tuple[list[Sample], dict[str, str], tuple[str, ...]]:
    columns, rows = read_table(path)
    where = next((name for name in IMAGE_COLUMNS if name in columns), "")
    what = next((name for name in (MASK_COLUMNS if task == "mask" else ("label", "class")) if name in columns), "")
    missing = [row[where] for row in rows if where and not os.path.exists(path.parent / row[where])]  # noqa: PTH110
    if not rows or not where or not what or missing:
        words = (
            f"columns {' or '.join(IMAGE_COLUMNS)} and {'mask' if task == 'mask' else 'label'}; paths that are there"
        )
        raise _misfit(path, words, list_faults(missing, shown=3) if missing else ", ".join(columns) or "no rows")
    names = tuple(class_names) or (() if task == "mask" else tuple(sorted({row[what] for row in rows})))
    strange = [row[what] for row in rows if task == "classes" and row[what] not in names]
    strange += [fault for row in rows for fault in row_faults(row[where], row.get("split", ""), row.get("fold", ""))]
    if strange:
        words = f"labels among {', '.join(names)}; {ROW_WORDS}" if task == "classes" else ROW_WORDS
        raise _misfit(path, words, list_faults(strange, shown=3))
    times = Counter(row[where] for row in rows)
    twice = [f"{image} {number} times" for image, number in times.items() if number > 1]
    if twice and task == "mask":
        raise _misfit(path, "one mask for each scan", list_faults(twice, shown=3))
    samples, masks = [], {}
    for row in rows:
        image = str(path.parent / row[where])
        labels = () if task == "mask" else (names.index(row[what]),)
        split = SPLIT_NAMES.get(row.get("split", "").lower(), "")
        samples.append(Sample(image, labels, row.get("group", ""), split, fold_in(row.get("fold", ""))))
        if task == "mask":
            masks[image] = str(path.parent / row[what])
    return samples, masks, names


def _classes(path: Path, class_names: Sequence[str]) -> tuple[list[Sample], dict[str, str], tuple[str, ...]]:
    folders = class_folders(path) if path.is_dir() else []
    found = sorted({folder.name for folder, _ in folders})
    if len(found) < (1 if class_names else 2):
        raise _misfit(path, "a folder of scans for each class, a .csv, or an .npz", _listed(path))
    names = tuple(class_names) or tuple(found)
    strange = [name for name in found if name not in names]
    if strange:
        raise _misfit(path, f"folders among {', '.join(names)}", list_faults(strange, shown=3))
    samples = [
        Sample(str(scan), (names.index(folder.name),), split=SPLIT_NAMES.get(split.lower(), ""))
        for folder, split in folders
        for scan in find_volumes([folder])
    ]
    return samples, {}, names


def _part_names(masks: Mapping[str, str]) -> tuple[str, ...]:
    most = max((int(load_mask(path).data.max()) for path in masks.values()), default=1)
    return ("background", *(f"part {number}" for number in range(1, max(most, 1) + 1)))


def _name_below(path: Path, folder: Path) -> str:
    """Name a scan as its mask is named: by its place in the folder, since patients may have scans of one name."""
    name = path.name if path.is_dir() else path.name.removesuffix(".gz").rpartition(".")[0]  # a folder of DICOM files
    return str(path.relative_to(folder).parent / name.removesuffix(CHANNEL))


def _listed(path: Path) -> str:
    return ", ".join(sorted(item.name for item in path.iterdir())[:8]) if path.is_dir() else "no such folder"


def _misfit(path: Path, expected: str, got: str) -> InflateError:
    return InflateError(
        "the list of scans cannot be understood",
        where=str(path),
        expected=expected,
        got=got,
        fix="docs/volumes.md shows each form of a list",
    )


@lru_cache(maxsize=2)
def _arrays(path: str) -> dict[str, NDArray[Any]]:
    try:
        check_npz(Path(path), 8 * MAX_VOXELS)
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except Exception as error:  # zipfile raises whatever it stumbles over
        raise _misfit(Path(path), "a whole .npz of numbers", in_a_line(error)) from error


def load_scan(path: str) -> Volume:
    """Read a scan, turned: a file, or one of an .npz, whose voxels count as cubes of 1 mm."""
    return _item(path, "images") if IN_FILE.search(path) else read_volume(path)


def load_mask(path: str) -> Volume:
    """Read a mask likewise, as bytes.

    Raises:
        InflateError: Its values are no numbers of parts.
    """
    mask = _item(path, "labels") if IN_FILE.search(path) else read_volume(path)
    whole = mask.data.round()
    if not torch.equal(whole.double(), mask.data.double()) or whole.min() < 0 or whole.max() > 255:
        raise InflateError(
            "this is no mask",
            where=path,
            expected="whole numbers from 0 to 255",
            got=f"{float(mask.data.min()):g} to {float(mask.data.max()):g}, {mask.data.dtype}",
            fix="write 0 for the background, and 1, 2, ... for parts",
        )
    return replace(mask, data=whole.to(torch.uint8))


def _item(path: str, what: str) -> Volume:
    file, _, place = path.rpartition("#")
    part, _, number = place.partition(":")
    voxels = torch.from_numpy(_arrays(file)[f"{part}_{what}"][int(number)])[None]
    depth, height, width = voxels.shape[1:]
    return Volume(voxels, Grid((depth, height, width), np.eye(4)), path)


def spec_for(recipe: VolumeRecipe, data: VolumeSplits, normalized: Normalized = ((0.0,), (1.0,))) -> VolumeSpec:
    """Tell what a network of this recipe is fed; without a spacing the median of the training scans is taken."""
    spacing = recipe.spacing_mm
    if not spacing:
        sizes = [load_scan(sample.path).grid.spacing_mm for sample in data.splits.train[:SIZED_SCANS]]
        spacing = tuple(round(float(size), 4) for size in np.median(sizes, axis=0))
    depth, height, width = recipe.patch
    across, down, right = spacing
    return VolumeSpec(
        recipe.task,
        data.splits.class_names,
        (across, down, right),
        (depth, height, width),
        window=recipe.window,
        percentiles=recipe.percentiles,
        mean=normalized[0],
        std=normalized[1],
    )


class VolumePatches(SampleDataset):
    """Scans in the form that a network wants, with targets; patches of them in training.

    A scan is read and scaled once; then it lies in a folder in half precision, and patches are read from there.

    Args:
        samples: Scans.
        data: Their masks.
        recipe: How patches are drawn and changed.
        spec: What the network wants.
        folder: Keeps scaled scans.
        train: Whether patches are drawn.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        data: VolumeSplits,
        recipe: VolumeRecipe,
        *,
        spec: VolumeSpec,
        folder: Path,
        train: bool,
    ) -> None:
        self.samples, self.data, self.recipe = samples, data, recipe
        self.spec, self.folder, self.is_train = spec, folder, train

    def show(self, sample: Sample, seed: int) -> tuple[Tensor, Tensor]:
        """Cut what is shown of a scan, `[1, d, h, w]` in 0..1, and give its mask or class."""
        image, mask = self.scaled(sample)
        image, mask = self.view(image.float(), mask, seed)
        return image, torch.tensor(sample.labels[0]) if mask is None else mask

    def blank(self, sample: Sample) -> tuple[Tensor, Tensor]:
        """Give an empty patch."""
        empty = torch.zeros((1, *self.spec.patch))
        return empty, empty.byte() if self.spec.task == "mask" else torch.tensor(0)

    def scaled(self, sample: Sample) -> tuple[Tensor, Tensor | None]:
        """Give a scan `[1, d, h, w]` in 0..1 at the network's spacing, and its mask likewise."""
        path = self.data.masks.get(sample.path) if self.spec.task == "mask" else None
        if IN_FILE.search(sample.path):
            image = scale(load_scan(sample.path), self.spec)
            return image.data, None if path is None else self.mask(path, image)
        kept = self.folder / f"{_digest(sample.path, path, self.spec)}.npz"
        if not kept.is_file():
            image = scale(load_scan(sample.path), self.spec)
            mask = np.zeros(0, np.uint8) if path is None else self.mask(path, image).numpy()
            with replacing(kept) as draft, draft.open("wb") as file:
                np.savez(file, image=image.data.half().numpy(), mask=mask)
        with np.load(kept, allow_pickle=False) as found:
            return torch.from_numpy(found["image"]), None if path is None else torch.from_numpy(found["mask"])

    def mask(self, path: str, image: Volume) -> Tensor:
        """Give a mask on the voxels of its scaled scan.

        Raises:
            InflateError: It lies elsewhere, or has parts that nobody named.
        """
        mask = resample(load_mask(path), self.spec.spacing_mm, sampling="nearest")
        check_mask(mask, image.grid, len(self.spec.class_names), where=path)
        return mask.data

    def view(self, image: Tensor, mask: Tensor | None, seed: int) -> tuple[Tensor, Tensor | None]:
        """Cut what is shown: a drawn patch, changed; else the middle of a scan, and with a mask all of it."""
        image = pad_to(image, self.spec.patch)
        mask = None if mask is None else pad_to(mask, self.spec.patch)
        if self.is_train:
            return _drawn_patch(image, mask, self.recipe, seed=seed, spec=self.spec)
        if mask is not None:
            return image, mask
        for axis, wanted in enumerate(self.spec.patch, start=1):
            image = image.narrow(axis, (image.shape[axis] - wanted) // 2, wanted)
        return image, None


def _drawn_patch(
    image: Tensor, mask: Tensor | None, recipe: VolumeRecipe, *, seed: int, spec: VolumeSpec
) -> tuple[Tensor, Tensor | None]:
    """Draw a patch and change it, by MONAI's transforms; what is drawn is a function of the seed."""
    change = import_extra("monai.transforms", "volume", where="training")
    keys = ["image"] if mask is None else ["image", "mask"]
    modes, edges = ["bilinear", "nearest"][: len(keys)], ["border"] * len(keys)
    if mask is None:
        steps = [change.RandSpatialCropd(keys, spec.patch, random_size=False)]
    else:
        steps = [
            change.RandCropByPosNegLabeld(
                keys, "mask", spec.patch, pos=recipe.positive, neg=1 - recipe.positive, num_samples=1
            ),
        ]
    steps += [change.RandFlipd(keys, prob=0.5, spatial_axis="dhw".index(axis)) for axis in recipe.mirror]
    turn, flat = math.radians(recipe.rotate_degrees), spec.spacing_mm[0] >= WIDE * min(spec.spacing_mm[1:])
    if turn or recipe.zoom:
        turns = (turn, 0, 0) if flat else (turn, turn, turn)
        steps.append(
            change.RandAffined(
                keys, prob=0.5, rotate_range=turns, scale_range=(recipe.zoom,) * 3, mode=modes, padding_mode=edges
            )
        )
    if recipe.brightness:
        steps.append(change.RandScaleIntensityd("image", factors=recipe.brightness, prob=0.5))
    if recipe.noise:
        steps.append(change.RandGaussianNoised("image", std=recipe.noise, prob=0.5))
    drawn = change.Compose(steps).set_random_state(seed=seed % 2**32)(
        {"image": image} | ({} if mask is None else {"mask": mask})
    )
    drawn = drawn[0] if isinstance(drawn, list) else drawn
    found = [
        torch.as_tensor(drawn[key].as_tensor() if hasattr(drawn[key], "as_tensor") else drawn[key]) for key in keys
    ]
    return found[0].float().contiguous(), found[1].to(torch.uint8).contiguous() if mask is not None else None


def _digest(path: str, mask: str | None, spec: VolumeSpec) -> str:
    facts: list[object] = [spec.spacing_mm, spec.window, spec.percentiles]
    for one in (path, mask):
        if one is not None:
            files = sorted(Path(one).iterdir()) if Path(one).is_dir() else [Path(one)]
            facts += [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return sha256(repr(facts).encode()).hexdigest()[:32]
