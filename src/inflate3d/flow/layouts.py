"""Flow of a video as files that other projects read; a run that was stopped goes on where it was."""

import json
import shutil
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from io import BytesIO
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
import torch
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange
from numpy.typing import NDArray
from torch import Tensor

from inflate3d.atomic import replacing, write_text
from inflate3d.errors import InflateError, check_options, is_count
from inflate3d.flow.methods import FlowMethod
from inflate3d.flow.quantize import BOUND_PIXELS, QUANTIZERS, Quantizer, check_quantizer, quantize

LayoutName = Literal["denseflow", "mmaction2", "tsn", "npz", "mp4"]

RECORD = "flow.json"  # what is in the folder, and whether it is whole
PARTS = ".parts"  # flows that wait until they can be written into one file
AXES = ("x", "y")
NO_BYTES: tuple[Quantizer, ...] = ("none", "video-features")


@dataclass(frozen=True)
class Layout:
    """Names of files.

    Attributes:
        flow: Name of one flow; `{axis}` is x or y, `{index}` counts. None: all flows of a video are in one file.
        first_index: Where counting starts.
        quantizer: What the project's own tool does.
    """

    flow: str | None
    first_index: int
    quantizer: Quantizer


# Source: denseflow src/common.cpp (counts from 0; its predecessor dense_flow, which TSN took, from 1); mmaction2
# tools/misc/flow_extraction.py. The last two are our own.
LAYOUTS: dict[LayoutName, Layout] = {
    "denseflow": Layout("flow_{axis}_{index:05d}.jpg", 0, "denseflow"),
    "mmaction2": Layout("{axis}_{index:05d}.jpg", 1, "mmaction2"),
    "tsn": Layout("flow_{axis}_{index:05d}.jpg", 1, "denseflow"),
    "npz": Layout(None, 0, "none"),
    "mp4": Layout(None, 0, "denseflow"),
}
IMAGE = "img_{index:05d}.jpg"  # in all three


@dataclass(frozen=True)
class FlowFileOptions:
    """How flow is written.

    Attributes:
        layout: `denseflow`, `mmaction2` or `tsn`: two grey JPEGs for each flow; `npz`: one array [n, 2, h, w] called
            flow; `mp4`: two grey videos without loss, flow_x.mp4 and flow_y.mp4.
        quantizer: None takes the layout's own. JPEG and mp4 hold bytes only.
        bound: Largest motion, in pixels.
        jpeg_quality: 1 to 100; 95 is OpenCV's default, which the three projects use.
        images: Write the frames as well, as img_00000.jpg and so on.
        batch_size: Pairs for each call of the method.

    Raises:
        InflateError: A value is not allowed.

    Example:
        >>> FlowFileOptions(layout="mmaction2").codes
        'mmaction2'
    """

    layout: LayoutName = "denseflow"
    quantizer: Quantizer | None = None
    bound: float = BOUND_PIXELS
    jpeg_quality: int = 95
    images: bool = False
    batch_size: int = 8

    def __post_init__(self) -> None:
        bytes_only = self.layout in LAYOUTS and self.layout != "npz"
        codes = ", ".join(name for name in QUANTIZERS if name not in NO_BYTES)
        check_options(
            self,
            {
                "layout": (", ".join(LAYOUTS), self.layout in LAYOUTS),
                "quantizer": (
                    f"{codes}, or None; {' and '.join(NO_BYTES)} give no bytes, and go with layout='npz' only",
                    not (bytes_only and self.quantizer in NO_BYTES),
                ),
                "jpeg_quality": ("a whole number from 1 to 100", is_count(self.jpeg_quality, 100)),
                "batch_size": ("1 or more", is_count(self.batch_size)),
            },
            problem="flow cannot be written so",
        )
        check_quantizer(self.quantizer or "none", self.bound)

    @property
    def codes(self) -> Quantizer:
        """The quantizer in force."""
        return self.quantizer or LAYOUTS[self.layout].quantizer


@dataclass(frozen=True)
class FlowFiles:
    """What lies in a folder of flow.

    Attributes:
        folder: The folder.
        num_flows: Flows in it, one less than frames.
        num_new: Those that this run has written.
    """

    folder: Path
    num_flows: int
    num_new: int


