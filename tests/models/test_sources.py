"""2D models are found by name, with the weights that were asked for, and nothing is fetched in silence."""

import socket
import sys
import warnings
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from inflate3d.errors import InflateError
from inflate3d.models.sources import example_shape, find_2d_model


@pytest.fixture
def offline(monkeypatch):
    def refuse(*_, **__):
        raise OSError("no network in this test")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refuse)


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    (tmp_path / "my_nets.py").write_text(
        "from torch import nn\n"
        "def tiny(num_classes=5):\n"
        "    return nn.Sequential(nn.Conv2d(3, num_classes, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).train()\n"
        "def nothing():\n    return 'tiny'\n"
    )
    (tmp_path / "my_broken_nets.py").write_text("import a_package_that_is_not_there\n")
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "options", "shape", "outputs"),
    [
        ("timm/test_resnet", {}, (3, 160, 160), 1000),
        ("timm/test_vit", {"in_chans": 1, "num_classes": 7, "img_size": 96}, (1, 96, 96), 7),
        ("timm/tresnet_m", {}, (3, 224, 224), 1000),
        ("timm/test_resnet.r160_in1k", {"in_chans": 5}, (5, 160, 160), 1000),
        ("torchvision/squeezenet1_1", {"num_classes": 7}, (3, 224, 224), 7),
        ("torchvision/googlenet", {}, (3, 224, 224), 1000),
        ("torchvision/inception_v3", {}, (3, 299, 299), 1000),
        ("torchvision/vit_b_32", {"image_size": 96, "num_classes": 7}, (3, 96, 96), 7),
    ],
)
def test_a_name_gives_a_model_and_its_picture(offline, name, options, shape, outputs):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = find_2d_model(name, **options)
    assert not model.training
    assert example_shape(model, name) == shape
    with torch.inference_mode():
        assert model(torch.zeros(1, *shape)).shape == (1, outputs)
    assert not [child for child, _ in model.named_children() if child.lower().startswith("aux")]


def test_a_segmentation_network_downloads_no_backbone(offline):
    name = "torchvision/lraspp_mobilenet_v3_large"
    model = find_2d_model(name, num_classes=5)
    assert example_shape(model, name) == (3, 520, 520)
    with torch.inference_mode():
        assert model(torch.zeros(1, 3, 65, 67))["out"].shape == (1, 5, 65, 67)


@pytest.mark.parametrize(
    ("kind", "options", "shape"),
    [
        ("resnet", {"embedding_size": 8, "hidden_sizes": [8, 12], "depths": [1, 1]}, (3, 224, 224)),
        ("deit", {"image_size": 32, "num_channels": 1, "hidden_size": 12, "num_hidden_layers": 1}, (1, 32, 32)),
        ("segformer", {"hidden_sizes": [8, 8, 8, 8], "depths": [1, 1, 1, 1], "num_channels": 2}, (2, 224, 224)),
    ],
)
def test_a_type_of_transformers_gives_a_classifier(offline, kind, options, shape):
    model = find_2d_model(f"hf/{kind}", num_labels=7, **options)
    assert not model.training
    assert model.config.model_type == kind
    assert example_shape(model, f"hf/{kind}") == shape
    with torch.inference_mode():
        assert model(torch.zeros(2, *shape)).logits.shape == (2, 7)


def test_a_type_of_transformers_without_classifier_gives_maps(offline):
    config = {"hidden_sizes": [4, 8, 10, 16], "depths": [1, 1, 1, 1], "decoder_hidden_size": 4}
    model = find_2d_model("hf/glpn", **config)
    assert type(model).__name__ == "GLPNForDepthEstimation"
    with torch.inference_mode():
        assert model(torch.zeros(2, 3, 64, 96)).predicted_depth.shape == (2, 64, 96)


@pytest.mark.parametrize("name", ["smp/Unet-resnet18", "smp/fpn-tu-test_resnet"])
def test_decoders_and_encoders_of_segmentation_models_pytorch(offline, name):
    model = find_2d_model(name, in_channels=1, classes=5)
    assert not model.training
    assert example_shape(model, name) == (1, 224, 224)
    with torch.inference_mode():
        assert model(torch.zeros(1, 1, 64, 96)).shape == (1, 5, 64, 96)


@pytest.mark.parametrize(
    ("name", "package"), [("hf/resnet", "transformers"), ("smp/Unet-resnet18", "segmentation_models_pytorch")]
)
def test_a_package_that_is_not_installed_is_named_with_its_extra(monkeypatch, name, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InflateError, match=rf'{package} is missing(.|\n)*pip install "inflate3d\[zoo\]"'):
        find_2d_model(name)


