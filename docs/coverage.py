"""Inflate models of every family and test them on still clips: `make coverage` writes coverage.json and coverage.md.

Each model has a process of its own, bounded in time and memory. A run that is stopped goes on where it was; rows that
another state of the engine gave are tested again. Weights are random, and every parameter that starts as a constant
(scales of zero or one) is made random too, so that nothing hides behind a zero.
"""

import argparse
import ast
import hashlib
import json
import multiprocessing
import os
import re
import resource
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
import transformers
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from inflate3d import InflateError, Plan, build, make_plan
from inflate3d.atomic import replacing
from inflate3d.inflation import pictures
from inflate3d.inflation.proof import Check, still_float32, still_float64
from inflate3d.models.sources import example_shape, find_2d_model

HERE = Path(__file__).parent
RESULTS = HERE / "coverage.json"
# By preset: the models, one a line with options of their builders, and the lengths of the clips
MODELS = {
    "video": HERE / "coverage_models.txt",
    "i3d": HERE / "coverage_i3d.txt",
    "isotropic": HERE / "coverage_isotropic.txt",
}
LENGTHS = {"video": (1, 5, 8), "i3d": (1, 5, 8, 32), "isotropic": (1, 5, 32)}
# Tried first: quick, and no two axes of a clip are equally long
SMALL_PICTURE = (96, 128)
SHOWN = 150  # letters of a message
SENSITIVE = 1e-4  # part of an answer by which the answers to two pictures have to differ
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef)
OUTCOMES = ("exact", "trivial", "refused", "different", "broken", "not tested")

Row = dict[str, Any]
Rows = dict[str, dict[str, Row]]


@dataclass(frozen=True)
class Job:
    """A model to test with a preset: options of its builder, and a picture `[h, w]` where the usual one does not do."""

    preset: str
    name: str
    options: dict[str, Any]
    picture: list[int] | None = None


def main() -> None:
    """Test what is not tested yet, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="that run at a time, a thread each")
    parser.add_argument("--memory-gb", type=float, default=round(0.7 * ram_gb()), help="that one process may take")
    parser.add_argument("--minutes", type=float, default=10.0, help="that one model may take")
    parser.add_argument("--only", default="", help="regular expression of names to test, again if they have a row")
    parser.add_argument("--keep", action="store_true", help="keep the rows that another state of the engine gave")
    options = parser.parse_args()
    torch.set_num_threads(1)
    state, rows = engine(), known_rows()
    jobs = [job for job in all_jobs() if wanted(job, rows, options, state)]
    for number, (job, row) in enumerate(run_all(jobs, options), start=1):
        rows[job.preset][job.name] = {**row, "engine": state}
        what = f"{row['outcome']}, {row.get('reason') or format(row['error'], '.0e')}, {row['seconds']} s"
        print(f"{number}/{len(jobs)} {job.name}, {job.preset}: {what}", flush=True)
        with replacing(RESULTS) as draft:
            draft.write_text(json.dumps(in_order(rows), indent=1) + "\n")
    with replacing(HERE / "coverage.md") as draft:
        draft.write_text(page(in_order(rows)), encoding="utf-8")


def ram_gb() -> float:
    """Memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9


def engine() -> str:
    """Name the state of the engine's code and of this file's, whatever their comments and docstrings say."""
    files = [*sorted((HERE.parent / "src" / "inflate3d" / "inflation").glob("*.py")), Path(__file__)]
    trees = [ast.parse(file.read_bytes()) for file in files]
    for node in (node for tree in trees for node in ast.walk(tree)):
        words = ast.get_docstring(node, clean=False) if isinstance(node, DOCUMENTED) else None
        if words is not None:
            node.body = node.body[1:]
    return hashlib.sha256("".join(map(ast.dump, trees)).encode()).hexdigest()[:16]


def known_rows() -> Rows:
    """Read the rows of earlier runs."""
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    return {preset: found.get(preset, {}) for preset in MODELS}


def in_order(rows: Rows) -> Rows:
    """Put the rows in the order of the lists; names that left the lists go."""
    ordered: Rows = {preset: {} for preset in MODELS}
    for job in all_jobs():
        if job.name in rows[job.preset]:
            ordered[job.preset][job.name] = rows[job.preset][job.name]
    return ordered


def all_jobs() -> list[Job]:
    """Read the lists: on each line a name and options, such as `img_size=96` for the builder, or `picture=[96,64]`."""
    jobs = []
    for preset, file in MODELS.items():
        for line in file.read_text().splitlines():
            name, *words = line.split()
            options = {key: json.loads(value) for key, _, value in (word.partition("=") for word in words)}
            picture = options.pop("picture", None)
            jobs.append(Job(preset, name, options, picture))
    return jobs


def wanted(job: Job, rows: Rows, options: argparse.Namespace, state: str) -> bool:
    """Whether a model is to be tested now."""
    if options.only:
        return bool(re.search(options.only, job.name))
    row = rows[job.preset].get(job.name, {"outcome": "not tested"})
    return row["outcome"] == "not tested" or (row.get("engine") != state and not options.keep)


