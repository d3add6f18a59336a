"""What could be silently wrong is right, or refused with a reason, or fails the proof."""

import pickle
import threading
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from small_models import Residual, randomize
from torch import nn
from torch.utils.checkpoint import checkpoint

from inflate3d import InflateError, Plan, Rule, build, deflate, inflate, make_plan, prove
from inflate3d.inflation import adapters

PICTURE = torch.zeros(1, 3, 13, 17)


class Gives(nn.Module):
    """A convolution, and of its output whatever `make` makes."""

    def __init__(self, make, channels=12):
        super().__init__()
        self.conv, self.make = nn.Conv2d(3, channels, 3, padding=1), make

    def forward(self, x, **kwargs):
        return self.make(self.conv(x), **kwargs)


@dataclass
class Answer:
    logits: torch.Tensor


@pytest.mark.parametrize(
    "make",
    [
        lambda y: Answer(y.mean((2, 3))),
        lambda y: y.flatten(2).permute(2, 0, 1),  # the batch is the second axis
        lambda y: y.flatten(0, 1),  # channels merged into the batch
    ],
)
def test_outputs_that_cannot_be_unfolded_are_refused(make):
    with pytest.raises(InflateError, match=r"cannot be unfolded(.|\n)*first axis is the batch"):
        inflate(Gives(make), example=PICTURE)


def test_an_output_whose_parts_grow_with_the_batch_is_refused():
    with pytest.raises(InflateError, match="the structure of the model's output grows with the batch"):
        inflate(Gives(lambda y: [row.mean() for row in y]), example=PICTURE)


def test_square_maps_are_told_apart_by_a_taller_picture():
    square = torch.zeros(1, 3, 12, 12)
    clip = torch.randn(2, 3, 5, 12, 12)
    first = inflate(Gives(lambda y: y), example=square)
    last = inflate(Gives(lambda y: y.permute(0, 2, 3, 1)), example=square)
    last.load_state_dict(first.state_dict())
    assert last(clip).shape == (2, 5, 12, 12, 12)
    torch.testing.assert_close(last(clip), first(clip).permute(0, 2, 3, 4, 1))


def test_arguments_may_change_the_form_of_the_output():
    def make(y, last=False, both=False):
        return (y, y.mean((2, 3))) if both else y.permute(0, 2, 3, 1) if last else y

    model3d = inflate(Gives(make), example=PICTURE)
    clip = torch.randn(2, 3, 5, 13, 17)
    assert model3d(clip).shape == (2, 12, 5, 13, 17)
    assert model3d(clip, last=True).shape == (2, 5, 13, 17, 12)
    assert [tuple(leaf.shape) for leaf in model3d(clip, both=True)] == [(2, 12, 5, 13, 17), (2, 12)]


def test_whole_numbers_come_out_per_step():
    model3d = inflate(Gives(lambda y: (y.mean((2, 3)), y.mean((2, 3)).argmax(1))), example=PICTURE)
    assert [tuple(leaf.shape) for leaf in model3d(torch.randn(2, 3, 5, 13, 17))] == [(2, 12), (2, 5)]


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"padding": "casual"}, r"padding: replicate, zeros, causal, valid(.|\n)*padding='casual'"),
        ({"time_kernel": 0}, "time_kernel=0"),
        ({"time_stride": -3}, "time_stride=-3"),
    ],
)
def test_impossible_rules_are_refused(rule, message):
    with pytest.raises(InflateError, match=message):
        Rule(**rule)


def test_rules_ask_for_what_a_layer_can_do_only():
    up = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ConvTranspose2d(4, 4, 3, 2), nn.LPPool2d(2, 2))
    with pytest.raises(InflateError, match="does not shorten time"):
        make_plan(up, example=PICTURE, rules={"1": Rule(time_stride=2)})
    with pytest.raises(InflateError, match="no adapter knows its type"):
        make_plan(up, example=PICTURE, rules={"2": Rule(time_kernel=3)})
    with pytest.raises(InflateError, match="channels are shifted"):
        make_plan(Residual(), "tsm", example=PICTURE, rules={"block.3": Rule(time_kernel=3)})
    with pytest.raises(InflateError, match="profile of your own"):
        make_plan(
            Residual(),
            example=PICTURE,
            profile=lambda taps: [1 / taps] * taps,
            rules={"block.0": Rule(time_kernel=3), "block.3": Rule(1)},
        )
    plan = make_plan(Residual(), "tsm", example=PICTURE, rules={"block.3": Rule(padding="zeros")})
    assert plan.looks_through_time
    plan = make_plan(Residual(), example=PICTURE, rules={"pool": Rule(time_kernel=3)})
    assert next(layer for layer in plan if layer.path == "pool").action == "pool"


