"""Volume: voxels and where they lie in the body; turned, resampled and windowed without losing that."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from inflate3d.errors import InflateError, import_extra, is_number

MAX_VOXELS = 2**30  # 1024 x 1024 x 1024; a header that asks for more is damaged, or wants to be cut first
AXES = ("LR", "PA", "IS")  # from, to: right, anterior and superior are positive, as in NIfTI
AXIAL = "SPL"  # slices from feet to head, rows from front to back, columns from right to left: as radiologists look
TURNED = 0.5  # of a voxel, by which a corner may lie off where axes are taken as parallel
Sampling = Literal["linear", "nearest"]


@dataclass(frozen=True, eq=False)
class Grid:
    """Where the voxels of a volume lie.

    Attributes:
        shape: Voxels along the three axes.
        affine: float64 `[4, 4]`, from an index along the three axes to mm to the right, front and head.

    Raises:
        InflateError: There are no such voxels, too many, or the affine is none.

    Example:
        >>> grid = Grid((5, 7, 9), np.diag([6.5, 0.8, 0.8, 1.0]))
        >>> grid.spacing_mm, grid.orientation
        ((6.5, 0.8, 0.8), 'RAS')
    """

    shape: tuple[int, int, int]
    affine: NDArray[np.float64]

    def __post_init__(self) -> None:
        affine = np.asarray(self.affine, np.float64)
        if affine.shape != (4, 4) or not np.isfinite(affine).all() or not _invertible(affine):
            raise InflateError(
                "this does not say where voxels lie",
                where="Grid",
                expected="an affine [4, 4] of finite numbers, whose axes span the space",
                got=f"{affine.shape}, {np.array2string(affine.ravel()[:12], precision=4)}",
                fix="mend the header of the file, or pass spacing_mm=(depth, height, width)",
            )
        if len(self.shape) != 3 or min(self.shape) < 1 or np.prod([float(size) for size in self.shape]) > MAX_VOXELS:
            raise InflateError(
                "there is no such volume",
                where="Grid",
                expected=f"three axes, {MAX_VOXELS:,} voxels at most",
                got="x".join(map(str, self.shape)),
                fix="cut the volume, or resample it more coarsely, before it is read here",
            )
        object.__setattr__(self, "affine", affine)
        object.__setattr__(self, "shape", tuple(map(int, self.shape)))

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Millimeters from one voxel to the next, along each axis."""
        depth, height, width = np.sqrt((self.affine[:3, :3] ** 2).sum(0)).tolist()
        return depth, height, width

    @property
    def orientation(self) -> str:
        """Where each axis points, nearly: three of the letters R L A P S I."""
        turns = import_extra("nibabel.orientations", "volume", where="Grid.orientation")
        return "".join(turns.ornt2axcodes(turns.io_orientation(self.affine), AXES))


@dataclass(frozen=True, eq=False)
class Volume:
    """Voxels of one scan, in the order of a clip: depth stands where time stands.

    Attributes:
        data: `[c, d, h, w]`.
        grid: Where the voxels lie.
        source: File or folder.
        stored: The grid of the file itself, to which answers go back; the same as `grid` unless it was turned.

    Raises:
        InflateError: Voxels and grid do not belong together.
    """

    data: Tensor
    grid: Grid
    source: str = "an array"
    stored: Grid | None = None

    def __post_init__(self) -> None:
        if self.data.ndim != 4 or tuple(self.data.shape[1:]) != self.grid.shape:
            raise InflateError(
                "voxels and their places do not belong together",
                where=self.source,
                expected=f"data [c, {', '.join(map(str, self.grid.shape))}]",
                got=f"{list(self.data.shape)}",
                fix="pass one grid for each shape, and the channels first",
            )

    def __repr__(self) -> str:
        spacing = " x ".join(f"{size:.3g}" for size in self.grid.spacing_mm)
        return f"Volume({self.source!r}, data={list(self.data.shape)} {self.data.dtype}, spacing_mm={spacing})"


