"""`inflate3d predict`: the actions in videos, as tables, JSON, CSV and a page."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer
from rich.console import Console
from rich.markup import escape

from inflate3d.atomic import check_writable
from inflate3d.errors import InflateError, InflateWarning

if TYPE_CHECKING:
    from rich.progress import Progress as ProgressBar

    from inflate3d.results.predict import PredictOptions, Progress
    from inflate3d.results.prediction import Failure, VideoPrediction

STDOUT = Path("-")


class Outputs(NamedTuple):
    """Where the results go besides the terminal."""

    json: Path | None = None
    csv: Path | None = None
    report: Path | None = None


def predict(
    paths: Annotated[list[str], typer.Argument(help="Videos, folders, globs; a folder of pictures is one video.")],
    model: Annotated[str, typer.Option(help="Name or .safetensors file of the network.")] = "i3d-kinetics400",
    fps: Annotated[str, typer.Option(help="Frames per second to take, or `native` for all.")] = "25",
    num_frames: Annotated[int | None, typer.Option(help="Stop after so many frames of each video.")] = None,
    window: Annotated[
        int | None, typer.Option(help="Frames in a window; by default what the network learned on.")
    ] = None,
    stride: Annotated[int | None, typer.Option(help="Frames between windows; by default a window's length.")] = None,
    crops: Annotated[str, typer.Option(help="center, three, five or ten; their logits are averaged.")] = "center",
    precision: Annotated[str, typer.Option(help="fp32, or bf16: about twice as fast where it is known.")] = "fp32",
    batch_size: Annotated[int, typer.Option(help="Windows that go through the network at a time.")] = 1,
    top: Annotated[int, typer.Option(help="How many classes to show.")] = 5,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write JSON; - prints it.")] = None,
    csv: Annotated[Path | None, typer.Option(metavar="FILE", help="Write CSV: a row for each window and rank.")] = None,
    report: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a page: key frames, timeline.")] = None,
) -> None:
    """Name the actions in videos: the likeliest classes of each, and a timeline of longer ones."""
    from inflate3d.results.predict import PredictOptions

    options = PredictOptions(
        fps="native" if fps == "native" else _number(fps),
        num_frames=num_frames,
        window=window,
        stride=stride,
        crops=crops,  # type: ignore[arg-type]  # PredictOptions checks it
        precision=precision,  # type: ignore[arg-type]  # likewise
        batch_size=batch_size,
        key_frames=report is not None,
    )
    if show_predictions(paths, model, options, top=top, outputs=Outputs(json, csv, report)):
        raise typer.Exit(1)


def show_predictions(
    paths: list[str], model: str, options: "PredictOptions", *, top: int, outputs: Outputs
) -> list["Failure"]:
    """Predict and print; what is done is written even if the run is stopped. Gives back what failed."""
    from inflate3d.clips.files import find_videos
    from inflate3d.results.predict import predict_many
    from inflate3d.results.prediction import Failure, VideoPrediction
    from inflate3d.show.tables import failures_table, scores_table, timeline_table
    from inflate3d.weights.load import load

    console = Console(stderr=outputs.json == STDOUT)
    for path in outputs:
        if path and path != STDOUT:
            check_writable(path)
    network, videos = load(model), find_videos(paths)
    done: list[VideoPrediction] = []
    failures: list[Failure] = []
    try:
        with _progress(console) as progress, _warnings_on(console):
            task = progress.add_task("", total=None)

            def start(video: object) -> "Progress":
                name = f"{len(done) + len(failures) + 1}/{len(videos)} {Path(str(video)).name}"
                progress.reset(task, description=escape(name), total=None)
                return lambda seconds, total: progress.update(task, completed=seconds, total=total)

            for answer in predict_many(network, videos, options, progress=start):
                if isinstance(answer, Failure):
                    failures.append(answer)
                    continue
                done.append(answer)
                console.print(scores_table(answer, top))
                if len(answer.windows) > 1:
                    console.print(timeline_table(answer))
    finally:
        _write(done, failures, outputs, settings=_settings(model, options), top=top)
        if failures:
            console.print(failures_table(failures))
    return failures


def _write(
    done: Sequence["VideoPrediction"],
    failures: Sequence["Failure"],
    outputs: Outputs,
    *,
    settings: dict[str, str],
    top: int,
) -> None:
    from inflate3d.results.export import to_json, write_csv, write_json
    from inflate3d.show.report import write_report

    if outputs.json == STDOUT:
        typer.echo(to_json(done, failures, settings=settings, k=top), nl=False)
    elif outputs.json:
        write_json(outputs.json, to_json(done, failures, settings=settings, k=top))
    if outputs.csv:
        write_csv(outputs.csv, done, top)
    if outputs.report:
        write_report(outputs.report, done, failures, settings=settings)


def _settings(model: str, options: "PredictOptions") -> dict[str, str]:
    """What a reader needs to repeat the run."""
    from importlib.metadata import version

    names = ("fps", "num_frames", "window", "stride", "crops", "precision")
    chosen = {name: str(getattr(options, name)) for name in names if getattr(options, name) is not None}
    return {"model": model, **chosen, "inflate3d": version("inflate3d"), "torch": version("torch")}


def _progress(console: Console) -> "ProgressBar":
    from rich import progress

    columns = (progress.TextColumn("{task.description}"), progress.BarColumn(), progress.TimeRemainingColumn())
    return progress.Progress(*columns, console=console, transient=True)


@contextmanager
def _warnings_on(console: Console) -> Iterator[None]:
    """Print warnings above the progress bar instead of through it, each of them."""

    def show(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
        console.print(f"{category.__name__}: {message}", style="yellow", markup=False, highlight=False)

    with warnings.catch_warnings():
        warnings.simplefilter("always", InflateWarning)
        warnings.showwarning = show
        yield


def _number(fps: str) -> float:
    try:
        return float(fps)
    except ValueError:
        raise InflateError(
            "the frame rate is no number",
            where="inflate3d predict --fps",
            expected="a positive number, or native",
            got=repr(fps),
            fix="--fps 25, or --fps native",
        ) from None
