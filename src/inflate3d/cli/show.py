"""`inflate3d show`: filters, what a network looks at and is shown, a video over time, and plans, as pictures."""

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from inflate3d.cli.inflate import Preset, Size, model_and_example
from inflate3d.cli.terminal import frame_rate, progress_on, refuse_idle, typed_options, warnings_on
from inflate3d.cli.train import load_any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import nn

    from inflate3d.results.network import PredictOptions
    from inflate3d.show.filters import Filters

app = typer.Typer(name="show", help="Pictures of networks, and of what they see.", no_args_is_help=True)
steps = Console(soft_wrap=True, markup=False, highlight=False, stderr=True)

DEFAULT_MODEL = "i3d-kinetics400"
SOURCES = ("timm", "torchvision", "hf", "smp")

Model = Annotated[str, typer.Option(help="Name, file, or best.ckpt of a run.")]
Network = Annotated[
    str, typer.Argument(help="i3d-kinetics400, a file of weights, best.ckpt of a run, or a 2D model: timm/resnet26d.")
]
Weights = Annotated[
    str, typer.Option(metavar="pretrained|FILE|none", help="Of 2D models: the package's own, a file's, or random ones.")
]
Video = Annotated[Path, typer.Argument(help="A video, or a folder of pictures.")]
Fps = Annotated[str, typer.Option(help="Frames per second to take, or `native` for all.")]
Frames = Annotated[int | None, typer.Option(help="Stop after so many frames.")]
WindowLength = Annotated[int | None, typer.Option(help="Frames in a window; by default what the network learned on.")]
Stride = Annotated[int | None, typer.Option(help="Frames between windows; by default a window's length.")]


@app.command()
def filters(
    ctx: typer.Context,
    model: Network,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help=".png or .webp; .gif or .moving.webp move.")
    ],
    before: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Compare with the same layer of this one: before training, say.")
    ] = None,
    layer: Annotated[str | None, typer.Option(metavar="NAME", help="By default the first convolution.")] = None,
    layout: Annotated[str, typer.Option(help="paper: as in its Figure 4; rows: a row for each filter.")] = "paper",
    weights: Weights = "none",
    preset: Preset = "video",
) -> None:
    """Draw a layer's filters over time."""
    typed = typed_options(ctx)
    if not any(_is_2d(name) for name in (model, before) if name):
        idle = [typed[name] for name in ("weights", "preset") if name in typed]
        refuse_idle(idle, where="inflate3d show filters", goes_with="a 2D model, such as timm/resnet26d", got=model)
    from inflate3d.atomic import check_writable
    from inflate3d.show.filters import find_filters, write_filters

    check_writable(output)

    def of(name: str) -> "Filters":
        return find_filters(_network(name, weights, preset), layer, title=name)

    write_filters(output, of(model), of(before) if before else None, layout=layout)  # type: ignore[arg-type]  # checked there
    typer.echo(str(output))


@app.command()
def saliency(
    video: Video,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help=".mp4, .gif, .webp; .png is a still.")],
    model: Model = DEFAULT_MODEL,
    method: Annotated[str, typer.Option(help="grad-cam, or integrated-gradients (minutes).")] = "grad-cam",
    label: Annotated[str | None, typer.Option(metavar="NAME", help="A class; by default the likeliest one.")] = None,
    layer: Annotated[str | None, typer.Option(metavar="NAME", help="Of grad-cam: a module's name.")] = None,
    fps: Fps = "25",
    num_frames: Annotated[int, typer.Option(help="Stop after so many frames.")] = 250,
    window: WindowLength = None,
) -> None:
    """Show where a network looks for a class, laid over the video."""
    from inflate3d.atomic import check_writable
    from inflate3d.show.pictures import check_ending
    from inflate3d.show.saliency import ENDINGS, SaliencyOptions, find_saliency, write_saliency

    check_ending(output, ENDINGS, where="inflate3d show saliency")
    check_writable(output)
    rate = frame_rate(fps, "inflate3d show saliency --fps")
    options = SaliencyOptions(method, label, layer, fps=rate, num_frames=num_frames, window=window)  # type: ignore[arg-type]  # checked there
    network = _network(model)
    with _reading(video) as progress:
        found = find_saliency(network, video, options, progress=progress)
    shown = len(found.times_seconds)
    seconds = found.times_seconds[-1] - found.times_seconds[0]
    write_saliency(output, found, fps=(shown - 1) / seconds if seconds > 0 else 25.0)
    typer.echo(f"{output}: {found.score.label} {found.score.probability:.1%}, {found.method} at {found.layer}")


