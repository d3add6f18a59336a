"""What commands share at the terminal: bars, warnings above them, typed options, rates, and where networks run."""

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from inflate3d.errors import InflateError, InflateWarning, check_choice

if TYPE_CHECKING:
    from rich.progress import Progress as ProgressBar

    from inflate3d.clips.video import Rate

CPU = "cpu"


def _known_device(name: str) -> str:
    """Refuse a device that this machine has not, and Apple's, which knows no float64."""
    if name != CPU:
        from torch import accelerator

        found = accelerator.current_accelerator(check_available=True)
        kinds = [found.type, *(f"{found.type}:{i}" for i in range(accelerator.device_count()))] if found else []
        kinds = [] if found and found.type == "mps" else kinds
        here = ", ".join([CPU, *kinds])
        expected = here if kinds else f"{CPU}: there is no other device here that can do it"
        check_choice(name, [CPU, *kinds], what="device", where="--device", expected=expected)
    return name


DeviceOption = Annotated[
    str,
    typer.Option("--device", callback=_known_device, help="Where networks, tvl1 and raft run: cpu, cuda, cuda:1."),
]


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


def typed_options(ctx: typer.Context) -> dict[str, str]:
    """Tell what was typed, by the names of the command's parameters, and how each is spelled."""
    spelled = {str(parameter.name): parameter.opts[0] for parameter in ctx.command.params}
    return {name: spelled[name] for name in spelled if _source_of(ctx, name) == "COMMANDLINE"}


def _source_of(ctx: typer.Context, name: str) -> str:
    return getattr(ctx.get_parameter_source(name), "name", "")


def refuse_idle(idle: Iterable[str], *, where: str, goes_with: str, got: str) -> None:
    """Refuse options that were typed and that nobody would look at.

    Raises:
        InflateError: There are some.
    """
    if names := ", ".join(idle):
        raise InflateError(
            "there are options that would change nothing",
            where=where,
            expected=f"{names} with {goes_with}",
            got=got,
            fix=f"leave {names} out",
        )


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
