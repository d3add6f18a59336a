"""2D models by name: of timm, torchvision, transformers and segmentation_models_pytorch, or a function of yours."""

import inspect
from collections.abc import Callable, Mapping
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
from inflate3d.inflation.pictures import DEFAULT_SHAPE, Shape, input_shape_of

NO_WEIGHTS = "none"
PRETRAINED = "pretrained"
SHOWN_FAULTS = 8
SHOWN_LETTERS = 300  # of other people's messages
# What the packages raise for options they do not know, weights they cannot get and packages they miss themselves
BUILD_ERRORS = (OSError, RuntimeError, TypeError, ValueError, KeyError, ImportError)

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
        name: `timm/NAME`; `torchvision/NAME` (classification or segmentation); `hf/TYPE`, a model type of Hugging
            Face's transformers in its default size; `smp/DECODER-ENCODER` of segmentation_models_pytorch; or
            `module:function`: your own function that returns a model. Your module is imported and the function
            called because you name it here.
        weights: `none` leaves random ones; `pretrained` lets timm or torchvision download theirs; anything else is
            a file, `.safetensors` or of `torch.save` (tensors only), that must fit exactly.
        options: Handed on to the builder: `num_classes=7`. For `hf/` they are entries of the config: `num_labels=7`.

    Raises:
        InflateError: There is no such model or file, the weights do not fit or cannot be had, a package is missing,
            or the function does not return a model.

    Example:
        >>> model = find_2d_model("torchvision/squeezenet1_1", num_classes=7)
        >>> model(torch.zeros(1, 3, 65, 67)).shape
        torch.Size([1, 7])
    """
    source, _, rest = name.partition("/")
    pretrained = str(weights) == PRETRAINED
    if source in SOURCES:
        model = SOURCES[source](rest, pretrained, options)
    elif ":" in name:
        model = _call_function(name, pretrained, options)
    else:
        raise _no_such_model(name, [f"timm/{n}" for n in _timm_names()] + [f"torchvision/{n}" for n in _vision_names()])
    if str(weights) not in (NO_WEIGHTS, PRETRAINED):
        _fill(model, Path(weights))
    if source == "torchvision":
        for attribute, value in TORCHVISION_WITHOUT_EXTRA_HEADS.get(rest, {}).items():
            setattr(model, attribute, value)
    return model.eval()


def example_shape(model: nn.Module, name: str = "") -> Shape:
    """Tell which picture `(c, h, w)` a model was made for: see `input_shape_of`; torchvision's weights tell by name.

    Args:
        model: A 2D model.
        name: The name it was found by; only torchvision needs it.

    Example:
        >>> example_shape(nn.Conv2d(3, 7, 1)), example_shape(nn.Identity(), "torchvision/inception_v3")
        ((3, 224, 224), (3, 299, 299))
    """
    source, _, rest = name.partition("/")
    if source != "torchvision" or rest not in _vision_names():
        return input_shape_of(model)
    preset = torchvision.models.get_model_weights(rest).DEFAULT.transforms()
    size = getattr(preset, "crop_size", None) or preset.resize_size
    return input_shape_of(model, otherwise=(DEFAULT_SHAPE[0], size[0], size[-1]))


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


def _build_transformers(name: str, pretrained: bool, options: dict[str, Any]) -> nn.Module:
    try:
        import transformers  # noqa: PLC0415 - optional, and seconds of import
        from transformers.models.auto import modeling_auto  # noqa: PLC0415
    except ImportError as error:
        raise _not_installed(f"hf/{name}", "transformers") from error
    classes = {
        **modeling_auto.MODEL_FOR_DEPTH_ESTIMATION_MAPPING_NAMES,
        **modeling_auto.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES,
        **modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    }
    if name not in classes:
        raise _no_such_model(f"hf/{name}", [f"hf/{known}" for known in classes])
    if pretrained:
        raise _no_pretrained(f"hf/{name}", "call from_pretrained(...) in a function of yours: module:function")
    given = classes[name]
    try:
        config = transformers.AutoConfig.for_model(name)
        unknown = [option for option in options if not hasattr(config, option)]
        if unknown:
            raise TypeError(f"{type(config).__name__} has no {', '.join(unknown)}")
        builder = getattr(transformers, given if isinstance(given, str) else given[0])
        model: nn.Module = builder(transformers.AutoConfig.for_model(name, **options))
    except Exception as error:  # configs check themselves, with classes of errors that changed between releases
        raise _cannot_build(f"hf/{name}", pretrained, error) from error
    return model


def _build_smp(name: str, pretrained: bool, options: dict[str, Any]) -> nn.Module:
    try:
        import segmentation_models_pytorch as smp  # noqa: PLC0415 - optional, and seconds of import
    except ImportError as error:
        raise _not_installed(f"smp/{name}", "segmentation_models_pytorch") from error
    decoder, _, encoder = name.partition("-")
    decoders, encoders = smp.MODEL_ARCHITECTURES_MAPPING, smp.encoders.get_encoder_names()
    if decoder.lower() not in decoders or not (encoder in encoders or encoder.startswith("tu-")):
        known = [f"smp/{one.__name__}-{each}" for one in decoders.values() for each in encoders]
        raise _no_such_model(f"smp/{name}", known)
    if pretrained:
        raise _no_pretrained(f"smp/{name}", "load them in a function of yours: module:function")
    try:
        model: nn.Module = smp.create_model(decoder, encoder, encoder_weights=None, **options)
    except BUILD_ERRORS as error:
        raise _cannot_build(f"smp/{name}", pretrained, error) from error
    return model


SOURCES: dict[str, Callable[[str, bool, dict[str, Any]], nn.Module]] = {
    "timm": _build_timm,
    "torchvision": _build_torchvision,
    "hf": _build_transformers,
    "smp": _build_smp,
}


def _call_function(name: str, pretrained: bool, options: dict[str, Any]) -> nn.Module:
    path, _, function = name.partition(":")
    if pretrained:
        raise _no_pretrained(name, "load them inside the function")
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
        expected="timm/NAME, torchvision/NAME (classification or segmentation), hf/TYPE, smp/DECODER-ENCODER "
        "or module:function",
        got=repr(name),
        fix=f"did you mean {nearest_names(name, known)}?",
    )


def _cannot_build(name: str, pretrained: bool, error: Exception) -> InflateError:
    return InflateError(
        "the pretrained weights cannot be had" if pretrained else "the model cannot be built",
        where=name,
        expected="weights that exist, and a connection" if pretrained else "options that the model knows",
        got=f"{type(error).__name__}: {' '.join(str(error).split())[:SHOWN_LETTERS]}",
        fix="pass a file with weights=, or weights='none'" if pretrained else "check the name's tag and the options",
    )


def _no_pretrained(name: str, fix: str) -> InflateError:
    return InflateError(
        "this name stands for a network without weights of its own",
        where=name,
        expected=f"weights '{NO_WEIGHTS}' or a file; '{PRETRAINED}' for timm/ and torchvision/ alone",
        got=repr(PRETRAINED),
        fix=f"{fix}, or pass a file",
    )


def _not_installed(name: str, package: str) -> InflateError:
    return InflateError(
        f"the package {package} is missing",
        where=name,
        expected=package,
        got="no such package",
        fix='pip install "inflate3d[zoo]"',
    )
