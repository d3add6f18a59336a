"""An optimized model answers as the model does, says what was done, and falls back where bfloat16 is too coarse."""

import copy
import io
import logging
import pickle
from dataclasses import replace
from importlib import import_module

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from inflate3d import ClipSpec, InceptionI3d, InflateError, InflateWarning, inflate
from inflate3d.clips.transforms import to_range
from inflate3d.models.blocks import SameConv3d, SameMaxPool3d
from inflate3d.models.inception import Conv, Mixed, MixedBlock, Unit3d
from inflate3d.speed.batch_norm import fold_batch_norms
from inflate3d.speed.layers import (
    FrameMaxPool3d,
    HalfMaxPool3d,
    PairedConv3d,
    SeparableMaxPool3d,
    run_in_slices,
)
from inflate3d.speed.optimize import conv3d_is_right, optimize, to_channels_last


def lively(model):
    """Give batch norms statistics that differ by channel, so that folding them wrongly shows."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats:
            module.running_mean.normal_(0, 0.3, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return model.eval()


def difference(found, wanted):
    return float((found - wanted).detach().abs().max() / wanted.detach().abs().max())


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
def test_a_batch_norm_folds_into_any_convolution(transposed, groups):
    layer = (nn.ConvTranspose2d if transposed else nn.Conv2d)(6, 4, 3, stride=2, groups=groups, bias=groups == 1)
    model = lively(nn.Sequential(layer, nn.BatchNorm2d(4), nn.ReLU(inplace=True))).double()
    x = torch.randn(2, 6, 11, 7).double()
    wanted = model(x)
    assert fold_batch_norms(model, lambda: model(x)) == ["1"]
    assert isinstance(model[1], nn.Identity)
    torch.testing.assert_close(model(x), wanted, rtol=0, atol=1e-12)


def test_what_must_not_be_folded_stays():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.twice, self.first, self.second = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)
            self.live = nn.BatchNorm2d(3, track_running_stats=False)
            self.other = nn.Conv2d(3, 3, 1)

        def forward(self, x):
            x = self.second(self.twice(self.first(self.twice(x)).relu()))
            return self.live(self.other(x))

    model, x = lively(Odd()), torch.randn(2, 3, 5, 7)
    wanted = model(x)
    assert fold_batch_norms(model, lambda: model(x)) == []
    torch.testing.assert_close(model(x), wanted)


def test_standardized_weights_are_not_folded_but_timms_norms_with_activations_are():
    nets = {name: lively(timm.create_model(name, num_classes=5)) for name in ("resnetv2_50x1_bit", "tf_mixnet_s")}
    x = torch.rand(1, 3, 64, 64)
    for name, net in nets.items():
        wanted = net(x)
        folded = fold_batch_norms(net, lambda net=net: net(x))
        assert difference(net(x), wanted) < 1e-5
        assert bool(folded) == (name == "tf_mixnet_s")


@pytest.mark.parametrize(
    ("kernel", "stride"),
    [((3, 3, 3), (1, 1, 1)), ((1, 3, 3), (1, 2, 2)), ((3, 3, 3), (2, 2, 2)), ((2, 2, 2), (2, 2, 2))],
)
@pytest.mark.parametrize("size", [(1, 2, 3), (5, 7, 8), (8, 11, 4)])
def test_a_separable_pool_is_the_pool(kernel, stride, size):
    pool = SameMaxPool3d(kernel, stride=stride)
    x = torch.randn(2, 3, *size) - 5  # below zero, where a pad of zeros would win
    assert torch.equal(SeparableMaxPool3d(pool)(x), pool(x))


@pytest.mark.parametrize("frames", [1, 4, 5, 11])
@pytest.mark.parametrize("rule", ["same", "static"])
def test_a_pool_over_few_frames_at_a_time_is_the_pool(rule, frames):
    pool = SameMaxPool3d((1, 3, 3), stride=(1, 2, 2))
    pool.rule = rule
    x = torch.randn(2, 3, frames, 9, 8) - 5
    assert torch.equal(FrameMaxPool3d(pool)(x), pool(x))


@pytest.mark.parametrize("rule", ["same", "static"])
@pytest.mark.parametrize(("kernel", "stride"), [((7, 7, 7), (2, 2, 2)), ((1, 5, 4), (1, 1, 2)), ((3, 1, 2), (1, 3, 2))])
@pytest.mark.parametrize("size", [(9, 11, 13), (8, 7, 10)])
def test_a_convolution_over_pairs_of_columns_is_the_convolution(rule, kernel, stride, size):
    convolution = SameConv3d(3, 5, kernel, stride=stride, bias=True).double()
    convolution.rule = rule
    x = torch.randn(2, 3, *size).double().contiguous(memory_format=torch.channels_last_3d)
    torch.testing.assert_close(PairedConv3d(convolution)(x), convolution(x), rtol=0, atol=1e-12)


def test_a_pool_in_bfloat16_stays_in_bfloat16_under_autocast():
    pool = SameMaxPool3d((1, 3, 3), stride=(1, 2, 2))
    x = torch.randn(2, 3, 5, 11, 8).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = HalfMaxPool3d(pool)(x)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, pool(x))


def test_i3d_in_bfloat16_answers_nearly_the_same():
    model = lively(InceptionI3d(num_classes=5))
    fast = optimize(model, "bf16")
    kinds = [type(layer) for layer in fast.model.modules()]
    # separable pools keep the pool that they were made of, for exports
    assert [kinds.count(kind) for kind in (PairedConv3d, HalfMaxPool3d, FrameMaxPool3d)] == [1, 2 + 11, 2]
    assert kinds.count(SeparableMaxPool3d) == 11
    clip = torch.rand(1, 3, 10, 193, 195) * 2 - 1
    with torch.inference_mode():
        wanted = model.endpoints(clip, ["Conv3d_1a_7x7", "Logits"])
        found = fast.endpoints(clip, ["Conv3d_1a_7x7", "Logits"])
        assert F.cosine_similarity(found["Logits"], wanted["Logits"]).min() > 0.999
        assert difference(found["Conv3d_1a_7x7"], wanted["Conv3d_1a_7x7"]) < 0.02
    assert fast.precision == "bf16"


@pytest.mark.parametrize("rule", ["same", "static"])
@pytest.mark.parametrize("frames", [2, 15, 16, 17, 35])
@pytest.mark.parametrize("paired", [False, True])
def test_layers_run_in_slices_are_the_layers_one_after_the_other(rule, frames, paired):
    unit, pool = Unit3d(3, Conv(5, (7, 7, 7), (2, 2, 2))).eval(), SameMaxPool3d((1, 3, 3), stride=(1, 2, 2))
    unit.conv_3d.rule = pool.rule = rule
    if paired:
        unit.conv_3d = PairedConv3d(unit.conv_3d)
    x = torch.randn(2, 3, frames, 13, 11).contiguous(memory_format=torch.channels_last_3d)
    with torch.inference_mode():
        torch.testing.assert_close(run_in_slices([unit, pool], x), pool(unit(x)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_pixels_may_come_as_uint8_and_give_the_very_same(precision):
    model = lively(InceptionI3d(num_classes=5))
    fast = optimize(model, precision)
    assert fast.takes_uint8
    pixels = torch.randint(0, 256, (2, 10, 193, 195, 3), dtype=torch.uint8).permute(0, 4, 1, 2, 3)
    clip = to_range(pixels)
    with torch.inference_mode():
        assert torch.equal(fast(pixels), fast(clip))
        for name in ("Conv3d_1a_7x7", "MaxPool3d_3a_3x3"):  # in slices or not
            assert torch.equal(fast.endpoints(pixels, name)[name], fast.endpoints(clip, name)[name])
    assert torch.equal(fast(pixels), fast(clip))  # with gradients no slices
    model.clip_spec = replace(model.clip_spec, value_range=(0.0, 1.0))
    other = optimize(model, precision)
    assert not other.takes_uint8
    with pytest.raises(InflateError, match="whole numbers"):
        other(pixels)


def test_weights_that_are_no_number_reach_the_answer():
    model = InceptionI3d(num_classes=5).eval()
    model.Mixed_4c.Branch_1.Conv3d_0b_3x3.conv_3d.weight.data[0, 0, 0, 0, 0] = float("nan")
    with pytest.warns(InflateWarning, match="by nan of the largest value"):
        fast = optimize(model)
    with torch.inference_mode():
        assert fast(torch.zeros(1, 3, 9, 193, 193)).isnan().any()


def test_i3d_answers_the_same_and_says_what_was_done():
    model = lively(InceptionI3d(num_classes=5))
    kept = copy.deepcopy(model.state_dict())
    fast = optimize(model)
    clip = torch.rand(1, 3, 17, 200, 193) * 2 - 1
    with torch.inference_mode():
        assert difference(fast(clip), model(clip)) < 1e-5
        found, wanted = (each.endpoints(clip, ["Mixed_3b"])["Mixed_3b"] for each in (fast, model))
    assert difference(found, wanted) < 1e-5
    assert "57 batch norms folded" in str(fast)
    taken = {value.data_ptr() for value in model.state_dict().values() if value.numel()}
    assert not taken & {value.data_ptr() for value in fast.state_dict().values() if value.numel()}
    assert fast.clip_spec == model.clip_spec
    assert not any(isinstance(module, nn.BatchNorm3d) for module in fast.modules())
    assert all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())
    assert optimize(fast) is fast


def small_i3d():
    """An I3D-like network of few layers: its stem, one Mixed block, a pool and a head."""

    class Small(nn.Module):
        clip_spec = ClipSpec(fps=25, num_frames=9, min_frames=5, short_side=32, crop=32, value_range=(-1, 1))
        class_names = ("run", "jump", "swim")

        def __init__(self):
            super().__init__()
            self.stem = Unit3d(3, Conv(8, (7, 7, 7), (2, 2, 2)))
            self.pool = SameMaxPool3d((1, 3, 3), stride=(1, 2, 2))
            self.block = MixedBlock(8, Mixed(4, 5, 6, 3, 4, 5))
            self.head = nn.Linear(19, 3)

        def forward(self, clip):
            return self.head(self.block(self.pool(self.stem(clip))).mean((2, 3, 4)))

    Small.__qualname__ = "Small"
    globals()["Small"] = Small  # so that it can be pickled
    return lively(Small())


def through_a_file(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def exported(model):
    return torch.export.export(model, (torch.rand(1, 3, 9, 32, 45),)).module()


def of_its_state(model):
    again = optimize(lively(small_i3d()), model.precision)
    again.load_state_dict(model.state_dict())
    return again


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("used", [False, True])
@pytest.mark.parametrize("way", [through_a_file, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), of_its_state])
def test_an_optimized_model_is_a_module_that_saves_and_is_copied(precision, used, way):
    fast = optimize(small_i3d(), precision)
    clip = torch.rand(1, 3, 9, 32, 45)
    if used:
        fast(clip)
    again = way(fast)
    with torch.inference_mode():
        assert torch.equal(again(clip), fast(clip))
    assert (again.steps, again.precision, again.class_names) == (fast.steps, precision, ("run", "jump", "swim"))
    assert str(again) == str(fast)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_optimized_model_exports(precision):
    fast = optimize(small_i3d(), precision)
    clip = torch.rand(1, 3, 9, 32, 45)
    program = exported(fast)
    assert fast.exact is not None or precision == "fp32"  # the first answer is still to be compared
    with torch.inference_mode():
        assert difference(program(clip), fast(clip)) < 1e-6


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_inflated_model_that_is_optimized_exports_and_is_copied(precision):
    model = inflate(lively(timm.create_model("resnet10t", num_classes=7)), example=torch.zeros(1, 3, 32, 32)).eval()
    fast = optimize(model, precision)
    clip = torch.rand(1, 3, 3, 32, 32)
    with torch.inference_mode():
        wanted = fast(clip)
        assert torch.equal(copy.deepcopy(fast)(clip), wanted)
        assert torch.equal(through_a_file(fast)(clip), wanted)
        program = torch.export.export(fast, (clip,)).module()
        assert difference(program(clip), wanted) < (1e-2 if precision == "bf16" else 1e-5)


@pytest.mark.parametrize("name", ["resnet18", "tf_efficientnet_lite0", "convnext_atto"])
def test_inflated_models_answer_the_same(name):
    model = inflate(lively(timm.create_model(name, num_classes=7)), example=torch.zeros(1, 3, 64, 96)).eval()
    clip = torch.rand(2, 3, 5, 64, 96)
    with torch.inference_mode():
        wanted = model(clip)
        assert difference(optimize(model)(clip), wanted) < 1e-5
        short = optimize(model, "bf16")
        assert F.cosine_similarity(short(clip), wanted).min() > 0.999
    assert short(clip).dtype == torch.float32
    assert short.precision == "bf16"


class Coarse(nn.Module):
    """Takes the difference of two numbers that are one in bfloat16."""

    clip_spec = ClipSpec(fps=25, num_frames=5, min_frames=5, short_side=8, crop=8, value_range=(-1, 1))

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2, bias=False)
        with torch.no_grad():
            self.layer.weight.copy_(torch.tensor([[1000.0, 1.0, 0.0], [1000.0, 0.0, 1.0]]))

    def forward(self, clip):
        return (self.layer(clip.mean((2, 3, 4)).float()) - 1000 * clip.mean((2, 3, 4)).float()[:, :1]) * 50


def test_bfloat16_falls_back_with_a_warning_where_it_is_too_coarse():
    fast = optimize(Coarse().eval(), "bf16")
    clip = torch.rand(1, 3, 5, 8, 8)
    with pytest.warns(InflateWarning, match="too coarse"):
        found = fast(clip)
    assert torch.equal(found, Coarse()(clip))
    assert torch.equal(fast(clip), found)
    assert fast.precision == "fp32"
    assert "back to float32" in str(fast)
    assert optimize(fast, "bf16") is fast  # it was made for that


class Ties(nn.Module):
    """Two classes whose leads are the brightness of red and green, beside a large number that bfloat16 rounds."""

    clip_spec = Coarse.clip_spec

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3, bias=False)
        with torch.no_grad():
            self.layer.weight.copy_(torch.tensor([[1.0, 0.0, 257.0], [0.0, 1.0, 257.0], [0.0, 0.0, -300.0]]))
        self.asked = []

    def forward(self, clip):
        self.asked.append((len(clip), self.layer.weight.dtype))
        return self.layer(clip.mean((2, 3, 4)))


def of_colors(*colors):
    """Clips `[b, 3, 5, 8, 8]` of one color each."""
    return torch.tensor(colors)[:, :, None, None, None].expand(-1, -1, 5, 8, 8).clone()


def test_classes_that_bfloat16_cannot_tell_apart_are_told_apart_in_float32():
    model, clips = Ties().eval(), of_colors((0.3, 0.6, 1.0), (90.0, 0.0, 1.0), (0.6, 0.3, 1.0))
    fast = optimize(model, "bf16")
    asked = fast.exact.asked
    with torch.inference_mode():
        first = fast(clips)  # one answer in float32 is for the comparison
        wanted = model(clips)
        assert fast.precision == "bf16" and 1e-4 < fast.least_lead < 0.01
        assert asked[-2:] == [(1, torch.float32)] * 2, "those that are close, and no others"
        assert first[[0, 2]].equal(wanted[[0, 2]]) and not first[1].equal(wanted[1])
        assert fast(clips).argmax(1).tolist() == [1, 0, 0]
        assert fast.call("forward", clips)[[0, 2]].diff(dim=1)[:, 0].abs().max() == 0, "in bfloat16 they are the same"
    assert "asked again in float32" in str(fast)
    fast.least_lead = 0.0
    with torch.inference_mode():
        count = len(asked)
        assert not fast(clips)[0].equal(wanted[0]) and len(asked) == count


def test_a_network_without_classes_keeps_no_float32_for_close_calls():
    class Features(Ties):
        def forward(self, clip):
            return super().forward(clip)[:, :, None, None, None]

        def endpoints(self, clip, names):
            return dict.fromkeys(names, super().forward(clip))

    clip = of_colors((0.3, 0.6, 1.0))
    for ask in (lambda fast: fast(clip), lambda fast: fast.endpoints(clip, ["head"])):
        fast = optimize(Features().eval(), "bf16")
        assert fast.unsettled
        ask(fast)
        assert fast.exact is None and fast.least_lead is None and not fast.unsettled


def test_layers_are_compared_in_float32_on_a_gpu_too(monkeypatch):
    """TF32, which PyTorch takes there, rounds by more than is allowed; afterwards the user's settings are back."""
    cudnn, seen = torch.backends.cudnn, []

    class Told(Coarse):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm3d(3)

        def forward(self, clip):
            seen.append(cudnn.allow_tf32)
            return self.norm(clip).mean((2, 3, 4))

    kept = {name: getattr(cudnn, name) for name in ("enabled", "benchmark", "deterministic", "allow_tf32")}
    assert kept["allow_tf32"]
    fast = optimize(Told().eval())
    assert seen and not any(seen)
    assert {name: getattr(cudnn, name) for name in kept} == kept
    fast(of_colors((0.3, 0.6, 1.0)))
    assert seen[-1]