def test_a_function_of_ones_own(own_module):
    model = find_2d_model("my_nets:tiny", num_classes=7)
    assert not model.training
    assert model(torch.zeros(2, 3, 11, 13)).shape == (2, 7)
    assert example_shape(model, "my_nets:tiny") == (3, 224, 224)


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        (SimpleNamespace(image_size=96), (3, 96, 96)),
        (SimpleNamespace(image_size=[96, 128], num_channels=1), (1, 96, 128)),
        (SimpleNamespace(vision_config=SimpleNamespace(image_size=(336,), num_channels=3)), (3, 336, 336)),
        (SimpleNamespace(hidden_size=7), (3, 224, 224)),
        (SimpleNamespace(num_channels=2), (2, 224, 224)),
        ({"in_channels": 1, "classes": 5}, (1, 224, 224)),
    ],
)
def test_hugging_face_configs_are_read(config, shape):
    model = nn.Identity()
    model.config = config
    assert example_shape(model) == shape


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("timm/resnet5", "timm/resnet50"),
        ("torchvision/mobilenet_v4", "torchvision/mobilenet_v2"),
        ("torchvision/r3d_18", "torchvision/"),
        ("torchvision/fasterrcnn_resnet50_fpn", "torchvision/fcn_resnet50"),
        ("tim/resnet50", "timm/resnet50"),
        ("resnet50", "timm/resnet50"),
        ("", "did you mean"),
        ("timm/", "did you mean"),
        ("timm/hf-hub:someone/something", "did you mean"),
        ("my_nets:tny", "my_nets:tiny"),
        ("my_nets:", "my_nets:tiny"),
        ("hf/resnt", "hf/resnet"),
        ("hf/", "hf/"),
        ("smp/Unt-resnet18", "smp/Unet-resnet18"),
        ("smp/Unet-resnet8", "smp/Unet-resnet18"),
        ("smp/Unet", "smp/Unet-"),
    ],
)
def test_a_mistyped_name_is_answered_with_the_nearest(own_module, name, nearest):
    with pytest.raises(InflateError, match=rf"no 2D model of this name(.*\n)+.*{nearest}"):
        find_2d_model(name)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("my_net:tiny", {}, "no module of that name\n.*\n.*'my_net'\n.*PYTHONPATH"),
        (":tiny", {}, "no module of that name\n.*\n.*''"),
        ("my_nets.:tiny", {}, "no module of that name\n.*\n.*'my_nets.'"),
        ("..:tiny", {}, "no module of that name\n.*\n.*'..'"),
        ("my_net:", {}, "no module of that name\n.*\n.*'my_net'"),
        ("my_nets:nothing", {}, "something else than a model\n.*\n.*str: 'tiny'"),
        (
            "my_nets:tiny",
            {"weights": "pretrained"},
            "a network without weights of its own(.*\\n)+.*inside the function",
        ),
        (
            "my_nets:tiny",
            {"weights": "pretraind"},
            "no such weights of a 2D model\n.*'none' or 'pretrained'\n.*'pretraind'\n.*load_checkpoint",
        ),
        ("hf/resnet", {"weights": "pretrained"}, "without weights of its own(.*\n)+.*from_pretrained"),
        ("smp/Unet-resnet18", {"weights": "pretrained"}, "without weights of its own"),
        ("hf/resnet", {"depth": 3}, "the model cannot be built\n.*\n.*ResNetConfig has no depth"),
        ("hf/resnet", {"depths": "x"}, "the model cannot be built\n.*\n.*Field 'depths'"),
        ("smp/Unet-resnet18", {"encoder_depth": 9}, "the model cannot be built\n.*\n.*depth"),
        ("timm/test_resnet.nonsense", {}, "the model cannot be built\n.*\n.*Invalid pretrained tag"),
        ("timm/test_vit", {"nonsense": 3}, "the model cannot be built\n.*\n.*nonsense"),
        ("torchvision/alexnet", {"nonsense": 3}, "the model cannot be built\n.*\n.*nonsense"),
        (
            "torchvision/alexnet",
            {"weights": "pretrained"},
            "cannot be had\n.*\n.*no network in this test\n.*load_checkpoint",
        ),
    ],
)
def test_what_cannot_be_had_is_told(own_module, offline, name, arguments, message):
    with pytest.raises(InflateError, match=message):
        find_2d_model(name, **arguments)


def test_pretrained_weights_of_timm_are_asked_for_and_may_be_missing(monkeypatch):
    def create(name, *, pretrained):
        assert (name, pretrained) == ("test_resnet", True)
        raise RuntimeError("No pretrained weights exist for test_resnet.")

    monkeypatch.setattr("timm.create_model", create)
    with pytest.raises(InflateError, match=r"cannot be had\n.*\n.*No pretrained weights exist"):
        find_2d_model("timm/test_resnet", weights="pretrained")


def test_a_module_that_does_not_import_says_so_itself(own_module):
    with pytest.raises(ModuleNotFoundError, match="a_package_that_is_not_there"):
        find_2d_model("my_broken_nets:tiny")


def test_the_first_stride_is_changed_and_the_weights_are_not():
    torch.manual_seed(1)
    plain = find_2d_model("timm/test_resnet")
    torch.manual_seed(1)
    fine = find_2d_model("timm/test_resnet", first_stride=1)
    for name, value in plain.state_dict().items():
        assert torch.equal(value, fine.state_dict()[name])
    picture = torch.zeros(1, 3, 64, 96)
    assert fine.forward_features(picture).shape[2:] == tuple(2 * n for n in plain.forward_features(picture).shape[2:])
    for name, stride in (("timm/test_vit", 1), ("timm/test_resnet", 0), ("timm/test_resnet", 99)):
        with pytest.raises(InflateError, match="the first convolution cannot be given this stride"):
            find_2d_model(name, first_stride=stride)
