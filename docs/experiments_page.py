"""The page of the experiments: tables with intervals, curves, and the figures as JSON."""

import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from figures import FIGURES, WIDTH, _line, _svg, _text
from numpy.typing import NDArray

from inflate3d.atomic import write_text
from inflate3d.clips.dataset import Sample
from inflate3d.results.answering import Answers, fuse
from inflate3d.results.evaluate import Evaluation, Interval, evaluate
from inflate3d.show.answers import COLORS

DOCS = Path(__file__).parent
NAMES = {
    "frames": "2D network on each frame",
    "mean": "inflated, `mean`",
    "center": "inflated, `center`",
    "negative": "inflated, `negative`",
    "shift": "inflated, `shift`",
    "random": "random 3D",
    "flow-center": "inflated, `center`, on flow",
    "both": "`center` on RGB and on flow, joined",
    "frozen": "Kinetics-400 I3D, frozen, linear layer",
    "tuned": "Kinetics-400 I3D, fine-tuned",
}
PAPER_NAMES = {
    "lstm": "(a) ConvNet+LSTM",
    "c3d": "(b) 3D-ConvNet",
    "two-stream-rgb": "(c) Two-Stream, RGB",
    "two-stream-flow": "(c) Two-Stream, flow",
    "two-stream": "(c) Two-Stream",
    "fused": "(d) 3D-Fused",
    "i3d-rgb": "(e) I3D, RGB",
    "i3d-flow": "(e) I3D, flow",
    "i3d": "(e) Two-Stream I3D",
}
FLOORS = {"frozen 2D features, logistic regression": 0.418, "frozen I3D features, logistic regression": 0.55}
Cells = Mapping[str, dict[str, Any]]


def write_page(folder: Path) -> None:
    """Write docs/experiments.md, docs/experiments.json and the pictures from what is done so far."""
    cells = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    cells = {name: cell for name, cell in cells.items() if not cell["smoke"]}
    figures: dict[str, Any] = {
        "tennis": tennis_table(cells),
        "gesture": gesture_table(cells),
        "paper": paper_table(cells),
    }
    figures["convergence"] = {data: convergence(cells, data) for data in ("tennis", "gesture")}
    figures["filters"] = filters_table(cells)
    figures["cells"] = {
        name: {key: cell[key] for key in ("recipe", "train", "parameters", "seconds", "history", "machine", "versions")}
        for name, cell in cells.items()
    }
    write_text(DOCS / "experiments.json", json.dumps(figures, indent=1) + "\n")
    draw()
    page = DOCS / "experiments.md"
    words = page.read_text()
    for name, table in tables(figures).items():
        mark = rf"(<!-- table {name} -->\n).*?(\n<!-- end -->)"
        words = re.sub(mark, lambda found, table=table: found[1] + table + found[2], words, flags=re.DOTALL)
    write_text(page, words)


def draw() -> None:
    """Draw the pictures of docs/experiments.json."""
    cells = json.loads((DOCS / "experiments.json").read_text())["cells"]
    for data in ("tennis", "gesture"):
        write_text(FIGURES / f"learning_{data}.svg", learning_svg(curves_of(cells, data, "val_top1")))


def answers_of(test: Mapping[str, Any]) -> Answers:
    """Make answers again from what a cell keeps."""
    samples = tuple(
        Sample(name, (label,), group=group)
        for name, label, group in zip(test["names"], test["labels"], test["groups"], strict=True)
    )
    return Answers(samples, torch.tensor(test["logits"], dtype=torch.float64), tuple(test["class_names"]))


def joined(parts: Sequence[Answers]) -> Answers:
    """Put the test folds together: every clip has been tested once."""
    samples = tuple(sample for part in parts for sample in part.samples)
    return Answers(samples, torch.cat([part.logits for part in parts]), parts[0].class_names)


def row_of(found: Evaluation, seconds: float) -> dict[str, Any]:
    """Keep what a table shows."""
    scores = {name: list(found.scores[name]) for name in ("top1", "mean_class")}
    return {"clips": found.count, "groups": found.num_groups, **scores, "seconds": seconds}


def of_folds(cells: Cells, kind: str) -> list[dict[str, Any]]:
    """Find the cells of a kind, all folds or seeds."""
    return [cell for name, cell in cells.items() if re.fullmatch(re.escape(kind) + r"-\d+", name)]


def tennis_table(cells: Cells) -> dict[str, Any]:
    """4a: five folds by scene, put together."""
    table: dict[str, Any] = {}
    for kind in ("frames", "random", "mean", "center", "negative", "flow-center"):
        if found := of_folds(cells, f"tennis-{kind}"):
            answers = joined([answers_of(cell["test"]) for cell in found])
            table[kind] = row_of(evaluate(answers), sum(cell["seconds"] for cell in found)) | {"folds": len(found)}
    rgb, flow = of_folds(cells, "tennis-center"), of_folds(cells, "tennis-flow-center")
    if rgb and len(rgb) == len(flow):
        pairs = [(answers_of(a["test"]), answers_of(b["test"])) for a, b in zip(rgb, flow, strict=True)]
        answers = joined([fuse(*pair) for pair in pairs])
        table["both"] = row_of(evaluate(answers), 0) | {"folds": len(rgb)}
    for kind in ("frozen", "tuned"):
        if found := of_folds(cells, f"probe-{kind}"):
            answers = joined([answers_of(cell["test"]) for cell in found])
            table[kind] = row_of(evaluate(answers), sum(cell["seconds"] for cell in found)) | {"folds": len(found)}
    return table


