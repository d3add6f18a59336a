"""Measure where the Kinetics-400 I3D looks in six labelled videos: the table of docs/show.md.

    python docs/saliency.py VIDEOS [PICTURES]    # a quarter of an hour

VIDEOS has a folder for each clip of saliency_boxes.json. What is published are numbers: docs/saliency.json, and the
table of the page. PICTURES is a folder for the maps, to be looked at.
"""

import json
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from inflate3d import load
from inflate3d.atomic import write_text
from inflate3d.clips.stills import find_videos
from inflate3d.errors import InflateWarning
from inflate3d.show.saliency import SaliencyOptions, find_saliency, write_saliency

HERE = Path(__file__).parent
BOXES, NUMBERS, PAGE = HERE / "saliency_boxes.json", HERE / "saliency.json", HERE / "show.md"
FRAMES = 64
BLOB_SIGMA = 1 / 4  # of a side
WAYS = {
    "Grad-CAM, Mixed_5c": SaliencyOptions(fps="native", num_frames=FRAMES),
    "Grad-CAM, Mixed_4f": SaliencyOptions(fps="native", num_frames=FRAMES, layer="Mixed_4f"),
    "integrated gradients": SaliencyOptions("integrated-gradients", fps="native", num_frames=FRAMES),
}
BLOB, AREA = "centred blob", "area of the box"


def box_masks(boxes: dict[str, list[float]], num_frames: int, side: int) -> Tensor:
    """Fill the boxes, which move evenly from one frame that has one to the next: `[t, h, w]`, 1 inside."""
    known = sorted((int(frame), torch.tensor(box, dtype=torch.float64)) for frame, box in boxes.items())
    masks = torch.zeros(num_frames, side, side, dtype=torch.float64)
    for frame in range(num_frames):
        before = max((one for one in known if one[0] <= frame), key=lambda one: one[0], default=known[0])
        behind = min((one for one in known if one[0] >= frame), key=lambda one: one[0], default=known[-1])
        share = (frame - before[0]) / max(behind[0] - before[0], 1)
        left, top, right, bottom = (before[1] + share * (behind[1] - before[1])).round().int().tolist()
        masks[frame, top:bottom, left:right] = 1
    return masks


def share_inside(maps: Tensor, masks: Tensor) -> float:
    """Tell which share of the maps lies inside."""
    return float((maps.double() * masks).sum() / maps.double().sum())


def blob(num_frames: int, side: int) -> Tensor:
    """Make a Gaussian in the middle of each frame."""
    offset = torch.arange(side, dtype=torch.float64) - (side - 1) / 2
    line = torch.exp(-(offset**2) / (2 * (BLOB_SIGMA * side) ** 2))
    return (line[:, None] * line).expand(num_frames, side, side)


def measure(videos: Path) -> dict[str, Any]:
    """Find the shares of all clips, by all ways."""
    model = load("i3d-kinetics400")
    rows: dict[str, Any] = {}
    for name, clip in json.loads(BOXES.read_text())["clips"].items():
        path = find_videos([videos / name])[0]
        shares: dict[str, float] = {}
        for way, options in WAYS.items():
            asked = SaliencyOptions(**{**vars(options), "label": clip["label"]})
            found = find_saliency(model, path, asked)
            masks = box_masks(clip["boxes"], *found.maps.shape[:2])
            shares[way] = share_inside(found.maps, masks)
            if len(sys.argv) > 2:  # to be looked at, and not to be published
                write_saliency(Path(sys.argv[2]) / f"{name} {way}.png", found)
        shares |= {BLOB: share_inside(blob(*masks.shape[:2]), masks), AREA: float(masks.mean())}
        rows[name] = {"label": clip["label"], "probability": found.score.probability, "shares": shares}
        print(name, rows[name], flush=True)
    return rows


def table(rows: dict[str, Any]) -> str:
    """Write the table of the page."""
    ways = [*WAYS, BLOB, AREA]
    lines = ["| class | probability | " + " | ".join(ways) + " |", "|---|---|" + "---|" * len(ways)]
    for row in rows.values():
        shares = row["shares"]
        best = max(shares.values())
        cells = [f"**{shares[way]:.0%}**" if shares[way] == best else f"{shares[way]:.0%}" for way in ways]
        lines.append(f"| {row['label']} | {row['probability']:.2f} | " + " | ".join(cells) + " |")
    wins = [sum(row["shares"][way] > row["shares"][BLOB] for row in rows.values()) for way in WAYS]
    lines.append("| more than the blob | | " + " | ".join(f"{won} of {len(rows)}" for won in wins) + " | | |")
    return "\n".join(lines)


def main() -> None:
    """Measure, and put the numbers into their file and the table into the page."""
    if len(sys.argv) < 2:
        sys.exit("name the folder of the videos")
    warnings.simplefilter("ignore", InflateWarning)  # two of the clips have timestamps that jump
    rows = measure(Path(sys.argv[1]))
    write_text(NUMBERS, json.dumps(rows, indent=1) + "\n")
    text = re.sub(
        r"(<!-- table saliency -->\n).*?(<!-- end -->)",
        lambda found: f"{found[1]}{table(rows)}\n{found[2]}",
        PAGE.read_text(),
        flags=re.DOTALL,
    )
    write_text(PAGE, text)


if __name__ == "__main__":
    main()
