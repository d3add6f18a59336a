"""An evaluation as a table for the terminal, and as a page: classes, confusions, calibration, worst mistakes."""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from rich.table import Table

from inflate3d.atomic import write_text
from inflate3d.results.evaluate import Evaluation, Interval, Mistake
from inflate3d.show.answers import COLORS, STYLE

SCORE_NAMES = {
    "top1": "top-1",
    "top5": "top-5",
    "mean_class": "mean of classes",
    "map": "mean average precision",
    "auc": "AUC",
}
MORE_STYLE = """
.scores td:nth-child(2) { font-weight: 600 } .warning { color: #a40000 }
.confusion { width: auto; font-size: 12px } .confusion td, .confusion th { padding: .2rem .45rem; text-align: right }
.confusion .down th { writing-mode: vertical-rl; text-align: right }
figure { display: inline-block; margin: 0 1rem 1rem 0 }
figcaption { font-size: 12px; color: #555; max-width: 170px; overflow-wrap: anywhere } img { height: 96px }
"""
PLOT = 260  # pixels of a side
MOST_CLASSES = 60  # whose confusions fit on a page


def scores_of(evaluation: Evaluation) -> Table:
    """Tell the scores and their intervals."""
    table = Table(box=None, pad_edge=False)
    for column in ("score", "value", "95 % interval"):
        table.add_column(column)
    for name, score in evaluation.scores.items():
        table.add_row(SCORE_NAMES[name], f"{score.value:.1%}", f"{score.low:.1%} to {score.high:.1%}")
    return table


def write_evaluation(
    path: Path,
    evaluation: Evaluation,
    *,
    title: str = "How good the network is",
    history: Sequence[Mapping[str, float]] = (),
) -> None:
    """Write one HTML page that needs no other file and no network.

    Args:
        path: Where to; written whole or not at all.
        evaluation: What was found.
        title: Heading of the page.
        history: Of each epoch of the training, what `fit` gives.
    """
    facts = {"videos": f"{evaluation.count} from {evaluation.num_groups} groups", **evaluation.settings}
    parts = [
        f"<h1>{escape(title)}</h1>",
        *(f'<p class="warning">{escape(warning)}</p>' for warning in evaluation.warnings),
        _scores(evaluation.scores),
        f"<dl>{''.join(f'<dt>{escape(k)}</dt><dd>{escape(v)}</dd>' for k, v in facts.items())}</dl>",
        _curve(history),
        _classes(evaluation),
        _confusion(evaluation),
        _calibration(evaluation),
        _mistakes(evaluation.mistakes),
        _failed(evaluation),
    ]
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}{MORE_STYLE}</style>'
    write_text(path, f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(parts)}</body></html>')


def _scores(scores: Mapping[str, Interval]) -> str:
    rows = "".join(
        f"<tr><td>{SCORE_NAMES[name]}</td><td>{score.value:.1%}</td><td>{score.low:.1%} to {score.high:.1%}</td></tr>"
        for name, score in scores.items()
    )
    head = "<tr><th>score</th><th>value</th><th>95 % interval (bootstrap of groups)</th></tr>"
    return f'<table class="scores">{head}{rows}</table>'


def _curve(history: Sequence[Mapping[str, float]]) -> str:
    """Draw the loss in training and in validation."""
    names = {"train_loss_epoch": "training", "val_loss": "validation"}
    curves = {words: [row[name] for row in history if name in row] for name, words in names.items()}
    curves = {words: values for words, values in curves.items() if len(values) > 1}
    if not curves:
        return ""
    top = max(max(values) for values in curves.values()) or 1.0
    lines = ""
    for (words, values), color in zip(curves.items(), COLORS, strict=False):
        points = [
            f"{40 + i / (len(values) - 1) * 600:.1f},{10 + (1 - value / top) * 180:.1f}"
            for i, value in enumerate(values)
        ]
        lines += f'<polyline points="{" ".join(points)}" fill="none" stroke="{color}" stroke-width="2"/>'
        lines += f'<text x="650" y="{10 + (1 - values[-1] / top) * 180 + 4:.1f}" fill="{color}">{words}</text>'
    axes = f'<path d="M40 10V190H640" fill="none" stroke="#999"/><text x="36" y="16" text-anchor="end">{top:.2f}</text>'
    axes += f'<text x="640" y="206" text-anchor="end">epoch {len(history)}</text>'
    return f'<h2>Loss</h2><svg viewBox="0 0 760 210" width="760" font-size="12">{axes}{lines}</svg>'