def test_an_output_used_twice_keeps_its_layers_with_a_warning():
    class Shared(Coarse):
        def __init__(self):
            super().__init__()
            self.convolution, self.norm = nn.Conv3d(3, 3, 1), nn.BatchNorm3d(3)

        def forward(self, clip):
            x = self.convolution(clip)
            return (x + self.norm(x)).mean((2, 3, 4))

    model = lively(Shared())
    clip = torch.rand(1, 3, 5, 8, 8)
    with pytest.warns(InflateWarning, match="answers otherwise"):
        fast = optimize(model)
    torch.testing.assert_close(fast(clip), model(clip))


def test_code_that_reads_what_a_layer_holds_keeps_its_layers_with_a_warning():
    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn = nn.Conv3d(3, 4, 3, padding=1), nn.BatchNorm3d(4)

        def forward(self, x):
            return (self.bn(self.conv(x)) * self.bn.weight.view(1, -1, 1, 1, 1)).mean((2, 3, 4))

    model, clip = lively(Reads()), torch.rand(1, 3, 4, 9, 7)
    with pytest.warns(InflateWarning, match="reads what a layer holds; its layers stay as they were"):
        optimized = optimize(model, example=clip)
    assert difference(optimized(clip), model(clip)) < 1e-6


def test_compiled_is_the_same_and_stays_compiled_when_copied(monkeypatch):
    used = []

    def compile_(self, **options):
        used.append(options)
        nn.Module._real_compile(self, backend="aot_eager", **options)  # without a C++ compiler

    monkeypatch.setattr(nn.Module, "_real_compile", nn.Module.compile, raising=False)
    monkeypatch.setattr(nn.Module, "compile", compile_)
    model = small_i3d()
    fast = optimize(model, compiled=True)
    assert fast.steps[-1] == "compiled"
    clip = torch.rand(1, 3, 9, 32, 45)
    with torch.inference_mode():
        assert difference(fast(clip), model(clip)) < 1e-5
        assert difference(copy.deepcopy(fast)(clip), model(clip)) < 1e-5
    assert used == [{"dynamic": False}] * 2


