"""Scores against counting by hand, intervals, views, fusion, and the page."""

import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from inflate3d import InflateError, InflateWarning
from inflate3d.clips.clip import ClipSpec
from inflate3d.clips.dataset import Sample
from inflate3d.clips.decoded import Decoding, Window, decoded_frames
from inflate3d.models.blocks import ClipRule
from inflate3d.results.answering import Answers, EvaluateOptions, answer_samples, fuse
from inflate3d.results.evaluate import average_precisions, evaluate
from inflate3d.show.evaluation import scores_of, write_evaluation
from videos import write_video

NAMES = ("run", "jump", "fall", "sit", "wave", "turn", "<b>")


def answers(labels, guesses, groups=None, names=NAMES, **more):
    logits = torch.zeros(len(labels), len(names), dtype=torch.float64)
    for row, guess in enumerate(guesses):
        logits[row, guess] = 2.0 + row / 100
    groups = groups or [f"g{i}" for i in range(len(labels))]
    samples = tuple(Sample(f"{i}.mp4", (c,), group=groups[i]) for i, c in enumerate(labels))
    return Answers(samples, logits, names, **more)


def test_scores_are_counts():
    labels, guesses = [0, 0, 0, 1, 1, 2, 6], [0, 0, 1, 1, 2, 2, 6]
    found = evaluate(answers(labels, guesses))
    assert found.scores["top1"].value == 5 / 7
    assert found.scores["mean_class"].value == pytest.approx((2 / 3 + 1 / 2 + 1 + 1) / 4)
    assert found.scores["top5"].value == 6 / 7 + 1 / 7 * (1 in (0, 1, 2, 3, 4))
    wanted = np.zeros((7, 7), int)
    for label, guess in zip(labels, guesses, strict=True):
        wanted[label, guess] += 1
    assert np.array_equal(found.confusion, wanted)
    assert found.per_class == (("run", 2 / 3, 3), ("jump", 0.5, 2), ("fall", 1.0, 1), ("<b>", 1.0, 1))
    assert [(m.path, m.label, m.answer) for m in found.mistakes] == [
        ("4.mp4", "jump", "fall"),
        ("2.mp4", "run", "jump"),
    ]


def test_calibration_is_confidence_against_share():
    found = evaluate(answers([0, 1, 0, 0], [0, 0, 0, 1]))
    confidences = [math.exp(2 + i / 100) / (math.exp(2 + i / 100) + 6) for i in range(4)]
    assert len(found.calibration) == 1 and found.calibration[0].size == 4
    assert found.calibration_error == pytest.approx(abs(sum(confidences) / 4 - 0.5), abs=1e-12)


def test_intervals_draw_groups():
    """Ten samples of one scene tell as much as one."""
    random = np.random.default_rng(5)
    right = random.random(40) < 0.6
    alone = evaluate(answers([0] * 40, [0 if one else 1 for one in right])).scores["top1"]
    copies = [0 if one else 1 for one in right for _ in range(10)]
    scenes = [f"s{i}" for i in range(40) for _ in range(10)]
    copied = evaluate(answers([0] * 400, copies, scenes)).scores["top1"]
    assert copied.value == alone.value and copied[1:] == pytest.approx(alone[1:], abs=1e-12)
    error = math.sqrt(alone.value * (1 - alone.value) / 40)
    assert alone.high - alone.low == pytest.approx(2 * 1.96 * error, rel=0.1)
    assert evaluate(answers([0] * 40, [0] * 40)).scores["top1"][1:] == (1.0, 1.0)


def test_several_labels_are_scored_by_average_precision():
    scores = np.array([[0.9, 0.1], [0.8, 0.7], [0.7, 0.2], [0.6, 0.9]])
    wanted = np.array([[1, 0], [0, 1], [1, 1], [0, 0]], bool)
    by_hand = [(1 / 1 + 2 / 3) / 2, (1 / 2 + 2 / 3) / 2]
    assert average_precisions(scores, wanted, np.ones(4)) == pytest.approx(by_hand)
    samples = tuple(Sample(f"{i}.mp4", tuple(np.flatnonzero(row).tolist()) or (0,)) for i, row in enumerate(wanted))
    found = evaluate(Answers(samples[:3], torch.from_numpy(scores[:3]), ("a", "b")))
    assert found.scores["map"].value == pytest.approx((5 / 6 + 1) / 2)


