"""`load`: a network with its weights, by name or from a file, whoever wrote it; or with 2D weights to start from.

What needs torchvision is imported where it is needed: it takes 165 MB and a second, and I3D does without.
"""

import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from inflate3d.errors import InflateError, InflateWarning, check_choice, nearest_names
from inflate3d.inflation.kernels import load_2d_into
from inflate3d.models.blocks import check_classes
from inflate3d.models.ct import CT_NAME, CtResNet152
from inflate3d.models.inception import InceptionI3d
from inflate3d.weights.catalogue import CATALOGUE, Card, read_labels
from inflate3d.weights.checkpoint import INFLATED_KEY, Checkpoint, card_in, metadata_in, read_checkpoint, read_weights
from inflate3d.weights.containers import find_index, is_path, missing_file
from inflate3d.weights.fetch import fetched_path
from inflate3d.weights.names import Faults, misfit
from inflate3d.weights.stored import shape_and_type

if TYPE_CHECKING:
    from inflate3d.models.googlenet import Stream

Compat = Literal["video-features", "videogpt", "tats", "cd-fvd"]
# How other projects' I3D differs from DeepMind's. Source: their code; video_features models/i3d/i3d_src/i3d_net.py
COMPAT: dict[Compat, dict[str, Any]] = {
    "video-features": {"bn_eps": 1e-5, "padding": "static"},
    "videogpt": {"bn_eps": 1e-5},
    "tats": {"bn_eps": 1e-5},
    "cd-fvd": {"bn_eps": 1e-5},
}
# Whose ResNet-I3D has which layout; Caffe2's files do not tell theirs, and a plain ResNet's could have any
RESNET_LAYOUTS = {
    "pyslowfast": "pyslowfast-8x8",
    "pytorchvideo": "pyslowfast-8x8",
    "mmaction2": "mmaction2-32x2",
    "gluoncv": "gluoncv-32x2",
}
TORCHVISION = "torchvision/"


def load(
    name_or_file: str | Path,
    *,
    num_classes: int | None = None,
    compat: Compat | None = None,
    label_set: str | None = None,
    init: str | Path | None = None,
    stream: "Stream" = "rgb",
) -> nn.Module:
    """Build a network, fill it with its weights strictly, and set it to eval mode.

    Nothing is downloaded: `inflate3d weights fetch NAME` does that.

    Args:
        name_or_file: A name that `inflate3d weights list` shows, or a file of weights: one that this package wrote (an
            inflated model too: `save_inflated`), or I3D of any dialect that docs/weights.md lists, a ResNet-I3D of
            PySlowFast, PyTorchVideo, MMAction2 or GluonCV, or torchvision's GoogLeNet, which is inflated into I3D.
        num_classes: Another number of classes than the weights have: the last layer is then new and random, and a
            warning says so.
        compat: Make I3D as another project has it, to get its numbers: "video-features", "videogpt", "tats", "cd-fvd".
        label_set: Names of the classes, a key of `inflate3d.weights.catalogue.LABEL_SETS`; the file's own where None.
        init: 2D weights that a network of the zoo, or `inflated/SOURCE`, starts from, to be trained, as in the paper:
            `load("i3d", init="torchvision/googlenet")`. A file of any dialect, or `torchvision/NAME` for what
            torchvision has downloaded before. The last layer is new where classes differ.
        stream: With `init`: "flow" for a network of one stream that looks at optical flow.

    Returns:
        The network, in channels-last memory, with `clip_spec` and `class_names`.

    Raises:
        InflateError: The name is unknown, its weights are not fetched yet, the file is not whole or not that of the
            network that it names, or it is of a network that has to be built first (`load_checkpoint`).

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save(InceptionI3d(7).state_dict(), f"{folder}/mine.pt")
        ...     model = load(f"{folder}/mine.pt")
        >>> model.num_classes, model.training
        (7, False)
    """
    if compat is not None:
        check_choice(compat, COMPAT, what="compat", where="load")
    labels = read_labels(label_set) if label_set else None
    if (init is None and stream != "rgb") or (init is not None and compat):
        raise InflateError(
            "these options do not go together",
            where="load",
            expected="stream= with init=, and compat= without it",
            got=f"{init=}, {stream=}, {compat=}",
            fix="leave compat out with init=, and stream out without it: finished weights have their own",
        )
    if init is not None:
        model, unfilled = _start_from_2d(str(name_or_file), init, stream=stream, num_classes=num_classes, labels=labels)
    else:
        path = _find(name_or_file)
        if INFLATED_KEY in metadata_in(path):
            return _load_inflated(path, num_classes, label_set, compat)
        card = card_in(path)
        if card is not None:
            model, unfilled = _load_own(path, card, num_classes, label_set, compat)
        else:
            model, unfilled = _load_foreign(read_checkpoint(path), num_classes, label_set, compat)
    if unfilled:
        warnings.warn(unfilled, InflateWarning, stacklevel=2)
    for parameter in model.parameters():
        if parameter.ndim == 5:  # Module.to() would do it to the kernels of 2D trunks as well, and fail
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last_3d)
    return model.eval()


