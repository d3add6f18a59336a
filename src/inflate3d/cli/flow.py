"""`inflate3d flow`: the optical flow of videos, as files that other projects read."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer
from rich.console import Console
from rich.markup import escape

from inflate3d.cli.predict import frame_rate, progress_on, warnings_on
from inflate3d.errors import InflateError

if TYPE_CHECKING:
    from torch import Tensor

    from inflate3d.clips.video import FrameStream, Rate
    from inflate3d.flow.layouts import FlowFileOptions
    from inflate3d.flow.methods import FlowMethod

OVERLAY, KEY = "overlay.mp4", "wheel.png"


class Frames(NamedTuple):
    """Which frames of a video flow is computed on."""

    fps: "Rate"
    short_side: int


def flow(
    paths: Annotated[list[str], typer.Argument(help="Videos, folders, globs; a folder of pictures is one video.")],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FOLDER", help="Each video gets a folder of its name in it.")
    ],
    layout: Annotated[str, typer.Option(help="denseflow, mmaction2, tsn, npz or mp4.")] = "denseflow",
    method: Annotated[str, typer.Option(help="tvl1, tvl1-opencv, dis, farneback, raft or raft-small.")] = "tvl1",
    fps: Annotated[str, typer.Option(help="Frames per second to take, or `native` for all.")] = "25",
    short_side: Annotated[int, typer.Option(min=16, help="Pixels; frames are scaled before flow is computed.")] = 256,
    bound: Annotated[float, typer.Option(help="Largest motion, in pixels; what is beyond is cut off.")] = 20.0,
    quantizer: Annotated[
        str | None,
        typer.Option(
            help="mediapipe, denseflow or mmaction2; for npz also none and video-features. By default the layout's."
        ),
    ] = None,
    images: Annotated[bool, typer.Option("--images", help="Write the frames as well, as JPEG.")] = False,
    overlay: Annotated[
        bool, typer.Option("--overlay", help=f"Draw {OVERLAY}, flow in colors over the frames, and their key.")
    ] = False,
    compiled: Annotated[
        bool, typer.Option("--compile/--no-compile", help="tvl1: three times faster after half a minute.")
    ] = True,
    device: Annotated[str, typer.Option(help="Where tvl1 and raft run: cpu, cuda.")] = "cpu",
    weights: Annotated[
        str | None, typer.Option("--flow-weights", metavar="FILE", help="Of raft; `download` fetches torchvision's.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Pairs of frames at a time.")] = 8,
) -> None:
    """Compute the optical flow of videos; a run that was stopped goes on where it was."""
    from inflate3d.flow.layouts import FlowFileOptions
    from inflate3d.flow.methods import find_method

    options = FlowFileOptions(
        layout=layout,  # type: ignore[arg-type]  # FlowFileOptions checks it
        quantizer=quantizer,  # type: ignore[arg-type]  # likewise
        bound=bound,
        images=images,
        batch_size=batch_size,
    )
    frames = Frames(frame_rate(fps, "inflate3d flow --fps"), short_side)
    solve = find_method(method, compiled=compiled, device=device, weights=weights)  # type: ignore[arg-type]  # checked
    settings = {"method": method, "fps": fps, "short_side": str(short_side)}
    settings |= {"weights": weights} if weights else {}
    if write_flows(paths, output, options, solve=solve, frames=frames, settings=settings, draw=overlay):
        raise typer.Exit(1)


def write_flows(
    paths: list[str],
    output: Path,
    options: "FlowFileOptions",
    *,
    solve: "FlowMethod",
    frames: Frames,
    settings: dict[str, str],
    draw: bool,
) -> int:
    """Write the flow of one video after the other, also where one fails; give the number of those that did."""
    from inflate3d.clips.files import find_videos
    from inflate3d.clips.transforms import resize_picture
    from inflate3d.clips.video import open_frames
    from inflate3d.flow.layouts import write_flow
    from inflate3d.flow.stored import open_flow
    from inflate3d.results.prediction import Failure, printable
    from inflate3d.show.flow import wheel_picture, write_overlay, write_png
    from inflate3d.show.tables import failures_table

    console = Console(soft_wrap=True)
    videos = find_videos(paths)
    _check_names(videos)
    failures = []
    with progress_on(console) as progress, warnings_on(console):
        task = progress.add_task("", total=None)

        def pictures(stream: "FrameStream") -> "Iterator[Tensor]":
            for frame in stream:
                progress.update(task, completed=frame.time_seconds, total=stream.duration_seconds_estimate)
                yield resize_picture(frame.picture, frames.short_side)

        for number, video in enumerate(videos, start=1):
            folder = output / video.stem
            progress.reset(task, description=escape(f"{number}/{len(videos)} {video.name}"), total=None)
            try:
                stream = open_frames(video, fps=frames.fps)
                known = {**settings, "source": video.name, "bytes": str(video.stat().st_size)}
                done = write_flow(pictures(stream), folder, options, method=solve, settings=known)
                if draw and not (folder / OVERLAY).exists():
                    pairs = zip(pictures(stream), open_flow(folder), strict=False)
                    write_overlay(folder / OVERLAY, pairs, fps=25.0 if frames.fps == "native" else float(frames.fps))
                    write_png(folder / KEY, wheel_picture())
                old = f", {done.num_flows - done.num_new} of them before" * (done.num_new < done.num_flows)
                console.print(f"{folder}: {done.num_flows} flows{old}", markup=False, highlight=False)
            except InflateError as error:
                failures.append(Failure(printable(str(video)), printable(str(error))))
            except Exception as error:  # whatever a strange file sets off must not cost the flow of the others
                failures.append(Failure(printable(str(video)), printable(f"{type(error).__name__}: {error}")))
    if failures:
        console.print(failures_table(failures))
    return len(failures)


def _check_names(videos: list[Path]) -> None:
    twice = [stem for stem, count in Counter(video.stem for video in videos).items() if count > 1]
    if twice:
        raise InflateError(
            "several videos have one name, and so one folder",
            where="inflate3d flow",
            expected="names that differ without their suffix",
            got=", ".join(str(video) for video in videos if video.stem in twice[:2]),
            fix="run the command for each folder of videos, with another -o",
        )
