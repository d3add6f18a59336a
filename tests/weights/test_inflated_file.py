"""An inflated model comes back from its file to the last bit, and a file of a stranger runs nothing."""

import json
import struct
import subprocess
import sys

import pytest
import timm
import torch
from torch import nn

from inflate3d import InflateError, Insert, inflate, load
from inflate3d.inflation.channels import with_input_channels
from inflate3d.weights.inflated_file import InflatedCard, inflated_card, load_inflated, save_inflated

CLIP = torch.rand(1, 3, 5, 65, 67, generator=torch.Generator().manual_seed(0))


def resnet(**options):
    torch.manual_seed(0)
    return timm.create_model("resnet10t", num_classes=7, **options).eval()


def inflated(model2d, channels=3, **options):
    return inflate(model2d, example=torch.zeros(1, channels, 65, 67), **options)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "resnet10t.safetensors"
    save_inflated(inflated(resnet()), path, "timm/resnet10t", options={"num_classes": 7}, class_names=tuple("abcdefg"))
    return path


def with_card(path, **changes):
    """The same tensors with another card, as a stranger would write it."""
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    card = json.loads(header["__metadata__"]["inflate3d.inflated"]) | changes
    header["__metadata__"]["inflate3d.inflated"] = json.dumps(card)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])
    return path


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"plan": "i3d", "profile": "center", "time_pool": "max"},
        {"inserts": [Insert("layer2", "time_pool"), Insert("layer3", "nonlocal")]},
    ],
)
def test_a_model_comes_back_to_the_last_bit(tmp_path, options):
    model3d = inflated(resnet(), **options)
    torch.nn.init.normal_(model3d.net.layer4[0].bn1.running_mean)
    card = save_inflated(model3d, tmp_path / "a.safetensors", "timm/resnet10t", options={"num_classes": 7})
    again = load(tmp_path / "a.safetensors")
    assert (again.plan, again.time_pool, again.training) == (model3d.plan, model3d.time_pool, False)
    assert inflated_card(tmp_path / "a.safetensors") == card
    with torch.inference_mode():
        assert torch.equal(again(CLIP), model3d(CLIP))


def test_other_channels_and_half_precision_come_back(tmp_path):
    gray = with_input_channels(resnet(), 1, example=torch.zeros(1, 3, 65, 67))
    model3d = inflated(gray, 1).bfloat16()
    save_inflated(model3d, tmp_path / "a.safetensors", "timm/resnet10t", options={"num_classes": 7})
    again = load_inflated(tmp_path / "a.safetensors")
    clip = CLIP[:, :1].bfloat16()
    with torch.inference_mode():
        assert torch.equal(again(clip), model3d(clip))


def test_a_fresh_process_answers_the_same(file):
    with torch.inference_mode():
        wanted = load(file)(CLIP)
    code = (
        "import sys, torch, inflate3d\n"
        "clip = torch.rand(1, 3, 5, 65, 67, generator=torch.Generator().manual_seed(0))\n"
        "model = inflate3d.load(sys.argv[1])\n"
        "with torch.inference_mode(): torch.save((model(clip), model.class_names), sys.argv[2])\n"
    )
    answer = file.with_name("answer.pt")
    subprocess.run([sys.executable, "-c", code, file, answer], check=True)
    found, names = torch.load(answer)
    assert torch.equal(found, wanted)
    assert names == tuple("abcdefg")


def test_code_of_a_stranger_is_not_run(tmp_path, monkeypatch):
    (tmp_path / "their_net.py").write_text(
        "import pathlib\n"
        "pathlib.Path(__file__).with_name('it ran').touch()\n"
        "from torch import nn\n"
        "def net():\n    return nn.Sequential(nn.Conv2d(3, 5, 3))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    path = tmp_path / "a.safetensors"
    model2d = nn.Sequential(nn.Conv2d(3, 5, 3))
    model3d = inflate(model2d, example=torch.zeros(1, 3, 11, 13))
    save_inflated(model3d, path, "their_net:net")  # by whoever has the module
    (tmp_path / "it ran").unlink()
    del sys.modules["their_net"]
    for load_it in (load, load_inflated):
        with pytest.raises(InflateError, match=r"names code that is not of a package.*it was not run"):
            load_it(path)
    assert "their_net" not in sys.modules
    clip = torch.rand(1, 3, 4, 11, 13)
    assert torch.equal(load_inflated(path, model2d=nn.Sequential(nn.Conv2d(3, 5, 3)))(clip), model3d(clip))
    assert not (tmp_path / "it ran").exists()
    assert torch.equal(load_inflated(path, trust=True)(clip), model3d(clip))
    assert (tmp_path / "it ran").exists()


@pytest.mark.parametrize(
    "options",
    [
        {"checkpoint_path": "x.pth"},
        {"pretrained": True},
        {"num_classes": 10**12},
        {"num_classes": 200_000},
        {"in_chans": 2000},
        {"img_size": 8000},
        {"num_classes": {}},
        {"img_size": [1] * 9},
        {"decoder_channels": [10**5] * 4},
        {"decoder_channels": [16] * 7},
    ],
)
def test_options_that_open_files_or_fill_memory_are_refused(file, options):
    with pytest.raises(InflateError, match="no file may name such options"):
        load(with_card(file, options=options))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"version": 2}, "cannot be read"),
        ({"name": 3}, "cannot be read"),
        ({"plan": {"layers": []}}, "this is no plan"),
        ({"time_pool": "median"}, "cannot be read"),
        ({"more": 1}, "cannot be read"),
        ({"options": None}, "cannot be read"),
        ({"name": "timm/resnet10"}, "no 2D model of this name"),
        ({"options": {"num_classes": 8}}, "weights do not fit"),
        ({"tensors_sha256": "0" * 64}, "not those that were saved"),
    ],
)
def test_cards_that_say_something_else_are_refused(file, changes, words):
    with pytest.raises(InflateError, match=words):
        load(with_card(file, **changes))


def test_a_plan_that_would_fill_memory_is_refused(file):
    plan = json.loads(inflated_card(file).plan.to_json())
    with pytest.raises(InflateError, match="too large"):
        load(with_card(file, plan=plan | {"input_shape": [3, 10**6, 10**6]}))
    plan["layers"][0]["time_kernel"] = 10**9
    with pytest.raises(InflateError, match="too large"):
        load(with_card(file, plan=plan))


def test_a_file_that_would_not_give_the_model_back_is_not_written(tmp_path):
    path = tmp_path / "a.safetensors"
    with pytest.raises(InflateError, match="do not fit"):
        save_inflated(inflated(resnet()), path, "timm/resnet10t")  # 7 classes are not told
    with pytest.raises(InflateError, match="no file may name such options"):
        save_inflated(inflated(resnet()), path, "timm/resnet10t", options={"num_classes": 7, "drop_rate": 0.1})
    with pytest.raises(InflateError, match="is saved as safetensors"):
        save_inflated(inflated(resnet()), tmp_path / "a.pt", "timm/resnet10t")
    assert list(tmp_path.iterdir()) == []


def test_other_files_and_options_are_refused(file, tmp_path):
    with pytest.raises(InflateError, match="is what it is"):
        load(file, num_classes=3)
    torch.save(resnet().state_dict(), tmp_path / "b.pth")
    with pytest.raises(InflateError, match="holds no inflated model"):
        load_inflated(tmp_path / "b.pth")
    assert inflated_card(tmp_path / "b.pth") is None
    with pytest.raises(InflateError, match="cannot be read"):
        InflatedCard.from_json("[" * 100_000, where="x")