def test_without_a_compiler_it_runs_uncompiled_and_says_so(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.warns(InflateWarning, match=r"uncompiled.*no C\+\+ compiler.*g\+\+"):
        fast = optimize(small_i3d(), compiled=True)
    assert "compiled" not in fast.steps


def test_a_broken_conv3d_in_bfloat16_is_found_and_float32_stays(monkeypatch):
    real = F.conv3d

    def broken(x, weight, *rest):
        """As cuDNN 9.8 did: one tap is left out, in bfloat16 only."""
        if x.dtype == torch.bfloat16:
            weight = weight.clone()
            weight[..., -1] = 0
        return real(x, weight, *rest)

    model = small_i3d()
    assert conv3d_is_right(torch.device("cpu"))
    monkeypatch.setattr(F, "conv3d", broken)
    assert not conv3d_is_right(torch.device("cpu"))
    with pytest.warns(InflateWarning, match=r"conv3d in bfloat16 gives wrong results.*cpu.*float32 is used"):
        fast = optimize(model, "bf16")
    assert fast.precision == "fp32"
    assert "conv3d in bfloat16 is wrong here" in str(fast)
    clip = torch.rand(1, 3, 9, 32, 45)
    with torch.inference_mode():
        assert difference(fast(clip), model(clip)) < 1e-5


def test_int8_says_what_it_costs_and_saves():
    torch.manual_seed(0)
    model = inflate(lively(timm.create_model("resnet18", num_classes=7)), example=torch.zeros(1, 3, 64, 64)).eval()
    clips = [torch.rand(1, 3, 4, 64, 64) for _ in range(3)]
    short = optimize(model, "int8", calibration=clips)
    with torch.inference_mode():
        wanted, found = model(clips[0]), short(clips[0])
    assert 0.95 < float(F.cosine_similarity(found, wanted)) < 1 - 1e-9
    assert "lowest cosine 0.9" in str(short)
    again = pickle.loads(pickle.dumps(short))
    assert torch.equal(again(torch.cat(clips)), short(torch.cat(clips)))
    with pytest.raises(InflateError, match="another size"):
        short(torch.rand(1, 3, 5, 64, 64))
    with pytest.raises(InflateError, match="one output"):
        short.endpoints(clips[0], ["Mixed_3b"])


@pytest.mark.parametrize("clips", [[], [torch.zeros(1, 3, 4, 8, 8), torch.zeros(1, 3, 5, 8, 8)], [torch.zeros(3, 4)]])
def test_int8_without_clips_of_one_size_is_refused(clips):
    with pytest.raises(InflateError, match="clips to calibrate with"):
        optimize(Coarse().eval(), "int8", calibration=clips)


def test_int8_of_a_model_that_cannot_be_exported_is_refused():
    class Branching(nn.Module):
        def forward(self, clip):
            return clip.mean((2, 3, 4)) if clip.sum() > 0 else clip.amax((2, 3, 4))

    import_module("nncf")  # sets its level itself
    level = logging.getLogger("nncf").level
    with pytest.raises(InflateError, match=r"Branching\): the model cannot be quantized"):
        optimize(Branching().eval(), "int8", example=torch.ones(1), calibration=[torch.ones(1, 3, 4, 8, 8)])
    assert logging.getLogger("nncf").level == level


def test_an_optimized_model_stays_with_its_precision():
    fast = optimize(small_i3d())
    with pytest.raises(InflateError, match="optimized already, for fp32"):
        optimize(fast, "bf16")


def test_models_that_cannot_be_optimized_are_refused():
    with pytest.raises(InflateError, match="cannot be optimized") as caught:
        optimize(nn.Sequential(nn.Conv3d(3, 3, 1)).train(), "fp16")
    for word in ("fp16", "training mode", "no example"):
        assert word in str(caught.value)


def test_a_mixture_of_ranks_goes_channels_last():
    model = to_channels_last(nn.ModuleList([nn.Conv2d(2, 3, 5), nn.Conv3d(2, 3, 5), nn.Linear(2, 3)]))
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert model[1].weight.is_contiguous(memory_format=torch.channels_last_3d)


def test_bfloat16_is_compared_on_a_few_frames_from_beginning_to_end():
    shown = []

    class Watched(nn.Module):
        clip_spec = ClipSpec(fps=25.0, num_frames=23, min_frames=7, short_side=9, crop=9, value_range=(0.0, 1.0))

        def forward(self, clip):
            shown.append(clip[:, 0, :, 0, 0].float())
            return clip.mean((3, 4)).sum(2)

    clip = torch.arange(23.0).view(1, 1, 23, 1, 1).expand(2, 3, 23, 9, 9)
    optimize(Watched().eval(), "bf16")(clip)
    assert [one.shape for one in shown] == [(1, 8), (1, 8), (2, 23)]
    assert shown[0].tolist() == [[0.0, 3.0, 6.0, 9.0, 12.0, 15.0, 18.0, 21.0]]


def test_two_answers_of_zeros_are_alike():
    class Silent(nn.Module):
        clip_spec = ClipSpec(fps=25.0, num_frames=7, min_frames=7, short_side=9, crop=9, value_range=(0.0, 1.0))

        def forward(self, clip):
            return clip.mean((2, 3, 4))

    assert optimize(Silent().eval(), "bf16")(torch.zeros(1, 3, 7, 9, 9)).tolist() == [[0.0] * 3]


def test_a_clip_that_cannot_be_answered_leaves_the_comparison_for_the_next():
    fast = optimize(Coarse().eval(), "bf16")
    with pytest.raises(RuntimeError):
        fast(torch.rand(1, 4, 5, 8, 8))
    with pytest.warns(InflateWarning, match="too coarse"):
        fast(torch.rand(1, 3, 5, 8, 8))
