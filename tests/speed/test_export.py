"""Exported networks answer as their models do, at lengths and batches they were not traced with, or leave no file."""

import io
import json
import pickle
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from inflate3d import ClipSpec, PredictOptions, inflate, predict
from inflate3d.errors import InflateError, InflateWarning
from inflate3d.models.blocks import SameConv3d, SameMaxPool3d
from inflate3d.models.sources import find_2d_model
from inflate3d.speed import export, exported
from inflate3d.speed.export import export_model, export_to_cache
from inflate3d.speed.exported import KEY, SUFFIXES, ExportCard, load_exported
from inflate3d.speed.optimize import optimize

FORMATS = list(SUFFIXES)
TOLERANCE = 1e-4


class Small(nn.Module):
    """A classifier with a stride in time; `fault` makes it one that cannot be exported as it is."""

    clip_spec = ClipSpec(fps=25.0, num_frames=6, min_frames=2, short_side=20, crop=17, value_range=(0.0, 255.0))
    class_names = ("ein", "größer", 'quoted "three"')
    fault = ""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv3d(3, 5, 3, stride=(2, 1, 1), padding=1)
        self.last = nn.Linear(5, 3)

    def forward(self, clip):
        if self.fault == "frames":
            clip = clip * float(sum(range(int(clip.shape[2]))))  # the number of frames becomes a constant
        if self.fault == "values" and clip.mean() > 0:
            clip = -clip
        if self.fault == "compiling" and torch.compiler.is_compiling():
            clip = clip * 1.01
        return self.last(self.conv(clip).relu().mean((2, 3, 4)))


@pytest.fixture
def small():
    return Small().eval()


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    """A small network, exported in every format."""
    folder, model = tmp_path_factory.mktemp("exports"), Small().eval()
    for suffix in SUFFIXES.values():
        export_model(model, folder / f"small{suffix}")
    return folder, model


@pytest.fixture
def folder(exports, tmp_path):
    """A copy of these files."""
    return Path(shutil.copytree(exports[0], tmp_path / "exports"))


def clips(count, frames, side=17, *, high=255.0):
    return torch.rand(count, 3, frames, side, side, generator=torch.Generator().manual_seed(frames)) * high


def assert_same(path, model, *batches):
    found = load_exported(path, trust=True)
    for batch in batches:
        with torch.inference_mode():
            wanted = model(batch).double()
        assert (found(batch).double() - wanted).abs().max() <= TOLERANCE * wanted.abs().max()


@pytest.mark.parametrize("backend", FORMATS)
def test_every_format_answers_as_the_model(backend, small, tmp_path):
    path = tmp_path / f"small{SUFFIXES[backend]}"
    card = export_model(small, path, to=backend, name="small", weights={"license": "MIT"})
    assert_same(path, small, clips(1, 2), clips(3, 11), clips(2, 6))
    assert 0 <= card.difference <= TOLERANCE
    assert card.compared == ((1, 2), (2, 9), (1, 5))
    assert (card.backend, card.any_frames, card.min_frames, card.clip_spec) == (backend, True, 2, Small.clip_spec)
    found = load_exported(path, trust=True)
    assert found.card == card
    assert found.class_names == Small.class_names
    assert found.card.weights == {"license": "MIT"}
    assert {"inflate3d", "torch"} <= found.card.versions.keys()
    assert {file.name for file in tmp_path.iterdir()} == {path.name} | (
        {"small.bin"} if backend == "openvino" else set()
    )


