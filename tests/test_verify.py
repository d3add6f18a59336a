"""Claims are judged by what commands print; their page says what its JSON says, and leaves no command out."""

import json
import os
import re
import sys
from collections import Counter
from pathlib import Path
from subprocess import run

import pytest

from test_docs import BLOCK, PAGES, ROOT, blocks

PASSED = "....\n4 passed, 1 deselected in 2.05s\n"


@pytest.fixture
def claims(monkeypatch):
    for folder in ("benchmarks", "docs"):
        monkeypatch.syspath_prepend(str(ROOT / folder))
    import claims

    return claims


@pytest.fixture
def verify(claims, monkeypatch, tmp_path):
    """The script, with a list, results and a page of its own."""
    import verify

    monkeypatch.setattr(claims, "LIST", tmp_path / "claims.toml")
    monkeypatch.setattr(verify, "RESULTS", tmp_path / "verified.json")
    monkeypatch.setattr(verify, "PAGE", tmp_path / "verified.md")
    monkeypatch.setattr(verify, "ROOT", tmp_path)  # where commands run
    return verify


def claim(claims, **said):
    return claims.Claim(**{"id": "one", "topic": "Some", "claim": "It is so", "run": "some command", **said})


def check(verify, capsys, text, *options):
    """Run the script on a list; give exit code, results, and what it printed."""
    sys.modules["claims"].LIST.write_text(f'[[topic]]\ntitle = "Some"\n{text}')
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr(sys, "argv", ["verify.py", *options])
        verify.main()
    rows = json.loads(verify.RESULTS.read_text())["rows"]
    return int(ended.value.code), rows, capsys.readouterr()


def listed(name, run, **said):
    lines = [f"{key} = {json.dumps(value)}" for key, value in {"id": name, "claim": name, "run": run, **said}.items()]
    return "[[topic.claims]]\n" + "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    ("said", "printed", "outcome", "figure"),
    [
        ({"figure": r"ratio ([\d.]+)", "bound": "<= 0.6"}, "ratio 0.6 of 7 runs", "green", "0.6"),
        ({"figure": r"ratio ([\d.]+)", "bound": "<= 0.6"}, "ratio 0.601 of 7 runs", "red", "0.601"),
        ({"figure": r"^\w+: (\S+)$", "take": "largest", "bound": "<= 1e-4"}, "a: 2e-5\nb: 3e-4", "red", "0.0003"),
        ({"figure": r"^\w+: (\S+)$", "take": "median", "bound": "= 2"}, "a: 9\nb: 2\nc: 1", "green", "2"),
        ({"figure": r"(\w+\.py)", "take": "count", "bound": "= 2"}, "a.py b.py", "green", "2"),
        ({"figure": r"(\w+\.py)", "take": "count", "bound": "= 0"}, "nothing", "green", "0"),
        ({"figure": r"([\d,]+) values", "bound": "= 12689984"}, "12,689,984 values", "green", "12,689,984"),
        ({"path": ("a", "*", "b"), "take": "sum", "bound": ">= 5"}, '{"a": [{"b": 2}, {"b": 3}]}', "green", "5"),
        ({"path": ("*", "is"), "equal": ("x",), "take": "count"}, '{"a": {"is": "x"}, "b": {"is": "y"}}', "green", "1"),
        ({"path": ("*", "0"), "against": ("*", "1"), "take": "above", "bound": "= 2"}, "[[3, 2], [2, 3]]", "red", "1"),
        ({"run": "pytest -q tests", "bound": ">= 4"}, PASSED, "green", "4 passed"),
        ({"run": "pytest -q tests", "bound": ">= 5"}, PASSED, "red", "4 passed"),
        ({"run": "pytest -q tests"}, "2 skipped in 1.02s", "not run", "its tests were skipped"),
        ({"run": "pytest -q tests", "bound": ">= 1"}, "nothing of the kind", "red", "the figure is missing"),
        ({"figure": "(found)", "bound": ">= 1"}, "found", "red", "no number: found"),
        ({}, "anything", "green", "exit code 0"),
    ],
)  # fmt: skip
def test_figures_are_found_and_judged(claims, said, printed, outcome, figure):
    assert claims.judged(claim(claims, **said), 0, printed, "", 1.0) == {"outcome": outcome, "figure": figure}


def test_a_command_that_fails_is_red_whatever_its_figure(claims):
    asked = claim(claims, run="pytest -q tests", bound=">= 1")
    assert claims.judged(asked, 1, "1 failed, 4 passed in 2.05s", "", 1.0) == {
        "outcome": "red",
        "figure": "1 failed, 4 passed",
    }
    assert claims.judged(asked, 2, "", "no such test\n\n", 1.0) == {"outcome": "red", "figure": "no such test"}
    assert claims.judged(asked, None, PASSED, "", 1.0) == {"outcome": "red", "figure": "stopped after 20 minutes"}


