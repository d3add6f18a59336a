"""Two streams: what each network is shown, how their answers are joined, stored flow, short and still videos."""

import threading

import numpy as np
import pytest
import torch
from torch import nn

from inflate3d import ClipSpec, InceptionI3d, InflateError, PredictOptions, VideoPrediction
from inflate3d.flow.layouts import FlowFileOptions, write_flow
from inflate3d.flow.methods import estimate_flow, find_method
from inflate3d.flow.stored import StoredFlow
from inflate3d.results.prediction import Failure
from inflate3d.results.two_stream import (
    FlowOptions,
    Streams,
    flow_to_input,
    join,
    optimize_streams,
    predict_streams,
    predict_streams_many,
)

SPEC = ClipSpec(fps=25.0, num_frames=7, min_frames=1, short_side=32, crop=27, value_range=(-1.0, 1.0))


SHOWN = {2: [], 3: []}  # clips, by their channels; outside of the networks, which are copied


class Small(nn.Module):
    """A random 3D network that remembers what it was shown."""

    def __init__(self, in_channels, num_classes=3):
        super().__init__()
        self.clip_spec, self.in_channels, self.class_names = SPEC, in_channels, None
        self.conv = nn.Conv3d(in_channels, num_classes, (3, 5, 5), padding=(1, 0, 0))

    def forward(self, clip):
        SHOWN[self.in_channels].append(clip.detach().clone())
        return self.conv(clip).relu().mean((2, 3, 4)) * 30


def make_streams(num_classes=3):
    torch.manual_seed(1)
    return Streams(Small(2, num_classes).eval(), Small(3, num_classes).eval())


def moving(count, height=32, width=45):
    """Clouds that move by other amounts from frame to frame."""
    noise = torch.nn.functional.interpolate(torch.rand(1, 3, 23, 23), (140, 140), mode="bicubic")[0].clamp(0, 1)
    picture = (noise * 255).to(torch.uint8).permute(1, 2, 0)
    return torch.stack([picture[2 * i : 2 * i + height, i * i % 40 : i * i % 40 + width] for i in range(count)]).numpy()


def difference(first, second):
    """A quick method: no flow, but something that tells which two frames it was made from."""
    return (second.float() - first.float())[..., :2].permute(0, 3, 1, 2) / 6


def shown_by_hand(frames, flows):
    """What both networks have to be shown for steps 0, 1, ...: centre crops in -1..1, mediapipe's codes."""
    top, left = (32 - 27) // 2, (45 - 27) // 2
    colors = torch.from_numpy(frames[: len(flows)]).permute(3, 0, 1, 2) / 255 * 2 - 1
    share = ((flows + np.float32(20)) / np.float32(40)).clip(0, 1)
    codes = (share * np.float32(255)).astype(np.uint8)
    motion = torch.from_numpy(codes / 127.5 - 1).float().permute(1, 0, 2, 3)
    return colors[:, :, top : top + 27, left : left + 27], motion[:, :, top : top + 27, left : left + 27]


@pytest.mark.parametrize(
    ("method", "window", "starts", "new"),
    [("tvl1", 2, (0, 1), [2, 1]), ("difference", 7, (0, 7, 9), [7, 7, 2])],  # the last window reaches back
)
def test_the_answer_is_the_one_computed_by_hand(method, window, starts, new):
    solve = find_method("tvl1", compiled=False) if method == "tvl1" else difference
    streams, frames = make_streams(), moving(sum(new) + 1)
    answer = predict_streams(streams, frames, PredictOptions(window=window), flow=FlowOptions(method=solve))
    flows = estimate_flow(torch.from_numpy(frames), solve).numpy()
    colors, motion = shown_by_hand(frames, flows)
    weights = torch.tensor(new, dtype=torch.float64) / sum(new)
    with torch.no_grad():
        by_hand = {
            name: torch.cat([net(clip[None, :, start : start + window]) for start in starts]).double()
            for name, net, clip in (("flow", streams.flow, motion), ("rgb", streams.rgb, colors))
        }
    for name, logits in by_hand.items():
        torch.testing.assert_close(answer.streams[name].logits, weights @ logits, rtol=1e-4, atol=1e-5)
        assert answer.streams[name].num_frames == sum(new)
    torch.testing.assert_close(answer.logits, weights @ (by_hand["rgb"] + by_hand["flow"]), rtol=1e-4, atol=1e-5)
    for one, rgb, flow in zip(answer.windows, by_hand["rgb"], by_hand["flow"], strict=True):
        torch.testing.assert_close(one.logits.double(), rgb + flow, rtol=1e-4, atol=1e-5)
    assert [one.start_seconds for one in answer.windows] == pytest.approx([start / 25 for start in starts])


