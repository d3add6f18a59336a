"""`inflate3d features`: features of any number of videos, in the files that other projects load."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer
from rich.console import Console

from inflate3d.cli.terminal import CPU, DeviceOption, frame_rate, refuse_idle, warnings_on
from inflate3d.cli.train import CHECKPOINTS, load_any
from inflate3d.errors import InflateError, is_count

if TYPE_CHECKING:
    from torch import nn

    from inflate3d.results.feature_manifest import Shard
    from inflate3d.results.feature_presets import FeatureLayout, FeatureOptions, StreamName
    from inflate3d.results.feature_runs import FeatureProgress, FeatureRun

WHERE = "inflate3d features"
# What the flow stream alone uses, and what it is called on the command line
OF_FLOW = {
    "flow_method": "--flow-method",
    "flow_from": "--flow-from",
    "flow_weights": "--flow-weights",
    "quantizer": "--flow-quantizer",
}


class Place(NamedTuple):
    """What runs where."""

    shard: "Shard"
    ray: bool
    workers: int


def _print_presets(wanted: bool) -> None:
    if not wanted:
        return
    from inflate3d.results.feature_presets import PRESETS

    console = Console(soft_wrap=True)
    for name, preset in PRESETS.items():
        console.print(f"{name}: {preset.project}\n    {preset.load}", markup=False, highlight=False)
    raise typer.Exit


def features(
    paths: Annotated[list[str], typer.Argument(help="Videos, folders, globs; a folder of pictures is one video.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FOLDER", help="Where files and manifest go.")],
    preset: Annotated[
        str | None, typer.Option(help="A project whose files these are to be; all that follows changes it.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Name or file of the network; with --weights also one of the zoo, or timm/NAME.")
    ] = None,
    weights: Annotated[str | None, typer.Option(metavar="FILE", help="For such a network; `none` is random.")] = None,
    flow_model: Annotated[str | None, typer.Option(help="The same for the flow stream.")] = None,
    compat: Annotated[
        str | None, typer.Option(help="I3D as video-features, videogpt, tats or cd-fvd has it; `none`: as DeepMind's.")
    ] = None,
    streams: Annotated[str | None, typer.Option(help="rgb, flow or both.")] = None,
    endpoint: Annotated[
        str | None, typer.Option(help="features, logits, an endpoint such as Mixed_5c, or any module by its name.")
    ] = None,
    window: Annotated[str | None, typer.Option(help="Frames in a window; `whole`: the video in one pass.")] = None,
    dense: Annotated[
        bool, typer.Option("--dense", help="The same as --window whole: a row for each step of the network.")
    ] = False,
    stride: Annotated[int | None, typer.Option(help="Frames from one window to the next.")] = None,
    fps: Annotated[str | None, typer.Option(help="Frames per second to take, or `native` for all.")] = None,
    resize: Annotated[str | None, typer.Option(help="Short side, such as 256; or 340x256, width and height.")] = None,
    interpolation: Annotated[str | None, typer.Option(help="bilinear, bicubic or bilinear-aliased.")] = None,
    crop: Annotated[int | None, typer.Option(help="Pixels of a side.")] = None,
    crops: Annotated[
        str | None,
        typer.Option(help="center, three, five, ten, five-center-first, ten-center-third or none (whole frames)."),
    ] = None,
    value_range: Annotated[
        str | None, typer.Option(metavar="LOW,HIGH", help="What black and white are to the network.")
    ] = None,
    pool: Annotated[str | None, typer.Option(help="mean, per-step or none.")] = None,
    tail: Annotated[str | None, typer.Option(help="drop, pad-last, pad-zero or right-align.")] = None,
    align: Annotated[str | None, typer.Option(help="start or center: what lies at frames 0, stride ...")] = None,
    stamp: Annotated[str | None, typer.Option(help="Time of a row: start, center, middle-frame or end.")] = None,
    precision: Annotated[str | None, typer.Option(help="fp32 or bf16.")] = None,
    flow_method: Annotated[str | None, typer.Option(help="As in `inflate3d flow`: tvl1, dis and others.")] = None,
    flow_from: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Flow that `inflate3d flow` or denseflow wrote, instead.")
    ] = None,
    flow_weights: Annotated[str | None, typer.Option(metavar="FILE", help="Of the method raft; or `download`.")] = None,
    quantizer: Annotated[
        str | None, typer.Option("--flow-quantizer", help="mediapipe, none, denseflow, mmaction2, video-features.")
    ] = None,
    compiled: Annotated[bool, typer.Option("--compile/--no-compile", help="Compile the method tvl1.")] = True,
    format: Annotated[str | None, typer.Option(help="npy, npz, h5, safetensors or pt.")] = None,  # noqa: A002
    axes: Annotated[
        str | None, typer.Option(help="rows, columns, crops-inside, crops-first, crop-files or grid.")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, float16 or float64.")] = None,
    name: Annotated[str | None, typer.Option(help="Of a file: {stem}, {id}, {stream}, {crop}.")] = None,
    join: Annotated[bool | None, typer.Option("--join/--no-join", help="Both streams in one array.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Clips that go through the network at a time.")] = None,
    workers: Annotated[int | None, typer.Option(help="Videos that are read at once; with --ray, processes.")] = None,
    device: DeviceOption = CPU,
    shard: Annotated[
        str, typer.Option(metavar="I/N", help="Do only every N-th video, beginning with the I-th.")
    ] = "1/1",
    ray: Annotated[bool, typer.Option("--ray", help="Run on a Ray cluster (extra `scale`).")] = False,
    presets: Annotated[
        bool, typer.Option("--presets", callback=_print_presets, is_eager=True, help="List the presets and exit.")
    ] = False,
) -> None:
    """Write features of videos; a run that was stopped goes on where it was when it is started again."""
    from inflate3d.results.feature_presets import FeatureLayout, FeatureOptions, preset_named

    refuse_idle(["--window"] if dense and window else [], where=WHERE, goes_with="no --dense", got=f"--window {window}")
    chosen, place = preset_named(preset) if preset else None, Place(_shard(shard, ray), ray, workers or 2)
    given: dict[str, Any] = {
        "streams": streams,
        "endpoint": endpoint,
        "window": _frames("whole" if dense else window),
        "stride": stride,
        "fps": None if fps is None else frame_rate(fps, f"{WHERE} --fps"),
        "resize": _size(resize),
        "interpolation": interpolation,
        "crop": crop,
        "crops": crops,
        "value_range": _pair(value_range),
        "pool": pool,
        "tail": tail,
        "align": align,
        "stamp": stamp,
        "precision": precision,
        "flow_method": flow_method,
        "flow_from": flow_from,
        "flow_weights": flow_weights,
        "flow_compiled": compiled,
        "quantizer": quantizer,
        "batch_size": batch_size,
        "workers": None if ray and is_count(workers) else workers,
    }
    options = _changed(chosen.options if chosen else FeatureOptions(), given)
    of_flow = {"--flow-model": flow_model, **{spelled: given[name] for name, spelled in OF_FLOW.items()}}
    idle = [spelled for spelled, value in of_flow.items() if value is not None and "flow" not in options.stream_names]
    refuse_idle(idle, where=WHERE, goes_with="--streams flow or both", got=f"--streams {options.streams}")
    look: dict[str, Any] = {"format": format, "axes": axes, "dtype": dtype, "name": name, "join": join}
    layout = _changed(chosen.layout if chosen else FeatureLayout(), look | _collected(format, chosen is not None, name))
    names = (model or (chosen.model if chosen else "i3d-kinetics400"), flow_model)
    compat = compat or (chosen.compat if chosen else None)
    models = _models(names, weights, options, device=device, compat=None if compat == "none" else compat)
    if write_features(paths, output, options, layout=layout, models=models, place=place).failures:
        raise typer.Exit(1)


def write_features(
    paths: list[str],
    output: Path,
    options: "FeatureOptions",
    *,
    layout: "FeatureLayout",
    models: "dict[StreamName, nn.Module]",
    place: Place,
) -> "FeatureRun":
    """Run, with a bar, and tell what came of it."""
    from rich import progress as bars

    from inflate3d.results.feature_files import plan_jobs
    from inflate3d.results.feature_runs import extract_files, extract_on_ray
    from inflate3d.results.features import Extractor
    from inflate3d.show.answers import failures_table

    console = Console(soft_wrap=True)
    jobs = plan_jobs(paths)
    columns = (bars.TextColumn("{task.description}"), bars.BarColumn(), bars.TextColumn("{task.fields[left]}"))
    with warnings_on(console), bars.Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("networks", total=None, left="")
        extractor = Extractor(models, options)

        def tell(now: "FeatureProgress") -> None:
            bar.update(
                task, description=f"{now.done}/{now.total}", completed=now.done, total=now.total, left=_left(now)
            )

        if place.ray:
            run = extract_on_ray(extractor, jobs, output, layout=layout, workers=place.workers, progress=tell)
        else:
            run = extract_files(extractor, jobs, output, layout=layout, shard=place.shard, progress=tell)
    if run.failures:
        console.print(failures_table(run.failures))
    before = f", {run.num_skipped} done before" * (run.num_skipped > 0)
    failed = f", {len(run.failures)} failed" * bool(run.failures)
    console.print(f"{output}: {run.num_done} videos done{before}{failed}", markup=False, highlight=False)
    return run


def _left(now: "FeatureProgress") -> str:
    """Tell no more digits than are known."""
    if now.seconds_left is None:
        return ""
    for unit, seconds in (("h", 3600), ("min", 60)):
        if now.seconds_left >= 2 * seconds:
            return f"about {now.seconds_left / seconds:.0f} {unit} left"
    return f"about {now.seconds_left:.0f} s left"


def _models(
    names: tuple[str, str | None],
    weights: str | None,
    options: "FeatureOptions",
    *,
    device: str,
    compat: str | None,
) -> "dict[StreamName, nn.Module]":
    from inflate3d.results.feature_network import NO_WEIGHTS, network_named
    from inflate3d.results.features import FLOW_FILES

    models: dict[StreamName, nn.Module] = {}
    if "flow" in options.stream_names:
        if names[1] is None:
            raise InflateError(
                "the flow stream has no network",
                where=f"{WHERE} --streams {options.streams}",
                expected="--flow-model FILE: I3D with 2 input channels. " + FLOW_FILES,
                got="no --flow-model",
                fix="inflate3d weights convert flow_imagenet.pt i3d-flow.safetensors, then --flow-model "
                "i3d-flow.safetensors; or --streams rgb",
            )
        idle = None if weights != NO_WEIGHTS else weights
        models["flow"] = network_named(names[1], weights=idle, stream="flow", compat=compat)  # type: ignore[arg-type]
    if "rgb" in options.stream_names:
        of_run = weights is None and compat is None and Path(names[0]).name in CHECKPOINTS
        models["rgb"] = load_any(names[0]) if of_run else network_named(names[0], weights=weights, compat=compat)  # type: ignore[arg-type]  # checked there
    return {stream: model.to(device) for stream, model in models.items()}


def _changed(what: Any, given: dict[str, Any]) -> Any:
    return replace(what, **{name: value for name, value in given.items() if value is not None})


def _collected(kind: str | None, preset: bool, name: str | None) -> dict[str, str]:
    """Tell what another format changes besides: h5 is one file, and only npy files are collected otherwise."""
    if kind in {None, "npy"}:
        return {}
    if kind != "h5":
        return {"collected": ""}
    key = {} if preset or name else {"name": "{stem}/i3d_features/{stream}"}
    return {"collected": "hdf5", "collected_name": "features.h5", **key}


def _frames(text: str | None) -> "int | str | None":
    return int(text) if text is not None and text.isdecimal() else text


def _size(text: str | None) -> "int | tuple[int, ...] | str | None":
    sides = (text or "").split("x")
    if not all(side.isdecimal() for side in sides):
        return text
    return int(sides[0]) if len(sides) == 1 else tuple(map(int, sides))


def _pair(text: str | None) -> "tuple[float, ...] | str | None":
    try:
        return None if text is None else tuple(float(part) for part in text.split(","))
    except ValueError:
        return text  # FeatureOptions refuses it


def _shard(text: str, ray: bool) -> "Shard":
    from inflate3d.results.feature_manifest import Shard

    number, _, of = text.partition("/")
    if ray and text != "1/1":
        raise InflateError(
            "a Ray run has no shards",
            where=f"{WHERE} --ray",
            expected="--ray, or --shard, not both",
            got=f"--ray --shard {text}",
            fix="leave --shard out: Ray gives each of its workers its part",
        )
    if number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of):
        return Shard(int(number), int(of))
    raise InflateError(
        "there is no such shard",
        where=f"{WHERE} --shard",
        expected="I/N with I from 1 to N",
        got=repr(text),
        fix="--shard 1/4 in one process, 2/4 in the next, and so on",
    )
