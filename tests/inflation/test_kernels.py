"""Inflated kernels against the law of the repeated picture, a second writing in numpy, and torchvision's networks."""

import copy
import pickle
import re

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models import resnet18
from torchvision.models.video import r3d_18

from inflate3d.errors import InflateError
from inflate3d.inflation.kernels import (
    InflatedConv3d,
    deflate_weight,
    inflate_conv,
    inflate_weight,
    load_2d_into,
)
from inflate3d.inflation.profiles import profile_taps

PROFILES = ["mean", "center", "negative", "lambda=0.3", "shift", lambda n: np.arange(1, n + 1) / (n * (n + 1) / 2)]

CONVS = {
    "plain": lambda: nn.Conv2d(3, 5, 3, padding=1),
    "per axis": lambda: nn.Conv2d(3, 5, (3, 5), stride=(2, 3), padding=(1, 4)),
    "groups and dilation": lambda: nn.Conv2d(6, 4, (3, 2), dilation=(2, 1), padding=(2, 1), groups=2, bias=False),
    "depthwise": lambda: nn.Conv2d(17, 34, 3, padding=1, groups=17),
    "reflect": lambda: nn.Conv2d(3, 5, (5, 3), padding=(2, 1), padding_mode="reflect"),
    "replicate": lambda: nn.Conv2d(3, 5, (5, 3), stride=2, padding=(3, 1), padding_mode="replicate"),
    "circular": lambda: nn.Conv2d(3, 5, (3, 5), padding=(1, 2), padding_mode="circular"),
    "same, uneven": lambda: nn.Conv2d(3, 5, (4, 2), padding="same", dilation=(1, 3)),
    "same, reflect": lambda: nn.Conv2d(3, 5, (4, 3), padding="same", padding_mode="reflect"),
    "valid": lambda: nn.Conv2d(3, 5, (3, 2), padding="valid"),
    "pointwise": lambda: nn.Conv2d(19, 5, 1),
}
PAD_MODES = {"zeros": "constant", "replicate": "edge", "reflect": "reflect", "circular": "wrap"}


def make(name, dtype=torch.float64):
    return CONVS[name]().to(dtype)


def clip_for(conv2d, frames=7):
    return torch.randn(2, conv2d.in_channels, frames, 11, 13, dtype=conv2d.weight.dtype)


def close(a, b, tolerance=1e-12):
    torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("name", CONVS)
def test_a_repeated_picture_is_answered_as_by_the_2d_layer(name, profile):
    conv2d = make(name)
    picture = clip_for(conv2d, frames=1)
    answer = conv2d(picture[:, :, 0])
    for time_kernel in (1, 2, 3, 5):
        for frames, stride, padding in [(1, 1, "replicate"), (7, 2, "replicate"), (5, 3, "causal"), (7, 2, "valid")]:
            conv3d = inflate_conv(conv2d, time_kernel, profile=profile, time_stride=stride, time_padding=padding)
            out = conv3d(picture.expand(-1, -1, frames, -1, -1))
            close(out, answer[:, :, None].expand_as(out))


@pytest.mark.parametrize("time_kernel", [1, 2, 3, 5])
def test_zeros_in_time_are_exact_for_the_center_alone(time_kernel):
    conv2d = make("plain")
    picture = clip_for(conv2d, frames=1)
    for stride in (1, 2, 3):
        center = inflate_conv(conv2d, time_kernel, profile="center", time_stride=stride, time_padding="zeros")
        out = center(picture.expand(-1, -1, 7, -1, -1))
        close(out, conv2d(picture[:, :, 0])[:, :, None].expand_as(out))
    mean = inflate_conv(conv2d, time_kernel, time_padding="zeros")(picture.expand(-1, -1, 7, -1, -1))
    assert (time_kernel == 1) == torch.allclose(mean, out[:, :, :1].expand_as(mean))


