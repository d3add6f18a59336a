"""Recipe: everything that decides on a training run, in one frozen object; changed by `key=value`."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from inflate3d.clips.video import Rate
from inflate3d.errors import InflateError, check_options, is_count, is_number, list_faults, nearest_names
from inflate3d.flow.methods import MethodName

Task = Literal["classes", "labels", "frames"]
Stream = Literal["rgb", "flow", "both"]
STREAM_CHANNELS: dict[Stream, int] = {"rgb": 3, "flow": 2, "both": 5}
HEAD = "head"
WORDS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


@dataclass(frozen=True)
class Recipe:
    """Everything that decides on a training run, besides the data.

    Attributes:
        name: What users type.
        network: Of the zoo, or `inflated/SOURCE`.
        init: Weights to start from: a name of the catalogue, `torchvision/NAME`, a file, or "none".
        stream: "rgb"; "flow"; "both": three and two channels, for a network of your own.
        flow_method: How flow is had, see `inflate3d.flow.methods.find_method`.
        task: "classes": one of each video. "labels": several. "frames": several, each for a part of the video.
        every_step: The loss is taken at each step of the network in time, as the paper's LSTM is trained.
        fps: Frames per second that are read, or "native".
        num_frames: Frames that the network is shown.
        frame_step: From one of them to the next.
        short_side: Pixels of the shorter side, before the crop.
        crop: Pixels of the crop.
        flip: Mirror every second clip; wrong where left and right are classes.
        zoom: Smallest crop before it is scaled, as a share of `crop`; 1 for none.
        optimizer: "sgd" or "adamw".
        lr: Learning rate.
        head_lr: Times that of the last layer.
        momentum: Of SGD.
        weight_decay: On kernels and matrices; not on biases and batch norms.
        schedule: "constant"; "cosine", to zero; "steps", see `lr_steps`.
        lr_steps: Steps of the optimizer with the learning rate from there on: `97000:0.01,108000:0.001`.
        warmup_steps: Steps in which the learning rate rises from zero.
        epochs: Runs over the training clips.
        max_steps: Steps of the optimizer, which count instead of epochs; 0 for none.
        batch_size: Clips at a time, on each device.
        accumulate: Batches whose gradients become one step.
        clip_norm: Largest norm of a gradient; 0 for any.
        label_smoothing: Share of a label that is given to all classes.
        mixup: Parameter of the Beta distribution; 0 for none.
        ema: Decay of the moving average of the weights, which is what is kept then; 0 for none.
        balance: Every class is drawn as often as the others.
        freeze: What is not trained: "", "head" (all but the last layer), or a layer: all up to it and with it.
        freeze_norm: Batch norms keep their statistics and scales.
        dropout: Before the last layer; None leaves what the network has.
        cached_views: The frozen part runs once on so many views of each clip, and never again; 0 runs it every time.
        precision: "bf16" or "fp32".
        checkpointing: Activations are computed twice instead of kept.
        patience: Epochs without a better validation before it ends; 0 for all epochs.
        cache: Decoded clips are kept in the folder of the run.
        workers: Processes that read clips.
        max_unreadable: Share of clips that may fail to be read.
        save_steps: Steps from one checkpoint to the next within an epoch; 0 for one at its end.
        seed: Of all that is drawn.

    Raises:
        InflateError: Values are out of range, all told together.
    """

    name: str
    network: str = "i3d"
    init: str = "none"
    stream: Stream = "rgb"
    flow_method: MethodName = "tvl1"
    task: Task = "classes"
    every_step: bool = False
    fps: Rate = 25.0
    num_frames: int = 64
    frame_step: int = 1
    short_side: int = 256
    crop: int = 224
    flip: bool = True
    zoom: float = 1.0
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.1
    head_lr: float = 1.0
    momentum: float = 0.9
    weight_decay: float = 1e-7
    schedule: Literal["constant", "cosine", "steps"] = "constant"
    lr_steps: tuple[tuple[int, float], ...] = ()
    warmup_steps: int = 0
    epochs: int = 1
    max_steps: int = 0
    batch_size: int = 8
    accumulate: int = 1
    clip_norm: float = 0.0
    label_smoothing: float = 0.0
    mixup: float = 0.0
    ema: float = 0.0
    balance: bool = False
    freeze: str = ""
    freeze_norm: bool = False
    dropout: float | None = None
    cached_views: int = 0
    precision: Literal["bf16", "fp32"] = "bf16"
    checkpointing: bool = False
    patience: int = 0
    cache: bool = False
    workers: int = 0
    max_unreadable: float = 0.05
    save_steps: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        rules: dict[str, tuple[str, bool]] = {
            name: (", ".join(map(str, get_args(hint))), getattr(self, name) in get_args(hint))
            for name, hint in hints.items()
            if get_origin(hint) is Literal
        }
        for name in ("num_frames", "frame_step", "short_side", "crop", "epochs", "batch_size", "accumulate"):
            rules[name] = ("a whole number, 1 or more", is_count(getattr(self, name)))
        for name in ("warmup_steps", "max_steps", "cached_views", "patience", "workers", "save_steps"):
            rules[name] = ("a whole number, 0 or more", is_count(getattr(self, name) + 1))
        for name in ("lr", "head_lr"):
            rules[name] = ("a number above 0", is_number(getattr(self, name)) and getattr(self, name) > 0)
        for name in ("weight_decay", "clip_norm", "mixup"):
            rules[name] = ("0 or more", is_number(getattr(self, name)) and getattr(self, name) >= 0)
        for name in ("momentum", "label_smoothing", "ema", "max_unreadable"):
            rules[name] = ("from 0 to below 1", is_number(getattr(self, name)) and 0 <= getattr(self, name) < 1)
        rules |= {
            "fps": ("a number above 0, or native", self.fps == "native" or (is_number(self.fps) and self.fps > 0)),
            "zoom": ("above 0, to 1", is_number(self.zoom) and 0 < self.zoom <= 1),
            "dropout": ("from 0 to below 1, or none", self.dropout is None or 0 <= self.dropout < 1),
            "crop": (f"at most short_side, {self.short_side}", is_count(self.crop) and self.crop <= self.short_side),
            "lr_steps": ("steps, with schedule steps only", bool(self.lr_steps) == (self.schedule == "steps")),
            "cached_views": ("0 unless freeze names what is frozen", not self.cached_views or bool(self.freeze)),
            "checkpointing": ("without live batch norms (freeze_norm)", not self.checkpointing or self.freeze_norm),
            "every_step": ("with task classes only", not self.every_step or self.task == "classes"),
        }
        check_options(self, rules, problem="a recipe does not work so", fix="pass what is expected")


def with_settings(recipe: Recipe, settings: Sequence[str]) -> Recipe:
    """Change a recipe by `key=value`, as typed behind `--set`.

    Raises:
        InflateError: There is no such key, or the value is not of its kind; all are told together.

    Example:
        >>> with_settings(Recipe("mine"), ["lr=0.01", "flip=no", "schedule=steps", "lr_steps=500:0.001"]).lr_steps
        ((500, 0.001),)
    """
    hints = get_type_hints(Recipe)
    changed: dict[str, Any] = {}
    faults, near = [], []
    for setting in settings:
        key, equals, text = (part.strip() for part in setting.partition("="))
        if not equals or key not in hints:
            faults.append(f"{setting!r}: no such key")
            near.append(nearest_names(key, hints))
            continue
        try:
            changed[key] = _parsed(text, hints[key])
        except ValueError:
            faults.append(f"{setting!r}: {key} is {_kind(hints[key])}")
    if faults:
        raise InflateError(
            "settings cannot be understood",
            where=f"recipe {recipe.name}",
            expected=f"key=value with a key of {', '.join(field.name for field in fields(Recipe))}",
            got=list_faults(faults),
            fix=f"did you mean {'; '.join(near)}?" if near else "write the value as it is expected",
        )
    return replace(recipe, **changed)


def _parsed(text: str, hint: Any) -> Any:  # noqa: PLR0911 - one line for each kind
    if hint == Recipe.__annotations__["lr_steps"]:
        pairs = [pair.split(":") for pair in text.split(",") if pair]
        return tuple((int(step), float(rate)) for step, rate in pairs)
    if hint is bool:
        if text.lower() not in WORDS:
            raise ValueError(text)
        return WORDS[text.lower()]
    if get_origin(hint) is Literal or hint is str:
        return text
    if hint is int:
        return int(text)
    if hint == Rate:
        return text if text == "native" else float(text)
    if type(None) in get_args(hint) and text.lower() == "none":
        return None
    return float(text)


def _kind(hint: Any) -> str:
    if get_origin(hint) in (Literal, Union):
        return " or ".join(map(str, get_args(hint)))
    return "true or false" if hint is bool else getattr(hint, "__name__", str(hint))
