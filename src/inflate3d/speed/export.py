"""Write networks for other programs (torch.export, ONNX, OpenVINO), each compared with the model once written.

Batch and time stay free wherever the network lets them; height and width are those of the network's own clips.
"""

import contextlib
import hashlib
import io
import logging
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from inflate3d.atomic import check_writable, replacing
from inflate3d.clips.clip import ClipSpec
from inflate3d.errors import InflateError, InflateWarning, check_choice, import_extra, in_a_line
from inflate3d.inflation.inflated import Inflated
from inflate3d.models.blocks import ClipRule
from inflate3d.models.inflated import RGB, mean_and_std
from inflate3d.speed.closeness import difference
from inflate3d.speed.exported import (
    DATA,
    EXTRA,
    KEY,
    SUFFIXES,
    Backend,
    ExportCard,
    ExportedModel,
    backend_of,
    load_exported,
    onnx_sha256,
)
from inflate3d.speed.memory import values_of
from inflate3d.speed.optimize import Optimized, in_training
from inflate3d.weights.catalogue import cache_folder

TOLERANCE = 1e-4  # of the largest value of an answer
STEPS_TRACED = 64  # beyond the fewest frames: no level of time, however often it is halved, may be mistaken for 1
STEPS_COMPARED = ((1, 0), (2, 7), (1, 3))  # clips, and steps beyond the fewest frames: odd and even lengths
LARGEST_FILE = 1_900_000_000  # bytes of weights inside an ONNX file, which can hold 2 GB
NORMALIZED_BY_NAME = ("timm", "torchvision")

Write = Callable[[Path, ExportCard], str]  # writes a file and those beside it; gives the hash of the content


class _Clips(NamedTuple):
    """What a network is shown: `(c, h, w)`, the fewest frames, in steps of how many, and whether more will do."""

    shape: tuple[int, int, int]
    frames: int
    step: int
    any_frames: bool
    values: tuple[float, float]

    def batch(self, clips: int, steps: int) -> Tensor:
        """Make clips of noise, always the same."""
        channels, height, width = self.shape
        low, high = self.values
        shape = (clips, channels, self.frames + steps * self.step * self.any_frames, height, width)
        return torch.rand(shape, generator=torch.Generator().manual_seed(steps)) * (high - low) + low