def reorient(volume: Volume, orientation: str = AXIAL) -> Volume:
    """Turn and mirror axes, so that each points nearest to where it should; no voxel changes.

    Args:
        volume: Any.
        orientation: Where depth, height and width point: three of R or L, A or P, S or I.

    Raises:
        InflateError: There is no such orientation.

    Example:
        >>> volume = Volume(torch.arange(24).view(1, 2, 3, 4), Grid((2, 3, 4), np.diag([1.0, 2, 3, 1])))
        >>> turned = reorient(volume, "SPL")
        >>> turned.data.shape, turned.grid.spacing_mm, turned.grid.orientation
        (torch.Size([1, 4, 3, 2]), (3.0, 2.0, 1.0), 'SPL')
    """
    if len(orientation) != 3 or any(sum(letter in axis for letter in orientation) != 1 for axis in AXES):
        raise InflateError(
            "there is no such orientation",
            where="reorient",
            expected="three letters: one of R and L, one of A and P, one of S and I, in any order",
            got=repr(orientation),
            fix=f"{AXIAL} gives axial slices, RSA coronal ones",
        )
    turns = import_extra("nibabel.orientations", "volume", where="reorient")
    move = turns.ornt_transform(turns.io_orientation(volume.grid.affine), turns.axcodes2ornt(tuple(orientation), AXES))
    order = [0, *(1 + int(np.flatnonzero(move[:, 0] == axis)[0]) for axis in range(3))]
    data = volume.data.permute(order)
    mirrored = [1 + int(to) for to, sign in move if sign < 0]
    affine = volume.grid.affine @ turns.inv_ornt_aff(move, volume.grid.shape)
    data = data.flip(mirrored) if mirrored else data
    return replace(volume, data=data, grid=Grid(_shape(data), affine), stored=volume.stored or volume.grid)


def resample(volume: Volume, spacing_mm: Sequence[float], *, sampling: Sampling = "linear") -> Volume:
    """Give a volume another spacing, over the same extent.

    The outer faces of the first voxels stay where they are. What becomes coarser is averaged with a triangle as wide
    as two new voxels, so that nothing is left out.

    Args:
        volume: Any.
        spacing_mm: Of depth, height and width.
        sampling: `linear` for pictures; `nearest` for masks.

    Raises:
        InflateError: There is no such spacing.

    Example:
        >>> volume = Volume(torch.ones(1, 10, 8, 8), Grid((10, 8, 8), np.diag([3.0, 1, 1, 1])))
        >>> resample(volume, (1.5, 2, 2)).data.shape
        torch.Size([1, 20, 4, 4])
    """
    wanted = tuple(spacing_mm)
    if len(wanted) != 3 or not all(is_number(size) and size > 0 for size in wanted):
        raise InflateError(
            "there is no such spacing",
            where="resample",
            expected="three numbers of millimeters above 0: depth, height, width",
            got=repr(spacing_mm),
            fix="for cubes of 1 mm: (1.0, 1.0, 1.0)",
        )
    ratio = np.array(wanted, np.float64) / volume.grid.spacing_mm
    depth, height, width = (max(round(size / by), 1) for size, by in zip(volume.grid.shape, ratio, strict=True))
    inside = np.diag([*ratio, 1.0])
    inside[:3, 3] = (ratio - 1) / 2
    return resample_to(volume, Grid((depth, height, width), volume.grid.affine @ inside), sampling=sampling)


def resample_to(volume: Volume, grid: Grid, *, sampling: Sampling = "linear") -> Volume:
    """Bring a volume onto another grid of the same directions, whose axes may stand in another order or be mirrored.

    Outside of the volume its outermost voxels go on.

    Raises:
        InflateError: The grids are turned against each other, so that a corner would lie over half a voxel off.

    Example:
        >>> volume = Volume(torch.arange(6).view(1, 6, 1, 1), Grid((6, 1, 1), np.eye(4)))
        >>> backwards = Grid((1, 1, 6), np.array([[0, 0, -1.0, 5], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]]))
        >>> resample_to(volume, backwards).data.flatten().tolist()
        [5, 4, 3, 2, 1, 0]
    """
    between = np.linalg.solve(volume.grid.affine, grid.affine)  # from an index there to one here
    steps = between[:3, :3] * (1 / np.sqrt((between[:3, :3] ** 2).sum(0)))
    axes = np.abs(steps).argmax(0)
    if sorted(axes.tolist()) != [0, 1, 2] or _off_at_corners(between, axes, grid.shape) > TURNED:
        raise InflateError(
            "the volumes are turned against each other",
            where=volume.source,
            expected="grids whose axes are parallel",
            got=f"{volume.grid.orientation} and {grid.orientation}, with an angle between them",
            fix="bring them onto one grid first, for instance with SimpleITK.Resample",
        )
    data = volume.data.permute(0, *(1 + int(here) for here in axes))
    for axis, here in enumerate(axes.tolist()):
        centers = between[here, axis] * np.arange(grid.shape[axis]) + between[here, 3]
        data = _resample_axis(data, axis + 1, centers, step=abs(between[here, axis]), sampling=sampling)
    if not volume.data.is_floating_point() and data.is_floating_point():
        data = data.round().to(volume.data.dtype)
    return replace(volume, data=data.contiguous(), grid=grid, stored=volume.stored or volume.grid)


