"""Attention over time: exact on still clips, as by hand on moving ones, and it learns the order of frames."""

import copy
import math
import pickle

import pytest
import timm
import torch
import torchvision
from torch import nn
from typer.testing import CliRunner

from inflate3d import InflateError, Insert, Plan, Rule, build, deflate, inflate, make_plan, prove
from inflate3d.cli import app
from inflate3d.inflation import attention
from inflate3d.inflation.attention import JointAttention, blocks_of, key_bias
from inflate3d.inflation.inserted import sinusoids
from inflate3d.weights.inflated_file import load_inflated, save_inflated

SMALL_VIT = {"img_size": 48, "patch_size": 16, "depth": 2, "embed_dim": 24, "num_heads": 2, "num_classes": 5}
SMALL_SWIN = {
    "img_size": 32,
    "window_size": 4,
    "depths": (2, 2),
    "num_heads": (2, 4),
    "embed_dim": 12,
    "num_classes": 5,
}


pytestmark = pytest.mark.usefixtures("one_thread")


def restless(model, seed=3):
    """Give every parameter a value of its own, so that class tokens and biases count; float64, eval mode."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        spread = torch.randn(parameter.shape, generator=generator)
        parameter.data = spread * (parameter[0].numel() ** -0.5 if parameter.ndim == 2 else 0.3) + (parameter.ndim == 1)
    return model.double().eval()


def vit(**changed):
    return restless(timm.create_model("vit_tiny_patch16_224", **{**SMALL_VIT, **changed}))


def deit():
    return restless(timm.create_model("deit_tiny_distilled_patch16_224", **SMALL_VIT))


def swin(name="swin_tiny_patch4_window7_224"):
    return restless(timm.create_model(name, **SMALL_SWIN))


def other_vit(name, **changed):
    return restless(timm.create_model(name, **{**SMALL_VIT, **changed}))


def torchvision_vit():
    torch.manual_seed(0)
    model = torchvision.models.VisionTransformer(48, 16, 2, 2, 24, 32, num_classes=5)
    return restless(model)


MODELS = {
    "vit": vit,
    "registers": lambda: vit(reg_tokens=3),
    "no class token": lambda: vit(class_token=False, global_pool="avg"),
    "distilled": deit,
    "parallel": lambda: vit(block_fn=timm.models.vision_transformer.ParallelScalingBlock),
    "differential": lambda: vit(attn_layer="diff"),
    "normed": lambda: vit(qk_norm=True, scale_attn_norm=True),
    "swin": swin,
    "swinv2": lambda: swin("swinv2_tiny_window8_256"),
    "torchvision": torchvision_vit,
    "eva": lambda: other_vit("eva02_tiny_patch14_224", patch_size=16),
    "dinov3": lambda: other_vit("vit_small_patch16_dinov3"),
    "rotary": lambda: other_vit("vit_small_patch16_rope_224"),
    "mixed rotary": lambda: other_vit("vit_small_patch16_rope_mixed_224"),
    "relative": lambda: other_vit("vit_relpos_small_patch16_224"),
    "relative with class": lambda: other_vit("vit_relpos_base_patch16_cls_224"),
    "relative by a network": lambda: other_vit("vit_relpos_base_patch16_rpn_224", rel_pos_type="mlp"),
    "beit": lambda: other_vit("beit_base_patch16_224"),
}


def still(picture, frames):
    return picture.unsqueeze(2).repeat(1, 1, frames, 1, 1)


def picture_for(model, num=2):
    size = 48 if not hasattr(model, "layers") else 32
    return torch.randn(num, 3, size, size, generator=torch.Generator().manual_seed(9)).double()


# --- a still clip -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["joint", "divided"])
@pytest.mark.parametrize("name", MODELS)
def test_a_still_clip_is_answered_as_the_picture(name, preset):
    model2d = MODELS[name]()
    model3d, picture = inflate(model2d, preset), picture_for(model2d)
    assert model3d.plan.looks_through_time
    assert list(model3d.net.state_dict()) == list(model2d.state_dict())
    for frames in (1, 3, 11):  # eleven frames are a window of eight and one of three; or four, seven
        torch.testing.assert_close(model3d(still(picture, frames)), model2d(picture), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(model3d(picture), model2d(picture), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["vit", "registers", "distilled", "torchvision"])
def test_without_log_t_the_class_token_weighs_too_little(name, monkeypatch):
    model2d = MODELS[name]()
    model3d, picture = inflate(model2d, "joint"), picture_for(model2d)
    exact = model2d(picture)
    monkeypatch.setattr(attention, "key_bias", lambda *given, like: key_bias(*given, like=like) * 0)
    error = (model3d(still(picture, 7)) - exact).abs().max() / exact.abs().max()
    assert error > 1e-2


@pytest.mark.parametrize("name", ["vit", "swin"])
@pytest.mark.parametrize("preset", ["joint", "divided"])
def test_the_proof_holds_and_says_what_it_saw(name, preset):
    model2d = MODELS[name]().float()
    proof = prove(model2d, inflate(model2d, preset), lengths=(1, 5))
    assert proof.holds, str(proof)
    assert proof.layers_through_time == (2 if name == "vit" else 4)
    assert "with attention over time, steps see earlier and later frames" in [check.law for check in proof.checks]


def test_the_proof_sees_a_wrong_correction(monkeypatch):
    model2d = vit()
    model3d = inflate(model2d, "joint")
    monkeypatch.setattr(attention, "key_bias", lambda *given, like: key_bias(*given, like=like) * 2)
    proof = prove(model2d, model3d, lengths=(4,))
    assert not proof.holds
    assert "first differs at blocks.0.attn" in str(proof)


# --- by hand ----------------------------------------------------------------------------------------------------------


def weighted_attention(layer, tokens, times, bias=0):
    """Attention of tokens `[b, l, c]` whose j-th key is there `times[j]` times, written out."""
    b, length, _ = tokens.shape
    heads = layer.num_heads
    qkv = tokens @ layer.qkv.weight.T + layer.qkv.bias
    query, key, value = (part.reshape(b, length, heads, -1).transpose(1, 2) for part in qkv.chunk(3, dim=-1))
    weights = torch.exp(query @ key.transpose(2, 3) * query.shape[-1] ** -0.5 + bias) * times
    answer = (weights / weights.sum(-1, keepdim=True)) @ value
    return answer.transpose(1, 2).reshape(b, length, -1) @ layer.proj.weight.T + layer.proj.bias


@pytest.mark.parametrize("once", [0, 1, 4])
def test_joint_attention_on_a_moving_clip_is_as_by_hand(once):
    """Class tokens are there T times, whichever way it is computed."""
    changed = {"reg_tokens": once - 1} if once else {"class_token": False, "global_pool": "avg"}
    model3d = inflate(vit(**changed), "joint")
    layer = model3d.net.blocks[0].attn
    assert layer.plan.clip_tokens == once
    b, t, patches = 2, 5, 9
    alike = torch.randn(b, 1, once, 24).double().expand(-1, t, -1, -1)
    frames = torch.cat([alike, torch.randn(b, t, patches, 24).double()], dim=2)
    all_tokens = weighted_attention(layer, frames.flatten(1, 2), torch.ones(()))
    deduplicated = torch.cat([frames[:, 0, :once], frames[:, :, once:].flatten(1, 2)], dim=1)
    times = torch.cat([torch.full((once,), float(t)), torch.ones(t * patches)])
    by_times = weighted_attention(layer, deduplicated, times)
    model3d.fold.push(b, t)
    found = layer(frames.flatten(0, 1)).unflatten(0, (b, t))
    model3d.fold.pop()
    torch.testing.assert_close(found.flatten(1, 2), all_tokens)
    torch.testing.assert_close(found[:, 2, once:], by_times[:, once + 2 * patches : once + 3 * patches])
    torch.testing.assert_close(found[:, 3, :once], by_times[:, :once])


def test_clips_of_a_batch_stay_apart_and_frames_do_not():
    model3d = inflate(vit(), "joint")
    clip = torch.randn(2, 3, 4, 48, 48).double()
    torch.testing.assert_close(model3d(clip)[1:], model3d(clip[1:]))
    model3d.time_pool = "none"
    changed = clip.clone()
    changed[0, :, 3] += 1
    differs = (model3d(changed) - model3d(clip)).abs().amax(2) > 1e-9
    assert differs.tolist() == [[True] * 4, [False] * 4]


@pytest.mark.parametrize("name", [name for name in MODELS if name != "torchvision"])  # it has no forward_features
def test_at_the_start_frames_in_another_order_are_answered_in_that_order(name):
    """So biases and rotations are those of the same place in every frame."""
    model2d = MODELS[name]()
    model3d = inflate(model2d, "joint", time_pool="none")
    clip = picture_for(model2d, 8).unflatten(0, (2, 4)).transpose(1, 2)
    order = [2, 0, 3, 1]
    whole, mixed = (model3d.call("forward_features", each) for each in (clip, clip[:, :, order]))
    if hasattr(model2d, "layers"):
        torch.testing.assert_close(mixed, whole[:, order])
        assert not torch.allclose(mixed, whole)
    else:  # class tokens and registers are the same in all frames
        once = max(layer.clip_tokens for layer in model3d.plan)
        torch.testing.assert_close(mixed[:, :, once:], whole[:, order, once:])
        torch.testing.assert_close(whole[:, 1, :once], whole[:, 2, :once])


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("frames", [2, 4])
def test_swins_windows_are_as_by_hand(masked, frames):
    """Biases by distance in time, rows and columns, from a table with a row for each; a mask repeated over frames."""
    model3d = inflate(swin(), "joint", rules={"*.attn": Rule(time_kernel=3)})
    layer = model3d.net.layers[0].blocks[0].attn
    height, width = layer.window_size
    table = torch.randn(5 * (2 * height - 1) * (2 * width - 1), layer.num_heads).double()
    assert table.shape == layer.relative_position_bias_table.shape
    layer.set_table(table)
    places = [(t, y, x) for t in range(frames) for y in range(height) for x in range(width)]
    bias = torch.empty(layer.num_heads, len(places), len(places)).double()
    for i, (t, y, x) in enumerate(places):
        for j, (u, v, w) in enumerate(places):
            apart = min(max(t - u, -2), 2) + 2  # those farther apart are in other windows
            row = (apart * (2 * height - 1) + y - v + height - 1) * (2 * width - 1) + x - w + width - 1
            bias[:, i, j] = table[row]
    b, windows, inside = 2, 4, height * width
    mask = torch.randn(windows, inside, inside).double() if masked else None
    tokens = torch.randn(b, frames, windows, inside, 12).double()
    model3d.fold.push(b, frames)
    found = layer(tokens.flatten(0, 2), mask=mask).view(b, frames, windows, inside, 12)
    model3d.fold.pop()
    for window in range(windows):
        added = bias if mask is None else bias + mask[window].repeat(frames, frames)
        if frames == 4:  # one more than a window holds; where windows are shifted in space, in time as well
            alone = torch.tensor([t == (0 if masked else 3) for t, _, _ in places])
            added = added.masked_fill(alone[:, None] != alone, -torch.inf)
        expected = weighted_attention(layer, tokens[:, :, window].flatten(1, 2), torch.ones(()), added)
        torch.testing.assert_close(found[:, :, window].flatten(1, 2), expected)


def test_windows_in_time_see_their_own_frames_alone():
    model2d = vit()
    model3d = inflate(model2d, "joint", rules={"blocks.*.attn": Rule(time_kernel=2)}, time_pool="none")
    assert [layer.action for layer in model3d.plan if layer.kind == "attention"] == ["attend", "attend"]
    clip = torch.randn(1, 3, 5, 48, 48).double()
    changed = clip.clone()
    changed[:, :, 3] += 1
    differs = (model3d(changed) - model3d(clip)).abs().amax((0, 2)) > 1e-9
    assert differs.tolist() == [False, False, True, True, False]
    picture = picture_for(model2d)
    torch.testing.assert_close(model3d(still(picture, 5))[:, 4], model2d(picture))


def test_torchs_attention_is_as_timms():
    """The same weights in both, tokens in either order of axes."""
    layer = restless(nn.MultiheadAttention(12, 3, batch_first=True))
    other = restless(nn.MultiheadAttention(12, 3))
    tokens = torch.randn(2, 7, 12).double()
    expected = layer(tokens, tokens, tokens, need_weights=False)[0]
    model3d = inflate(vit(class_token=False, global_pool="avg"), "joint")
    plan = model3d.net.blocks[0].attn.plan
    model3d.fold.push(1, 1)
    for mine, given in ((layer, tokens[:1]), (other, tokens[:1].transpose(0, 1))):
        attention.JointMultihead.take_over(mine, plan, model3d.fold)
        found, weights = mine(given, given, given)
        torch.testing.assert_close(found.reshape(1, 7, 12), expected[:1])
        assert weights is None
    model3d.fold.pop()


# --- what learns ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "preset"),
    [("vit", "joint"), ("vit", "divided"), ("swin", "joint"), ("swin", "divided"), ("swinv2", "joint")],
)
def test_one_step_of_training_tells_a_clip_from_itself_backwards(name, preset):
    model3d = inflate(MODELS[name](), preset)
    size = 48 if name == "vit" else 32
    clip = torch.randn(2, 3, 4, size, size, generator=torch.Generator().manual_seed(1)).double()
    before = model3d(clip)
    torch.testing.assert_close(before, model3d(clip.flip(2)), rtol=1e-9, atol=1e-11)
    optimizer = torch.optim.SGD(model3d.parameters(), 1.0)
    nn.functional.cross_entropy(before, torch.tensor([0, 3])).backward()
    assert all(parameter.grad is not None for parameter in model3d.parameters())
    optimizer.step()
    with torch.no_grad():
        assert (model3d(clip) - model3d(clip.flip(2))).abs().max() > 1e-7


@pytest.mark.parametrize("preset", ["joint", "divided"])
def test_what_is_added_has_names_of_its_own_and_changes_nothing_at_the_start(preset):
    model2d = vit()
    model3d, frames = inflate(model2d, preset), inflate(model2d, "frames")
    added = {name for name in model3d.state_dict() if not name.startswith("net.")}
    one = "inserts.blocks.0.time_position." if preset == "joint" else "inserts.blocks.1.temporal_attention."
    assert added
    assert all(name.startswith("inserts.blocks.") for name in added)
    assert any(name.startswith(one) for name in added)
    if preset == "divided":
        clip = torch.randn(2, 3, 5, 48, 48).double()
        assert torch.equal(model3d(clip), frames(clip))


def awake(preset, model2d=None):
    """Let what is added have a say."""
    model3d = inflate(model2d or vit(), preset)
    generator = torch.Generator().manual_seed(5)
    for parameter in model3d.inserts.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator).double() * 0.1
    return model3d


def test_temporal_attention_is_as_by_hand():
    model3d = awake("divided")
    layer = model3d.get_submodule("inserts.blocks.1.temporal_attention")
    clip = torch.randn(2, 24, 5, 3, 1).double()
    for b in range(2):
        for place in range(3):
            x = clip[b, :, :, place, 0].T
            tokens = layer.norm(x) + sinusoids(5, 24, x)
            expected = x + weighted_attention(layer, tokens[None], torch.ones(()))[0]
            torch.testing.assert_close(layer(clip)[b, :, :, place, 0].T, expected)


def test_sinusoids_are_those_of_the_paper():
    found = sinusoids(3, 4, torch.zeros(1).double())
    angle = 2 / 10000 ** (2 / 4)
    torch.testing.assert_close(found[2, 2:], torch.tensor([math.sin(angle), math.cos(angle)]).double())
    assert found[0].tolist() == [0, 1, 0, 1]


def test_a_position_in_time_leaves_class_tokens_alone():
    model3d = awake("joint", vit(reg_tokens=2))
    layer = model3d.get_submodule("inserts.blocks.0.time_position")
    assert layer.clip_tokens == 3
    clip = torch.randn(2, 24, 4, 12, 1).double()
    changed = layer(clip) != clip
    assert not changed[:, :, :, :3].any()
    assert changed[:, :, :, 3:].all()


@pytest.mark.parametrize("form", ["map", "map-last", "tokens"])
def test_attention_over_time_goes_behind_any_module(form):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.middle, self.head = nn.Conv2d(3, 12, 4, 4), nn.Identity(), nn.Linear(12, 5)

        def forward(self, x):
            x = self.stem(x)
            if form != "map":
                x = x.movedim(1, -1)
            x = self.middle(x.flatten(1, 2) if form == "tokens" else x)
            return self.head(x.mean((2, 3)) if form == "map" else x.flatten(1, -2).mean(1))

    answers = []
    for name in ("map", "map-last", "tokens"):
        form, own = name, form
        torch.manual_seed(2)
        inserts = [Insert("middle", what) for what in ("time_position", "temporal_attention")]
        model3d = inflate(Net().double(), "frames", example=torch.zeros(1, 3, 20, 28), inserts=inserts)
        generator = torch.Generator().manual_seed(5)
        for parameter in model3d.inserts.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator).double() * 0.1
        answers.append(model3d(torch.randn(2, 3, 4, 20, 28, generator=generator).double()))
        form = own
    torch.testing.assert_close(answers[1], answers[0])
    torch.testing.assert_close(answers[2], answers[0])


# --- a model lives through all that models do -------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "preset"), [("vit", "joint"), ("vit", "divided"), ("swin", "joint")])
def test_it_is_copied_pickled_saved_and_compiled(name, preset):
    one_stage = {**SMALL_SWIN, "depths": (1,), "num_heads": (2,), "img_size": 16}
    shallow = timm.create_model("swin_tiny_patch4_window7_224", **one_stage)
    model2d = vit(depth=1) if name == "vit" else restless(shallow)
    model3d = inflate(model2d, preset)
    size = 48 if name == "vit" else 16
    clip = torch.randn(1, 3, 3, size, size).double()
    with torch.no_grad():
        expected = model3d(clip)
        again = build(Plan.from_json(model3d.plan.to_json()), model2d)
        again.load_state_dict(model3d.state_dict())
        for twin in (copy.deepcopy(model3d), pickle.loads(pickle.dumps(model3d)), again):
            assert torch.equal(twin(clip), expected)
        if preset == "joint" and name == "vit":  # a quarter of a minute each; the others have no code of another kind
            compiled = torch.compile(model3d, backend="aot_eager", fullgraph=True)
            torch.testing.assert_close(compiled(clip), expected)


def test_it_is_exported_for_clips_of_any_number_and_length():
    model3d = inflate(vit(depth=1), "joint")
    clip, other = torch.randn(2, 3, 4, 48, 48).double(), torch.randn(3, 3, 7, 48, 48).double()
    any_size = {0: torch.export.Dim("b", min=1, max=8), 2: torch.export.Dim("t", min=2, max=64)}
    with torch.no_grad():
        exported = torch.export.export(model3d, (clip,), dynamic_shapes=(any_size,)).module()
        torch.testing.assert_close(exported(other), model3d(other))


@pytest.mark.parametrize("preset", ["joint", "divided"])
def test_the_commands_know_the_presets(tmp_path, preset):
    def run(*words):
        done = CliRunner().invoke(app, [*words, "--preset", preset])
        assert done.exit_code == 0, done.output
        return done.output

    file = tmp_path / "vit.safetensors"
    assert "PROVED" in run("prove", "timm/test_vit")
    assert f"preset {preset}: 6 of" in run("plan", "timm/test_vit")
    assert "6 of" in run("inflate", "timm/test_vit", "--weights", "none", "-o", str(file))
    assert load_inflated(file)(torch.rand(1, 3, 2, 160, 160)).shape == (1, 1000)


@pytest.mark.parametrize("preset", ["joint", "divided"])
def test_a_file_builds_it_again(tmp_path, preset):
    model3d = inflate(timm.create_model("test_vit", num_classes=5, img_size=48).eval(), preset)
    for parameter in (model3d.inserts or nn.Module()).parameters():
        parameter.data.normal_(std=0.1)
    file = tmp_path / "vit.safetensors"
    save_inflated(model3d, file, "timm/test_vit", options={"num_classes": 5, "img_size": 48})
    clip = torch.rand(1, 3, 4, 48, 48)
    assert torch.equal(load_inflated(file)(clip), model3d(clip))


@pytest.mark.parametrize("preset", ["joint", "divided"])
@pytest.mark.parametrize("name", ["vit", "swin"])
def test_checkpoints_of_activations_change_no_gradient(preset, name):
    model3d = inflate(MODELS[name](), preset)
    size = 48 if name == "vit" else 32
    clip = torch.randn(2, 3, 3, size, size).double()
    gradients = []
    for on in (False, True):
        model3d.net.set_grad_checkpointing(on)
        model3d.zero_grad()
        model3d(clip).square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in model3d.parameters()])
    for plain, anew in zip(*gradients, strict=True):
        torch.testing.assert_close(anew, plain)


@pytest.mark.parametrize("preset", ["joint", "divided"])
@pytest.mark.parametrize("name", MODELS)
def test_deflate_gives_the_2d_model_back(name, preset):
    model2d = MODELS[name]()
    back = deflate(inflate(model2d, preset))
    assert all(
        torch.equal(a, b) for a, b in zip(back.state_dict().values(), model2d.state_dict().values(), strict=True)
    )
    assert [type(a) for a in back.modules()] == [type(b) for b in model2d.modules()]
    picture = picture_for(model2d)
    assert torch.equal(back(picture), model2d(picture))


def test_a_2d_checkpoint_is_loaded():
    model3d = inflate(swin(), "joint")
    other = restless(swin(), seed=8)
    model3d.load_2d_state_dict(other.state_dict())
    picture = picture_for(other)
    torch.testing.assert_close(model3d(still(picture, 9)), other(picture))


def test_frozen_tables_stay_frozen():
    model2d = swin().requires_grad_(False)
    assert not any(parameter.requires_grad for parameter in inflate(model2d, "joint").net.parameters())


def test_training_drops_attention_as_2d_does():
    """With all attention dropped, only what is added to it is left: the bias of the projection."""
    model3d = inflate(vit(attn_drop_rate=0.999999), "joint").train()
    layer = model3d.net.blocks[0].attn
    model3d.fold.push(1, 3)
    answer = layer(torch.randn(3, 10, 24).double())
    model3d.fold.pop()
    torch.testing.assert_close(answer, layer.proj.bias.expand_as(answer))


# --- plans ------------------------------------------------------------------------------------------------------------


def test_other_presets_know_nothing_of_attention():
    plan = make_plan(vit(), "frames")
    assert [layer.path for layer in plan] == ["patch_embed.proj"]


def test_the_plan_says_what_sees_what():
    plan = make_plan(vit(reg_tokens=2), "joint", rules={"blocks.1.attn": Rule(time_kernel=4)})
    words = str(plan)
    assert "clip (tokens of all frames; 3 of them once)" in words
    assert "attend (tokens of 4 frames; 3 of them once)" in words
    assert "inserts.blocks.0.time_position" in words
    left = make_plan(vit(), "joint", rules={"blocks.1.attn": Rule(time_kernel=1)})
    assert [layer.action for layer in left if layer.kind == "attention"] == ["clip", "frame"]


def test_blocks_are_the_smallest_that_hold_attention_and_a_norm():
    picture = torch.randn(2, 3, 48, 48).double()
    assert blocks_of(vit(), picture) == ["blocks.0", "blocks.1"]
    assert blocks_of(torchvision_vit(), picture) == [
        "encoder.layers.encoder_layer_0", "encoder.layers.encoder_layer_1",
    ]  # fmt: skip
    assert blocks_of(swin(), torch.randn(2, 3, 32, 32).double()) == [
        f"layers.{stage}.blocks.{block}" for stage in range(2) for block in range(2)
    ]


@pytest.mark.parametrize(
    ("rule", "words"),
    [(Rule(time_stride=2), "time_stride"), (Rule(profile="center"), "profile"), (Rule(padding="causal"), "padding")],
)
def test_rules_that_attention_cannot_follow_are_refused(rule, words):
    with pytest.raises(InflateError, match="a rule asks for what attention cannot do") as caught:
        make_plan(vit(), "joint", rules={"blocks.0.attn": rule})
    assert words in caught.value.got


@pytest.mark.parametrize("preset", ["joint", "divided"])
def test_a_model_without_attention_is_refused(preset):
    with pytest.raises(InflateError, match="no attention that could look through time"):
        make_plan(torchvision.models.squeezenet1_1(), preset, example=torch.zeros(1, 3, 65, 67))


def test_too_many_tokens_are_refused(monkeypatch):
    monkeypatch.setattr(attention, "MAX_TOKENS", 40)
    monkeypatch.setattr(attention, "MAX_TOKENS_KEPT", 30)
    model3d = inflate(vit(), "joint", rules={"blocks.1.attn": Rule(time_kernel=2)})
    model3d(torch.randn(1, 3, 4, 48, 48).double())
    with pytest.raises(InflateError, match="too many tokens would see each other") as caught:
        model3d(torch.randn(1, 3, 5, 48, 48).double())
    assert caught.value.got == "50 tokens"
    model3d.net.blocks[0].attn.fused_attn = False
    with pytest.raises(InflateError, match="kept in memory"):
        model3d(torch.randn(1, 3, 4, 48, 48).double())


def test_masks_and_foreign_keys_are_refused():
    model3d = inflate(vit(), "joint")
    x = torch.randn(2, 10, 24).double()
    model3d.fold.push(1, 2)
    with pytest.raises(InflateError, match="a mask of its own"):
        model3d.net.blocks[0].attn(x, attn_mask=torch.zeros(10, 10).double())
    with pytest.raises(InflateError, match="a mask of its own"):
        model3d.net.blocks[0].attn(x, is_causal=True)
    rotary = inflate(MODELS["rotary"](), "joint")
    layer, rope = rotary.net.blocks[0].attn, torch.randn(2, 1, 9, 24).double()
    rotary.fold.push(1, 2)
    with pytest.raises(InflateError, match="a mask or positions of its own") as caught:
        layer(x, rope=rope)
    assert caught.value.got == "positions for each picture"
    with pytest.raises(InflateError, match="a mask or positions of its own"):
        layer(x, attn_mask=torch.zeros(10, 10).double())
    layer = inflate(torchvision_vit(), "joint").net.encoder.layers[0].self_attention
    with pytest.raises(InflateError, match="no plain self-attention"):
        layer(x, x.clone(), x)
    with pytest.raises(InflateError, match="no plain self-attention") as caught:
        layer(x, x, x, attn_mask=torch.zeros(10, 10))
    assert caught.value.got == "attn_mask"
    with pytest.raises(InflateError, match="no plain self-attention"):
        layer(x, x, x, torch.zeros(2, 10).bool())


class Encoder(nn.Module):
    """torch's encoder, which calls no layer of its own when nobody wants gradients."""

    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
        self.stem, self.encoder = nn.Conv2d(3, 8, 4, 4), nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x):
        return self.encoder(self.stem(x).flatten(2).transpose(1, 2)).mean(1)


