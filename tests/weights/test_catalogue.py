"""The catalogue and the labels say what they must, and a mistyped name is answered."""

import re

import pytest

from inflate3d.errors import InflateError
from inflate3d.models.zoo import MODELS
from inflate3d.weights.catalogue import CATALOGUE, DEMO_CLIP, find_entry
from inflate3d.weights.fetch import CONVERTERS
from inflate3d.weights.labels import read_labels


@pytest.mark.parametrize("entry", CATALOGUE.values(), ids=CATALOGUE)
def test_entries_are_complete(entry):
    assert CATALOGUE[entry.name] is entry
    assert entry.format in CONVERTERS
    assert entry.architecture in MODELS
    assert len(read_labels(entry.label_set)) == entry.num_classes
    assert re.fullmatch("[0-9a-f]{64}", entry.tensors_sha256)
    assert all([entry.license, entry.repackaged_under, entry.source, entry.reported_accuracy, entry.accuracy_protocol])


@pytest.mark.parametrize(
    "file", [DEMO_CLIP, *(entry.file for entry in CATALOGUE.values())], ids=lambda f: f.archive_name
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
