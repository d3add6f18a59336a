"""`load`: a network with its weights, by name or from a file."""

from pathlib import Path

import torch
from torch import nn

from inflate3d.errors import InflateError, nearest_names
from inflate3d.models.zoo import MODELS
from inflate3d.weights.catalogue import CATALOGUE
from inflate3d.weights.fetch import fetched_path
from inflate3d.weights.labels import read_labels
from inflate3d.weights.store import read_card, read_weights


def load(name_or_file: str | Path) -> nn.Module:
    """Build a network, fill it with its weights strictly, and set it to eval mode.

    Nothing is downloaded: `inflate3d weights fetch NAME` does that.

    Args:
        name_or_file: A name that `inflate3d weights list` shows, or a `.safetensors` file that this package wrote.

    Returns:
        The network, in channels-last memory, with `clip_spec` and `class_names`.

    Raises:
        InflateError: The name is unknown, its weights are not fetched yet, or the file is not whole or not that of the
            network that its card names.
    """
    path = _find(name_or_file)
    card = read_card(path)
    if card.architecture not in MODELS:
        raise InflateError(
            "the weights are for a network that this version does not have",
            where=str(path),
            expected=", ".join(MODELS),
            got=card.architecture,
            fix="update inflate3d",
        )
    with torch.device("meta"):  # no time is spent on random values
        model = MODELS[card.architecture](
            num_classes=card.num_classes,
            in_channels=card.in_channels,
            class_names=read_labels(card.label_set) if card.label_set else None,
        )
    state, wanted = read_weights(path), model.state_dict()
    faults = [f"{name} is missing" for name in wanted.keys() - state.keys()]
    faults += [f"{name} is not of this network" for name in state.keys() - wanted.keys()]
    faults += [
        f"{name} is {list(state[name].shape)} {state[name].dtype}, not {list(wanted[name].shape)} {wanted[name].dtype}"
        for name in wanted.keys() & state.keys()
        if (state[name].shape, state[name].dtype) != (wanted[name].shape, wanted[name].dtype)
    ]
    if faults:
        raise InflateError(
            "weights and network do not fit",
            where=str(path),
            expected=f"the {len(wanted)} tensors of {card.architecture}",
            got="; ".join(sorted(faults)[:8]) + (f"; and {len(faults) - 8} more" if len(faults) > 8 else ""),
            fix="fetch or convert the weights anew with this version of inflate3d",
        )
    model.load_state_dict(state, strict=True, assign=True)
    model.clip_spec = card.clip  # type: ignore[assignment]  # nn.Module knows tensors and modules only
    return model.to(memory_format=torch.channels_last_3d).eval()


def _find(name_or_file: str | Path) -> Path:
    if str(name_or_file) in CATALOGUE:
        return fetched_path(str(name_or_file))
    if Path(name_or_file).is_file():
        return Path(name_or_file)
    raise InflateError(
        "there is neither a network nor a file of that name",
        where="load",
        expected=", ".join(CATALOGUE) + ", or a .safetensors file",
        got=repr(str(name_or_file)),
        fix=f"did you mean {nearest_names(str(name_or_file), CATALOGUE)}?",
    )