def gesture_table(cells: Cells) -> dict[str, Any]:
    """4b: one fold, several seeds, forwards and backwards, and by epoch."""
    table: dict[str, Any] = {}
    for kind in ("frames", "random", "mean", "center", "negative", "shift"):
        found = of_folds(cells, f"gesture-{kind}")
        if not found:
            continue
        forwards = [evaluate(answers_of(cell["test"])) for cell in found]
        backwards = [evaluate(answers_of(cell["backwards"])) for cell in found]
        seen = np.array([[[row["forwards"], row["backwards"]] for row in cell["sees_time"]] for cell in found])
        table[kind] = {
            "seeds": len(found),
            "top1": mean_interval([one.scores["top1"] for one in forwards]),
            "by_seed": [one.scores["top1"].value for one in forwards],
            "backwards": mean_interval([one.scores["top1"] for one in backwards]),
            "validation_forwards": seen[..., 0].mean(0).tolist(),
            "validation_backwards": seen[..., 1].mean(0).tolist(),
            "seconds": sum(cell["seconds"] for cell in found),
        }
    return table


def mean_interval(scores: Sequence[Interval]) -> list[float]:
    """Average scores over seeds, and their bounds: of groups, not of seeds."""
    return [float(np.mean([getattr(score, name) for score in scores])) for name in Interval._fields]


def paper_table(cells: Cells) -> dict[str, Any]:
    """4e: each architecture on the same clips for the same epochs."""
    table: dict[str, Any] = {}
    kept: dict[str, Answers] = {}
    for kind in PAPER_NAMES:
        if cell := cells.get(f"paper-{kind}"):
            kept[kind] = answers_of(cell["test"])
            table[kind] = row_of(evaluate(kept[kind]), cell["seconds"]) | {"parameters": cell["parameters"]}
    for whole in ("two-stream", "i3d"):
        parts = [f"{whole}-rgb", f"{whole}-flow"]
        if all(part in kept for part in parts):
            seconds, parameters = (sum(table[part][key] for part in parts) for key in ("seconds", "parameters"))
            table[whole] = row_of(evaluate(fuse(*(kept[part] for part in parts))), seconds) | {"parameters": parameters}
    return {kind: table[kind] for kind in PAPER_NAMES if kind in table}


def curves_of(cells: Cells, data: str, value: str) -> dict[str, list[list[float]]]:
    """Gather a value by epoch: kind to one curve for each fold or seed."""
    found: dict[str, list[list[float]]] = defaultdict(list)
    for name, cell in cells.items():
        kind = re.fullmatch(rf"{data}-([a-z]+)-\d+", name)
        if kind:
            found[kind[1]].append([row[value] for row in cell["history"]])
    return dict(found)


def convergence(cells: Cells, data: str) -> dict[str, Any]:
    """4c: how well networks fit the clips they learn from, and others, and what inflation gains on random weights."""
    curves, losses = curves_of(cells, data, "val_top1"), curves_of(cells, data, "train_loss_epoch")
    table: dict[str, Any] = {}
    for kind, runs in curves.items():
        areas, loss = np.array([np.mean(run) for run in runs]), np.array([run[-1] for run in losses[kind]])
        table[kind] = {
            "runs": len(runs),
            "mean_over_epochs": float(areas.mean()),
            "last": float(np.mean([r[-1] for r in runs])),
            "training_loss": float(loss.mean()),
        }
        if kind != "random" and len(curves.get("random", [])) == len(runs) > 1:
            table[kind]["gain"] = _gain(areas, np.array([np.mean(run) for run in curves["random"]]))
            table[kind]["loss_gain"] = _gain(loss, np.array([run[-1] for run in losses["random"]]))
    return table


