"""The engine's laws: exactness, names, memory, threads, checkpoints, copies, compilation."""

import copy
import pickle
import threading

import pytest
import timm
import torch
import torchvision
from small_models import ManyOutputs, MergedRows, MixesTheBatch, Residual, randomize
from torch import nn
from torch.utils.checkpoint import checkpoint

from inflate3d.errors import InflateError
from inflate3d.inflation.build import Inflated, build, deflate, inflate, make_plan
from inflate3d.inflation.plan import Plan, Rule
from inflate3d.inflation.presets import PRESETS
from inflate3d.inflation.proof import prove

PICTURE = torch.zeros(1, 3, 37, 45)
FOR_CONVOLUTIONS = [name for name, preset in PRESETS.items() if not preset.attention]
PLANNING = {"anisotropic": {"spacing_mm": (3, 1, 1)}}


def still(picture, frames):
    return picture.unsqueeze(2).repeat(1, 1, frames, 1, 1)


def residual():
    return randomize(Residual()).double()


@pytest.mark.parametrize("preset", FOR_CONVOLUTIONS)
@pytest.mark.parametrize("frames", [1, 2, 7])
def test_a_still_clip_is_answered_as_the_picture(preset, frames):
    model2d = residual()
    model3d = inflate(model2d, preset, example=PICTURE, **PLANNING.get(preset, {}))
    picture = torch.randn(2, 3, 37, 45).double()
    torch.testing.assert_close(model3d(still(picture, frames)), model2d(picture), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    "profile", ["mean", "center", "negative", "lambda=0.3", "shift", lambda taps: [1 / taps] * taps]
)
def test_every_profile_is_exact(profile):
    model2d = residual()
    model3d = inflate(model2d, example=PICTURE, profile=profile)
    picture = torch.randn(1, 3, 37, 45).double()
    torch.testing.assert_close(model3d(still(picture, 5)), model2d(picture), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("preset", sorted(set(FOR_CONVOLUTIONS) - {"i3d", "isotropic", "anisotropic"}))
def test_each_preset_looks_where_it_says(preset):
    """What the present frame's answer depends on, by gradient."""
    model3d = inflate(residual(), preset, example=PICTURE, time_pool="none")
    clip = torch.randn(1, 3, 9, 37, 45).double().requires_grad_()
    model3d(clip)[0, 4].sum().backward()
    seen = clip.grad.abs().amax((0, 1, 3, 4)) > 0
    expected = {
        "video": [True] * 9,  # 7 and 3 frames: 4 back, 4 ahead
        "i3d-3x1x1": [3 <= t <= 5 for t in range(9)],
        "causal": [t <= 4 for t in range(9)],
        "frames": [t == 4 for t in range(9)],
        "tsm": [3 <= t <= 5 for t in range(9)],
    }[preset]
    assert seen.tolist() == expected


def test_names_stay_and_nothing_is_shared_or_changed():
    model2d = residual()
    before = copy.deepcopy(model2d.state_dict())
    model3d = inflate(model2d, example=PICTURE)
    assert type(model3d.net) is Residual
    assert list(model3d.net.state_dict()) == list(before)
    assert isinstance(model3d.net.stem[0], nn.Conv2d)
    assert model3d.net.stem[0].weight.shape == (16, 3, 7, 7, 7)
    memory = {tensor.data_ptr() for tensor in model2d.state_dict().values()}
    assert not memory & {tensor.data_ptr() for tensor in model3d.state_dict().values()}
    with torch.no_grad():
        for parameter in model3d.parameters():
            parameter.zero_()
    assert all(torch.equal(value, before[name]) for name, value in model2d.state_dict().items())
    assert type(model2d.stem[0]) is nn.Conv2d


def test_deflate_and_2d_checkpoints():
    model2d, other = residual(), randomize(Residual(), seed=3).double()
    model3d = inflate(model2d, example=PICTURE, profile="negative")
    flat = deflate(model3d)
    assert type(flat.stem[0]) is nn.Conv2d
    for name, value in flat.state_dict().items():
        torch.testing.assert_close(value, model2d.state_dict()[name], rtol=1e-6, atol=1e-9)
    model3d.load_2d_state_dict(other.state_dict())
    picture = torch.randn(2, 3, 37, 45).double()
    torch.testing.assert_close(model3d(still(picture, 3)), other(picture), rtol=1e-10, atol=1e-12)
    with pytest.raises(InflateError, match="does not fit the 2D model"):
        model3d.load_2d_state_dict({"stem.0.weight": torch.zeros(1)})
    with pytest.raises(InflateError, match="a random kernel has no 2D kernel behind it"):
        deflate(inflate(model2d, example=PICTURE, profile="random"))


def test_threads_do_not_disturb_each_other():
    model3d = inflate(residual(), example=PICTURE)
    clips = [torch.randn(b, 3, t, 37, 45).double() for b, t in [(1, 6), (2, 3), (3, 2), (6, 1)]]
    expected = [model3d(clip) for clip in clips]
    found = {}

    def work(i):
        for _ in range(5):
            found[i] = model3d(clips[i])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, answer in enumerate(expected):
        assert torch.equal(found[i], answer)


class Checkpointed(Residual):
    def forward_features(self, x):
        x = checkpoint(lambda y: self.pool(self.stem(y)), x, use_reentrant=False)
        return torch.relu(checkpoint(self.block, x, use_reentrant=False) + self.shortcut(x))


@pytest.mark.parametrize("shapes", [[(2, 4), (3, 5)], [(2, 4), (1, 8)], [(1, 8), (2, 4), (4, 2)]])
def test_activation_checkpointing_gives_the_gradients_of_the_plain_model(shapes):
    """Two forwards before one backward, of other batches and even of the same number of frames."""
    torch.manual_seed(5)
    clips = [torch.randn(b, 3, t, 37, 45).double() for b, t in shapes]
    plain = inflate(residual(), example=PICTURE)
    careful = inflate(randomize(Checkpointed()).double(), example=PICTURE)
    careful.load_state_dict(plain.state_dict())
    for model in (plain, careful):
        for _ in range(2):  # the second time the runs of the first are known already
            model.zero_grad()
            sum((model(clip) ** 2).sum() for clip in clips).backward()
    for (name, a), b in zip(plain.named_parameters(), careful.parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad, rtol=1e-9, atol=1e-12, msg=name)


class Nested(nn.Module):
    """Two layers that look through time, and between them an Inflated, in a checkpoint or not."""

    def __init__(self, inner, careful):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(6, 2, 3)
        self.inner, self.careful = inner, careful

    def forward(self, x):
        y = self.first(x)
        reentrant = self.careful == "reentrant"
        return self.last(checkpoint(self.inner, y, use_reentrant=reentrant) if self.careful else self.inner(y))


@pytest.mark.parametrize("careful", ["reentrant", "anew"])
@pytest.mark.parametrize("shapes", [[(2, 4)], [(2, 4), (3, 5)], [(2, 4), (1, 8)]])
def test_checkpointing_an_inflated_inside_an_inflated(careful, shapes):
    torch.manual_seed(5)
    inner = inflate(nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.ReLU()).double(), example=torch.zeros(1, 4, 9, 11))
    plain = inflate(Nested(inner, "").double(), example=torch.zeros(1, 3, 9, 11))
    model = inflate(Nested(inner, careful).double(), example=torch.zeros(1, 3, 9, 11))
    model.load_state_dict(plain.state_dict())
    clips = [torch.randn(b, 3, t, 9, 11).double() for b, t in shapes]
    for each in (plain, model):
        each.zero_grad()
        sum(each(clip).square().sum() for clip in clips).backward()
    for (name, a), b in zip(plain.named_parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad, rtol=1e-9, atol=1e-12, msg=name)
    picture = torch.randn(2, 4, 9, 11).double()  # between runs the inner one answers pictures
    torch.testing.assert_close(model.net.inner(picture), inner(picture))


