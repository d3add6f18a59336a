"""Draw the pictures of README and docs from real runs: `make figures`, or `python docs/figures.py borders`."""

import math
import sys
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from torchvision.models import resnet18

from inflate3d import PredictOptions, load, predict
from inflate3d.inflation.build import inflate
from inflate3d.inflation.plan import Rule, TimePadding
from inflate3d.inflation.profiles import profile_taps
from inflate3d.models.inception import I3D_CLIP
from inflate3d.results.feature_clips import Timeline, cut
from inflate3d.results.feature_presets import FeatureOptions
from inflate3d.show.answers import COLORS, timeline_svg
from inflate3d.show.filters import find_filters, write_filters
from inflate3d.show.pictures import write_animation
from inflate3d.show.plans import plan_svg
from inflate3d.show.saliency import SaliencyOptions, captioned, find_saliency
from inflate3d.show.sheets import contact_sheet, write_sheet
from inflate3d.show.similarity import moments_of, self_similarity, similarity_svg
from inflate3d.weights.fetch import fetch, fetch_demo_clip

FIGURES = Path(__file__).parent / "figures"
WIDTH = 960
BLUE, RED, GREEN, PINK = COLORS[:4]
PROFILE_COLORS = {"mean": BLUE, "lambda=0.5": PINK, "center": GREEN, "negative": RED}


def demo() -> str:
    """Probabilities over the demo clip."""
    fetch("i3d-kinetics400")
    answer = predict(load("i3d-kinetics400"), fetch_demo_clip(), PredictOptions(stride=16, key_frames=True))
    return timeline_svg(answer)


def similarity() -> str:
    """The same, and how alike the moments of the demo clip are."""
    model, options = load("i3d-kinetics400"), PredictOptions(stride=16, key_frames=True)
    answer = predict(model, fetch_demo_clip(), options)
    moments, times = moments_of(model, fetch_demo_clip(), options)
    return similarity_svg(answer, self_similarity(moments), times)


def plan() -> str:
    """I3D in time, layer by layer."""
    return plan_svg(load("i3d-kinetics400"), "I3D, Inception-v1")


def filters(path: Path) -> None:
    """The first layer of I3D, as in the paper's figure 4."""
    fetch("i3d-kinetics400")
    write_filters(path, find_filters(load("i3d-kinetics400"), title="I3D, RGB, Kinetics-400"))


def saliency(path: Path) -> None:
    """Where I3D looks in the demo clip, every second frame."""
    options = SaliencyOptions(label="cartwheeling")
    found = find_saliency(load("i3d-kinetics400"), fetch_demo_clip(), options)
    write_animation(path, list(captioned(found))[::2], fps=12.5)


def clips(path: Path) -> None:
    """What I3D is shown of the demo clip."""
    write_sheet(path, contact_sheet(fetch_demo_clip(), I3D_CLIP, columns=5))


