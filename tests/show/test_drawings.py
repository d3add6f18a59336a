"""Plans, timelines with self-similarity, and contact sheets: what is drawn is what a run would show."""

import io
from base64 import b64decode
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner

from inflate3d import ClipSpec, InceptionI3d, InflateError, PredictOptions, inflate, predict
from inflate3d.cli import app
from inflate3d.clips.transforms import frames_to_input
from inflate3d.inflation.plan import LayerPlan, Plan
from inflate3d.models.inflated import inflated_classifier
from inflate3d.show.answers import LEFT, timeline_svg
from inflate3d.show.pictures import SHARP, drawing_pixels, heat_colors, page_of, write_drawing
from inflate3d.show.plans import Scale, frames_seen, plan_svg, time_layers
from inflate3d.show.sheets import DIMMED, EDGE, GAP, LINE, LINE_COLOR, contact_sheet, write_sheet
from inflate3d.show.similarity import MATRIX_HEIGHT, PLOT, moments_of, self_similarity, similarity_svg
from videos import paint, write_video

SVG = "{http://www.w3.org/2000/svg}"


def texts(drawing):
    return [one.text for one in ElementTree.fromstring(drawing).findall(f"{SVG}text")]


def frames_with_a_say(model3d, clip, own):
    """Ask the gradient which frames change the output at one frame of the clip."""
    clip = clip.clone().requires_grad_()
    answer = model3d(clip)
    answer[:, :, own].sum().backward()
    return clip.grad.abs().amax((0, 1, 3, 4)).nonzero().flatten().tolist()


@pytest.mark.parametrize("preset", ["video", "i3d", "causal"])
def test_the_frames_that_are_drawn_are_those_that_have_a_say(preset):
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.MaxPool2d(3, 2, 1),
        nn.Conv2d(4, 4, 5, 2, 2),
        nn.Conv2d(4, 4, 1),
        nn.MaxPool2d(3, 2, 1),
        nn.MaxPool2d(2, 2),
        nn.Conv2d(4, 5, 3, padding=1),
    )
    model3d = inflate(net.eval(), preset, example=torch.zeros(1, 3, 32, 32), profile="random")
    for parameter in model3d.parameters():
        parameter.data = parameter.data.abs() + 0.01  # nothing cancels out
    seen = frames_seen(time_layers(model3d))
    step, before, behind = int(seen[-1].step), int(seen[-1].before), int(seen[-1].behind)
    clip = torch.rand(1, 3, 64, 32, 32)
    own = 32 // step
    sees = frames_with_a_say(model3d, clip, own)
    assert (min(sees), max(sees)) == (own * step - before, own * step + behind)
    assert step == (4 if preset == "i3d" else 1)


def test_of_i3d_an_output_sees_107_frames():
    seen = frames_seen(time_layers(InceptionI3d(3)))
    assert 1 + seen[-1].before + seen[-1].behind == 107  # 99 behind Mixed_5c; the head pools two steps of 8
    assert [one.step for one in seen][-1] == 8


def test_branches_do_not_shorten_time_twice():
    model = inflated_classifier("timm/test_resnet", preset="i3d")
    seen = frames_seen(time_layers(model))
    observed = max(one.step for one in seen)
    assert observed == model.inflated.plan.time_shrink
    strides = [layer.time_stride for layer in model.inflated.plan if layer.time_stride > 1]
    assert np.prod(strides) >= observed  # shortcuts have strides of their own
    without = frames_seen(time_layers(model.inflated.plan))
    assert without[-1].step == np.prod(strides)


def test_a_plan_is_drawn_with_a_row_for_each_layer_in_time():
    layers = (
        LayerPlan("first", "Conv2d", "inflate", (3, 3), 5, 2, kind="conv"),
        LayerPlan("a", "Conv2d", "frame", (1, 1), kind="conv"),
        LayerPlan("b", "Conv2d", "frame", (1, 1), kind="conv"),
        LayerPlan("gate<1>", "SE", "clip", kind="gate"),
        LayerPlan("shifted", "Conv2d", "shift", (3, 3), kind="conv"),
        LayerPlan("longer", "Up", "resize", kind="resize", time_scale=2),
    )
    words = texts(plan_svg(Plan("Net", "mine", (3, 9, 9), layers), "A <net>"))
    assert words[0] == "A <net>"
    assert words[1] == "2 of 6 layers look through time; one output sees 9 frames at most, gates apart"
    for name in ("first", "2 layers on each frame alone", "gate<1>", "shifted", "longer", "5 frames /2", "x2"):
        assert words.count(name) == 1
    assert "a" not in words
    attending = (LayerPlan("attention", "Attention", "attend", kind="attention", time_kernel=3),)
    assert "one output sees the whole clip" in texts(plan_svg(Plan("Net", "mine", (3, 9, 9), attending)))[1]
    many = tuple(LayerPlan(f"layer{i}", "Conv2d", "inflate", (3, 3), 3, kind="conv") for i in range(700))
    words = texts(plan_svg(Plan("Net", "mine", (3, 9, 9), many)))
    assert any("610 more rows, not drawn" in word for word in words)
    with pytest.raises(InflateError, match="no plan to draw"):
        plan_svg(nn.Linear(2, 3))


