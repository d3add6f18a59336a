"""The command `inflate3d`: one file for each subcommand; it parses, calls the API, prints."""

import sys

import typer
from rich.console import Console

from inflate3d.cli import demo, predict, weights
from inflate3d.errors import InflateError

app = typer.Typer(
    name="inflate3d",
    help="Turn 2D image networks into 3D ones, provably; and use I3D: weights, predictions.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("predict")(predict.predict)
app.command("demo")(demo.demo)
app.add_typer(weights.app, name="weights")


def main() -> None:
    """Run the command line; a mistake of the user ends in four lines and exit code 2, Ctrl-C in exit code 130."""
    try:
        app()
    except InflateError as error:
        Console(stderr=True).print(str(error), style="red", markup=False, highlight=False)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
