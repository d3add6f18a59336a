"""A network in time as a drawing: which layers look through time, their strides, and the frames that an answer sees."""

from collections.abc import Callable, Iterable, Sequence
from html import escape
from itertools import groupby
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from inflate3d.errors import InflateError
from inflate3d.inflation.inflated import Inflated
from inflate3d.inflation.observe import copied
from inflate3d.inflation.plan import LayerPlan, Plan
from inflate3d.models.inception import TRUNK, Conv, InceptionI3d, Mixed, Pool
from inflate3d.show.answers import COLORS
from inflate3d.show.pictures import page_of

What = Literal["conv", "pool", "shift", "clip", "gate", "longer", "frame"]
ALL_FRAMES: tuple[What, ...] = ("clip", "gate")

WIDTH = 960
NAMES, FACTS, RIGHT = 300, 78, 14  # pixels: names of layers, kernels, the edge
TOP, ROW, THIN = 74, 22, 16  # pixels: above the first row, of a row, of one that stands for layers without time
MOST_ROWS = 90
LEAST_FRAMES, MOST_FRAMES = 16, 1024  # of the clip that is drawn
TRIED_FRAMES = 256  # of the clip that tells how time becomes shorter in a network with branches
LONGEST_NAME = 44  # letters
# What looks through time, its color, and its words
LOOKS: dict[What, tuple[str, str]] = {
    "conv": (COLORS[0], "convolution over frames"),
    "pool": (COLORS[2], "pool over frames"),
    "shift": (COLORS[4], "channels shifted in time"),
    "clip": (COLORS[3], "sees the whole clip"),
    "gate": (COLORS[3], "gate over the whole clip"),
    "longer": (COLORS[5], "makes time longer"),
}
SEEN = COLORS[1]  # frames that one answer sees


class TimeLayer(NamedTuple):
    """What one layer does in time.

    Attributes:
        path: Its name.
        what: A key of `LOOKS`, or "frame".
        kernel: Frames that it spans.
        stride: Frames from one output to the next.
        front: Frames in front of an output's own that it spans.
        scale: Frames put out for each one that comes in.
        entered: Frames of the clip from one of its inputs to the next, where that has been observed.
    """

    path: str
    what: What = "frame"
    kernel: int = 1
    stride: int = 1
    front: int = 0
    scale: int = 1
    entered: float | None = None


class Seen(NamedTuple):
    """A layer, and which frames of the clip one of its outputs sees.

    Attributes:
        layer: The layer.
        step: Frames of the clip from one output to the next.
        before: Frames in front of an output's own that it sees.
        behind: Frames behind it.
    """

    layer: TimeLayer
    step: float
    before: float
    behind: float


def time_layers(model: nn.Module | Plan) -> list[TimeLayer]:
    """List what the layers of a network do in time, in the order in which they run.

    Args:
        model: A plan, an inflated model or a network around one, or I3D.

    Raises:
        InflateError: It is none of these.

    Example:
        >>> layers = time_layers(InceptionI3d(5))
        >>> layers[0].kernel, [layer.path for layer in layers if layer.stride > 1]
        (7, ['Conv3d_1a_7x7', 'MaxPool3d_4a_3x3', 'MaxPool3d_5a_2x2'])
    """
    if isinstance(model, InceptionI3d):
        return [*(_of_trunk(path, layer) for path, layer in TRUNK.items()), TimeLayer("AvgPool_2x7x7", "pool", 2)]
    if isinstance(model, Plan):
        return [_of_plan(layer) for layer in model.steps]
    inflated = next((part for part in model.modules() if isinstance(part, Inflated)), None)
    if inflated is None:
        raise InflateError(
            "this network has no plan to draw",
            where="show plan",
            expected="a plan, an inflated model, or I3D",
            got=type(model).__name__,
            fix="inflate3d show plan timm/resnet26d",
        )
    entered = _observed(inflated)
    return [_of_plan(layer)._replace(entered=entered.get(layer.path)) for layer in inflated.plan.steps]


