"""Pictures, animations and drawings into files, by the file's ending; our own SVG as pixels."""

import xml.etree.ElementTree as ET
from base64 import b64decode
from collections.abc import Iterable, Sequence
from fractions import Fraction
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import av
import numpy as np
import torch
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from torch import Tensor

from inflate3d.atomic import replacing, write_text
from inflate3d.errors import InflateError

if TYPE_CHECKING:  # Pillow comes with torchvision, and is imported where it is needed
    from PIL.Image import Image

STILL, MOVING = (".png", ".webp"), (".gif", ".webp", ".mp4")
DRAWN = (".svg", ".png")
CARD = (27, 31, 36)  # behind what is transparent, in files that know no transparency
MUTED = "#737b84"  # words that can be read on white and on black
# What colors of drawings become at night; words without a color of their own are black
NIGHT = {
    "#fff": "#1b1f24",
    "#000": "#e6e8ea",
    "#000000": "#e6e8ea",
    "#555": "#a3abb3",
    "#999": "#70787f",
    "#ddd": "#3a4149",
    "#eee": "#2a3037",
    "#0072B2": "#4aa8e0",
}
SHARP = 2  # pixels of a PNG for one unit of a drawing
BASELINE = 0.36  # of the size of letters: from the middle of a line down to where SVG puts its text

# From nothing to much: luminance rises all the way, so that color-blind readers and gray prints show the same order.
# Seven of inferno's colors, by S. van der Walt and N. Smith (matplotlib, CC0)
HEAT = ("#000004", "#320a5e", "#781c6d", "#bc3754", "#ed6925", "#fbb61a", "#fcffa4")


def heat_colors(values: Tensor) -> Tensor:
    """Color values in 0..1 from black over red to yellow.

    Args:
        values: Of any shape; what is beyond is cut.

    Returns:
        `[..., 3]` float32 in 0..1.

    Example:
        >>> heat_colors(torch.tensor([0.0, 0.5, 1.0])).mul(255).round().int().tolist()
        [[0, 0, 4], [188, 55, 84], [252, 255, 164]]
    """
    table = torch.tensor([_rgb(color) for color in HEAT], dtype=torch.float32) / 255
    place = values.float().clamp(0, 1) * (len(table) - 1)
    low = place.long().clamp(max=len(table) - 2)
    share = (place - low)[..., None]
    return table[low] * (1 - share) + table[low + 1] * share


def check_ending(path: Path, endings: Sequence[str], *, where: str) -> None:
    """Refuse a file whose ending names no format that can be written.

    Raises:
        InflateError: It is another one.

    Example:
        >>> check_ending(Path("plan.svg"), DRAWN, where="show plan")
    """
    if path.suffix.lower() not in endings:
        raise InflateError(
            "the ending of the file names no format that can be written here",
            where=where,
            expected=", ".join(endings),
            got=path.name,
            fix=f"-o {path.with_suffix(endings[0]).name}",
        )


def write_picture(path: Path, picture: Tensor) -> None:
    """Write a picture as PNG or WebP, whole or not at all; frames of a video lose a little in WebP.

    Args:
        path: Its ending says which.
        picture: `[h, w, 3]` or, with opacity, `[h, w, 4]`, uint8.

    Raises:
        InflateError: The ending is another one, or the file cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_picture(Path(folder) / "a.png", torch.zeros(5, 7, 3, dtype=torch.uint8))
        ...     (Path(folder) / "a.png").read_bytes()[1:4]
        b'PNG'
    """
    check_ending(path, STILL, where=str(path))
    kind: dict[str, Any] = {"format": "PNG", "optimize": True}
    if path.suffix.lower() == ".webp":
        kind = {"format": "WEBP", "lossless": picture.shape[2] == 4, "quality": 85}
    from PIL import Image  # noqa: PLC0415

    with replacing(path) as draft:
        Image.fromarray(picture.numpy()).save(draft, **kind)


def write_animation(path: Path, frames: Iterable[Tensor], *, fps: float) -> None:
    """Write frames as GIF or WebP, which go round for ever, or as H.264 video (MP4); whole or not at all.

    Args:
        path: Its ending says which.
        frames: Each `[h, w, 3]` or, with opacity, `[h, w, 4]`, uint8; all of one size; read once. Of an odd number of
            rows or columns a video leaves the last one out.
        fps: Frames per second; a GIF counts in hundredths of a second, and players show 50 per second at most.

    Raises:
        InflateError: The ending is another one, there are no frames, or the file cannot be written.

    Example:
        >>> import tempfile
        >>> frames = torch.arange(3, dtype=torch.uint8).view(3, 1, 1, 1).expand(3, 16, 24, 3) * 90
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_animation(Path(folder) / "a.gif", frames, fps=10.0)
        ...     (Path(folder) / "a.gif").read_bytes()[:6]
        b'GIF89a'
    """
    check_ending(path, MOVING, where=str(path))
    frames = iter(frames)
    first = next(frames, None)
    if first is None:
        raise InflateError(
            "there is nothing to draw",
            where=str(path),
            expected="at least one frame",
            got="none",
            fix="pass a video with frames",
        )
    every = chain([first], frames)
    with replacing(path) as draft:
        if path.suffix.lower() == ".mp4":
            _encode(draft, every, fps)
        else:
            _collect(draft, every, fps, is_gif=path.suffix.lower() == ".gif")


