"""Masks over the scans they belong to, as pictures; and what a network says about scans, as tables."""

import torch
import torch.nn.functional as F
from rich.table import Table
from rich.text import Text
from torch import Tensor

from inflate3d.clips.volume import Volume, reorient, window, window_percentiles
from inflate3d.results.volumes import VolumePrediction
from inflate3d.show.answers import COLORS

OPACITY = 0.45  # of a mask over the scan
EDGE_OPACITY = 0.95
LONG_SIDE = 320  # pixels of the longest side of a slice
GAP = 6
SHADES = len(COLORS) - 1  # black, the last color, is that of the ground


def overlay(prediction: VolumePrediction) -> Tensor:
    """Draw a mask over its scan: the axial, the coronal and the sagittal slice that show most of it, side by side.

    Parts are colored in the order of their names by Okabe and Ito's palette; a pixel is as many millimeters wide as
    high. Where the mask is empty the middle slices are shown.

    Args:
        prediction: With a mask, as `predict_volume` gives it.

    Returns:
        `[h, w, 3]` uint8.
    """
    scan, mask = prediction.scan, prediction.mask
    assert scan is not None and mask is not None
    spec = prediction.spec
    parts = reorient(mask).data[0]
    scaled = window_percentiles(scan, *spec.percentiles) if spec.window is None else window(scan, *spec.window)
    grey = reorient(scaled).data[0]
    spacing = reorient(mask).grid.spacing_mm
    longest = max(size * side for size, side in zip(parts.shape, spacing, strict=True))
    tiles = []
    for axis in range(3):
        area = (parts > 0).sum([one for one in range(3) if one != axis])
        place = int(area.argmax()) if area.any() else parts.shape[axis] // 2
        sides = [size for one, size in enumerate(spacing) if one != axis]
        shape = [
            max(round(count * side / longest * LONG_SIDE), 1)
            for count, side in zip(parts.select(axis, place).shape, sides, strict=True)
        ]
        tile = _tinted(_sized(grey.select(axis, place), shape, "bilinear"), _sized(parts.select(axis, place), shape))
        tiles.append(tile.flip(0) if axis else tile)  # depth goes from the feet up
    height = max(len(tile) for tile in tiles)
    return torch.cat([F.pad(tile, (0, 0, 0, GAP, 0, height - len(tile))) for tile in tiles], 1)


def part_colors(count: int) -> Tensor:
    """Give the colors of so many parts, `[count, 3]` in 0..1; they come again where there are more than six.

    Example:
        >>> part_colors(7)[0].equal(part_colors(7)[6])
        True
    """
    chosen = [COLORS[number % SHADES].lstrip("#") for number in range(count)]
    return torch.tensor([[int(color[at : at + 2], 16) / 255 for at in (0, 2, 4)] for color in chosen])


def volume_table(prediction: VolumePrediction, k: int = 5) -> Table:
    """Tell what a network says about a scan: its likeliest classes, or how large the parts of its mask are."""
    table = Table(box=None, pad_edge=False)
    if prediction.mask is None:
        table.add_column("class", min_width=28)
        table.add_column("probability", justify="right")
        for score in prediction.top(k):
            table.add_row(Text(score.label), f"{score.probability:.1%}")
        return table
    table.add_column("part", min_width=28)
    table.add_column("ml", justify="right")
    found = prediction.volumes_ml()
    for (name, size), color in zip(found.items(), part_colors(len(found)).mul(255).int().tolist(), strict=True):
        table.add_row(Text(name, "rgb({},{},{})".format(*color)), f"{size:.2f}")
    return table


def _sized(picture: Tensor, shape: list[int], mode: str = "nearest") -> Tensor:
    options = {"align_corners": False, "antialias": True} if mode == "bilinear" else {}
    return F.interpolate(picture[None, None].float(), shape, mode=mode, **options)[0, 0]


def _tinted(grey: Tensor, parts: Tensor) -> Tensor:
    numbers = parts.long()
    edges = torch.zeros_like(numbers, dtype=torch.bool)
    for axis in range(2):
        differ = numbers.diff(dim=axis) != 0
        edges |= F.pad(differ, (0, 0, 0, 1) if axis == 0 else (0, 1)) & (numbers > 0)
        edges |= F.pad(differ, (0, 0, 1, 0) if axis == 0 else (1, 0)) & (numbers > 0)
    palette = torch.cat([torch.zeros(1, 3), part_colors(max(int(numbers.max()), 1))])
    share = (numbers > 0) * torch.where(edges, EDGE_OPACITY, OPACITY)
    mixed = grey.clamp(0, 1)[..., None] * (1 - share[..., None]) + palette[numbers] * share[..., None]
    return (mixed * 255).round().to(torch.uint8)


def size_text(volume: Volume) -> str:
    """Tell a scan's size in a line.

    Example:
        >>> import numpy as np
        >>> from inflate3d.clips.volume import Grid
        >>> size_text(Volume(torch.zeros(1, 3, 4, 5), Grid((3, 4, 5), np.diag([2.5, 0.5, 0.5, 1]))))
        '3 x 4 x 5 voxels of 2.5 x 0.5 x 0.5 mm'
    """
    grid = volume.stored or volume.grid
    sizes = (f"{size:.3g}" for size in grid.spacing_mm)
    return f"{' x '.join(map(str, grid.shape))} voxels of {' x '.join(sizes)} mm"
