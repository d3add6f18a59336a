"""Whole numbers instead of floats: OpenVINO and NNCF quantize a model to int8, calibrated on the user's clips."""

import contextlib
import copy
import logging
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from inflate3d.errors import InflateError, import_extra, in_a_line


class QuantizedModel(nn.Module):
    """A model in int8, run by OpenVINO on the processor, for clips of the size it was calibrated with.

    Attributes:
        clip_shape: `(1, c, t, h, w)` of the clips that it answers, one at a time.
    """

    def __init__(self, files: dict[str, bytes], clip_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.files, self.clip_shape = files, clip_shape
        self._compiled: Any = None

    def forward(self, clip: Tensor) -> Tensor:
        """Answer clips `[b, c, t, h, w]` with what the model answers, `[b, ...]` in float32.

        Raises:
            InflateError: The clip has another size than the clips of the calibration.
        """
        if clip.shape[1:] != self.clip_shape[1:]:
            raise InflateError(
                "the model was quantized for clips of another size",
                where="int8",
                expected=f"[b, {', '.join(map(str, self.clip_shape[1:]))}]",
                got=str(list(clip.shape)),
                fix="calibrate with clips of this size, or cut the clip into windows",
            )
        if self._compiled is None:
            self._compiled = _compile(self.files)
        answers = [torch.from_numpy(self._compiled(one[None].numpy())[0]) for one in clip.float().cpu().contiguous()]
        return torch.cat(answers)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_compiled": None}  # made anew where it is unpickled


def quantize_int8(model: nn.Module, clips: Sequence[Tensor]) -> QuantizedModel:
    """Quantize a model to int8 with clips `[1, c, t, h, w]`, all of one size, as it will be shown.

    Raises:
        InflateError: No clips, or of several sizes; the extra `int8` is not installed; a model that cannot be exported.
    """
    shapes = {tuple(clip.shape) for clip in clips}
    if len(shapes) != 1 or min(len(shape) for shape in shapes) != 5 or next(iter(shapes))[0] != 1:
        raise InflateError(
            "int8 needs clips to calibrate with",
            where="optimize",
            expected="calibration=[clip, ...], clips [1, c, t, h, w] of one size, as the model will be shown",
            got=", ".join(str(list(shape)) for shape in sorted(shapes)) or "no clips",
            fix="pass a few dozen windows of your own videos",
        )
    (shape,) = shapes
    openvino, nncf = (import_extra(package, "int8", where="optimize") for package in ("openvino", "nncf"))
    clips = [clip.float().cpu() for clip in clips]
    try:
        with _quiet("nncf"):
            exported = torch.export.export(copy.deepcopy(model).cpu(), (torch.zeros(shape),))
            data = nncf.Dataset([clip.numpy() for clip in clips])
            whole = nncf.quantize(openvino.convert_model(exported), data, subset_size=len(clips))
    except Exception as error:  # of three packages, each with errors of its own
        raise InflateError(
            "the model cannot be quantized",
            where=f"optimize({type(model).__name__})",
            expected="a model that torch.export, OpenVINO and NNCF can take",
            got=in_a_line(error),
            fix='optimize with precision="bf16"',
        ) from error
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.xml"
        openvino.save_model(whole, path, compress_to_fp16=False)
        files = {file.suffix: file.read_bytes() for file in (path, path.with_suffix(".bin"))}
    return QuantizedModel(files, shape)


@contextlib.contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Let a logger tell errors only, and put its level back."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _compile(files: dict[str, bytes]) -> Any:
    openvino = import_extra("openvino", "int8", where="an int8 model")
    core = openvino.Core()
    return core.compile_model(core.read_model(files[".xml"], files[".bin"]), "CPU")
