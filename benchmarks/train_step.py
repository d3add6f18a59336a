"""A training step of an inflated ResNet-18 in the default settings against one in plain float32, by turns.

    python benchmarks/train_step.py [--preset video] [--runs 7]

Eight clips of 8 frames of 112 x 112 pixels, all layers trained, batch norms frozen on both sides as the recipe
`finetune-small` has them. The default settings are bfloat16, channels-last memory and a fused optimizer; plain is
float32, contiguous, and torch's default AdamW. It exits with 1 where the median ratio is above 0.6.
"""

import argparse
import copy
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import resnet18

from inflate3d import inflate
from inflate3d.speed.memory import keep_memory
from inflate3d.train.module import ClipTask
from inflate3d.train.network import freeze, keep_frozen_in_eval, prepare
from inflate3d.train.recipes import find_recipe

LIMIT = 0.6
CLIPS, FRAMES, SIDE, CLASSES = 8, 8, 112, 7


def main() -> int:
    """Time both steps by turns and print their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="video")
    parser.add_argument("--runs", type=int, default=7)
    given = parser.parse_args()
    keep_memory()
    torch.manual_seed(0)
    model = inflate(resnet18(num_classes=CLASSES), given.preset, example=torch.zeros(1, 3, SIDE, SIDE))
    clips = torch.randint(0, 256, (CLIPS, 3, FRAMES, SIDE, SIDE), dtype=torch.uint8)
    target = torch.arange(CLIPS) % CLASSES
    steps = {"plain": plain(copy.deepcopy(model), clips, target), "default": default(model, clips, target)}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(given.runs + 1):
        for name, step in steps.items():
            began = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - began)
    ratios = [b / a for a, b in zip(seconds["plain"][1:], seconds["default"][1:], strict=True)]
    for name, values in seconds.items():
        print(f"{name}: {statistics.median(values[1:]):.3f} s")
    ratio = statistics.median(ratios)
    print(f"ratio: {ratio:.3f} (limit {LIMIT})")
    return int(ratio > LIMIT)


def default(model: nn.Module, clips: torch.Tensor, target: torch.Tensor) -> Callable[[], None]:
    """Make the step of the package."""
    recipe = replace(find_recipe("finetune-small"), freeze="", cached_views=0, clip_norm=0.0)
    task = ClipTask(prepare(model, recipe, CLASSES), recipe, CLASSES).train()
    task.log = lambda *_, **__: None  # type: ignore[method-assign]  # there is no trainer
    optimizer = task.configure_optimizers()["optimizer"]
    batch = {"clip": clips, "target": target, "valid": torch.ones(CLIPS, dtype=torch.bool)}

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = task.training_step(batch, 0)
        loss.backward()
        optimizer.step()

    return step


def plain(model: nn.Module, clips: torch.Tensor, target: torch.Tensor) -> Callable[[], None]:
    """Make the step that anybody would write."""
    recipe = replace(find_recipe("finetune-small"), freeze="", cached_views=0)
    freeze(model, recipe, CLASSES)
    keep_frozen_in_eval(model.train(), recipe)
    optimizer = torch.optim.AdamW([value for value in model.parameters() if value.requires_grad], lr=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(clips.float() / 127.5 - 1), target, label_smoothing=0.1)
        loss.backward()
        optimizer.step()

    return step


if __name__ == "__main__":
    sys.exit(main())
