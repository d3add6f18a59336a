"""What the page's visitors may ask for, without a browser: uploads, turns, models by name, and what they are told."""

import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import torch
from typer.testing import CliRunner

from colors import Colors, film
from inflate3d import InflateError, predict
from inflate3d.app import pieces
from inflate3d.app.inflating import Bounds, Wish, inflate_within
from inflate3d.app.jobs import Desk, Limits, Turns, check_upload
from inflate3d.app.page import Serving, serving
from inflate3d.cli import app
from inflate3d.inflation.cost import Cost
from inflate3d.inflation.plan import Plan
from inflate3d.inflation.proof import Proof
from inflate3d.results.prediction import VideoPrediction


@pytest.fixture
def red(tmp_path):
    return film(tmp_path / "red.mp4", (220, 20, 20))


def test_an_upload_is_measured(red, tmp_path):
    upload = check_upload(str(red), Limits(), tmp_path)
    assert (upload.name, upload.seconds) == ("red.mp4", pytest.approx(20 / 25))


def test_what_is_not_among_the_uploads_is_not_opened(red, tmp_path):
    (tmp_path / "uploads").mkdir()
    (tmp_path / "uploads" / "link.mp4").symlink_to(red)
    for given in (str(red), tmp_path / "uploads" / ".." / "red.mp4", tmp_path / "uploads" / "link.mp4", "", None):
        with pytest.raises(InflateError, match="there is no video"):
            check_upload(given, Limits(), tmp_path / "uploads")


def test_faults_of_an_upload_are_told_together_and_without_its_path(red, tmp_path):
    with pytest.raises(InflateError, match="too large for this page") as told:
        check_upload(red, Limits(seconds=0.5, pixels=1000), tmp_path)
    assert (told.value.expected, told.value.got) == (
        "at most frames of 1,000 pixels; 0.5 seconds",
        "64 x 48 pixels; 0.8 seconds",
    )
    with pytest.raises(InflateError, match="too large for this page") as told:
        check_upload(red, Limits(megabytes=0.001), tmp_path)
    assert "0.001 MB" in told.value.expected
    (tmp_path / "broken.mp4").write_bytes(b"no video" * 99)
    with pytest.raises(InflateError) as told:
        check_upload(tmp_path / "broken.mp4", Limits(), tmp_path)
    assert str(tmp_path) not in str(told.value)
    assert "broken.mp4" in str(told.value)


def test_frames_that_keep_a_decoder_busy_are_counted(tmp_path):
    dense = film(tmp_path / "dense.mp4", (9, 9, 9), num_frames=300, size=(16, 32), fps=1000)
    with pytest.raises(InflateError, match="too large for this page") as told:
        check_upload(dense, Limits(seconds=1), tmp_path)
    assert told.value.got == "300 frames"


def test_a_limit_is_a_number_above_zero():
    with pytest.raises(InflateError, match="out of range: seconds, pixels"):
        Limits(seconds=0, pixels=-1)
    with pytest.raises(InflateError, match="out of range: port"):
        Serving(port=0)


def test_turns_go_round():
    """A long job that has begun before a short one does not hold it up: they alternate."""
    turns, order, begun = Turns(), [], threading.Event()

    def work(name, steps):
        for _ in range(steps):
            with turns.turn():
                order.append(name)
                begun.set()
                time.sleep(0.02)

    long = threading.Thread(target=work, args=("long", 12))
    long.start()
    begun.wait()
    short = threading.Thread(target=work, args=("short", 3))
    short.start()
    short.join()
    done = len(order)
    long.join()
    assert order.count("short") == 3
    assert done <= 9, order
    assert order.count("long") == 12


def test_a_job_has_so_much_of_the_networks_time_and_waiting_costs_none():
    turns = Turns()
    with turns.job(0.05):
        with turns.turn(), turns.turn():  # a turn inside a turn is the same one
            time.sleep(0.06)
        with pytest.raises(InflateError, match="longer than a visitor may use"), turns.turn():
            pass
        with pytest.raises(InflateError, match="longer than a visitor may use"), turns.turn():
            turns.pass_on()
    with turns.job(0.05):  # the turn was given back, and the next job has time of its own
        holder = threading.Thread(target=lambda: _hold(turns, 0.1))
        holder.start()
        time.sleep(0.02)
        with turns.turn():
            turns.pass_on()
        holder.join()


def _hold(turns, seconds):
    with turns.turn():
        time.sleep(seconds)


