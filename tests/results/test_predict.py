"""Prediction: windows, weights of windows, crops and options, on a network that shows what it was given."""

import io
import os
import re
import threading
import time
import warnings
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from inflate3d import (
    Clip,
    ClipSpec,
    InceptionI3d,
    InflateError,
    InflateWarning,
    PredictOptions,
    VideoPrediction,
    predict,
    predict_many,
    read_clip,
)
from inflate3d.clips.sampling import Timed, Window
from inflate3d.clips.transforms import frames_to_input
from inflate3d.clips.video import FrameStream
from inflate3d.models.inflated import inflated_classifier
from inflate3d.results.network import Network, SmallFrame, color_views, cut_windows
from inflate3d.results.predict import _calibration_clips, optimize_for, predict_each
from inflate3d.results.prediction import Failure, top_scores
from inflate3d.speed.optimize import optimize

STARTS = (0, 7, 14, 21, 23)  # of the windows of 30 frames
SPEC = ClipSpec(fps=25.0, num_frames=7, min_frames=1, short_side=16, crop=16, value_range=(0.0, 255.0))


class Witness(nn.Module):
    """Answers with the mean brightness of the first and the last frame it sees."""

    def __init__(self):
        super().__init__()
        self.clip_spec = SPEC
        self.class_names = ("first", "last")
        self.anchor = nn.Parameter(torch.zeros(()))
        self.batches = []

    def __deepcopy__(self, memo):
        return self  # what its fast copy sees is wanted here

    def forward(self, clip):
        self.batches.append(tuple(clip.shape))
        return torch.stack([clip[:, :, 0].mean((1, 2, 3)), clip[:, :, -1].mean((1, 2, 3))], dim=1) + self.anchor


def frames(count):
    """Frame i has brightness i everywhere."""
    return np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None, None], (count, 16, 23, 3)).copy()


@pytest.mark.parametrize(
    ("count", "spans"),
    [
        (14, [(0, 6, 7), (7, 13, 7)]),  # first frame, last frame, frames that only this window adds
        (17, [(0, 6, 7), (7, 13, 7), (10, 16, 3)]),  # the tail reaches back
        (7, [(0, 6, 7)]),
    ],
)
def test_the_whole_is_the_mean_of_the_windows_by_the_frames_they_add(count, spans):
    answer = predict(Witness().eval(), frames(count))
    assert [window.logits.tolist() for window in answer.windows] == [[first, last] for first, last, _ in spans]
    assert [(w.start_seconds, w.end_seconds) for w in answer.windows] == [
        (pytest.approx(first / 25), pytest.approx(last / 25)) for first, last, _ in spans
    ]
    expected = np.average([[first, last] for first, last, _ in spans], axis=0, weights=[new for *_, new in spans])
    assert answer.logits.tolist() == pytest.approx(expected.tolist())
    assert answer.num_frames == count
    assert answer.fps == 25.0


def test_a_short_video_is_looped_and_keeps_its_own_times():
    answer = predict(Witness().eval(), frames(3))  # shown as 0 1 2 0 1 2 0
    assert answer.windows[0].logits.tolist() == [0, 0]
    assert answer.windows[0].end_seconds == pytest.approx(2 / 25)
    assert answer.num_frames == 3


def test_batches_windows_and_strides():
    model = Witness().eval()
    together = predict(model, frames(31), PredictOptions(batch_size=3, stride=4))
    assert [shape[0] for shape in model.batches] == [3, 3, 1]
    alone = predict(Witness().eval(), frames(31), PredictOptions(stride=4))
    torch.testing.assert_close(together.logits, alone.logits)
    longer = predict(model, frames(31), PredictOptions(window=11, num_frames=11))
    assert model.batches[-1] == (1, 3, 11, 16, 16)
    assert longer.num_frames == 11


def test_crops_are_averaged():
    model = Witness().eval()
    picture = np.zeros((7, 16, 48, 3), np.uint8)
    picture[:, :, 32:] = 90
    for size, batches in ((None, [1, 1, 1]), (2, [2, 1]), (5, [3])):
        model.batches.clear()
        answer = predict(model, picture, PredictOptions(crops="three", batch_size=size))
        assert model.batches == [(batch, 3, 7, 16, 16) for batch in batches]
        assert answer.windows[0].logits.tolist() == pytest.approx([30, 30])


