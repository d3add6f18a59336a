"""Networks that tell which frames and crops they were shown, and videos whose frames tell their number."""

import numpy as np
import torch
from torch import nn

from inflate3d import ClipSpec
from inflate3d.speed.optimize import Optimized
from videos import write_video

SIDE, CROP = 256, 224
FLOW_PER_NUMBER, MIDDLE = 0.3, 64  # pixels to the right, from frame n: 0.3 (n - 64), within 20 of either side


class Witness(nn.Module):
    """Answers with the mean of each channel, how much brighter the right half is in each, and zeros up to `width`."""

    def __init__(self, in_channels=3, width=1024, **spec):
        super().__init__()
        known = {"fps": 25.0, "num_frames": 16, "min_frames": 1, "short_side": SIDE, "crop": CROP}
        self.clip_spec = ClipSpec(**{**known, "value_range": (-1.0, 1.0), **spec})
        self.in_channels, self.width = in_channels, width

    def forward(self, clip):
        means = clip.mean((2, 3, 4))
        half = clip.shape[-1] // 2
        slopes = clip[..., -half:].mean((2, 3, 4)) - clip[..., :half].mean((2, 3, 4))
        told = torch.cat([means, slopes], 1)
        return torch.nn.functional.pad(told, (0, self.width - told.shape[1]))


class SteppingWitness(Witness):
    """Has one of these vectors for each eight frames, as I3D does: each is the mean of 16 frames."""

    def __init__(self, in_channels=3, width=1024, **spec):
        super().__init__(in_channels, width, **spec)
        self.classifier = nn.Conv3d(width, 2, 1)

    def forward(self, clip):
        count = -(-clip.shape[2] // 8) - 1
        steps = [super(SteppingWitness, self).forward(clip[:, :, 8 * i : 8 * i + 16]) for i in range(count)]
        return self.classifier(torch.stack(steps, 2)[..., None, None]).mean((2, 3, 4))


class StreamOfWitness:
    """In place of `Stream`: collects the pieces of a video and answers them all at its end."""

    def __init__(self, model, num_frames=None):
        self.net = model.model if isinstance(model, Optimized) else model
        self.num_frames, self.pieces = num_frames, []

    def settle(self, piece):
        """In float32 nothing is to be compared."""
        assert piece.dtype == torch.float32

    def call(self, method, piece, *args, is_last=False):
        assert method == "forward"
        self.pieces.append(piece)
        if not is_last:
            return None
        video = torch.cat(self.pieces, 2)
        assert video.shape[2] == self.num_frames
        return self.net(video)


def picture(number, height=36, width=48):
    """Red is the number; green rises to the right, blue downward."""
    found = np.empty((height, width, 3), np.uint8)
    found[..., 0] = number
    found[..., 1] = np.linspace(0, 250, width).round()
    found[..., 2] = np.linspace(0, 250, height).round()[:, None]
    return found


def write_numbered(path, count, fps=30, **size):
    """Write a video without loss."""
    return write_video(
        path, [picture(i, **size) for i in range(count)], codec="libx264rgb", pix_fmt="rgb24", fps=fps, qp="0"
    )


def numbers_of(rows, value_range=(-1.0, 1.0)):
    """Read the (mean) number of the frames out of colors `[..., c]`."""
    low, high = value_range
    return (np.asarray(rows, np.float64)[..., 0] - low) / (high - low) * 255


def numbers_of_flow(rows):
    """Read the same out of flow in -1..1, whose bound is 20 pixels."""
    return np.asarray(rows, np.float64)[..., 0] * 20 / FLOW_PER_NUMBER + MIDDLE


def numbered_flow(first, second):
    """To the right what tells the first frame's number; down ten pixels for each frame from first to second."""
    a, b = (frames[..., 0].float().mean((1, 2)) for frames in (first, second))
    flow = torch.stack([(a - MIDDLE) * FLOW_PER_NUMBER, (b - a) * 10], 1)
    return flow[..., None, None].expand(-1, -1, *first.shape[1:3]).contiguous()
