"""Files of flow, read back by readers that do not know how they were written; and runs that are stopped."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from inflate3d.errors import InflateError
from inflate3d.flow.layouts import FlowFileOptions, write_flow
from inflate3d.flow.quantize import dequantize, quantize
from inflate3d.flow.stored import open_flow

H, W = 23, 37


def pictures(count):
    """Frame i has brightness 10 i everywhere."""
    return [torch.full((H, W, 3), 10 * i, dtype=torch.uint8) for i in range(count)]


def ramp(first, second):
    """Flow that tells its number: a ramp to the right in x, one downwards in y, moved by the brightness."""
    x = torch.linspace(-15, 15, W).expand(H, W)
    y = torch.linspace(-9, 9, H)[:, None].expand(H, W)
    number = first[:, 0, 0, 0].float() / 10
    assert ((second.float() - first.float()) == 10).all()
    return torch.stack([torch.stack([x + n / 2, y - n / 2]) for n in number])


FLOWS = ramp(torch.stack(pictures(6)[:5]), torch.stack(pictures(6)[1:]))


def write(folder, **options):
    return write_flow(pictures(6), folder, FlowFileOptions(batch_size=2, **options), method=ramp)


@pytest.mark.parametrize(
    ("layout", "names", "codes"),
    [
        ("denseflow", [(f"flow_x_{i:05d}.jpg", f"flow_y_{i:05d}.jpg") for i in range(5)], 128),
        ("mmaction2", [(f"x_{i:05d}.jpg", f"y_{i:05d}.jpg") for i in range(1, 6)], 127),
        ("tsn", [(f"flow_x_{i:05d}.jpg", f"flow_y_{i:05d}.jpg") for i in range(1, 6)], 128),
    ],
)
def test_jpegs_are_named_and_coded_as_the_project_has_them(tmp_path, layout, names, codes):
    found = write(tmp_path / "out", layout=layout, images=True)
    assert (found.num_flows, found.num_new) == (5, 5)
    start = 0 if layout == "denseflow" else 1
    images = [f"img_{i:05d}.jpg" for i in range(start, start + 6)]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        [*images, *(name for pair in names for name in pair), "flow.json"]
    )
    for i, pair in enumerate(names):
        for axis, name in enumerate(pair):
            picture = Image.open(tmp_path / "out" / name)
            assert (picture.mode, picture.size, picture.format) == ("L", (W, H), "JPEG")
            # Source: denseflow src/common.cpp and mmaction2 flow_extraction.py; rounded and truncated
            share = (np.clip(FLOWS[i, axis].numpy().astype(float), -20, 20) + 20) / 40 * 255
            expected = np.rint(share) if codes == 128 else np.floor(share)
            assert np.abs(np.asarray(picture).astype(float) - expected).max() <= 2  # JPEG
    for i, name in enumerate(images):
        assert abs(np.asarray(Image.open(tmp_path / "out" / name)).astype(float) - 10 * i).max() <= 1


def test_the_array_holds_pixels(tmp_path):
    write(tmp_path / "out", layout="npz")
    with np.load(tmp_path / "out" / "flow.npz") as found:
        assert found["flow"].dtype == np.float32
        assert found["flow"].tolist() == FLOWS.tolist()
        assert (found["quantizer"], found["bound"]) == ("none", 20)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["flow.json", "flow.npz"]


@pytest.mark.parametrize("quantizer", ["mediapipe", "denseflow", "mmaction2"])
def test_the_videos_lose_nothing(tmp_path, quantizer):
    write(tmp_path / "out", layout="mp4", quantizer=quantizer)
    codes = quantize(FLOWS, quantizer)
    for axis, name in enumerate("xy"):
        video = cv2.VideoCapture(str(tmp_path / "out" / f"flow_{name}.mp4"))
        frames = [video.read()[1] for _ in range(5)]
        assert not video.read()[0]
        for channel in range(3):
            assert np.stack(frames)[..., channel].tolist() == codes[:, axis].tolist()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["flow.json", "flow_x.mp4", "flow_y.mp4"]


@pytest.mark.parametrize("layout", ["denseflow", "mmaction2", "tsn", "npz", "mp4"])
def test_what_is_written_is_read_back(tmp_path, layout):
    write(tmp_path, layout=layout)
    stored = open_flow(tmp_path)
    assert stored.num_flows == 5
    for _ in range(2):  # as often as wanted
        flows = torch.stack(list(stored))
        assert (flows - FLOWS).abs().max() < {"npz": 1e-9, "mp4": 0.08}.get(layout, 0.5)


def test_another_bound_is_known_to_the_reader(tmp_path):
    write(tmp_path, layout="mp4", bound=31.0)
    (first, *_) = open_flow(tmp_path)
    assert first.equal(dequantize(quantize(FLOWS[0], "denseflow", bound=31.0), bound=31.0))


@pytest.mark.parametrize("layout", ["denseflow", "npz", "mp4"])
def test_a_stopped_run_goes_on_where_it_was(tmp_path, layout):
    calls = []

    def stopping(first, second):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(len(first))
        return ramp(first, second)

    options = FlowFileOptions(layout=layout, batch_size=2)
    with pytest.raises(KeyboardInterrupt):
        write_flow(pictures(6), tmp_path / "some", options, method=stopping)
    assert json.loads((tmp_path / "some" / "flow.json").read_text())["num_flows"] is None
    with pytest.raises(InflateError, match="not whole: its computation was stopped"):
        open_flow(tmp_path / "some")
    found = write_flow(pictures(6), tmp_path / "some", options, method=ramp)
    assert (found.num_flows, found.num_new, sum(calls)) == (5, 1, 4)
    write(tmp_path / "whole", layout=layout)
    names = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert sorted(path.name for path in (tmp_path / "some").iterdir()) == names
    for name in names:
        assert (tmp_path / "some" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()

    def never(first, second):
        raise AssertionError("nothing is left to do")

    def unread():
        raise AssertionError("nothing is left to read")
        yield

    again = write_flow(unread(), tmp_path / "some", options, method=never)
    assert (again.num_flows, again.num_new) == (5, 0)


def test_a_file_that_was_deleted_is_made_anew(tmp_path):
    write(tmp_path)
    (tmp_path / "flow_y_00003.jpg").unlink()
    assert write(tmp_path).num_new == 1
    assert (tmp_path / "flow_y_00003.jpg").exists()


def test_flow_that_was_made_otherwise_is_not_mixed(tmp_path):
    options = FlowFileOptions()
    write_flow(pictures(3), tmp_path, options, method=ramp, settings={"fps": "25"})
    with pytest.raises(InflateError, match=r"made otherwise(.|\n)*'fps': '30'(.|\n)*'fps': '25'"):
        write_flow(pictures(3), tmp_path, options, method=ramp, settings={"fps": "30"})
    with pytest.raises(InflateError, match=r"made otherwise(.|\n)*bound: 30"):
        write_flow(pictures(3), tmp_path, FlowFileOptions(bound=30), method=ramp, settings={"fps": "25"})


def test_folders_with_something_else_are_left_alone(tmp_path):
    (tmp_path / "holiday.jpg").touch()
    with pytest.raises(InflateError, match="the folder holds something else"):
        write(tmp_path)
    (tmp_path / "flow.json").write_text("[]")
    with pytest.raises(InflateError, match=r"flow\.json cannot be read"):
        write(tmp_path)


@pytest.mark.parametrize("count", [0, 1])
def test_flow_needs_two_frames(tmp_path, count):
    with pytest.raises(InflateError, match=rf"fewer than two frames(.|\n)*{count} frames"):
        write_flow(pictures(count), tmp_path / "out", FlowFileOptions(images=True), method=ramp)
    assert not (tmp_path / "out").exists()


def test_a_file_where_the_folder_should_be(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InflateError, match="cannot be written"):
        write(Path(tmp_path / "file" / "out"))


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"layout": "dense"}, "layout: denseflow, mmaction2, tsn, npz, mp4"),
        ({"jpeg_quality": 0}, "jpeg_quality: a whole number from 1 to 100"),
        ({"batch_size": 0}, "batch_size: 1 or more"),
        ({"quantizer": "none"}, "quantizer: mediapipe, denseflow, mmaction2, or None"),
        ({"layout": "mp4", "quantizer": "video-features"}, "go with layout='npz' only"),
    ],
)
def test_wrong_options_are_told_with_their_rule(options, rule):
    name = list(options)[-1]
    with pytest.raises(
        InflateError, match=rf"cannot be written so: {name}(.|\n)*{rule}(.|\n)*{name}={options[name]!r}"
    ):
        FlowFileOptions(**options)


def test_the_quantizer_is_checked_with_its_bound():
    with pytest.raises(InflateError, match="bound -1"):
        FlowFileOptions(bound=-1)
    with pytest.raises(InflateError, match="did you mean mediapipe"):
        FlowFileOptions(quantizer="mediapip")