def test_frame_k_is_shown_with_the_flow_that_leads_to_the_next():
    streams, frames = make_streams(), moving(8)
    predict_streams(streams, frames, flow=FlowOptions(method=difference))
    sides = (torch.from_numpy(side) for side in (frames[:-1], frames[1:]))
    colors, motion = shown_by_hand(frames, difference(*sides).numpy())
    torch.testing.assert_close(SHOWN[2][-1][0], motion)
    torch.testing.assert_close(SHOWN[3][-1][0], colors)


def test_i3d_for_flow_answers_as_by_hand():
    torch.manual_seed(0)
    network = InceptionI3d(5, in_channels=2).eval()
    spec = ClipSpec(fps=25.0, num_frames=9, min_frames=9, short_side=193, crop=193, value_range=(-1.0, 1.0))
    network.clip_spec = spec
    frames = np.random.default_rng(0).integers(0, 256, (10, 193, 201, 3), dtype=np.uint8)
    options = FlowOptions(method=difference, quantizer="none")
    answer = predict_streams(Streams(network), frames, flow=options)
    flows = difference(*(torch.from_numpy(side) for side in (frames[:-1], frames[1:]))).clamp(-20, 20)
    with torch.no_grad():
        expected = network((flows / 20)[:, :, :, 4:197].transpose(0, 1)[None])[0]
    torch.testing.assert_close(answer.logits.float(), expected, rtol=1e-3, atol=1e-4)
    assert (answer.num_frames, answer.streams) == (9, {})


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("count", [2, 3, 7, 8, 9])
def test_short_videos_are_looped(count, precision):
    streams, frames = make_streams(), moving(count)
    options = PredictOptions(precision=precision)
    answer = predict_streams(streams, frames, options, flow=FlowOptions(method=difference))
    assert answer.num_frames == count - 1
    assert len(answer.windows) == 1 + (count > 8)
    assert answer.windows[0].end_seconds == pytest.approx(min(count - 2, 6) / 25)
    if precision == "fp32" and count < 8:
        shown = SHOWN[2][-1][0]
        assert all(shown[:, step].equal(shown[:, step % (count - 1)]) for step in range(7))


def test_one_frame_has_no_flow():
    with pytest.raises(InflateError, match=r"one frame, from which no flow leads(.|\n)*two frames or more"):
        predict_streams(make_streams(), moving(1), flow=FlowOptions(method=difference))


def test_a_still_video_shows_no_motion():
    streams, frames = make_streams(), moving(1).repeat(9, 0)
    predict_streams(streams, frames, flow=FlowOptions(quantizer="none"))
    assert SHOWN[2][-1].abs().max() == 0
    predict_streams(streams, frames)  # by default with DeepMind's codes, none of which stands for no motion
    assert SHOWN[2][-1].unique().tolist() == pytest.approx([127 / 127.5 - 1])


@pytest.mark.parametrize(("num_frames", "steps"), [(5, 5), (12, 11), (99, 11)])
def test_one_frame_more_is_read_if_there_is_one(num_frames, steps):
    options = PredictOptions(num_frames=num_frames)
    answer = predict_streams(make_streams(), moving(12), options, flow=FlowOptions(method=difference))
    assert answer.num_frames == steps


def test_mirrored_crops_change_the_sign_of_the_horizontal_flow():
    flow = torch.randint(0, 256, (4, 2, 32, 45), dtype=torch.uint8)
    views = flow_to_input(flow, 27, "ten")
    assert views.shape == (10, 2, 4, 27, 27)
    for place, mirrored in zip((1, 0, 3, 2, 4), views[5:], strict=True):  # left and right change places
        assert mirrored[0].equal(-views[place][0].flip(-1))
        assert mirrored[1].equal(views[place][1].flip(-1))
    streams = make_streams()
    options = PredictOptions(crops="ten", batch_size=2)
    predict_streams(streams, moving(16), options, flow=FlowOptions(method=difference))
    assert [len(shown) for shown in SHOWN[2][-15:]] == [2] * 15  # 3 windows, ten views of each


@pytest.mark.parametrize("options", [{"precision": "int8"}, {"workers": 2}, {"whole": True}])
def test_what_the_flow_stream_cannot_do_is_refused(options):
    with pytest.raises(InflateError, match=r"the flow stream cannot be run so(.|\n)*fp32 or bf16"):
        predict_streams_many(make_streams(), [moving(9)], PredictOptions(**options))


