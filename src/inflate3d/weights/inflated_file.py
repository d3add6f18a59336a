"""Inflated models in files: weights, plan, and where the 2D model's code comes from; one call builds them again."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from inflate3d.atomic import replacing
from inflate3d.clips.volume_spec import VolumeSpec
from inflate3d.errors import InflateError, in_a_line, is_count, list_faults
from inflate3d.inflation.build import build, check_model
from inflate3d.inflation.channels import with_input_channels
from inflate3d.inflation.inflated import Inflated, check_inflated
from inflate3d.inflation.outputs import TimePool
from inflate3d.inflation.plan import Plan
from inflate3d.models.sources import SOURCES, example_shape, find_2d_model
from inflate3d.weights.catalogue import MAX_CHANNELS, MAX_CLASSES
from inflate3d.weights.checkpoint import INFLATED_KEY, metadata_in, read_unchanged, tensors_sha256, write_safetensors
from inflate3d.weights.stored import shape_and_type

VERSION = 1
MAX_LETTERS = 64 * 2**20  # of the metadata; the plan of a network with a thousand layers takes half a million
# What is built takes memory before the tensors are compared: pixels of a side, frames of a kernel, classes
MAX_SIDE, MAX_FRAMES, MAX_WIDTH = 4096, 1024, 4096
# What a file may hand to the builder of a package, up to which number; others name files and addresses: timm unpickles
# a checkpoint_path
OPTIONS = {
    **dict.fromkeys(("num_classes", "num_labels", "classes"), MAX_CLASSES),
    **dict.fromkeys(("in_chans", "num_channels"), MAX_CHANNELS),
    **dict.fromkeys(("img_size", "image_size"), MAX_SIDE),
    "global_pool": 1,
}
WIDTHS = ("decoder_channels", "encoder_depth", "first_stride")  # each stands for a square of weights


@dataclass(frozen=True)
class InflatedCard:
    """What a file says about the inflated model that it holds.

    Attributes:
        name: Where the 2D model's code comes from: see `find_2d_model`.
        options: For its builder.
        weights: Where its 2D weights came from, in words.
        plan: What its layers became.
        time_pool: See `inflate`.
        class_names: One for each logit, or none.
        tensors_sha256: Hash of the weights, see `tensors_sha256`.
        versions: Of the packages that made the file.
        volume: What it wants to be fed, if it is a network for volumes.
    """

    name: str
    options: Mapping[str, Any]
    weights: str
    plan: Plan = field(repr=False)
    time_pool: TimePool = "mean"
    class_names: tuple[str, ...] = field(default=(), repr=False)
    tensors_sha256: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    volume: VolumeSpec | None = None

    # likewise in `speed.exported`: what a text of a stranger has to be, each card says for itself
    def to_json(self) -> str:
        """Write the card as JSON."""
        return json.dumps({"version": VERSION, **asdict(self)})

    @staticmethod
    def from_json(text: str, *, where: str) -> "InflatedCard":
        """Read a card back; nothing that it names is imported or opened.

        Raises:
            InflateError: The text is no card, or of another version.
        """
        try:
            if len(text) > MAX_LETTERS:
                raise ValueError(f"{len(text)} letters")
            found = json.loads(text)
            if not isinstance(found, dict) or found.pop("version", None) != VERSION:
                raise ValueError("another version")
            plan = Plan.from_json(json.dumps(found.pop("plan", None)))
            volume = VolumeSpec.from_plain(found["volume"]) if found.get("volume") else None
            names = tuple(found.get("class_names", ()))
            card = InflatedCard(**{**found, "plan": plan, "class_names": names, "volume": volume})
            texts = [card.name, card.weights, card.tensors_sha256, *card.class_names, *card.options, *card.versions]
            if not all(isinstance(one, str) for one in texts) or card.time_pool not in get_args(TimePool):
                raise ValueError("a name or a text is none")
            if (
                max(card.plan.input_shape) > MAX_SIDE
                or max((one.time_kernel for one in plan.steps), default=1) > MAX_FRAMES
            ):
                raise ValueError("a picture or a kernel is too large")
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise InflateError(
                "what the file says about its model cannot be read",
                where=where,
                expected=f"JSON with {', '.join(one.name for one in fields(InflatedCard))}, version {VERSION}",
                got=in_a_line(error),
                fix="save the model anew: inflate3d inflate NAME -o FILE",
            ) from error
        return card


def save_inflated(
    model3d: Inflated,
    path: str | Path,
    name: str,
    *,
    options: Mapping[str, Any] | None = None,
    weights: str = "not told",
    class_names: tuple[str, ...] = (),
) -> InflatedCard:
    """Write an inflated model, and see that the file gives it back; an interrupted run leaves the file as it was.

    Args:
        model3d: Made by `inflate` or `build`. A `VolumeSpec` that it has as `volume_spec` is written too.
        path: FILE.safetensors.
        name: Where the code of its 2D model comes from: `timm/resnet50`, `module:function`; see `find_2d_model`.
        options: For the builder of that name, such as `{"num_classes": 7}`. A function of yours gets none.
        weights: Where the 2D weights came from, for those who read the card.
        class_names: One for each logit.

    Raises:
        InflateError: The name and options build another model, a file may not hold such options, or the file cannot be
            written.

    Example:
        >>> import tempfile, timm
        >>> from inflate3d import inflate
        >>> model3d = inflate(timm.create_model("resnet10t", num_classes=7).eval(), example=torch.zeros(1, 3, 65, 67))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = f"{folder}/resnet10t.safetensors"
        ...     card = save_inflated(model3d, file, "timm/resnet10t", options={"num_classes": 7})
        ...     again = load_inflated(file)
        >>> clip = torch.rand(1, 3, 5, 65, 67)
        >>> torch.equal(again(clip), model3d(clip)), card.name
        (True, 'timm/resnet10t')
    """
    check_inflated(model3d, "save_inflated")
    path, state = Path(path), model3d.state_dict()
    if path.suffix != ".safetensors":
        raise InflateError(
            "an inflated model is saved as safetensors",
            where=str(path),
            expected="FILE.safetensors",
            got=path.name,
            fix=f"name it {path.with_suffix('.safetensors').name}",
        )
    card = InflatedCard(
        name,
        dict(options or {}),
        weights,
        model3d.plan,
        model3d.time_pool,
        class_names,
        tensors_sha256(state),
        {package: version(package) for package in ("inflate3d", "torch", "torchvision", "timm")},
        spec if isinstance(spec := getattr(model3d, "volume_spec", None), VolumeSpec) else None,
    )
    with replacing(path) as draft:
        write_safetensors(state, draft, {INFLATED_KEY: card.to_json()})
        load_inflated(draft, trust=True)  # a name that you give here is yours
    return card


def load_inflated(path: str | Path, *, model2d: nn.Module | None = None, trust: bool = False) -> Inflated:
    """Build an inflated model again from its file, in eval mode, to the last bit.

    Args:
        path: Written by `save_inflated`.
        model2d: The 2D model, where its code is your own; it is left as it is, and its weights do not matter.
        trust: Import the module that the file names and call its function. Code can do anything: know whose it is.

    Raises:
        InflateError: The file is damaged, its tensors do not fit, it names code of somebody's (without `trust`) or
            options that no file may name, or the model cannot be built.

    Example:
        See `save_inflated`.
    """
    path = Path(path)
    card = inflated_card(path)
    if card is None:
        raise InflateError(
            "the file holds no inflated model",
            where=str(path),
            expected="a file that save_inflated or inflate3d inflate wrote",
            got="weights without a plan",
            fix="inflate(model2d, ...) and load_checkpoint(model3d, FILE), or inflate3d.load(FILE)",
        )
    state = read_unchanged(path, card.tensors_sha256)
    model3d = build(card.plan, _model2d(card, str(path), trust) if model2d is None else _checked(model2d))
    model3d.time_pool = card.time_pool
    model3d.eval()
    _fill(model3d, state, str(path))
    if card.class_names:
        model3d.class_names = card.class_names  # type: ignore[assignment]  # nn.Module knows no others
    if card.volume:
        model3d.volume_spec = card.volume  # type: ignore[assignment]  # likewise
    return model3d


def inflated_card(path: str | Path) -> InflatedCard | None:
    """Read what a file says about the inflated model that it holds; None for every other file.

    Raises:
        InflateError: It says something that cannot be read.
    """
    text = metadata_in(Path(path)).get(INFLATED_KEY)
    return None if text is None else InflatedCard.from_json(text, where=str(path))


def _checked(model2d: nn.Module) -> nn.Module:
    check_model(model2d, "load_inflated")
    return model2d


def _model2d(card: InflatedCard, where: str, trust: bool) -> nn.Module:
    """Build the 2D model that a card names, if it is code of a package we know."""
    foreign = card.name.partition("/")[0] not in SOURCES
    if foreign and not trust:
        raise InflateError(
            "the file names code that is not of a package inflate3d knows; it was not run",
            where=where,
            expected="model2d=, the 2D model, or trust=True (--trust)",
            got=card.name,
            fix=f"load_inflated({where!r}, model2d=YOUR_MODEL)",
        )
    allowed = OPTIONS | dict.fromkeys(WIDTHS, MAX_WIDTH)
    if not foreign and (refused := [name for name, value in card.options.items() if not _is_harmless(name, value)]):
        raise InflateError(
            "no file may name such options",
            where=where,
            expected=", ".join(f"{name} up to {most:,}" for name, most in allowed.items()),
            got=", ".join(f"{name}={card.options[name]!r:.40}" for name in refused),
            fix="build the 2D model in a function of yours, and name it: module:function",
        )
    model2d = find_2d_model(card.name, **dict(card.options))
    channels = card.plan.input_shape[0]
    shape = example_shape(model2d, card.name)
    return model2d if shape[0] == channels else with_input_channels(model2d, channels, example=torch.zeros(1, *shape))


def _is_harmless(name: str, value: object) -> bool:
    values = value if isinstance(value, list | tuple) else [value]
    if name in WIDTHS:
        return len(values) <= 6 and all(is_count(one, MAX_WIDTH) for one in values)
    most = OPTIONS.get(name, 0)
    fine = all(one is None or one == 0 or isinstance(one, str | bool) or is_count(one, most) for one in values)
    return name in OPTIONS and fine and len(values) <= 3


def _fill(model3d: Inflated, state: Mapping[str, Tensor], where: str) -> None:
    wanted = model3d.state_dict(keep_vars=True)
    faults = [f"{name} is missing" for name in wanted if name not in state]
    faults += [f"{name} is unknown" for name in state if name not in wanted]
    faults += [
        f"{name}: {shape_and_type(state[name])}, wanted {shape_and_type(value)}"
        for name, value in wanted.items()
        if name in state and state[name].shape != value.shape
    ]
    if faults:
        raise InflateError(
            "the weights do not fit the model that the file names",
            where=where,
            expected="the tensors of the model that was saved",
            got=list_faults(faults),
            fix="name the builder and its options as they were: options={'num_classes': 7}",
        )
    for name, value in wanted.items():
        value.data = value.data.to(state[name].dtype)  # half precision stays what it is
    model3d.load_state_dict(dict(state))
