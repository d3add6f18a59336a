"""Ways through the engine that few models take: random kernels, merged rows, maps that shrink by interpolation."""

import pytest
import torch
import torch.nn.functional as F
from laws import check_still, frames_seen, scramble, still
from small_models import MergedRows
from timm import layers
from torch import nn
from torchvision.ops import StochasticDepth

from inflate3d.errors import InflateError
from inflate3d.inflation.build import build, deflate, inflate, make_plan
from inflate3d.inflation.cost import Cost, estimate_cost
from inflate3d.inflation.kernels import load_2d_into
from inflate3d.inflation.plan import Insert, Rule
from inflate3d.inflation.proof import prove
from inflate3d.inflation.resize import resize_time

pytestmark = pytest.mark.usefixtures("one_thread")

PICTURE = torch.zeros(1, 3, 17, 13)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 6, 3, groups=2),
        nn.ConvTranspose2d(4, 6, 3, groups=2),
        layers.StdConv2d(4, 6, 3),
        layers.ScaledStdConv2d(4, 6, 3),
    ],
)
def test_random_kernels_are_drawn_as_torch_draws_those_of_3d_layers(layer):
    torch.manual_seed(3)
    model3d = inflate(nn.Sequential(layer), example=torch.zeros(1, 4, 9, 9), profile="random")
    weight = model3d.net[0].weight.detach()
    like = nn.ConvTranspose3d if isinstance(layer, nn.ConvTranspose2d) else nn.Conv3d
    torch.manual_seed(3)
    wanted = like(4, 6, 3, groups=layer.groups).weight.detach()
    assert weight.shape == wanted.shape
    bound = float(wanted.abs().max())
    assert 0.8 * bound < float(weight.abs().max()) < 1.25 * bound
    assert weight.std() == pytest.approx(float(wanted.std()), rel=0.15)
    frames = weight.unbind(2)
    assert not torch.allclose(frames[0], frames[1])
    assert model3d(torch.randn(2, 4, 5, 9, 9)).isfinite().all()
    with pytest.raises(InflateError, match="no 2D kernel behind it"):
        deflate(model3d)


def test_the_proof_of_random_kernels_does_not_speak_of_deflating():
    model2d = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    proof = prove(model2d, inflate(model2d, example=PICTURE, profile="random"))
    assert not proof.holds
    laws = {check.law: check.holds for check in proof.checks}
    assert not laws["a still clip, every frame, float64"]
    assert not any("deflate" in law for law in laws)


class MergedDrop(MergedRows):
    """Drops rows at random where groups of channels are merged into the batch."""

    def __init__(self, inside):
        super().__init__(inside)
        self.conv = StochasticDepth(0.5, "row")


@pytest.mark.parametrize("inside", [True, False])
def test_of_merged_rows_all_of_a_clip_are_dropped_or_none(inside):
    model3d = inflate(nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), MergedDrop(inside)), example=torch.zeros(1, 6, 5, 7))
    clip = torch.randn(100, 6, 4, 5, 7)
    with torch.no_grad():
        whole = model3d.eval()(clip)
        dropped = model3d.train()(clip)
    kept = dropped.flatten(1).any(1)
    assert 25 < kept.sum() < 75
    torch.testing.assert_close(dropped, 2 * whole * kept.view(-1, 1, 1, 1, 1))


class Shrinks(nn.Module):
    """A pyramid that makes its map smaller by interpolation, and larger again."""

    def __init__(self, mode):
        super().__init__()
        self.mode = mode
        self.first, self.inner, self.last = (nn.Conv2d(a, b, 3, padding=1) for a, b in ((3, 4), (4, 4), (4, 2)))

    def forward(self, x):
        x = self.first(x)
        small = self.inner(F.interpolate(x, scale_factor=0.5, mode=self.mode))
        return self.last(x + F.interpolate(small, size=x.shape[2:], mode=self.mode))


