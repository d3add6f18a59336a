"""Flow as bytes and back: the quantizers of five projects, each to the last bit on a CPU."""

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from inflate3d.errors import InflateError, is_number, nearest_names

Quantizer = Literal["none", "mediapipe", "denseflow", "mmaction2", "video-features"]

BOUND_PIXELS = 20.0  # DeepMind's, and the default of all but denseflow's own command, which has 32


def _none(flow: Tensor, bound: float) -> Tensor:
    return flow.clamp(-bound, bound)


def _mediapipe(flow: Tensor, bound: float) -> Tensor:
    return (((flow + bound) / (2 * bound)).clamp(0, 1) * 255).to(torch.uint8)


def _denseflow(flow: Tensor, bound: float) -> Tensor:
    exact = flow.double().clamp(-bound, bound)
    return (255 * (exact + bound) / (2 * bound)).round().to(torch.uint8)


def _mmaction2(flow: Tensor, bound: float) -> Tensor:
    return ((flow.clamp(-bound, bound) + bound) * (255 / (2 * bound))).to(torch.uint8)


def _video_features(flow: Tensor, bound: float) -> Tensor:
    return (128 + 255 / (2 * bound) * flow.clamp(-bound, bound)).round().to(torch.int16)


QUANTIZERS: dict[Quantizer, Callable[[Tensor, float], Tensor]] = {
    "none": _none,
    "mediapipe": _mediapipe,
    "denseflow": _denseflow,
    "mmaction2": _mmaction2,
    "video-features": _video_features,
}


def quantize(flow: Tensor, quantizer: Quantizer = "mediapipe", *, bound: float = BOUND_PIXELS) -> Tensor:
    """Turn pixels of motion into the codes of a project; motion beyond the bound is cut off.

    | quantizer | rule for v pixels within the bound b | no motion |
    |---|---|---|
    | `none` | v, as float32 | 0 |
    | `mediapipe` | (v + b) / 2b * 255, truncated: what DeepMind's flow network was trained on | 127 |
    | `denseflow` | 255 (v + b) / 2b, rounded half to even, in float64 | 128 |
    | `mmaction2` | (v + b) * 255 / 2b, truncated | 127 |
    | `video-features` | 128 + 255 v / 2b, rounded half to even: 0 to 256, so 16 bits | 128 |

    Args:
        flow: float32, pixels, any shape.
        quantizer: A key of `QUANTIZERS`.
        bound: Largest motion, in pixels.

    Returns:
        Codes of the same shape: uint8, int16 (`video-features`) or float32 (`none`).

    Raises:
        InflateError: The quantizer is unknown, the bound is not positive, or the flow is no float32.

    Source: mediapipe `calculators/video/tool/flow_quantizer_model.cc`; denseflow `src/common.cpp`, CAST; mmaction2
    `tools/misc/flow_extraction.py`, flow_to_img; video_features `models/transforms.py`, Clamp and ToUInt8.

    Example:
        >>> pixels = torch.tensor([-20.0, -0.5, 0.0, 0.5, 20.0, 99.0])
        >>> {name: quantize(pixels, name).tolist() for name in ("mediapipe", "denseflow", "video-features")}
        {'mediapipe': [0, 124, 127, 130, 255, 255], 'denseflow': [0, 124, 128, 131, 255, 255],
        'video-features': [0, 125, 128, 131, 256, 256]}
    """
    check_quantizer(quantizer, bound)
    if flow.dtype != torch.float32:
        raise InflateError(
            "only float32 is quantized to the last bit",
            where="quantize",
            expected="pixels as float32",
            got=f"{list(flow.shape)} {flow.dtype}",
            fix="convert it: flow.float()",
        )
    return QUANTIZERS[quantizer](flow, float(bound))


def dequantize(codes: Tensor, *, bound: float = BOUND_PIXELS) -> Tensor:
    """Turn codes back into pixels, as all readers of such files do: b (x / 127.5 - 1); floats are taken for pixels.

    No code stands for no motion: 127 becomes -b/255 and 128 b/255, 0.08 pixels for a bound of 20.

    Raises:
        InflateError: The bound is not positive.

    Source: mediapipe `examples/desktop/media_sequence/kinetics_dataset.py`: (x / 255 - 0.5) * 2 * 20.

    Example:
        >>> dequantize(torch.tensor([0, 51, 255], dtype=torch.uint8)).tolist()
        [-20.0, -12.0, 20.0]
    """
    check_quantizer("none", bound)
    if codes.is_floating_point():
        return codes.float()
    return (codes.float() / 127.5 - 1) * bound


def check_quantizer(quantizer: str, bound: float) -> None:
    """Refuse a quantizer that does not exist and a bound that is not positive.

    Raises:
        InflateError: One of the two, or both.

    Example:
        >>> check_quantizer("mediapipe", 20.0)
    """
    faults = [f"quantizer {quantizer!r}"] * (quantizer not in QUANTIZERS)
    faults += [f"bound {bound!r}"] * (not is_number(bound) or bound <= 0)
    if faults:
        raise InflateError(
            "flow cannot be quantized so",
            where="quantize",
            expected=f"quantizer {', '.join(get_args(Quantizer))}; bound > 0, in pixels",
            got=", ".join(faults),
            fix=f"did you mean {nearest_names(str(quantizer), QUANTIZERS)}?"
            if quantizer not in QUANTIZERS
            else "pass bound=20.0",
        )