@pytest.mark.parametrize(("count", "crops"), [(75, "three"), (3, "center")])
def test_a_video_in_one_pass_is_answered_as_a_clip(count, crops):
    """The paper's protocol: the network's own answer to the whole video, at any length."""
    torch.manual_seed(0)
    model = inflated_classifier("timm/test_resnet", 5).eval()
    model.clip_spec = replace(SPEC, short_side=40, crop=36, value_range=(-1.0, 1.0))
    video = np.random.default_rng(0).integers(0, 255, (count, 40, 52, 3), dtype=np.uint8)
    answer = predict(model, video, PredictOptions(whole=True, crops=crops))
    clip = frames_to_input([torch.from_numpy(frame) for frame in video], model.clip_spec, crops)
    with torch.inference_mode():
        wanted = model(clip).mean(0)
    torch.testing.assert_close(answer.logits.float(), wanted, rtol=1e-4, atol=1e-5)
    assert answer.num_frames == count and answer.windows[-1].end_seconds == pytest.approx((count - 1) / 25)
    starts = [window.start_seconds for window in answer.windows]
    assert starts == sorted(starts) and starts[0] == 0


def test_in_one_pass_short_videos_are_looped_and_bad_ones_fail(tmp_path):
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    model = InceptionI3d(5).eval()
    model.clip_spec = replace(model.clip_spec, short_side=193, crop=193)
    video = np.random.default_rng(0).integers(0, 255, (4, 193, 193, 3), dtype=np.uint8)
    answer, failure = predict_many(model, [video, tmp_path / "bad.mp4"], PredictOptions(whole=True))
    looped = np.concatenate([video, video, video[:1]])
    with torch.inference_mode():
        wanted = model(frames_to_input([torch.from_numpy(frame) for frame in looped], model.clip_spec))[0]
    torch.testing.assert_close(answer.logits.float(), wanted, rtol=1e-4, atol=1e-5)
    assert isinstance(failure, Failure) and "bad.mp4" in failure.source
    assert answer.num_frames == 4 and answer.windows[0].end_seconds == pytest.approx(3 / 25)


def test_what_cannot_be_shown_in_one_pass_is_refused():
    with pytest.raises(InflateError, match="cannot be shown a video in one pass"):
        predict(Witness().eval(), frames(14), PredictOptions(whole=True))
    with pytest.raises(InflateError, match="whole"):
        PredictOptions(whole=True, window=16)


def test_as_many_windows_go_through_the_network_as_the_batch_has_room_for():
    model = Witness().eval()
    alone = predict(model, frames(33))
    model.batches.clear()
    together = predict(model, frames(33), PredictOptions(batch_size=3))
    assert model.batches == [(3, 3, 7, 16, 16), (2, 3, 7, 16, 16)]
    assert [window.logits.tolist() for window in together.windows] == [w.logits.tolist() for w in alone.windows]
    assert together.logits.tolist() == alone.logits.tolist()


def test_bfloat16_runs_under_autocast_and_its_first_answer_is_compared_with_float32():
    seen = []

    class Linear(Witness):
        def forward(self, clip):
            weight = torch.ones(2, 1, device=clip.device)
            product = nn.functional.linear(clip.mean((1, 2, 3, 4))[:, None], weight)
            seen.append(product.dtype)
            return product

    assert predict(Linear().eval(), frames(14), PredictOptions(precision="bf16")).logits.dtype == torch.float64
    assert seen == [torch.bfloat16, torch.float32, torch.bfloat16, torch.bfloat16]  # two to compare, two windows


class Tiny(nn.Module):
    """A network that OpenVINO can quantize."""

    clip_spec, class_names = SPEC, ("run", "jump", "swim")

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv3d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv3d(8, 8, 3), nn.ReLU())
        self.head = nn.Linear(8, 3)

    def forward(self, clip):
        return self.head(self.layers(clip / 255).mean((2, 3, 4)))


