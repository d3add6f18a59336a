"""Pictures and animations in files: what is written is what was drawn, by the ending; colors that say how much."""

import io
from base64 import b64encode
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from inflate3d.errors import InflateError
from inflate3d.show.pictures import (
    CARD,
    HEAT,
    MOVING,
    NIGHT,
    SHARP,
    STILL,
    Words,
    check_ending,
    drawing_pixels,
    heat_colors,
    page_of,
    put_words,
    write_animation,
    write_picture,
)


def noise(*shape):
    return torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def smooth(height, width, start):
    """A picture that codecs keep."""
    rows = torch.linspace(start, start + 90, height)[:, None, None]
    return (rows + torch.linspace(0, 60, width)[None, :, None]).expand(height, width, 3).to(torch.uint8)


def test_more_is_brighter_all_the_way():
    colors = heat_colors(torch.linspace(0, 1, 257))
    luminance = colors @ torch.tensor([0.2126, 0.7152, 0.0722])
    assert (luminance.diff() > 0).all()
    for place, color in zip(torch.linspace(0, 1, len(HEAT)).tolist(), HEAT, strict=True):
        wanted = [int(color[at : at + 2], 16) for at in (1, 3, 5)]
        assert (heat_colors(torch.tensor(place)) * 255).round().int().tolist() == wanted
    ends = heat_colors(torch.tensor([[-3.0, 0.0], [1.0, 9.0]]))
    assert ends.shape == (2, 2, 3)
    assert torch.equal(ends[0, 0], ends[0, 1]) and torch.equal(ends[1, 0], ends[1, 1])


@pytest.mark.parametrize("channels", [3, 4])
def test_stills_keep_every_pixel_where_the_format_does(tmp_path, channels):
    picture = noise(11, 17, channels)
    write_picture(tmp_path / "a.PNG", picture)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "a.PNG")), picture.numpy())
    write_picture(tmp_path / "a.webp", picture)
    found = Image.open(tmp_path / "a.webp")
    assert found.size == (17, 11) and found.format == "WEBP"
    if channels == 4:  # drawings are kept to the pixel, where one sees them
        seen = picture[..., 3] > 0
        assert np.array_equal(np.asarray(found)[seen.numpy()], picture.numpy()[seen.numpy()])


@pytest.mark.parametrize("ending", MOVING)
@pytest.mark.parametrize("fps", [5.0, 25.0])
def test_animations_have_their_frames_in_order_and_in_time(tmp_path, ending, fps):
    path = tmp_path / f"a{ending}"
    frames = [smooth(16, 24, start) for start in (0, 40, 80, 100)]
    write_animation(path, iter(frames), fps=fps)
    if ending == ".mp4":
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            found = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
            assert (stream.average_rate, stream.codec_context.pix_fmt) == (fps, "yuv420p")
    else:
        picture = Image.open(path)
        assert picture.n_frames == 4 and picture.info["loop"] == 0
        found = []
        for number in range(4):
            picture.seek(number)
            found.append(np.asarray(picture.convert("RGB")))
            assert picture.info["duration"] == 1000 / fps
    for one, wanted in zip(found, frames, strict=True):
        assert np.abs(one.astype(int) - wanted.numpy().astype(int)).mean() < 6


def test_a_gif_is_never_faster_than_players_show(tmp_path):
    write_animation(tmp_path / "a.gif", [smooth(8, 8, 0), smooth(8, 8, 90)], fps=120.0)
    assert Image.open(tmp_path / "a.gif").info["duration"] == 20


