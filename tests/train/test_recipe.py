"""Recipes: what may be typed, what the paper's say, what is drawn for a batch."""

import pytest
import torch
import torch.nn.functional as F
from tiny import recipe, tiny_model
from torch import nn

from inflate3d import InceptionI3d, InflateError
from inflate3d.clips.dataset import Sample
from inflate3d.clips.decoded import Decoding, View, Window, cut_view, random_view
from inflate3d.train.data import ClipDataset, TrainBatches
from inflate3d.train.module import ClipTask, frames_loss, lr_factor, mix, parameter_groups
from inflate3d.train.network import freeze, frozen_digest, head_of, prepare, split
from inflate3d.train.recipe import Recipe, with_settings
from inflate3d.train.recipes import RECIPES, find_recipe


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_have_the_name_they_are_found_by(name):
    assert find_recipe(name).name == name


def test_the_readmes_steps():
    """kinetics-i3d, README: 0.1 to 97k, 0.01 to 108k, 0.001 to 115k; flow rises again at 115k."""
    rgb, flow = find_recipe("paper-kinetics"), find_recipe("flow")
    steps = (0, 96_999, 97_000, 107_999, 108_000, 114_999)
    assert [round(0.1 * lr_factor(rgb, s, 115_000), 6) for s in steps] == [0.1, 0.1, 0.01, 0.01, 0.001, 0.001]
    steps = (104_500, 115_000, 139_999, 140_000, 154_999)
    assert [round(0.1 * lr_factor(flow, s, 155_000), 6) for s in steps] == [0.001, 0.1, 0.1, 0.01, 0.001]
    assert (rgb.momentum, rgb.weight_decay, rgb.dropout, rgb.num_frames, rgb.crop) == (0.9, 1e-7, 0.5, 64, 224)


def test_settings_are_read_by_their_kind():
    changed = with_settings(
        Recipe("mine", dropout=0.5), ["lr=1e-3", "flip=no", "epochs=7", "dropout=none", "fps=native", "freeze=head"]
    )
    assert (changed.lr, changed.flip, changed.epochs, changed.dropout) == (1e-3, False, 7, None)
    assert (changed.fps, changed.freeze) == ("native", "head")


def test_wrong_settings_are_told_together():
    with pytest.raises(InflateError, match="settings cannot be understood") as told:
        with_settings(Recipe("mine"), ["epohcs=3", "lr=fast", "flip=perhaps", "seed"])
    assert all(
        words in str(told.value) for words in ("epohcs", "lr=fast", "flip=perhaps", "'seed'", "did you mean epochs")
    )
    with pytest.raises(InflateError, match="a recipe does not work so: optimizer, lr, checkpointing"):
        Recipe("mine", optimizer="adam", lr=-1.0, checkpointing=True)  # type: ignore[arg-type]
    with pytest.raises(InflateError, match="there is no such recipe"):
        find_recipe("finetune")


def test_an_epoch_shows_each_clip_once_and_ends_with_a_whole_step():
    batches = TrainBatches(11, recipe(batch_size=2, accumulate=3))
    drawn = [index for batch in batches.batches(4) for index, _ in batch]
    assert len(batches) == 6 and len(drawn) == 12 and set(drawn) == set(range(11))
    assert batches.batches(4) == TrainBatches(11, recipe(batch_size=2, accumulate=3)).batches(4) != batches.batches(5)
    batches.begin(4, 2)
    assert list(batches) == list(batches) == batches.batches(4)[2:]


def test_two_devices_take_what_one_would_take():
    whole = TrainBatches(13, recipe(batch_size=6)).batches(2)
    parts = [TrainBatches(13, recipe(batch_size=3), rank=rank, world=2).batches(2) for rank in range(2)]
    assert [a + b for a, b in zip(*parts, strict=True)] == whole


def test_balance_draws_classes_alike():
    classes = [0] * 95 + [1] * 5
    drawn = [
        classes[index]
        for epoch in range(20)
        for batch in TrainBatches(100, recipe(batch_size=4), classes=classes).batches(epoch)
        for index, _ in batch
    ]
    assert 0.45 < sum(drawn) / len(drawn) < 0.55