@pytest.mark.parametrize("mode", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize("preset", ["video", "i3d", "isotropic"])
def test_maps_that_shrink_by_interpolation_take_time_along(mode, preset):
    model2d = Shrinks(mode).double().eval()
    plan = make_plan(model2d, preset, example=torch.zeros(1, 3, 16, 12))
    resized = [layer for layer in plan if layer.kind == "resize"]
    shrinks = preset == "isotropic"
    wanted = [(2, 1), (1, 2)] if shrinks else [(1, 1), (1, 1)]
    assert [(layer.time_stride, layer.time_scale) for layer in resized] == wanted
    assert plan.clip_multiple == (2 if shrinks else 1)
    model3d = build(plan, model2d)
    check_still(model2d, model3d, (2, 3, 16, 12), lengths=(1, 2, 5))
    assert scramble(model3d)(torch.randn(1, 3, 5, 16, 12).double()).shape == (1, 2, 5, 16, 12)


def test_depth_is_left_alone_by_interpolation_until_voxels_are_even():
    plan = make_plan(Shrinks("nearest"), "anisotropic", example=torch.zeros(1, 3, 16, 12), spacing_mm=(4.0, 1.0, 1.0))
    assert [layer.time_stride for layer in plan if layer.kind == "resize"] == [1, 1]
    assert [layer.time_kernel for layer in plan if layer.kind == "conv"] == [1, 1, 1]


@pytest.mark.parametrize("frames", range(1, 10))
def test_a_pool_over_time_behind_a_decoder_gives_a_step_for_each_that_begins_in_the_clip(frames):
    model2d = nn.Sequential(nn.Conv2d(3, 4, 2, 2), nn.Conv2d(4, 4, 2, 2), nn.ConvTranspose2d(4, 2, 4, 4)).double()
    picture = torch.randn(1, 3, 16, 8).double()
    model3d = inflate(model2d, "isotropic", example=picture, inserts=[Insert("2", "time_pool")])
    assert model3d.plan.clip_multiple == 8  # strides of 4 in time, and the pool's of 2 behind them
    with torch.no_grad():
        answer = model3d(still(picture, frames))
        assert answer.shape == (1, 2, -(-frames // 2), 16, 8)
        torch.testing.assert_close(answer, model2d(picture).unsqueeze(2).expand_as(answer))


@pytest.mark.parametrize("own", [None, lambda count: [0.75] + [0.25 / max(count - 1, 1)] * (count - 1)])
def test_transposed_convolutions_of_an_unknown_class_lengthen_time_by_taps_alone(own):
    class Odd(nn.ConvTranspose2d):
        def forward(self, x, output_size=None):
            return super().forward(x, output_size) * 2

    down, up = nn.Conv2d(3, 4, 2, 2), Odd(4, 2, 2, 2)
    model2d = nn.Sequential(down, up).double().eval()
    options = {} if own is None else {"profile": lambda count: [1.0] if count == 1 else own(count)}
    model3d = inflate(model2d, "isotropic", example=torch.zeros(1, 3, 8, 6), **options)
    check_still(model2d, model3d, (2, 3, 8, 6), lengths=(1, 2, 5))
    assert model3d.net[1].weight.ndim == 4


def test_what_finds_no_place_in_a_3d_network_is_named_with_its_shape():
    net3d = nn.Sequential(nn.Conv3d(3, 4, 3))
    before = {name: value.clone() for name, value in net3d.state_dict().items()}
    state = {**nn.Sequential(nn.Conv2d(3, 4, 3)).state_dict(), "fc.weight": torch.zeros(5, 4), "epoch": 3}
    with pytest.raises(InflateError, match="do not fit") as caught:
        load_2d_into(net3d, state)
    assert "fc.weight: [5, 4]: the 3D network has nothing of that name" in caught.value.got
    assert "epoch: a int, not a tensor" in caught.value.got
    assert all(torch.equal(value, before[name]) for name, value in net3d.state_dict().items())
    report = load_2d_into(net3d, state, allow=("fc.*", "epoch"))
    assert set(report.skipped_2d) == {"fc.weight", "epoch"}
    many = {f"extra{number}": torch.zeros(1) for number in range(20)}
    with pytest.raises(InflateError, match="do not fit") as caught:
        load_2d_into(net3d, {**state, **many}, allow=("fc.*", "epoch"))
    assert caught.value.got.count("\n") == 8
    assert caught.value.got.endswith("and 12 more")


class Sometimes(nn.Module):
    """Gives another structure in evaluation of a clip than of pictures, once it is told to."""

    def __init__(self):
        super().__init__()
        self.conv, self.more = nn.Conv2d(3, 4, 3), False

    def forward(self, x):
        y = self.conv(x)
        return (y, y) if self.more else y


@pytest.mark.parametrize("preset", ["video", "isotropic"])
def test_another_structure_than_was_looked_at_is_refused(preset):
    net = nn.Sequential(Sometimes(), nn.Identity()) if preset == "video" else Sometimes()
    model3d = inflate(net, preset, example=PICTURE)
    model3d.outputs_of("forward")
    part = model3d.net[0] if preset == "video" else model3d.net
    part.more = True
    with pytest.raises(InflateError, match="another structure"):
        model3d.eval()(torch.randn(1, 3, 4, 17, 13))


def test_layers_that_give_no_tensor_are_no_layers_of_a_plan():
    class Counts(nn.Module):
        def forward(self, x):
            return x.shape[0]

    class Asks(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.counts = nn.Conv2d(3, 4, 3), Counts()

        def forward(self, x):
            return self.conv(x) * (self.counts(x) > 0)

    model2d = Asks().double().eval()
    plan = make_plan(model2d, example=PICTURE)
    assert [layer.path for layer in plan] == ["conv"]
    check_still(model2d, build(plan, model2d))


def test_a_rule_without_a_kernel_leaves_attention_as_it_is():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.attn = nn.LayerNorm(8), nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x):
            tokens = x.flatten(2).transpose(1, 2)
            y = self.norm(tokens)
            return tokens + self.attn(y, y, y, need_weights=False)[0]

    model2d = nn.Sequential(nn.Conv2d(3, 8, 4, 4), Block())
    example = torch.zeros(1, 3, 8, 8)
    plain = make_plan(model2d, "joint", example=example)
    assert make_plan(model2d, "joint", example=example, rules={"1.attn": Rule()}) == plain
    alone = make_plan(model2d, "joint", example=example, rules={"1.attn": Rule(time_kernel=1)})
    assert [layer.action for layer in alone if layer.kind == "attention"] == ["frame"]


def test_a_gate_that_is_given_vectors_works_on_each():
    class Late(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4)

        def forward(self, x):
            return self.norm(self.norm(self.conv(x)).mean((2, 3)))

    model2d = Late().double().eval()
    check_still(model2d, inflate(model2d, example=PICTURE))


def test_a_cost_is_told_in_a_line():
    model3d = inflate(nn.Sequential(nn.Conv2d(3, 5, 3, padding=1)), example=PICTURE)
    cost = estimate_cost(model3d, (3, 4, 10, 20))
    assert cost.parameters == 5 * 3 * 27 + 5
    assert cost.gmacs == pytest.approx(5 * 3 * 27 * 4 * 10 * 20 / 1e9)
    assert cost.activation_megabytes == pytest.approx(5 * 4 * 10 * 20 * 4 / 1e6)
    assert str(Cost(25_600_000, 111.14, 1234.4, 107)) == (
        "25.6 M parameters, 111.1 GMAC, 1234 MB of activations, 107 frames seen by one output"
    )


def test_a_proof_names_the_output_where_no_layer_differs():
    class Scales(nn.Module):
        """Answers a batch of two, as pictures are, otherwise than one of more, as clips are."""

        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return self.conv(x), torch.full((len(x), 1), float(len(x) > 4), dtype=x.dtype)

    model2d = Scales()
    proof = prove(model2d, inflate(model2d, example=PICTURE))
    assert not proof.holds
    first = proof.checks[0]
    assert first.where.startswith("first differs at")
    assert "model itself" in first.where or "no layer" in first.where


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_models_in_half_precision_are_proved_by_their_plan(dtype):
    model2d = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 3)).to(dtype)
    proof = prove(model2d, inflate(model2d, example=PICTURE))
    assert proof.holds, str(proof)
    deflated = next(check for check in proof.checks if "deflate" in check.law)
    assert 0 < deflated.limit <= 4 * torch.finfo(dtype).eps


def test_smooth_interpolation_in_time_lets_a_frame_see_its_neighbors_alone():
    model2d = Shrinks("bilinear").double().eval()
    rules = {"first": Rule(time_kernel=1), "inner": Rule(time_kernel=1), "last": Rule(time_kernel=1)}
    model3d = inflate(model2d, "isotropic", example=torch.zeros(1, 3, 16, 12), rules=rules)
    by_hand = [resize_time(torch.eye(8).view(1, 8, 8, 1, 1), layer) for layer in model3d.plan if layer.kind == "resize"]
    assert by_hand[0].shape[2] == 4
    # made half as long, frames 2 and 3 are one, and so are 4 and 5; frame 3 lies between these two
    assert frames_seen(model3d, 3, (1, 3, 8, 16, 12)) == [2, 3, 4, 5]
