"""Runs over many videos: a manifest that a stopped run goes on from, shards, an honest estimate, and Ray."""

import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from inflate3d.clips.stills import source_state
from inflate3d.errors import InflateError, import_extra
from inflate3d.results.feature_files import Job, VideoFeatures, check_paths, collect, files_of, import_h5py, write_files
from inflate3d.results.feature_manifest import Manifest, Shard
from inflate3d.results.feature_presets import FeatureLayout, plain
from inflate3d.results.features import Extractor, Told
from inflate3d.results.prediction import Failure, printable

DRAFTS = ".drafts"  # the folder of files that are being written
FIRST_SHARE = 0.05  # of the first file, before a time is estimated
VIDEOS_AT_A_TIME = 8  # of a worker of Ray, at most


class Estimate:
    """How long a run will take, from the bytes of the files that are done.

    Args:
        sizes: Of the files, in bytes.
        clock: Tells seconds.
    """

    def __init__(self, sizes: Sequence[int], clock: Callable[[], float] = time.monotonic) -> None:
        self.sizes, self.clock, self.begun = [max(size, 1) for size in sizes], clock, clock()
        self.total, self.done, self.num_done = sum(self.sizes), 0, 0
        self.shares: dict[int, float] = {}  # of the files that are being read

    def read(self, index: int, share: float) -> None:
        """Take down how much of a file has been read."""
        self.shares[index] = min(share, 1.0)

    def finished(self, index: int, *, failed: bool) -> None:
        """Take down that a file is done; one that failed tells nothing about the time that others take."""
        self.shares.pop(index, None)
        self.num_done += 1
        self.total -= self.sizes[index] * failed
        self.done += self.sizes[index] * (not failed)

    def seconds_left(self) -> float | None:
        """Estimate what is left; None before a twentieth of the first file is read."""
        share = (self.done + sum(self.sizes[i] * part for i, part in list(self.shares.items()))) / max(self.total, 1)
        if not self.done and max(self.shares.values(), default=0.0) < FIRST_SHARE:
            return None
        return (self.clock() - self.begun) * max(1 - share, 0.0) / share


class FeatureProgress(NamedTuple):
    """How far a run is.

    Attributes:
        done: Videos that are done, failed ones among them, without those that an earlier run did.
        total: Videos to do.
        seconds_left: An estimate from the bytes of the files that are done; None until there is something to go by.
    """

    done: int
    total: int
    seconds_left: float | None


class FeatureRun(NamedTuple):
    """What came of a run.

    Attributes:
        num_done: Videos whose features it has made.
        num_skipped: Videos that an earlier run had done in the same way.
        failures: Videos that have no features, and why.
        collected: Files that hold all videos.
    """

    num_done: int
    num_skipped: int
    failures: tuple[Failure, ...]
    collected: tuple[str, ...]


def extract_files(
    extractor: Extractor,
    jobs: Sequence[Job],
    folder: Path,
    *,
    layout: FeatureLayout | None = None,
    shard: Shard = Shard(),  # noqa: B008 - it cannot change
    progress: Callable[[FeatureProgress], None] | None = None,
) -> FeatureRun:
    """Write the features of videos; a run that was stopped goes on where it was when it is started again.

    Each video is done when its files are whole and a line in the manifest says so. One that fails gets a line too, and
    is tried again by the next run.

    Args:
        extractor: Networks and options.
        jobs: Videos and their names (`plan_jobs`).
        folder: Where files and manifest go.
        layout: How files look; by default `.npy` with a row for each window.
        shard: Which part of the videos to do.
        progress: Called whenever a video is done, and while it is read.

    Raises:
        InflateError: There is no room, a network does not answer with finite features, or these do not fit the layout.
            What was done is whole.
    """

    def rows(todo: Sequence[Job], writer: "_Writer", tell: Told) -> Iterator[tuple[int, dict[str, Any]]]:
        states: list[str] = []
        for index, found in extractor.many(_paths(todo, states), told=tell):
            yield index, writer.row(todo[index], found, states[index])

    return _run(_Plan(extractor, jobs, folder, layout or FeatureLayout(), shard), rows, progress)


