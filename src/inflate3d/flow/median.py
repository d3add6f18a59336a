"""The median of small squares by a sorting network: comparisons of whole planes, the same ones for every pixel."""

from itertools import product

import torch
from torch import Tensor


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
