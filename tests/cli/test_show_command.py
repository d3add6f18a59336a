"""`inflate3d show`: networks by every kind of name, and mistakes that are told before a network is loaded."""

import re

import pytest
from PIL import Image
from torch import nn
from typer.testing import CliRunner

from inflate3d import ClipSpec
from inflate3d.cli import app, show
from inflate3d.errors import InflateError
from inflate3d.show import similarity
from videos import paint, write_video

OWN = """from torch import nn
def tiny():
    return nn.Sequential(nn.Conv2d(3, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 7)).eval()
"""


class Bright(nn.Module):
    """Tells dark from bright."""

    clip_spec = ClipSpec(25.0, 4, 1, 16, 16, (-1.0, 1.0))
    class_names = ("dark", "bright")

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv3d(3, 4, (3, 1, 1), padding=(1, 0, 0))
        self.head = nn.Linear(4, 2)

    def forward(self, clip):
        return self.head(self.conv(clip).mean((2, 3, 4)))


def run(*arguments):
    return CliRunner().invoke(app, ["show", *map(str, arguments)])


@pytest.fixture
def own_nets(tmp_path, monkeypatch):
    (tmp_path / "own_show_nets.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "own_show_nets:tiny"


@pytest.fixture
def video(tmp_path):
    return write_video(tmp_path / "a.mp4", [paint(number) for number in range(30)], fps=25)


@pytest.mark.parametrize(
    ("command", "endings"),
    [
        ("saliency a.mp4", ".mp4, .gif, .webp, .png"),
        ("timeline a.mp4", ".svg, .png"),
        ("clips a.mp4", ".png, .webp"),
        ("plan timm/resnet18", ".svg, .png"),
    ],
)
def test_an_ending_that_names_no_format_is_told_before_the_work(command, endings, tmp_path, monkeypatch):
    for name in ("_network", "model_and_example"):
        monkeypatch.setattr(show, name, None)
    found = run(*command.split(), "-o", tmp_path / "a.tiff").exception
    assert isinstance(found, InflateError)
    assert (found.where, found.expected, found.got) == (f"inflate3d show {command.split()[0]}", endings, "a.tiff")


@pytest.mark.parametrize(
    "command", ["saliency a.mp4", "timeline a.mp4", "clips a.mp4", "plan timm/x", "filters timm/x"]
)
def test_a_file_that_cannot_be_written_is_told_before_the_work(command, tmp_path, monkeypatch):
    for name in ("_network", "model_and_example"):
        monkeypatch.setattr(show, name, None)
    (tmp_path / "taken.png").mkdir()
    found = run(*command.split(), "-o", tmp_path / "taken.png").exception
    assert isinstance(found, InflateError) and "there is a folder of that name" in str(found)


@pytest.mark.parametrize(
    ("arguments", "got"),
    [
        (("saliency", "--method", "guess"), "method='guess'"),
        (("saliency", "--num-frames", "0"), "num_frames=0"),
        (("saliency", "--method", "integrated-gradients", "--layer", "conv"), "layer='conv'"),
        (("timeline", "--window", "0"), "window=0"),
        (("timeline", "--stride", "-1"), "stride=-1"),
        (("clips", "--crops", "six"), "crops='six'"),
    ],
)
def test_values_out_of_range(arguments, got, video, tmp_path, monkeypatch):
    monkeypatch.setattr(show, "_network", lambda *_: Bright().eval())
    command, *more = arguments
    found = run(command, video, "-o", tmp_path / "a.png", *more).exception
    assert isinstance(found, InflateError) and got in found.got
    assert not (tmp_path / "a.png").exists()


@pytest.mark.parametrize("count", [8, 20])
def test_a_timeline_stops_after_so_many_frames(count, video, tmp_path, monkeypatch):
    """Also for the moments: the rest of the video is not read, and has no say in how alike they are."""
    monkeypatch.setattr(show, "_network", lambda *_: Bright().eval())
    seen, moments_of = [], similarity.moments_of

    def noted(*arguments):
        seen.append(moments_of(*arguments))
        return seen[-1]

    monkeypatch.setattr(similarity, "moments_of", noted)
    done = run("timeline", video, "-o", tmp_path / "a.svg", "--num-frames", count)
    assert done.exit_code == 0, done.exception
    ((moments, times),) = seen
    assert len(moments) == len(times) == count // 4 and float(times[-1]) < count / 25
    assert f"{count // 4} windows, {count // 4} moments" in done.output
    short = write_video(tmp_path / "short.mp4", [paint(number) for number in range(count)], fps=25)
    alone, _ = moments_of(Bright().eval(), short, show._options("25", None, None, None))
    assert alone.shape == moments.shape


def test_filters_of_every_kind_of_network(own_nets, tmp_path):
    sizes = {}
    for name, more in {
        own_nets: ("--preset", "video"),
        f"{own_nets} ": ("--preset", "frames", "--layout", "rows"),
        "i3d": ("--layer", "Conv3d_2b_1x1"),
    }.items():
        done = run("filters", name.strip(), "-o", tmp_path / "a.png", *more)
        assert done.exit_code == 0, done.exception
        assert done.output.strip().endswith("a.png")
        sizes[name] = Image.open(tmp_path / "a.png").size
    assert len(set(sizes.values())) == 3


def test_filters_before_and_after(own_nets, tmp_path):
    assert run("filters", own_nets, "-o", tmp_path / "one.png").exit_code == 0
    idle = run("filters", "i3d-kinetics400", "--preset", "i3d", "-o", tmp_path / "none.png").exception
    assert idle.problem == "there are options that would change nothing" and "--preset with a 2D model" in str(idle)
    done = run("filters", own_nets, "--before", own_nets, "-o", tmp_path / "two.png")
    assert done.exit_code == 0, done.exception
    one, two = (Image.open(tmp_path / f"{name}.png").size for name in ("one", "two"))
    assert (two[0], two[1]) == (one[0], 2 * one[1])
    done = run("filters", own_nets, "--before", own_nets, "-o", tmp_path / "two.gif")
    assert done.exit_code == 0 and Image.open(tmp_path / "two.gif").format == "GIF"
    found = run("filters", own_nets, "--layer", "1", "-o", tmp_path / "a.png").exception
    assert "the model has no such layer of filters" in str(found)


@pytest.mark.parametrize(("ending", "preset"), [("svg", "video"), ("png", "causal")])
def test_plans_of_2d_models_and_of_networks(own_nets, tmp_path, ending, preset):
    path = tmp_path / f"plan.{ending}"
    done = run("plan", own_nets, "--preset", preset, "--size", 17, "-o", path)
    assert done.exit_code == 0, done.exception
    if ending == "svg":
        assert f"{own_nets}, {preset}" in path.read_text()
    assert run("plan", "i3d", "-o", path).exit_code == 0
    if ending == "svg":
        assert "one output sees 107 frames" in path.read_text()


@pytest.mark.parametrize(
    ("name", "flat"),
    [("timm/resnet18", True), ("hf/resnet", True), ("mine:net", True), ("i3d", False), ("a.safetensors", False)],
)
def test_names_of_2d_models(name, flat, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert show._is_2d(name) is flat
    if ":" in name:
        (tmp_path / name).touch()  # a file of that name is a file
        assert not show._is_2d(name)


def test_a_progress_bar_is_for_people_and_not_in_the_answer(video, tmp_path, monkeypatch):
    monkeypatch.setattr(show, "_network", lambda *_: Bright().eval())
    done = run("saliency", video, "-o", tmp_path / "a.png", "--num-frames", 6, "--label", "dark", "--fps", "native")
    assert done.exit_code == 0, done.exception
    (line,) = done.stdout.splitlines()
    assert re.fullmatch(r".*a\.png: dark \d+\.\d%, grad-cam at conv", line)
    assert Image.open(tmp_path / "a.png").size == (6 * 16, 26 + 2 * 16)
