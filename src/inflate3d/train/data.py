"""Clips for training: drawn, cut and batched such that a run can go on anywhere; what cannot be read is counted."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from inflate3d.atomic import replacing
from inflate3d.clips.dataset import Sample, Splits
from inflate3d.clips.decoded import Decoding, View, Window, center_view, cut_view, decoded_frames, random_view
from inflate3d.errors import InflateError, InflateWarning, list_faults
from inflate3d.flow.methods import MethodName, find_method, with_flow
from inflate3d.flow.quantize import quantize
from inflate3d.train.module import Batch, to_input
from inflate3d.train.recipe import STREAM_CHANNELS, Recipe, Training

Drawn = tuple[int, int]  # a sample, and the seed of what is drawn for it
TRIES = 32  # clips in a row that may fail to be read before another is not looked for


def decoding_of(recipe: Recipe, cache: Path | None) -> Decoding:
    """Tell how the clips of a recipe are read."""
    changes = {"rgb": None, "flow": partial(_flow, recipe.flow_method), "both": partial(_both, recipe.flow_method)}
    name = "" if recipe.stream == "rgb" else f"{recipe.stream} {recipe.flow_method}"
    return Decoding(recipe.fps, recipe.short_side, cache=cache, change=changes[recipe.stream], change_name=name)


def _flow(method: MethodName, frames: Tensor) -> Tensor:
    if len(frames) < 2:
        raise InflateError(
            "flow leads from one frame to the next",
            where="flow of a clip",
            expected="two frames or more",
            got="1",
            fix="leave the clip out",
        )
    solve = find_method(method)
    codes = [quantize(flow) for _, flow in with_flow(frames, lambda frame: frame, solve)]
    return torch.stack(codes).permute(0, 2, 3, 1).contiguous()


def _both(method: MethodName, frames: Tensor) -> Tensor:
    flow = _flow(method, frames)
    return torch.cat([frames[: len(flow)], flow], dim=3)


class Unreadable:
    """Clips that could not be read, each with the reason, and how many there may be."""

    def __init__(self, total: int, share: float) -> None:
        self.total, self.share = total, share
        self.reasons: dict[str, str] = {}

    def add(self, path: str, reason: str) -> None:
        """Count a clip once, and warn.

        Raises:
            InflateError: There are more of them than the recipe's share.
        """
        if path in self.reasons:
            return
        self.reasons[path] = reason
        first = reason.strip().splitlines()[0]
        warnings.warn(f"a clip cannot be read and is left out: {first}", InflateWarning, stacklevel=2)
        if len(self.reasons) > self.share * self.total:
            raise InflateError(
                "too many clips cannot be read",
                where="training",
                expected=f"at most {self.share:.0%} of {self.total}, as max_unreadable says",
                got=f"{len(self.reasons)}: {list_faults(self.reasons.values(), shown=3)}",
                fix="mend or remove them, or allow more: --set max_unreadable=0.5",
            )


class SampleDataset(Dataset[Any]):
    """Samples that are read when they are shown.

    In training one that cannot be read is replaced by the next one that can; else it is marked as not valid.

    Attributes:
        samples: Videos or scans.
        is_train: Whether what is shown of them is drawn.
    """

    samples: Sequence[Sample]
    is_train: bool

    def show(self, sample: Sample, seed: int) -> tuple[Tensor, Tensor]:
        """Read a sample: what is shown of it, and its target."""
        raise NotImplementedError

    def blank(self, sample: Sample) -> tuple[Tensor, Tensor]:
        """Give what stands for a sample that cannot be read."""
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, drawn: Drawn) -> dict[str, Any]:
        index, seed = drawn
        failed: list[tuple[str, str]] = []
        for step in range(min(TRIES, len(self.samples)) if self.is_train else 1):
            sample = self.samples[(index + step) % len(self.samples)]
            try:
                clip, target = self.show(sample, seed)
                return {"clip": clip, "target": target, "valid": True, "failed": failed}
            except Exception as error:  # whatever a strange file sets off
                failed.append((sample.path, str(error) or repr(error)))
        clip, target = self.blank(self.samples[index])
        return {"clip": clip, "target": target, "valid": False, "failed": failed}


class ClipDataset(SampleDataset):
    """Clips as bytes, with targets.

    Args:
        samples: Videos.
        recipe: How they are shown.
        how: How they are read.
        num_classes: Of the targets.
        train: Whether views are drawn; else the middle is taken.
    """

    def __init__(
        self, samples: Sequence[Sample], recipe: Recipe, how: Decoding, *, num_classes: int, train: bool
    ) -> None:
        self.samples, self.recipe, self.how, self.num_classes, self.is_train = samples, recipe, how, num_classes, train
        self.window = Window(recipe.num_frames, recipe.frame_step, recipe.crop)

    def show(self, sample: Sample, seed: int) -> tuple[Tensor, Tensor]:
        """Cut what is shown of a sample, `[c, t, h, w]` uint8, and give its target there."""
        frames = decoded_frames(sample.path, self.how)
        view = self.view(frames, seed)
        return cut_view(frames, self.window, view), self.target(sample, view.start)

    def blank(self, sample: Sample) -> tuple[Tensor, Tensor]:
        """Give grey frames."""
        crop = self.recipe.crop
        grey = torch.full((STREAM_CHANNELS[self.recipe.stream], self.recipe.num_frames, crop, crop), 127)
        return grey.byte(), self.target(sample, 0)

    def view(self, frames: Tensor, seed: int) -> View:
        """Choose what is shown."""
        if not self.is_train:
            return center_view(frames, self.window)
        generator = torch.Generator().manual_seed(seed)
        return random_view(frames, self.window, generator=generator, flip=self.recipe.flip, zoom=self.recipe.zoom)

    def target(self, sample: Sample, start: int) -> Tensor:
        """Give the number of the class, or 0 and 1 for each class (and frame)."""
        if self.recipe.task == "classes":
            return torch.tensor(sample.labels[0])
        if self.recipe.task == "labels":
            wanted = torch.zeros(self.num_classes, dtype=torch.uint8)
            wanted[list(sample.labels)] = 1
            return wanted
        fps = 25.0 if isinstance(self.recipe.fps, str) else float(self.recipe.fps)
        times = (start + torch.arange(self.window.num_frames) * self.window.frame_step) / fps
        over_time = torch.zeros(self.num_classes, self.window.num_frames, dtype=torch.uint8)
        spans = sample.spans or ((0.0, float("inf")),) * len(sample.labels)
        for label, (begin, end) in zip(sample.labels, spans, strict=True):
            over_time[label, (times >= begin) & (times <= end)] = 1
        return over_time


class FeatureDataset(Dataset[Any]):
    """What the frozen part of a network gave for a few views of each clip, from a file.

    Args:
        values: `[samples, views, ...]`.
        targets: One for each sample.
        readable: Samples that are.
    """

    def __init__(self, values: Tensor, targets: Tensor, readable: Tensor) -> None:
        self.values, self.targets, self.readable = values, targets, readable

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, drawn: Drawn) -> dict[str, Any]:
        index, seed = drawn
        view = seed % self.values.shape[1]
        return {
            "clip": self.values[index, view].float(),
            "target": self.targets[index],
            "valid": bool(self.readable[index]),
            "failed": [],
        }


def collate(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Make a batch."""
    return {
        "clip": torch.stack([item["clip"] for item in items]),
        "target": torch.stack([item["target"] for item in items]),
        "valid": torch.tensor([item["valid"] for item in items]),
        "failed": [failure for item in items for failure in item["failed"]],
    }


