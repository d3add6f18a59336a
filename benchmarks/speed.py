"""How fast networks run, beside the ports and runtimes that people use: by turns in one run, medians and ratios.

    python benchmarks/speed.py [--peers FOLDER] [--quick] [network|growth|inflated ...]

One window of I3D is 64 x 224 x 224 and has DeepMind's weights. Each way to run it is a process of its own, so that its
memory is its own; the first round of each warms up and is not counted. The machine's own rate is that of a product of
two matrices of 2048 x 2048 in the same precision, taken in the same rounds. `--peers` is a folder with clones and
environments; what is missing is named.
"""

import argparse
import statistics
import tempfile
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torchvision.models.video
from machine import HOW, Settings
from networks import MATRIX, command
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from turns import Answer, Side, by_turns, median_ratio, print_figures, say, start_sides

from inflate3d import InceptionI3d, fetch, load
from inflate3d.clips.sampling import windows
from inflate3d.clips.transforms import frames_to_input, resize_picture
from inflate3d.clips.video import open_frames
from inflate3d.models.inception import I3D_CLIP
from inflate3d.speed.optimize import optimize
from inflate3d.weights.checkpoint import convert_checkpoint

ROUNDS = 5
FRAMES = 64
SCALE = {"r3d_18": [1, 3, 16, 112, 112], "s3d": [1, 3, FRAMES, 224, 224]}  # torchvision's, each at a size of its own
GROWTH: dict[str, dict[int, list[int]]] = {
    "frames": {t: [1, 3, t, 224, 224] for t in (16, 32, 64, 128)},
    "side": {side: [1, 3, FRAMES, side, side] for side in (112, 160, 224, 320)},
    "windows": {count: [count, 3, FRAMES, 224, 224] for count in (1, 2, 4)},
}
INFLATED = ("resnet50", "efficientnet_b0", "convnext_tiny")
CALIBRATION = 8


def network(settings: Settings) -> Answer:
    """I3D, one window: ours, other people's, other runtimes."""
    fetch("i3d-kinetics400")
    frames = 16 if settings.quick else FRAMES
    missing: Answer = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        clip = first_window(settings.videos()[0], frames)
        np.save(folder / "clip.npy", clip.numpy())
        commands = _peers(settings, folder, missing) | _ours(settings) | _runtimes(settings, folder, clip, missing)
        for model, shape in SCALE.items():
            commands[model] = command("torchvision", name=model, shape=shape)
        for dtype in ("float32", "bfloat16"):
            commands[f"matrices, {dtype}"] = command("matrices", dtype=dtype)
        sides, failed = start_sides(commands)
        job = {"clip": str(folder / "clip.npy"), "answer": True}
        answers, failed_later = by_turns(sides, [job], runs=settings.rounds(ROUNDS))
    rates = {
        dtype: [2 * MATRIX**3 / run[0]["seconds"] / 1e9 for run in answers.pop(f"matrices, {dtype}")]
        for dtype in ("float32", "bfloat16")
    }
    cost = {name: gflop(InceptionI3d(), [1, 3, frames, 224, 224]) for name in answers} | {
        name: gflop(getattr(torchvision.models.video, name)(), shape) for name, shape in SCALE.items()
    }
    base = "piergiaj" if "piergiaj" in answers else "plain"
    rows = _rows(answers, sides, base=base, cost=cost)
    for name, row in rows.items():
        dtype = {"fp32": "float32", "bf16": "bfloat16"}.get(name.removesuffix(", two at a time"))
        if dtype:
            shares = [cost[name] / seconds / rate for seconds, rate in zip(row["runs"], rates[dtype], strict=True)]
            row["share_of_matrix_rate"] = statistics.median(shares)
    return {
        "shape": [1, 3, frames, 224, 224],
        "base": base,
        "rows": rows,
        "matrix_gflops": {dtype: statistics.median(found) for dtype, found in rates.items()},
        "not_run": missing | failed | failed_later,
    }


