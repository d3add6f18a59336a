"""Read a checkpoint, whoever wrote it: file, wrappers, names, shapes, in that order; nothing in it is ever run."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from inflate3d.errors import InflateError
from inflate3d.weights.containers import Container, open_container
from inflate3d.weights.dialects import DIALECTS
from inflate3d.weights.names import ARCHITECTURES, convert, recognize
from inflate3d.weights.stored import MAX_BYTES, ContentError, Stored

OWN_NAMES = "own names"
# What training scripts put a state dict under, data-parallel wrappers before its names, and what stands beside them
WRAPPERS = ("state_dict", "model_state", "model_state_dict", "model", "net", "weights", "params", "module", "_orig_mod")
BESIDE = ("optim", "lr_sched", "sched", "scaler", "amp", "ema", "model_ema", "state_dict_ema", "criterion", "loss")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in our names.

    Attributes:
        path: The file.
        container: How the file is written.
        dialect: Whose names it has, a key of `inflate3d.weights.dialects.DIALECTS`; "own names" if nobody knows them:
            they are kept, and only a model can tell whether they fit.
        architecture: "i3d", or a 2D network's name in torchvision; None if nobody knows.
        state: The tensors. Of a 3D ResNet with the names that the inflated 2D network gives them: `net.conv1.weight`.
        num_classes: Of the last layer; None if there is none, or nobody knows.
        in_channels: Of the first convolution; None if nobody knows.
        is_2d: Whether the kernels are those of a 2D network.
        prefix: What stood before every name.
        score: Names of the network that are there, of all that either has; 0 with own names.
        notes: What was filled in, left out or changed.
    """

    path: Path
    container: str
    dialect: str
    architecture: str | None
    state: dict[str, Tensor]
    num_classes: int | None
    in_channels: int | None
    is_2d: bool
    prefix: str
    score: float
    notes: tuple[str, ...]

    def summary(self) -> dict[str, Any]:
        """Tell in plain values what this is and by what it was recognized."""
        writers = DIALECTS[self.dialect].writers if self.dialect in DIALECTS else "nobody knows whose"
        return {
            "file": str(self.path),
            "container": self.container,
            "dialect": self.dialect,
            "writers": writers,
            "recognized_by": f"its names: {self.score:.0%} of those of the network and of the file are the same",
            "prefix": self.prefix,
            "architecture": self.architecture,
            "kernels": "2D" if self.is_2d else "3D",
            "num_classes": self.num_classes,
            "in_channels": self.in_channels,
            "tensors": len(self.state),
            "values": sum(tensor.numel() for tensor in self.state.values()),
            "notes": list(self.notes),
        }


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint of any dialect; what it is, its content tells, never its name.

    Args:
        path: The file; of a TensorFlow checkpoint any of its files, or their common name.

    Raises:
        InflateError: There is no such file, it is of no known kind, damaged or hostile, or it does not hold the
            network whose names it has; everything missing, unexpected or of another shape is told together.

    Example:
        >>> import tempfile, torch
        >>> from inflate3d.models.inception import InceptionI3d
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save({"state_dict": InceptionI3d(7, 2).state_dict()}, f"{folder}/mine.bin")
        ...     found = read_checkpoint(f"{folder}/mine.bin")
        >>> found.dialect, found.architecture, found.num_classes, found.in_channels, found.prefix
        ('inflate3d', 'i3d', 7, 2, 'state_dict.')
    """
    with open_container(path) as container:
        where = str(container.path)
        found = recognize(container.tensors)
        if found is None:
            return _with_own_names(container)
        try:
            converted = convert(container.tensors, found, where=where)
        except InflateError:
            if found.dialect.needs_all:  # another network with the same names: a wide ResNet, a ResNeXt
                return _with_own_names(container)
            raise
        is_inflated = ARCHITECTURES[found.architecture] == "resnet" and not converted.is_2d
        return Checkpoint(
            path=container.path,
            container=container.kind,
            dialect=found.dialect.name,
            architecture=found.architecture,
            state=_as_inflated(converted.state) if is_inflated else converted.state,
            num_classes=converted.num_classes,
            in_channels=converted.in_channels,
            is_2d=converted.is_2d,
            prefix=found.prefix,
            score=found.score,
            notes=converted.notes,
        )


def _as_inflated(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{'inserts' if '.non_local.' in name else 'net'}.{name}": tensor for name, tensor in state.items()}


def _with_own_names(container: Container) -> Checkpoint:
    prefix, tensors = _unwrap(container)
    needed = sum(tensor.nbytes for tensor in tensors.values())
    if needed > MAX_BYTES:
        raise ContentError("the tensors take more memory than allowed", f"{needed:,} bytes, allowed: {MAX_BYTES:,}")
    kernels = [len(tensor.shape) for tensor in tensors.values()]
    return Checkpoint(
        path=container.path,
        container=container.kind,
        dialect=OWN_NAMES,
        architecture=None,
        state={name: tensor.read() for name, tensor in tensors.items()},
        num_classes=None,
        in_channels=None,
        is_2d=4 in kernels and 5 not in kernels,
        prefix=prefix,
        score=0.0,
        notes=(f"{left} tensors left out: elsewhere in the file",)
        if (left := len(container.tensors) - len(tensors))
        else (),
    )


def _unwrap(container: Container) -> tuple[str, dict[str, Stored]]:
    """Take wrappers off, as long as all names lie in one, or all but those of optimizers and the like."""
    prefix, tensors = "", container.tensors
    for _ in range(len(WRAPPERS)):
        for wrapper in WRAPPERS:
            start = f"{wrapper}{container.separator}"
            inner = {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}
            others = [name for name in tensors if not name.startswith((start, *BESIDE))]
            if inner and not others:
                prefix, tensors = f"{prefix}{start}", inner
                break
    return prefix, tensors