def write_flow(
    pictures: Iterable[Tensor],
    folder: Path,
    options: FlowFileOptions | None = None,
    *,
    method: FlowMethod,
    settings: Mapping[str, str] | None = None,
) -> FlowFiles:
    """Write the flow between neighbouring pictures into a folder.

    Each file is written whole or not at all. A run over a folder that an earlier one has filled in part does what is
    missing; one over a whole folder does nothing, not even read the pictures.

    Args:
        pictures: `[h, w, 3]` uint8, all of one size; read once, a few held at a time.
        folder: Made if need be.
        options: How the files are written.
        method: What `find_method` gives.
        settings: What the flow depends on besides the options, such as source, rate, method; kept in flow.json, so
            that a later run with others does not mix the two.

    Raises:
        InflateError: There are fewer than two pictures; the folder holds something else, or flow made with other
            settings; or it cannot be written.

    Example:
        >>> import tempfile
        >>> from inflate3d.flow.methods import find_method
        >>> pictures = torch.zeros(3, 30, 40, 3, dtype=torch.uint8)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     found = write_flow(pictures, Path(folder), method=find_method("tvl1"))
        ...     sorted(path.name for path in Path(folder).glob("flow_x*")), found.num_flows
        (['flow_x_00000.jpg', 'flow_x_00001.jpg'], 2)
    """
    run = _Run(folder, options or FlowFileOptions(), method, settings or {})
    known = run.begin()
    if known is not None:
        return FlowFiles(folder, known, 0)
    stream = iter(pictures)
    first = list(islice(stream, 1))
    num_flows = 0
    for one, two in pairwise(chain(first, stream)):
        run.pair(num_flows, one, two)
        num_flows += 1
    if not num_flows:
        raise InflateError(
            "there are fewer than two frames",
            where=str(folder),
            expected="two frames or more, for flow leads from one to the next",
            got=f"{len(first)} frames",
            fix="take a longer video, or a higher rate (--fps native)",
        )
    run.finish(num_flows)
    return FlowFiles(folder, num_flows, run.num_new)


