"""Functions that a model calls inside forward() are listed, and get time like the layers that do the same."""

import copy
import pickle
import threading

import pytest
import torch
import torch.nn.functional as F
from laws import check_still, frames_seen, gradients, repeat_ends, still
from small_models import randomize
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from inflate3d import InflateError, Rule, build, deflate, inflate, make_plan, prove
from inflate3d.inflation.plan import Plan

pytestmark = pytest.mark.usefixtures("one_thread")

PICTURE = torch.zeros(1, 3, 33, 41)


class ByModule(nn.Module):
    """Two branches that shrink the picture and meet: a strided convolution and a pool, and pools ahead of them."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.pool1, self.pool2 = nn.MaxPool2d(3, 2, 1), nn.MaxPool2d(2)
        self.conv, self.norm = nn.Conv2d(6, 6, 3, 2, 1), nn.BatchNorm2d(6)
        self.branch, self.smooth = nn.MaxPool2d(3, stride=2, padding=1), nn.AvgPool2d(3, 1, 1)

    def forward(self, x):
        x = self.pool2(self.pool1(self.stem(x)))
        pooled = self.smooth(self.branch(x))
        return torch.cat([self.norm(self.conv(x)), pooled], 1).mean((2, 3))


class ByCall(ByModule):
    """The same, every second pool called as a function, one of them in a part of its own."""

    def forward(self, x):
        x = F.max_pool2d(self.pool1(self.stem(x)), 2)
        pooled = self.smooth(F.max_pool2d(x, kernel_size=3, stride=2, padding=1))
        return torch.cat([self.norm(self.conv(x)), pooled], 1).mean((2, 3))


def pair(preset="i3d"):
    by_module, by_call = randomize(ByModule()).double(), randomize(ByCall()).double()
    by_call.load_state_dict(by_module.state_dict())
    return inflate(by_module, preset, example=PICTURE), inflate(by_call, preset, example=PICTURE)


def test_calls_and_layers_give_the_same_network():
    by_module, by_call = pair()
    timings = [[(layer.time_kernel, layer.time_stride) for layer in model.plan] for model in (by_module, by_call)]
    assert timings[0] == timings[1]
    assert [layer.path for layer in by_call.plan if "#" in layer.path] == ["#0", "#1"]  # pool1 calls one, too: its own
    for frames in (1, 2, 5, 9):
        clip = torch.randn(2, 3, frames, 33, 41).double()
        torch.testing.assert_close(by_call(clip), by_module(clip))


def test_copies_pickles_threads_and_plans_from_json():
    by_module, by_call = pair()
    clip = torch.randn(2, 3, 5, 33, 41).double()
    expected = by_module(clip)
    again = build(Plan.from_json(by_call.plan.to_json()), deflate(by_call))
    for twin in (copy.deepcopy(by_call), pickle.loads(pickle.dumps(by_call)), again):
        torch.testing.assert_close(twin(clip), expected)
    found = []
    threads = [threading.Thread(target=lambda: found.append(by_call(clip))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for answer in found:
        torch.testing.assert_close(answer, expected)


def test_deflate_takes_time_out_of_the_calls():
    by_module, by_call = pair()
    flat = deflate(by_call)
    picture = torch.randn(2, 3, 33, 41).double()
    torch.testing.assert_close(flat(picture), deflate(by_module)(picture))
    assert not flat._forward_pre_hooks
    assert not flat._forward_hooks


def test_a_forward_that_fails_leaves_no_mode_behind():
    _, by_call = pair()
    with pytest.raises(RuntimeError):
        by_call(torch.randn(1, 3, 3, 33, 41).to(torch.int32))
    assert not by_call.fold.modes
    assert not torch._C._len_torch_function_stack()
    pooled = F.max_pool2d(torch.zeros(4, 1, 8, 8), 2, 2)
    assert pooled.shape == (4, 1, 4, 4)


def test_without_strides_in_time_calls_stay_per_frame():
    plan = make_plan(ByCall(), "video", example=PICTURE)
    assert all(layer.action == "frame" for layer in plan if "#" in layer.path)
    assert not inflate(ByCall(), plan).net._forward_pre_hooks


def test_another_method_of_a_model_with_calls_of_its_own_is_refused():
    by_call = ByCall()
    by_call.again = by_call.forward
    with pytest.raises(InflateError, match=r"in its own forward\(\)(.|\n)*#1(.|\n)*'#\*'"):
        inflate(by_call, "i3d", example=PICTURE).call("again", torch.zeros(1, 3, 3, 33, 41))


def test_other_calls_that_would_need_strides_are_refused_with_a_reason():
    class Lp(ByModule):
        def forward(self, x):
            x = self.pool2(self.pool1(self.stem(x)))
            return torch.cat([self.conv(x), F.lp_pool2d(F.pad(x, (1, 1, 1, 1)), 2, 3, 2)], 1)

    with pytest.raises(InflateError, match="branches of the model that meet have different lengths"):
        inflate(Lp(), "i3d", example=PICTURE)
    with pytest.raises(InflateError, match="branches of the model that meet have different lengths"):
        inflate(ByModule(), example=PICTURE, rules={"conv": Rule(padding="valid")})


# --- convolutions, norms and masks -----------------------------------------------------------------------------------


class Calls(nn.Module):
    """Has layers, and does with functions what other models do with layers."""

    def __init__(self):
        super().__init__()
        self.stem, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(5, 5, 1)
        self.weight, self.bias = nn.Parameter(torch.randn(6, 4, 3, 3)), nn.Parameter(torch.randn(6))
        self.register_buffer("blur", torch.rand(6, 1, 3, 3))
        self.up = nn.Parameter(torch.randn(6, 5, 4, 4))

    def forward(self, x):
        x = self.stem(x)
        x = F.conv2d(x, self.weight - self.weight.mean(), self.bias, stride=2, padding=1, groups=2)
        x = F.conv2d(input=x, weight=self.blur, padding=1, groups=6)
        x = F.group_norm(x, 3)
        x = F.dropout2d(x, 0.4, self.training)
        x = F.conv_transpose2d(x, self.up, stride=2, padding=1)
        return self.last(F.max_pool2d(F.interpolate(x, scale_factor=2), 2))


EXAMPLE = torch.zeros(1, 3, 16, 12)


def test_every_call_stands_in_the_plan_with_what_it_becomes():
    plan = make_plan(Calls(), example=EXAMPLE)
    assert [(layer.path, layer.layer, layer.action, layer.kernel, layer.time_kernel) for layer in plan] == [
        ("stem", "Conv2d", "inflate", (3, 3), 3),
        ("#0", "conv2d()", "inflate", (3, 3), 3),
        ("#1", "conv2d()", "frame", (3, 3), 1),  # a fixed kernel is a pool: no stride in time, no kernel
        ("#2", "group_norm()", "clip", None, 1),
        ("#3", "dropout2d()", "drop", None, 1),
        ("#4", "conv_transpose2d()", "inflate", (4, 4), 4),
        ("#5", "interpolate()", "frame", None, 1),
        ("#6", "max_pool2d()", "frame", (2, 2), 1),
        ("last", "Conv2d", "frame", (1, 1), 1),
    ]
    assert [layer.reason for layer in plan if layer.reason] == ["it works in space alone"]
    with pytest.raises(InflateError, match=r"#5: interpolate\(\) \(it works in space alone\)"):
        plan.with_rules({"#5": Rule(time_kernel=3)})


@pytest.mark.parametrize("preset", ["video", "causal", "tsm", "frames"])
@pytest.mark.parametrize("profile", ["mean", "negative", "shift"])
def test_calls_of_every_kind_are_exact_and_proved(preset, profile):
    model2d = Calls().double().eval()
    model3d = inflate(model2d, preset, example=EXAMPLE, profile=profile)
    check_still(model2d, model3d, (2, 3, 16, 12))
    proof = prove(model2d, model3d, lengths=(1, 5))
    assert proof.holds, str(proof)
    shapes = [{name: value.shape for name, value in net.state_dict().items()} for net in (model2d, model3d.net)]
    assert shapes[0].pop("stem.weight") == (*shapes[1].pop("stem.weight")[:2], 3, 3)
    assert shapes[0] == shapes[1]


def test_calls_are_what_they_are_by_hand():
    model3d = inflate(Calls().double().eval(), example=EXAMPLE)
    net, clip = model3d.net, torch.randn(2, 3, 5, 16, 12).double()

    def laid_out(weight):
        return weight.unsqueeze(2).repeat(1, 1, weight.shape[2], 1, 1) / weight.shape[2]

    x = net.stem(clip)
    weight = laid_out(net.weight - net.weight.mean())
    x = F.conv3d(repeat_ends(x, 1, 1), weight, net.bias, (1, 2, 2), (0, 1, 1), groups=2)
    x = F.group_norm(F.conv3d(x, net.blur.unsqueeze(2), padding=(0, 1, 1), groups=6), 3)
    x = F.conv_transpose3d(repeat_ends(x, 1, 2), laid_out(net.up), stride=(1, 2, 2), padding=(3, 1, 1))
    x = F.max_pool3d(F.interpolate(x, scale_factor=(1, 2, 2)), (1, 2, 2))
    torch.testing.assert_close(model3d(clip), F.conv3d(x, net.last.weight.unsqueeze(2), net.last.bias))


class Blurs(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, 2, 1)
        self.register_buffer("blur", torch.rand(6, 1, 3, 3))

    def forward(self, x):
        return F.conv2d(self.conv(x), self.blur, None, 2, 1, groups=6)


@pytest.mark.parametrize("profile", ["center", "shift"])
def test_a_fixed_kernel_is_pooled_in_time_whatever_the_profile(profile):
    model2d = Blurs().double()
    rules = {"#0": Rule(time_kernel=3, time_stride=2)}
    model3d = inflate(model2d, "i3d", example=PICTURE, profile=profile, rules=rules)
    assert [(layer.action, layer.time_stride) for layer in model3d.plan] == [("inflate", 2), ("pool", 2)]
    check_still(model2d, model3d, (1, 3, 33, 41), (1, 5, 8))
    clip = torch.randn(1, 3, 9, 33, 41).double()
    blurred = F.conv3d(model3d.net.conv(clip), model2d.blur.unsqueeze(2), None, (1, 2, 2), (0, 1, 1), groups=6)
    torch.testing.assert_close(model3d(clip), F.avg_pool3d(repeat_ends(blurred, 1, 1), (3, 1, 1), (2, 1, 1)))


def test_masks_of_calls_are_drawn_by_whole_clips():
    model3d = inflate(Calls().train(), example=EXAMPLE)
    answer = model3d(still(torch.randn(1, 3, 16, 12).repeat(40, 1, 1, 1), 3))
    torch.testing.assert_close(answer, answer[:, :, :1].expand_as(answer), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(answer[0], answer[1:])


class Part(nn.Module):
    """Calls functions of its own, between those that it is called between."""

    def __init__(self, channels):
        super().__init__()
        self.conv, self.pointwise = nn.Conv2d(channels, channels, 3, padding=1), nn.Conv2d(channels, channels, 1)
        self.weight = nn.Parameter(torch.randn(channels, 1, 3, 3))

    def forward(self, x):
        return self.pointwise(F.conv2d(self.conv(x), self.weight, padding=1, groups=len(self.weight)))


class Whole(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = Part(3), Part(3)
        self.weight = nn.Parameter(torch.randn(3, 3, 5, 5))

    def forward(self, x):
        x = self.second(F.conv2d(self.first(x), self.weight, padding=2))
        return F.conv2d(self.first(x), self.weight[:, :, 1:-1, 1:-1], padding=1)


def test_a_call_belongs_to_the_module_that_makes_it():
    model2d = Whole().double()
    plan = make_plan(model2d, example=PICTURE, rules={"#1": Rule(time_kernel=1)})
    calls = {layer.path: layer.time_kernel for layer in plan if "#" in layer.path}
    assert calls == {"first#0": 3, "#0": 5, "second#0": 3, "#1": 1}
    model3d = inflate(model2d, plan)
    check_still(model2d, model3d, (1, 3, 9, 7))
    assert frames_seen(model3d, 9, (1, 3, 19, 9, 7)) == list(range(1, 18))  # 3 times 2, and 2, on either side


def test_calls_live_through_nesting_and_deflating_outside():
    inner2d = Calls().double().eval()
    inner = inflate(inner2d, example=EXAMPLE)
    outer2d = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1).double(), inner)
    outer = inflate(outer2d, example=EXAMPLE)
    assert {layer.reason for layer in outer.plan if layer.path.startswith("1.net.")} == {
        "an Inflated inside decides on it"
    }
    clip = torch.randn(2, 3, 5, 16, 12).double()
    first = inflate(outer2d[0], example=EXAMPLE)
    torch.testing.assert_close(outer(clip), inner(first(clip)))
    torch.testing.assert_close(deflate(outer)[1](clip), inner(clip))


class Careful(nn.Module):
    """Makes checkpoints around its part, or amid its own calls."""

    def __init__(self, how, reentrant=False):
        super().__init__()
        self.how, self.reentrant = how, reentrant
        self.stem, self.part = nn.Conv2d(3, 3, 1), Part(3)
        self.weight = nn.Parameter(torch.randn(3, 3, 3, 3))

    def own(self, x):
        return F.conv2d(x, self.weight, padding=1)

    def forward(self, x):
        parts = {
            "none": (self.part, self.own),
            "part": (lambda y: checkpoint(self.part, y, use_reentrant=self.reentrant), self.own),
            "own": (self.part, lambda y: checkpoint(self.own, y, use_reentrant=self.reentrant)),
        }[self.how]
        return parts[1](parts[0](self.stem(x)))


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints_around_modules_run_their_calls_anew(reentrant):
    plain2d, careful2d = Careful("none").double(), Careful("part", reentrant).double()
    careful2d.load_state_dict(plain2d.state_dict())
    clips = [torch.randn(2, 3, 6, 9, 7).double(), torch.randn(3, 3, 4, 9, 7).double()]
    plain, careful = (inflate(model2d, example=PICTURE) for model2d in (plain2d, careful2d))
    for clip in clips:
        expected, found = gradients(plain, clip), gradients(careful, clip)
        assert expected.keys() == found.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints_amid_calls_are_refused(reentrant):
    model2d = Careful("own", reentrant)
    model3d = inflate(model2d, example=PICTURE)
    clip = torch.randn(1, 3, 3, 9, 7).requires_grad_()
    with pytest.raises(InflateError, match=r"stands inside a checkpoint(.|\n)*'#0': Rule\(time_kernel=1\)"):
        model3d(clip)
    inflate(model2d, example=PICTURE, rules={"#0": Rule(time_kernel=1)})(clip).sum().backward()


class Moody(nn.Module):
    """Calls one thing or another, as it is told."""

    def __init__(self):
        super().__init__()
        self.mood, self.conv = "calm", nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x):
        if self.mood == "wild":
            x = F.max_pool2d(x, 3, 1, 1)
        if self.mood == "ill":
            raise KeyboardInterrupt
        return F.conv2d(x, self.conv.weight, padding=1)


def test_calls_in_another_order_are_refused():
    model3d = inflate(Moody(), example=PICTURE)
    model3d.net.mood = "wild"
    with pytest.raises(InflateError, match=r"in another order than when(.|\n)*conv2d\(\)\n.*max_pool2d\(\)"):
        model3d(torch.zeros(1, 3, 3, 9, 7))


def test_an_interrupt_leaves_no_mode_behind():
    model3d = inflate(Moody(), example=PICTURE)
    model3d.net.mood = "ill"
    with pytest.raises(KeyboardInterrupt):
        model3d(torch.zeros(1, 3, 3, 9, 7))
    assert not model3d.fold.modes
    assert not torch._C._len_torch_function_stack()


class Tied(nn.Module):
    """An autoencoder whose decoder is its encoder's weight."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Conv2d(3, 6, 3, padding=1)

    def forward(self, x):
        return F.conv_transpose2d(torch.relu(self.encoder(x)), self.encoder.weight, padding=1)


