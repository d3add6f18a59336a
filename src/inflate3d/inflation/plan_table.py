"""A plan as a table for the eye: one line for each layer."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from inflate3d.inflation.plan import LayerPlan

TITLES = ("layer", "is", "becomes", "kernel t x h x w", "stride t", "profile", "padding")


def table(layers: "Iterable[LayerPlan]") -> list[str]:
    """Write layers into lines whose columns are aligned; a stride of 1/2 makes time twice as long."""
    rows = [TITLES, *map(cells, layers)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def cells(layer: "LayerPlan") -> tuple[str, ...]:
    """Tell of one layer what stands under `TITLES`."""
    timed = layer.action == "inflate"
    stride = str(layer.time_stride) if layer.action in ("inflate", "pool", "resize") else ""
    return (
        layer.path or "(model)",
        layer.layer,
        layer.action + (f" ({layer.reason})" if layer.reason else ""),
        "x".join(map(str, (layer.time_kernel, *layer.kernel))) if layer.kernel else "",
        f"1/{layer.time_scale}" if layer.time_scale > 1 else stride,
        (layer.profile if isinstance(layer.profile, str) else "custom") if timed else "",
        layer.padding if timed or layer.action == "shift" else "",
    )
