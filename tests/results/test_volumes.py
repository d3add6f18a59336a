"""Scans through networks: where masks lie, what windows do to them, what is refused, and the command."""

import json
import re
from dataclasses import replace

import nibabel
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from typer.testing import CliRunner

from inflate3d import InflateError, inflate
from inflate3d.cli import app
from inflate3d.clips.dataset import Sample
from inflate3d.clips.volume import Grid, Volume, resample_to
from inflate3d.clips.volume_files import read_volume
from inflate3d.clips.volume_spec import VolumeSpec, scale
from inflate3d.inflation.channels import with_input_channels
from inflate3d.models.sources import find_2d_model
from inflate3d.results.prediction import Failure
from inflate3d.results.volume_scores import auc, dice_of, mean_interval, score_masks
from inflate3d.results.volumes import (
    VolumeOptions,
    class_probabilities,
    facts_of,
    predict_volume,
    predict_volumes,
    window_starts,
)
from inflate3d.show.volumes import overlay
from inflate3d.weights.inflated_file import InflatedCard, inflated_card, load_inflated, save_inflated

NAMES = ("ground", "bright", "brighter")
SPEC = VolumeSpec("mask", NAMES, (2.0, 1.0, 1.0), (8, 16, 16), window=(0.0, 200.0))
TURNS = {
    "straight": np.diag([1.0, 0.8, 3.0, 1.0]),
    "mirrored": np.diag([-1.0, 0.8, -3.0, 1.0]),
    "axes in another order": np.diag([3.0, 1.0, 0.8, 1.0])[:, [2, 0, 1, 3]],
    "oblique": np.array([[0.9, 0.3, 0, 5], [-0.3, 0.9, 0, -7], [0, 0, 2.5, 11], [0, 0, 0, 1.0]]),
}


class Thresholds(nn.Module):
    """Tells voxels apart by their values alone: 0.25 and 0.75 of the window part them."""

    def __init__(self, spec=SPEC):
        super().__init__()
        self.volume_spec = spec

    def forward(self, x):
        return torch.cat([0.25 - x, 0.25 - (x - 0.5).abs(), x - 0.75], 1) * 200


class Blurring(nn.Module):
    """Sees 5 voxels each way, and nothing outside of its window."""

    def __init__(self, spec=SPEC):
        super().__init__()
        self.volume_spec = spec

    def forward(self, x):
        x = F.avg_pool3d(x, 5, 1, 2, count_include_pad=False)
        return torch.cat([0.25 - x, 0.25 - (x - 0.5).abs(), x - 0.75], 1) * 20


def lumps(shape=(31, 37, 13)):
    """Two lumps on the ground, with edges as soft as those of a scan."""
    places = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1).astype(np.float64)
    found = np.zeros(shape)
    for center, radius, value in (((10, 12, 5), 6.0, 100.0), ((21, 26, 8), 5.0, 200.0)):
        away = np.sqrt((((places - center) / (1, 1, 0.5)) ** 2).sum(-1))
        found = np.maximum(found, value * np.clip(radius + 0.5 - away, 0, 1))
    return found.astype(np.int16)


def save(path, voxels, affine):
    nibabel.save(nibabel.Nifti1Image(voxels, affine), path)
    return path


@pytest.mark.parametrize("turn", TURNS)
def test_a_mask_lies_on_the_voxels_of_the_file(tmp_path, turn):
    """Whatever the axes are: at each voxel the answer to its own value, but where resampling smooths an edge."""
    voxels = lumps()
    path = save(tmp_path / "scan.nii.gz", voxels, TURNS[turn])
    answer = predict_volume(Thresholds(replace(SPEC, spacing_mm=(1.0, 0.5, 0.5))), path)
    mask = answer.mask.data[0].numpy()
    wanted = np.digitize(voxels, [50, 150])
    assert mask.shape == voxels.shape and mask.dtype == np.uint8
    np.testing.assert_allclose(answer.mask.grid.affine, TURNS[turn], atol=1e-5)
    assert min(dice_of(torch.from_numpy(mask), torch.from_numpy(wanted), 3)) > 0.85
    for part in (1, 2):
        centers = [np.argwhere(one >= part).mean(0) for one in (mask, wanted)]  # edges of 2 look like 1
        assert np.abs(centers[0] - centers[1]).max() < 0.3
    voxel_ml = abs(np.linalg.det(TURNS[turn][:3, :3])) / 1000
    assert answer.volumes_ml() == pytest.approx(
        {name: (mask == part).sum() * voxel_ml for part, name in ((1, "bright"), (2, "brighter"))}
    )


