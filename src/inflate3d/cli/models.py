"""`inflate3d models`: the networks of the zoo, what they cost and what is reported about them."""

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from inflate3d.models.zoo import Network

TABLE_WIDTH = 88  # characters: names and figures are not cut in a narrow terminal or a pipe

Name = Annotated[str | None, typer.Argument(help="A name from the list, for all that is known about this network.")]


def models(name: Name = None) -> None:
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
