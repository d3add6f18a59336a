"""Timeline, report and tables: well-formed, self-contained, and true to the numbers."""

import io
import re
from base64 import b64decode
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from inflate3d.results.prediction import Failure, VideoPrediction, WindowPrediction
from inflate3d.show.answers import (
    LEFT,
    PLOT_HEIGHT,
    RIGHT,
    TOP,
    WIDTH,
    failures_table,
    scores_table,
    timeline_svg,
    timeline_table,
    write_report,
)

NAMES = ("run", "jump <high>", "swim")
SVG = "{http://www.w3.org/2000/svg}"


def video(windows=4, key_frames=True):
    buffer = io.BytesIO()
    Image.fromarray(np.full((16, 24, 3), 90, np.uint8)).save(buffer, "JPEG")
    frame = buffer.getvalue() if key_frames else None
    found = tuple(
        WindowPrediction(2.0 * i, 2.0 * i + 2, torch.tensor([0.0, float(i), 1.0]), frame) for i in range(windows)
    )
    return VideoPrediction("a&b.mp4", 50 * windows, 25.0, torch.tensor([0.0, 2.0, 1.0]), found, NAMES)


def test_the_timeline_draws_each_probability_where_it_belongs():
    drawing = ElementTree.fromstring(timeline_svg(video(), k=2))
    lines = drawing.findall(f"{SVG}polyline")
    assert len(lines) == 2
    points = [tuple(map(float, point.split(","))) for point in lines[0].get("points").split()]  # "jump <high>"
    for i, (x, y) in enumerate(points):
        expected = float(torch.tensor([0.0, float(i), 1.0]).softmax(0)[1])
        assert x == pytest.approx(LEFT + (2 * i + 1) / 8 * (WIDTH - LEFT - RIGHT), abs=0.06)
        assert y == pytest.approx(TOP + (1 - expected) * PLOT_HEIGHT, abs=0.06)
    assert len(drawing.findall(f"{SVG}image")) == 4
    assert any("jump <high>" in (text.text or "") for text in drawing.findall(f"{SVG}text"))


@pytest.mark.parametrize("windows", [1, 2, 300])
def test_any_number_of_windows_can_be_drawn(windows):
    drawing = ElementTree.fromstring(timeline_svg(video(windows)))
    assert len(drawing.findall(f"{SVG}image")) == min(windows, 7)
    for line in drawing.findall(f"{SVG}polyline"):
        points = [tuple(map(float, point.split(","))) for point in line.get("points").split()]
        assert len(points) == (3 if windows == 1 else windows)  # a single one is drawn from its start to its end
        assert [x for x, _ in points] == sorted({x for x, _ in points})
        assert all(LEFT <= x <= WIDTH - RIGHT for x, _ in points)


def test_curves_that_are_not_drawn_are_counted():
    window = WindowPrediction(0.0, 2.0, torch.arange(20.0))
    answer = VideoPrediction("a.mp4", 50, "native", window.logits, (window, window))
    for k, told in ((7, []), (10, ["and 3 more, not drawn"])):
        drawing = ElementTree.fromstring(timeline_svg(answer, k))
        assert len(drawing.findall(f"{SVG}polyline")) == 7
        assert [one.text for one in drawing.findall(f"{SVG}text") if "more" in one.text] == told


class Balance(HTMLParser):
    """Finds tags that are closed out of order or not at all."""

    VOID = ("meta", "br", "img", "hr")

    def __init__(self):
        super().__init__()
        self.open, self.faults = [], []

    def handle_starttag(self, tag, attrs):
        self.open += [tag] * (tag not in self.VOID)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.faults.append(tag)

    @classmethod
    def of(cls, page):
        parser = cls()
        parser.feed(page)
        parser.close()
        return parser.faults + parser.open


def test_unbalanced_tags_would_be_seen():
    assert Balance.of("<p><b>x</p>")
    assert Balance.of("<p>")
    assert Balance.of("<p><b/>x<br></p>") == []


def test_the_report_needs_no_other_file(tmp_path):
    path = tmp_path / "report.html"
    write_report(
        path, [video(), video(1, False)], [Failure("<bad>.mp4", "it is empty")], settings={"<model>": "a<b>&c"}, k=2
    )
    page = path.read_text()
    assert Balance.of(page) == []
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert page.count("<section>") == 2
    assert "<p>50 frames, 25 fps, 0:02.0, 1 windows</p>" in page
    assert "a&amp;b.mp4" in page
    assert "&lt;bad&gt;.mp4" in page
    assert "<dt>&lt;model&gt;</dt><dd>a&lt;b&gt;&amp;c</dd>" in page
    assert page.count('class="bar"') == page.count("<polyline") == 2 * 2
    picture = re.search(r"data:image/jpeg;base64,([^\"]+)", page)
    assert b64decode(picture[1])[:2] == b"\xff\xd8"


def printed(table):
    console = Console(width=100, file=io.StringIO())
    console.print(table)
    return console.file.getvalue()


def test_tables_rank_and_join():
    ranked = printed(scores_table(video(), 2))
    assert ranked.index("jump <high>") < ranked.index("swim")
    assert "66.5%" in ranked  # softmax of 0, 2, 1
    timeline = printed(timeline_table(video()))
    assert timeline.count("jump <high>") == 1  # its windows are joined
    assert "0:02.0 - 0:08.0" in timeline  # the tie at the second window goes to the first of the two
    assert "got [b] and [1, 2]" in printed(failures_table([Failure("bad.mp4", "got [b] and [1, 2]")]))
