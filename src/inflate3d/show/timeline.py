"""A drawing (SVG) of what a network sees in a video over time: probabilities above, key frames below."""

from base64 import b64encode
from collections.abc import Sequence
from html import escape

from inflate3d.results.prediction import Score, VideoPrediction, WindowPrediction

# Okabe & Ito's palette, told apart by colour-blind readers too.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")

WIDTH, PLOT_HEIGHT, FRAME_HEIGHT = 960, 200, 96
LEFT, RIGHT, TOP, GAP = 44, 236, 14, 26  # pixels around the plot; the legend stands on the right
MAX_KEY_FRAMES = 7


def timeline_svg(prediction: VideoPrediction, k: int = 5) -> str:
    """Draw the probabilities of the video's k likeliest classes over its windows, with key frames where there are any.

    Returns:
        A self-contained SVG document, 960 pixels wide.
    """
    scores = prediction.top(k)
    windows = prediction.windows
    duration = max(windows[-1].end_seconds, 1e-9)
    frames = [window for window in windows if window.key_frame]
    height = TOP + PLOT_HEIGHT + GAP + (FRAME_HEIGHT + 8 if frames else 0)
    parts = [*_axes(duration), *_curves(scores, windows, duration), *_legend(scores), *_key_frames(frames)]
    style = "font-family:system-ui,sans-serif;font-size:12px;background:#fff"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" style="{style}">'
    return "\n".join([head, f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>', *parts, "</svg>"])


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
        parts.append(f'<text x="{x + 20}" y="{y + 1}">{escape(score.label)} {score.probability:.0%}</text>')
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
