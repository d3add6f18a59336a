"""Live sources: nothing falls behind, what is dropped is counted, a source may die and come back."""

import io
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import av
import numpy as np
import pytest
import torch
from feature_stand_ins import picture
from typer.testing import CliRunner

from inflate3d.cli import app
from inflate3d.clips.live import LiveFrames
from inflate3d.clips.transforms import frames_to_input
from inflate3d.clips.video import open_frames
from inflate3d.errors import InflateError
from inflate3d.models.inflated import inflated_classifier
from inflate3d.results.live import SHOWN_STEPS, predict_live


def stream_bytes(count, fps=25, container="mpegts", first=0):
    """A video whose frames tell their numbers, in a format that needs no seeking."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        stream = output.add_stream("mpeg2video", rate=fps)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 48, 48, "yuv420p", 2_000_000
        for number in range(first, first + count):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(picture(number % 250, 48, 48), format="rgb24")))
        output.mux(stream.encode())
    return file.getvalue()


def numbers_in(pieces):
    return [round(float(one[..., 0].float().mean())) for piece in pieces for one in piece.pictures]


@pytest.fixture
def model():
    torch.manual_seed(0)
    return inflated_classifier("timm/test_resnet", 7, preset="video").eval()


def test_a_pipe_is_read_to_its_end():
    """Once through a pipe, slow enough for the reader: all frames, in order, and the last piece is told."""
    pieces = []
    live = LiveFrames(io.BytesIO(stream_bytes(40)), fps=25.0, short_side=48, piece_frames=40)
    for piece in live:
        pieces.append(piece)
    assert [piece.is_last for piece in pieces] == [True]
    assert np.abs(np.diff(numbers_in(pieces)) - 1).max() <= 1
    assert (live.num_frames, live.num_dropped, live.num_reconnects) == (40, 0, 0)


@pytest.mark.parametrize(("fps", "wanted"), [(10.0, 17), (50.0, 79), ("native", 40)])
def test_frames_are_taken_at_the_wanted_rate(fps, wanted):
    """The nearest frame at each moment: some are left out, or come twice."""
    live = LiveFrames(io.BytesIO(stream_bytes(40)), fps=fps, short_side=48, piece_frames=100)
    (piece,) = live
    assert abs(live.num_frames - wanted) <= 1 and len(piece.pictures) == live.num_frames


@pytest.mark.parametrize("fps", [10.0, 30.0, 50.0])
def test_a_pipe_is_resampled_as_a_file(tmp_path, fps):
    (tmp_path / "a.ts").write_bytes(stream_bytes(40))
    (piece,) = LiveFrames(io.BytesIO(stream_bytes(40)), fps=fps, short_side=48, piece_frames=200)
    wanted = [torch.from_numpy(frame.picture) for frame in open_frames(tmp_path / "a.ts", fps=fps)]
    assert len(piece.pictures) == len(wanted)
    assert all(torch.equal(one, two) for one, two in zip(piece.pictures, wanted, strict=True))


def test_what_nobody_has_time_for_is_dropped_and_counted():
    """Pieces have no gaps inside, and are never older than three of them."""
    live = LiveFrames(io.BytesIO(stream_bytes(240)), fps=25.0, short_side=48, piece_frames=8)
    pieces, delays = [], []
    for piece in live:
        time.sleep(0.15)
        pieces.append(piece)
        delays.append(time.monotonic() - piece.arrived_seconds)
    taken = sum(len(piece.pictures) for piece in pieces)
    assert live.num_dropped > 50 and live.num_frames == 240 and taken + live.num_dropped == 240
    for piece in pieces:
        assert np.abs(np.diff(numbers_in([piece])) - 1).max() <= 1
    assert max(delays) < 3 * 0.15 + 0.5


def test_the_answer_is_that_of_the_network(model):
    data = stream_bytes(40)
    spec = model.clip_spec
    (answer,) = predict_live(model, LiveFrames(io.BytesIO(data), short_side=spec.short_side, piece_frames=64))
    (piece,) = LiveFrames(io.BytesIO(data), short_side=spec.short_side, piece_frames=64)
    with torch.inference_mode():
        model.inflated.time_pool = "none"
        steps = model(frames_to_input(piece.pictures, spec))[0]
    torch.testing.assert_close(answer.logits, steps[-SHOWN_STEPS:].mean(0), rtol=1e-4, atol=1e-5)
    assert answer.top(None, 2)[0].probability >= answer.top(None, 2)[1].probability


class _Dying(BaseHTTPRequestHandler):
    """Serves a part of a stream, then hangs up; is away for a while; serves the next part."""

    def do_GET(self):
        server = self.server
        with server.lock:
            turn, server.turn = server.turn, server.turn + 1
        if turn % 2 == 1 or turn >= server.last:  # away
            self.send_error(503)
            return
        self.send_response(200)
        self.send_header("Content-Type", "video/mp2t")
        self.end_headers()
        self.wfile.write(stream_bytes(30, first=30 * (turn // 2)))

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Dying)
    server.turn, server.lock, server.last = 0, threading.Lock(), 5
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


def test_a_source_that_dies_comes_back(server, monkeypatch):
    """Three times, each with a clock that begins anew; then it stays away. What came does not wait for its return."""
    monkeypatch.setattr("inflate3d.clips.live.MAX_WAIT_SECONDS", 0.2)
    url = f"http://127.0.0.1:{server.server_port}/live"
    live = LiveFrames(url, short_side=48, piece_frames=50, patience_seconds=1.5)
    pieces = []
    with pytest.raises(InflateError, match="has gone and did not come back"):
        for piece in live:
            pieces.append(piece)
    assert live.num_reconnects == 2 and 84 <= live.num_frames <= 90  # the decoder loses what hung up in the middle
    assert len(pieces) == 3 and all(28 <= len(piece.pictures) <= 30 for piece in pieces)
    times = [piece.time_seconds for piece in pieces]
    assert times == sorted(times) and times[-1] < 90 / 25 + 0.5


def test_a_source_that_was_never_there_is_told_at_once():
    began = time.monotonic()
    with pytest.raises(InflateError, match="cannot be read"):
        next(iter(LiveFrames("http://127.0.0.1:9/live")))
    assert time.monotonic() - began < 5


def test_playlists_do_not_lead_to_files_of_this_machine(tmp_path):
    secret = tmp_path / "secret.ts"
    secret.write_bytes(stream_bytes(20))
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile://{secret}\n#EXT-X-ENDLIST\n"

    class Serves(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Type", "application/vnd.apple.mpegurl")
            self.end_headers()
            self.wfile.write(playlist.encode())

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Serves)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with pytest.raises(InflateError, match="live source"):
            next(iter(LiveFrames(f"http://127.0.0.1:{server.server_port}/a.m3u8", patience_seconds=0)))
    finally:
        server.shutdown()


@pytest.mark.parametrize("source", ["file", "pipe"])
@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("a.m3u8", "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nsecret.ts\n#EXT-X-ENDLIST\n"),
        ("a.ffconcat", "ffconcat version 1.0\nfile secret.ts\n"),
    ],
    ids=["hls", "concat"],
)
def test_lists_of_files_are_no_live_source(tmp_path, monkeypatch, name, lines, source):
    """FFmpeg itself takes them, and shows what they name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret.ts").write_bytes(stream_bytes(20))
    (tmp_path / name).write_text(lines)
    with av.open(name) as container:
        assert next(container.decode(video=0)).width == 48
    with (tmp_path / name).open("rb") as pipe, pytest.raises(InflateError, match="live source"):
        next(iter(LiveFrames(name if source == "file" else pipe, patience_seconds=0)))