@pytest.mark.parametrize("depth", [5, 13, 30])
def test_slabs_give_what_monai_gives_in_one_piece(depth):
    from monai.inferers import sliding_window_inference

    data = torch.rand(1, depth, 23, 41, generator=torch.Generator().manual_seed(3))
    model = Blurring()
    found = class_probabilities(model, Volume(data, Grid((depth, 23, 41), np.eye(4))), VolumeOptions(0.5))
    wanted = sliding_window_inference(data[None], SPEC.patch, 1, model, overlap=0.5, mode="gaussian")[0].softmax(0)
    assert found.shape == wanted.shape and found.dtype == torch.float16
    assert (found.float() - wanted).abs().max() < 0.01


def test_windows_do_not_show_but_for_what_they_cannot_see():
    """Without context every grid of windows gives the same; with it, what differs is what blending leaves of edges."""
    data = F.avg_pool3d(torch.rand(1, 1, 29, 47, 43, generator=torch.Generator().manual_seed(5)), 7, 1, 3)[0]
    shown = Volume((data - data.min()) / (data.max() - data.min()), Grid((29, 47, 43), np.eye(4)))
    exact = [class_probabilities(Thresholds(), shown, VolumeOptions(overlap)).float() for overlap in (0.0, 0.3, 0.75)]
    torch.testing.assert_close(exact[0], exact[1], atol=2e-3, rtol=0)
    torch.testing.assert_close(exact[0], exact[2], atol=2e-3, rtol=0)
    whole = Blurring()(shown.data[None])[0].softmax(0)
    off = [
        float((class_probabilities(Blurring(), shown, VolumeOptions(overlap)).float() - whole).abs().mean())
        for overlap in (0.0, 0.5, 0.75)
    ]
    assert off[1] < off[0]
    assert max(off) < 0.003


def test_windows_cover_every_voxel():
    for size in (1, 7, 8, 9, 64, 65):
        for overlap in (0.0, 0.5, 0.9):
            starts = window_starts(size, 8, overlap)
            seen = {voxel for start in starts for voxel in range(start, start + 8)}
            assert seen >= set(range(size)) and starts[-1] == max(size - 8, 0)


def test_a_classifier_sees_each_part_of_a_scan_alike():
    class Mean(nn.Module):
        volume_spec = VolumeSpec("classes", ("dark", "bright"), (1.0, 1.0, 1.0), (4, 4, 4), window=(0.0, 1.0))

        def forward(self, x):
            return torch.stack([-x.mean((1, 2, 3, 4)), x.mean((1, 2, 3, 4))], 1)

    data = torch.rand(1, 8, 12, 4)
    answer = predict_volume(Mean(), Volume(data, Grid((8, 12, 4), np.eye(4))), VolumeOptions(batch_size=4))
    assert answer.logits[1] == pytest.approx(float(data.mean()), abs=1e-6)
    assert answer.top(1)[0].label == "bright" and answer.mask is None and answer.volumes_ml() == {}
    assert set(facts_of(answer)["probabilities"]) == {"dark", "bright"}
    small = predict_volume(Mean(), Volume(torch.ones(1, 2, 4, 4), Grid((2, 4, 4), np.eye(4))))
    assert small.logits[1] == pytest.approx(0.5)  # half of the window is empty


def test_channels_are_normalized_as_in_training():
    seen = []

    class Sees(Thresholds):
        def forward(self, x):
            seen.append(x)
            return super().forward(x[:, :1])

    spec = replace(SPEC, mean=(0.5, 0.0, 0.25), std=(0.5, 1.0, 0.25))
    predict_volume(Sees(spec), Volume(torch.full((1, 8, 16, 16), 100), Grid((8, 16, 16), np.diag([2.0, 1, 1, 1]))))
    assert [float(seen[0][0, channel].mean()) for channel in range(3)] == pytest.approx([0.0, 0.5, 1.0])


def test_answers_that_are_none_are_refused():
    scan = Volume(torch.zeros(1, 8, 16, 16), Grid((8, 16, 16), np.eye(4)))

    def network(answer):
        model = Thresholds()
        model.forward = answer
        return model

    with pytest.raises(InflateError, match="the network is not one for volumes"):
        predict_volume(nn.Identity(), scan)
    with pytest.raises(InflateError, match="does not answer as it should"):
        predict_volume(network(lambda x: x), scan)
    with pytest.raises(InflateError, match="answer is not a number"):
        predict_volume(network(lambda x: x.expand(-1, 3, -1, -1, -1) / 0), scan)
    with pytest.raises(InflateError, match="does not return logits"):
        predict_volume(network(lambda x: [x]), scan)
    with pytest.raises(InflateError, match="an option is out of range: overlap, batch_size"):
        VolumeOptions(1.0, 0)
    with pytest.raises(InflateError, match="cannot be fed so: task, patch, std"):
        VolumeSpec("boxes", NAMES, (1, 1, 1), (8, 16), std=(0.0,))


