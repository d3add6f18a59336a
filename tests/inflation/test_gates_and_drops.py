"""What belongs to a clip as a whole: masks that drop parts at random, gates, and norms of single samples."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from laws import check_still, repeat_ends, scramble, still
from timm import layers
from timm.layers import cbam, evo_norm, filter_response_norm
from timm.layers.grn import GlobalResponseNorm
from timm.models import hgnet, senet
from timm.models._efficientnet_blocks import SqueezeExcite
from torch import nn
from torchvision.models.convnext import CNBlockConfig, ConvNeXt
from torchvision.ops import SqueezeExcitation, StochasticDepth

from inflate3d.errors import InflateError
from inflate3d.inflation.build import build, inflate, make_plan
from inflate3d.inflation.presets import PRESETS

pytestmark = pytest.mark.usefixtures("one_thread")

PICTURE = torch.zeros(1, 3, 17, 13)


# --- 5: layers dropped at random -------------------------------------------------------------------------------------


@pytest.mark.parametrize("drop", [layers.DropPath(0.25), StochasticDepth(0.25, "row")])
@pytest.mark.parametrize("preset", ["video", "i3d", "causal", "frames", "tsm"])
def test_stochastic_depth_drops_whole_clips_and_keeps_the_expectation(drop, preset):
    model2d = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, bias=False), drop).train()
    model3d = inflate(model2d, preset, example=torch.zeros(1, 8, 3, 5))
    clip = torch.randn(400, 8, 5, 3, 5)
    with torch.no_grad():
        ratio = model3d(clip) / model3d.eval()(clip)
    factor = ratio.flatten(1).nanmedian(1, keepdim=True).values
    torch.testing.assert_close(ratio.flatten(1), factor.expand(-1, 8 * 5 * 3 * 5), rtol=1e-3, atol=1e-3)
    kept = factor > 0.5
    torch.testing.assert_close(factor[kept], torch.full_like(factor[kept], 1 / 0.75))
    assert 0.75 * 400 - 4 * math.sqrt(75) < kept.sum() < 0.75 * 400 + 4 * math.sqrt(75)  # different clips differ


def test_tokens_are_dropped_by_whole_clips_too():
    model2d = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(2), layers.DropPath(0.5)).train()
    answer = inflate(model2d, example=PICTURE)(torch.randn(50, 3, 3, 17, 13))
    dropped = answer.abs().amax((2, 3)) == 0
    assert 0 < dropped.sum() < 150
    assert torch.equal(dropped.all(1), dropped.any(1))


def test_a_still_clip_stays_still_while_a_network_with_stochastic_depth_trains():
    stages = [CNBlockConfig(8, 16, 2), CNBlockConfig(16, None, 2)]
    model2d = ConvNeXt(stages, stochastic_depth_prob=0.5, layer_scale=1.0, num_classes=5).double().train()
    model3d = inflate(model2d, example=torch.zeros(1, 3, 32, 40), time_pool="none")
    picture = torch.randn(1, 3, 32, 40).double()
    answer = model3d(still(picture.repeat(12, 1, 1, 1), 3))
    torch.testing.assert_close(answer, answer[:, :1].expand_as(answer), rtol=1e-9, atol=1e-9)
    assert not torch.allclose(answer[0], answer[1:])


class DropPath(nn.Module):
    """Stochastic depth as many copy it into their code, here for maps alone."""

    def forward(self, x):
        return x.div(0.5) * torch.empty(x.shape[0], 1, 1, 1).bernoulli_(0.5) if self.training else x


class LearnedDropPath(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return x * self.scale


def test_stochastic_depth_of_your_own_drops_whole_clips():
    model2d = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), DropPath()).train()
    model3d = inflate(model2d, example=PICTURE)
    assert [layer.action for layer in model3d.plan] == ["inflate", "drop"]
    dropped = model3d(torch.randn(50, 3, 3, 17, 13)).abs().amax((1, 3, 4)) == 0
    assert 0 < dropped.sum() < 150
    assert torch.equal(dropped.all(1), dropped.any(1))
    plan = make_plan(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), LearnedDropPath()), example=PICTURE)
    assert plan.layers[-1].reason == "it may drop single frames of a clip in training"


@pytest.mark.filterwarnings("ignore:dropout2d. Received a 3D input")
@pytest.mark.parametrize("drop", [nn.Dropout2d(0.4), nn.FeatureAlphaDropout(0.4)], ids=["plain", "alpha"])
@pytest.mark.parametrize("tokens", [False, True])
@pytest.mark.parametrize("preset", ["video", "frames"])
def test_channels_are_dropped_by_whole_clips(drop, tokens, preset):
    flat = nn.Flatten(2) if tokens else nn.Identity()
    model2d = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), flat, drop).double().train()
    model3d = inflate(model2d, preset, example=PICTURE)
    assert model3d.plan.layers[-1].action == "drop"
    answer = model3d(still(torch.randn(1, 3, 17, 13).double().repeat(60, 1, 1, 1), 4))
    answer = answer if tokens else answer.transpose(1, 2).flatten(3)  # [b, t, c, h*w]
    torch.testing.assert_close(answer, answer[:, :1].expand_as(answer))  # one mask for all frames
    dropped = answer[:, 0].std(2) < 1e-6
    assert 0.4 * 480 - 4 * 11 < dropped.sum() < 0.4 * 480 + 4 * 11
    assert len(dropped.unique(dim=0)) > 20  # others for other clips and channels
    if not tokens:
        check_still(model2d.eval(), model3d.eval())


def test_batch_norms_for_parts_of_the_batch_take_no_clip_apart():
    model2d = layers.convert_splitbn_model(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), 2).double().train()
    model3d = inflate(model2d, example=PICTURE)
    clips = torch.randn(4, 3, 3, 17, 13).double()
    halves = [nn.BatchNorm3d(4).double()(half) for half in model3d.net[0](clips).split(2)]
    torch.testing.assert_close(model3d(clips), torch.cat(halves))
    with pytest.raises(InflateError, match=r"split the batch amid a clip(.|\n)*multiple of 2 clips(.|\n)*3 clips"):
        model3d(torch.randn(3, 3, 4, 17, 13).double())
    check_still(model2d.eval(), inflate(model2d, example=PICTURE))


# --- 6: gates and norms over the clip or over each frame -------------------------------------------------------------


GATES = {
    "torchvision SE": lambda: SqueezeExcitation(8, 4),
    "SE": lambda: layers.SEModule(8, rd_channels=4),
    "efficientnet SE": lambda: SqueezeExcite(8, rd_ratio=0.5),
    "effective SE": lambda: layers.EffectiveSEModule(8),
    "ECA": lambda: layers.EcaModule(8),
    "circular ECA": lambda: layers.CircularEfficientChannelAttn(8),
    "global context": lambda: layers.GlobalContext(8, fuse_add=True, rd_channels=4),
    "group norm": lambda: nn.GroupNorm(2, 8),
    "timm group norm": lambda: layers.GroupNorm(8, 4),
    "one group": lambda: layers.GroupNorm1(8),
    "group norm, act": lambda: layers.GroupNormAct(8, 4),
    "one group, act": lambda: layers.GroupNorm1Act(8),
    "instance norm": lambda: nn.InstanceNorm2d(8, affine=True),
    "CBAM": lambda: cbam.ChannelAttn(8, rd_channels=4),
    "light CBAM": lambda: cbam.LightChannelAttn(8, rd_channels=4),
    "SENet": lambda: senet.SEModule(8, 2),
    "HGNet": lambda: hgnet.EseModule(8),
    "response norm": lambda: GlobalResponseNorm(8, channels_last=False),
    "response norm, last": lambda: Last(GlobalResponseNorm(8)),
    "filter response norm": lambda: filter_response_norm.FilterResponseNormAct2d(8),
    "filter response norm, threshold": lambda: filter_response_norm.FilterResponseNormTlu2d(8),
    "EvoNorm B0": lambda: evo_norm.EvoNorm2dB0(8),
    "EvoNorm S0": lambda: evo_norm.EvoNorm2dS0(8, groups=4),
    "EvoNorm S2a": lambda: evo_norm.EvoNorm2dS2a(8, groups=4),
}
# their code goes down to float32
SINGLE = ("filter response norm", "filter response norm, threshold", "EvoNorm B0", "EvoNorm S0", "EvoNorm S2a")


class Last(nn.Module):
    """Runs a layer on channels-last maps."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def gated(gate):
    torch.manual_seed(7)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), gate(), nn.Conv2d(8, 5, 3, padding=1)).double().eval()
    with torch.no_grad():
        for parameter in model[1].parameters():
            parameter.normal_()
    return model


