"""Convolutions that cannot be taken over look through time all the same: their frames are mixed ahead of them."""

import copy
import warnings

import pytest
import timm
import torch
import torch.nn.functional as F
from laws import check_still, frames_seen, gradients, head, repeat_ends
from small_models import randomize
from timm import layers
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.utils.checkpoint import checkpoint

from inflate3d.errors import InflateError
from inflate3d.inflation.build import deflate, inflate, make_plan
from inflate3d.inflation.channels import with_input_channels
from inflate3d.inflation.plan import Rule
from inflate3d.inflation.profiles import profile_taps
from inflate3d.inflation.proof import prove

pytestmark = pytest.mark.usefixtures("one_thread")

PICTURE = torch.zeros(1, 3, 17, 13)


def old_weight_norm(conv2d):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return torch.nn.utils.weight_norm(conv2d)


REMADE = {
    "weight norm": parametrizations.weight_norm,
    "spectral norm": parametrizations.spectral_norm,
    "old weight norm": old_weight_norm,
    "old spectral norm": torch.nn.utils.spectral_norm,
    "pruned": lambda conv2d: prune.l1_unstructured(conv2d, "weight", 0.3),
}


def with_middle(middle, channels=4):
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), middle, *head(channels, 5)).double().eval()


def middle_of(plan):
    return next(layer for layer in plan if layer.path == "2")


@pytest.mark.parametrize("remake", REMADE.values(), ids=REMADE)
@pytest.mark.parametrize("preset", ["video", "i3d", "causal", "tsm"])
def test_weights_that_are_remade_in_every_run_are_exact_and_see_motion(remake, preset):
    model2d = with_middle(remake(nn.Conv2d(8, 4, 3, 2)))
    model2d(torch.zeros(1, 3, 17, 13).double())  # hooks leave weights behind that torch cannot copy
    model3d = inflate(model2d, preset, example=PICTURE)
    middle = middle_of(model3d.plan)
    assert (middle.action, middle.time_kernel) == (("shift", 1) if preset == "tsm" else ("inflate", 3))
    assert middle.time_stride == (2 if preset == "i3d" else 1)
    check_still(model2d, model3d)
    proof = prove(model2d, model3d, lengths=(1, 5))
    assert proof.holds, str(proof)
    assert {name: value.shape for name, value in model3d.net.state_dict().items() if name[0] == "2"} == {
        name: value.shape for name, value in model2d.state_dict().items() if name[0] == "2"
    }


@pytest.mark.parametrize("remake", REMADE.values(), ids=REMADE)
def test_weights_that_are_remade_train_and_go_back(remake):
    model2d = with_middle(remake(nn.Conv2d(8, 4, 3)))
    model3d = inflate(model2d, example=PICTURE).train()
    clip = torch.randn(2, 3, 4, 17, 13).double()
    assert any(name.startswith("net.2.") and "weight" in name for name in gradients(model3d, clip))
    torch.optim.SGD(model3d.parameters(), 0.01).step()
    model3d.eval()
    flat = deflate(model3d).eval()
    assert not any(type(hook).__name__ == "FiltersInput" for hook in flat[2]._forward_pre_hooks.values())
    check_still(flat, model3d)
    check_still(flat, inflate(flat, example=PICTURE))


PROFILES = ["mean", "center", "negative", "lambda=0.3", "shift"]


