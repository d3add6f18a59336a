"""The ResNet-I3Ds of the literature are plans for a 2D ResNet: on random clips they answer as plain 5D networks do."""

from dataclasses import replace

import pytest
import torch
import torchvision
from resnet_5d import ResNet5d
from small_models import randomize, wake
from torch import nn

from inflate3d import Insert, Rule, inflate, make_plan

# Source: video-nonlocal-net (resnet_video.py, resnet_video_org.py), PySlowFast (I3D_NLN_8x8_R50), MMAction2
# (i3d_r50, its nl-embedded-gaussian), GluonCV (i3d_nl5_resnet50_v1); as PySlowFast, PyTorchVideo without blocks.
# Stride in time of conv1; kernel, stride and padding of pool1; attention and sub-sampling of non-local blocks.
LAYOUTS = {
    "non-local 8f": (1, ((1, 3, 3), (1, 2, 2), (0, 0, 0)), "softmax", "before"),
    "non-local 32f": (2, ((2, 3, 3), (2, 2, 2), (0, 0, 0)), "softmax", "before"),
    "pyslowfast 8x8": (1, ((1, 3, 3), (1, 2, 2), (0, 1, 1)), "softmax", "before"),
    "mmaction2 32x2": (2, ((1, 3, 3), (2, 2, 2), (0, 1, 1)), "embedded_gaussian", "after"),
    "gluoncv": (2, ((1, 3, 3), (2, 2, 2), (0, 1, 1)), "softmax", "none"),
}
RULES = {
    "layer1.*.conv1": Rule(time_kernel=3, padding="zeros"),
    "layer[23].[024].conv1": Rule(time_kernel=3, padding="zeros"),
    "layer4.1.conv1": Rule(time_kernel=3, padding="zeros"),
}


def resnet2d(blocks=(3, 4, 6, 3), pool1=((1, 3, 3), (1, 2, 2), (0, 1, 1))):
    """A ResNet-50 of narrow bottlenecks; what a pool does in space is the 2D model's own affair."""
    torch.manual_seed(2)
    model2d = torchvision.models.ResNet(torchvision.models.resnet.Bottleneck, blocks, 5, width_per_group=4)
    kernel, stride, padding = (size[1:] for size in pool1)
    model2d.maxpool = nn.MaxPool2d(kernel, stride, padding)
    return randomize(model2d).double()


@pytest.mark.parametrize(("frames", "padding"), [(16, "replicate"), (13, "valid")])
@pytest.mark.parametrize("name", LAYOUTS)
def test_the_resnet_i3ds_of_the_literature_are_plans(name, frames, padding):
    """Pools without padding in time: for 8, 16, 32 ... frames as with ours, for any other number `valid`."""
    stride, pool1, attention, sub_sample = LAYOUTS[name]
    model2d = resnet2d(pool1=pool1)
    pool_kernel, pool_stride = pool1[0][0], pool1[1][0]
    rules = {
        "conv1": Rule(time_kernel=5, time_stride=stride, padding="zeros"),
        "maxpool": Rule(time_kernel=pool_kernel, time_stride=pool_stride, padding=padding),
        **RULES,
    }
    block = Insert("layer2.[13]", "nonlocal", attention=attention, sub_sample=sub_sample)
    inserts = [Insert("layer1", "time_pool", padding=padding), block, replace(block, after="layer3.[135]")]
    example = torch.zeros(1, 3, 32, 48)
    model3d = wake(inflate(model2d, "frames", example=example, rules=rules, inserts=inserts).eval())
    with torch.no_grad():
        for parameter in model3d.net.parameters():
            if parameter.ndim == 5:
                parameter.mul_(torch.rand_like(parameter) * 2)  # so that no two taps are alike
    plain = ResNet5d(*LAYOUTS[name]).double().eval()
    flat = {key: value.unsqueeze(2) if value.ndim == 4 else value for key, value in model3d.net.state_dict().items()}
    plain.load_state_dict({**flat, **model3d.inserts.state_dict()})
    clip = torch.randn(2, 3, frames, 32, 48).double()
    with torch.no_grad():
        expected, found = plain(clip), model3d(clip)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))
    assert not torch.allclose(plain(clip.flip(2)), expected, rtol=1e-3)


def test_resnet_101_takes_every_second_block_and_three_non_local_blocks_in_res4():
    """Source: video-nonlocal-net, resnet_video.py: in res4 of 23 blocks, behind every seventh."""
    model2d = resnet2d((3, 4, 23, 3))
    rules = {**RULES, "layer3.*[02468].conv1": Rule(time_kernel=3, padding="zeros")}
    inserts = [Insert(f"layer3.{i}", "nonlocal") for i in (6, 13, 20)] + [Insert("layer2.[13]", "nonlocal")]
    plan = make_plan(model2d, "frames", example=torch.zeros(1, 3, 32, 48), rules=rules, inserts=inserts)
    timed = [layer.path for layer in plan if layer.path.startswith("layer3") and layer.time_kernel == 3]
    assert timed == [f"layer3.{i}.conv1" for i in range(0, 23, 2)]
    wanted = ["layer2.1", "layer2.3", "layer3.6", "layer3.13", "layer3.20"]
    assert [insert.after for insert in plan.inserts] == wanted
