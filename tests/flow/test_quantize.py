"""Quantizers against byte tables that follow the published formulas value by value."""

import numpy as np
import pytest
import torch

from inflate3d.errors import InflateError
from inflate3d.flow.quantize import QUANTIZERS, dequantize, quantize


def mediapipe(v, bound):
    """flow_quantizer_model.cc: float arithmetic, then a cast."""
    low, high = np.float32(-bound), np.float32(bound)
    share = (v - low) / (high - low)
    share = min(max(share, np.float32(0)), np.float32(1))
    return int(share * np.float32(255))


def denseflow(v, bound):
    """common.cpp, CAST: double arithmetic, cvRound rounds halves to even."""
    v = float(v)
    if v > bound:
        return 255
    return 0 if v < -bound else round(255 * (v - -bound) / (bound - -bound))


def mmaction2(v, bound):
    """flow_extraction.py, flow_to_img: a float32 array, three steps in place, then astype."""
    flow = np.clip(np.array([v], np.float32), -bound, bound)
    flow += bound
    flow *= 255 / float(2 * bound)
    return int(flow.astype(np.uint8)[0])


def video_features(v, bound):
    """transforms.py, Clamp and ToUInt8: float32, rounded halves to even, kept as floats."""
    v = min(max(v, np.float32(-bound)), np.float32(bound))
    return int(np.rint(np.float32(128) + np.float32(255 / (2 * bound)) * v))


FORMULAS = {"mediapipe": mediapipe, "denseflow": denseflow, "mmaction2": mmaction2, "video-features": video_features}


def values(bound):
    """A grid beyond the bounds, and the neighbours of each step's border in float32."""
    borders = np.concatenate([np.arange(257) / 255 * 2 * bound - bound, (np.arange(513) / 2 - 128) / 255 * 2 * bound])
    borders = borders.astype(np.float32)
    near = [np.nextafter(borders, np.float32(side)) for side in (-np.inf, np.inf)]
    grid = np.linspace(-1.3 * bound, 1.3 * bound, 1999, dtype=np.float32)
    return np.concatenate([borders, *near, grid, np.float32([0.0, -0.0, bound, -bound, 1e9, -1e9])])


@pytest.mark.parametrize("bound", [20.0, 32.0, 7.3])
@pytest.mark.parametrize("name", FORMULAS)
def test_codes_are_those_of_the_formula_to_the_bit(name, bound):
    table = values(bound)
    expected = [FORMULAS[name](v, bound) for v in table]
    found = quantize(torch.from_numpy(table), name, bound=bound)
    assert found.dtype == (torch.int16 if name == "video-features" else torch.uint8)
    assert found.tolist() == expected


@pytest.mark.parametrize(("name", "zero", "top"), [("mediapipe", 127, 255), ("denseflow", 128, 255),
                                                   ("mmaction2", 127, 255), ("video-features", 128, 256)])  # fmt: skip
def test_no_motion_and_most_motion(name, zero, top):
    assert quantize(torch.tensor([0.0, 20.0, -20.0]), name).tolist() == [zero, top, 0]


@pytest.mark.parametrize("name", FORMULAS)
def test_the_way_back_is_as_far_off_as_one_step(name):
    flow = torch.linspace(-20, 20, 4001)
    back = dequantize(quantize(flow, name))
    assert (back - flow).abs().max() <= (20.001 / 255 if name == "denseflow" else 40.001 / 255)


def test_codes_come_back_as_their_loaders_read_them():
    """kinetics_dataset.py: (x / 255 - 0.5) * 2 * 20."""
    codes = np.arange(256, dtype=np.uint8)
    expected = (codes.astype(np.float64) / 255 - 0.5) * 2 * 20
    assert np.abs(dequantize(torch.from_numpy(codes)).numpy() - expected).max() < 5e-6
    assert quantize(dequantize(torch.from_numpy(codes)), "denseflow").tolist() == codes.tolist()
    assert np.abs(dequantize(torch.from_numpy(codes), bound=32).numpy() - expected * 1.6).max() < 1e-5


def test_none_only_cuts_off():
    flow = torch.tensor([-30.0, -0.123, 0.0, 19.5, 30.0])
    assert quantize(flow, "none").tolist() == [-20.0, float(flow[1]), 0.0, 19.5, 20.0]
    assert dequantize(quantize(flow, "none")).tolist() == quantize(flow, "none").tolist()


def test_what_cannot_be_quantized_is_told():
    with pytest.raises(InflateError, match=r"quantizer 'mmaction', bound -1(.|\n)*did you mean mmaction2"):
        quantize(torch.zeros(2), "mmaction", bound=-1)
    with pytest.raises(InflateError, match=r"bound 0(.|\n)*bound=20.0"):
        dequantize(torch.zeros(2), bound=0)
    with pytest.raises(InflateError, match=r"only float32(.|\n)*float64"):
        quantize(torch.zeros(2, dtype=torch.float64))
    assert list(QUANTIZERS) == ["none", *FORMULAS]
