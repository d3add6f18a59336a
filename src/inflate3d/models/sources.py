"""2D models by name: of timm, torchvision, transformers and segmentation_models_pytorch, or a function of yours."""

import inspect
from collections.abc import Callable
from importlib import import_module
from typing import Any

import torchvision.models
from torch import nn

from inflate3d.errors import InflateError, import_extra, is_count, nearest_names
from inflate3d.inflation.pictures import DEFAULT_SHAPE, Shape, input_shape_of

NO_WEIGHTS = "none"
PRETRAINED = "pretrained"
FILLING = "inflate3d.weights.load.load_checkpoint(model, FILE)"
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


def find_2d_model(
    name: str, *, weights: str = NO_WEIGHTS, first_stride: int | None = None, **options: Any
) -> nn.Module:
    """Build a 2D model by name, in eval mode.

    Args:
        name: `timm/NAME`; `torchvision/NAME` (classification or segmentation); `hf/TYPE`, a model type of Hugging
            Face's transformers in its default size; `smp/DECODER-ENCODER` of segmentation_models_pytorch; or
            `module:function`: your own function that returns a model. Your module is imported and the function
            called because you name it here.
        weights: `none` leaves random ones; `pretrained` lets timm or torchvision download theirs. A file of weights
            goes into the finished model: `inflate3d.weights.load.load_checkpoint(model, FILE)`.
        first_stride: Of the first convolution, instead of its own: 1 keeps what is small apart, on pictures or volumes
            of few pixels. Weights do not change.
        options: Handed on to the builder: `num_classes=7`. For `hf/` they are entries of the config: `num_labels=7`.

    Raises:
        InflateError: There is no such model, its weights cannot be had, a package is missing, the function does not
            return a model, or it has no first convolution of which to change the stride.

    Example:
        >>> import torch
        >>> model = find_2d_model("torchvision/squeezenet1_1", num_classes=7)
        >>> model(torch.zeros(1, 3, 65, 67)).shape
        torch.Size([1, 7])
    """
    if weights not in (NO_WEIGHTS, PRETRAINED):
        raise InflateError(
            "there are no such weights of a 2D model",
            where="find_2d_model",
            expected=f"'{NO_WEIGHTS}' or '{PRETRAINED}'",
            got=repr(weights),
            fix=f"a file goes into the finished model: {FILLING}",
        )
    source, _, rest = name.partition("/")
    pretrained = weights == PRETRAINED
    if source in SOURCES:
        model = SOURCES[source](rest, pretrained, options)
    elif ":" in name:
        model = _call_function(name, pretrained, options)
    else:
        raise _no_such_model(name, model_names())
    if source == "torchvision":
        for attribute, value in TORCHVISION_WITHOUT_EXTRA_HEADS.get(rest, {}).items():
            setattr(model, attribute, value)
    if first_stride is not None:
        _set_first_stride(model, first_stride, name)
    return model.eval()


def _set_first_stride(model: nn.Module, stride: int, name: str) -> None:
    first = next((layer for layer in model.modules() if isinstance(layer, nn.Conv2d)), None)
    sides = (first.kernel_size, first.stride) if first else ((), ())
    if first is None or not is_count(stride, max(sides[0])) or sides[0] == sides[1]:
        raise InflateError(
            "the first convolution cannot be given this stride",
            where=name,
            expected="a convolution whose kernel overlaps, and a stride from 1 to its size",
            got=f"first_stride={stride!r}, {first}",
            fix="leave first_stride out, and take a finer spacing or larger pictures instead",
        )
    first.stride = (stride, stride)


def extra_heads(name: str) -> tuple[str, ...]:
    """Name the heads that `find_2d_model` takes off a model: only training runs them, but files of weights have them.

    Example:
        >>> extra_heads("torchvision/googlenet"), extra_heads("torchvision/resnet18")
        (('aux1', 'aux2'), ())
    """
    changes = TORCHVISION_WITHOUT_EXTRA_HEADS.get(name.removeprefix("torchvision/"), {})
    return tuple(attribute for attribute, value in changes.items() if value is None)


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


def model_names() -> list[str]:
    """Name all 2D models that timm and torchvision build, as `find_2d_model` takes them.

    Example:
        >>> "torchvision/resnet18" in model_names()
        True
    """
    return [f"timm/{name}" for name in _timm_names()] + [f"torchvision/{name}" for name in _vision_names()]


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
    transformers = import_extra("transformers", "zoo", where=f"hf/{name}")
    modeling_auto = import_extra("transformers.models.auto.modeling_auto", "zoo", where=f"hf/{name}")
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
    smp = import_extra("segmentation_models_pytorch", "zoo", where=f"smp/{name}")
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
    if not all(part.isidentifier() for part in path.split(".")):
        raise _no_such_module(name, path)
    try:
        module = import_module(path)
    except ModuleNotFoundError as error:
        if not error.name or not f"{path}.".startswith(f"{error.name}."):
            raise  # the module is there, and what it imports is not
        raise _no_such_module(name, path) from error
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


def _no_such_module(name: str, path: str) -> InflateError:
    return InflateError(
        "there is no module of that name",
        where=name,
        expected="module:function, the module being importable",
        got=repr(path),
        fix="install it, or name its folder: PYTHONPATH=. inflate3d ...",
    )


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
    fix = "check the name's tag and the options"
    if pretrained:
        fix = f"take weights='{NO_WEIGHTS}' and fill it: {FILLING}"
    return InflateError(
        "the pretrained weights cannot be had" if pretrained else "the model cannot be built",
        where=name,
        expected="weights that exist, and a connection" if pretrained else "options that the model knows",
        got=f"{type(error).__name__}: {' '.join(str(error).split())[:SHOWN_LETTERS]}",
        fix=fix,
    )


def _no_pretrained(name: str, fix: str) -> InflateError:
    return InflateError(
        "this name stands for a network without weights of its own",
        where=name,
        expected=f"weights '{NO_WEIGHTS}'; '{PRETRAINED}' for timm/ and torchvision/ alone",
        got=repr(PRETRAINED),
        fix=f"{fix}, or fill it: {FILLING}",
    )
