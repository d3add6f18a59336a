"""The card that weights carry with them: what they are, what they want to be fed, and whose they are."""

import json
from dataclasses import asdict, dataclass, fields
from typing import get_type_hints

from inflate3d.checks import is_count
from inflate3d.clips.clip import ClipSpec
from inflate3d.errors import InflateError
from inflate3d.weights.labels import LABEL_SETS

# Far above any network, far below what would fill a machine
MAX_CLASSES, MAX_CHANNELS = 100_000, 1000


@dataclass(frozen=True)
class Card:
    """What is known about one file of weights.

    Attributes:
        name: Their name in the catalogue, or one of your own.
        architecture: Name of the network.
        num_classes: Classes of the last layer.
        label_set: Names of the classes (`inflate3d.weights.labels.LABEL_SETS`), if it is a known set.
        in_channels: Channels of the input: 3 for RGB, 2 for optical flow.
        clip: What the network wants to be fed.
        license: License of the weights, and whose it is.
        repackaged_under: License under which somebody else's package carries them.
        source: Who made the weights and where they were published first.
        source_sha256: Hash of the checkpoint that they were converted from.
        reported_accuracy: What the makers report for exactly these weights.
        accuracy_protocol: How that was measured, or why there is no number.
        inflate3d_version: The version that wrote the file.
        tensors_sha256: Hash of the tensors; `save_weights` fills it in.
    """

    name: str
    architecture: str
    num_classes: int
    label_set: str | None
    in_channels: int
    clip: ClipSpec
    license: str
    repackaged_under: str
    source: str
    source_sha256: str
    reported_accuracy: str
    accuracy_protocol: str
    inflate3d_version: str
    tensors_sha256: str = ""

    def to_json(self) -> str:
        """Write the card as one JSON object."""
        return json.dumps(asdict(self), indent=1)

    @staticmethod
    def from_json(text: str, *, where: str) -> "Card":
        """Read a card back.

        Args:
            text: What `to_json` wrote.
            where: The file, for messages.

        Raises:
            InflateError: The text is no JSON object, its fields are not those of a card, or they contradict each other.
        """
        try:
            found = json.loads(text)
            clip = found["clip"]
            spec = ClipSpec(**{**clip, "value_range": tuple(clip["value_range"])})
            card = Card(**{**found, "clip": spec})
            wrong = [name for name, kind in get_type_hints(Card).items() if not isinstance(getattr(card, name), kind)]
            if wrong:
                raise TypeError(f"{', '.join(wrong)}: another type")
            _check_counts(card)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise InflateError(
                "the card in the file cannot be read",
                where=where,
                expected=f"JSON with {', '.join(field.name for field in fields(Card))}",
                got=f"{type(error).__name__}: {error}",
                fix="fetch or save the weights anew with this version of inflate3d",
            ) from error
        return card


def _check_counts(card: Card) -> None:
    for name, at_most in (("num_classes", MAX_CLASSES), ("in_channels", MAX_CHANNELS)):
        if not is_count(getattr(card, name), at_most):
            raise ValueError(f"{name} is {getattr(card, name)}, not in 1..{at_most}")
    named = LABEL_SETS.get(card.label_set or "", card.num_classes)
    if named != card.num_classes:
        raise ValueError(f"{card.label_set} has {named} classes, not {card.num_classes}")
