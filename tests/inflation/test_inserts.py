"""What is inserted changes nothing at the start, is what it is by hand, and lives through all that models do."""

import copy
import json
import pickle
import threading
import warnings
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
import torchvision
from resnet_5d import NonLocal5d
from small_models import Residual, randomize, wake
from torch import nn
from torch.utils.checkpoint import checkpoint

from inflate3d import InflateError, Insert, Plan, build, deflate, estimate_cost, inflate, make_plan, prove

PICTURE = torch.zeros(1, 3, 37, 45)
ALL = [Insert("stem", "temporal_conv"), Insert("pool", "time_pool"), Insert("pool", "nonlocal")]
PARTS = ("theta", "phi", "g", "out")
ATTENTIONS = ("softmax", "embedded_gaussian", "gaussian", "dot_product")


pytestmark = pytest.mark.usefixtures("one_thread")


def residual():
    return randomize(Residual()).double()


def awake(model2d=None, inserts=ALL, preset="video", **planning):
    torch.manual_seed(11)
    return wake(inflate(model2d or residual(), preset, example=PICTURE, inserts=inserts, **planning).eval())


# --- nothing changes at the start -------------------------------------------------------------------------------------


@pytest.mark.parametrize("frames", [1, 2, 7])
def test_a_still_clip_is_answered_as_the_picture(frames):
    model2d = residual()
    model3d = inflate(model2d, example=PICTURE, inserts=ALL)
    picture = torch.randn(2, 3, 37, 45).double()
    still = picture.unsqueeze(2).repeat(1, 1, frames, 1, 1)
    torch.testing.assert_close(model3d(still), model2d(picture), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(model3d(picture), model2d(picture), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    "insert",
    [Insert("pool", "temporal_conv", time_kernel=4)] + [Insert("pool", "nonlocal", attention=a) for a in ATTENTIONS],
)
@pytest.mark.parametrize("training", [False, True])
def test_what_learns_changes_no_answer_at_the_start_not_even_to_a_moving_clip(insert, training):
    model2d = residual().train(training)
    clip = torch.randn(2, 3, 5, 37, 45).double()
    plain, more = (inflate(model2d, example=PICTURE, inserts=inserts) for inserts in ([], [insert]))
    assert more.inserts.training is training
    assert torch.equal(more(clip), plain(clip))


def test_the_proof_names_inserts_and_holds_until_they_have_learned():
    model2d = randomize(Residual())
    model3d = inflate(model2d, example=PICTURE, inserts=ALL)
    proof = prove(model2d, model3d, lengths=(1, 4))
    assert proof.holds, str(proof)
    assert proof.inserts == ("inserts.stem.temporal_conv", "inserts.pool.time_pool", "inserts.pool.non_local")
    assert "inserted: inserts.stem.temporal_conv" in str(proof)
    laws = [check.law for check in proof.checks]
    assert "with pools over time, steps see later frames" in laws
    assert "with non-local blocks, steps see earlier and later frames" in laws
    learned = prove(model2d, wake(model3d), lengths=(1, 4))
    assert not learned.holds
    assert "first differs at" not in learned.checks[0].where  # the plan is right: what it became is not


# --- by hand ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("sub_sample", ["before", "after", "none"])
def test_a_non_local_block_is_the_one_with_its_matrix_written_out(attention, sub_sample):
    insert = Insert("0", "nonlocal", attention=attention, sub_sample=sub_sample)
    model2d = nn.Sequential(nn.Conv2d(3, 6, 1)).double()
    model3d = wake(inflate(model2d, "frames", example=torch.zeros(1, 3, 5, 7), inserts=[insert]).eval())
    plain = NonLocal5d(6, attention, sub_sample).double().eval()
    plain.load_state_dict(model3d.inserts.get_submodule("0.non_local").state_dict())
    clip = torch.randn(2, 3, 4, 5, 7).double()
    mapped = model2d(clip.transpose(1, 2).flatten(0, 1)).unflatten(0, (2, 4)).transpose(1, 2)
    torch.testing.assert_close(model3d(clip), plain(mapped), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("padding", "pads"), [("replicate", (1, 2)), ("zeros", (1, 2)), ("causal", (3, 0))])
def test_a_temporal_convolution_is_the_one_by_hand(padding, pads):
    insert = Insert("0", "temporal_conv", time_kernel=4, padding=padding)
    model2d = nn.Sequential(nn.Conv2d(3, 6, 1)).double()
    model3d = wake(inflate(model2d, "frames", example=torch.zeros(1, 3, 5, 7), inserts=[insert]))
    x = build(replace(model3d.plan, inserts=()), model2d)(clip := torch.randn(2, 3, 5, 5, 7).double())
    mode = "constant" if padding == "zeros" else "replicate"
    padded = F.pad(x, (0, 0, 0, 0, *pads), mode=mode)
    weight, bias = model3d.inserts.state_dict().values()
    assert weight.shape == (6, 6, 4, 1, 1)
    torch.testing.assert_close(model3d(clip), x + F.conv3d(padded, weight, bias), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("insert", "windows"),
    [
        (Insert("0", "time_pool"), [[0, 1], [2, 3], [4]]),
        (Insert("0", "time_pool", padding="valid"), [[0, 1], [2, 3]]),
        (Insert("0", "time_pool", padding="causal"), [[0], [1, 2], [3, 4]]),
        (Insert("0", "time_pool", 3, 2), [[0, 1], [1, 2, 3], [3, 4]]),
        (Insert("0", "time_pool", 3, 1), [[0, 1], [0, 1, 2], [1, 2, 3], [2, 3, 4], [3, 4]]),
        (Insert("0", "time_pool", 1, 3), [[0], [3]]),
    ],
)
def test_a_pool_over_time_takes_the_maximum_of_these_frames(insert, windows):
    model2d = nn.Sequential(nn.Conv2d(3, 6, 1)).double()
    example = torch.zeros(1, 3, 5, 7)
    clip = torch.randn(2, 3, 5, 5, 7).double()
    frames = inflate(model2d, "frames", example=example)(clip)
    expected = torch.stack([frames[:, :, window].amax(2) for window in windows], 2)
    assert torch.equal(inflate(model2d, "frames", example=example, inserts=[insert])(clip), expected)


def test_inserts_after_one_module_run_in_the_order_in_which_they_were_given():
    model2d = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()).double()
    conv, pool = Insert("0", "temporal_conv"), Insert("0", "time_pool")
    example, clip = torch.zeros(1, 3, 5, 7), torch.randn(1, 3, 6, 5, 7).double()
    first, second = (inflate(model2d, "frames", example=example, inserts=each) for each in ([conv, pool], [pool, conv]))
    second.load_state_dict(wake(first).state_dict())
    assert not torch.allclose(first(clip), second(clip))
    assert set(first.plan.differences(second.plan)) == {"inserts.0.temporal_conv", "inserts.0.time_pool"}


