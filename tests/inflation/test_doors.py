"""What users hand over by mistake: each is told at once, and nothing runs on what it was not made for."""

import json
import subprocess
import sys

import pytest
import torch
import torchvision
from torch import nn

from inflate3d import (
    InflateError,
    Plan,
    Rule,
    build,
    deflate,
    estimate_cost,
    inflate,
    make_plan,
    prove,
    with_input_channels,
)

PICTURE = torch.zeros(1, 3, 11, 13)


def net(*, more: bool = False) -> nn.Sequential:
    layers = [nn.Conv2d(3, 5, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, *([nn.Conv2d(5, 5, 3, padding=1)] if more else []))


def test_layers_do_not_guess_clips_from_an_earlier_run():
    model3d = inflate(net(), example=PICTURE)
    model3d(torch.rand(2, 3, 4, 11, 13))
    with pytest.raises(InflateError, match="cannot know where clips begin"):
        model3d.net(torch.rand(8, 3, 11, 13))


@pytest.mark.parametrize("longer", [net(more=True), nn.Sequential(*net(), nn.AvgPool2d(2), nn.GroupNorm(1, 5))])
def test_a_plan_knows_every_layer_that_runs(longer):
    with pytest.raises(InflateError, match="plan is for another model") as caught:
        build(make_plan(net(), example=PICTURE), longer)
    assert "2 runs and is not in it" in caught.value.got


def test_the_plan_of_a_shallower_resnet_is_refused():
    plan = make_plan(torchvision.models.resnet18(), example=torch.zeros(1, 3, 64, 64))
    with pytest.raises(InflateError, match=r"layer1\.2\.conv1 runs and is not in it"):
        build(plan, torchvision.models.resnet34())


@pytest.mark.parametrize("idle", [{"profile": "center"}, {"example": PICTURE}, {"foo": 1}])
def test_a_finished_plan_takes_rules_and_inserts_alone(idle):
    plan = make_plan(net(), example=PICTURE)
    assert inflate(net(), plan, rules={"0": Rule(time_kernel=5)}).plan.layers[0].time_kernel == 5
    with pytest.raises(InflateError, match="finished plan") as caught:
        inflate(net(), plan, **idle)
    assert caught.value.got == next(iter(idle))


@pytest.mark.parametrize("preset", ["video", "frames", "tsm"])
def test_profiles_are_checked_where_they_are_decided(preset):
    with pytest.raises(InflateError, match="no profile of this name"):
        make_plan(net(), preset, example=PICTURE, profile="meen")


def test_rules_write_profiles_down():
    rules = {"0": Rule(time_kernel=4, profile=lambda num_taps: [1 / num_taps] * num_taps)}
    plan = make_plan(net(), example=PICTURE, rules=rules)
    assert Plan.from_json(plan.to_json()).layers[0].profile == (0.25,) * 4
    with pytest.raises(InflateError, match="not a profile for a kernel of that length"):
        make_plan(net(), example=PICTURE, rules={"0": Rule(profile=(0.5, 0.5))})


SUBCLASSES = """
import sys
from timm.layers import DropPath, SEModule, StdConv2d
class MyStd(StdConv2d): ...
class MySE(SEModule): ...
class MyDrop(DropPath): ...
from inflate3d.inflation.adapters import adapter_for
if sys.argv[1] == "early":
    adapter_for(SEModule(8))
print(*(adapter_for(layer).__mro__[1].__name__ for layer in (MyStd(3, 5, 3), MySE(8), MyDrop())))
"""


def test_what_a_subclass_becomes_does_not_depend_on_the_order_of_imports():
    found = [
        subprocess.run([sys.executable, "-c", SUBCLASSES, order], capture_output=True, text=True, check=True).stdout
        for order in ("early", "late")
    ]
    assert found[0] == found[1] == "InflatedStdConv2d WholeClip_SEModule ClipDropPath\n"


@pytest.mark.parametrize(
    "clip",
    [
        torch.rand(1, 4, 3, 11, 13),
        torch.rand(1, 3, 0, 11, 13),
        torch.rand(0, 3, 4, 11, 13),
        torch.rand(3, 4, 11),
        torch.rand(1, 5, 11, 13),
        [torch.rand(3, 4, 11, 13)],
    ],
    ids=["time before channels", "no frames", "no clips", "three axes", "pictures of five channels", "a list"],
)
def test_what_is_no_clip_is_told(clip):
    with pytest.raises(InflateError, match="the input is no clip") as caught:
        inflate(net(), example=PICTURE)(clip)
    assert "[b, 3, t, h, w]" in caught.value.expected


def test_a_clip_shorter_than_valid_padding_takes_away_is_told():
    model3d = inflate(net(), example=PICTURE, rules={"0": Rule(time_kernel=5, padding="valid")})
    assert model3d(torch.rand(1, 3, 5, 11, 13)).shape[2] == 1
    with pytest.raises(InflateError, match="no clip") as caught:
        model3d(torch.rand(1, 3, 4, 11, 13))
    assert "t > 4" in caught.value.expected


class Extra(nn.Module):
    """Gives an auxiliary answer in training, as GoogLeNet does."""

    def __init__(self):
        super().__init__()
        self.conv, self.calls = nn.Conv2d(3, 5, 3), 0

    def forward(self, x, scale=1.0):
        self.calls += 1
        answer = self.conv(x).mean((2, 3)) * scale
        return (answer, answer + 1) if self.training else answer


def test_more_outputs_in_training_get_their_time_as_well():
    model3d = inflate(Extra(), example=PICTURE)
    clip = torch.rand(2, 3, 4, 11, 13)
    assert [tuple(leaf.shape) for leaf in model3d.train()(clip)] == [(2, 5), (2, 5)]
    assert model3d.eval()(clip).shape == (2, 5)


def test_numbers_among_the_arguments_cost_no_new_look_at_the_output():
    model3d = inflate(Extra(), example=PICTURE).eval()
    clip = torch.rand(1, 3, 2, 11, 13)
    for number in range(5):
        torch.testing.assert_close(model3d(clip, 1.5 * number), model3d(clip) * 1.5 * number)
    assert len(model3d._outputs) == 2


def test_sizes_and_arguments_are_not_remembered_without_end():
    model3d = inflate(Extra(), example=PICTURE).eval()
    for side in range(11, 91):
        model3d(torch.rand(1, 3, 1, 11, side))
    assert len(model3d.net.conv.runs) <= 64
    for number in range(70):
        model3d.outputs_of("forward", number)
    assert len(model3d._outputs) <= 64


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make_plan(net(), example=torch.zeros(3, 11, 13)), "example is no picture"),
        (lambda: make_plan(net(), example=(1, 3, 11, 13)), "example is no picture"),
        (lambda: inflate("resnet18"), "no 2D model to look at"),
        (lambda: make_plan(net().to("meta")), "no 2D model to look at"),
        (lambda: inflate(net(), 3), "this is no plan"),
        (lambda: build("video", net()), "this is no plan"),
        (lambda: deflate(net()), "no inflated model"),
        (lambda: estimate_cost(net(), (3, 4, 11, 13)), "no inflated model"),
        (lambda: estimate_cost(inflate(net(), example=PICTURE), (3, 12, 16)), "no shape of a clip"),
        (lambda: with_input_channels(net(), 0), "this is no number of channels"),
        (lambda: with_input_channels(net(), -1), "this is no number of channels"),
        (lambda: prove(net(), net()), "no inflated model"),
        (lambda: prove(net(more=True), inflate(net(), example=PICTURE)), "nothing can be proved of this pair"),
        (lambda: prove(net(), inflate(net(), example=PICTURE), lengths=()), "no lengths"),
        (lambda: prove(net(), inflate(net(), example=PICTURE), lengths=(0,)), "0 frames"),
        (lambda: prove(net(), inflate(net(), example=PICTURE).bfloat16()), "bfloat16 on cpu"),
    ],
)
def test_wrong_arguments_are_told(call, message):
    with pytest.raises(InflateError) as caught:
        call()
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        ("preset", "vido", "no such preset"),
        ("input_shape", 3, "input_shape=3"),
        ("path", None, "path=None"),
        ("kind", "zzz", "kind='zzz'"),
    ],
)
def test_a_damaged_plan_is_told_once(where, value, message):
    document = json.loads(make_plan(net(), example=PICTURE).to_json())
    (document if where in document else document["layers"][0])[where] = value
    with pytest.raises(InflateError) as caught:
        inflate(net(), Plan.from_json(json.dumps(document)))
    assert message in str(caught.value)
    assert str(caught.value).count("expected:") == 1
