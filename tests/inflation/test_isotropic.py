"""The presets `isotropic` and `anisotropic`: time as height and width, at once or from an even spacing on."""

import pytest
import torch
from laws import check_still, head
from small_models import randomize
from torch import nn
from torchvision import models as torchvision

from inflate3d import InflateError, inflate, make_plan, prove
from inflate3d.inflation.proof import still_float32
from inflate3d.inflation.strides import Place, Spacing

SIDE = 64
PICTURE = torch.zeros(1, 3, SIDE, SIDE)


def timings(plan):
    return {layer.path: (layer.time_kernel, layer.time_stride, layer.time_scale) for layer in plan}


class Stages(nn.Module):
    """Strides of every kind: patches, a large kernel, a pool, a 1x1 shortcut, and the mean of the map at the end."""

    def __init__(self):
        super().__init__()
        self.patches, self.large = nn.Conv2d(3, 8, 4, 4), nn.Conv2d(8, 8, 9, 2, 4)
        self.pool, self.wide = nn.MaxPool2d(3, 2, 1), nn.Conv2d(8, 8, (1, 7), padding=(0, 3))
        self.main, self.shortcut = nn.Conv2d(8, 12, 3, 2, 1), nn.Conv2d(8, 12, 1, 2)
        self.mean, self.head = nn.AvgPool2d(2), nn.Linear(12, 5)

    def forward(self, x):
        x = self.wide(self.pool(self.large(self.patches(x)).relu()))
        return self.head(self.mean(self.main(x) + self.shortcut(x)).flatten(1))


def test_time_has_the_kernels_and_strides_of_space():
    model2d = Stages().double()
    plan = make_plan(model2d, "isotropic", example=PICTURE)
    assert timings(plan) == {
        "patches": (4, 4, 1),
        "large": (9, 2, 1),  # kernels of any size
        "pool": (3, 2, 1),
        "wide": (7, 1, 1),
        "main": (3, 2, 1),
        "shortcut": (1, 2, 1),
        "mean": (1, 1, 1),  # of the whole map: a head's
    }
    assert (plan.time_shrink, plan.clip_multiple) == (32, 1)
    model3d = inflate(model2d, plan, time_pool="none")
    check_still(model2d, model3d, (1, 3, SIDE, SIDE), (1, 5, 32))
    assert [model3d(torch.randn(1, 3, t, SIDE, SIDE).double()).shape[1] for t in (1, 32, 33)] == [1, 1, 2]


@pytest.mark.parametrize(
    ("spacing", "expected"),
    [
        ((5, 0.8, 0.8), [(1, 1), (1, 1), (3, 2), (3, 2)]),  # 6.25, then 3.125, then 1.56 times as deep as wide
        ((2, 1, 1), [(1, 1), (3, 2), (3, 2), (3, 2)]),
        ((1.9, 1, 1), [(3, 2)] * 4),
        ((1, 1, 1), [(3, 2)] * 4),
        ((0.5, 1, 1), [(3, 2)] * 4),  # finer than wide: never more strides than in space
        ((4, 2, 1), [(1, 1), (1, 1), (3, 2), (3, 2)]),  # the finest axis of the plane sets the measure
    ],
)
def test_strides_lie_in_the_plane_until_the_spacing_is_even(spacing, expected):
    parts = [nn.Conv2d(3 if level == 0 else 4, 4, 3, 2, 1) for level in range(4)]
    model2d = nn.Sequential(*parts, *head(4, 5)).double()
    plan = make_plan(model2d, "anisotropic", example=PICTURE, spacing_mm=spacing)
    assert [(layer.time_kernel, layer.time_stride) for layer in plan] == expected
    check_still(model2d, inflate(model2d, plan), (1, 3, SIDE, SIDE), (1, 5, 8))


def test_a_resnet_strides_in_the_plane_first():
    plan = make_plan(torchvision.resnet18(), "anisotropic", example=PICTURE, spacing_mm=(5, 0.8, 0.8))
    found = timings(plan)
    flat = [path for path in found if path.startswith(("conv1", "maxpool"))]
    assert flat == ["conv1", "maxpool"]
    assert {found[path] for path in flat} == {(1, 1, 1)}
    assert found["layer1.0.conv1"] == (3, 1, 1)
    assert found["layer2.0.conv1"] == (3, 2, 1)
    assert found["layer4.0.downsample.0"] == (1, 2, 1)
    assert plan.time_shrink == 8


def test_large_strides_are_taken_factor_by_factor():
    patches = nn.Sequential(nn.Conv2d(3, 8, 16, 16), nn.Conv2d(8, 8, 3, padding=1))
    plan = make_plan(patches, "anisotropic", example=PICTURE, spacing_mm=(5, 0.8, 0.8))
    assert timings(plan) == {"0": (4, 4, 1), "1": (3, 1, 1)}  # 12.8 mm wide, 20 mm deep
    overlapping = nn.Sequential(nn.Conv2d(3, 8, 7, 4, 3))
    assert timings(make_plan(overlapping, "anisotropic", example=PICTURE, spacing_mm=(3, 1, 1)))["0"] == (3, 2, 1)
    even = Spacing((5, 1, 1))
    assert [even.is_even(Place(1, space)) for space in (1, 2, 3, 4)] == [False, False, True, True]


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 6, 3, 2, 1)
        self.up, self.back = nn.ConvTranspose2d(6, 4, 4, 2, 1), nn.Upsample(scale_factor=2)
        self.last = nn.Conv2d(4, 2, 3, padding=1)

    def forward(self, x):
        first = self.first(x)
        return self.last(self.back(self.up(self.second(first)) + first))


