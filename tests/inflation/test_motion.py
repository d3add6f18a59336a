"""The proof sees where a model looks: whatever mixes up time fails it, with strides in time as without."""

import pytest
import torch
import torch.nn.functional as F
from small_models import Residual, randomize
from timm import layers
from torch import nn
from torch.nn.utils import parametrizations

from inflate3d import Insert, Rule, inflate, prove
from inflate3d.inflation import adapters, inserted
from inflate3d.inflation.motion import _draw, frames_seen, look

PICTURE = torch.zeros(1, 3, 37, 45)
OWN = "with taps of the present alone, a step sees its own frame"


pytestmark = pytest.mark.usefixtures("one_thread")


def sights(model2d, preset="video", **planning):
    model3d = inflate(randomize(model2d).double(), preset, example=PICTURE, **planning)
    return {sight.law: sight.holds for sight in look(model3d.eval(), PICTURE.double())}


def test_what_is_drawn_is_the_same_on_every_device():
    """Generators are the CPU's, also where a model is not."""
    here, there = nn.Parameter(torch.zeros(4, 3)), nn.Parameter(torch.zeros(4, 3, device="meta"))
    _draw(there, torch.Generator().manual_seed(1))
    _draw(here, torch.Generator().manual_seed(1))
    wanted = nn.init.normal_(torch.empty(4, 3), std=0.1, generator=torch.Generator().manual_seed(1))
    assert torch.equal(here, wanted) and there.is_meta


class Levels(nn.Module):
    """Gives a map of every level, and pools by a call."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 5, 3, 2)

    def forward(self, x):
        x = self.first(x)
        y = F.max_pool2d(torch.relu(self.second(x)), 2)
        return x, y, F.avg_pool2d(F.max_pool2d(y, 2), 3, 1)


class Twice(nn.Module):
    """Strides in time twice with one convolution."""

    def __init__(self):
        super().__init__()
        self.stem, self.down = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3, 2, 1)

    def forward(self, x):
        return self.down(self.down(self.stem(x)))


def chain(*parts):
    return lambda: nn.Sequential(nn.Conv2d(3, 8, 1), *parts)


class TwoLevels(nn.Module):
    """Gives a coarse map as it is and made larger: steps of one frame, and of four."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 2, 1)
        self.up = nn.Upsample(scale_factor=4)

    def forward(self, x):
        coarse = self.second(torch.relu(self.first(x)))
        return self.up(coarse), coarse


STRIDED = {"*": Rule(time_stride=2)}
RIGHT = {
    "no strides": (Residual, "video", {}),
    "none at all": (Residual, "frames", {}),
    "strides": (Residual, "i3d", {}),
    "strides of 3 and 2": (Levels, "i3d", {}),
    "one layer twice": (Twice, "i3d", {}),
    "causal": (Residual, "causal", {}),
    "causal in places": (Residual, "i3d", {"rules": {"stem.*": Rule(padding="causal")}}),
    "zeros": (Residual, "i3d", {"rules": {"*": Rule(padding="zeros")}}),
    "valid": (chain(nn.Conv2d(8, 8, 3, 2), nn.Conv2d(8, 8, 5)), "i3d", {"rules": {"*": Rule(padding="valid")}}),
    "even kernels": (chain(nn.Conv2d(8, 8, 2)), "video", {}),
    "patches": (lambda: nn.Sequential(nn.Conv2d(3, 8, 4, 4)), "i3d", {}),
    "shifts": (Residual, "tsm", {}),
    "shifts and pools": (Residual, "tsm", {"inserts": [Insert("stem", "time_pool")]}),
    "standardized": (chain(layers.StdConv2d(8, 8, 3, padding=1), nn.MaxPool2d(3, 2)), "video", {"rules": STRIDED}),
    "remade weights": (chain(parametrizations.weight_norm(nn.Conv2d(8, 8, 3))), "video", {}),
    "transposed": (chain(nn.ConvTranspose2d(8, 8, 3, 2, bias=False), nn.GroupNorm(2, 8)), "video", {}),
    "blurred": (chain(layers.BlurPool2d(8), nn.Conv2d(8, 8, 3)), "i3d", {}),
    "inserts": (
        Residual,
        "i3d",
        {"inserts": [Insert("pool", what) for what in ("time_pool", "temporal_conv", "nonlocal")]},
    ),
}


@pytest.mark.parametrize(("make", "preset", "planning"), RIGHT.values(), ids=RIGHT)
def test_plans_that_are_carried_out_rightly_pass(make, preset, planning):
    found = sights(make(), preset, **planning)
    assert all(found.values()), found
    assert OWN in found
    assert (len(found) == 1) is (preset == "frames")