def test_the_number_is_judged_and_not_what_is_left_of_it_when_it_is_shown(claims):
    asked = claim(claims, path=("ratio",), bound="<= 1.05")
    assert claims.judged(asked, 0, '{"ratio": 1.0500001}', "", 1.0) == {"outcome": "red", "figure": "1.05"}


def test_a_red_row_wants_an_explanation(verify, capsys):
    text = listed("good", "echo 3", figure=r"(\d)", bound=">= 3") + listed(
        "bad", "echo 2", figure=r"(\d)", bound=">= 3"
    )
    code, rows, told = check(verify, capsys, text)
    assert (code, rows["good"]["outcome"], rows["bad"]["outcome"]) == (1, "green", "red")
    assert "no `why` explains it: bad" in told.err
    code, rows, _ = check(verify, capsys, text + 'why = "it is small"\n')
    assert (code, rows["bad"]["outcome"]) == (0, "red")
    assert "| bad | `echo 2` | 2 | >= 3 | **red** |" in verify.PAGE.read_text()
    assert "| it is small |" in verify.PAGE.read_text()


def test_what_a_command_says_ends_no_cell_and_is_no_markup(verify, capsys):
    check(verify, capsys, listed("bad", "echo 'in <module> | no'; exit 3", why="so it is"))
    assert "| in &lt;module&gt; &#124; no |" in verify.PAGE.read_text()


def test_it_goes_on_where_it_was_and_checks_again_what_changed(verify, capsys, tmp_path, monkeypatch):
    text = listed("one", "echo 1 >> one") + listed("other", "echo 1 >> other")

    def runs(*options):
        assert check(verify, capsys, text, *options)[0] == 0
        return [len((tmp_path / name).read_text().split()) for name in ("one", "other")]

    assert runs() == [1, 1]
    assert runs() == [1, 1]
    assert runs("--only", "^oth") == [1, 2]
    text = text.replace("other\n", "other # changed\n").replace(">> other", ">> other; true")
    assert runs("--draw") == [1, 2]
    assert runs() == [1, 3]
    monkeypatch.setattr(verify, "state", lambda: "another state of the package")
    assert runs("--keep") == [1, 3]
    assert runs() == [2, 4]


def test_claims_with_one_command_share_its_run(verify, capsys, tmp_path):
    command = 'echo "${EMPTY##*/}" > place; ls -A "$EMPTY"; echo 7 and 8; echo 1 >> runs'
    text = listed("seven", command, figure=r"(\d) and", bound="= 7") + listed(
        "eight", command, figure=r"and (\d)", bound="= 8"
    )
    assert [row["outcome"] for row in check(verify, capsys, text)[1].values()] == ["green", "green"]
    assert (tmp_path / "runs").read_text() == "1\n"


def test_runs_beside_each_other_keep_the_rows_of_both(verify, capsys, tmp_path):
    text = listed("one", "cp saved.json verified.json") + listed("other", "true")
    check(verify, capsys, text, "--only", "other")
    verify.RESULTS.rename(tmp_path / "saved.json")
    assert [*check(verify, capsys, text, "--only", "one")[1]] == ["one", "other"]


def test_what_takes_too_long_is_ended_with_all_it_started(verify, capsys, tmp_path):
    text = listed("long", "sleep 60 & echo $! > child; wait", minutes=0.01, why="it sleeps")
    code, rows, _ = check(verify, capsys, text)
    assert (code, rows["long"]["figure"]) == (0, "stopped after 0.01 minutes")
    child = Path("/proc") / (tmp_path / "child").read_text().strip() / "status"
    assert not child.exists() or "zombie" in child.read_text()


def test_what_needs_more_is_left_out_until_it_is_there(verify, capsys, tmp_path):
    text = listed("scans", 'ls "$DATA"', figure=r"(\w+\.nii)", needs=["data", "idle"])
    assert check(verify, capsys, text)[1] == {}
    assert "| not run |  | needs the project's data folder and an idle machine |" in verify.PAGE.read_text()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "chest.nii").touch()
    assert check(verify, capsys, text, "--data", str(tmp_path / "data"))[1] == {}
    _, rows, _ = check(verify, capsys, text, "--data", str(tmp_path / "data"), "--have", "idle")
    assert rows["scans"]["figure"] == "chest.nii"


def test_figures_of_other_pages_come_with_their_date_and_are_not_run(verify, claims, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "ROOT", tmp_path)
    (tmp_path / "old.json").write_text('{"date": "2026-01-02", "found": {"ratio": 0.25}}')
    (tmp_path / "old.md").touch()
    text = listed("old", "exit 1", file="old.json", path=["found", "ratio"], date=["date"], bound="<= 0.5")
    text += listed("none", "exit 1", file="none.json", path=["found"])
    code, rows, _ = check(verify, capsys, text)
    assert (code, rows["old"]["outcome"], rows["old"]["date"]) == (0, "green", "2026-01-02")
    assert "| 0.25 | <= 0.5 | green | 2026-01-02, [old.md](old.md) |" in verify.PAGE.read_text()
    assert (rows["none"]["outcome"], rows["none"]["figure"]) == ("not run", "none.json is not there")


