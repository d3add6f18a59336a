"""TV-L1: laws, a second implementation in numpy, OpenCV's, ground truth."""

import cv2
import numpy as np
import pytest
import torch
from moving import distance, read_flo, real_pairs, rgb, shifted, texture
from PIL import Image
from reference_tvl1 import linear
from reference_tvl1 import tvl1 as reference

from inflate3d.errors import InflateError, InflateWarning
from inflate3d.flow import tvl1 as module
from inflate3d.flow.methods import find_method, to_grey
from inflate3d.flow.quantize import quantize
from inflate3d.flow.tvl1 import PLAIN, Tvl1Options, _Kernels, _solve, median_flat, median_network, resize_linear, tvl1


@pytest.mark.parametrize(("right", "down"), [(0, 0), (3, 0), (0, -2), (-4, 3)])
def test_a_shifted_picture_gives_its_shift(right, down):
    flow = tvl1(*shifted(right, down))
    assert flow.shape == (1, 2, 61, 83)
    inside = flow[0, :, 9:-9, 9:-9]
    assert (inside - torch.tensor([right, down])[:, None, None]).norm(dim=0).mean() < 0.05


def test_what_stands_still_has_no_flow_at_all():
    picture = torch.from_numpy(np.stack([texture(47, 61), np.full((47, 61), 90, np.uint8)]))
    assert tvl1(picture, picture).abs().max() == 0


def test_a_mirrored_pair_gives_the_mirrored_flow():
    first, second = shifted(3, 1)
    flow, mirrored = tvl1(first, second), tvl1(first.flip(-1), second.flip(-1))
    back = mirrored.flip(-1) * torch.tensor([-1.0, 1.0])[:, None, None]
    assert distance(flow, back) < 0.02


def test_rows_and_columns_are_alike():
    first, second = shifted(3, 1)
    flow, turned = tvl1(first, second), tvl1(first.mT.contiguous(), second.mT.contiguous())
    assert distance(flow, turned.flip(1).mT) < 0.005


@pytest.mark.parametrize(("height", "width", "right"), [(19, 31, 1), (29, 23, -2), (41, 37, 2)])
def test_a_second_implementation_agrees(height, width, right):
    first, second = shifted(right, 1, height, width)
    expected = torch.from_numpy(reference(first[0].numpy(), second[0].numpy()))
    assert distance(tvl1(first, second), expected[None]) < 0.002


def test_pairs_that_are_solved_together_stop_each_by_itself():
    """As on a GPU, where all are solved at once."""
    still = torch.from_numpy(texture(61, 83))[None]
    pairs = [shifted(3, 1), (still, still), shifted(-4, 2)]
    first, second = (torch.cat(side) for side in zip(*pairs, strict=True))
    together = _solve(first.float(), second.float(), Tvl1Options(), PLAIN)
    alone = tvl1(first, second)
    assert distance(together, alone).max() < 1e-4
    assert together[1].abs().max() == 0


def test_the_result_of_a_pair_does_not_depend_on_the_others():
    one, other = shifted(3, 1), shifted(-4, 2)
    both = tvl1(torch.cat([one[0], other[0]]), torch.cat([one[1], other[1]]))
    assert both[1:].equal(tvl1(*other))
    assert tvl1(one[0][:0], one[1][:0]).shape == (0, 2, 61, 83)


@pytest.mark.parametrize("size", [1, 3, 5])
def test_the_options_are_opencvs(size):
    first, second = shifted(2, 1)
    ours = Tvl1Options(tau=0.2, lambda_=0.1, theta=0.25, num_scales=3, num_warps=2, epsilon=0.02,
                       inner_iterations=11, outer_iterations=4, scale_step=0.7, median_size=size)  # fmt: skip
    theirs = cv2.optflow.DualTVL1OpticalFlow_create(0.2, 0.1, 0.25, 3, 2, 0.02, 11, 4, 0.7, 0.0, size, False)
    expected = torch.from_numpy(theirs.calc(first[0].numpy(), second[0].numpy(), None)).permute(2, 0, 1)
    assert distance(tvl1(first, second, ours), expected[None]) < 0.002