def test_decoders_bring_back_what_strides_took_and_no_more():
    model2d = Decoder().double()
    plan = make_plan(model2d, "anisotropic", example=PICTURE, spacing_mm=(2, 1, 1))
    assert timings(plan) == {
        "first": (1, 1, 1),
        "second": (3, 2, 1),
        "up": (4, 1, 2),
        "back": (1, 1, 1),
        "last": (1, 1, 1),
    }
    model3d = inflate(model2d, plan)
    check_still(model2d, model3d, (1, 3, SIDE, SIDE), (1, 4, 5))
    assert model3d(torch.randn(1, 3, 5, SIDE, SIDE).double()).shape[2] == 5
    assert prove(model2d, model3d, lengths=(1, 4)).holds


class FewerKeys(nn.Module):
    """Attention whose keys are made fewer by a stride, and pointwise convolutions before they meet the queries."""

    def __init__(self):
        super().__init__()
        self.stem, self.reduce = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 4, 4)
        self.key, self.last = nn.Conv2d(8, 16, 1), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x):
        x = self.stem(x)
        keys, values = self.key(self.reduce(x)).flatten(2).transpose(1, 2).chunk(2, dim=2)
        mixed = nn.functional.scaled_dot_product_attention(x.flatten(2).transpose(1, 2), keys, values)
        return self.last(x + mixed.transpose(1, 2).reshape(x.shape))


def test_strides_that_make_keys_fewer_stay_in_space():
    model2d = FewerKeys().double()
    plan = make_plan(model2d, "isotropic", example=PICTURE)
    assert timings(plan) == {"stem": (3, 2, 1), "reduce": (1, 1, 1), "key": (1, 1, 1), "last": (3, 1, 1)}
    check_still(model2d, inflate(model2d, plan), (1, 3, SIDE, SIDE), (1, 5))


@pytest.mark.parametrize("spacing", [(5, 0.8), (5, 0.8, 0), "5,0.8,wide", (1, 1, float("nan")), 5])
def test_what_is_no_spacing_is_refused(spacing):
    with pytest.raises(InflateError, match=r"how large voxels are(.|\n)*spacing_mm=\(depth, height, width\)"):
        make_plan(Stages(), "anisotropic", example=PICTURE, spacing_mm=spacing)


def test_a_spacing_is_wanted_by_one_preset_and_by_no_other():
    with pytest.raises(InflateError, match=r"how large voxels are(.|\n)*--spacing 5,0.8,0.8"):
        inflate(Stages(), "anisotropic", example=PICTURE)
    with pytest.raises(InflateError, match="does not go by the spacing of voxels"):
        inflate(Stages(), "isotropic", example=PICTURE, spacing_mm=(5, 1, 1))
    with pytest.raises(InflateError, match="a finished plan has its own settings"):
        inflate(Stages(), make_plan(Stages(), example=PICTURE), spacing_mm=(5, 1, 1))


CNNS = {
    "mobilenet_v3_small": torchvision.mobilenet_v3_small,
    "shufflenet_v2": torchvision.shufflenet_v2_x0_5,
    "squeezenet": torchvision.squeezenet1_1,
    "regnet": torchvision.regnet_y_400mf,
}


@pytest.mark.parametrize("make", CNNS.values(), ids=CNNS)
def test_classifiers_are_exact(make):
    model2d = randomize(make(num_classes=7))
    check = still_float32(model2d, inflate(model2d, "isotropic", example=PICTURE), PICTURE.normal_(), lengths=(1, 33))
    assert check.holds, check


def test_an_hrnet_is_exact():
    timm = pytest.importorskip("timm")
    model2d = randomize(timm.create_model("hrnet_w18_small", num_classes=3))
    model3d = inflate(model2d, "isotropic", example=PICTURE)
    assert (model3d.plan.clip_multiple, sum(layer.time_scale > 1 for layer in model3d.plan)) == (32, 10)
    assert still_float32(model2d, model3d, torch.randn(1, 3, SIDE, SIDE), lengths=(1, 5)).holds


@pytest.mark.parametrize("decoder", ["Unet", "Linknet", "PSPNet", "DeepLabV3Plus"])
def test_decoders_are_exact_and_as_long_as_their_clip(decoder):
    smp = pytest.importorskip("segmentation_models_pytorch")
    model2d = randomize(getattr(smp, decoder)("resnet18", encoder_weights=None, classes=2))
    model3d = inflate(model2d, "isotropic", example=PICTURE)
    picture = torch.randn(1, 3, SIDE, SIDE)
    assert still_float32(model2d, model3d, picture, lengths=(5,)).holds
    with torch.no_grad():
        assert model3d(torch.randn(1, 3, 3, SIDE, SIDE)).shape == (1, 2, 3, SIDE, SIDE)
