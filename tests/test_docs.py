"""Every command and example in README, docs and docstrings runs."""

import doctest
import importlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from itertools import islice
from pathlib import Path

import nibabel
import numpy as np
import pytest
import yaml

import inflate3d
from inflate3d.clips.transforms import resize_picture
from inflate3d.clips.video import open_frames
from videos import write_video
from warm import warm

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
BLOCK = re.compile(r"(?P<not_run><!-- not run: [^\n]+ -->\n)?```(?P<language>bash|python)\n(?P<code>.+?)```", re.DOTALL)
NUM_FRAMES = 80  # of the reader's video: more than a window of any network
MODULES = sorted(
    ".".join(path.relative_to(ROOT / "src").with_suffix("").parts).removesuffix(".__init__")
    for path in (ROOT / "src").rglob("*.py")
    if path.name != "__main__.py"
)


def blocks(page: Path, language: str) -> list[str]:
    found = [match for match in BLOCK.finditer(page.read_text()) if not match["not_run"]]
    return [match["code"] for match in found if match["language"] == language]


@pytest.fixture(scope="session")
def folder_of_the_reader(tmp_path_factory, kinetics_weights):
    """A folder as the docs suppose it: a video, folders of videos, scans, and `make` run in the checkout."""
    from inflate3d.weights.fetch import fetch_demo_clip

    folder = tmp_path_factory.mktemp("reader")
    frames = islice(open_frames(fetch_demo_clip(), fps=25), NUM_FRAMES)
    pictures = [resize_picture(frame.picture, 256).numpy()[:, :448] for frame in frames]  # H.264 wants even sides
    write_video(folder / "video.mp4", pictures, fps=25)
    for name in ("videos", "real", "generated"):
        (folder / name).mkdir()
        shutil.copy(folder / "video.mp4", folder / name / "one.mp4")
    write_scans(folder / "scans")
    (folder / "bin").mkdir()
    make = folder / "bin" / "make"
    make.write_text(f'#!/bin/sh\nexec {shutil.which("make")} --no-print-directory -C "{ROOT}" "$@"\n')
    make.chmod(0o755)
    with warm(folder / "bin" / "inflate3d"):
        yield folder


def write_scans(folder):
    """Write eight scans of a bright box in noise, with masks."""
    for what in ("images", "labels"):
        (folder / what).mkdir(parents=True)
    for number in range(8):
        mask = np.zeros((24, 24, 16), np.uint8)
        mask[number : number + 12, 6:18, 4:12] = 1
        scan = np.random.default_rng(number).normal(100 * mask, 20).astype(np.int16)
        for what, voxels in (("images", scan), ("labels", mask)):
            nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), folder / what / f"box_{number}.nii.gz")


@pytest.mark.weights
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_run(page, folder_of_the_reader):
    path = os.pathsep.join([str(folder_of_the_reader / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
    for code in blocks(page, "bash"):
        run = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", code],
            cwd=folder_of_the_reader,
            env={**os.environ, "PATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
        assert run.returncode == 0, f"{page.name}:\n{code}\n{run.stdout}\n{run.stderr}"


@pytest.mark.weights
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.name)
def test_python_examples_run(page, folder_of_the_reader):
    code = "\n".join(blocks(page, "python"))
    command = [folder_of_the_reader / "bin" / "inflate3d", "-c", code]
    run = subprocess.run(command, cwd=folder_of_the_reader, capture_output=True, text=True, check=False)
    assert run.returncode == 0, f"{page.name}:\n{run.stdout}\n{run.stderr}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_make_targets_are_there(page):
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"(?:^|`)make ([a-z]+)", page.read_text(), re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"{page.name}: make {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_site_has_all_pages():
    told = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    assert "search" in told["plugins"]
    assert sorted(page for entry in told["nav"] for page in entry.values()) == [
        page.name for page in PAGES if page.parent.name == "docs"
    ]


def test_the_site_is_searched(tmp_path):
    """It is built as `make site` builds it, where a page without a place or a link that leads nowhere is an error."""
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "search" / "search_index.json").read_text())["docs"]
    pages = {entry["location"].partition("#")[0].strip("/") for entry in found}
    assert pages == {page.stem if page.stem != "index" else "" for page in PAGES if page.parent.name == "docs"}
    assert any("Fréchet Video Distance" in entry["title"] for entry in found)


def test_the_cards_are_those_of_the_catalogue():
    made = script("cards")
    assert made.PLACE.findall(made.PAGE.read_text()) == [made.cards()], "make cards"


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_run(name):
    module = importlib.import_module(name)
    failed, _ = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert failed == 0


def script(name):
    """Import a script of the docs."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_is_cited_is_this_version():
    assert f"version: {inflate3d.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_the_table_of_the_first_screen_is_that_of_the_runs():
    made = script("first_table")
    for page in made.PAGES:
        assert made.PLACE.findall(page.read_text()) == [made.table()], "make figures"


@pytest.fixture(scope="module")
def messages():
    """The script that lists the package's messages."""
    return script("messages")


def test_the_page_of_messages_is_up_to_date(messages):
    assert (ROOT / "docs" / "messages.md").read_text() == messages.page(list(messages.messages())), "make messages"


def test_every_error_fills_its_slots(messages):
    found = [message for message in messages.messages() if message.kind == "error"]
    assert len(found) > 100
    for message in found:
        assert len(message.slots) == 5 and all(message.slots), message


def test_the_page_shows_texts_and_not_the_names_they_are_passed_by(messages):
    found = {message.slots[0] for message in messages.messages()}
    assert found >= {
        "the file cannot be written",
        "there is no such preset",  # by way of a function that is told what is missing
        "the archive is damaged",  # by way of one that is told the whole problem
        "timestamps jump back (streams joined end to end?); time goes on from the last frame",  # a constant
        "fewer than {FEWEST} clips have no standard error and no kernel distance",  # an item of a list of notes
        "the clips hold no pixel",  # one of several faults
    }
    assert not found & {"{problem}: {', '.join(wrong)}", "there is no such {what}"}
