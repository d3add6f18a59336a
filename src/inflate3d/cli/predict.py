"""`inflate3d predict` and `inflate3d demo`: the actions in videos, as tables, JSON, CSV and a page; or scans."""

import itertools
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer
from rich.console import Console
from rich.markup import escape

from inflate3d.atomic import check_writable, write_text
from inflate3d.cli import volumes
from inflate3d.cli.live import LiveLook, show_live
from inflate3d.cli.terminal import CPU, DeviceOption, frame_rate, progress_on, refuse_idle, typed_options, warnings_on
from inflate3d.cli.train import load_any
from inflate3d.errors import InflateError, check_choice

if TYPE_CHECKING:
    from torch import nn

    from inflate3d.clips.video import Source
    from inflate3d.results.network import PredictOptions, Progress
    from inflate3d.results.prediction import Failure, VideoPrediction
    from inflate3d.speed.optimize import Optimized

    Answering = Callable[[Callable[[Source], Progress]], Iterator[VideoPrediction | Failure]]

STDOUT = Path("-")
STREAMS = ("rgb", "flow", "both")
DEMO_MODEL = "i3d-kinetics400"


class Outputs(NamedTuple):
    """Where the results go besides the terminal."""

    json: Path | None = None
    csv: Path | None = None
    report: Path | None = None


class ChosenModel(NamedTuple):
    """The network of the pictures, what runs it, and where."""

    name: str
    backend: str = "torch"
    device: str = CPU


class FlowStream(NamedTuple):
    """Which streams are asked, and where the flow stream comes from."""

    stream: str = "rgb"
    flow_model: str | None = None
    method: str = "tvl1"
    stored: Path | None = None
    quantizer: str = "mediapipe"
    weights: str | None = None
    fusion: str = "logits"
    compiled: bool = True


# What only the flow stream uses, and what it is called on the command line
OF_FLOW = {
    "flow_model": "--flow-model",
    "method": "--flow-method",
    "stored": "--flow-from",
    "quantizer": "--flow-quantizer",
    "weights": "--flow-weights",
    "fusion": "--fusion",
}

# What a live source is shown by; the first is for it alone
LIVE_ALONE = ("patience",)
LIVE_KNOWS = (*LIVE_ALONE, "live", "paths", "model", "fps", "precision", "device", "top")


