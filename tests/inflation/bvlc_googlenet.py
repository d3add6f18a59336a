"""BVLC GoogLeNet (Inception-v1 as Caffe had it), a plain module: biases, LRN, true 5x5, pools that round up.

Source: Szegedy et al. 2015, table 1, with the deviations of Caffe's bvlc_googlenet: local response norms after the
first pool and the second convolution, and no norm anywhere else.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

# input channels, then those of 1x1, 3x3 reduced, 3x3, 5x5 reduced, 5x5, pool projection
MIXED = {
    "3a": (192, 64, 96, 128, 16, 32, 32),
    "3b": (256, 128, 128, 192, 32, 96, 64),
    "4a": (480, 192, 96, 208, 16, 48, 64),
    "4b": (512, 160, 112, 224, 24, 64, 64),
    "4c": (512, 128, 128, 256, 24, 64, 64),
    "4d": (512, 112, 144, 288, 32, 64, 64),
    "4e": (528, 256, 160, 320, 32, 128, 128),
    "5a": (832, 256, 160, 320, 32, 128, 128),
    "5b": (832, 384, 192, 384, 48, 128, 128),
}
PARTS = {
    "branch1": "1x1",
    "branch3.0": "3x3_reduce",
    "branch3.2": "3x3",
    "branch5.0": "5x5_reduce",
    "branch5.2": "5x5",
    "branch_pool.1": "pool_proj",
}
MEAN_BGR = (104.0, 117.0, 123.0)


class Mixed(nn.Module):
    """Four branches side by side."""

    def __init__(self, *widths: int) -> None:
        super().__init__()
        inputs, one, three_in, three, five_in, five, pooled = widths
        self.branch1 = nn.Conv2d(inputs, one, 1)
        self.branch3 = nn.Sequential(nn.Conv2d(inputs, three_in, 1), nn.ReLU(), nn.Conv2d(three_in, three, 3, 1, 1))
        self.branch5 = nn.Sequential(nn.Conv2d(inputs, five_in, 1), nn.ReLU(), nn.Conv2d(five_in, five, 5, 1, 2))
        self.branch_pool = nn.Sequential(nn.MaxPool2d(3, 1, 1), nn.Conv2d(inputs, pooled, 1))

    def forward(self, x: Tensor) -> Tensor:
        branches = (self.branch1, self.branch3, self.branch5, self.branch_pool)
        return torch.relu(torch.cat([branch(x) for branch in branches], dim=1))


class BvlcGoogLeNet(nn.Module):
    """Maps pictures `[n, 3, 224, 224]`, BGR 0-255 minus the mean, to logits `[n, 1000]`."""

    def __init__(self) -> None:
        super().__init__()
        mixed = {name: Mixed(*widths) for name, widths in MIXED.items()}
        self.conv1, self.pool1, self.norm1 = nn.Conv2d(3, 64, 7, 2, 3), _pool(), _norm()
        self.conv2_reduce, self.conv2 = nn.Conv2d(64, 64, 1), nn.Conv2d(64, 192, 3, 1, 1)
        self.norm2, self.pool2 = _norm(), _pool()
        self.mixed3 = nn.Sequential(mixed["3a"], mixed["3b"])
        self.pool3 = _pool()
        self.mixed4 = nn.Sequential(*(mixed[f"4{letter}"] for letter in "abcde"))
        self.pool4 = _pool()
        self.mixed5 = nn.Sequential(mixed["5a"], mixed["5b"])
        self.dropout = nn.Dropout(0.4)
        self.classifier = nn.Conv2d(1024, 1000, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(self.pool1(torch.relu(self.conv1(x))))
        x = torch.relu(self.conv2(torch.relu(self.conv2_reduce(x))))
        x = self.pool2(self.norm2(x))
        x = self.pool4(self.mixed4(self.pool3(self.mixed3(x))))
        x = self.mixed5(x).mean((2, 3), keepdim=True)
        return self.classifier(self.dropout(x)).flatten(1)


def read_bvlc_googlenet(path: Path) -> BvlcGoogLeNet:
    """Fill the network from a dump of `bvlc_googlenet.caffemodel`; every array has to find its place."""
    with np.load(path) as arrays:
        found = {_our_name(name): torch.from_numpy(arrays[name]) for name in arrays.files}
    model = BvlcGoogLeNet()
    model.load_state_dict(found)
    return model.eval()


def _pool() -> nn.MaxPool2d:
    return nn.MaxPool2d(3, 2, ceil_mode=True)


def _norm() -> nn.LocalResponseNorm:
    return nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75)


def _our_name(caffe: str) -> str:
    layer, kind = caffe.rsplit(".", 1)
    plain = {
        "conv1/7x7_s2": "conv1",
        "conv2/3x3_reduce": "conv2_reduce",
        "conv2/3x3": "conv2",
        "loss3/classifier": "classifier",
    }
    if layer in plain:
        return f"{plain[layer]}.{kind}"
    block, part = layer.removeprefix("inception_").split("/")
    ours = next(name for name, theirs in PARTS.items() if theirs == part)
    return f"mixed{block[0]}.{'abcde'.index(block[1])}.{ours}.{kind}"