@app.command()
def timeline(
    video: Video,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help=".svg or .png.")],
    model: Model = DEFAULT_MODEL,
    fps: Fps = "25",
    num_frames: Frames = None,
    window: WindowLength = None,
    stride: Stride = None,
    top: Annotated[int, typer.Option(min=1, help="How many classes to draw.")] = 5,
) -> None:
    """Draw the likeliest classes over time, and how alike the moments of the video are."""
    from inflate3d.atomic import check_writable
    from inflate3d.results.predict import predict
    from inflate3d.show.pictures import DRAWN, check_ending, write_drawing
    from inflate3d.show.similarity import moments_of, self_similarity, similarity_svg

    check_ending(output, DRAWN, where="inflate3d show timeline")
    check_writable(output)
    network = _network(model)
    options = _options(fps, num_frames, window, stride)
    with _reading(video) as progress:
        answer = predict(network, video, options, progress=progress)
        moments, times = moments_of(network, video, options)
    write_drawing(output, similarity_svg(answer, self_similarity(moments), times, k=top))
    typer.echo(f"{output}: {len(answer.windows)} windows, {len(times)} moments")


@app.command()
def clips(
    video: Video,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help=".png or .webp.")],
    model: Model = DEFAULT_MODEL,
    fps: Fps = "25",
    num_frames: Frames = None,
    window: WindowLength = None,
    stride: Stride = None,
    crops: Annotated[str, typer.Option(help="center, three, five or ten.")] = "center",
    columns: Annotated[int, typer.Option(help="Frames of each window.")] = 6,
) -> None:
    """Draw what a network is shown of a video: windows, frames, crop."""
    from inflate3d.atomic import check_writable
    from inflate3d.results.predict import check_model
    from inflate3d.show.pictures import STILL, check_ending
    from inflate3d.show.sheets import contact_sheet, write_sheet

    check_ending(output, STILL, where="inflate3d show clips")
    check_writable(output)
    options = _options(fps, num_frames, window, stride, crops)
    with warnings_on(steps):
        write_sheet(output, contact_sheet(video, check_model(_network(model), options), options, columns=columns))
    typer.echo(str(output))


@app.command()
def plan(
    name: Network,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help=".svg or .png.")],
    preset: Preset = "video",
    size: Size = None,
) -> None:
    """Draw which layers look through time, their strides, and the frames that one output sees."""
    from inflate3d.atomic import check_writable
    from inflate3d.inflation.build import inflate
    from inflate3d.show.pictures import DRAWN, check_ending, write_drawing
    from inflate3d.show.plans import plan_svg

    check_ending(output, DRAWN, where="inflate3d show plan")
    check_writable(output)
    if _is_2d(name):
        model2d, example = model_and_example(name, size)
        drawing = plan_svg(inflate(model2d, preset, example=example), f"{name}, {preset}")
    else:
        drawing = plan_svg(_network(name), name)
    write_drawing(output, drawing)
    typer.echo(str(output))


@contextmanager
def _reading(video: Path) -> "Iterator[Callable[[float, float | None], None]]":
    """Show how far a video has been read."""
    with progress_on(steps) as bars, warnings_on(steps):
        task = bars.add_task(escape(video.name), total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


def _options(
    fps: str, num_frames: int | None, window: int | None, stride: int | None, crops: str = "center"
) -> "PredictOptions":
    from inflate3d.results.network import PredictOptions

    return PredictOptions(
        fps=frame_rate(fps, "inflate3d show --fps"),
        num_frames=num_frames,
        window=window,
        stride=stride,
        crops=crops,  # type: ignore[arg-type]  # PredictOptions checks it
        key_frames=True,
    )


def _is_2d(name: str) -> bool:
    return name.partition("/")[0] in SOURCES or (":" in name and not Path(name).exists())


def _network(name: str, weights: str = "none", preset: str = "video") -> "nn.Module":
    """Find a network: fetched, in a file, of a training run, of the zoo, or a 2D model that is inflated."""
    if _is_2d(name):
        from inflate3d.inflation.build import inflate

        model2d, example = model_and_example(name, None, weights)
        return inflate(model2d, preset, example=example)
    from inflate3d.models.zoo import MODELS, build_network

    return build_network(name).eval() if name in MODELS else load_any(name)
