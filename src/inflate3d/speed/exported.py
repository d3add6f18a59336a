"""Exported networks: what their files say about them, and how ONNX Runtime, OpenVINO and torch run them.

A file is opened only if `export_model` wrote it and what it holds has the hash that it was compared with.
"""

import hashlib
import inspect
import json
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from inflate3d.clips.clip import ClipSpec
from inflate3d.errors import InflateError, import_extra, in_a_line, is_count, is_number, list_faults
from inflate3d.speed.optimize import Optimized

Backend = Literal["torch", "onnx", "openvino"]
Answer = Callable[[Tensor], list[Tensor]]

SUFFIXES: dict[Backend, str] = {"torch": ".pt2", "onnx": ".onnx", "openvino": ".xml"}
KEY = "inflate3d-export"
VERSION = 1
EXTRA = "export"
MAX_LETTERS, MAX_SIDE = 64 * 2**20, 4096
DATA = ".data"  # ends the name of the file beside an ONNX file that holds weights of more than 2 GB


@dataclass(frozen=True)
class ExportCard:
    """What a file says about the network that it holds.

    Attributes:
        name: What was exported, in the user's words.
        backend: Who runs it: a key of `SUFFIXES`.
        input_shape: `(c, h, w)` of its clips.
        min_frames: The fewest frames that it takes.
        any_frames: Whether it takes any number of frames from there on; else exactly so many.
        clip_spec: How videos are shown to it, if that is known.
        mean: Taken off each channel of a clip in `clip_spec.value_range` before the network sees it, where it does not
            do so itself.
        std: What each channel is divided by then.
        class_names: One for each logit, or none.
        difference: Largest difference from the model, relative to the largest value of its answer.
        compared: Clips and frames of the batches that this was measured with.
        content_sha256: Hash of the network: the ONNX graph and the data beside it, or OpenVINO's weights.
        weights: What is known of the weights: their own card.
        versions: Of the packages that made the file.
    """

    name: str
    backend: Backend
    input_shape: tuple[int, int, int]
    min_frames: int
    any_frames: bool = True
    clip_spec: ClipSpec | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    class_names: tuple[str, ...] = field(default=(), repr=False)
    difference: float = 0.0
    compared: tuple[tuple[int, int], ...] = ()
    content_sha256: str = ""
    weights: Mapping[str, Any] = field(default_factory=dict, repr=False)
    versions: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def shape(self) -> str:
        """Its clips in words: `[b, 3, t >= 9, 224, 224]`."""
        channels, height, width = self.input_shape
        frames = f"t >= {self.min_frames}" if self.any_frames else str(self.min_frames)
        return f"[b, {channels}, {frames}, {height}, {width}]"

    def to_json(self) -> str:
        """Write the card as JSON."""
        return json.dumps({"version": VERSION, **asdict(self)})

    @staticmethod
    def from_json(text: str, *, where: str) -> "ExportCard":
        """Read a card back.

        Raises:
            InflateError: The text is no card, or of another version.
        """
        try:
            if len(text) > MAX_LETTERS:
                raise ValueError(f"{len(text)} letters")
            found = json.loads(text)
            if not isinstance(found, dict) or found.pop("version", None) != VERSION:
                raise ValueError("another version")
            spec = found.pop("clip_spec")
            for name in ("input_shape", "mean", "std", "class_names", "compared"):
                found[name] = tuple(tuple(one) if isinstance(one, list) else one for one in found[name])
            if spec is not None:
                spec = ClipSpec(**{**spec, "value_range": tuple(spec["value_range"])})
            card = ExportCard(**found, clip_spec=spec)
            if faults := _faults(card):
                raise ValueError(list_faults(faults))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise InflateError(
                "what the file says about its network cannot be read",
                where=where,
                expected=f"JSON with {', '.join(one.name for one in fields(ExportCard))}, version {VERSION}",
                got=in_a_line(error),
                fix="export the network anew: inflate3d export MODEL -o FILE",
            ) from error
        return card


def _faults(card: ExportCard) -> list[str]:
    texts = [card.name, card.content_sha256, *card.class_names, *card.versions, *card.versions.values()]
    levels = [*card.mean, *card.std]
    rules = {
        "backend": card.backend in SUFFIXES,
        "input_shape": len(card.input_shape) == 3 and all(is_count(one, MAX_SIDE) for one in card.input_shape),
        "min_frames": is_count(card.min_frames) and isinstance(card.any_frames, bool),
        "mean and std": len(levels) in (0, 2 * card.input_shape[0])
        and all(map(is_number, levels))
        and 0 not in card.std,
        "difference": is_number(card.difference),
        "a text": all(isinstance(one, str) for one in texts) and isinstance(card.weights, dict),
    }
    return [f"{name} is none" for name, fits in rules.items() if not fits]


