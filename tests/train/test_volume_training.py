"""Training on scans: lists, patches, what is learned, the same weights after a stop, and a file that predicts."""

import json
import re
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from inflate3d import InflateError
from inflate3d.cli import app
from inflate3d.clips.dataset import Sample, Splits
from inflate3d.clips.volume_spec import VolumeSpec
from inflate3d.results.volume_scores import score_masks
from inflate3d.train.checkpoint import load_trained, read_training
from inflate3d.train.recipe import VolumeRecipe, with_settings
from inflate3d.train.recipes import find_recipe
from inflate3d.train.run import LAST, FitOptions
from inflate3d.train.volume_data import (
    VolumePatches,
    VolumeSplits,
    load_mask,
    load_scan,
    read_volume_splits,
    spec_for,
)
from inflate3d.train.volumes import MODEL, OccurringAUROC, fit_volumes, flat_network, start_from, volume_network
from inflate3d.weights.inflated_file import load_inflated

QUIET = FitOptions(quiet=True)
SMALL = VolumeRecipe(
    "small",
    network="smp/Unet-tu-test_resnet",
    encoder_depth=3,
    decoder_channels=(16, 8, 8),
    first_stride=1,
    patch=(8, 24, 16),
    window=(0.0, 200.0),
    lr=0.01,
    epochs=2,
    batch_size=2,
    mirror="d",
)
SPACING = (1.0, 1.0, 2.0)  # of x, y and z, as NIfTI stores them


def lump(seed):
    """A bright lump on noise, and its mask; the axes differ in length."""
    random = np.random.default_rng(seed)
    shape = (19, 26, 11)
    center, radius = random.uniform((6, 8, 4), (13, 18, 7)), random.uniform(3.5, 5)
    places = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    inside = (((places - center) / (1, 1, 0.7)) ** 2).sum(-1) < radius**2
    return (random.normal(50, 15, shape) + 90 * inside).astype(np.int16), inside.astype(np.uint8)


def save(path, voxels, spacing=SPACING):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([*spacing, 1.0])), path)


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """Fifteen scans with masks, as the Decathlon has them."""
    folder = tmp_path_factory.mktemp("scans")
    for seed in range(15):
        voxels, mask = lump(seed)
        save(folder / "imagesTr" / f"case_{seed:03}_0000.nii.gz", voxels)
        save(folder / "labelsTr" / f"case_{seed:03}.nii.gz", mask)
    (folder / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "lump": 1}}))
    return folder


@pytest.fixture(scope="module")
def medmnist(tmp_path_factory):
    """Small and large lumps in one array, with the official parts."""
    path = tmp_path_factory.mktemp("arrays") / "lumps.npz"
    arrays = {}
    for part, count in (("train", 12), ("val", 5), ("test", 6)):
        labels = np.arange(count) % 2
        images = np.zeros((count, 12, 13, 14), np.uint8)
        for number, label in enumerate(labels):
            side = 4 + 4 * int(label)
            images[number, 2 : 2 + side, 3 : 3 + side, 1 : 1 + side] = 255
        arrays |= {f"{part}_images": images, f"{part}_labels": labels[:, None]}
    np.savez(path, **arrays)
    return path


def drawn(data, recipe, **how):
    spec = spec_for(recipe, data)
    return VolumePatches(data.splits.train, data, recipe, spec=spec, **how), spec


