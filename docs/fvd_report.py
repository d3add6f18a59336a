"""Measure how the Fréchet Video Distance reacts to damage and to the number of clips: the figures of docs/fvd.md.

    python docs/fvd_report.py measure VIDEOS --features FOLDER     # hours on a laptop; goes on where it was stopped
    python docs/fvd_report.py draw

VIDEOS is a folder of real videos of at least 48 frames. `measure` writes docs/fvd.json (numbers only), `draw` makes the
pictures of it and prints the tables.
"""

import argparse
import json
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torchvision.transforms.v2.functional as image
from figures import FIGURES, WIDTH, _line, _svg, _text
from safetensors.torch import load_file, save_file
from torch import Tensor

from inflate3d import load, read_clip
from inflate3d.axes import clip_to_frames, frames_to_clip
from inflate3d.clips.stills import find_videos
from inflate3d.results.fvd_distance import Gaussian, extrapolate, frechet_distance, kernel_distance
from inflate3d.results.fvd_protocols import PROTOCOLS, FeatureNetwork, Protocol, pixels
from inflate3d.show.answers import COLORS

NUMBERS = Path(__file__).parent / "fvd.json"
FRAMES, CLIPS, WINDOWS = 16, 32, 3
MEASURED = [name for name in PROTOCOLS if name != "fvd-comparison"]  # which is given what common-metrics makes
SIZES = (16, 32, 64, 128, 256)


def blur(clip: Tensor, strength: int) -> Tensor:
    """Blur each frame with a Gaussian of so many pixels."""
    return frames_to_clip(image.gaussian_blur(clip_to_frames(clip), [8 * strength + 1] * 2, [float(strength)] * 2))


def noise(clip: Tensor, strength: int) -> Tensor:
    """Add Gaussian noise of so many of 255 levels, another one in each frame."""
    draw = torch.Generator().manual_seed(int(clip.sum()))  # another noise in each clip
    levels = clip + strength * torch.randn(clip.shape, generator=draw)
    return levels.round().clamp(0, 255).to(torch.uint8)


