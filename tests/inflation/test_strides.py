"""What changes the length of time: transposed convolutions, interpolation, pixel shuffle, and clips of any length."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from laws import check_still, gradients, still
from small_models import randomize
from torch import nn
from torch.nn.utils import parametrizations

from inflate3d import InflateError, Plan, Rule, deflate, inflate, make_plan, prove
from inflate3d.inflation.outputs import Outputs
from inflate3d.inflation.plan import LayerPlan
from inflate3d.inflation.resize import resize_time

PICTURE = torch.zeros(1, 3, 24, 16)
SHAPE = (2, 3, 24, 16)
LENGTHS = (1, 2, 3, 5, 8)


def timings(plan):
    return {layer.path: (layer.time_kernel, layer.time_stride, layer.time_scale) for layer in plan}


# --- interpolation, frame by frame ------------------------------------------------------------------------------------


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("scale", [2, 3])
def test_linear_interpolation_in_time_is_that_of_pictures(scale, align_corners):
    values = np.random.default_rng(0).normal(size=7)
    plan = LayerPlan("up", "Upsample", "resize", time_kernel=2, time_scale=scale)
    clip = torch.from_numpy(values).view(1, 1, 7, 1, 1).expand(2, 3, 7, 5, 4)
    found = resize_time(clip, plan, align_corners=align_corners)
    places = np.linspace(0, 6, 7 * scale) if align_corners else (np.arange(7 * scale) + 0.5) / scale - 0.5
    wanted = torch.from_numpy(np.interp(places, np.arange(7), values)).view(1, 1, -1, 1, 1)
    torch.testing.assert_close(found, wanted.expand_as(found))


def test_the_nearest_frame_is_repeated_or_left_out():
    clip = torch.arange(5.0).view(1, 1, 5, 1, 1)
    up = LayerPlan("up", "Upsample", "resize", time_scale=3)
    down = LayerPlan("down", "Upsample", "resize", time_stride=2)
    smooth = replace(down, time_kernel=2)
    assert resize_time(clip, up).flatten().tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4]
    assert resize_time(clip, down).flatten().tolist() == [0, 2, 4]
    assert resize_time(clip, smooth).shape[2] == 3
    torch.testing.assert_close(resize_time(torch.full_like(clip, 7), smooth).unique(), torch.tensor([7.0]))


class Calls(nn.Module):
    """Halves pictures and brings them back by a call."""

    def __init__(self, up):
        super().__init__()
        self.down, self.up = nn.Conv2d(3, 12, 3, 2, 1), up

    def forward(self, x):
        return self.up(self.down(x))


UPWARD = {
    "nearest": nn.Upsample(scale_factor=2),
    "bilinear": nn.Upsample(scale_factor=2, mode="bilinear"),
    "corners": nn.UpsamplingBilinear2d(size=(24, 16)),
    "bicubic": nn.Upsample(scale_factor=2, mode="bicubic"),
    "shuffle": nn.PixelShuffle(2),
    "call nearest": lambda y: F.interpolate(y, scale_factor=2),
    "call bilinear": lambda y: F.interpolate(y, (24, 16), mode="bilinear", align_corners=True),
    "call exact": lambda y: F.interpolate(input=y, size=(24, 16), mode="nearest-exact"),
    "call shuffle": lambda y: F.pixel_shuffle(y, 2),
    "transposed": nn.ConvTranspose2d(12, 5, 4, 2, 1),
}


@pytest.mark.parametrize("up", UPWARD.values(), ids=UPWARD)
@pytest.mark.parametrize("preset", ["isotropic", "i3d"])
def test_clips_of_every_length_come_back_to_it(preset, up):
    model2d = Calls(up).double()
    model3d = inflate(model2d, preset, example=PICTURE)
    assert model3d.plan.clip_multiple == 2
    for frames in LENGTHS:
        assert model3d(torch.randn(1, 3, frames, 24, 16).double()).shape[2] == frames
    check_still(model2d, model3d, SHAPE, LENGTHS)
    picture = torch.randn(SHAPE).double()
    torch.testing.assert_close(model3d(picture), model2d(picture))


@pytest.mark.parametrize("scale", [1, 2])
def test_an_interpolation_by_module_and_by_call_answer_alike(scale):
    up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=scale == 2)
    by_module = Calls(up).double()
    by_call = Calls(lambda y: F.interpolate(y, scale_factor=2, mode="bilinear", align_corners=scale == 2)).double()
    by_call.load_state_dict(by_module.state_dict())
    clip = torch.randn(2, 3, 5, 24, 16).double()
    first, second = (inflate(model, "isotropic", example=PICTURE)(clip) for model in (by_module, by_call))
    torch.testing.assert_close(first, second)
    # the coarse frames, three of them for six, in between by the trilinear interpolation of torch
    coarse = inflate(by_module.down, "isotropic", example=PICTURE)(torch.cat([clip, clip[:, :, -1:]], 2))
    wanted = F.interpolate(coarse, (6, 24, 16), mode="trilinear", align_corners=scale == 2)[:, :, :5]
    torch.testing.assert_close(first, wanted)


@pytest.mark.parametrize("by_call", [False, True])
def test_what_was_pixels_is_pooled_over_as_many_frames(by_call):
    model2d = Calls((lambda y: F.pixel_unshuffle(y, 2)) if by_call else nn.PixelUnshuffle(2)).double()
    model2d.down = nn.Conv2d(3, 4, 3, padding=1).double()
    model3d = inflate(model2d, "isotropic", example=PICTURE)
    assert list(timings(model3d.plan).values()) == [(3, 1, 1), (2, 2, 1)]
    check_still(model2d, model3d, SHAPE, LENGTHS)
    clip = torch.randn(1, 3, 4, 24, 16).double()
    before = F.pixel_unshuffle(model3d.net.down(clip).transpose(1, 2), 2).transpose(1, 2)
    torch.testing.assert_close(model3d(clip), F.avg_pool3d(before, (2, 1, 1), (2, 1, 1)))


# --- transposed convolutions ------------------------------------------------------------------------------------------

TRANSPOSED = {
    "2x2": {"kernel_size": 2, "stride": 2},
    "3x3": {"kernel_size": 3, "stride": 2, "padding": 1, "output_padding": 1},
    "4x4": {"kernel_size": 4, "stride": 2, "padding": 1, "groups": 2},
    "5x5": {"kernel_size": 5, "stride": 2, "padding": 2, "output_padding": 1, "bias": False},
    "3x4 stride 3": {"kernel_size": (3, 4), "stride": 3},
    "8x8 stride 4": {"kernel_size": 8, "stride": 4, "padding": 2},
}
PROFILES = ("mean", "center", "negative", "shift", lambda taps: np.arange(1, taps + 1) / np.arange(1, taps + 1).sum())


def halved_and_back(options):
    stride = options["stride"]
    return nn.Sequential(nn.Conv2d(3, 16, stride, stride), nn.ConvTranspose2d(16, 6, **options)).double()


@pytest.mark.parametrize("profile", PROFILES, ids=["mean", "center", "negative", "shift", "own"])
@pytest.mark.parametrize("options", TRANSPOSED.values(), ids=TRANSPOSED)
def test_transposed_convolutions_that_lengthen_time_are_exact_and_deflate(options, profile):
    model2d = halved_and_back(options)
    model3d = inflate(model2d, "isotropic", example=PICTURE, profile=profile)
    assert timings(model3d.plan)["1"] == (max(model2d[1].kernel_size), 1, options["stride"])
    check_still(model2d, model3d, SHAPE, LENGTHS)
    torch.testing.assert_close(deflate(model3d)[1].weight, model2d[1].weight)
    again = inflate(model2d, Plan.from_json(model3d.plan.to_json()))
    torch.testing.assert_close(again.net[1].weight, model3d.net[1].weight)


def taps_by_hand(name, taps, center):
    """Past to future."""
    if name == "mean":
        return [1 / taps] * taps
    lam = {"center": 1, "negative": 2}[name]
    return [1 / taps + lam * (1 - 1 / taps) if tap == center else (1 - lam) / taps for tap in range(taps)]


@pytest.mark.parametrize("name", ["mean", "center", "negative"])
@pytest.mark.parametrize("options", TRANSPOSED.values(), ids=TRANSPOSED)
def test_each_output_frame_is_a_sum_of_frames_whose_taps_sum_to_one(options, name):
    layer = halved_and_back(options)[1]
    kernel, stride = max(layer.kernel_size), options["stride"]
    model3d = inflate(halved_and_back(options), "isotropic", example=PICTURE, profile=name)
    model3d.net[1].bias = layer.bias
    with torch.no_grad():
        weight = model3d.net[1].weight
        weight.copy_(weight / weight.sum(2, keepdim=True) * stride * layer.weight.unsqueeze(2))
    clip = torch.randn(2, 16, 5, 6, 5).double()
    found = model3d.net[1](clip)
    assert found.shape[2] == 5 * stride
    front = (kernel - stride) // 2
    for frame in range(5 * stride):
        # input frames i that reach this one: 0 <= frame + front - i * stride < kernel
        reach = [i for i in range(-kernel, 5 + kernel) if 0 <= frame + front - i * stride < kernel]
        taps = taps_by_hand(name, len(reach), reach.index(frame // stride))
        mixed = sum(tap * clip[:, :, min(max(i, 0), 4)] for tap, i in zip(taps, reach, strict=True))
        torch.testing.assert_close(found[:, :, frame], layer(mixed))


class CallsTransposed(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.down, self.weight, self.bias = nn.Conv2d(3, 16, 2, 2), layer.weight, layer.bias

    def forward(self, x):
        return F.conv_transpose2d(self.down(x), self.weight, self.bias, 2, 1)


@pytest.mark.parametrize("profile", PROFILES[:4])
def test_transposed_convolutions_of_every_kind_answer_alike(profile):
    model2d = nn.Sequential(nn.Conv2d(3, 16, 2, 2), nn.ConvTranspose2d(16, 6, 4, 2, 1)).double()
    model3d = inflate(model2d, "isotropic", example=PICTURE, profile=profile)
    called = CallsTransposed(model2d[1])
    called.down.load_state_dict(model2d[0].state_dict())
    remade = nn.Sequential(nn.Conv2d(3, 16, 2, 2), nn.ConvTranspose2d(16, 6, 4, 2, 1)).double()
    remade.load_state_dict(model2d.state_dict())
    parametrizations.weight_norm(remade[1])
    clip = torch.randn(2, 3, 5, 24, 16).double()
    for other in (called.double(), remade):
        inflated = inflate(other, "isotropic", example=PICTURE, profile=profile)
        torch.testing.assert_close(inflated(clip), model3d(clip))
        check_still(other, inflated, SHAPE, LENGTHS)


# --- networks ---------------------------------------------------------------------------------------------------------


class Net(nn.Module):
    """An encoder and a decoder with skip connections; one pool and one interpolation serve all levels."""

    def __init__(self, classes=4):
        super().__init__()
        self.pool, self.up = nn.MaxPool2d(2), nn.Upsample(scale_factor=2, mode="bilinear")
        self.first, self.second = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 8, 3, padding=1)
        self.third, self.norm = nn.Conv2d(8, 8, 3, 2, 1), nn.BatchNorm2d(8)
        self.back = nn.ConvTranspose2d(8, 8, 2, 2)
        self.fourth, self.last = nn.Conv2d(16, 6, 3, padding=1), nn.Conv2d(12, classes, 3, padding=1)

    def levels(self, x):
        first = torch.relu(self.first(x))
        second = torch.relu(self.second(self.pool(first)))
        return first, second, torch.relu(self.norm(self.third(self.pool(second))))

    def forward(self, x):
        first, second, third = self.levels(x)
        fourth = self.fourth(torch.cat([self.up(self.back(third)), second], 1))
        return self.last(torch.cat([self.up(fourth), first], 1))


class Pyramid(nn.Module):
    """Pools to sizes of its own and resizes to the picture's, and a gate beside."""

    def __init__(self):
        super().__init__()
        self.stem, self.sides = nn.Conv2d(3, 6, 3, 2, 1), nn.ModuleList(nn.Conv2d(6, 6, 1) for _ in range(3))
        self.gate, self.head = nn.Conv2d(6, 6, 1), nn.Conv2d(24, 4, 3, padding=1)

    def forward(self, x):
        y = self.stem(x)
        sizes = zip((1, 2, 3), self.sides, strict=True)
        pooled = [F.interpolate(side(F.adaptive_avg_pool2d(y, size)), y.shape[2:]) for size, side in sizes]
        y = y * self.gate(y.mean((2, 3), keepdim=True)).sigmoid()
        return F.interpolate(self.head(torch.cat([y, *pooled], 1)), x.shape[2:], mode="bilinear")