class _Flat(nn.Module):
    """A model whose answer is a tuple of tensors, whatever it answers with."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, clip: Tensor) -> tuple[Tensor, ...]:
        """Answer clips `[b, c, t, h, w]`."""
        return tuple(leaf for leaf in pytree.tree_leaves(self.model(clip)) if isinstance(leaf, Tensor))


def export_model(
    model: nn.Module,
    path: str | Path,
    *,
    to: Backend | None = None,
    name: str = "",
    example: Tensor | None = None,
    weights: Mapping[str, Any] | None = None,
) -> ExportCard:
    """Write a network for ONNX Runtime, OpenVINO or torch.export, and compare the file's answers with the model's.

    Batch and number of frames stay free. Where the network itself has one number of frames, or its number cannot be
    left open, the file has that number, and the card says so (`any_frames`), in the second case with a warning. A file
    whose answers differ by more than 1e-4 of the largest value is not left behind, nor one that is half written.

    Args:
        model: In float32, on the CPU, in eval mode; it maps clips `[b, c, t, h, w]` to tensors. It may be optimized in
            "fp32", although ONNX Runtime and OpenVINO fold batch norms themselves.
        path: FILE.onnx, FILE.xml (OpenVINO; FILE.bin comes beside it) or FILE.pt2 (torch.export). An ONNX file of more
            than 2 GB has its weights in FILE.onnx.data.
        to: "onnx", "openvino" or "torch", where it is to be checked against the ending.
        name: What it is called on the card: `i3d-kinetics400`, `timm/resnet50`. By such a name of timm or torchvision
            an `Inflated` is also told how the pixels of its clips are normalized.
        example: A clip `[b, c, t, h, w]`, for a model that tells neither by a `clip_spec` nor by a plan what it is fed;
            its t is the fewest frames.
        weights: What is known of the weights, in values that JSON has.

    Returns:
        The card that stands in the file: how the network is fed, what its classes are called, how much it differs.

    Raises:
        InflateError: The model is of another kind, cannot be exported, or answers otherwise; the ending names no
            format; the extra `export` is not installed; the file cannot be written.

    Example:
        >>> from inflate3d.speed.exported import load_exported
        >>> model = nn.Sequential(nn.Conv3d(3, 5, 3, padding=1), nn.AdaptiveAvgPool3d(1), nn.Flatten()).eval()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     card = export_model(model, f"{folder}/small.onnx", example=torch.zeros(1, 3, 2, 17, 19))
        ...     answer = load_exported(f"{folder}/small.onnx")(torch.rand(3, 3, 7, 17, 19))
        >>> card.shape, card.difference < 1e-4, answer.shape
        ('[b, 3, t >= 2, 17, 19]', True, torch.Size([3, 5]))
    """
    path = Path(path)
    backend = check_format(path, to)
    clips = _clips_of(model, example)
    check_writable(path)
    for package in PACKAGES[backend]:
        import_extra(package, EXTRA, where=f"export to {backend}")
    spec, mean, std = _how_fed(model, name)
    names = tuple(getattr(model, "class_names", None) or ())
    packages = ("inflate3d", "torch", *PACKAGES[backend])
    card = ExportCard(
        name or type(model).__name__,
        backend,
        clips.shape,
        clips.frames,
        clip_spec=spec,
        mean=mean,
        std=std,
        class_names=names,
        weights=dict(weights or {}),
        versions={package: found for package in packages if (found := _version(package))},
    )
    if not clips.any_frames:
        return _export(model, clips, card, path)
    try:
        return _export(model, clips, card, path)
    except InflateError as refusal:
        fixed = clips._replace(any_frames=False, frames=max(spec.num_frames if spec else 0, clips.frames))
        card = _export(model, fixed, card, path)
        warnings.warn(
            f"{path} takes clips of {card.min_frames} frames and no others, because the number of frames cannot be "
            f"left open: {refusal.problem} ({refusal.got})",
            InflateWarning,
            stacklevel=2,
        )
        return card


def _export(model: nn.Module, clips: _Clips, card: ExportCard, path: Path) -> ExportCard:
    """Trace, convert, write into a folder of its own, compare, and only then put the files into their places."""
    batches = [clips.batch(*one) for one in STEPS_COMPARED]
    flat = _Flat(model).eval()
    with _refused(model, path), torch.inference_mode():
        wanted = [flat(batch) for batch in batches]
    shown = tuple((len(batch), batch.shape[2]) for batch in batches)
    card = replace(card, min_frames=clips.frames, any_frames=clips.any_frames, compared=shown)
    with _refused(model, path):
        write = CONVERTERS[card.backend](_traced(flat, clips), clips)
    with tempfile.TemporaryDirectory(dir=path.resolve().parent, prefix=".", suffix=".part") as folder:
        draft = Path(folder) / path.name
        with _refused(model, path):
            card = replace(card, content_sha256=write(draft, card))
        for _ in range(2):  # the figure that the first one gives stands in the second, which is compared as well
            with _refused(model, path):
                write(draft, card)
                written = load_exported(draft, trust=True)
                found = [written.answer(batch) for batch in batches]
                off_by = max(map(difference, found, wanted))
            if not off_by <= TOLERANCE:
                raise InflateError(
                    "the exported network answers otherwise than the model",
                    where=f"export of {card.name} to {card.backend}",
                    expected=f"a difference of {TOLERANCE:g} of the largest value at most; no file was left",
                    got=f"{off_by:.1e}, with batches of {shown} clips and frames",
                    fix="export to another format, and report this one with the versions of its packages",
                )
            card = replace(card, difference=off_by)
        for file in sorted(Path(folder).iterdir(), key=lambda one: one == draft):  # what the card hashes comes first
            with replacing(path.with_name(file.name)) as place:
                shutil.copyfile(file, place)
    return card


@contextlib.contextmanager
def _refused(model: nn.Module, path: Path) -> Iterator[None]:
    """Tell whatever an exporter raises in four lines, and keep what it prints and warns about to itself."""
    levels = {name: logging.getLogger(name).level for name in ("torch.onnx", "onnxscript", "onnx_ir")}
    for name in levels:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    except Exception as error:  # of several packages, each with errors of its own
        raise InflateError(
            "the model cannot be exported",
            where=f"export of {type(model).__name__} to {path.name}",
            expected="a model whose forward() torch.export and the format can express",
            got=f"{error.problem}: {error.got}" if isinstance(error, InflateError) else in_a_line(error),
            fix=f"export to another format: {', '.join(SUFFIXES.values())}",
        ) from error
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def _traced(flat: nn.Module, clips: _Clips) -> torch.export.ExportedProgram:
    """Trace a model with batch and time open."""
    from torch.utils._sympy.value_ranges import ValueRanges  # noqa: PLC0415 - private, and for this alone

    dynamic = torch.export.Dim.DYNAMIC
    free = {0: dynamic, 2: dynamic} if clips.any_frames else {0: dynamic}
    clip = clips.batch(2, STEPS_TRACED)
    with torch.no_grad():
        program = torch.export.export(flat, (clip,), dynamic_shapes=(free,))
    # Tracing takes it that no axis is 1 on any level, for the sake of layouts in memory. What it is, is compared.
    (shape,) = [
        node.meta["val"].shape for node in program.graph.nodes if node.name in program.graph_signature.user_inputs
    ]
    for axis, least in ((0, 1), (2, clips.frames)):
        if axis in free:
            symbol = shape[axis].node.expr
            program.range_constraints[symbol] = ValueRanges(least, program.range_constraints[symbol].upper)
    if hasattr(program, "_guards_code"):
        program._guards_code = []
    # a clip of noise, larger than many a network; the property without the underscore takes no None in torch 2.6
    program._example_inputs = None
    return program


def _to_torch(program: torch.export.ExportedProgram, clips: _Clips) -> Write:
    def write(path: Path, card: ExportCard) -> str:
        torch.export.save(program, path, extra_files={KEY: card.to_json()})
        return ""

    return write


def _to_onnx(program: torch.export.ExportedProgram, clips: _Clips) -> Write:
    onnx = import_extra("onnx", EXTRA, where="export to ONNX")
    converted = torch.onnx.export(program, (), dynamo=True, verbose=False)
    assert converted is not None
    size = sum(value.nbytes for value in program.state_dict.values())

    def write(path: Path, card: ExportCard) -> str:
        converted.model.metadata_props[KEY] = card.to_json()
        converted.save(path, external_data=size > LARGEST_FILE)
        beside = path.with_name(path.name + DATA)
        model = onnx.load(path, load_external_data=False)
        return onnx_sha256(model, beside if beside.exists() else None)

    return write


def _to_openvino(program: torch.export.ExportedProgram, clips: _Clips) -> Write:
    openvino = import_extra("openvino", EXTRA, where="export to OpenVINO")
    converted = openvino.convert_model(program)
    channels, height, width = clips.shape
    converted.reshape([-1, channels, -1 if clips.any_frames else clips.frames, height, width])

    def write(path: Path, card: ExportCard) -> str:
        converted.set_rt_info(card.to_json(), ["inflate3d", KEY])
        openvino.save_model(converted, path, compress_to_fp16=False)
        with path.with_suffix(".bin").open("rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()

    return write


CONVERTERS: dict[Backend, Callable[[torch.export.ExportedProgram, _Clips], Write]] = {
    "torch": _to_torch,
    "onnx": _to_onnx,
    "openvino": _to_openvino,
}
PACKAGES: dict[Backend, tuple[str, ...]] = {
    "torch": (),
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("openvino",),
}


def export_to_cache(path: Path, name: str, *, backend: Backend, load: Callable[[], nn.Module]) -> ExportedModel:
    """Open the export of weights in a file, which lies in the cache; the first time it is made.

    Args:
        path: The file of weights: another file, or another version of a package, makes another export.
        name: What it is called on the card.
        backend: Who runs it: "onnx" or "openvino".
        load: Makes the network, if it has to be exported.

    Raises:
        InflateError: See `export_model`.
    """
    with path.open("rb") as handle:
        digest = hashlib.file_digest(handle, "sha256")
    for package in ("inflate3d", "torch", *PACKAGES[backend]):
        digest.update(f"{package} {_version(package)}\n".encode())
    place = cache_folder() / "exports" / f"{Path(name).stem}-{digest.hexdigest()[:16]}{SUFFIXES[backend]}"
    if place.exists():
        with contextlib.suppress(InflateError):  # it is damaged, then, and made anew
            return load_exported(place)
    export_model(load(), place, name=name)
    return load_exported(place)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def check_format(path: Path, to: str | None = None) -> Backend:
    """Tell which format a file is to have by its ending, and that it is the one that was asked for.

    Raises:
        InflateError: There is no such format, or the ending is none, or another format's.

    Example:
        >>> check_format(Path("i3d.xml"))
        'openvino'
    """
    if to is not None:
        check_choice(to, SUFFIXES, what="format to export to", where="export")
    backend = backend_of(path)
    if backend is None or to not in (None, backend):
        raise InflateError(
            "the ending of the file is none of this format",
            where=str(path),
            expected=", ".join(f"{suffix} ({name})" for name, suffix in SUFFIXES.items()),
            got=path.name + (f" for {to}" if to else ""),
            fix=f"name it {path.with_suffix(SUFFIXES.get(to or 'onnx', '.onnx')).name}",  # type: ignore[call-overload]
        )
    return backend


def _how_fed(model: nn.Module, name: str) -> tuple[ClipSpec | None, tuple[float, ...], tuple[float, ...]]:
    """Tell what a model is shown, and what has to be done to the pixels: an Inflated alone does not do it itself."""
    spec = getattr(model, "clip_spec", None)
    if isinstance(spec, ClipSpec):
        return spec, (), ()
    if not isinstance(model, Inflated) or name.partition("/")[0] not in NORMALIZED_BY_NAME:
        return None, (), ()
    channels, height, width = model.plan.input_shape
    if channels != RGB or height != width:
        return None, (), ()
    least = model.plan.frames_lost + 1
    spec = ClipSpec(25.0, max(64, least), least, round(height * 8 / 7), height, (0.0, 1.0))
    return spec, *mean_and_std(model.net, name)


def _clips_of(model: nn.Module, example: Tensor | None) -> _Clips:
    """Tell which clips a model takes, and refuse one that is of another kind, in one message."""
    types = {str(value.dtype) for value in values_of(model) if value.is_floating_point()} - {"torch.float32"}
    devices = {value.device.type for value in values_of(model)} - {"cpu"}
    found = _shown(model, example)
    faults = {
        "a model in eval mode: model.eval()": in_training(model),
        "values in float32: model.float()": ", ".join(sorted(types)),
        "a model on the CPU: model.cpu()": ", ".join(sorted(devices)),
        'a model optimized for "fp32", or as it was before': model.precision
        if isinstance(model, Optimized) and model.precision != "fp32"
        else "",
        "a model that has not been exported": type(model).__name__ if isinstance(model, ExportedModel) else "",
        "example=, a clip [b, c, t, h, w] that the model takes": "" if found else "no example, no clip_spec, no plan",
    }
    wrong = {expected: got for expected, got in faults.items() if got}
    if wrong or found is None:
        raise InflateError(
            "this model cannot be exported",
            where=f"export of {type(model).__name__}",
            expected="; ".join(wrong),
            got="; ".join(wrong.values()),
            fix="export_model(model.float().cpu().eval(), FILE, example=torch.zeros(1, 3, 16, 224, 224))",
        )
    return found


def _shown(model: nn.Module, example: Tensor | None) -> _Clips | None:
    rule, spec = getattr(model, "clip_rule", None), getattr(model, "clip_spec", None)
    inner = model.model if isinstance(model, Optimized) else model
    plan = inner.plan if isinstance(inner, Inflated) else None
    rule = rule or getattr(inner, "clip_rule", None)
    step, exact = (rule.group, rule.exact) if isinstance(rule, ClipRule) else (1, False)
    values = spec.value_range if isinstance(spec, ClipSpec) else (-1.0, 1.0)
    if example is not None:
        if example.ndim != 5:
            return None
        _, channels, frames, height, width = example.shape
        return _Clips((channels, height, width), frames, step, not exact, values)
    if plan is not None:
        return _Clips(plan.input_shape, plan.frames_lost + 1, step, not exact, values)
    if isinstance(spec, ClipSpec):
        channels = int(getattr(model, "in_channels", RGB))
        return _Clips((channels, spec.crop, spec.crop), spec.min_frames, step, not exact, values)
    return None
