"""I3D written a second time, straight from the published layer table, sharing nothing with the package."""

from functools import partial

import numpy as np
import torch
import torch.nn.functional as F

# name, (branch 0; branch 1 reduce, full; branch 2 reduce, full; branch 3) or a pool's (kernel, stride)
TABLE = [
    ("Conv3d_1a_7x7", "conv", 64, (7, 7, 7), (2, 2, 2)),
    ("MaxPool3d_2a_3x3", "pool", None, (1, 3, 3), (1, 2, 2)),
    ("Conv3d_2b_1x1", "conv", 64, (1, 1, 1), (1, 1, 1)),
    ("Conv3d_2c_3x3", "conv", 192, (3, 3, 3), (1, 1, 1)),
    ("MaxPool3d_3a_3x3", "pool", None, (1, 3, 3), (1, 2, 2)),
    ("Mixed_3b", "mixed", 256, None, None),
    ("Mixed_3c", "mixed", 480, None, None),
    ("MaxPool3d_4a_3x3", "pool", None, (3, 3, 3), (2, 2, 2)),
    ("Mixed_4b", "mixed", 512, None, None),
    ("Mixed_4c", "mixed", 512, None, None),
    ("Mixed_4d", "mixed", 512, None, None),
    ("Mixed_4e", "mixed", 528, None, None),
    ("Mixed_4f", "mixed", 832, None, None),
    ("MaxPool3d_5a_2x2", "pool", None, (2, 2, 2), (2, 2, 2)),
    ("Mixed_5b", "mixed", 832, None, None),
    ("Mixed_5c", "mixed", 1024, None, None),
]


def pad_same(x, kernel, stride, value):
    """TF's rule in numpy, one axis after the other."""
    for axis, (k, s) in enumerate(zip(kernel, stride, strict=True), start=2):
        n = x.shape[axis]
        total = max((int(np.ceil(n / s)) - 1) * s + k - n, 0)
        widths = [(0, 0)] * x.ndim
        widths[axis] = (total // 2, total - total // 2)
        x = np.pad(x, widths, constant_values=value)
    return x


def pad_static(x, kernel, stride):
    """The rule of hassony2's port in 2018: kernel minus stride, the smaller half in front, zeros for pools as well."""
    widths = [((k - s) // 2, k - s - (k - s) // 2) for k, s in zip(kernel, stride, strict=True)]
    return np.pad(x, [(0, 0), (0, 0), *widths])


class Same:
    """TensorFlow's network."""

    eps = 1e-3

    @staticmethod
    def conv(x, weight, stride=(1, 1, 1)):
        padded = pad_same(x.numpy(), weight.shape[2:], stride, 0.0)
        return F.conv3d(torch.from_numpy(padded), weight, stride=stride)

    @staticmethod
    def pool(x, kernel, stride):
        padded = pad_same(x.numpy(), kernel, stride, -np.inf)
        return F.max_pool3d(torch.from_numpy(padded), kernel, stride)


class Static:
    """The port that video_features carries."""

    eps = 1e-5

    @staticmethod
    def conv(x, weight, stride=(1, 1, 1)):
        return F.conv3d(torch.from_numpy(pad_static(x.numpy(), weight.shape[2:], stride)), weight, stride=stride)

    @staticmethod
    def pool(x, kernel, stride):
        return F.max_pool3d(torch.from_numpy(pad_static(x.numpy(), kernel, stride)), kernel, stride, ceil_mode=True)


def unit(x, state, name, rule, stride=(1, 1, 1)):
    x = rule.conv(x, state[f"{name}.conv_3d.weight"], stride)
    mean, var, beta = (
        state[f"{name}.batch_norm.{key}"][:, None, None, None] for key in ("running_mean", "running_var", "bias")
    )
    return torch.relu((x - mean) / torch.sqrt(var + rule.eps) + beta)


def run(x, state, rule=Same):
    """All endpoints of a clip `[b, c, t, h, w]` in float64, with `state` in the package's names."""
    found = {}
    for name, kind, channels, kernel, stride in TABLE:
        if kind == "conv":
            x = unit(x, state, name, rule, stride)
        elif kind == "pool":
            x = rule.pool(x, kernel, stride)
        else:
            part = partial(unit, state=state, rule=rule)
            b0 = part(x, name=f"{name}.Branch_0.Conv3d_0a_1x1")
            b1 = part(part(x, name=f"{name}.Branch_1.Conv3d_0a_1x1"), name=f"{name}.Branch_1.Conv3d_0b_3x3")
            b2 = part(part(x, name=f"{name}.Branch_2.Conv3d_0a_1x1"), name=f"{name}.Branch_2.Conv3d_0b_3x3")
            b3 = part(rule.pool(x, (3, 3, 3), (1, 1, 1)), name=f"{name}.Branch_3.Conv3d_0b_1x1")
            x = torch.cat([b0, b1, b2, b3], dim=1)
        assert channels is None or x.shape[1] == channels
        found[name] = x
    pooled = F.avg_pool3d(x, (2, 7, 7), stride=1)
    weight, bias = (state[f"Logits.Conv3d_0c_1x1.conv_3d.{key}"] for key in ("weight", "bias"))
    per_position = F.conv3d(pooled, weight, bias)
    found["Logits"] = per_position.mean(dim=(2, 3, 4))
    return found
