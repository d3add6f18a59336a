"""`load` fills a network strictly, and says what is wrong with a file that does not fit."""

import dataclasses

import pytest
import torch
import torchvision
from safetensors.torch import save_file

from inflate3d import ClipSpec, InceptionI3d, InflateError, InflateWarning, load
from inflate3d.weights.catalogue import Card
from inflate3d.weights.checkpoint import CARD_KEY, read_checkpoint, save_weights
from inflate3d.weights.load import load_checkpoint

SPEC = ClipSpec(fps=12.5, num_frames=32, min_frames=9, short_side=300, crop=200, value_range=(-1.0, 1.0))
ABOUT = ("license", "repackaged_under", "source", "source_sha256", "reported_accuracy", "accuracy_protocol")
CARD = Card("tiny", "i3d", 5, None, 2, SPEC, **dict.fromkeys(ABOUT, "none"), inflate3d_version="0")
BIAS = "Logits.Conv3d_0c_1x1.conv_3d.bias"


@pytest.fixture(scope="module")
def state():
    return InceptionI3d(5, 2).state_dict()


def test_weights_come_back_into_a_network_in_eval_mode(tmp_path, state):
    save_weights(state, CARD, tmp_path / "tiny.safetensors")
    for spelled in (tmp_path / "tiny.safetensors", str(tmp_path / "tiny.safetensors")):
        model = load(spelled)
        assert not any(module.training for module in model.modules())
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
        assert (model.num_classes, model.in_channels, model.class_names) == (5, 2, None)
        assert model.clip_spec == SPEC


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({BIAS: None}, rf"all tensors of i3d(.|\n)*1 missing:\n +{BIAS}"),
        ({"extra": torch.zeros(1)}, r"1 unexpected:\n +extra: \[1\] float32"),
        ({BIAS: torch.zeros(6)}, rf"another shape or type:\n +{BIAS}: \[6\] float32, wanted \[5\] float32"),
        ({BIAS: torch.zeros(5).half()}, rf"another shape or type:\n +{BIAS}: \[5\] float16, wanted \[5\] float32"),
        ({BIAS: torch.zeros(5).double()}, rf"another shape or type:\n +{BIAS}: \[5\] float64"),
        ({"Conv3d_1a_7x7.batch_norm.num_batches_tracked": None}, r"1 missing:"),
    ],
)
def test_weights_that_do_not_fit_are_refused(tmp_path, state, change, message):
    changed = {name: value for name, value in (state | change).items() if value is not None}
    save_weights(changed, CARD, tmp_path / "tiny.safetensors")
    with pytest.raises(InflateError, match=message):
        load(tmp_path / "tiny.safetensors")


def test_another_number_of_classes_gets_a_new_last_layer(tmp_path, state):
    save_weights(state, CARD, tmp_path / "tiny.safetensors")
    with pytest.warns(InflateWarning, match=r"a classifier for 7 classes(.|\n)*the file has 5 classes") as told:
        model = load(tmp_path / "tiny.safetensors", num_classes=7)
    assert [warning.filename for warning in told] == [__file__]
    assert (model.num_classes, model.clip_spec) == (7, SPEC)
    same = [name for name, value in model.state_dict().items() if value.shape == state[name].shape]
    assert len(same) == len(state) - 2
    assert all(torch.equal(model.state_dict()[name], state[name]) for name in same)


def test_batch_norm_as_others_have_it(tmp_path, state):
    save_weights(state, CARD, tmp_path / "tiny.safetensors")
    model = load(tmp_path / "tiny.safetensors", compat="video-features")
    assert model.get_submodule("Mixed_3b.Branch_0.Conv3d_0a_1x1.batch_norm").eps == 1e-5
    assert model.clip_spec == dataclasses.replace(SPEC, min_frames=10)
    card = dataclasses.replace(CARD, architecture="c3d")
    save_weights(state, card, tmp_path / "tiny.safetensors")
    with pytest.raises(InflateError, match="only I3D is made as other projects have it"):
        load(tmp_path / "tiny.safetensors", compat="tats")


def test_many_faults_are_counted(tmp_path):
    save_weights({"extra": torch.zeros(1)}, CARD, tmp_path / "tiny.safetensors")
    with pytest.raises(InflateError, match=r"344 missing:(.|\n)*and 336 more(.|\n)*1 unexpected"):
        load(tmp_path / "tiny.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "i4d"}, r"a network that this version does not have(.|\n)*i3d(.|\n)*i4d"),
        ({"label_set": "kinetics-40"}, r"no such label set(.|\n)*did you mean kinetics-400"),
        ({"label_set": "kinetics-400"}, r"the card in the file cannot be read(.|\n)*has 400 classes, not 5"),
        ({"num_classes": 0}, r"the card in the file cannot be read(.|\n)*num_classes is 0, not in 1"),
        ({"num_classes": 100_001}, r"the card in the file cannot be read(.|\n)*num_classes is 100001"),
        ({"in_channels": 1001}, r"the card in the file cannot be read(.|\n)*in_channels is 1001"),
        ({"in_channels": True}, r"the card in the file cannot be read(.|\n)*in_channels is True"),
    ],
)
def test_cards_that_cannot_be_are_refused(tmp_path, change, message):
    card = dataclasses.replace(CARD, **change)
    save_file({"a": torch.zeros(1)}, tmp_path / "tiny.safetensors", metadata={CARD_KEY: card.to_json()})
    with pytest.raises(InflateError, match=message):
        load(tmp_path / "tiny.safetensors")


@pytest.mark.parametrize("classes", [0, -3])
def test_no_classes_are_refused(tmp_path, state, classes):
    save_weights(state, CARD, tmp_path / "tiny.safetensors")
    torch.save(state, tmp_path / "tiny.pt")
    torch.save(torchvision.models.googlenet(init_weights=False).state_dict(), tmp_path / "googlenet.pt")
    for name in ("tiny.safetensors", "tiny.pt", "googlenet.pt"):
        with pytest.raises(InflateError, match=rf"there is no such network(.|\n)*num_classes={classes}"):
            load(tmp_path / name, num_classes=classes)


def test_a_warning_points_at_the_line_that_loads(tmp_path, state):
    torch.save(state, tmp_path / "tiny.pt")
    for call in (lambda: load(tmp_path / "tiny.pt", num_classes=7), fill_another(tmp_path / "tiny.pt")):
        with pytest.warns(InflateWarning, match="a classifier for 7 classes") as told:
            call()
        assert [warning.filename for warning in told] == [__file__]


def fill_another(path):
    model = InceptionI3d(7, 2)
    return lambda: load_checkpoint(model, path)


def test_a_path_to_nothing_is_told_as_a_path(tmp_path):
    (tmp_path / "tiny.safetensors").write_bytes(b"")
    for call in (load, read_checkpoint):
        with pytest.raises(InflateError, match=r"no such file(.|\n)*did you mean tiny.safetensors"):
            call(tmp_path / "tony.safetensors")
    with pytest.raises(InflateError, match=r"no such file(.|\n)*the folder"):
        load("nope.pt")


def test_a_name_that_nobody_knows():
    with pytest.raises(InflateError, match=r"neither a network nor a file(.|\n)*did you mean i3d-kinetics400"):
        load("i3d-kinetic")
