"""Folders of the hub: what is saved comes back to the last bit, and a hostile folder changes nothing."""

import json
import shutil
from dataclasses import replace

import huggingface_hub
import pytest
import torch
import yaml

from inflate3d import InflateError, inflate, load
from inflate3d.models.inception import I3D_CLIP, InceptionI3d
from inflate3d.models.inflated import inflated_classifier
from inflate3d.models.sources import find_2d_model
from inflate3d.weights.catalogue import CATALOGUE, Card
from inflate3d.weights.checkpoint import CARD_KEY, metadata_in, read_weights, save_weights, write_safetensors
from inflate3d.weights.hub import (
    CLASSES_KEY,
    MODEL_FILE,
    card_for,
    from_pretrained,
    pretrained_card,
    push_to_hub,
    save_pretrained,
)
from inflate3d.weights.inflated_file import InflatedCard
from inflate3d.weights.model_page import model_page

HOSTILE = "cats | <script>alert(1)</script>\n---\nlicense: mit\n```"
SMALL = "torchvision/squeezenet1_1"


class LocalHub:
    """Stands in for the hub: repositories are folders."""

    def __init__(self, root):
        self.root, self.told = root, []

    def create_repo(self, repo, *, private, exist_ok):
        self.told.append((repo, private, exist_ok))
        (self.root / repo).mkdir(parents=True, exist_ok=exist_ok)
        return f"hub/{repo}"

    def upload_folder(self, *, repo_id, folder_path, commit_message, allow_patterns):
        assert commit_message.startswith("inflate3d ")
        for name in allow_patterns:
            shutil.copy(f"{folder_path}/{name}", self.root / repo_id / name)

    def get_paths_info(self, repo, paths, *, revision):
        files = [self.root / repo / path for path in paths]
        if not files[0].parent.is_dir():
            raise OSError("404 Client Error")
        return [type("RepoFile", (), {"size": file.stat().st_size}) for file in files if file.exists()]

    def hf_hub_download(self, repo, name, *, revision):
        return str(self.root / repo / name)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    found = LocalHub(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: found)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", found.hf_hub_download)
    return found


def same(one, other):
    """Whether two networks are equal to the last bit."""
    a, b = one.state_dict(), other.state_dict()
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) and a[name].dtype == b[name].dtype for name in a)


@pytest.fixture(scope="module")
def trained():
    """A network as training leaves it: classes and clips of its own, weights that are no start."""
    model = InceptionI3d(3, 2, class_names=("a cat", "größer", "c")).eval()
    for value in model.buffers():
        value.data = value + 1
    model.clip_spec = replace(I3D_CLIP, fps=12.5, num_frames=17)
    return model


def test_a_trained_network_comes_back_from_the_hub(trained, hub):
    card = card_for(trained, "i3d", license="MIT", source="my cats", accuracy="top-1 99 %")
    assert push_to_hub(trained, "me/cats", card=card, private=True) == "hub/me/cats"
    assert hub.told == [("me/cats", True, True)]
    again = from_pretrained("me/cats")
    assert same(trained, again)
    assert not again.training
    assert again.class_names == ("a cat", "größer", "c")
    assert again.clip_spec == trained.clip_spec
    written = pretrained_card(hub.root / "me/cats")
    assert written == replace(card, tensors_sha256=written.tensors_sha256)


def test_an_inflated_model_comes_back_with_its_plan(hub):
    model2d = find_2d_model(SMALL, num_classes=5)
    model3d = inflate(model2d, "i3d", example=torch.zeros(1, 3, 65, 67)).eval()
    names = tuple("abcde")
    card = InflatedCard(SMALL, {"num_classes": 5}, "random", model3d.plan, "mean", names)
    push_to_hub(model3d, "me/squeeze", card=card)
    again = from_pretrained("me/squeeze")
    clip = torch.rand(1, 3, 5, 65, 67)
    with torch.inference_mode():
        assert torch.equal(again(clip), model3d(clip))
    assert same(model3d, again)
    assert again.plan == model3d.plan
    assert again.class_names == names
    assert pretrained_card(hub.root / "me/squeeze").plan == model3d.plan
    page = (hub.root / "me/squeeze/README.md").read_text()
    assert str(model3d.plan) in page


def test_a_trained_inflated_classifier_comes_back(tmp_path):
    model = inflated_classifier("timm/test_resnet", 4, class_names=tuple("wxyz")).eval()
    save_pretrained(model, tmp_path, card=card_for(model, "inflated/timm/test_resnet", license="mine", source="x"))
    again = from_pretrained(tmp_path)
    assert same(model, again)
    assert (again.mean, again.class_names) == (model.mean, tuple("wxyz"))
    assert same(load(tmp_path / MODEL_FILE), model)


@pytest.mark.weights
def test_the_catalogue_can_be_pushed(kinetics_weights, kinetics_i3d, tmp_path):
    card = save_pretrained("i3d-kinetics400", tmp_path / "new" / "folder")
    assert card == CATALOGUE["i3d-kinetics400"].card
    assert (tmp_path / "new" / "folder" / MODEL_FILE).read_bytes() == kinetics_weights.read_bytes()
    assert json.loads((tmp_path / "new" / "folder" / "config.json").read_text())["num_classes"] == 400
    again = from_pretrained(tmp_path / "new" / "folder")
    assert same(again, kinetics_i3d)
    assert again.class_names == kinetics_i3d.class_names


