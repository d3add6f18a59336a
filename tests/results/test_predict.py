"""Prediction: windows, weights of windows, crops and options, on a network that shows what it was given."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from inflate3d import ClipSpec, InflateError, PredictOptions, VideoPrediction, predict, predict_many
from inflate3d.results.prediction import Failure, top_scores

SPEC = ClipSpec(fps=25.0, num_frames=7, min_frames=1, short_side=16, crop=16, value_range=(0.0, 255.0))


class Witness(nn.Module):
    """Answers with the mean brightness of the first and the last frame it sees."""

    def __init__(self):
        super().__init__()
        self.clip_spec = SPEC
        self.class_names = ("first", "last")
        self.anchor = nn.Parameter(torch.zeros(()))
        self.batches = []

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
    answer = predict(Witness(), frames(count))
    assert [window.logits.tolist() for window in answer.windows] == [[first, last] for first, last, _ in spans]
    assert [(w.start_seconds, w.end_seconds) for w in answer.windows] == [
        (pytest.approx(first / 25), pytest.approx(last / 25)) for first, last, _ in spans
    ]
    expected = np.average([[first, last] for first, last, _ in spans], axis=0, weights=[new for *_, new in spans])
    assert answer.logits.tolist() == pytest.approx(expected.tolist())
    assert answer.num_frames == count
    assert answer.fps == 25.0


def test_a_short_video_is_looped_and_keeps_its_own_times():
    answer = predict(Witness(), frames(3))  # shown as 0 1 2 0 1 2 0
    assert answer.windows[0].logits.tolist() == [0, 0]
    assert answer.windows[0].end_seconds == pytest.approx(2 / 25)
    assert answer.num_frames == 3


def test_batches_windows_and_strides():
    model = Witness()
    together = predict(model, frames(31), PredictOptions(batch_size=3, stride=4))
    assert [shape[0] for shape in model.batches] == [3, 3, 1]
    alone = predict(Witness(), frames(31), PredictOptions(stride=4))
    torch.testing.assert_close(together.logits, alone.logits)
    longer = predict(model, frames(31), PredictOptions(window=11, num_frames=11))
    assert model.batches[-1] == (1, 3, 11, 16, 16)
    assert longer.num_frames == 11


def test_crops_are_averaged():
    model = Witness()
    picture = np.zeros((7, 16, 48, 3), np.uint8)
    picture[:, :, 32:] = 90
    answer = predict(model, picture, PredictOptions(crops="three"))
    assert model.batches == [(3, 3, 7, 16, 16)]
    assert answer.windows[0].logits.tolist() == pytest.approx([30, 30])


def test_bfloat16_runs_under_autocast():
    class Linear(Witness):
        def forward(self, clip):
            weight = torch.ones(2, 1, device=clip.device)
            product = nn.functional.linear(clip.mean((1, 2, 3, 4))[:, None], weight)
            assert product.dtype == torch.bfloat16
            return product

    assert predict(Linear(), frames(7), PredictOptions(precision="bf16")).logits.dtype == torch.float64


def test_progress_is_told_in_seconds():
    told = []
    predict(Witness(), frames(14), progress=lambda done, total: told.append((done, total)))
    assert told == [(pytest.approx(6 / 25), pytest.approx(14 / 25)), (pytest.approx(13 / 25), pytest.approx(14 / 25))]


def test_key_frames_are_kept_on_demand():
    answer = predict(Witness(), frames(14), PredictOptions(key_frames=True))
    picture = np.asarray(Image.open(io.BytesIO(answer.windows[1].key_frame)))
    assert picture.shape[2] == 3
    assert picture.mean() == pytest.approx(10, abs=1)  # the middle of frames 7 to 13
    assert predict(Witness(), frames(14)).windows[0].key_frame is None


def test_one_bad_source_does_not_end_a_run(tmp_path):
    (tmp_path / "text.mp4").write_text("no video")

    class Fragile(Witness):
        def forward(self, clip):
            if clip[0, 0, 0, 0, 0] == 5:
                raise MemoryError("no room")
            return super().forward(clip)

    answers = list(predict_many(Fragile(), [frames(7), tmp_path / "text.mp4", frames(7) + 5, frames(7)]))
    assert [type(answer) for answer in answers] == [VideoPrediction, Failure, Failure, VideoPrediction]
    assert answers[1].source.endswith("text.mp4")
    assert "MemoryError: no room" in answers[2].reason


def test_wrong_options_are_told_together():
    with pytest.raises(InflateError, match=r"stride=0, allowed(.|\n)*crops='six', allowed is center, three, five, ten"):
        PredictOptions(stride=0, crops="six")


def test_a_model_without_a_spec_is_refused():
    with pytest.raises(InflateError, match=r"what it wants to be fed(.|\n)*clip_spec"):
        predict(nn.Identity(), frames(7))


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


@pytest.mark.shared
@pytest.mark.weights
@pytest.mark.filterwarnings("ignore::inflate3d.errors.InflateWarning")
@pytest.mark.parametrize("name", LABELLED)
def test_real_videos_get_their_class(kinetics_i3d, shared, name):
    (path,) = (shared / "data" / "videos" / "singles" / name).iterdir()
    best = predict(kinetics_i3d, path, PredictOptions(fps="native", num_frames=64)).top(1)[0]
    label, probability = LABELLED[name]
    assert best.label == label
    assert best.probability == pytest.approx(probability, abs=0.03)
