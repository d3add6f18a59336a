"""A network that names the color of a clip, and films for it: visitors of the page can be told apart by them."""

import numpy as np
import torch
from torch import nn

from inflate3d import ClipSpec
from videos import write_video


class Colors(nn.Module):
    """Names the color of a clip; `waits` is called in the midst of each run."""

    class_names = ("red", "green", "<b>blue</b>")
    clip_spec = ClipSpec(25.0, num_frames=8, min_frames=1, short_side=36, crop=32, value_range=(-1.0, 1.0))

    def __init__(self, waits=lambda: None):
        super().__init__()
        self.conv, self.head, self.waits = nn.Conv3d(3, 3, 3, padding=1), nn.Linear(3, 3), waits
        with torch.no_grad():
            self.conv.weight.zero_()[range(3), range(3), 1, 1, 1] = 1
            self.conv.bias.fill_(1)
            self.head.weight.copy_(5 * torch.eye(3))
            self.head.bias.zero_()

    def forward(self, clip):
        self.waits()
        return self.head(self.conv(clip).relu().mean((2, 3, 4)))


def film(path, color, *, num_frames=20, size=(48, 64), fps=25):
    """A video of one color, with a bright square that wanders."""
    pictures = np.full((num_frames, *size, 3), color, np.uint8)
    for number, picture in enumerate(pictures):
        left = number * 2 % (size[1] - 12)
        picture[8:20, left : left + 12] = 200
    return write_video(path, list(pictures), fps=fps)
