"""Pixels of every protocol against pipelines written in numpy from their descriptions, and the networks they run."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from inflate3d.errors import InflateError
from inflate3d.models.inception import InceptionI3d
from inflate3d.results.fvd_protocols import PROTOCOLS, FeatureNetwork, Setup, pixels, protocol_named

SIZES = [(45, 67), (67, 45), (64, 64), (224, 224), (301, 240), (53, 300)]


def tf1_weights(size, side):
    """TensorFlow 1's grid: output i lies at i * in / out."""
    weights = np.zeros((side, size))
    for i in range(side):
        place = i * size / side
        low = int(place)
        weights[i, low] += 1 - (place - low)
        weights[i, min(low + 1, size - 1)] += place - low
    return weights


def half_pixel_weights(size, side):
    """The usual grid: output i lies at (i + 1/2) * in / out - 1/2."""
    weights = np.zeros((side, size))
    for i in range(side):
        place = max((i + 0.5) * size / side - 0.5, 0)
        low = min(int(place), size - 1)
        weights[i, low] += 1 - (place - low)
        weights[i, min(low + 1, size - 1)] += place - low
    return weights


def antialias_weights(size, side):
    """The usual grid with a triangle as wide as the step between outputs."""
    scale = size / side
    reach = max(scale, 1)
    weights = np.zeros((side, size))
    for i in range(side):
        center = (i + 0.5) * scale
        for j in range(max(int(center - reach + 0.5), 0), min(int(center + reach + 0.5), size)):
            weights[i, j] = max(1 - abs(j + 0.5 - center) / reach, 0)
        weights[i] /= weights[i].sum()
    return weights


def resize(frames, size, weights):
    down, right = weights(frames.shape[-2], size[0]), weights(frames.shape[-1], size[1])
    return down @ frames @ right.T


def short_side(frames, side, weights=half_pixel_weights):
    height, width = frames.shape[-2:]
    scale = side / min(height, width)
    size = (side, math.ceil(width * scale)) if height < width else (math.ceil(height * scale), side)
    frames = resize(frames, size, weights)
    top, left = (size[0] - side) // 2, (size[1] - side) // 2
    return frames[..., top : top + side, left : left + side]


# Each takes pixels 0..255 as float64 and gives what the network sees.
BY_HAND = {
    "tf-original": lambda x: 2 * resize(x, (224, 224), tf1_weights) / 255 - 1,
    "stylegan-v": lambda x: resize(x / 255 * 2 - 1, (224, 224), half_pixel_weights),
    "fvd-comparison": lambda x: x / 127.5 - 1,
    "common-metrics": lambda x: (short_side(x / 255, 224) - 0.5) * 2,
    "videogpt": lambda x: (short_side(x / 255, 224) - 0.5) * 2,
    "tats": lambda x: 2 * resize(x, (224, 224), half_pixel_weights) / 255 - 1,
    "cd-fvd-i3d": lambda x: 2 * resize(x, (224, 224), half_pixel_weights) / 255 - 1,
}


def clip(height, width, seed=0, frames=2):
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (2, 3, frames, height, width), generator=draw, dtype=torch.uint8)


RESIZED = [(name, size) for name in PROTOCOLS for size in SIZES if name != "fvd-comparison" or size == (224, 224)]


@pytest.mark.parametrize(("name", "size"), RESIZED, ids=str)
def test_pixels_are_those_of_the_description(name, size):
    clips = clip(*size)
    found = pixels(clips, PROTOCOLS[name])
    assert found.shape == (2, 3, 2, 224, 224)
    assert found.dtype == torch.float32
    assert np.abs(found.numpy() - BY_HAND[name](clips.double().numpy())).max() < 1e-4