class Branches(nn.Module):
    """Two branches with strides of two and of three, which meet at the size of the picture."""

    def __init__(self):
        super().__init__()
        self.second, self.third = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(3, 4, 3, 3, 1)

    def forward(self, x):
        return sum(F.interpolate(branch(x), x.shape[2:], mode="bilinear") for branch in (self.second, self.third))


def test_branches_with_strides_of_two_and_of_three_meet():
    model2d = Branches().double()
    model3d = inflate(model2d, "isotropic", example=PICTURE)
    assert model3d.plan.clip_multiple == 6
    check_still(model2d, model3d, SHAPE, (1, 5, 7))
    assert model3d(torch.randn(1, 3, 7, 24, 16).double()).shape[2] == 7


@pytest.mark.parametrize("preset", ["isotropic", "i3d"])
@pytest.mark.parametrize("make", [Net, Pyramid])
def test_encoders_and_decoders_are_exact_at_every_frame_of_clips_of_any_length(make, preset):
    model2d = randomize(make()).double()
    model3d = inflate(model2d, preset, example=PICTURE)
    check_still(model2d, model3d, SHAPE, (*LENGTHS, 9))
    assert [model3d(torch.randn(1, 3, t, 24, 16).double()).shape[2] for t in LENGTHS] == list(LENGTHS)