def extract_on_ray(
    extractor: Extractor,
    jobs: Sequence[Job],
    folder: Path,
    *,
    layout: FeatureLayout | None = None,
    workers: int = 2,
    progress: Callable[[FeatureProgress], None] | None = None,
) -> FeatureRun:
    """Do the same on a Ray cluster (extra `scale`), with the same bytes; without a cluster Ray starts one here.

    Args:
        extractor: As for `extract_files`, likewise `jobs`, `layout` and `progress`. Each worker gets a copy.
        jobs: Videos, under paths that all nodes know.
        folder: One that all nodes see.
        layout: How files look.
        workers: Copies of the networks, each with one processor.
        progress: Called whenever a video is done.

    Raises:
        InflateError: Ray is missing, or what `extract_files` raises.
    """
    ray = import_extra(
        "ray", "scale", where="features --ray", instead="leave --ray out: --shard 1/2 and 2/2 do without"
    )
    data = import_extra("ray.data", "scale", where="features --ray")

    def rows(todo: Sequence[Job], writer: "_Writer", tell: Told) -> Iterator[tuple[int, dict[str, Any]]]:
        if not todo:
            return
        logging.getLogger("ray.data").setLevel(logging.WARNING)  # `progress` tells how far it is
        if not ray.is_initialized():
            ray.init(log_to_driver=False, logging_level=logging.WARNING)
        arguments = (ray.put(extractor), writer, ray.put(list(todo)))
        size = min(workers, int(ray.cluster_resources().get("CPU", 1)))  # more would be waited for without end
        at_a_time = max(min(VIDEOS_AT_A_TIME, len(todo) // size), 1)  # the rows of a block arrive together
        blocks = -(-len(todo) // at_a_time)
        # made here: reading them would be a task that waits for a processor which the workers have
        numbers = data.from_items(list(range(len(todo))), override_num_blocks=blocks)
        pool = data.ActorPoolStrategy(size=min(size, blocks))
        found = numbers.map_batches(
            _RayWorker, fn_constructor_args=arguments, compute=pool, num_cpus=1, batch_size=at_a_time
        )
        try:
            for item in found.iter_rows():
                yield int(item["index"]), json.loads(item["row"])
        except ray.exceptions.RayError as error:
            raise ray_fault(error) from error

    return _run(_Plan(extractor, jobs, folder, layout or FeatureLayout(), Shard()), rows, progress)


def ray_fault(error: Exception) -> InflateError:
    """Tell why a worker has failed: in its own words, where it was a mistake that can be mended."""
    cause = getattr(error, "cause", error)
    if isinstance(cause, InflateError):
        return cause
    return InflateError(
        "a worker of Ray has failed; what was done before is whole",
        where="features --ray",
        expected="nodes that have inflate3d, and see the videos and the folder",
        got=f"{type(cause).__name__}: {str(cause).strip().splitlines()[-1:]}",
        fix="mend what is told, and run the same command again: it goes on where it was",
    )


class _RayWorker:
    """What runs on one processor of the cluster."""

    def __init__(self, extractor: Any, writer: "_Writer", jobs: Any) -> None:
        import ray  # noqa: PLC0415

        self.extractor, self.jobs, self.writer = ray.get(extractor), ray.get(jobs), writer

    def __call__(self, batch: Mapping[str, Any]) -> Iterator[dict[str, list[Any]]]:
        numbers = [int(number) for number in batch["item"]]
        jobs, states = [self.jobs[number] for number in numbers], list[str]()
        for index, found in self.extractor.many(_paths(jobs, states)):
            row = self.writer.row(jobs[index], found, states[index])
            yield {"index": [numbers[index]], "row": [json.dumps(row)]}


def _paths(jobs: Sequence[Job], states: list[str]) -> Iterator[Path]:
    """Hand out the videos, and note the state of each before it is read: one that changes meanwhile is done anew."""
    for job in jobs:
        try:
            states.append(source_state(job.path))
        except (OSError, ValueError):  # reading it says so
            states.append("")
        yield job.path


class _Plan(NamedTuple):
    extractor: Extractor
    jobs: Sequence[Job]
    folder: Path
    layout: FeatureLayout
    shard: Shard


class _Writer(NamedTuple):
    """Writes the files of a video and tells about it in a line of the manifest."""

    folder: Path
    layout: FeatureLayout
    drafts: Path
    config: str  # a hash of all that decides on the bytes
    made: str  # the same in words

    def row(self, job: Job, found: VideoFeatures | Failure, state: str) -> dict[str, Any]:
        row: dict[str, Any] = {"video": job.name, "source": printable(str(job.path)), "config": self.config}
        if isinstance(found, Failure):
            return {**row, "status": "failed", "error": found.reason}
        files = write_files(self.folder, files_of(job.name, found, self.layout, card=self.made), self.drafts)
        row |= {
            "status": "done",
            "time": round(time.time(), 3),
            "state": state,
            "files": files,
            "num_frames": found.num_frames,
            "fps": found.fps,
        }
        starts, times = found.start_frames.tolist(), [round(one, 6) for one in found.times_seconds.tolist()]
        return {**row, "windows": {"num_frames": found.window, "start_frames": starts, "times_seconds": times}}


Rows = Callable[[Sequence[Job], _Writer, Told], Iterator[tuple[int, dict[str, Any]]]]


def _run(plan: _Plan, rows: Rows, progress: Callable[[FeatureProgress], None] | None) -> FeatureRun:
    streams = list(plan.extractor.networks)
    _check_layout(plan.extractor, plan.layout)
    check_paths([job.name for job in plan.jobs], plan.layout, streams)
    made = {**plan.extractor.describe(), "layout": plain(plan.layout)}
    words = json.dumps(made, sort_keys=True, default=str)
    drafts = plan.folder / f"{DRAFTS}{plan.shard.part}"
    writer = _Writer(plan.folder, plan.layout, drafts, sha256(words.encode()).hexdigest(), words)
    jobs, failures = plan.jobs[plan.shard.number - 1 :: plan.shard.of], list[Failure]()
    with Manifest(plan.folder, plan.shard) as manifest, _without(drafts):
        known = manifest.done(writer.config, jobs)
        todo = [job for job in jobs if job.name not in known]
        manifest.add({"run": writer.config, "made": json.loads(words), "versions": _versions(), "videos": len(todo)})
        estimate = Estimate([_size(job.path) for job in todo])

        def tell() -> None:
            if progress:
                progress(FeatureProgress(estimate.num_done, len(todo), estimate.seconds_left()))

        def read(index: int, seconds: float, total: float | None) -> None:
            estimate.read(index, seconds / total if total else 0.0)
            tell()

        for index, row in rows(todo, writer, read):
            manifest.add(row)
            failed = row["status"] == "failed"
            failures += [Failure(row["source"], row["error"])] if failed else []
            estimate.finished(index, failed=failed)
            tell()
        collected = _collected(plan, manifest, writer, jobs)
    return FeatureRun(len(todo) - len(failures), len(known), tuple(failures), collected)


@contextmanager
def _without(drafts: Path) -> Iterator[None]:
    """Remove the drafts of a run that was killed, and those of this one however it ends: a full disk needs the room."""
    shutil.rmtree(drafts, ignore_errors=True)
    try:
        yield
    finally:
        shutil.rmtree(drafts, ignore_errors=True)


def _collected(plan: _Plan, manifest: Manifest, writer: _Writer, jobs: Sequence[Job]) -> tuple[str, ...]:
    """Put all videos into one file, unless that has been done with the same features."""
    done = manifest.done(writer.config, jobs) if plan.layout.collected else {}
    if not done:
        return ()
    made = sorted((name, line["time"]) for name, line in done.items())  # a video that is done anew has another time
    contents = sha256(repr((writer.config, made)).encode()).hexdigest()
    for row in manifest.rows():
        if row.get("collected") == contents and all(map(os.path.exists, (plan.folder / file for file in row["files"]))):
            return tuple(row["files"])
    parts = {name: list(line["files"]) for name, line in done.items()}
    files = collect(plan.folder, parts, plan.layout, part=plan.shard.part, drafts=writer.drafts)
    manifest.add({"collected": contents, "files": files})
    return tuple(files)


def _check_layout(extractor: Extractor, layout: FeatureLayout) -> None:
    two = len(extractor.networks) > 1 and not layout.join
    faults = ["two streams under one name"] * (two and "{stream}" not in layout.name)
    faults += [f"axes {layout.axes} with pool {extractor.options.pool}"] * (
        layout.axes in {"columns", "grid"} and extractor.options.pool != "mean"
    )
    if faults:
        raise InflateError(
            "the layout does not fit the features",
            where="features",
            expected="{stream} in the name of two streams that are not joined; pool mean for columns and grid",
            got=", ".join(faults) + f" (name {layout.name!r})",
            fix="--name '{stem}_{stream}', or --join",
        )
    if layout.collected == "hdf5":
        import_h5py()  # it is used at the end, when all videos are done


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # it will be told when it is read
        return 0


def _versions() -> dict[str, str]:
    return {package: version(package) for package in ("inflate3d", "torch", "numpy", "av")}
