"""The network of a recipe: where it is cut and frozen, what batch norms become, and what is told about it."""

import copy

import pytest
import torch
from tiny import TinyNet, recipe, tiny_model
from torch import nn

from inflate3d import ClipSpec, InflateError, inflate
from inflate3d.models.inflated import inflated_classifier
from inflate3d.train.module import ClipTask, mix, parameter_groups, to_input
from inflate3d.train.network import (
    Head,
    SyncedNorms,
    build_for,
    describe,
    freeze,
    frozen_digest,
    head_of,
    keep_frozen_in_eval,
    prepare,
    split,
)

CLIP = (2, 3, 5, 32, 32)


pytestmark = pytest.mark.usefixtures("one_thread")


def lively(model):
    """Give batch norms something to do."""
    for norm in model.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            norm.running_mean.normal_(0, 0.3)
            norm.running_var.uniform_(0.5, 2)
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)
    return model


class Conv3dHead(nn.Module):
    """Answers at each place with a 1x1x1 convolution, as I3D does."""

    clip_spec = ClipSpec(25.0, 5, 3, 33, 32, (-1.0, 1.0))

    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv3d(3, 6, 3, stride=2), nn.BatchNorm3d(6), nn.ReLU())
        self.logits = nn.Conv3d(6, 4, 1)

    def forward(self, clip):
        return self.logits(self.trunk(clip)).mean((2, 3, 4))


class LastStep(nn.Module):
    """Answers at each frame, and the last one counts, as of an LSTM."""

    clip_spec = ClipSpec(25.0, 5, 1, 33, 32, (-1.0, 1.0))

    def __init__(self):
        super().__init__()
        self.lstm, self.classifier = nn.LSTM(3, 6, batch_first=True), nn.Linear(6, 4)

    def forward(self, clip):
        return self.classifier(self.lstm(clip.mean((3, 4)).transpose(1, 2))[0])[:, -1]


MODELS = {
    "a matrix on frames": (lambda: inflate(TinyNet(4), "video", example=torch.zeros(1, 3, 32, 32)), 4),
    "strides in time": (lambda: inflate(TinyNet(4), "i3d", example=torch.zeros(1, 3, 32, 32)), 4),
    "a convolution": (Conv3dHead, 4),
    "a classifier of timm's": (lambda: inflated_classifier("timm/test_resnet", 4), 4),
}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", MODELS)
def test_what_is_kept_and_the_head_are_the_network(name, precision):
    torch.manual_seed(0)
    make, count = MODELS[name]
    model = lively(make()).eval()
    clip = torch.rand(2, 3, 6, 40, 36) * 2 - 1
    with torch.no_grad():
        wanted = model(clip)
        chosen = recipe(freeze="head", cached_views=1, freeze_norm=True, precision=precision)
        front, tail = split(prepare(model, chosen, count), chosen, count)
        kept = front(clip)
        found = tail.eval()(kept)
    assert kept.ndim == 2 and len(kept) == 2
    tolerance = 1e-5 if precision == "fp32" else 3e-2
    assert (found - wanted).abs().max() <= tolerance * wanted.abs().max()
    assert all(part is not None for part in (head_of(model, count), tail.layer)) and isinstance(tail, Head)
    assert tail.layer is head_of(model, count)[1]  # what is trained is the network's own


def test_a_head_that_sees_steps_is_not_cut_off_in_full():
    torch.manual_seed(0)
    model = LastStep().eval()
    front, _ = split(model, recipe(freeze="head", cached_views=1, freeze_norm=True), 4)
    with pytest.raises(InflateError) as found, torch.no_grad():
        front(torch.zeros(CLIP))
    assert str(found.value) == (
        "cached_views of LastStep: what is frozen cannot be kept\n"
        "  expected: a last layer that is given one vector for each clip or frame\n"
        "  got:      classifier, which is given [2, 5, 6]\n"
        "  fix:      cached_views=0 runs the frozen part every time"
    )