def spread(weight, taps, *, transposed=False):
    """A 3D kernel from a 2D one, tap by tap; `[t]` or, by input channel of an ungrouped convolution, `[c, t]`."""
    inputs = 0 if transposed else 1
    taps = taps.flip(-1) if transposed else taps
    if taps.ndim == 2:
        taps = taps.unsqueeze(1 - inputs)
    return weight.unsqueeze(2) * taps[..., None, None]


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("padding", ["replicate", "zeros", "causal", "valid"])
@pytest.mark.parametrize("stride", [1, 2])
def test_mixing_frames_is_convolving_with_a_kernel_laid_out_in_time(profile, padding, stride):
    conv2d = parametrizations.weight_norm(nn.Conv2d(8, 4, 3, padding=1)).double()
    rules = {"0": Rule(time_kernel=4, time_stride=stride, padding=padding)}
    model3d = inflate(nn.Sequential(conv2d), example=torch.zeros(1, 8, 7, 5), profile=profile, rules=rules)
    clip = torch.randn(2, 8, 6, 7, 5).double()
    taps = profile_taps(profile, 4, center=3 if padding == "causal" else None, channels=8)
    before = {"causal": 3, "valid": 0}.get(padding, 1)
    behind = {"causal": 0, "valid": 0}.get(padding, 2)
    padded = F.pad(clip, (0, 0, 0, 0, before, behind)) if padding == "zeros" else repeat_ends(clip, before, behind)
    expected = F.conv3d(padded, spread(conv2d.weight, taps), conv2d.bias, (stride, 1, 1), (0, 1, 1))
    torch.testing.assert_close(model3d(clip), expected)


@pytest.mark.parametrize("profile", PROFILES)
def test_transposed_convolutions_with_remade_weights_as_well(profile):
    conv2d = parametrizations.weight_norm(nn.ConvTranspose2d(8, 4, 4, 2, 1)).double()
    model3d = inflate(nn.Sequential(conv2d), example=torch.zeros(1, 8, 7, 5), profile=profile)
    clip = torch.randn(2, 8, 6, 7, 5).double()
    weight = spread(conv2d.weight, profile_taps(profile, 4, channels=8), transposed=True)
    expected = F.conv_transpose3d(repeat_ends(clip, 1, 2), weight, conv2d.bias, (1, 2, 2), (3, 1, 1))
    torch.testing.assert_close(model3d(clip), expected)


