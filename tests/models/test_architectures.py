"""The paper's architectures against its tables: parameters, shapes, receptive fields, and what each one refuses."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import googlenet

from inflate3d.errors import InflateError
from inflate3d.models.blocks import SameMaxPool3d
from inflate3d.models.c3d import C3D
from inflate3d.models.c3d import ENDPOINTS as C3D_ENDPOINTS
from inflate3d.models.inception import InceptionI3d
from inflate3d.models.streams import (
    BatchNormLstm,
    ConvNetLstm,
    FusedTwoStream,
    StackedInception,
    TwoStream,
    two_stream,
    two_stream_i3d,
)

# arXiv 1705.07750v3, table 1, in millions: the paper cuts (b) and (d) and rounds (a)
TABLE_1 = {
    "convnet-lstm": (ConvNetLstm, 9, [(3, 25, 224, 224)]),
    "3d-convnet": (C3D, 79, [(3, 16, 112, 112)]),
    "two-stream": (two_stream, 12, [(3, 1, 224, 224), (2, 10, 224, 224)]),
    "3d-fused": (FusedTwoStream, 39, [(3, 5, 224, 224), (2, 50, 224, 224)]),
    "two-stream-i3d": (two_stream_i3d, 25, [(3, 64, 224, 224), (2, 64, 224, 224)]),
}
# and its test inputs: 10 seconds
TEST_INPUTS = {
    "convnet-lstm": [(3, 50, 224, 224)],
    "two-stream": [(3, 25, 224, 224), (2, 250, 224, 224)],
    "3d-fused": [(3, 25, 224, 224), (2, 250, 224, 224)],
    "two-stream-i3d": [(3, 250, 224, 224), (2, 250, 224, 224)],
}

# Inception-v1: input channels; then 1x1; 3x3 reduced, 3x3; 3x3 reduced, 3x3; behind the pool
INCEPTION = [
    (192, 64, 96, 128, 16, 32, 32),
    (256, 128, 128, 192, 32, 96, 64),
    (480, 192, 96, 208, 16, 48, 64),
    (512, 160, 112, 224, 24, 64, 64),
    (512, 128, 128, 256, 24, 64, 64),
    (512, 112, 144, 288, 32, 64, 64),
    (528, 256, 160, 320, 32, 128, 128),
    (832, 256, 160, 320, 32, 128, 128),
    (832, 384, 192, 384, 48, 128, 128),
]


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def with_statistics(model, *clips):
    """Let batch norm see a batch, without which random layers let next to nothing through."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0
    with torch.no_grad():
        model.train()(*clips)
    return model.eval()


def inception_parameters(in_channels, axes):
    """Kernels, and a scale and a shift for each channel."""
    kernels, channels = 7**axes * in_channels * 64 + 64 * 64 + 3**axes * 64 * 192, 64 + 64 + 192
    for inputs, one, reduced, three, reduced2, three2, pooled in INCEPTION:
        kernels += inputs * (one + reduced + reduced2 + pooled) + 3**axes * (reduced * three + reduced2 * three2)
        channels += one + reduced + three + reduced2 + three2 + pooled
    return kernels + 2 * channels


def expected_parameters(classes=400):
    """Each architecture added up by hand from the text of the paper, section 2."""
    head = 1024 * classes + classes
    lstm = 4 * 512 * (1024 + 512 + 1) + 2 * 4 * 512 + 2 * 512  # and the scales and shifts of its batch norms
    convolutions = 27 * (3 * 64 + 64 * 128 + 128 * 256 + 256**2 + 256 * 512 + 3 * 512**2)
    c3d_norms = 2 * (64 + 128 + 2 * 256 + 4 * 512 + 2 * 4096)
    return {
        "convnet-lstm": inception_parameters(3, 2) + lstm + 512 * classes + classes,
        "3d-convnet": convolutions + 8192 * 4096 + 4096**2 + c3d_norms + 4096 * classes + classes,
        "two-stream": inception_parameters(3, 2) + inception_parameters(20, 2) + 2 * head,
        "3d-fused": inception_parameters(3, 2) + inception_parameters(20, 2)
        + 27 * 2048 * 512 + 2 * 512 + 512 * classes + classes,
        "two-stream-i3d": inception_parameters(3, 3) + inception_parameters(2, 3) + 2 * head,
    }  # fmt: skip


@pytest.mark.parametrize("name", TABLE_1)
def test_parameters_are_those_of_table_1(name):
    build, millions, _ = TABLE_1[name]
    with torch.device("meta"):
        found = count(build())
    assert found == expected_parameters()[name]
    assert abs(found / 1e6 - millions) < 0.8