def profiles() -> str:
    """Taps of four profiles, for a kernel of seven frames."""
    num_taps, slot, zero, per_unit = 7, WIDTH / 4, 222, 92  # pixels; a tap of one is 92 high
    parts = []
    for column, (profile, color) in enumerate(PROFILE_COLORS.items()):
        left = column * slot
        taps = profile_taps(profile, num_taps).tolist()
        parts.append(_text(left + slot / 2, 22, profile, size=15, weight=600))
        parts.append(_line(left + 16, zero, left + slot - 16, zero, "#999"))
        for i, tap in enumerate(taps):
            x, height = left + 24 + i * 28, abs(tap) * per_unit
            top = zero - height if tap > 0 else zero
            parts.append(f'<rect x="{x:.0f}" y="{top:.1f}" width="24" height="{height:.1f}" fill="{color}"/>')
            label = str(Fraction(tap).limit_denominator(99))
            parts.append(_text(x + 12, top - 5 if tap >= 0 else zero + height + 13, label, size=10))
            parts.append(
                _text(x + 12, zero + 46, f"{i - num_taps // 2:+d}" if i != num_taps // 2 else "0", fill="#555")
            )
        parts.append(_text(left + slot / 2, zero + 66, "frames from the present one", fill="#555"))
    return _svg(zero + 76, parts)


def borders() -> str:
    """Error at each frame of a still clip, by padding and profile; prints the numbers of the page."""
    net, picture = random_resnet18(), _noise(1, seed=7)
    paddings: tuple[TimePadding, ...] = ("zeros", "replicate")
    errors = {(pad, name): still_errors(net, picture, name, pad) for pad in paddings for name in PROFILE_COLORS}
    _print_border_numbers(net, picture, errors)
    left, right, top, height, low, high = 60, 216, 34, 320, -7, 3  # powers of ten

    def place(frame: int, error: float) -> tuple[float, float]:
        x = left + frame / 15 * (WIDTH - left - right)
        return x, top + (high - math.log10(error)) / (high - low) * height

    parts = [_text(14, 18, "relative error of the answer", anchor="start", fill="#555")]
    for power in range(low, high + 1):
        y = place(0, 10.0**power)[1]
        parts.append(_line(left, y, WIDTH - right, y, "#ddd"))
        raised = f'10<tspan dy="-5" font-size="9">{power}</tspan>'
        parts.append(f'<text x="{left - 10}" y="{y + 4:.1f}" text-anchor="end" fill="#555">{raised}</text>')
    for frame in range(16):
        parts.append(_text(place(frame, 1)[0], top + height + 18, str(frame + 1), fill="#555"))
    parts.append(_text(place(7.5, 1)[0], top + height + 38, "frame of a still clip of 16", fill="#555"))
    for (pad, name), values in errors.items():
        points = [place(frame, error) for frame, error in enumerate(values)]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        dash = f' stroke-dasharray="7 6" stroke-dashoffset="{7 * (name == "mean")}"' if pad == "replicate" else ""
        color = PROFILE_COLORS[name]
        parts.append(f'<polyline points="{line}" fill="none" stroke="{color}" stroke-width="2.5"{dash}/>')
        if pad == "zeros" and name != "center":
            x, y = points[-1]
            nudge = {"mean": -2, "lambda=0.5": 12}.get(name, 4)
            parts.append(_text(x + 10, y + nudge, f"{name}, zeros", anchor="start", fill=color))
    x, y = place(15, 1e-6)
    legend = [("negative, replicate", RED), ("mean, replicate", BLUE), ("lambda=0.5, replicate", PINK)]
    legend.append(("center, either of them", GREEN))
    for row, (label, color) in enumerate(legend):
        parts.append(_text(x + 10, y - 22 + row * 17, label, anchor="start", fill=color))
    return _svg(top + height + 50, parts)


def folding() -> str:
    """Frames folded into the batch, a 2D layer, an inflated layer that unfolds, and back."""
    middle, side, step = 136, 20, 24
    column = [middle - 4 * step + i * step + 2 for i in range(8)]

    def frame(x: float, y: float, row: int) -> str:
        color, number = (BLUE if row < 4 else RED), row % 4 + 1
        box = f'<rect x="{x}" y="{y}" width="{side}" height="{side}" rx="2" fill="{color}" stroke="#fff"/>'
        return box + _text(x + side / 2, y + 14, str(number), fill="#fff", size=11)

    def clips(x: float) -> list[str]:
        ys = (middle - 40, middle + 20)
        return [frame(x + (row % 4) * step, ys[row // 4], row) for row in range(8)]

    def box(x: float, width: float, lines: Sequence[str], *, top: float = 66, dashed: bool = False) -> list[str]:
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        rect = f'<rect x="{x}" y="{top}" width="{width}" height="{2 * (middle - top)}" rx="8"'
        texts = [_text(x + width / 2, middle - 4 + i * 18, line) for i, line in enumerate(lines)]
        return [f'{rect} fill="#f4f4f4" stroke="#888"{dash}/>', *texts]

    parts = clips(16)
    for left, right in ((118, 146), (178, 204), (296, 322), (354, 380), (620, 646), (678, 704), (796, 822)):
        parts.append(_line(left, middle, right - 4, middle, "#555"))
        parts.append(f'<path d="M{right - 8},{middle - 5} L{right},{middle} L{right - 8},{middle + 5}z" fill="#555"/>')
    for x in (152, 328, 652):
        parts += [frame(x, y, row) for row, y in enumerate(column)]
    parts += box(206, 88, ["2D layer", "(own code)"])
    parts += box(706, 88, ["2D layers,", "head"])
    parts += [*box(382, 236, [], top=24), *clips(452)]
    for y in (middle - 40, middle + 20):  # the kernel's reach: three frames
        row = 4 * (y > middle)
        parts.append(f'<g opacity="0.35">{frame(452 - step, y, row)}{frame(452 + 4 * step, y, row + 3)}</g>')
        frames = f'x="450" y="{y - 5}" width="{3 * step}" height="{side + 10}" rx="5"'
        parts.append(f'<rect {frames} fill="none" stroke="#000" stroke-width="2"/>')
    parts.append(_text(500, 46, "inflated layer", weight=600))
    parts.append(_text(500, 70, "unfold, repeat the end frames,"))
    parts.append(_text(500, middle + 74, "conv3d with its 5D weight,"))
    parts.append(_text(500, middle + 92, "fold"))
    for row, (color, name) in enumerate(((BLUE, "clip 1"), (RED, "clip 2"))):
        y = middle - 30 + row * 60
        parts.append(f'<rect x="828" y="{y - 11}" width="96" height="22" rx="3" fill="{color}"/>')
        parts.append(_text(876, y + 4, f"answer, {name}", fill="#fff", size=11))
    captions = ((64, "clip form"), (162, "frame form"), (338, "frame form"), (662, "frame form"), (876, "mean over"))
    shapes = ("[b c t h w]", "[b*t c h w]", "[b*t c h w]", "[b*t c h w]", "the frames")
    for (x, name), shape in zip(captions, shapes, strict=True):
        parts += [_text(x, 268, name, fill="#555"), _text(x, 286, shape, fill="#555")]
    parts.append(_text(500, 268, "clip form inside", fill="#555"))
    return _svg(300, parts)


def windows() -> str:
    """Windows over the frames of a short video, by three policies, with the time that each row stands for."""
    num_frames, step, left, row_height = 22, 32, 200, 20  # pixels
    policies = (
        ("16 frames, stride 4, drop", FeatureOptions(window=16, stride=4, fps=25.0), BLUE),
        ("16 frames, stride 8, right-align", FeatureOptions(window=16, stride=8, fps=25.0, tail="right-align"), RED),
        (
            "5 frames around every 4th, pad-zero",
            FeatureOptions(window=5, stride=4, fps=25.0, tail="pad-zero", align="center", stamp="middle-frame"),
            GREEN,
        ),
    )
    parts = [_text(left - 12, 39, "frame", anchor="end", fill="#555")]
    for frame in range(num_frames):
        x = left + frame * step
        parts.append(f'<rect x="{x + 1}" y="22" width="{step - 2}" height="26" fill="#ddd"/>')
        parts.append(_text(x + step / 2, 39, str(frame)))
    y = 62
    for title, options, color in policies:
        timeline = Timeline([frame / 25 for frame in range(num_frames)], num_frames / 25)
        length = int(options.window or 0)
        pieces = list(cut(range(num_frames), length, options.stride or 1, tail=options.tail, align=options.align))
        stamps = timeline.stamps([piece.start for piece in pieces], length, options)
        parts.append(_text(14, y + 14, title, anchor="start", weight=600, fill=color))
        y += 24
        for row, (piece, stamp) in enumerate(zip(pieces, stamps, strict=True)):
            parts.append(_text(14, y + 12, f"row {row}, {stamp:.2f} s", anchor="start", fill="#555"))
            for place, frame in enumerate(piece.frames):
                x = left + (piece.start + place) * step
                look = f'fill="{color}" fill-opacity="0.45"' if frame is not None else f'fill="none" stroke="{color}"'
                parts.append(f'<rect x="{x + 1}" y="{y}" width="{step - 2}" height="{row_height - 4}" {look}/>')
            x = left + stamp * 25 * step + (step / 2 if options.stamp == "middle-frame" else 0)
            parts.append(f'<circle cx="{x:.1f}" cy="{y + row_height / 2 - 2}" r="5" fill="{color}"/>')
            y += row_height
        y += 10
    return _svg(y, parts)


def random_resnet18() -> nn.Module:
    """A ResNet-18 whose weights and batch-norm statistics are random, the same ones each time."""
    torch.manual_seed(0)
    net = resnet18(weights=None).eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.1)
    return net


def still_errors(net: nn.Module, picture: Tensor, profile: str, pad: TimePadding, length: int = 16) -> list[float]:
    """Largest error of the answer at each frame of a still clip, over the 2D answer's largest value."""
    model3d = inflate(net, example=picture, profile=profile, rules={"*": Rule(padding=pad)}, time_pool="none")
    with torch.inference_mode():
        answer = net(picture).double()
        steps = model3d(picture.unsqueeze(2).repeat(1, 1, length, 1, 1)).double()
    return ((steps - answer[:, None]).abs().amax(-1)[0] / answer.abs().max()).tolist()


def _print_border_numbers(net: nn.Module, picture: Tensor, errors: dict[tuple[TimePadding, str], list[float]]) -> None:
    for (pad, name), values in errors.items():
        print(f"{pad:9} {name:10}", *(f"{values[i]:.2g}" for i in (0, 1, 3, 7, 15)), "at frames 1, 2, 4, 8, 16")
    for name in PROFILE_COLORS:
        single = still_errors(net, picture, name, "zeros", length=1)[0]
        double = max(still_errors(net.double(), picture.double(), name, "replicate"))
        net.float()
        print(f"{name:10} T = 1 with zeros {single:.2g}; float64, replicate, worst frame {double:.1g}")
    _print_growth(net, picture)
    pictures = _noise(16, seed=8)
    for name in PROFILE_COLORS:
        model3d = inflate(net, example=picture, profile=name, time_pool="none")
        with torch.inference_mode():
            ratio = model3d(pictures.transpose(0, 1)[None]).abs().max() / net(pictures).abs().max()
        print(f"{name:10} 16 unrelated pictures: largest logit {ratio:.2g} times that of the 2D model")


def _print_growth(net: nn.Module, picture: Tensor) -> None:
    """How the error of `mean` with zeros grows from layer to layer."""
    model3d = inflate(net, example=picture, rules={"*": Rule(padding="zeros")})
    outputs: dict[tuple[str, int], Tensor] = {}

    def listen(path: str, which: int, model: nn.Module) -> RemovableHandle:
        def keep(module: nn.Module, args: object, output: Tensor) -> None:
            outputs[path, which] = output.double()

        return model.get_submodule(path).register_forward_hook(keep)

    paths = ("conv1", "layer1", "layer2", "layer3", "layer4", "fc")
    handles = [listen(path, which, model) for path in paths for which, model in enumerate((net, model3d.net))]
    with torch.inference_mode():
        net(picture)
        model3d(picture.unsqueeze(2).repeat(1, 1, 16, 1, 1))
    for handle in handles:
        handle.remove()
    for path in paths:
        flat, deep = outputs[path, 0], outputs[path, 1]
        found = [float((deep[i] - flat[0]).abs().max() / flat.abs().max()) for i in (0, 3, 7)]
        print(f"zeros, mean, after {path}:", *(f"{error:.2g}" for error in found), "at frames 1, 4, 8")


def _noise(count: int, seed: int) -> Tensor:
    return torch.randn(count, 3, 112, 112, generator=torch.Generator().manual_seed(seed))


def _svg(height: float, parts: Sequence[str]) -> str:
    style = "font-family:system-ui,sans-serif;font-size:12px;background:#fff"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" style="{style}">'
    return "\n".join([head, f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>', *parts, "</svg>\n"])


def _text(
    x: float, y: float, text: str, *, anchor: str = "middle", fill: str = "#000", size: int = 12, weight: int = 400
) -> str:
    font = f'font-size="{size}" font-weight="{weight}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{fill}" {font}>{text}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, color: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{color}"/>'


DRAW = {
    "windows": windows,
    "profiles": profiles,
    "folding": folding,
    "borders": borders,
    "demo": demo,
    "similarity": similarity,
    "plan": plan,
}
PAINT = {"filters.png": filters, "filters.moving.webp": filters, "saliency.webp": saliency, "clips.webp": clips}


def main() -> None:
    """Draw those that are named, or all."""
    for name in sys.argv[1:] or [*DRAW, *PAINT]:
        if name in PAINT:
            PAINT[name](FIGURES / name)
        else:
            (FIGURES / f"{name}.svg").write_text(DRAW[name]())


if __name__ == "__main__":
    main()
