"""What has to hold for whatever is inflated, and the ways to look at it."""

import torch
from torch import nn


def still(picture, frames):
    """A clip `[b, c, t, h, w]` of one picture."""
    return picture.unsqueeze(2).repeat(1, 1, frames, 1, 1)


def check_still(model2d, model3d, shape=(2, 3, 17, 13), lengths=(1, 2, 5), rtol=1e-9):
    """Every frame of the answer to a still clip is the answer to the picture."""
    picture = torch.randn(shape).double()
    pool, model3d.time_pool = model3d.time_pool, "none"
    with torch.no_grad():
        answer = model2d(picture)
        for frames in lengths:
            answer3d = model3d(still(picture, frames))
            expected = answer.unsqueeze(2 if answer.ndim == 4 else 1).expand_as(answer3d)
            torch.testing.assert_close(answer3d, expected, rtol=rtol, atol=rtol * float(answer.abs().max()))
    model3d.time_pool = pool


def scramble(model3d):
    """Give inflated kernels values that differ from frame to frame."""
    with torch.no_grad():
        for parameter in model3d.parameters():
            if parameter.ndim == 5:
                parameter.normal_()
    return model3d


def repeat_ends(clip, front, back):
    return torch.cat([clip[:, :, :1]] * front + [clip] + [clip[:, :, -1:]] * back, dim=2)


def frames_seen(model3d, frame, shape):
    """The frames on which one frame of the answer depends, by gradient."""
    clip = torch.randn(shape).double().requires_grad_()
    answer = model3d(clip)
    (answer[:, :, frame] if answer.ndim == 5 else answer[:, frame]).square().sum().backward()
    return clip.grad.abs().amax((0, 1, 3, 4)).nonzero().flatten().tolist()


def gradients(model, clip):
    """Of the sum of the squared answer, by parameter."""
    model.zero_grad()
    model(clip).square().sum().backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def head(channels, classes):
    return nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)
