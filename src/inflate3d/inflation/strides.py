"""Strides in time, place by place: what layers that change the size of maps do to the length of time.

A map has a place on its way through the network: how much shorter time is there than in the clip, and how much smaller
the map than the picture. Layers that shrink maps shorten time; layers that enlarge them bring time back to the length
that it had on the level (height and width) they lead to. Maps that were pooled to a given size keep their place.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from torch import nn

from inflate3d.errors import InflateError
from inflate3d.inflation.observe import Passage, Seen

EVEN = 2  # a spacing is even with the finest one if it is less than so many times as wide; Source: nnU-Net's planner


class Timing(NamedTuple):
    """What a layer does in time.

    Attributes:
        kernel: Frames that it spans.
        stride: Frames from one of its outputs to the next.
        scale: Frames that it puts out for each one it is given.
    """

    kernel: int = 1
    stride: int = 1
    scale: int = 1


class Place(NamedTuple):
    """Where a map stands: how many times shorter time is than in the clip, and smaller the map than the picture."""

    time: int = 1
    space: float = 1.0


class Walked(NamedTuple):
    """What following maps through a network has shown.

    Attributes:
        timings: What each layer does in time.
        shrink: Frames of the clip that one frame stands for where time is shortest: a number that all such divide.
        places: Where each run leaves its map, by its number.
    """

    timings: dict[str, Timing]
    shrink: int
    places: dict[int, Place]


class Choice(Protocol):
    """What a preset says about layers that do not enlarge maps."""

    def timing(self, one: Seen, place: Place) -> Timing:
        """Choose for a convolution or pool that is given a map from this place."""

    def shrink(self, one: Seen, place: Place, ratio: int) -> int:
        """Choose the stride in time of an interpolation that makes maps smaller, to a size that is new."""


def kernel_of(layer: nn.Module) -> tuple[int, int] | None:
    """Height and width of a layer's kernel, or None."""
    for name in ("kernel_size", "filt_size", "downscale_factor"):
        if size := getattr(layer, name, None):
            return _pair(size)
    return None


def stride_of(layer: nn.Module) -> tuple[int, int]:
    """Stride down and to the right; a pool without one strides by its kernel."""
    return _pair(getattr(layer, "stride", None)) or kernel_of(layer) or (1, 1)


def _pair(size: object) -> tuple[int, int] | None:
    if isinstance(size, int):
        return size, size
    return (int(size[0]), int(size[1])) if isinstance(size, tuple | list) and len(size) == 2 else None


def overlaps(layer: nn.Module) -> bool:
    """Whether neighbouring outputs of a convolution share pixels: neither 1x1 nor a patchify (kernel = stride)."""
    kernel = kernel_of(layer)
    return kernel is not None and any(k > s for k, s in zip(kernel, stride_of(layer), strict=True)) and max(kernel) > 1


def kind_of(one: Seen) -> str | None:
    """What a layer is that can have time and runs on the pictures; else None."""
    return one.adapter.kind if one.adapter and one.batch_factor else None


def pools_all(one: Seen) -> bool:
    """Whether a pool leaves one pixel, as the heads of networks do."""
    return kind_of(one) == "pool" and one.out_shape[2:] == (1, 1)


def is_head(one: Seen) -> bool:
    """Whether a pool takes the mean of the whole map."""
    kernel = kernel_of(one.layer) or (1, 1)
    means = not getattr(one.adapter, "takes_maximum", False)
    return means and pools_all(one) and all(k >= side for k, side in zip(kernel, one.in_shape[2:], strict=True))