def test_encoders_and_decoders_are_proved():
    model2d = randomize(Net())
    proof = prove(model2d, inflate(model2d, "isotropic", example=PICTURE), lengths=(1, 5))
    assert proof.holds, str(proof)
    assert "those where coarser steps begin" in str(proof)


def test_a_step_of_each_level_stays_if_it_begins_before_the_clip_ends():
    model3d = inflate(randomize(Net()), "isotropic", example=PICTURE)
    assert model3d.plan.clip_multiple == 8
    for frames, lengths in {1: [1, 1, 1], 5: [5, 3, 1], 8: [8, 4, 1], 9: [9, 5, 2]}.items():
        levels = model3d.call("levels", torch.randn(2, 3, frames, 24, 16))
        assert [level.shape[2] for level in levels] == lengths


def test_a_clip_is_lengthened_by_its_last_frame():
    model3d = inflate(randomize(Net()).double(), "isotropic", example=PICTURE)
    clip = torch.randn(1, 3, 5, 24, 16).double()
    longer = torch.cat([clip, clip[:, :, -1:].repeat(1, 1, 3, 1, 1)], 2)
    torch.testing.assert_close(model3d(clip), model3d(longer)[:, :, :5])


def test_rules_change_strides_and_what_enlarges_follows():
    model2d = randomize(Net()).double()
    rules = {"third": Rule(time_stride=1)}
    model3d = inflate(model2d, "isotropic", example=PICTURE, rules=rules)
    found = timings(model3d.plan)
    assert (found["third"], found["back"], found["up"]) == ((3, 1, 1), (2, 1, 1), (2, 1, 2))
    assert model3d.plan.clip_multiple == 4
    check_still(model2d, model3d, SHAPE, (1, 3, 4))
    finished = inflate(model2d, make_plan(model2d, "isotropic", example=PICTURE), rules={"first": Rule(time_kernel=5)})
    assert finished.plan.clip_multiple == 8
    assert make_plan(model2d, "isotropic", example=PICTURE).with_rules({"third": Rule(time_stride=3)}).time_shrink == 24
    framewise = inflate(model2d, "frames", example=PICTURE, rules={"pool": Rule(time_stride=2)})
    assert timings(framewise.plan)["up"] == (2, 1, 2)
    check_still(model2d, framewise, SHAPE, (1, 3, 4))
    flat = inflate(model2d, "isotropic", example=PICTURE, rules={"third": Rule(time_stride=1), "pool": Rule(2, 1)})
    assert flat.plan.clip_multiple == 1
    assert next(layer for layer in flat.plan if layer.path == "up").reason == "it works in space alone"
    check_still(model2d, flat, SHAPE, (1, 3))