def freeze(clip: Tensor, strength: int) -> Tensor:
    """Show each frame so many times, and leave out as many behind it."""
    return clip[:, :, torch.arange(clip.shape[2]) // strength * strength]


def shuffle(clip: Tensor, strength: int) -> Tensor:
    """Put the frames of each run of so many into a random order, the same one in every clip."""
    order, draw = list(range(clip.shape[2])), random.Random(strength)
    runs = [order[i : i + strength] for i in range(0, len(order), strength)]
    for run in runs:
        before = list(run)
        while run == before:
            draw.shuffle(run)
    return clip[:, :, [i for run in runs for i in run]]


DAMAGE: dict[str, tuple[Callable[[Tensor, int], Tensor], tuple[int, ...], str]] = {
    "blur": (blur, (1, 2, 4), "sigma, pixels"),
    "noise": (noise, (8, 16, 32), "sigma, of 255 levels"),
    "freeze": (freeze, (2, 4, 16), "frames that stand still"),
    "shuffle": (shuffle, (2, 4, 16), "frames in a shuffled run"),
}


def clips_of(videos: Path, windows: int, count: int | None = None) -> Iterator[Tensor]:
    """Give `windows` clips of each video, one behind the other; of `count` videos spread over all."""
    paths = find_videos([videos])
    chosen = paths if count is None else [paths[i * len(paths) // count] for i in range(count)]
    for path in chosen:
        frames = read_clip(path, fps="native", num_frames=FRAMES * windows).data
        yield from (part[None] for part in frames.split(FRAMES, dim=1) if part.shape[1] == FRAMES)


def features(network: FeatureNetwork, protocol: Protocol, clips: Iterator[Tensor], kept: Path) -> Tensor:
    """Run clips through the network, or read what an earlier run kept."""
    if not kept.exists():
        rows = [network(pixels(clip, protocol, from_file=True)) for clip in clips]
        kept.parent.mkdir(parents=True, exist_ok=True)
        save_file({"features": torch.cat(rows)}, kept.with_suffix(".part"))
        kept.with_suffix(".part").rename(kept)
        print(kept.stem, flush=True)
    return load_file(kept)["features"]


def distance(one: Tensor, two: Tensor, protocol: Protocol) -> float:
    """Measure as the protocol does, in exact numerics."""
    return frechet_distance(Gaussian.of(one), Gaussian.of(two), covariance=protocol.covariance).value


def measure(videos: Path, folder: Path) -> None:
    """Write docs/fvd.json."""
    model = load("i3d-kinetics400")
    numbers: dict[str, dict[str, list[float]]] = {}
    for name in MEASURED:
        protocol = PROTOCOLS[name]
        network = FeatureNetwork(model, protocol)
        clean = features(network, protocol, clips_of(videos, 1, CLIPS), folder / f"{name}-clean.safetensors")
        numbers[name] = {}
        for kind, (harm, strengths, _) in DAMAGE.items():
            found = []
            for strength in strengths:
                harmed = (harm(clip, strength) for clip in clips_of(videos, 1, CLIPS))
                kept = folder / f"{name}-{kind}-{strength}.safetensors"
                found.append(distance(clean, features(network, protocol, harmed, kept), protocol))
            numbers[name][kind] = found
    protocol = PROTOCOLS["stylegan-v"]
    every = features(FeatureNetwork(model, protocol), protocol, clips_of(videos, WINDOWS), folder / "every.safetensors")
    document = {"clips": CLIPS, "damage": numbers, "equal_sets": equal_sets(every, protocol)}
    NUMBERS.write_text(json.dumps(document, indent=1) + "\n")


def equal_sets(every: Tensor, protocol: Protocol, repeats: int = 50) -> dict[str, object]:
    """Split all clips at random into two halves and compare parts of them: the true distance is zero."""
    half = len(every) // 2
    sizes = [*(size for size in SIZES if size < half), half]
    found: dict[int, list[tuple[float, float]]] = {size: [] for size in sizes}
    limits = []
    for seed in range(repeats):
        order = torch.randperm(len(every), generator=torch.Generator().manual_seed(seed))
        one, two = every[order[:half]], every[order[half : 2 * half]]
        for size in sizes:
            a, b = one[:size], two[:size]
            found[size].append((distance(a, b, protocol), kernel_distance(a, b).value))
        limits.append(extrapolate(one, two, lambda a, b: distance(a, b, protocol)))
    means = torch.tensor([found[size] for size in sizes], dtype=torch.float64)  # [sizes, repeats, 2]
    return {
        "trace": float(Gaussian.of(every).covariance("biased").trace()),
        "sizes": sizes,
        "fvd": means[..., 0].mean(1).tolist(),
        "kvd": means[..., 1].mean(1).tolist(),
        "infinity": float(torch.tensor(limits, dtype=torch.float64).mean()),
    }


def draw() -> None:
    """Make the pictures, and print the tables."""
    document = json.loads(NUMBERS.read_text())
    (FIGURES / "fvd_damage.svg").write_text(damage_picture(document["damage"]))
    (FIGURES / "fvd_clips.svg").write_text(clips_picture(document["equal_sets"]))
    for kind, (_, strengths, unit) in DAMAGE.items():
        print(f"\n| {kind}: {unit} | " + " | ".join(map(str, strengths)) + " |\n|---|" + "---|" * len(strengths))
        for name, found in document["damage"].items():
            print(f"| {name} | " + " | ".join(f"{value:.1f}" for value in found[kind]) + " |")
    equal = document["equal_sets"]
    print(
        "\n| clips on each side | " + " | ".join(map(str, equal["sizes"])) + " |\n|---|" + "---|" * len(equal["sizes"])
    )
    print("| FVD | " + " | ".join(f"{value:.1f}" for value in equal["fvd"]) + " |")
    print("| KVD | " + " | ".join(f"{value:.2f}" for value in equal["kvd"]) + " |")
    print(f"\ntrace of the covariance {equal['trace']:.1f}, extrapolated {equal['infinity']:.1f}")


def damage_picture(numbers: dict[str, dict[str, list[float]]]) -> str:
    """One panel for each kind of damage: distance over strength, a line for each protocol, all on one scale."""
    top, height, slot, inset = 34, 240, WIDTH / 4, 44
    highest = max(value for found in numbers.values() for values in found.values() for value in values)
    step = next(step for step in (20, 50, 100, 200, 500, 1000) if highest / step <= 6)
    limit = (highest // step + 1) * step
    parts = []
    for column, (kind, (_, strengths, unit)) in enumerate(DAMAGE.items()):
        left, width = column * slot + inset, slot - inset - 12

        def place(i: int, value: float, left: float = left, width: float = width) -> tuple[float, float]:
            return left + i / 3 * width, top + height - value / limit * height

        parts.append(_text(left + width / 2, 20, kind, size=15, weight=600))
        for tick in range(0, int(limit) + 1, step):
            y = place(0, tick)[1]
            parts.append(_line(left, y, left + width, y, "#ddd"))
            parts.append(_text(left - 6, y + 4, str(tick), anchor="end", fill="#555"))
        untouched = int(kind in {"freeze", "shuffle"})  # each frame once, runs of one frame
        for i, strength in enumerate((untouched, *strengths)):
            parts.append(_text(place(i, 0)[0], top + height + 18, str(strength), fill="#555"))
        parts.append(_text(left + width / 2, top + height + 36, unit, fill="#555"))
        for color, found in zip(COLORS, numbers.values(), strict=False):
            points = [place(i, value) for i, value in enumerate([0.0, *found[kind]])]
            line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
            parts.append(f'<polyline points="{line}" fill="none" stroke="{color}" stroke-width="2.5"/>')
    for i, (color, name) in enumerate(zip(COLORS, numbers, strict=False)):
        x, y = inset + i * 150, top + height + 62
        parts.append(_line(x, y, x + 24, y, color).replace("/>", ' stroke-width="3"/>'))
        parts.append(_text(x + 30, y + 4, name, anchor="start"))
    return _svg(top + height + 76, parts)


def clips_picture(equal: dict[str, list[float]]) -> str:
    """Distance between two halves of one set over the number of clips, which ought to be zero."""
    left, right, top, height = 60, 200, 20, 240
    limit = max(equal["fvd"]) * 1.08

    def place(i: int, value: float) -> tuple[float, float]:
        x = left + 20 + i / (len(equal["sizes"]) - 1) * (WIDTH - left - right - 40)
        return x, top + height - value / limit * height

    parts = [_line(left, top + height, WIDTH - right, top + height, "#999")]
    for i, (size, value) in enumerate(zip(equal["sizes"], equal["fvd"], strict=True)):
        x, y = place(i, value)
        parts.append(
            f'<rect x="{x - 22:.1f}" y="{y:.1f}" width="44" height="{top + height - y:.1f}" fill="{COLORS[0]}"/>'
        )
        parts.append(_text(x, y - 6, f"{value:.0f}"))
        parts.append(_text(x, top + height + 18, str(size), fill="#555"))
    parts.append(_text((left + WIDTH - right) / 2, top + height + 38, "clips on each side", fill="#555"))
    y = place(0, max(equal["infinity"], 0.0))[1]
    parts.append(
        _line(left, y, WIDTH - right, y, COLORS[1]).replace("/>", ' stroke-width="2" stroke-dasharray="7 6"/>')
    )
    parts.append(
        _text(WIDTH - right + 8, y + 4, f"extrapolated: {equal['infinity']:.0f}", anchor="start", fill=COLORS[1])
    )
    return _svg(top + height + 50, parts)


def main() -> None:
    """Measure, or draw what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["measure", "draw"])
    parser.add_argument("videos", type=Path, nargs="?")
    parser.add_argument("--features", type=Path, default=Path("fvd-features"))
    arguments = parser.parse_args()
    if arguments.what == "measure":
        if arguments.videos is None:
            sys.exit("measure needs a folder of videos")
        measure(arguments.videos, arguments.features)
    draw()


if __name__ == "__main__":
    main()