def _load_inflated(path: Path, num_classes: int | None, label_set: str | None, compat: Compat | None) -> nn.Module:
    from inflate3d.weights.inflated_file import load_inflated  # noqa: PLC0415 - with torchvision and timm

    given = {"num_classes": num_classes, "label_set": label_set, "compat": compat}
    if asked := [f"{name}={value!r}" for name, value in given.items() if value is not None]:
        raise InflateError(
            "a saved inflated model is what it is",
            where=f"load({str(path)!r})",
            expected="no options",
            got=", ".join(asked),
            fix="leave them out; for other classes replace the last layer of what load gives",
        )
    return load_inflated(path)


def load_checkpoint(model: nn.Module, path: str | Path) -> Checkpoint:
    """Fill a network that you built with a checkpoint of any dialect, strictly.

    A 2D checkpoint is inflated on the way: as the plan of an `Inflated` says, or evenly over time. A last layer for
    another number of classes stays as it is, and a warning says so.

    Args:
        model: The network; after an error it is as it was.
        path: The file.

    Returns:
        What was in the file.

    Raises:
        InflateError: What `read_checkpoint` refuses, or tensors that do not fit the network; all are told together.

    Example:
        >>> import tempfile
        >>> from torchvision.models import squeezenet1_1
        >>> from inflate3d import inflate
        >>> net2d = squeezenet1_1(num_classes=7).eval()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save(net2d.state_dict(), f"{folder}/net2d.pth")
        ...     found = load_checkpoint(inflate(net2d, "i3d", example=torch.zeros(1, 3, 65, 67)), f"{folder}/net2d.pth")
        >>> found.is_2d, found.dialect
        (True, 'own names')
    """
    checkpoint = read_checkpoint(path)
    where, name = str(checkpoint.path), checkpoint.architecture or type(model).__name__
    from inflate3d.inflation.build import deflate  # noqa: PLC0415
    from inflate3d.inflation.inflated import Inflated  # noqa: PLC0415
    from inflate3d.models.googlenet import start_from_googlenet  # noqa: PLC0415

    inflated = next((part for part in model.modules() if isinstance(part, Inflated)), None)
    unfilled = ""
    if checkpoint.is_2d and inflated is not None:
        flat = deflate(inflated)
        unfilled = _fill(flat, checkpoint.state, name, where)
        inflated.load_2d_state_dict(flat.state_dict())
    elif checkpoint.architecture == "googlenet" and any(isinstance(part, InceptionI3d) for part in model.modules()):
        start_from_googlenet(model, checkpoint.state)
        unfilled = _unfilled(where, "the classifier", "it stays as it is in the network")
    elif checkpoint.is_2d and any(value.ndim == 5 for value in model.state_dict().values()):
        load_2d_into(model, checkpoint.state)
    else:
        starts = (
            "",
            checkpoint.prefix,
            *(f"{path}." for path, part in model.named_modules() if part is inflated and path),
        )
        wanted = model.state_dict().keys()
        states = [{f"{start}{key}": value for key, value in checkpoint.state.items()} for start in starts]
        unfilled = _fill(model, max(states, key=lambda state: len(state.keys() & wanted)), name, where)
    if unfilled:
        warnings.warn(unfilled, InflateWarning, stacklevel=2)
    return checkpoint


