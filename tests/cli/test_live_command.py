"""`inflate3d predict --live` at the terminal: a line now and then or a table, Ctrl-C, and what is told at the end."""

import io
import sys

import pytest
import torch
from rich.console import Console
from torch import nn

from inflate3d import ClipSpec
from inflate3d.cli import live as live_command
from inflate3d.cli import main
from inflate3d.cli.live import LINE_SECONDS, LiveLook, show_live
from inflate3d.errors import InflateError
from inflate3d.results.live import LiveAnswer

LOOK = LiveLook(25.0, "fp32", 5.0, 2)


class Named(nn.Module):
    clip_spec = ClipSpec(25.0, 4, 1, 16, 16, (-1.0, 1.0))
    class_names = ("run [x]", "jump", "swim")


def answer(seconds, *logits, dropped=0, reconnects=0):
    return LiveAnswer(seconds, 0.26, torch.tensor(logits), int(25 * seconds), dropped, reconnects)


@pytest.fixture
def world(monkeypatch):
    """A source and a network that say what the test wants, at the times it wants."""

    class World:
        answers, ends_with, clock, sources = [], None, 100.0, []

    class Source:
        def __init__(self, name, **how):
            self.name, self.how, self.closed = name, how, False
            World.sources.append(self)

        def close(self):
            self.closed = True

    def answers(network, source, *, precision):
        for seconds, one in World.answers:
            World.clock = 100.0 + seconds
            yield one
        if World.ends_with:
            raise World.ends_with

    World.sources = []
    monkeypatch.setattr("inflate3d.clips.live.LiveFrames", Source)
    monkeypatch.setattr("inflate3d.results.live.predict_live", answers)
    monkeypatch.setattr(live_command.time, "monotonic", lambda: World.clock)
    monkeypatch.setattr(live_command, "load_any", lambda name: Named())
    return World


def test_a_line_every_two_seconds_and_the_last_answer_always(world, capsys):
    times = [0.0, 0.5, LINE_SECONDS, 2.5, 3.0]
    world.answers = [(at, answer(at, 2.0, 0.0, at, dropped=7)) for at in times]
    show_live(["rtsp://camera"], "mine", LOOK)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:-1]] == ["0.0", "2.0", "3.0"]
    assert lines[0] == "    0.0 s  run [x] 79%, jump 11%"  # softmax of 2, 0, 0; the name is no markup
    assert lines[-1] == "3.0 s seen, 0.3 s behind, 7 of 75 frames dropped"
    (source,) = world.sources
    assert source.name == "rtsp://camera" and source.closed
    assert source.how == {"fps": 25.0, "short_side": 16, "patience_seconds": 5.0}


def test_an_answer_that_has_its_line_is_not_told_twice(world, capsys):
    world.answers = [(0.0, answer(0.6, 1.0, 0.0, 0.0, reconnects=2))]
    show_live(["0"], "mine", LOOK)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[1].endswith("0 of 15 frames dropped, came back 2 times")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), None])
def test_a_source_that_says_nothing_says_nothing(world, capsys, error):
    world.ends_with = error
    show_live(["0"], "mine", LOOK)
    assert capsys.readouterr().out == ""
    assert world.sources[0].closed


def test_ctrl_c_is_the_way_to_end_it(world, capsys):
    world.answers, world.ends_with = [(0.0, answer(1.0, 1.0, 0, 0)), (0.1, answer(1.6, 0, 3.0, 0))], KeyboardInterrupt()
    show_live(["0"], "mine", LOOK)
    assert [line.split()[:2] for line in capsys.readouterr().out.splitlines()] == [
        ["1.0", "s"],
        ["1.6", "s"],
        ["1.6", "s"],
    ]


def test_a_source_that_breaks_is_told_after_what_was_seen(world, capsys, monkeypatch):
    gone = InflateError("the source has gone", where="a", expected="b", got="c", fix="d")
    world.answers, world.ends_with = [(0.0, answer(4.0, 1.0, 0, 0))], gone
    monkeypatch.setattr(sys, "argv", ["inflate3d", "predict", "--live", "0"])
    with pytest.raises(SystemExit) as ended:
        main()
    found = capsys.readouterr()
    assert (ended.value.code, "4.0 s seen" in found.out, "the source has gone" in found.err) == (2, True, True)


def test_a_terminal_shows_a_table_that_goes(world, monkeypatch):
    file = io.StringIO()
    monkeypatch.setattr(live_command, "Console", lambda **_: Console(file=file, force_terminal=True, width=90))
    world.answers = [(at / 10, answer(at / 10, 2.0, 0.0, float(at))) for at in range(4)]
    show_live(["0"], "mine", LOOK)
    shown = file.getvalue()
    assert shown.count("frames dropped") == shown.count("probability") + 1 >= 5  # below each table, and at the end
    last = shown[shown.rindex("\x1b[") :]
    assert "swim 71%" in last and "0.3 s seen" in last and "probability" not in last


def test_one_source_at_a_time_in_full():
    with pytest.raises(InflateError) as found:
        show_live(["0", "1"], "mine", LOOK)
    assert str(found.value) == (
        "inflate3d predict --live: one live source at a time\n"
        "  expected: a camera's number, a URL, a device or -\n"
        "  got:      0 1\n"
        "  fix:      run a command for each of them"
    )