class ExportedModel(Optimized):
    """A network in a file, run by another program on the processor; `predict` takes it as any other.

    Attributes:
        card: What the file says about it.
    """

    def __init__(self, card: ExportCard, answer: Answer, runner: str) -> None:
        super().__init__(nn.Identity(), "fp32", [f"run by {runner}"])
        self.card, self.answer = card, answer
        self.in_channels = card.input_shape[0]
        self.clip_spec, self.class_names = card.clip_spec, card.class_names or None
        self.eval()

    def call(self, method: str, clip: Tensor, *args: Any) -> Any:
        """Answer a clip `[b, c, t, h, w]`, in the range of `card.clip_spec`, with what the model answers.

        Several outputs come as a tuple, in the order in which the model has them.

        Raises:
            InflateError: The clip has another size than the file was made for, another method than `forward` is asked
                for, or the program that runs the file fails.
        """
        channels, height, width = self.card.input_shape
        frames = clip.shape[2] if clip.ndim == 5 else 0
        fits = frames >= self.card.min_frames if self.card.any_frames else frames == self.card.min_frames
        if method != "forward" or not fits or tuple(clip.shape[i] for i in (1, 3, 4)) != (channels, height, width):
            raise InflateError(
                "the exported network does not answer this",
                where=f"{self.card.name}, {self.steps[0]}",
                expected=f"forward of {self.card.shape}",
                got=f"{method} of {list(clip.shape)}",
                fix="export the network anew with clips of this size (example=), or cut them",
            )
        clip = clip.detach().float().cpu()
        if self.card.mean:
            mean, std = (clip.new_tensor(levels).view(1, -1, 1, 1, 1) for levels in (self.card.mean, self.card.std))
            clip = (clip - mean) / std
        try:
            found = self.answer(clip.contiguous())
        except Exception as error:  # of three programs, each with errors of its own
            raise InflateError(
                "the exported network failed",
                where=f"{self.card.name}, {self.steps[0]}",
                expected=f"an answer to {list(clip.shape)}",
                got=in_a_line(error),
                fix="show it fewer clips or frames at a time, or export it anew",
            ) from error
        return found[0] if len(found) == 1 else tuple(found)


def backend_of(path: str | Path) -> Backend | None:
    """Tell by the ending of a name which program runs the file; None for every other ending.

    Example:
        >>> backend_of("i3d.onnx"), backend_of("i3d.xml"), backend_of("i3d.safetensors")
        ('onnx', 'openvino', None)
    """
    return next((backend for backend, suffix in SUFFIXES.items() if Path(path).suffix == suffix), None)


def load_exported(path: str | Path, *, trust: bool = False) -> ExportedModel:
    """Open a network that `export_model` wrote, to be run by ONNX Runtime, OpenVINO or torch on the processor.

    Args:
        path: FILE.onnx, FILE.xml (with FILE.bin beside it) or FILE.pt2.
        trust: Open a torch.export archive. Reading one can run code of whoever wrote it (pickles, and expressions that
            sympy evaluates): know whose it is.

    Raises:
        InflateError: There is no such file, it is damaged or not one of ours, the extra `export` is not installed, or
            it is a torch.export archive, without `trust`.

    Example:
        See `inflate3d.speed.export.export_model`.
    """
    path = Path(path)
    backend = backend_of(path)
    if backend is None or not path.is_file():
        raise InflateError(
            "this is no exported network",
            where=str(path),
            expected=f"a file that ends in {', '.join(SUFFIXES.values())}",
            got="no such file" if backend else path.name,
            fix=f"inflate3d export MODEL -o {path.with_suffix('.onnx')}",
        )
    if backend == "torch" and not trust:
        raise InflateError(
            "a torch.export archive can run code of whoever wrote it, so it was not opened",
            where=str(path),
            expected="an archive that you know, with load_exported(FILE, trust=True); or ONNX or OpenVINO instead",
            got=path.name,
            fix="inflate3d export MODEL -o FILE.onnx; torch runs what it was made from without an export",
        )
    opened = {"torch": _open_torch, "onnx": _open_onnx, "openvino": _open_openvino}[backend]
    try:
        text, found_sha256, answer, runner = opened(path)
    except InflateError:
        raise
    except Exception as error:  # of three programs, each with errors of its own
        raise _damaged(path, in_a_line(error)) from error
    card = ExportCard.from_json(text, where=str(path))
    if card.backend != backend or card.content_sha256 != found_sha256:
        raise _damaged(path, f"{card.backend}, {found_sha256[:16]}", f"{backend}, hash {card.content_sha256[:16]}")
    return ExportedModel(card, answer(), runner)