def _start_from_2d(
    name: str, init: str | Path, *, stream: "Stream", num_classes: int | None, labels: tuple[str, ...] | None
) -> tuple[nn.Module, str]:
    """Build a network of the zoo and inflate 2D weights into it; gives it, and what of its 2D model stayed unfilled."""
    from inflate3d.models.googlenet import STREAM_CHANNELS, start_from_googlenet  # noqa: PLC0415
    from inflate3d.models.sources import extra_heads, find_2d_model  # noqa: PLC0415
    from inflate3d.models.zoo import INFLATED, build_network, find_network  # noqa: PLC0415

    check_choice(stream, STREAM_CHANNELS, what="stream", where="load")
    network = None if name.startswith(INFLATED) else find_network(name)
    source = name.removeprefix(INFLATED) if network is None else network.made_from
    path = _find_2d(init)
    options: dict[str, Any] = {"class_names": labels}
    if stream != "rgb" and (network is None or len(network.clips) == 1):
        options["in_channels"] = STREAM_CHANNELS[stream]
    unfilled = ""
    if source:
        heads = tuple(f"{head}." for head in extra_heads(source))
        model2d, state = find_2d_model(source), read_checkpoint(path).state
        state = {key: value for key, value in state.items() if not key.startswith(heads)}
        unfilled = _fill(model2d, state, source, str(path))
        options["model2d"] = model2d
    if num_classes is None and labels:
        num_classes = len(labels)
    model = build_network(name, num_classes, **options)
    if not source:
        start_from_googlenet(model, read_checkpoint(path).state)
    return model, unfilled


def _find_2d(init: str | Path) -> Path:
    """Find a file of 2D weights; nothing is downloaded."""
    if not str(init).startswith(TORCHVISION):
        return Path(init)
    import torchvision.models  # noqa: PLC0415

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


def _load_own(
    path: Path, card: Card, num_classes: int | None, label_set: str | None, compat: Compat | None
) -> tuple[nn.Module, str]:
    classes = card.num_classes if num_classes is None else num_classes
    known = label_set or (card.label_set if classes == card.num_classes else None)
    shape = (classes, card.in_channels)
    model = _build(card.architecture, shape, known, compat, on_meta=classes == card.num_classes, where=str(path))
    state = read_weights(path)
    if card.architecture == CT_NAME:  # half of the precision is enough on disk
        state = {name: value.float() if value.is_floating_point() else value for name, value in state.items()}
    unfilled = _fill(model, state, card.architecture, str(path), exact=True)
    least = getattr(model.clip_spec, "min_frames", card.clip.min_frames) if compat else card.clip.min_frames
    model.clip_spec = replace(card.clip, min_frames=least)  # type: ignore[assignment]  # nn.Module knows no others
    return model, unfilled