def noise(count):
    return np.random.default_rng(count).integers(0, 256, (count, 16, 23, 3), dtype=np.uint8)


def test_int8_is_calibrated_with_the_first_windows_and_says_what_it_costs():
    torch.manual_seed(1)
    model, sources = Tiny().eval(), ["not-there.mp4", noise(40), noise(21)]
    options = PredictOptions(precision="int8", crops="three")
    fast = optimize_for(model, sources, options)
    assert fast.precision == "int8"
    assert fast.steps[1].startswith("6 calibration clips: lowest cosine ")  # three of each that can be read
    wanted = list(predict_many(model, sources, PredictOptions(crops="three")))
    for answers in (predict_many(fast, sources, options), predict_many(model, sources, options)):
        failure, *found = answers
        assert "there is no such file" in failure.reason
        for one, exact in zip(found, wanted[1:], strict=True):
            assert 0 < (one.logits - exact.logits).abs().max() < 0.05 * exact.logits.abs().max()
    alone = predict(model, sources[1], options)
    assert alone.class_names == ("run", "jump", "swim")
    assert 0 < (alone.logits - wanted[1].logits).abs().max() < 0.05 * wanted[1].logits.abs().max()


def test_int8_without_a_video_that_can_be_read_says_so_and_the_videos_fail():
    with pytest.warns(InflateWarning, match="int8 has nothing to be calibrated with.*float32 is used"):
        (failure,) = predict_many(Tiny().eval(), ["not-there.mp4"], PredictOptions(precision="int8"))
    assert "there is no such file" in failure.reason


REFUSED = InflateError("it is blue", where="b", expected="red", got="blue", fix="paint it")


@pytest.mark.parametrize(("workers", "begun_by_then"), [(1, [1, 2, 3, 4]), (2, [2, 3, 4, 4]), (9, [4, 4, 4, 4])])
def test_the_next_sources_are_begun_while_one_is_finished(workers, begun_by_then):
    begun, seen = [], []

    def finish(source, told):
        seen.append(len(begun))
        return source

    def begin(source):
        begun.append(source)
        if source == "b":
            raise REFUSED
        return source

    answers = list(predict_each(begin, finish, ["a", "b", "c", "d"], workers=workers))
    assert answers == ["a", Failure("b", str(REFUSED)), "c", "d"]
    assert seen == [count for i, count in enumerate(begun_by_then) if i != 1]


@pytest.mark.parametrize("workers", [1, 3])
def test_several_readers_change_nothing_and_leave_no_thread(workers):
    sources = [noise(count) for count in (21, 3, 40, 7, 15)]
    told = []

    def progress(source):
        told.append(len(source))
        return lambda done, total: None

    wanted = [predict(Witness().eval(), source) for source in sources]
    options = PredictOptions(workers=workers)
    found = list(predict_many(Witness().eval(), sources, options, progress=progress))
    assert [one.logits.tolist() for one in found] == [one.logits.tolist() for one in wanted]
    assert told == [21, 3, 40, 7, 15]
    running = predict_many(Witness().eval(), sources, options)
    next(running)
    running.close()
    assert reading_threads() == []


def test_compiled_is_handed_on(monkeypatch):
    calls = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, **options: calls.append(options))
    predict(Witness().eval(), frames(7), PredictOptions(compiled=True))
    assert calls == [{"dynamic": False}]


def test_progress_is_told_in_seconds():
    told = []
    predict(Witness().eval(), frames(14), progress=lambda done, total: told.append((done, total)))
    assert told == [(pytest.approx(6 / 25), pytest.approx(14 / 25)), (pytest.approx(13 / 25), pytest.approx(14 / 25))]


def test_key_frames_are_kept_on_demand():
    answer = predict(Witness().eval(), frames(14), PredictOptions(key_frames=True))
    picture = np.asarray(Image.open(io.BytesIO(answer.windows[1].key_frame)))
    assert picture.shape[2] == 3
    assert picture.mean() == pytest.approx(10, abs=1)  # the middle of frames 7 to 13
    assert predict(Witness().eval(), frames(14)).windows[0].key_frame is None


