"""Predictions as files read back by other readers, and failures in words."""

import csv
import json
import re
from dataclasses import replace

import pytest
import torch

from inflate3d.errors import InflateError
from inflate3d.results.prediction import COLUMNS, Failure, VideoPrediction, WindowPrediction, to_json, write_csv

WINDOWS = tuple(WindowPrediction(i, i + 2.5, torch.tensor([0.0, float(i), 3.0])) for i in range(2))
VIDEO = VideoPrediction("a,b.mp4", 20, 25.0, torch.tensor([0.0, 0.5, 3.0]), WINDOWS, ("run", 'say "hi"', "swim"))


def test_json_holds_videos_windows_failures_and_settings():
    document = json.loads(to_json([VIDEO], [Failure("c.mp4", "empty")], settings={"model": "i3d"}, k=2))
    assert document["settings"] == {"model": "i3d"}
    assert document["failures"] == [{"source": "c.mp4", "reason": "empty"}]
    (video,) = document["videos"]
    assert [score["label"] for score in video["top"]] == ["swim", 'say "hi"']
    assert video["windows"][1]["end_seconds"] == 3.5
    assert abs(video["top"][0]["probability"] - float(VIDEO.logits.softmax(0)[2])) < 1e-6


def test_the_rate_is_told_as_it_was_asked_for():
    native = replace(VIDEO, fps="native")
    rates = [video["fps"] for video in json.loads(to_json([VIDEO, native], settings={}))["videos"]]
    assert rates == [25.0, "native"]


def test_a_failure_that_nobody_foresaw_names_its_place():
    def read():
        raise EOFError("3 bytes are missing")

    with pytest.raises(EOFError) as raised:
        read()
    failure = Failure.of("caf\udce9.mp4", raised.value)
    assert failure.source == "caf\\udce9.mp4"
    assert re.fullmatch(r"EOFError: 3 bytes are missing \(read, test_prediction.py:\d+\)", failure.reason)
    known = InflateError("it is empty", where="a.mp4", expected="bytes", got="0 bytes", fix="copy it again")
    assert Failure.of("a.mp4", known).reason == str(known)


def test_json_has_no_word_for_what_is_no_number():
    broken = VideoPrediction("a.mp4", 20, 25.0, torch.tensor([0.0, float("nan")]), WINDOWS, None)
    with pytest.raises(ValueError, match="JSON compliant"):
        to_json([broken], settings={})


def test_csv_has_a_row_for_each_window_and_rank(tmp_path):
    write_csv(tmp_path / "out.csv", [VIDEO], k=2)
    with (tmp_path / "out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    assert [(row["window"], row["rank"]) for row in rows] == [(w, r) for w in ("all", "0", "1") for r in ("1", "2")]
    assert rows[0]["source"] == "a,b.mp4"
    assert rows[1]["label"] == 'say "hi"'