def _load_foreign(
    checkpoint: Checkpoint, num_classes: int | None, label_set: str | None, compat: Compat | None
) -> tuple[nn.Module, str]:
    where = str(checkpoint.path)
    if checkpoint.architecture == "googlenet" and compat is None:
        from inflate3d.models.googlenet import i3d_from_googlenet  # noqa: PLC0415

        inflated = i3d_from_googlenet(checkpoint.state, num_classes=num_classes)
        inflated.class_names = read_labels(label_set) if label_set else None
        check_classes(where, inflated.num_classes, inflated.in_channels, class_names=inflated.class_names)
        return inflated, ""
    layout = RESNET_LAYOUTS.get(checkpoint.dialect)
    if layout and checkpoint.architecture in ("resnet50", "resnet101") and not (checkpoint.is_2d or compat):
        return _load_resnet(checkpoint, layout, num_classes, label_set)
    if checkpoint.architecture != "i3d":
        raise _build_it_first(checkpoint)
    classes = checkpoint.num_classes if num_classes is None else num_classes
    if classes is None:
        raise InflateError(
            "the file has no classifier, and how many classes a new one has is not said",
            where=where,
            expected="num_classes=, the number of your classes",
            got="num_classes=None",
            fix="load(FILE, num_classes=400)",
        )
    is_whole = classes == checkpoint.num_classes
    model = _build("i3d", (classes, checkpoint.in_channels or 3), label_set, compat, on_meta=is_whole, where=where)
    return model, _fill(model, checkpoint.state, "i3d", where)


def _load_resnet(
    checkpoint: Checkpoint, layout: str, num_classes: int | None, label_set: str | None
) -> tuple[nn.Module, str]:
    from inflate3d.models.inflated import resnet_i3d  # noqa: PLC0415

    where, known = str(checkpoint.path), checkpoint.num_classes or 400
    classes = known if num_classes is None else num_classes
    names = read_labels(label_set) if label_set else None
    depth: Literal[50, 101] = 101 if checkpoint.architecture == "resnet101" else 50
    non_local = any(".non_local." in name for name in checkpoint.state)
    model = resnet_i3d(layout, classes, depth=depth, non_local=non_local, class_names=names)
    state = {f"inflated.{name}": tensor for name, tensor in checkpoint.state.items()}
    return model, _fill(model, state, layout, where)


def _build(
    architecture: str,
    shape: tuple[int, int],
    label_set: str | None,
    compat: Compat | None,
    *,
    on_meta: bool,
    where: str,
) -> nn.Module:
    """Build a network for `(classes, channels)`; on meta no time is spent on random values."""
    num_classes, in_channels = shape
    labels = read_labels(label_set) if label_set else None
    if architecture == "i3d":
        with torch.device("meta") if on_meta else nullcontext():
            return InceptionI3d(num_classes, in_channels, class_names=labels, **(COMPAT[compat] if compat else {}))
    if architecture == CT_NAME and compat is None:
        return CtResNet152(num_classes, in_channels, class_names=labels)
    from inflate3d.models.sources import SOURCES  # noqa: PLC0415
    from inflate3d.models.zoo import INFLATED, MODELS, build_network  # noqa: PLC0415

    source = architecture.removeprefix(INFLATED).partition("/")[0]
    if architecture.startswith(INFLATED) and source in SOURCES and not compat:  # no file names code of somebody's
        return build_network(architecture, num_classes, in_channels=in_channels, class_names=labels)
    if architecture not in MODELS or compat:
        raise InflateError(
            "the weights are for a network that this version does not have"
            if compat is None
            else "only I3D is made as other projects have it",
            where=where,
            expected=", ".join(MODELS) if compat is None else "i3d",
            got=architecture,
            fix="update inflate3d" if compat is None else "leave compat out",
        )
    network = MODELS[architecture]
    with torch.device("meta") if on_meta and not network.made_from else nullcontext():
        channels = in_channels if len(network.clips) == 1 else None
        return build_network(architecture, num_classes, in_channels=channels, class_names=labels)


