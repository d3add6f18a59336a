"""Flow in colors against torchvision's drawing of the same color code, videos of it, and the table of two streams."""

import io

import av
import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from torchvision.utils import flow_to_image

from inflate3d.errors import InflateError
from inflate3d.results.prediction import VideoPrediction
from inflate3d.show.answers import streams_table
from inflate3d.show.flow import flow_picture, overlay, wheel_picture, write_overlay, write_png


def test_the_colors_are_those_of_middlebury():
    flow = torch.randn(2, 41, 57) * 7
    assert flow_picture(flow).permute(2, 0, 1).equal(flow_to_image(flow))


def test_each_direction_has_its_color():
    """Red to the right, then with the clock: yellow downwards, blue to the left, violet upwards."""
    right, down, left, up = flow_picture(torch.tensor([[[5.0, 0, -5, 0]], [[0, 5.0, 0, -5]]]), 5.0)[0].tolist()
    hues = [cv2.cvtColor(np.uint8([[color]]), cv2.COLOR_RGB2HSV)[0, 0, 0] for color in (right, down, left, up)]
    assert hues == sorted(hues)  # 180 steps around the wheel
    assert right == [255, 0, 0]


def test_size_goes_from_white_to_color_and_beyond_to_dark():
    row = flow_picture(torch.tensor([[[0.0, 2.0, 4.0, 8.0]], [[0.0, 0, 0, 0]]]), 4.0)[0].tolist()
    assert row == [[255, 255, 255], [255, 127, 127], [255, 0, 0], [191, 0, 0]]


def test_the_key_shows_all_directions():
    wheel = wheel_picture(41)
    assert wheel[20, [0, 20, 40]].tolist() == [[0, 209, 255], [255, 255, 255], [255, 0, 0]]
    assert wheel[0, 0].tolist() == [255, 255, 255]
    assert wheel.shape == (41, 41, 3)


def test_an_overlay_is_grey_where_nothing_moves():
    picture = torch.randint(0, 256, (40, 60, 3), dtype=torch.uint8)
    flow = torch.zeros(2, 40, 60)
    flow[0, :, :30] = 10
    drawn = overlay(picture, flow).int()
    grey = picture.double().mean(-1)
    assert (drawn[:30, 30:] - grey[:30, 30:, None]).abs().max() <= 0.5
    assert (drawn[:, :30, 0] - (0.2 * grey[:, :30] + 0.8 * 255)).abs().max() <= 0.5
    assert drawn[-10:, -10:].equal(wheel_picture(10).int())


def test_a_video_of_the_overlay(tmp_path):
    frames = [torch.full((31, 47, 3), 20 * i, dtype=torch.uint8) for i in range(5)]
    write_overlay(tmp_path / "a.mp4", ((frame, torch.zeros(2, 31, 47)) for frame in frames), fps=10)
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert container.streams.video[0].average_rate == 10
        pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert [picture.shape for picture in pictures] == [(30, 46, 3)] * 5
    assert [float(picture[:20, :20].mean()) for picture in pictures] == pytest.approx([0, 20, 40, 60, 80], abs=3)
    with pytest.raises(InflateError, match="there is nothing to draw"):
        write_overlay(tmp_path / "b.mp4", [])
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_pictures_are_written(tmp_path):
    write_png(tmp_path / "wheel.png", wheel_picture(21))
    assert np.asarray(Image.open(tmp_path / "wheel.png")).tolist() == wheel_picture(21).tolist()


@pytest.mark.parametrize("size", [(2, 3), (5, 7), (11, 13), (12, 17)])
def test_small_frames_have_no_key(size):
    drawn = overlay(torch.full((*size, 3), 200, dtype=torch.uint8), torch.zeros(2, *size))
    has_key = not (drawn == 200).all()
    assert has_key == (min(size) >= 12)


def test_what_cannot_be_drawn_is_told():
    with pytest.raises(InflateError, match=r"no flow to draw(.|\n)*\[3, 4, 5\]"):
        flow_picture(torch.zeros(3, 4, 5))
    with pytest.raises(InflateError, match="largest_pixels=0"):
        flow_picture(torch.zeros(2, 4, 5), 0)
    with pytest.raises(InflateError, match=r"differ in size(.|\n)*\[2, 8, 9\](.|\n)*\[2, 4, 5\]"):
        overlay(torch.zeros(8, 9, 3, dtype=torch.uint8), torch.zeros(2, 4, 5))


def test_the_table_shows_both_streams_and_the_joint_answer():
    def answer(*logits, **more):
        return VideoPrediction("clip.mp4", 30, 25.0, torch.tensor(logits), (), ("run", "jump <high>", "swim"), **more)

    rgb, flow = answer(2.0, 0.0, 0.0), answer(0.0, 3.0, 0.0)
    console = Console(width=100, file=io.StringIO())
    console.print(streams_table(answer(2.0, 3.0, 0.0, streams={"rgb": rgb, "flow": flow}), k=2))
    lines = [" ".join(line.split()) for line in console.file.getvalue().splitlines() if line.strip()]
    # softmax: e^2 / (e^2 + 2), e^3 / (e^3 + 2), e^3 / (e^2 + e^3 + 1)
    assert lines == [
        "clip.mp4 30 flows, 25 fps",
        "class rgb flow joint",
        "jump <high> 10.7% 90.9% 70.5%",
        "run 78.7% 4.5% 25.9%",
        "likeliest run jump <high> jump <high>",
    ]