def _observed(model3d: Inflated) -> dict[str, float]:
    """Run a clip on shapes alone, and see how many frames each layer gets; nothing where that cannot be done."""
    ghost, channels = copied(model3d, device="meta").eval(), model3d.plan.input_shape
    found: dict[str, float] = {}

    def watch(path: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def note(module: nn.Module, args: tuple[Any, ...]) -> None:
            if args and isinstance(args[0], Tensor) and args[0].ndim >= 3:
                found.setdefault(path, TRIED_FRAMES / len(args[0]))

        return note

    for layer in model3d.plan:
        if layer.batch_factor == 1 and "#" not in layer.path and layer.path:
            ghost.net.get_submodule(layer.path).register_forward_pre_hook(watch(layer.path))
    try:
        with torch.no_grad():
            ghost(torch.empty(1, channels[0], TRIED_FRAMES, *channels[1:], device="meta"))
    except (RuntimeError, NotImplementedError, ValueError):
        return {}  # its code asks for values: layers count as one behind the other
    return found


def _of_trunk(path: str, layer: Conv | Pool | Mixed) -> TimeLayer:
    if isinstance(layer, Mixed):  # its third branch pools over 3 frames as well
        return TimeLayer(path, "conv", 3, 1, 1)
    kernel, stride = layer.kernel[0], layer.stride[0]
    if kernel == stride == 1:
        return TimeLayer(path)
    # TensorFlow's SAME on a length that the stride divides
    return TimeLayer(path, "conv" if isinstance(layer, Conv) else "pool", kernel, stride, (kernel - stride) // 2)


def _of_plan(layer: LayerPlan) -> TimeLayer:
    kernel, stride = layer.time_kernel, layer.time_stride
    front = kernel - 1 if layer.padding == "causal" else (kernel - 1) // 2
    what: What = "frame"
    if layer.action == "shift":
        what, kernel, front = "shift", (2 if layer.padding == "causal" else 3), 1
    elif layer.kind == "time_position":
        kernel, front = 1, 0
    elif layer.action in ("clip", "attend"):
        what, kernel, front = ("clip" if layer.looks_through_time else "gate"), 1, 0
    elif layer.time_scale > 1:
        what = "longer"
    elif kernel > 1 or stride > 1:
        what = "pool" if layer.kind in ("pool", "time_pool") else "conv"
    return TimeLayer(layer.path or "(model)", what, kernel, stride, front, layer.time_scale)


def frames_seen(layers: Iterable[TimeLayer]) -> list[Seen]:
    """Follow how many frames of the clip one output sees at most, layer by layer, as if all stood one behind the other.

    Example:
        >>> [seen] = frames_seen([TimeLayer("a", "conv", 7, 2, 3)])
        >>> seen.step, seen.before, seen.behind
        (2.0, 3.0, 3.0)
    """
    found, step, before, behind = [], 1.0, 0.0, 0.0
    for layer in layers:
        step = layer.entered or step
        before += layer.front * step
        behind += (layer.kernel - 1 - layer.front) * step
        step = max(step * layer.stride / layer.scale, 1.0)
        found.append(Seen(layer, step, before, behind))
    return found


def plan_svg(model: nn.Module | Plan, title: str = "") -> str:
    """Draw what a network does in time: a row for each layer that looks through it, over the frames of a clip.

    Dots are a layer's outputs, a bar what the middle one sees of the clip; rows without a bar stand for layers that
    work on each frame alone. In front, the clip: in color the frames that one answer sees.

    Args:
        model: See `time_layers`.
        title: Heading; the name of the model.

    Returns:
        A self-contained SVG document, 960 pixels wide.

    Raises:
        InflateError: See `time_layers`.

    Example:
        >>> plan_svg(InceptionI3d(5), "I3D").count("AvgPool_2x7x7")
        1
    """
    seen = frames_seen(time_layers(model))
    last = seen[-1] if seen else Seen(TimeLayer("nothing"), 1, 0, 0)
    width = 1 + last.before + last.behind
    num_frames = int(min(max(1.1 * width, width + 2 * last.step, LEAST_FRAMES), MOST_FRAMES))
    # the frame of the middle output
    own = (num_frames - width) / 2 + last.before if width < num_frames else num_frames / 2
    own = min(int(own / last.step) * last.step, num_frames - 1)
    scale = Scale(num_frames, own)
    rows = _rows(seen)
    kinds = [one.layer.what for one in seen]
    through = sum(one.layer.kernel > 1 or one.layer.what == "clip" for one in seen)
    words = f"{through} of {len(seen)} layers look through time; one output sees "
    words += "the whole clip" if "clip" in kinds else f"{width:g} frames at most" + ", gates apart" * ("gate" in kinds)
    parts = [
        _text(RIGHT, 24, title or type(model).__name__, size=16),
        _text(RIGHT, 44, words, fill="#555"),
        *_legend(seen),
        *_clip(scale, last, sees_all="clip" in kinds),
    ]
    y: float = TOP + 16
    for row in rows[:MOST_ROWS]:
        high = THIN if isinstance(row, int) else ROW
        parts += _row(row, y + high / 2, scale)
        y += high
    if len(rows) > MOST_ROWS:
        parts.append(_text(RIGHT, y + 12, f"and {len(rows) - MOST_ROWS} more rows, not drawn", fill="#555"))
        y += ROW
    return page_of(parts, WIDTH, y + 12)


class Scale(NamedTuple):
    """Where the frames of the clip stand, and which is the middle output's own."""

    num_frames: int
    own: float

    def x(self, frame: float) -> float:
        """Give the left edge of a frame, in pixels."""
        left, right = NAMES + FACTS, WIDTH - RIGHT
        return left + min(max(frame, 0), self.num_frames) / self.num_frames * (right - left)


def _rows(seen: Sequence[Seen]) -> list[Seen | int]:
    """Join neighbors that work on each frame alone: they become their number."""
    rows: list[Seen | int] = []
    for alone, run in groupby(seen, key=lambda one: one.layer.what == "frame"):
        group = list(run)
        rows += [len(group)] if alone else group
    return rows


def _clip(scale: Scale, last: Seen, *, sees_all: bool) -> list[str]:
    """Draw the clip's frames, those in color that the middle output of the last layer sees."""
    parts = [_text(RIGHT, TOP + 4, "the clip", fill="#555")]
    for frame in range(scale.num_frames):
        sees = sees_all or scale.own - last.before <= frame <= scale.own + last.behind
        x, width = scale.x(frame), scale.x(frame + 1) - scale.x(frame)
        gap = 1 if width > 3 else 0
        fill = SEEN if sees else "#ddd"
        box = f'x="{x:.2f}" y="{TOP - 10}" width="{width - gap:.2f}" height="18"'
        parts.append(f'<rect {box} fill="{fill}"/>')
    return parts


def _row(row: Seen | int, y: float, scale: Scale) -> list[str]:
    left, right = NAMES + FACTS, WIDTH - RIGHT
    if isinstance(row, int):
        words = f"{row} layer{'s' * (row > 1)} on each frame alone"
        return [_text(RIGHT + 10, y + 4, words, fill="#999", size=10)]
    layer, step, before, behind = row
    color = LOOKS[layer.what][0]
    first, last = (
        (scale.x(0), scale.x(scale.num_frames))
        if layer.what in ALL_FRAMES
        else (
            scale.x(scale.own - before),
            scale.x(scale.own + behind + 1),
        )
    )
    name = layer.path if len(layer.path) <= LONGEST_NAME else "..." + layer.path[3 - LONGEST_NAME :]
    facts = "all frames" if layer.what in ALL_FRAMES else f"{layer.kernel} frames" * (layer.kernel > 1)
    stride = f"/{layer.stride}" * (layer.stride > 1) + f"x{layer.scale}" * (layer.scale > 1)
    parts = [
        _text(RIGHT, y + 4, name, size=11),
        _text(left - 10, y + 4, " ".join(filter(None, (facts, stride))), fill="#555", size=11, anchor="end"),
        f'<line x1="{left}" x2="{right}" y1="{y}" y2="{y}" stroke="#eee"/>',
        f'<rect x="{first:.2f}" y="{y - 7}" width="{last - first:.2f}" height="14" rx="3" fill="{color}" '
        f'fill-opacity="0.35"/>',
    ]
    half = (scale.x(1) - scale.x(0)) / 2
    radius = min(half * 0.8, 2.5)
    start = scale.own % step
    for number in range(int((scale.num_frames - 1 - start) // step) + 1):
        at = scale.x(start + number * step) + half
        is_own = abs(start + number * step - scale.own) < step / 2
        fill = color if is_own else "#999"
        parts.append(f'<circle cx="{at:.1f}" cy="{y}" r="{radius + 1.5 if is_own else radius:.1f}" fill="{fill}"/>')
    return parts


def _legend(seen: Sequence[Seen]) -> list[str]:
    parts, x = [], float(WIDTH - RIGHT)
    shown = [LOOKS[what] for what in LOOKS if any(one.layer.what == what for one in seen)]
    for color, words in reversed([*shown, (SEEN, "seen by one output")]):
        x -= 6.1 * len(words)
        parts.append(_text(x, 24, words, fill="#555", size=11))
        parts.append(f'<rect x="{x - 16:.1f}" y="15" width="11" height="11" rx="2" fill="{color}"/>')
        x -= 30
    return parts


def _text(x: float, y: float, text: str, *, fill: str = "#000", size: int = 12, anchor: str = "start") -> str:
    font = f'font-size="{size}" font-weight="{600 if size > 12 else 400}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{fill}" {font}>{escape(text)}</text>'
