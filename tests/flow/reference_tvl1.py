"""TV-L1 once more, in numpy and float64, written from its description: slow, short, for small pictures."""

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import median_filter

Plane = NDArray[np.float64]


def tvl1(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Solve one pair of grey pictures with OpenCV's defaults; gives `[2, h, w]`."""
    levels = [(first.astype(float), second.astype(float))]
    while len(levels) < 5:
        size = tuple(round(side * 0.8) for side in levels[-1][0].shape)
        if min(size) < 16:
            break
        levels.append(tuple(linear(plane, size, 1.25) for plane in levels[-1]))
    flow = np.zeros((2, *levels[-1][0].shape))
    for number in reversed(range(len(levels))):
        flow = solve(*levels[number], flow)
        if number:
            size = levels[number - 1][0].shape
            flow = np.stack([linear(plane, size) for plane in flow]) / 0.8
    return flow


def linear(plane: Plane, size: tuple[int, ...], factor: float | None = None) -> Plane:
    ys, xs = (
        np.clip((np.arange(new) + 0.5) * (factor or old / new) - 0.5, 0, old - 1)
        for old, new in zip(plane.shape, size, strict=True)
    )
    rows = np.stack([np.interp(ys, np.arange(plane.shape[0]), column) for column in plane.T], 1)
    return np.stack([np.interp(xs, np.arange(plane.shape[1]), row) for row in rows])


def solve(first: Plane, second: Plane, flow: Plane) -> Plane:
    h, w = first.shape
    tau, weight, theta = 0.25 / 0.3, 0.15 * 0.3, 0.3
    duals = np.zeros((4, h, w))
    gradient = [centered(second, 1), centered(second, 0)]
    for _ in range(5):
        warped, dx, dy = (cubic(plane, flow) for plane in (second, *gradient))
        rest = warped - dx * flow[0] - dy * flow[1] - first
        square = dx**2 + dy**2
        for _ in range(10):
            flow = np.stack([median_filter(plane, 5, mode="nearest") for plane in flow])
            for _ in range(30):
                rho = rest + dx * flow[0] + dy * flow[1]
                inner = -rho / np.where(square > 0, square, 1)
                pull = np.where(rho < -weight * square, weight, np.where(rho > weight * square, -weight, inner))
                divergence = np.stack([backward(duals[0], duals[1]), backward(duals[2], duals[3])])
                moved = flow + pull * np.stack([dx, dy]) + theta * divergence
                change = ((moved - flow) ** 2).sum()
                flow = moved
                for k in (0, 1):
                    x = np.diff(flow[k], axis=1, append=flow[k][:, -1:])
                    y = np.diff(flow[k], axis=0, append=flow[k][-1:])
                    scale = 1 + tau * np.hypot(x, y)
                    duals[2 * k] = (duals[2 * k] + tau * x) / scale
                    duals[2 * k + 1] = (duals[2 * k + 1] + tau * y) / scale
                if change <= 0.01**2 * h * w:
                    break
            if change <= 0.01**2 * h * w:
                break
    return flow


def centered(plane: Plane, axis: int) -> Plane:
    padded = np.pad(plane, 1, mode="edge")
    inside = padded[1:-1, :] if axis == 1 else padded[:, 1:-1]
    return (inside[:, 2:] - inside[:, :-2]) / 2 if axis == 1 else (inside[2:] - inside[:-2]) / 2


def backward(x: Plane, y: Plane) -> Plane:
    return np.diff(x, axis=1, prepend=0) + np.diff(y, axis=0, prepend=0)


def cubic(plane: Plane, flow: Plane) -> Plane:
    """Read the plane at x + u, y + v by cubic convolution with A = -0.75; zero outside."""
    h, w = plane.shape
    ys, xs = np.mgrid[:h, :w] + flow[::-1]
    found = np.zeros((h, w))
    for j in range(-1, 3):
        for i in range(-1, 3):
            x, y = np.floor(xs).astype(int) + i, np.floor(ys).astype(int) + j
            inside = (x >= 0) & (x < w) & (y >= 0) & (y < h)
            value = np.where(inside, plane[y.clip(0, h - 1), x.clip(0, w - 1)], 0)
            found += value * kernel(xs - x) * kernel(ys - y)
    return found


def kernel(t: Plane, a: float = -0.75) -> Plane:
    t = np.abs(t)
    near, far = ((a + 2) * t - (a + 3)) * t**2 + 1, ((a * t - 5 * a) * t + 8 * a) * t - 4 * a
    return np.where(t <= 1, near, np.where(t < 2, far, 0))