def test_attention_in_torchs_encoder_sees_all_frames_without_gradients_too():
    model2d = restless(Encoder())
    model3d = inflate(model2d, "joint", example=torch.zeros(1, 3, 12, 16), time_pool="none")
    clip = torch.randn(2, 3, 4, 12, 16, generator=torch.Generator().manual_seed(2)).double()
    wanted = model3d(clip)
    for one in (model3d, copy.deepcopy(model3d), pickle.loads(pickle.dumps(model3d))):
        with torch.inference_mode():
            torch.testing.assert_close(one(clip), wanted.detach())
    assert prove(model2d, model3d, lengths=(3,)).holds
    flat = deflate(model3d)
    assert not any(module._forward_pre_hooks for module in flat.modules())
    torch.testing.assert_close(flat(clip[:, :, 0]), model2d(clip[:, :, 0]))


def test_the_proof_sees_attention_that_is_passed_by_without_gradients(monkeypatch):
    monkeypatch.setattr(attention.JointMultihead, "take_over", classmethod(JointAttention.take_over.__func__))
    model2d = restless(Encoder())
    proof = prove(model2d, inflate(model2d, "joint", example=torch.zeros(1, 3, 12, 16)), lengths=(3,))
    assert not proof.holds
    assert "without gradients it answers otherwise" in str(proof)