def test_a_plan_fits_its_own_model_only():
    plan = make_plan(nn.Sequential(nn.Conv2d(3, 4, 3)), example=PICTURE)
    with pytest.raises(InflateError, match=r"for another model(.|\n)*\(5, 5\), not Conv2d \(3, 3\)"):
        build(plan, nn.Sequential(nn.Conv2d(3, 4, 5)))
    with pytest.raises(InflateError, match="this is no plan"):
        Plan.from_json('{"version": 1, "layers": [1]}')
    with pytest.raises(InflateError, match=r"no such pooling over time(.|\n)*'avg'"):
        inflate(Residual(), example=PICTURE, time_pool="avg")


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.b(torch.relu(self.a(x)))


def test_tied_weights_stay_tied_or_are_refused():
    model3d = inflate(Tied(), example=PICTURE)
    assert model3d.net.a.weight is model3d.net.b.weight
    with pytest.raises(InflateError, match=r"share one weight(.|\n)*3 frames, mean, against 1 frames"):
        inflate(Tied(), example=PICTURE, rules={"b": Rule(time_kernel=1)})


def test_frozen_batch_norms_stay_frozen():
    model2d = Residual().train()
    model2d.stem[1].eval()
    model3d = inflate(model2d, example=PICTURE)
    assert not model3d.net.stem[1].training
    assert model3d.net.block[1].training
    assert model3d.training


def test_another_number_of_windows_than_planned_is_noticed():
    class Windows(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x):
            n, c, h, w = x.shape
            rows = x.view(n, c, h // 4, 4, w // 4, 4).permute(0, 2, 4, 1, 3, 5).reshape(-1, c, 4, 4)
            return self.conv(rows).view(n, -1)

    model3d = inflate(Windows(), example=torch.zeros(1, 3, 8, 12))
    assert model3d(torch.randn(2, 3, 5, 8, 12)).shape == (2, 288)
    with pytest.raises(InflateError, match="another number of rows for each frame"):
        model3d(torch.randn(2, 3, 5, 8, 24))


@pytest.mark.parametrize("how", ["reversed", "late", "blind"])
def test_a_convolution_that_mixes_up_time_fails_the_proof(monkeypatch, how):
    """A still clip cannot see it."""
    right = adapters.InflatedConv2d.through_time

    def wrong(self, x):
        if how == "reversed":
            return right(self, x.flip(2)).flip(2) if self.plan.time_kernel == 3 else right(self, x)
        if how == "late":
            return right(self, torch.cat([x[:, :, :1], x[:, :, :-1]], 2))
        return torch.cat([right(self, x[:, :, t : t + 1]) for t in range(x.shape[2])], 2)

    model2d = randomize(Residual())
    model3d = inflate(model2d, example=PICTURE)
    monkeypatch.setattr(adapters.InflatedConv2d, "through_time", wrong)
    proof = prove(model2d, model3d)
    assert not proof.holds
    assert all(check.holds for check in proof.checks if "still clip" in check.law), str(proof)


def test_a_head_of_zeros_and_other_dtypes_can_be_proved():
    model2d = randomize(Residual())
    nn.init.zeros_(model2d.head.weight)
    nn.init.zeros_(model2d.head.bias)
    assert prove(model2d, inflate(model2d, example=PICTURE)).holds
    for dtype in (torch.float64, torch.bfloat16):
        model2d = randomize(Residual()).to(dtype)
        proof = prove(model2d, inflate(model2d, example=PICTURE))
        assert proof.holds, str(proof)


def test_valid_padding_can_be_proved():
    model2d = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 5))
    proof = prove(model2d, inflate(model2d, example=PICTURE, rules={"*": Rule(padding="valid")}))
    assert proof.holds, str(proof)


def test_deflating_an_outer_model_leaves_the_inner_one():
    inner = inflate(nn.Sequential(nn.Conv2d(4, 4, 3, padding=1)), example=torch.zeros(1, 4, 13, 17))
    outer = inflate(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), inner), example=PICTURE)
    assert deflate(outer)[1].net[0].weight.ndim == 5


def test_outputs_that_are_parameters_gather_no_hooks():
    class Scaled(Residual):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3))

        def forward(self, x):
            return super().forward(x), self.scale

    model3d = inflate(Scaled(), example=PICTURE)
    for _ in range(3):
        model3d(torch.randn(1, 3, 2, 13, 17))
    assert not model3d.net.scale._backward_hooks


class Checkpointed(Residual):
    def forward_features(self, x):
        x = checkpoint(lambda y: self.pool(self.stem(y)), x, use_reentrant=False)
        return torch.relu(checkpoint(self.block, x, use_reentrant=False) + self.shortcut(x))


def test_two_threads_train_checkpointed_models_at_once():
    """Both run 12 frames, in other numbers of clips."""
    model3d = inflate(randomize(Checkpointed()).double(), "tsm", example=PICTURE)
    plain = inflate(randomize(Residual()).double(), "tsm", example=PICTURE)
    plain.load_state_dict(model3d.state_dict())
    clips = [torch.randn(2, 3, 6, 13, 17).double(), torch.randn(3, 3, 4, 13, 17).double()]

    def gradient(model, clip):
        clip = clip.clone().requires_grad_()
        return torch.autograd.grad(model(clip).square().sum(), clip)[0]

    expected = [gradient(plain, clip) for clip in clips]
    wrong = []

    def work(i):
        for _ in range(20):
            if not torch.allclose(gradient(model3d, clips[i]), expected[i], rtol=1e-9, atol=1e-12):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


