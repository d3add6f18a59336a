"""`inflate3d demo`: fetch the network and a clip, and see what the one says of the other."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from inflate3d.cli.predict import Outputs, show_predictions

MODEL = "i3d-kinetics400"


def demo(
    report: Annotated[Path, typer.Option(metavar="FILE", help="Where the page goes.")] = Path("demo/report.html"),
) -> None:
    """Fetch I3D and a real clip (47 and 9 MB, once), name the actions in it, and write a report page."""
    from inflate3d.results.network import PredictOptions
    from inflate3d.weights.fetch import fetch, fetch_demo_clip

    console = Console()
    fetch(MODEL, report=console.print)
    clip = fetch_demo_clip(report=console.print)
    options = PredictOptions(stride=16, key_frames=True)
    if show_predictions([str(clip)], MODEL, options, top=5, outputs=Outputs(report=report)):
        raise typer.Exit(1)
    console.print(f"The page: {report}")