def test_with_the_213_classes_of_mini_kinetics_all_but_the_fused_one_round_to_table_1():
    """The table is older than the full Kinetics that version 3 of the paper reports on."""
    rounded = {name: round(value / 1e6) for name, value in expected_parameters(classes=213).items()}
    assert rounded == {name: row[1] for name, row in TABLE_1.items()} | {"3d-fused": 40}


@pytest.mark.parametrize("name", TABLE_1)
def test_training_inputs_are_taken_and_answered(name):
    build, _, shapes = TABLE_1[name]
    with torch.device("meta"):
        answer = build(101).eval()(*(torch.empty(2, *shape) for shape in shapes))
    assert answer.shape == (2, 101)


@pytest.mark.parametrize("name", TEST_INPUTS)
def test_whole_videos_are_taken_and_answered(name):
    build, shapes = TABLE_1[name][0], TEST_INPUTS[name]
    with torch.device("meta"):
        answer = build(51).eval()(*(torch.empty(1, *shape) for shape in shapes))
    assert answer.shape == (1, 51)


def test_the_2d_trunk_has_the_shapes_and_weights_of_torchvision():
    with torch.device("meta"):
        trunk, whole = StackedInception(1000).trunk, googlenet(aux_logits=False, init_weights=False)
        assert trunk(torch.empty(2, 3, 224, 192)).shape == (2, 1024, 7, 6)
    names = {name: value.shape for name, value in whole.state_dict().items() if not name.startswith("fc.")}
    assert {name: value.shape for name, value in trunk.state_dict().items()} == names


# --- C3D -------------------------------------------------------------------------------------------------------------

# channels, side, frames in the paper's variant, frames in the original; pool5 makes 4 of 7, or fc6 would not be 8192
C3D_SHAPES = {
    "conv1a": (64, 112, 16, 16),
    "pool1": (64, 56, 8, 16),
    "conv2a": (128, 56, 8, 16),
    "pool2": (128, 28, 4, 8),
    "conv3a": (256, 28, 4, 8),
    "conv3b": (256, 28, 4, 8),
    "pool3": (256, 14, 2, 4),
    "conv4a": (512, 14, 2, 4),
    "conv4b": (512, 14, 2, 4),
    "pool4": (512, 7, 1, 2),
    "conv5a": (512, 7, 1, 2),
    "conv5b": (512, 7, 1, 2),
    "pool5": (512, 4, 1, 1),
}


@pytest.mark.parametrize(("paper", "column"), [("carreira2017", 2), ("tran2015", 3)])
def test_c3d_has_the_shapes_of_its_papers(paper, column):
    with torch.device("meta"):
        model = C3D(487, paper=paper).eval()
        found = model.endpoints(torch.empty(3, 3, 16, 112, 112), C3D_ENDPOINTS)
    shapes = {name: tuple(value.shape[1:]) for name, value in found.items()}
    expected = {name: (row[0], row[column], row[1], row[1]) for name, row in C3D_SHAPES.items()}
    assert shapes == expected | {"fc6": (4096,), "fc7": (4096,), "Logits": (487,), "Predictions": (487,)}
    assert count(model.fc6) >= 8192 * 4096
    assert any(isinstance(module, nn.BatchNorm3d) for module in model.modules()) == (paper == "carreira2017")


def test_the_original_c3d_has_the_parameters_of_its_prototxt():
    with torch.device("meta"):
        model = C3D(487, paper="tran2015")
    kernels = 27 * (3 * 64 + 64 * 128 + 128 * 256 + 256**2 + 256 * 512 + 3 * 512**2)
    linear = 8192 * 4096 + 4096**2 + 4096 * 487
    assert count(model) == kernels + linear + (64 + 128 + 2 * 256 + 4 * 512) + 2 * 4096 + 487


def test_the_original_c3d_pools_as_caffe_does():
    """Caffe rounds up and pads nothing: the windows of pool5 begin at 0, 2, 4, 6, and the last one is cut off."""
    x = torch.rand(1, 2, 2, 7, 7)
    with torch.device("meta"):
        pool5 = C3D(5, paper="tran2015").pool5
    expected = [[x[..., 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].amax(dim=(2, 3, 4)) for j in range(4)] for i in range(4)]
    found = torch.stack([torch.stack(row, dim=-1) for row in expected], dim=-2)
    torch.testing.assert_close(pool5(x)[:, :, 0], found)


def test_c3d_trains():
    model = C3D(3)
    loss = F.cross_entropy(model(torch.rand(2, 3, 16, 112, 112)), torch.tensor([0, 2]))
    loss.backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


# --- receptive fields ------------------------------------------------------------------------------------------------