@pytest.mark.parametrize("preset", ["i3d", "isotropic"])
def test_steps_of_two_levels_are_counted_by_what_strides_can_give(preset):
    """Twelve frames in three steps could be steps of three frames, or of four; strides give four."""
    found = sights(TwoLevels(), preset)
    assert all(found.values()), found


def test_the_laws_are_those_that_the_kinds_of_layers_set():
    assert list(sights(Residual(), "i3d")) == [
        OWN,
        "with taps of the past, steps see earlier frames",
        "with taps of the future, steps see later frames",
    ]
    pools = sights(Levels(), "i3d", rules={"#0": Rule(3, 2)})
    assert "with pools over time, steps see earlier and later frames" in pools
    even = sights(nn.Sequential(nn.Conv2d(3, 8, 2)), "video")
    assert "with taps of the past, steps see no other frames" in even
    assert "with shifted channels, steps see earlier frames" in sights(
        Residual(), "tsm", rules={"*": Rule(padding="causal")}
    )


def test_middle_steps_of_every_length_are_followed():
    rules = {"second": Rule(1, 3), "#0": Rule(2, 2)}
    model3d = inflate(Levels().double(), "frames", example=PICTURE, rules=rules)
    assert frames_seen(model3d, torch.randn(1, 3, 11, 37, 45).double()) == {11: [5], 2: [0, 3]}


def mirrored(right, x):
    return right(x.flip(2)).flip(2)


def late(right, x):
    return right(torch.cat([x[:, :, :1], x[:, :, :-1]], 2))


def blind(right, x):
    return torch.cat([right(x[:, :, t : t + 1]) for t in range(0, x.shape[2], -(-x.shape[2] // right(x).shape[2]))], 2)


def spread(right, x):
    """Every step sees a frame on either side."""
    return right((torch.cat([x[:, :, :1], x[:, :, :-1]], 2) + x + torch.cat([x[:, :, 1:], x[:, :, -1:]], 2)) / 3)


def spoil(monkeypatch, layer, how, only=lambda plan: plan.time_kernel > 1):
    right = layer.through_time

    def wrong(self, x):
        return how(lambda clip: right(self, clip), x) if only(self.plan) else right(self, x)

    monkeypatch.setattr(layer, "through_time", wrong)


@pytest.mark.parametrize("how", [mirrored, late, blind, spread])
@pytest.mark.parametrize(
    ("preset", "rules"),
    [
        ("video", {}),
        ("i3d", {}),
        ("i3d", {"*": Rule(padding="zeros", profile="center")}),
        ("frames", {"stem.0": Rule(3, 2)}),
    ],
    ids=["no strides", "strides", "zeros", "one layer"],
)
def test_convolutions_that_mix_up_time_fail(monkeypatch, how, preset, rules):
    """A still clip cannot see it."""
    model2d = randomize(Residual())
    model3d = inflate(model2d, preset, example=PICTURE, rules=rules)
    proof = prove(model2d, model3d, lengths=(1, 9))
    assert proof.holds, str(proof)
    spoil(monkeypatch, adapters.InflatedConv2d, how)
    proof = prove(model2d, model3d, lengths=(1, 9))
    assert not proof.holds, str(proof)
    assert all(check.holds for check in proof.checks if "still clip" in check.law), str(proof)


def test_one_mirrored_kernel_among_many_is_seen(monkeypatch):
    """The strided convolution in the middle of a network with strides."""
    model2d = randomize(Residual())
    model3d = inflate(model2d, "i3d", example=PICTURE)
    strided = [layer for layer in model3d.plan if layer.time_stride == 2 and layer.time_kernel == 3]
    assert [layer.path for layer in strided] == ["block.3"]
    spoil(monkeypatch, adapters.InflatedConv2d, mirrored, lambda plan: plan.path == "block.3")
    proof = prove(model2d, model3d)
    failed = [check.law for check in proof.checks if not check.holds]
    assert failed == [
        "with taps of the past, steps see earlier frames",
        "with taps of the future, steps see later frames",
    ]


@pytest.mark.parametrize("how", [mirrored, late])
def test_pools_over_time_that_look_elsewhere_fail(monkeypatch, how):
    planning = {"inserts": [Insert("pool", "time_pool")]}
    assert all(sights(Residual(), **planning).values())
    spoil(monkeypatch, inserted.TimePool, how)
    assert not all(sights(Residual(), **planning).values())


def test_a_pool_that_takes_the_wrong_one_of_its_frames_fails(monkeypatch):
    planning = {"rules": {"pool": Rule(time_kernel=1, time_stride=2)}}
    assert all(sights(Residual(), **planning).values())
    spoil(monkeypatch, adapters.PooledInTime, late, lambda plan: True)
    assert not sights(Residual(), **planning)[OWN]
