"""Pools that a model calls as functions get time like those that are layers."""

import copy
import pickle
import threading

import pytest
import torch
import torch.nn.functional as F
from small_models import randomize
from torch import nn

from inflate3d import InflateError, Rule, build, deflate, inflate, make_plan
from inflate3d.inflation.plan import Plan

PICTURE = torch.zeros(1, 3, 33, 41)


class ByModule(nn.Module):
    """Two branches that shrink the picture and meet: a strided convolution and a pool, and pools ahead of them."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.pool1, self.pool2 = nn.MaxPool2d(3, 2, 1), nn.MaxPool2d(2)
        self.conv, self.norm = nn.Conv2d(6, 6, 3, 2, 1), nn.BatchNorm2d(6)
        self.branch, self.smooth = nn.MaxPool2d(3, stride=2, padding=1), nn.AvgPool2d(3, 1, 1)

    def forward(self, x):
        x = self.pool2(self.pool1(self.stem(x)))
        pooled = self.smooth(self.branch(x))
        return torch.cat([self.norm(self.conv(x)), pooled], 1).mean((2, 3))


class ByCall(ByModule):
    """The same, every second pool called as a function, one of them in a part of its own."""

    def forward(self, x):
        x = F.max_pool2d(self.pool1(self.stem(x)), 2)
        pooled = self.smooth(F.max_pool2d(x, kernel_size=3, stride=2, padding=1))
        return torch.cat([self.norm(self.conv(x)), pooled], 1).mean((2, 3))


def pair(preset="i3d"):
    by_module, by_call = randomize(ByModule()).double(), randomize(ByCall()).double()
    by_call.load_state_dict(by_module.state_dict())
    return inflate(by_module, preset, example=PICTURE), inflate(by_call, preset, example=PICTURE)


def test_calls_and_layers_give_the_same_network():
    by_module, by_call = pair()
    timings = [[(layer.time_kernel, layer.time_stride) for layer in model.plan] for model in (by_module, by_call)]
    assert timings[0] == timings[1]
    assert [layer.path for layer in by_call.plan if "#" in layer.path] == ["#1", "#2"]  # #0 is pool1, a layer
    for frames in (1, 2, 5, 9):
        clip = torch.randn(2, 3, frames, 33, 41).double()
        torch.testing.assert_close(by_call(clip), by_module(clip))


def test_copies_pickles_threads_and_plans_from_json():
    by_module, by_call = pair()
    clip = torch.randn(2, 3, 5, 33, 41).double()
    expected = by_module(clip)
    again = build(Plan.from_json(by_call.plan.to_json()), deflate(by_call))
    for twin in (copy.deepcopy(by_call), pickle.loads(pickle.dumps(by_call)), again):
        torch.testing.assert_close(twin(clip), expected)
    found = []
    threads = [threading.Thread(target=lambda: found.append(by_call(clip))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for answer in found:
        torch.testing.assert_close(answer, expected)


def test_deflate_takes_time_out_of_the_calls():
    by_module, by_call = pair()
    flat = deflate(by_call)
    picture = torch.randn(2, 3, 33, 41).double()
    torch.testing.assert_close(flat(picture), deflate(by_module)(picture))
    assert not flat._forward_pre_hooks
    assert not flat._forward_hooks


def test_a_forward_that_fails_leaves_no_mode_behind():
    _, by_call = pair()
    with pytest.raises(RuntimeError):
        by_call(torch.randn(1, 4, 3, 33, 41).double())
    assert not by_call.fold.modes
    pooled = F.max_pool2d(torch.zeros(4, 1, 8, 8), 2, 2)
    assert pooled.shape == (4, 1, 4, 4)


def test_without_strides_in_time_calls_stay_per_frame():
    plan = make_plan(ByCall(), "video", example=PICTURE)
    assert all(layer.action == "frame" for layer in plan if "#" in layer.path)
    assert not inflate(ByCall(), plan).net._forward_pre_hooks


def test_another_method_of_a_model_with_calls_of_its_own_is_refused():
    by_call = ByCall()
    by_call.again = by_call.forward
    with pytest.raises(InflateError, match=r"in its own forward\(\)(.|\n)*#2"):
        inflate(by_call, "i3d", example=PICTURE).call("again", torch.zeros(1, 3, 3, 33, 41))


def test_other_calls_that_would_need_strides_are_refused_with_a_reason():
    class Lp(ByModule):
        def forward(self, x):
            x = self.pool2(self.pool1(self.stem(x)))
            return torch.cat([self.conv(x), F.lp_pool2d(F.pad(x, (1, 1, 1, 1)), 2, 3, 2)], 1)

    with pytest.raises(InflateError, match="branches of the model that meet have different lengths"):
        inflate(Lp(), "i3d", example=PICTURE)
    with pytest.raises(InflateError, match="branches of the model that meet have different lengths"):
        inflate(ByModule(), example=PICTURE, rules={"conv": Rule(padding="valid")})