def test_frames_stand_side_by_side():
    scale = Scale(10, 5)
    assert scale.x(0) < scale.x(1) < scale.x(10) == scale.x(99)


def test_self_similarity_is_of_directions_around_their_mean():
    features = torch.randn(7, 11)
    alike = self_similarity(features)
    assert torch.equal(alike, alike.T)
    assert torch.equal(alike.diagonal(), torch.ones(7, dtype=torch.float64))
    torch.testing.assert_close(self_similarity(3 * features + 5), alike, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(alike, torch.from_numpy(_by_numpy(features.double().numpy())))
    for wrong in (torch.zeros(3), torch.zeros(0, 4), torch.full((3, 4), torch.nan)):
        with pytest.raises(InflateError, match="no features of moments"):
            self_similarity(wrong)
    assert torch.equal(self_similarity(torch.ones(2, 3)), torch.eye(2, dtype=torch.float64))  # nothing changes


def _by_numpy(rows):
    rows = rows - rows.mean(0)
    return np.array([[a @ b / np.sqrt(a @ a * (b @ b)) for b in rows] for a in rows])


class Bright(nn.Module):
    """Its features are how bright each third of a frame is."""

    clip_spec = ClipSpec(25.0, 4, 1, 30, 30, (-1.0, 1.0))
    class_names = ("dark", "bright")

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, 2)
        self.head.weight.data = torch.tensor([[-1.0] * 3, [1.0] * 3])

    def forward(self, clip):
        return self.head(clip.mean(4).unflatten(3, (3, 10)).mean((1, 2, 4)))


def test_the_matrix_stands_below_the_curves_second_below_second():
    video = np.zeros((24, 30, 40, 3), np.uint8)
    video[:12, :10] = 200  # above is bright, then below
    video[12:, 20:] = 200
    model, options = Bright().eval(), PredictOptions(stride=4)
    answer = predict(model, video, options)
    moments, times = moments_of(model, video, options)
    assert (moments.shape, times.tolist()) == ((6, 3), pytest.approx([0.08 + 0.16 * i for i in range(6)], abs=0.021))
    drawing = similarity_svg(answer, self_similarity(moments), times)
    matrix = ElementTree.fromstring(drawing).findall(f"{SVG}image")[0]
    assert (float(matrix.get("x")), float(matrix.get("width"))) == (LEFT, PLOT)
    pixels = np.array(Image.open(io.BytesIO(b64decode(matrix.get("href").partition(",")[2]))))
    assert pixels.shape == (MATRIX_HEIGHT, PLOT, 3)
    low, high = (heat_colors(torch.tensor(value)).mul(255).round().tolist() for value in (0.0, 1.0))
    assert pixels[10, 10].tolist() == pixels[-10, -10].tolist() == high
    assert pixels[10, -10].tolist() == pixels[-10, 10].tolist() == low
    assert timeline_svg(answer).count("<polyline") == drawing.count("<polyline")


def test_a_drawing_becomes_pixels():
    jpeg = Image.new("RGB", (8, 8), (200, 30, 30))
    buffer = io.BytesIO()
    jpeg.save(buffer, "PNG")
    parts = [
        '<rect x="4" y="4" width="8" height="6" fill="#0072B2" fill-opacity="0.5"/>',
        '<line x1="0" x2="40" y1="20" y2="20" stroke="#000" stroke-width="2"/>',
        '<polyline points="0,30 40,30" fill="none" stroke="#D55E00" stroke-width="2"/>',
        '<circle cx="74" cy="34" r="3" fill="#009E73"/>',
        '<text x="40" y="14" text-anchor="end" fill="#555">word</text>',
        f'<image x="50" y="0" width="20" height="40" href="data:image/png;base64,{_b64(buffer)}"/>',
    ]
    pixels = drawing_pixels(page_of(parts, 80, 40)).numpy()
    assert pixels.shape == (40 * SHARP, 80 * SHARP, 3)
    at = {(x, y): pixels[y * SHARP, x * SHARP].tolist() for x, y in [(8, 7), (20, 20), (20, 30), (74, 34), (60, 20)]}
    assert at[8, 7] == pytest.approx([127, 184, 216], abs=2)
    assert at[20, 20] == [0, 0, 0]
    assert at[20, 30] == [0xD5, 0x5E, 0]
    assert at[74, 34] == [0, 0x9E, 0x73]
    assert at[60, 20] == [200, 30, 30]
    assert pixels[SHARP * 2, SHARP * 60].tolist() == [255, 255, 255]  # it keeps its form
    assert (pixels[8 * SHARP : 16 * SHARP, 36 * SHARP : 40 * SHARP] < 200).any()  # the word ends at 40


