"""Seldom ways of a training run: validations that say nothing, clips without a class, files of other versions."""

import math
import shutil
import signal
import time
from dataclasses import asdict, replace
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from tiny import CLASSES, recipe, samples_in, splits_of, tiny_model, write_clips

from inflate3d import ClipSpec, InflateError, InflateWarning
from inflate3d.clips.dataset import Sample
from inflate3d.train.checkpoint import KEY, describe_run, load_trained, read_training, recipe_in, weights_in
from inflate3d.train.data import Unreadable
from inflate3d.train.module import lr_factor
from inflate3d.train.recipe import Recipe, VolumeRecipe, with_settings
from inflate3d.train.recipes import RECIPES, find_recipe
from inflate3d.train.run import BEST, LAST, MAY_CHANGE, FitOptions, Keep, check_folder, fit

QUIET = FitOptions(quiet=True)


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    return write_clips(tmp_path_factory.mktemp("few"), count=2, num_frames=5)


pytestmark = pytest.mark.usefixtures("one_thread")


# -- validations that say nothing ----------------------------------------------------------------------------------


def keep_of(folder, scores):
    """What is kept of epochs with these scores; gives the epochs whose network was the best so far."""
    keep, best = Keep(folder, {}, Unreadable(9, 0.5)), []
    for epoch, score in enumerate(scores):
        written = []
        loader = SimpleNamespace(batches=SimpleNamespace(begin=lambda epoch: None))
        trainer = SimpleNamespace(
            current_epoch=epoch,
            callback_metrics={} if score is None else {"val_score": torch.tensor(score)},
            save_checkpoint=lambda path, written=written: written.append(path.name),
            train_dataloader=loader,
        )
        keep.on_train_epoch_end(trainer, SimpleNamespace(score_name="val_score"))
        assert written[-1] == LAST
        best += [epoch] * (BEST in written)
    return keep, best


@pytest.mark.parametrize(
    ("scores", "best"),
    [
        ([0.3, 0.2, 0.5, 0.5, 0.6], [0, 2, 4]),
        ([math.nan, 0.2, math.nan, 0.1, 0.4], [1, 4]),  # NaN is no first best that nothing beats
        ([math.nan, math.nan], []),
        ([None, None], []),
        ([-0.5, None, -0.4], [0, 2]),
    ],
)
def test_the_best_epoch_is_one_with_a_score(tmp_path, scores, best):
    keep, found = keep_of(tmp_path, scores)
    assert found == best
    known = [score for score in scores if score is not None and not math.isnan(score)]
    assert keep.best == (pytest.approx(max(known)) if known else None)
    again = Keep(tmp_path, {}, Unreadable(9, 0.5))
    again.load_state_dict(keep.state_dict())
    assert (again.best, len(again.history)) == (keep.best, len(scores))


@pytest.mark.filterwarnings("ignore::inflate3d.errors.InflateWarning", "ignore::UserWarning", "ignore::RuntimeWarning")
def test_patience_outlasts_a_validation_that_cannot_be_read(few, tmp_path):
    splits = splits_of(few)
    splits = replace(splits, val=(Sample(str(tmp_path / "gone.mp4"), (0,)),))
    chosen = recipe(epochs=3, patience=1, max_unreadable=0.5)
    fitted = fit(chosen, splits, tmp_path / "run", model=tiny_model(), options=QUIET)
    assert len(fitted.history) == 3 and "val_loss" not in fitted.history[0]
    assert fitted.checkpoint.name == LAST and set(fitted.unreadable) == {str(tmp_path / "gone.mp4")}


def test_patience_ends_a_run_that_gets_no_better(few, tmp_path):
    chosen = recipe(epochs=9, patience=2, lr=1e-30)  # nothing moves
    fitted = fit(chosen, splits_of(few), tmp_path, model=tiny_model(), options=QUIET)
    assert 3 <= len(fitted.history) < 9
    assert len({row["val_loss"] for row in fitted.history}) == 1


# -- classes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("labels", "count"), [((), 0), ((0, 2), 2)])
@pytest.mark.parametrize("part", ["train", "val"])
def test_clips_without_a_class_or_with_two_are_told_before_anything_runs(few, tmp_path, labels, count, part):
    splits = splits_of(few)
    odd = replace(getattr(splits, part)[1], labels=labels)
    splits = replace(splits, **{part: (odd, *getattr(splits, part)[2:])})
    with pytest.raises(InflateError) as found:
        fit(recipe(), splits, tmp_path / "run", model=tiny_model(), options=QUIET)
    assert str(found.value) == (
        f"{few}: not every clip has one class\n"
        "  expected: one label for each clip of training and validation, with task classes\n"
        f"  got:      {odd.path}: {count}\n"
        "  fix:      train with --set task=labels, or leave these clips out of the list"
    )
    assert not (tmp_path / "run").exists()
    fitted = fit(recipe(task="labels", epochs=1), splits, tmp_path / "run", model=tiny_model(), options=QUIET)
    assert fitted.history[0]["val_loss"] > 0


