"""Vision models of Hugging Face's transformers: inflated as they are, exact, and their API goes on working."""

import copy
import functools
import pickle

import pytest
import torch
import transformers
from small_models import randomize
from torch import nn
from torch.utils.checkpoint import checkpoint

from inflate3d import InflateError, deflate, inflate, make_plan, prove, with_input_channels
from inflate3d.models.sources import example_shape, find_2d_model

STAGES = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}
HEADS = {**STAGES, "num_attention_heads": [1, 2, 4, 4]}
TOKENS = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
WINDOWS = {"image_size": 32, "patch_size": 2, "embed_dim": 8, "depths": [1, 2], "num_heads": [2, 2], "window_size": 4}
TWO_STAGES = {"hidden_sizes": [8, 12], "depths": [1, 1], "num_stages": 2}

# Small configs, and the picture where any will do
CONVOLUTIONAL = {
    "resnet": ({"embedding_size": 8, "hidden_sizes": [8, 12], "depths": [1, 2], "layer_type": "basic"}, (33, 47)),
    "convnext": (TWO_STAGES, (32, 40)),
    "convnextv2": (TWO_STAGES, (32, 40)),
    "efficientnet": ({"width_coefficient": 0.25, "depth_coefficient": 0.3, "hidden_dim": 320}, (32, 48)),
    "regnet": ({"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "groups_width": 4}, (33, 47)),
    "mobilenet_v1": ({"depth_multiplier": 0.25}, (33, 47)),
    "mobilenet_v2": ({"depth_multiplier": 0.25}, (33, 47)),
    "mobilevit": (
        {"image_size": 32, "hidden_sizes": [8, 12, 16], "neck_hidden_sizes": [4, 4, 8, 8, 12, 12, 16],
         "num_attention_heads": 2, "output_stride": 16},
        None,
    ),
    "pvt_v2": ({"image_size": 64, **HEADS}, None),
    "segformer": ({**HEADS, "decoder_hidden_size": 16}, (64, 96)),
    "bit": ({"embedding_size": 8, "hidden_sizes": [16, 32], "depths": [1, 1], "num_groups": 2}, (33, 47)),
    "focalnet": ({"image_size": 32, "embed_dim": 8, "depths": [1, 1], "focal_levels": [2, 2], "focal_windows": [3, 3]},
                 None),
    "levit": ({"image_size": 64, "hidden_sizes": [8, 16, 24], "num_attention_heads": [1, 2, 2], "depths": [1, 1, 1],
               "key_dim": [4, 4, 4]}, None),
    "poolformer": (STAGES, (64, 96)),
    "cvt": ({"embed_dim": [8, 16, 24], "num_heads": [1, 2, 2], "depth": [1, 2, 3]}, (32, 48)),
    "swiftformer": ({"image_size": 64, "depths": [1, 1, 1, 1], "embed_dims": [8, 12, 16, 24]}, None),
    "hiera": ({"image_size": [64, 64], "embed_dim": 8, "num_heads": [1, 1, 2, 2], "depths": [1, 1, 1, 1]}, None),
}  # fmt: skip
# Patches and 1x1 convolutions alone
PATCHES = {
    "vit": {"image_size": 32, "patch_size": 8, **TOKENS},
    "deit": {"image_size": 32, "patch_size": 8, **TOKENS},
    "dinov2": {"image_size": 28, "patch_size": 14, **TOKENS},
    "swin": WINDOWS,
    "swinv2": WINDOWS,
    "pvt": {"image_size": 64, **HEADS},
}


pytestmark = pytest.mark.usefixtures("one_thread")


def build_2d(kind, **more):
    """A small model, no parameter of which is a constant, and a picture of its size."""
    options, sides = CONVOLUTIONAL[kind] if kind in CONVOLUTIONAL else (PATCHES[kind], None)
    torch.manual_seed(0)
    model2d = randomize(find_2d_model(f"hf/{kind}", **options, **more))
    with torch.no_grad():
        for parameter in model2d.parameters():
            if parameter.numel() > 1 and parameter.min() == parameter.max():
                parameter.add_(torch.randn_like(parameter) * 0.1)
    channels, *own = example_shape(model2d)
    return model2d, torch.zeros(1, channels, *(sides or own))


def moving(picture, frames=5, clips=2):
    return torch.randn(
        clips, *picture.shape[1:2], frames, *picture.shape[2:], generator=torch.Generator().manual_seed(1)
    )


# --- exact, family by family -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CONVOLUTIONAL)
def test_families_with_convolutions_are_inflated_whole_and_exact(kind):
    model2d, picture = build_2d(kind)
    plan = make_plan(model2d, example=picture)
    overlapping = {
        path: min(max(layer.kernel_size), 7)
        for path, layer in model2d.named_modules()
        if isinstance(layer, nn.Conv2d)
        and any(k > s for k, s in zip(layer.kernel_size, layer.stride, strict=True))
        and max(layer.kernel_size) > 1
    }
    inflated = {layer.path: layer.time_kernel for layer in plan if layer.action == "inflate"}
    assert overlapping and inflated == overlapping
    assert not [layer for layer in plan if layer.reason and layer.kernel]
    proof = prove(model2d, inflate(model2d, plan))  # T = 1, 5, 8; batch 2
    assert proof.holds, str(proof)


@pytest.mark.parametrize("kind", PATCHES)
def test_families_of_patches_are_refused_or_run_frame_by_frame(kind):
    model2d, picture = build_2d(kind)
    with pytest.raises(InflateError, match=r"nothing in the model would look through time(.|\n)*preset \"frames\""):
        inflate(model2d, example=picture)
    proof = prove(model2d, inflate(model2d, "frames", example=picture))
    assert proof.holds, str(proof)
    assert proof.layers_through_time == 0


def test_models_that_take_no_pictures_are_refused():
    model2d = find_2d_model("hf/imagegpt", n_embd=8, n_layer=1, n_head=2)
    with pytest.raises(InflateError, match="the 2D model cannot be run on a picture"):
        make_plan(model2d)


# --- their own way of calling ----------------------------------------------------------------------------------------


def test_the_clip_may_come_as_pixel_values():
    model2d, picture = build_2d("resnet")
    model3d, clip = inflate(model2d, example=picture), moving(picture)
    logits = model3d(clip).logits
    assert torch.equal(model3d(pixel_values=clip).logits, logits)
    assert torch.equal(model3d.call("forward", pixel_values=clip).logits, logits)
    torch.testing.assert_close(model3d(pixel_values=clip[:, :, 0]).logits, model2d(clip[:, :, 0]).logits)


@pytest.mark.parametrize("arguments", [{}, {"pixel_value": torch.zeros(1, 3, 5, 33, 47)}, {"pixel_values": None}])
def test_a_clip_that_is_missing_is_asked_for_by_its_name(arguments):
    model2d, picture = build_2d("resnet")
    with pytest.raises(
        InflateError, match=r"no clip was given(.|\n)*as pixel_values=(.|\n)*model3d\(pixel_values=clip"
    ):
        inflate(model2d, example=picture)(**arguments)


def test_outputs_keep_their_classes_and_hidden_states_get_time():
    model2d, picture = build_2d("resnet")
    model3d, clip = inflate(model2d, "frames", example=picture), moving(picture)
    with torch.no_grad():
        answer = model3d(pixel_values=clip, output_hidden_states=True)
        frames = [model2d(frame, output_hidden_states=True) for frame in clip.unbind(2)]
        as_tuple = model3d(clip, return_dict=False)
    assert type(answer) is type(frames[0])
    assert [tuple(state.shape) for state in answer.hidden_states] == [
        (2, 8, 5, 9, 12), (2, 8, 5, 9, 12), (2, 12, 5, 5, 6)
    ]  # fmt: skip
    torch.testing.assert_close(answer.logits, torch.stack([frame.logits for frame in frames], 1).mean(1))
    for level, state in enumerate(answer.hidden_states):
        torch.testing.assert_close(state, torch.stack([frame.hidden_states[level] for frame in frames], 2))
    assert isinstance(as_tuple, tuple)
    assert torch.equal(as_tuple[0], answer.logits)


def test_tokens_and_the_maps_made_of_them():
    model2d, picture = build_2d("swin")
    answer = inflate(model2d, "frames", example=picture)(moving(picture), output_hidden_states=True)
    assert [tuple(state.shape) for state in answer.hidden_states] == [(2, 5, 256, 8), (2, 5, 64, 16), (2, 5, 64, 16)]
    assert [tuple(state.shape) for state in answer.reshaped_hidden_states] == [
        (2, 8, 5, 16, 16), (2, 16, 5, 8, 8), (2, 16, 5, 8, 8)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("config", "kind", "sides", "shapes"),
    [
        (
            transformers.SegformerConfig(**HEADS, decoder_hidden_size=16, num_labels=3),
            transformers.SegformerForSemanticSegmentation,
            (64, 96),
            {"logits": (2, 3, 5, 16, 24)},
        ),
        (
            transformers.ConvNextConfig(**TWO_STAGES, out_features=["stage1", "stage2"]),
            transformers.ConvNextBackbone,
            (32, 40),
            {"feature_maps": [(2, 8, 5, 8, 10), (2, 12, 5, 4, 5)]},
        ),
        (
            transformers.FocalNetConfig(**CONVOLUTIONAL["focalnet"][0]),
            transformers.FocalNetModel,
            (32, 48),
            {"last_hidden_state": (2, 5, 24, 16), "pooler_output": (2, 16)},
        ),
        (
            transformers.CLIPVisionConfig(image_size=32, patch_size=8, **TOKENS),
            transformers.CLIPVisionModel,
            (32, 32),
            {"last_hidden_state": (2, 5, 17, 16), "pooler_output": (2, 16)},
        ),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_other_heads_and_backbones(config, kind, sides, shapes):
    torch.manual_seed(0)
    model2d, picture = kind(config).eval(), torch.zeros(1, 3, *sides)
    plan = make_plan(model2d, example=picture)
    model3d = inflate(model2d, plan if plan.looks_through_time else make_plan(model2d, "frames", example=picture))
    answer = model3d(pixel_values=moving(picture))
    for name, shape in shapes.items():
        found = getattr(answer, name)
        assert (tuple(found.shape) if torch.is_tensor(found) else [tuple(one.shape) for one in found]) == shape
    proof = prove(model2d, model3d, lengths=(1, 5))
    assert proof.holds, str(proof)


def test_other_arguments_are_handed_on():
    model2d, picture = build_2d("vit")
    model3d, larger = inflate(model2d, "frames", example=picture), torch.randn(2, 3, 5, 40, 56)
    with torch.no_grad():
        found = model3d(pixel_values=larger, interpolate_pos_encoding=True).logits
        steps = [model2d(frame, interpolate_pos_encoding=True).logits for frame in larger.unbind(2)]
    torch.testing.assert_close(found, torch.stack(steps, 1).mean(1), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["resnet", "vit"])
def test_grey_pictures_are_answered_as_in_three_channels(kind):
    model2d, picture = build_2d(kind)
    grey = with_input_channels(model2d, 1, example=picture)
    assert example_shape(grey)[0] == 1
    one = moving(picture)[:, :1, 0]
    torch.testing.assert_close(grey(one).logits, model2d(one.expand(-1, 3, -1, -1)).logits, rtol=1e-4, atol=1e-5)
    assert model2d.config.num_channels == 3


def test_labels_go_to_a_loss_behind_the_model():
    model2d, picture = build_2d("resnet")
    model3d = inflate(model2d, example=picture)
    with pytest.raises(InflateError, match="leave out what is as long as the batch, such as labels="):
        model3d(pixel_values=moving(picture), labels=torch.tensor([0, 1]))


# --- layers that transformers defines for itself ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["convnext", "focalnet", "cvt"])
def test_stochastic_depth_drops_whole_clips(kind):
    rate = [0.0, 0.2, 0.5] if kind == "cvt" else 0.5
    model2d, picture = build_2d(kind, drop_path_rate=rate)
    model3d = inflate(model2d, example=picture, time_pool="none")
    for module in model3d.modules():
        if type(module).__name__.endswith("DropPath"):
            module.train()
    torch.manual_seed(3)
    with torch.no_grad():
        still = moving(picture, frames=1, clips=1).expand(8, -1, 6, -1, -1)
        logits = model3d(still).logits
    assert logits.shape == (8, 6, 2)
    torch.testing.assert_close(logits, logits[:, :1].expand_as(logits))
    assert logits[:, 0, 0].max() - logits[:, 0, 0].min() > 1e-3 * logits.abs().max()


def still_and_by_hand(model2d, picture, path, by_hand):
    """Run an inflated model on a moving clip and compare one of its layers with a formula for clips."""
    model3d, clip = inflate(model2d.double(), example=picture.double()), moving(picture).double()
    assert next(layer for layer in model3d.plan if layer.path == path).action == "clip"
    seen = {}
    layer = model3d.net.get_submodule(path)
    layer.register_forward_hook(lambda module, args, output: seen.update(x=args[0], y=output))
    with torch.no_grad():
        model3d(clip)
        x, y = (seen[name].unflatten(0, (2, 5)) for name in "xy")  # [b, t, ...]
        torch.testing.assert_close(y, by_hand(layer, x), rtol=1e-9, atol=1e-12)


def test_squeeze_and_excitation_sees_the_clip():
    def by_hand(layer, x):
        return x * layer.attention(x.mean((1, 3, 4))[..., None, None]).unsqueeze(1)

    still_and_by_hand(*build_2d("regnet"), "regnet.encoder.stages.0.layers.0.layer.2", by_hand)


def test_global_response_norm_sees_the_clip():
    def by_hand(layer, x):  # [b, t, h, w, c]; over a clip the mean of the frames' squares
        norm = x.square().sum((2, 3)).mean(1).sqrt()
        response = x * (norm / (norm.mean(-1, keepdim=True) + 1e-6))[:, None, None, None]
        return layer.weight * response + layer.bias + x

    still_and_by_hand(*build_2d("convnextv2"), "convnextv2.encoder.stages.0.layers.0.grn", by_hand)


def test_group_norm_with_activation_sees_the_clip():
    def by_hand(layer, x):
        y = nn.functional.group_norm(x.transpose(1, 2), layer.num_groups, layer.weight, layer.bias, layer.eps)
        return layer.activation(y.transpose(1, 2))

    still_and_by_hand(*build_2d("bit"), "bit.encoder.stages.0.layers.0.norm1", by_hand)


@pytest.mark.parametrize("kind", ["bit", "efficientnet"])
def test_copies_pickles_and_deflated_models_answer_alike(kind):
    """Their convolutions are subclasses, taken over by classes made on the spot."""
    model2d, picture = build_2d(kind)
    model3d, clip = inflate(model2d, example=picture), moving(picture)
    with torch.no_grad():
        logits = model3d(clip).logits
        for twin in (copy.deepcopy(model3d), pickle.loads(pickle.dumps(model3d))):
            assert torch.equal(twin(clip).logits, logits)
        back = deflate(model3d)
        assert [type(module) for module in back.modules()] == [type(module) for module in model2d.modules()]
        torch.testing.assert_close(back(clip[:, :, 0]).logits, model2d(clip[:, :, 0]).logits, rtol=1e-4, atol=1e-5)


def test_gradients_with_checkpoints_are_those_without():
    model2d, picture = build_2d("pvt_v2")
    model3d, clip = inflate(model2d.double(), example=picture.double()).train(), moving(picture).double()

    def gradients():
        model3d.zero_grad()
        model3d(pixel_values=clip).logits.square().sum().backward()
        return [parameter.grad.clone() for parameter in model3d.parameters()]

    expected = gradients()
    for module in model3d.modules():
        if hasattr(module, "gradient_checkpointing"):
            module.gradient_checkpointing = True
            module._gradient_checkpointing_func = functools.partial(checkpoint, use_reentrant=False)
    torch.testing.assert_close(gradients(), expected)


def test_a_model_that_keeps_gradients_between_calls_can_be_inflated():
    """LeViT keeps what it computed of its attention biases, which torch refuses to copy."""
    model2d, picture = build_2d("levit")
    model2d(picture)
    model3d = inflate(model2d, example=picture)
    model3d(moving(picture))
    assert model3d(moving(picture), output_hidden_states=True).hidden_states[0].shape == (2, 5, 16, 8)


# --- subclasses of known layers --------------------------------------------------------------------------------------


class Stem(nn.Conv2d):
    """Only makes it otherwise."""

    def __init__(self, width):
        super().__init__(3, width, 5, padding=2)

    def width(self):
        return self.out_channels


def test_a_subclass_that_runs_as_its_parent_is_taken_over_as_it():
    model2d = nn.Sequential(Stem(8), nn.GELU(), nn.Conv2d(8, 4, 1))
    model3d = inflate(model2d, example=torch.zeros(1, 3, 13, 17))
    assert model3d.net[0].weight.shape == (8, 3, 5, 5, 5)
    assert isinstance(model3d.net[0], Stem)
    assert model3d.net[0].width() == 8
    assert prove(model2d, model3d).holds
    assert type(deflate(model3d)[0]) is Stem
