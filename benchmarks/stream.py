"""Videos without an end: what streaming costs, how much memory it takes, and that it is one pass over the whole.

    python benchmarks/stream.py [--quick]

Four tables: the largest difference from one pass over 1000 to 1007 frames, for I3D and three inflated models; peak
memory for 1000 and then for 10,000 frames in one process; dense features against overlapping windows of 64
frames, a row for every eighth frame; and a live source in another process that is faster than the network.
"""

import argparse
import json
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import IO, Any

import torch
from torch import Tensor, nn
from turns import forget_peak, peak_bytes

SIDE = 193  # the least that I3D takes
SMALL = 64
PROCESSES = 2
MODELS = ("i3d", "resnet18", "mobilenetv2_050", "densenet121")


def build(name: str) -> tuple[nn.Module, int]:
    """Make a model with random weights, and tell the side of its pictures."""
    import timm
    import torchvision

    from inflate3d import InceptionI3d, inflate

    torch.manual_seed(0)
    if name == "i3d":
        return InceptionI3d(400).eval(), SIDE
    net = timm.create_model(name) if name.startswith("mobile") else getattr(torchvision.models, name)()
    model = inflate(net, "i3d", example=torch.zeros(1, 3, SMALL, SMALL)).eval()
    model.time_pool = "none"
    return model, SMALL


def clip_of(num_frames: int, side: int, start: int = 0) -> Tensor:
    """Make frames of noise, each by its number."""
    frames = [
        torch.rand(3, side, side, generator=torch.Generator().manual_seed(number))
        for number in range(start, start + num_frames)
    ]
    return torch.stack(frames, 1)[None] * 2 - 1


def streamed(model: nn.Module, num_frames: int, side: int) -> Tensor:
    """Answer a video of noise, of which no more than a piece is there at a time."""
    from inflate3d.speed.stream import PIECE_FRAMES, Stream

    stream, parts = Stream(model, num_frames), []
    with torch.inference_mode():
        for start in range(0, num_frames, PIECE_FRAMES):
            count = min(PIECE_FRAMES, num_frames - start)
            found = stream(clip_of(count, side, start), is_last=start + count == num_frames)
            if found is not None:
                parts.append(found)
    return torch.cat(parts, 1)


def compared(quick: bool) -> range:
    """Lengths of videos: every residue modulo 8."""
    return range(100, 102) if quick else range(1000, 1008)


def differences(quick: bool) -> dict[str, float]:
    """Compare with one pass over the whole, relative to the largest value."""
    worst: dict[str, float] = {}
    for name in MODELS:
        model, side = build(name)
        for num_frames in compared(quick):
            clip = clip_of(num_frames, side)
            with torch.inference_mode():
                whole = model.endpoints(clip, "Logits_per_step")["Logits_per_step"].transpose(1, 2) \
                    if name == "i3d" else model(clip)  # type: ignore[operator]  # fmt: skip
            difference = float((streamed(model, num_frames, side) - whole).abs().max() / whole.abs().max())
            worst[name] = max(worst.get(name, 0.0), difference)
        print(f"{name}: {worst[name]:.1e}", file=sys.stderr, flush=True)
    return worst


def lengths(quick: bool) -> tuple[int, int]:
    """Frames of a short and of a long video."""
    return (100, 300) if quick else (1000, 10_000)


def peaks(quick: bool) -> dict[str, list[list[float]]]:
    """Peak memory in GB for a short and then a long video, of some processes.

    Within a process, so that what grows is the video alone: how much glibc keeps may differ between processes.
    """
    found: dict[str, list[list[float]]] = {}
    for name in ("i3d", "resnet18"):
        for _ in range(1 if quick else PROCESSES):
            code = f"print(json.dumps(peaks_of({name!r}, {lengths(quick)})))"
            run = subprocess.run(python(code), stdout=subprocess.PIPE, check=True)
            found.setdefault(name, []).append(json.loads(run.stdout.splitlines()[-1]))
            print(f"{name}: {found[name][-1]} GB", file=sys.stderr, flush=True)
    return found


def peaks_of(name: str, counts: Sequence[int]) -> list[float]:
    """Stream videos one after the other in this process; give the peak of each in GB."""
    model, side = build(name)
    found = []
    for num_frames in counts:
        forget_peak()
        streamed(model, num_frames, side)
        found.append(peak_bytes() / 1e9)
    return found