@pytest.mark.parametrize(
    ("make", "changes", "told"),
    [
        (Recipe, {"balance": True, "task": "labels"}, "balance: with task classes only"),
        (Recipe, {"balance": True, "task": "frames"}, "balance: with task classes only"),
        (Recipe, {"label_smoothing": 0.1, "task": "labels"}, "label_smoothing: from 0 to below 1, with task classes"),
        (Recipe, {"label_smoothing": 1.0}, "label_smoothing: from 0 to below 1"),
        (Recipe, {"label_smoothing": math.nan}, "label_smoothing: from 0 to below 1"),
        (Recipe, {"fps": "native", "task": "frames"}, "whose labels have times"),
        (Recipe, {"fps": 0.0}, "fps: a number above 0"),
        (Recipe, {"every_step": True, "task": "labels"}, "every_step: with task classes only"),
        (Recipe, {"crop": 300, "short_side": 256}, "crop: at most short_side, 256"),
        (Recipe, {"cached_views": 2}, "0 unless freeze names what is frozen"),
        (Recipe, {"checkpointing": True}, "without live batch norms (freeze_norm)"),
        (Recipe, {"dropout": 1.0}, "dropout: from 0 to below 1, or none"),
        (Recipe, {"zoom": 0.0}, "zoom: above 0, to 1"),
        (Recipe, {"schedule": "steps"}, "lr_steps: steps, with schedule steps only"),
        (Recipe, {"lr_steps": ((5, 0.1),)}, "lr_steps: steps, with schedule steps only"),
        (Recipe, {"momentum": 1.0, "ema": -0.1}, "momentum: from 0 to below 1; ema: from 0 to below 1"),
        (Recipe, {"epochs": 0, "batch_size": 2.5}, "epochs: a whole number, 1 or more; batch_size: a whole"),
        (VolumeRecipe, {"balance": True}, "balance: with task classes only"),
        (VolumeRecipe, {"label_smoothing": 0.1}, "label_smoothing: from 0 to below 1, with task classes only"),
        (VolumeRecipe, {"patch": (8, 8)}, "patch: three whole numbers"),
        (VolumeRecipe, {"window": (5.0, 5.0)}, "window: a lower and a higher value, or none"),
        (VolumeRecipe, {"mirror": "dd"}, "mirror: of the letters d, h and w, each once"),
        (VolumeRecipe, {"spacing_mm": (1.0, 0.0, 1.0)}, "spacing_mm: nothing, or three numbers above 0"),
        (VolumeRecipe, {"rotate_degrees": 181.0}, "rotate_degrees: from 0 to 180"),
    ],
)
def test_values_that_a_recipe_cannot_have(make, changes, told):
    with pytest.raises(InflateError, match="a recipe does not work so") as found:
        make("mine", **changes)
    assert told in found.value.expected
    assert all(f"{name}={value!r}" in found.value.got for name, value in changes.items() if f"{name}: " in told)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_can_be_typed_anew(name):
    """Each value as text behind --set gives the very recipe."""

    def text(value):
        if isinstance(value, tuple):
            return ",".join(":".join(map(str, one)) if isinstance(one, tuple) else str(one) for one in value)
        return str(value).lower() if value is None or isinstance(value, bool) else str(value)

    chosen = find_recipe(name)
    settings = [f"{key}={text(value)}" for key, value in asdict(chosen).items()]
    assert with_settings(type(chosen)("blank"), settings) == chosen


# -- checkpoints ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(few, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    fit(recipe(epochs=1), splits_of(few), folder, model=tiny_model(), options=QUIET)
    return folder


def changed(run, tmp_path, change):
    found = read_training(run / LAST)
    change(found)
    torch.save(found, tmp_path / LAST)
    return tmp_path / LAST