# --- what models live through -----------------------------------------------------------------------------------------


def test_names_of_the_2d_model_stay_and_inserts_have_names_beside_them():
    model2d = residual()
    model3d = inflate(model2d, example=PICTURE, inserts=ALL)
    assert list(model3d.net.state_dict()) == list(model2d.state_dict())
    names = [name for name in model3d.state_dict() if not name.startswith("net.")]
    assert set(names) == {
        "inserts.stem.temporal_conv.conv.weight",
        "inserts.stem.temporal_conv.conv.bias",
        *(f"inserts.pool.non_local.{part}.{kind}" for part in PARTS for kind in ("weight", "bias")),
        *(f"inserts.pool.non_local.bn.{name}" for name in nn.BatchNorm3d(1).state_dict()),
    }
    assert model3d.inserts.get_submodule("pool.non_local").theta.weight.shape == (8, 16, 1, 1, 1)
    assert {id(p) for p in model3d.inserts.parameters()} <= {id(p) for p in model3d.parameters()}
    assert all(p.dtype == torch.float64 for p in model3d.inserts.parameters())


def test_modules_that_are_called_as_inserts_are():
    """The tree of inserts has the names of the model's modules in it."""

    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential()
            self.body.add_module("time_pool", nn.Conv2d(3, 4, 1))
            self.body.add_module("non_local", nn.Sequential(nn.Conv2d(4, 4, 1)))

        def forward(self, x):
            return self.body(x)

    inserts = [Insert("body.non_local.0", "temporal_conv"), Insert("body.time_pool", "time_pool")]
    inserts += [Insert("body", what) for what in ("nonlocal", "time_pool")]
    model3d = wake(inflate(Named().double(), "frames", example=torch.zeros(1, 3, 9, 11), inserts=inserts).eval())
    assert sum(p.numel() for p in model3d.inserts.parameters()) == 4 * 4 * 3 + 4 + 4 * (4 * 2) + 3 * 2 + 4 + 2 * 4
    twin = inflate(deflate(model3d), model3d.plan).eval()
    twin.load_state_dict(model3d.state_dict())
    clip = torch.randn(2, 3, 8, 9, 11).double()
    assert torch.equal(twin(clip), model3d(clip))
    assert model3d(clip).shape[2] == 2


