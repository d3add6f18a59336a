"""The page of a model on the Hugging Face hub, written from its card: YAML for the hub, a table for readers."""

import json
import re

from huggingface_hub import ModelCardData

from inflate3d import __version__
from inflate3d.models.ct import CT_NAME
from inflate3d.weights.catalogue import Card
from inflate3d.weights.inflated_file import InflatedCard

AnyCard = Card | InflatedCard

# As the hub spells them
LICENSES = ("apache-2.0", "mit", "bsd-3-clause", "bsd-2-clause", "cc-by-4.0", "cc-by-nc-4.0", "cc-by-sa-4.0")


def model_page(card: AnyCard, class_names: tuple[str, ...] = ()) -> str:
    """Write the page of a model as the hub shows it: YAML, then what the card knows, then how to load it.

    Example:
        >>> from inflate3d.weights.catalogue import find_entry
        >>> model_page(find_entry("i3d-kinetics400").card).splitlines()[:3]
        ['---', 'library_name: inflate3d', 'license: apache-2.0']
    """
    if isinstance(card, InflatedCard):
        title, licensed, facts = card.name, "", _inflated_facts(card)
        what, kind, task = "a 2D network, inflated in time", "video", "video-classification"
    elif card.architecture == CT_NAME:
        title, licensed, facts = card.name, card.license, facts_of(card)
        what, kind, task = "a network for CT volumes", "medical", "image-feature-extraction"
    else:
        title, licensed, facts = card.name, card.license, facts_of(card)
        what, kind, task = "a network for video", "video", "video-classification"
    front = ModelCardData(
        library_name="inflate3d",
        license=_license_id(licensed),
        pipeline_tag=task,
        tags=["inflate3d", kind, "3d-convolution"],
    )
    rows = "\n".join(f"| {_cell(name)} | {_cell(value)} |" for name, value in facts.items() if value)
    parts = [
        f"---\n{front.to_yaml()}\n---",
        f"# {_cell(title)}",
        f"This is {what}, written by inflate3d {__version__}.",
        f"| | |\n|---|---|\n{rows}",
        "## Use",
        '```python\nfrom inflate3d.weights.hub import from_pretrained\n\nmodel = from_pretrained("OWNER/NAME")\n```',
        "Only `model.safetensors` is read; card and plan stand in its metadata.",
    ]
    names = class_names or getattr(card, "class_names", ())
    parts += ["## Classes", ", ".join(_cell(name) for name in names)] if names else []
    parts += ["## Plan", f"```text\n{_fenced(str(card.plan))}\n```"] if isinstance(card, InflatedCard) else []
    return "\n\n".join(parts) + "\n"


def facts_of(card: Card) -> dict[str, str]:
    """Tell what a card says in words, by the names that readers see.

    Example:
        >>> from inflate3d.weights.catalogue import find_entry
        >>> facts_of(find_entry("i3d-kinetics400").card)["license"]
        'Apache-2.0 (DeepMind)'
    """
    return {
        "architecture": card.architecture,
        "paper": card.paper,
        "classes": f"{card.num_classes}" + (f" ({card.label_set})" if card.label_set else ""),
        "input": _input(card),
        "how it is prepared": card.preparation,
        "known limits": card.limits,
        "source": card.source,
        "converted from": card.dialect,
        "license": card.license,
        "repackaged under": card.repackaged_under,
        "reported accuracy": card.reported_accuracy,
        "how it was measured": card.accuracy_protocol,
        "hash of the tensors": card.tensors_sha256,
    }


def _input(card: Card) -> str:
    clip, (low, high) = card.clip, card.clip.value_range
    channels = f"{card.in_channels} channel{'s' * (card.in_channels > 1)}"
    if card.architecture == CT_NAME:
        return f"{channels}, {clip.num_frames} slices of {clip.crop} x {clip.crop} voxels, values in {low:g}..{high:g}"
    return (
        f"{channels}, {clip.num_frames} frames at {clip.fps:g} per second, {clip.crop} pixels of a short side of"
        f" {clip.short_side}, values in {low:g}..{high:g}"
    )


def _inflated_facts(card: InflatedCard) -> dict[str, str]:
    through = sum(step.looks_through_time for step in card.plan.steps)
    return {
        "2D model": card.name,
        "its options": json.dumps(dict(card.options)) if card.options else "",
        "its weights": card.weights,
        "preset": card.plan.preset,
        "look through time": f"{through} of {len(card.plan.steps)} layers",
        "pooling over time": card.time_pool,
        "made with": ", ".join(f"{name} {version}" for name, version in card.versions.items()),
        "hash of the tensors": card.tensors_sha256,
    }


def _license_id(text: str) -> str:
    """Name a license as the hub does; what it does not know is `other`."""
    return next((known for known in LICENSES if text.lower().startswith(known)), "other")


def _cell(text: str) -> str:
    """Write a text of a card so that it stays in its cell, and is neither a link nor HTML."""
    return re.sub(r"([|<>\[\]`*_\\#!])", r"\\\1", " ".join(text.split()))


def _fenced(text: str) -> str:
    return text.replace("```", "'''")
