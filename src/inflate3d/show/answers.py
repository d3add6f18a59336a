"""Answers as tables for the terminal, as a drawing of what is seen over time, and as a page."""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from html import escape
from itertools import groupby
from pathlib import Path

from rich.console import Group
from rich.table import Table
from rich.text import Text

from inflate3d.atomic import write_text
from inflate3d.results.prediction import (
    Failure,
    Score,
    VideoPrediction,
    WindowPrediction,
    rate_text,
    top_scores,
)
from inflate3d.show.pictures import page_of

BAR_CELLS = 24

# Okabe & Ito's palette, told apart by colour-blind readers too.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")

WIDTH, PLOT_HEIGHT, FRAME_HEIGHT = 960, 200, 96
LEFT, RIGHT, TOP, GAP = 44, 236, 14, 26  # pixels around the plot; the legend stands on the right
MAX_KEY_FRAMES = 7

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1000px; margin: 2rem auto; padding: 0 1rem; color: #222 }
h2 { margin: 2.5rem 0 .3rem; overflow-wrap: anywhere } p, dd { color: #555; margin-top: 0 }
table { border-collapse: collapse; width: 100% } td, th { text-align: left; padding: .25rem .8rem .25rem 0 }
td { border-top: 1px solid #eee } .bar { background: #0072b2; height: .7rem; border-radius: 2px }
svg { max-width: 100%; height: auto } .failed td { color: #a40000; white-space: pre-wrap }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0 1rem } dt { font-weight: 600 } dd { margin: 0 }
"""


def scores_table(prediction: VideoPrediction, k: int = 5) -> Group:
    """Rank the k likeliest classes of a video."""
    return Group(_title(prediction, "frames"), ranks_table(prediction.top(k)))


def ranks_table(scores: Sequence[Score]) -> Table:
    """List classes with their probabilities, as numbers and as bars."""
    table = _class_table()
    table.add_column("probability", justify="right")
    table.add_column("")
    for score in scores:
        bar = "█" * round(score.probability * BAR_CELLS)
        table.add_row(Text(score.label), f"{score.probability:.1%}", Text(bar, "cyan"))
    return table


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


def streams_table(prediction: VideoPrediction, k: int = 5) -> Group:
    """Show the k likeliest classes of a joint answer, and how likely each stream alone holds them."""
    table = _class_table()
    columns = {**prediction.streams, "joint": prediction}
    for name in columns:
        table.add_column(name, justify="right")
    probabilities = {name: one.logits.double().softmax(0) for name, one in columns.items()}
    for score in prediction.top(k):
        table.add_row(Text(score.label), *(f"{values[score.index]:.1%}" for values in probabilities.values()))
    best = [one.top(1)[0].label for one in columns.values()]
    table.add_row(Text("likeliest", "dim"), *(Text(label, "dim") for label in best))
    return Group(_title(prediction, "flows"), table)


def _title(prediction: VideoPrediction, shown: str) -> Text:
    facts = f"  {prediction.num_frames} {shown}, {rate_text(prediction.fps)}"
    return Text(f"\n{prediction.source}", style="bold").append(facts, "dim")


def _class_table() -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("class", min_width=28)
    return table


def timeline_svg(prediction: VideoPrediction, k: int = 5) -> str:
    """Draw the probabilities of the video's k likeliest classes over its windows, with key frames where there are any.

    More than seven curves cannot be told apart: the others are counted in the legend.

    Returns:
        A self-contained SVG document, 960 pixels wide.

    Example:
        >>> import torch
        >>> windows = tuple(WindowPrediction(i, i + 1.0, torch.tensor([0.0, i])) for i in range(3))
        >>> timeline_svg(VideoPrediction("a.mp4", 75, 25.0, torch.tensor([0.0, 1.0]), windows)).count("<polyline")
        2
    """
    parts, height = timeline_parts(prediction, k)
    return page_of(parts, WIDTH, height)


def timeline_parts(prediction: VideoPrediction, k: int = 5) -> tuple[list[str], float]:
    """Give what `timeline_svg` is made of, and how high it is, for a drawing that has more below."""
    scores = prediction.top(k)
    windows = prediction.windows
    duration = max(windows[-1].end_seconds, 1e-9)
    frames = [window for window in windows if window.key_frame]
    height = TOP + PLOT_HEIGHT + GAP + (FRAME_HEIGHT + 8 if frames else 0)
    return [*_axes(duration), *_curves(scores, windows, duration), *_legend(scores), *_key_frames(frames)], height


def _x(seconds: float, duration: float) -> float:
    return LEFT + seconds / duration * (WIDTH - LEFT - RIGHT)


def _y(probability: float) -> float:
    return TOP + (1 - probability) * PLOT_HEIGHT


def _axes(duration: float) -> list[str]:
    parts = []
    for percent in (0, 25, 50, 75, 100):
        y = _y(percent / 100)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end" fill="#555">{percent}%</text>')
    for step in range(5):
        seconds = duration * step / 4
        x, y = _x(seconds, duration), TOP + PLOT_HEIGHT + 16
        parts.append(f'<text x="{x:.1f}" y="{y}" text-anchor="middle" fill="#555">{clock(seconds)}</text>')
    return parts


def _curves(scores: Sequence[Score], windows: Sequence[WindowPrediction], duration: float) -> list[str]:
    parts = []
    probabilities = [window.logits.double().softmax(0) for window in windows]
    for score, color in zip(scores, COLORS, strict=False):
        points = []
        for window, values in zip(windows, probabilities, strict=True):
            y = _y(float(values[score.index]))
            points += [f"{_x(window.start_seconds, duration):.1f},{y:.1f}"] if len(windows) == 1 else []
            middle = (window.start_seconds + window.end_seconds) / 2
            points.append(f"{_x(middle, duration):.1f},{y:.1f}")
            points += [f"{_x(window.end_seconds, duration):.1f},{y:.1f}"] if len(windows) == 1 else []
        line = " ".join(points)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{color}" stroke-width="2.5"/>')
        dots = points if len(windows) > 1 else []
        for x, y_text in (point.split(",") for point in dots[:200]):
            parts.append(f'<circle cx="{x}" cy="{y_text}" r="3" fill="{color}"/>')
    return parts


def _legend(scores: Sequence[Score]) -> list[str]:
    parts, x = [], WIDTH - RIGHT + 18
    for row, (score, color) in enumerate(zip(scores, COLORS, strict=False)):
        y = TOP + 12 + row * 24
        parts.append(f'<rect x="{x}" y="{y - 9}" width="12" height="12" rx="2" fill="{color}"/>')
        parts.append(f'<text x="{x + 20}" y="{y + 1}" fill="#000">{escape(score.label)} {score.probability:.0%}</text>')
    more = len(scores) - len(COLORS)
    if more > 0:
        parts.append(f'<text x="{x}" y="{TOP + 13 + len(COLORS) * 24}" fill="#555">and {more} more, not drawn</text>')
    return parts


def _key_frames(frames: Sequence[WindowPrediction]) -> list[str]:
    count = min(len(frames), MAX_KEY_FRAMES)
    chosen = [frames[(2 * i + 1) * len(frames) // (2 * count)] for i in range(count)]
    y = TOP + PLOT_HEIGHT + GAP
    slot = (WIDTH - 8) / max(count, 1)
    parts = []
    for i, window in enumerate(chosen):
        picture = b64encode(window.key_frame or b"").decode()
        middle = clock((window.start_seconds + window.end_seconds) / 2)
        parts.append(
            f'<image x="{4 + i * slot:.1f}" y="{y}" width="{slot:.1f}" height="{FRAME_HEIGHT}" '
            f'href="data:image/jpeg;base64,{picture}"><title>{middle}</title></image>'
        )
    return parts


def clock(seconds: float) -> str:
    """Write seconds as a player shows them.

    Example:
        >>> clock(7.25), clock(3725)
        ('0:07.2', '1:02:05')
    """
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(int(minutes), 60)
    return f"{hours}:{minutes:02d}:{int(rest):02d}" if hours else f"{minutes}:{int(rest * 10) / 10:04.1f}"


def write_report(
    path: Path,
    predictions: Sequence[VideoPrediction],
    failures: Sequence[Failure] = (),
    *,
    settings: Mapping[str, str],
    k: int = 5,
) -> None:
    """Write one HTML page that needs no other file and no network.

    Args:
        path: Where to; written whole or not at all.
        predictions: What the network answered, one section each.
        failures: What could not be read, one row each.
        settings: What a reader needs to repeat the run, such as model, frame rate and window.
        k: Likeliest classes to show of each video.
    """
    sections = [_section(prediction, k) for prediction in predictions]
    facts = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in settings.items())
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f"<title>inflate3d: {len(predictions)} videos</title><style>{STYLE}</style></head><body>"
        f"<h1>What the network sees</h1><dl>{facts}</dl>{''.join(sections)}{_failures(failures)}</body></html>"
    )
    write_text(path, page)


def _section(prediction: VideoPrediction, k: int) -> str:
    seconds = prediction.windows[-1].end_seconds
    rows = "".join(_row(score) for score in prediction.top(k))
    parts, height = timeline_parts(prediction, k)
    return (
        f"<section><h2>{escape(Path(prediction.source).name)}</h2>"
        f"<p>{prediction.num_frames} frames, {rate_text(prediction.fps)}, "
        f"{clock(seconds)}, {len(prediction.windows)} windows</p>"
        f"<table>{rows}</table>{page_of(parts, WIDTH, height, night=False)}</section>"
    )


def _row(score: Score) -> str:
    bar = f'<div class="bar" style="width:{score.probability:.1%}"></div>'
    return (
        f'<tr><td style="width:16rem">{escape(score.label)}</td>'
        f'<td style="width:4rem">{score.probability:.1%}</td><td>{bar}</td></tr>'
    )


def _failures(failures: Sequence[Failure]) -> str:
    if not failures:
        return ""
    rows = "".join(f"<tr><td>{escape(f.source)}</td><td>{escape(f.reason)}</td></tr>" for f in failures)
    return f'<h2>Not read</h2><table class="failed"><tr><th>source</th><th>why</th></tr>{rows}</table>'
