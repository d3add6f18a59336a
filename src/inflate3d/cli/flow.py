"""`inflate3d flow`: the optical flow of videos, as files that other projects read."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from inflate3d.cli.terminal import CPU, DeviceOption, frame_rate, progress_on, warnings_on
from inflate3d.errors import InflateError, check_options

if TYPE_CHECKING:
    from torch import Tensor

    from inflate3d.clips.video import Rate
    from inflate3d.flow.layouts import FlowFileOptions
    from inflate3d.flow.methods import FlowMethod

OVERLAY, KEY = "overlay.mp4", "wheel.png"


@dataclass(frozen=True)
class Frames:
    """Which frames of a video flow is computed on."""

    fps: "Rate"
    short_side: int

    def __post_init__(self) -> None:
        from inflate3d.results.network import rate_rule

        check_options(self, {"fps": rate_rule(self.fps)})


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
    device: DeviceOption = CPU,
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
    from inflate3d.clips.stills import find_videos, source_state
    from inflate3d.flow.layouts import write_flow
    from inflate3d.flow.stored import flow_name
    from inflate3d.results.prediction import Failure, printable, reason_of
    from inflate3d.show.answers import failures_table

    console = Console(soft_wrap=True)
    videos = [video for video in find_videos(paths) if not _is_flow(video, output)]
    _check_names(videos)
    failures = []
    with progress_on(console) as progress, warnings_on(console):
        task = progress.add_task("", total=None)

        def tell(seconds: float, whole: float | None) -> None:
            progress.update(task, completed=seconds, total=whole)

        for number, video in enumerate(videos, start=1):
            folder = output / flow_name(video)
            progress.reset(task, description=escape(f"{number}/{len(videos)} {video.name}"), total=None)
            try:
                pictures = SmallPictures(video, frames, tell)
                known = {**settings, "source": video.name or folder.name, "state": source_state(video)}
                done = write_flow(pictures, folder, options, method=solve, settings=known)
                if draw and not (folder / OVERLAY).exists():
                    _draw(folder, pictures, frames)
                old = f", {done.num_flows - done.num_new} of them before" * (done.num_new < done.num_flows)
                console.print(f"{folder}: {done.num_flows} flows{old}", markup=False, highlight=False)
            except Exception as error:  # whatever a strange file sets off must not cost the flow of the others
                failures.append(Failure(printable(str(video)), printable(reason_of(error))))
    if failures:
        console.print(failures_table(failures))
    return len(failures)


class SmallPictures:
    """The pictures of a video in the size on which flow is computed, to iterate over as often as wanted."""

    def __init__(self, video: Path, frames: Frames, tell: "Callable[[float, float | None], None]") -> None:
        from inflate3d.clips.video import open_frames

        self.stream, self.short_side, self.tell = open_frames(video, fps=frames.fps), frames.short_side, tell

    def __iter__(self) -> "Iterator[Tensor]":
        from inflate3d.clips.transforms import resize_picture

        for frame in self.stream:
            self.tell(frame.time_seconds, self.stream.duration_seconds_estimate)
            yield resize_picture(frame.picture, self.short_side)


def _draw(folder: Path, pictures: SmallPictures, frames: Frames) -> None:
    from inflate3d.flow.stored import open_flow
    from inflate3d.show.flow import wheel_picture, write_overlay, write_png

    pairs = zip(pictures, open_flow(folder), strict=False)
    write_overlay(folder / OVERLAY, pairs, fps=25.0 if frames.fps == "native" else float(frames.fps))
    write_png(folder / KEY, wheel_picture())


def _is_flow(video: Path, output: Path) -> bool:
    """Whether it is what an earlier run has written, where the folder of the output lies among the videos."""
    from inflate3d.flow.layouts import RECORD

    written = [place for place in (video, video.parent) if (place / RECORD).exists()]
    return any(place.resolve().parent == output.resolve() for place in written)


def _check_names(videos: list[Path]) -> None:
    from inflate3d.flow.stored import flow_name

    twice = [name for name, count in Counter(map(flow_name, videos)).items() if count > 1]
    if twice:
        raise InflateError(
            "several videos have one name, and so one folder",
            where="inflate3d flow",
            expected="names that differ without their suffix",
            got=", ".join(str(video) for video in videos if flow_name(video) in twice[:2]),
            fix="run the command for each folder of videos, with another -o",
        )