def test_timm_checkpointing():
    model2d = randomize(timm.create_model("test_resnet", num_classes=3)).double()
    model3d = inflate(model2d)
    clips = [torch.randn(2, 3, 3, 64, 64).double(), torch.randn(1, 3, 4, 64, 64).double()]
    gradients = []
    for careful in (False, True):
        model3d.net.set_grad_checkpointing(careful)
        model3d.zero_grad()
        model3d.train().requires_grad_()
        for module in model3d.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        sum(model3d(clip).square().sum() for clip in clips).backward()
        gradients.append([parameter.grad.clone() for parameter in model3d.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-9, atol=1e-12)


def test_a_layer_run_alone_on_frames_is_refused_and_on_clips_runs():
    model3d = inflate(residual(), example=PICTURE)
    with pytest.raises(InflateError, match=r"stem\.0(.|\n)*cannot know where clips begin(.|\n)*call the Inflated"):
        model3d.net(torch.randn(4, 3, 37, 45).double())
    assert model3d.net.stem[0](torch.randn(2, 3, 4, 37, 45).double()).shape == (2, 16, 4, 19, 23)


def test_copies_and_pickles_run_on_their_own():
    model3d = inflate(residual(), example=PICTURE)
    clip = torch.randn(2, 3, 3, 37, 45).double()
    for twin in (copy.deepcopy(model3d), pickle.loads(pickle.dumps(model3d))):
        assert torch.equal(twin(clip), model3d(clip))
        assert twin.fold is not model3d.fold
        assert twin.net.stem[0].fold is twin.fold


def test_an_inflated_inside_an_inflated_and_inside_a_3d_model():
    inner = inflate(nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.ReLU()).double(), example=torch.zeros(1, 4, 9, 11))
    outer2d = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), inner).double()
    outer = inflate(outer2d, example=torch.zeros(1, 3, 9, 11))
    picture = torch.randn(2, 3, 9, 11).double()
    torch.testing.assert_close(outer(still(picture, 4))[:, :, 2], outer2d(picture), rtol=1e-10, atol=1e-12)
    clip = torch.randn(2, 3, 5, 9, 11).double()
    torch.testing.assert_close(outer(clip), inner(inflate(outer2d[0], example=torch.zeros(1, 3, 9, 11))(clip)))
    model = nn.Sequential(nn.Conv3d(3, 4, 1).double(), inner)
    assert model(torch.randn(2, 3, 5, 9, 11).double()).shape == (2, 6, 5, 9, 11)


