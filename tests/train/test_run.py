"""A run: the same losses as a loop written by hand, the same weights after a kill, survival of what goes wrong."""

import errno
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tiny import CLASSES, TinyNet, recipe, samples_in, splits_of, tiny_model, write_clips

from inflate3d import InflateError, InflateWarning, read_clip
from inflate3d.clips.dataset import Sample, Splits
from inflate3d.clips.decoded import decoded_frames
from inflate3d.train.checkpoint import AtomicCheckpoints, load_trained, read_training
from inflate3d.train.data import TrainBatches, decoding_of
from inflate3d.train.module import ClipTask
from inflate3d.train.run import LAST, FitOptions, fit

QUIET = FitOptions(quiet=True)


@pytest.fixture
def losses(monkeypatch):
    """The loss of every batch."""
    found = []
    step = ClipTask.training_step

    def noted(self, batch, batch_idx):
        loss = step(self, batch, batch_idx)
        found.append(loss.item())
        return loss

    monkeypatch.setattr(ClipTask, "training_step", noted)
    return found


def state_of(path: Path) -> dict[str, torch.Tensor]:
    return read_training(path)["state_dict"]


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def test_the_losses_are_those_of_a_loop_written_by_hand(clips_folder, tmp_path, losses):
    """No Lightning, no loader, no cache, no code of ours but reading a clip; views are the only ones there are."""
    splits = splits_of(clips_folder, num_val=0)
    chosen = recipe(short_side=32, num_frames=9, momentum=0.9, lr=0.01, epochs=3, batch_size=4, freeze_norm=False)
    fit(chosen, splits, tmp_path / "run", model=tiny_model(), options=QUIET)

    model = tiny_model().train()
    decayed = [value for value in model.parameters() if value.ndim > 1]
    others = [value for value in model.parameters() if value.ndim == 1]
    optimizer = torch.optim.SGD([{"params": decayed, "weight_decay": 0.01}, {"params": others}], lr=0.01, momentum=0.9)
    order = TrainBatches(len(splits.train), chosen)
    wanted = []
    for epoch in range(3):
        for batch in order.batches(epoch):
            clips = []
            for index, seed in batch:
                frames = read_clip(splits.train[index].path, fps="native").data  # [c, t, 34, 46]
                frames = F.interpolate(
                    frames.transpose(0, 1), (32, 32 * 46 // 34), mode="bilinear", antialias=True
                ).transpose(0, 1)
                left = int(torch.rand(5, generator=torch.Generator().manual_seed(seed))[2] * (43 - 32 + 1))
                clips.append(frames[..., left : left + 32].float() / 127.5 - 1)
            target = torch.tensor([splits.train[index].labels[0] for index, _ in batch])
            loss = F.cross_entropy(model(torch.stack(clips)), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            wanted.append(loss.item())
    assert len(losses) == len(wanted) == 9
    assert losses == pytest.approx(wanted, abs=2e-5)
    assert max(wanted) - min(wanted) > 0.02


WITH_CHANCE = {
    "epochs": 3,
    "batch_size": 2,
    "save_steps": 2,
    "flip": True,
    "zoom": 0.8,
    "freeze_norm": False,
    "mixup": 0.3,
    "ema": 0.9,
    "optimizer": "adamw",
    "schedule": "cosine",
    "warmup_steps": 2,
    "balance": True,
}
KILLED = """
import os, signal, sys
sys.path[:0] = {paths!r}
import torch
from pathlib import Path
from tiny import recipe, splits_of, tiny_model
from inflate3d.train.checkpoint import AtomicCheckpoints
from inflate3d.train.run import FitOptions, fit

torch.set_num_threads(1)
write, writes = AtomicCheckpoints.save_checkpoint, []

def killing(self, *args, **kwargs):
    write(self, *args, **kwargs)
    writes.append(1)
    if len(writes) == {kill_after}:
        os.kill(os.getpid(), signal.SIGKILL)

AtomicCheckpoints.save_checkpoint = killing
fit(recipe(**{changes!r}), splits_of(Path({clips!r})), {folder!r}, model=tiny_model(dropout=0.3),
    options=FitOptions(quiet=True))
"""


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class PowerCutError(Exception):
    pass


@pytest.mark.usefixtures("one_thread")
def test_a_killed_run_goes_on_bit_for_bit(clips_folder, tmp_path, monkeypatch):
    """Killed within an epoch, and then at the end of each; what is drawn, averaged and scheduled goes on too."""

    def go_on(name, resume):
        splits, model = splits_of(clips_folder), tiny_model(dropout=0.3)
        return fit(recipe(**WITH_CHANCE), splits, tmp_path / name, model=model, resume=resume, options=QUIET)

    whole = go_on("whole", resume=False)
    here = Path(__file__).parent
    facts = {"paths": [str(here), str(here.parent)], "clips": str(clips_folder), "folder": str(tmp_path / "killed")}
    code = KILLED.format(**facts, changes=WITH_CHANCE, kill_after=2)
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=False)
    assert run.returncode == -signal.SIGKILL
    assert 0 < read_training(tmp_path / "killed" / LAST)["global_step"] < whole_steps(tmp_path / "whole")
    write, left = AtomicCheckpoints.save_checkpoint, [2, 4]

    def cut(self, *args, **kwargs):
        write(self, *args, **kwargs)
        if left:
            left[0] -= 1
            if not left[0]:
                left.pop(0)
                raise PowerCutError

    monkeypatch.setattr(AtomicCheckpoints, "save_checkpoint", cut)
    while left:
        with pytest.raises(PowerCutError):
            go_on("killed", resume=True)
    killed = go_on("killed", resume=True)
    one, other = (read_training(tmp_path / name / LAST) for name in ("whole", "killed"))
    assert_same(one["state_dict"], other["state_dict"])
    assert_same(one["current_model_state"], other["current_model_state"])
    assert one["global_step"] == other["global_step"] == 15
    states = [found["optimizer_states"][0]["state"] for found in (one, other)]
    for a, b in zip(*(state.values() for state in states), strict=True):
        assert torch.equal(a["exp_avg_sq"], b["exp_avg_sq"])
    assert_same(whole.model.state_dict(), killed.model.state_dict())
    assert [row["val_loss"] for row in whole.history] == [row["val_loss"] for row in killed.history]


def whole_steps(folder: Path) -> int:
    return read_training(folder / LAST)["global_step"]


def weights_after(folder, clips, losses, **changes):
    fitted = fit(recipe(max_steps=5, **changes), splits_of(clips, num_val=0), folder, model=tiny_model(), options=QUIET)
    found = list(losses)
    losses.clear()
    return found, fitted.model.state_dict()


def test_accumulated_gradients_are_those_of_the_larger_batch(clips_folder, tmp_path, losses):
    large, wanted = weights_after(tmp_path / "large", clips_folder, losses, batch_size=4)
    small, found = weights_after(tmp_path / "small", clips_folder, losses, batch_size=2, accumulate=2)
    assert len(large) == 5 and len(small) == 10
    assert [sum(pair) / 2 for pair in zip(small[::2], small[1::2], strict=True)] == pytest.approx(large, abs=1e-6)
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, atol=1e-6, rtol=0)