@pytest.mark.parametrize("preset", ["video", "i3d"])
def test_an_inflated_network_keeps_batch_and_time_open(preset, tmp_path):
    convolutions = [nn.Conv2d(3, 5, 3, stride=2), nn.ReLU(), nn.Conv2d(5, 7, 3, stride=2, padding=1)]
    head = [nn.MaxPool2d(3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(7, 4)]
    model = inflate(nn.Sequential(*convolutions, *head).eval(), preset, example=torch.zeros(1, 3, 32, 32))
    card = export_model(model, tmp_path / "net.onnx", name="timm/test_resnet")
    assert card.shape == "[b, 3, t >= 1, 32, 32]"
    assert (card.clip_spec.value_range, len(card.mean), len(card.std)) == ((0.0, 1.0), 3, 3)
    mean, std = (torch.tensor(levels).view(1, 3, 1, 1, 1) for levels in (card.mean, card.std))
    for frames in (7, 8, 10):
        pixels = clips(2, frames, 32, high=1.0)
        with torch.inference_mode():
            wanted = model((pixels - mean) / std)
        torch.testing.assert_close(load_exported(tmp_path / "net.onnx")(pixels), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
def test_padding_that_depends_on_the_length(suffix, fast, tmp_path):
    """SAME pads 9, 10, 11 and 16 frames in four ways; an optimized network has layers of its own."""
    model = nn.Sequential(
        *(SameConv3d(3, 5, (7, 7, 7), stride=(2, 2, 2), bias=True), nn.BatchNorm3d(5), nn.ReLU()),
        *(SameMaxPool3d((3, 3, 3), stride=(2, 2, 2)), SameMaxPool3d((3, 3, 3), stride=(1, 1, 1))),
        *(SameMaxPool3d((2, 2, 2), stride=(2, 2, 2)), SameMaxPool3d((1, 3, 3), stride=(1, 2, 2))),
        *(SameConv3d(5, 7, (1, 1, 1), stride=(1, 1, 1), bias=True), nn.AdaptiveAvgPool3d(1), nn.Flatten()),
    ).eval()
    example = torch.zeros(1, 3, 9, 33, 33)
    path = tmp_path / f"net{suffix}"
    export_model(optimize(model, example=example) if fast else model, path, example=example)
    assert_same(path, model, *(clips(1, frames, 33, high=1.0) for frames in (9, 10, 11, 16)))


@pytest.mark.parametrize(
    ("name", "preset", "suffix"),
    [
        ("timm/resnet50", "i3d", ".xml"),
        ("timm/convnext_tiny", "video", ".onnx"),
        ("timm/efficientnet_b0", "i3d", ".onnx"),
    ],
)
def test_networks_of_others_keep_batch_and_time_open(name, preset, suffix, tmp_path):
    model = inflate(find_2d_model(name), preset, example=torch.zeros(1, 3, 64, 64))
    card = export_model(model, tmp_path / f"net{suffix}", name=name)
    assert (card.any_frames, card.min_frames) == (True, 1)
    assert card.difference <= TOLERANCE
    assert {clips for clips, _ in card.compared} == {1, 2}


@pytest.mark.weights
def test_i3d_with_its_weights(kinetics_i3d, tmp_path):
    card = export_model(kinetics_i3d, tmp_path / "i3d.xml", example=torch.zeros(1, 3, 9, 193, 193))
    assert (card.any_frames, card.min_frames, len(card.class_names)) == (True, 9, 400)
    assert_same(tmp_path / "i3d.xml", kinetics_i3d, clips(1, 11, 193, high=1.0))


def test_a_fixed_number_of_frames_is_said(tmp_path, small):
    small.fault = "frames"
    with pytest.warns(InflateWarning, match="takes clips of 6 frames and no others"):
        card = export_model(small, tmp_path / "small.onnx")
    assert (card.any_frames, card.shape) == (False, "[b, 3, 6, 17, 17]")
    assert_same(tmp_path / "small.onnx", small, clips(1, 6), clips(3, 6))
    with pytest.raises(InflateError, match="does not answer this"):
        load_exported(tmp_path / "small.onnx")(clips(1, 7))


@pytest.mark.parametrize(
    ("fault", "message"),
    [("compiling", "answers otherwise than the model"), ("values", "the model cannot be exported")],
)
@pytest.mark.parametrize("backend", FORMATS)
def test_what_fails_leaves_what_was_there(backend, fault, message, small, tmp_path):
    path = tmp_path / f"small{SUFFIXES[backend]}"
    path.write_text("before")
    small.fault = fault
    with pytest.raises(InflateError, match=message):
        export_model(small, path)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_large_onnx_networks_have_their_weights_beside_them(small, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "LARGEST_FILE", 100)
    path, beside = tmp_path / "small.onnx", tmp_path / "small.onnx.data"
    export_model(small, path)
    if not beside.exists():
        pytest.fail("the weights are inside")
    assert_same(path, small, clips(3, 11))
    content = bytearray(beside.read_bytes())
    content[-1] ^= 1
    beside.write_bytes(content)
    with pytest.raises(InflateError, match="damaged or somebody else's"):
        load_exported(path)
    beside.unlink()
    with pytest.raises(InflateError, match="damaged or somebody else's"):
        load_exported(path)


def test_several_outputs_come_in_order(tmp_path):
    class Two(nn.Module):
        def forward(self, clip):
            return {"a": clip.mean((3, 4)), "b": [clip.amax((1, 3, 4))]}

    export_model(Two().eval(), tmp_path / "two.onnx", example=torch.zeros(1, 3, 2, 5, 7))
    batch = torch.rand(2, 3, 4, 5, 7)
    a, b = load_exported(tmp_path / "two.onnx")(batch)
    torch.testing.assert_close(a, batch.mean((3, 4)))
    torch.testing.assert_close(b, batch.amax((1, 3, 4)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda model: model.train(), "a model in eval mode"),
        (lambda model: model.half(), "values in float32"),
        (lambda model: optimize(model, "bf16"), 'a model optimized for "fp32"'),
        (lambda model: nn.Sequential(nn.Conv3d(3, 5, 1)).eval(), "no example, no clip_spec, no plan"),
        (lambda model: model.to("meta"), "a model on the CPU"),
    ],
)
def test_models_of_another_kind_are_refused(change, message, small, tmp_path):
    with pytest.raises(InflateError, match=r"this model cannot be exported") as refused:
        export_model(change(small), tmp_path / "small.onnx")
    assert message in str(refused.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "to"), [("small.pt", None), ("small.onnx", "openvino"), ("small", "onnx")])
