"""2D models by name: timm's, torchvision's, or a function of yours."""

import inspect
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import torchvision.models
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from inflate3d.errors import InflateError, nearest_names

Shape = tuple[int, int, int]

NO_WEIGHTS = "none"
PRETRAINED = "pretrained"
DEFAULT_SHAPE: Shape = (3, 224, 224)
SHOWN_FAULTS = 8
# What timm, torchvision and the hub raise for options they do not know and weights they cannot get
BUILD_ERRORS = (OSError, RuntimeError, TypeError, ValueError)

# Truncated-normal initialization of these two takes seconds, and torchvision warns about it.
TORCHVISION_OPTIONS: dict[str, dict[str, Any]] = {
    "googlenet": {"init_weights": False},
    "inception_v3": {"init_weights": False},
}
# Heads that only training runs go once the weights, which have them, are in: what torchvision does with its own
TORCHVISION_WITHOUT_EXTRA_HEADS: dict[str, dict[str, Any]] = {
    "googlenet": {"aux_logits": False, "aux1": None, "aux2": None},
    "inception_v3": {"aux_logits": False, "AuxLogits": None},
}


def find_2d_model(name: str, *, weights: str | Path = NO_WEIGHTS, **options: Any) -> nn.Module:
    """Build a 2D model by name, in eval mode.

    Args:
        name: `timm/NAME`, `torchvision/NAME` (classification or segmentation), or `module:function`: your own
            function that returns a model. Your module is imported and the function called because you name it here.
        weights: `none` leaves random ones; `pretrained` lets timm or torchvision download theirs; anything else is
            a file, `.safetensors` or of `torch.save` (tensors only), that must fit exactly.
        options: Handed on to the builder: `num_classes=7`.

    Raises:
        InflateError: There is no such model or file, the weights do not fit or cannot be had, or the function does
            not return a model.

    Example:
        >>> model = find_2d_model("torchvision/squeezenet1_1", num_classes=7)
        >>> model(torch.zeros(1, 3, 65, 67)).shape
        torch.Size([1, 7])
    """
    source, _, rest = name.partition("/")
    pretrained = str(weights) == PRETRAINED
    if ":" in name and source not in ("timm", "torchvision"):
        model = _call_function(name, pretrained, options)
    elif source == "timm":
        model = _build_timm(rest, pretrained, options)
    elif source == "torchvision":
        model = _build_torchvision(rest, pretrained, options)
    else:
        raise _no_such_model(name, [f"timm/{n}" for n in _timm_names()] + [f"torchvision/{n}" for n in _vision_names()])
    if str(weights) not in (NO_WEIGHTS, PRETRAINED):
        _fill(model, Path(weights))
    if source == "torchvision":
        for attribute, value in TORCHVISION_WITHOUT_EXTRA_HEADS.get(rest, {}).items():
            setattr(model, attribute, value)
    return model.eval()


def example_shape(model: nn.Module, name: str = "") -> Shape:
    """Tell which picture `(c, h, w)` a model was made for.

    Asked in this order: timm's config, a Hugging Face config, torchvision's weights; else 3 x 224 x 224.

    Args:
        model: A 2D model.
        name: The name it was found by; only torchvision needs it.

    Example:
        >>> example_shape(nn.Conv2d(3, 7, 1)), example_shape(nn.Identity(), "torchvision/inception_v3")
        ((3, 224, 224), (3, 299, 299))
    """
    pretrained_config = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None)
    if isinstance(pretrained_config, Mapping) and pretrained_config.get("input_size"):
        return _timm_shape(model, pretrained_config)
    config = getattr(model, "config", None)
    config = getattr(config, "vision_config", config)
    if isinstance(size := getattr(config, "image_size", None), int | list | tuple):
        return (int(getattr(config, "num_channels", 3)), *_sides(size))
    source, _, rest = name.partition("/")
    if source == "torchvision" and rest in _vision_names():
        preset = torchvision.models.get_model_weights(rest).DEFAULT.transforms()
        return (3, *_sides(getattr(preset, "crop_size", None) or preset.resize_size))
    return DEFAULT_SHAPE


def _timm_shape(model: nn.Module, config: Mapping[str, Any]) -> Shape:
    """Read timm's config; what the user changed (`in_chans=1`, `img_size=96`) stands in the layers alone."""
    channels, height, width = config["input_size"]
    first = config.get("first_conv")
    layer = dict(model.named_modules()).get(first if isinstance(first, str) else "")
    if isinstance(layer, nn.Conv2d) and layer.groups == 1 and channels == 3:
        # TResNet's stem moves blocks of pixels into the channels first
        blocks = [int(getattr(part, "bs")) ** 2 for part in model.modules() if type(part).__name__ == "SpaceToDepth"]  # noqa: B009
        channels = layer.in_channels // (blocks[0] if blocks else 1)
    if size := getattr(getattr(model, "patch_embed", None), "img_size", None):
        height, width = size
    return int(channels), int(height), int(width)


def _sides(size: int | list[int] | tuple[int, ...]) -> tuple[int, int]:
    sides = [size] if isinstance(size, int) else list(size)
    return int(sides[0]), int(sides[-1])


def _timm() -> Any:
    import timm  # noqa: PLC0415 - a second of import, for its users alone

    return timm


def _timm_names() -> list[str]:
    return list(_timm().list_models())