def test_lists_of_scans_are_known_by_their_form(scans, medmnist, tmp_path):
    found = read_volume_splits(scans, "mask", fold=1)
    assert found.splits.class_names == ("background", "lump")
    assert [len(part) for part in (found.splits.train, found.splits.val, found.splits.test)] == [10, 2, 3]
    assert found.masks[found.splits.test[0].path].endswith(".nii.gz")
    folds = [{one.path for one in read_volume_splits(scans, "mask", fold=fold).splits.test} for fold in range(5)]
    assert len(set.union(*folds)) == 15 and sum(map(len, folds)) == 15
    arrays = read_volume_splits(medmnist, "classes")
    assert [len(part) for part in (arrays.splits.train, arrays.splits.val, arrays.splits.test)] == [12, 5, 6]
    assert [one.labels[0] for one in arrays.splits.val] == [0, 1, 0, 1, 0]
    assert np.array_equal(load_scan(arrays.splits.val[3].path).data[0], np.load(medmnist)["val_images"][3])
    table = tmp_path / "list.csv"
    images = sorted((scans / "imagesTr").iterdir())
    rows = [f"{one},{'ab'[n % 2]},{n % 3}" for n, one in enumerate(images)]
    table.write_text("\n".join(["path,label,fold", *rows]))
    classes = read_volume_splits(table, "classes", fold=2)
    assert classes.splits.class_names == ("a", "b") and len(classes.splits.test) == 5
    masks = [f"{one},{scans / 'labelsTr' / one.name.replace('_0000', '')},train" for one in images]
    table.write_text("\n".join(["image,mask,split", *masks]))
    listed = read_volume_splits(table, "mask", class_names=["ground", "lump"])
    assert listed.splits.class_names == ("ground", "lump") and len(listed.masks) == 15
    for name in "ab":
        save(tmp_path / "classes" / name / "one.nii", lump(3)[0])
    by_folder = read_volume_splits(tmp_path / "classes", "classes", val_share=0)
    assert by_folder.splits.class_names == ("a", "b")


def test_lists_that_make_no_sense_are_told(scans, medmnist, tmp_path):
    def refused(path, task, **how):
        with pytest.raises(InflateError, match="the list of scans cannot be understood") as caught:
            read_volume_splits(path, task, **how)
        return str(caught.value)

    assert "imagesTr" in refused(tmp_path, "mask")
    assert "labels [n" not in refused(tmp_path, "classes")
    assert "train_labels likewise" in refused(medmnist, "mask")
    save(tmp_path / "a" / "images" / "one.nii", lump(0)[0])
    save(tmp_path / "a" / "labels" / "two.nii", lump(0)[1])
    assert "one.nii" in refused(tmp_path / "a", "mask")
    (tmp_path / "a.csv").write_text("path,label\nnothing.nii,a\n")
    assert "nothing.nii" in refused(tmp_path / "a.csv", "classes")
    (tmp_path / "b.csv").write_text(f"path,label\n{scans / 'imagesTr' / 'case_000_0000.nii.gz'},a\n")
    assert "labels among b, c" in refused(tmp_path / "b.csv", "classes", class_names=["b", "c"])
    (tmp_path / "c.npz").write_bytes(b"no arrays")
    refused(tmp_path / "c.npz", "classes")
    (tmp_path / "a" / "labels" / "two.nii").rename(tmp_path / "a" / "labels" / "one.nii")
    (tmp_path / "a" / "dataset.json").write_text('{"labels": {"background": 0, "lump": 2}}')
    assert "numbers from 0" in refused(tmp_path / "a", "mask")


def empty_scans(folder, *names):
    for name in names:
        save(folder / name, np.zeros((2, 3, 4), np.int16))
    return folder


def table_of(folder, head, rows):
    path = empty_scans(folder, *(row.split(",")[0] for row in rows)) / "list.csv"
    path.write_text("\n".join([head, *rows]) + "\n")
    return path


def stems(samples):
    return [Path(sample.path).name.removesuffix(".nii") for sample in samples]


def labelled(data):
    splits = data.splits
    samples = (*splits.train, *splits.val, *splits.test)
    return {Path(one.path).parent.name: splits.class_names[one.labels[0]] for one in samples}


def test_classes_are_numbered_as_they_are_named(tmp_path):
    """Not by their folders: a list of some of the classes, or with names in another order, says the same of a scan."""
    folder = empty_scans(tmp_path / "all", *(f"{name}/{i}.nii" for name in ("ill", "well") for i in range(3)))
    for names in (("well", "ill"), ("ill", "well"), ("well", "dead", "ill")):
        found = read_volume_splits(folder, "classes", val_share=0, class_names=names)
        assert found.splits.class_names == names and labelled(found) == {"ill": "ill", "well": "well"}
    with pytest.raises(InflateError, match="the list of scans cannot be understood") as told:
        read_volume_splits(folder, "classes", class_names=["well", "dead"])
    assert (told.value.expected, told.value.got) == ("folders among well, dead", "ill")
    alone = empty_scans(tmp_path / "alone", *(f"ill/{i}.nii" for i in range(3)))
    found = read_volume_splits(alone, "classes", val_share=0, class_names=["well", "ill"])
    assert labelled(found) == {"ill": "ill"}


