"""TV-L1 optical flow in PyTorch: OpenCV's algorithm and parameters, on CPU and GPU, each pair stopping by itself."""

import threading
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from inflate3d.errors import InflateError, InflateWarning, check_options, is_count, is_number
from inflate3d.threads import fewer_threads

MIN_SIDE_PIXELS = 3  # a centred difference needs neighbours
MIN_LEVEL_PIXELS = 16  # smaller levels of the pyramid are left out
# How torch.compile fuses: a median has to stay one loop. Where a step of it depends on so many pixels, its plane is
# stored in between; fewer take three times as long, more take longer to compile and need more registers than there are.
FUSION = {"realize_opcount_threshold": 10**6, "realize_reads_threshold": 10**6, "realize_acc_reads_threshold": 14}


@dataclass(frozen=True)
class Tvl1Options:
    """Parameters of TV-L1, with OpenCV's defaults.

    Attributes:
        tau: Step of the dual ascent; convergence is proven up to 0.25.
        lambda_: Weight of the data term; smaller is smoother.
        theta: Coupling of the flow and its auxiliary copy.
        num_scales: Levels of the pyramid at most; those with a side below 16 pixels are left out.
        num_warps: Times that the second picture is warped, on each level.
        epsilon: An iteration that moves the flow by less than this, in pixels (root of the mean square), is the last.
        inner_iterations: Iterations between two median filters.
        outer_iterations: Median filters for each warp at most.
        scale_step: Size of a level in relation to the next finer one.
        median_size: Side of the median filter: 1 (none), 3 or 5.

    Raises:
        InflateError: A value is out of range; all are told together.

    Source: OpenCV contrib, modules/optflow, `DualTVL1OpticalFlow`. Its `gamma` (changes of brightness) and
    `useInitialFlow` are left out; their defaults are 0 and no.

    Example:
        >>> Tvl1Options(lambda_=0.05).epsilon
        0.01
    """

    tau: float = 0.25
    lambda_: float = 0.15
    theta: float = 0.3
    num_scales: int = 5
    num_warps: int = 5
    epsilon: float = 0.01
    inner_iterations: int = 30
    outer_iterations: int = 10
    scale_step: float = 0.8
    median_size: int = 5

    def __post_init__(self) -> None:
        counts = ("num_scales", "num_warps", "inner_iterations", "outer_iterations")
        numbers = {name: getattr(self, name) for name in ("tau", "lambda_", "theta")}
        rules = {name: ("a number above 0", is_number(value) and value > 0) for name, value in numbers.items()}
        rules |= {name: ("a whole number from 1 to 10000", is_count(getattr(self, name), 10_000)) for name in counts}
        rules["epsilon"] = "a number, 0 or more", is_number(self.epsilon) and self.epsilon >= 0
        rules["scale_step"] = "a number between 0 and 1", is_number(self.scale_step) and 0 < self.scale_step < 1
        rules["median_size"] = "1, 3 or 5", self.median_size in (1, 3, 5)
        check_options(self, rules, problem="TV-L1 cannot run with these options")


