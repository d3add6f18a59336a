"""What is drawn, kept, counted and replaced on the way from a list of videos to batches."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import CLASSES, recipe, samples_in, write_clips

from inflate3d import InflateError, InflateWarning
from inflate3d.clips.dataset import Sample
from inflate3d.clips.decoded import Decoding, View, Window, cut_view, turned
from inflate3d.flow.quantize import quantize
from inflate3d.results.answering import EvaluateOptions, _views
from inflate3d.train import data as data_module
from inflate3d.train.data import (
    ClipDataset,
    FeatureDataset,
    Kept,
    Loader,
    SampleDataset,
    TrainBatches,
    Unreadable,
    collate,
    compute_features,
    decoding_of,
    val_loader,
)


class Numbers(SampleDataset):
    """Samples whose number is their clip; some cannot be read."""

    def __init__(self, count, broken=(), train=True):
        self.samples = [Sample(f"{number}.mp4", (0,)) for number in range(count)]
        self.is_train, self.broken, self.asked = train, set(broken), []

    def show(self, sample, seed):
        number = int(sample.path.removesuffix(".mp4"))
        self.asked.append(number)
        if number in self.broken:
            raise OSError(f"{number} is broken" if number else "")
        return torch.tensor([float(number), float(seed)]), torch.tensor(number)

    def blank(self, sample):
        return torch.zeros(2), torch.tensor(-1)


# -- what cannot be read -------------------------------------------------------------------------------------------


def test_the_next_one_that_can_be_read_takes_the_place():
    data = Numbers(5, broken={3, 4, 0})
    found = data[3, 77]
    assert (found["clip"].tolist(), int(found["target"]), found["valid"]) == ([1.0, 77.0], 1, True)
    assert found["failed"] == [("3.mp4", "3 is broken"), ("4.mp4", "4 is broken"), ("0.mp4", "OSError('')")]
    assert data[1, 5]["failed"] == []


def test_in_validation_nothing_takes_the_place():
    data = Numbers(4, broken={2}, train=False)
    assert (data[2, 0]["valid"], data[2, 0]["clip"].tolist(), len(data[2, 0]["failed"])) == (False, [0.0, 0.0], 1)
    assert data.asked == [2] * 3


@pytest.mark.parametrize(("count", "tries"), [(7, 7), (50, data_module.TRIES)])
def test_where_nothing_can_be_read_the_search_ends(count, tries):
    data = Numbers(count, broken=range(count))
    found = data[count - 2, 0]
    assert (found["valid"], len(found["failed"]), len(data.asked)) == (False, tries, tries)


def test_batches_hold_what_was_found_and_all_that_failed():
    data = Numbers(6, broken={1, 4})
    found = collate([data[index, index] for index in (0, 1, 4)])
    assert found["clip"].tolist() == [[0, 0], [2, 1], [5, 4]] and found["target"].tolist() == [0, 2, 5]
    assert found["valid"].tolist() == [True] * 3 and [path for path, _ in found["failed"]] == ["1.mp4", "4.mp4"]


def test_each_clip_is_counted_and_warned_about_once():
    unreadable = Unreadable(10, 0.2)
    with pytest.warns(InflateWarning, match="is left out: a.mp4: it is empty$"):
        unreadable.add("a.mp4", "\n a.mp4: it is empty\n  expected: a video")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        unreadable.add("a.mp4", "another reason")
    assert unreadable.reasons["a.mp4"].endswith("expected: a video")


@pytest.mark.filterwarnings("ignore::inflate3d.errors.InflateWarning")
def test_too_many_in_full():
    unreadable = Unreadable(10, 0.2)
    unreadable.add("a.mp4", "cut")
    unreadable.add("b.mp4", "cut as well")
    with pytest.raises(InflateError) as found:
        unreadable.add("c.mp4", "empty")
    assert str(found.value) == (
        "training: too many clips cannot be read\n"
        "  expected: at most 20% of 10, as max_unreadable says\n"
        "  got:      3: cut; cut as well; empty\n"
        "  fix:      mend or remove them, or allow more: --set max_unreadable=0.5"
    )


# -- order ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 5, 16, 23])
@pytest.mark.parametrize(("size", "accumulate", "world"), [(1, 1, 1), (4, 1, 1), (2, 3, 1), (3, 2, 2), (8, 1, 3)])
def test_batches_are_whole_and_every_sample_comes(count, size, accumulate, world):
    chosen = recipe(batch_size=size, accumulate=accumulate, seed=3)
    parts = [TrainBatches(count, chosen, rank=rank, world=world) for rank in range(world)]
    lists = [part.batches(1) for part in parts]
    assert {len(one) for one in lists} == {len(parts[0])} and len(parts[0]) % accumulate == 0
    assert all(len(batch) == size for one in lists for batch in one)
    drawn = [item for one in lists for batch in one for item in batch]
    assert {index for index, _ in drawn} == set(range(count))
    times = np.bincount([index for index, _ in drawn], minlength=count)
    assert times.max() - times.min() <= 1  # none is shown twice before all were shown once
    assert len({seed for _, seed in drawn}) == len(drawn)


def test_another_seed_and_another_epoch_are_another_order():
    orders = [TrainBatches(30, recipe(seed=seed)).batches(epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert all(one != other for n, one in enumerate(orders) for other in orders[:n])


def test_rare_classes_are_drawn_as_often_as_the_others():
    classes = [0] * 90 + [2] * 9 + [1]
    batches = TrainBatches(100, recipe(batch_size=10), classes=classes)
    drawn = [classes[index] for epoch in range(30) for batch in batches.batches(epoch) for index, _ in batch]
    assert np.bincount(drawn) / len(drawn) == pytest.approx([1 / 3] * 3, abs=0.03)


@pytest.mark.parametrize(
    ("done", "state"), [(0, {"epoch": 2, "start": 0}), (4, {"epoch": 2, "start": 4}), (6, {"epoch": 3, "start": 0})]
)
def test_a_loader_goes_on_where_it_was(done, state):
    """At the end of an epoch that is the beginning of the next one; what was read ahead does not count."""
    batches = TrainBatches(11, recipe(batch_size=2))
    loader = Loader(Numbers(11), batches, place=lambda: (2, done), workers=0)
    assert loader.state_dict() == state
    loader.load_state_dict(state)
    shown = [batch["target"].tolist() for batch in loader]
    wanted = batches.batches(state["epoch"])[state["start"] :]
    assert shown == [[index for index, _ in batch] for batch in wanted]


@pytest.mark.parametrize("world", [1, 2, 3])
def test_validation_shows_each_sample_once_on_one_device(world):
    parts = [
        [batch["target"].tolist() for batch in val_loader(Numbers(11, train=False), 3, 0, rank=rank, world=world)]
        for rank in range(world)
    ]
    assert sorted(number for part in parts for batch in part for number in batch) == list(range(11))
    assert all(len(batch) == 3 for part in parts for batch in part[:-1])
    assert parts[0][0][:2] == [0, world]


# -- mirrored flow -------------------------------------------------------------------------------------------------


def flow_bytes(flow):
    return quantize(flow).permute(0, 2, 3, 1).contiguous()


@pytest.mark.parametrize("channels", [2, 5])
def test_mirrored_flow_points_the_other_way_beside_colors_too(channels):
    """The flow of a mirror image is the mirror image of the flow, with its horizontal part turned."""
    torch.manual_seed(1)
    flow = torch.randn(6, 2, 9, 11) * 5
    mirror = flow.flip(3) * torch.tensor([-1.0, 1.0]).view(1, 2, 1, 1)
    colors = torch.randint(256, (6, 9, 11, 3), dtype=torch.uint8)

    def clip(motion, pictures):
        return torch.cat([pictures, flow_bytes(motion)], 3) if channels == 5 else flow_bytes(motion)

    window, view = Window(4, 1, 9), View(1, 0, 1, 9)
    found = cut_view(clip(flow, colors), window, View(1, 0, 1, 9, mirrored=True))
    wanted = cut_view(clip(mirror, colors.flip(2)), window, view)
    assert (found.int() - wanted.int()).abs().max() <= 1  # the quantizer has no exact middle
    assert torch.equal(found[:-2], wanted[:-2])


@pytest.mark.parametrize("channels", [2, 3, 5])
def test_mirrored_crops_of_an_evaluation_turn_flow_as_training_does(channels):
    torch.manual_seed(1)
    frames = torch.randint(256, (5, 9, 9, channels), dtype=torch.uint8)
    window = Window(5, 1, 9)
    clips = _views(frames, window, EvaluateOptions(num_clips=1, crops="ten"), torch.nn.Identity())
    plain, mirrored = (cut_view(frames, window, View(0, 0, 0, 9, mirrored=side)) for side in (False, True))
    shown = [clip[0].add(1).mul(127.5).round().byte() for clip in clips]
    assert len(shown) == 10
    assert all(torch.equal(one, plain) for one in shown[:5])
    assert all(torch.equal(one, mirrored) for one in shown[5:])


def test_turning_twice_is_none():
    for channels in (1, 2, 3, 4, 5, 6):
        clip = torch.randint(256, (3, channels, 2), dtype=torch.uint8)
        once = turned(clip, axis=1)
        assert torch.equal(turned(once, axis=1), clip)
        assert (once != clip).any() == (channels in (2, 5))


# -- what is shown -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("stream", "channels"), [("rgb", 3), ("flow", 2), ("both", 5)])
def test_streams_have_their_channels_and_flow_is_one_frame_shorter(stream, channels, monkeypatch):
    right = lambda first, second: torch.full((len(first), 2, *first.shape[1:3]), 2.0)  # noqa: E731
    monkeypatch.setattr(data_module, "find_method", lambda method: right)
    how = decoding_of(recipe(stream=stream, flow_method="dis"), None)
    frames = torch.randint(256, (4, 6, 8, 3), dtype=torch.uint8)
    found = how.change(frames) if how.change else frames
    assert found.shape == (4 - (stream != "rgb"), 6, 8, channels) and found.dtype == torch.uint8
    if stream != "rgb":
        code = quantize(torch.full((1, 2, 1, 1), 2.0)).flatten().tolist()
        assert found[..., -2:].reshape(-1, 2).unique(dim=0).tolist() == [code]
        assert how.change_name == f"{stream} dis"
        with pytest.raises(InflateError, match="flow leads from one frame to the next"):
            how.change(frames[:1])
    if stream == "both":
        assert torch.equal(found[..., :3], frames[:3])


@pytest.mark.parametrize("stream", ["rgb", "flow", "both"])
def test_a_blank_clip_has_the_form_of_a_clip(stream):
    chosen = recipe(stream=stream, num_frames=4, crop=12)
    data = ClipDataset([Sample("gone.mp4", (1,))], chosen, Decoding(), num_classes=3, train=False)
    found = data[0, 0]
    assert found["clip"].shape == ({"rgb": 3, "flow": 2, "both": 5}[stream], 4, 12, 12)
    assert (found["clip"].unique().tolist(), int(found["target"]), found["valid"]) == ([127], 1, False)


def test_labels_without_times_hold_throughout():
    chosen = recipe(task="frames", fps=10.0, num_frames=3)
    data = ClipDataset([], chosen, Decoding(), num_classes=3, train=True)
    assert data.target(Sample("a.mp4", (2,)), start=40).tolist() == [[0] * 3, [0] * 3, [1] * 3]
    assert data.target(Sample("a.mp4", ()), start=0).sum() == 0


# -- what frozen layers give ---------------------------------------------------------------------------------------


class Front:
    """Stands for the frozen part; counts its runs."""

    def __init__(self):
        self.runs = 0

    def __call__(self, clip):
        self.runs += 1
        assert clip.dtype == torch.float32 and clip.abs().max() <= 1
        return clip.mean((3, 4)).flatten(1)


def features(front, data, kept, unreadable=None, told=None):
    told = [] if told is None else told
    unreadable = unreadable or Unreadable(len(data), 0.5)
    return compute_features(
        front, data, kept, unreadable=unreadable, progress=lambda done, total: told.append((done, total))
    )


def clips(folder, train=True, **changes):
    chosen = recipe(freeze="head", cached_views=3, **changes)
    how = Decoding("native", chosen.short_side)
    return ClipDataset(samples_in(folder), chosen, how, num_classes=len(CLASSES), train=train)


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    return write_clips(tmp_path_factory.mktemp("few"), count=1, num_frames=6)


def test_the_first_view_is_the_middle_and_the_others_are_drawn(few, tmp_path):
    told = []
    train = features(Front(), clips(few), Kept(tmp_path / "a.npy"), told=told)
    val = features(Front(), clips(few, train=False), Kept(tmp_path / "b.npy"))
    assert train.values.shape == (3, 3, 15) and val.values.shape == (3, 1, 15)
    assert torch.equal(train.values[:, 0], val.values[:, 0]) and train.values.dtype == torch.float16
    assert not torch.equal(train.values[:, 1], train.values[:, 0])
    assert told == [(0, 3), (1, 3), (2, 3)] and train.targets.tolist() == [0, 1, 2]
    again = features(Front(), clips(few), Kept(tmp_path / "c.npy"))
    assert torch.equal(again.values, train.values)
    other = features(Front(), clips(few, seed=1), Kept(tmp_path / "d.npy"))
    assert torch.equal(other.values[:, 0], train.values[:, 0])
    assert not torch.equal(other.values[:, 1], train.values[:, 1])


def test_a_view_is_chosen_by_what_was_drawn():
    data = FeatureDataset(torch.arange(12.0).view(2, 3, 2).half(), torch.tensor([4, 5]), torch.tensor([True, False]))
    shown = [data[1, seed] for seed in range(6)]
    assert [one["clip"].tolist() for one in shown] == [[6, 7], [8, 9], [10, 11]] * 2
    assert {one["clip"].dtype for one in shown} == {torch.float32}
    assert [int(one["target"]) for one in shown] == [5] * 6 and not any(one["valid"] for one in shown)
    assert (len(data), data[0, 0]["valid"]) == (2, True)


def test_what_is_kept_is_not_computed_again_and_what_is_damaged_is(few, tmp_path):
    kept, front = Kept(tmp_path / "a.npy", tmp_path / "kept", "digest"), Front()
    wanted = features(front, clips(few), kept).values.clone()
    assert front.runs == 9 == len(list((tmp_path / "kept").iterdir()))
    assert torch.equal(features(front, clips(few), kept).values, wanted) and front.runs == 9
    damaged = sorted((tmp_path / "kept").iterdir())[4]
    damaged.write_bytes(damaged.read_bytes()[:40])
    assert torch.equal(features(front, clips(few), kept).values, wanted) and front.runs == 10
    assert torch.equal(features(front, clips(few), kept).values, wanted) and front.runs == 10


@pytest.mark.parametrize("change", [{"seed": 1}, {"crop": 24}, {"frame_step": 2}, {"zoom": 0.5}, {"freeze": "norm1"}])
def test_features_of_another_recipe_are_others(few, tmp_path, change):
    kept, sample = Kept(tmp_path / "a.npy", tmp_path, "digest"), samples_in(few)[0].path
    plain, other = recipe(freeze="head", cached_views=3), recipe(**{"freeze": "head", "cached_views": 3, **change})
    names = {kept.file(sample, one, view) for one in (plain, other) for view in (0, 1)}
    names.add(Kept(tmp_path / "a.npy", tmp_path, "another network").file(sample, plain, 0))
    assert len(names) == 5
    assert kept.file(sample, recipe(freeze="head", cached_views=3, lr=0.5), 0) in names  # what does not decide on it
    assert kept.file("gone.mp4", plain, 0) is None and Kept(tmp_path / "a.npy").file(sample, plain, 0) is None


def test_a_video_that_changes_has_other_features(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"one")
    kept, chosen = Kept(tmp_path / "t.npy", tmp_path, ""), recipe()
    before = kept.file(str(tmp_path / "a.mp4"), chosen, 0)
    (tmp_path / "a.mp4").write_bytes(b"another")
    assert kept.file(str(tmp_path / "a.mp4"), chosen, 0) != before


@pytest.mark.filterwarnings("ignore::inflate3d.errors.InflateWarning")
def test_clips_that_cannot_be_read_are_not_trained_on_and_marked_in_validation(few, tmp_path):
    found = {}
    for train in (True, False):
        data = clips(few, train=train)
        data.samples = [data.samples[0], Sample(str(tmp_path / "gone.mp4"), (1,)), data.samples[2]]
        unreadable = Unreadable(3, 0.5)
        found[train] = features(Front(), data, Kept(tmp_path / f"{train}.npy"), unreadable)
        assert list(unreadable.reasons) == [str(tmp_path / "gone.mp4")]
    assert found[True].targets.tolist() == [0, 2] and len(found[True].values) == 2
    assert [found[False][index, 0]["valid"] for index in range(3)] == [True, False, True]
    assert found[False].values[1].abs().sum() == 0


@pytest.mark.filterwarnings("ignore::inflate3d.errors.InflateWarning")
def test_not_one_clip_that_can_be_read(few, tmp_path):
    data = clips(few)
    data.samples = [Sample(str(tmp_path / "gone.mp4"), (1,))]
    with pytest.raises(InflateError, match="not one clip can be read") as found:
        features(Front(), data, Kept(tmp_path / "a.npy"), Unreadable(9, 0.9))
    assert "gone.mp4" in found.value.got and "--root FOLDER" in found.value.fix
    assert not Path(tmp_path / "a.npy").exists()


def test_a_network_that_fails_is_no_video_that_cannot_be_read(few, tmp_path):
    def fails(clip):
        raise InflateError("the network refuses the clip", where="net", expected="a", got="b", fix="c")

    unreadable = Unreadable(3, 0.5)
    with pytest.raises(InflateError, match="the network refuses the clip"):
        features(fails, clips(few), Kept(tmp_path / "a.npy"), unreadable)
    assert not unreadable.reasons