def test_pictures_are_answered_as_by_the_2d_model():
    model2d = residual()
    picture = torch.randn(2, 3, 37, 45).double()
    torch.testing.assert_close(inflate(model2d, example=PICTURE)(picture), model2d(picture), rtol=1e-10, atol=1e-12)
    with pytest.raises(InflateError, match="the input is no clip"):
        inflate(model2d, example=PICTURE)(picture[0])


def test_every_kind_of_output_gets_its_time_back():
    model3d = inflate(ManyOutputs(), example=torch.zeros(1, 3, 7, 11))
    answer = model3d(torch.randn(2, 3, 5, 7, 11))
    assert answer["logits"].shape == (2, 10)
    assert answer["maps"][0].shape == (2, 10, 5, 7, 11)
    assert answer["maps"][1].shape == (2, 5, 7, 11, 10)
    assert answer["tokens"].shape == (2, 5, 77, 10)
    assert answer["scale"].shape == (10,)
    assert answer["name"] == "ten"
    torch.testing.assert_close(answer["maps"][0].permute(0, 2, 3, 4, 1), answer["maps"][1])
    model3d.time_pool = "none"
    torch.testing.assert_close(model3d(torch.ones(1, 3, 4, 7, 11))["logits"].shape, torch.Size([1, 4, 10]))


def test_any_method_runs_on_clips():
    model3d = inflate(residual(), example=PICTURE)
    clip = torch.randn(2, 3, 3, 37, 45).double()
    assert model3d.call("forward_features", clip).shape == (2, 24, 3, 5, 6)
    with pytest.raises(InflateError, match=r"no method forward_feature(.|\n)*forward_features"):
        model3d.call("forward_feature", clip)


def test_timm_features_only_gives_lists_of_maps():
    model2d = timm.create_model("test_resnet", features_only=True).eval()
    maps2d = model2d(torch.zeros(1, 3, 64, 64))
    maps3d = inflate(model2d, example=torch.zeros(1, 3, 64, 64))(torch.zeros(2, 3, 5, 64, 64))
    assert [tuple(m.shape) for m in maps3d] == [(2, m.shape[1], 5, *m.shape[2:]) for m in maps2d]


@pytest.mark.parametrize("inside", [True, False])
def test_rows_merged_into_the_batch_find_their_frames(inside):
    model2d = MergedRows(inside).double()
    model3d = inflate(model2d, example=torch.zeros(1, 6, 5, 7))
    (layer,) = model3d.plan.layers
    assert (layer.batch_factor, layer.rows_inside) == (3, inside)
    clip = torch.randn(2, 6, 4, 5, 7).double()
    plain = nn.Conv3d(2, 2, 3, padding=(0, 1, 1)).double()
    plain.load_state_dict(model3d.net.conv.state_dict())
    padded = torch.cat([clip[:, :, :1], clip, clip[:, :, -1:]], dim=2)
    expected = torch.cat([plain(padded[:, i : i + 2]) for i in (0, 2, 4)], dim=1)
    torch.testing.assert_close(model3d(clip), expected)


def test_what_cannot_be_inflated_is_refused_with_a_reason():
    with pytest.raises(InflateError, match="depends on the other pictures of the batch"):
        inflate(MixesTheBatch(), example=PICTURE)
    with pytest.raises(InflateError, match=r"nothing in the model would look through time(.|\n)*frames"):
        inflate(nn.Sequential(nn.Conv2d(3, 4, 4, 4)), example=PICTURE)
    with pytest.raises(InflateError, match="no blocks that begin with a pointwise"):
        inflate(nn.Sequential(nn.Conv2d(3, 4, 3)), "i3d-3x1x1", example=PICTURE)
    with pytest.raises(InflateError, match=r"no such preset(.|\n)*video"):
        make_plan(Residual(), "vidoe", example=PICTURE)
    with pytest.raises(InflateError, match=r"cannot be run on a picture(.|\n)*example="):
        make_plan(Residual(), example=torch.zeros(1, 4, 37, 45))