@pytest.mark.parametrize("wide", [False, True])
def test_a_head_drops_in_training_alone(wide):
    torch.manual_seed(0)
    layer = nn.Conv3d(50, 3, 1) if wide else nn.Linear(50, 3)
    head, x = Head(layer, 0.5), torch.randn(4, 50)
    wanted = x @ layer.weight.flatten(1).T + layer.bias
    torch.testing.assert_close(head.eval()(x), wanted)
    assert not torch.allclose(head.train()(x), wanted)
    assert Head(layer, 0.0).train()(x).shape == (4, 3)


# -- batch norms ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d])
@pytest.mark.parametrize("trained", [False, True])
def test_a_batch_norm_with_frozen_statistics_is_itself(kind, trained):
    """In one pass where nothing of it is trained; with the gradients of torch's own, and under autocast in its type."""
    torch.manual_seed(0)
    rank = int(kind.__name__[-2])
    plain = lively(nn.Sequential(kind(5))).eval()
    plain[0].running_var[0] = 1e-3  # so small that epsilon counts
    ours = prepare(copy.deepcopy(plain), recipe(freeze_norm=not trained), 3 if trained else 0).eval()
    assert ours[0].weight.requires_grad == trained
    shape = (3, 5, *(7, 4, 6)[:rank]) if rank > 1 else (3, 5)
    for dtype in (torch.float32, torch.bfloat16):
        inputs = [torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype) for _ in range(2)]
        inputs = [one.requires_grad_() for one in inputs]
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            wanted, found = plain(inputs[0]), ours(inputs[1])
        assert found.dtype == wanted.dtype
        tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 3e-2, "atol": 3e-2}
        torch.testing.assert_close(found, wanted, **tolerance)
        wanted.float().square().sum().backward()
        found.float().square().sum().backward()
        difference = (inputs[1].grad - inputs[0].grad).abs().max() / inputs[0].grad.abs().max()
        assert difference <= (1e-5 if dtype == torch.float32 else 3e-2)
    if trained:
        torch.testing.assert_close(ours[0].weight.grad, plain[0].weight.grad, rtol=3e-2, atol=1e-2)


@pytest.fixture
def activated():
    """A network of timm, whose batch norms hold their activations, inflated."""
    torch.manual_seed(0)
    return lively(inflated_classifier("timm/test_efficientnet", preset="video", num_classes=3)).eval()


@pytest.mark.parametrize("change", [{"freeze_norm": True}, {"freeze": "head", "freeze_norm": False}])
def test_batch_norms_keep_their_activations_when_they_are_frozen(activated, change):
    clip = torch.rand(2, 3, 4, 64, 64) * 2 - 1
    wanted = activated(clip)
    found = prepare(activated, recipe(**change), 3).eval()(clip)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4 * float(wanted.detach().abs().max()))


def test_batch_norms_keep_their_activations_when_they_count_all_devices(activated):
    """They answer as before; what they learn meanwhile is theirs afterwards, and they are the same layers."""
    clip, names = torch.rand(2, 3, 4, 64, 64) * 2 - 1, list(activated.state_dict())
    kinds, wanted, sync = [type(part) for part in activated.modules()], activated(clip), SyncedNorms()
    synced = sync.apply(activated)
    norms = [part for part in synced.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    assert norms and all(isinstance(norm, nn.SyncBatchNorm) for norm in norms)
    torch.testing.assert_close(synced(clip), wanted)
    before = copy.deepcopy(synced.state_dict())
    torch.optim.SGD(synced.train().parameters(), 0.01).step(lambda: synced(clip).square().mean().backward())
    with torch.no_grad():
        learned = synced.eval()(clip)
    assert not torch.allclose(learned, wanted)
    own = sync.revert(synced)
    torch.testing.assert_close(own(clip), learned, rtol=1e-4, atol=1e-4 * float(learned.abs().max()))
    assert [type(part) for part in own.modules()] == kinds and list(own.state_dict()) == names
    moved = [name for name in names if "running_mean" in name and not torch.equal(own.state_dict()[name], before[name])]
    assert len(moved) == len(norms) and not any(part.training for part in own.modules())


def test_a_batch_norm_that_learns_still_moves_its_statistics():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.BatchNorm3d(5))
    ours = prepare(copy.deepcopy(plain), recipe(freeze_norm=False), 0)
    x = torch.randn(CLIP[0], 5, 3, 4, 6) * 3 + 1
    torch.testing.assert_close(ours.train()(x), plain.train()(x))
    torch.testing.assert_close(ours[0].running_mean, plain[0].running_mean)
    assert ours[0].running_mean.abs().min() > 0


