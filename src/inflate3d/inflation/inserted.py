"""Layers that a 2D model has not: pools, convolutions and attention over time, positions in time; zero at the start."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inflate3d.inflation.fold import Fold, Folded
from inflate3d.inflation.observe import fixed_tokens
from inflate3d.inflation.outputs import Form
from inflate3d.inflation.padding import pad_for
from inflate3d.inflation.plan import Insert

HEAD = 64  # channels of a head; Source: Dosovitskiy et al. 2021, table 1: all sizes of ViT
WAVES = 64  # sines and cosines from which a position in time is learned
STD = 0.01  # Source: Wang et al. 2018, the authors' code, configs: NONLOCAL.CONV_INIT_STD


class Site(NamedTuple):
    """What runs through a spot.

    Attributes:
        map: `[n, c, h, w]` of different pictures; tokens `[n, l, c]` are taken as `[n, c, l, 1]`.
        form: "map", "map-last" or "tokens": what it was.
    """

    map: Tensor
    form: Form


class Inserted(Folded):
    """Something that runs on the map that a module gives or is given, in clip form."""

    def __init__(self, insert: Insert, site: Site, fold: Fold) -> None:
        super().__init__()
        self.plan, self.fold, self.runs, self.form = insert.layer, fold, {}, site.form

    def forward(self, x: Tensor) -> Tensor:
        """Run on frames in the form of the site."""
        if x.ndim == 5:
            return self.through_time(x)
        return from_map(super().forward(as_map(x, self.form)), self.form)

    def padded(self, clip: Tensor) -> Tensor:
        """Pad in time as the plan says."""
        return pad_for(clip, self.plan.time_kernel, stride=self.plan.time_stride, padding=self.plan.padding)


class TimePool(Inserted):
    """A maximum over frames."""

    def through_time(self, x: Tensor) -> Tensor:
        """Take the maximum of `[b, c, t, h, w]` over windows in time."""
        return F.max_pool3d(self.padded(x), (self.plan.time_kernel, 1, 1), (self.plan.time_stride, 1, 1))


class TemporalConv(Inserted):
    """A convolution over frames, added to its input; zero at the start."""

    def __init__(self, insert: Insert, site: Site, fold: Fold) -> None:
        super().__init__(insert, site, fold)
        channels = site.map.shape[1]
        self.conv = nn.Conv3d(channels, channels, (self.plan.time_kernel, 1, 1))
        for parameter in self.conv.parameters():
            nn.init.zeros_(parameter)

    def through_time(self, x: Tensor) -> Tensor:
        """Convolve `[b, c, t, h, w]` in time and add the input."""
        added: Tensor = self.conv(self.padded(x))
        return x + added


class NonLocal(Inserted):
    """A non-local block over all positions of the clip, added to its input; batch norm makes it zero at the start.

    Source: Wang et al. 2018, Non-local Neural Networks, sections 3.2 and 3.3; the attention "softmax" and the
    sub-sampling "before" are those of the authors' code (`lib/models/nonlocal_helper.py`), not of the paper.
    """

    def __init__(self, insert: Insert, site: Site, fold: Fold) -> None:
        super().__init__(insert, site, fold)
        channels = site.map.shape[1]
        self.attention, self.sub_sample = insert.attention, insert.sub_sample
        inner = max(channels // 2, 1)
        if self.attention != "gaussian":
            self.theta, self.phi = nn.Conv3d(channels, inner, 1), nn.Conv3d(channels, inner, 1)
        self.g, self.out = nn.Conv3d(channels, inner, 1), nn.Conv3d(inner, channels, 1)
        self.bn = nn.BatchNorm3d(channels)
        nn.init.zeros_(self.bn.weight)
        for part in self.children():
            if isinstance(part, nn.Conv3d):
                nn.init.normal_(part.weight, std=STD)
                assert part.bias is not None
                nn.init.zeros_(part.bias)

    def through_time(self, x: Tensor) -> Tensor:
        """Let every position of `[b, c, t, h, w]` see all others, and add the input."""
        source = _halved(x) if self.sub_sample == "before" else x
        theta, phi = (x, source) if self.attention == "gaussian" else (self.theta(x), self.phi(source))
        g = self.g(source)
        if self.sub_sample == "after":
            phi, g = _halved(phi), _halved(g)
        theta, phi, g = (value.flatten(2).transpose(1, 2) for value in (theta, phi, g))  # [b, positions, channels]
        if self.attention == "dot_product":
            y = theta @ (phi.transpose(1, 2) @ g) / phi.shape[1]
        else:
            scale = None if self.attention == "softmax" else 1.0  # None: over the root of the channels
            y = F.scaled_dot_product_attention(theta[:, None], phi[:, None], g[:, None], scale=scale)[:, 0]
        added: Tensor = self.bn(self.out(y.transpose(1, 2).unflatten(2, x.shape[2:])))
        return x + added


def _halved(clip: Tensor) -> Tensor:
    return F.max_pool3d(clip, (1, 2, 2))


class TemporalAttention(Inserted):
    """Each place attends to itself in all frames of the clip, added to its input; zero at the start.

    Queries, keys and values see where in time a frame is, so that the order of frames is learned from the first step
    on. Source: Bertasius et al. 2021, Is Space-Time Attention All You Need for Video Understanding?, section 3, divided
    attention: time first, then space. Deviations: class tokens attend to themselves in time as all other places do, and
    positions in time are sinusoids, for clips of any length.
    """

    def __init__(self, insert: Insert, site: Site, fold: Fold) -> None:
        super().__init__(insert, site, fold)
        channels = site.map.shape[1]
        # as many channels for each head as in most vision transformers, where the channels allow it
        self.num_heads = next(heads for heads in range(max(channels // HEAD, 1), 0, -1) if channels % heads == 0)
        self.norm, self.qkv = nn.LayerNorm(channels), nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        for parameter in self.proj.parameters():
            nn.init.zeros_(parameter)

    def through_time(self, x: Tensor) -> Tensor:
        """Let the places of `[b, c, t, h, w]` see themselves in all frames, and add the input."""
        clip = x.permute(0, 3, 4, 2, 1)  # [b, h, w, t, c]
        tokens = self.norm(clip.flatten(0, 2))
        tokens = tokens + sinusoids(x.shape[2], x.shape[1], tokens)
        query, key, value = self.qkv(tokens).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        answer = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        added: Tensor = self.proj(answer).unflatten(0, clip.shape[:3])
        return x + added.permute(0, 4, 3, 1, 2)


class TimePosition(Inserted):
    """A vector for each frame, made from where in time it is, added to its input; zero at the start.

    Tokens that are the same for all pictures (class token, registers) stand for the clip and are left alone.
    """

    def __init__(self, insert: Insert, site: Site, fold: Fold) -> None:
        super().__init__(insert, site, fold)
        self.clip_tokens = fixed_tokens(from_map(site.map, "tokens")) if site.form == "tokens" else 0
        self.proj = nn.Linear(WAVES, site.map.shape[1], bias=False)
        nn.init.zeros_(self.proj.weight)

    def through_time(self, x: Tensor) -> Tensor:
        """Add its vector to all places of each frame of `[b, c, t, h, w]`."""
        vectors = self.proj(sinusoids(x.shape[2], WAVES, self.proj.weight)).T[:, :, None, None]
        once = self.clip_tokens
        return torch.cat([x[:, :, :, :once], x[:, :, :, once:] + vectors], dim=3) if once else x + vectors


def sinusoids(num_frames: int, width: int, like: Tensor) -> Tensor:
    """Tell frames apart by sines and cosines of their numbers: `[t, width]`.

    Source: Vaswani et al. 2017, Attention Is All You Need, section 3.5.

    Example:
        >>> sinusoids(2, 3, torch.zeros(1)).tolist()[0]
        [0.0, 1.0, 0.0]
    """
    channel = torch.arange(width, dtype=torch.float64, device=like.device)
    speed = 10000.0 ** (-2 * (channel // 2) / width)
    angle = torch.arange(num_frames, dtype=torch.float64, device=like.device)[:, None] * speed
    return torch.where(channel % 2 == 0, angle.sin(), angle.cos()).to(like.dtype)


CLASSES: dict[str, type[Inserted]] = {
    "time_pool": TimePool,
    "temporal_conv": TemporalConv,
    "nonlocal": NonLocal,
    "temporal_attention": TemporalAttention,
    "time_position": TimePosition,
}
ON_TOKENS = ("temporal_attention", "time_position")  # and on maps whose channels stand last


def as_map(x: Tensor, form: Form) -> Tensor:
    """Take tokens `[n, l, c]` as `[n, c, l, 1]`, and `[n, h, w, c]` as `[n, c, h, w]`; views."""
    return x.transpose(1, 2).unsqueeze(-1) if form == "tokens" else x.movedim(-1, 1) if form == "map-last" else x


def from_map(x: Tensor, form: Form) -> Tensor:
    """Undo `as_map`."""
    return x.squeeze(-1).transpose(1, 2) if form == "tokens" else x.movedim(1, -1) if form == "map-last" else x