def walk(seen: Sequence[Seen], choice: Choice) -> Walked:
    """Follow maps through a network and decide what each layer does in time.

    Args:
        seen: All that ran.
        choice: What a preset says about layers that do not enlarge maps.
    """
    runs = sorted(((passage, one) for one in seen for passage in one.passages), key=lambda run: run[0].number)
    places: dict[int, Place] = {}
    levels: dict[tuple[int, ...], Place] = {}
    timings: dict[str, Timing] = {}
    for passage, one in runs:
        number, here, there = passage.number, passage.here[2:], passage.there[2:]
        known = min((source for source in passage.sources if source in places), default=None)
        place = levels.get(here, Place()) if known is None else places[known]
        places[number] = place
        if kind_of(one) not in ("conv", "transposed", "pool", "resize") or len(here) != 2 or len(there) != 2:
            continue
        levels.setdefault(here, place)
        enlarges = kind_of(one) in ("transposed", "resize")
        if one.path not in timings:
            by_target = enlarges and _enlarging(one, passage, place, levels=levels, choice=choice)
            timings[one.path] = by_target or choice.timing(one, place)
        timing, ratio = timings[one.path], here[0] / there[0] if enlarges else max(stride_of(one.layer))
        places[number] = Place(max(place.time * timing.stride // timing.scale, 1), place.space * ratio)
        if enlarges and there in levels:
            places[number] = places[number]._replace(space=levels[there].space)
        if not pools_all(one):
            levels.setdefault(there, places[number])
    return Walked(timings, math.lcm(*(place.time for place in places.values())), places)


def walk_like_space(seen: Sequence[Seen], spacing_mm: tuple[float, float, float]) -> dict[str, Timing]:
    """Decide strides like those of space, but for those beside the main way, as where attention makes keys fewer."""
    beside = frozenset[str]()
    while True:
        walked = walk(seen, Spacing(spacing_mm, beside))
        found = _strides_beside(seen, walked) - beside
        if not found:
            return walked.timings
        beside |= found


def _strides_beside(seen: Sequence[Seen], walked: Walked) -> set[str]:
    """Name the strided layers whose output, with nothing but 1x1 convolutions behind, meets what they were given."""
    runs = {passage.number: (one, passage.sources) for one in seen for passage in one.passages}
    found = set()
    for _, sources in runs.values():
        times = {source: walked.places[source].time for source in sources if source in runs}
        longest = {number for number, time in times.items() if time == min(times.values())}
        near = longest.union(*(runs[number][1] for number in longest))  # queries may be a convolution away
        for source in times.keys() - longest:
            number: int | None = source
            while number is not None and walked.timings.get(runs[number][0].path, Timing()).stride == 1:
                one, before = runs[number]
                pointwise = kernel_of(one.layer) == (1, 1) and len(before & runs.keys()) == 1
                number = min(before & runs.keys()) if pointwise else None
            if number is not None and runs[number][1] & near:
                found.add(runs[number][0].path)
    return found


def _enlarging(
    one: Seen, passage: Passage, place: Place, *, levels: Mapping[tuple[int, ...], Place], choice: Choice
) -> Timing:
    """Bring time to the length that it has where an interpolation, or a transposed convolution, leads to."""
    here, there = passage.here[2:], passage.there[2:]
    target = levels.get(there)
    transposed = kind_of(one) == "transposed"
    ratio = max(stride_of(one.layer)) if transposed else max(round(there[0] / here[0]), round(here[0] / there[0]))
    stride = scale = 1
    if target:
        scale, stride = (max(a // b, 1) if a % b == 0 else 1 for a, b in _both_ways(place.time, target.time))
    elif transposed or there[0] > here[0]:
        scale = math.gcd(ratio, place.time)
    else:
        stride = choice.shrink(one, place, ratio)
    if not transposed:
        return Timing(2 if _is_smooth(one.layer) and (scale, stride) != (1, 1) else 1, stride, scale)
    cube = max(kernel_of(one.layer) or (1,))
    if scale == 1:
        after = Place(place.time, place.space / ratio)
        return choice.timing(one, after)._replace(stride=1) if overlaps(one.layer) else Timing()
    return Timing(max(cube, scale), 1, scale)


def _both_ways(a: int, b: int) -> tuple[tuple[int, int], tuple[int, int]]:
    return (a, b), (b, a)


def _is_smooth(layer: nn.Module) -> bool:
    """Whether an interpolation mixes neighbouring pixels."""
    return getattr(layer, "mode", None) in ("bilinear", "bicubic")


class Given:
    """Timings that are known already; what enlarges maps follows them."""

    def __init__(self, timings: Mapping[str, Timing]) -> None:
        self.timings = timings

    def timing(self, one: Seen, place: Place) -> Timing:
        """Look it up."""
        return self.timings.get(one.path, Timing())

    def shrink(self, one: Seen, place: Place, ratio: int) -> int:
        """Look it up."""
        return self.timing(one, place).stride


class Spacing:
    """Time like height and width, as soon as voxels are about as deep as they are high and wide.

    Until then strides and kernels are those of pictures. Each stride makes voxels larger by its prime factors, one
    after the other; depth takes part in a factor if its spacing is less than twice the finest one.

    Source: Isensee et al. 2021, nnU-Net; `get_pool_and_conv_props` of its code. There an axis in the plane may wait for
    the others too; here height and width stride as the 2D network does.

    Args:
        spacing_mm: Of voxels along depth (time), height and width; only their ratios matter.
        beside: Layers that stride in space alone.
    """

    def __init__(self, spacing_mm: tuple[float, float, float], beside: frozenset[str] = frozenset()) -> None:
        depth, height, width = spacing_mm
        self.depth, self.finest, self.beside = depth, min(height, width), beside

    def is_even(self, place: Place) -> bool:
        """Whether voxels are about as deep as they are high and wide."""
        depth, plane = self.depth * place.time, self.finest * place.space
        return depth < EVEN * min(depth, plane)

    def shrink(self, one: Seen, place: Place, ratio: int) -> int:
        """Take those prime factors in which depth takes part."""
        begin = place.time
        for factor in _prime_factors(ratio):
            place = Place(place.time * factor if self.is_even(place) else place.time, place.space * factor)
        return place.time // begin

    def timing(self, one: Seen, place: Place) -> Timing:
        """Choose a cubic kernel, or a flat one where voxels are too deep."""
        space = max(stride_of(one.layer))
        if is_head(one) or one.path in self.beside:
            return Timing()
        stride, cube = self.shrink(one, place, space), max(kernel_of(one.layer) or (1,))
        if kind_of(one) == "conv" and space > 1 and not overlaps(one.layer):
            return Timing(min(stride, cube), stride)  # tubelets
        kernel = cube if self.is_even(place) else 1 if stride == 1 else cube * stride // space
        return Timing(min(cube, max(kernel, stride)), stride)


def _prime_factors(number: int) -> list[int]:
    factors, factor = [], 2
    while number > 1:
        while number % factor == 0:
            factors.append(factor)
            number //= factor
        factor += 1
    return factors


def check_spacing(spacing_mm: object) -> tuple[float, float, float]:
    """Read the spacing of voxels along depth (which is time), height and width: three numbers, or text.

    Raises:
        InflateError: It is none, as where none was given.

    Example:
        >>> check_spacing("5,0.8,0.8")
        (5.0, 0.8, 0.8)
    """
    parts = spacing_mm.split(",") if isinstance(spacing_mm, str) else spacing_mm
    try:
        values = tuple(map(float, parts)) if isinstance(parts, tuple | list) else ()
    except (TypeError, ValueError):
        values = ()
    if len(values) != 3 or not all(0 < value < math.inf for value in values):
        raise InflateError(
            "this preset has to know how large voxels are",
            where="preset anisotropic",
            expected="spacing_mm=(depth, height, width), three numbers above 0",
            got=f"spacing_mm={spacing_mm!r}",
            fix='inflate(model2d, "anisotropic", spacing_mm=(5, 0.8, 0.8)), or --spacing 5,0.8,0.8; '
            'preset "isotropic" where voxels are cubes',
        )
    return values