def test_deflating_restores_the_2d_model_and_its_checkpoints_leave_inserts_alone():
    model2d, other = residual(), randomize(Residual(), seed=3).double()
    model3d = awake(model2d)
    flat = deflate(model3d)
    assert not any(module._forward_hooks for module in flat.modules())
    picture = torch.randn(2, 3, 37, 45).double()
    torch.testing.assert_close(flat(picture), model2d(picture), rtol=1e-10, atol=1e-12)
    clip = torch.randn(2, 3, 4, 37, 45).double()
    before, answer = copy.deepcopy(model3d.inserts.state_dict()), model3d(clip)
    assert answer.isfinite().all()
    model3d.load_2d_state_dict(other.state_dict())
    assert all(torch.equal(value, before[name]) for name, value in model3d.inserts.state_dict().items())
    wanted = inflate(other, model3d.plan).net.state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in model3d.net.state_dict().items())


def test_an_inflated_inside_another_keeps_its_inserts_when_the_outer_is_deflated():
    part = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1)).double()
    inner = inflate(part, example=torch.zeros(1, 4, 9, 11), inserts=[Insert("0", "temporal_conv")])
    outer2d = nn.Sequential(nn.Conv2d(3, 4, 1), inner).double()
    outer = inflate(outer2d, "frames", example=torch.zeros(1, 3, 9, 11), inserts=[Insert("0", "time_pool")])
    assert outer(torch.randn(2, 3, 6, 9, 11).double()).shape == (2, 4, 3, 9, 11)
    assert deflate(outer)[1].net[0]._forward_hooks


def test_copies_pickles_and_state_dicts_run_on_their_own():
    model3d = awake()
    clip = torch.randn(2, 3, 4, 37, 45).double()
    again = build(Plan.from_json(model3d.plan.to_json()), deflate(model3d))
    again.load_state_dict(model3d.state_dict())
    for twin in (copy.deepcopy(model3d), pickle.loads(pickle.dumps(model3d)), again):
        assert torch.equal(twin(clip), model3d(clip))
        hooked = next(iter(twin.net.pool._forward_hooks.values())).inserted
        assert hooked is twin.inserts.get_submodule("pool.time_pool")
        assert hooked.fold is twin.fold is not model3d.fold
    with torch.no_grad():
        next(twin.inserts.parameters()).add_(1)
    assert not torch.equal(twin(clip), model3d(clip))


def test_training_mode_gradients_and_half_precision():
    model3d = inflate(residual(), example=PICTURE, inserts=ALL).train()
    clip = torch.randn(2, 3, 4, 37, 45).double()
    model3d(clip).square().sum().backward()
    grads = {name: parameter.grad for name, parameter in model3d.inserts.named_parameters()}
    assert grads["stem.temporal_conv.conv.weight"].any()
    assert grads["pool.non_local.bn.weight"].any()
    assert not grads["pool.non_local.theta.weight"].any()  # the zero stands before it
    assert model3d.inserts.get_submodule("pool.non_local").bn.num_batches_tracked == 1
    model3d.eval()
    assert not any(module.training for module in model3d.inserts.modules())
    half = inflate(residual().bfloat16(), example=PICTURE, inserts=ALL)
    assert half(clip.bfloat16()).dtype == torch.bfloat16


