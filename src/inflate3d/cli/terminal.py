"""What commands share at the terminal: bars, warnings above them, and rates as they are typed."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console

from inflate3d.errors import InflateError, InflateWarning

if TYPE_CHECKING:
    from rich.progress import Progress as ProgressBar

    from inflate3d.clips.video import Rate


def progress_on(console: Console) -> "ProgressBar":
    """Make a bar that vanishes when it is done."""
    from rich import progress

    columns = (progress.TextColumn("{task.description}"), progress.BarColumn(), progress.TimeRemainingColumn())
    return progress.Progress(*columns, console=console, transient=True)


@contextmanager
def warnings_on(console: Console) -> Iterator[None]:
    """Print warnings above the progress bar instead of through it, each of them."""

    def show(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
        console.print(f"{category.__name__}: {message}", style="yellow", markup=False, highlight=False)

    with warnings.catch_warnings():
        warnings.simplefilter("always", InflateWarning)
        warnings.showwarning = show
        yield


def frame_rate(fps: str, where: str = "inflate3d predict --fps") -> "Rate":
    """Read a rate as it is typed."""
    try:
        return "native" if fps == "native" else float(fps)
    except ValueError:
        raise InflateError(
            "the frame rate is no number",
            where=where,
            expected="a positive number, or native",
            got=repr(fps),
            fix="--fps 25, or --fps native",
        ) from None
