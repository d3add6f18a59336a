"""A contact sheet of what a network is shown of a video: its windows, its frames, its crop."""

from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from inflate3d.clips.clip import ClipSpec
from inflate3d.clips.sampling import Window, windows
from inflate3d.clips.transforms import CROPS, crops
from inflate3d.clips.video import Source
from inflate3d.errors import InflateError, is_count
from inflate3d.results.network import PredictOptions, SmallFrame, open_source, small_frames
from inflate3d.results.prediction import rate_text
from inflate3d.show.answers import clock
from inflate3d.show.pictures import Words, put_words, write_picture

MOST_ROWS, MOST_COLUMNS = 24, 64
DIMMED = 0.35  # of the brightness of what no crop shows
GAP, LINE, EDGE, LETTERS = 4, 30, 8, 17  # pixels
GROUND = 27  # gray
LINE_COLOR = (0, 158, 115)  # Okabe and Ito's green
WORDS = "#c9d1d9"


def contact_sheet(source: Source, spec: ClipSpec, options: PredictOptions | None = None, *, columns: int = 6) -> Tensor:
    """Draw a row for each window: a whole frame with the crops in it, then frames of the crop as the network gets them.

    Pixels are the network's own. Of more windows than 24 the first ones are drawn, and the others are not read.

    Args:
        source: Video file, folder of pictures, `Clip` or array.
        spec: What the network is fed, `model.clip_spec`.
        options: Its frame rate, frames, window, stride and crops are used.
        columns: Frames of each window, evenly from its first to its last.

    Returns:
        `[h, w, 3]` uint8.

    Raises:
        InflateError: The source cannot be read, or `columns` is not 1 to 64.

    Example:
        >>> import numpy as np
        >>> spec = ClipSpec(fps=25, num_frames=5, min_frames=1, short_side=32, crop=28, value_range=(-1, 1))
        >>> contact_sheet(np.zeros((11, 45, 67, 3), np.uint8), spec, columns=3).shape
        torch.Size([224, 159, 3])
    """
    if not is_count(columns, MOST_COLUMNS):
        raise InflateError(
            "so many frames of a window cannot be drawn",
            where="contact_sheet",
            expected=f"columns from 1 to {MOST_COLUMNS}",
            got=repr(columns),
            fix="columns=6",
        )
    options = options or PredictOptions()
    stream = open_source(source, options)
    frames = islice(small_frames(stream, spec.short_side), options.num_frames)
    length = options.window or spec.num_frames
    found = list(islice(windows(frames, length, options.stride or length), MOST_ROWS))
    rows = [_row(window, spec, options, columns) for window in found]
    rate = options.fps if isinstance(options.fps, str) else float(options.fps)
    words = f"{Path(stream.source).name}: windows of {length} frames at {rate_text(rate)}, "
    words += f"short side {spec.short_side}, crop {spec.crop}, {options.crops}"
    width = rows[0].shape[1]
    head = _line(width, words)
    return torch.cat([head, *rows, _ground(EDGE, width)])


def write_sheet(path: Path, sheet: Tensor) -> None:
    """Write a contact sheet as PNG or WebP, whole or not at all.

    Raises:
        InflateError: The ending is another one, or the file cannot be written.
    """
    write_picture(path, sheet)


def _row(window: Window[SmallFrame], spec: ClipSpec, options: PredictOptions, columns: int) -> Tensor:
    length = len(window.frames)
    chosen = [round(i * (length - 1) / max(columns - 1, 1)) for i in range(columns)]
    whole = _outlined(window.frames[length // 2].picture, spec.crop, options)
    view = next(iter(crops(torch.empty(*whole.shape[:2]), spec.crop, options.crops)))
    tiles = [whole]
    for index in chosen:
        cut = crops(window.frames[index].picture.permute(2, 0, 1), spec.crop, options.crops)[view]
        tiles.append(cut.permute(1, 2, 0))
    height = max(len(tile) for tile in tiles)
    parts = []
    for tile in tiles:
        above = (height - len(tile)) // 2
        middle = torch.cat([_ground(above, tile.shape[1]), tile, _ground(height - len(tile) - above, tile.shape[1])])
        parts += [_ground(height, GAP), middle]
    line = torch.cat([_ground(height, EDGE), *parts[1:], _ground(height, EDGE)], 1)
    first, last = window.frames[0].time_seconds, window.frames[-1].time_seconds
    words = f"{clock(first)} - {clock(last)}, frames {', '.join(str(window.start + index) for index in chosen)}"
    if window.num_new < length:
        words += f" ({window.num_new} of {length} are new)"
    return torch.cat([_line(line.shape[1], words), line])


def _outlined(picture: Tensor, crop: int, options: PredictOptions) -> Tensor:
    """Dim what no crop shows, and draw a line around each crop."""
    height, width, _ = picture.shape
    shown = torch.zeros(height, width, dtype=torch.bool)
    edges = torch.zeros(height, width, dtype=torch.bool)
    for _, top, left, _ in CROPS[options.crops](height - crop, width - crop):
        shown[top : top + crop, left : left + crop] = True
        edges[top : top + crop, left : left + crop] = True
        edges[top + 2 : top + crop - 2, left + 2 : left + crop - 2] = False
    drawn = torch.where(shown[..., None], picture, (picture * DIMMED).to(torch.uint8))
    return torch.where(edges[..., None], torch.tensor(LINE_COLOR, dtype=torch.uint8), drawn)


def _ground(height: int, width: int) -> Tensor:
    return torch.full((height, width, 3), GROUND, dtype=torch.uint8)


def _line(width: int, words: str) -> Tensor:
    return put_words(_ground(LINE, width), [Words(words, EDGE, LINE / 2, size=LETTERS, color=WORDS)])