def dense(quick: bool) -> dict[str, float]:
    """Time a row for every eighth frame, from steps and from windows, by turns."""
    import numpy as np

    from inflate3d import InceptionI3d
    from inflate3d.results.feature_presets import FeatureOptions
    from inflate3d.results.features import Extractor

    torch.manual_seed(0)
    model = InceptionI3d(400).eval()
    video = np.random.default_rng(0).integers(0, 255, (160 if quick else 640, 256, 320, 3), dtype=np.uint8)
    extractors = {
        "dense": Extractor({"rgb": model}, FeatureOptions(window="whole", precision="bf16")),
        "windows": Extractor({"rgb": model}, FeatureOptions(window=64, stride=8, precision="bf16")),
    }
    seconds: dict[str, list[float]] = {name: [] for name in extractors}
    for _ in range(2 if quick else 4):
        for name, extractor in extractors.items():
            began = time.perf_counter()
            extractor.one(video)
            seconds[name].append(time.perf_counter() - began)
    ratios = [a / b for a, b in zip(seconds["dense"][1:], seconds["windows"][1:], strict=True)]
    told = {name: statistics.median(values[1:]) for name, values in seconds.items()}
    return {**told, "ratio": statistics.median(ratios)}


# A pipe is filled until its time is over; a server hangs up after a third of it, is away, and comes back
TURNS, AWAY_SECONDS, PATIENCE_SECONDS = 3, 5.0, 15.0


def endless(output: IO[bytes], seconds: float, rate: int) -> None:
    """Write a video of noise for so long, so many frames in a second of the clock on the wall, stamped 25 a second."""
    import av
    import numpy as np

    generator, began, number = np.random.default_rng(0), time.monotonic(), 0
    with av.open(output, "w", format="mpegts") as file:
        stream = file.add_stream("mpeg2video", rate=25)
        stream.width, stream.height, stream.pix_fmt = 320, 256, "yuv420p"
        picture = generator.integers(0, 255, (256, 320, 3), dtype=np.uint8)
        while time.monotonic() - began < seconds:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(np.roll(picture, number, 1), format="rgb24")))
            number += 1
            time.sleep(max(began + number / rate - time.monotonic(), 0))


def serve(port: int, seconds: float, rate: int) -> None:
    """Serve such a video some times; nobody answers between them, and after the last."""
    from http.server import BaseHTTPRequestHandler, HTTPServer

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "video/mp2t")
            self.end_headers()
            endless(self.wfile, seconds, rate)  # type: ignore[arg-type]

    for _ in range(TURNS):
        with HTTPServer(("127.0.0.1", port), Handler) as server:
            server.handle_request()
        time.sleep(AWAY_SECONDS)


def watch(source: str) -> None:
    """Look at a live source until it is over, and print the delays."""
    from inflate3d import InceptionI3d, InflateError
    from inflate3d.clips.live import LiveFrames
    from inflate3d.results.live import predict_live

    torch.manual_seed(0)
    delays, answer = [], None
    frames = LiveFrames(source, patience_seconds=PATIENCE_SECONDS)
    try:
        for answer in predict_live(InceptionI3d(400).eval(), frames):
            delays.append(answer.delay_seconds)
    except InflateError as error:
        if "did not come back" not in str(error):
            raise
    assert answer is not None
    third = max(len(delays) // 3, 1)
    found = {
        "answers": len(delays),
        "frames": answer.num_frames,
        "dropped": answer.num_dropped,
        "came_back": answer.num_reconnects,
        "longest_delay_seconds": max(delays[1:]),
        "median_delay_first_third": statistics.median(delays[1 : third + 1]),
        "median_delay_last_third": statistics.median(delays[-third:]),
    }
    print(json.dumps(found))


def python(code: str) -> list[str]:
    """A command that runs a function of this file."""
    return [sys.executable, "-c", f"import sys; sys.path.insert(0, {sys.path[0]!r}); from stream import *; {code}"]


def live(quick: bool) -> dict[str, Any]:
    """Read from another process that is faster than the network, by a pipe and by HTTP; tell the longest delay."""
    seconds, rate = (15, 60) if quick else (180, 240)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    sources = {
        "pipe": ("-", f"endless(sys.stdout.buffer, {seconds}, {rate})"),
        "http": (f"http://127.0.0.1:{port}", f"serve({port}, {seconds / TURNS}, {rate})"),
    }
    found: dict[str, Any] = {"seconds": seconds, "source_fps": rate}
    for name, (address, code) in sources.items():
        with subprocess.Popen(python(code), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as source:
            time.sleep(2)  # until the server listens; a pipe waits for its reader
            run = subprocess.run(python(f"watch({address!r})"), stdin=source.stdout, stdout=subprocess.PIPE, check=True)
            source.terminate()
        found[name] = json.loads(run.stdout.splitlines()[-1])
        print(f"{name}: {found[name]}", file=sys.stderr, flush=True)
    return found


def measure(quick: bool) -> dict[str, Any]:
    """Make all four tables."""
    return {
        "compared": [compared(quick)[0], compared(quick)[-1]],
        "differences": differences(quick),
        "lengths": list(lengths(quick)),
        "peaks": peaks(quick),
        "dense": dense(quick),
        "live": live(quick),
    }


TABLES: dict[str, Callable[[bool], Any]] = {"differences": differences, "peaks": peaks, "dense": dense, "live": live}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", metavar="|".join(TABLES))
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    print(json.dumps({name: TABLES[name](given.quick) for name in given.tables or TABLES}, indent=1))


if __name__ == "__main__":
    main()
