"""A self-contained page about a run of predictions: tables, timelines, key frames, failures, settings."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from inflate3d.atomic import replacing
from inflate3d.results.prediction import Failure, Score, VideoPrediction
from inflate3d.show.timeline import clock, timeline_svg

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1000px; margin: 2rem auto; padding: 0 1rem; color: #222 }
h2 { margin: 2.5rem 0 .3rem; overflow-wrap: anywhere } p, dd { color: #555; margin-top: 0 }
table { border-collapse: collapse; width: 100% } td, th { text-align: left; padding: .25rem .8rem .25rem 0 }
td { border-top: 1px solid #eee } .bar { background: #0072b2; height: .7rem; border-radius: 2px }
svg { max-width: 100%; height: auto } .failed td { color: #a40000; white-space: pre-wrap }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0 1rem } dt { font-weight: 600 } dd { margin: 0 }
"""


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
    with replacing(path) as draft:
        draft.write_text(page, encoding="utf-8")


def _section(prediction: VideoPrediction, k: int) -> str:
    seconds = prediction.windows[-1].end_seconds
    rate = f"{prediction.fps:g} fps" if prediction.fps else "the video's own rate"
    rows = "".join(_row(score) for score in prediction.top(k))
    return (
        f"<section><h2>{escape(Path(prediction.source).name)}</h2>"
        f"<p>{prediction.num_frames} frames at {rate}, {clock(seconds)}, {len(prediction.windows)} windows</p>"
        f"<table>{rows}</table>{timeline_svg(prediction, k)}</section>"
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
