"""The ResNet-152 for CT is the one that its weights were trained with: beside a network written by hand."""

import pytest
import torch
from torch import nn

from inflate3d.clips.volume import reorient, resample, window
from inflate3d.clips.volume_files import read_volume
from inflate3d.errors import InflateError
from inflate3d.models.ct import CtResNet152, from_published
from inflate3d.weights.catalogue import CATALOGUE, weights_path
from inflate3d.weights.load import load

NAME = "ct-resnet152-astra"


class Bottleneck(nn.Module):
    def __init__(self, inside, middle, stride, shortcut):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv3d(inside, middle, 1, bias=False), nn.BatchNorm3d(middle)
        self.conv2 = nn.Conv3d(middle, middle, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm3d(middle)
        self.conv3, self.bn3 = nn.Conv3d(middle, 4 * middle, 1, bias=False), nn.BatchNorm3d(4 * middle)
        projection = nn.Conv3d(inside, 4 * middle, 1, stride, bias=False), nn.BatchNorm3d(4 * middle)
        self.downsample = nn.Sequential(*projection) if shortcut else nn.Identity()

    def forward(self, x):
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu())).relu()
        return (self.bn3(self.conv3(y)) + self.downsample(x)).relu()


class ByHand(nn.Module):
    """Names as torchvision's; no code of the package."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv3d(3, 64, (3, 7, 7), (1, 2, 2), (1, 3, 3), bias=False)
        self.bn1, self.maxpool = nn.BatchNorm3d(64), nn.MaxPool3d(3, 2, 1)
        inside = 64
        for level, (middle, count) in enumerate(((64, 3), (128, 8), (256, 36), (512, 3)), 1):
            blocks = []
            for number in range(count):
                stride = 2 if level > 1 and number == 0 else 1
                blocks.append(Bottleneck(inside, middle, stride, shortcut=number == 0))
                inside = 4 * middle
            setattr(self, f"layer{level}", nn.Sequential(*blocks))

    def forward(self, volume):
        x = self.maxpool(self.bn1(self.conv1(volume.repeat(1, 3, 1, 1, 1))).relu())
        for level in range(1, 5):
            x = getattr(self, f"layer{level}")(x)
        return x.mean((2, 3, 4))


@pytest.fixture(scope="module")
def network():
    return CtResNet152().eval()


def test_it_answers_as_a_network_written_by_hand(network):
    by_hand = ByHand().eval()
    generator = torch.Generator().manual_seed(0)
    for layer in by_hand.modules():
        if isinstance(layer, nn.BatchNorm3d):
            layer.running_var.uniform_(0.8, 1.2, generator=generator)
            layer.running_mean.normal_(0, 0.1, generator=generator)
    network.load_state_dict(from_published(by_hand.state_dict()))  # strict
    volume = torch.rand(1, 1, 21, 45, 39, generator=generator)
    with torch.inference_mode():
        torch.testing.assert_close(network(volume), by_hand(volume), rtol=1e-3, atol=1e-4)


def test_it_takes_one_channel_in_0_to_1(network):
    with pytest.raises(InflateError, match="another number of channels"):
        network(torch.zeros(1, 3, 8, 32, 32))
    with pytest.raises(InflateError, match="leave the range"):
        network(torch.full((1, 1, 8, 32, 32), -1000.0))


@pytest.mark.shared
@pytest.mark.skipif(not weights_path(NAME).exists(), reason=f"inflate3d weights fetch {NAME}")
def test_real_weights_on_a_real_crop_answer_as_by_hand(shared):
    network, by_hand = load(NAME), ByHand().eval()
    state = {name.removeprefix("inflated.net."): value for name, value in network.state_dict().items()}
    by_hand.load_state_dict({name: value.view_as(by_hand.state_dict()[name]) for name, value in state.items()})
    scan = read_volume(shared / "data/volumes/stent.npz", spacing_mm=(1.0, 1.0, 1.0))
    crop = window(resample(reorient(scan, "SRA"), (2.0, 1.5, 1.5)), -1000, 200).data[None, :, 20:68, :72, :64]
    assert crop.std() > 0.05
    with torch.inference_mode():
        found, wanted = network(crop), by_hand(crop)
    assert wanted.abs().max() > 0.1
    assert float((found - wanted).abs().max()) < 1e-3


def test_its_parts_are_whole():
    entry = CATALOGUE[NAME]
    assert sum(part.member_bytes for part in (entry.file, *entry.more)) == 235_318_802