def test_threads_do_not_disturb_each_other():
    model3d = awake()
    clips = [torch.randn(b, 3, t, 37, 45).double() for b, t in [(1, 6), (2, 3), (3, 2), (6, 1)]]
    expected, wrong = [model3d(clip) for clip in clips], []

    def work(i):
        for _ in range(5):
            if not torch.equal(model3d(clips[i]), expected[i]):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


class Checkpointed(Residual):
    reentrant = False

    def forward_features(self, x):
        x = checkpoint(lambda y: self.pool(self.stem(y)), x, use_reentrant=self.reentrant)
        return torch.relu(checkpoint(self.block, x, use_reentrant=self.reentrant) + self.shortcut(x))


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_gives_the_gradients_of_the_plain_model(reentrant):
    """Two forwards before one backward, with clips of one number of frames in all."""
    inserts = [*ALL, Insert("block.0", "temporal_conv")]
    plain = awake(inserts=inserts)
    careful = awake(randomize(Checkpointed()).double(), inserts)
    careful.load_state_dict(plain.state_dict())
    careful.net.reentrant = reentrant
    clips = [torch.randn(b, 3, t, 37, 45).double().requires_grad_() for b, t in [(2, 4), (1, 8)]]
    for model in (plain, careful):
        sum((model(clip) ** 2).sum() for clip in clips).backward()
    for (name, a), b in zip(plain.named_parameters(), careful.parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad, rtol=1e-9, atol=1e-12, msg=name)


def test_compiled_in_one_graph_and_exported():
    model3d = awake(inserts=ALL[1:])
    clip = torch.randn(2, 3, 4, 37, 45).double()
    with torch.no_grad():
        compiled = torch.compile(model3d, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(clip), model3d(clip), rtol=1e-9, atol=1e-9)
    exported = torch.export.export(model3d, (clip,))
    torch.testing.assert_close(exported.module()(clip), model3d(clip))
    assert "inserts.pool.non_local.theta.weight" in exported.state_dict


def test_models_that_go_over_their_parts_run_inserts_once():
    """A module added to an nn.Sequential or an nn.ModuleDict of theirs would be run again."""
    model2d = randomize(torchvision.models.DenseNet(8, (2, 2), 8, num_classes=3)).double()
    example = torch.zeros(1, 3, 32, 48)
    inserts = [Insert("features.denseblock1", "time_pool"), Insert("features", "temporal_conv")]
    model3d = inflate(model2d, "frames", example=example, inserts=inserts, time_pool="none")
    assert model3d(torch.randn(1, 3, 8, 32, 48).double()).shape == (1, 4, 3)


def test_cost_counts_inserts():
    model2d = nn.Sequential(nn.Conv2d(3, 6, 1))
    example = torch.zeros(1, 3, 4, 6)
    plain = estimate_cost(inflate(model2d, "frames", example=example), (3, 8, 40, 60))
    block = Insert("0", "nonlocal", sub_sample="none")
    more = estimate_cost(
        inflate(model2d, "frames", example=example, inserts=[Insert("0", "time_pool", 3, 2), block]), (3, 8, 40, 60)
    )
    places = 4 * 40 * 60
    assert more.parameters - plain.parameters == 3 * (6 * 3 + 3) + (3 * 6 + 6) + 2 * 6
    assert more.gmacs - plain.gmacs == pytest.approx((places * 6 * 3 * 4 + 2 * places**2 * 3) / 1e9)
    assert (plain.receptive_frames, more.receptive_frames) == (1, 3)
    outputs = 6 + 3 * 3 + 6 + 6  # the pool's, theta's, phi's and g's, out's, and batch norm's
    assert more.activation_megabytes - plain.activation_megabytes == pytest.approx(4 * places * outputs / 1e6)


