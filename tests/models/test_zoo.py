"""The zoo: its figures are measured anew, its names build what they say, and 2D models are fed as they were trained."""

import pytest
import torch
import torchvision
from torch.utils.flop_counter import FlopCounterMode

from inflate3d.errors import InflateError
from inflate3d.models.c3d import C3D
from inflate3d.models.inflated import InflatedClassifier, inflated_classifier
from inflate3d.models.zoo import MODELS, Network, build_network, find_network

# of those that are built by running a 2D model, the quickest; docs/models.py measures all of them
MEASURED = [name for name, network in MODELS.items() if not network.made_from] + ["3d-densenet121", "i3d-nl-r50-8x8"]


def measure(network: Network):
    if network.made_from:
        model = network.build().eval().to("meta")
    else:
        with torch.device("meta"):
            model = network.build().eval()
    clips = [torch.empty(1, *shape, device="meta") for shape in network.clips.values()]
    with torch.no_grad(), FlopCounterMode(display=False) as flops:
        model(*clips)
    return sum(parameter.numel() for parameter in model.parameters()), flops.get_total_flops() / 2e9


@pytest.mark.parametrize("name", MEASURED)
def test_parameters_and_arithmetic_are_as_told(name):
    network = MODELS[name]
    parameters, gmacs = measure(network)
    assert parameters == network.parameters
    assert gmacs == pytest.approx(network.gmacs, abs=0.005)


# arXiv 1705.07750v3, tables 2 and 3, and the README of kinetics-i3d
REPORTED = {
    "i3d": [71.1, 68.4, 63.4, 61.5, 65.96],
    "two-stream-i3d": [74.2, 71.6],
    "convnet-lstm": [63.3, 53.9],
    "3d-convnet": [56.1],
    "two-stream": [65.6, 62.8, 62.2, 52.4],
    "3d-fused": [67.2, 62.7],
    # video-nonlocal-net's README, the model zoos of PySlowFast, PyTorchVideo, MMAction2 and GluonCV
    "i3d-r50-8x8": [73.5, 73.27],
    "i3d-nl-r50-8x8": [74.0],
    "i3d-r50-nonlocal-8f": [73.4],
    "i3d-nl-r50-nonlocal-8f": [74.7],
    "i3d-r50-nonlocal-32f": [73.6],
    "i3d-nl-r50-nonlocal-32f": [74.9],
    "i3d-r50-mmaction2-32x2": [73.47],
    "i3d-nl-r50-mmaction2-32x2": [74.73],
    "i3d-r50-gluoncv-32x2": [74.87],
    "i3d-nl-r50-gluoncv-32x2": [75.17],
    "i3d-r101-gluoncv-32x2": [75.10],
}


def test_reported_accuracies_are_those_of_the_paper_and_say_how_they_were_measured():
    for name, network in MODELS.items():
        assert [one.top1 for one in network.reported if "Sports-1M" not in one.protocol] == REPORTED.get(name, [])
        assert all(one.source and one.protocol and one.training for one in network.reported)
        assert network.reported or network.note
    assert str(MODELS["i3d"].reported[0]).startswith("RGB: 71.1 / 89.3, ImageNet, then Kinetics-400; Kinetics-400 test")
    (sports,) = MODELS["c3d"].reported
    assert "Sports-1M test set" in str(sports)
    assert "another data set" in MODELS["c3d"].note


def test_names_build_with_classes_and_channels_of_your_own():
    with torch.device("meta"):
        c3d = build_network("c3d", 5, in_channels=2, class_names=tuple("abcde"))
        assert isinstance(c3d, C3D)
        assert (c3d.num_classes, c3d.in_channels, c3d.class_names) == (5, 2, tuple("abcde"))
        assert not hasattr(c3d.conv1a, "norm")  # the original
        assert build_network("c3d").num_classes == 487
        pair = build_network("two-stream-i3d", 5, class_names=tuple("abcde"))
        assert (pair.num_classes, pair.class_names) == (5, tuple("abcde"))