def test_numbers_of_classes_need_their_names(scans, medmnist, tmp_path):
    with pytest.raises(InflateError, match="the list of scans cannot be understood") as told:
        read_volume_splits(medmnist, "classes", class_names=["small"])
    assert told.value.got == "numbers up to 1"
    with pytest.raises(InflateError, match="the list of scans cannot be understood") as told:
        read_volume_splits(scans, "mask", class_names=["lump", "background"])
    assert told.value.expected == "the parts lump, background, in this order"


def test_folders_of_splits_lie_above_those_of_classes(tmp_path):
    names = [f"{split}/{name}/{i}.nii" for split in ("train", "Test") for name in ("ill", "well") for i in range(2)]
    found = read_volume_splits(empty_scans(tmp_path, *names), "classes", val_share=0)
    assert found.splits.class_names == ("ill", "well") and labelled(found) == {"ill": "ill", "well": "well"}
    assert (len(found.splits.train), len(found.splits.test)) == (4, 4)
    assert {Path(one.path).parts[-3] for one in found.splits.test} == {"Test"}


def test_columns_of_tables_are_read_as_those_of_videos(tmp_path):
    words = ("train", "training", "validation", "Test", "valid", "testing")
    table = table_of(tmp_path, "path,label,split", [f"{i}.nii,{'ab'[i % 2]},{word}" for i, word in enumerate(words)])
    splits = read_volume_splits(table, "classes").splits
    assert [stems(part) for part in (splits.train, splits.val, splits.test)] == [["0", "1"], ["2", "4"], ["3", "5"]]
    table = table_of(tmp_path, "path,label,fold", [f"{i}.nii,{'ab'[i % 2]},{i // 2}.0" for i in range(10)])
    assert stems(read_volume_splits(table, "classes", fold=0, val_share=0).splits.test) == ["0", "1"]
    for head, word in (("path,label,split", "exclude"), ("path,label,fold", "1.5")):
        with pytest.raises(InflateError, match="the list of scans cannot be understood") as told:
            read_volume_splits(table_of(tmp_path, head, ["0.nii,a,", f"1.nii,b,{word}"]), "classes")
        assert told.value.got == f"1.nii: {head[11:]} {word!r}" and "validation" in told.value.expected


def test_drawn_folds_keep_groups_whole(tmp_path):
    table = table_of(tmp_path, "path,label,group", [f"{i}.nii,{'ab'[i % 2]},patient{i // 2}" for i in range(10)])
    tested = []
    for fold in range(5):
        splits = read_volume_splits(table, "classes", fold=fold, val_share=0).splits
        assert not {one.group for one in splits.test} & {one.group for one in splits.train}
        tested += stems(splits.test)
    assert sorted(tested) == [str(i) for i in range(10)]


def test_masks_are_those_of_the_same_patient(tmp_path):
    """Where scans of several patients have one name; what is not clear is refused."""
    for patient in ("p0", "p1", "p2"):
        empty_scans(tmp_path, f"imagesTr/{patient}/scan_0000.nii.gz", f"labelsTr/{patient}/scan.nii.gz")
    found = read_volume_splits(tmp_path, "mask", val_share=0, class_names=["ground", "lump"])
    assert {Path(scan).parent.name: Path(mask).parent.name for scan, mask in found.masks.items()} == {
        name: name for name in ("p0", "p1", "p2")
    }
    empty_scans(tmp_path, "labelsTr/p1/scan.nii")
    with pytest.raises(InflateError, match="the list of scans cannot be understood") as told:
        read_volume_splits(tmp_path, "mask", class_names=["ground", "lump"])
    assert told.value.got == f"{Path('p1') / 'scan'} 2 times"
    empty_scans(tmp_path / "table", "first.nii", "second.nii")
    with pytest.raises(InflateError, match="the list of scans cannot be understood") as told:
        read_volume_splits(table_of(tmp_path / "table", "path,mask", ["0.nii,first.nii", "0.nii,second.nii"]), "mask")
    assert told.value.got == "0.nii 2 times"