def test_defaults_are_those_of_opencv():
    theirs, ours = cv2.optflow.DualTVL1OpticalFlow_create(), Tvl1Options()
    assert (theirs.getTau(), theirs.getLambda(), theirs.getTheta()) == (ours.tau, ours.lambda_, ours.theta)
    assert (theirs.getScalesNumber(), theirs.getWarpingsNumber()) == (ours.num_scales, ours.num_warps)
    assert (theirs.getInnerIterations(), theirs.getOuterIterations()) == (ours.inner_iterations, ours.outer_iterations)
    assert (theirs.getEpsilon(), theirs.getScaleStep()) == (ours.epsilon, ours.scale_step)
    assert theirs.getMedianFiltering() == ours.median_size
    assert (theirs.getGamma(), theirs.getUseInitialFlow()) == (0, False)


@pytest.mark.parametrize(("height", "width"), [(3, 3), (3, 40), (17, 16), (130, 5)])
def test_small_and_narrow_pictures(height, width):
    first, second = shifted(1, 0, height, width)
    expected = cv2.optflow.DualTVL1OpticalFlow_create().calc(first[0].numpy(), second[0].numpy(), None)
    assert distance(tvl1(first, second), torch.from_numpy(expected).permute(2, 0, 1)[None]) < 0.01


@pytest.mark.parametrize(("size", "factor"), [((41, 58), 1.25), ((64, 91), None), ((7, 9), None)])
def test_scaling_is_linear_between_pixel_centers(size, factor):
    plane = np.random.default_rng(0).random((51, 73)).astype(np.float32)
    found = resize_linear(torch.from_numpy(plane), size, factor).numpy()
    assert np.abs(found - linear(plane.astype(float), size, factor)).max() < 1e-5


@pytest.mark.parametrize("size", [3, 5])
def test_medians(size):
    h, w, stride = 13, 17, 17 + size - 1
    planes = torch.randn(3, h + size - 1, stride)
    medians = torch.nn.functional.pad(median_flat(planes.flatten(1), stride, size), (0, size - 1))
    squares = planes.unfold(1, size, 1).unfold(2, size, 1).flatten(3)
    assert medians.view(3, h, stride)[..., :w].equal(squares.median(-1).values)


def test_the_network_finds_the_middle_of_any_zeros_and_ones():
    """By the 0-1 principle it then finds the median of anything."""
    wires = [torch.tensor([number >> bit & 1 for number in range(2**9)]) for bit in range(9)]
    expected = torch.stack(wires).median(0).values
    for low, high, wants_low, wants_high in median_network(9):
        a, b = wires[low], wires[high]
        # where a value is not needed, anything may stand
        wires[low] = torch.minimum(a, b) if wants_low else torch.full_like(a, -1)
        wires[high] = torch.maximum(a, b) if wants_high else torch.full_like(a, -1)
    assert wires[4].equal(expected)


def test_compiled_steps_are_the_plain_ones(monkeypatch):
    monkeypatch.setattr(module, "_COMPILED", {})
    monkeypatch.setattr(module, "_compile", lambda kernel: torch.compile(kernel, backend="aot_eager", dynamic=True))
    first, second = shifted(2, 1, 19, 23)
    options = Tvl1Options(median_size=3)
    assert tvl1(first, second, options, compiled=True).equal(tvl1(first, second, options))
    assert module._COMPILED["cpu"] is not PLAIN


