"""ACS kernels: as by hand on all three sides, weights as in 2D, and a proof that claims no more than is so."""

import copy
import pickle

import pytest
import timm
import torch
from small_models import Residual, randomize
from torch import nn
from typer.testing import CliRunner

from inflate3d import InflateError, Insert, Plan, Rule, deflate, inflate, make_plan, prove
from inflate3d.cli import app
from inflate3d.inflation.acs import AcsConv2d, thirds
from inflate3d.inflation.profiles import profile_taps
from inflate3d.speed.optimize import optimize
from inflate3d.weights.inflated_file import load_inflated, save_inflated

PICTURE = torch.zeros(1, 3, 37, 45)


pytestmark = pytest.mark.usefixtures("one_thread")


def residual():
    return randomize(Residual())


# --- one layer --------------------------------------------------------------------------------------------------------


def sides_of_outputs(out_channels, groups):
    """The side on which the kernel of each output stands, 0 to 2."""
    if groups > 2:
        size, rest = divmod(groups, 3)
        counts = [size + (side < rest) for side in range(3)]
        return [side for side in range(3) for _ in range(counts[side] * (out_channels // groups))]
    size, rest = divmod(out_channels // groups, 3)
    return [side for side in range(3) for _ in range(size + (side < rest))] * groups


def by_hand(conv2d, x, time_stride, padding="replicate"):
    """Sum over taps: each output, each input, each row and column of the 2D kernel, put on its side."""
    b, _, frames, height, width = x.shape
    picture = conv2d(torch.zeros_like(x[:, :, 0]))  # for its size alone
    (kh, kw), (dh, dw), (sh, sw) = conv2d.kernel_size, conv2d.dilation, conv2d.stride
    total_h, total_w = [(k - 1) * d if conv2d.padding == "same" else 0 for k, d in ((kh, dh), (kw, dw))]
    top, left = (total_h // 2, total_w // 2) if conv2d.padding == "same" else conv2d.padding
    t = torch.arange(-(-frames // time_stride)) * time_stride
    h = torch.arange(picture.shape[2]) * sh - top + (kh - 1) // 2 * dh
    w = torch.arange(picture.shape[3]) * sw - left + (kw - 1) // 2 * dw
    y = torch.zeros(b, conv2d.out_channels, len(t), len(h), len(w)).to(x)
    inputs, outputs = conv2d.in_channels // conv2d.groups, conv2d.out_channels // conv2d.groups
    for o, side in enumerate(sides_of_outputs(conv2d.out_channels, conv2d.groups)):
        for row in range(kh):
            for column in range(kw):
                rows, columns = (row - (kh - 1) // 2) * dh, (column - (kw - 1) // 2) * dw
                past = (row - (kh - 1)) * dh if padding == "causal" else rows
                dt, di, dj = [(0, rows, columns), (past, 0, columns), (past, columns, 0)][side]
                at_t, at_h, at_w = t + dt, h + di, w + dj
                inside = ((at_h >= 0) & (at_h < height))[:, None] & ((at_w >= 0) & (at_w < width))
                inside = inside & ((at_t >= 0) & (at_t < frames) | (padding != "zeros"))[:, None, None]
                at = at_t.clamp(0, frames - 1), at_h.clamp(0, height - 1), at_w.clamp(0, width - 1)
                value = x[:, :, at[0]][:, :, :, at[1]][:, :, :, :, at[2]] * inside
                first = o // outputs * inputs
                y[:, o] += torch.einsum(
                    "bithw,i->bthw", value[:, first : first + inputs], conv2d.weight[o, :, row, column]
                )
    return y if conv2d.bias is None else y + conv2d.bias.view(-1, 1, 1, 1)


LAYERS = {
    "plain": ((5, 7, 3), {"padding": 1}),
    "no padding": ((5, 8, 3), {}),
    "wide padding": ((4, 6, 3), {"padding": 2, "stride": 2}),
    "7x7": ((3, 5, 7), {"padding": 3, "stride": 2}),
    "even": ((4, 6, 4), {"padding": 1}),
    "patchify": ((3, 7, 2), {"stride": 2}),
    "1x1": ((4, 6, 1), {"stride": 2}),
    "not square": ((4, 6, (3, 1)), {"padding": (1, 0)}),
    "wide": ((4, 6, (1, 5)), {"padding": (0, 2)}),
    "dilated": ((4, 6, 3), {"padding": 2, "dilation": 2}),
    "same": ((4, 6, 4), {"padding": "same"}),
    "two groups": ((4, 10, 3), {"padding": 1, "groups": 2, "bias": False}),
    "five groups": ((10, 15, 3), {"padding": 1, "groups": 5}),
    "depthwise": ((7, 7, 3), {"padding": 1, "groups": 7}),
    "two outputs": ((4, 2, 3), {"padding": 1}),
}


@pytest.mark.parametrize("padding", ["replicate", "zeros", "causal"])
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_as_by_hand(name, padding):
    sizes, options = LAYERS[name]
    torch.manual_seed(1)
    conv2d = nn.Conv2d(*sizes, **options).double()
    time_stride = 2 if conv2d.stride[0] > 1 else 1
    rule = Rule(padding=padding) if conv2d.kernel_size[0] > 1 or time_stride > 1 else None
    model2d = nn.Sequential(nn.Conv2d(3, sizes[0], 3, padding=1).double(), conv2d)
    preset = "isotropic" if time_stride > 1 else "video"
    rules = {"1": rule} if rule else None
    plan = make_plan(model2d, preset, example=torch.zeros(1, 3, 13, 11), profile="acs", rules=rules)
    layer = inflate(model2d, plan).net[1]
    x = torch.randn(2, sizes[0], 6, 13, 11).double()
    if not isinstance(layer, AcsConv2d):
        assert name == "1x1"
        assert time_stride == 1
        return
    torch.testing.assert_close(layer(x), by_hand(conv2d, x, time_stride, padding))
    assert layer.weight.shape == conv2d.weight.shape


def test_a_side_is_the_same_on_a_volume_that_was_turned():
    """The coronal third on a volume is what it would be as an axial one, with time and height changed over."""
    conv2d = nn.Conv2d(3, 9, 3, padding=1).double()
    rules = {"": Rule(padding="zeros")}
    plan = make_plan(conv2d, example=torch.zeros(1, 3, 7, 11), profile="acs", rules=rules)
    layer = inflate(conv2d, plan).net
    x = torch.randn(2, 3, 5, 7, 11).double()
    slices = x.transpose(2, 3)  # [b, c, h, t, w]
    axial = conv2d(slices.transpose(1, 2).flatten(0, 1)).unflatten(0, (2, 7)).movedim(1, 3)  # [b, c, t, h, w]
    torch.testing.assert_close(layer(x)[:, 3:6], axial[:, 3:6])
    assert not torch.allclose(layer(x)[:, 6:], axial[:, 6:])


def test_other_paddings_in_space_are_kept():
    conv2d = nn.Conv2d(3, 6, 3, padding=1, padding_mode="reflect").double()
    layer = inflate(conv2d, example=torch.zeros(1, 3, 7, 11), profile="acs").net
    x = torch.randn(2, 3, 5, 7, 11).double()
    around = torch.nn.functional.pad(x.transpose(1, 2).flatten(0, 1), (1, 1, 1, 1), mode="reflect")
    bare = nn.Conv2d(3, 6, 3).double()
    bare.load_state_dict(conv2d.state_dict())
    expected = by_hand(bare, around.unflatten(0, (2, 5)).transpose(1, 2), 1)
    torch.testing.assert_close(layer(x), expected)


def test_tensorflows_padding_is_kept():
    model2d = nn.Sequential(timm.layers.Conv2dSame(3, 6, 3, stride=2)).double()
    model3d = inflate(model2d, "isotropic", example=torch.zeros(1, 3, 14, 11), profile="acs")
    x = torch.randn(2, 3, 6, 14, 11).double()
    around = torch.nn.functional.pad(x, (1, 1, 0, 1))  # 14 rows to 7: one below; 11 columns to 6: one on each side
    bare = nn.Conv2d(3, 6, 3, stride=2).double()
    bare.load_state_dict(model2d[0].state_dict())
    torch.testing.assert_close(model3d(x), by_hand(bare, around, 2))


def test_channels_last_memory_changes_nothing():
    """torch's own convolution in float32 gives wrong numbers for kernels and biases that lie so."""
    conv2d = nn.Conv2d(8, 8, 3, 2, 1, groups=2)
    layer = inflate(conv2d, example=torch.zeros(1, 8, 9, 10), profile="acs").net
    x = torch.randn(1, 8, 6, 9, 10)
    expected = copy.deepcopy(layer).double()(x.double()).float()
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)
    layer.to(memory_format=torch.channels_last)
    torch.testing.assert_close(layer(x.to(memory_format=torch.channels_last_3d)), expected, rtol=1e-4, atol=1e-5)


def test_thirds():
    assert [[part.stop - part.start for part in thirds(number)] for number in (9, 8, 7, 2, 1)] == [
        [3, 3, 3], [3, 3, 2], [3, 2, 2], [1, 1, 0], [1, 0, 0],
    ]  # fmt: skip


# --- a network --------------------------------------------------------------------------------------------------------


def test_a_2d_checkpoint_is_loaded_as_it_is():
    model2d, other = residual(), randomize(Residual(), seed=4)
    model3d = inflate(model2d, "isotropic", example=PICTURE, profile="acs")
    assert any(isinstance(layer, AcsConv2d) for layer in model3d.modules())
    model3d.net.load_state_dict(other.state_dict())
    back = deflate(model3d)
    assert all(torch.equal(a, b) for a, b in zip(back.state_dict().values(), other.state_dict().values(), strict=True))
    picture = torch.randn(2, 3, 37, 45)
    assert torch.equal(back(picture), other(picture))
    assert [type(part) for part in back.modules()] == [type(part) for part in other.modules()]


@pytest.mark.parametrize("preset", ["video", "isotropic"])
def test_the_proof_does_not_claim_still_clips(preset):
    model2d = residual()
    model3d = inflate(model2d, preset, example=PICTURE, profile="acs")
    proof = prove(model2d, model3d, lengths=(1, 4))
    assert proof.holds, str(proof)
    assert "PROVED, but not for still clips" in str(proof)
    assert "not claimed: a still clip is answered as the picture" in str(proof)
    laws = [check.law for check in proof.checks]
    assert "a still clip, every frame, float64, were all ACS kernels axial" in laws
    assert "a still clip, every frame, float64" not in laws
    assert "with taps of the past, steps see earlier frames" in laws
    picture = torch.randn(2, 3, 37, 45)
    expected, found = model2d(picture), model3d(picture.unsqueeze(2).repeat(1, 1, 9, 1, 1))
    assert (found - expected).abs().max() > 1e-3 * expected.abs().max()
    assert prove(model2d, inflate(model2d, preset, example=PICTURE), lengths=(4,)).not_claimed == ()


def test_the_proof_sees_kernels_in_wrong_places(monkeypatch):
    model2d = residual()
    model3d = inflate(model2d, "isotropic", example=PICTURE, profile="acs")
    as_it_should = AcsConv2d.of_part
    monkeypatch.setattr(AcsConv2d, "of_part", lambda *given: as_it_should(*given).roll(1, -1))
    proof = prove(model2d, model3d, lengths=(4,))
    assert not proof.holds
    assert str(proof).startswith("Residual, preset isotropic, 3 layers look through time: NOT PROVED\n")


def test_the_plan_says_so_and_goes_to_json():
    plan = make_plan(residual(), "isotropic", example=PICTURE, profile="acs")
    assert "a still clip is not answered as in 2D" in str(plan)
    assert Plan.from_json(plan.to_json()) == plan
    assert "a still clip" not in str(make_plan(residual(), "isotropic", example=PICTURE))


def test_layers_that_cannot_are_inflated_by_the_mean():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.plain, self.standard = nn.Conv2d(3, 6, 3, padding=1), timm.layers.StdConv2d(6, 6, 3, padding=1)
            self.large, self.up = nn.Conv2d(6, 6, 9, padding=4), nn.ConvTranspose2d(6, 6, 3)

        def forward(self, x):
            return self.up(self.large(self.standard(self.plain(x))))

    plan = make_plan(Net(), example=torch.zeros(1, 3, 11, 13), profile="acs")
    found = {layer.path: (layer.profile, layer.time_kernel) for layer in plan}
    assert found == {"plain": ("acs", 3), "standard": ("mean", 3), "large": ("mean", 7), "up": ("mean", 3)}
    for path in ("standard", "up", "large"):
        wrong = plan.with_rules({path: Rule(profile="acs")})
        with pytest.raises(InflateError, match="cannot have ACS kernels as planned"):
            inflate(Net(), wrong)


@pytest.mark.parametrize("rule", [Rule(time_kernel=5), Rule(padding="valid")])
def test_rules_that_acs_kernels_cannot_follow_are_refused(rule):
    plan = make_plan(residual(), example=PICTURE, profile="acs", rules={"block.3": rule})
    with pytest.raises(InflateError, match="cannot have ACS kernels as planned") as caught:
        inflate(residual(), plan)
    assert "block.3" in caught.value.where


def test_rules_change_kernels_back_and_forth():
    model2d = residual()
    model3d = inflate(model2d, example=PICTURE, profile="acs", rules={"stem.0": Rule(profile="center")})
    assert model3d.net.stem[0].weight.ndim == 5
    model3d = inflate(model2d, example=PICTURE, rules={"block.3": Rule(profile="acs")})
    assert model3d.net.block[3].weight.ndim == 4
    assert prove(model2d, model3d, lengths=(4,)).not_claimed


def test_acs_kernels_have_no_taps():
    with pytest.raises(InflateError, match="so they have no taps"):
        profile_taps("acs", 3)


def test_it_is_copied_pickled_compiled_trained_and_optimized():
    model2d = residual()
    model3d = inflate(model2d, "isotropic", example=PICTURE, profile="acs", inserts=[Insert("pool", "temporal_conv")])
    clip = torch.randn(1, 3, 6, 37, 45)
    with torch.no_grad():
        expected = model3d(clip)
        for twin in (copy.deepcopy(model3d), pickle.loads(pickle.dumps(model3d))):
            assert torch.equal(twin(clip), expected)
        compiled = torch.compile(model3d.net.block[3], backend="aot_eager", fullgraph=True)
        volume = torch.randn(2, 8, 5, 9, 7)
        torch.testing.assert_close(compiled(volume), model3d.net.block[3](volume))
        torch.testing.assert_close(optimize(model3d)(clip), expected, rtol=1e-3, atol=1e-4)
    model3d.train()(torch.randn(2, 3, 6, 37, 45)).sum().backward()
    assert all(parameter.grad is not None for parameter in model3d.parameters())


def test_a_file_builds_it_again_and_the_command_proves_it(tmp_path):
    model3d = inflate(timm.create_model("test_resnet", num_classes=5).eval(), "isotropic", profile="acs")
    file = tmp_path / "resnet.safetensors"
    save_inflated(model3d, file, "timm/test_resnet", options={"num_classes": 5})
    clip = torch.rand(1, 3, 5, 64, 64)
    assert torch.equal(load_inflated(file)(clip), model3d(clip))
    done = CliRunner().invoke(app, ["prove", "timm/test_resnet", "--size", "64", "--profile", "acs"])
    assert done.exit_code == 0
    assert "PROVED, but not for still clips" in done.output