def test_attention_with_keys_beside_the_tokens_stays_per_frame():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 4, 4)
            self.plain, self.odd = (
                nn.MultiheadAttention(8, 2, batch_first=True, add_bias_kv=odd) for odd in (False, True)
            )

        def forward(self, x):
            x = self.stem(x).flatten(2).transpose(1, 2)
            x = x + self.plain(x, x, x)[0]
            return (x + self.odd(x, x, x)[0]).mean(1)

    model2d = Net().double().eval()
    plan = make_plan(model2d, "joint", example=torch.zeros(1, 3, 20, 28))
    odd = next(layer for layer in plan if layer.path == "odd")
    assert (odd.action, odd.reason) == ("frame", "its keys are others than its tokens")
    picture = torch.randn(2, 3, 20, 28).double()
    torch.testing.assert_close(build(plan, model2d)(still(picture, 3)), model2d(picture))
    with pytest.raises(InflateError, match="attention cannot do"):
        plan.with_rules({"odd": Rule(time_kernel=2)})


def test_the_window_of_an_inflated_swin_stays():
    layer = inflate(swin(), "joint").net.layers[0].blocks[0].attn
    layer.set_window_size((4, 4))
    with pytest.raises(InflateError, match="has the size that it was planned with"):
        layer.set_window_size((2, 2))


def test_an_insert_ahead_of_a_module_has_to_be_given_a_map():
    with pytest.raises(InflateError, match="cannot be inserted") as caught:
        make_plan(vit(), "frames", inserts=[Insert("head", "time_position", before=True)])
    assert "head: is given [3, 24] for three pictures" in caught.value.got
    with pytest.raises(InflateError, match="cannot be inserted"):
        Insert("blocks.0", "temporal_attention", time_kernel=3)
    with pytest.raises(InflateError, match="cannot be inserted"):
        Insert("blocks.0", "temporal_attention", before="yes")


def test_every_attention_of_the_engine_is_known_by_its_type():
    assert issubclass(attention.adapter_for(vit().blocks[0].attn), JointAttention)