def run_all(jobs: list[Job], options: argparse.Namespace) -> Iterator[tuple[Job, Row]]:
    """Test the models, some at a time, and give the rows as they come."""
    fork = multiprocessing.get_context("fork")  # the imports are shared
    waiting, running = list(jobs), dict[Connection, tuple[ForkProcess, Job, float]]()
    while waiting or running:
        while waiting and len(running) < options.processes:
            here, there = fork.Pipe(duplex=False)
            process = fork.Process(target=run_one, args=(waiting[0], options.memory_gb, there))
            process.start()
            there.close()
            running[here] = process, waiting.pop(0), time.perf_counter()
        ready = wait(list(running), timeout=1)
        for connection, (process, job, start) in list(running.items()):
            seconds = time.perf_counter() - start
            if connection in ready:
                try:
                    row = connection.recv()
                except EOFError:
                    process.join()
                    row = {"outcome": "not tested", "reason": f"its process ended with code {process.exitcode}"}
            elif seconds > 60 * options.minutes:
                process.kill()
                row = {"outcome": "not tested", "reason": f"it takes more than {options.minutes:g} minutes"}
            else:
                continue
            process.join()
            del running[connection]
            yield job, {**row, "seconds": round(seconds, 1)}


def run_one(job: Job, memory_gb: float, answer: Connection) -> None:
    """Test one model, in a process of its own."""
    limit = int(memory_gb * 1e9)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    try:
        row = examine(job)
    except Exception as error:
        if isinstance(error, MemoryError) or "allocate memory" in str(error):
            row = {"outcome": "not tested", "reason": f"it takes more than {memory_gb:g} GB"}
        else:
            row = {"outcome": "broken", "reason": f"{type(error).__name__}: {' '.join(str(error).split())[:SHOWN]}"}
    answer.send(row)


def examine(job: Job) -> Row:
    """Plan, build and test one model."""
    try:
        model2d = find_2d_model(job.name, **job.options)
    except InflateError as error:
        if "allocate memory" in error.got:
            raise
        return {"outcome": "not tested", "reason": f"{error.problem}: {error.got[:SHOWN]}"}
    no_constants(model2d)
    facts: Row = {"family": family(job.name), "parameters": sum(p.numel() for p in model2d.parameters())}
    try:
        plan = plan_of(model2d, job)
        facts |= {
            "picture": list(plan.input_shape),
            "layers_through_time": sum(layer.looks_through_time for layer in plan),
            "left": [f"{layer.path}: {layer.reason}" for layer in plan if layer.reason and layer.kernel],
        }
        three = pictures.pictures_like(model2d, plan.input_shape)
        two = three[:2]
        if not depends_on_the_picture(model2d, two):
            revive(model2d, three)
        check = checked(model2d, plan, two)
        if not check.holds and norms_of(model2d):  # a signal that grows by layers amplifies float64 too
            revive(model2d, three.double())
            check = checked(model2d, plan, two)
    except InflateError as error:
        if "allocate memory" in error.got:
            raise
        return {**facts, "outcome": "refused", "reason": f"{error.problem}: {error.got[:SHOWN]}"}
    trivial = not plan.looks_through_time
    outcome = ("trivial" if trivial else "exact") if check.holds else "different"
    return {**facts, "outcome": outcome, "error": check.error, "allowed": check.limit}


def checked(model2d: nn.Module, plan: Plan, two: Tensor) -> Check:
    """Compare on still clips in float32, and in float64 where random weights amplify rounding; it stays so then."""
    lengths = LENGTHS[plan.preset]
    if next(model2d.parameters()).dtype == torch.float32:
        check = still_float32(model2d, build(plan, model2d), two, lengths=lengths)
        if check.holds:
            return check
    model2d = model2d.double()
    return still_float64(model2d, build(plan, model2d), two.double(), lengths=lengths)


def plan_of(model2d: nn.Module, job: Job) -> Plan:
    """Plan with a small picture; with one of the model's own size where it takes no other, and for strides in time."""
    channels, *own = example_shape(model2d, job.name)
    sides = job.picture or (SMALL_PICTURE if job.preset == "video" else own)
    try:
        return make_plan(model2d, job.preset, example=torch.zeros(1, channels, *sides))
    except InflateError as error:
        if "cannot be run on a picture" not in error.problem:
            raise
    return make_plan(model2d, job.preset, example=torch.zeros(1, channels, *own))


def family(name: str) -> str:
    """Name the file of timm or torchvision, or the model type of transformers, that a model comes from."""
    source, _, rest = name.partition("/")
    if source == "timm":
        return str(timm.models.model_entrypoint(rest).__module__.rpartition(".")[2])
    if source == "torchvision":
        return str(torchvision.models.get_model_builder(rest).__module__.rpartition(".")[2])
    return rest.partition("-")[0]