def test_a_weight_that_serves_a_layer_and_a_call_stays_what_it_is():
    model2d = Tied().double()
    model3d = inflate(model2d, example=PICTURE)
    assert [(layer.path, layer.time_kernel, layer.reason) for layer in model3d.plan] == [
        ("encoder", 1, "its weight is used by #0 too"),
        ("#0", 3, ""),
    ]
    check_still(model2d, model3d)
    with pytest.raises(InflateError, match="its weight is used by #0 too"):
        make_plan(model2d, example=PICTURE, rules={"encoder": Rule(time_kernel=3)})
    model3d.net.encoder.weight = nn.Parameter(model3d.net.encoder.weight.detach().unsqueeze(2))
    model3d.net.encoder.forward = lambda x: x.repeat(1, 2, 1, 1)
    with pytest.raises(InflateError, match=r"a weight that has become 3D(.|\n)*\[6, 3, 1, 3, 3\]"):
        model3d(torch.zeros(1, 3, 3, 9, 7).double())


class ReadsItsKernel(nn.Module):
    """Demodulates by a layer's kernel, from outside of it; `quietly` asks for its type alone."""

    def __init__(self, quietly):
        super().__init__()
        self.quietly = quietly
        self.first, self.second = nn.Conv2d(3, 5, 3, padding=1), nn.Conv2d(5, 4, 3, padding=1)

    def forward(self, x):
        kernel = self.second.weight
        y = self.second(self.first(x.to(kernel).to(kernel.dtype)))
        return y if self.quietly else y * kernel.detach().pow(2).sum((1, 2, 3)).rsqrt()[:, None, None]