def test_views_are_one_for_all_frames_and_loop():
    frames = torch.arange(7 * 11 * 13 * 3).remainder(251).to(torch.uint8).view(7, 11, 13, 3)
    view = View(5, 2, 3, 8, mirrored=True)
    found = cut_view(frames, Window(4, 2, 8), view)
    wanted = torch.stack([frames[t % 7, 2:10, 3:11].flip(1) for t in (5, 7, 9, 11)]).permute(3, 0, 1, 2)
    assert torch.equal(found, wanted)
    flow = cut_view(frames[..., :2], Window(4, 2, 8), view)
    assert torch.equal(flow[0], 255 - wanted[0]) and torch.equal(flow[1], wanted[1])
    assert cut_view(frames, Window(4, 2, 5), view).shape == (3, 4, 5, 5)


def test_drawn_views_reach_every_place():
    frames = torch.zeros(9, 12, 14, 3, dtype=torch.uint8)
    views = [
        random_view(frames, Window(4, 2, 10), generator=torch.Generator().manual_seed(seed), flip=True)
        for seed in range(400)
    ]
    assert {view.start for view in views} == {0, 1, 2}
    assert {view.top for view in views} == {0, 1, 2} and {view.left for view in views} == set(range(5))
    assert 0.4 < sum(view.mirrored for view in views) / 400 < 0.6
    assert {view.side for view in views} == {10}


def test_charades_loss_against_a_reading_of_it():
    steps = torch.randn(2, 3, 4, dtype=torch.float64)
    target = (torch.rand(2, 3, 12, dtype=torch.float64) > 0.5).double()
    position = (torch.arange(12, dtype=torch.float64) + 0.5) / 3 - 0.5
    low = position.floor().clamp(0, 3).long()
    high = (low + 1).clamp(max=3)
    part = (position - low).clamp(0, 1)
    frames = steps[:, :, low] * (1 - part) + steps[:, :, high] * part

    def binary(x, y):
        return -(y * x.sigmoid().log() + (1 - y) * (1 - x.sigmoid()).log()).mean()

    wanted = (binary(frames, target) + binary(frames.max(2).values, target.max(2).values)) / 2
    torch.testing.assert_close(frames_loss(steps, target.float()).double(), wanted, atol=1e-6, rtol=0)


def test_mixing_keeps_clip_and_target_together():
    clip = torch.arange(4.0).view(4, 1, 1, 1, 1)
    torch.manual_seed(5)
    mixed, soft = mix(clip, torch.arange(4), alpha=0.5, num_classes=4)
    torch.testing.assert_close(soft @ torch.arange(4.0), mixed.flatten())
    torch.testing.assert_close(soft.sum(1), torch.ones(4))


def test_freezing_up_to_a_layer():
    model = tiny_model()
    freeze(model, recipe(freeze="norm1", freeze_norm=True), 3)
    trained = {name for name, value in model.named_parameters() if value.requires_grad}
    assert trained == {"net.conv2.weight", "net.fc.weight", "net.fc.bias"}
    model = tiny_model()
    freeze(model, recipe(freeze="head", freeze_norm=False), 3)
    assert {name for name, value in model.named_parameters() if value.requires_grad} == {"net.fc.weight", "net.fc.bias"}
    with pytest.raises(InflateError, match="there is no layer of that name to freeze up to"):
        freeze(model, recipe(freeze="conv9"), 3)
    with pytest.raises(InflateError, match="the network has no last layer for these classes"):
        head_of(model, 4)


def test_groups_of_parameters():
    model = tiny_model()
    groups = parameter_groups(model, recipe(head_lr=10.0, lr=0.1, weight_decay=0.3), head_of(model, 3)[1])
    facts = sorted((group["lr"], group["weight_decay"], len(group["params"])) for group in groups)
    assert facts == [(0.1, 0.0, 5), (0.1, 0.3, 2), (1.0, 0.0, 1), (1.0, 0.3, 1)]


def test_the_frozen_part_and_the_rest_are_the_whole():
    torch.manual_seed(0)
    model = tiny_model().eval()
    chosen = recipe(freeze="head", cached_views=1, freeze_norm=True)
    clip = torch.rand(2, 3, 5, 32, 33) * 2 - 1
    with torch.no_grad():
        front, tail = split(prepare(model, chosen, 3), chosen, 3)
        torch.testing.assert_close(tail.eval()(front(clip)), model.eval()(clip), atol=1e-5, rtol=0)
    with pytest.raises(InflateError, match="what is frozen cannot be kept"):
        split(model, recipe(freeze="norm1", cached_views=1, freeze_norm=True), 3)