def tvl1(first: Tensor, second: Tensor, options: Tvl1Options | None = None, *, compiled: bool = False) -> Tensor:
    """Estimate where each pixel of the first pictures has gone in the second ones.

    On a CPU each pair is solved by one thread, because the state of one of them fits a processor's caches and that of
    several does not; elsewhere all at once. The result for a pair does not depend on the others.

    Args:
        first: Grey pictures `[n, h, w]` uint8.
        second: As many of the same size, on the same device.
        options: Parameters; the defaults are OpenCV's.
        compiled: Fuse the iterations with `torch.compile`, about three times as fast on a CPU, once half a minute of
            compiling is over; where there is no compiler, a warning says so and the plain code runs.

    Returns:
        `[n, 2, h, w]` float32, pixels to the right and down.

    Raises:
        InflateError: The pictures are not grey bytes, of one size, of at least 3 x 3 pixels, and on one device.

    Source: Zach, Pock & Bischof 2007; Sánchez, Meinhardt-Llopis & Facciolo, IPOL 2013; order of operations, borders
    and stopping as in OpenCV contrib, modules/optflow/src/tvl1flow.cpp. Two implementations differ by about 0.01
    pixels on real frames, because the number of iterations hangs on the last digits; so do two versions of OpenCV.

    Example:
        >>> picture = (torch.arange(40) * torch.arange(30)[:, None] % 200).to(torch.uint8)
        >>> flow = tvl1(picture[None, :, 1:], picture[None, :, :-1])  # all moves one pixel to the right
        >>> flow.shape, [round(float(component.median())) for component in flow[0]]
        (torch.Size([1, 2, 30, 39]), [1, 0])
    """
    options = options or Tvl1Options()
    _check_pairs(first, second)
    if not len(first):
        return first.new_empty(0, 2, *first.shape[1:], dtype=torch.float32)
    kernels = _compiled_kernels(first.device.type) if compiled else PLAIN

    def solve(one: Tensor, two: Tensor) -> Tensor:
        with torch.no_grad():  # holds for the thread that says it
            return _solve(one.float(), two.float(), options, kernels)

    def solve_alone(one: Tensor, two: Tensor) -> Tensor:
        with fewer_threads(1):  # a step of 0.1 ms is too short to be shared out
            return solve(one, two)

    if first.device.type != "cpu":
        return solve(first, second)
    with ThreadPoolExecutor(min(torch.get_num_threads(), len(first))) as pool:
        return torch.cat([*pool.map(solve_alone, first.split(1), second.split(1))])


def _check_pairs(first: Tensor, second: Tensor) -> None:
    fits = first.ndim == 3 and first.shape == second.shape and (first.dtype, second.dtype) == (torch.uint8,) * 2
    if not fits or min(first.shape[1:]) < MIN_SIDE_PIXELS or first.device != second.device:
        raise InflateError(
            "these are no pairs of grey pictures",
            where="tvl1",
            expected="two tensors [n, h, w] uint8 of one size, h and w >= 3, on one device",
            got=f"{list(first.shape)} {first.dtype} on {first.device}, "
            f"{list(second.shape)} {second.dtype} on {second.device}",
            fix="for RGB frames use inflate3d.flow.methods.to_grey, or estimate_flow, which calls it",
        )


def _solve(first: Tensor, second: Tensor, options: Tvl1Options, kernels: "_Kernels") -> Tensor:
    """Go from the coarsest level to the finest; `[n, h, w]` float32 in 0..255 to `[n, 2, h, w]`."""
    levels = [torch.stack([first, second])]
    while len(levels) < options.num_scales:
        h, w = (round(side * options.scale_step) for side in levels[-1].shape[-2:])
        if min(h, w) < MIN_LEVEL_PIXELS:
            break
        levels.append(resize_linear(levels[-1], (h, w), 1 / options.scale_step))
    flow = torch.zeros_like(levels[-1]).transpose(0, 1)
    for finer, (one, two) in zip([*levels[-2::-1], None], reversed(levels), strict=True):
        flow = _Level(one, two, flow, options).solve(kernels)
        if finer is not None:
            flow = resize_linear(flow, (finer.shape[-2], finer.shape[-1])) * (1 / options.scale_step)
    return flow


def resize_linear(planes: Tensor, size: tuple[int, int], scale: float | None = None) -> Tensor:
    """Scale `[..., h, w]` without antialiasing, with pixel centers at halves; coordinates outside are clamped.

    Args:
        planes: float32.
        size: Wanted height and width.
        scale: Pixels of the source for each of the result, where it is not the ratio of the sizes.

    Source: OpenCV, `cv::resize` with INTER_LINEAR: given a factor, it keeps to it although the sizes are rounded.

    Example:
        >>> resize_linear(torch.tensor([[0.0, 1.0, 2.0, 3.0]]), (1, 2)).tolist()
        [[0.5, 2.5]]
    """
    for axis, side in zip((-1, -2), reversed(size), strict=True):
        length = planes.shape[axis]
        steps = torch.arange(side, dtype=torch.float64, device=planes.device)
        place = ((steps + 0.5) * (scale or length / side) - 0.5).clamp(0, length - 1).float()
        low = place.long().clamp(max=length - 1)
        share = (place - low).view(-1, 1) if axis == -2 else place - low
        near, far = planes.index_select(axis, low), planes.index_select(axis, (low + 1).clamp(max=length - 1))
        planes = near * (1 - share) + far * share
    return planes