def test_a_folder_may_have_the_sign_of_arrays_in_its_name(tmp_path):
    path = empty_scans(tmp_path, "a#1/s.nii") / "a#1" / "s.nii"
    assert load_scan(str(path)).grid.shape == load_mask(str(path)).grid.shape == (4, 3, 2)


class Levels(torch.nn.Module):
    """Knows three classes by the value of a scan: 0, 1 or 2."""

    def __init__(self):
        super().__init__()
        self.volume_spec = VolumeSpec("classes", ("benign", "cyst", "tumor"), (1.0, 1.0, 1.0), (4, 3, 2), window=(0, 2))

    def forward(self, x):
        return torch.nn.functional.one_hot((x.mean((1, 2, 3, 4)) * 2).round().long(), 3).float()


def test_a_network_is_shown_a_list_of_some_of_its_classes(tmp_path, monkeypatch):
    """The classes are those of the network, which a list may name in part but not otherwise."""
    monkeypatch.setattr("inflate3d.weights.inflated_file.load_inflated", lambda path: Levels().eval())
    for value, name in ((1, "cyst"), (2, "tumor")):
        for number in range(3):
            save(tmp_path / "hospital" / name / f"{number}.nii", np.full((2, 3, 4), value, np.int16), (1, 1, 1))
    out, labels = tmp_path / "out", tmp_path / "labels.txt"
    command = ["evaluate", "model.safetensors", "--data", str(tmp_path / "hospital"), "--split", "train"]
    command += ["--val-share", "0", "--out", str(out)]
    labels.write_text("benign\ncyst\ntumor\n\n")
    for more in ([], ["--labels", str(labels)]):
        assert CliRunner().invoke(app, [*command, *more], catch_exceptions=False).exit_code == 0
        assert json.loads((out / "evaluation.json").read_text())["scores"]["top1"]["value"] == 1.0
    labels.write_text("cyst\ntumor\nbenign\n")
    with pytest.raises(InflateError, match="the network has other classes"):
        CliRunner().invoke(app, [*command, "--labels", str(labels)], catch_exceptions=False)
    (tmp_path / "hospital" / "cyst").rename(tmp_path / "hospital" / "scar")
    with pytest.raises(InflateError, match="the list of scans cannot be understood"):
        CliRunner().invoke(app, command, catch_exceptions=False)


def test_patches_are_a_function_of_their_seed_and_keep_masks_on_scans(scans, tmp_path):
    data = read_volume_splits(scans, "mask", fold=0)
    patches, spec = drawn(data, replace(SMALL, positive=1.0), folder=tmp_path, train=True)
    assert spec.spacing_mm == (2.0, 1.0, 1.0) and spec.class_names == ("background", "lump")
    one, again, other = (patches[3, seed] for seed in (7, 7, 8))
    assert torch.equal(one["clip"], again["clip"]) and torch.equal(one["target"], again["target"])
    assert not torch.equal(one["clip"], other["clip"])
    for item in (one, other):
        assert item["clip"].shape == item["target"].shape == (1, 8, 24, 16) and item["valid"]
        assert item["target"].dtype == torch.uint8 and item["target"].any()
        inside = item["target"] > 0
        assert item["clip"][inside].mean() > item["clip"][~inside].mean() + 0.25
    whole = VolumePatches(data.splits.train, data, SMALL, spec=spec, folder=tmp_path, train=False)[3, 0]
    assert whole["clip"].shape == (1, 11, 26, 19)


def test_classes_are_shown_the_middle_and_padded(medmnist, tmp_path):
    data = read_volume_splits(medmnist, "classes")
    recipe = replace(SMALL, task="classes", patch=(16, 8, 14), window=(0.0, 255.0))
    spec = spec_for(recipe, data)
    item = VolumePatches(data.splits.val, data, recipe, spec=spec, folder=tmp_path, train=False)[1, 0]
    wanted = np.zeros((16, 8, 14), np.float32)
    wanted[2:14] = np.load(medmnist)["val_images"][1][:, 2:10] / 255
    np.testing.assert_allclose(item["clip"][0], wanted)
    assert item["target"] == 1