def test_the_page_is_read_as_it_is_meant(trained):
    card = card_for(trained, "i3d", license="Apache-2.0 (me)", source=HOSTILE)
    page = model_page(card, ("a | b", "<b>"))
    _, front, body = page.split("---\n", 2)
    assert yaml.safe_load(front)["license"] == "apache-2.0"
    assert yaml.safe_load(front)["library_name"] == "inflate3d"
    assert "<script>" not in body.replace("\\<script\\>", "")
    assert len([line for line in body.splitlines() if "cats" in line]) == 1  # it stays in its cell
    assert yaml.safe_load(model_page(replace(card, license=HOSTILE)).split("---\n")[1])["license"] == "other"


def _leads_out(folder):
    shutil.move(folder / MODEL_FILE, folder.parent / "elsewhere.safetensors")
    (folder / MODEL_FILE).symlink_to(folder.parent / "elsewhere.safetensors")


def _rewritten(folder, *, flip=False, names=("a", "b", "c"), architecture="i3d"):
    state, card = read_weights(folder / MODEL_FILE), pretrained_card(folder)
    if flip:
        state["Logits.Conv3d_0c_1x1.conv_3d.bias"][1] += 1
    text = replace(card, architecture=architecture).to_json()
    write_safetensors(state, folder / MODEL_FILE, {CARD_KEY: text, CLASSES_KEY: json.dumps(names)})


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda folder: (folder / MODEL_FILE).unlink(), "there is no such file"),
        (lambda folder: (folder / MODEL_FILE).write_bytes(b"\x00" * 99), "the weights cannot be read"),
        (lambda folder: write_safetensors({"a": torch.zeros(2)}, folder / MODEL_FILE, {}), "the file has no card"),
        (_leads_out, "a link to somewhere else"),
        (lambda folder: _rewritten(folder, flip=True), "the weights are not those that were saved"),
        (lambda folder: _rewritten(folder, names=["a"]), "names of the classes in the file cannot be read"),
        (lambda folder: _rewritten(folder, names=["a", "b", 7]), "names of the classes in the file cannot be read"),
        (lambda folder: _rewritten(folder, names=["a", "b", "c" * 501]), "names of the classes"),
        (lambda folder: _rewritten(folder, architecture="inflated/os:system"), "that this version does not have"),
    ],
)
def test_a_damaged_or_hostile_folder_is_refused(trained, tmp_path, damage, told):
    folder = tmp_path / "model"
    save_pretrained(trained, folder, card=card_for(trained, "i3d", license="MIT", source="x"))
    damage(folder)
    with pytest.raises(InflateError, match=told):
        from_pretrained(folder)


def test_other_files_of_a_folder_change_nothing(trained, tmp_path):
    save_pretrained(trained, tmp_path, card=card_for(trained, "i3d", license="MIT", source="x"))
    (tmp_path / "config.json").write_text('{"architecture": "os:system", "auto_map": {"AutoModel": "evil.Model"}}')
    (tmp_path / "evil.py").write_text("raise SystemExit")
    assert same(from_pretrained(tmp_path), trained)


def test_a_file_too_large_is_not_read(trained, tmp_path, hub, monkeypatch):
    push_to_hub(trained, "me/cats", card=card_for(trained, "i3d", license="MIT", source="x"))
    monkeypatch.setattr("inflate3d.weights.hub.MAX_BYTES", 1000)
    with pytest.raises(InflateError, match="more memory than allowed"):
        from_pretrained(hub.root / "me/cats")
    with pytest.raises(InflateError, match="no weights that can be taken"):
        from_pretrained("me/cats")


def test_what_cannot_be_had_or_given_is_told(trained, hub, tmp_path):
    with pytest.raises(InflateError, match="cannot be had from the hub") as told:
        from_pretrained("me/nothing")
    assert "404" in told.value.got
    (hub.root / "me" / "empty").mkdir(parents=True)
    with pytest.raises(InflateError, match="no weights that can be taken"):
        from_pretrained("me/empty")
    for name in ("../me", "me/../../you", "me", "me/a b", "https://somewhere/me"):
        with pytest.raises(InflateError, match="neither a folder nor a repository"):
            from_pretrained(name)
    with pytest.raises(InflateError, match="the hub does not take the model") as told:
        push_to_hub(trained, "me/cats", card=card_for(trained, "i3d", license="MIT", source="x"), api=object())
    assert "create_repo" in told.value.got


def test_model_and_card_have_to_go_together(trained, tmp_path):
    card = card_for(trained, "i3d", license="MIT", source="x")
    with pytest.raises(InflateError, match="model and card do not go together"):
        save_pretrained(trained, tmp_path)
    with pytest.raises(InflateError, match="does not hold this network"):
        save_pretrained(trained, tmp_path, card=replace(card, in_channels=3))
    assert not (tmp_path / MODEL_FILE).exists()  # nothing is left of what did not come back
    with pytest.raises(InflateError, match="there is no such file"):
        save_pretrained(tmp_path / "nothing.safetensors", tmp_path)
    with pytest.raises(InflateError, match="does not tell what its card has to"):
        card_for(torch.nn.Linear(2, 3), "i3d", license="MIT", source="x")


def test_a_card_without_own_names_has_none(trained, tmp_path):
    state = trained.state_dict()
    card = replace(card_for(trained, "i3d", license="MIT", source="x"))
    save_weights(state, card, tmp_path / "mine.safetensors")
    save_pretrained(tmp_path / "mine.safetensors", tmp_path / "folder")
    assert CLASSES_KEY not in metadata_in(tmp_path / "folder" / MODEL_FILE)
    assert from_pretrained(tmp_path / "folder").class_names is None
    assert isinstance(pretrained_card(tmp_path / "folder"), Card)