def in_context(model2d, context):
    plan = make_plan(model2d, example=PICTURE)
    action = {"clip": "clip", "frame": "frame"}[context]
    layers3d = tuple(replace(layer, action=action) if layer.kind == "gate" else layer for layer in plan)
    return build(replace(plan, layers=layers3d), model2d)


@pytest.mark.parametrize("name", GATES)
def test_gates_and_norms_see_the_clip_or_the_frame_as_the_plan_says(name):
    model2d = gated(GATES[name])
    by_clip, by_frame = in_context(model2d, "clip"), in_context(model2d, "frame")
    assert inflate(model2d, example=PICTURE).plan == by_clip.plan
    for model3d in (by_clip, by_frame):
        check_still(model2d, model3d, rtol=1e-6 if name in SINGLE else 1e-9)
    moving = torch.randn(2, 3, 5, 17, 13).double() * torch.linspace(0.2, 2, 5).view(5, 1, 1)
    assert (by_clip(moving) - by_frame(moving)).abs().max() > 1e-3 * by_clip(moving).abs().max()
    torch.testing.assert_close(by_clip(moving[:, :, :1]), by_frame(moving[:, :, :1]))


@pytest.mark.parametrize("preset", [name for name, preset in PRESETS.items() if not preset.attention])
def test_each_preset_gives_gates_its_context(preset):
    block = nn.Sequential(nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3))
    model2d = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), block)
    spacing = (1, 1, 1) if preset == "anisotropic" else None
    plan = make_plan(model2d, preset, example=PICTURE, spacing_mm=spacing)
    by_preset = {layer.path: layer.action for layer in plan}
    context = "clip" if preset in ("video", "i3d", "i3d-3x1x1", "isotropic", "anisotropic") else "frame"
    assert by_preset["1"] == PRESETS[preset].context == context