def one_answer(logits):
    logits = torch.tensor(logits)
    return VideoPrediction("a", 3, 25.0, logits.double(), (), None)


def test_joining_sums_logits_or_averages_probabilities():
    """DeepMind's sample: two pairs of its printed logits."""
    rgb, flow = one_answer([25.856646, 12.330335, 10.883866]), one_answer([15.957031, 9.425033, 12.808723])
    assert join(rgb, flow).logits.tolist() == pytest.approx([41.813677, 21.755368, 23.692589])
    mean = (rgb.logits.softmax(0) + flow.logits.softmax(0)) / 2
    assert join(rgb, flow, "probabilities").logits.softmax(0).tolist() == pytest.approx(mean.tolist(), rel=1e-9)
    assert join(rgb, flow, "probabilities").logits.exp().sum() == pytest.approx(1)
    with pytest.raises(InflateError, match=r"do not go together(.|\n)*0 windows and 3(.|\n)*0 windows and 2 classes"):
        join(rgb, one_answer([1.0, 2.0]))


def test_the_joint_answer_follows_the_fusion():
    streams, frames = make_streams(), moving(9)
    answer = predict_streams(streams, frames, flow=FlowOptions(method=difference, fusion="probabilities"))
    parts = [answer.streams[name].logits.softmax(0) for name in ("rgb", "flow")]
    torch.testing.assert_close(answer.logits.softmax(0), (parts[0] + parts[1]) / 2)
    for i, window in enumerate(answer.windows):
        parts = [answer.streams[name].windows[i].logits.softmax(0) for name in ("rgb", "flow")]
        torch.testing.assert_close(window.logits.softmax(0), (parts[0] + parts[1]) / 2)


@pytest.mark.parametrize("layout", ["npz", "mp4"])
def test_stored_flow_takes_the_place_of_a_method(tmp_path, layout):
    frames, streams = moving(11), make_streams()
    options = FlowFileOptions(layout=layout, quantizer="mediapipe")
    write_flow(torch.from_numpy(frames), tmp_path, options, method=difference)
    found = predict_streams(streams, frames, flow=FlowOptions(stored=tmp_path))
    expected = predict_streams(streams, frames, flow=FlowOptions(method=difference))
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-4, atol=1e-4)
    part = predict_streams(streams, frames, PredictOptions(num_frames=5), flow=FlowOptions(stored=tmp_path))
    assert part.num_frames == 5


def test_stored_flow_is_found_under_the_name_of_the_video(tmp_path):
    frames = moving(9)
    write_flow(torch.from_numpy(frames), tmp_path / "flow" / "clip", FlowFileOptions(layout="npz"), method=difference)
    folder = tmp_path / "clip"
    folder.mkdir()
    from PIL import Image

    for i, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"{i}.png")
    answer = predict_streams(make_streams(), folder, flow=FlowOptions(stored=tmp_path / "flow"))
    assert answer.num_frames == 8


def test_stored_flow_of_another_video_is_refused(tmp_path):
    frames = moving(11)
    write_flow(torch.from_numpy(frames), tmp_path / "a", FlowFileOptions(layout="npz"), method=difference)
    stored = FlowOptions(stored=tmp_path / "a")
    assert predict_streams(make_streams(), frames[:10], flow=stored).num_frames == 9  # one more: as many as frames
    with pytest.raises(InflateError, match=r"not that of this video(.|\n)*8 flows for 9 frames(.|\n)*10 or more"):
        predict_streams(make_streams(), frames[:9], flow=stored)
    with pytest.raises(InflateError, match=r"not that of this video(.|\n)*flow 10 of 45x32(.|\n)*none left"):
        predict_streams(make_streams(), moving(12), flow=stored)
    with pytest.raises(InflateError, match=r"not that of this video(.|\n)*flow 0 of 47x32(.|\n)*one of 45x32"):
        predict_streams(make_streams(), moving(11, width=47), flow=stored)


def test_one_bad_source_does_not_end_a_run(tmp_path):
    told = []
    found = list(
        predict_streams_many(
            make_streams(),
            [moving(9), tmp_path / "missing.mp4", moving(1), moving(8)],
            flow=FlowOptions(method=difference),
            progress=lambda source: lambda done, total: told.append((done, total)),
        )
    )
    assert [type(one) for one in found] == [VideoPrediction, Failure, Failure, VideoPrediction]
    assert told[:3] == [(pytest.approx(k / 25), pytest.approx(9 / 25)) for k in range(3)]
    assert len(told) == 8 + 7


