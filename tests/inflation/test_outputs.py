"""Whatever a 2D model returns comes back with clips and times: logits, tokens, maps, and any nest of them."""

from collections import OrderedDict
from typing import NamedTuple

import pytest
import timm
import torch
from small_models import ManyOutputs, Residual, randomize
from torch import nn
from torchvision.models import segmentation, squeezenet1_1
from torchvision.models.feature_extraction import create_feature_extractor

from inflate3d import InflateError, inflate, prove

PICTURE = torch.zeros(1, 3, 13, 17)
CLIPS, FRAMES = 2, 5


def moving(height=13, width=17):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(CLIPS, 3, FRAMES, height, width, generator=generator)


def frame_by_frame(model2d, clip, time_axis):
    """What the 2D model says to each frame, one after the other."""
    with torch.no_grad():
        return torch.stack([model2d(frame) for frame in clip.unbind(2)], dim=time_axis)


class Gives(nn.Module):
    """A convolution, and of its output whatever `make` makes."""

    def __init__(self, make, channels=12, size=None):
        super().__init__()
        self.conv, self.make, self.size = nn.Conv2d(3, channels, 3, padding=1), make, size

    def forward(self, x, **kwargs):
        assert self.size is None or x.shape[2:] == self.size, "a model for pictures of one size"
        return self.make(self.conv(x), **kwargs)


# --- logits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("time_pool", "pool"),
    [("mean", lambda steps: steps.mean(1)), ("max", lambda steps: steps.amax(1)), ("none", lambda steps: steps)],
)
def test_logits_of_the_frames_are_pooled_or_kept(time_pool, pool):
    model2d, clip = randomize(Residual()), moving()
    model3d = inflate(model2d, "frames", example=PICTURE, time_pool=time_pool)
    expected = pool(frame_by_frame(model2d, clip, 1))
    assert expected.shape == ((CLIPS, FRAMES, 5) if time_pool == "none" else (CLIPS, 5))
    with torch.no_grad():
        torch.testing.assert_close(model3d(clip), expected, rtol=1e-5, atol=1e-6)


def test_with_strides_in_time_every_output_has_the_time_of_its_level():
    model3d = inflate(randomize(Residual()), "i3d", example=PICTURE, time_pool="none")
    with torch.no_grad():
        assert model3d(moving()).shape == (CLIPS, 2, 5)  # 5 frames, halved twice
        assert model3d.call("forward_features", moving()).shape == (CLIPS, 24, 2, 2, 3)
        assert model3d(moving()[:, :, :1]).shape == (CLIPS, 1, 5)


# --- maps, tokens and their nests ------------------------------------------------------------------------------------


def test_every_leaf_of_a_nest_is_unfolded_by_its_own_axes():
    model2d, clip = ManyOutputs(), moving()
    answer = inflate(model2d, "frames", example=PICTURE)(clip)
    assert list(answer) == ["logits", "maps", "tokens", "scale", "name"]
    maps = frame_by_frame(model2d.conv, clip, 2)
    assert maps.shape == (CLIPS, 10, FRAMES, 13, 17)
    for found, expected in (
        (answer["logits"], maps.mean((2, 3, 4))),
        (answer["maps"][0], maps),
        (answer["maps"][1], maps.permute(0, 2, 3, 4, 1)),
        (answer["tokens"], maps.permute(0, 2, 3, 4, 1).flatten(2, 3)),
    ):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert isinstance(answer["maps"], tuple)
    assert answer["scale"].shape == (10,)
    assert answer["name"] == "ten"


class Pair(NamedTuple):
    map: torch.Tensor
    nothing: None


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda y: Pair(y, None), Pair),
        (lambda y: OrderedDict(a=y, b=3, c=True), OrderedDict),
        (lambda y: [y, [y.mean((2, 3)), "text"]], list),
    ],
)
def test_classes_of_nests_are_kept_and_what_is_no_tensor_passes(make, kind):
    answer = inflate(Gives(make), example=PICTURE)(moving())
    assert type(answer) is kind
    first = next(iter(answer.values())) if kind is OrderedDict else answer[0]
    assert first.shape == (CLIPS, 12, FRAMES, 13, 17)
    assert kind is not OrderedDict or (answer["b"], answer["c"]) == (3, True)
    assert kind is not Pair or answer.nothing is None
    assert kind is not list or (answer[1][0].shape, answer[1][1]) == ((CLIPS, 12), "text")


def test_answers_with_one_number_and_with_five_axes():
    model3d = inflate(Gives(lambda y: (y.mean((1, 2, 3)), y.unflatten(1, (3, 4)))), example=PICTURE)
    score, grouped = model3d(moving())
    assert (score.shape, grouped.shape) == ((CLIPS,), (CLIPS, FRAMES, 3, 4, 13, 17))


def test_timm_feature_lists():
    model2d = timm.create_model("test_resnet", features_only=True).eval()
    picture = torch.zeros(1, 3, 64, 96)
    model3d, clip = inflate(model2d, "frames", example=picture), moving(64, 96)
    with torch.no_grad():
        found = model3d(clip)
        expected = [torch.stack(level, dim=2) for level in zip(*map(model2d, clip.unbind(2)), strict=True)]
    assert isinstance(found, list)
    assert [tuple(level.shape[2:]) for level in found] == [(5, 32, 48), (5, 16, 24), (5, 8, 12), (5, 4, 6), (5, 2, 3)]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    proof = prove(model2d, inflate(model2d, example=picture))
    assert proof.holds, str(proof)


