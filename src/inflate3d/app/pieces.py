"""Answers as pieces of the page: bars, a timeline, moving pictures, a plan with cost and proof, and what went wrong."""

import re
from base64 import b64encode
from collections.abc import Callable
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory

from inflate3d.app.inflating import COST_FRAMES, Step, Wish
from inflate3d.app.jobs import Comparison, Limits
from inflate3d.errors import InflateError
from inflate3d.inflation.cost import Cost
from inflate3d.inflation.plan import ACTIONS, LayerPlan, Plan
from inflate3d.inflation.plan_table import TITLES, cells
from inflate3d.inflation.proof import Check, Proof
from inflate3d.results.prediction import VideoPrediction, rate_text
from inflate3d.show.answers import COLORS, clock, timeline_svg
from inflate3d.show.pictures import NIGHT, heat_colors
from inflate3d.show.plans import plan_svg

CELL, EDGE, TOP = 26, 64, 24  # pixels of a cell of the comparison, on both sides of all, and above
LABELED = 2  # each second column has room for its time
MOST_ROWS = 400  # of a plan that are shown

# Of gradio's own variables, which change with light and dark
STYLE = """
.gradio-container { max-width: 1080px !important; margin: 0 auto !important }
footer { display: none !important }
.gradio-container button[aria-label="Trim video to selection"] { display: none }
.i3d-head h1 { font-size: 1.7rem; margin: .4rem 0 .1rem; letter-spacing: -.02em }
.i3d-head p, .i3d-note { color: #5b6675; margin: 0 }
.dark .i3d-head p { color: #a3abb3 }
.dark .i3d-note { color: #a3abb3 }
.i3d-note { font-size: .85rem; line-height: 1.45 } * + .i3d-note { margin-top: .8rem }
.i3d-none { color: var(--body-text-color-subdued); border: 1px dashed var(--border-color-primary); border-radius: 10px;
  padding: 3.2rem 1rem; text-align: center }
.i3d-bars { display: grid; gap: .85rem }
.i3d-bars .row { display: grid; grid-template-columns: 1fr auto; gap: .2rem 1rem }
.i3d-bars .track { grid-column: 1 / -1; height: .55rem; border-radius: 4px; background: var(--border-color-primary) }
.i3d-bars .track div { height: 100%; border-radius: 4px; min-width: 3px }
.i3d-bars .row:first-child { font-size: 1.25rem; font-weight: 600 } .i3d-bars .row:first-child .track { height: .8rem }
.i3d-line svg, .i3d-grid svg { width: 100%; height: auto }
.i3d-line svg > rect:first-of-type { fill: transparent !important }
.i3d-grid svg text { fill: var(--body-text-color) }
.i3d-wrong { border-left: 5px solid #D55E00; border-radius: 8px; padding: .9rem 1.1rem;
  background: var(--background-fill-secondary) }
.i3d-wrong b { display: block; font-size: 1.08rem; margin-bottom: .5rem }
.i3d-wrong dl, .i3d-facts { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1rem; margin: 0 }
.i3d-wrong dt { color: var(--body-text-color-subdued) } .i3d-wrong dd { margin: 0; overflow-wrap: anywhere }
.i3d-tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(140px, 1fr)); gap: .7rem; margin: 0 0 1rem }
.i3d-tiles div { background: var(--background-fill-secondary); border: 1px solid var(--border-color-primary);
  border-radius: 10px; padding: .7rem .9rem }
.i3d-tiles b { display: block; font-size: 1.35rem; letter-spacing: -.01em } .i3d-tiles span {
  color: var(--body-text-color-subdued); font-size: .82rem }
.i3d-badge { display: inline-block; border-radius: 6px; padding: .1rem .6rem; font-weight: 700; color: #fff }
.i3d-table { max-height: 300px; overflow: auto; border: 1px solid var(--border-color-primary); border-radius: 10px;
  margin-bottom: 1rem }
.dark .i3d-table { color-scheme: dark }
.i3d-table table { border-collapse: collapse; border: 0 !important; width: 100%; font-size: .85rem; margin: 0 }
.i3d-table tr { border: 0 !important }
.i3d-table th, .i3d-table td { padding: .28rem .7rem; text-align: left; white-space: nowrap; border: 0 }
.i3d-table th { position: sticky; top: 0; background: var(--background-fill-secondary);
  color: var(--body-text-color-subdued); font-weight: 600 }
.i3d-table tr + tr td { border-top: 1px solid var(--border-color-primary) }
.i3d-table .time td { font-weight: 600 } .i3d-table .time td:first-child { box-shadow: inset 4px 0 #0072B2 }
.i3d-part { margin: 1.3rem 0 .5rem; font-weight: 600 }
.i3d-look { text-align: center; margin-top: 1rem }
.i3d-look img, .i3d-look video { max-width: 100%; border-radius: 8px; display: inline } .i3d-look video { width: 384px }
.i3d-one { font-size: 2.6rem; font-weight: 700; letter-spacing: -.03em; line-height: 1.1 }
.i3d-grid { max-width: 560px; margin: 0 auto }
""" + "".join(
    f'.dark .i3d-line svg [{name}="{day}"] {{ {name}: {night} }}\n'
    for day, night in NIGHT.items()
    for name in ("fill", "stroke")
)