def test_one_scan_that_fails_does_not_cost_the_others(tmp_path):
    good = save(tmp_path / "good.nii", lumps(), TURNS["straight"])
    voxels = lumps().astype(np.float32)
    voxels[3, 4, 5] = np.nan
    bad = save(tmp_path / "bad.nii", voxels, TURNS["straight"])
    found = list(predict_volumes(Thresholds(), [bad, tmp_path / "none.nii", good]))
    assert [type(one) is Failure for one in found] == [True, True, False]
    assert "no number" in found[0].reason
    assert isinstance(next(predict_volumes(Thresholds(), [bad], VolumeOptions(fill=0.0))).mask, Volume)


def test_scores_of_masks():
    model, shape = Thresholds(replace(SPEC, spacing_mm=(1.0, 1.0, 1.0))), (9, 17, 19)
    scan = Volume(torch.zeros(1, *shape), Grid(shape, np.eye(4)))
    scan.data[:, 2:6, 3:9, 4:10] = 100
    truth = replace(scan, data=(scan.data > 50).to(torch.uint8))
    half = replace(truth, data=truth.data.clone())
    half.data[:, 2:4] = 0
    more = replace(truth, data=truth.data * 7)
    masks = {"a": truth, "b": half, "d": more}
    found = score_masks(
        model,
        [Sample(name, ()) for name in "abcd"],
        lambda name: (scan, masks[name]) if name in masks else read_volume(name),
    )
    assert found.dice[:, 0].tolist() == pytest.approx([1.0, 2 / 3]) and np.isnan(found.dice[:, 1]).all()
    scores = found.scores()
    assert scores["bright"].value == scores["mean"].value == pytest.approx(5 / 6)
    assert scores["bright"].low < 5 / 6 < scores["bright"].high
    told = json.loads(found.to_json())
    assert told["dice"]["a"] == [1.0, None] and [one["source"] for one in told["failures"]] == ["c", "d"]
    assert "name all parts with --labels" in told["failures"][1]["reason"]
    with pytest.raises(InflateError, match="nothing to compare masks with"):
        score_masks(model, [Sample("c", ())], lambda name: (read_volume(name), truth))
    values = np.random.default_rng(0).random(200)
    interval = mean_interval(values)
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * values.std() / np.sqrt(200), rel=0.1)


def test_the_area_under_the_curve_is_torchmetrics():
    from torchmetrics.functional.classification import binary_auroc

    from inflate3d.results.answering import Answers

    generator = torch.Generator().manual_seed(1)
    labels = (torch.rand(70, generator=generator) < 0.3).long()
    logits = torch.randn(70, 2, generator=generator).mul(2).round() / 2 + labels[:, None] * torch.tensor([0.0, 0.7])
    answers = Answers(tuple(Sample(f"{n}", (int(label),)) for n, label in enumerate(labels)), logits, ("a", "b"))
    wanted = float(binary_auroc(logits[:, 1] - logits[:, 0], labels))
    found = auc(answers)
    assert found.value == pytest.approx(wanted, abs=1e-6)
    assert found.low < found.value < found.high
    with pytest.raises(InflateError, match="two classes"):
        auc(replace(answers, samples=tuple(Sample("x", (1,)) for _ in labels)))


def test_the_picture_shows_the_mask_where_it_is(tmp_path):
    answer = predict_volume(Thresholds(), save(tmp_path / "scan.nii", lumps(), TURNS["straight"]))
    red, _, blue = overlay(answer).float().unbind(-1)
    for more in (blue - red, red - blue):  # the palette's first two colors: blue and vermilion
        assert 0.002 < float((more > 60).float().mean()) < 0.3
    empty = replace(answer, mask=replace(answer.mask, data=torch.zeros_like(answer.mask.data)))
    grey = overlay(empty)
    assert torch.equal(grey[..., 0], grey[..., 2])


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    """A random network for masks, in a file."""
    torch.manual_seed(0)
    options = {"classes": 3, "encoder_depth": 3, "decoder_channels": [16, 8, 8], "first_stride": 1}
    net = with_input_channels(find_2d_model("smp/Unet-tu-test_resnet", **options), 1, example=torch.zeros(1, 3, 16, 16))
    model = inflate(net, "isotropic", profile="center", example=torch.zeros(1, 1, 16, 16))
    model.volume_spec = SPEC
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    save_inflated(model, path, "smp/Unet-tu-test_resnet", options=options, class_names=NAMES)
    return path


def test_the_file_says_what_the_network_wants(model_file):
    card = inflated_card(model_file)
    assert card.volume == SPEC
    assert load_inflated(model_file).volume_spec == SPEC
    for old, new in (('"patch": [8, 16, 16]', '"patch": [8, 16]'), ('"window"', '"widow"')):
        text = card.to_json()
        assert old in text
        with pytest.raises(InflateError, match="cannot be read"):
            InflatedCard.from_json(text.replace(old, new), where="theirs")