def broken_stream(*, opens, warns=False):
    """Stands for `open_frames`: a source that sets off an error nobody foresaw, when opened or when read."""

    def open_frames(source, fps):
        if not opens:
            return {}[source]
        return FrameStream(str(source), None, timed)

    def timed():
        for i in range(30):
            yield Timed(Fraction(i, 25), Fraction(1, 25), lambda: np.zeros((16, 23, 3), np.uint8))
        if not warns:
            raise RecursionError("too deep")
        time.sleep(0.05)
        warnings.warn("the end is missing", InflateWarning, stacklevel=2)

    return open_frames


@pytest.mark.parametrize("opens", [True, False])
def test_whatever_a_strange_file_sets_off_fails_with_the_place_it_comes_from(opens, monkeypatch):
    monkeypatch.setattr("inflate3d.results.network.open_frames", broken_stream(opens=opens))
    (failure,) = predict_many(Witness().eval(), ["strange.mp4"])
    error, place = ("RecursionError: too deep", "timed") if opens else ("KeyError: 'strange.mp4'", "open_frames")
    assert re.search(rf"the source cannot be read(.|\n)*{error} \({place}, test_predict.py:\d+\)", failure.reason)
    with pytest.raises(InflateError, match="the source cannot be read"):
        predict(Witness().eval(), "strange.mp4")


class Fragile(Witness):
    def forward(self, clip):
        if clip[0, 0, 0, 0, 0] == 5:
            raise TypeError("a bug of the model")
        return super().forward(clip)


def reading_threads():
    return [thread for thread in threading.enumerate() if thread.name == "inflate3d-ahead"]


def test_a_bad_source_does_not_end_a_run_but_a_bug_of_the_model_does(tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    sources = [frames(7), tmp_path / "text.mp4", frames(7), frames(40) + 5, frames(40)]
    answers, running = [], predict_many(Fragile().eval(), sources)
    with pytest.raises(TypeError, match="a bug of the model") as raised:
        answers.extend(running)
    assert [type(answer) for answer in answers] == [VideoPrediction, Failure, VideoPrediction]
    assert answers[1].source.endswith("text.mp4")
    assert raised.value.__traceback__  # as a notebook keeps it
    assert reading_threads() == []


def test_an_error_of_the_model_leaves_no_thread_behind():
    with pytest.raises(TypeError, match="a bug of the model") as raised:
        predict(Fragile().eval(), frames(90) + 5)
    assert raised.value.__traceback__
    assert reading_threads() == []


@pytest.mark.parametrize("begins", [True, False])
def test_a_bug_of_the_progress_bar_ends_a_run(begins):
    def progress(source):
        return {}["bar"] if begins else lambda done, total: {}["bar"]

    with pytest.raises(KeyError, match="bar"):
        list(predict_many(Witness().eval(), [frames(7), frames(7)], progress=progress))


def test_calibration_reads_in_silence_and_to_its_end(monkeypatch):
    """The run reads these videos again, and tells what there is to tell."""
    monkeypatch.setattr("inflate3d.results.network.open_frames", broken_stream(opens=True, warns=True))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        clips = _calibration_clips(["a", "b"], SPEC, PredictOptions())
        assert reading_threads() == []
    assert (len(clips), told) == (8, [])


def test_closing_waits_for_a_frame_and_not_for_a_window():
    """A frame of the flow stream takes seconds, a window of 64 half a minute."""
    made, begun = [], threading.Event()

    def slow_frames():
        for i in range(90):
            if i == 8:  # the second window has just been begun
                begun.set()
            time.sleep(0.02 * (i >= 8))
            made.append(i)
            yield i

    cut = cut_windows(slow_frames(), SPEC, PredictOptions())
    assert next(cut).frames == list(range(7))
    begun.wait()
    cut.close()
    assert len(made) < 14


@pytest.mark.parametrize("kind", ["center", "three", "five", "ten"])
def test_views_are_made_one_by_one_and_are_those_made_together(kind):
    pictures = [SmallFrame(torch.randint(0, 256, (17, 23, 3), dtype=torch.uint8), i / 25) for i in range(5)]
    spec = replace(SPEC, short_side=17, crop=13, value_range=(-1.0, 1.0))
    together = frames_to_input([frame.picture for frame in pictures], spec, kind)
    assert torch.stack(list(color_views(pictures, spec, kind))).equal(together)


def test_no_more_views_are_in_memory_than_are_shown():
    order = []

    def views(frames):
        for _ in range(5):
            order.append("made")
            yield torch.zeros(3, 7, 16, 16)

    class Shown(nn.Module):
        def forward(self, clip):
            order.append(len(clip))
            return torch.zeros(len(clip), 2)

    Network(Shown(), SPEC, views, at_a_time=2).answer([Window([], 0, 7)])
    assert order == ["made", "made", 2, "made", "made", 2, "made", 1]


def test_answers_are_compared_by_what_they_are():
    one, two = (predict(Witness().eval(), frames(7)) for _ in range(2))
    for first, second in ((one, two), (one.windows[0], two.windows[0])):
        assert first != second
        assert [second, first].index(first) == 1
        assert len({first, second}) == 2


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"stride": 0, "crops": "six"}, r"crops: center, three, five, ten(.|\n)*stride=0, crops='six'"),
        ({"fps": 0}, r"fps: a number of 0.0001 or more, or native(.|\n)*fps=0(.|\n)*fps=25.0"),
        ({"fps": "often"}, "fps='often'"),
        ({"fps": float("nan")}, "fps=nan"),
        ({"window": 2.5}, r"window: 1 or more, or None(.|\n)*window=2.5"),
        ({"batch_size": True, "workers": 0}, "take the defaults: batch_size=None, workers=None"),
        ({"precision": "fp16"}, "precision: fp32, bf16, int8"),
    ],
    ids=str,
)
def test_wrong_options_are_told_together(options, told):
    with pytest.raises(InflateError, match=rf"an option is out of range(.|\n)*{told}"):
        PredictOptions(**options)