@pytest.mark.parametrize(
    ("changes", "moving"),
    [
        ({"freeze_norm": True}, []),
        ({"freeze_norm": False}, ["net.norm1", "net.norm2"]),
        ({"freeze_norm": False, "freeze": "norm1"}, ["net.norm2"]),
        ({"freeze_norm": False, "freeze": "head"}, []),
    ],
)
def test_statistics_of_what_is_frozen_do_not_move(changes, moving):
    model, chosen = tiny_model(), recipe(**changes)
    task = ClipTask(prepare(model, chosen, 3), chosen, 3)
    task.train()
    norms = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.BatchNorm2d)}
    before = {name: layer.running_mean.clone() for name, layer in norms.items()}
    task(torch.rand(CLIP) * 2 - 1)
    assert [name for name, layer in norms.items() if not torch.equal(layer.running_mean, before[name])] == moving
    assert not any(layer.training for layer in task.eval().modules())


# -- freezing ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "trained"),
    [
        ("conv1", ["norm1", "conv2", "norm2", "fc"]),
        ("net.conv1", ["norm1", "conv2", "norm2", "fc"]),  # its whole name
        ("norm2", ["fc"]),
        ("dropout", ["fc"]),  # without weights of its own
        ("fc", []),
        ("", ["conv1", "norm1", "conv2", "norm2", "fc"]),
    ],
)
def test_a_layer_and_what_stands_before_it_are_frozen(layer, trained):
    model = tiny_model()
    freeze(model, recipe(freeze=layer, freeze_norm=False), 3)
    found = {name.split(".")[1] for name, value in model.named_parameters() if value.requires_grad}
    assert found == set(trained)


def test_a_block_is_frozen_with_all_its_layers():
    model = nn.Sequential()
    model.stem = nn.Conv3d(3, 4, 1)
    model.block = nn.Sequential(nn.Conv3d(4, 4, 1), nn.Sequential(nn.Conv3d(4, 4, 1)))
    model.block_after = nn.Conv3d(4, 4, 1)  # whose name begins alike
    freeze(model, recipe(freeze="block"), 4)
    trained = {name.rpartition(".")[0] for name, value in model.named_parameters() if value.requires_grad}
    assert trained == {"block_after"}


def test_no_such_layer_in_full():
    with pytest.raises(InflateError) as found:
        freeze(tiny_model(), recipe(freeze="norm3"), 3)
    assert found.value.expected == "head, or a layer of Inflated"
    assert (found.value.got, found.value.where) == ("norm3", "recipe plain, freeze")
    assert found.value.fix.startswith("did you mean net.norm")


@pytest.mark.parametrize(
    ("layers", "name"),
    [
        ([nn.Linear(4, 3), nn.Linear(3, 3)], "1"),  # the last one that fits
        ([nn.Conv3d(4, 3, 1), nn.Linear(3, 9)], "0"),
        ([nn.Linear(4, 3), nn.Conv3d(4, 3, (1, 3, 1))], "0"),  # looks at neighbours
    ],
)
def test_the_last_layer_has_an_output_for_each_class(layers, name):
    assert head_of(nn.Sequential(*layers), 3)[0] == name


def test_parameters_are_parted_without_rest_and_repetition():
    model = tiny_model()
    chosen = recipe(freeze="conv1", freeze_norm=False, head_lr=1.0, weight_decay=0.1)
    prepare(model, chosen, 3)
    for last in (head_of(model, 3)[1], None):
        groups = parameter_groups(model, chosen, last)
        given = [id(value) for group in groups for value in group["params"]]
        assert sorted(given) == sorted(id(value) for value in model.parameters() if value.requires_grad)
        for group in groups:
            assert {value.ndim > 1 for value in group["params"]} == {group["weight_decay"] == 0.1}