# --- plans ------------------------------------------------------------------------------------------------------------


def test_plans_with_inserts_print_compare_and_go_through_json():
    model2d = Residual()
    plan = make_plan(model2d, example=PICTURE, inserts=ALL)
    assert Plan.from_json(plan.to_json()) == plan
    rows = [line.split()[0] for line in str(plan).splitlines()[1:]]
    assert rows[1:7] == [
        "stem.0", "inserts.stem.temporal_conv", "pool", "inserts.pool.time_pool", "inserts.pool.non_local", "block.0",
    ]  # fmt: skip
    plain = make_plan(model2d, example=PICTURE)
    assert set(plain.differences(plan)) == {insert.layer.path for insert in plan.inserts}
    assert plan.differences(plain)["inserts.pool.time_pool"] == (plan.inserts[1], None)
    longer = make_plan(model2d, example=PICTURE, inserts=[ALL[0], replace(ALL[1], time_kernel=3), ALL[2]])
    assert list(plan.differences(longer)) == ["inserts.pool.time_pool"]
    assert inflate(model2d, plain, inserts=ALL).plan == plan


def test_plans_from_before_there_were_inserts_can_be_read():
    plan = make_plan(Residual(), example=PICTURE)
    old = json.loads(plan.to_json())
    del old["inserts"]
    assert Plan.from_json(json.dumps(old)) == plan
    with pytest.raises(InflateError, match=r"cannot be inserted(.|\n)*what='pool'"):
        Plan.from_json(json.dumps({**old, "inserts": [{"after": "stem", "what": "pool"}]}))


def test_patterns_stand_for_several_modules_and_paddings_come_from_the_preset():
    plan = make_plan(Residual(), "causal", example=PICTURE, inserts=[Insert("block.[036]", "temporal_conv")])
    assert [insert.after for insert in plan.inserts] == ["block.0", "block.3", "block.6"]
    assert {insert.padding for insert in plan.inserts} == {"causal"}
    model3d = wake(build(plan, residual()).eval())
    model3d.time_pool = "none"
    clip = torch.randn(1, 3, 9, 37, 45).double().requires_grad_()
    model3d(clip)[0, 5].sum().backward()
    assert clip.grad.abs().amax((0, 1, 3, 4)).nonzero().flatten().tolist() == list(range(6))


def test_an_insert_may_be_all_that_looks_through_time():
    model2d = nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.ReLU())
    example = torch.zeros(1, 3, 12, 16)
    with pytest.raises(InflateError, match=r"nothing in the model would look through time(.|\n)*a Rule or an Insert"):
        inflate(model2d, example=example)
    for what in ("time_pool", "temporal_conv", "nonlocal"):
        assert inflate(model2d, example=example, inserts=[Insert("1", what)]).plan.looks_through_time


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"what": "pool"}, r"what: time_pool, temporal_conv, nonlocal(.|\n)*what='pool'"),
        ({"what": "time_pool", "padding": "zeros"}, r"padding: replicate, causal, valid(.|\n)*padding='zeros'"),
        ({"what": "temporal_conv", "time_stride": 2}, r"time_stride: None, for it has none(.|\n)*time_stride=2"),
        ({"what": "temporal_conv", "time_kernel": 0}, r"time_kernel: 1 or more(.|\n)*time_kernel=0"),
        ({"what": "nonlocal", "time_kernel": 3}, r"time_kernel: None, for it has none(.|\n)*time_kernel=3"),
        (
            {"what": "nonlocal", "padding": "causal"},
            r"padding: replicate\n(.|\n)*padding='causal'",
        ),
        ({"what": "nonlocal", "attention": "max", "sub_sample": True}, r"attention='max'(.|\n)*; sub_sample=True"),
        ({"what": "nonlocal", "after": ""}, "after=''"),
        ({"what": "time_pool", "position": -1}, "position=-1"),
    ],
)
def test_impossible_inserts_are_refused(wrong, message):
    with pytest.raises(InflateError, match=message):
        Insert(**{"after": "stem", **wrong})