def test_rules_that_a_lengthening_kernel_cannot_follow_are_refused():
    plan = make_plan(Net(), "isotropic", example=PICTURE)
    with pytest.raises(InflateError, match="puts out 2 frames for each one"):
        plan.with_rules({"back": Rule(time_kernel=1)})
    with pytest.raises(InflateError, match="looks at later frames"):
        plan.with_rules({"back": Rule(padding="causal")})


def test_an_inflated_network_inside_another_model():
    inner2d = randomize(Net(classes=3)).double()
    outer2d = nn.Sequential(inner2d, nn.Conv2d(3, 4, 3, padding=1)).double()
    inner3d = inflate(inner2d, "isotropic", example=PICTURE)
    model3d = inflate(nn.Sequential(inner3d, outer2d[1]), example=PICTURE)
    check_still(outer2d, model3d, SHAPE, (1, 3, 8))


def test_gradients_with_checkpoints_are_those_without():
    model3d = inflate(randomize(Net()).double(), "isotropic", example=PICTURE)
    clip = torch.randn(2, 3, 5, 24, 16).double()
    plain = gradients(model3d, clip)
    levels = model3d.net.levels
    model3d.net.levels = lambda x: torch.utils.checkpoint.checkpoint(levels, x, use_reentrant=False)
    for name, gradient in gradients(model3d, clip).items():
        torch.testing.assert_close(gradient, plain[name])