def predict(
    ctx: typer.Context,
    paths: Annotated[list[str], typer.Argument(help="Videos or scans, folders, globs; a folder of pictures is one.")],
    model: Annotated[
        str,
        typer.Option(
            help="Name or file of the network: .safetensors, a training run's best.ckpt, what `inflate3d export` wrote."
        ),
    ] = "i3d-kinetics400",
    backend: Annotated[
        str,
        typer.Option(
            help="What runs the network: torch; onnx (ONNX Runtime) or openvino, for which it is exported once, into "
            "the cache. A file of `inflate3d export` runs as its ending says."
        ),
    ] = "torch",
    fps: Annotated[str, typer.Option(help="Frames per second to take, or `native` for all.")] = "25",
    num_frames: Annotated[int | None, typer.Option(help="Stop after so many frames of each video.")] = None,
    window: Annotated[
        int | None, typer.Option(help="Frames in a window; by default what the network learned on.")
    ] = None,
    stride: Annotated[int | None, typer.Option(help="Frames between windows; by default a window's length.")] = None,
    whole: Annotated[
        bool, typer.Option("--whole", help="Show each video in one pass, as the paper does, with an answer a step.")
    ] = False,
    live: Annotated[
        bool, typer.Option("--live", help="PATH is a camera's number, a URL or - (standard input): a running answer.")
    ] = False,
    patience: Annotated[float, typer.Option(help="Seconds that a live source may be away.")] = 60.0,
    crops: Annotated[str, typer.Option(help="center, three, five or ten; their logits are averaged.")] = "center",
    precision: Annotated[
        str,
        typer.Option(
            help="fp32; bf16: faster where the processor knows it; int8: fastest on a CPU, calibrated with the first "
            "windows of your videos, and its cost in accuracy is printed."
        ),
    ] = "fp32",
    batch_size: Annotated[
        int | None, typer.Option(help="Clips that go through the network at a time; by default as memory allows.")
    ] = None,
    device: DeviceOption = CPU,
    workers: Annotated[
        int | None, typer.Option(help="Videos that are read at once, ahead of the network; by default as cores allow.")
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="How many classes to show.")] = 5,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write JSON; - prints it.")] = None,
    csv: Annotated[Path | None, typer.Option(metavar="FILE", help="Write CSV: a row for each window and rank.")] = None,
    report: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a page: key frames, timeline.")] = None,
    stream: Annotated[str, typer.Option(help="rgb, flow or both; flow needs --flow-model.")] = "rgb",
    flow_model: Annotated[
        str | None, typer.Option(metavar="FILE", help="Weights of the flow stream; `weights convert` makes them.")
    ] = None,
    flow_method: Annotated[str, typer.Option(help="As in `inflate3d flow`: tvl1, dis and others.")] = "tvl1",
    flow_from: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Flow that `inflate3d flow` or denseflow wrote, instead.")
    ] = None,
    flow_quantizer: Annotated[
        str, typer.Option(help="mediapipe (as in training), none, denseflow, mmaction2 or video-features.")
    ] = "mediapipe",
    flow_weights: Annotated[str | None, typer.Option(metavar="FILE", help="Of the method raft; or `download`.")] = None,
    fusion: Annotated[str, typer.Option(help="How both streams are joined: logits (sum) or probabilities.")] = "logits",
    compiled: Annotated[
        bool | None,
        typer.Option(
            "--compile/--no-compile",
            help="Compile the method tvl1 and the networks, or neither; by default tvl1 alone, because a network "
            "repays its minute after a thousand windows or so.",
        ),
    ] = None,
    out: volumes.OutOption = Path("volumes"),
    overlap: volumes.OverlapOption = 0.5,
    spacing: volumes.SpacingOption = None,
    fill: volumes.FillOption = None,
    part: volumes.PartOption = None,
) -> None:
    """Name the actions in videos, with a timeline of longer ones; or segment or classify CT and MR scans."""
    from inflate3d.results.network import PredictOptions

    if volumes.is_asked(ctx, model):
        how = volumes.options_of(overlap, batch_size, spacing, fill, part)
        if volumes.show_volumes(paths, model, how, outputs=volumes.VolumeOutputs(out, json, top), device=device):
            raise typer.Exit(1)
        return
    typed = typed_options(ctx)
    idle = [typed[name] for name in typed if (name not in LIVE_KNOWS if live else name in LIVE_ALONE)]
    goes_with, got = ("videos that have an end", "--live") if live else ("--live", "no --live")
    refuse_idle(idle, where="inflate3d predict", goes_with=goes_with, got=got)
    if live:
        show_live(paths, model, LiveLook(frame_rate(fps), precision, patience, top, device))
        return
    options = PredictOptions(
        fps=frame_rate(fps),
        num_frames=num_frames,
        window=window,
        stride=stride,
        crops=crops,  # type: ignore[arg-type]  # PredictOptions checks it
        precision=precision,  # type: ignore[arg-type]  # likewise
        batch_size=batch_size,
        workers=workers,
        whole=whole,
        compiled=compiled is True,
        key_frames=report is not None and not whole,
    )
    flow = FlowStream(
        stream, flow_model, flow_method, flow_from, flow_quantizer, flow_weights, fusion, compiled is not False
    )
    outputs = Outputs(json, csv, report)
    if show_predictions(paths, ChosenModel(model, backend, device), options, top=top, outputs=outputs, flow=flow):
        raise typer.Exit(1)


def demo(
    report: Annotated[Path, typer.Option(metavar="FILE", help="Where the page goes.")] = Path("demo/report.html"),
) -> None:
    """Fetch I3D and a real clip (47 and 9 MB, once), name the actions in it, and write a report page."""
    from inflate3d.results.network import PredictOptions
    from inflate3d.weights.fetch import fetch, fetch_demo_clip

    console = Console()
    fetch(DEMO_MODEL, report=console.print)
    clip = fetch_demo_clip(report=console.print)
    options = PredictOptions(stride=16, key_frames=True)
    if show_predictions([str(clip)], ChosenModel(DEMO_MODEL), options, top=5, outputs=Outputs(report=report)):
        raise typer.Exit(1)
    console.print(f"The page: {report}")


def show_predictions(
    paths: list[str],
    model: ChosenModel,
    options: "PredictOptions",
    *,
    top: int,
    outputs: Outputs,
    flow: FlowStream | None = None,
) -> list["Failure"]:
    """Predict and print; what is done is written even if the run is stopped. Gives back what failed."""
    from inflate3d.clips.stills import find_videos
    from inflate3d.results.prediction import Failure, VideoPrediction
    from inflate3d.show.answers import failures_table

    console = Console(stderr=outputs.json == STDOUT)
    flow = flow or FlowStream()
    _check_outputs(outputs)
    _check_stream(flow)
    _check_backend(model, options, flow)
    videos = find_videos(paths)
    with warnings_on(console):
        networks, predict_all = _predictor(model, options, flow, videos)
    for network in networks:
        if network.precision == "int8":
            console.print("; ".join(network.steps), markup=False, highlight=False)
    done: list[VideoPrediction] = []
    failures: list[Failure] = []
    try:
        with closing(_answers(predict_all, len(videos), console)) as answers:
            for answer in answers:
                if isinstance(answer, Failure):
                    failures.append(answer)
                    continue
                done.append(answer)
                _show(answer, top, console)
    finally:
        if failures:
            console.print(failures_table(failures))
        _write(done, failures, outputs, settings=_settings(model.name, options, flow, networks), top=top)
    return failures