def _b64(buffer):
    from base64 import b64encode

    return b64encode(buffer.getvalue()).decode()


def test_by_night_the_card_is_dark_but_not_inside_a_page():
    assert "prefers-color-scheme:dark" in page_of([], 8, 4)
    assert "prefers-color-scheme" not in page_of([], 8, 4, night=False)


def test_drawings_go_into_files(tmp_path):
    write_drawing(tmp_path / "a.svg", page_of([], 8, 4))
    write_drawing(tmp_path / "a.png", page_of([], 8, 4))
    assert ElementTree.parse(tmp_path / "a.svg").getroot().get("viewBox") == "0 0 8 4"
    assert Image.open(tmp_path / "a.png").size == (8 * SHARP, 4 * SHARP)
    with pytest.raises(InflateError, match="ending of the file"):
        write_drawing(tmp_path / "a.jpg", page_of([], 8, 4))


def test_a_contact_sheet_shows_what_the_network_gets(tmp_path):
    spec = ClipSpec(25.0, 6, 1, short_side=32, crop=26, value_range=(-1.0, 1.0))
    video = np.random.default_rng(0).integers(0, 255, (15, 32, 45, 3), np.uint8)
    sheet = contact_sheet(video, spec, PredictOptions(), columns=3)
    tall, whole = 32 + LINE, 45
    assert sheet.shape == (LINE + 3 * tall + EDGE, 2 * EDGE + whole + 3 * (GAP + 26), 3)
    view = ((frames_to_input(video, spec)[0] + 1) * 127.5).round().to(torch.uint8)
    for row, starts in enumerate(([0, 2, 5], [6, 8, 11], [9, 11, 14])):  # the last window reaches back
        top = LINE + row * tall + LINE + 3
        for column, frame in enumerate(starts):
            left = EDGE + whole + GAP + column * (26 + GAP)
            assert torch.equal(sheet[top : top + 26, left : left + 26].permute(2, 0, 1), view[:, frame])
    first = sheet[2 * LINE : 2 * LINE + 32, EDGE : EDGE + 45]
    assert first[3, 20].tolist() == list(LINE_COLOR)
    assert first[0, 0].tolist() == (torch.from_numpy(video[3, 0, 0]) * DIMMED).to(torch.uint8).tolist()
    assert first[16, 22].tolist() == video[3, 16, 22].tolist()
    write_sheet(tmp_path / "a.png", sheet)
    assert Image.open(tmp_path / "a.png").size == sheet.shape[1::-1]
    for wrong in (0, 65, 2.5):
        with pytest.raises(InflateError, match="so many frames of a window"):
            contact_sheet(video, spec, columns=wrong)


def test_the_commands_draw_videos(tmp_path, monkeypatch):
    write_video(tmp_path / "a.mp4", [paint(number) for number in range(20)], fps=25)
    monkeypatch.setattr("inflate3d.cli.show._network", lambda name: Bright().eval())
    for command, name, *more in (
        ("timeline", "time.svg", "--stride", "4"),
        ("clips", "clips.webp", "--columns", "2"),
        ("saliency", "pixels.gif", "--method", "integrated-gradients", "--num-frames", "8", "--label", "bright"),
    ):
        done = CliRunner().invoke(
            app, ["show", command, str(tmp_path / "a.mp4"), "-o", str(tmp_path / name), *more], catch_exceptions=False
        )
        assert done.exit_code == 0
        assert (tmp_path / name).stat().st_size > 1000
        assert name in done.stdout
    assert "bright" in done.stdout
    assert Image.open(tmp_path / "pixels.gif").n_frames == 8
    assert Image.open(tmp_path / "pixels.gif").info["duration"] == 40  # 25 per second, as they were taken