def test_timm_tokens():
    model2d = timm.create_model("test_vit", img_size=(48, 64)).eval()
    model3d, clip = inflate(model2d, "frames", example=torch.zeros(1, 3, 48, 64)), moving(48, 64)
    with torch.no_grad():
        tokens = model3d.call("forward_features", clip)
        expected = torch.stack([model2d.forward_features(frame) for frame in clip.unbind(2)], 1)
    assert tokens.shape == (CLIPS, FRAMES, 13, 64)  # 3 x 4 patches and a class token
    torch.testing.assert_close(tokens, expected, rtol=1e-4, atol=1e-5)


def test_torchvision_feature_dicts():
    model2d = create_feature_extractor(squeezenet1_1().eval(), {"features.2": "low", "features.12.cat": "high"})
    answer = inflate(model2d, example=torch.zeros(1, 3, 65, 97))(moving(65, 97))
    assert {name: tuple(value.shape) for name, value in answer.items()} == {
        "low": (CLIPS, 64, FRAMES, 16, 24),
        "high": (CLIPS, 512, FRAMES, 4, 6),
    }


def test_dense_answers_have_the_size_of_the_clip():
    model2d = randomize(segmentation.lraspp_mobilenet_v3_large(weights_backbone=None, num_classes=3))
    picture = torch.zeros(1, 3, 64, 96)
    model3d = inflate(model2d, example=picture)
    with torch.no_grad():
        still = moving(64, 96)[:, :, :1].expand(-1, -1, FRAMES, -1, -1)
        answer, expected = model3d(still)["out"], model2d(still[:, :, 0])["out"]
    assert answer.shape == (CLIPS, 3, FRAMES, 64, 96)
    torch.testing.assert_close(answer, expected.unsqueeze(2).expand_as(answer), rtol=1e-4, atol=1e-5)


# --- maps whose axes could be confused -------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [12, 13])
def test_square_maps_are_told_apart_by_a_taller_picture(channels):
    square, clip = torch.zeros(1, 3, 12, 12), moving(12, 12)
    first = inflate(Gives(lambda y: y, channels), example=square)
    last = inflate(Gives(lambda y: y.permute(0, 2, 3, 1), channels), example=square)
    last.load_state_dict(first.state_dict())
    assert last(clip).shape == (CLIPS, FRAMES, 12, 12, channels)
    torch.testing.assert_close(last(clip), first(clip).permute(0, 2, 3, 4, 1))


def test_models_for_one_size_show_their_maps_by_their_sides_alone():
    square, clip = torch.zeros(1, 3, 12, 12), moving(12, 12)
    for channels in (11, 13):  # within a pixel of the sides
        first = inflate(Gives(lambda y: y, channels, (12, 12)), example=square)
        last = inflate(Gives(lambda y: y.permute(0, 2, 3, 1), channels, (12, 12)), example=square)
        assert first(clip).shape == (CLIPS, channels, FRAMES, 12, 12)
        assert last(clip).shape == (CLIPS, FRAMES, 12, 12, channels)
    with pytest.raises(InflateError, match=r"where the channels of an output stand(.|\n)*map \[2, 12, 12, 12\]"):
        inflate(Gives(lambda y: y, 12, (12, 12)), example=square)


def test_a_map_of_one_number_is_a_map():
    model3d = inflate(Gives(lambda y: y.mean((1, 2, 3), keepdim=True), size=(13, 17)), example=PICTURE)
    assert model3d(moving()).shape == (CLIPS, 1, FRAMES, 1, 1)


# --- what cannot be unfolded -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda y: y.unfold(2, 4, 3).permute(0, 2, 1, 3, 4).flatten(0, 1),  # windows merged into the batch
        lambda y: y.flatten(2).permute(2, 0, 1),  # the batch is the second axis
        lambda y: y[:, :, : y.shape[0]],  # the batch shows in another axis as well
        lambda y: {1, 2},
    ],
)
def test_outputs_that_do_not_keep_the_batch_in_front_are_refused(make):
    with pytest.raises(InflateError, match=r"cannot be unfolded(.|\n)*first axis is the batch"):
        inflate(Gives(make), example=PICTURE)


def test_another_structure_than_on_single_pictures_is_noticed():
    model3d = inflate(Gives(lambda y: (y, y) if y.shape[0] > 3 else y), example=PICTURE)
    with pytest.raises(InflateError, match="another structure than in the run on single pictures"):
        model3d(moving())


def test_arguments_as_long_as_the_batch_are_refused():
    model3d = inflate(Gives(lambda y, labels=None: y if labels is None else y[:, 0] - labels), example=PICTURE)
    with pytest.raises(InflateError, match=r"with these arguments(.|\n)*for 3 pictures(.|\n)*such as labels="):
        model3d(moving(), labels=torch.zeros(2, 13, 17))


def test_weights_of_attention_over_time_are_refused():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.attention = nn.Conv2d(3, 8, 4, 4), nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x):
            x = self.stem(x).flatten(2).transpose(1, 2)
            answer, weights = self.attention(x, x, x)
            return answer.mean(1), weights

    model2d = Net().eval()
    model3d = inflate(model2d, "joint", example=PICTURE)
    for run in (lambda: model3d(moving()), lambda: prove(model2d, model3d)):
        with pytest.raises(InflateError, match=r"another structure(.|\n)*no tensor(.|\n)*attention over time"):
            run()