def reference_conv3d(conv2d, taps, clip, stride, time_padding):
    """A second writing: numpy, one output position at a time."""
    kernel = np.einsum("oihw,oit->oithw", conv2d.weight.detach().numpy(), taps)
    outputs, inputs, kt, kh, kw = kernel.shape
    (sh, sw), (dh, dw) = conv2d.stride, conv2d.dilation
    if conv2d.padding == "same":
        totals = [d * (k - 1) for d, k in zip((dh, dw), (kh, kw), strict=True)]
        sides = [(total // 2, total - total // 2) for total in totals]
    else:
        sides = [(0, 0)] * 2 if conv2d.padding == "valid" else [(p, p) for p in conv2d.padding]
    x = np.pad(clip.numpy(), [(0, 0)] * 3 + sides, mode=PAD_MODES[conv2d.padding_mode])
    frames = x.shape[2]
    length = (frames - kt) // stride + 1 if time_padding == "valid" else -(-frames // stride)
    front = {"causal": kt - 1, "valid": 0}.get(time_padding, (kt - 1) // 2)
    x = np.pad(
        x, [(0, 0)] * 2 + [(front, kt * stride)] + [(0, 0)] * 2, mode="edge" if time_padding != "zeros" else "constant"
    )
    height = (x.shape[3] - dh * (kh - 1) - 1) // sh + 1
    width = (x.shape[4] - dw * (kw - 1) - 1) // sw + 1
    out = np.zeros((len(x), outputs, length, height, width))
    group = outputs // conv2d.groups
    for o, t, i, j in np.ndindex(outputs, length, height, width):
        first = o // group * inputs
        rows, columns = slice(i * sh, i * sh + dh * kh, dh), slice(j * sw, j * sw + dw * kw, dw)
        window = x[:, first : first + inputs, t * stride : t * stride + kt, rows, columns]
        out[:, o, t, i, j] = (window[..., :kh, :kw] * kernel[o]).sum((1, 2, 3, 4))
    return torch.from_numpy(out if conv2d.bias is None else out + conv2d.bias.detach().numpy()[:, None, None, None])


def reference_taps(profile, conv2d, time_kernel, center):
    taps = profile_taps(profile, time_kernel, center=center, channels=conv2d.in_channels).numpy()
    outputs, inputs = conv2d.weight.shape[:2]
    if taps.ndim == 1:
        return np.broadcast_to(taps, (outputs, inputs, time_kernel))
    group = outputs // conv2d.groups
    return np.stack([taps[o // group * inputs :][:inputs] for o in range(outputs)])


@pytest.mark.parametrize("name", CONVS)
@pytest.mark.parametrize(
    ("time_kernel", "stride", "padding", "profile"),
    [
        (3, 1, "replicate", "shift"),
        (4, 2, "zeros", "negative"),
        (3, 2, "causal", "shift"),
        (5, 3, "valid", "lambda=0.3"),
    ],
)
def test_any_clip_gives_what_the_second_writing_gives(name, time_kernel, stride, padding, profile):
    conv2d = make(name)
    clip = clip_for(conv2d, frames=6)[:, :, :, :9]
    conv3d = inflate_conv(conv2d, time_kernel, profile=profile, time_stride=stride, time_padding=padding)
    taps = reference_taps(profile, conv2d, time_kernel, time_kernel - 1 if padding == "causal" else None)
    close(conv3d(clip).detach(), reference_conv3d(conv2d, taps, clip, stride, padding))


@pytest.mark.parametrize("padding", ["replicate", "zeros", "causal", "valid"])
def test_the_length_of_time(padding):
    conv2d = nn.Conv2d(2, 3, 1)
    for time_kernel in (1, 2, 3, 4, 7):
        for stride in (1, 2, 3):
            conv3d = inflate_conv(conv2d, time_kernel, time_stride=stride, time_padding=padding)
            for frames in range(time_kernel if padding == "valid" else 1, 10):
                length = (frames - time_kernel) // stride + 1 if padding == "valid" else -(-frames // stride)
                assert conv3d(torch.zeros(1, 2, frames, 2, 3)).shape[2] == length


def test_a_causal_layer_sees_no_later_frame():
    conv3d = inflate_conv(make("plain"), 5, time_padding="causal")
    clip = clip_for(conv3d)
    changed = clip.clone()
    changed[:, :, 4:] += 1
    close(conv3d(clip)[:, :, :4], conv3d(changed)[:, :, :4], 0)


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-15), (torch.float32, 1e-6), (torch.bfloat16, 2e-2), (torch.float16, 2e-3)],
)
@pytest.mark.parametrize("profile", PROFILES)
def test_deflating_undoes_inflating(dtype, tolerance, profile):
    weight = torch.randn(6, 5, 3, 2, dtype=dtype)
    for time_kernel in range(1, 8):
        weight3d = inflate_weight(weight, time_kernel, profile=profile, groups=3)
        assert (weight3d.dtype, weight3d.shape) == (dtype, (6, 5, time_kernel, 3, 2))
        torch.testing.assert_close(deflate_weight(weight3d), weight, rtol=tolerance, atol=tolerance)


def test_random_kernels_are_drawn_as_torch_draws_them():
    conv2d = nn.Conv2d(8, 64, 3)
    torch.manual_seed(7)
    fresh = inflate_weight(conv2d.weight, 5, profile="random")
    torch.manual_seed(7)
    assert torch.equal(fresh, nn.Conv3d(8, 64, (5, 3, 3)).weight)


@pytest.mark.parametrize("time_kernel", [1, 3])
def test_nothing_is_shared_and_the_2d_layer_stays_as_it_is(time_kernel):
    conv2d = make("plain")
    before = copy.deepcopy(conv2d.state_dict())
    conv3d = inflate_conv(conv2d, time_kernel, profile="center")
    assert conv3d.weight.data_ptr() != conv2d.weight.data_ptr()
    assert conv3d.bias.data_ptr() != conv2d.bias.data_ptr()
    conv3d(clip_for(conv2d)).sum().backward()
    with torch.no_grad():
        conv3d.weight.add_(1)
        conv3d.bias.add_(1)
    assert conv2d.weight.grad is None
    assert all(torch.equal(value, before[name]) for name, value in conv2d.state_dict().items())


def test_what_the_2d_layer_is_the_3d_layer_is():
    conv2d = CONVS["same, uneven"]().to(torch.bfloat16).eval()
    conv2d.weight.requires_grad_(False)
    conv3d = inflate_conv(conv2d, 3, time_stride=2)
    assert isinstance(conv3d, nn.Conv3d)
    assert (conv3d.weight.dtype, conv3d.bias.dtype, conv3d.training) == (torch.bfloat16, torch.bfloat16, False)
    assert (conv3d.weight.requires_grad, conv3d.bias.requires_grad) == (False, True)
    assert (conv3d.kernel_size, conv3d.stride, conv3d.dilation) == ((3, 4, 2), (2, 1, 1), (1, 1, 3))
    assert inflate_conv(conv2d.to("meta"), 3).weight.device.type == "meta"
    assert inflate_conv(nn.Conv2d(3, 5, 1, bias=False), 3).bias is None
    assert "time_padding='zeros'" in repr(inflate_conv(nn.Conv2d(3, 5, 1), 3, time_padding="zeros"))


def test_copies_pickles_and_compiled_layers_answer_alike():
    conv3d = inflate_conv(make("same, reflect"), 4, time_stride=2)
    clip = clip_for(conv3d)
    for other in (
        copy.deepcopy(conv3d),
        pickle.loads(pickle.dumps(conv3d)),
        torch.compile(conv3d, backend="aot_eager"),
    ):
        close(other(clip), conv3d(clip), 0)
    plain = nn.Conv3d(3, 5, (4, 4, 3))
    plain.load_state_dict(conv3d.state_dict(), strict=True)


def test_padding_that_was_changed_after_the_layer_was_made_counts():
    """As segmentation models do, to trade strides for dilations."""
    conv2d = nn.Conv2d(3, 5, 3, stride=2, padding=1).double()
    conv2d.stride, conv2d.dilation, conv2d.padding = (1, 1), (2, 2), (2, 2)
    picture = torch.randn(2, 3, 11, 13).double()
    close(inflate_conv(conv2d, 3)(picture.unsqueeze(2))[:, :, 0], conv2d(picture))
    same = nn.Conv2d(3, 5, 4, padding="same").double()
    same.dilation = (3, 1)
    close(inflate_conv(same, 3)(picture.unsqueeze(2))[:, :, 0], same(picture))


def test_gradients_flow():
    conv3d = inflate_conv(make("groups and dilation"), 3)
    clip = torch.randn(1, 6, 2, 5, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(conv3d, clip)


class Subclass(nn.Conv2d):
    pass


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (Subclass(3, 5, 3), "exactly torch.nn.Conv2d\n.*Subclass\n.*inflate3d.inflate"),
        (nn.Linear(3, 5), "exactly torch.nn.Conv2d\n.*Linear"),
        (nn.ConvTranspose2d(3, 5, 3), "exactly torch.nn.Conv2d\n.*ConvTranspose2d"),
        (nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 5, 3)), "exactly torch.nn.Conv2d\n.*ParametrizedConv2d"),
        (nn.utils.spectral_norm(nn.Conv2d(3, 5, 3)), "hooks or a weight made of other parameters.*\n.*\n.*weight_orig"),
    ],
)
def test_layers_that_would_lose_something_are_refused(layer, message):
    with pytest.raises(InflateError, match=message):
        inflate_conv(layer, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"time_kernel": 0}, "time_kernel is no number of frames"),
        ({"time_kernel": 2.5}, "time_kernel is no number of frames"),
        ({"time_kernel": 3, "time_stride": 0}, "time_stride is no number of frames"),
        ({"time_kernel": 3, "time_padding": "same"}, "no such padding in time\n.*replicate, zeros, causal, valid"),
        ({"time_kernel": 3, "profile": "middle"}, "no profile of this name"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(InflateError, match=message):
        inflate_conv(nn.Conv2d(3, 5, 3), **arguments)


@pytest.mark.parametrize("shape", [(3, 7, 11, 13), (2, 5, 7, 11, 13), (2, 3, 0, 11, 13), (2, 3, 4, 11, 13)])
def test_wrong_clips_are_refused(shape):
    conv3d = inflate_conv(nn.Conv2d(3, 5, 3), 5, time_padding="valid")
    with pytest.raises(InflateError, match=rf"\[b, 3, t >= 5, h, w\]\n.*{re.escape(str(list(shape)))}"):
        conv3d(torch.zeros(shape))


def test_wrong_weights_are_refused():
    with pytest.raises(InflateError, match=r"floats \[o, i, h, w\]\n.*\[5, 3, 1, 1, 1\]"):
        inflate_weight(torch.zeros(5, 3, 1, 1, 1), 3)
    with pytest.raises(InflateError, match=r"floats \[o, i, h, w\]\n.*int64"):
        inflate_weight(torch.zeros(5, 3, 1, 1, dtype=torch.int64), 3)
    with pytest.raises(InflateError, match=r"floats \[o, i, t, h, w\]\n.*\[5, 3, 1, 1\]"):
        deflate_weight(torch.zeros(5, 3, 1, 1))
    for groups in (0, 2):
        with pytest.raises(InflateError, match="the groups do not divide the output channels"):
            inflate_weight(torch.zeros(5, 3, 1, 1), 3, groups=groups)


def to_r3d(name):
    """ResNet-18's names as torchvision's R3D-18 has them."""
    name = re.sub(r"^conv1\.", "stem.0.", re.sub(r"^bn1\.", "stem.1.", name))
    name = re.sub(r"^(layer\d\.\d)\.conv(\d)\.", r"\1.conv\2.0.", name)
    return re.sub(r"^(layer\d\.\d)\.bn(\d)\.", r"\1.conv\2.1.", name)


@pytest.fixture(scope="module")
def picture_net():
    torch.manual_seed(0)
    net = resnet18(num_classes=17).double().eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    net.maxpool = nn.Identity()  # R3D-18 has none
    return net


def test_r3d_18_filled_from_resnet_18_answers_a_repeated_picture_alike(picture_net):
    # it pads time with zeros, so the center is the profile that is exact up to the ends
    r3d = r3d_18(num_classes=17).double().eval()
    report = load_2d_into(r3d, picture_net.state_dict(), names=to_r3d, profile="center")
    assert (len(report.inflated), len(report.copied)) == (20, 102)
    assert (report.adapted, report.skipped_2d, report.missing_3d) == ({}, {}, ())
    assert report.inflated["layer2.0.conv1.weight"] == "layer2.0.conv1.0.weight"
    assert str(report) == "20 tensors inflated, 102 copied, 0 adapted"
    picture = torch.randn(2, 3, 29, 31, dtype=torch.float64)
    with torch.inference_mode():
        close(r3d(picture[:, :, None].expand(-1, -1, 7, -1, -1)), picture_net(picture), 1e-10)


def test_gaps_raise_before_anything_is_written_unless_they_are_allowed(picture_net):
    r3d = r3d_18(num_classes=5)
    before = copy.deepcopy(r3d.state_dict())
    with pytest.raises(InflateError, match=r"fc.weight: \[17, 512\]: the 3D network wants \[5, 512\]\n") as caught:
        load_2d_into(r3d, picture_net.state_dict(), names=to_r3d)
    assert caught.value.got.count("\n") == 3  # weight and bias: no place, and not filled
    assert all(torch.equal(value, before[name]) for name, value in r3d.state_dict().items())
    report = load_2d_into(r3d, picture_net.state_dict(), names=to_r3d, allow=("fc.*",))
    assert report.skipped_2d.keys() == set(report.missing_3d) == {"fc.weight", "fc.bias"}
    assert "left out: fc.bias ([17]: the 3D network wants [5])" in str(report)
    assert "not filled: fc.bias" in str(report)
    assert torch.equal(r3d.fc.weight, before["fc.weight"])
    assert not torch.equal(r3d.stem[0].weight, before["stem.0.weight"])


def test_all_faults_are_told_together():
    net3d = nn.Sequential(nn.Conv3d(2, 5, 3), nn.BatchNorm3d(5))
    state = {"0.weight": torch.zeros(5, 3, 2, 3), "0.bias": {}, "1.weight": torch.zeros(5), "extra": torch.zeros(3)}
    names = {"extra": "1.weight", "1.running": "1.running_mean"}
    with pytest.raises(InflateError, match="the 2D checkpoint and the 3D network do not fit") as caught:
        load_2d_into(net3d, state, names=names)
    assert caught.value.got.split("\n            ") == [
        "1.running: renamed, but not in the checkpoint",
        "0.weight: [5, 3, 2, 3]: the 3D network wants [5, 2, 3, 3, 3]",
        "0.bias: a dict, not a tensor",
        "extra: 1.weight is filled already",
        "0.weight: not filled",
        "0.bias: not filled",
        "1.bias: not filled",
        "1.running_mean: not filled",
        "and 2 more",
    ]


def test_names_may_drop_tensors_and_a_network_needs_memory():
    conv2d = nn.Conv2d(3, 5, 1)
    with torch.device("meta"):
        empty = nn.Conv3d(3, 5, 1)
    with pytest.raises(InflateError, match="no memory yet"):
        load_2d_into(empty, conv2d.state_dict())
    report = load_2d_into(nn.Conv3d(3, 5, 1, bias=False), conv2d.state_dict(), names={"bias": None})
    assert report.skipped_2d == {"bias": "dropped by names="}


@pytest.mark.parametrize("channels", [1, 2, 4, 7])
def test_other_input_channels_are_adapted_as_timm_does(channels):
    from timm.models._manipulate import adapt_input_conv

    conv2d, conv3d = nn.Conv2d(3, 5, 3), nn.Conv3d(channels, 5, 3)
    report = load_2d_into(conv3d, conv2d.state_dict())
    assert report.adapted == {"weight": "weight"}
    assert "new input channels: weight -> weight" in str(report)
    torch.testing.assert_close(deflate_weight(conv3d.weight), adapt_input_conv(channels, conv2d.weight.detach()))


@pytest.mark.parametrize("profile", ["mean", "center", "negative", "shift"])
def test_transposed_convolutions_repeat_pictures_too(profile):
    up2d = nn.ConvTranspose2d(17, 5, 3, stride=2, padding=1).double()
    up3d = nn.ConvTranspose3d(17, 5, (4, 3, 3), stride=2, padding=1).double()
    assert load_2d_into(up3d, up2d.state_dict(), profile=profile).inflated == {"weight": "weight"}
    picture = torch.randn(2, 17, 5, 7, dtype=torch.float64)
    out = up3d(picture[:, :, None].expand(-1, -1, 6, -1, -1))
    assert out.shape[2] == 12
    inside = out if profile == "center" else out[:, :, 1:-1]  # torch pads with zeros
    close(inside, up2d(picture)[:, :, None].expand_as(inside))


def test_groups_matter_where_channels_differ():
    conv2d, conv3d = make("depthwise"), nn.Conv3d(17, 34, 3, padding=1, groups=17).double()
    load_2d_into(conv3d, conv2d.state_dict(), profile="shift")
    assert torch.equal(conv3d.weight, inflate_conv(conv2d, 3, profile="shift").weight)
    assert conv3d.weight[:, 0].sum((2, 3)).ne(0).int().argmax(1).tolist() == [2] * 4 + [0] * 4 + [1] * 26


def test_random_fills_and_half_precision_checkpoints():
    up = nn.ConvTranspose3d(3, 5, (4, 3, 3), stride=2)
    load_2d_into(up, nn.ConvTranspose2d(3, 5, 3).state_dict(), profile="random")
    conv2d, conv3d = nn.Conv2d(3, 5, 3).half(), nn.Conv3d(3, 5, 3)
    load_2d_into(conv3d, conv2d.state_dict())
    torch.testing.assert_close(deflate_weight(conv3d.weight), conv2d.weight.detach().float())
    assert type(inflate_conv(nn.Conv2d(3, 5, 3), 3)) is InflatedConv3d