@pytest.mark.parametrize("quietly", [True, False])
def test_a_kernel_that_code_reads_outside_of_its_layer_stays_2d(quietly):
    model2d = ReadsItsKernel(quietly).double()
    model3d = inflate(model2d, example=PICTURE)
    reasons = {layer.path: (layer.time_kernel, layer.reason) for layer in model3d.plan}
    why = (3, "") if quietly else (1, "its weight is used by pow() in the model too")
    assert reasons == {"first": (3, ""), "second": why}
    check_still(model2d, model3d)


@pytest.mark.parametrize("norm", [nn.utils.weight_norm, parametrizations.weight_norm, parametrizations.spectral_norm])
def test_a_layer_that_remakes_its_kernel_is_no_other_user(norm):
    model2d = nn.Sequential(norm(nn.Conv2d(3, 5, 3, padding=1)), nn.ReLU())
    plan = make_plan(model2d, example=PICTURE)
    assert [(layer.time_kernel, layer.reason) for layer in plan] == [(3, "")]


def test_calls_have_no_place_for_a_random_kernel():
    with pytest.raises(InflateError, match=r"#0: the kernel is made anew(.|\n)*Rule\(profile='mean'\)"):
        inflate(Calls(), example=EXAMPLE, profile="random")


def test_calls_are_compiled_in_one_graph():
    model3d = inflate(Calls().eval(), example=EXAMPLE, profile="shift")
    clip = torch.randn(2, 3, 3, 16, 12)
    with torch.no_grad():
        compiled = torch.compile(model3d, backend="aot_eager", fullgraph=True)(clip)
        torch.testing.assert_close(compiled, model3d(clip))


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_compiled_code_inside_a_model_is_refused():
    model2d = nn.Sequential(nn.Conv2d(3, 4, 3), torch.jit.script(nn.Sequential(nn.Conv2d(4, 5, 3), nn.ReLU())))
    with pytest.raises(InflateError, match=r"compiled by torch.jit(.|\n)*got: +1; 1.0; 1.1\n"):
        make_plan(model2d, example=PICTURE)