class _Level:
    """One level of the pyramid while it is solved.

    Planes are flat: rows of `w + 1` pixels, the last of which is empty, and an empty row above and below. So every
    neighbour is the same plane read from another start, without a question about borders; what the empty pixels hold is
    kept at zero by `keep`, which also takes out the differences across the last column and row.
    """

    def __init__(self, first: Tensor, second: Tensor, flow: Tensor, options: Tvl1Options) -> None:
        n, h, w = self.size = first.shape
        self.first, self.options, self.stride = first, options, w + 1
        grid = torch.ones(2, h, w + 1, device=first.device)
        grid[:, :, w] = grid[0, :, w - 1] = grid[1, h - 1] = 0
        self.keep = grid.flatten(1).unbind()
        self.flows = [first.new_zeros(n, (h + 2) * (w + 1)) for _ in range(2)]
        self.duals = [first.new_zeros(n, (h + 2) * (w + 1)) for _ in range(4)]
        for plane, component in zip(self.flows, flow.unbind(1), strict=True):
            self.picture(plane).copy_(component)
        # A power of two times the coordinates loses no digit, so that a flow of zero reads each pixel as it is
        sides = [1 << (side - 2).bit_length() for side in (h, w)]
        self.unit = [2 / side for side in sides]
        stacked = torch.stack([second, *_centered_gradient(second)], 1)
        self.second = F.pad(stacked, (0, sides[1] + 1 - w, 0, sides[0] + 1 - h))
        self.places = [torch.arange(w, device=first.device), torch.arange(h, device=first.device)[:, None]]

    def inner(self, plane: Tensor) -> Tensor:
        """View a plane without the rows around it: `[n, h * (w + 1)]`."""
        return plane[:, self.stride : -self.stride]

    def picture(self, plane: Tensor) -> Tensor:
        """View a plane as pictures `[n, h, w]`."""
        n, h, w = self.size
        return self.inner(plane).view(n, h, w + 1)[:, :, :w]

    def solve(self, kernels: "_Kernels") -> Tensor:
        for _ in range(self.options.num_warps):
            self.iterate(self.warped(), kernels)
        return torch.stack([self.picture(plane) for plane in self.flows], 1)

    def warped(self) -> list[Tensor]:
        """Look up the second picture and its gradient where the flow leads; flat planes for `_step_flow`."""
        right, down = (self.picture(plane) for plane in self.flows)
        grid = torch.stack(
            [(self.places[0] + right) * self.unit[1] - 1, (self.places[1] + down) * self.unit[0] - 1], dim=-1
        )
        values = F.grid_sample(self.second, grid, mode="bicubic", padding_mode="zeros", align_corners=True)
        warped, dx, dy = values.unbind(1)
        rest = warped - dx * right - dy * down - self.first
        # 1e-30 instead of a question whether the picture is flat there: then dx and dy are zero and nothing moves
        inverse = 1 / (dx * dx + dy * dy).clamp(min=1e-30)
        return [F.pad(plane, (0, 1)).flatten(1) for plane in (rest, dx, dy, inverse)]

    def iterate(self, data: list[Tensor], kernels: "_Kernels") -> None:
        """Iterate until each pair has come to rest."""
        options, (n, h, w) = self.options, self.size
        limit, tau = options.epsilon**2 * h * w, options.tau / options.theta
        weights = (options.lambda_ * options.theta, options.theta)
        active = None if n == 1 else torch.ones(n, 1, dtype=torch.bool, device=self.first.device)
        flows, duals = [self.inner(plane) for plane in self.flows], [self.inner(plane) for plane in self.duals]
        for _ in range(options.outer_iterations):
            if options.median_size > 1:
                self.smooth(active, kernels)
            for _ in range(options.inner_iterations):
                change = kernels.step_flow(flows, self.duals, data, active, self.stride, weights=weights)
                kernels.step_duals(self.flows, duals, self.keep, active, self.stride, tau=tau)
                moving = change > limit
                active = None if active is None else active & moving[:, None]
                if not bool(moving.any() if active is None else active.any()):
                    return

    def smooth(self, active: Tensor | None, kernels: "_Kernels") -> None:
        """Replace the flow of the active pairs by its median over a square."""
        (n, h, w), size = self.size, self.options.median_size
        around, stride = size // 2, w + size - 1
        planes = torch.stack([self.picture(plane) for plane in self.flows])
        padded = F.pad(planes, (around,) * 4, mode="replicate").flatten(2).flatten(0, 1)
        medians = F.pad(kernels.median(padded, stride, size), (0, size - 1)).view(2, n, h, stride)[..., :w]
        for plane, median in zip(self.flows, medians, strict=True):
            view = self.picture(plane)
            view.copy_(median if active is None else torch.where(active[:, :, None], median, view))


