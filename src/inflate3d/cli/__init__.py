"""The command `inflate3d`: one file for each group of subcommands; it parses, calls the API, prints."""

import io
import sys
from typing import Annotated

import typer
from rich.console import Console

from inflate3d import __version__
from inflate3d.cli import export, features, flow, fvd, inflate, page, predict, show, train, weights
from inflate3d.errors import InflateError

app = typer.Typer(
    name="inflate3d",
    help="Turn 2D image networks into 3D ones, provably; and use I3D: weights, predictions.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"inflate3d {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None: ...


# Each goes by the name of its function, in whose signature typer reads the options: likenesses of these are meant
for command in (
    *(predict.predict, predict.demo, features.features, flow.flow, fvd.fvd, train.train, train.evaluate),
    *(inflate.inflate, export.export, inflate.plan, inflate.prove, weights.models, page.app),
):
    app.command()(command)
app.add_typer(show.app, name="show")
app.add_typer(weights.app, name="weights")


def main() -> None:
    """Run the command line; a mistake of the user ends in four lines and exit code 2, Ctrl-C in exit code 130."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names of files may hold bytes that are no text
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except InflateError as error:
        Console(stderr=True, soft_wrap=True).print(str(error), style="red", markup=False, highlight=False)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