def test_a_sample_may_have_none_of_several_labels():
    """It counts as a wrong answer to each class; alone, or where each has one class, it tells nothing."""
    samples = (Sample("a.mp4", (0,)), Sample("b.mp4", ()), Sample("c.mp4", (1,)))
    logits = torch.tensor([[0.5, 0.1], [0.9, 0.2], [0.1, 0.8]], dtype=torch.float64)
    found = evaluate(Answers(samples, logits, ("a", "b"), several=True))
    assert found.scores["map"].value == pytest.approx((1 / 2 + 1) / 2) and found.count == 3
    for wrong in (Answers(samples, logits, ("a", "b")), Answers(samples[1:2], logits[1:2], ("a", "b"), several=True)):
        with pytest.raises(InflateError, match="samples have no labels to compare with"):
            evaluate(wrong)
    assert fuse(Answers(samples, logits, ("a", "b"), several=True), Answers(samples, logits, ("a", "b"))).several


def test_streams_are_joined_by_the_mean_of_their_probabilities():
    rgb, flow = answers([0, 1, 2], [0, 0, 2]), answers([0, 1, 2], [1, 1, 1])
    flow = Answers(flow.samples[::-1], flow.logits.flip(0), flow.class_names)
    joint = fuse(rgb, flow)
    wanted = (rgb.logits.softmax(1) + flow.logits.flip(0).softmax(1)) / 2
    torch.testing.assert_close(joint.logits.exp(), wanted, atol=1e-12, rtol=0)
    torch.testing.assert_close(fuse(rgb, flow, "logits").logits, rgb.logits + flow.logits.flip(0))
    with pytest.raises(InflateError, match="the streams have not answered the same question"):
        fuse(rgb, answers([0], [0], names=("run",)))


def test_groups_in_training_are_warned_about():
    with pytest.warns(InflateWarning, match="1 groups are in training and here alike: g1"):
        found = evaluate(answers([0, 1], [0, 1]), train=[Sample("other.mp4", (0,), group="g1")])
    assert "g1" in found.warnings[0]


def test_samples_without_labels_are_refused():
    unknown = Answers((Sample("a.mp4", ()),), torch.zeros(1, 2), ("run", "jump"))
    with pytest.raises(InflateError, match="samples have no labels to compare with"):
        evaluate(unknown)
    with pytest.raises(InflateError, match="an option is out of range: crops, resamples"):
        EvaluateOptions(crops="six", resamples=1)  # type: ignore[arg-type]


class Brightness(nn.Module):
    """Answers with the mean of the first frame, of the last one, and the number of frames."""

    def __init__(self, exact=0):
        super().__init__()
        self.class_names = ("first", "last", "frames")
        self.scale = nn.Parameter(torch.ones(1))
        spec = ClipSpec(25.0, exact or 8, 1, short_side=32, crop=32, value_range=(-1.0, 1.0))
        self.clip_spec = spec
        self.clip_rule = ClipRule("Brightness", 3, spec, 1, exact=bool(exact))
        self.shown = []

    def forward(self, clip):
        self.shown.append(tuple(clip.shape))
        b, _, t = clip.shape[:3]
        return torch.stack([clip[:, :, 0].mean((1, 2, 3)), clip[:, :, -1].mean((1, 2, 3)), torch.full((b,), t)], 1)


@pytest.fixture
def rising(tmp_path):
    """A video of 13 frames that grows brighter."""
    pictures = [np.full((34, 46, 3), 15 * t, np.uint8) for t in range(13)]
    return Sample(str(write_video(tmp_path / "rising.mp4", pictures)), (0,))


HOW = Decoding("native", 33)


def shown(sample, window, model=None, **options):
    model = (model or Brightness()).eval()
    found = answer_samples(model, [sample], HOW, window=window, options=EvaluateOptions(**options))
    return found.logits[0].tolist(), found