def window(volume: Volume, low: float, high: float) -> Volume:
    """Cut values to a range and map it to 0..1: Hounsfield units of CT, for instance -160 to 240 for soft tissue.

    Raises:
        InflateError: The range is empty.

    Example:
        >>> volume = Volume(torch.tensor([-1000.0, 40.0, 900.0]).view(1, 3, 1, 1), Grid((3, 1, 1), np.eye(4)))
        >>> window(volume, -160, 240).data.flatten().tolist()
        [0.0, 0.5, 1.0]
    """
    if not (is_number(low) and is_number(high) and low < high):
        raise InflateError(
            "the window is empty",
            where="window",
            expected="a lower and a higher value, such as -160 and 240 Hounsfield units",
            got=f"{low!r} to {high!r}",
            fix="pass the lower one first",
        )
    data = volume.data.to(torch.float32, copy=True).clamp_(low, high).sub_(low).div_(high - low)
    return replace(volume, data=data)


def window_percentiles(volume: Volume, low: float = 0.5, high: float = 99.5) -> Volume:
    """Cut values to percentiles of what is not background and map them to 0..1: for MR, whose values have no unit.

    Background is what equals the smallest value, as around a head.

    Example:
        >>> values = torch.cat([torch.zeros(500), torch.arange(1.0, 202.0)]).view(1, 701, 1, 1)
        >>> found = window_percentiles(Volume(values, Grid((701, 1, 1), np.eye(4))), 0, 50).data
        >>> [round(float(found[0, place]), 2) for place in (499, 500, 550, 600, 700)]
        [0.0, 0.0, 0.5, 1.0, 1.0]
    """
    values = volume.data.to(torch.float32).numpy().ravel()
    inside = values[values > values.min()]
    ends = np.percentile(inside if inside.size else values, [low, high])
    return window(volume, float(ends[0]), float(max(ends[1], ends[0] + 1e-6)))


def _invertible(affine: NDArray[np.float64]) -> bool:
    spacing = np.sqrt((affine[:3, :3] ** 2).sum(0))
    return bool(spacing.min() > 0 and abs(np.linalg.det(affine[:3, :3] / spacing)) > 1e-3)


def _off_at_corners(between: NDArray[Any], axes: NDArray[np.intp], shape: tuple[int, int, int]) -> float:
    """Measure, in voxels here, how far corners move where each axis there is taken as parallel to one of `axes`."""
    across = between[:3, :3].copy()
    across[axes, range(3)] = 0
    corners = np.array(list(product(*((0, size - 1) for size in shape))))
    return float(np.abs(corners @ across.T).max())


def _resample_axis(data: Tensor, axis: int, centers: NDArray[np.float64], *, step: float, sampling: Sampling) -> Tensor:
    """Sample one axis at these places, `step` voxels apart."""
    size = data.shape[axis]
    whole = np.round(centers)
    is_picked = np.abs(centers - whole).max() < 1e-6 and step <= 1 + 1e-6  # coarser grids average
    if is_picked or sampling == "nearest":
        places = torch.from_numpy(np.clip(np.floor(centers + 0.5 - 1e-9), 0, size - 1).astype(np.int64))
        unchanged = len(places) == size and torch.equal(places, torch.arange(size))
        return data if unchanged else data.index_select(axis, places)
    return (data.to(torch.float32).movedim(axis, -1) @ torch.from_numpy(_weights(centers, step, size))).movedim(
        -1, axis
    )


def _weights(centers: NDArray[np.float64], step: float, size: int) -> NDArray[np.float32]:
    """Give the share `[old, new]` of each old voxel in each new one: a triangle around the new one's center."""
    reach = max(step, 1.0)  # in old voxels; for finer grids this is linear interpolation
    near = np.clip(centers, 0, size - 1)
    shares: NDArray[Any] = np.maximum(1 - np.abs(np.arange(size)[:, None] - near[None]) / reach, 0)
    even: NDArray[np.float32] = (shares / shares.sum(0)).astype(np.float32)
    return even


def _shape(data: Tensor) -> tuple[int, int, int]:
    _, depth, height, width = data.shape
    return depth, height, width