def _collect(draft: Path, frames: Iterable[Tensor], fps: float, *, is_gif: bool) -> None:
    from PIL import Image  # noqa: PLC0415

    if is_gif:
        pictures = [_on_card(frame).quantize(kmeans=3, dither=Image.Dither.NONE) for frame in frames]
        kind: dict[str, Any] = {"format": "GIF", "optimize": True, "disposal": 1}
        kind["duration"] = round(100 / min(fps, 50.0)) * 10
    else:
        pictures = [Image.fromarray(frame.numpy()) for frame in frames]
        kind = {"format": "WEBP", "lossless": pictures[0].mode == "RGBA", "quality": 80, "duration": round(1000 / fps)}
    pictures[0].save(draft, save_all=True, append_images=pictures[1:], loop=0, **kind)


def _encode(draft: Path, frames: Iterable[Tensor], fps: float) -> None:
    stream: VideoStream | None = None
    with av.open(str(draft), "w", format="mp4", options={"movflags": "faststart"}) as container:
        for frame in frames:
            shown = np.asarray(_on_card(frame))[: frame.shape[0] & ~1, : frame.shape[1] & ~1]
            if stream is None:
                stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
                stream.height, stream.width, stream.pix_fmt = shown.shape[0], shown.shape[1], "yuv420p"
            container.mux(stream.encode(VideoFrame.from_ndarray(np.ascontiguousarray(shown), format="rgb24")))
        assert stream is not None
        container.mux(stream.encode(None))


def _on_card(frame: Tensor) -> "Image":
    from PIL import Image  # noqa: PLC0415

    picture = Image.fromarray(frame.numpy())
    if picture.mode != "RGBA":
        return picture
    card = Image.new("RGBA", picture.size, (*CARD, 255))
    return Image.alpha_composite(card, picture).convert("RGB")


class Words(NamedTuple):
    """A line of words in a picture.

    Attributes:
        text: What it says.
        x: Pixels from the left to its anchor.
        y: Pixels from the top to its middle.
        anchor: "l", "m" or "r": where x is, at its left end, its middle or its right end.
        size: Of the letters, in pixels.
        color: As #rrggbb.
    """

    text: str
    x: float
    y: float
    anchor: str = "l"
    size: float = 12
    color: str = MUTED


def put_words(picture: Tensor, words: Iterable[Words]) -> Tensor:
    """Write lines of words into a picture `[h, w, 3 or 4]` uint8; gives a new one.

    Example:
        >>> blank = torch.zeros(20, 60, 4, dtype=torch.uint8)
        >>> bool(put_words(blank, [Words("t = 1", 2, 10)]).any())
        True
    """
    from PIL import Image, ImageDraw, ImageFont  # noqa: PLC0415

    drawn = Image.fromarray(picture.numpy())
    brush = ImageDraw.Draw(drawn)
    for line in words:
        letters = ImageFont.load_default(line.size)
        brush.text((line.x, line.y), line.text, _rgb(line.color), letters, f"{line.anchor}m")
    return torch.from_numpy(np.array(drawn))


def page_of(parts: Sequence[str], width: float, height: float, *, night: bool = True) -> str:
    """Make a drawing of its parts, on a card that is white by day and dark by night.

    Args:
        parts: Elements of SVG that say their own colors; those of `NIGHT` become lighter in the dark.
        width: Pixels.
        height: Pixels.
        night: Whether it becomes dark where the reader's other pages are; not inside a page that stays white.

    Returns:
        A self-contained SVG document.

    Example:
        >>> page_of([], 8, 4).startswith("<svg")
        True
    """
    dark = "".join(f'[{name}="{day}"]{{{name}:{other}}}' for day, other in NIGHT.items() for name in ("fill", "stroke"))
    style = f"<style>@media(prefers-color-scheme:dark){{{dark}}}</style>" if night else ""
    size = f'viewBox="0 0 {width:g} {height:g}" width="{width:g}"'
    letters = 'font-family="system-ui,sans-serif" font-size="12"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} {letters}>'
    card = f'<rect width="{width:g}" height="{height:g}" rx="6" fill="#fff"/>'
    return "\n".join([head + style, card, *parts, "</svg>\n"])