def _classes(evaluation: Evaluation) -> str:
    rows = "".join(
        f'<tr><td style="width:16rem">{escape(name)}</td><td style="width:8rem">{score:.0%} of {count}</td>'
        f'<td><div class="bar" style="width:{score:.1%}"></div></td></tr>'
        for name, score, count in sorted(evaluation.per_class, key=lambda row: -row[1])
    )
    return f"<h2>Classes</h2><table>{rows}</table>"


def _confusion(evaluation: Evaluation) -> str:
    counts = evaluation.confusion
    names = [escape(name) for name in evaluation.class_names]
    shown = [c for c in range(len(counts)) if counts[c].any() or counts[:, c].any()]
    if not shown or len(shown) > MOST_CLASSES:
        return ""
    head = "".join(f"<th>{names[c]}</th>" for c in shown)
    rows = ""
    for true in shown:
        total = max(int(counts[true].sum()), 1)
        cells = "".join(
            f'<td style="background:rgba(0,114,178,{counts[true, c] / total:.2f})">{counts[true, c] or ""}</td>'
            for c in shown
        )
        rows += f"<tr><th>{names[true]}</th>{cells}</tr>"
    words = "<p>Rows: what is shown. Columns: what the network answers.</p>"
    return f'<h2>Confusions</h2>{words}<table class="confusion"><tr class="down"><th></th>{head}</tr>{rows}</table>'


def _calibration(evaluation: Evaluation) -> str:
    """Draw how often answers of each confidence are right."""
    if not evaluation.calibration:
        return ""

    def at(x: float, y: float) -> str:
        return f"{30 + x * PLOT:.1f},{10 + (1 - y) * PLOT:.1f}"

    most = max(one.size for one in evaluation.calibration)
    dots = ""
    for one in evaluation.calibration:
        x, y = at(one.confidence, one.accuracy).split(",")
        radius = 3 + 7 * (one.size / most) ** 0.5
        dots += (
            f'<circle cx="{x}" cy="{y}" r="{radius:.1f}" fill="{COLORS[0]}"><title>{one.size} answers</title></circle>'
        )
    axes = f'<polyline points="{at(0, 1)} {at(0, 0)} {at(1, 0)}" fill="none" stroke="#999"/>'
    axes += f'<polyline points="{at(0, 0)} {at(1, 1)}" stroke="#ccc"/>'
    axes += f'<text x="{30 + PLOT}" y="{PLOT + 26}" text-anchor="end">confidence</text><text x="34" y="20">right</text>'
    words = f"Expected calibration error {evaluation.calibration_error:.1%}; on the line, answers are as sure as right."
    size = PLOT + 50
    box = f'viewBox="0 0 {size} {size}" width="{size}" font-size="12"'
    return f"<h2>Calibration</h2><p>{words}</p><svg {box}>{axes}{dots}</svg>"


def _mistakes(mistakes: Sequence[Mistake]) -> str:
    if not mistakes:
        return ""
    figures = ""
    for one in mistakes:
        picture = ""
        if one.key_frame:
            picture = f'<img alt="" src="data:image/jpeg;base64,{b64encode(one.key_frame).decode()}">'
        words = f"{escape(Path(one.path).name)}: <b>{escape(one.label)}</b>, answered {escape(one.answer)}"
        figures += f"<figure>{picture}<figcaption>{words} ({one.probability:.0%})</figcaption></figure>"
    return f"<h2>Worst mistakes</h2>{figures}"


def _failed(evaluation: Evaluation) -> str:
    if not evaluation.failures:
        return ""
    rows = "".join(f"<tr><td>{escape(f.source)}</td><td>{escape(f.reason)}</td></tr>" for f in evaluation.failures)
    return f'<h2>Not read</h2><table class="failed"><tr><th>source</th><th>why</th></tr>{rows}</table>'