TWO_PROCESSES = """
import sys
sys.path[:0] = {paths!r}
import torch
from pathlib import Path
from tiny import recipe, splits_of, tiny_model
from inflate3d.train.run import Devices, FitOptions, fit

torch.set_num_threads(1)
fit(recipe(max_steps=5, batch_size=2), splits_of(Path({clips!r}), num_val=0), {folder!r}, model=tiny_model(),
    options=FitOptions(Devices("cpu", 2, strategy="ddp"), quiet=True))
"""


def test_two_processes_are_one_with_the_larger_batch(clips_folder, tmp_path, losses):
    """Under torchrun, gloo, on the CPU."""
    _, wanted = weights_after(tmp_path / "one", clips_folder, losses, batch_size=4)
    here = Path(__file__).parent
    script = tmp_path / "two.py"
    folder = tmp_path / "two"
    script.write_text(
        TWO_PROCESSES.format(paths=[str(here), str(here.parent)], clips=str(clips_folder), folder=str(folder))
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    found = read_training(folder / LAST)
    assert found["global_step"] == 5
    for name, value in wanted.items():
        torch.testing.assert_close(found["state_dict"][f"model.{name}"], value, atol=1e-6, rtol=0)


def broken(folder: Path, name: str) -> Sample:
    path = folder / name
    path.write_bytes(b"no video at all")
    return Sample(str(path), (0,))


def test_clips_that_cannot_be_read_are_told_and_left_out(clips_folder, tmp_path):
    splits = splits_of(clips_folder)
    bad = [broken(tmp_path, "train.mp4"), broken(tmp_path, "val.mp4")]
    splits = replace(splits, train=(*splits.train, bad[0]), val=(*splits.val, bad[1]))
    chosen = recipe(epochs=1, max_unreadable=0.2)
    with pytest.warns(InflateWarning, match="cannot be read and is left out"):
        fitted = fit(chosen, splits, tmp_path / "run", model=tiny_model(), options=QUIET)
        less = replace(splits, val=splits.val[:-1])
        clean = fit(chosen, less, tmp_path / "clean", model=tiny_model(), options=QUIET)
    assert set(fitted.unreadable) == {sample.path for sample in bad}
    told = json.loads((tmp_path / "run" / "run.json").read_text())["unreadable"]
    assert set(told) == set(fitted.unreadable)
    assert fitted.history[0]["val_loss"] == clean.history[0]["val_loss"]  # it counts for nothing in the validation


@pytest.mark.parametrize(("change", "what"), [({"lr": 1e30}, "loss"), ({"clip_norm": 1e30}, "norm of the gradients")])
def test_a_run_that_diverges_stops(clips_folder, tmp_path, change, what):
    """The second one has a finite loss, and gradients beyond all numbers."""
    model = tiny_model()
    if what != "loss":
        last = list(model.parameters())[-1]
        last.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(InflateError, match=f"diverged: the {what} is no finite number"):
        fit(recipe(**change), splits_of(clips_folder), tmp_path / "run", model=model, options=QUIET)


@pytest.mark.filterwarnings("ignore::inflate3d.errors.InflateWarning")
def test_too_many_such_clips_are_an_error(clips_folder, tmp_path):
    splits = splits_of(clips_folder)
    bad = tuple(broken(tmp_path, f"{i}.mp4") for i in range(3))
    splits = replace(splits, train=(*splits.train, *bad))
    with pytest.raises(InflateError, match="too many clips cannot be read"):
        fit(recipe(max_unreadable=0.1), splits, tmp_path / "run", model=tiny_model(), options=QUIET)


def test_short_clips_lonely_classes_and_labels_that_validation_lacks(tmp_path):
    """Two frames where five are wanted, one clip of a class, a class without validation, fewer clips than a batch."""
    folder = write_clips(tmp_path / "clips", count=2, num_frames=2)
    samples = samples_in(folder)
    splits = Splits((*samples[:3], samples[4]), (samples[1],), (), CLASSES, "mine")
    fitted = fit(recipe(batch_size=8), splits, tmp_path / "run", model=tiny_model(), options=QUIET)
    assert len(fitted.history) == 2
    assert all(row["val_loss"] > 0 for row in fitted.history)


@pytest.mark.parametrize("how", ["no space", "torch cannot write"])
def test_a_full_disk_leaves_the_old_checkpoint_whole(clips_folder, tmp_path, monkeypatch, how):
    folder = tmp_path / "run"
    save = torch.save

    def full(value, path):
        if value["epoch"] == 1:
            Path(path).write_bytes(b"half of it")
            raise (
                OSError(errno.ENOSPC, "No space left on device") if how == "no space" else RuntimeError("write failed")
            )
        save(value, path)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(InflateError, match="cannot be written"):
        fit(recipe(), splits_of(clips_folder), folder, model=tiny_model(), options=QUIET)
    assert read_training(folder / LAST)["epoch"] == 0
    assert sorted(path.suffix for path in folder.iterdir() if path.is_file()) == [".ckpt", ".ckpt"]
    monkeypatch.undo()
    whole = fit(recipe(), splits_of(clips_folder), tmp_path / "whole", model=tiny_model(), options=QUIET)
    resumed = fit(recipe(), splits_of(clips_folder), folder, model=tiny_model(), resume=True, options=QUIET)
    assert_same(whole.model.state_dict(), resumed.model.state_dict())


def test_a_folder_with_a_run_is_not_written_over(clips_folder, tmp_path):
    splits = splits_of(clips_folder)
    fit(recipe(epochs=1), splits, tmp_path, model=tiny_model(), options=QUIET)
    with pytest.raises(InflateError, match="the folder holds a run already"):
        fit(recipe(epochs=1), splits, tmp_path, model=tiny_model(), options=QUIET)
    with pytest.raises(InflateError, match="the run in the folder is another one") as told:
        fit(recipe(epochs=1, lr=0.5), splits, tmp_path, model=tiny_model(), resume=True, options=QUIET)
    assert "lr=0.05, not 0.5" in str(told.value)
    longer = fit(recipe(epochs=2), splits, tmp_path, model=tiny_model(), resume=True, options=QUIET)
    assert [row["epoch"] for row in longer.history] == [0, 1]


class Hostile:
    def __reduce__(self):
        return os.system, ("touch /tmp/never",)


@pytest.mark.parametrize("content", [{"state_dict": {}, "inflate3d": Hostile()}, {"state_dict": {}}, [1]])
def test_checkpoints_of_strangers_are_refused(tmp_path, content):
    torch.save(content, tmp_path / "theirs.ckpt")
    with pytest.raises(InflateError, match="this is no checkpoint of a training run"):
        load_trained(tmp_path / "theirs.ckpt")


def test_a_checkpoint_becomes_the_network_again(clips_folder, tmp_path):
    """With recipe, plan, classes and versions in it."""
    chosen = recipe(network="inflated/torchvision/shufflenet_v2_x0_5", epochs=1, crop=33, num_frames=3)
    fitted = fit(chosen, splits_of(clips_folder), tmp_path, options=QUIET)
    facts = read_training(fitted.checkpoint)["inflate3d"]
    assert facts["class_names"] == list(CLASSES) and facts["versions"].keys() == {"inflate3d", "torch", "lightning"}
    assert '"version"' in facts["plans"][0]
    model, found = load_trained(fitted.checkpoint)
    assert found == chosen and model.class_names == CLASSES and not model.training
    assert_same(model.state_dict(), fitted.model.state_dict())
    with pytest.raises(InflateError, match="the weights are not those of the network"):
        load_trained(fitted.checkpoint, build=lambda *_: TinyNet())


@pytest.mark.filterwarnings("ignore::inflate3d.errors.InflateWarning")
def test_frozen_parts_of_nothing(clips_folder, tmp_path):
    bad = tuple(broken(tmp_path, f"{i}.mp4") for i in range(2))
    chosen = recipe(freeze="head", cached_views=1, max_unreadable=0.5)
    splits = Splits(bad, tuple(samples_in(clips_folder)), (), CLASSES, "mine")
    with pytest.raises(InflateError, match="not one clip can be read"):
        fit(chosen, splits, tmp_path / "run", model=tiny_model(), options=QUIET)


def test_what_frozen_layers_give_is_kept_for_other_runs(clips_folder, tmp_path, monkeypatch):
    chosen = recipe(freeze="head", cached_views=2, epochs=1)
    options = replace(QUIET, features=tmp_path / "kept")
    splits = splits_of(clips_folder)
    first = fit(chosen, splits, tmp_path / "one", model=tiny_model(), options=options)
    assert len(list((tmp_path / "kept").iterdir())) == 2 * len(splits.train) + len(splits.val)
    monkeypatch.setattr("inflate3d.train.data.decoded_frames", None)  # nothing is read any more
    second = fit(chosen, splits, tmp_path / "two", model=tiny_model(), options=options)
    assert_same(first.model.state_dict(), second.model.state_dict())


def test_a_recipe_of_another_version_is_refused(clips_folder, tmp_path):
    fitted = fit(recipe(epochs=1), splits_of(clips_folder), tmp_path / "run", model=tiny_model(), options=QUIET)
    found = torch.load(fitted.checkpoint, weights_only=True)
    found["inflate3d"]["recipe"]["warmth"] = 1
    torch.save(found, tmp_path / "other.ckpt")
    with pytest.raises(InflateError, match="the recipe in the checkpoint is not one of this version"):
        load_trained(tmp_path / "other.ckpt")


@pytest.mark.parametrize(("stream", "channels"), [("flow", 2), ("both", 5)])
def test_flow_is_made_of_the_clips(clips_folder, stream, channels):
    path = samples_in(clips_folder)[4].path  # moves to the right
    how = decoding_of(recipe(stream=stream, flow_method="farneback"), None)
    found = decoded_frames(path, how)
    assert found.shape == (8, 33, 33 * 46 // 34, channels) and found.dtype == torch.uint8
    moving = found[..., -2][(found[..., -2].int() - 127).abs() > 4].float()
    assert moving.mean() > 127
    if stream == "both":
        assert torch.equal(found[..., :3], decoded_frames(path, decoding_of(recipe(), None))[:8])


def test_one_frame_has_no_flow(tmp_path):
    folder = write_clips(tmp_path, count=1, num_frames=1)
    with pytest.raises(InflateError, match="flow leads from one frame to the next"):
        decoded_frames(samples_in(folder)[0].path, decoding_of(recipe(stream="flow", flow_method="farneback"), None))
