"""`inflate3d fvd`: the Fréchet Video Distance between two folders of videos, or statistics saved from them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from inflate3d.atomic import check_writable, write_text
from inflate3d.cli.terminal import CPU, DeviceOption, frame_rate, progress_on, refuse_idle, typed_options, warnings_on

if TYPE_CHECKING:
    from inflate3d.results.fvd import FvdResult
    from inflate3d.results.fvd_videos import ClipProgress, FvdOptions, Role

# What saved statistics were made with cannot be changed any more
OF_VIDEOS = (
    *("protocol", "num_frames", "frame_stride", "fps", "num_clips"),
    *("batch_size", "model", "device", "cache", "no_cache"),
)


def fvd(
    ctx: typer.Context,
    real: Annotated[str, typer.Argument(help="Real videos: a folder, file or glob; or statistics (.safetensors).")],
    fake: Annotated[str, typer.Argument(help="Generated videos, or statistics of them.")],
    protocol: Annotated[
        str,
        typer.Option(
            help="tf-original, stylegan-v, fvd-comparison, common-metrics, videogpt, tats or cd-fvd-i3d; figures of "
            "two protocols cannot be compared."
        ),
    ] = "stylegan-v",
    num_frames: Annotated[
        int | None, typer.Option(help="Frames in a clip; by default 16, or what saved statistics are of.")
    ] = None,
    frame_stride: Annotated[int, typer.Option(help="Frames of the video from one frame of a clip to the next.")] = 1,
    fps: Annotated[str, typer.Option(help="Frames per second to resample to, or `native`.")] = "native",
    num_clips: Annotated[
        int | None, typer.Option(help="At most so many clips on each side; by default what the protocol takes.")
    ] = None,
    numerics: Annotated[
        str, typer.Option(help="exact, or published: the arithmetic of the protocol's code.")
    ] = "exact",
    resamples: Annotated[int, typer.Option(help="Bootstrap draws for the standard error; 0 leaves it out.")] = 100,
    kernel: Annotated[bool, typer.Option(help="Measure the kernel distance as well.")] = True,
    infinity: Annotated[bool, typer.Option("--infinity", help="Extrapolate to endlessly many clips as well.")] = False,
    seed: Annotated[int, typer.Option(help="Of random offsets and draws.")] = 0,
    batch_size: Annotated[int, typer.Option(help="Clips that go through the network at a time.")] = 4,
    model: Annotated[str, typer.Option(help="Name or .safetensors file of the network.")] = "i3d-kinetics400",
    device: DeviceOption = CPU,
    cache: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where features are kept; by default in the cache folder.")
    ] = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Neither read nor keep features.")] = False,
    save_stats: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Write real.safetensors and fake.safetensors there.")
    ] = None,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write all figures as JSON.")] = None,
) -> None:
    """Measure the Fréchet Video Distance of generated videos from real ones, one clip of each."""
    from inflate3d.results.fvd_videos import FvdOptions
    from inflate3d.weights.catalogue import cache_folder

    if saved := _are_saved(real, fake):
        typed = typed_options(ctx)
        idle = [spelled for name, spelled in typed.items() if name in OF_VIDEOS]
        refuse_idle(idle, where="inflate3d fvd", goes_with="videos", got="two files of statistics")
    options = FvdOptions(
        protocol=protocol,
        numerics=numerics,  # type: ignore[arg-type]  # FvdOptions checks it
        num_frames=num_frames,
        frame_stride=frame_stride,
        fps=frame_rate(fps, "inflate3d fvd --fps"),
        num_clips=num_clips,
        seed=seed,
        batch_size=batch_size,
        cache=None if no_cache else cache or cache_folder() / "fvd",
        resamples=resamples,
        kernel=kernel,
        infinity=infinity,
    )
    files = [save_stats / f"{role}.safetensors" for role in ("real", "fake")] if save_stats else []
    for path in (*files, *([json] if json else [])):
        check_writable(path)
    result = _measure(real, fake, options, model=None if saved else model, device=device)
    for path, side in zip(files, (result.real, result.fake), strict=False):
        side.save(path)
    if json:
        write_text(json, result.to_json())
    if result.failures:
        raise typer.Exit(1)


def _are_saved(real: str, fake: str) -> bool:
    return all(Path(side).suffix == ".safetensors" for side in (real, fake))


def _measure(real: str, fake: str, options: "FvdOptions", *, model: str | None, device: str) -> "FvdResult":
    from inflate3d.results.fvd import measure_fvd
    from inflate3d.show.answers import failures_table
    from inflate3d.weights.load import load

    console = Console()
    network = None if model is None else load(model).to(device)
    with progress_on(console) as progress, warnings_on(console):
        task = progress.add_task("", total=None)

        def start(role: "Role") -> "ClipProgress":
            progress.reset(task, description=f"{role} clips", total=None)
            return lambda done, total: progress.update(task, completed=done, total=total)

        result = measure_fvd(network, real, fake, options=options, progress=start)
    console.print(_figures_table(result))
    console.print(result.provenance, soft_wrap=True, markup=False, highlight=False)
    if result.failures:
        console.print(failures_table(result.failures))
    return result


def _figures_table(result: "FvdResult") -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_row("FVD", f"{result.value:.4f}")
    if result.interval:
        table.add_row("  95% interval", f"{result.interval[0]:.4f} to {result.interval[1]:.4f}")
    table.add_row("  of that, means", f"{result.terms.mean:.4f}")
    table.add_row("  of that, spread", f"{result.terms.spread:.4f}")
    if result.infinity is not None:
        table.add_row("  for endlessly many clips", f"{result.infinity:.4f}")
    if result.kernel:
        table.add_row("KVD", f"{result.kernel.value:.6f} +- {result.kernel.standard_error:.6f}")
    table.add_row("clips", f"{result.real.gaussian.count} real, {result.fake.gaussian.count} fake")
    return table
