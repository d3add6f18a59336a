"""The fast ways of a 3D convolution give what torch's own does."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from inflate3d.inflation.convolution import Geometry, convolve

ONES = (1, 1, 1)


def ours(x, weight, bias, *rest):
    return convolve(x, weight, bias, geometry=Geometry(*rest))


def drawn(*shape, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype).requires_grad_()


def gradients_of(convolution, x, weight, bias, *rest):
    y = convolution(x, weight, bias, *rest)
    generator = torch.Generator().manual_seed(7)
    gradient = torch.randn(y.shape, generator=generator).to(y.dtype)
    return y, *torch.autograd.grad(y, (x, weight, bias), gradient)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("padding", [(0, 0, 0), (0, 1, 1), (1, 2, 0), (0, 4, 3)])
@pytest.mark.parametrize("kernel", [(3, 3, 3), (2, 5, 3), (1, 3, 1)])
def test_depthwise_convolutions_and_their_gradients_are_those_of_torch(kernel, padding, batch):
    x = drawn(batch, 6, 7, 11, 9).detach().to(memory_format=torch.channels_last_3d).requires_grad_()
    given = x, drawn(6, 1, *kernel), drawn(6), ONES, padding, ONES, 6
    for found, wanted in zip(gradients_of(ours, *given), gradients_of(F.conv3d, *given), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("stride", [(1, 1, 1), (2, 1, 2)])
def test_one_small_clip_is_convolved_as_by_torch(stride, groups):
    given = drawn(1, 6, 7, 11, 9), drawn(9, 6 // groups, 3, 2, 3), drawn(9), stride, (1, 0, 1), (1, 2, 1), groups
    for found, wanted in zip(gradients_of(ours, *given), gradients_of(F.conv3d, *given), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_a_bias_with_gaps_in_memory_is_read_right():
    x, weight = drawn(1, 3, 5, 6, 7).detach(), drawn(4, 3, 3, 3, 3).detach()
    bias = torch.arange(8.0)[::2]
    found = ours(x, weight, bias, ONES, (0, 0, 0), ONES, 1)
    torch.testing.assert_close(found, F.conv3d(x, weight, bias), rtol=1e-4, atol=1e-4)


def test_under_autocast_it_is_bfloat16():
    given = drawn(2, 6, 7, 11, 9), drawn(6, 1, 3, 3, 3), drawn(6), ONES, (0, 1, 1), ONES, 6
    with torch.autocast("cpu", torch.bfloat16):
        found, wanted = (gradients_of(each, *given) for each in (ours, F.conv3d))
    assert [value.dtype for value in found] == [value.dtype for value in wanted]
    assert found[0].dtype == torch.bfloat16
    for mine, reference in zip(found, wanted, strict=True):
        assert F.cosine_similarity(mine.flatten().double(), reference.flatten().double(), 0) > 0.9999


@pytest.mark.parametrize(("frames", "taps"), [(2, 3), (4, 5), (2, 7)])
@pytest.mark.parametrize("autocast", [False, True])
def test_kernels_longer_than_the_clip_get_their_gradients_in_bfloat16(frames, taps, autocast):
    """oneDNN leaves a part of them as it found the memory, or writes beside it."""
    x, weight, bias = drawn(2, 16, frames, 7, 7), drawn(16, 16, taps, 3, 3), drawn(16)
    rest = ONES, (taps // 2, 1, 1), ONES, 1
    wanted = gradients_of(F.conv3d, x, weight, bias, *rest)
    for _ in range(3):
        rubbish = [torch.full((2**size,), 3e34) for size in range(8, 21)]  # what a fresh tensor may hold
        del rubbish
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            given = [x, weight, bias] if autocast else [value.bfloat16() for value in (x, weight, bias)]
            found = gradients_of(ours, *given, *rest)
        for mine, reference in zip(found, wanted, strict=True):
            assert (mine.float() - reference).abs().max() < 0.03 * reference.abs().max()


def test_gradients_of_gradients():
    x, weight, bias = (drawn(*shape).detach().double() for shape in ((1, 2, 3, 4, 4), (2, 1, 2, 3, 3), (2,)))

    def second(convolution, dtype):
        values = [value.to(dtype).requires_grad_() for value in (x, weight, bias)]
        y = convolution(*values, ONES, (0, 1, 1), ONES, 2).pow(2).sum()
        first = torch.autograd.grad(y, values[:2], create_graph=True)
        return torch.autograd.grad(sum(value.pow(2).sum() for value in first), values[:2])

    for found, wanted in zip(second(ours, torch.float32), second(F.conv3d, torch.float64), strict=True):
        torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-3)


def test_whoever_looks_at_operators_sees_that_of_torch():
    """torch.func, forward differentiation, counters of operations, and tracers."""
    x, weight = drawn(1, 2, 3, 5, 5).detach(), drawn(2, 2, 3, 3, 3).detach()

    def run(clip):
        return ours(clip, weight, None, ONES, (0, 1, 1)).sum()

    forwards = torch.func.jvp(run, (x,), (torch.ones_like(x),))[1]
    torch.testing.assert_close(forwards, torch.func.grad(run)(x).sum())
    torch.testing.assert_close(torch.func.vmap(run)(x[None].expand(2, *x.shape)), run(x).expand(2))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        torch.testing.assert_close(torch.autograd.forward_ad.unpack_dual(run(dual)).tangent, forwards)
    with FlopCounterMode(display=False) as counter:
        run(x)
    assert counter.get_total_flops() == 2 * 2 * 2 * 27 * 25
    assert "mkldnn" not in str(torch.jit.trace(run, x, check_trace=False).graph)
    assert [node.target for node in torch.export.export(Runs(weight), (x,)).graph.nodes if "conv" in node.name] == [
        torch.ops.aten.conv3d.default
    ]


class Runs(torch.nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.weight = weight

    def forward(self, x):
        return ours(x, self.weight, None, ONES, (0, 1, 1))
