"""Label sets: as many names as classes, none twice, in the order of the data sets' makers."""

import re
from importlib.resources import files

import pytest

from inflate3d.errors import InflateError
from inflate3d.weights.labels import LABEL_SETS, read_labels

# places in the list, counted from 0, as the makers' files have them
PLACES = {
    "kinetics-400": {0: "abseiling", 227: "playing cricket", 399: "zumba"},
    "kinetics-600": {1: "acting in play", 2: "adjusting glasses", 599: "zumba"},
    "ucf-101": {0: "ApplyEyeMakeup", 23: "CricketShot", 34: "Hammering", 35: "HammerThrow", 100: "YoYo"},
    "hmdb-51": {0: "brush_hair", 5: "climb", 6: "climb_stairs", 44: "sword", 45: "sword_exercise", 50: "wave"},
    "charades": {0: "Holding some clothes", 59: "Sitting in a chair", 156: "Someone is eating something"},
}


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
    with pytest.raises(InflateError, match=r"no label set of that name(.|\n)*did you mean ucf-101"):
        read_labels("ucf101")