def growth(settings: Settings) -> Answer:
    """How time and memory grow with frames, pixels, windows at a time and threads."""
    found: Answer = {}
    count = settings.rounds(2) + 1
    for axis, shapes in GROWTH.items():
        chosen = dict(list(shapes.items())[:2]) if settings.quick else shapes
        options = {"running_alone": True}
        if axis == "side":
            options["endpoint"] = "Mixed_5c"  # the head wants 193 pixels or more
        sides, _ = start_sides({name: command("ours", precision=name, **options) for name in ("fp32", "bf16")})
        # peaks are those of the first round, where sizes rise
        answers, _ = by_turns(sides, [{"shape": shape} for shape in chosen.values()], runs=count, warm_up=False)
        found[axis] = {"points": list(chosen)} | {
            name: {
                "seconds": [statistics.median(job["seconds"] for job in jobs) for jobs in zip(*runs[1:], strict=True)],
                "peak_gb": [job["peak_bytes"] / 1e9 for job in runs[0]],
            }
            for name, runs in answers.items()
        }
    sides = {}
    for threads in (1, 2):
        for name in ("fp32", "bf16"):
            way = command("ours", precision=name, threads=threads, running_alone=True)
            sides[f"{name} {threads}"] = Side(way, threads=threads)
    shape = [1, 3, 16 if settings.quick else FRAMES, 224, 224]
    answers, _ = by_turns(sides, [{"shape": shape}], runs=count - 1)
    found["threads"] = {"points": [1, 2]} | {
        name: {
            "seconds": [
                statistics.median(run[0]["seconds"] for run in answers[f"{name} {threads}"]) for threads in (1, 2)
            ],
            "peak_gb": [answers[f"{name} {threads}"][0][0]["peak_bytes"] / 1e9 for threads in (1, 2)],
        }
        for name in ("fp32", "bf16")
    }
    return found


def inflated(settings: Settings) -> Answer:
    """Inflated 2D models, random weights, against the same model as it comes: eager, contiguous, float32."""
    found = {}
    for name in INFLATED[:1] if settings.quick else INFLATED:
        commands = {way: command("inflated", name=name, precision=way) for way in ("plain", "fp32", "bf16")}
        sides, _ = start_sides(commands)
        answers, _ = by_turns(sides, [{"shape": [1, 3, 8, 224, 224], "answer": True}], runs=settings.rounds(5))
        found[name] = _rows(answers, sides, base="plain", cost={})
    return {"shape": [1, 3, 8, 224, 224], "models": found}


def first_window(video: Path, frames: int) -> torch.Tensor:
    """Read the first window of a video as I3D is shown it, at the video's own rate; a short one is looped."""
    pictures = (resize_picture(frame.picture, I3D_CLIP.short_side) for frame in open_frames(video, fps="native"))
    window = next(windows(islice(pictures, frames), frames, frames))
    return frames_to_input(window.frames, I3D_CLIP).contiguous()


def gflop(model: nn.Module, shape: list[int]) -> float:
    """Count billions of additions and multiplications."""
    with torch.no_grad(), FlopCounterMode(display=False) as flops:
        model.eval().to("meta")(torch.zeros(shape, device="meta"))
    return flops.get_total_flops() / 1e9


def _rows(
    answers: dict[str, list[list[Answer]]], sides: dict[str, Side], *, base: str, cost: dict[str, float]
) -> dict[str, Answer]:
    rows: dict[str, Answer] = {}
    wanted = np.array(answers["plain"][0][0]["logits"])
    for name, rounds in answers.items():
        took = [jobs[0]["seconds"] for jobs in rounds]
        rows[name] = {
            "seconds": statistics.median(took),
            "ratio": median_ratio([jobs[0]["seconds"] for jobs in answers[base]], took),
            "peak_gb": rounds[0][0]["peak_bytes"] / 1e9,
            "start_seconds": sides[name].start_seconds,
            "runs": took,
        }
        if name in cost:
            rows[name]["gflop"] = cost[name]
        logits = np.array(rounds[0][0]["logits"])
        if name not in SCALE:
            rows[name]["difference"] = float(np.abs(logits - wanted).max() / np.abs(wanted).max())
            rows[name]["cosine"] = float((logits * wanted).sum() / np.linalg.norm(logits) / np.linalg.norm(wanted))
    return rows