@pytest.mark.parametrize("size", [(15, 21), (16, 21), (15, 20)])
def test_a_video_of_odd_sides_leaves_the_last_line_out(tmp_path, size):
    write_animation(tmp_path / "a.mp4", [smooth(*size, 30)] * 2, fps=10.0)
    with av.open(str(tmp_path / "a.mp4")) as container:
        frame = next(container.decode(video=0))
    assert (frame.height, frame.width) == (size[0] // 2 * 2, size[1] // 2 * 2)


@pytest.mark.parametrize("ending", [".gif", ".mp4"])
def test_what_is_transparent_stands_on_the_card(tmp_path, ending):
    clear = torch.zeros(16, 16, 4, dtype=torch.uint8)
    clear[:, 8:] = torch.tensor([250, 240, 230, 255], dtype=torch.uint8)
    write_animation(tmp_path / f"a{ending}", [clear] * 2, fps=10.0)
    if ending == ".gif":
        found = np.asarray(Image.open(tmp_path / "a.gif").convert("RGB"))
    else:
        with av.open(str(tmp_path / "a.mp4")) as container:
            found = next(container.decode(video=0)).to_ndarray(format="rgb24")
    assert found[8, 2].tolist() == pytest.approx(CARD, abs=6)
    assert found[8, 13].tolist() == pytest.approx([250, 240, 230], abs=8)


@pytest.mark.parametrize("ending", MOVING)
def test_nothing_to_draw_leaves_no_file(tmp_path, ending):
    with pytest.raises(InflateError) as found:
        write_animation(tmp_path / f"a{ending}", iter([]), fps=10.0)
    assert (found.value.problem, found.value.expected) == ("there is nothing to draw", "at least one frame")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("ending", MOVING)
def test_frames_that_fail_halfway_leave_the_old_file(tmp_path, ending):
    path = tmp_path / f"a{ending}"
    path.write_bytes(b"old")

    def frames():
        yield smooth(16, 16, 0)
        raise OSError("the source is gone")

    with pytest.raises((OSError, InflateError), match=r"the source is gone|written"):
        write_animation(path, frames(), fps=10.0)
    assert path.read_bytes() == b"old" and [one.name for one in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("name", ["a.jpg", "a", "a.png.bak", ".png"])
def test_endings_that_name_no_format_in_full(name):
    with pytest.raises(InflateError) as found:
        check_ending(Path("out") / name, STILL, where="show clips")
    assert str(found.value) == (
        "show clips: the ending of the file names no format that can be written here\n"
        "  expected: .png, .webp\n"
        f"  got:      {name}\n"
        f"  fix:      -o {Path(name).with_suffix('.png').name}"
    )


@pytest.mark.parametrize("name", ["a.png", "A.PNG", "b.c.webp"])
def test_endings_of_any_case(name):
    check_ending(Path(name), STILL, where="")


@pytest.mark.parametrize(("anchor", "side"), [("l", slice(20, None)), ("r", slice(None, 21)), ("m", slice(8, 33))])
def test_words_stand_at_their_anchor(anchor, side):
    blank = torch.zeros(20, 41, 4, dtype=torch.uint8)
    found = put_words(blank, [Words("mm", 20, 10, anchor, 12, "#ff0000")])
    inked = found[..., 3].any(0).nonzero().flatten()
    assert not blank.any() and len(inked) > 8
    allowed = torch.arange(41)[side]
    assert {*inked.tolist()} <= {*allowed.tolist()}
    rows = found[..., 3].any(1).nonzero().flatten().float()
    assert rows.mean() == pytest.approx(10, abs=2.5)
    assert found[found[..., 3] == 255][:, 0].float().mean() > 240


def svg(*parts, width=40, height=20):
    return page_of(parts, width, height)


def pixel(pixels, x, y):
    return pixels[int(y * SHARP), int(x * SHARP)].tolist()


@pytest.mark.parametrize(
    ("part", "inside", "outside"),
    [
        ('<rect x="10" y="5" width="10" height="8" fill="#f00"/>', (15, 9), (25, 9)),
        ('<rect x="10" y="5" width="10" height="8" rx="4" fill="#f00"/>', (15, 9), (10.2, 5.2)),
        ('<circle cx="20" cy="10" r="4" fill="#ff0000"/>', (20, 10), (25, 10)),
        ('<line x1="5" y1="10" x2="35" y2="10" stroke="#f00" stroke-width="3"/>', (20, 10), (20, 13)),
        ('<polyline points="5,5 20,5 20,15" fill="none" stroke="#f00" stroke-width="3"/>', (20, 12), (10, 10)),
    ],
)
def test_what_drawings_are_made_of_is_where_it_belongs(part, inside, outside):
    pixels = drawing_pixels(svg(part))
    assert pixel(pixels, *inside) == [255, 0, 0]
    assert pixel(pixels, *outside) == [255, 255, 255]


@pytest.mark.parametrize(
    "part",
    [
        '<rect x="5" y="5" width="0" height="8" fill="#f00"/>',
        '<rect x="5" y="5" width="8" height="0" fill="#f00"/>',
        '<rect x="5" y="5" width="8" height="8" fill="none"/>',
        '<path d="M0 0L40 20" stroke="#f00"/>',
    ],
)
def test_what_has_no_size_or_no_color_is_not_there(part):
    assert torch.equal(drawing_pixels(svg(part)), drawing_pixels(svg()))


def test_half_opaque_is_half_way():
    pixels = drawing_pixels(svg('<rect width="40" height="20" fill="#000" fill-opacity="0.5"/>'))
    assert pixel(pixels, 20, 10) == pytest.approx([127] * 3, abs=1)


@pytest.mark.parametrize("fills", [False, True])
def test_pictures_keep_their_form_or_fill_their_box(fills):
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (0, 0, 255)).save(buffer, "PNG")
    how = ' preserveAspectRatio="none"' * fills
    link = f"data:image/png;base64,{b64encode(buffer.getvalue()).decode()}"
    pixels = drawing_pixels(svg(f'<image x="0" y="0" width="40" height="20" href="{link}"{how}/>'))
    assert pixel(pixels, 20, 10) == [0, 0, 255]
    assert pixel(pixels, 4, 10) == ([0, 0, 255] if fills else [255, 255, 255])


def test_by_night_each_color_is_another_one_and_no_two_become_one():
    page = page_of([], 8, 4)
    assert all(f'[fill="{day}"]{{fill:{night}}}' in page for day, night in NIGHT.items())
    others = {day: night for day, night in NIGHT.items() if day != "#000"}  # black has two spellings
    assert len(set(others.values())) == len(others)