def no_constants(model: nn.Module) -> None:
    """Give statistics, scales and whatever else starts as a constant values of its own."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for norm in norms_of(model):
            norm.running_mean.copy_(torch.randn(norm.running_mean.shape, generator=generator) * 0.1)
            norm.running_var.copy_(torch.rand(norm.running_var.shape, generator=generator) + 0.5)
        for parameter in model.parameters():
            if parameter.numel() > 1 and parameter.min() == parameter.max():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)


def revive(model: nn.Module, three: Tensor) -> None:
    """Mend a model in which signals die away (transformers draws all weights with the same small deviation).

    Small kernels and scales become larger, and batch norms get the statistics of pictures.

    Raises:
        RuntimeError: Still the answers to two pictures are the same: they would prove nothing.
    """
    norms = norms_of(model)
    momenta = [norm.momentum for norm in norms]
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d) and isinstance(module.weight, nn.Parameter):
                module.weight *= max(1, module.weight[0].numel() ** -0.5 / float(module.weight.std()))
        for norm in norms:
            norm.train().momentum = 1.0
            if norm.affine and norm.weight.abs().mean() < 0.05:
                norm.weight.copy_(torch.linspace(0.5, 1.5, len(norm.weight)))
        model(three)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.eval().momentum = momentum
            norm.running_var.clamp_(min=float(norm.running_var.mean()) / 10)  # a dead channel would amplify rounding
    if not depends_on_the_picture(model, three[:2]):
        raise RuntimeError("the answer does not depend on the picture")


def norms_of(model: nn.Module) -> list[Any]:
    """Name the batch norms with statistics."""
    norms = [part for part in model.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    return [norm for norm in norms if norm.running_mean is not None]


def depends_on_the_picture(model: nn.Module, two: Tensor) -> bool:
    """Whether the answers to two pictures differ; else they would prove nothing."""
    with torch.no_grad():
        leaves = [leaf for leaf in tree_leaves(model(two)) if isinstance(leaf, Tensor) and leaf.ndim > 0]
    return any((leaf[0] - leaf[1]).abs().max() > SENSITIVE * leaf.abs().max() for leaf in leaves)


PAGE = """# Coverage

Models of every model file of timm {timm}, all classifiers and segmentation networks of torchvision {torchvision},
the image classifiers of Hugging Face's transformers {transformers}, and every decoder of segmentation_models_pytorch:
inflated, and asked about still clips in batches of two, in float32. Every frame has to be answered as the 2D model
answers the picture: relative error at most 1e-5, or five times what the 2D model itself differs by between batches of
1 and 10; where random weights amplify rounding beyond that, at most 1e-9 in float64, if need be with batch norms that
keep the signal from growing.

- **Exact**: so it is, and layers look through time.
- **Trivial**: so it is, but nothing looks through time, because the model has patchify and 1x1 convolutions only.
  `inflate` refuses it with the preset `video` and says what would give it time.
- **Refused**: the model cannot be inflated, and the error says why.
- **Different**: an answer differs. **Broken**: an error that is none of ours.

Weights are random, and no parameter is left a constant. Of timm there are the smallest model of each file, whatever
others it takes to have every class of block and every setting of a convolution or pool, and more small ones; of
transformers there is the default of each type. Pictures are {small} pixels where the model takes them and there are no
strides in time, with the preset isotropic squares of 64, 96 or 128, else of the model's own size. Made by
`make coverage`.

{summary}

## Preset video: clips of 1, 5 and 8 frames

{video}

## Preset i3d, with strides in time: clips of 1, 5, 8 and 32 frames

{i3d}

## Preset isotropic, with the strides of space: clips of 1, 5 and 32 frames

{isotropic}
"""


def page(rows: Rows) -> str:
    """Write the page."""
    versions = {module.__name__: module.__version__.partition("+")[0] for module in (timm, torchvision, transformers)}
    tables = {preset: table(found) for preset, found in rows.items()}
    return PAGE.format(**versions, **tables, small="x".join(map(str, SMALL_PICTURE)), summary=summary(rows))


def summary(rows: Rows) -> str:
    """Count families and outcomes by preset and source."""
    lines = ["| preset | source | families | models | " + " | ".join(OUTCOMES) + " |", "|" + "---|" * 10]
    for preset, found in rows.items():
        sources: dict[str, list[Row]] = {}
        for name, row in found.items():
            sources.setdefault(name.partition("/")[0], []).append({"family": family(name), **row})
        for source, of_source in sources.items():
            families = len({row["family"] for row in of_source})
            counts = [sum(row["outcome"] == outcome for row in of_source) for outcome in OUTCOMES]
            cells = [preset, source, families, len(of_source), *counts]
            lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def table(found: dict[str, Row]) -> str:
    """List the models."""
    titles = ("model", "family", "picture", "outcome", "layers through time", "relative error, or reason")
    lines = ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
    for name, row in found.items():
        remark = f"{row['error']:.0e}" if "error" in row else " ".join(row["reason"].replace("|", "/").split())
        if row.get("left"):
            reasons = sorted({reason.partition(": ")[2] for reason in row["left"]})
            remark += f"; {len(row['left'])} left per frame: {', '.join(reasons)}"
        size = "x".join(map(str, row.get("picture", [])[1:]))
        cells = [name, row.get("family", ""), size, row["outcome"], row.get("layers_through_time", ""), remark]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
