"""Small 2D models, each with one thing in it that makes inflation hard."""

import torch
from torch import Tensor, nn


def randomize(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give batch norms statistics and scales of their own, as training would; eval mode."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            module.running_mean.copy_(torch.randn(module.running_mean.shape, generator=generator) * 0.1)
            module.running_var.copy_(torch.rand(module.running_var.shape, generator=generator) + 0.5)
            if module.affine:
                module.weight.data.copy_(torch.rand(module.weight.shape, generator=generator) + 0.5)
    return model.eval()


def wake(model3d: nn.Module) -> nn.Module:
    """Give what is inserted, and starts at zero, values of its own."""
    with torch.no_grad():
        for parameter in model3d.inserts.parameters():
            parameter.normal_(std=parameter[0].numel() ** -0.5)
        for module in model3d.inserts.modules():
            if isinstance(module, nn.BatchNorm3d):
                module.running_mean.normal_(std=0.1)
                module.running_var.uniform_(0.5, 1.5)
    return model3d


class Residual(nn.Module):
    """A stem, a bottleneck with a shortcut, a head: a ResNet in small."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 7, 2, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.block = nn.Sequential(
            nn.Conv2d(16, 8, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 8, 3, 2, 1, groups=2, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 24, 1),
        )  # fmt: skip
        self.shortcut = nn.Conv2d(16, 24, 1, 2)
        self.head = nn.Linear(24, classes)

    def forward_features(self, x: Tensor) -> Tensor:
        x = self.pool(self.stem(x))
        return torch.relu(self.block(x) + self.shortcut(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.forward_features(x).mean((2, 3)))


class MergedRows(nn.Module):
    """Merges groups of channels into the batch before a convolution, as MViTv2 does with heads."""

    def __init__(self, inside: bool) -> None:
        super().__init__()
        self.inside = inside
        self.conv = nn.Conv2d(2, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        rows = x.view(n, c // 2, 2, h, w)
        if self.inside:
            return self.conv(rows.flatten(0, 1)).view(n, c, h, w)
        rows = rows.transpose(0, 1).flatten(0, 1)
        return self.conv(rows).view(c // 2, n, 2, h, w).transpose(0, 1).reshape(n, c, h, w)


class MixesTheBatch(nn.Module):
    """Subtracts the mean over the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return y - y.mean(0, keepdim=True)


class ManyOutputs(nn.Module):
    """Gives logits, a map, a channels-last map, tokens, and something that does not grow with the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 10, 3, padding=1)

    def forward(self, x: Tensor) -> dict[str, object]:
        y = self.conv(x)
        return {
            "logits": y.mean((2, 3)),
            "maps": (y, y.permute(0, 2, 3, 1)),
            "tokens": y.flatten(2).transpose(1, 2),
            "scale": self.conv.bias,
            "name": "ten",
        }