def write_drawing(path: Path, svg: str) -> None:
    """Write a drawing as it is (.svg) or as pixels (.png), whole or not at all.

    Args:
        path: Its ending says which.
        svg: A drawing of this package; see `drawing_pixels`.

    Raises:
        InflateError: The ending is another one, or the file cannot be written.
    """
    check_ending(path, DRAWN, where=str(path))
    if path.suffix.lower() == ".svg":
        write_text(path, svg)
    else:
        write_picture(path, drawing_pixels(svg))


def drawing_pixels(svg: str) -> Tensor:
    """Paint a drawing of this package: what it is made of (rect, line, polyline, circle, text, image) and no more.

    Args:
        svg: The drawing; each element has its own colors, and there are no groups and no transforms.

    Returns:
        `[h, w, 3]` uint8, two pixels for each unit.

    Example:
        >>> head = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 8 4"><rect width="8" height="4" fill="#fff"/>'
        >>> drawing_pixels(f'{head}<rect x="2" width="3" height="4" fill="#0072B2"/></svg>')[0, ::4].tolist()
        [[255, 255, 255], [0, 114, 178], [0, 114, 178], [255, 255, 255]]
    """
    from PIL import Image  # noqa: PLC0415

    root = ET.fromstring(svg)
    _, _, width, height = (float(value) for value in root.attrib["viewBox"].split())
    twice = 2 * SHARP  # painted at twice the size, so that edges are smooth
    canvas = Image.new("RGB", (round(width * twice), round(height * twice)), "#fff")
    for element in root:
        _paint(canvas, element, twice)
    small = canvas.resize((round(width * SHARP), round(height * SHARP)), Image.Resampling.BOX)
    return torch.from_numpy(np.array(small))


def _paint(canvas: "Image", element: ET.Element, scale: int) -> None:
    from PIL import ImageDraw, ImageFont  # noqa: PLC0415

    brush = ImageDraw.Draw(canvas, "RGBA")
    tag, at = element.tag.rpartition("}")[2], element.attrib

    def number(name: str, otherwise: float = 0.0) -> float:
        return float(at.get(name, otherwise)) * scale

    fill, stroke = (_color(at.get(name), at.get(f"{name}-opacity", "1")) for name in ("fill", "stroke"))
    wide = max(round(number("stroke-width", 1)), 1)
    if tag == "rect":
        left, top = number("x"), number("y")
        right, bottom = left + number("width") - 1, top + number("height") - 1
        if right >= left and bottom >= top:
            brush.rounded_rectangle((left, top, right, bottom), number("rx"), fill, stroke, wide if stroke else 0)
    elif tag == "line":
        brush.line([(number("x1"), number("y1")), (number("x2"), number("y2"))], stroke, wide)
    elif tag == "polyline":
        points = [tuple(float(one) * scale for one in pair.split(",")) for pair in at["points"].split()]
        brush.line([(x, y) for x, y in points], stroke, wide, joint="curve")
    elif tag == "circle":
        brush.circle((number("cx"), number("cy")), number("r"), fill)
    elif tag == "text":
        size = number("font-size", 12)
        anchor = {"middle": "mm", "end": "rm"}.get(at.get("text-anchor", ""), "lm")
        place = (number("x"), number("y") - BASELINE * size)
        brush.text(place, "".join(element.itertext()), fill or (0, 0, 0, 255), ImageFont.load_default(size), anchor)
    elif tag == "image":
        box = (number("x"), number("y"), number("width"), number("height"))
        _paste(canvas, at["href"], box, fills=at.get("preserveAspectRatio") == "none")


def _paste(canvas: "Image", link: str, box: tuple[float, float, float, float], *, fills: bool) -> None:
    """Put a picture into the middle of its box, as large as it fits; or all over it, pixels staying squares."""
    from PIL import Image  # noqa: PLC0415

    left, top, width, height = box
    picture = Image.open(BytesIO(b64decode(link.partition(",")[2]))).convert("RGB")
    if fills:
        stretched = picture.resize((round(width), round(height)), Image.Resampling.NEAREST)
        canvas.paste(stretched, (round(left), round(top)))
        return
    share = min(width / picture.width, height / picture.height)
    picture = picture.resize((max(round(picture.width * share), 1), max(round(picture.height * share), 1)))
    canvas.paste(picture, (round(left + (width - picture.width) / 2), round(top + (height - picture.height) / 2)))


def _color(text: str | None, opacity: str) -> tuple[int, int, int, int] | None:
    return None if text in (None, "none") else (*_rgb(str(text)), round(255 * float(opacity)))


def _rgb(text: str) -> tuple[int, int, int]:
    digits = text.lstrip("#")
    digits = "".join(digit * 2 for digit in digits) if len(digits) == 3 else digits
    red, green, blue = (int(digits[at : at + 2], 16) for at in (0, 2, 4))
    return red, green, blue