def _fill(model: nn.Module, state: Mapping[str, Tensor], network: str, where: str, *, exact: bool = False) -> str:
    """Put tensors into a network; a last layer for another number of classes stays as it is.

    Args:
        model: On meta the tensors become its own, else their values are copied.
        state: By the network's names.
        network: For messages.
        where: The file, for messages.
        exact: Whether types must be equal, and shapes in every length of one.

    Returns:
        A sentence about the last layer if it stayed as it was, else nothing.
    """
    wanted = model.state_dict()
    faults, values, other_head = Faults(), dict[str, Tensor](), list[str]()
    is_meta = any(value.is_meta for value in wanted.values())
    head = [] if is_meta else _last_layer(wanted)
    without_head = not any(name in state for name in head)
    for name, target in wanted.items():
        tensor = state.get(name)
        if tensor is None and name in head and without_head:
            other_head.append(name)
        elif tensor is None:
            faults.missing += [name] * (not name.endswith("num_batches_tracked") or exact)
        elif tensor.shape == target.shape and (tensor.dtype == target.dtype or not exact):
            values[name] = tensor
        elif not exact and _without_ones(tensor) == _without_ones(target):
            values[name] = tensor.reshape(target.shape)  # a kernel of one frame is 2D in an inflated network
        elif name in head and tensor.shape[1:] == target.shape[1:] and tensor.dtype == target.dtype:
            other_head.append(name)
        else:
            faults.wrong.append(f"{name}: {shape_and_type(tensor)}, wanted {shape_and_type(target)}")
    faults.unexpected += [f"{name}: {shape_and_type(state[name])}" for name in state if name not in wanted]
    if faults:
        raise misfit(faults, where, network)
    model.load_state_dict({**{name: wanted[name] for name in other_head}, **values}, strict=False, assign=is_meta)
    if not other_head:
        return ""
    got = f"{state[other_head[0]].shape[0]} classes" if other_head[0] in state else "no classifier"
    return _unfilled(where, f"a classifier for {wanted[other_head[0]].shape[0]} classes", f"the file has {got}")


def _last_layer(state: Mapping[str, Tensor]) -> list[str]:
    """Name weight and bias of the last layer that has both: the classifier, in every network here."""
    layers = [name.removesuffix("bias") for name in state if name.endswith("bias") and not name.startswith("inserts.")]
    heads = [layer for layer in layers if f"{layer}weight" in state and state[f"{layer}weight"].ndim > 1]
    return [f"{heads[-1]}weight", f"{heads[-1]}bias"] if heads else []


def _without_ones(tensor: Tensor) -> list[int]:
    return [length for length in tensor.shape if length != 1]


def _unfilled(where: str, what: str, why: str) -> str:
    return f"{where}: {what} is not filled from the file and has to be trained: {why}"


def _build_it_first(checkpoint: Checkpoint) -> InflateError:
    source = f"torchvision/{checkpoint.architecture}" if checkpoint.architecture else "timm/NAME"
    model = f'inflate3d.inflate(find_2d_model("{source}"), "i3d")' if checkpoint.is_2d else "model"
    return InflateError(
        "the file is of a network that has to be built before it is loaded",
        where=str(checkpoint.path),
        expected="I3D, a ResNet-I3D whose project is known, torchvision's GoogLeNet, or a file that this package wrote",
        got=f"{checkpoint.architecture or 'names that nobody knows'}, {'2D' if checkpoint.is_2d else '3D'} kernels",
        fix=f'build it, then inflate3d.weights.load.load_checkpoint({model}, "{checkpoint.path.name}")',
    )


def _find(name_or_file: str | Path) -> Path:
    if str(name_or_file) in CATALOGUE:
        return fetched_path(str(name_or_file))
    if (path := find_index(Path(name_or_file))).is_file():
        return path
    if is_path(name_or_file) and not path.exists():
        raise missing_file(path)
    raise InflateError(
        "there is neither a network nor a file of that name",
        where="load",
        expected=", ".join(CATALOGUE) + ", or a file of weights",
        got=repr(str(name_or_file)),
        fix=f"did you mean {nearest_names(str(name_or_file), CATALOGUE)}?",
    )