def _predictor(
    model: ChosenModel, options: "PredictOptions", flow: FlowStream, videos: "Sequence[Source]"
) -> "tuple[list[Optimized], Answering]":
    """Load what is needed before a video is read; give the networks and what predicts all videos."""
    from inflate3d.results.predict import optimize_for, predict_many

    if flow.stream == "rgb":
        network = optimize_for(_network(model), videos, options)
        options = replace(options, precision=network.precision)  # float32, where nothing else is right
        return [network], lambda progress: predict_many(network, videos, options, progress=progress)
    from inflate3d.flow.methods import find_method
    from inflate3d.results.two_stream import FlowOptions, Streams, optimize_streams, predict_streams_many
    from inflate3d.speed.optimize import Optimized

    where = {"compiled": flow.compiled, "device": model.device}
    solve = None if flow.stored else find_method(flow.method, **where, weights=flow.weights)  # type: ignore[arg-type]  # checked there
    how = FlowOptions(solve, flow.stored, flow.quantizer, fusion=flow.fusion)  # type: ignore[arg-type]  # likewise
    loaded = Streams(
        load_any(str(flow.flow_model)).to(model.device), _network(model) if flow.stream == "both" else None
    )
    streams = optimize_streams(loaded, options)
    networks = [network for network in streams if isinstance(network, Optimized)]
    options = replace(options, precision=networks[0].precision)
    return networks, lambda progress: predict_streams_many(streams, videos, options, flow=how, progress=progress)


def _network(model: ChosenModel) -> "nn.Module":
    """Load the network, or its export: the file that was named, or one in the cache that is made the first time."""
    from inflate3d.speed.exported import backend_of, load_exported
    from inflate3d.weights.catalogue import CATALOGUE
    from inflate3d.weights.fetch import fetched_path

    if backend_of(model.name):
        return load_exported(model.name)
    if model.backend == "torch":
        return load_any(model.name).to(model.device)
    from inflate3d.speed.export import export_to_cache  # with torchvision and timm

    path = fetched_path(model.name) if model.name in CATALOGUE else Path(model.name)
    return export_to_cache(path, model.name, backend=model.backend, load=lambda: load_any(model.name))  # type: ignore[arg-type]  # _check_backend


def _answers(predict_all: "Answering", count: int, console: Console) -> "Generator[VideoPrediction | Failure]":
    """Predict one video after the other under a progress bar; warnings are printed above it."""
    with progress_on(console) as progress, warnings_on(console):
        task = progress.add_task("", total=None)
        numbers = itertools.count(1)

        def start(video: object) -> "Progress":
            name = f"{next(numbers)}/{count} {Path(str(video)).name}"
            progress.reset(task, description=escape(name), total=None)
            return lambda seconds, total: progress.update(task, completed=seconds, total=total)

        yield from predict_all(start)


def _show(answer: "VideoPrediction", top: int, console: Console) -> None:
    from inflate3d.show.answers import scores_table, streams_table, timeline_table

    console.print(streams_table(answer, top) if answer.streams else scores_table(answer, top))
    if len(answer.windows) > 1:
        console.print(timeline_table(answer))


def _check_stream(flow: FlowStream) -> None:
    """Tell which weights make a flow stream, since none can be fetched here, and which options nobody would use."""
    where = "inflate3d predict --stream"
    check_choice(flow.stream, STREAMS, what="stream", where=where)
    unused = {"rgb": OF_FLOW, "flow": {"fusion": "--fusion"}, "both": {}}[flow.stream]
    given = {name: option for name, option in unused.items() if getattr(flow, name) != getattr(FlowStream(), name)}
    if given:
        needed = "both" if "fusion" in given else "flow or --stream both"
        raise InflateError(
            "there are options for a stream that is not asked for",
            where=where,
            expected=f"--stream {needed} with {', '.join(given.values())}",
            got=" ".join([f"--stream {flow.stream}", *(f"{option} {getattr(flow, n)}" for n, option in given.items())]),
            fix=f"--stream both, or leave {' and '.join(given.values())} out",
        )
    if flow.stream != "rgb" and not flow.flow_model:
        raise InflateError(
            "the flow stream has no weights",
            where=where,
            expected="--flow-model FILE: I3D with 2 input channels, such as flow_imagenet or flow_scratch of DeepMind "
            "(TensorFlow), flow_imagenet.pt of pytorch-i3d, model_flow.pth of kinetics_i3d_pytorch or i3d_flow.pt of "
            "video_features",
            got=f"--stream {flow.stream} without --flow-model",
            fix="inflate3d weights convert flow_imagenet.pt i3d-flow.safetensors --labels kinetics-400, then "
            f"--stream {flow.stream} --flow-model i3d-flow.safetensors",
        )