def test_plans_print_compare_and_go_through_json():
    model2d = Residual()
    plan = make_plan(model2d, example=PICTURE, profile=lambda taps: [1 / taps] * taps)
    assert Plan.from_json(plan.to_json()) == plan
    assert "stem.0" in str(plan)
    other = make_plan(
        model2d, example=PICTURE, rules={"stem.*": Rule(time_kernel=5, profile="center"), "block.3": Rule(1)}
    )
    assert set(plan.differences(other)) >= {"stem.0", "block.3"}
    assert inflate(model2d, other).net.stem[0].weight.shape[2] == 5
    assert inflate(model2d, other).net.block[3].weight.ndim == 4
    with pytest.raises(InflateError, match=r"a rule matches no layer(.|\n)*'stam(.|\n)*stem"):
        make_plan(model2d, example=PICTURE, rules={"stam.0": Rule(3)})
    with pytest.raises(InflateError, match="this is no plan"):
        Plan.from_json('{"version": 99}')
    with pytest.raises(InflateError, match="the plan is for another model"):
        build(plan, nn.Sequential(nn.Conv2d(3, 4, 3)))


def test_time_pools():
    model3d = inflate(residual(), example=PICTURE, time_pool="none")
    clip = torch.randn(2, 3, 4, 37, 45).double()
    steps = model3d(clip)
    assert steps.shape == (2, 4, 5)
    model3d.time_pool = "max"
    torch.testing.assert_close(model3d(clip), steps.amax(1))
    model3d.time_pool = "mean"
    torch.testing.assert_close(model3d(clip), steps.mean(1))


def test_the_model_runs_after_export():
    model3d = inflate(Residual().eval(), example=PICTURE)
    clip = torch.randn(2, 3, 3, 37, 45)
    expected = model3d(clip)
    exported = torch.export.export(model3d, (clip,))
    torch.testing.assert_close(exported.module()(clip), expected)
    assert torch.equal(model3d(torch.randn(1, 3, 4, 37, 45)).shape and model3d(clip), expected)


def test_a_proof_is_a_certificate_and_a_broken_model_has_none():
    model2d = randomize(Residual())
    proof = prove(model2d, inflate(model2d, example=PICTURE))
    assert proof.holds, str(proof)
    assert "PROVED" in str(proof)
    assert '"holds": true' in proof.to_json()


def test_the_proof_names_the_first_layer_that_differs(monkeypatch):
    from inflate3d.inflation import adapters

    def broken(self, x):
        return nn.functional.conv3d(x, self.weight, self.bias, (1, *self.stride), (1, *self.padding), 1, self.groups)

    model2d = randomize(Residual())
    model3d = inflate(model2d, example=PICTURE, rules={"stem.0": Rule(time_kernel=1)})
    monkeypatch.setattr(adapters.InflatedConv2d, "through_time", broken)  # zeros in time: wrong at the ends
    proof = prove(model2d, model3d)
    assert not proof.holds
    assert "first differs at block.3" in str(proof)


def test_torchvision_resnet50_plans_and_builds():
    model3d = inflate(torchvision.models.resnet50(num_classes=5), "i3d-3x1x1", example=torch.zeros(1, 3, 64, 64))
    inflated = [layer.path for layer in model3d.plan if layer.time_kernel == 3]
    assert inflated[:3] == ["layer1.0.conv1", "layer1.2.conv1", "layer2.1.conv1"]
    assert isinstance(model3d, Inflated)


def small_net():
    torch.manual_seed(3)
    return inflate(randomize(Residual()).double(), "i3d", example=torch.zeros(1, 3, 37, 45))


def step(rank, folder):
    """One process of two: the gradients of its own clip, averaged with those of the other's."""
    torch.set_num_threads(1)
    rendezvous = f"file://{folder}/rendezvous"
    torch.distributed.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=2)
    try:
        model = nn.parallel.DistributedDataParallel(small_net())
        clips = torch.load(f"{folder}/clips.pt")
        model(clips[rank : rank + 1]).square().mean().backward()
        torch.save([p.grad for p in model.parameters()], f"{folder}/{rank}.pt")
    finally:
        torch.distributed.destroy_process_group()


def test_two_processes_get_the_gradients_of_one_with_both_clips(tmp_path):
    clips = torch.randn(2, 3, 5, 37, 45).double()
    torch.save(clips, tmp_path / "clips.pt")
    torch.multiprocessing.spawn(step, (str(tmp_path),), nprocs=2)
    model = small_net()
    model(clips).square().mean().backward()
    for rank in range(2):
        for ours, parameter in zip(torch.load(tmp_path / f"{rank}.pt"), model.parameters(), strict=True):
            torch.testing.assert_close(ours, parameter.grad, rtol=1e-9, atol=1e-12)
