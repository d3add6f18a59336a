"""Networks of the zoo that start from ImageNet, as the paper's do: with 2D weights that are on this machine already."""

from pathlib import Path, PurePosixPath
from typing import Any

import torch
import torchvision.models
from torch import nn

from inflate3d.errors import InflateError, nearest_names
from inflate3d.models.googlenet import STREAM_CHANNELS, Stream, start_from_googlenet
from inflate3d.models.zoo import INFLATED, build_network, find_network
from inflate3d.weights.checkpoint import read_checkpoint
from inflate3d.weights.labels import read_labels

TORCHVISION = "torchvision/"


def start_from_2d(
    name: str,
    init: str | Path,
    *,
    stream: Stream = "rgb",
    num_classes: int | None = None,
    label_set: str | None = None,
) -> nn.Module:
    """Build a network of the zoo and inflate 2D weights into it; its last layer is new where classes differ.

    Args:
        name: A key of `inflate3d.models.zoo.MODELS`, or `inflated/SOURCE`.
        init: A file of 2D weights, or `torchvision/NAME` for what torchvision has downloaded before.
        stream: "rgb" or "flow", for networks of one stream.
        num_classes: Classes of the last layer; None leaves what the network has by itself.
        label_set: Names of the classes, a key of `inflate3d.weights.labels.LABEL_SETS`.

    Raises:
        InflateError: There is no such network, stream or file, or the weights are not those of its 2D network.
    """
    if stream not in STREAM_CHANNELS:
        raise InflateError(
            "there is no such stream",
            where="load",
            expected=", ".join(STREAM_CHANNELS),
            got=repr(stream),
            fix=f"did you mean {nearest_names(str(stream), STREAM_CHANNELS)}?",
        )
    labels = read_labels(label_set) if label_set else None
    path = weights_2d(init)
    network = None if name.startswith(INFLATED) else find_network(name)
    options: dict[str, Any] = {"class_names": labels}
    if network is None or len(network.clips) == 1:
        options["in_channels"] = STREAM_CHANNELS[stream]
    made_from_2d = network is None or network.needs_values
    if made_from_2d:
        options["weights"] = path
    model = build_network(name, num_classes or (len(labels) if labels else None), **options)
    if not made_from_2d:
        start_from_googlenet(model, read_checkpoint(path).state)
    return model


def weights_2d(init: str | Path) -> Path:
    """Find a file of 2D weights; nothing is downloaded.

    Raises:
        InflateError: torchvision has no such model, or has not downloaded its weights yet.
    """
    if not str(init).startswith(TORCHVISION):
        return Path(init)
    name = str(init).removeprefix(TORCHVISION)
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise InflateError(
            "torchvision has no such model",
            where="load",
            expected=f"{TORCHVISION}NAME of a classifier, or a file",
            got=repr(str(init)),
            fix=f"did you mean {nearest_names(name, known)}?",
        )
    url = torchvision.models.get_model_weights(name).DEFAULT.url
    path = Path(torch.hub.get_dir()) / "checkpoints" / PurePosixPath(url).name
    if not path.is_file():
        raise InflateError(
            "torchvision's weights are not on this machine",
            where="load",
            expected=str(path),
            got="no such file",
            fix=f'name a file with init=, or download it once: torchvision.models.{name}(weights="DEFAULT")',
        )
    return path