@pytest.mark.parametrize("layer", ["head", "MaxPool3d_5a_2x2"])
def test_i3d_is_cut_at_its_endpoints(layer):
    torch.manual_seed(0)
    model = InceptionI3d(5).eval()
    chosen = recipe(freeze=layer, cached_views=1, freeze_norm=True, dropout=0.0)
    clip = torch.rand(1, 3, 9, 193, 193) * 2 - 1
    with torch.no_grad():
        wanted = model(clip)
        front, tail = split(prepare(model, chosen, 5), chosen, 5)
        torch.testing.assert_close(tail.eval()(front(clip)), wanted, atol=1e-4, rtol=0)


def test_checkpointing_gives_the_same_gradients():
    clip, target = torch.rand(2, 3, 5, 32, 32), torch.tensor([0, 2])
    gradients = []
    for checkpointing in (False, True):
        model = nn.Sequential(
            nn.Sequential(nn.Conv3d(3, 5, 3), nn.Conv3d(5, 7, 3)), nn.AdaptiveAvgPool3d(1), nn.Flatten()
        )
        torch.manual_seed(1)
        model.append(nn.Linear(7, 3))
        for value in model.parameters():
            nn.init.normal_(value, std=0.1)
        prepare(model, recipe(checkpointing=checkpointing, freeze_norm=True), 3)
        F.cross_entropy(model(clip), target).backward()
        gradients.append([value.grad for value in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_the_digest_tells_frozen_weights_apart():
    model = tiny_model()
    freeze(model, recipe(freeze="head"), 3)
    before = frozen_digest(model)
    model.net.fc.weight.data.add_(1)
    assert frozen_digest(model) == before
    model.net.conv1.weight.data.add_(1)
    assert frozen_digest(model) != before


class Steps(nn.Module):
    """A network that answers at each step, as I3D and the LSTM do."""

    def __init__(self):
        super().__init__()
        self.classifier = nn.Linear(3, 4)

    def forward(self, clip):
        return self.endpoints(clip, "Logits_per_step")["Logits_per_step"].mean(2)

    def endpoints(self, clip, name):
        return {name: self.classifier(clip.mean((3, 4)).transpose(1, 2)).transpose(1, 2)}


def test_the_loss_of_each_task():
    torch.manual_seed(0)
    model, clip = Steps(), torch.rand(2, 3, 5, 7, 7)
    steps = model.endpoints(clip, "Logits_per_step")["Logits_per_step"]

    def loss(target, **changes):
        return ClipTask(model, recipe(**changes), 4).loss(clip, target)

    several = torch.tensor([[1, 0, 1, 0], [0, 0, 0, 1]])
    wanted = F.binary_cross_entropy_with_logits(steps.mean(2), several.float())
    torch.testing.assert_close(loss(several, task="labels"), wanted)
    over_time = torch.rand(2, 4, 10).round()
    torch.testing.assert_close(loss(over_time, task="frames", fps=25.0), frames_loss(steps, over_time))
    one = torch.tensor([3, 1])
    wanted = -steps.log_softmax(1)[torch.arange(2), one].mean()
    torch.testing.assert_close(loss(one, every_step=True), wanted)
    torch.testing.assert_close(loss(F.one_hot(one, 4).float(), every_step=True), wanted)
    smooth = F.cross_entropy(steps.mean(2), one, label_smoothing=0.2)
    torch.testing.assert_close(loss(one, label_smoothing=0.2), smooth)


def test_labels_over_time_are_those_of_the_frames_that_are_shown():
    sample = Sample("a.mp4", (2, 0), spans=((0.5, 1.5), (0.0, 0.7)))
    chosen = recipe(task="frames", fps=10.0, num_frames=4, frame_step=3)
    data = ClipDataset([sample], chosen, Decoding(), num_classes=3, train=True)
    found = data.target(sample, start=4)  # 0.4, 0.7, 1.0 and 1.3 seconds
    assert found.tolist() == [[1, 1, 0, 0], [0, 0, 0, 0], [0, 1, 1, 1]]
    several = ClipDataset([sample], recipe(task="labels"), Decoding(), num_classes=3, train=True)
    assert several.target(sample, 0).tolist() == [1, 0, 1]
