"""ResNet-I3D and its non-local blocks as plain 5D modules, with torchvision's names: what plans are compared with."""

import torch
import torch.nn.functional as F
from torch import nn

TEMPORAL = ((1, 1, 1), (1, 0, 1, 0), (1, 0, 1, 0, 1, 0), (0, 1, 0))  # blocks whose first convolution is 3x1x1
BLOCKS = ((0, 0, 0), (0, 1, 0, 1), (0, 1, 0, 1, 0, 1), (0, 0, 0))  # with a non-local block behind them


class NonLocal5d(nn.Module):
    """A non-local block with its affinity matrix written out."""

    def __init__(self, channels, attention="softmax", sub_sample="before"):
        super().__init__()
        self.attention, self.sub_sample = attention, sub_sample
        if attention != "gaussian":
            self.theta, self.phi = nn.Conv3d(channels, channels // 2, 1), nn.Conv3d(channels, channels // 2, 1)
        self.g, self.out = nn.Conv3d(channels, channels // 2, 1), nn.Conv3d(channels // 2, channels, 1)
        self.bn, self.pool = nn.BatchNorm3d(channels), nn.MaxPool3d((1, 2, 2))

    def forward(self, x):
        small = self.pool(x) if self.sub_sample == "before" else x
        theta = x if self.attention == "gaussian" else self.theta(x)
        phi = small if self.attention == "gaussian" else self.phi(small)
        g = self.g(small)
        if self.sub_sample == "after":
            phi, g = self.pool(phi), self.pool(g)
        affinity = torch.einsum("bci,bcj->bij", theta.flatten(2), phi.flatten(2))
        if self.attention == "dot_product":
            affinity = affinity / affinity.shape[2]
        else:
            scale = theta.shape[1] ** -0.5 if self.attention == "softmax" else 1
            affinity = (affinity * scale).softmax(2)
        y = torch.einsum("bij,bcj->bci", affinity, g.flatten(2)).view(x.shape[0], -1, *x.shape[2:])
        return x + self.bn(self.out(y))


class Bottleneck5d(nn.Module):
    """1x1 or 3x1x1, 1x3x3, 1x1, with the strides in space in the middle; then perhaps a non-local block."""

    def __init__(self, channels, stride, kernel, block):
        super().__init__()
        inputs, width, outputs = channels
        self.conv1 = nn.Conv3d(inputs, width, (kernel, 1, 1), padding=(kernel // 2, 0, 0), bias=False)
        self.conv2 = nn.Conv3d(width, width, (1, 3, 3), (1, stride, stride), (0, 1, 1), bias=False)
        self.conv3 = nn.Conv3d(width, outputs, 1, bias=False)
        self.bn1, self.bn2, self.bn3 = nn.BatchNorm3d(width), nn.BatchNorm3d(width), nn.BatchNorm3d(outputs)
        self.downsample = nn.Identity()
        if inputs != outputs:
            shortcut = nn.Conv3d(inputs, outputs, 1, (1, stride, stride), bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm3d(outputs))
        self.non_local = block

    def forward(self, x):
        y = self.bn1(self.conv1(x)).relu()
        y = self.bn3(self.conv3(self.bn2(self.conv2(y)).relu()))
        return self.non_local((y + self.downsample(x)).relu())


class ResNet5d(nn.Module):
    """ResNet-50, of bottlenecks 4, 8, 16 and 32 channels wide.

    Args:
        stride: Of conv1, in time.
        pool1: Kernel, stride and padding.
        attention: Of the non-local blocks.
        sub_sample: Likewise.
    """

    def __init__(self, stride, pool1, attention, sub_sample):
        super().__init__()
        self.conv1 = nn.Conv3d(3, 64, (5, 7, 7), (stride, 2, 2), (2, 3, 3), bias=False)
        self.bn1, self.pool1, self.pool2 = nn.BatchNorm3d(64), nn.MaxPool3d(*pool1), nn.MaxPool3d((2, 1, 1))
        inputs = 64
        for i, (temporal, blocks) in enumerate(zip(TEMPORAL, BLOCKS, strict=True)):
            stage = []
            for j, (has_time, has_block) in enumerate(zip(temporal, blocks, strict=True)):
                outputs = 256 * 2**i
                block = NonLocal5d(outputs, attention, sub_sample) if has_block else nn.Identity()
                space, kernel = 2 if i and j == 0 else 1, 3 if has_time else 1
                stage.append(Bottleneck5d((inputs, 4 * 2**i, outputs), space, kernel, block))
                inputs = outputs
            self.add_module(f"layer{i + 1}", nn.Sequential(*stage))
        self.fc = nn.Linear(inputs, 5)

    def forward(self, x):
        x = self.layer1(self.pool1(self.bn1(self.conv1(x)).relu()))
        x = self.layer4(self.layer3(self.layer2(self.pool2(x))))
        return self.fc(F.adaptive_avg_pool3d(x, 1).flatten(1))
