"""An optimized model answers as the model does, says what was done, and falls back where bfloat16 is too coarse."""

import copy
import io
import pickle

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from inflate3d import ClipSpec, InceptionI3d, InflateError, InflateWarning, inflate
from inflate3d.models.same import SameMaxPool3d
from inflate3d.speed.batch_norm import fold_batch_norms
from inflate3d.speed.layers import SeparableMaxPool3d
from inflate3d.speed.optimize import optimize, to_channels_last


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
    assert fast.clip_spec == model.clip_spec
    assert not any(isinstance(module, nn.BatchNorm3d) for module in fast.modules())
    assert all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())
    assert optimize(fast) is fast


def test_an_optimized_model_saves_and_loads():
    torch.manual_seed(0)
    model = lively(InceptionI3d(num_classes=3))
    file = io.BytesIO()
    fast = optimize(model)
    torch.save(fast, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    clip = torch.rand(1, 3, 9, 193, 193)
    with torch.inference_mode():
        assert torch.equal(again(clip), fast(clip))


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


def test_compiled_is_the_same():
    model = lively(InceptionI3d(num_classes=3))
    fast = optimize(model)
    fast.model.compile(backend="aot_eager", dynamic=False)  # what `compiled=True` does, without a C++ compiler
    clip = torch.rand(1, 3, 9, 193, 193)
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


def test_models_that_cannot_be_optimized_are_refused():
    with pytest.raises(InflateError, match="cannot be optimized") as caught:
        optimize(nn.Sequential(nn.Conv3d(3, 3, 1)).train(), "fp16")
    for word in ("fp16", "training mode", "no example"):
        assert word in str(caught.value)


def test_a_mixture_of_ranks_goes_channels_last():
    model = to_channels_last(nn.ModuleList([nn.Conv2d(2, 3, 5), nn.Conv3d(2, 3, 5), nn.Linear(2, 3)]))
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert model[1].weight.is_contiguous(memory_format=torch.channels_last_3d)
