"""Convolutions of every kind, with weights of every kind, are exact and are those written by hand."""

import pytest
import torch
import torch.nn.functional as F
from laws import check_still, frames_seen, repeat_ends, scramble
from small_models import randomize
from torch import nn
from torchvision.ops import SqueezeExcitation

from inflate3d.errors import InflateError
from inflate3d.inflation.build import deflate, inflate
from inflate3d.inflation.plan import Rule

pytestmark = pytest.mark.usefixtures("one_thread")

PICTURE = torch.zeros(1, 3, 17, 13)


# --- convolutions of every kind --------------------------------------------------------------------------------------


# a convolution, and what has to stand left, right, above and below each frame
CONVOLUTIONS = {
    "dilated": (nn.Conv2d(6, 8, 3, padding=(2, 3), dilation=(2, 3)), (3, 3, 2, 2)),
    "strided": (nn.Conv2d(6, 8, (3, 5), (3, 2), (1, 2)), (2, 2, 1, 1)),
    "grouped": (nn.Conv2d(6, 8, 3, groups=2, bias=False), (0, 0, 0, 0)),
    "depthwise": (nn.Conv2d(6, 12, 3, padding=1, groups=6), (1, 1, 1, 1)),
    "same": (nn.Conv2d(6, 8, (3, 5), padding="same"), (2, 2, 1, 1)),
    "same, even": (nn.Conv2d(6, 8, (4, 2), padding="same"), (0, 1, 1, 2)),
    "same, dilated": (nn.Conv2d(6, 8, (2, 3), padding="same", dilation=(3, 2)), (2, 2, 1, 2)),
    "same, reflect": (nn.Conv2d(6, 8, (4, 3), padding="same", padding_mode="reflect"), (1, 1, 1, 2)),
    "valid": (nn.Conv2d(6, 8, 3, padding="valid"), (0, 0, 0, 0)),
    "reflect": (nn.Conv2d(6, 8, 3, padding=(1, 2), padding_mode="reflect"), (2, 2, 1, 1)),
    "circular": (nn.Conv2d(6, 8, 3, 2, padding=(2, 1), padding_mode="circular"), (1, 1, 2, 2)),
    "replicate": (nn.Conv2d(6, 8, 5, padding=(2, 1), padding_mode="replicate"), (1, 1, 2, 2)),
}