def _gain(ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> list[float]:
    """Average the differences run by run, with their bounds."""
    drawn = np.random.default_rng(0).choice(ours - theirs, (5000, len(ours))).mean(1)
    return [float((ours - theirs).mean()), *np.percentile(drawn, [2.5, 97.5]).tolist()]


def filters_table(cells: Cells) -> dict[str, Any]:
    """4d: how far kernels have moved, and what of them their profile no longer explains; mean of layers and runs."""
    table: dict[str, Any] = {}
    for data in ("tennis", "gesture"):
        for kind in ("mean", "center", "negative", "random", "shift"):
            rows = [row for cell in of_folds(cells, f"{data}-{kind}") for row in cell.get("filters", [])]
            if rows:
                outside = [row["outside"] for row in rows if "outside" in row]
                table[f"{data}-{kind}"] = {
                    "layers": len({row["layer"] for row in rows}),
                    "moved": float(np.mean([row["moved"] for row in rows])),
                    "outside": float(np.mean(outside)) if outside else None,
                }
    return table


def tables(figures: Mapping[str, Any]) -> dict[str, str]:
    """Write the tables of the page."""
    tennis = [
        f"| {NAMES[kind]} | {share(row['top1'])} | {share(row['mean_class'])} | {row['folds']} "
        f"| {row['seconds'] / 60:.0f} |"
        for kind, row in figures["tennis"].items()
    ]
    tennis += [f"| {name} (floor) | {value:.1%} | | 5 | |" for name, value in FLOORS.items()]
    gesture = [
        f"| {NAMES[kind]} | {row['seeds']} | {share(row['top1'])} | {share(row['backwards'])} | "
        + " ".join(
            f"{a:.0%}/{b:.0%}" for a, b in zip(row["validation_forwards"], row["validation_backwards"], strict=True)
        )
        + " |"
        for kind, row in figures["gesture"].items()
    ]
    paper = [
        f"| {PAPER_NAMES[kind]} | {share(row['top1'])} | {row['parameters'] / 1e6:.1f} M | {row['seconds'] / 60:.0f} |"
        for kind, row in figures["paper"].items()
    ]
    claims = [
        f"| {data} | {NAMES[kind]} | {row['runs']} | {row['training_loss']:.2f} | "
        + (
            f"{row['loss_gain'][0]:+.2f} ({row['loss_gain'][1]:+.2f} to {row['loss_gain'][2]:+.2f})"
            if "gain" in row
            else ""
        )
        + f" | {row['mean_over_epochs']:.1%} | {row['last']:.1%} | "
        + (f"{row['gain'][0]:+.1%} ({row['gain'][1]:+.1%} to {row['gain'][2]:+.1%})" if "gain" in row else "")
        + " |"
        for data, found in figures["convergence"].items()
        for kind, row in found.items()
    ]
    filters = [
        f"| {name.partition('-')[0]} | {NAMES[name.partition('-')[2]]} | {row['layers']} | {row['moved']:.1%} | "
        + (f"{row['outside']:.1%}" if row["outside"] is not None else "")
        + " |"
        for name, row in figures["filters"].items()
    ]
    heads = {
        "tennis": ("network | top-1 | mean of classes | folds | minutes", tennis),
        "gesture": ("network | seeds | top-1 | shown backwards | validation by epoch, forwards/backwards", gesture),
        "paper": ("architecture | top-1 | parameters | minutes", paper),
        "convergence": (
            "clips | network | runs | training loss, last epoch | against random | validation, mean over epochs | last "
            "| against random",
            claims,
        ),
        "filters": ("clips | network | layers | moved | outside of its profile", filters),
    }
    return {
        name: "\n".join([f"| {head} |", "|" + " --- |" * (head.count("|") + 1), *rows])
        for name, (head, rows) in heads.items()
    }


def share(score: Sequence[float]) -> str:
    """Write a share with its interval."""
    value, low, high = score
    return f"{value:.1%} ({low:.1%} to {high:.1%})"


def learning_svg(curves: Mapping[str, Sequence[Sequence[float]]]) -> str:
    """Draw validation accuracy by epoch: mean over folds or seeds, and each of them faintly."""
    left, right, top, height = 60, 240, 24, 300
    epochs = max((len(run) for runs in curves.values() for run in runs), default=1)

    def at(epoch: int, value: float) -> str:
        x = left + epoch / max(epochs - 1, 1) * (WIDTH - left - right)
        return f"{x:.1f},{top + (1 - value) * height:.1f}"

    parts = []
    for percent in range(0, 101, 25):
        y = top + (1 - percent / 100) * height
        parts += [
            _line(left, y, WIDTH - right, y, "#ddd"),
            _text(left - 10, y + 4, f"{percent}%", anchor="end", fill="#555"),
        ]
    for epoch in range(epochs):
        parts.append(_text(float(at(epoch, 0).split(",")[0]), top + height + 18, str(epoch + 1), fill="#555"))
    parts.append(_text((left + WIDTH - right) / 2, top + height + 38, "epoch", fill="#555"))
    for row, ((kind, runs), color) in enumerate(zip(curves.items(), COLORS, strict=False)):
        for run in runs:
            line = " ".join(at(epoch, value) for epoch, value in enumerate(run))
            parts.append(f'<polyline points="{line}" fill="none" stroke="{color}" opacity="0.25"/>')
        mean = np.mean([run for run in runs if len(run) == len(runs[0])], axis=0).tolist()
        line = " ".join(at(epoch, value) for epoch, value in enumerate(mean))
        parts.append(f'<polyline points="{line}" fill="none" stroke="{color}" stroke-width="2.5"/>')
        y = top + 14 + row * 22
        parts.append(f'<rect x="{WIDTH - right + 24}" y="{y - 9}" width="12" height="12" fill="{color}"/>')
        parts.append(_text(WIDTH - right + 44, y + 1, NAMES[kind].replace("`", ""), anchor="start"))
    return _svg(top + height + 50, parts)
