"""Masks over scans as pictures, and what a network says of a scan as a table."""

import io
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from rich.console import Console

from inflate3d.clips.volume import Grid, Volume
from inflate3d.clips.volume_spec import VolumeSpec
from inflate3d.results.volumes import VolumePrediction
from inflate3d.show.answers import COLORS
from inflate3d.show.volumes import GAP, LONG_SIDE, SHADES, overlay, part_colors, size_text, volume_table

NAMES = ("ground", "one", "two [x]")


def scan_of(values, sizes=(1.0, 1.0, 1.0)):
    """Axial already: depth points up, height to the back, width to the left."""
    values = torch.as_tensor(values, dtype=torch.float32)[None]
    affine = np.zeros((4, 4))
    affine[[2, 1, 0, 3], [0, 1, 2, 3]] = sizes[0], -sizes[1], -sizes[2], 1
    return Volume(values, Grid(tuple(values.shape[1:]), affine))


def prediction(mask, sizes=(1.0, 1.0, 1.0), window=(0.0, 1.0), ground=0.5):
    mask = torch.as_tensor(mask)
    scan = scan_of(torch.full(mask.shape, ground), sizes)
    spec = VolumeSpec("mask", NAMES, (1.0, 1.0, 1.0), tuple(mask.shape), window=window)
    found = Volume(mask[None].to(torch.uint8), scan.grid)
    return VolumePrediction(source="a.nii", spec=spec, scan=scan, mask=found)


def tiles_of(picture, widths):
    left, found = 0, []
    for width in widths:
        found.append(picture[:, left : left + width])
        left += width + GAP
    return found


@pytest.mark.parametrize("sizes", [(1.0, 1.0, 1.0), (5.0, 1.0, 0.5)])
def test_the_three_slices_show_most_of_the_mask_in_millimeters(sizes):
    """Depth, height and width of 4, 6 and 8 voxels: a pixel is as many millimeters wide as high."""
    mask = np.zeros((4, 6, 8), int)
    mask[2, 1:4, 5] = 1
    found = overlay(prediction(mask, sizes))
    extent = [count * size for count, size in zip(mask.shape, sizes, strict=True)]
    scale = LONG_SIDE / max(extent)
    depth, height, width = (round(side * scale) for side in extent)
    shapes = [(height, width), (depth, width), (depth, height)]
    assert found.shape[0] == max(rows for rows, _ in shapes)
    assert found.shape[1] == sum(columns for _, columns in shapes) + GAP * 3
    tiles = tiles_of(found, [columns for _, columns in shapes])
    for tile, (rows, _) in zip(tiles, shapes, strict=True):
        colored = tile[:rows].float()
        assert (colored[..., 0] != colored[..., 2]).any(), "each slice goes through the part"
        assert not tile[rows:].any()


def test_parts_have_their_colors_and_strong_edges():
    mask = np.zeros((3, 20, 20), int)
    mask[1, 4:16, 4:10], mask[1, 4:16, 10:16] = 1, 2
    found = overlay(prediction(mask))[:LONG_SIDE, :LONG_SIDE]
    colors = (part_colors(2) * 255).round()
    pixel = LONG_SIDE // 20
    for column, color in ((7, colors[0]), (13, colors[1])):
        inner = found[10 * pixel, column * pixel].float()
        torch.testing.assert_close(inner, 0.55 * 127.5 + 0.45 * color, rtol=0, atol=1.5)
    edge = found[4 * pixel, 7 * pixel].float()
    torch.testing.assert_close(edge, 0.05 * 127.5 + 0.95 * colors[0], rtol=0, atol=1.5)
    assert found[2, 2].tolist() == pytest.approx([127] * 3, abs=1)


def test_the_feet_are_below():
    """Of slices that stand upright the last one of the depth is above; the axial one lies as it is stored."""
    mask = np.zeros((10, 10, 10), int)
    mask[8, 1, 4] = 1
    tiles = tiles_of(overlay(prediction(mask)), [LONG_SIDE] * 3)
    places = [(tile[..., 0] != tile[..., 2]).nonzero().float().mean(0) / LONG_SIDE * 10 for tile in tiles]
    for place, wanted in zip(places, ([1.5, 4.5], [1.5, 4.5], [1.5, 1.5]), strict=True):
        assert place.tolist() == pytest.approx(wanted, abs=0.2)


@pytest.mark.parametrize("window", [(0.0, 1.0), None])
def test_an_empty_mask_is_the_scan_alone(window):
    picture = overlay(prediction(np.zeros((5, 6, 7), int), window=window))
    assert torch.equal(picture[..., 0], picture[..., 1]) and torch.equal(picture[..., 1], picture[..., 2])


def test_values_beyond_the_window_are_black_and_white():
    for ground, level in ((-50.0, 0), (70.0, 255)):
        picture = overlay(prediction(np.zeros((4, 4, 4), int), ground=ground))
        assert picture[3, 3].tolist() == [level] * 3


@pytest.mark.parametrize("count", [1, SHADES, SHADES + 1, 3 * SHADES])
def test_colors_come_again_and_none_is_the_grounds(count):
    found = (part_colors(count) * 255).round().int().tolist()
    known = [[int(color[at : at + 2], 16) for at in (1, 3, 5)] for color in COLORS]
    assert found == [known[number % SHADES] for number in range(count)]
    assert [0, 0, 0] not in found


@pytest.mark.parametrize(
    ("shape", "sizes", "text"),
    [
        ((3, 4, 5), (2.5, 0.5, 0.5), "3 x 4 x 5 voxels of 2.5 x 0.5 x 0.5 mm"),
        ((1, 1, 1), (1.23456, 1000.0, 0.001234), "1 x 1 x 1 voxels of 1.23 x 1e+03 x 0.00123 mm"),
    ],
)
def test_sizes_are_told(shape, sizes, text):
    scan = Volume(torch.zeros(1, *shape), Grid(shape, np.diag([*sizes, 1])))
    assert size_text(scan) == text
    turned = Volume(scan.data.transpose(1, 3), Grid(shape[::-1], np.eye(4)), stored=scan.grid)
    assert size_text(turned) == text  # of the axes as they are stored


def printed(table):
    console = Console(width=90, file=io.StringIO())
    console.print(table)
    return [line.split() for line in console.file.getvalue().splitlines() if line.strip()]


def test_a_table_tells_milliliters_of_each_part():
    mask = np.zeros((4, 10, 10), int)
    mask[0], mask[1, :5] = 1, 2
    found = prediction(mask, sizes=(5.0, 2.0, 1.0))
    rows = printed(volume_table(found))
    assert found.volumes_ml() == pytest.approx({"one": 1.0, "two [x]": 0.5})
    assert [row[0] for row in rows] == ["part", "one", "two"]
    assert [float(row[-1]) for row in rows[1:]] == pytest.approx([1.0, 0.5])


def test_a_table_ranks_classes():
    answer = SimpleNamespace(
        mask=None,
        top=lambda k: [SimpleNamespace(label=f"[b]{n}", probability=0.5**n) for n in range(1, k + 1)],
    )
    rows = printed(volume_table(answer, 2))
    assert rows == [["class", "probability"], ["[b]1", "50.0%"], ["[b]2", "25.0%"]]
