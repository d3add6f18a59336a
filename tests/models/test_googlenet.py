"""From ImageNet's Inception-v1 to I3D: every kernel in its place, still clips answered as pictures, traps refused."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import GoogLeNet

from inflate3d.errors import InflateError
from inflate3d.models.c3d import C3D
from inflate3d.models.googlenet import i3d_from_googlenet, start_from_googlenet
from inflate3d.models.inception import InceptionI3d
from inflate3d.models.streams import ConvNetLstm, FusedTwoStream, two_stream, two_stream_i3d

# the table of the reference, spelled out for some units of every kind
PLACES = {
    "conv1": "Conv3d_1a_7x7",
    "conv2": "Conv3d_2b_1x1",
    "conv3": "Conv3d_2c_3x3",
    "inception3a.branch1": "Mixed_3b.Branch_0.Conv3d_0a_1x1",
    "inception3b.branch2.0": "Mixed_3c.Branch_1.Conv3d_0a_1x1",
    "inception4a.branch2.1": "Mixed_4b.Branch_1.Conv3d_0b_3x3",
    "inception4b.branch3.0": "Mixed_4c.Branch_2.Conv3d_0a_1x1",
    "inception4c.branch3.1": "Mixed_4d.Branch_2.Conv3d_0b_3x3",
    "inception4d.branch4.1": "Mixed_4e.Branch_3.Conv3d_0b_1x1",
    "inception4e.branch1": "Mixed_4f.Branch_0.Conv3d_0a_1x1",
    "inception5a.branch3.1": "Mixed_5b.Branch_2.Conv3d_0b_3x3",
    "inception5b.branch4.1": "Mixed_5c.Branch_3.Conv3d_0b_1x1",
}


@pytest.fixture(scope="module")
def googlenet2d():
    """Random, with the heads that only training runs, and with batch norm that has seen a batch."""
    torch.manual_seed(0)
    net = GoogLeNet(num_classes=11, init_weights=False)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    with torch.no_grad():
        net(torch.rand(4, 3, 64, 65) * 2 - 1)
    return net.eval()


def padded_as_tensorflow(net, picture):
    """Run torchvision's network with the one layer changed whose padding is not SAME."""
    conv = nn.Conv2d(3, 64, 7, stride=2, bias=False).to(picture)
    conv.weight = net.conv1.conv.weight
    x = F.relu(net.conv1.bn(conv(F.pad(picture, (2, 3, 2, 3)))))
    layers = list(net.named_children())[1:]
    maps = {"conv1": x}
    for name, layer in layers:
        if not name.startswith("aux"):
            x = layer(x.flatten(1) if name == "fc" else x)
            maps[name] = x
    return maps


def still(picture, frames):
    return picture.unsqueeze(2).repeat(1, 1, frames, 1, 1)