def test_endings_that_name_no_format(name, to, small, tmp_path):
    with pytest.raises(InflateError, match="the ending of the file is none of this format"):
        export_model(small, tmp_path / name, to=to)


def test_formats_that_nobody_knows(small, tmp_path):
    with pytest.raises(InflateError, match="there is no such format to export to"):
        export_model(small, tmp_path / "small.onnx", to="onxx")


@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
@pytest.mark.parametrize("how", ["empty", "text", "cut", "flipped"])
def test_damaged_files_are_refused(suffix, how, exports, folder):
    path, small = folder / f"small{suffix}", exports[1]
    broken = path if suffix == ".onnx" or how != "flipped" else path.with_suffix(".bin")
    content = bytearray(broken.read_bytes())
    place = content.find(small.last.bias.detach().numpy().tobytes())
    if how == "flipped":
        content[place] ^= 1
    broken.write_bytes(
        {"empty": b"", "text": b"no network\n" * 99, "cut": bytes(content[: len(content) // 2])}.get(how, content)
    )
    with pytest.raises(InflateError, match="damaged or somebody else's"):
        load_exported(path)


def test_openvino_needs_its_weights(folder):
    (folder / "small.bin").unlink()
    with pytest.raises(InflateError, match="damaged or somebody else's"):
        load_exported(folder / "small.xml")


def test_onnx_files_take_weights_from_nowhere_else(small, tmp_path, monkeypatch):
    import onnx

    monkeypatch.setattr(export, "LARGEST_FILE", 100)
    export_model(small, tmp_path / "small.onnx")
    model = onnx.load(tmp_path / "small.onnx", load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = "../secret"
    (tmp_path / "small.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(InflateError, match=r"it takes weights from .*\.\./secret"):
        load_exported(tmp_path / "small.onnx")


def test_a_torch_archive_runs_no_code_unless_it_is_trusted(folder):
    class Evil:
        def __reduce__(self):
            return (folder / "ran").write_text, ("code",)

    path = folder / "small.pt2"
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    sample = next(name for name in members if "sample_inputs" in name)
    evil = io.BytesIO()
    torch.save(Evil(), evil)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, evil.getvalue() if name == sample else data)
    with pytest.raises(InflateError, match="can run code of whoever wrote it"):
        load_exported(path)
    assert not (folder / "ran").exists()


def test_other_files_are_no_exports(tmp_path):
    for name in ("gone.onnx", "small.safetensors"):
        with pytest.raises(InflateError, match="this is no exported network"):
            load_exported(tmp_path / name)


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"min_frames": 0},
        {"input_shape": [3, 17, 10**9]},
        {"std": [1.0], "mean": [0.0]},
        {"backend": "tensorrt"},
        {"class_names": [1]},
        {"clip_spec": {}},
        {"surplus": 1},
    ],
)
def test_cards_that_are_none(change, small):
    card = ExportCard("small", "onnx", (3, 17, 17), 2, clip_spec=Small.clip_spec)
    assert ExportCard.from_json(card.to_json(), where="here") == card
    with pytest.raises(InflateError, match="what the file says about its network cannot be read"):
        ExportCard.from_json(json.dumps({**json.loads(card.to_json()), **change}), where="here")


def test_predict_takes_an_exported_network(exports, folder):
    small = exports[1]
    frames = np.random.default_rng(0).integers(0, 256, (15, 20, 30, 3), np.uint8)
    options = PredictOptions(window=6, crops="three")
    wanted, found = predict(small, frames, options), predict(load_exported(folder / "small.onnx"), frames, options)
    torch.testing.assert_close(found.logits, wanted.logits, rtol=1e-4, atol=1e-4)
    assert found.top(1)[0].label == wanted.top(1)[0].label
    with pytest.raises(InflateError, match="this model cannot be optimized so"):
        predict(load_exported(folder / "small.onnx"), frames, PredictOptions(precision="bf16"))


def test_an_exported_network_has_one_method_and_one_size(folder):
    model = load_exported(folder / "small.onnx")
    with pytest.raises(InflateError, match=r"does not answer this(.|\n)*got: +endpoints"):
        model.endpoints(clips(1, 6), ["Logits"])
    for clip in (clips(1, 1), clips(1, 6, 19), clips(1, 6)[0]):
        with pytest.raises(InflateError, match=r"forward of \[b, 3, t >= 2, 17, 17\]"):
            model(clip)


def test_an_export_that_fails_while_it_runs_says_so(folder):
    model = load_exported(folder / "small.onnx")

    def fails(clip):
        raise RuntimeError("out of memory")

    model.answer = fails
    with pytest.raises(InflateError, match=r"the exported network failed(.|\n)*RuntimeError: out of memory"):
        model(clips(1, 6))


def test_the_cache_holds_one_export_for_each_file_of_weights(small, tmp_path, monkeypatch):
    monkeypatch.setenv("INFLATE3D_CACHE", str(tmp_path / "cache"))
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(b"one")
    made = []

    def load():
        made.append(1)
        return small

    def run():
        return export_to_cache(weights, "small", backend="onnx", load=load)(clips(1, 6))

    first = run()
    assert torch.equal(run(), first)
    assert len(made) == 1
    weights.write_bytes(b"two")
    run()
    assert len(made) == 2
    for file in (tmp_path / "cache" / "exports").iterdir():
        file.write_bytes(b"damaged")
    assert torch.equal(run(), first)
    assert len(made) == 3


@pytest.mark.parametrize("backend", ["onnx", "openvino"])
def test_missing_packages_are_named(backend, small, tmp_path, monkeypatch):
    def missing(name, *_, **__):
        raise ImportError(name)

    monkeypatch.setattr("inflate3d.errors.import_module", missing)
    with pytest.raises(InflateError, match=r'pip install "inflate3d\[export\]"'):
        export_model(small, tmp_path / f"small{SUFFIXES[backend]}")
    assert not list(tmp_path.iterdir())


def test_the_key_is_the_same_for_ever():
    """Files that were written before go on being read."""
    assert (KEY, exported.VERSION) == ("inflate3d-export", 1)
    assert pickle.loads(pickle.dumps(ExportCard("a", "onnx", (3, 5, 7), 1))).shape == "[b, 3, t >= 1, 5, 7]"
