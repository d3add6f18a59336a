"""Recipes: everything that decides on a training run, in one frozen object; changed by `key=value`."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from inflate3d.clips.video import Rate
from inflate3d.clips.volume_spec import VolumeTask
from inflate3d.errors import InflateError, check_options, is_count, is_number, is_pair, list_faults, nearest_names
from inflate3d.flow.methods import MethodName

Task = Literal["classes", "labels", "frames"]
Stream = Literal["rgb", "flow", "both"]
STREAM_CHANNELS: dict[Stream, int] = {"rgb": 3, "flow": 2, "both": 5}
HEAD = "head"
WORDS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


Rules = dict[str, tuple[str, bool]]


@dataclass(frozen=True)
class Training:
    """How a network is trained, whatever it sees.

    Attributes:
        name: What users type.
        network: Where it comes from.
        init: Weights to start from, or "none".
        optimizer: "sgd" or "adamw".
        lr: Learning rate.
        head_lr: Times that of the last layer.
        momentum: Of SGD.
        weight_decay: On kernels and matrices; not on biases and batch norms.
        schedule: "constant"; "cosine", to zero; "steps", see `lr_steps`.
        lr_steps: Steps of the optimizer with the learning rate from there on: `97000:0.01,108000:0.001`.
        warmup_steps: Steps in which the learning rate rises from zero.
        epochs: Runs over what is trained on.
        max_steps: Steps of the optimizer, which count instead of epochs; 0 for none.
        batch_size: Samples at a time, on each device.
        accumulate: Batches whose gradients become one step.
        clip_norm: Largest norm of a gradient; 0 for any.
        label_smoothing: Share of a label that is given to all classes.
        ema: Decay of the moving average of the weights, which is what is kept then; 0 for none.
        balance: Every class is drawn as often as the others.
        freeze_norm: Batch norms keep their statistics and scales.
        precision: "bf16" or "fp32".
        patience: Epochs without a better validation before it ends; 0 for all epochs.
        workers: Processes that read samples.
        max_unreadable: Share of samples that may fail to be read.
        save_steps: Steps from one checkpoint to the next within an epoch; 0 for one at its end.
        seed: Of all that is drawn.

    Raises:
        InflateError: Values are out of range, all told together.
    """

    name: str
    network: str = "i3d"
    init: str = "none"
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
    ema: float = 0.0
    balance: bool = False
    freeze_norm: bool = False
    precision: Literal["bf16", "fp32"] = "bf16"
    patience: int = 0
    workers: int = 0
    max_unreadable: float = 0.05
    save_steps: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        check_options(self, self.rules(), problem="a recipe does not work so", fix="pass what is expected")

    def rules(self) -> Rules:
        """Tell of each value what it may be, and whether it is."""
        hints = get_type_hints(type(self))
        rules: Rules = {
            name: (", ".join(map(str, get_args(hint))), getattr(self, name) in get_args(hint))
            for name, hint in hints.items()
            if get_origin(hint) is Literal
        }
        rules |= self.counts("epochs", "batch_size", "accumulate")
        rules |= self.counts("warmup_steps", "max_steps", "patience", "workers", "save_steps", "seed", least=0)
        for name in ("lr", "head_lr"):
            rules[name] = ("a number above 0", is_number(getattr(self, name)) and getattr(self, name) > 0)
        for name in ("weight_decay", "clip_norm"):
            rules[name] = ("0 or more", is_number(getattr(self, name)) and getattr(self, name) >= 0)
        for name in ("momentum", "ema", "max_unreadable"):
            rules[name] = ("from 0 to below 1", is_number(getattr(self, name)) and 0 <= getattr(self, name) < 1)
        rules["lr_steps"] = ("steps, with schedule steps only", bool(self.lr_steps) == (self.schedule == "steps"))
        return rules

    def for_classes(self, task: str) -> Rules:
        """Tell of values that count where each sample has one class whether they do."""
        share, counts = self.label_smoothing, task == "classes"
        return {
            "balance": ("with task classes only", counts or not self.balance),
            "label_smoothing": (
                "from 0 to below 1, with task classes only",
                is_number(share) and 0 <= share < 1 and (counts or not share),
            ),
        }

    def counts(self, *names: str, least: int = 1) -> Rules:
        """Tell of values that count whether they do."""
        words = f"a whole number, {least} or more"
        return {name: (words, is_count(getattr(self, name) + 1 - least)) for name in names}


@dataclass(frozen=True)
class Recipe(Training):
    """Everything that decides on a training run on videos, besides the data.

    Attributes:
        network: Of the zoo, or `inflated/SOURCE`.
        init: A name of the catalogue, `torchvision/NAME`, a file, or "none".
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
        mixup: Parameter of the Beta distribution; 0 for none.
        freeze: What is not trained: "", "head" (all but the last layer), or a layer: all up to it and with it.
        dropout: Before the last layer; None leaves what the network has.
        cached_views: The frozen part runs once on so many views of each clip, and never again; 0 runs it every time.
        checkpointing: Activations are computed twice instead of kept.
        cache: Decoded clips are kept in the folder of the run.

    The others are those of `Training`.

    Raises:
        InflateError: Values are out of range, all told together.
    """

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
    mixup: float = 0.0
    freeze: str = ""
    dropout: float | None = None
    cached_views: int = 0
    checkpointing: bool = False
    cache: bool = False

    def rules(self) -> Rules:
        """Tell of each value what it may be, and whether it is."""
        return {
            **super().rules(),
            **self.for_classes(self.task),
            **self.counts("num_frames", "frame_step", "short_side", "crop"),
            "mixup": ("0 or more", is_number(self.mixup) and self.mixup >= 0),
            "fps": (
                "a number above 0, or (but with task frames, whose labels have times) native",
                self.task != "frames" if self.fps == "native" else is_number(self.fps) and self.fps > 0,
            ),
            "zoom": ("above 0, to 1", is_number(self.zoom) and 0 < self.zoom <= 1),
            "dropout": ("from 0 to below 1, or none", self.dropout is None or 0 <= self.dropout < 1),
            "crop": (f"at most short_side, {self.short_side}", is_count(self.crop) and self.crop <= self.short_side),
            "cached_views": (
                "a whole number, 0 or more; 0 unless freeze names what is frozen",
                is_count(self.cached_views + 1) and (not self.cached_views or bool(self.freeze)),
            ),
            "checkpointing": ("without live batch norms (freeze_norm)", not self.checkpointing or self.freeze_norm),
            "every_step": ("with task classes only", not self.every_step or self.task == "classes"),
        }


@dataclass(frozen=True)
class VolumeRecipe(Training):
    """Everything that decides on a training run on volumes, besides the data.

    Attributes:
        network: A 2D model that is inflated, by name: see `find_2d_model`. For masks one that answers each pixel.
        init: A file of the 2D network's weights, or of its encoder's; "pretrained", which its package fetches; "none".
        task: "classes": one answer for a scan. "mask": one for each voxel.
        preset: Which layers see depth, see `inflate`; "frames" is the 2D network on each slice.
        profile: How kernels are laid out along depth.
        encoder_depth: Levels of the encoder, of segmentation_models_pytorch; 0 leaves its own.
        decoder_channels: Of each of them, from the deepest on; empty leaves the package's own.
        first_stride: Of the first convolution: 1 keeps small structures apart; 0 leaves its own.
        channels: Of the input: 1, or 3 alike. Kernels for three are summed up for one.
        spacing_mm: Along depth, height and width; empty takes the median of the training scans.
        patch: Voxels along them that the network is shown at a time.
        window: Values that become 0 and 1, such as Hounsfield units; None takes `percentiles` of each scan.
        percentiles: Likewise, of each scan's own values.
        mirror: Axes along which patches are mirrored: of the letters d, h and w; wrong where sides are told apart.
        rotate_degrees: Largest rotation, about each axis; about depth alone where voxels are twice as deep as wide.
        zoom: Largest change of size, as a share.
        noise: Deviation of what is added to values in 0..1.
        brightness: Largest change of values, as a share.
        positive: Share of patches around a voxel of a part; the others lie anywhere. For masks.
        overlap: Of windows in the test, for masks; the validation takes less, which is faster.

    The others are those of `Training`.

    Raises:
        InflateError: Values are out of range, all told together.
    """

    network: str = "smp/Unet-tu-tf_efficientnet_lite0"
    optimizer: Literal["sgd", "adamw"] = "adamw"
    lr: float = 1e-3
    weight_decay: float = 0.01
    schedule: Literal["constant", "cosine", "steps"] = "cosine"
    epochs: int = 20
    batch_size: int = 2
    clip_norm: float = 5.0
    precision: Literal["bf16", "fp32"] = "fp32"
    task: VolumeTask = "mask"
    preset: str = "isotropic"
    profile: str = "center"
    encoder_depth: int = 0
    decoder_channels: tuple[int, ...] = ()
    first_stride: int = 0
    channels: int = 1
    spacing_mm: tuple[float, ...] = ()
    patch: tuple[int, ...] = (64, 64, 64)
    window: tuple[float, float] | None = None
    percentiles: tuple[float, float] = (0.5, 99.5)
    mirror: str = ""
    rotate_degrees: float = 10.0
    zoom: float = 0.1
    noise: float = 0.02
    brightness: float = 0.1
    positive: float = 0.5
    overlap: float = 0.5

    def rules(self) -> Rules:
        """Tell of each value what it may be, and whether it is."""
        shares = ("zoom", "noise", "brightness")
        spacing, patch = self.spacing_mm, self.patch
        return {
            **super().rules(),
            **self.for_classes(self.task),
            **self.counts("encoder_depth", "first_stride", least=0),
            **{name: ("from 0 to 0.9", is_number(one := getattr(self, name)) and 0 <= one <= 0.9) for name in shares},
            "overlap": (
                "from 0 to 0.9, with task mask only",
                is_number(self.overlap)
                and 0 <= self.overlap <= 0.9
                and (self.task == "mask" or self.overlap == VolumeRecipe.overlap),
            ),
            "head_lr": (
                "a number above 0, with task classes only",
                is_number(self.head_lr) and self.head_lr > 0 and (self.task == "classes" or self.head_lr == 1),
            ),
            "positive": ("from 0 to 1", is_number(self.positive) and 0 <= self.positive <= 1),
            "decoder_channels": ("whole numbers, 1 or more", all(map(is_count, self.decoder_channels))),
            "channels": ("1 or 3", self.channels in (1, 3)),
            "spacing_mm": (
                "nothing, or three numbers above 0",
                len(spacing) in (0, 3) and all(is_number(size) and size > 0 for size in spacing),
            ),
            "patch": ("three whole numbers: depth, height, width", len(patch) == 3 and all(map(is_count, patch))),
            "window": (
                "a lower and a higher value, or none",
                self.window is None or (is_pair(self.window) and self.window[0] < self.window[1]),
            ),
            "mirror": (
                "of the letters d, h and w, each once",
                sorted(set(self.mirror) & set("dhw")) == sorted(self.mirror),
            ),
            "rotate_degrees": ("from 0 to 180", is_number(self.rotate_degrees) and 0 <= self.rotate_degrees <= 180),
        }


Some = TypeVar("Some", bound=Training)


def with_settings(recipe: Some, settings: Sequence[str]) -> Some:
    """Change a recipe by `key=value`, as typed behind `--set`.

    Raises:
        InflateError: There is no such key, or the value is not of its kind; all are told together.

    Example:
        >>> with_settings(Recipe("mine"), ["lr=0.01", "flip=no", "schedule=steps", "lr_steps=500:0.001"]).lr_steps
        ((500, 0.001),)
        >>> with_settings(VolumeRecipe("scans"), ["patch=32,64,48", "window=-160,240", "mirror=dh"]).window
        (-160.0, 240.0)
    """
    hints = get_type_hints(type(recipe))
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
            expected=f"key=value with a key of {', '.join(field.name for field in fields(recipe))}",
            got=list_faults(faults),
            fix=f"did you mean {'; '.join(near)}?" if near else "write the value as it is expected",
        )
    return replace(recipe, **changed)


def _parsed(text: str, hint: Any) -> Any:  # noqa: PLR0911 - one line for each kind
    if hint == Training.__annotations__["lr_steps"]:
        pairs = [pair.split(":") for pair in text.split(",") if pair]
        return tuple((int(step), float(rate)) for step, rate in pairs)
    if type(None) in get_args(hint) and text.lower() == "none":
        return None
    if pairs := _numbers_in(hint):
        return tuple(map(pairs, (part for part in text.split(",") if part)))
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
    return float(text)


def _numbers_in(hint: Any) -> Any:
    """Give the kind of the numbers of a tuple, or None for what is none."""
    found = [one for one in (hint, *get_args(hint)) if get_origin(one) is tuple]
    return get_args(found[0])[0] if found else None


def _kind(hint: Any) -> str:
    if get_origin(hint) in (Literal, Union):
        return " or ".join("numbers, parted by commas" if _numbers_in(one) else str(one) for one in get_args(hint))
    if _numbers_in(hint):
        return "numbers, parted by commas"
    return "true or false" if hint is bool else getattr(hint, "__name__", str(hint))