def _vision_names() -> list[str]:
    # detectors take lists of pictures, and the video models are 3D already
    parts = (torchvision.models, torchvision.models.segmentation)
    return [name for part in parts for name in torchvision.models.list_models(module=part)]


def _build_timm(name: str, pretrained: bool, options: dict[str, Any]) -> nn.Module:
    timm = _timm()
    if not timm.is_model(name):
        raise _no_such_model(f"timm/{name}", [f"timm/{known}" for known in _timm_names()])
    try:
        model: nn.Module = timm.create_model(name, pretrained=pretrained, **options)
    except BUILD_ERRORS as error:
        raise _cannot_build(f"timm/{name}", pretrained, error) from error
    return model


def _build_torchvision(name: str, pretrained: bool, options: dict[str, Any]) -> nn.Module:
    if name not in _vision_names():
        raise _no_such_model(f"torchvision/{name}", [f"torchvision/{known}" for known in _vision_names()])
    options = TORCHVISION_OPTIONS.get(name, {}) | options
    builder = torchvision.models.get_model_builder(name)
    if "weights_backbone" in inspect.signature(builder).parameters:
        options.setdefault("weights_backbone", None)  # its default is a download
    try:
        model: nn.Module = builder(weights="DEFAULT" if pretrained else None, **options)
    except BUILD_ERRORS as error:
        raise _cannot_build(f"torchvision/{name}", pretrained, error) from error
    return model


def _call_function(name: str, pretrained: bool, options: dict[str, Any]) -> nn.Module:
    path, _, function = name.partition(":")
    if pretrained:
        raise InflateError(
            "your own function decides on its weights itself",
            where=name,
            expected="weights 'none' or a file",
            got=repr(PRETRAINED),
            fix="load them inside the function, or pass a file",
        )
    try:
        module = import_module(path)
    except ModuleNotFoundError as error:
        if not error.name or not f"{path}.".startswith(f"{error.name}."):
            raise  # the module is there, and what it imports is not
        raise InflateError(
            "there is no module of that name",
            where=name,
            expected="module:function, the module being importable",
            got=repr(path),
            fix="install it, or name its folder: PYTHONPATH=. inflate3d ...",
        ) from error
    if not callable(builder := getattr(module, function, None)):
        raise _no_such_model(name, [f"{path}:{known}" for known, value in vars(module).items() if callable(value)])
    model = builder(**options)
    if not isinstance(model, nn.Module):
        raise InflateError(
            "your function returned something else than a model",
            where=name,
            expected="torch.nn.Module",
            got=f"{type(model).__name__}: {model!r:.80}",
            fix="return the model itself",
        )
    return model


def _fill(model: nn.Module, file: Path) -> None:
    state, wanted = _read(file), model.state_dict()
    faults = [f"{name}: missing" for name in wanted.keys() - state.keys()]
    faults += [f"{name}: not of this model" for name in state.keys() - wanted.keys()]
    faults += [
        f"{name}: {list(state[name].shape)}, the model wants {list(wanted[name].shape)}"
        for name in wanted.keys() & state.keys()
        if state[name].shape != wanted[name].shape
    ]
    if faults:
        raise InflateError(
            "weights and model do not fit",
            where=str(file),
            expected=f"the {len(wanted)} tensors of {type(model).__name__}",
            got="\n            ".join([*sorted(faults)[:SHOWN_FAULTS], f"in all {len(faults)} faults"]),
            fix="build the model as it was trained (num_classes=, in_chans=), or convert the file",
        )
    model.load_state_dict(state, strict=True)


def _read(file: Path) -> dict[str, Tensor]:
    """Read a state dict `{name: tensor}`; training scripts often put it under `state_dict` or `model`."""
    try:
        state = load_file(file) if file.suffix == ".safetensors" else torch.load(file, "cpu", weights_only=True)
    except (OSError, SafetensorError, UnpicklingError, RuntimeError, EOFError) as error:
        raise InflateError(
            "the weights cannot be read",
            where="find_2d_model",
            expected=f"'{NO_WEIGHTS}', '{PRETRAINED}', or a file: .safetensors, or tensors alone from torch.save",
            got=f"{file}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'empty'}",
            fix="check the path; save model.state_dict(), not the model",
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise InflateError(
            "the file holds no state dict",
            where=str(file),
            expected="a dict from names to tensors, perhaps under 'state_dict' or 'model'",
            got=type(state).__name__ + (f" with {list(state)[:SHOWN_FAULTS]}" if isinstance(state, Mapping) else ""),
            fix="save model.state_dict()",
        )
    return {name.removeprefix("module."): value for name, value in state.items()}


def _no_such_model(name: str, known: list[str]) -> InflateError:
    return InflateError(
        "there is no 2D model of this name",
        where="find_2d_model",
        expected="timm/NAME, torchvision/NAME (classification or segmentation) or module:function",
        got=repr(name),
        fix=f"did you mean {nearest_names(name, known)}?",
    )


def _cannot_build(name: str, pretrained: bool, error: Exception) -> InflateError:
    return InflateError(
        "the pretrained weights cannot be had" if pretrained else "the model cannot be built",
        where=name,
        expected="weights that exist, and a connection" if pretrained else "options that the model knows",
        got=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
        fix="pass a file with weights=, or weights='none'" if pretrained else "check the name's tag and the options",
    )