@pytest.fixture
def published(claims):
    """The list of the docs, and the results."""
    return claims.read_claims(), json.loads((ROOT / "docs" / "verified.json").read_text())


def test_the_page_in_the_docs_is_made_of_its_json(claims, published):
    import verify

    assert (ROOT / "docs" / "verified.md").read_text() == verify.page(*published), "python docs/verify.py --draw"
    assert not claims.unexplained(published[0], published[1]["rows"])


def test_figures_that_are_taken_over_are_those_of_their_files(claims, published):
    for asked in published[0]:
        if asked.file:
            row, now = published[1]["rows"][asked.id], claims.taken_over(asked)
            assert row["figure"] == now["figure"], f"{asked.id}: python docs/verify.py --draw"


def test_the_list_is_sound(claims, published):
    counts = Counter(asked.id for asked in published[0])
    assert max(counts.values()) == 1
    for asked in published[0]:
        assert set(asked.needs) <= set(claims.NEEDS), asked.id
        assert "|" not in asked.claim + asked.run, f"{asked.id}: it would end the cell of the table"
        assert all((ROOT / file).exists() for file in re.findall(r"\b(?:tests|benchmarks|docs)/[\w/]+\.py", asked.run))
        assert not asked.bound or claims.holds(asked.bound, claims.Figure.of(1)) in {True, False}
        assert asked.file or asked.is_pytest() or asked.figure or not asked.bound, asked.id


def test_every_goal_of_the_benchmarks_is_a_claim(claims, published):
    assert {asked.goal for asked in published[0]} - {""} == {what for what, *_ in claims.GOALS}


def test_every_command_of_the_pages_has_a_row(published):
    runs = " ".join(asked.run for asked in published[0])
    covered = [name for asked in published[0] for name in asked.covers]
    for page in PAGES:
        for test, language in (("commands", "bash"), ("python_examples", "python")):
            assert not blocks(page, language) or f"test_{test}_run[{page.name}]" in runs, f"{page.name}: {language}"
        for block in (found for found in BLOCK.finditer(page.read_text()) if found["not_run"]):
            code = block["code"].replace("\\\n", "")  # as a shell joins lines
            lines = code.splitlines() if block["language"] == "bash" else ["python"]
            for line in lines:
                assert any(f"{page.name}: {line}".startswith(name) for name in covered), f"{page.name}: {line}"
    assert all(
        (ROOT / "docs" / name.partition(":")[0]).exists() or name[:7] in {"README.", "CONTRIB"} for name in covered
    )


def test_claims_that_are_tests_are_judged_by_reports_of_the_tests(verify, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # they take a second each time
    tests = tmp_path / "tests" / "test_some.py"
    tests.parent.mkdir()
    tests.write_text("""import pytest

@pytest.mark.parametrize("word", ["a", "b c", "d/é|e::f"])
def test_good(word):
    assert word

def test_bad():
    assert not __file__

def test_left():
    pytest.skip("not here")

@pytest.mark.xfail
def test_known():
    assert 0
""")
    report = tmp_path / "build" / "test.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-c", "/dev/null", "--rootdir", str(tmp_path), "tests"]
    command += ["-o", "junit_family=xunit1", "--junitxml", str(report)]
    assert run(command, cwd=tmp_path, capture_output=True, check=False).returncode == 1
    text = (
        listed("good", "pytest -q -n 2 tests -k good", bound=">= 3")
        + listed("many", "pytest -q tests/test_some.py -k 'good or known'", bound=">= 4", why="one is known to fail")
        + listed("bad", "pytest -q tests/test_some.py", why="so it is")
        + listed("left", "pytest -q tests/test_some.py::test_left")
        + listed("other", "pytest -q tests/test_some.py -k good && echo 9 passed", bound="= 9")
    )
    code, rows, told = check(verify, capsys, text, "--reports", str(report), "--only", "nothing")
    assert "4 claims" in told.out
    assert {name: (row["outcome"], row["figure"]) for name, row in rows.items()} == {
        "good": ("green", "3 passed"),
        "many": ("red", "3 passed"),
        "bad": ("red", "1 failed, 3 passed, 1 skipped"),
        "left": ("not run", "its tests were skipped"),
    }
    assert code == 0
    with tests.open("a") as file:
        file.write("\ndef test_good_too():\n    pass\n")
    later = report.stat().st_mtime + 10
    os.utime(report, (later, later))
    _, rows, told = check(verify, capsys, text, "--reports", str(report), "--only", "nothing")
    assert "1 claims" in told.out, "a test that the report lacks is to be run"
    os.utime(tests, (later + 10, later + 10))
    _, _, told = check(verify, capsys, text, "--reports", str(report), "--only", "nothing")
    assert "is older than tests/test_some.py" in told.err