def level(frame):
    return 15 * frame / 127.5 - 1


def test_the_whole_video_is_shown_at_once(rising):
    logits, found = shown(rising, Window(4, 1, 32))
    assert logits == pytest.approx([level(0), level(12), 13], abs=0.03)
    assert found.settings["frames"] == "the whole video, 250 frames at most"
    assert found.key_frames[0][:3] == b"\xff\xd8\xff"
    assert shown(rising, Window(4, 3, 32))[0] == pytest.approx([level(0), level(12), 5], abs=0.03)
    assert shown(rising, Window(4, 1, 32), max_frames=7)[0] == pytest.approx([level(0), level(6), 7], abs=0.03)
    assert shown(rising, Window(4, 1, 32), backwards=True)[0] == pytest.approx([level(12), level(0), 13], abs=0.03)


def test_clips_and_crops_are_averaged(rising):
    logits, _ = shown(rising, Window(4, 1, 32), num_clips=3, crops="three")
    starts = [round(9 * (i + 0.5) / 3) for i in range(3)]
    assert starts == [2, 4, 8]
    wanted = [sum(level(start + end) for start in starts) / 3 for end in (0, 3)]
    assert logits == pytest.approx([*wanted, 4], abs=0.03)


def test_a_network_of_one_length_sees_windows_side_by_side(rising):
    logits, _ = shown(rising, Window(5, 1, 32), Brightness(exact=5))
    wanted = [sum(level(start + end) for start in (0, 5, 8)) / 3 for end in (0, 4)]
    assert logits == pytest.approx([*wanted, 5], abs=0.03)


def test_what_cannot_be_read_is_told(rising, tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"none")
    broken = Sample(str(tmp_path / "broken.mp4"), (1,))
    model = Brightness().eval()
    found = answer_samples(model, [broken, rising], HOW, window=Window(4, 1, 32))
    assert [sample.path for sample in found.samples] == [rising.path]
    assert found.failures[0].source == broken.path
    with pytest.raises(InflateError, match="not one video could be shown"):
        answer_samples(model, [broken], HOW, window=Window(4, 1, 32))


def test_what_is_no_number_is_no_answer(rising):
    """It would count as a wrong one, or even as a right one, where the first class is wanted."""

    class Diverged(Brightness):
        def forward(self, clip):
            return super().forward(clip) * float("nan")

    with pytest.raises(InflateError, match="the model's answer is not a number"):
        shown(rising, Window(4, 1, 32), Diverged())


def test_the_cache_holds_what_was_decoded(rising, tmp_path):
    cache = tmp_path / "cache"
    how = Decoding("native", 33, cache=cache)
    first = decoded_frames(rising.path, how)
    assert torch.equal(first, decoded_frames(rising.path, how)) and len(list(cache.iterdir())) == 1
    next(cache.iterdir()).write_bytes(b"damaged")
    assert torch.equal(first, decoded_frames(rising.path, how))
    assert decoded_frames(rising.path, Decoding("native", 20, cache=cache)).shape == (13, 20, 27, 3)
    with pytest.raises(InflateError, match="an option is out of range: short_side"):
        Decoding(short_side=0)


def test_page_and_json(tmp_path):
    found = evaluate(answers([0, 0, 1, 6], [0, 1, 1, 0], key_frames=(b"\xff\xd8",) * 4, settings={"fps": "25"}))
    history = [{"train_loss_epoch": 2.0 - i / 2, "val_loss": 2.0} for i in range(3)]
    write_evaluation(tmp_path / "page.html", found, history=history)
    page = (tmp_path / "page.html").read_text()
    for words in ("Classes", "Confusions", "Calibration", "Worst mistakes", "Loss", "&lt;b&gt;", "50.0%"):
        assert words in page, words
    assert "<b></" not in page and "<script" not in page
    document = json.loads(found.to_json())
    assert document["scores"]["top1"]["value"] == 0.5 and document["settings"] == {"fps": "25"}
    assert document["confusion"][6][0] == 1 and "key_frame" not in document["mistakes"][0]
    assert scores_of(found).row_count == 3