def in_training_inside():
    model = nn.Sequential(Witness().eval()).eval()
    model.clip_spec = SPEC
    model[0].train()
    return model


@pytest.mark.parametrize("call", [predict, lambda model, source, options=None: predict_many(model, [source], options)])
def test_what_would_fail_with_every_source_is_told_at_once(call):
    with pytest.raises(InflateError, match=r"what it wants to be fed(.|\n)*clip_spec"):
        call(nn.Identity().eval(), "not-there.mp4")
    with pytest.raises(InflateError, match=r"the model is in training mode(.|\n)*Witness(.|\n)*model\.eval\(\)"):
        call(Witness(), "not-there.mp4")
    with pytest.raises(InflateError, match=r"the model is in training mode(.|\n)*training mode in 0"):
        call(in_training_inside(), "not-there.mp4")
    model = Witness().eval()
    model.clip_spec = replace(SPEC, min_frames=4)
    with pytest.raises(InflateError, match=r"the window is too short(.|\n)*window >= 4(.|\n)*window=3"):
        call(model, "not-there.mp4", PredictOptions(window=3))


class Answering(nn.Module):
    """Answers anything with the same; has neither parameters nor buffers."""

    clip_spec = SPEC

    def __init__(self, answer, class_names=None):
        super().__init__()
        self.answer, self.class_names = answer, class_names

    def forward(self, clip):
        return self.answer


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Answering(torch.zeros(1, 3, 2)), r"does not answer with logits(.|\n)*\[1, classes\](.|\n)*\[1, 3, 2\]"),
        (Answering({"logits": torch.zeros(1, 3)}), r"does not answer with logits(.|\n)*dict"),
        (Answering(torch.zeros(1, 3), ("run", "jump")), r"names and classes differ(.|\n)*3 class_names(.|\n)*got: +2"),
        (Answering(torch.tensor([[0.0, float("nan")]])), r"answer is not a number(.|\n)*1 of 2"),
    ],
)
def test_answers_that_are_no_logits_are_refused(model, message):
    with pytest.raises(InflateError, match=message):
        predict(model.eval(), frames(7))


