"""`inflate3d predict --live`: what a camera, a stream or a pipe shows, now."""

import time
from contextlib import nullcontext
from typing import TYPE_CHECKING, NamedTuple

from rich.console import Console, Group
from rich.text import Text

from inflate3d.cli.terminal import CPU, warnings_on
from inflate3d.cli.train import load_any
from inflate3d.errors import InflateError

if TYPE_CHECKING:
    from inflate3d.clips.video import Rate
    from inflate3d.results.live import LiveAnswer
    from inflate3d.results.prediction import Score

LINE_SECONDS = 2.0  # between two lines, where no terminal shows a table


class LiveLook(NamedTuple):
    """How a live source is shown, to the network and to people."""

    fps: "Rate"
    precision: str
    patience_seconds: float
    top: int
    device: str = CPU


def show_live(paths: list[str], model: str, look: LiveLook) -> None:
    """Print a running answer until the source ends, or Ctrl-C; then how many frames there were."""
    from rich.live import Live

    from inflate3d.clips.live import LiveFrames
    from inflate3d.results.live import predict_live
    from inflate3d.show.answers import ranks_table

    if len(paths) != 1:
        raise InflateError(
            "one live source at a time",
            where="inflate3d predict --live",
            expected="a camera's number, a URL, a device or -",
            got=" ".join(paths),
            fix="run a command for each of them",
        )
    console = Console(soft_wrap=True)
    network = load_any(model).to(look.device)
    names = getattr(network, "class_names", None)
    live = LiveFrames(
        paths[0],
        fps=look.fps,
        short_side=network.clip_spec.short_side,  # type: ignore[arg-type, union-attr]  # predict_live checks it
        patience_seconds=look.patience_seconds,
    )
    last: LiveAnswer | None = None
    shown: LiveAnswer | None = None  # the last one that has a line of its own
    printed = -LINE_SECONDS
    table = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
    try:
        with warnings_on(console), table or nullcontext():
            for last in predict_live(network, live, precision=look.precision):  # type: ignore[arg-type]  # optimize checks it
                top = last.top(names, look.top)
                if table:
                    table.update(Group(ranks_table(top), Text(_state(last), "dim")), refresh=True)
                elif time.monotonic() - printed >= LINE_SECONDS:
                    printed, shown = time.monotonic(), last
                    console.print(_line(last, top), markup=False, highlight=False)
    except KeyboardInterrupt:
        pass  # the way to end it
    finally:
        live.close()
        if last:
            if shown is not last:
                console.print(_line(last, last.top(names, look.top)), markup=False, highlight=False)
            console.print(_state(last), markup=False, highlight=False)


def _line(answer: "LiveAnswer", top: "tuple[Score, ...]") -> str:
    return f"{answer.time_seconds:7.1f} s  " + ", ".join(f"{score.label} {score.probability:.0%}" for score in top)


def _state(answer: "LiveAnswer") -> str:
    back = f", came back {answer.num_reconnects} times" * (answer.num_reconnects > 0)
    return (
        f"{answer.time_seconds:.1f} s seen, {answer.delay_seconds:.1f} s behind, {answer.num_dropped} of "
        f"{answer.num_frames} frames dropped{back}"
    )