def _peers(settings: Settings, folder: Path, missing: Answer) -> dict[str, list[str]]:
    commands = {}
    for peer in ("piergiaj", "hassony2"):
        clone = settings.clone(peer)
        if clone is None:
            missing[peer] = HOW[peer]
            continue
        weights = folder / f"{peer}.pt"
        convert_checkpoint(fetch("i3d-kinetics400"), weights, to=peer)
        commands[peer] = command(peer, folder=str(clone), weights=str(weights))
    python = settings.jax()
    if python:
        commands["jax"] = command("jax", python)
    else:
        missing["jax"] = HOW["jax"]
    return commands


def _ours(settings: Settings) -> dict[str, list[str]]:
    commands = {name: command("ours", precision=name) for name in ("plain", "fp32", "bf16")}
    commands["bf16, two at a time"] = command("lanes", precision="bf16")
    if not settings.quick:
        commands |= {f"{name}, compiled": command("ours", precision=name, compiled=True) for name in ("fp32", "bf16")}
    return commands


def _runtimes(settings: Settings, folder: Path, clip: torch.Tensor, missing: Answer) -> dict[str, list[str]]:
    """Write the network for other runtimes."""
    model, commands = load("i3d-kinetics400"), {}
    writers: dict[str, tuple[tuple[str, ...], Callable[[], dict[str, list[str]]]]] = {
        "onnxruntime": (("onnx", "onnxruntime"), lambda: _onnx(model, clip, folder)),
        "openvino": (("openvino",), lambda: _openvino(model, clip, folder)),
        "int8": (("openvino", "nncf"), lambda: _int8(model, settings, folder, clip.shape[2])),
    }
    for name, (packages, write) in writers.items():
        if all(find_spec(package) for package in packages):
            say(f"  {name}: writing the network")
            try:
                commands |= write()
            except Exception as error:  # a version of it that cannot: the others are measured all the same
                missing[name] = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
        else:
            missing[name] = HOW[name]
    return commands


def _onnx(model: nn.Module, clip: torch.Tensor, folder: Path) -> dict[str, list[str]]:
    file = folder / "i3d.onnx"
    fixed = torch.export.export(model, (clip,)).module()  # sizes have become numbers, which the older exporter wants
    with torch.no_grad(), warnings.catch_warnings(action="ignore"):
        torch.onnx.export(torch.jit.trace(fixed, (clip,)), (clip,), file, dynamo=False)
    return {"onnxruntime": command("onnxruntime", file=str(file))}


def _openvino(model: nn.Module, clip: torch.Tensor, folder: Path) -> dict[str, list[str]]:
    import openvino

    file = folder / "i3d.xml"
    exported = torch.export.export(model, (clip,))
    openvino.save_model(openvino.convert_model(exported), file, compress_to_fp16=False)
    return {f"openvino, {name}": command("openvino", file=str(file), precision=name) for name in ("f32", "bf16")}


def _int8(model: nn.Module, settings: Settings, folder: Path, frames: int) -> dict[str, list[str]]:
    """Calibrated with noise: for the time it takes only. accuracy.py looks at the answers."""
    clips = [torch.rand(1, 3, frames, 224, 224) * 2 - 1 for _ in range(2 if settings.quick else CALIBRATION)]
    torch.save(optimize(model, "int8", calibration=clips), folder / "int8.pt")
    return {"int8": command("saved", file=str(folder / "int8.pt"))}


SECTIONS: dict[str, Callable[[Settings], Answer]] = {"network": network, "growth": growth, "inflated": inflated}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="|".join(SECTIONS))
    parser.add_argument("--peers", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    settings = Settings(options.peers, options.data, options.quick)
    print_figures(lambda: {name: SECTIONS[name](settings) for name in options.sections or SECTIONS})


if __name__ == "__main__":
    main()