@pytest.mark.parametrize(
    ("change", "got"),
    [
        (lambda found: found[KEY]["recipe"].pop("lr_steps"), "KeyError: 'lr_steps'"),
        (lambda found: found[KEY]["recipe"].update(warp=9), "unexpected keyword argument 'warp'"),
        (lambda found: found[KEY].update(kind="points"), "KeyError: 'points'"),
        (lambda found: found[KEY].pop("class_names"), "KeyError: 'class_names'"),
        (lambda found: found[KEY]["recipe"].update(crop=-1), "a recipe does not work so"),
    ],
)
def test_recipes_of_other_versions_are_refused(run, few, tmp_path, change, got):
    path = changed(run, tmp_path, change)
    for ask in (load_trained, lambda path: check_folder(path.parent, recipe(), splits_of(few), resume=True)):
        with pytest.raises(InflateError, match="the recipe in the checkpoint is not one of this version") as found:
            ask(path)
        assert got in found.value.got and found.value.where == str(path)
        assert found.value.fix == "read it with the version of inflate3d that wrote it"


@pytest.mark.parametrize(
    ("change", "got"),
    [
        (lambda found: found[KEY].update(format=99), "no entry 'inflate3d' of format 1"),
        (lambda found: found.pop(KEY), "no entry 'inflate3d' of format 1"),
        (lambda found: found.update({KEY: "text"}), "AttributeError"),
    ],
)
def test_files_of_another_form_are_no_checkpoints(run, tmp_path, change, got):
    found = torch.load(run / LAST, weights_only=True)
    change(found)
    torch.save(found, tmp_path / LAST)
    with pytest.raises(InflateError, match="this is no checkpoint of a training run") as told:
        read_training(tmp_path / LAST)
    assert got in told.value.got


