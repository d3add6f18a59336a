"""What users hand over by mistake: each is told at once, and nothing runs on what it was not made for."""

import json
import subprocess
import sys
import threading

import pytest
import torch
import torchvision
from torch import nn

from inflate3d import (
    InflateError,
    Insert,
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


@pytest.mark.parametrize("idle", [{"profile": "center"}, {"example": PICTURE}])
def test_a_finished_plan_takes_rules_and_inserts_alone(idle):
    plan = make_plan(net(), example=PICTURE)
    assert inflate(net(), plan, rules={"0": Rule(time_kernel=5)}).plan.layers[0].time_kernel == 5
    with pytest.raises(InflateError, match="finished plan") as caught:
        inflate(net(), plan, **idle)
    assert caught.value.got == next(iter(idle))


@pytest.mark.parametrize(("name", "meant"), [("profil", "profile"), ("rule", "rules"), ("insert", "inserts")])
def test_keywords_that_nothing_heeds_are_refused(name, meant):
    for run in (
        lambda: make_plan(net(), "video", example=PICTURE, **{name: None}),
        lambda: inflate(net(), "video", example=PICTURE, **{name: None}),
        lambda: inflate(net(), make_plan(net(), example=PICTURE), **{name: None}),
    ):
        with pytest.raises(InflateError, match=rf"no such keyword(.|\n)*did you mean {meant},"):
            run()


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"rules": {"0": {"time_kernel": 3}}}, "these are no rules"),
        ({"rules": {0: Rule(time_kernel=3)}}, "these are no rules"),
        ({"rules": [Rule(time_kernel=3)]}, "these are no rules"),
        ({"inserts": "0"}, "these are no inserts"),
        ({"inserts": Insert("0", "time_pool")}, "these are no inserts"),
    ],
)
def test_rules_and_inserts_are_those_of_a_plan(asked, message):
    for plan in ("video", make_plan(net(), example=PICTURE)):
        with pytest.raises(InflateError, match=message):
            inflate(net(), plan, **({"example": PICTURE} if plan == "video" else {}), **asked)


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


@pytest.mark.parametrize(
    ("in_eval", "shape"),
    [
        (lambda y: y.argmax(1), (2, 4, 3, 11, 13)),
        (lambda y: y.mean((2, 3)), (2, 4, 3, 11, 13)),
    ],
)
@pytest.mark.parametrize("trained_before", [False, True])
def test_another_form_in_training_gets_its_time_as_well(in_eval, shape, trained_before):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, padding=1)

        def forward(self, x):
            return self.conv(x) if self.training else in_eval(self.conv(x))

    model3d = inflate(Net().train(trained_before), example=PICTURE)
    clip = torch.rand(2, 3, 3, 11, 13)
    assert model3d.train()(clip).shape == shape
    assert model3d.eval()(clip).shape in {(2, 3, 11, 13), (2, 4)}
    assert model3d.train()(clip).shape == shape


def test_what_is_none_in_eval_has_its_time_in_training():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, padding=1)

        def forward(self, x):
            y = self.conv(x)
            return y.mean((2, 3)), y if self.training else None

    model3d = inflate(Net(), example=PICTURE)
    assert model3d.train()(torch.rand(2, 3, 3, 11, 13))[1].shape == (2, 4, 3, 11, 13)


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


class Does(nn.Module):
    """What `make` makes of pictures, and a convolution of that."""

    def __init__(self, make, channels=3):
        super().__init__()
        self.make, self.conv = make, nn.Conv2d(channels, 5, 3, padding=1)

    def forward(self, x):
        return self.conv(self.make(x))


@pytest.mark.parametrize("side", [9, 120])
@pytest.mark.parametrize("mix", [lambda x: x - x.mean(), lambda x: x / x.std(), lambda x: x / x.amax()])
def test_pictures_that_depend_on_the_batch_are_noticed_at_any_size(mix, side):
    with pytest.raises(InflateError, match="depends on the other pictures"):
        make_plan(Does(mix), example=torch.rand(1, 3, side, side))


def test_pictures_have_values_that_the_model_takes():
    table = nn.Embedding(256, 2)
    looks_up = Does(lambda x: table((x * 255).long()).movedim(-1, 1).flatten(1, 2), channels=6)
    for model2d in (Does(lambda x: x.pow(1 / 2.2)), looks_up, Does(lambda x: (x - 20).log())):
        low, high = (21, 90) if model2d.conv.in_channels == 3 else (0, 1)
        example = torch.linspace(low, high, 3 * 11 * 13).view(1, 3, 11, 13)
        assert make_plan(model2d, example=example).looks_through_time
    with pytest.raises(InflateError, match=r"is not a number(.|\n)*NaN"):
        make_plan(Does(lambda x: (x - 20).log()), example=PICTURE)


def test_a_compiled_model_is_what_was_compiled():
    model2d = net(more=True).eval()
    model3d = inflate(torch.compile(model2d, backend="eager"), example=PICTURE).eval()
    assert [layer.path for layer in model3d.plan] == ["0", "2"]
    picture = torch.rand(2, 3, 11, 13)
    torch.testing.assert_close(model3d(picture.unsqueeze(2).repeat(1, 1, 4, 1, 1))[:, :, 2], model2d(picture))


class Remembers(nn.Module):
    """Answers by what a hook has stored in the model that the hook was made for."""

    def __init__(self):
        super().__init__()
        self.conv, self.stored = nn.Conv2d(3, 5, 3), {}
        self.conv.register_forward_hook(lambda _, args, output: self.stored.update(map=output))

    def forward(self, x):
        self.conv(x)
        return self.stored["map"].mean((2, 3))


def test_models_held_together_by_closures_are_refused():
    remembers, patched = Remembers(), net()
    remembers(PICTURE)
    forward = patched.forward
    patched.forward = lambda x: forward(x).softmax(1)
    for model2d, why in ((remembers, "does not grow with the batch"), (patched, "uses the model's own weights")):
        with pytest.raises(InflateError, match=rf"{why}(.|\n)*take the model from the hook"):
            make_plan(model2d, example=PICTURE)


def test_what_cannot_be_copied_or_has_no_weights_is_told():
    model2d = net(more=True)
    model2d[0].lock = threading.Lock()
    with pytest.raises(InflateError, match=r"0, attribute lock: the model cannot be copied(.|\n)*cannot pickle"):
        inflate(model2d, example=PICTURE)
    lazy = nn.Sequential(nn.LazyConv2d(5, 3), nn.ReLU())
    with pytest.raises(InflateError, match=r"no weights yet(.|\n)*0.weight; 0.bias(.|\n)*run it once"):
        inflate(lazy, example=PICTURE)
    lazy(PICTURE)
    assert inflate(lazy, example=PICTURE).plan.looks_through_time
