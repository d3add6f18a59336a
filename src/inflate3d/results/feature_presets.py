"""How features are made and how their files look, and the choices that other projects' loaders expect, by name."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final, Literal, get_args

from inflate3d.clips.transforms import CropKind
from inflate3d.clips.video import Rate
from inflate3d.errors import InflateError, is_count, is_number, is_pair, nearest_names
from inflate3d.flow.methods import MethodName
from inflate3d.flow.quantize import QUANTIZERS, Quantizer
from inflate3d.results.network import MIN_FPS
from inflate3d.speed.optimize import Precision

StreamName = Literal["rgb", "flow"]
Streams = Literal["rgb", "flow", "both"]
Tail = Literal["drop", "pad-last", "pad-zero", "right-align"]
Align = Literal["start", "center"]
Stamp = Literal["start", "center", "middle-frame", "end"]
Pool = Literal["mean", "per-step", "none"]
Interpolation = Literal["bilinear", "bicubic", "bilinear-aliased"]
Axes = Literal["rows", "columns", "crops-inside", "crops-first", "crop-files", "grid"]
Format = Literal["npy", "npz", "h5", "safetensors", "pt"]
Dtype = Literal["float16", "float32", "float64"]
Collected = Literal["", "hdf5", "object-array", "mat"]

WHOLE: Final = "whole"
FIVE = ("top-left", "top-right", "bottom-left", "bottom-right", "center")
CENTER_THIRD = ("top-left", "top-right", "center", "bottom-left", "bottom-right")
# Which crops, by the names that `inflate3d.clips.transforms.crops` gives them, in which order
CROP_SETS: dict[str, tuple[CropKind, tuple[str, ...]] | None] = {
    "center": ("center", ("center",)),
    "three": ("three", ()),  # whose names depend on the frame: left or top, center, right or bottom
    "five": ("five", FIVE),
    "five-center-first": ("five", ("center", *FIVE[:4])),
    "ten": ("ten", (*FIVE, *(f"mirrored-{name}" for name in FIVE))),
    "ten-center-third": ("ten", (*CENTER_THIRD, *(f"mirrored-{name}" for name in CENTER_THIRD))),
    "none": None,  # the whole frame
}
NUM_CROPS = {"center": 1, "three": 3, "five": 5, "five-center-first": 5, "ten": 10, "ten-center-third": 10, "none": 1}
MAX_SIDE = 4096  # pixels


@dataclass(frozen=True)
class FeatureOptions:
    """What a row of features is made from.

    Attributes:
        streams: "rgb", "flow" or "both".
        endpoint: "features": what the last layer is fed with; "logits"; an endpoint's name, such as "Mixed_5c"; or the
            name of any module, such as "inflated.net.layer3".
        window: Frames in a window; None takes what the network was trained on. "whole": the video in one pass, a row
            for each of the network's steps in time, computed piece by piece (I3D, and inflated models whose layers
            see a few frames each).
        stride: Frames from one window to the next; None sets window beside window.
        fps: Frames per second to take, nearest in time, or "native" for all.
        resize: The short side in pixels, or (width, height), which changes the aspect; None takes the network's own.
        interpolation: "bilinear" and "bicubic" with antialiasing, as Pillow has it; "bilinear-aliased" is OpenCV's.
        crop: Pixels of a side of the square crop; None takes the network's own.
        crops: A key of `CROP_SETS`; "none" shows the network whole frames.
        value_range: What black and white become; None takes the network's own.
        pool: "mean" over time and space; "per-step": over space; "none": the endpoint as it is.
        tail: Frames that are left over: "drop"; fill the window with the last frame or with zeros ("pad-last",
            "pad-zero": zeros of the network's input); or a last window that reaches back ("right-align").
        align: "start": windows begin at frames 0, stride, 2 stride ...; "center": they have these frames in their
            middle, and what is missing in front and behind is filled as `tail` says.
        stamp: The time that a row stands for: that of its window's start, center, middle frame, or end.
        spare_frame: Leave out the last frame of a video without a flow stream too, since no flow leads on from it.
        flow_method: Computes the flow (`inflate3d.flow.methods.find_method`).
        flow_weights: Of the method raft.
        flow_compiled: Compile the method tvl1: three times faster after half a minute.
        flow_from: Flow that was computed before, instead: see `inflate3d.results.two_stream.FlowOptions`.
        quantizer: What stands between flow and network.
        precision: "fp32", or "bf16".
        batch_size: Clips, that is windows or their crops, that go through the network at a time, of several videos if
            need be; None takes one on a CPU, and as many as fit on a GPU.
        workers: Videos that are read at once; None takes 2, or 1 where flow is computed.

    Raises:
        InflateError: Values that are not allowed, all told together.

    Example:
        >>> FeatureOptions(window=16, stride=4).tail
        'drop'
    """

    streams: Streams = "rgb"
    endpoint: str = "features"
    window: int | Literal["whole"] | None = None
    stride: int | None = None
    fps: Rate = 25.0
    resize: int | tuple[int, int] | None = None
    interpolation: Interpolation = "bilinear"
    crop: int | None = None
    crops: str = "center"
    value_range: tuple[float, float] | None = None
    pool: Pool = "mean"
    tail: Tail = "drop"
    align: Align = "start"
    stamp: Stamp = "center"
    spare_frame: bool = False
    flow_method: MethodName = "tvl1"
    flow_weights: str | None = None
    flow_compiled: bool = False
    flow_from: Path | None = None
    quantizer: Quantizer = "mediapipe"
    precision: Precision = "fp32"
    batch_size: int | None = None
    workers: int | None = None

    def __post_init__(self) -> None:
        def count_or_none(value: object) -> bool:
            return value is None or is_count(value)

        whole = self.window == WHOLE
        rate_fits = self.fps == "native" or (is_number(self.fps) and float(self.fps) >= MIN_FPS)
        sides = self.resize if isinstance(self.resize, tuple) else () if self.resize is None else (self.resize,)
        named = {
            "streams": get_args(Streams),
            "interpolation": get_args(Interpolation),
            "crops": tuple(CROP_SETS),
            "pool": get_args(Pool),
            "tail": get_args(Tail),
            "align": get_args(Align),
            "stamp": get_args(Stamp),
            "flow_method": get_args(MethodName),
            "quantizer": tuple(QUANTIZERS),
            "precision": ("fp32", "bf16"),
        }
        checks = [(name, ", ".join(known), getattr(self, name) in known) for name, known in named.items()]
        checks += [
            ("window", "1 or more, whole, or None", whole or count_or_none(self.window)),
            ("stride", "1 or more, or None", count_or_none(self.stride) and not (whole and self.stride)),
            ("fps", f"a number of {MIN_FPS} or more, or native", rate_fits),
            ("resize", f"1 to {MAX_SIDE} pixels, or two such", all(is_count(side, MAX_SIDE) for side in sides)),
            ("resize", "(width, height)", not isinstance(self.resize, tuple) or len(self.resize) == 2),
            ("crop", "1 or more, or None", count_or_none(self.crop)),
            ("value_range", "(low, high), or None", self.value_range is None or is_pair(self.value_range)),
            ("tail", "not right-align with align=center", (self.tail, self.align) != ("right-align", "center")),
            ("pool", "mean with window=whole", not whole or self.pool == "mean"),
            ("batch_size", "1 or more, or None", count_or_none(self.batch_size)),
            ("workers", "1 or more, or None", count_or_none(self.workers)),
        ]
        _refuse("FeatureOptions", self, checks)

    @property
    def stream_names(self) -> tuple[StreamName, ...]:
        """The streams, colors first."""
        return ("rgb", "flow") if self.streams == "both" else (self.streams,)


@dataclass(frozen=True)
class FeatureLayout:
    """How the files of a video look.

    Attributes:
        format: "npy"; "npz", "safetensors" and "pt", with times and frames beside the features; "h5", one file for all.
        axes: "rows": `[n, c]`, several crops averaged; "columns": `[c, n]`; "crops-inside": `[n, crops, c]`;
            "crops-first": `[crops, n, c]`; "crop-files": `[n, c]`, a file for each crop; "grid": `[n, 1, 1, c]`.
        dtype: "float16", "float32" or "float64".
        name: Of a file, without its suffix, below the video's folder: `{stem}` is the video's name, `{id}` the same
            without a leading `v_`, `{stream}` rgb or flow, `{crop}` a number. In an h5 file, the key, without `{crop}`.
        join: Both streams in one array, rgb first.
        keys: Of a npz file, and what stands under each: "features", "video", "num_frames", "fps", "start_frames",
            "times_seconds".
        beside: Further npy files by name, and what is in them: "fps", "times_ms".
        collected: One file of all videos besides: "hdf5", "object-array" or "mat".
        collected_name: Its name.

    Raises:
        InflateError: Values that are not allowed, all told together.
    """

    format: Format = "npy"
    axes: Axes = "rows"
    dtype: Dtype = "float32"
    name: str = "{stem}_{stream}"
    join: bool = False
    keys: Mapping[str, str] = field(
        default_factory=lambda: {key: key for key in ("features", "start_frames", "times_seconds", "num_frames", "fps")}
    )
    beside: Mapping[str, str] = field(default_factory=dict)
    collected: Collected = ""
    collected_name: str = ""

    def __post_init__(self) -> None:
        values = {"stem": "s", "id": "i", "stream": "r", "crop": "c"}
        try:
            named = ".." not in self.name.format(**values) and bool(self.name)
        except (KeyError, IndexError, ValueError):
            named = False
        checks = [
            ("format", ", ".join(get_args(Format)), self.format in get_args(Format)),
            ("axes", ", ".join(get_args(Axes)), self.axes in get_args(Axes)),
            ("dtype", ", ".join(get_args(Dtype)), self.dtype in get_args(Dtype)),
            ("name", "with {stem}, {id}, {stream}, {crop} alone", named),
            ("axes", "crop-files with {crop} in the name", (self.axes == "crop-files") == ("{crop}" in self.name)),
            ("format", "npy with crop-files", self.axes != "crop-files" or self.format == "npy"),
            ("collected", "hdf5 with format h5 alone", (self.collected == "hdf5") == (self.format == "h5")),
            ("collected", "one npy file for each video", self.collected in {"", "hdf5"} or self._is_one_npy),
        ]
        _refuse("FeatureLayout", self, checks)

    @property
    def _is_one_npy(self) -> bool:
        return self.format == "npy" and "{stream}" not in self.name and "{crop}" not in self.name


def _refuse(where: str, what: object, checks: list[tuple[str, str, bool]]) -> None:
    faults = [f"{name}={getattr(what, name)!r}, allowed is {allowed}" for name, allowed, fits in checks if not fits]
    if faults:
        raise InflateError(
            "an option is out of range",
            where=where,
            expected="see `inflate3d features --help`",
            got="; ".join(faults),
            fix="change it to an allowed value",
        )


@dataclass(frozen=True)
class Preset:
    """What one project expects.

    Attributes:
        project: Its name, and those of others with the same files.
        options: What a row is.
        layout: How the files look.
        model: The network whose features these are; one of the zoo's needs weights.
        load: How the project reads a file, in words of Python.
        source: Where this is told.
        compat: For `inflate3d.load`: the network as that project has it.
        note: Where ours differs from theirs.
    """

    project: str
    options: FeatureOptions
    layout: FeatureLayout
    model: str
    load: str
    source: str
    compat: str | None = None
    note: str = ""


I3D = "i3d-kinetics400"  # any other weights of I3D by --model
MIRRORED = "Flow of mirrored crops has its sign changed, which Finspire13's code forgets."

PRESETS: dict[str, Preset] = {
    "actionformer-thumos": Preset(
        "ActionFormer, TriDet, OpenTAD on THUMOS14",
        FeatureOptions("both", window=16, stride=4, fps="native", resize=(340, 256), quantizer="denseflow"),
        FeatureLayout(name="{stem}", join=True),
        I3D,
        "np.load(f'{video}.npy').astype(np.float32)  # [n, 2048], rgb first",
        "actionformer_release configs/thumos_i3d.yaml, libs/datasets/thumos14.py, FAQ.md, issue 60; "
        "Finspire13/pytorch-i3d-feature-extraction, whose features these are",
        note="The published features are means over ten crops: crops='ten-center-third' gives them. " + MIRRORED,
    ),
    "actionformer-anet": Preset(
        "ActionFormer on ActivityNet with I3D",
        FeatureOptions("both", window=16, stride=16, fps=25.0, resize=(340, 256), quantizer="denseflow"),
        FeatureLayout(name="v_{id}", join=True),
        I3D,
        "np.load(f'v_{video}.npy').astype(np.float32)  # [n, 2048]",
        "actionformer_release configs/anet_i3d.yaml, libs/datasets/anet.py",
    ),
    "wtalc": Preset(
        "W-TALC and its successors (ACM-Net, CO2-Net ...)",
        FeatureOptions("both", window=16, stride=16, fps=25.0, resize=(340, 256), quantizer="denseflow"),
        FeatureLayout(name="{stem}", join=True, collected="object-array", collected_name="I3D-JOINTFeatures.npy"),
        I3D,
        "np.load('I3D-JOINTFeatures.npy', encoding='bytes', allow_pickle=True)[i]  # [n, 2048], as videoname.npy[i]",
        "wtalc-pytorch video_dataset.py; SF-Net issue 14 for the rate",
        note="W-TALC puts the name of the data set before that of the file.",
    ),
    "rtfm": Preset(
        "RTFM, MGFN, UR-DMU (anomalies in UCF-Crime, ShanghaiTech)",
        FeatureOptions(window=16, stride=16, fps="native", resize=(340, 256), crops="ten"),
        FeatureLayout(axes="crops-inside", name="{stem}_i3d"),
        "i3d-r50-nonlocal-32f",
        "np.array(np.load(path, allow_pickle=True), dtype=np.float32).transpose(1, 0, 2)  # [10, n, 2048]",
        "RTFM dataset.py, issue 33; I3D_Feature_Extraction_resnet",
        note="Pixels are normalized as the weights were trained, (x - 114.75) / 57.375; that extractor shows them half "
        "the contrast. crops='ten-center-third' is its order.",
    ),
    "xd-violence": Preset(
        "XDVioDet and others on XD-Violence",
        FeatureOptions("both", window=16, stride=16, fps=24.0, resize=256, crops="five-center-first"),
        FeatureLayout(axes="crop-files", name="{stream}/{stem}__{crop}"),
        I3D,
        "np.array(np.load(path), dtype=np.float32)  # [n, 1024] of crop 0 (center) to 4, under rgb/ and flow/",
        "XDVioDet README, dataset.py",
    ),
    "ms-tcn": Preset(
        "MS-TCN, ASFormer, ASRF (a column for each frame)",
        FeatureOptions(
            "both",
            window=21,
            stride=1,
            fps="native",
            resize=256,
            tail="pad-zero",
            align="center",
            stamp="middle-frame",
            quantizer="none",
        ),
        FeatureLayout(axes="columns", name="{stem}", join=True),
        I3D,
        "np.load(features_path + video + '.npy')[:, ::sample_rate]  # [2048, t]",
        "ms-tcn batch_gen.py, issue 34; Kinetics-FeatureExtractor",
        note="Flow is computed on resized frames, there on frames of the original size.",
    ),
    "video-features": Preset(
        "video_features (BMT, MDVC and others)",
        FeatureOptions(
            "both",
            window=64,
            stride=64,
            fps="native",
            resize=256,
            stamp="end",
            spare_frame=True,
            flow_method="raft",
            quantizer="video-features",
        ),
        FeatureLayout(dtype="float64", beside={"{stem}_fps": "fps", "{stem}_timestamps_ms": "times_ms"}),
        I3D,
        "np.load(f'{stem}_rgb.npy')  # [n, 1024]; _flow, _fps, _timestamps_ms likewise",
        "video_features models/i3d/extract_i3d.py, configs/i3d.yml",
        compat="video-features",
    ),
    "finspire": Preset(
        "Finspire13/pytorch-i3d-feature-extraction (CMCS and others)",
        FeatureOptions("both", window=16, stride=16, fps="native", resize=(340, 256), quantizer="denseflow"),
        FeatureLayout(
            "npz",
            axes="crops-first",
            name="{stem}-{stream}",
            keys={"feature": "features", "frame_cnt": "num_frames", "video_name": "video"},
        ),
        I3D,
        "np.load(f'{video}-rgb.npz')['feature']  # [1, n, 1024]; [10, n, 1024] with crops='ten-center-third'",
        "pytorch-i3d-feature-extraction extract_features.py",
        note=MIRRORED,
    ),
    "bsl1k": Preset(
        "bsl1k, sign-segmentation",
        FeatureOptions(
            window=16,
            stride=1,
            fps=25.0,
            resize=(256, 256),
            interpolation="bilinear-aliased",
            value_range=(-0.5, 0.5),
            tail="right-align",
            stamp="middle-frame",
        ),
        FeatureLayout(name="{stem}", collected="mat", collected_name="features.mat"),
        I3D,
        "loadmat('features.mat')['preds']  # [n, 1024], t - 15 rows for a video of t frames, video after video",
        "bsl1k demo/demo.py; sign-segmentation datasets/bslcp.py",
    ),
    "charades-piergiaj": Preset(
        "pytorch-i3d's features of Charades (LGI, VSLNet and others)",
        FeatureOptions(window=WHOLE, fps=24.0, resize=256, quantizer="denseflow"),
        FeatureLayout(axes="grid", name="{stem}"),
        I3D,
        "np.load(f'{video}.npy')  # [t / 8 - 1, 1, 1, 1024]",
        "pytorch-i3d extract_features.py",
        note="Frames are shown there in the size of the Charades_v1_rgb pictures, and more than 1600 of them in pieces "
        "that overlap; ours are one pass over frames scaled to 256.",
    ),
}


def preset_named(name: str) -> Preset:
    """Look a preset up.

    Raises:
        InflateError: There is none of that name.

    Example:
        >>> preset_named("ms-tcn").options.window
        21
    """
    if name not in PRESETS:
        raise InflateError(
            "there is no such preset",
            where="features",
            expected=", ".join(PRESETS),
            got=repr(name),
            fix=f"did you mean {nearest_names(str(name), PRESETS)}?",
        )
    return PRESETS[name]


def plain(what: FeatureOptions | FeatureLayout) -> dict[str, Any]:
    """Tell options in what JSON can hold, without those that change no value: batches and workers.

    Example:
        >>> plain(FeatureOptions(window=16))["window"]
        16
    """
    told = {one.name: getattr(what, one.name) for one in fields(what) if one.name not in {"batch_size", "workers"}}
    if not isinstance(told.get("fps", "native"), str):
        told["fps"] = float(told["fps"])  # 25 is 25.0
    return {name: dict(value) if isinstance(value, Mapping) else value for name, value in told.items()}