@pytest.mark.parametrize("data", [b"", b"no video at all" * 100, stream_bytes(1)[:300]])
def test_what_is_no_video_is_refused(data):
    with pytest.raises(InflateError, match="live source"):
        list(LiveFrames(io.BytesIO(data)))


def test_numbers_are_checked():
    with pytest.raises(InflateError, match="cannot be read so"):
        LiveFrames("0", patience_seconds=-1)


def test_leaving_the_loop_ends_the_thread():
    live = LiveFrames(io.BytesIO(stream_bytes(200)), short_side=48, piece_frames=8)
    next(iter(live))
    live.close()
    live._thread.join(5)
    assert not live._thread.is_alive()


SCRIPT = """
import torch
from inflate3d.clips.live import LiveFrames
from inflate3d.models.inflated import inflated_classifier
from inflate3d.results.live import predict_live
model = inflated_classifier("timm/test_resnet", 7, preset="video").eval()
for answer in predict_live(model, LiveFrames("-", short_side=model.clip_spec.short_side)):
    print(answer.num_frames, answer.num_dropped, flush=True)
"""


def test_another_process_reads_a_pipe():
    """Faster than it can look: what is dropped and what is shown make up all that came."""
    run = subprocess.Popen([sys.executable, "-c", SCRIPT], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    lines, _ = run.communicate(stream_bytes(150), timeout=120)
    frames, dropped = map(int, lines.split()[-2:])
    assert run.returncode == 0 and frames == 150 and 0 <= dropped < 150


def test_the_command(monkeypatch, model):
    monkeypatch.setattr("inflate3d.weights.load.load", lambda name: model)
    found = CliRunner().invoke(app, ["predict", "--live", "-", "--top", "2"], input=stream_bytes(40))
    assert found.exit_code == 0, found.output
    assert "frames dropped" in found.output and "class " in found.output
    refused = CliRunner().invoke(app, ["predict", "--live", "0", "1"])
    assert isinstance(refused.exception, InflateError) and "one live source" in str(refused.exception)