def _centered_gradient(pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Halve the difference of the two neighbours, right minus left and below minus above; a border is its own one."""
    around = F.pad(pictures[:, None], (1, 1, 1, 1), mode="replicate")[:, 0]
    dx = 0.5 * (around[:, 1:-1, 2:] - around[:, 1:-1, :-2])
    return dx, 0.5 * (around[:, 2:, 1:-1] - around[:, :-2, 1:-1])


def _step_flow(
    flows: Sequence[Tensor],
    duals: Sequence[Tensor],
    data: Sequence[Tensor],
    active: Tensor | None,
    stride: int,
    *,
    weights: tuple[float, float],
) -> Tensor:
    """Move the flow by the data term and the divergence of the dual planes; give the squared change of each pair.

    Args:
        flows: Two planes `[n, m]`, changed in place.
        duals: Four planes `[n, m + 2 stride]`: what the flow to the right, and down, is pulled by.
        data: Rest, gradient to the right and down, inverse of its square; `[n, m]`.
        active: Pairs `[n, 1]` that still move; None for a single one.
        stride: Pixels of a row.
        weights: lambda times theta, and theta.
    """
    (u, v), (rest, dx, dy, inverse), (most, theta) = flows, data, weights
    m = u.shape[-1]

    def divergence(right: Tensor, down: Tensor) -> Tensor:
        middle = slice(stride, stride + m)
        return right[:, middle] - right[:, stride - 1 : stride + m - 1] + (down[:, middle] - down[:, :m])

    pull = (-(rest + (dx * u + dy * v)) * inverse).clamp(-most, most)
    new_u = u + pull * dx + theta * divergence(duals[0], duals[1])
    new_v = v + pull * dy + theta * divergence(duals[2], duals[3])
    change = ((new_u - u).square() + (new_v - v).square()).sum(-1)
    u.copy_(new_u if active is None else torch.where(active, new_u, u))
    v.copy_(new_v if active is None else torch.where(active, new_v, v))
    return change


def _step_duals(
    flows: Sequence[Tensor],
    duals: Sequence[Tensor],
    keep: Sequence[Tensor],
    active: Tensor | None,
    stride: int,
    *,
    tau: float,
) -> None:
    """Let the dual planes follow the forward differences of the flow.

    Args:
        flows: Two planes `[n, m + 2 stride]`.
        duals: Four planes `[n, m]`, changed in place.
        keep: Zero where there is no neighbour to the right, or below; `[m]`.
        active: Pairs `[n, 1]` that still move; None for a single one.
        stride: Pixels of a row.
        tau: Step, divided by theta.
    """
    m = duals[0].shape[-1]
    for plane, right, down in ((flows[0], duals[0], duals[1]), (flows[1], duals[2], duals[3])):
        here = plane[:, stride : stride + m]
        x = (plane[:, stride + 1 : stride + m + 1] - here) * keep[0]
        y = (plane[:, 2 * stride : 2 * stride + m] - here) * keep[1]
        scale = 1 / (1 + tau * (x * x + y * y).sqrt())
        new_right, new_down = (right + tau * x) * scale, (down + tau * y) * scale
        right.copy_(new_right if active is None else torch.where(active, new_right, right))
        down.copy_(new_down if active is None else torch.where(active, new_down, down))


def median_flat(padded: Tensor, stride: int, size: int) -> Tensor:
    """Take the median of each square of pixels.

    Args:
        padded: Flat pictures `[n, m]` with rows of `stride` pixels, padded for squares around each pixel.
        stride: Pixels of a row.
        size: Side of a square, odd.

    Returns:
        `[n, m - (size - 1) * (stride + 1)]`: for each pixel that of the square which begins there, so that the last
        `size - 1` pixels of each row mean nothing.

    Example:
        >>> median_flat(torch.tensor([[1.0, 2.0, 3.0, 9.0, 8.0, 7.0, 5.0, 5.0, 5.0]]), 3, 3)
        tensor([[5.]])
    """
    m = padded.shape[-1] - (size - 1) * (stride + 1)
    wires = [padded[:, y * stride + x : y * stride + x + m] for y, x in product(range(size), repeat=2)]
    for low, high, wants_low, wants_high in median_network(size * size):
        a, b = wires[low], wires[high]
        if wants_low:
            wires[low] = torch.minimum(a, b)
        if wants_high:
            wires[high] = torch.maximum(a, b)
    return wires[size * size // 2]


def median_network(count: int) -> tuple[tuple[int, int, bool, bool], ...]:
    """List the comparisons that bring the median of `count` wires to the one in the middle.

    Batcher's odd-even merge sort, without the wires that are not there and without what the median does not depend on.

    Returns:
        For each comparison the two wires, and whether the smaller and the larger value are needed.

    Source: Knuth, The Art of Computer Programming 3, section 5.2.2, algorithm M.

    Example:
        >>> median_network(3)
        ((0, 1, True, True), (0, 2, False, True), (1, 2, True, False))
    """
    steps = [1 << bit for bit in range((count - 1).bit_length())]
    pairs = []
    for run, reach in ((run, reach) for run in steps for reach in reversed(steps) if reach <= run):
        for start in range(reach % run, 2 * steps[-1] - reach, 2 * reach):
            wires = range(start, min(start + reach, count - reach))
            pairs += [(i, i + reach) for i in wires if i // (2 * run) == (i + reach) // (2 * run)]
    needed, kept = {count // 2}, []
    for low, high in reversed(pairs):
        if needed & {low, high}:
            kept.append((low, high, low in needed, high in needed))
            needed |= {low, high}
    return tuple(reversed(kept))


class _Kernels(NamedTuple):
    """What takes the time, plain or compiled."""

    step_flow: Callable[..., Tensor]
    step_duals: Callable[..., None]
    median: Callable[..., Tensor]


def _compile(kernel: Callable[..., Any]) -> Callable[..., Any]:
    # a step is too short to be shared out among threads
    return torch.compile(kernel, dynamic=True, options={**FUSION, "cpp.threads": 1})


PLAIN = _Kernels(_step_flow, _step_duals, median_flat)
_COMPILED: dict[str, _Kernels] = {}
_COMPILING = threading.Lock()


def _compiled_kernels(device: str) -> _Kernels:
    """Compile for any size, trying it on small pictures; give the plain code where that fails."""
    with _COMPILING:
        if device not in _COMPILED:
            one, two = torch.rand(2, 1, 24, 35, device=device)
            try:
                kernels = _Kernels(_compile(_step_flow), _compile(_step_duals), _compile(median_flat))
                with torch.no_grad():
                    _solve(one, two, Tvl1Options(), kernels)
            except Exception as error:
                reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
                advice = "; install one such as g++" if "compiler" in reason.lower() else ""
                warnings.warn(
                    f"TV-L1 runs uncompiled, about three times slower, because compiling failed: {reason}{advice}",
                    InflateWarning,
                    stacklevel=4,
                )
                kernels = PLAIN
            _COMPILED[device] = kernels
        return _COMPILED[device]