@pytest.mark.parametrize(("conv2d", "pads"), CONVOLUTIONS.values(), ids=CONVOLUTIONS)
@pytest.mark.parametrize("profile", ["mean", "shift"])
def test_convolutions_of_every_kind_are_those_written_by_hand(conv2d, pads, profile):
    model2d = nn.Sequential(conv2d, nn.Flatten(2)).double()
    model3d = inflate(model2d, example=torch.zeros(1, 6, 13, 11), profile=profile)
    check_still(model2d, model3d, (2, 6, 13, 11))
    scramble(model3d)
    taps = max(conv2d.kernel_size)
    plain = nn.Conv3d(
        6, conv2d.out_channels, (taps, *conv2d.kernel_size), (1, *conv2d.stride), 0, (1, *conv2d.dilation),
        conv2d.groups, conv2d.bias is not None,
    ).double()  # fmt: skip
    plain.load_state_dict(model3d.net[0].state_dict())
    clip = torch.randn(2, 6, 5, 13, 11).double()
    mode = "constant" if conv2d.padding_mode == "zeros" else conv2d.padding_mode
    padded = F.pad(repeat_ends(clip, (taps - 1) // 2, taps // 2), (*pads, 0, 0), mode=mode)
    expected = plain(padded)
    torch.testing.assert_close(model3d.net[0](clip), expected)
    torch.testing.assert_close(model3d(clip), expected.flatten(3).transpose(1, 2))


TRANSPOSED = {
    "2x2 stride 1": nn.ConvTranspose2d(8, 6, 2),
    "3x3 stride 1": nn.ConvTranspose2d(8, 6, 3, 1, 1),
    "3x3 stride 2": nn.ConvTranspose2d(8, 6, 3, 2, 1, output_padding=1, groups=2),
    "4x4 stride 2": nn.ConvTranspose2d(8, 6, 4, 2, 1, bias=False),
    "4x3 dilated": nn.ConvTranspose2d(8, 6, (4, 3), (1, 2), (0, 1), dilation=(2, 1)),
}


@pytest.mark.parametrize("conv2d", TRANSPOSED.values(), ids=TRANSPOSED)
@pytest.mark.parametrize("padding", ["replicate", "zeros", "causal", "valid"])
def test_transposed_convolutions_are_exact_and_those_written_by_hand(conv2d, padding):
    model2d, taps = nn.Sequential(conv2d).double(), max(conv2d.kernel_size)
    rules = {"0": Rule(padding=padding, profile="center" if padding == "zeros" else None)}
    model3d = inflate(model2d, example=torch.zeros(1, 8, 7, 5), profile="negative", rules=rules)
    check_still(model2d, model3d, (2, 8, 7, 5), (5, 8) if padding == "valid" else (1, 2, 5))
    scramble(model3d)
    pads, more = (taps - 1, *conv2d.padding), (0, *conv2d.output_padding)
    plain = nn.ConvTranspose3d(
        8, 6, (taps, *conv2d.kernel_size), (1, *conv2d.stride), pads, more,
        conv2d.groups, conv2d.bias is not None, (1, *conv2d.dilation),
    ).double()  # fmt: skip
    plain.load_state_dict(model3d.net[0].state_dict())
    clip = torch.randn(2, 8, 5, 7, 5).double()
    before, behind = {"causal": (taps - 1, 0), "valid": (0, 0)}.get(padding, ((taps - 1) // 2, taps // 2))
    padded = F.pad(clip, (0, 0, 0, 0, before, behind)) if padding == "zeros" else repeat_ends(clip, before, behind)
    torch.testing.assert_close(model3d(clip), plain(padded))


def test_transposed_patches_stay_per_frame():
    model2d = nn.Sequential(nn.ConvTranspose2d(3, 4, 2, 2), nn.Conv2d(4, 5, 3)).double()
    model3d = inflate(model2d, example=PICTURE)
    assert model3d.net[0].weight.shape == (3, 4, 2, 2)
    check_still(model2d, model3d)


@pytest.mark.parametrize("padding", ["replicate", "causal"])
def test_a_profile_runs_from_past_to_future_in_transposed_convolutions_too(padding):
    model2d = nn.Sequential(nn.ConvTranspose2d(3, 4, 3, padding=1)).double()
    first = inflate(model2d, example=PICTURE, profile=[1.0, 0.0, 0.0], rules={"0": Rule(padding=padding)})
    assert frames_seen(first, 4, (1, 3, 9, 17, 13)) == [3 if padding == "replicate" else 2]


@pytest.mark.parametrize("groups", [1, 2])
def test_the_profile_shift_moves_input_channels_of_transposed_convolutions_too(groups):
    model2d = nn.Sequential(nn.ConvTranspose2d(16, 4, 3, padding=1, groups=groups)).double()
    model3d = inflate(model2d, example=torch.zeros(1, 16, 7, 5), profile="shift")
    check_still(model2d, model3d, (2, 16, 7, 5))
    clip = torch.randn(1, 16, 5, 7, 5).double().requires_grad_()
    model3d(clip)[:, :, 2].square().sum().backward()
    seen = clip.grad.abs().amax((0, 3, 4)) > 0
    assert seen.sum(1).tolist() == [1] * 16
    assert seen.double().argmax(1).tolist() == [3, 3, 1, 1] + [2] * 12


def test_transposed_convolutions_get_shifted_channels():
    model2d = nn.Sequential(nn.Conv2d(16, 16, 1), nn.ConvTranspose2d(16, 4, 3, 2, groups=2)).double()
    model3d = inflate(model2d, "tsm", example=torch.zeros(1, 16, 7, 5))
    assert model3d.plan.layers[1].action == "shift"
    check_still(model2d, model3d, (2, 16, 7, 5))
    moved = model2d[0](torch.randn(5, 16, 7, 5).double())
    shifted = moved.clone()
    shifted[:-1, :2], shifted[1:, 2:4] = moved[1:, :2], moved[:-1, 2:4]
    found = model3d.net[1](moved.unsqueeze(0).transpose(1, 2))[0].transpose(0, 1)
    torch.testing.assert_close(found, model2d[1](shifted))


class UNet(nn.Module):
    """Comes back to the size of its own map by `output_size=`, as odd pictures need it."""

    def __init__(self):
        super().__init__()
        self.stem, self.down = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 8, 3, 2, 1)
        self.up, self.out = nn.ConvTranspose2d(8, 4, 3, 2, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        up = self.up(torch.relu(self.down(x)), output_size=x.shape)
        return self.out(torch.cat([x, up], 1))


@pytest.mark.parametrize("size", [(17, 13), (16, 13), (18, 14)])
@pytest.mark.parametrize("preset", ["video", "causal", "tsm"])
def test_transposed_convolutions_come_back_to_a_wanted_size(size, preset):
    model2d = UNet().double()
    model3d = inflate(model2d, preset, example=torch.zeros(1, 3, *size))
    check_still(model2d, model3d, (2, 3, *size))
    up, clip = model3d.net.up, torch.randn(1, 8, 3, 9, 7).double()
    if preset == "video":
        for wanted in ((1, 4, 3, 18, 13), [18, 13]):
            assert up(clip, output_size=wanted).shape == (1, 4, 3, 18, 13)
        with pytest.raises(ValueError, match="valid sizes range"):
            up(clip, output_size=[19, 13])


# --- weights and modules used twice ----------------------------------------------------------------------------------


def tied_net():
    first, second = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
    second.weight = first.weight
    return nn.Sequential(nn.Conv2d(3, 4, 1), first, nn.ReLU(), second).double()


def test_convolutions_that_share_a_weight_are_exact():
    model2d = tied_net()
    check_still(model2d, inflate(model2d, example=PICTURE))


def test_convolutions_that_share_a_weight_go_on_sharing_it_through_training_too():
    model2d = tied_net()
    model3d = inflate(model2d, example=PICTURE)
    assert model3d.net[1].weight is model3d.net[3].weight
    model3d(torch.randn(2, 3, 4, 17, 13).double()).square().sum().backward()
    torch.optim.SGD(model3d.parameters(), 0.01).step()
    twin = inflate(model2d, example=PICTURE)
    twin.load_state_dict(model3d.state_dict())
    assert torch.equal(twin.net[1].weight, model3d.net[3].weight)


def test_convolutions_that_share_a_weight_share_it_when_deflated():
    flat = deflate(inflate(tied_net(), example=PICTURE))
    assert flat[1].weight is flat[3].weight


@pytest.mark.parametrize("rules", [{"3": Rule(time_kernel=1)}, {"1": Rule(profile="center")}])
def test_convolutions_that_share_a_weight_and_become_different_are_refused(rules):
    with pytest.raises(InflateError, match="share one weight and are to become different"):
        inflate(tied_net(), example=PICTURE, rules=rules)


class Shared(nn.Module):
    """One convolution under two names and at three sizes, as in pyramids with one head."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 1)
        self.down = nn.Conv2d(6, 6, 3, 2, 1)
        self.again = self.down
        self.head = nn.Conv2d(6, 5, 3, padding=1)

    def forward(self, x):
        first = self.down(self.stem(x))
        second = torch.relu(self.again(first))
        third = self.again(second)
        return sum(self.head(level).mean((2, 3)) for level in (first, second, third))


def test_a_module_used_at_several_places_and_sizes_stays_one():
    model2d = Shared().double()
    model3d = inflate(model2d, example=PICTURE)
    assert model3d.net.down is model3d.net.again
    assert list(model3d.net.state_dict()) == list(model2d.state_dict())
    check_still(model2d, model3d)
    flat = deflate(model3d)
    assert flat.down is flat.again
    torch.testing.assert_close(flat.down.weight, model2d.down.weight)


def test_one_strided_module_used_twice_is_exact():
    down = nn.Conv2d(6, 6, 3, 2, 1)
    model2d = nn.Sequential(nn.Conv2d(3, 6, 1), down, nn.ReLU(), down).double()
    model3d = inflate(model2d, "i3d", example=PICTURE)
    check_still(model2d, model3d, lengths=(1, 5, 8, 9))
    assert model3d(torch.randn(1, 3, 9, 17, 13).double()).shape[2] == 3


def test_levels_of_unequal_time_that_are_added_are_refused():
    with pytest.raises(InflateError, match="branches of the model that meet have different lengths"):
        inflate(Shared(), "i3d", example=torch.zeros(1, 3, 32, 40))


def test_a_norm_that_stands_still_in_a_training_model_goes_on_standing_still():
    model2d = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).train()
    model2d[1].eval()
    model3d = inflate(model2d, example=PICTURE)
    assert [module.training for module in model3d.net.modules()] == [True, True, False]


def test_a_map_with_few_channels_and_pixels_keeps_its_axes():
    model2d = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.MaxPool2d(10))
    model3d = inflate(model2d, example=torch.zeros(1, 3, 43, 37))
    assert model3d(torch.zeros(2, 3, 7, 43, 37)).shape == (2, 5, 7, 4, 3)


def test_a_map_that_lost_the_ratio_of_the_picture_keeps_its_axes():
    model3d = inflate(nn.Sequential(nn.Conv2d(3, 8, 3, (3, 2), 1)), example=PICTURE)
    assert model3d(torch.zeros(2, 3, 5, 17, 13)).shape == (2, 8, 5, 6, 7)


# --- the past alone --------------------------------------------------------------------------------------------------


def test_a_causal_network_sees_no_later_frame():
    model2d = nn.Sequential(
        nn.Conv2d(3, 8, 4, 2, 1), nn.BatchNorm2d(8), SqueezeExcitation(8, 4), nn.MaxPool2d(3, 2, 1),
        nn.ConvTranspose2d(8, 8, 3, 2), nn.GroupNorm(2, 8), nn.Conv2d(8, 6, 3, padding="same"), nn.Conv2d(6, 5, 2),
    )  # fmt: skip
    model2d = randomize(model2d).double()
    model3d = inflate(model2d, "causal", example=PICTURE)
    assert [layer.time_kernel for layer in model3d.plan if layer.time_kernel > 1] == [4, 3, 3, 2]
    check_still(model2d, model3d)
    scramble(model3d)
    for frame in range(11):
        assert frames_seen(model3d, frame, (1, 3, 11, 17, 13)) == list(range(max(frame - 8, 0), frame + 1))


def test_causal_layers_with_strides_in_time_see_no_later_frame():
    model2d = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 5, 3, 2, 1)).double()
    model3d = inflate(model2d, "i3d", example=PICTURE, rules={"*": Rule(padding="causal")})
    check_still(model2d, model3d, lengths=(1, 2, 5, 8))
    for step in range(3):
        assert max(frames_seen(model3d, step, (1, 3, 9, 17, 13))) == 4 * step
