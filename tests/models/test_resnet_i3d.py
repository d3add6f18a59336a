"""The ResNet-I3Ds have the layouts, parameters and costs that their projects report, and begin as their 2D ResNet."""

import pytest
import torch
import torchvision

from inflate3d import InflateError
from inflate3d.inflation.plan import Plan
from inflate3d.models.inflated import LAYOUTS, resnet_i3d

# Source: PyTorchVideo's model zoo and PySlowFast (28.04 M), MMAction2's model zoo (28.0 M; 35.4 M with blocks)
PARAMETERS = {(50, False): 28.04e6, (50, True): 35.40e6}


@pytest.mark.parametrize("non_local", [False, True])
def test_it_has_as_many_parameters_as_reported(non_local):
    model = resnet_i3d("mmaction2-32x2", non_local=non_local)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(PARAMETERS[50, non_local], rel=2e-3)


@pytest.mark.parametrize("name", LAYOUTS)
def test_its_layers_look_through_time_where_the_table_says(name):
    plan: Plan = resnet_i3d(name, 5).inflated.plan
    layers = {layer.path: layer for layer in plan}
    assert (layers["conv1"].time_kernel, layers["conv1"].time_stride) == (5, LAYOUTS[name].stem_stride)
    assert (layers["maxpool"].time_kernel, layers["maxpool"].time_stride) == LAYOUTS[name].pool
    kernels = {
        stage: [layers[f"layer{stage}.{block}.conv1"].time_kernel for block in range(blocks)]
        for stage, blocks in {1: 3, 2: 4, 3: 6, 4: 3}.items()
    }
    assert kernels == {1: [3, 3, 3], 2: [3, 1, 3, 1], 3: [3, 1, 3, 1, 3, 1], 4: [1, 3, 1]}
    assert [(insert.after, insert.what) for insert in plan.inserts] == [("layer1", "time_pool")]


def test_resnet_101_alternates_over_its_23_blocks_and_has_five_non_local_ones():
    plan = resnet_i3d("pyslowfast-8x8", 5, depth=101, non_local=True).inflated.plan
    timed = [layer.path for layer in plan if layer.path.startswith("layer3") and layer.time_kernel > 1]
    assert timed == [f"layer3.{block}.conv1" for block in range(0, 23, 2)]
    blocks = [insert.after for insert in plan.inserts if insert.what == "nonlocal"]
    assert blocks == ["layer2.1", "layer2.3", "layer3.6", "layer3.13", "layer3.20"]


def test_steps_in_time_are_those_of_the_table():
    """A clip of 32 frames is 8 steps long behind res2 in MMAction2's, half of 8 frames in PySlowFast's."""
    for name, frames, steps in (("mmaction2-32x2", 32, 4), ("pyslowfast-8x8", 8, 4), ("nonlocal-32f", 32, 4)):
        model = resnet_i3d(name, 5).eval()
        seen = []
        model.inflated.net.layer4.register_forward_hook(lambda *given, seen=seen: seen.append(given[-1].shape[0]))
        with torch.inference_mode():
            model(torch.zeros(1, 3, frames, 64, 64))
        assert seen[-1] == steps


@pytest.mark.parametrize("non_local", [False, True])
def test_the_middle_of_a_still_clip_is_answered_as_the_2d_resnet_answers_the_picture(non_local):
    """These layouts pad time with zeros, so that only steps far from the ends can be exact."""
    torch.manual_seed(0)
    model2d = torchvision.models.resnet50(num_classes=5).eval()
    model = resnet_i3d("pyslowfast-8x8", 5, non_local=non_local, model2d=model2d).eval()
    picture = torch.rand(1, 3, 64, 64) * 2 - 1
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (model.mean, model.std))
    maps = []
    for net in (model2d, model.inflated.net):
        net.layer2.register_forward_hook(lambda *given: maps.append(given[-1]))
    with torch.inference_mode():
        model2d((picture / 2 + 0.5 - mean) / std)
        model(picture.unsqueeze(2).repeat(1, 1, 32, 1, 1))
    flat, deep = maps
    assert deep.shape[0] == 16
    torch.testing.assert_close(deep[7:9], flat.expand(2, *flat.shape[1:]), rtol=1e-4, atol=1e-4 * float(flat.max()))
    assert not torch.allclose(deep[:1], flat, rtol=1e-2)


def test_a_checkpoint_of_another_network_or_a_layout_that_is_none_is_refused():
    with pytest.raises(InflateError, match="no ResNet-50"):
        resnet_i3d(model2d=torchvision.models.resnet18())
    # wide and narrow have the same names
    with pytest.raises(InflateError, match=r"no ResNet-50(.|\n)*differs in layer1.0.bn1.bias; (.|\n)* more"):
        resnet_i3d(model2d=torchvision.models.wide_resnet50_2())
    with pytest.raises(InflateError, match=r"the 2D model is no module(.|\n)*dict"):
        resnet_i3d(model2d=torchvision.models.resnet50().state_dict())
    with pytest.raises(InflateError, match=r"no such layout of a ResNet-I3D(.|\n)*did you mean pyslowfast-8x8"):
        resnet_i3d("pyslowfast-8x9", depth=50)
    with pytest.raises(InflateError, match=r"no ResNet-I3D of this depth(.|\n)*50 or 101(.|\n)*152"):
        resnet_i3d(depth=152)
