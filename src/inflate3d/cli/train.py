"""`inflate3d train` and `inflate3d evaluate`: a recipe and a list of videos, or scans, to a network and its scores."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from math import isnan
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer
from rich.console import Console
from rich.markup import escape

from inflate3d.atomic import write_text
from inflate3d.cli.terminal import CPU, DeviceOption, progress_on, refuse_idle, typed_options, warnings_on
from inflate3d.clips.tables import read_list
from inflate3d.errors import InflateError, check_choice, import_extra

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import nn

    from inflate3d.clips.dataset import Listing, Sample
    from inflate3d.results.answering import Answers, EvaluateOptions
    from inflate3d.results.evaluate import Evaluation, Interval
    from inflate3d.results.volume_scores import MaskScores
    from inflate3d.train.recipe import Recipe, VolumeRecipe
    from inflate3d.train.run import Devices
    from inflate3d.train.volume_data import VolumeSplits

SPLITS = ("train", "val", "test")
CHECKPOINTS = ("best.ckpt", "last.ckpt")  # that a run leaves; others of that ending are other projects'
FOR_SCANS = ("nibabel", "monai")  # that all scans need; pydicom and pynrrd are asked for where a file wants them
# Options of `evaluate` that one kind of network alone knows
OF_VIDEOS = ("flow", "fusion", "root", "only", "number", "clips", "crops", "max_frames", "precision")
OF_SCANS = ("overlap",)
# Of both commands; typer wants each to list its own, so that their signatures are alike
DataOption = Annotated[
    Path,
    typer.Option(metavar="PATH", help="Folder of classes, table, or official lists; see docs/train.md."),
]
RootOption = Annotated[Path | None, typer.Option(metavar="FOLDER", help="Where the paths in the list begin.")]
OnlyOption = Annotated[list[str] | None, typer.Option(metavar="COLUMN=VALUE", help="Rows of a table to take.")]
NumberOption = Annotated[int, typer.Option(help="Of the official split of UCF-101 and HMDB-51: 1 to 3.")]
FoldOption = Annotated[int | None, typer.Option(help="Fold to test on; the others are learned from.")]
LabelsOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE", exists=True, dir_okay=False, help="All classes in order, one in each line."),
]
ValShareOption = Annotated[float, typer.Option(help="Part of the training held out to choose by, where none is named.")]


def train(
    recipe: Annotated[
        str,
        typer.Argument(
            help="finetune-small, linear-probe, paper-kinetics, paper-ucf101, flow, charades; for scans volume-segment "
            "and volume-classify."
        ),
    ],
    data: DataOption,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a value of the recipe; repeatable.")
    ] = None,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Checkpoints, logs and the page go there.")] = Path("run"),
    root: RootOption = None,
    only: OnlyOption = None,
    number: NumberOption = 1,
    fold: FoldOption = None,
    labels: LabelsOption = None,
    val_share: ValShareOption = 0.15,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint of the folder.")] = False,
    fetch: Annotated[bool, typer.Option("--fetch", help="Fetch the weights that the recipe starts from.")] = False,
    devices: Annotated[str, typer.Option(help="Devices of this machine: a number, or auto.")] = "auto",
    nodes: Annotated[int, typer.Option(help="Machines, under torchrun.")] = 1,
    strategy: Annotated[str, typer.Option(help="auto, ddp, fsdp, or another of Lightning's.")] = "auto",
) -> None:
    """Train a network, then show it the test videos or scans and write what it is worth."""
    _need("train", "lightning", "torchmetrics", "tensorboard", where="inflate3d train")
    from inflate3d.clips.dataset import make_splits
    from inflate3d.train.recipe import Recipe, VolumeRecipe, with_settings
    from inflate3d.train.recipes import find_recipe
    from inflate3d.train.run import Devices, FitOptions, fit
    from inflate3d.weights.catalogue import CATALOGUE
    from inflate3d.weights.fetch import fetch as fetch_weights

    console = Console()
    chosen = with_settings(find_recipe(recipe), settings or [])
    if devices != "auto":
        check_choice(devices, map(str, range(1, 65)), what="number of devices", where="--devices", expected="1 to 64")
    if fetch and chosen.init in CATALOGUE:
        fetch_weights(chosen.init, report=console.print)
    where = replace(Devices(), nodes=nodes, strategy=strategy)
    where = where if devices == "auto" else replace(where, count=int(devices))
    if isinstance(chosen, VolumeRecipe):
        idle = {"--root": root, "--only": only, "--number": number != 1, "--fetch": fetch}
        if any(idle.values()):
            raise InflateError(
                "there are options for another kind of recipe",
                where=f"inflate3d train {recipe}",
                expected="--data, --set, --out, --fold, --labels, --val-share, --resume and those of devices",
                got=", ".join(name for name, value in idle.items() if value),
                fix="leave them out; init=FILE names weights to start from",
            )
        _train_volumes(chosen, data, out, console, resume=resume, where=where, cut=(fold, val_share, _names_in(labels)))
        return
    assert isinstance(chosen, Recipe)
    with warnings_on(console):
        listing = _listing(data, root, only, number, _names_in(labels))
        splits = make_splits(listing, fold=fold, val_share=val_share)
        counts = ", ".join(f"{len(getattr(splits, name))} for {name}" for name in SPLITS)
        console.print(f"{len(splits.class_names)} classes; {counts}", markup=False, highlight=False)
        with _told(console) as tell:
            fitted = fit(chosen, splits, out, resume=resume, options=FitOptions(where, tell))
        console.print(f"{fitted.seconds:.0f} s; the network: {fitted.checkpoint}", markup=False, highlight=False)
        if splits.test:
            trained = _trained_on(where.tested_on, fitted.checkpoint)
            answers = _answers(trained, splits.test, console, weights=fitted.checkpoint, precision=chosen.precision)
            _show(answers, splits.train, console, out, history=fitted.history)


def _train_volumes(
    recipe: "VolumeRecipe",
    data: Path,
    out: Path,
    console: Console,
    *,
    resume: bool,
    where: "Devices",
    cut: tuple[int | None, float, list[str]],
) -> None:
    """Train on scans, and tell how good the network is on the test."""
    _need("volume", *FOR_SCANS, where=f"inflate3d train {recipe.name}")
    from inflate3d.train.run import FitOptions
    from inflate3d.train.volume_data import read_volume_splits
    from inflate3d.train.volumes import MODEL, fit_volumes

    fold, val_share, names = cut
    with warnings_on(console):
        # what is drawn is the same for every seed of the recipe, so that `evaluate` finds the same test
        found = read_volume_splits(data, recipe.task, fold=fold, val_share=val_share, class_names=names)
        splits = found.splits
        counts = ", ".join(f"{len(getattr(splits, name))} for {name}" for name in SPLITS)
        console.print(f"{', '.join(splits.class_names)}; {counts}", markup=False, highlight=False)
        fitted = fit_volumes(recipe, found, out, resume=resume, options=FitOptions(where))
        console.print(f"{fitted.seconds:.0f} s; the network: {out / MODEL}", markup=False, highlight=False)
        if splits.test:
            facts = {"weights": str(out / MODEL), "recipe": recipe.name, "network": recipe.network}
            shown = Shown(
                fitted.model.to(where.tested_on), found, {**facts, "overlap": str(recipe.overlap)}, fitted.history
            )
            (_show_classified if recipe.task == "classes" else _show_masks)(shown, console, out)


class Shown(NamedTuple):
    """A network for scans, what it is shown, and what a reader needs to repeat it."""

    model: "nn.Module"
    data: "VolumeSplits"
    facts: dict[str, str]
    history: Any = ()
    split: str = "test"

    @property
    def samples(self) -> "Sequence[Sample]":
        """The scans that are shown."""
        samples: Sequence[Sample] = getattr(self.data.splits, self.split)
        return samples


def _show_classified(shown: Shown, console: Console, out: Path) -> "Evaluation":
    from inflate3d.results.volume_scores import answer_scans, auc
    from inflate3d.train.volume_data import load_scan

    with _told(console) as tell:
        answers = answer_scans(
            shown.model, shown.samples, load_scan, progress=lambda done, of: tell(shown.split, done, of)
        )
    answers = replace(answers, settings={**shown.facts, **answers.settings})
    train = () if shown.split == "train" else shown.data.splits.train
    occurring = {sample.labels[0] for sample in answers.samples}
    more = {"auc": auc(answers)} if len(occurring) == answers.logits.shape[1] == 2 else {}
    return _show(answers, train, console, out, history=shown.history, more=more)


def _show_masks(shown: Shown, console: Console, out: Path) -> "MaskScores":
    from rich.table import Table

    from inflate3d.results.volume_scores import score_masks
    from inflate3d.results.volumes import VolumeOptions
    from inflate3d.train.volume_data import load_mask, load_scan

    with _told(console) as tell:
        masks = score_masks(
            shown.model,
            shown.samples,
            lambda path: (load_scan(path), load_mask(shown.data.masks[path])),
            options=VolumeOptions(float(shown.facts["overlap"])),
            progress=lambda done, of: tell(shown.split, done, of),
        )
    table = Table("part", "Dice", "95 % interval", box=None, pad_edge=False)
    for name, score in masks.scores().items():
        words = (f"{score.value:.3f}", f"{score.low:.3f} to {score.high:.3f}")
        table.add_row(name, *(("-", "in none of the scans") if isnan(score.value) else words))
    console.print(table)
    for failure in masks.failures:
        reason = failure.reason.partition("\n")[0]  # perhaps its mask lies elsewhere
        console.print(f"not read: {failure.source} ({reason})", markup=False, highlight=False)
    write_text(out / "evaluation.json", replace(masks, settings={**shown.facts, **masks.settings}).to_json())
    return masks


def _evaluate_scans(
    path: Path,
    data: Path,
    out: Path,
    *,
    cut: tuple[int | None, float, Path | None],
    split: str,
    overlap: float,
    device: str,
) -> "Evaluation | MaskScores":
    """Show labelled scans to the network of a file."""
    from inflate3d.results.volumes import spec_of
    from inflate3d.train.volume_data import read_volume_splits
    from inflate3d.weights.inflated_file import load_inflated

    console, model, (fold, val_share, labels) = Console(), load_inflated(path).to(device), cut
    task, names = spec_of(model).task, _names_of(path, spec_of(model).class_names, labels)
    with warnings_on(console):
        found = read_volume_splits(data, task, fold=fold, val_share=val_share, class_names=names)
        shown = Shown(model, found, {"weights": str(path), "overlap": str(overlap)}, split=split)
        if not shown.samples:
            raise InflateError(
                "there are no scans to show",
                where=f"inflate3d evaluate --split {split}",
                expected="a list with this split, or --fold",
                got=f"{data}: " + ", ".join(f"{len(getattr(found.splits, one))} for {one}" for one in SPLITS),
                fix="--fold 0, or another --split",
            )
        return (_show_classified if task == "classes" else _show_masks)(shown, console, out)


def evaluate(
    ctx: typer.Context,
    checkpoint: Annotated[
        Path, typer.Argument(help="best.ckpt or last.ckpt of a run; model.safetensors of one on scans.")
    ],
    data: DataOption,
    flow: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Checkpoint of another stream, whose answers are joined.")
    ] = None,
    fusion: Annotated[str, typer.Option(help="probabilities, their mean; or logits, their sum.")] = "probabilities",
    split: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    root: RootOption = None,
    only: OnlyOption = None,
    number: NumberOption = 1,
    fold: FoldOption = None,
    labels: LabelsOption = None,
    val_share: ValShareOption = 0.15,
    clips: Annotated[int, typer.Option(help="Windows spread over each video; 0 shows it whole.")] = 0,
    crops: Annotated[str, typer.Option(help="center, three, five or ten.")] = "center",
    max_frames: Annotated[int, typer.Option(help="Of a video that is shown whole.")] = 250,
    precision: Annotated[str, typer.Option(help="fp32 or bf16.")] = "fp32",
    overlap: Annotated[float, typer.Option(help="Of windows over a scan, as a share of a side.")] = 0.5,
    device: DeviceOption = CPU,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where report.html goes, and JSON.")] = Path("evaluation"),
) -> None:
    """Show labelled videos, or scans, to a trained network: accuracies with intervals, confusions, mistakes; Dice.

    Exit code 1 says that some could not be read; the figures are of the others.
    """
    scans, typed = checkpoint.suffix == ".safetensors", typed_options(ctx)
    idle = [typed[name] for name in typed if name in (OF_VIDEOS if scans else OF_SCANS)]
    kinds = ("a network for videos (.ckpt)", "one for scans (.safetensors)")
    refuse_idle(idle, where="inflate3d evaluate", goes_with=kinds[not scans], got=str(checkpoint))
    check_choice(split, SPLITS, what="split", where="inflate3d evaluate --split")
    _need("train", "lightning", "torchmetrics", where="inflate3d evaluate")
    from inflate3d.clips.dataset import make_splits
    from inflate3d.results.answering import EvaluateOptions, fuse

    found: Evaluation | MaskScores
    if scans:
        found = _evaluate_scans(
            checkpoint, data, out, cut=(fold, val_share, labels), split=split, overlap=overlap, device=device
        )
    else:
        check_choice(fusion, ("probabilities", "logits"), what="fusion", where="inflate3d evaluate --fusion")
        console = Console()
        options = EvaluateOptions(clips, crops, max_frames, precision)  # type: ignore[arg-type]  # it checks them
        with warnings_on(console):
            trained = _trained_on(device, checkpoint)
            names = _names_of(checkpoint, trained[0].class_names, labels)
            splits = make_splits(_listing(data, root, only, number, names), fold=fold, val_share=val_share)
            samples = getattr(splits, split)
            answers = _answers(trained, samples, console, weights=checkpoint, options=options)
            if flow is not None:
                others = _answers(_trained_on(device, flow), samples, console, weights=flow, options=options)
                answers = fuse(answers, others, fusion)  # type: ignore[arg-type]  # checked above
            found = _show(answers, () if split == "train" else splits.train, console, out)
    if found.failures:
        raise typer.Exit(1)


def load_any(name: str) -> "nn.Module":
    """Load a network by name or file, or that of a training run on videos."""
    if Path(name).name in CHECKPOINTS:
        import_extra("lightning", "train", where=name)
        from inflate3d.train.checkpoint import load_trained

        return load_trained(name)[0]
    from inflate3d.weights.load import load

    return load(name)


def _need(extra: str, *packages: str, where: str) -> None:
    """Find out before long work, and before a file is blamed, whether an extra is installed."""
    for package in packages:
        import_extra(package, extra, where=where)


def _names_in(labels: Path | None) -> list[str]:
    """Read the names of classes, one in each line."""
    lines = read_list(labels).splitlines() if labels else []
    return [line.strip() for line in lines if line.strip()]


def _names_of(weights: Path, known: Any, labels: Path | None) -> "Sequence[str]":
    """Give the classes of a trained network in its order, which numbers its answers; a list cannot name others."""
    names = _names_in(labels)
    if names and names != list(known):
        raise InflateError(
            "the network has other classes",
            where=str(weights),
            expected=", ".join(known),
            got=f"{', '.join(names)} in {labels}",
            fix="leave --labels out: the network knows its classes",
        )
    return tuple(known)


def _listing(data: Path, root: Path | None, only: list[str] | None, number: int, names: "Sequence[str]") -> "Listing":
    from inflate3d.clips.dataset import read_listing

    wrong = [pair for pair in only or [] if "=" not in pair]
    if wrong:
        raise InflateError(
            "a choice of rows cannot be understood",
            where="--only",
            expected="COLUMN=VALUE",
            got=", ".join(wrong),
            fix="--only dataset=tennis",
        )
    chosen = dict(pair.split("=", 1) for pair in only or [])
    return read_listing(data, root=root, only=chosen, number=number, class_names=names)


def _trained_on(device: str, path: Path) -> "tuple[nn.Module, Recipe]":
    from inflate3d.train.checkpoint import load_trained

    model, recipe = load_trained(path)
    return model.to(device), recipe


def _answers(
    trained: "tuple[nn.Module, Recipe]",
    samples: "Sequence[Sample]",
    console: Console,
    *,
    weights: Path,
    precision: str = "fp32",
    options: "EvaluateOptions | None" = None,
) -> "Answers":
    """Show videos to a trained network, as its recipe says."""
    from inflate3d.clips.decoded import Window
    from inflate3d.results.answering import EvaluateOptions, answer_samples
    from inflate3d.train.data import decoding_of

    model, recipe = trained
    how = decoding_of(recipe, None)
    window = Window(recipe.num_frames, recipe.frame_step, recipe.crop)
    options = options or EvaluateOptions(precision=precision)  # type: ignore[arg-type]  # it checks it
    with _told(console) as tell:
        answers = answer_samples(
            model, samples, how, window=window, options=options, progress=lambda done, of: tell("test", done, of)
        )
    facts = {"weights": str(weights), "recipe": recipe.name, "network": recipe.network, "stream": recipe.stream}
    return replace(answers, settings={**facts, **answers.settings}, several=recipe.task != "classes")


def _show(
    answers: "Answers",
    train: "Sequence[Sample]",
    console: Console,
    out: Path,
    *,
    history: Any = (),
    more: "Mapping[str, Interval]" = MappingProxyType({}),
) -> "Evaluation":
    from inflate3d.results.evaluate import evaluate
    from inflate3d.show.evaluation import scores_of, write_evaluation

    found = evaluate(answers, train=train)
    found = replace(found, scores={**found.scores, **more})
    console.print(scores_of(found))
    for failure in found.failures:
        console.print(f"not read: {failure.source}", markup=False, highlight=False)
    page = out / "report.html"
    write_evaluation(page, found, history=history)
    write_text(out / "evaluation.json", found.to_json())
    console.print(f"The page: {page}", markup=False, highlight=False)
    return found


@contextmanager
def _told(console: Console) -> "Iterator[Callable[[str, int, int], None]]":
    """Show how far a long step is."""
    bars = progress_on(console)
    tasks: dict[str, Any] = {}

    def tell(what: str, done: int, total: int) -> None:
        if what not in tasks:
            bars.start()
            tasks[what] = bars.add_task(escape(what), total=total)
        bars.update(tasks[what], completed=done + 1)
        if done + 1 >= total:  # at once, since the bar of the training itself follows
            bars.remove_task(tasks.pop(what))
            bars.stop()

    try:
        yield tell
    finally:
        bars.stop()