def test_networks_that_lengthen_time_are_compiled_in_one_graph():
    model3d = inflate(randomize(Pyramid()), "isotropic", example=PICTURE)
    compiled = torch.compile(model3d, backend="aot_eager", fullgraph=True)
    clip = torch.randn(1, 3, 5, 24, 16)
    with torch.no_grad():
        torch.testing.assert_close(compiled(clip), model3d(clip))


def test_training_gives_more_outputs_that_are_cut_too():
    class Two(Net):
        def forward(self, x):
            y = super().forward(x)
            return (y, y.mean((2, 3))) if self.training else y

    model3d = inflate(randomize(Two()), "isotropic", example=PICTURE).train()
    dense, vectors = model3d(torch.randn(2, 3, 5, 24, 16))
    assert (dense.shape[2], vectors.shape) == (5, (2, 4))


# --- plans and refusals -----------------------------------------------------------------------------------------------


def test_plans_with_strides_go_to_json_and_print():
    plan = make_plan(Net(), "anisotropic", example=PICTURE, spacing_mm=(3, 1, 1))
    assert Plan.from_json(plan.to_json()) == plan
    assert plan.spacing_mm == (3.0, 1.0, 1.0)
    assert "preset anisotropic (spacing 3 x 1 x 1 mm)" in str(plan)
    assert "1/2" in str(plan)


@pytest.mark.parametrize("change", [{"time_shrink": 10**9}, {"spacing_mm": [0, 1, 1]}, {"spacing_mm": "1,1,1"}])
def test_plans_from_strangers_lengthen_no_clip_beyond_measure(change):
    found = json.loads(make_plan(Net(), "isotropic", example=PICTURE).to_json())
    with pytest.raises(InflateError, match=r"clip_multiple: at most 4096|three numbers above 0"):
        Plan.from_json(json.dumps({**found, **change}))


def test_lengths_that_no_stride_gives_are_refused():
    structure = torch.utils._pytree.tree_structure(torch.zeros(1))
    with pytest.raises(InflateError, match="does not come from strides"):
        Outputs(structure, ("map",)).cut(torch.zeros(6, 2, 5, 5), 2, num_frames=5, ran=8)


class Across(nn.Module):
    """A gate of a coarse level opens a finer one: its frames are fewer, and nothing says where they belong."""

    def __init__(self):
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, 2, 1)

    def forward(self, x):
        fine = self.fine(x)
        gate = self.coarse(fine).mean((2, 3), keepdim=True)
        return fine * gate.sigmoid()


def test_gates_from_another_level_are_refused():
    with pytest.raises(InflateError, match="branches of the model that meet have different lengths"):
        inflate(Across(), "isotropic", example=PICTURE)
    model2d = Across().double()
    check_still(model2d, inflate(model2d, "isotropic", example=PICTURE, rules={"coarse": Rule(time_stride=1)}))


def test_still_clips_stay_still_in_single_precision():
    model2d = randomize(Net())
    model3d, picture = inflate(model2d, "isotropic", example=PICTURE), torch.randn(SHAPE)
    with torch.no_grad():
        wanted = model2d(picture).unsqueeze(2).expand(-1, -1, 5, -1, -1)
        torch.testing.assert_close(model3d(still(picture, 5)), wanted, rtol=1e-4, atol=1e-5)
