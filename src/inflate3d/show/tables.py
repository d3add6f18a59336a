"""Results as tables for the terminal.

Names and reasons are `Text`, in which brackets mean nothing.
"""

from collections.abc import Sequence
from itertools import groupby

from rich.console import Group
from rich.table import Table
from rich.text import Text

from inflate3d.results.prediction import Failure, VideoPrediction, top_scores
from inflate3d.show.timeline import clock

BAR_CELLS = 24


def scores_table(prediction: VideoPrediction, k: int = 5) -> Group:
    """Rank the k likeliest classes of a video."""
    rate = f"{prediction.fps:g} fps" if prediction.fps else "native fps"
    title = Text(f"\n{prediction.source}", style="bold").append(f"  {prediction.num_frames} frames, {rate}", "dim")
    table = Table(box=None, pad_edge=False)
    table.add_column("class", min_width=28)
    table.add_column("probability", justify="right")
    table.add_column("")
    for score in prediction.top(k):
        bar = "█" * round(score.probability * BAR_CELLS)
        table.add_row(Text(score.label), f"{score.probability:.1%}", Text(bar, "cyan"))
    return Group(title, table)


def timeline_table(prediction: VideoPrediction) -> Table:
    """Show the likeliest class over time, neighbours with the same one joined."""
    table = Table(box=None, pad_edge=False)
    table.add_column("timeline")
    table.add_column("class", min_width=28)
    table.add_column("probability", justify="right")
    best = [(window, top_scores(window.logits, prediction.class_names, 1)[0]) for window in prediction.windows]
    for label, run in groupby(best, key=lambda pair: pair[1].label):
        spans = list(run)
        probabilities = [score.probability for _, score in spans]
        low, high = f"{min(probabilities):.0%}", f"{max(probabilities):.0%}"
        span = f"{clock(spans[0][0].start_seconds)} - {clock(spans[-1][0].end_seconds)}"
        table.add_row(span, Text(label), low if low == high else f"{low} - {high}")
    return table


def failures_table(failures: Sequence[Failure]) -> Table:
    """List what could not be read, and why."""
    table = Table(title=f"{len(failures)} not read", title_justify="left", title_style="bold red", show_lines=True)
    table.add_column("source", overflow="fold")
    table.add_column("why", overflow="fold")
    for failure in failures:
        table.add_row(Text(failure.source), Text(failure.reason))
    return table