def test_the_command_writes_masks_pictures_and_json(tmp_path, model_file):
    (tmp_path / "scans" / "deep").mkdir(parents=True)
    voxels = lumps()
    save(tmp_path / "scans" / "a.nii.gz", voxels, TURNS["oblique"])
    save(tmp_path / "scans" / "deep" / "a.nii", voxels, TURNS["mirrored"])
    (tmp_path / "scans" / "broken.nii").write_bytes(b"no scan")
    out = tmp_path / "out"
    arguments = ["predict", str(tmp_path / "scans"), "--model", str(model_file), "-o", str(out)]
    run = CliRunner().invoke(app, arguments)
    assert run.exit_code == 1, run.output
    assert sorted(path.name for path in out.iterdir()) == [
        "a-2_mask.nii.gz",
        "a-2_mask.png",
        "a_mask.nii.gz",
        "a_mask.png",
        "results.json",
    ]
    for name, turn in (("a", "oblique"), ("a-2", "mirrored")):
        mask = nibabel.load(out / f"{name}_mask.nii.gz")
        assert mask.shape == voxels.shape and mask.get_data_dtype() == np.uint8
        np.testing.assert_allclose(mask.affine, TURNS[turn], atol=1e-5)
    told = json.loads((out / "results.json").read_text())
    assert [one["mask"] for one in told["volumes"]] == ["a_mask.nii.gz", "a-2_mask.nii.gz"]
    assert len(told["volumes"]) == 2 and len(told["failures"]) == 1
    assert set(told["volumes"][0]["volumes_ml"]) == {"bright", "brighter"}
    wanted = predict_volume(load_inflated(model_file), tmp_path / "scans" / "a.nii.gz")
    assert told["volumes"][0]["volumes_ml"] == pytest.approx(wanted.volumes_ml())


def test_masks_are_named_as_scans_are(tmp_path, model_file, monkeypatch):
    """Links by their own names, folders behind dots by theirs; the results name each mask."""
    save(tmp_path / "0.nii", lumps(), TURNS["straight"]).rename(tmp_path / "3fa9")
    (tmp_path / "case_01.nii").symlink_to("3fa9")
    (tmp_path / "case_02" / "empty").mkdir(parents=True)
    for number in range(4):
        Image.fromarray(np.full((20, 24), 60 * number, np.uint8)).save(tmp_path / "case_02" / f"{number}.png")
    monkeypatch.chdir(tmp_path / "case_02")
    sources = ["../case_01.nii", ".", "../case_02", "empty/.."]
    arguments = ["--model", str(model_file), "-o", "../out", "--spacing", "2,1,1", "--json", "../told.json"]
    run = CliRunner().invoke(app, ["predict", *sources, *arguments])
    assert run.exit_code == 0, run.output
    told = json.loads((tmp_path / "told.json").read_text())["volumes"]
    wanted = ["case_01", "case_02", "case_02-2", "case_02-3"]
    assert {one["source"]: one["mask"] for one in told} == {
        source: f"{name}_mask.nii.gz" for source, name in zip(sources, wanted, strict=True)
    }
    assert {path.name for path in (tmp_path / "out").glob("*.nii.gz")} == {one["mask"] for one in told}


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--fps", "5"], "options for another kind of network"),
        (["--spacing", "a,b"], "the spacing cannot be understood"),
        (["--overlap", "1"], "an option is out of range: overlap"),
    ],
)
def test_the_command_refuses_what_makes_no_sense(tmp_path, model_file, arguments, problem):
    scan = save(tmp_path / "a.nii", lumps(), TURNS["straight"])
    run = CliRunner().invoke(app, ["predict", str(scan), "--model", str(model_file), *arguments])
    assert isinstance(run.exception, InflateError) and re.search(problem, str(run.exception))
    run = CliRunner().invoke(app, ["predict", str(scan), "--overlap", "0.3"])
    assert "options for another kind of network" in str(run.exception)


def test_scaling_keeps_the_ground_at_zero():
    data = torch.zeros(1, 6, 10, 12)
    data[:, 2:4, 3:7, 3:9] = torch.rand(1, 2, 4, 6) * 1000 + 300
    scan = Volume(data, Grid((6, 10, 12), np.diag([4.0, 1, 1, 1])))
    found = scale(scan, replace(SPEC, window=None))
    assert found.grid.spacing_mm == pytest.approx(SPEC.spacing_mm)
    assert float(found.data.min()) == 0 and 0.9 < float(found.data.max()) <= 1
    assert resample_to(found, scan.grid).data.shape == scan.data.shape