def test_a_bug_of_the_progress_bar_ends_a_run():
    """It comes up in the thread that computes flow, as what a strange video sets off does."""
    running = predict_streams_many(
        make_streams(), [moving(9)], flow=FlowOptions(method=difference), progress=lambda source: lambda *_: {}["bar"]
    )
    with pytest.raises(KeyError, match="bar"):
        list(running)


def test_an_error_of_a_network_leaves_no_thread_behind():
    class Broken(Small):
        def forward(self, clip):
            raise TypeError("a bug of the network")

    with pytest.raises(TypeError, match="a bug of the network") as raised:
        predict_streams(Streams(Broken(2).eval()), moving(54), flow=FlowOptions(method=difference))
    assert raised.value.__traceback__
    assert not [thread for thread in threading.enumerate() if thread.name == "inflate3d-ahead"]


def test_memory_is_measured_once_for_each_network(monkeypatch):
    """On a GPU a measurement runs the network twice and empties the cache; rgb takes more than flow."""
    measured = []

    def room(model, spec, options):
        measured.append(model.in_channels)
        return {2: 5, 3: 2}[model.in_channels]

    monkeypatch.setattr("inflate3d.results.two_stream.views_at_a_time", room)
    sources = [moving(22), moving(9)]
    for shown in SHOWN.values():
        shown.clear()
    wanted = [predict_streams(make_streams(), source, flow=FlowOptions(method=difference)) for source in sources]
    assert (measured, [len(clip) for clip in SHOWN[2]]) == ([2, 3] * 2, [3, 2])
    assert [len(clip) for clip in SHOWN[3]] == [2, 1, 2]
    measured.clear()
    found = list(predict_streams_many(make_streams(), sources, flow=FlowOptions(method=difference)))
    assert measured == [2, 3]
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one.logits, other.logits)


def test_a_network_that_counts_as_false_is_made_fast_too():
    class Listed(Small):
        def __len__(self):
            return 0

    streams = optimize_streams(Streams(Small(2).eval(), Listed(3).eval()), PredictOptions())
    assert [type(network).__name__ for network in streams] == ["Optimized", "Optimized"]


def test_strange_stored_flow_is_a_failure(tmp_path, monkeypatch):
    write_flow(torch.from_numpy(moving(9)), tmp_path / "a", FlowFileOptions(layout="npz"), method=difference)

    def flows():
        yield torch.zeros(2, 32, 45)
        raise RecursionError("too deep")

    strange = StoredFlow(tmp_path / "a", None, flows)
    monkeypatch.setattr("inflate3d.results.two_stream.open_flow", lambda path, bound: strange)
    (failure,) = predict_streams_many(make_streams(), [moving(9)], flow=FlowOptions(stored=tmp_path / "a"))
    assert "a: the source cannot be read" in failure.reason
    assert "RecursionError: too deep" in failure.reason


def other_spec():
    streams = make_streams()
    streams.rgb.clip_spec = ClipSpec(25.0, 9, 1, 32, 27, (-1.0, 1.0))
    return streams


def other_names():
    streams = make_streams()
    streams.rgb.class_names, streams.flow.class_names = ("a", "b", "c"), ("a", "c", "b")
    return streams


@pytest.mark.parametrize(
    ("streams", "message"),
    [
        (lambda: Streams(Small(3).eval()), "3 input channels for flow"),
        (lambda: Streams(Small(2).eval(), Small(2).eval()), "2 input channels for rgb"),
        (other_spec, "num_frames 9 for rgb and 7 for flow"),
        (other_names, "other classes, or in another order"),
    ],
)
@pytest.mark.parametrize("call", [predict_streams, lambda *args: predict_streams_many(args[0], [args[1]])])
def test_networks_that_do_not_go_together_are_refused_at_once(streams, message, call):
    with pytest.raises(InflateError, match=rf"no two streams of one classifier(.|\n)*{message}"):
        call(streams(), "not-there.mp4")


def test_other_numbers_of_classes_are_told():
    with pytest.raises(InflateError, match="do not go together"):
        predict_streams(Streams(Small(2, 4).eval(), Small(3).eval()), moving(9), flow=FlowOptions(method=difference))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fusion": "sum"}, r"cannot be fed so(.|\n)*logits or probabilities(.|\n)*fusion='sum'"),
        ({"method": difference, "stored": "a"}, r"cannot be fed so(.|\n)*beside a method(.|\n)*stored='a'"),
        ({"quantizer": "jpeg"}, "quantizer 'jpeg'"),
    ],
)
def test_wrong_options_are_told(options, message):
    with pytest.raises(InflateError, match=message):
        FlowOptions(**options)