def test_a_grey_ramp_tells_the_grids_apart():
    """At 64 -> 224, TensorFlow 1 shows the last columns of a ramp flat and is late by half a pixel elsewhere."""
    ramp = torch.arange(64, dtype=torch.uint8).expand(1, 1, 1, 64, 64)
    old, new = (pixels(ramp, PROTOCOLS[name])[0, 0, 0, 100] for name in ("tf-original", "tats"))
    levels = (old.double() + 1) * 127.5
    torch.testing.assert_close(levels[:220], torch.arange(220).double() * 64 / 224, rtol=0, atol=1e-4)
    middle = ((new - old).double() * 127.5)[50:150]
    torch.testing.assert_close(middle, torch.full((100,), (64 / 224 - 1) / 2).double(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("side", [37, 61])
def test_files_of_cd_fvd_go_through_its_loader(side):
    protocol = replace(PROTOCOLS["cd-fvd-i3d"], name="small", loader_side=side)
    assert PROTOCOLS["cd-fvd-i3d"].loader_side == 256
    clips = clip(45, 71, seed=side)
    levels = short_side(clips.double().numpy() / 255, side, antialias_weights) * 255
    found = pixels(clips, protocol, from_file=True).numpy()
    # where a level is whole but for rounding errors, its float32 may lie on either side
    below, above = (BY_HAND["cd-fvd-i3d"](np.floor(levels + error)) for error in (-1e-3, 1e-3))
    assert np.all(below - 1e-4 < found)
    assert np.all(found < above + 1e-4)
    assert np.mean(above - below > 1e-4) < 0.05
    loaded = np.floor(levels)
    assert np.abs(pixels(clips, protocol).numpy() - BY_HAND["cd-fvd-i3d"](loaded)).max() > 0.1  # tensors do not


@pytest.mark.parametrize(
    ("name", "to_levels"),
    [
        ("tf-original", lambda x: x * 255),
        ("common-metrics", lambda x: x * 255),
        ("stylegan-v", lambda x: np.clip(np.floor((x * 2 - 1) * 127.5 + 128), 0, 255)),
        ("videogpt", lambda x: np.floor(x * 255)),
        ("tats", lambda x: np.floor(x * 255)),
        ("cd-fvd-i3d", lambda x: np.floor(x * 255)),
    ],
)
@pytest.mark.parametrize("value_range", [(0.0, 1.0), (-1.0, 1.0), (-0.5, 0.5)])
def test_floats_become_bytes_where_the_code_makes_them(name, to_levels, value_range):
    low, high = value_range
    shape = (2, 3, 2, 31, 47)
    levels = torch.randint(0, 510, shape) / 2 + torch.rand(shape) * 0.4 + 0.05  # clear of wholes and halves
    unit = levels.double() / 255
    clips = (unit * (high - low) + low).float()
    found = pixels(clips, PROTOCOLS[name], value_range=value_range).numpy()
    assert np.abs(found - BY_HAND[name](to_levels(unit.numpy()))).max() < 1e-4


def test_black_and_white_stay_so_and_grey_gets_three_channels():
    for name, protocol in PROTOCOLS.items():
        side = 224 if name == "fvd-comparison" else 40
        for level, seen in ((0, -1.0), (255, 1.0)):
            found = pixels(torch.full((1, 1, 2, side, side), level, dtype=torch.uint8), protocol)
            assert found.shape == (1, 3, 2, 224, 224)
            assert (found - seen).abs().max() < 1e-6


def test_large_frames_are_taken_in_parts(monkeypatch):
    clips = clip(45, 67, frames=5)
    whole = pixels(clips, PROTOCOLS["videogpt"])
    monkeypatch.setattr("inflate3d.results.fvd_protocols.PIXELS_AT_A_TIME", 45 * 67 * 3)
    assert torch.equal(pixels(clips, PROTOCOLS["videogpt"]), whole)


def test_own_protocols_have_their_own_size_and_range():
    protocol = replace(PROTOCOLS["tats"], name="mine", side=32, value_range=(0.0, 1.0))
    found = pixels(clip(45, 67), protocol)
    assert found.shape == (2, 3, 2, 32, 32)
    assert 0 <= found.min() < 0.1
    assert 0.9 < found.max() <= 1


@pytest.mark.parametrize(
    ("clips", "name", "value_range", "message"),
    [
        (torch.zeros(3, 2, 45, 67, dtype=torch.uint8), "tats", None, "these are no clips"),
        (torch.zeros(1, 9, 45, 67, 3, dtype=torch.uint8), "tats", None, "these are no clips"),
        (np.zeros((1, 3, 2, 45, 67), np.uint8), "tats", None, "these are no clips"),
        (torch.zeros(1, 3, 0, 45, 67), "tats", (0.0, 1.0), "hold no pixel"),
        (torch.zeros(1, 3, 2, 224, 225), "fvd-comparison", (0.0, 1.0), "does not resize"),
        (torch.zeros(1, 3, 2, 4, 200, dtype=torch.uint8), "videogpt", None, "too long and narrow"),
        (torch.zeros(1, 3, 2, 45, 67), "tats", None, "does not say what black and white are"),
        (torch.full((1, 3, 2, 45, 67), 255.0), "tats", (0.0, 1.0), "outside of the declared range"),
        (torch.full((1, 3, 2, 45, 67), torch.nan), "tats", (0.0, 1.0), "no number"),
        (torch.zeros(1, 3, 2, 45, 67, dtype=torch.int64), "tats", None, "does not fit the dtype"),
        (torch.zeros(1, 3, 2, 45, 67, dtype=torch.uint8), "tats", (0.0, 1.0), "does not fit the dtype"),
    ],
)
def test_what_is_no_clip_of_the_protocol_is_refused(clips, name, value_range, message):
    with pytest.raises(InflateError, match=message):
        pixels(clips, PROTOCOLS[name], value_range=value_range)


def test_protocols_are_looked_up():
    assert protocol_named("tats") is PROTOCOLS["tats"]
    own = replace(PROTOCOLS["tats"], name="mine", bn_eps=1e-3)
    assert protocol_named(own) is own
    with pytest.raises(InflateError, match="no such protocol") as refused:
        protocol_named("stylegan")
    assert "stylegan-v" in refused.value.fix
    with pytest.raises(InflateError, match="by the name of a known one"):
        protocol_named(replace(PROTOCOLS["tats"], bn_eps=1e-3))


def test_the_networks_are_those_of_the_table():
    assert {name for name, protocol in PROTOCOLS.items() if protocol.bn_eps == 1e-5} == {
        "videogpt",
        "tats",
        "cd-fvd-i3d",
    }
    assert {name for name, protocol in PROTOCOLS.items() if protocol.covariance == "biased"} == {
        "stylegan-v",
        "cd-fvd-i3d",
    }


def test_i3d_gets_the_epsilon_and_the_padding_of_the_protocol_and_keeps_its_tensors():
    model = InceptionI3d(num_classes=5, padding="static", bn_eps=1e-4).eval()
    for name, protocol in PROTOCOLS.items():
        module = FeatureNetwork(model, protocol).module
        norms = [norm for norm in module.modules() if isinstance(norm, nn.BatchNorm3d)]
        assert {norm.eps for norm in norms} == {protocol.bn_eps}, name
        assert {module.rule for module in module.modules() if hasattr(module, "rule")} == {"same"}
        assert not module.training
        assert module.Conv3d_1a_7x7.conv_3d.weight.data_ptr() == model.Conv3d_1a_7x7.conv_3d.weight.data_ptr()
    assert {norm.eps for norm in model.modules() if isinstance(norm, nn.BatchNorm3d)} == {1e-4}
    plain = InceptionI3d(num_classes=5).eval()
    assert FeatureNetwork(plain, PROTOCOLS["stylegan-v"]).module is plain


class Means(nn.Module):
    """Three features: the mean of each channel."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3, dtype=torch.float64))

    def forward(self, clips):
        return clips.mean((2, 3, 4)) * self.scale


def test_any_module_gives_features_in_its_own_precision():
    network = FeatureNetwork(Means().eval(), PROTOCOLS["tats"])
    found = network(pixels(clip(45, 67), PROTOCOLS["tats"]))
    assert found.shape == (2, 3)
    assert found.dtype == torch.float32
    other = Means().eval()
    other.scale.data += 1e-9
    assert network.name == "Means"
    assert network.sha256 != FeatureNetwork(other, PROTOCOLS["tats"]).sha256


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Means().train(), "in training mode"),
        (lambda clips: clips, "no module"),
    ],
)
def test_networks_that_cannot_be_used_are_refused(model, message):
    with pytest.raises(InflateError, match=message):
        FeatureNetwork(model, PROTOCOLS["tats"])


def test_answers_that_are_no_features_and_short_clips_are_refused():
    clips = torch.zeros(2, 3, 8, 32, 32)
    for model in (nn.Identity(), nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 32 * 32, 2))):
        if isinstance(model, nn.Sequential):
            model[1].weight.data.fill_(torch.inf)
        with pytest.raises(InflateError, match="does not answer with features"):
            FeatureNetwork(model.eval(), PROTOCOLS["tats"])(clips)
    with pytest.raises(InflateError, match="too short for the network"):
        FeatureNetwork(InceptionI3d(num_classes=2).eval(), PROTOCOLS["tats"])(clips)


def test_setups_are_written_and_compared():
    setup = Setup(PROTOCOLS["cd-fvd-i3d"], 16, 2, "native", "InceptionI3d", "abc" * 21)
    assert Setup.from_json(setup.to_json()) == setup
    other = replace(setup, protocol=PROTOCOLS["tats"], num_frames=17)
    differences = "; ".join(setup.differences(other))
    assert "num_frames 16 and 17" in differences
    assert "covariance biased and unbiased" in differences
    assert not setup.differences(Setup.from_json(setup.to_json()))
    assert setup.fingerprint() != other.fingerprint()