def test_scans_and_masks_that_do_not_fit_are_told(scans, tmp_path):
    voxels, mask = lump(1)
    for name in ("shifted", "parts", "soft", "good"):
        save(tmp_path / "images" / f"{name}.nii", voxels)
    save(tmp_path / "labels" / "shifted.nii", mask[:-1])
    save(tmp_path / "labels" / "parts.nii", mask * 3)
    save(tmp_path / "labels" / "soft.nii", mask.astype(np.float32) / 2)
    save(tmp_path / "labels" / "good.nii", mask)
    data = read_volume_splits(tmp_path, "mask", val_share=0, class_names=["ground", "lump"])
    spec = VolumeSpec("mask", ("ground", "lump"), (2.0, 1.0, 1.0), (8, 24, 16))
    samples = [Sample(str(tmp_path / "images" / f"{name}.nii"), ()) for name in ("shifted", "parts", "soft", "good")]
    patches = VolumePatches(samples, data, SMALL, spec=spec, folder=tmp_path / "kept", train=False)
    with pytest.raises(InflateError, match="a mask does not fit its scan"):
        patches.scaled(samples[0])
    with pytest.raises(InflateError, match="numbers up to 3"):
        try:
            patches.scaled(samples[1])
        except InflateError as error:
            raise InflateError(error.got, where="", expected="", got="", fix="") from error
    with pytest.raises(InflateError, match="this is no mask"):
        patches.scaled(samples[2])
    assert [patches[number, 0]["valid"] for number in range(4)] == [False, False, False, True]
    training = VolumePatches(samples, data, SMALL, spec=spec, folder=tmp_path / "kept", train=True)[0, 5]
    assert training["valid"] and len(training["failed"]) == 3


def test_folds_do_not_depend_on_the_seed_of_the_recipe(tmp_path, monkeypatch):
    """`evaluate`, which does not know it, would test on scans that the network has learned from."""
    asked = []

    def stop(recipe, found, *_, **__):
        asked.append((recipe.seed, found.splits))
        raise KeyboardInterrupt

    monkeypatch.setattr("inflate3d.train.volumes.fit_volumes", stop)
    table = table_of(tmp_path, "path,label", [f"{i}.nii,{'ab'[i % 2]}" for i in range(20)])
    for seed in (0, 1):
        CliRunner().invoke(
            app, ["train", "volume-classify", "--data", str(table), "--fold", "0", "--set", f"seed={seed}"]
        )
    assert [seed for seed, _ in asked] == [0, 1] and asked[0][1] == asked[1][1]


def test_lumps_are_learned_and_the_file_predicts(scans, tmp_path):
    """As the command does it; its file finds lumps that it has not seen, on the voxels of the files."""
    settings = ["epochs=14", "batch_size=4", "lr=0.02", "patch=8,24,16", "window=0,200", "rotate_degrees=0", "zoom=0"]
    settings += [f"network={SMALL.network}", "encoder_depth=3", "decoder_channels=16,8,8", "warmup_steps=2"]
    arguments = ["train", "volume-segment", "--data", str(scans), "--fold", "0", "--out", str(tmp_path / "run")]
    run = CliRunner().invoke(app, [*arguments, *(part for one in settings for part in ("--set", one))])
    assert run.exit_code == 0, run.output + repr(run.exception)
    told = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert told["count"] == 3 and told["scores"]["lump"]["value"] > 0.75, told["scores"]
    assert re.search(r"lump +0\.[789]", run.output)
    data = read_volume_splits(scans, "mask", fold=0)
    model = load_inflated(tmp_path / "run" / MODEL)
    assert model.volume_spec.spacing_mm == (2.0, 1.0, 1.0)
    found = score_masks(model, data.splits.test, lambda path: (load_scan(path), load_mask(data.masks[path])))
    assert found.scores()["lump"].value == pytest.approx(told["scores"]["lump"]["value"], abs=1e-6)
    assert not (tmp_path / "run" / "volumes").exists()
    again = ["evaluate", str(tmp_path / "run" / MODEL), "--data", str(scans), "--out", str(tmp_path / "again")]
    assert CliRunner().invoke(app, [*again, "--fold", "0"]).exit_code == 0
    assert json.loads((tmp_path / "again" / "evaluation.json").read_text())["dice"] == told["dice"]
    rows = [f"{path},{mask},{'train' if number else 'val'}" for number, (path, mask) in enumerate(data.masks.items())]
    (tmp_path / "train.csv").write_text("\n".join(["path,mask,split", *rows]) + "\n")
    again[3] = str(tmp_path / "train.csv")
    assert "there are no scans to show" in str(CliRunner().invoke(app, again).exception)
    shown = CliRunner().invoke(
        app,
        ["predict", data.splits.test[0].path, "--model", str(tmp_path / "run" / MODEL), "-o", str(tmp_path / "out")],
    )
    assert shown.exit_code == 0
    with pytest.raises(InflateError, match="the checkpoint is of a network for volumes"):
        load_trained(tmp_path / "run" / LAST)