class TrainBatches:
    """Batches of a run, as a function of seed, epoch and place: any epoch can be begun anywhere.

    Each epoch draws every sample once, or with `classes` every class alike often; it ends with a whole step of the
    optimizer, for which the order begins anew. Of N devices each takes its part of what one device would take at once.

    Args:
        count: Samples.
        recipe: Its `batch_size`, `accumulate` and `seed` are used.
        classes: Class of each sample, to draw them evenly; None takes each sample once.
        rank: Which device this is.
        world: Of how many.
    """

    def __init__(
        self, count: int, recipe: Training, *, classes: Sequence[int] | None = None, rank: int = 0, world: int = 1
    ) -> None:
        self.count, self.classes, self.rank, self.world = count, classes, rank, world
        self.batch_size, self.accumulate, self.seed = recipe.batch_size, recipe.accumulate, recipe.seed
        self.epoch = self.start = 0

    def __len__(self) -> int:
        """Count the batches of a whole epoch on one device."""
        return -(-self.count // (self.batch_size * self.world * self.accumulate)) * self.accumulate

    def __iter__(self) -> Iterator[list[Drawn]]:
        """Go over the rest of this epoch; once more, if asked once more: Lightning asks at will."""
        return iter(self.batches(self.epoch)[self.start :])

    def begin(self, epoch: int, start: int = 0) -> None:
        """Go to a place."""
        self.epoch, self.start = epoch, start

    def batches(self, epoch: int) -> list[list[Drawn]]:
        """List the batches of an epoch."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        total = len(self) * self.batch_size * self.world
        order: list[int] = []
        while len(order) < total:
            order += self._once(generator)
        seeds = torch.randint(2**62, (total,), generator=generator).tolist()
        drawn = list(zip(order[:total], seeds, strict=True))
        size, together = self.batch_size, self.batch_size * self.world
        first = [start + self.rank * size for start in range(0, total, together)]
        return [drawn[start : start + size] for start in first]

    def _once(self, generator: torch.Generator) -> list[int]:
        if self.classes is None:
            return torch.randperm(self.count, generator=generator).tolist()
        numbers = torch.tensor(self.classes)
        weights = 1.0 / torch.bincount(numbers).double()[numbers]
        return torch.multinomial(weights, self.count, replacement=True, generator=generator).tolist()


class Loader(DataLoader[Batch]):
    """A loader that Lightning asks for its place when it writes a checkpoint.

    Args:
        data: A data set of drawn samples.
        batches: What is drawn.
        place: Gives the epoch, and how many of its batches are done.
        workers: Processes.
    """

    def __init__(
        self, data: Dataset[Any], batches: TrainBatches, *, place: Callable[[], tuple[int, int]], workers: int
    ) -> None:
        super().__init__(
            data, batch_sampler=batches, num_workers=workers, collate_fn=collate, persistent_workers=workers > 0
        )
        self.batches, self.place = batches, place

    def state_dict(self) -> dict[str, int]:
        """Tell where training is; not what has been read ahead."""
        epoch, done = self.place()
        whole = done >= len(self.batches)
        return {"epoch": epoch + whole, "start": 0 if whole else done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on there."""
        self.batches.begin(state["epoch"], state["start"])


def val_loader(data: Dataset[Any], size: int, workers: int, *, rank: int = 0, world: int = 1) -> DataLoader[Batch]:
    """Load the samples one after the other, so many at a time, each N-th of them on N devices."""
    drawn = [(index, 0) for index in range(rank, len(data), world)]  # type: ignore[arg-type]  # ours have a length
    batches = [drawn[start : start + size] for start in range(0, len(drawn), size)]
    return DataLoader(
        data, batch_sampler=batches, num_workers=workers, collate_fn=collate, persistent_workers=workers > 0
    )


def check_validation(splits: Splits, world: int) -> None:
    """Refuse a validation that leaves devices without a sample: they would wait for each other for ever.

    Raises:
        InflateError: There are fewer samples than devices, but some.
    """
    if 0 < len(splits.val) < world:
        raise InflateError(
            "not every device has something to validate with",
            where=splits.source,
            expected=f"{world} samples for validation or more, one for each device; or none",
            got=f"{len(splits.val)}",
            fix="hold out more with --val-share, name fewer devices, or validate with nothing: --val-share 0",
        )


@dataclass(frozen=True)
class Kept:
    """Where the outputs of the frozen part are.

    Attributes:
        table: The file of this run (.npy), half precision; it is made anew.
        folder: Keeps them clip by clip for other runs too; None does not.
        digest: Of the frozen part's weights.
    """

    table: Path
    folder: Path | None = None
    digest: str = ""

    def file(self, path: str, recipe: Recipe, view: int) -> Path | None:
        """Name the file of a view of a video, by all that decides on it."""
        if self.folder is None or not Path(path).exists():
            return None
        names = ("freeze", "stream", "flow_method", "fps", "num_frames", "frame_step", "short_side", "crop", "flip")
        facts = [getattr(recipe, name) for name in (*names, "zoom", "precision", "seed")]
        size, changed = Path(path).stat().st_size, Path(path).stat().st_mtime_ns
        text = repr((facts, str(Path(path).resolve()), size, changed, view, self.digest))
        return self.folder / f"{sha256(text.encode()).hexdigest()[:32]}.npy"


def compute_features(
    front: Callable[[Tensor], Tensor],
    data: ClipDataset,
    kept: Kept,
    *,
    unreadable: Unreadable,
    progress: Callable[[int, int], None],
) -> FeatureDataset:
    """Run the frozen part of a network over views of each clip, and keep what comes out.

    Args:
        front: Maps clips in -1..1 to what is kept.
        data: Clips; in training as many views as the recipe says, the middle and drawn ones, else the middle.
        kept: Where it is kept.
        unreadable: Takes the clips that cannot be read.
        progress: Is told how many of how many are done.

    Raises:
        InflateError: Not one clip can be read, or more cannot than may fail.
    """
    views = max(data.recipe.cached_views, 1) if data.is_train else 1
    values: np.memmap[Any, Any] | None = None
    readable = torch.zeros(len(data), dtype=torch.bool)
    for index, sample in enumerate(data.samples):
        progress(index, len(data))
        files = [kept.file(sample.path, data.recipe, view) for view in range(views)]
        before = [_kept_values(file) for file in files]
        try:
            frames = decoded_frames(sample.path, data.how) if any(value is None for value in before) else None
        except Exception as error:  # whatever a strange file sets off
            unreadable.add(sample.path, str(error) or repr(error))
            continue
        found = _features_of(front, data, frames, sample.path, list(zip(files, before, strict=True)))
        if values is None:
            kept.table.parent.mkdir(parents=True, exist_ok=True)
            values = np.lib.format.open_memmap(kept.table, "w+", np.float16, (len(data), *found.shape))
        values[index] = found
        readable[index] = True
    if values is None:
        raise InflateError(
            "not one clip can be read",
            where="training",
            expected="videos",
            got=list_faults(unreadable.reasons.values(), shown=3) or "no samples",
            fix="check the paths of the list, or name their root: --root FOLDER",
        )
    values.flush()
    targets = torch.stack([data.target(sample, 0) for sample in data.samples])
    if data.is_train and not readable.all():  # what cannot be read is not trained on
        return FeatureDataset(torch.from_numpy(values[readable.numpy()]), targets[readable], readable[readable])
    return FeatureDataset(torch.from_numpy(np.asarray(values)), targets, readable)


def _kept_values(file: Path | None) -> NDArray[np.float16] | None:
    """Read what a run before has kept; None where there is nothing, or something damaged, which is made anew."""
    if file is None or not file.is_file():
        return None
    try:
        found: NDArray[np.float16] = np.load(file, allow_pickle=False)
    except (ValueError, OSError, EOFError):
        return None
    return found


def _features_of(
    front: Callable[[Tensor], Tensor],
    data: ClipDataset,
    frames: Tensor | None,
    path: str,
    views: Sequence[tuple[Path | None, NDArray[np.float16] | None]],
) -> NDArray[np.float16]:
    """Give what a video's views are in the frozen part's eyes: the middle, and drawn ones, the same for every run.

    Args:
        front: Maps clips in -1..1 to what is kept.
        data: Cuts the views.
        frames: Of the video; None where all is kept.
        path: Of the video.
        views: For each the file that keeps it, and what that holds already.
    """
    found = [before for _, before in views]
    for view, (file, before) in enumerate(views):
        if before is not None or frames is None:
            continue
        seed = crc32(Path(path).name.encode()) * 1009 + view + data.recipe.seed
        chosen = center_view(frames, data.window) if view == 0 else data.view(frames, seed)
        with torch.inference_mode():
            value = front(to_input(cut_view(frames, data.window, chosen)[None]))[0].half().cpu().numpy()
        found[view] = value
        if file is not None:
            with replacing(file) as draft, draft.open("wb") as stream:
                np.save(stream, value, allow_pickle=False)
    return np.stack([value for value in found if value is not None])