class Odd(nn.Module):
    """Has modules that run never, twice, on rows, or give tokens, vectors or channels-last maps."""

    def __init__(self):
        super().__init__()
        self.conv, self.unused, self.relu = nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.ReLU()
        self.rows, self.both = nn.Identity(), nn.Identity()
        self.tokens, self.last, self.head = nn.Flatten(2), nn.Identity(), nn.Sequential(nn.Flatten(), nn.LazyLinear(2))
        self.gate = torchvision.ops.SqueezeExcitation(6, 2)

    def forward(self, x):
        x = self.gate(self.relu(self.relu(self.conv(x))))
        self.rows(x.flatten(0, 1)[:, None]), self.both((x, x)), self.tokens(x), self.last(x.permute(0, 2, 3, 1))
        return self.head(F.adaptive_avg_pool2d(x, 1))


@pytest.mark.parametrize(
    ("after", "message"),
    [
        ("cnov", r"cnov: no such module(.|\n)*did you mean conv"),
        ("con[", r"con\[: no such module"),
        ("unused", "unused: runs 0 times for each"),
        ("relu", "relu: runs 2 times for each"),
        ("rows", r"rows: gives \[18, 1, 13, 17\] for three pictures"),
        ("both", "both: gives tuple for three pictures"),
        ("tokens", r"tokens: gives \[3, 6, 221\] for three pictures(.|\n)*a block or stage"),
        ("head", r"head: gives \[3, 2\]"),
        ("last", "last: channels do not stand first"),
        ("gate.fc1", "gate.fc1: inside gate, which is taken over whole"),
    ],
)
def test_places_where_nothing_can_be_inserted_are_refused(after, message):
    model2d, example = Odd(), torch.zeros(1, 3, 13, 17)
    model2d(example)
    with pytest.raises(InflateError, match=message):
        make_plan(model2d, example=example, inserts=[Insert(after, "temporal_conv")])


def test_several_faults_are_told_together_and_a_foreign_plan_is_refused():
    wrong = [Insert("stem", "time_pool"), Insert("stem*", "time_pool"), Insert("head", "nonlocal")]
    with pytest.raises(InflateError, match=r"time_pool after stem: twice; head: gives \[3, 5\]"):
        make_plan(Residual(), example=PICTURE, inserts=wrong)
    with pytest.raises(InflateError, match=r"maps \[1, 1\] are too small for sub_sample=\"before\""):
        make_plan(nn.Sequential(nn.Conv2d(3, 4, (37, 45))), example=PICTURE, inserts=[Insert("0", "nonlocal")])
    plan = make_plan(Residual(), example=PICTURE, inserts=ALL)
    foreign = replace(plan, inserts=(Insert("stam", "time_pool"),))
    with pytest.raises(InflateError, match=r"stam: no such module(.|\n)*stem"):
        build(foreign, Residual())
    with pytest.raises(InflateError, match="cannot be inserted"):
        make_plan(Residual(), "causal", example=PICTURE, inserts=[Insert("pool", "nonlocal")])


def test_a_pool_in_one_of_two_branches_is_refused_and_lengths_are_those_of_its_strides():
    with pytest.raises(InflateError, match="branches of the model that meet have different lengths"):
        inflate(Residual(), example=PICTURE, inserts=[Insert("block", "time_pool")])
    model3d = inflate(Residual(), example=PICTURE, inserts=[Insert("pool", "time_pool", 3, 3)])
    assert model3d.fold.strides == {1, 3}
    assert model3d.call("forward_features", torch.randn(2, 3, 7, 37, 45)).shape[2] == 3


def test_models_whose_weights_are_remade_by_hooks_take_inserts_and_can_be_proved():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        model2d = nn.Sequential(torch.nn.utils.weight_norm(nn.Conv2d(3, 8, 3)), nn.ReLU()).eval()
    model2d(PICTURE)  # its weight is no leaf now, and torch copies no such tensors
    proof = prove(model2d, inflate(model2d, example=PICTURE, inserts=[Insert("1", "temporal_conv")]), lengths=(1, 4))
    assert proof.holds, str(proof)