def by_hand(gate, clip):
    """What a gate or norm is over time, height and width, written for clips."""
    if isinstance(gate, SqueezeExcitation):
        squeezed = clip.mean((3, 4)).mean(2)[..., None, None]
        return clip * gate.fc2(gate.fc1(squeezed).relu()).sigmoid().unsqueeze(2)
    if isinstance(gate, nn.GroupNorm):
        return F.group_norm(clip, gate.num_groups, gate.weight, gate.bias, gate.eps)
    if isinstance(gate, GlobalResponseNorm):
        norm = clip.square().mean(2).sum((2, 3)).sqrt()
        ratio = norm / (norm.mean(1, keepdim=True) + gate.eps)
        return clip + clip * (gate.weight * ratio)[:, :, None, None, None] + gate.bias.view(-1, 1, 1, 1)
    if isinstance(gate, cbam.ChannelAttn):
        squeezed = clip.mean((2, 3, 4)), clip.amax((2, 3, 4))
        scores = sum(gate.fc2(gate.fc1(x[..., None, None]).relu()) for x in squeezed)
        return clip * scores.sigmoid().unsqueeze(2)
    if isinstance(gate, filter_response_norm.FilterResponseNormAct2d):
        power = clip.square().mean((2, 3, 4), keepdim=True)
        return (clip * (power + gate.eps).rsqrt() * gate.weight.view(-1, 1, 1, 1) + gate.bias.view(-1, 1, 1, 1)).relu()
    assert isinstance(gate, nn.InstanceNorm2d)
    return F.instance_norm(clip, weight=gate.weight, bias=gate.bias, eps=gate.eps)


BY_HAND = (
    "torchvision SE",
    "group norm",
    "one group",
    "instance norm",
    "CBAM",
    "response norm",
    "filter response norm",
)


@pytest.mark.parametrize("name", BY_HAND)
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last_3d])
def test_a_gate_over_the_clip_is_what_it_is_by_hand(name, memory):
    model3d = inflate(gated(GATES[name]), example=PICTURE)
    clip = torch.randn(2, 3, 5, 17, 13).double().contiguous(memory_format=memory)
    found = {}
    model3d.net[1].register_forward_hook(lambda module, args, output: found.update(x=args[0], y=output))
    model3d(clip)
    x, y = (found[key].unflatten(0, (2, 5)).transpose(1, 2) for key in "xy")
    rounding = {"rtol": 1e-5, "atol": 1e-6} if name in SINGLE else {}
    torch.testing.assert_close(y, by_hand(model3d.net[1], x), **rounding)


def test_batch_norm_over_frames_is_batch_norm_over_clips():
    model2d = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5, momentum=0.3)).double().train()
    model3d = scramble(inflate(model2d, example=PICTURE))
    plain = nn.Sequential(nn.Conv3d(3, 5, 3), nn.BatchNorm3d(5, momentum=0.3)).double().train()
    plain.load_state_dict(model3d.net.state_dict())
    for batch, frames in [(2, 7), (3, 1), (1, 4)]:
        clip = torch.randn(batch, 3, frames, 17, 13).double() + batch
        torch.testing.assert_close(model3d(clip), plain(repeat_ends(clip, 1, 1)))
    for name, value in model3d.net.state_dict().items():
        torch.testing.assert_close(value, plain.state_dict()[name], msg=name)