@pytest.mark.parametrize(
    ("reason", "told"),
    [("no C++ compiler here\nand more", r"no C\+\+ compiler here; install one such as g\+\+$"),
     ("the disk is full", "the disk is full$"), ("", "RuntimeError$")],
)  # fmt: skip
def test_where_compiling_fails_it_runs_uncompiled_and_says_so(monkeypatch, reason, told):
    def broken(kernel):
        def run(*args, **kwargs):
            raise RuntimeError(reason)

        return run

    monkeypatch.setattr(module, "_COMPILED", {})
    monkeypatch.setattr(module, "_compile", broken)
    first, second = shifted(2, 1, 31, 37)
    with pytest.warns(InflateWarning, match=rf"runs uncompiled.*{told}"):
        flow = tvl1(first, second, compiled=True)
    assert flow.equal(tvl1(first, second))
    tvl1(first, second, compiled=True)  # warns once


def test_the_number_of_threads_is_as_before(monkeypatch):
    seen = []

    def watched(*args, **kwargs):
        seen.append(torch.get_num_threads())
        return PLAIN.step_flow(*args, **kwargs)

    monkeypatch.setattr(module, "_COMPILED", {"cpu": _Kernels(watched, PLAIN.step_duals, PLAIN.median)})
    before = torch.get_num_threads()
    tvl1(*shifted(1, 0, 19, 23), compiled=True)
    assert {*seen} == {1}
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tau": 0, "median_size": 4}, "tau=0, median_size=4"),
        ({"scale_step": 1.0}, r"scale_step=1\.0"),
        ({"epsilon": -1}, "epsilon=-1"),
        ({"num_warps": 2.5, "lambda_": float("nan")}, "lambda_=nan, num_warps=2.5"),
    ],
)
def test_wrong_options_are_told_together(options, message):
    with pytest.raises(InflateError, match=rf"TV-L1 cannot run with these options(.|\n)*{message}"):
        Tvl1Options(**options)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (torch.zeros(1, 20, 20), torch.zeros(1, 20, 20)),
        (torch.zeros(1, 20, 20, 3, dtype=torch.uint8), torch.zeros(1, 20, 20, 3, dtype=torch.uint8)),
        (torch.zeros(1, 20, 20, dtype=torch.uint8), torch.zeros(2, 20, 20, dtype=torch.uint8)),
        (torch.zeros(1, 2, 20, dtype=torch.uint8), torch.zeros(1, 2, 20, dtype=torch.uint8)),
    ],
)
def test_what_is_no_pair_of_grey_pictures_is_refused(first, second):
    with pytest.raises(InflateError, match="these are no pairs of grey pictures"):
        tvl1(first, second)


@pytest.mark.shared
def test_real_frames_agree_with_opencv(shared):
    """As far as OpenCV agrees with itself: noise of 1e-6 grey levels moves its flow by up to 0.02 pixels."""
    first, second = real_pairs(shared / "data" / "videos", 20)
    assert len(first) == 20
    ours, theirs = tvl1(first, second), find_method("tvl1-opencv")(rgb(first), rgb(second))
    assert distance(ours, theirs).mean() <= 0.02
    codes = [quantize(flow, "mediapipe").int() for flow in (ours, theirs)]
    assert ((codes[0] - codes[1]).abs() <= 1).double().mean() >= 0.995


@pytest.mark.shared
@pytest.mark.parametrize(
    "names",
    [
        ("RubberWhale/rubberwhale1.png", "RubberWhale/rubberwhale2.png", "RubberWhale/flow_gt.flo"),
        ("sintel_demo/frame_0001.png", "sintel_demo/frame_0002.png", "sintel_demo/frame_0001.flo"),
    ],
)
def test_ground_truth_is_met_as_well_as_by_opencv(shared, names):
    *pictures, truth = (shared / "data" / "flow" / name for name in names)
    frames = [torch.from_numpy(np.array(Image.open(path).convert("RGB")))[None] for path in pictures]
    expected = read_flo(truth)
    known = (expected.abs() < 1e9).all(0)
    grey = [to_grey(frame) for frame in frames]
    ours, theirs = tvl1(*grey)[0], find_method("tvl1-opencv")(*frames)[0]
    errors = [float((flow.double() - expected).norm(dim=0)[known].mean()) for flow in (ours, theirs)]
    assert errors[0] <= 1.01 * errors[1]
    assert distance(ours[None], theirs[None]) <= 0.02
