"""How alike the moments of a video are: a matrix, and drawn below the timeline."""

from base64 import b64encode
from io import BytesIO

import torch
from torch import Tensor, nn

from inflate3d.clips.video import Source
from inflate3d.errors import InflateError
from inflate3d.models.inception import InceptionI3d
from inflate3d.results.feature_presets import FeatureOptions
from inflate3d.results.features import Extractor
from inflate3d.results.network import PredictOptions
from inflate3d.results.prediction import VideoPrediction
from inflate3d.show.answers import GAP, LEFT, RIGHT, WIDTH, clock, timeline_parts
from inflate3d.show.pictures import heat_colors, page_of

PLOT = WIDTH - LEFT - RIGHT  # pixels: the matrix stands below the curves, moment below moment
MATRIX_HEIGHT = 340
SHADES = 64  # of the key


def self_similarity(features: Tensor) -> Tensor:
    """Compare each row of features with each other one: cosines, after the mean of all rows is taken away.

    Networks that end in a ReLU give features that are all alike in what is never zero; without the mean, what changes
    in a video is seen.

    Args:
        features: `[n, d]`.

    Returns:
        `[n, n]` float64 in -1..1, with ones on the diagonal.

    Raises:
        InflateError: They are no rows, or not finite.

    Example:
        >>> self_similarity(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])).round(decimals=2).tolist()
        [[1.0, -1.0, 1.0], [-1.0, 1.0, -1.0], [1.0, -1.0, 1.0]]
    """
    if features.ndim != 2 or 0 in features.shape or not features.isfinite().all():
        raise InflateError(
            "these are no features of moments",
            where="self_similarity",
            expected="[moments, numbers], finite",
            got=str(list(features.shape)),
            fix='take those of one view: found.features["rgb"][:, 0]',
        )
    rows = features.double()
    rows = rows - rows.mean(0)
    lengths = rows.norm(dim=1, keepdim=True)
    unit = torch.where(lengths > 1e-12, rows / lengths.clamp(min=1e-12), 0)
    alike = (unit @ unit.T).clamp(-1, 1)
    return ((alike + alike.T) / 2).fill_diagonal_(1)


def moments_of(model: nn.Module, source: Source, options: PredictOptions) -> tuple[Tensor, Tensor]:
    """Give the features of a video's moments: of I3D for every 8 frames, of other networks for every window.

    Args:
        model: A network with a `clip_spec`, in eval mode.
        source: See `inflate3d.predict`.
        options: Its frame rate, frames, window, stride and precision are used.

    Returns:
        Features `[n, d]`, and the second that each row stands for `[n]`.

    Raises:
        InflateError: The source cannot be read, or is too short.
    """
    whole = isinstance(model, InceptionI3d)
    how = FeatureOptions(
        window="whole" if whole else options.window,
        stride=None if whole else options.stride,
        fps=options.fps,
        precision="fp32" if options.precision == "int8" else options.precision,
        tail="drop" if whole else "pad-last",
    )
    found = Extractor({"rgb": model}, how, most_frames=options.num_frames).one(source)
    return found.features["rgb"].flatten(1), found.times_seconds


def similarity_svg(prediction: VideoPrediction, matrix: Tensor, times_seconds: Tensor, *, k: int = 5) -> str:
    """Draw the timeline of a video, and below it how alike its moments are, second below second.

    Args:
        prediction: Its windows, see `timeline_svg`.
        matrix: `[n, n]`, as `self_similarity` gives it.
        times_seconds: `[n]`: the second that each moment stands for, rising.
        k: Classes that are drawn.

    Returns:
        A self-contained SVG document, 960 pixels wide.

    Example:
        >>> from inflate3d.results.prediction import WindowPrediction
        >>> windows = tuple(WindowPrediction(i, i + 1.0, torch.tensor([0.0, i])) for i in range(3))
        >>> answer = VideoPrediction("a.mp4", 75, 25.0, torch.tensor([0.0, 1.0]), windows)
        >>> similarity_svg(answer, torch.eye(2), torch.tensor([0.7, 2.1])).count("<image")
        2
    """
    parts, top = timeline_parts(prediction, k)
    duration = max(prediction.windows[-1].end_seconds, 1e-9)
    low = float(matrix.min())
    place = torch.arange(PLOT, dtype=torch.float64) / PLOT * duration
    nearest = (place[:, None] - times_seconds.double()).abs().argmin(1)  # the moment that each pixel shows
    scaled = (matrix - low) / max(1 - low, 1e-9)
    rows = nearest[:: max(PLOT // MATRIX_HEIGHT, 1)][:MATRIX_HEIGHT]
    top += GAP
    parts.append(f'<text x="{LEFT}" y="{top - 8:.1f}" fill="#555">How alike moments are, by the features</text>')
    parts.append(_image(heat_colors(scaled[rows][:, nearest]), LEFT, top, PLOT, MATRIX_HEIGHT))
    for step in range(5):
        seconds = duration * step / 4
        x, y = LEFT + PLOT * step / 4, top + MATRIX_HEIGHT * step / 4
        parts.append(
            f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end" fill="#555" font-size="10">{clock(seconds)}</text>'
        )
        bottom = top + MATRIX_HEIGHT + 16
        parts.append(f'<text x="{x:.1f}" y="{bottom:.1f}" text-anchor="middle" fill="#555">{clock(seconds)}</text>')
    key = heat_colors(torch.linspace(1, 0, SHADES))[:, None]
    x = WIDTH - RIGHT + 18
    parts.append(_image(key, x, top, 12, MATRIX_HEIGHT))
    parts.append(f'<text x="{x + 20}" y="{top + 10:.1f}" fill="#555">1.00, the same</text>')
    parts.append(f'<text x="{x + 20}" y="{top + MATRIX_HEIGHT:.1f}" fill="#555">{low:.2f}</text>')
    return page_of(parts, WIDTH, top + MATRIX_HEIGHT + GAP)


def _image(colors: Tensor, x: float, y: float, width: float, height: float) -> str:
    from PIL import Image  # noqa: PLC0415 - comes with torchvision

    buffer = BytesIO()
    Image.fromarray((colors * 255).round().to(torch.uint8).numpy()).save(buffer, "PNG", optimize=True)
    data = b64encode(buffer.getvalue()).decode()
    box = f'x="{x:.1f}" y="{y:.1f}" width="{width}" height="{height}" preserveAspectRatio="none"'
    return f'<image {box} style="image-rendering:pixelated" href="data:image/png;base64,{data}"/>'