def test_a_run_that_fails_gives_its_turn_back():
    def fail():
        raise RuntimeError("no memory")

    turns, model = Turns(), Colors(fail)
    turns.guard(model)
    with pytest.raises(RuntimeError, match="no memory"):
        model(torch.zeros(1, 3, 8, 32, 32))
    with turns.job(-1.0), pytest.raises(InflateError, match="longer than a visitor may use"):
        model(torch.zeros(1, 3, 8, 32, 32))
    with turns.turn():
        pass


def test_the_desk_answers_as_predict_does_to_several_at_once(tmp_path):
    colors = {"red": (220, 20, 20), "green": (20, 220, 20), "<b>blue</b>": (20, 20, 220)}
    desk = Desk(Colors().eval(), "colors", Limits())
    files = [film(tmp_path / f"{i}.mp4", color, num_frames=30 + i) for i, color in enumerate(colors.values())] * 2
    answers = [None] * len(files)

    def ask(place):
        answers[place] = desk.predict(check_upload(files[place], desk.limits, tmp_path))

    threads = [threading.Thread(target=ask, args=(place,)) for place in range(len(files))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [answer.top(1)[0].label for answer in answers] == [*colors] * 2
    assert [answer.num_frames for answer in answers] == [30, 31, 32] * 2
    assert answers[0].source == "0.mp4"
    assert len(answers[0].windows) > 1
    for answer, path in zip(answers, files, strict=True):
        torch.testing.assert_close(answer.logits, predict(Colors().eval(), path).logits)


def test_frames_that_grow_behind_the_header_are_refused(tmp_path):
    """By all that the desk does: what reads ahead in a thread knows the limit too."""
    desk = Desk(Colors().eval(), "colors", Limits(pixels=48 * 64))
    small = film(tmp_path / "small.ts", (9, 99, 9), size=(48, 64)).read_bytes()
    path = tmp_path / "grown.ts"
    path.write_bytes(small + film(tmp_path / "large.ts", (9, 99, 9), size=(56, 72)).read_bytes())
    upload = check_upload(path, desk.limits, tmp_path)
    for ask in (desk.predict, lambda one: desk.saliency(one, 0), lambda one: desk.compare(one, one)):
        with pytest.raises(InflateError) as told:
            ask(upload)
        assert "a frame is too large" in str(told.value) and "at most 3,072 pixels" in str(told.value)
        assert str(tmp_path) not in str(told.value)


def test_features_are_compared(red, tmp_path):
    green = film(tmp_path / "green.mp4", (20, 220, 20), num_frames=61)
    desk = Desk(Colors().eval(), "colors", Limits())
    one, other = (check_upload(path, desk.limits, tmp_path) for path in (red, green))
    same, different = desk.compare(one, one), desk.compare(one, other)
    assert same.whole == pytest.approx(1, abs=1e-9)
    assert torch.allclose(same.cosines.diagonal(), torch.ones(len(same.cosines), dtype=torch.float64))
    assert different.whole < 0.9
    assert different.cosines.shape == tuple(map(len, different.times_seconds))
    assert "red.mp4 (down)" in pieces.comparison(different)


def test_saliency_is_of_the_class_that_was_asked_for(red, tmp_path):
    desk = Desk(Colors().eval(), "colors", Limits())
    found = desk.saliency(check_upload(red, desk.limits, tmp_path), 1)
    assert found.score.label == "green"
    assert len(found.maps) == 20


@pytest.mark.parametrize(
    "name",
    ["timm/resnet1888", "torchvision/resnet18 ", "resnet18", "os:system", "hf/resnet", "timm/hf-hub:a/b", "/etc"],
)
def test_only_names_of_the_lists_are_taken(name):
    with pytest.raises(InflateError, match="no such model here") as told:
        Wish(name)
    assert "did you mean" in told.value.fix


def test_presets_and_weights_are_checked():
    with pytest.raises(InflateError, match="no such preset"):
        Wish("timm/test_resnet", "anisotropic")
    with pytest.raises(InflateError, match="no such kind of weights"):
        Wish("timm/test_resnet", weights="my.pt")


def test_a_model_is_inflated_in_a_process_of_its_own():
    plan, cost, proof = inflate_within(Wish("timm/test_resnet"), Bounds(seconds=900))
    assert (type(plan), type(cost), type(proof)) == (Plan, Cost, Proof)
    assert plan.looks_through_time
    assert proof.holds


@pytest.mark.parametrize(
    ("name", "bounds", "problem"),
    [
        ("torchvision/vgg16", Bounds(900, 10_000_000), "is too large for this page"),
        ("timm/test_resnet", Bounds(seconds=0.2), "takes too long for this page"),
        ("torchvision/vgg16", Bounds(900, 10**9, megabytes=400), "takes too much memory for this page"),
    ],
)
def test_a_model_out_of_bounds_is_ended(name, bounds, problem):
    with pytest.raises(InflateError, match=problem):
        list(inflate_within(Wish(name), bounds))


def test_what_a_model_cannot_be_is_told():
    with pytest.raises(InflateError, match="no blocks that begin with a pointwise convolution"):
        list(inflate_within(Wish("timm/test_vit", "i3d-3x1x1"), Bounds(seconds=900)))


def test_answers_are_escaped():
    hostile = '<img src=x onerror="alert(1)">'
    error = InflateError(hostile, where=hostile, expected=hostile, got=hostile, fix=hostile)
    answer = VideoPrediction(hostile, 9, 25.0, torch.tensor([0.0, 2.0]), (), ("run", hostile))
    for piece in (pieces.wrong(error), pieces.bars(answer), pieces.note(hostile), pieces.head(hostile)):
        assert "<img" not in piece


def test_the_command_serves_until_it_is_stopped(monkeypatch, tmp_path):
    monkeypatch.setenv("INFLATE3D_CACHE", str(tmp_path))
    missing = CliRunner().invoke(app, ["app"])
    assert missing.exception.fix == "inflate3d weights fetch i3d-kinetics400"
    served = []

    @contextmanager
    def serve(desk, options):
        served.append((desk, options))
        yield "http://there/"

    monkeypatch.setattr("inflate3d.weights.load.load", lambda name: Colors().eval())
    monkeypatch.setattr("inflate3d.app.page.serving", serve)
    monkeypatch.setattr("signal.signal", lambda number, handle: handle(number, None))  # it is stopped at once
    found = CliRunner().invoke(app, ["app", "--port", "7999", "--max-mb", "3", "--max-work", "5", "--max-memory", "77"])
    assert "http://there/" in found.output
    [(desk, options)] = served
    assert (desk.limits.megabytes, desk.limits.work_seconds, options.host, options.port) == (3, 5, "127.0.0.1", 7999)
    assert (options.bounds.seconds, options.bounds.megabytes, options.pretrained, options.clip) == (5, 77, False, None)


def test_the_server_refuses_what_is_too_large_and_keeps_nothing(red, monkeypatch):
    """Without a page that would refuse it first; and the browser is told to load nothing from elsewhere."""
    monkeypatch.setattr("inflate3d.app.page.SWEEP_SECONDS", 1)
    monkeypatch.setattr("inflate3d.app.page.KEPT_SECONDS", 1)
    limits = Limits(megabytes=red.stat().st_size / 2**20)
    with serving(Desk(Colors().eval(), "colors", limits), Serving(port=None)) as url:
        assert url.startswith("http://127.0.0.1:")
        assert "default-src 'self'" in httpx.get(url).headers["content-security-policy"]
        sent = httpx.post(f"{url}gradio_api/upload", files={"files": ("a.mp4", red.read_bytes())})
        kept = Path(sent.json()[0])
        assert kept.read_bytes() == red.read_bytes()
        sent = httpx.post(f"{url}gradio_api/upload", files={"files": ("a.mp4", red.read_bytes() + b"0")})
        assert sent.status_code == 413
        config = httpx.get(f"{url}config").json()
        assert not config["analytics_enabled"]
        assert not config.get("share_url")
        taken = Serving(port=int(url.rstrip("/").rpartition(":")[2]))
        second = serving(Desk(Colors().eval(), "colors", limits), taken)
        with pytest.raises(InflateError, match="the page cannot be served here"), second:
            pass
        end = time.monotonic() + 30
        while kept.exists() and time.monotonic() < end:
            time.sleep(0.2)
        assert not kept.exists()
        left = Path(httpx.post(f"{url}gradio_api/upload", files={"files": ("b.mp4", red.read_bytes())}).json()[0])
        assert left.exists()
    assert not left.parents[1].exists()


def test_missing_gradio_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(InflateError, match="package gradio is missing") as told, serving(None, Serving()):
        pass
    assert told.value.fix == 'pip install "inflate3d[app]"'