# time, height: the published layer table of I3D
I3D_FIELDS = {
    "Conv3d_1a_7x7": (7, 7),
    "MaxPool3d_2a_3x3": (7, 11),
    "Conv3d_2c_3x3": (11, 19),
    "Mixed_3c": (19, 59),
    "MaxPool3d_4a_3x3": (23, 75),
    "Mixed_4f": (63, 235),
    "MaxPool3d_5a_2x2": (67, 251),
    "Mixed_5c": (99, 379),
}
# three more pixels a convolution widens by twice the pixels between neighbours, a pool by once
C3D_FIELDS = {"conv1a": (3, 3), "pool1": (3, 4), "conv2a": (5, 8), "pool2": (6, 10), "conv3a": (10, 18)}


def averaging(model):
    """Every kernel is a mean and every pool as well, so that whatever has a say in an output has a gradient."""
    for module in model.modules():
        if isinstance(module, nn.Conv3d):
            nn.init.constant_(module.weight, 1 / module.weight[0].numel())
        elif isinstance(module, SameMaxPool3d):
            module.forward = mean_pool(module)
    return model.eval()


def mean_pool(pool):
    def forward(x):
        size = [-(-n // s) for n, s in zip(x.shape[2:], pool.stride, strict=True)]
        total = [
            max((m - 1) * s + k - n, 0)
            for n, m, k, s in zip(x.shape[2:], size, pool.kernel_size, pool.stride, strict=True)
        ]
        pads = [side for n in reversed(total) for side in (n // 2, n - n // 2)]
        return F.avg_pool3d(F.pad(x, pads), pool.kernel_size, pool.stride)

    return forward


def field(model, names, shape, axis):
    """How many positions along an axis have a say in the middle output of each of the named layers."""
    x = torch.ones(1, 1, *shape, requires_grad=True)
    found, y = {}, x
    for name, layer in model.named_children():
        if len(found) == len(names):
            break
        y = layer(y)
        if name in names:
            middle = y[0, :, y.shape[2] // 2, y.shape[3] // 2, y.shape[4] // 2].sum()
            (gradient,) = torch.autograd.grad(middle, x, retain_graph=True)
            found[name] = int((gradient[0, 0].amax(dim=[i for i in range(3) if i != axis]) > 0).sum())
    return found


@pytest.mark.parametrize(("axis", "shape"), [(0, (208, 5, 6)), (1, (4, 832, 5))])
def test_receptive_fields_of_i3d_are_those_of_the_published_table(axis, shape):
    model = averaging(InceptionI3d(5, 1))
    assert field(model, I3D_FIELDS, shape, axis) == {name: sizes[axis] for name, sizes in I3D_FIELDS.items()}


@pytest.mark.parametrize("axis", [0, 1])
def test_receptive_fields_of_the_original_c3d(axis):
    with torch.device("meta"):
        empty = C3D(5, 1, paper="tran2015")
    model = nn.Sequential()
    for name in C3D_FIELDS:  # without its wide layers, whose memory is not needed here
        model.add_module(name, empty.get_submodule(name).to_empty(device="cpu"))
    for module in model.modules():
        if isinstance(module, nn.Conv3d):
            nn.init.zeros_(module.bias)
    found = field(averaging(model), C3D_FIELDS, (24, 40, 5), axis)
    assert found == {name: sizes[axis] for name, sizes in C3D_FIELDS.items()}


# --- ConvNet+LSTM ----------------------------------------------------------------------------------------------------


def test_without_its_norms_the_lstm_is_torch_s():
    """Mean zero, deviation one and scale one: batch norm does nothing."""
    ours, theirs = BatchNormLstm(7, 5, num_steps=3).double().eval(), nn.LSTM(7, 5, batch_first=True).double()
    with torch.no_grad():
        for norm in (ours.norm_input, ours.norm_memory, ours.norm_cell):
            norm.weight.fill_(1)
            norm.running_var.fill_(1 - 1e-3)
        theirs.weight_ih_l0.copy_(ours.from_input.weight)
        theirs.weight_hh_l0.copy_(ours.from_memory.weight)
        theirs.bias_ih_l0.copy_(ours.from_input.bias)
        theirs.bias_hh_l0.zero_()
        x = torch.randn(3, 11, 7).double()
        torch.testing.assert_close(ours(x), theirs(x)[0])


def test_each_step_of_the_lstm_learns_statistics_of_its_own():
    lstm = BatchNormLstm(7, 5, num_steps=3)
    lstm(torch.randn(64, 2, 7) * torch.tensor([1.0, 5.0]).view(1, 2, 1))
    first, second, third = lstm.norm_input.running_var.mean(dim=1)
    assert second > first > 0
    assert third == 1  # never seen
    lstm(torch.randn(64, 4, 7))
    assert lstm.norm_input.running_var[2].mean() != 1  # steps three and four
    assert lstm.norm_memory.running_mean[0].abs().max() == 0  # an empty memory


def test_what_the_lstm_says_after_the_last_frame_counts():
    model = ConvNetLstm(7).eval()
    clip = torch.rand(2, 3, 4, 33, 37) * 2 - 1
    with torch.inference_mode():
        found = model.endpoints(clip, ["AvgPool_7x7", "LSTM", "Logits_per_step", "Logits", "Predictions"])
        shapes = [tuple(value.shape) for value in found.values()]
        assert shapes == [(2, 1024, 4), (2, 512, 4), (2, 7, 4), (2, 7), (2, 7)]
        torch.testing.assert_close(found["Logits"], found["Logits_per_step"][:, :, -1])
        torch.testing.assert_close(found["Predictions"], found["Logits"].softmax(1))
        torch.testing.assert_close(model(clip), found["Logits"])
        # it has read no further after three frames, and each clip is read alone
        torch.testing.assert_close(model(clip[:1, :, :3]), found["Logits_per_step"][:1, :, 2], rtol=1e-4, atol=1e-6)


def test_convnet_lstm_trains_with_a_loss_at_every_step():
    model = ConvNetLstm(3)
    steps = model.endpoints(torch.rand(2, 3, 2, 33, 37), "Logits_per_step")["Logits_per_step"]
    F.cross_entropy(steps, torch.tensor([[0, 0], [2, 2]])).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


# --- two streams -----------------------------------------------------------------------------------------------------


def test_a_stack_is_one_picture_and_stacks_are_averaged():
    clip = torch.rand(2, 2, 30, 33, 35) * 2 - 1
    model = with_statistics(StackedInception(7, 2, stack=10), clip)
    with torch.inference_mode():
        parts = [model(part) for part in clip.split(10, dim=2)]
        torch.testing.assert_close(model(clip), torch.stack(parts).mean(0), rtol=1e-4, atol=1e-6)
        assert not torch.allclose(model(clip[:, :, :10].flip(2)), parts[0], rtol=0.01)  # the order in time counts


def small_streams(fusion):
    class Constant(nn.Module):
        clip_spec, num_classes = "spec", 3

        def __init__(self, *logits):
            super().__init__()
            self.logits = torch.tensor([logits])

        def forward(self, clip):
            return self.logits.expand(clip.shape[0], -1)

    return TwoStream(Constant(2.0, 0.0, -1.0), Constant(0.5, 1.0, -3.0), fusion=fusion)


def test_streams_are_fused_by_adding_logits_or_by_averaging_probabilities():
    clips = torch.zeros(2, 3, 4, 5, 6), torch.zeros(2, 2, 3, 5, 6)
    torch.testing.assert_close(small_streams("logits")(*clips), torch.tensor([[2.5, 1.0, -4.0]]).expand(2, 3))
    mean = (torch.tensor([2.0, 0.0, -1.0]).softmax(0) + torch.tensor([0.5, 1.0, -3.0]).softmax(0)) / 2
    fused = small_streams("probabilities")(*clips)
    torch.testing.assert_close(fused.softmax(1), mean.expand(2, 3))
    torch.testing.assert_close(fused.logsumexp(1), torch.zeros(2))


def test_the_streams_of_each_network_are_fused_as_its_makers_say():
    with torch.device("meta"):
        assert two_stream_i3d(5).fusion == "logits"  # evaluate_sample.py
        assert two_stream(5).fusion == "probabilities"  # paper, section 2.5


def test_the_fused_network_looks_at_both_streams_and_averages_groups_of_five():
    rgb, flow = torch.rand(1, 3, 10, 33, 35) * 2 - 1, torch.rand(1, 2, 100, 33, 35) * 2 - 1
    model = with_statistics(FusedTwoStream(7), rgb, flow)
    with torch.inference_mode():
        whole = model(rgb, flow)
        first, second = model(rgb[:, :, :5], flow[:, :, :50]), model(rgb[:, :, 5:], flow[:, :, 50:])
        torch.testing.assert_close(whole, (first + second) / 2, rtol=1e-4, atol=1e-6)
        assert not torch.allclose(model(rgb[:, :, :5] * 0, flow[:, :, :50]), first, rtol=0.01)
        assert not torch.allclose(model(rgb[:, :, :5], flow[:, :, :50] * 0), first, rtol=0.01)
        # the flow of a frame belongs to it: two frames exchanged without their flow is another clip
        swapped = rgb[:, :, [1, 0, 2, 3, 4]]
        assert not torch.allclose(model(swapped, flow[:, :, :50]), first, rtol=0.01)


def test_the_new_layers_of_the_fused_network_begin_as_gaussian_noise():
    model = FusedTwoStream(400)
    for layer in (model.fuse[0], model.classifier):
        assert layer.weight.std().item() == pytest.approx(0.01, rel=0.01)


@pytest.mark.parametrize(
    ("build", "shapes"),
    [(two_stream, [(3, 1), (2, 10)]), (FusedTwoStream, [(3, 5), (2, 50)])],
)
def test_both_streams_train(build, shapes):
    model = build(3)
    clips = [torch.rand(2, channels, frames, 33, 35) for channels, frames in shapes]
    F.cross_entropy(model(*clips), torch.tensor([0, 2])).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


# --- what is refused -------------------------------------------------------------------------------------------------


def meta(build, *args, **options):
    with torch.device("meta"):
        return build(*args, **options).eval()


@pytest.mark.parametrize(
    ("build", "shapes", "message"),
    [
        (C3D, [(1, 3, 15, 112, 112)], r"C3D: the clip is too short: the fully connected(.|\n)*t 16, h 112, w 112"),
        (C3D, [(1, 3, 17, 112, 112)], r"another number of frames(.|\n)*cut it: clip\[:, :, :16\]"),
        (C3D, [(1, 3, 16, 112, 111)], r"too small(.|\n)*short side to 128 pixels and crop 112"),
        (C3D, [(1, 3, 16, 128, 112)], r"the frames have another size(.|\n)*112 x 112 pixels"),
        (C3D, [(1, 2, 16, 112, 112)], r"another number of channels"),
        (ConvNetLstm, [(1, 3, 0, 32, 32)], r"ConvNetLstm: the clip is too short"),
        (ConvNetLstm, [(1, 3, 2, 14, 32)], r"too small(.|\n)*h >= 15"),
        (two_stream, [(1, 3, 1, 32, 32), (1, 2, 12, 32, 32)], r"another number of frames(.|\n)*t >= 10 in steps of 10"),
        (two_stream, [(1, 3, 1, 32, 32), (2, 2, 10, 32, 32)], r"not of the same clips(.|\n)*\[2, 2, 10"),
        (two_stream_i3d, [(1, 3, 9, 193, 193), (1, 3, 9, 193, 193)], r"another number of channels(.|\n)*optical flow"),
        (FusedTwoStream, [(1, 3, 4, 32, 32), (1, 2, 40, 32, 32)], r"too short"),
        (FusedTwoStream, [(1, 3, 5, 32, 32), (1, 2, 100, 32, 32)], r"not of the same clips(.|\n)*t' = 10 t"),
    ],
)
def test_clips_that_do_not_fit_are_refused(build, shapes, message):
    model = meta(build)
    with torch.device("meta"), pytest.raises(InflateError, match=message):
        model(*(torch.empty(shape) for shape in shapes))


@pytest.mark.parametrize("build", [C3D, ConvNetLstm, StackedInception, FusedTwoStream, two_stream, two_stream_i3d])
def test_networks_without_classes_or_with_names_for_others_are_refused(build):
    for options in ({"num_classes": 0}, {"num_classes": 3, "class_names": ("run", "jump")}):
        with pytest.raises(InflateError, match="there is no such network"):
            meta(build, **options)


def test_variants_and_fusions_that_nobody_has_are_refused():
    with pytest.raises(InflateError, match=r"no such variant(.|\n)*did you mean tran2015"):
        C3D(paper="tran2014")
    with pytest.raises(InflateError, match=r"no such fusion(.|\n)*logits, probabilities"):
        small_streams("average")
    with torch.device("meta"):
        i3d, other = InceptionI3d(3), InceptionI3d(5, 2)
    for flow, classes in ((other, 5), (nn.Identity(), None)):
        with pytest.raises(
            InflateError, match=rf"no classifiers of the same classes(.|\n)*with 3 and .* with {classes}"
        ):
            TwoStream(i3d, flow)


def test_unknown_endpoints_are_refused_with_the_nearest_names():
    with pytest.raises(InflateError, match=r"C3D.endpoints: there is no endpoint called conv6(.|\n)*did you mean conv"):
        meta(C3D).endpoints(torch.empty(0), "conv6")
    with pytest.raises(InflateError, match=r"no endpoint called Lstm(.|\n)*did you mean .*LSTM"):
        meta(ConvNetLstm).endpoints(torch.empty(0), ["Lstm"])