def _damaged(path: Path, got: str, expected: str = "a file of inflate3d export, whole") -> InflateError:
    return InflateError(
        "the exported network is damaged or somebody else's",
        where=str(path),
        expected=expected,
        got=got,
        fix=f"export it anew: inflate3d export MODEL -o {path}",
    )


Opened = tuple[str, str, Callable[[], Answer], str]  # card, hash, what makes it run once the card is fine, by whom


def _open_torch(path: Path) -> Opened:
    with zipfile.ZipFile(path) as archive:
        (name,) = [one for one in archive.namelist() if one.endswith((f"extra/{KEY}", f"extra_files/{KEY}"))]
        with archive.open(name) as handle:
            text = handle.read(MAX_LETTERS + 1).decode()

    def start() -> Answer:
        program = torch.export.load(path)
        # a check of what torch noted in tracing, such as layouts of memory, would refuse short clips
        unchecked = {"check_guards": False} if "check_guards" in inspect.signature(program.module).parameters else {}
        module = program.module(**unchecked)

        def answer(clip: Tensor) -> list[Tensor]:
            with torch.inference_mode():
                return list(module(clip))

        return answer

    return text, "", start, f"torch {torch.__version__}"


def _open_onnx(path: Path) -> Opened:
    onnx, runtime = (import_extra(package, EXTRA, where=str(path)) for package in ("onnx", "onnxruntime"))
    content = path.read_bytes()
    model = onnx.load_model_from_string(content)
    (text,) = [entry.value for entry in model.metadata_props if entry.key == KEY]
    beside = path.with_name(path.name + DATA)
    tensors = (one for graph in (model.graph, *model.functions) for one in _tensors(graph))
    outside = {entry.value for one in tensors for entry in one.external_data if entry.key == "location"}
    if outside - {beside.name}:
        raise _damaged(path, f"it takes weights from {', '.join(sorted(outside))[:200]}", f"weights in {beside.name}")
    found = onnx_sha256(model, beside if outside else None)

    def start() -> Answer:
        options = runtime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 3
        given = str(path) if outside else content
        session = runtime.InferenceSession(given, options, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        return lambda clip: [torch.from_numpy(one) for one in session.run(None, {name: clip.numpy()})]

    return text, found, start, f"ONNX Runtime {runtime.__version__}"


def _tensors(graph: Any) -> Iterator[Any]:
    """Go over the tensors of an ONNX graph, those of graphs inside it too."""
    yield from getattr(graph, "initializer", ())  # a function has none
    for sparse in getattr(graph, "sparse_initializer", ()):
        yield from (sparse.values, sparse.indices)
    for attribute in (attribute for node in graph.node for attribute in node.attribute):
        yield from (attribute.t, *attribute.tensors)
        for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
            yield from (sparse.values, sparse.indices)
        for inner in (attribute.g, *attribute.graphs):
            yield from _tensors(inner)


def onnx_sha256(model: Any, beside: Path | None) -> str:
    """Hash an ONNX model without what is told about it, and the file of weights beside it."""
    bare = type(model)()
    bare.CopyFrom(model)
    del bare.metadata_props[:]
    digest = hashlib.sha256(bare.SerializeToString(deterministic=True))
    if beside:
        with beside.open("rb") as handle:
            digest.update(hashlib.file_digest(handle, "sha256").digest())
    return digest.hexdigest()


def _open_openvino(path: Path) -> Opened:
    openvino = import_extra("openvino", EXTRA, where=str(path))
    core, weights = openvino.Core(), path.with_suffix(".bin")
    with weights.open("rb") as handle:
        found = hashlib.file_digest(handle, "sha256").hexdigest()
    model = core.read_model(path, weights)
    text = str(model.get_rt_info(["inflate3d", KEY]).astype(str))

    def start() -> Answer:
        # a processor that knows bfloat16 would get it, without the hint
        hints = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
        compiled = core.compile_model(model, "CPU", hints)
        return lambda clip: [torch.from_numpy(one.copy()) for one in compiled(clip.numpy()).values()]

    return text, found, start, f"OpenVINO {openvino.get_version().partition('-')[0]}"
