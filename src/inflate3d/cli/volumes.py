"""`inflate3d predict` on volumes: classes, or masks with pictures of them, in a folder; JSON."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer
from rich.console import Console
from rich.markup import escape

from inflate3d.atomic import check_writable, write_text
from inflate3d.cli.terminal import CPU, typed_options
from inflate3d.errors import InflateError

if TYPE_CHECKING:
    from inflate3d.results.prediction import Failure
    from inflate3d.results.volumes import VolumeOptions, VolumePrediction

OutOption = Annotated[
    Path, typer.Option("--out", "-o", metavar="FOLDER", help="Volumes: masks, their pictures and JSON go there.")
]
OverlapOption = Annotated[float, typer.Option(help="Volumes: of windows, as a share of their length.")]
SpacingOption = Annotated[
    str | None, typer.Option(metavar="MM,MM,MM", help="Volumes: of the axes as stored, where files do not say it.")
]
FillOption = Annotated[float | None, typer.Option(help="Volumes: stands for values that are no numbers.")]
PartOption = Annotated[
    str | None, typer.Option(help="Volumes: which one, where a file or folder holds several: number or name.")
]
OF_VOLUMES = ("out", "overlap", "spacing", "fill", "part")
OF_BOTH = ("paths", "model", "batch_size", "device", "top", "json")
RESULTS = "results.json"


class VolumeOutputs(NamedTuple):
    """Where the results go besides the terminal."""

    folder: Path = Path("volumes")
    json: Path | None = None
    top: int = 5


def is_asked(ctx: typer.Context, model: str) -> bool:
    """Whether a model is a file with a network for volumes; refuses options that such a network, or others, ignore."""
    path, volumes = Path(model), False
    if path.suffix == ".safetensors" and path.is_file():
        from inflate3d.weights.inflated_file import inflated_card

        card = inflated_card(path)
        volumes = card is not None and card.volume is not None
    idle = [name for name in typed_options(ctx) if name not in OF_BOTH and (name in OF_VOLUMES) != volumes]
    if idle:
        raise InflateError(
            "there are options for another kind of network",
            where="inflate3d predict",
            expected=f"a network for {'videos' if volumes else 'volumes'} with {', '.join(idle)}",
            got=f"one for {'volumes' if volumes else 'videos'}, {model}",
            fix="leave them out, or name another network with --model",
        )
    return volumes


def options_of(
    overlap: float, batch_size: int | None, spacing: str | None, fill: float | None, part: str | None
) -> "VolumeOptions":
    """Read what is typed."""
    from inflate3d.results.volumes import VolumeOptions

    try:
        sizes = tuple(map(float, spacing.split(","))) if spacing else None
    except ValueError:
        raise InflateError(
            "the spacing cannot be understood",
            where="inflate3d predict --spacing",
            expected="three numbers of millimeters, one for each axis as it is stored",
            got=repr(spacing),
            fix="--spacing 2.5,0.8,0.8",
        ) from None
    named = int(part) if part and part.isdecimal() else part
    return VolumeOptions(overlap, 1 if batch_size is None else batch_size, sizes, fill, named)  # type: ignore[arg-type]  # read_volume counts


def show_volumes(
    paths: Sequence[str], model: str, options: "VolumeOptions", *, outputs: VolumeOutputs, device: str = CPU
) -> "list[Failure]":
    """Predict, write and print; what is done is written even if the run is stopped. Gives back what failed."""
    from inflate3d.cli.predict import STDOUT
    from inflate3d.cli.terminal import progress_on, warnings_on
    from inflate3d.clips.volume_files import find_volumes
    from inflate3d.results.prediction import Failure, printable
    from inflate3d.results.volumes import facts_of, predict_volumes, volumes_json
    from inflate3d.show.answers import failures_table
    from inflate3d.weights.inflated_file import load_inflated

    console = Console(stderr=outputs.json == STDOUT)
    json = outputs.json or outputs.folder / RESULTS
    if json != STDOUT:
        check_writable(json)
    sources = find_volumes(paths)
    done: list[dict[str, Any]] = []
    failures: list[Failure] = []
    names = set[str]()
    try:
        with progress_on(console) as bars, warnings_on(console):
            task = bars.add_task("", total=len(sources))

            def start(name: str, number: int, total: int) -> None:
                text = f"{number + 1}/{total} {Path(name).name}"
                bars.update(task, description=escape(text), completed=number)

            for answer in predict_volumes(load_inflated(model).to(device), sources, options, progress=start):
                if isinstance(answer, Failure):
                    failures.append(answer)
                else:
                    mask = _show(answer, outputs, names, console)
                    done.append({**facts_of(answer), **({"mask": printable(mask)} if mask else {})})
    finally:
        if failures:
            console.print(failures_table(failures))
        text = volumes_json(done, failures, settings=_settings(model, options))
        typer.echo(text, nl=False) if json == STDOUT else write_text(json, text)
    return failures


def _show(answer: "VolumePrediction", outputs: VolumeOutputs, names: set[str], console: Console) -> str | None:
    """Print what the network says; write a mask and its picture. Gives back the name of the mask, if there is one."""
    from inflate3d.clips.volume_files import write_volume
    from inflate3d.show.flow import write_png
    from inflate3d.show.volumes import overlay, size_text, volume_table

    console.print(f"\n{answer.source}", style="bold", markup=False, highlight=False)
    console.print(volume_table(answer, outputs.top))
    if answer.scan is not None:
        console.print(size_text(answer.scan), style="dim", highlight=False)
    if answer.mask is None:
        return None
    name, suffix = _name_of(Path(answer.source), names)
    mask = outputs.folder / f"{name}_mask{suffix}"
    write_volume(mask, answer.mask)
    write_png(outputs.folder / f"{name}_mask.png", overlay(answer))
    console.print(f"The mask: {mask}", markup=False, highlight=False)
    return mask.name


def _settings(model: str, options: "VolumeOptions") -> dict[str, str]:
    from importlib.metadata import version

    from inflate3d.results.prediction import printable

    chosen = {name: str(value) for name, value in vars(options).items() if value is not None}
    return {"model": printable(model), **chosen, "inflate3d": version("inflate3d"), "torch": version("torch")}


def _name_of(source: Path, taken: set[str]) -> tuple[str, str]:
    """Name the files of a scan, each by a name of its own."""
    from inflate3d.clips.stills import named

    lower = source.name.lower()
    suffix = ".nrrd" if lower.endswith((".nrrd", ".nhdr")) else ".nii.gz"
    ends = [end for end in (".nii.gz", ".nii", ".nrrd", ".nhdr", ".npz", ".npy", ".dcm") if lower.endswith(end)]
    stem = named(source).name
    stem = stem[: -len(ends[0])] if ends else stem
    name, number = stem, 1
    while name in taken:
        number += 1
        name = f"{stem}-{number}"
    taken.add(name)
    return name, suffix