def _check_backend(model: ChosenModel, options: "PredictOptions", flow: FlowStream) -> None:
    """Refuse what no exported network can do."""
    from inflate3d.speed.exported import SUFFIXES, backend_of

    where = "inflate3d predict --backend"
    check_choice(model.backend, SUFFIXES, what="backend", where=where)
    by_ending = backend_of(model.name)
    if by_ending is None and model.backend == "torch":
        on_cpu = options.precision == "int8" and model.device != CPU
        refuse_idle(
            ["--device"] if on_cpu else [],
            where="inflate3d predict",
            goes_with="--precision fp32",
            got="--precision int8",
        )
        return
    faults = {
        "--precision fp32": f"--precision {options.precision}" if options.precision != "fp32" else "",
        "no --compile": "--compile" if options.compiled else "",
        "--device cpu": f"--device {model.device}" if model.device != CPU else "",
        "--stream rgb": f"--stream {flow.stream}" if flow.stream != "rgb" else "",
        f"--backend {by_ending}, or none": f"--backend {model.backend} for {model.name}"
        if by_ending and model.backend not in ("torch", by_ending)
        else "",
    }
    wrong = {expected: got for expected, got in faults.items() if got}
    if wrong:
        raise InflateError(
            "an exported network does not know these options",
            where=where,
            expected="; ".join(wrong),
            got="; ".join(wrong.values()),
            fix="leave them out, or --backend torch with the name of the network",
        )


def _check_outputs(outputs: Outputs) -> None:
    """Find out before long work whether its results can be written."""
    files = [path for path in outputs if path]
    if STDOUT in (outputs.csv, outputs.report) or len({path.resolve() for path in files}) < len(files):
        raise InflateError(
            "the results have no place of their own",
            where="inflate3d predict",
            expected="a file for each of --json, --csv and --report; - (print it) for --json only",
            got=", ".join(f"--{name} {path}" for name, path in outputs._asdict().items() if path),
            fix="name another file, such as results.csv or report.html",
        )
    for path in files:
        if path != STDOUT:
            check_writable(path)


def _write(
    done: Sequence["VideoPrediction"],
    failures: Sequence["Failure"],
    outputs: Outputs,
    *,
    settings: dict[str, str],
    top: int,
) -> None:
    from inflate3d.results.prediction import to_json, write_csv
    from inflate3d.show.answers import write_report

    def json(path: Path) -> None:
        text = to_json(done, failures, settings=settings, k=top)
        typer.echo(text, nl=False) if path == STDOUT else write_text(path, text)

    def csv(path: Path) -> None:
        write_csv(path, done, top)

    def report(path: Path) -> None:
        write_report(path, done, failures, settings=settings, k=top)

    faults = []
    for write, path in zip((json, csv, report), outputs, strict=True):
        try:
            if path:
                write(path)
        except (ValueError, OSError) as error:  # one that fails must not cost the others
            faults.append(f"{path}: {error}")
    if faults:
        raise InflateError(
            "not all results are written",
            where="inflate3d predict",
            expected="room and permission until the end of the run",
            got="; ".join(faults),
            fix="make room or name other files, and run the command again",
        )


def _settings(
    model: str, options: "PredictOptions", flow: FlowStream, networks: "Sequence[Optimized]"
) -> dict[str, str]:
    """What a reader needs to repeat the run; the precision is the one that the networks ended with."""
    from importlib.metadata import version

    from inflate3d.results.prediction import printable

    names = ("fps", "num_frames", "window", "stride", "crops")
    chosen = {name: str(getattr(options, name)) for name in names if getattr(options, name) is not None}
    chosen |= {"shown": "in one pass"} if options.whole else {}
    chosen["precision"] = ", ".join(dict.fromkeys(network.precision for network in networks))
    chosen["made fast"] = ", then ".join(dict.fromkeys("; ".join(network.steps) for network in networks))
    if flow.stream != "rgb":
        source = {"flow_from": str(flow.stored)} if flow.stored else {"flow_method": flow.method}
        chosen |= {"stream": flow.stream, "flow_model": str(flow.flow_model), **source}
        chosen |= {"flow_quantizer": flow.quantizer} | ({"fusion": flow.fusion} if flow.stream == "both" else {})
    models = {} if flow.stream == "flow" else {"model": printable(model)}
    return {**models, **chosen, "inflate3d": version("inflate3d"), "torch": version("torch")}