def test_every_tensor_is_in_its_place_and_sums_up_over_time(googlenet2d):
    state2d, model = googlenet2d.state_dict(), i3d_from_googlenet(googlenet2d)
    state3d = model.state_dict()
    assert model.num_classes == 11
    for name2d, name3d in PLACES.items():
        kernel = state3d[f"{name3d}.conv_3d.weight"]
        torch.testing.assert_close(kernel.sum(2), state2d[f"{name2d}.conv.weight"], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(kernel[:, :, 0], kernel[:, :, -1])  # the mean: one kernel for every frame
        for kind in ("weight", "bias", "running_mean", "running_var"):
            assert torch.equal(state3d[f"{name3d}.batch_norm.{kind}"], state2d[f"{name2d}.bn.{kind}"])
    head = "Logits.Conv3d_0c_1x1.conv_3d"
    assert torch.equal(state3d[f"{head}.weight"].flatten(1), state2d["fc.weight"])
    assert torch.equal(state3d[f"{head}.bias"], state2d["fc.bias"])
    # all 57 units and the classifier, each from its own: as many sums of kernels as in 2D, none twice
    sums = {round(value.double().sum().item(), 5) for name, value in state3d.items() if value.ndim == 5}
    wanted = {round(value.double().sum().item(), 5) for name, value in state2d.items() if "aux" not in name} - {0.0}
    assert len(sums) == 58
    assert all(min(abs(value - other) for other in wanted) < 1e-3 for value in sums)


def test_with_the_center_a_still_clip_is_answered_as_the_picture(googlenet2d):
    """To the last frame and to the logits: zeros before and behind the clip meet zero taps only."""
    model = i3d_from_googlenet(googlenet2d, profile="center").eval()
    picture = torch.rand(2, 3, 208, 224) * 2 - 1
    with torch.inference_mode():
        maps = padded_as_tensorflow(googlenet2d, picture)
        found = model.endpoints(still(picture, 17), ["Mixed_3c", "Mixed_5c", "Logits_per_step", "Logits"])
    for name2d, name3d in (("inception3b", "Mixed_3c"), ("inception5b", "Mixed_5c")):
        expected = still(maps[name2d], found[name3d].shape[2])
        # random batch norms let float32's rounding grow to 1e-4 of the largest value
        torch.testing.assert_close(found[name3d], expected, rtol=0, atol=1e-3 * float(expected.max()))
    assert found["Logits_per_step"].shape == (2, 11, 2)
    torch.testing.assert_close(found["Logits"], maps["fc"], rtol=1e-4, atol=1e-4)


def test_with_the_mean_a_still_clip_is_answered_so_away_from_its_ends(googlenet2d):
    """19 frames have a say in one step of Mixed_3c, of which there is one for every two: of 14 steps 5 see no end."""
    model = i3d_from_googlenet(googlenet2d).eval()
    picture = torch.rand(1, 3, 208, 224) * 2 - 1
    with torch.inference_mode():
        maps = padded_as_tensorflow(googlenet2d, picture)
        found = model.endpoints(still(picture, 28), ["Conv3d_1a_7x7", "Mixed_3c"])
    inside = [
        (found["Conv3d_1a_7x7"], maps["conv1"], slice(1, 12)),
        (found["Mixed_3c"], maps["inception3b"], slice(4, 9)),
    ]
    for steps, expected, where in inside:
        kept = steps[:, :, where]
        torch.testing.assert_close(kept, still(expected, kept.shape[2]), rtol=1e-4, atol=1e-4)
        assert not torch.allclose(steps[:, :, 0], expected, rtol=0.01)  # zeros in front: the known border


def test_torchvision_s_own_grid_is_one_pixel_off(googlenet2d):
    """Padding of 3 in front where SAME has 2: the picture moved by a pixel gives the same rows."""
    picture = torch.rand(1, 3, 208, 224) * 2 - 1
    moved = F.pad(picture, (-1, 1, -1, 1))
    with torch.inference_mode():
        own = googlenet2d.conv1(picture)
        same = padded_as_tensorflow(googlenet2d, picture)["conv1"]
        assert not torch.allclose(own[..., 5:-5, 5:-5], same[..., 5:-5, 5:-5], rtol=0.01)
        torch.testing.assert_close(googlenet2d.conv1(moved)[..., 5:-5, 5:-5], same[..., 5:-5, 5:-5])


def test_flow_takes_the_kernels_of_two_colors_scaled_up(googlenet2d):
    model = i3d_from_googlenet(googlenet2d, stream="flow", num_classes=7)
    assert (model.in_channels, model.num_classes) == (2, 7)
    first, rgb = model.Conv3d_1a_7x7.conv_3d.weight, googlenet2d.conv1.conv.weight
    torch.testing.assert_close(first.sum(2), rgb[:, [0, 1]] * 1.5)
    torch.testing.assert_close(
        model.Mixed_5c.Branch_1.Conv3d_0b_3x3.conv_3d.weight.sum(2), googlenet2d.inception5b.branch2[1].conv.weight
    )


def test_a_state_dict_without_heads_of_training_will_do(googlenet2d):
    state = {name: value for name, value in googlenet2d.state_dict().items() if not name.startswith(("aux", "fc"))}
    model = i3d_from_googlenet(state, num_classes=3)
    assert model.Logits.Conv3d_0c_1x1.conv_3d.weight.shape == (3, 1024, 1, 1, 1)
    torch.testing.assert_close(model.Conv3d_2b_1x1.conv_3d.weight.flatten(1), state["conv2.conv.weight"].flatten(1))


@pytest.mark.parametrize("build", [ConvNetLstm, two_stream, FusedTwoStream, two_stream_i3d])
def test_every_inception_of_the_paper_starts_from_imagenet_and_classifiers_stay(googlenet2d, build):
    model = build(5)
    before = {
        name: value.clone() for name, value in model.state_dict().items() if "classif" in name or "Logits" in name
    }
    start_from_googlenet(model, googlenet2d)
    state = model.state_dict()
    assert before and all(torch.equal(state[name], value) for name, value in before.items())
    wanted = googlenet2d.state_dict()["conv1.conv.weight"]
    kernels = [value for name, value in state.items() if name.endswith(("conv1.conv.weight", "1a_7x7.conv_3d.weight"))]
    assert len(kernels) == (1 if build is ConvNetLstm else 2)
    for kernel in kernels:
        flat = kernel.sum(2) if kernel.ndim == 5 else kernel
        channels = flat.shape[1]
        expected = wanted[:, [i % 3 for i in range(channels)]] * 3 / channels
        torch.testing.assert_close(flat, expected, rtol=1e-5, atol=1e-6)
    last = [
        name for name in state if "inception5b.branch4.1.bn.bias" in name or "5c.Branch_3.Conv3d_0b_1x1.batch" in name
    ]
    assert last
    for name in last:
        if name.endswith("bias"):
            assert torch.equal(state[name], googlenet2d.inception5b.branch4[1].bn.bias)


def test_a_true_5x5_is_refused_with_the_reason(googlenet2d):
    state = googlenet2d.state_dict()
    state["inception4a.branch3.1.conv.weight"] = torch.zeros(48, 16, 5, 5)
    for attempt in (lambda: i3d_from_googlenet(state), lambda: start_from_googlenet(ConvNetLstm(3), state)):
        with pytest.raises(
            InflateError, match=r"true 5x5(.|\n)*inception4a.branch3.1(.|\n)*BVLC(.|\n)*inflate3d.inflate"
        ):
            attempt()
    caffe = {"inception_3a/5x5.weight": torch.zeros(32, 16, 5, 5), "inception_3b/5x5.weight": torch.zeros(96, 32, 5, 5)}
    with pytest.raises(InflateError, match=r"true 5x5(.|\n)*and 1 more"):
        i3d_from_googlenet(caffe)


def test_missing_and_foreign_tensors_are_told(googlenet2d):
    state = googlenet2d.state_dict()
    del state["inception3a.branch1.bn.bias"]
    state["inception6a.conv.weight"] = torch.zeros(1)
    missing = r"Mixed_3b.Branch_0.Conv3d_0a_1x1.batch_norm.bias: not filled"
    with pytest.raises(InflateError, match=rf"do not fit(.|\n)*inception6a(.|\n)*{missing}"):
        i3d_from_googlenet(state)
    with pytest.raises(
        InflateError, match=r"do not fit(.|\n)*inception6a(.|\n)*inception3a.branch1.bn.bias: not filled"
    ):
        start_from_googlenet(ConvNetLstm(3), state)
    del state["inception6a.conv.weight"], state["fc.weight"], state["fc.bias"]
    with pytest.raises(InflateError, match=r"do not fit(.|\n)*Logits"):
        i3d_from_googlenet(state)  # there is no classifier to keep


def test_streams_and_networks_that_do_not_exist_are_refused(googlenet2d):
    with pytest.raises(InflateError, match=r"no such stream(.|\n)*rgb, flow"):
        i3d_from_googlenet(googlenet2d, stream="depth")
    with pytest.raises(InflateError, match=r"InceptionI3d: there is no such network(.|\n)*num_classes=0"):
        i3d_from_googlenet(googlenet2d, num_classes=0)
    with torch.device("meta"):
        c3d = C3D(3)
    with pytest.raises(InflateError, match=r"no Inception-v1 in this network(.|\n)*C3D"):
        start_from_googlenet(c3d, googlenet2d)


def test_the_2d_network_stays_as_it_was(googlenet2d):
    before = {name: value.clone() for name, value in googlenet2d.state_dict().items()}
    model = i3d_from_googlenet(googlenet2d)
    assert isinstance(model, InceptionI3d)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert all(torch.equal(value, before[name]) for name, value in googlenet2d.state_dict().items())
