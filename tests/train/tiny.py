"""What the tests of training share: small videos whose class is a motion, a tiny network, a recipe without chance."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from inflate3d import inflate
from inflate3d.clips.dataset import Listing, Sample, Splits
from inflate3d.train.recipe import Recipe
from videos import write_video

CLASSES = ("left", "right", "up")
MOVES = {"left": (0, -3), "right": (0, 3), "up": (-3, 0)}

PLAIN = Recipe(
    "plain",
    num_frames=5,
    short_side=33,
    crop=32,
    flip=False,
    fps="native",
    lr=0.05,
    batch_size=4,
    epochs=2,
    weight_decay=0.01,
    precision="fp32",
    freeze_norm=True,
)


def moving_square(move: tuple[int, int], seed: int, num_frames: int = 9) -> list[np.ndarray]:
    """A bright square on noise that moves."""
    random = np.random.default_rng(seed)
    row, column = random.integers(8, 24, 2)
    ground = random.integers(0, 90, (34, 46, 3), dtype=np.uint8)
    pictures = []
    for t in range(num_frames):
        picture = ground.copy()
        top, left = (row + move[0] * t) % 28, (column + move[1] * t) % 40
        picture[top : top + 6, left : left + 6] = 255
        pictures.append(picture)
    return pictures


def write_clips(folder: Path, count: int = 4, num_frames: int = 9) -> Path:
    """A folder of classes with so many clips each."""
    for c, label in enumerate(CLASSES):
        (folder / label).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            pictures = moving_square(MOVES[label], seed=100 * c + i, num_frames=num_frames)
            write_video(folder / label / f"{i}.mp4", pictures)
    return folder


def samples_in(folder: Path) -> list[Sample]:
    return [
        Sample(str(path), (c,), group=path.stem)
        for c, label in enumerate(CLASSES)
        for path in sorted((folder / label).iterdir())
    ]


def splits_of(folder: Path, num_val: int = 1) -> Splits:
    samples = samples_in(folder)
    val = [sample for sample in samples if int(Path(sample.path).stem) < num_val]
    train = [sample for sample in samples if sample not in val]
    return Splits(tuple(train), tuple(val), (), CLASSES, str(folder))


def listing_of(folder: Path) -> Listing:
    return Listing(tuple(samples_in(folder)), CLASSES, str(folder))


class TinyNet(nn.Module):
    """Two convolutions with batch norm and a classifier, on frames."""

    def __init__(self, num_classes: int = len(CLASSES), dropout: float = 0.0) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 5, 3, stride=2, padding=1)
        self.norm1 = nn.BatchNorm2d(5)
        self.conv2 = nn.Conv2d(5, 7, 3, stride=2, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(7)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(7, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm1(self.conv1(x)).relu()
        x = self.norm2(self.conv2(x)).relu()
        return self.fc(self.dropout(x.mean((2, 3))))


def tiny_model(seed: int = 3, dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(seed)
    return inflate(TinyNet(dropout=dropout), "video", example=torch.zeros(1, 3, 32, 32))


def recipe(**changes: object) -> Recipe:
    return replace(PLAIN, **changes)  # type: ignore[arg-type]
