"""From video files to features: 1024 numbers for each window of 64 frames, here and with video_features.

    git clone https://github.com/v-iashin/video_features PEERS/video_features
    pip install --target PEERS/packages omegaconf
    python benchmarks/pipeline.py PEERS VIDEO_OR_FOLDER ... [--rounds 3] [--quick]

Both run as they are shipped, in processes of their own and file by file in turns: reading, resizing, network. Theirs is
the extractor of the clone, stream rgb, device cpu. Their checkpoint is not at hand; DeepMind's weights with their names
are put in its place, and their epsilon of batch norm into our network, so that the features can be compared. All frames
at the video's own rate, windows side by side; what is left over at the end is dropped, and so is a last window that no
frame follows, since theirs wants one more (for optical flow).
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from machine import HOW, Settings
from turns import Answer, by_turns, median_ratio, peak_bytes, print_figures, serve, start_sides

WINDOW = 64
AHEAD_FRAMES = 16
ENDPOINT = "AvgPool_2x7x7"
ROUNDS = 3

Extract = Callable[[str], list[list[float]]]


def ours(precision: str) -> Extract:
    """Make our extractor."""
    import torch

    from inflate3d import load
    from inflate3d.speed.memory import give_back_memory
    from inflate3d.speed.optimize import optimize

    fast = optimize(load("i3d-kinetics400", compat="videogpt"), precision)  # with their epsilon, and our padding

    def extract(path: str) -> list[list[float]]:
        features = []
        with torch.inference_mode():
            for clip in clips_of(path):
                features.append(fast.endpoints(clip, ENDPOINT)[ENDPOINT].mean((2, 3, 4))[0].tolist())
                del clip  # not kept beside the next one
                give_back_memory()
        return features

    return extract


def clips_of(path: str) -> Iterator[Any]:
    """Cut a video into clips of 64 frames, with a frame behind them."""
    import torch

    from inflate3d.clips.transforms import frames_to_input, resize_picture
    from inflate3d.clips.video import open_frames
    from inflate3d.models.inception import I3D_CLIP
    from inflate3d.speed.ahead import ahead

    pictures = (resize_picture(frame.picture, I3D_CLIP.short_side) for frame in open_frames(path, fps="native"))
    window = []
    for picture in ahead(pictures, AHEAD_FRAMES):
        if len(window) == WINDOW:
            clip = [frames_to_input(window, I3D_CLIP, dtype=torch.uint8)]
            window.clear()
            yield clip.pop()  # nobody else holds it
        window.append(picture)


def theirs(clone: str, weights: str) -> Extract:
    """Make their extractor, with the arguments of `main.py feature_type=i3d streams=rgb device=cpu`."""
    folder = Path(tempfile.mkdtemp())
    place = folder / "models" / "i3d" / "checkpoints" / "i3d_rgb.pt"
    place.parent.mkdir(parents=True)
    place.symlink_to(weights)
    os.chdir(folder)  # their paths are relative
    sys.path.insert(0, clone)
    sys.path.append(str(Path(clone).parent / "packages"))
    import yaml
    from models.i3d.extract_i3d import ExtractI3D

    settings = yaml.safe_load((Path(clone) / "configs" / "i3d.yml").read_text())
    extractor = ExtractI3D(SimpleNamespace(**{**settings, "streams": "rgb", "device": "cpu"}))
    return lambda path: extractor.extract(path)["rgb"].tolist()


def work(name: str, *places: str) -> Callable[..., Answer]:
    import torch  # noqa: F401 - what both sides need

    libraries = peak_bytes()
    extract = theirs(*places) if name == "video_features" else ours(name)

    def run(path: str) -> Answer:
        start = time.perf_counter()
        features = extract(path)
        return {"seconds": time.perf_counter() - start, "features": features, "libraries_bytes": libraries}

    return run


def measure(settings: Settings, videos: list[Path] | None = None, rounds: int = ROUNDS) -> Answer:
    """Extract from the videos by turns."""
    from inflate3d import fetch
    from inflate3d.weights.checkpoint import convert_checkpoint

    clone = settings.clone("video_features")
    names = [*(["video_features"] if clone else []), "fp32", "bf16"]
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "i3d_rgb.pt"
        convert_checkpoint(fetch("i3d-kinetics400"), weights, to="hassony2")
        places = [str(clone), str(weights)]
        sides, failed = start_sides({name: [sys.executable, __file__, "--side", name, *places] for name in names})
        starts = {name: side.start_seconds for name, side in sides.items()}
        chosen = (videos or settings.videos())[: 1 if settings.quick else None]
        jobs = [{"path": str(video.resolve())} for video in chosen]
        answers, failed_later = by_turns(sides, jobs, runs=settings.rounds(rounds), warm_up=False)
    missing = {} if clone else {"video_features": HOW["video_features"]}
    return _figures(answers, starts) | {"videos": len(jobs), "not_run": missing | failed | failed_later}


def _figures(answers: dict[str, list[list[Answer]]], starts: dict[str, float]) -> Answer:
    base = next(iter(answers))
    wholes = {name: [sum(file["seconds"] for file in files) for files in rounds] for name, rounds in answers.items()}
    features = {
        name: np.concatenate([np.array(file["features"]) for file in rounds[0]]) for name, rounds in answers.items()
    }
    rows = {}
    for name, rounds in answers.items():
        products = (features[name] * features[base]).sum(1)
        cosines = products / np.linalg.norm(features[name], axis=1) / np.linalg.norm(features[base], axis=1)
        peaks = [file["peak_bytes"] / 1e9 for file in rounds[0]]
        rows[name] = {
            "seconds": statistics.median(wholes[name]),
            "ratio": median_ratio(wholes[base], wholes[name]),
            "first_round_ratio": wholes[base][0] / wholes[name][0],
            "start_seconds": starts[name],
            "peak_gb": peaks[-1],
            "peak_ratio": peaks[-1] / (answers[base][0][-1]["peak_bytes"] / 1e9),
            "libraries_gb": rounds[0][0]["libraries_bytes"] / 1e9,
            "lowest_cosine": float(cosines.min()),
            "runs": wholes[name],
            # how both grow with the number of videos, in the first round
            "windows_done": np.cumsum([len(file["features"]) for file in rounds[0]]).tolist(),
            "seconds_done": np.cumsum([file["seconds"] for file in rounds[0]]).tolist(),
            "peaks_gb": peaks,
        }
    return {"rows": rows, "windows": len(features[base])}


def main() -> None:
    if sys.argv[1:2] == ["--side"]:
        serve(lambda: work(*sys.argv[2:]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peers", type=Path)
    parser.add_argument("videos", nargs="+")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    from inflate3d.clips.stills import find_videos

    settings = Settings(options.peers, quick=options.quick)
    print_figures(lambda: measure(settings, find_videos(options.videos), options.rounds))


if __name__ == "__main__":
    main()
