"""VolumeSpec: what a network for volumes wants to be fed, and how a scan is brought into that form."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

import torch.nn.functional as F
from torch import Tensor

from inflate3d.clips.volume import Volume, resample, window, window_percentiles
from inflate3d.errors import check_options, is_count, is_number, is_pair

VolumeTask = Literal["classes", "mask"]
MAX_CLASSES = 255  # a mask has one byte for each voxel
MAX_PATCH = 2**27  # voxels


@dataclass(frozen=True)
class VolumeSpec:
    """What a network for volumes was trained on and therefore wants to be fed.

    Attributes:
        task: "classes": one answer for a scan. "mask": one for each voxel.
        class_names: One for each output; of masks the first one is the background.
        spacing_mm: Millimeters between voxels along depth, height and width.
        patch: Voxels along them that the network is shown at a time.
        window: Values that become 0 and 1, such as Hounsfield units -160 and 240; None takes `percentiles`.
        percentiles: Of each scan's own values, which become 0 and 1: for MR, whose values have no unit.
        mean: Of each channel of the input in 0..1, as the network was trained; a scan is repeated for each of them.
        std: Their deviations.

    Raises:
        InflateError: Values are not of their kind, all told together.

    Example:
        >>> from dataclasses import asdict
        >>> spec = VolumeSpec("mask", ("background", "liver"), (2.5, 1.0, 1.0), (32, 96, 96), window=(-160, 240))
        >>> spec.channels, VolumeSpec.from_plain(asdict(spec)) == spec
        (1, True)
    """

    task: VolumeTask
    class_names: tuple[str, ...]
    spacing_mm: tuple[float, float, float]
    patch: tuple[int, int, int]
    window: tuple[float, float] | None = None
    percentiles: tuple[float, float] = (0.5, 99.5)
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        names, low = self.class_names, 2 if self.task == "mask" else 1
        rules = {
            "task": (", ".join(get_args(VolumeTask)), self.task in get_args(VolumeTask)),
            "class_names": (
                f"{low} to {MAX_CLASSES} names",
                isinstance(names, tuple)
                and low <= len(names) <= MAX_CLASSES
                and all(isinstance(one, str) for one in names),
            ),
            "spacing_mm": (
                "three numbers above 0: depth, height, width",
                _are_three(self.spacing_mm) and all(is_number(one) and one > 0 for one in self.spacing_mm),
            ),
            "patch": (
                f"three whole numbers of voxels: depth, height, width; {MAX_PATCH:,} voxels at most",
                _are_three(self.patch) and all(map(is_count, self.patch)) and math.prod(self.patch) <= MAX_PATCH,
            ),
            "window": (
                "a lower and a higher value, or none",
                self.window is None or (is_pair(self.window) and self.window[0] < self.window[1]),
            ),
            "percentiles": (
                "two numbers from 0 to 100, the lower one first",
                is_pair(self.percentiles) and 0 <= self.percentiles[0] < self.percentiles[1] <= 100,
            ),
            "mean": ("a number for each channel", bool(self.mean) and all(map(is_number, self.mean))),
            "std": (
                f"{len(self.mean)} numbers above 0",
                len(self.std) == len(self.mean) and all(is_number(one) and one > 0 for one in self.std),
            ),
        }
        check_options(self, rules, problem="a network for volumes cannot be fed so")

    @property
    def channels(self) -> int:
        """Channels of the network's input."""
        return len(self.mean)

    @staticmethod
    def from_plain(found: Mapping[str, Any]) -> "VolumeSpec":
        """Read it back from values that JSON knows, as `dataclasses.asdict` gives them.

        Raises:
            InflateError: Values are not of their kind.
            TypeError: Names are missing, or there are others.
        """
        names = {one.name for one in fields(VolumeSpec)}
        if set(found) - names:
            raise TypeError(f"there is no {', '.join(sorted(set(found) - names))}")
        values: dict[str, Any] = {name: tuple(one) if isinstance(one, list) else one for name, one in found.items()}
        return VolumeSpec(**values)


def scale(volume: Volume, spec: VolumeSpec) -> Volume:
    """Bring values to 0..1 and voxels to the spacing that a network wants; background becomes 0.

    Example:
        >>> import numpy as np, torch
        >>> from inflate3d.clips.volume import Grid
        >>> spec = VolumeSpec("classes", ("a", "b"), (1.5, 2, 2), (20, 4, 4), window=(0, 200))
        >>> scan = Volume(torch.full((1, 10, 8, 8), 50), Grid((10, 8, 8), np.diag([3.0, 1, 1, 1])))
        >>> found = scale(scan, spec).data
        >>> found.shape, float(found.mean())
        (torch.Size([1, 20, 4, 4]), 0.25)
    """
    if spec.window is None:
        return resample(window_percentiles(volume, *spec.percentiles), spec.spacing_mm)
    return resample(window(volume, *spec.window), spec.spacing_mm)


def to_channels(patches: Tensor, spec: VolumeSpec) -> Tensor:
    """Turn patches `[b, 1, d, h, w]` in 0..1 into the network's input `[b, channels, d, h, w]`.

    Example:
        >>> import torch
        >>> spec = VolumeSpec("classes", ("a", "b"), (1, 1, 1), (2, 2, 2), mean=(0.5, 0.0), std=(0.5, 2.0))
        >>> to_channels(torch.ones(1, 1, 2, 2, 2), spec)[0, :, 0, 0, 0]
        tensor([1.0000, 0.5000])
    """
    mean, std = (patches.new_tensor(values).view(1, -1, 1, 1, 1) for values in (spec.mean, spec.std))
    return (patches - mean) / std


def pad_to(data: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Put zeros around the last three axes, evenly on both sides, where they are shorter than wanted.

    Example:
        >>> import torch
        >>> pad_to(torch.ones(1, 2, 3), (2, 4, 3))[:, :, 0]
        tensor([[0., 1., 1., 0.],
                [0., 0., 0., 0.]])
    """
    sides: list[int] = []
    for size, wanted in zip(reversed(data.shape[-3:]), reversed(shape), strict=True):
        missing = max(wanted - size, 0)
        sides += [missing // 2, missing - missing // 2]
    return F.pad(data, sides) if any(sides) else data


def _are_three(values: object) -> bool:
    return isinstance(values, tuple) and len(values) == 3