def head(name: str) -> str:
    """Say what the page is."""
    return (
        '<div class="i3d-head"><h1>inflate3d</h1><p>2D image networks through time. '
        f"Videos are answered by <b>{escape(name)}</b>.</p></div>"
    )


def nothing_yet(words: str) -> str:
    """Hold the place of an answer."""
    return f'<div class="i3d-none">{escape(words)}</div>'


def note(words: str) -> str:
    """Say something small."""
    return f'<p class="i3d-note">{escape(words)}</p>'


def limits_note(limits: Limits) -> str:
    """Tell what may be uploaded."""
    return note(
        f"Up to {limits.megabytes:g} MB, {limits.seconds:g} seconds and {limits.pixels / 1e6:.1f} megapixels in a "
        "frame. What you send stays on this machine and is deleted within the hour."
    )


def wrong(error: InflateError) -> str:
    """Tell a mistake in its four lines."""
    lines = (("where", error.where), ("expected", error.expected), ("got", error.got), ("fix", error.fix))
    rows = "".join(f"<dt>{name}</dt><dd>{escape(text)}</dd>" for name, text in lines)
    problem = error.problem[:1].upper() + error.problem[1:]
    return f'<div class="i3d-wrong" role="alert"><b>{escape(problem)}</b><dl>{rows}</dl></div>'


def bars(prediction: VideoPrediction, k: int = 5) -> str:
    """Rank the k likeliest classes, in the colors that they have in the timeline.

    Example:
        >>> import torch
        >>> bars(VideoPrediction("<b>.mp4", 9, 25.0, torch.tensor([0.0, 2.0]), (), ("run", "<jump>"))).count("<jump>")
        0
    """
    rows = "".join(
        f'<div class="row"><span>{escape(score.label)}</span><span>{score.probability:.1%}</span>'
        f'<div class="track"><div style="width:{score.probability:.1%};background:{color}"></div></div></div>'
        for score, color in zip(prediction.top(k), COLORS, strict=False)
    )
    facts = f"{prediction.source}: {prediction.num_frames} frames, {rate_text(prediction.fps)}"
    return f'<div class="i3d-bars">{rows}</div>{note(facts)}'


def timeline(prediction: VideoPrediction) -> str:
    """Draw what is seen when."""
    return _drawing(timeline_svg(prediction))


def _drawing(svg: str) -> str:
    """Put a drawing into the page, whose light or dark it takes instead of the system's."""
    return f'<div class="i3d-line">{re.sub("<style>.*?</style>", "", svg)}</div>'


def moving(write: Callable[[Path], None], ending: str, words: str) -> str:
    """Put a picture or video into the page itself, so that no file is left.

    Args:
        write: Writes a file.
        ending: Of that file: `.mp4`, `.webp`, `.png`.
        words: What is seen.

    Example:
        >>> moving(lambda path: path.write_bytes(b"x") and None, ".png", "a < b")
        '<div class="i3d-look"><img src="data:image/png;base64,eA==" alt="a &lt; b"></div>'
    """
    with TemporaryDirectory(prefix="inflate3d-") as folder:
        path = Path(folder) / f"picture{ending}"
        write(path)
        data = b64encode(path.read_bytes()).decode()
    if ending == ".mp4":
        shown = f'<video src="data:video/mp4;base64,{data}" autoplay loop muted playsinline controls></video>'
    else:
        kind = path.suffix.removeprefix(".")
        shown = f'<img src="data:image/{kind};base64,{data}" alt="{escape(words)}">'
    return f'<div class="i3d-look">{shown}</div>'


def inflated(wish: Wish, steps: list[Step], ended: InflateError | None, *, done: bool) -> str:
    """Show what is known of an inflated model so far: cost, proof, plan.

    Args:
        wish: What was asked for.
        steps: What is there.
        ended: What ended it early.
        done: Whether nothing more comes.
    """
    plan = next((step for step in steps if isinstance(step, Plan)), None)
    cost = next((step for step in steps if isinstance(step, Cost)), None)
    proof = next((step for step in steps if isinstance(step, Proof)), None)
    parts = [wrong(ended)] if ended else []
    parts += [_tiles(cost)] if cost else []
    if proof:
        parts.append(_proof(proof))
    elif not done:
        parts.append(note("Proving …" if cost else "Counting …" if plan else "Planning …"))
    parts += [_plan(plan, wish.name)] if plan else []
    weights = "random weights" if wish.weights == "none" else "pretrained weights"
    parts += [note(f"{wish.name}, {weights}. On your machine: inflate3d prove {wish.name} --preset {wish.preset}")]
    return "".join(parts)