@dataclass
class _Run:
    """One run over a folder: what is there, what waits, what it has written."""

    folder: Path
    options: FlowFileOptions
    method: FlowMethod
    settings: Mapping[str, str]
    waiting: list[tuple[int, Tensor, Tensor]] = field(default_factory=list)
    num_new: int = 0

    @property
    def record(self) -> dict[str, Any]:
        options = self.options
        written = {"layout": options.layout, "quantizer": options.codes, "bound": float(options.bound)}
        written |= {"jpeg_quality": options.jpeg_quality, "images": options.images}
        return {"settings": dict(self.settings), **written}

    def begin(self) -> int | None:
        """Give the number of flows of a whole folder; refuse one that is not ours."""
        path = self.folder / RECORD
        if not path.exists():
            if self.folder.is_dir() and any(self.folder.iterdir()):
                raise self.refusal("the folder holds something else", "an empty or new folder", "other files")
            return None
        try:
            found = dict(json.loads(path.read_text(encoding="utf-8")))
            num_flows = found.pop("num_flows")
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise self.refusal(f"{RECORD} cannot be read", "what this command wrote", repr(error)) from error
        if found != self.record:
            different = [name for name in self.record if found.get(name) != self.record[name]]
            got = ", ".join(f"{name}: {found.get(name)}" for name in different)
            wanted = ", ".join(f"{name}: {self.record[name]}" for name in different)
            raise self.refusal("the folder holds flow that was made otherwise", wanted, got)
        return num_flows if is_count(num_flows) and self.is_whole(num_flows) else None

    def refusal(self, problem: str, expected: str, got: str) -> InflateError:
        fix = "name another folder, or delete this one"
        return InflateError(problem, where=str(self.folder), expected=expected, got=got, fix=fix)

    def is_whole(self, num_flows: int) -> bool:
        if LAYOUTS[self.options.layout].flow is None:
            return all(path.exists() for path in self.single_files())
        return all(self.is_done(index) for index in range(num_flows))

    def single_files(self) -> list[Path]:
        names = ["flow.npz"] if self.options.layout == "npz" else [f"flow_{axis}.mp4" for axis in AXES]
        return [self.folder / name for name in names]

    def files(self, index: int) -> list[Path]:
        """Name the files of one flow, the last one written last."""
        layout = LAYOUTS[self.options.layout]
        if layout.flow is None:
            return [self.folder / PARTS / f"{index:06d}.npy"]
        return [self.folder / layout.flow.format(axis=axis, index=index + layout.first_index) for axis in AXES]

    def is_done(self, index: int) -> bool:
        return all(path.exists() for path in self.files(index))

    def image(self, index: int, picture: Tensor) -> None:
        path = self.folder / IMAGE.format(index=index + LAYOUTS[self.options.layout].first_index)
        if self.options.images and not path.exists():
            _write_jpeg(path, picture, self.options.jpeg_quality)

    def pair(self, index: int, first: Tensor, second: Tensor) -> None:
        if index == 0:
            self.note(None)  # not before: a video of one frame leaves nothing behind
            self.image(0, first)
        self.image(index + 1, second)
        if not self.is_done(index):
            self.waiting.append((index, first, second))
        if len(self.waiting) == self.options.batch_size:
            self.flush()

    def flush(self) -> None:
        if not self.waiting:
            return
        indices, first, second = zip(*self.waiting, strict=True)
        flows = self.method(torch.stack(first), torch.stack(second))
        for index, codes in zip(indices, quantize(flows, self.options.codes, bound=self.options.bound), strict=True):
            self.write(index, codes)
        self.num_new += len(indices)
        self.waiting.clear()

    def write(self, index: int, codes: Tensor) -> None:
        files = self.files(index)
        if len(files) == 1:
            with replacing(files[0]) as draft, draft.open("wb") as file:
                np.save(file, codes.numpy())
            return
        for path, plane in zip(files, codes, strict=True):
            _write_jpeg(path, plane, self.options.jpeg_quality)

    def finish(self, num_flows: int) -> None:
        self.flush()
        parts = [self.files(index)[0] for index in range(num_flows)]
        if self.options.layout == "npz":
            _write_npz(self.single_files()[0], parts, self.options)
        elif self.options.layout == "mp4":
            for axis, path in enumerate(self.single_files()):
                _write_grey_video(path, parts, axis)
        self.note(num_flows)
        shutil.rmtree(self.folder / PARTS, ignore_errors=True)

    def note(self, num_flows: int | None) -> None:
        write_text(self.folder / RECORD, json.dumps({**self.record, "num_flows": num_flows}, indent=1) + "\n")


def _write_jpeg(path: Path, picture: Tensor, quality: int) -> None:
    """Write `[h, w]` or `[h, w, 3]` bytes; Pillow and OpenCV have one JPEG library and so one scale of quality."""
    from PIL import Image  # noqa: PLC0415 - comes with torchvision

    buffer = BytesIO()
    Image.fromarray(picture.numpy()).save(buffer, "JPEG", quality=quality)
    with replacing(path) as draft:
        draft.write_bytes(buffer.getvalue())


def _write_npz(path: Path, parts: list[Path], options: FlowFileOptions) -> None:
    """Write all parts as one array, with the quantizer and the bound beside it; one part in memory at a time."""
    first: NDArray[Any] = np.load(parts[0])
    header = {"descr": first.dtype.str, "fortran_order": False, "shape": (len(parts), *first.shape)}
    with replacing(path) as draft, zipfile.ZipFile(draft, "w") as archive:
        for name, value in (("quantizer", options.codes), ("bound", float(options.bound))):
            buffer = BytesIO()
            np.save(buffer, np.array(value))
            archive.writestr(f"{name}.npy", buffer.getvalue())
        with archive.open("flow.npy", "w", force_zip64=True) as file:
            np.lib.format.write_array_header_1_0(file, header)
            for part in parts:
                file.write(np.load(part).tobytes())


def _write_grey_video(path: Path, parts: list[Path], axis: int) -> None:
    """Write one component of all parts as H.264 without loss, a frame each."""
    with replacing(path) as draft, av.open(str(draft), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=25, options={"qp": "0", "preset": "veryfast"})
        stream.pix_fmt, stream.codec_context.color_range = "gray", ColorRange.JPEG  # all of 0..255
        stream.height, stream.width = np.load(parts[0]).shape[1:]
        for part in parts:
            frame = VideoFrame.from_ndarray(np.ascontiguousarray(np.load(part)[axis]), format="gray")
            frame.color_range = ColorRange.JPEG
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