@pytest.mark.parametrize("dropout", [None, 0.0, 0.7])
def test_dropout_is_that_of_the_recipe_or_the_networks_own(dropout):
    model = prepare(tiny_model(dropout=0.3), recipe(dropout=dropout), 3)
    (found,) = (layer.p for layer in model.modules() if isinstance(layer, nn.Dropout))
    assert found == (0.3 if dropout is None else dropout)


def test_statistics_count_for_the_digest_of_what_is_frozen():
    """They change what the frozen part gives as much as its weights do."""
    model = tiny_model()
    freeze(model, recipe(freeze="norm1", freeze_norm=True), 3)
    digests = {frozen_digest(model)}
    for change in (
        lambda: model.net.norm1.running_mean.add_(1),
        lambda: model.net.norm2.weight.data.add_(1),
        lambda: model.net.conv1.weight.data.mul_(2),
    ):
        change()
        digests.add(frozen_digest(model))
    assert len(digests) == 4
    model.net.conv2.weight.data.mul_(2)  # which is trained
    assert frozen_digest(model) in digests


# -- what is told and fed ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "changes", "frames", "least", "fps"),
    [
        (None, {"num_frames": 5, "fps": 10.0}, 5, 1, 10.0),
        (None, {"num_frames": 5, "fps": 10.0, "frame_step": 4}, 5, 1, 2.5),
        (9, {"num_frames": 5, "fps": 25.0}, 9, 9, 25.0),
        (9, {"num_frames": 16, "fps": "native"}, 16, 9, 25.0),
    ],
)
def test_predict_is_told_what_training_showed(spec, changes, frames, least, fps):
    model = nn.Linear(2, 3)
    if spec:
        model.clip_spec = ClipSpec(30.0, 64, spec, 99, 99, (0.0, 1.0))
    found = describe(model, recipe(short_side=40, crop=36, **changes)).clip_spec
    assert found == ClipSpec(fps, frames, least, 40, 36, (-1.0, 1.0))


@pytest.mark.parametrize(("stream", "channels"), [("rgb", 3), ("flow", 2)])
def test_a_network_is_built_for_its_stream_the_same_each_time(stream, channels):
    chosen = recipe(network="inflated/timm/test_resnet", stream=stream, num_frames=4)
    torch.manual_seed(99)
    models = [build_for(chosen, ("a", "b")).eval() for _ in range(2)]
    clip = torch.rand(1, channels, 4, 33, 33) * 2 - 1
    with torch.no_grad():
        one, other = (model(clip) for model in models)
    assert one.shape == (1, 2) and torch.equal(one, other)
    assert models[0].class_names == ("a", "b") and models[0].clip_spec.crop == 32


def test_bytes_become_input_and_features_stay():
    clip = torch.arange(256, dtype=torch.uint8).view(1, 1, 4, 8, 8)
    found = to_input(clip)
    assert found.dtype == torch.float32 and found.is_contiguous(memory_format=torch.channels_last_3d)
    torch.testing.assert_close(found.flatten(), torch.arange(256) / 127.5 - 1)
    assert torch.equal(to_input(torch.tensor([0.5, 7.0]).half()), torch.tensor([0.5, 7.0]))
    assert clip.flatten()[3] == 3  # the clip itself is left alone


@pytest.mark.parametrize("alpha", [0.1, 1.0, 8.0])
def test_mixed_targets_of_several_labels_stay_shares(alpha):
    torch.manual_seed(2)
    target = torch.tensor([[1, 0, 1], [0, 0, 1], [1, 1, 1]])
    clip = target.float().view(3, 3, 1, 1, 1)
    mixed, soft = mix(clip, target, alpha=alpha, num_classes=3)
    torch.testing.assert_close(mixed.flatten(1), soft)
    assert soft[:, 2].tolist() == pytest.approx([1.0] * 3) and 0 <= float(soft.min()) <= float(soft.max()) <= 1


@pytest.mark.parametrize("norm_frozen", [True, False])
def test_only_norms_of_frozen_layers_go_into_eval_mode(norm_frozen):
    model = nn.Sequential(nn.BatchNorm3d(2), nn.Dropout(0.5), nn.BatchNorm3d(2, affine=False)).train()
    keep_frozen_in_eval(model, recipe(freeze_norm=norm_frozen))
    assert [layer.training for layer in model] == [not norm_frozen, True, not norm_frozen]
