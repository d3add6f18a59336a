"""Cost counted on shapes equals cost counted by hand; other input channels answer as they should."""

import copy

import pytest
import timm
import torch
from small_models import Residual
from torch import nn

from inflate3d import InflateError, estimate_cost, inflate, with_input_channels

PICTURE = torch.zeros(1, 3, 37, 45)


def test_arithmetic_parameters_and_activations_are_those_counted_by_hand():
    model2d = nn.Sequential(nn.Conv2d(3, 5, 3, stride=2, padding=1, bias=False), nn.ReLU(), nn.Conv2d(5, 7, 1))
    cost = estimate_cost(inflate(model2d, example=torch.zeros(1, 3, 20, 30)), (3, 11, 200, 300))
    outputs = 11 * 100 * 150
    assert cost.gmacs == pytest.approx((outputs * 5 * 3 * 27 + outputs * 7 * 5) / 1e9)
    assert cost.parameters == 5 * 3 * 27 + 7 * 5 + 7
    assert cost.activation_megabytes == pytest.approx(4 * outputs * (5 + 5 + 7) / 1e6)
    assert cost.receptive_frames == 3


def test_the_receptive_field_is_the_one_that_gradients_show():
    model3d = inflate(Residual().double().eval(), example=PICTURE, time_pool="none")
    clip = torch.randn(1, 3, 15, 37, 45).double().requires_grad_()
    model3d(clip)[0, 7].sum().backward()
    seen = (clip.grad.abs().amax((0, 1, 3, 4)) > 0).sum()
    assert estimate_cost(model3d, (3, 15, 37, 45)).receptive_frames == seen == 9


def test_a_model_stays_as_it_was_and_a_wrong_clip_is_refused():
    model3d = inflate(Residual(), example=PICTURE)
    estimate_cost(model3d, (3, 4, 64, 64))
    assert next(model3d.parameters()).device.type == "cpu"
    with pytest.raises(InflateError, match=r"no clip(.|\n)*\[1, 4, 4, 64, 64\]"):
        estimate_cost(model3d, (4, 4, 64, 64))


class DependsOnValues(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.scale = nn.Conv2d(3, 4, 3), nn.Parameter(torch.ones(()))

    def forward(self, x):
        return self.conv(x) * float(self.scale)


def test_what_shapes_cannot_tell_is_told_with_what_to_type():
    model3d = inflate(DependsOnValues(), example=torch.zeros(1, 3, 11, 13))
    with pytest.raises(InflateError, match=r"estimate_cost\(model3d, \(3, 16, 11, 13\)\)(.|\n)*measure a run"):
        estimate_cost(model3d, (3, 4, 11, 13))


@pytest.mark.parametrize("channels", [1, 6])
def test_equal_channels_are_answered_as_in_rgb(channels):
    model2d = Residual().double().eval()
    other = with_input_channels(model2d, channels, example=PICTURE)
    grey = torch.randn(2, 1, 37, 45).double()
    expected = model2d(grey.expand(-1, 3, -1, -1))
    torch.testing.assert_close(other(grey.expand(-1, channels, -1, -1)), expected)
    model3d = inflate(other, example=torch.zeros(1, channels, 37, 45))
    clip = grey.unsqueeze(2).expand(-1, channels, 5, -1, -1)
    torch.testing.assert_close(model3d(clip), expected)
    assert model2d.stem[0].in_channels == 3


def test_it_is_timms_rule_and_timms_models_know_their_new_input():
    from timm.models._manipulate import adapt_input_conv

    model2d = timm.create_model("test_efficientnet").eval()
    flow = with_input_channels(model2d, 2)
    torch.testing.assert_close(flow.conv_stem.weight, adapt_input_conv(2, model2d.conv_stem.weight))
    model3d = inflate(flow)
    assert model3d.plan.input_shape[0] == 2
    assert model3d(torch.zeros(1, 2, 3, 96, 96)).shape == (1, 1000)


def test_a_model_that_begins_otherwise_is_refused():
    with pytest.raises(InflateError, match="does not begin with a convolution"):
        with_input_channels(nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), 1, example=torch.zeros(1, 3, 2, 2))


def test_a_second_layer_on_the_picture_is_told():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 1)

        def forward(self, x):
            return self.first(x) + self.second(x)

    with pytest.raises(InflateError, match=r"model does not run(.|\n)*one convolution alone takes the picture"):
        with_input_channels(Two(), 1, example=PICTURE)


def test_cost_takes_no_memory_for_weights(monkeypatch):
    model3d = inflate(Residual(), example=PICTURE)

    def refuse(self, memo):
        raise MemoryError

    for kind in (torch.Tensor, nn.Parameter):
        monkeypatch.setattr(kind, "__deepcopy__", refuse)
    assert estimate_cost(model3d, (3, 4, 64, 64)).parameters > 0
    with pytest.raises(MemoryError):
        copy.deepcopy(model3d)