class Gained(nn.Conv2d):
    """A convolution of a type of its own, whose output has a gain, and whose input may come by name."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.gain = nn.Parameter(torch.rand(self.out_channels, 1, 1) + 0.5)

    def forward(self, picture, slope=0.1):
        return F.leaky_relu(super().forward(picture) * self.gain, slope)


class ByName(nn.Module):
    def __init__(self, by_name):
        super().__init__()
        self.conv, self.by_name = Gained(3, 4, 3), by_name

    def forward(self, x):
        return self.conv(slope=0.2, picture=x) if self.by_name else self.conv(x, 0.2)


@pytest.mark.parametrize("by_name", [False, True])
def test_convolutions_of_unknown_types_are_exact(by_name):
    model2d = ByName(by_name).double()
    model3d = inflate(model2d, example=PICTURE)
    assert [(layer.layer, layer.action, layer.time_kernel) for layer in model3d.plan] == [("Gained", "inflate", 3)]
    check_still(model2d, model3d)
    assert frames_seen(model3d, 3, (1, 3, 7, 17, 13)) == [2, 3, 4]
    for twin in (copy.deepcopy(model3d), inflate(deflate(model3d), model3d.plan)):
        clip = torch.randn(2, 3, 4, 17, 13).double()
        torch.testing.assert_close(twin(clip), model3d(clip))


def test_a_weight_shared_with_a_layer_that_is_taken_over_is_refused_or_stays_2d():
    model2d = nn.Sequential(nn.Conv2d(3, 3, 3), Gained(3, 3, 3)).double()
    model2d[0].weight = model2d[1].weight
    with pytest.raises(InflateError, match="share one weight and are to become different"):
        inflate(model2d, example=PICTURE)
    plan = make_plan(model2d, example=PICTURE, rules={"1": Rule(time_kernel=1)})
    assert [(layer.time_kernel, layer.reason) for layer in plan] == [(1, "its weight is used by 1 too"), (1, "")]


class Careful(nn.Module):
    def __init__(self, careful, reentrant):
        super().__init__()
        self.careful, self.reentrant = careful, reentrant
        self.conv = parametrizations.weight_norm(nn.Conv2d(3, 4, 3))

    def forward(self, x):
        return checkpoint(self.conv, x, use_reentrant=self.reentrant) if self.careful else self.conv(x)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints_run_them_anew_as_they_were(reentrant):
    plain2d, careful2d = Careful(False, reentrant).double(), Careful(True, reentrant).double()
    careful2d.load_state_dict(plain2d.state_dict())
    clip = torch.randn(2, 3, 4, 17, 13).double().requires_grad_()
    found = [gradients(inflate(model2d, example=PICTURE), clip) for model2d in (plain2d, careful2d)]
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-9, atol=1e-12, msg=name)


def test_a_random_kernel_has_no_place_in_a_weight_that_is_remade():
    model2d = with_middle(parametrizations.weight_norm(nn.Conv2d(8, 4, 3)))
    with pytest.raises(InflateError, match=r"a random one has no place to stay(.|\n)*'2': Rule\(profile='mean'\)"):
        inflate(model2d, example=PICTURE, profile="random")
    assert inflate(model2d, example=PICTURE, profile="random", rules={"2": Rule(profile="mean")})


def test_a_first_convolution_with_a_remade_weight_takes_no_other_channels():
    model2d = nn.Sequential(parametrizations.weight_norm(nn.Conv2d(3, 4, 3)))
    with pytest.raises(InflateError, match=r"weight is made of other parameters(.|\n)*remove"):
        with_input_channels(model2d, 1, example=PICTURE)


# --- timm's ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", ["mean", "shift"])
def test_kernels_that_each_picture_weighs_are_exact_and_those_written_by_hand(profile):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = layers.CondConv2d(8, 4, 3, padding=1, bias=True, num_experts=3)
            self.routing = nn.Linear(8, 3)

        def forward(self, x):
            return self.conv(x, self.routing(x.mean((2, 3))).sigmoid())

    model2d = Net().double()
    model3d = inflate(model2d, example=torch.zeros(1, 8, 7, 5), profile=profile)
    check_still(model2d, model3d, (2, 8, 7, 5))
    clip = torch.randn(1, 8, 5, 7, 5).double()
    taps, padded = profile_taps(profile, 3, channels=8), repeat_ends(clip, 1, 1)
    routing = model2d.routing(clip.mean((3, 4))[0].T).sigmoid()
    for frame in range(5):  # each frame with the kernel that it asks for
        weight = (routing[frame] @ model2d.conv.weight).view(4, 8, 3, 3)
        bias = routing[frame] @ model2d.conv.bias
        expected = F.conv3d(padded[:, :, frame : frame + 3], spread(weight, taps), bias, padding=(0, 1, 1))
        torch.testing.assert_close(model3d(clip)[:, :, frame : frame + 1], expected)


@pytest.mark.parametrize(("name", "layer"), [("tf_efficientnet_cc_b0_4e", "CondConv2d"), ("mixnet_s", "Conv2d")])
def test_networks_with_kernels_of_several_kinds_are_exact(name, layer):
    model2d = randomize(timm.create_model(name, num_classes=3)).double()
    model3d = inflate(model2d, example=torch.zeros(1, 3, 64, 64))
    timed = [one for one in model3d.plan if one.layer == layer and one.looks_through_time]
    assert len(timed) >= 8
    assert not [one for one in model3d.plan if one.reason]
    check_still(model2d, model3d, (1, 3, 64, 64), (1, 3))


def test_strides_in_time_do_not_fit_kernels_that_each_picture_weighs():
    model2d = timm.create_model("tf_efficientnet_cc_b0_4e", num_classes=3)
    with pytest.raises(InflateError, match="branches of the model that meet have different lengths"):
        inflate(model2d, "i3d", example=torch.zeros(1, 3, 64, 64))
    assert make_plan(model2d, example=torch.zeros(1, 3, 64, 64)).looks_through_time


class Styled(nn.Conv2d):
    def forward(self, style, x):
        return super().forward(x) * style[:, :, None, None]


def test_a_convolution_that_is_given_a_style_first_mixes_its_map():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.style, self.styled = nn.Conv2d(3, 8, 1), nn.Linear(8, 4), Styled(8, 4, 3, padding=1)

        def forward(self, x):
            x = self.stem(x)
            return self.styled(self.style(x.mean((2, 3))), x)

    model2d = Net().eval()
    model3d = inflate(model2d, example=PICTURE)
    assert model3d.plan.layers[1].action == "inflate"
    proof = prove(model2d, model3d, lengths=(3,))
    assert proof.holds, str(proof)