def test_unknown_names_are_refused_with_the_nearest_ones():
    with pytest.raises(InflateError, match=r"no such network(.|\n)*inflated/SOURCE(.|\n)*did you mean 3d-resnet50"):
        find_network("3d-resnet-50")
    with pytest.raises(InflateError, match=r"no such network"):
        build_network("i4d")
    with pytest.raises(InflateError, match=r"not built with such options(.|\n)*in_channels=2(.|\n)*two streams have"):
        build_network("two-stream", 5, in_channels=2)
    with pytest.raises(InflateError, match=r"not built with such options(.|\n)*model2d=ReLU"):
        build_network("i3d", model2d=torch.nn.ReLU())
    with pytest.raises(InflateError, match=r"no such network"):
        find_network(None)


@pytest.fixture(scope="module")
def resnet3d():
    """ResNet-18 with nine classes, and the file that its 2D weights come from."""
    return build_network("inflated/torchvision/resnet18", 9, class_names=tuple("abcdefghi")).eval()


def test_an_inflated_classifier_answers_still_clips_as_the_picture():
    model2d = torchvision.models.resnet18().eval()
    model3d = inflated_classifier("torchvision/resnet18", model2d=model2d).eval()
    assert inflated_classifier("torchvision/resnet18", 5, model2d=model2d).num_classes == 5
    assert model2d.fc.out_features == 1000  # it stays as it is
    assert (model3d.num_classes, model3d.in_channels, model3d.clip_spec.crop) == (1000, 3, 224)
    picture = torch.rand(2, 3, 64, 67)
    preset = torchvision.models.ResNet18_Weights.DEFAULT.transforms()
    normalized = torchvision.transforms.functional.normalize(picture, preset.mean, preset.std)
    with torch.inference_mode():
        answer = model3d((picture * 2 - 1).unsqueeze(2).repeat(1, 1, 9, 1, 1))
        torch.testing.assert_close(answer, model2d(normalized), rtol=1e-4, atol=1e-4)


def test_an_inflated_classifier_has_strides_in_time_as_i3d_has(resnet3d):
    assert isinstance(resnet3d, InflatedClassifier)
    assert resnet3d.inflated.plan.preset == "i3d"
    assert max(layer.time_stride for layer in resnet3d.inflated.plan) == 2
    assert (resnet3d.num_classes, resnet3d.class_names) == (9, tuple("abcdefghi"))
    assert resnet3d.inflated.net.fc.out_features == 9


@pytest.mark.parametrize(
    ("source", "mean"),
    [
        ("torchvision/googlenet", 0.5),  # TensorFlow's weights want -1..1
        ("torchvision/mobilenet_v3_small", 0.485),
        ("timm/test_resnet", 0.5),
    ],
)
def test_pixels_are_normalized_as_the_2d_model_was_trained(source, mean):
    model = inflated_classifier(source, 3)
    assert model.mean[0] == mean
    assert model.num_classes == 3


def test_flow_that_stands_still_stays_zero():
    model = inflated_classifier("torchvision/resnet18", 3, 2).eval()
    seen = []
    model.inflated.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.inference_mode():
        model(torch.zeros(1, 2, 5, 64, 65))
        model(torch.ones(1, 2, 5, 64, 65))
    assert seen[0].abs().max() == 0
    torch.testing.assert_close(seen[1], torch.full_like(seen[1], 0.5 / 0.226))


def test_what_cannot_be_inflated_or_fed_is_refused(resnet3d):
    with pytest.raises(InflateError, match=r"no linear classifier(.|\n)*SqueezeNet"):
        inflated_classifier("torchvision/squeezenet1_1", 3)
    with pytest.raises(InflateError, match=r"torchvision/resnet18: there is no such network"):
        inflated_classifier("torchvision/resnet18", 3, class_names=("run",))
    for classes in (0, -3):
        with pytest.raises(InflateError, match=rf"torchvision/resnet18: there is no such network(.|\n)*={classes},"):
            inflated_classifier("torchvision/resnet18", classes)
    with pytest.raises(InflateError, match=r"ResNet: pixels leave the range"):
        resnet3d(torch.full((1, 3, 5, 64, 64), 255.0))
    with pytest.raises(InflateError, match=r"no 2D model of this name"):
        build_network("inflated/torchvision/resnet19")
