"""The networks of the zoo by name."""

from collections.abc import Callable

from torch import nn

from inflate3d.models.inception import InceptionI3d

MODELS: dict[str, Callable[..., nn.Module]] = {
    "i3d": InceptionI3d,
}