class Bright(nn.MaxPool2d):
    """Its own forward, so that no adapter is found by descent."""

    def forward(self, x):
        return super().forward(x) + 1


class Dark(nn.MaxPool2d):
    def forward(self, x):
        return super().forward(x) - 1


class InTime(adapters.MaxPooledInTime):
    pass


def test_one_adapter_may_serve_two_types():
    for type2d in (Bright, Dark):
        adapters.adapts(type2d)(InTime)
    try:
        model2d = nn.Sequential(nn.Conv2d(3, 4, 3), Bright(3, 1), Dark(3, 1))
        rules = {"[12]": Rule(time_kernel=2)}
        model3d = inflate(model2d, example=PICTURE, rules=rules)
        assert prove(model2d, model3d).holds
        assert all(isinstance(layer, InTime) for layer in model3d.net[1:])
        pickle.loads(pickle.dumps(model3d.net[1:]))
        assert [type(layer) for layer in deflate(model3d)] == [nn.Conv2d, Bright, Dark]
    finally:
        for type2d in (Bright, Dark):
            adapters.ADAPTERS.pop(type2d)


@pytest.mark.parametrize("time_pool", ["mean", "max", "none"])
def test_every_pooling_over_time_can_be_proved(time_pool):
    model2d = randomize(Residual())
    proof = prove(model2d, inflate(model2d, example=PICTURE, time_pool=time_pool), lengths=(3,))
    assert proof.holds, str(proof)


class Scaled(Gives):
    """Gives what does not grow with the batch as well."""

    def __init__(self, rows=lambda x: 7):
        super().__init__(lambda y: y.mean((2, 3)))
        self.scale, self.rows = nn.Parameter(torch.tensor([2.0, -float("inf")])), rows

    def forward(self, x):
        return super().forward(x), self.scale, self.rows(x), "words", None


def test_outputs_that_do_not_grow_with_the_batch_are_compared():
    model2d = Scaled()
    model3d = inflate(model2d, example=PICTURE)
    proof = prove(model2d, model3d, lengths=(3,))
    assert proof.holds, str(proof)
    model3d.net.scale.data[0] = 3.0
    assert not prove(model2d, model3d, lengths=(3,)).checks[1].holds
    counts = Scaled(len)
    proof = prove(counts, inflate(counts, example=PICTURE), lengths=(3,))
    assert not proof.checks[0].holds
    assert "first differs at no layer, but the output" in str(proof)


class Blurred(Gives):
    def __init__(self):
        super().__init__(lambda y: y.mean((2, 3)))
        self.kernel = torch.full((12, 1, 3, 3), 1 / 9)

    def forward(self, x):
        return self.make(F.conv2d(self.conv(x), self.kernel, padding=1, groups=12))


MAKE_NUMBERS = {
    "a kernel that is no buffer": Blurred,
    "a grid": lambda: Gives(
        lambda y: F.grid_sample(
            y, torch.stack([torch.linspace(-0.9, 0.9, 5)] * 2, -1).expand(len(y), 1, 5, 2), align_corners=False
        )
    ),
    "a matrix": lambda: Gives(lambda y: torch.einsum("nchw,wk->nck", y, torch.ones(17, 2))),
}


@pytest.mark.parametrize("make", MAKE_NUMBERS.values(), ids=MAKE_NUMBERS)
def test_models_that_make_numbers_of_their_own_are_proved_in_float64(make):
    model2d = make()
    proof = prove(model2d, inflate(model2d, example=PICTURE), lengths=(3,))
    assert proof.holds, str(proof)
    assert proof.checks[0].limit == 1e-9
    assert proof.not_claimed == ()
    assert torch.get_default_dtype() == torch.float32


def test_models_that_name_float32_are_proved_in_float32_and_it_is_said():
    class Single(Gives):
        def __init__(self):
            super().__init__(lambda y: F.layer_norm(y.float(), y.shape[2:]))
            self.norm, self.last = nn.BatchNorm2d(12), nn.Conv2d(12, 4, 3)

        def forward(self, x):
            return self.last(self.norm(super().forward(x))).mean((2, 3))

    model2d = randomize(Single())
    proof = prove(model2d, inflate(model2d, example=PICTURE), lengths=(3,))
    assert proof.holds, str(proof)
    assert "does not run in float64 (RuntimeError" in proof.not_claimed[0]
    assert "float64" not in "".join(check.law + check.where for check in proof.checks)
    assert str(proof).splitlines()[0].endswith("PROVED")
    assert torch.get_default_dtype() == torch.float32