def test_a_network_of_ones_own_has_to_be_built_by_its_owner(run):
    with pytest.raises(InflateError, match="the weights are not those of the network that the recipe names") as found:
        load_trained(run / LAST, build=lambda recipe, names: torch.nn.Linear(2, 3))
    assert "pass build=" in found.value.fix and "i3d with 3 classes" in found.value.expected
    asked = []

    def build(chosen, names):
        asked.append((chosen, names))
        return tiny_model(seed=99)

    model, chosen = load_trained(run / LAST, build=build)
    assert asked == [(chosen, CLASSES)] and chosen == recipe(epochs=1) and not model.training
    wanted = weights_in(read_training(run / LAST))
    assert all(torch.equal(value, wanted[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("changes", "got"),
    [
        ({"lr": 0.5, "flip": True}, "flip=False, not True"),
        ({"seed": 1}, "seed=0, not 1"),
        ({"class_names": ("a", "b", "c")}, "classes left, right, up"),
    ],
)
def test_a_run_of_other_settings_does_not_go_on(run, few, changes, got):
    splits = splits_of(few)
    if "class_names" in changes:
        splits = replace(splits, class_names=changes.pop("class_names"))
    with pytest.raises(InflateError, match="the run in the folder is another one") as found:
        check_folder(run, recipe(epochs=1, **changes), splits, resume=True)
    assert got in found.value.got


def test_a_run_does_not_go_on_with_other_samples(run, few, tmp_path):
    """Neither of another fold nor with other labels; their order and the place of the folder do not count."""
    splits = splits_of(few)
    moved = replace(splits, train=splits.train[:-1], val=(*splits.val, splits.train[-1]))
    label = replace(splits, train=(replace(splits.train[0], labels=(2,)), *splits.train[1:]))
    for other in (moved, label, replace(splits, val=splits.val[1:])):
        with pytest.raises(InflateError, match="the run in the folder has learned from other samples"):
            check_folder(run, recipe(epochs=1), other, resume=True)
    assert check_folder(run, recipe(epochs=1), replace(splits, train=splits.train[::-1]), resume=True) == run / LAST
    shutil.copytree(few, tmp_path / "elsewhere")
    assert check_folder(run, recipe(epochs=1), splits_of(tmp_path / "elsewhere"), resume=True) == run / LAST
    older = changed(run, tmp_path, lambda found: found[KEY].pop("data"))
    with pytest.warns(InflateWarning, match="does not tell what it has learned from"):
        assert check_folder(older.parent, recipe(epochs=1), moved, resume=True) == older


def test_what_may_change_in_a_run_that_goes_on(run, few):
    longer = recipe(epochs=9, max_steps=50, patience=3, workers=1, max_unreadable=0.4, save_steps=7)
    assert all(getattr(longer, name) != getattr(recipe(epochs=1), name) for name in MAY_CHANGE)
    assert check_folder(run, longer, splits_of(few), resume=True) == run / LAST
    with pytest.raises(InflateError, match="the folder holds a run already") as found:
        check_folder(run, longer, splits_of(few), resume=False)
    assert (found.value.got, found.value.where) == (LAST, str(run))


def test_seconds_go_on_where_the_run_goes_on(tmp_path):
    before, after = (Keep(tmp_path, {}, Unreadable(9, 0.5)) for _ in range(2))
    before.began -= 1000
    state = before.state_dict()
    after.load_state_dict(state)
    assert 1000 <= time.monotonic() - after.began < 1010
    state.pop("seconds")  # as older versions wrote it
    after.load_state_dict(state)


@pytest.mark.parametrize("resume", [False, True])
def test_in_an_empty_folder_a_run_begins(tmp_path, few, resume):
    assert check_folder(tmp_path / "new", recipe(), splits_of(few), resume=resume) is None


def test_what_describes_a_run_can_be_read_without_running_anything(tmp_path):
    model = tiny_model()
    facts = describe_run(recipe(), CLASSES, model)
    torch.save({KEY: facts, "state_dict": {"model.a": torch.ones(2), "other": torch.ones(3)}}, tmp_path / "a.ckpt")
    found = read_training(tmp_path / "a.ckpt")
    assert recipe_in(found, "a.ckpt") == (recipe(), CLASSES)
    assert list(weights_in(found)) == ["a"]
    assert found[KEY]["plans"] == [model.plan.to_json()] and found[KEY]["kind"] == "clips"


# -- schedules -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["constant", "cosine", "steps"])
@pytest.mark.parametrize("warmup", [0, 1, 7])
def test_a_learning_rate_rises_from_the_first_step_and_falls_to_its_end(schedule, warmup):
    steps = {"lr_steps": ((20, 0.05), (30, 0.005))} if schedule == "steps" else {}
    chosen = Recipe("mine", lr=0.5, schedule=schedule, warmup_steps=warmup, **steps)
    rates = [0.5 * lr_factor(chosen, step, 40) for step in range(40)]
    assert rates[:warmup] == pytest.approx([0.5 * (step + 1) / warmup for step in range(warmup)])
    after = rates[warmup:]
    assert after[0] == 0.5 and all(one >= other >= 0 for one, other in pairwise(after))
    if schedule == "cosine":
        half = warmup + (40 - warmup) / 2
        assert lr_factor(chosen, half, 40) == pytest.approx(0.5) and rates[-1] < 0.01
        assert lr_factor(chosen, 40, 40) == pytest.approx(0, abs=1e-12) == lr_factor(chosen, 99, 40)
    elif schedule == "steps":
        assert (rates[19], rates[20], rates[29], rates[30]) == pytest.approx((0.5, 0.05, 0.05, 0.005))
    else:
        assert set(after) == {0.5}


class StopAt(Callback):
    """Ends a run before its time, as somebody does who presses Ctrl-C."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            raise KeyboardInterrupt


def test_facts_tell_the_network_what_it_was_fed(few, tmp_path):
    model = tiny_model()
    model.clip_spec = ClipSpec(25.0, 9, 7, 50, 40, (0.0, 1.0))
    fitted = fit(recipe(epochs=1, num_frames=5, frame_step=2), splits_of(few), tmp_path, model=model, options=QUIET)
    assert fitted.model.clip_spec == ClipSpec(12.5, 7, 7, 33, 32, (-1.0, 1.0))  # it wants seven at least
    assert not fitted.model.training and fitted.seconds > 0


@pytest.mark.parametrize("change", [{"max_steps": 3}, {"epochs": 2, "accumulate": 2}])
def test_steps_are_counted_as_the_optimizer_makes_them(few, tmp_path, change):
    chosen = recipe(**{"batch_size": 1, **change})
    fit(chosen, splits_of(few), tmp_path, model=tiny_model(), options=QUIET)
    count = len(samples_in(few)) - 3
    wanted = chosen.max_steps or chosen.epochs * -(-count // chosen.accumulate)
    assert read_training(tmp_path / LAST)["global_step"] == wanted


def test_ctrl_c_ends_a_run_as_it_ends_any_command_and_the_run_goes_on(few, tmp_path):
    """Lightning would end the process itself, with another exit code."""
    chosen = recipe(batch_size=1, epochs=2, save_steps=1)
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        fit(
            chosen, splits_of(few), tmp_path / "cut", model=tiny_model(), options=replace(QUIET, callbacks=(StopAt(2),))
        )
    assert signal.getsignal(signal.SIGINT) is handler  # which Lightning takes away
    assert read_training(tmp_path / "cut" / LAST)["global_step"] in (1, 2)
    resumed = fit(chosen, splits_of(few), tmp_path / "cut", model=tiny_model(), resume=True, options=QUIET)
    whole = fit(chosen, splits_of(few), tmp_path / "whole", model=tiny_model(), options=QUIET)
    wanted = whole.model.state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in resumed.model.state_dict().items())
