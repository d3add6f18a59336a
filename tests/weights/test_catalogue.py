"""The catalogue and the label sets say what they must, and a mistyped name is answered."""

import re
from importlib.metadata import version
from importlib.resources import files

import pytest

from inflate3d.errors import InflateError
from inflate3d.models.ct import CT_NAME
from inflate3d.models.zoo import MODELS
from inflate3d.weights.catalogue import CATALOGUE, DEMO_CLIP, LABEL_SETS, find_entry, read_labels
from inflate3d.weights.dialects import DIALECTS
from inflate3d.weights.model_page import facts_of

# places in the list, counted from 0, as the makers' files have them
PLACES = {
    "kinetics-400": {0: "abseiling", 227: "playing cricket", 399: "zumba"},
    "kinetics-600": {1: "acting in play", 2: "adjusting glasses", 599: "zumba"},
    "ucf-101": {0: "ApplyEyeMakeup", 23: "CricketShot", 34: "Hammering", 35: "HammerThrow", 100: "YoYo"},
    "hmdb-51": {0: "brush_hair", 5: "climb", 6: "climb_stairs", 44: "sword", 45: "sword_exercise", 50: "wave"},
    "charades": {0: "Holding some clothes", 59: "Sitting in a chair", 156: "Someone is eating something"},
}


@pytest.mark.parametrize("entry", CATALOGUE.values(), ids=CATALOGUE)
def test_entries_are_complete(entry):
    card = entry.card
    assert CATALOGUE[card.name] is entry
    assert card.architecture in (*MODELS, CT_NAME)
    assert card.label_set is None or len(read_labels(card.label_set)) == card.num_classes
    assert entry.more or card.source_sha256 == entry.file.member_sha256
    assert card.inflate3d_version == version("inflate3d")
    assert re.fullmatch("[0-9a-f]{64}", card.tensors_sha256)
    empty = [what for what, told in facts_of(card).items() if not told]
    assert not empty, f"nothing is told of {card.name}'s {', '.join(empty)}"
    assert card.dialect in (*DIALECTS, "own names")


@pytest.mark.parametrize(
    "file",
    [DEMO_CLIP, *(file for entry in CATALOGUE.values() for file in (entry.file, *entry.more))],
    ids=lambda f: f.archive_name,
)
def test_files_are_pinned(file):
    name, version = file.requirement.split("==")
    assert file.archive_name.startswith(f"{name.replace('-', '_')}-{version}")
    assert file.archive_name.endswith((".whl", ".tar.gz"))
    assert file.is_wheel == file.archive_name.endswith(".whl")
    assert re.fullmatch("[0-9a-f]{64}", file.archive_sha256)
    assert re.fullmatch("[0-9a-f]{64}", file.member_sha256)


def test_a_mistyped_name():
    with pytest.raises(InflateError, match="did you mean i3d-kinetics400") as caught:
        find_entry("i3d-kinetics")
    assert caught.value.expected == ", ".join(CATALOGUE)


@pytest.mark.parametrize(("name", "count"), LABEL_SETS.items())
def test_as_many_names_as_classes_and_none_twice(name, count):
    labels = read_labels(name)
    assert len(labels) == len(set(labels)) == count
    assert all(label == label.strip() and label for label in labels)
    for place, label in PLACES[name].items():
        assert labels[place] == label


def test_lists_without_numbers_are_in_the_order_of_the_alphabet():
    for name in ("kinetics-400", "kinetics-600", "hmdb-51"):
        assert list(read_labels(name)) == sorted(read_labels(name))
    assert list(read_labels("ucf-101")) == sorted(read_labels("ucf-101"), key=str.lower)


def test_every_file_is_in_the_table():
    folder = files("inflate3d.weights") / "labels"
    assert {re.sub(r"\.txt$", "", file.name) for file in folder.iterdir()} == set(LABEL_SETS)


def test_kinetics_600_keeps_most_of_kinetics_400():
    """Carreira et al. 2018 kept 368 of the 400 classes."""
    assert len(set(read_labels("kinetics-600")) & set(read_labels("kinetics-400"))) == 368


def test_an_unknown_set_is_refused_with_the_nearest_names():
    with pytest.raises(InflateError, match=r"no such label set(.|\n)*did you mean ucf-101"):
        read_labels("ucf101")