def test_a_model_without_parameters_answers():
    assert predict(Answering(torch.ones(1, 3)).eval(), frames(7)).logits.tolist() == [1, 1, 1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_clip_comes_in_the_precision_of_the_model(dtype):
    class Strict(Witness):
        def forward(self, clip):
            assert clip.dtype == dtype
            return super().forward(clip)

    assert predict(Strict().to(dtype).eval(), frames(7)).logits.tolist() == [0, 6]


def test_a_clip_is_shown_at_its_own_times_and_in_its_own_range():
    data = torch.from_numpy(frames(7)).permute(3, 0, 1, 2)
    expected = predict(Witness().eval(), frames(7))
    floating = Clip(data / 255, torch.arange(7) / 25, "mine", value_range=(0.0, 1.0))
    for source in (floating, read_clip(frames(7))):
        answer = predict(Witness().eval(), source)
        torch.testing.assert_close(answer.logits, expected.logits)
        assert (answer.source, answer.num_frames) == (source.source, 7)
    slow = Clip(data, torch.arange(7) / 12.5 + 3, "mine")  # each frame is shown twice
    assert predict(Witness().eval(), slow).num_frames == 14


def test_names_that_are_no_text_can_be_written(tmp_path):
    name = os.fsdecode(b"bad\xff.mp4")
    (failure,) = predict_many(Witness().eval(), [tmp_path / name])
    assert failure.source.endswith("bad\\udcff.mp4")
    assert "bad\\udcff.mp4: there is no such file" in failure.reason
    named = Clip(torch.zeros(3, 7, 16, 16, dtype=torch.uint8), torch.arange(7) / 25, name)
    assert predict(Witness().eval(), named).source == "bad\\udcff.mp4"


def test_the_failure_of_an_array_names_its_shape():
    (failure,) = predict_many(Witness().eval(), [np.zeros((7, 16, 23, 3))])
    assert failure.source == "array [7, 16, 23, 3]"
    assert "inflate3d.Clip(" in failure.reason


def test_scores_are_ranked_and_sum_to_one():
    logits = torch.randn(11)
    scores = top_scores(logits, None, k=11)
    assert [score.index for score in scores] == logits.argsort(descending=True).tolist()
    assert sum(score.probability for score in scores) == pytest.approx(1)
    assert scores[0].label == f"class {scores[0].index}"


# Figures of an independent float32 port of the network: first 64 frames at the video's own rate
LABELLED = {
    "clean_and_jerk": ("clean and jerk", 0.96),
    "walking_the_dog": ("walking the dog", 1.00),
    "k400_cleaning_pool": ("cleaning pool", 0.99),
    "ucf101_BabyCrawling": ("crawling baby", 0.96),
    "ucf101_Basketball": ("shooting basketball", 0.98),
    "ucf101_ApplyEyeMakeup": ("filling eyebrows", 0.77),
}


@pytest.fixture(scope="module")
def fast_i3d(kinetics_i3d):
    return optimize_for(kinetics_i3d, [], PredictOptions())


@pytest.mark.shared
@pytest.mark.weights
@pytest.mark.filterwarnings("ignore::inflate3d.errors.InflateWarning")
@pytest.mark.parametrize("name", LABELLED)
def test_real_videos_get_their_class(fast_i3d, shared, name):
    (path,) = (shared / "data" / "videos" / "singles" / name).iterdir()
    best = predict(fast_i3d, path, PredictOptions(fps="native", num_frames=64)).top(1)[0]
    label, probability = LABELLED[name]
    assert best.label == label
    assert best.probability == pytest.approx(probability, abs=0.03)


def test_an_optimized_model_is_run_as_it_is_unless_another_precision_is_asked_for():
    fast, source = optimize(InceptionI3d(7).eval(), "bf16"), np.zeros((9, 32, 40, 3), np.uint8)
    assert optimize_for(fast, [source], PredictOptions(window=9)) is fast
    assert optimize_for(fast, [source], PredictOptions(window=9, precision="bf16")) is fast
    with pytest.raises(InflateError, match="optimized already, for bf16"):
        optimize_for(fast, [source], PredictOptions(window=9, precision="int8"))
