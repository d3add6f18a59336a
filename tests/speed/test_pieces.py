"""Seldom ways of fast networks: borders of pieces of any length, norms that fold, refusals, answers compared."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from inflate3d.errors import InflateError, InflateWarning
from inflate3d.inflation.padding import time_pads
from inflate3d.speed import optimize as optimize_module
from inflate3d.speed.batch_norm import fold_batch_norms
from inflate3d.speed.borders import Borders, TooFewFrames
from inflate3d.speed.closeness import cosine, difference
from inflate3d.speed.int8 import QuantizedModel
from inflate3d.speed.optimize import Optimized, in_training, optimize, run_method
from inflate3d.speed.stream import ENDLESS, in_pieces

LENGTH = 23


def pieces_of(sizes):
    """Cut `LENGTH` frames into pieces of these lengths, which come again."""
    stops = itertools.accumulate(itertools.cycle(sizes))
    found = [0, *itertools.takewhile(lambda stop: stop < LENGTH, stops), LENGTH]
    return list(itertools.pairwise(found))


def through(borders, video, sizes, layer):
    """Run a layer on pieces; what it cannot make a step of waits, as `Stream` does it."""
    found, first = [], 0
    for start, stop in pieces_of(sizes):
        borders.begin(is_last=stop == video.shape[2])
        try:
            found.append(layer(video[:, :, first:stop]))
        except TooFewFrames:
            first = min(first, start)
            continue
        borders.commit()
        first = stop
    return torch.cat(found, 2)


def by_hand(video, kernel, stride, padding):
    """All steps at once, each frame looked up by itself."""
    front, back = time_pads(video.shape[2], kernel, stride=stride, padding=padding)
    last = video.shape[2] - 1
    steps = []
    for step in range((video.shape[2] + front + back - kernel) // stride + 1):
        places = [step * stride - front + tap for tap in range(kernel)]
        if padding == "zeros":
            frames = [video[:, :, at] if 0 <= at <= last else torch.zeros_like(video[:, :, 0]) for at in places]
        else:
            frames = [video[:, :, min(max(at, 0), last)] for at in places]
        steps.append(sum((tap + 1) * frame for tap, frame in enumerate(frames)))
    return torch.stack(steps, 2)


@pytest.mark.parametrize("padding", ["replicate", "zeros", "causal", "valid"])
@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (3, 1), (4, 1), (7, 1), (3, 2), (2, 2), (1, 3), (2, 5), (5, 3)])
def test_sliding_over_pieces_is_sliding_over_the_whole(kernel, stride, padding):
    video = torch.randn(2, 1, LENGTH, 1, 1, dtype=torch.float64)
    taps = torch.arange(1.0, kernel + 1, dtype=torch.float64).view(1, 1, kernel, 1, 1)
    wanted = by_hand(video, kernel, stride, padding)

    def ends(count):
        return time_pads(count, kernel, stride=stride, padding=padding)

    for sizes in ([LENGTH], [8], [16], [1], [2, 7], [5, 1, 1, 9]):
        borders = Borders()

        def layer(clip, borders=borders):
            given = borders.slide(clip, kernel, stride, ends=ends, padding=padding)
            assert (given.shape[2] - kernel) % stride == 0
            return F.conv3d(given, taps, stride=(stride, 1, 1))

        torch.testing.assert_close(through(borders, video, sizes, layer), wanted)


def test_layers_one_after_the_other_keep_borders_of_their_own():
    video = torch.randn(1, 1, LENGTH, 1, 1, dtype=torch.float64)
    layers = [(3, 1), (3, 2), (5, 1)]
    wanted = video
    for kernel, stride in layers:
        wanted = by_hand(wanted, kernel, stride, "replicate")
    for sizes in ([7], [2, 9], [4, 1]):
        borders = Borders()

        def network(clip, borders=borders):
            for kernel, stride in layers:
                ends = lambda count, k=kernel, s=stride: time_pads(count, k, stride=s)  # noqa: E731
                given = borders.slide(clip, kernel, stride, ends=ends, padding="replicate")
                taps = torch.arange(1.0, kernel + 1, dtype=torch.float64).view(1, 1, kernel, 1, 1)
                clip = F.conv3d(given, taps, stride=(stride, 1, 1))
            return clip

        torch.testing.assert_close(through(borders, video, sizes, network), wanted)


@pytest.mark.parametrize("late", [0, 1, 2, 6])
@pytest.mark.parametrize("sizes", [[8], [3, 1, 4], [1]])
def test_the_side_that_is_ahead_waits_for_the_other(late, sizes):
    """One branch gives its frames so many frames later: joined are frames of the same number, and none is lost."""
    numbers, borders, found = torch.arange(float(LENGTH)).view(1, LENGTH, 1), Borders(), []
    for start, stop in pieces_of(sizes):
        is_last = stop == LENGTH
        borders.begin(is_last=is_last)
        given = numbers[:, max(start - late, 0) : LENGTH if is_last else max(stop - late, 0)]
        parts = [numbers[:, start:stop], 10 * given]
        if not given.shape[1]:  # such a layer raises, and the frames come again with the next piece
            with pytest.raises(TooFewFrames):
                borders.align(parts)
            late_by_now = numbers[:, :stop]
            borders._kept = {0: [late_by_now, numbers[:, :0]]}
            continue
        one, other = borders.align(parts)
        borders.commit()
        found.append((one, other))
    ahead, behind = (torch.cat(side, 1).flatten() for side in zip(*found, strict=True))
    assert ahead.tolist() == list(range(LENGTH)) and torch.equal(10 * ahead, behind)


def test_nothing_in_common_is_no_step():
    borders = Borders()
    borders.begin(is_last=False)
    with pytest.raises(TooFewFrames):
        borders.align([torch.ones(1, 2, 1), torch.ones(1, 0, 1)])


def test_turns_that_go_by_are_counted():
    borders = Borders()
    borders.begin(is_last=False)
    assert not borders.waits()
    borders.skip()
    borders.align([torch.ones(1, 3, 1), torch.ones(1, 2, 1)])
    borders.commit()
    borders.begin(is_last=True)
    assert not borders.waits()
    borders.skip()
    assert borders.waits()
    assert borders.align([torch.zeros(1, 1, 1), torch.zeros(1, 2, 1)])[0].flatten().tolist() == [1, 0]


@pytest.mark.parametrize("count", range(8))
@pytest.mark.parametrize("size", [1, 2, 3, 10])
def test_pieces_are_full_but_for_the_last_one_which_is_told(count, size):
    found = list(in_pieces(range(count), size))
    assert [item for piece, _ in found for item in piece] == list(range(count))
    assert [is_last for _, is_last in found] == [False] * (len(found) - 1) + [True] * bool(found)
    assert all(len(piece) == size for piece, is_last in found if not is_last) and all(piece for piece, _ in found)
    assert all(ENDLESS % stride == 0 for stride in (1, 2, 4, 8))


# -- folding -------------------------------------------------------------------------------------------------------


def lively(norm):
    norm.running_mean.normal_(0, 0.5)
    norm.running_var.uniform_(0.3, 2)
    if norm.affine:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    return norm


CASES = {
    "1d": (lambda: nn.Conv1d(3, 6, 3), lambda: nn.BatchNorm1d(6), (2, 3, 9)),
    "2d without bias": (lambda: nn.Conv2d(3, 6, 3, bias=False), lambda: nn.BatchNorm2d(6), (2, 3, 9, 7)),
    "3d, reflected": (
        lambda: nn.Conv3d(3, 6, 3, padding=1, padding_mode="circular"),
        lambda: nn.BatchNorm3d(6),
        (2, 3, 5, 7, 4),
    ),
    "not affine": (lambda: nn.Conv2d(3, 6, 3), lambda: nn.BatchNorm2d(6, affine=False), (2, 3, 9, 7)),
    "transposed, grouped": (
        lambda: nn.ConvTranspose3d(4, 6, 2, 2, groups=2),
        lambda: nn.BatchNorm3d(6),
        (2, 4, 3, 4, 5),
    ),
    "depthwise": (lambda: nn.Conv2d(3, 6, 3, groups=3), lambda: nn.BatchNorm2d(6, eps=0.1), (2, 3, 9, 7)),
}


@pytest.mark.parametrize("name", CASES)
def test_a_folded_norm_does_nothing_any_more(name):
    torch.manual_seed(0)
    convolution, norm, shape = CASES[name]
    model = nn.Sequential(convolution(), lively(norm()), nn.ReLU()).eval().requires_grad_(False)
    x = torch.randn(shape)
    wanted = model(x)
    assert fold_batch_norms(model, lambda: model(x)) == ["1"]
    assert isinstance(model[1], nn.Identity)
    torch.testing.assert_close(model(x), wanted, rtol=1e-5, atol=1e-5)
    assert fold_batch_norms(model, lambda: model(x)) == []


class Shared(nn.Module):
    """One convolution at two places, each with a norm of its own; and a norm that follows two convolutions."""

    def __init__(self):
        super().__init__()
        self.conv, self.one, self.two = nn.Conv2d(3, 3, 1), lively(nn.BatchNorm2d(3)), lively(nn.BatchNorm2d(3))
        self.alone, self.changed = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.late = lively(nn.BatchNorm2d(3))

    def forward(self, x):
        x = self.two(self.conv(self.one(self.conv(x))))
        return self.late(self.changed(x) + self.alone(x))


def test_what_serves_two_places_is_not_folded():
    torch.manual_seed(0)
    model, x = Shared().eval().requires_grad_(False), torch.randn(2, 3, 4, 5)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    assert fold_batch_norms(model, lambda: model(x)) == []
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_hooks_go_also_where_the_run_fails():
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)).eval()

    def fails():
        raise RuntimeError("no memory")

    with pytest.raises(RuntimeError, match="no memory"):
        fold_batch_norms(model, fails)
    assert not any(layer._forward_hooks for layer in model)


# -- answers compared ----------------------------------------------------------------------------------------------


def test_differences_are_relative_to_the_largest_value():
    one = {"a": torch.tensor([1.0, -4.0]), "b": [torch.tensor([0.1])]}
    other = {"a": torch.tensor([1.0, -4.2]), "b": [torch.tensor([0.1])]}
    assert difference(other, one) == pytest.approx(0.05)
    assert difference(one, one) == 0 == difference([], [])
    assert difference(torch.ones(1), torch.zeros(1)) > 1e20  # what was nothing has become something


def test_the_cosine_is_that_of_the_worst_clip():
    wanted = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0]])
    found = torch.tensor([[5.0, 0.0], [0.0, 2.0], [0.0, 7.0]])
    assert cosine(found, wanted) == pytest.approx(0.5**0.5)
    assert cosine({"a": wanted, "b": -wanted}, {"a": wanted, "b": wanted}) == pytest.approx(-1)
    assert cosine(torch.zeros(2, 3), torch.zeros(2, 3)) == 1.0


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ([], ""),
        (["a"], "training mode in a"),
        (["a", "b", "c"], "training mode in a, b, c"),
        (["a", "b", "c", "d"], "training mode in a, b, c, ..."),
    ],
)
def test_parts_in_training_mode_are_named(parts, words):
    model = nn.ModuleDict({name: nn.ReLU() for name in "abcde"}).eval()
    for name in parts:
        model[name].train()
    assert in_training(model) == words


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv3d(3, 4, 1)

    def forward(self, clip):
        return {"logits": self.conv(clip).mean((2, 3, 4)), "count": clip.shape[2], "kind": str(self.conv.weight.dtype)}

    def twice(self, clip, factor):
        return factor * self.conv(clip)


def test_any_method_and_any_answer_come_out_in_float32():
    torch.manual_seed(0)
    model, clip = Plain().eval(), torch.rand(2, 3, 4, 6, 5)
    fast = optimize(model, "bf16", example=clip)
    with torch.inference_mode():
        found = fast(clip)
        twice = fast.call("twice", clip, 2)
    assert (found["logits"].dtype, found["count"], found["kind"]) == (torch.float32, 4, "torch.bfloat16")
    assert twice.dtype == torch.float32 and fast.precision == "bf16" == fast.asked
    torch.testing.assert_close(twice, 2 * model.conv(clip), rtol=3e-2, atol=3e-2)
    assert run_method(model, "twice", clip[0], args=(3,)).shape == (4, 4, 6, 5)  # any rank


@pytest.mark.parametrize(
    ("model", "precision", "expected", "got"),
    [
        (Plain(), "fp32", "a model in eval mode: model.eval()", "training mode in Plain, conv"),
        (Plain().eval(), "fp64", "fp32 or bf16 or int8", "precision='fp64'"),
        (Plain().eval(), "fp32", "example=, a clip that the model can run on", "no example, no clip_spec"),
        (Optimized(Plain(), "bf16", []).eval(), "fp32", "or one for fp32", "is optimized already, for bf16"),
    ],
)
def test_what_cannot_be_optimized_is_told_with_all_its_faults(model, precision, expected, got):
    with pytest.raises(InflateError, match="this model cannot be optimized so") as found:
        optimize(model, precision)
    assert expected in found.value.expected and got in found.value.got
    assert found.value.fix.startswith('optimize(model.eval(), "fp32"')


def test_all_faults_of_a_model_are_told_together():
    with pytest.raises(InflateError) as found:
        optimize(Plain(), "half")
    assert found.value.got.count(";") == 2


@pytest.mark.parametrize(("there", "named", "found"), [("g++", "", True), ("mine", "mine", True), ("mine", "", False)])
def test_a_compiler_is_one_of_the_usual_ones_or_the_one_that_is_named(monkeypatch, there, named, found):
    monkeypatch.setattr(optimize_module.shutil, "which", lambda name: name if name == there else None)
    monkeypatch.setenv("CXX", named)
    if found:
        assert optimize_module._has_compiler()
        return
    with pytest.warns(InflateWarning, match="runs uncompiled, because no C"):
        fast = optimize(Plain().eval(), example=torch.zeros(1, 3, 2, 4, 4), compiled=True)
    assert "compiled" not in fast.steps


@pytest.mark.parametrize("shape", [(1, 3, 5, 8, 8), (1, 3, 4, 8, 9), (1, 2, 4, 8, 8), (3, 4, 8, 8)])
def test_clips_of_another_size_than_int8_was_made_for(shape):
    with pytest.raises(InflateError) as found:
        QuantizedModel({}, (1, 3, 4, 8, 8))(torch.zeros(shape))
    assert (found.value.expected, found.value.got) == ("[b, 3, 4, 8, 8]", str(list(shape)))


def test_int8_has_one_output():
    fast = Optimized(QuantizedModel({}, (1, 3, 4, 8, 8)), "int8", ["int8"])
    with pytest.raises(InflateError, match="an int8 model has one output") as found:
        fast.endpoints(torch.zeros(1, 3, 4, 8, 8), "Logits")
    assert (found.value.where, found.value.got) == ("Optimized.endpoints", "endpoints")
