"""A layer's filters through time as pictures: side by side as in the paper's Figure 4, in rows, or moving."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inflate3d.errors import InflateError, check_choice, nearest_names
from inflate3d.show.flow import flow_picture
from inflate3d.show.pictures import Words, check_ending, put_words, write_animation, write_picture

Layout = Literal["paper", "rows"]

MOST_FILTERS = 256  # that are drawn; a patch embedding has a thousand
WIDEST = 1400  # pixels of a picture, if one pixel for each tap allows it
MOVING_SIDE = 480  # pixels of a block that moves
LARGEST_ZOOM = 12
TILE_GAP, BLOCK_GAP, EDGE = 1, 8, 8  # pixels between filters and between blocks, and around all
LINE, LETTERS, SMALL_LETTERS = 26, 16, 12  # pixels of a line of words; readers see wide pictures smaller than they are
ROWS_BESIDE = 16  # filters below each other in a column of the layout `rows`
ROW_HEIGHT, NUMBER = 32, 24  # pixels, at most, of such a row; and for a filter's number
FRAMES_PER_SECOND = 6.0
BELOW, ABOVE = (0.835, 0.369, 0.0), (0.0, 0.447, 0.698)  # of a gray value: vermilion and blue of Okabe and Ito
ENDINGS = (".png", ".webp", ".gif")


@dataclass(frozen=True, eq=False)
class Filters:
    """The filters of one layer.

    Attributes:
        layer: Its name in the model.
        weight: `[filters, c, t, h, w]`, float32; of a 2D layer t is 1.
        title: What stands beside them; the name of the model, say.
    """

    layer: str
    weight: Tensor = field(repr=False)
    title: str = ""


def find_filters(model: nn.Module, layer: str | None = None, *, title: str = "") -> Filters:
    """Take the filters of a layer, by default those of the first convolution.

    Args:
        model: Any network, 2D or 3D.
        layer: Name of a module with kernels; of an inflated model the 2D model's name will do.
        title: What stands beside them in a picture.

    Raises:
        InflateError: The model has no convolution, or no such layer.

    Example:
        >>> found = find_filters(nn.Sequential(nn.Conv3d(3, 5, (7, 11, 13)), nn.Conv3d(5, 2, 1)))
        >>> found.layer, list(found.weight.shape)
        ('0', [5, 3, 7, 11, 13])
    """
    kernels = {path: weight for path, module in model.named_modules() if (weight := _kernel_of(module)) is not None}
    known = list(kernels)
    found = next((path for path in known if layer is None or path == layer or path.endswith(f"net.{layer}")), None)
    if layer is not None and found is None:  # DeepMind's names are of units
        found = next((path for path in known if path.startswith(f"{layer}.")), None)
    if found is None:
        raise InflateError(
            "the model has no such layer of filters" if known else "the model has no filters to show",
            where="find_filters",
            expected="the name of a convolution" if known else "a model with convolutions",
            got=repr(layer) if known else type(model).__name__,
            fix=f"did you mean {nearest_names(layer or '', known)}?" if known else "pass another model",
        )
    weight = kernels[found].detach().float().cpu()
    return Filters(found, weight if weight.ndim == 5 else weight.unsqueeze(2), title)


def _kernel_of(module: nn.Module) -> Tensor | None:
    weight = getattr(module, "weight", None)
    return weight if isinstance(weight, Tensor) and weight.ndim in (4, 5) and not weight.is_meta else None


def filter_colors(weight: Tensor) -> Tensor:
    """Color each tap of each filter; gray is zero, and each filter fills the range over all of its frames.

    Three input channels are red, green and blue. Two are motion to the right and down, in the colors of optical flow.
    Of one, or of many, the mean goes from vermilion (negative) over gray to blue (positive).

    Args:
        weight: `[filters, c, t, h, w]`.

    Returns:
        `[filters, t, h, w, 3]` float32 in 0..1.

    Example:
        >>> filter_colors(torch.tensor([-2.0, 0.0, 1.0]).view(1, 3, 1, 1, 1)).flatten().tolist()
        [0.0, 0.5, 0.75]
    """
    weight = weight.float()
    if weight.shape[1] == 2:
        flows = weight.movedim(1, 2).flatten(0, 1)
        largest = weight.norm(dim=1).amax((1, 2, 3)).clamp(min=1e-12).tolist()
        length = weight.shape[2]
        drawn = [flow_picture(flow, largest[index // length] * (1 + 1e-6)) for index, flow in enumerate(flows)]
        return torch.stack(drawn).view(-1, *weight.shape[2:], 3).float() / 255
    if weight.shape[1] != 3:
        weight = weight.mean(1, keepdim=True)
    scaled = weight / weight.abs().amax((1, 2, 3, 4), keepdim=True).clamp(min=1e-12)
    scaled = scaled.movedim(1, -1)
    if scaled.shape[-1] == 3:
        return scaled / 2 + 0.5
    target = torch.where(scaled > 0, torch.tensor(ABOVE), torch.tensor(BELOW))
    return 0.5 + scaled.abs() * (target - 0.5)


def draw_filters(after: Filters, before: Filters | None = None, *, layout: Layout = "paper") -> Tensor:
    """Draw filters over time.

    Args:
        after: What is shown.
        before: The same layer before training, say: a second row, with a time of its own.
        layout: "paper": time from left to right, in each block all filters at that time; "rows": a row for each filter,
            a column for each time.

    Returns:
        `[h, w, 4]` uint8; the ground is transparent.

    Raises:
        InflateError: There is no such layout.

    Source: Carreira & Zisserman 2017, figure 4.

    Example:
        >>> draw_filters(Filters("conv1", torch.randn(64, 3, 7, 7, 7))).shape[2]
        4
    """
    check_choice(layout, get_args(Layout), what="layout", where="draw_filters")
    bands = [_band(filters, layout) for filters in (after, before) if filters is not None]
    width = max(band.shape[1] for band in bands)
    return torch.cat([_widened(band, width) for band in bands])


def animate_filters(after: Filters, before: Filters | None = None) -> Tensor:
    """Let filters move: a frame for each time, all filters in it, those before on the right.

    Returns:
        `[t, h, w, 4]` uint8; of two numbers of frames the larger one, the shorter filters standing still at their end.
    """
    both = [filters for filters in (after, before) if filters is not None]
    length = max(filters.weight.shape[2] for filters in both)
    columns = []
    for filters in both:
        colors = filter_colors(filters.weight[:MOST_FILTERS])
        count, num_frames, height, width, _ = colors.shape
        across = math.ceil(math.sqrt(count))
        zoom = max(min(MOVING_SIDE // (across * max(height, width)), LARGEST_ZOOM), 1)
        blocks = [_block(colors[:, min(time, num_frames - 1)], across, zoom) for time in range(length)]
        framed = [F.pad(block, (0, 0, EDGE, EDGE, LINE + EDGE, EDGE)) for block in blocks]
        columns.append([put_words(one, [Words(_words(filters), EDGE, LINE / 2 + 2)]) for one in framed])
    tallest = max(column[0].shape[0] for column in columns)
    rows = [
        [F.pad(column[time], (0, 0, 0, 0, 0, tallest - len(column[time]))) for column in columns]
        for time in range(length)
    ]
    return torch.stack([torch.cat(row, 1) for row in rows])


def write_filters(path: Path, after: Filters, before: Filters | None = None, *, layout: Layout = "paper") -> None:
    """Write filters over time: PNG or WebP as a picture (`draw_filters`), GIF moving (`animate_filters`).

    Args:
        path: Its ending says which; `.moving.webp` moves too.
        after: What is shown.
        before: What it is compared with.
        layout: Of a picture.

    Raises:
        InflateError: The ending is another one, there is no such layout, or the file cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_filters(Path(folder) / "a.gif", Filters("conv1", torch.randn(5, 3, 7, 11, 13)))
        ...     (Path(folder) / "a.gif").read_bytes()[:6]
        b'GIF89a'
    """
    check_ending(path, ENDINGS, where=str(path))
    if path.suffix.lower() == ".gif" or path.name.lower().endswith(".moving.webp"):
        write_animation(path, animate_filters(after, before), fps=FRAMES_PER_SECOND)
    else:
        write_picture(path, draw_filters(after, before, layout=layout))


def _band(filters: Filters, layout: Layout) -> Tensor:
    colors = filter_colors(filters.weight[:MOST_FILTERS])
    title = Words(_words(filters), EDGE, LINE / 2, size=LETTERS)
    if layout == "rows":
        return _rows(colors, title)
    count, length, _, width, _ = colors.shape
    across = math.ceil(math.sqrt(count))
    zoom = max(min((WIDEST // length - BLOCK_GAP) // (across * (width + TILE_GAP)), LARGEST_ZOOM), 1)
    blocks = [_block(colors[:, time], across, zoom) for time in range(length)]
    step = blocks[0].shape[1] + BLOCK_GAP
    line = torch.cat([F.pad(block, (0, 0, 0, BLOCK_GAP)) for block in blocks], 1)
    band = _widened(F.pad(line, (0, 0, EDGE, EDGE - BLOCK_GAP, 2 * LINE, EDGE)), _least_width(title))
    middle = EDGE + blocks[0].shape[1] / 2
    times = [Words(f"t = {time + 1}", middle + time * step, LINE * 1.5, "m", LETTERS) for time in range(length)]
    return put_words(band, [title, *times])


def _rows(colors: Tensor, title: Words) -> Tensor:
    """Set each filter into a row of its own, and the rows into columns."""
    count, length, height, width, _ = colors.shape
    down = min(count, ROWS_BESIDE)
    columns = math.ceil(count / down)
    room = WIDEST // columns - NUMBER - 2 * BLOCK_GAP
    zoom = max(min(room // (length * (width + TILE_GAP)), ROW_HEIGHT // height), 1)
    step_x, step_y = width * zoom + TILE_GAP, height * zoom + TILE_GAP
    column = NUMBER + length * step_x + 2 * BLOCK_GAP
    size = (2 * LINE + down * step_y + EDGE, max(2 * EDGE + columns * column - 2 * BLOCK_GAP, _least_width(title)), 4)
    band = torch.zeros(size, dtype=torch.uint8)
    words = [title]
    for index, times in enumerate(colors):
        left, top = EDGE + index // down * column + NUMBER, 2 * LINE + index % down * step_y
        row = _block(times, length, zoom)
        band[top : top + row.shape[0], left : left + row.shape[1]] = row
        words.append(Words(str(index + 1), left - 5, top + step_y / 2, "r", SMALL_LETTERS))
        if index % down == 0:
            middles = [left + (time + 0.5) * step_x for time in range(length)]
            words += [Words(str(time + 1), x, LINE * 1.5, "m", SMALL_LETTERS) for time, x in enumerate(middles)]
    return put_words(band, words)


def _block(tiles: Tensor, across: int, zoom: int) -> Tensor:
    """Set tiles `[n, h, w, 3]` into a grid, `[h', w', 4]`."""
    taps = (tiles * 255).round().to(torch.uint8).repeat_interleave(zoom, 1).repeat_interleave(zoom, 2)
    opaque = F.pad(taps, (0, 1), value=255)
    spaced = F.pad(opaque, (0, 0, 0, TILE_GAP, 0, TILE_GAP))
    missing = -len(spaced) % across
    grid: Tensor = torch.cat([spaced, spaced.new_zeros(missing, *spaced.shape[1:])]).unflatten(0, (-1, across))
    return grid.transpose(1, 2).flatten(2, 3).flatten(0, 1)[:-TILE_GAP, :-TILE_GAP].contiguous()


def _widened(band: Tensor, width: int) -> Tensor:
    return F.pad(band, (0, 0, 0, max(width - band.shape[1], 0)))


def _words(filters: Filters) -> str:
    count, _, *kernel = filters.weight.shape
    shown = f"{count} filters" if count <= MOST_FILTERS else f"{MOST_FILTERS} of {count} filters"
    name = f"{filters.title}, " if filters.title else ""
    return f"{name}{filters.layer}: {shown} of {' x '.join(map(str, kernel))}"


def _least_width(title: Words) -> int:
    return round(title.x + len(title.text) * title.size * 0.62)
