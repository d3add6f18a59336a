"""Validation on two devices, of which one can read nothing: neither waits for the other for ever."""

import json
import subprocess
import sys

import pytest

from inflate3d import InflateError
from inflate3d.clips.dataset import Sample, Splits
from inflate3d.train.data import check_validation

ONE_READS_NOTHING = """
import json, sys, warnings
from pathlib import Path
import torch
from torch import nn
from inflate3d.clips.dataset import Sample, Splits
from inflate3d.clips.volume_spec import VolumeSpec
from inflate3d.train.data import SampleDataset
from inflate3d.train.module import ClipTask
from inflate3d.train.recipe import Recipe, VolumeRecipe
from inflate3d.train.run import Devices, FitOptions, Run
from inflate3d.train.volumes import VolumeTask

warnings.simplefilter("ignore")
torch.set_num_threads(1)
SHAPE = (1, 4, 4, 4)


class Data(SampleDataset):
    def __init__(self, count, kind, train):
        self.samples = [Sample(str(number), (number // 2 % 2,)) for number in range(count)]
        self.kind, self.is_train = kind, train

    def show(self, sample, seed):
        if not self.is_train and int(sample.path) % 2 == 0:  # all that the first device is given
            raise ValueError("damaged")
        return torch.full(SHAPE, float(sample.labels[0])), self.target(sample)

    def blank(self, sample):
        return torch.zeros(SHAPE), self.target(sample)

    def target(self, sample):
        label = torch.tensor(sample.labels[0])
        return {"labels": torch.eye(2)[label].byte(), "mask": label.expand(SHAPE).byte()}.get(self.kind, label)


for kind in ("classes", "labels", "scans", "mask"):
    train, val = Data(8, kind, True), Data(7, kind, False)
    splits = Splits(tuple(train.samples), tuple(val.samples), (), ("a", "b"), "mine")
    torch.manual_seed(0)
    net = nn.Sequential(nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(1, 2))
    same = {"epochs": 1, "batch_size": 2, "precision": "fp32", "max_unreadable": 0.9}
    if kind in ("classes", "labels"):
        recipe = Recipe("mine", task=kind, **same)
    else:
        net = nn.Conv3d(1, 2, 1) if kind == "mask" else net
        net.volume_spec = VolumeSpec("mask" if kind == "mask" else "classes", ("a", "b"), (1.0, 1.0, 1.0), SHAPE[1:])
        recipe = VolumeRecipe("mine", task=net.volume_spec.task, patch=SHAPE[1:], **same)
    options = FitOptions(Devices("cpu", 2, strategy="ddp"), quiet=True)
    run = Run(net, recipe, splits, folder=Path(sys.argv[1]) / kind, options=options)
    batches = run.batches(len(train))
    steps = run.steps(batches)
    task = ClipTask(net, recipe, 2, total_steps=steps) if kind in ("classes", "labels") else VolumeTask(net, recipe)
    history = run.fit(task, [train, val], batches, last=None, workers=0).history[0]
    Path(sys.argv[1], f"{kind}-{run.trainer.global_rank}.json").write_text(json.dumps(history))
"""


def test_a_device_that_can_read_nothing_does_not_hold_up_the_other(tmp_path):
    """Under torchrun, gloo, on the CPU; for each kind of score. Both tell what the other one has counted."""
    (tmp_path / "two.py").write_text(ONE_READS_NOTHING)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    with subprocess.Popen(
        [*command, str(tmp_path / "two.py"), str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as run:
        try:
            told = run.communicate(timeout=200)[0]
        except subprocess.TimeoutExpired:
            run.terminate()  # torchrun ends its own
            raise
    assert run.returncode == 0, told
    for kind, score in (("classes", "val_top1"), ("labels", "val_map"), ("scans", "val_auc"), ("mask", "val_dice")):
        one, other = (json.loads((tmp_path / f"{kind}-{rank}.json").read_text()) for rank in range(2))
        assert one["val_loss"] == other["val_loss"] > 0 and 0 <= one[score] == other[score] <= 1


def test_every_device_has_to_have_something_to_validate_with():
    two = tuple(Sample(f"{number}.mp4", (0,)) for number in range(2))
    for count in (0, 2):
        check_validation(Splits(two, two[:count], (), ("run",), "mine.csv"), 2)
    with pytest.raises(InflateError, match="not every device has something to validate with") as found:
        check_validation(Splits(two, two, (), ("run",), "mine.csv"), 3)
    assert (found.value.where, found.value.got) == ("mine.csv", "2")