def test_a_stopped_run_goes_on_bit_for_bit(scans, tmp_path):
    data = read_volume_splits(scans, "mask", fold=0)
    recipe = replace(SMALL, save_steps=2, warmup_steps=2)

    class StoppedError(Exception):
        pass

    from lightning.pytorch.callbacks import Callback

    class StopAt(Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == 7:
                raise StoppedError

    whole = fit_volumes(recipe, data, tmp_path / "whole", options=QUIET)
    with pytest.raises(StoppedError):
        fit_volumes(recipe, data, tmp_path / "cut", options=replace(QUIET, callbacks=(StopAt(),)))
    assert read_training(tmp_path / "cut" / LAST)["global_step"] == 6
    resumed = fit_volumes(recipe, data, tmp_path / "cut", resume=True, options=QUIET)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    assert [row["val_dice"] for row in whole.history] == [row["val_dice"] for row in resumed.history]
    with pytest.raises(InflateError, match="the run in the folder is another one"):
        fit_volumes(replace(recipe, lr=0.5), data, tmp_path / "cut", resume=True, options=QUIET)


def test_folders_of_dicom_files_have_masks_of_their_name(tmp_path):
    for name in ("anna.1", "bert", "carl", "dora", "emil"):
        (tmp_path / "images" / name).mkdir(parents=True)
        (tmp_path / "images" / name / "0.dcm").write_bytes(bytes(128) + b"DICM")
        save(tmp_path / "labels" / f"{name}.nii.gz", np.ones((2, 2, 2), np.uint8))
    found = read_volume_splits(tmp_path, "mask", fold=0)
    masks = {scan.rpartition("/")[2]: mask.rpartition("/")[2] for scan, mask in found.masks.items()}
    assert masks == {name: f"{name}.nii.gz" for name in ("anna.1", "bert", "carl", "dora", "emil")}


def test_sizes_are_told_apart_by_the_command(medmnist, tmp_path):
    settings = ["network=timm/test_resnet", "epochs=6", "patch=16,16,16", "window=0,255", "lr=0.005", "batch_size=4"]
    arguments = ["train", "volume-classify", "--data", str(medmnist), "--out", str(tmp_path)]
    settings += ["label_smoothing=0", "head_lr=2", "first_stride=1", "freeze_norm=no"]
    run = CliRunner().invoke(app, [*arguments, *(part for one in settings for part in ("--set", one))])
    assert run.exit_code == 0, run.output + repr(run.exception)
    assert re.search(r"AUC +100", run.output), run.output
    assert json.loads((tmp_path / "evaluation.json").read_text())["count"] == 6
    assert (tmp_path / "report.html").stat().st_size > 1000
    assert load_inflated(tmp_path / MODEL).volume_spec.task == "classes"
    again = ["evaluate", str(tmp_path / MODEL), "--data", str(medmnist), "--split", "val", "--out", str(tmp_path / "a")]
    assert "AUC" in CliRunner().invoke(app, again).output
    assert json.loads((tmp_path / "a" / "evaluation.json").read_text())["scores"]["auc"]["value"] == 1.0


def test_options_for_videos_are_refused(scans):
    run = CliRunner().invoke(app, ["train", "volume-segment", "--data", str(scans), "--number", "2", "--root", "."])
    assert "there are options for another kind of recipe" in str(run.exception)
    assert "--root, --number" in str(run.exception)


@pytest.mark.parametrize("preset", ["video", "frames", "isotropic", "anisotropic"])
@pytest.mark.parametrize("profile", ["center", "random", "acs"])
def test_every_preset_makes_a_network(preset, profile):
    spec = VolumeSpec("mask", ("ground", "lump"), (4.0, 1.0, 1.0), (8, 16, 16))
    model = volume_network(replace(SMALL, preset=preset, profile=profile), spec)
    assert model(torch.zeros(1, 1, 8, 16, 16)).shape == (1, 2, 8, 16, 16)
    assert model.plan.looks_through_time == (preset != "frames")


def test_an_encoder_begins_with_weights_of_its_classifier(tmp_path):
    """For one channel the kernels are summed up; what does not fit is refused."""
    classifier = timm.create_model("test_resnet")
    path = tmp_path / "classifier.safetensors"
    save_file(classifier.state_dict(), path)
    net = flat_network(replace(SMALL, init=str(path)), 2)
    found, state = net.encoder.model.state_dict(), classifier.state_dict()
    for name, value in found.items():
        wanted = state[name].sum(1, keepdim=True) if name == "conv1.weight" else state[name]
        if not name.startswith("conv1.0"):
            torch.testing.assert_close(value, wanted if value.shape == wanted.shape else wanted.sum(1, keepdim=True))
    whole = flat_network(replace(SMALL, network="timm/test_resnet", task="classes", init=str(path), channels=3), 5)
    assert torch.equal(whole.state_dict()["layer1.0.conv1.weight"], state["layer1.0.conv1.weight"])
    with pytest.raises(InflateError, match="not those of the network, nor of its encoder"):
        start_from(timm.create_model("test_efficientnet"), path)


def test_recipes_for_volumes():
    recipe = find_recipe("volume-segment")
    assert with_settings(recipe, ["window=none", "mirror=hw", "spacing_mm=2,1,1"]).spacing_mm == (2.0, 1.0, 1.0)
    with pytest.raises(InflateError, match="a recipe does not work so: "):
        with_settings(recipe, ["mirror=x", "patch=1,2", "channels=2", "window=5,4", "overlap=1"])
    idle = (("volume-segment", "head_lr=2"), ("volume-classify", "overlap=0.7"), ("volume-classify", "seed=-1"))
    for name, setting in idle:
        with pytest.raises(InflateError, match=f"a recipe does not work so: {setting.partition('=')[0]}"):
            with_settings(find_recipe(name), [setting])
    assert with_settings(find_recipe("volume-classify"), ["head_lr=2"]).head_lr == 2
    with pytest.raises(InflateError, match="settings cannot be understood") as caught:
        with_settings(recipe, ["patch=a,b,c", "flip=yes"])
    assert "patch is numbers, parted by commas" in str(caught.value)


def test_the_area_is_averaged_over_classes_that_occur():
    """A validation without one of them can be answered without a mistake too."""
    area = OccurringAUROC(3)
    right = torch.tensor([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.7, 0.2, 0.1], [0.2, 0.7, 0.1]])
    area.update(right, torch.tensor([0, 1, 0, 1]))
    assert area.compute() == 1
    area.update(torch.tensor([[0.75, 0.05, 0.2]]), torch.tensor([1]))
    pairs = 5 / 6, 4 / 6  # of class 0 it is above one of two others; of class 1 it is below both of two
    assert area.compute() == pytest.approx(sum(pairs) / 2)
    area.reset()
    area.update(right[:1], torch.tensor([0]))
    assert area.compute().isnan()


def test_a_list_of_a_test_alone_is_nothing_to_learn_from(tmp_path):
    alone = Splits((), (), (Sample("scan.nii", (0,)),), ("well", "ill"), "mine.csv")
    with pytest.raises(InflateError, match="there is nothing to learn from"):
        fit_volumes(find_recipe("volume-classify"), VolumeSplits(alone, {}), tmp_path / "run")