def _tiles(cost: Cost) -> str:
    facts = [
        (f"{cost.parameters / 1e6:.1f} M", "parameters"),
        (f"{cost.gmacs:.1f} GMAC", f"a clip of {COST_FRAMES} frames"),
        (f"{cost.activation_megabytes:.0f} MB", "activations"),
        (f"{cost.receptive_frames}", "frames seen by one output"),
    ]
    return '<div class="i3d-tiles">' + "".join(f"<div><b>{a}</b><span>{b}</span></div>" for a, b in facts) + "</div>"


def _proof(proof: Proof) -> str:
    word, color = ("PROVED", "#00785a") if proof.holds else ("NOT PROVED", "#b34700")
    trivial = " Nothing looks through time, so it is trivial." * (proof.layers_through_time == 0)
    claims = "".join(note(f"Not claimed: {law}") for law in proof.not_claimed)
    rows = "".join(_law(check) for check in proof.checks)
    return (
        f'<p class="i3d-part"><span class="i3d-badge" style="background:{color}">{word}</span> '
        f"A still clip is answered as the picture, a moving one is seen moving.{trivial}</p>{claims}"
        '<div class="i3d-table"><table><tr><th></th><th>law</th><th>error</th><th>allowed</th><th>where</th></tr>'
        f"{rows}</table></div>"
    )


def _law(check: Check) -> str:
    mark = "✓" if check.holds else "✗"
    error, limit = (f"{check.error:.1e}", f"{check.limit:.0e}") if check.limit else ("", "")
    cells_of = (mark, escape(check.law), error, limit, escape(check.where))
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells_of) + "</tr>"


def _plan(plan: Plan, name: str) -> str:
    through = sum(layer.looks_through_time for layer in plan.steps)
    titles = "".join(f"<th>{title}</th>" for title in TITLES)
    rows = "".join(map(_layer, plan.steps[:MOST_ROWS]))
    more = note(f"and {len(plan.steps) - MOST_ROWS} more") if len(plan.steps) > MOST_ROWS else ""
    return (
        f'<p class="i3d-part">The plan: {through} of {len(plan.steps)} layers look through time</p>'
        f'<div class="i3d-table"><table><tr>{titles}</tr>{rows}</table></div>{more}'
        f"{_drawing(plan_svg(plan, name))}"
    )


def _layer(layer: LayerPlan) -> str:
    row = "".join(f"<td>{escape(cell)}</td>" for cell in cells(layer))
    kind = "time" if layer.looks_through_time else ""
    return f'<tr class="{kind}" title="{escape(ACTIONS[layer.action])}">{row}</tr>'


def comparison(found: Comparison) -> str:
    """Show how alike two videos are: one number, and a cell for each pair of windows."""
    first, second = map(escape, found.names)
    return (
        f'<div class="i3d-look"><div class="i3d-one">{found.whole:.3f}</div>'
        f"{note('cosine of the mean features: 1 is the same, and 0 has nothing in common')}</div>"
        f'<p class="i3d-part">Each window of {first} (down) with each of {second} (across)</p>'
        f'<div class="i3d-grid">{_matrix(found)}</div>'
    )


def _matrix(found: Comparison) -> str:
    down, across = found.cosines.shape
    low, high = float(found.cosines.min()), float(found.cosines.max())
    colors = heat_colors((found.cosines - low) / max(high - low, 1e-9)).mul(255).round().int().tolist()
    width, height = 2 * EDGE + across * CELL, TOP + down * CELL + 34
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-size="11">']
    for row in range(down):
        y = TOP + row * CELL
        parts.append(_words(EDGE - 8, y + CELL / 2 + 4, clock(float(found.times_seconds[0][row])), "end"))
        for column in range(across):
            red, green, blue = colors[row][column]
            parts.append(
                f'<rect x="{EDGE + column * CELL}" y="{y}" width="{CELL - 1}" height="{CELL - 1}" rx="3" '
                f'fill="rgb({red},{green},{blue})"><title>{float(found.cosines[row, column]):.3f}</title></rect>'
            )
    for column in range(0, across, LABELED):
        middle = EDGE + column * CELL + CELL / 2
        parts.append(_words(middle, TOP - 8, clock(float(found.times_seconds[1][column])), "middle"))
    parts.append(_words(EDGE, height - 12, f"darkest {low:.3f}, brightest {high:.3f}", "start"))
    return "".join([*parts, "</svg>"])


def _words(x: float, y: float, words: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{words}</text>'
