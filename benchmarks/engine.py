"""What the engine costs: planning and building, and running against the same network written by hand with 5D modules.

    python benchmarks/engine.py [--runs 9]

Every comparison alternates within one run; medians of the ratios are printed. Channels-last memory, float32.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from inflate3d import build, inflate, make_plan


class ReplicateConv3d(nn.Conv3d):
    """A 3D convolution that repeats the border frames: what one writes by hand."""

    def forward(self, x: Tensor) -> Tensor:
        k = self.kernel_size[0]
        if k > 1:
            x = torch.cat([x[:, :, :1]] * ((k - 1) // 2) + [x] + [x[:, :, -1:]] * (k // 2), dim=2)
        return self._conv_forward(x, self.weight, self.bias)


def by_hand(model2d: nn.Module, model3d: nn.Module) -> nn.Module:
    """The inflated ResNet once more, with 5D modules all through and the same weights."""
    net = copy.deepcopy(model2d)
    kernels = {path: module.weight for path, module in model3d.net.named_modules() if isinstance(module, nn.Conv2d)}
    for path, module in list(net.named_modules()):
        new: nn.Module | None = None
        if isinstance(module, nn.Conv2d):
            weight = kernels[path] if kernels[path].ndim == 5 else kernels[path].unsqueeze(2)
            (h, w), (top, left), (down, right) = module.kernel_size, module.padding, module.stride
            new = ReplicateConv3d(
                module.in_channels, module.out_channels, (weight.shape[2], h, w), (1, down, right), (0, top, left),
                groups=module.groups, bias=module.bias is not None,
            )  # fmt: skip
            new.weight = nn.Parameter(weight.detach().clone())
        elif isinstance(module, nn.BatchNorm2d):
            new = nn.BatchNorm3d(module.num_features)
            new.load_state_dict(module.state_dict())
        elif isinstance(module, nn.MaxPool2d):
            new = nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1))
        elif isinstance(module, nn.AdaptiveAvgPool2d):
            new = nn.AdaptiveAvgPool3d((None, 1, 1))
        if new is not None:
            parent, _, name = path.rpartition(".")
            setattr(net.get_submodule(parent), name, new)
    net.fc = nn.Sequential()

    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.fc = net, copy.deepcopy(model2d.fc)
            self.net.forward = self.features  # type: ignore[method-assign]

        def features(self, x: Tensor) -> Tensor:
            n = self.net
            x = n.maxpool(n.relu(n.bn1(n.conv1(x))))
            return n.avgpool(n.layer4(n.layer3(n.layer2(n.layer1(x))))).flatten(2).transpose(1, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.features(x)).mean(1)

    return Head().train(model2d.training)


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def compare(ours: Callable[[], object], theirs: Callable[[], object], runs: int) -> dict[str, float]:
    ours(), theirs()
    pairs = [(seconds(ours), seconds(theirs)) for _ in range(runs)]
    first, second = (statistics.median(column) for column in zip(*pairs, strict=True))
    return {"ours": first, "theirs": second, "ratio": statistics.median(a / b for a, b in pairs)}


def measure(runs: int = 9) -> dict[str, Any]:
    """Time planning with building, a training step of the inflated ResNet-50, and its frames plan forward."""
    torch.manual_seed(0)
    model2d = torchvision.models.resnet50().eval()
    build(make_plan(model2d), model2d)  # warm
    plan = statistics.median(seconds(lambda: build(make_plan(model2d), model2d)) for _ in range(3))

    model3d = inflate(model2d)
    hand = by_hand(model2d, model3d)
    clip = torch.randn(2, 3, 8, 112, 112).to(memory_format=torch.channels_last_3d)
    with torch.no_grad():
        torch.testing.assert_close(model3d(clip), hand(clip), rtol=1e-4, atol=1e-4)
    channels_last(model3d), channels_last(hand)

    def step(model: nn.Module) -> Callable[[], object]:
        return lambda: model(clip).square().sum().backward()

    model3d.train(), hand.train()
    training = compare(step(model3d), step(hand), runs)

    frames = inflate(model2d, "frames")
    flat = copy.deepcopy(model2d).to(memory_format=torch.channels_last)
    channels_last(frames)
    pictures = clip.transpose(1, 2).flatten(0, 1)
    with torch.no_grad():
        flat_frames = compare(lambda: frames(clip), lambda: flat(pictures), runs)
    return {"plan_seconds": plan, "training": training, "frames": flat_frames}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=9)
    found = measure(parser.parse_args().runs)
    print(f"plan + build of resnet50: {found['plan_seconds']:.2f} s")
    for title, name in (
        ("resnet50 video, forward and backward, 2x8x112x112, against 5D by hand", "training"),
        ("resnet50 frames, forward, against the 2D model", "frames"),
    ):
        times = f"{found[name]['ours']:.3f} s against {found[name]['theirs']:.3f} s"
        print(f"{title}: {times}, median ratio {found[name]['ratio']:.3f}")


def channels_last(model: nn.Module) -> None:
    for parameter in model.parameters():
        if parameter.ndim in (4, 5):
            form = torch.channels_last if parameter.ndim == 4 else torch.channels_last_3d
            parameter.data = parameter.data.to(memory_format=form)


if __name__ == "__main__":
    main()
