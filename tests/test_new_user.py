"""A section of the quick start is run as it stands, in an empty folder."""

import sys
from pathlib import Path

import pytest

from test_docs import script

PAGE = """# Quick start

```bash
exit 1
```

## Videos?

```bash
ls videos > first
test -z "$(ls -A "$INFLATE3D_CACHE" 2> /dev/null)"
```

<!-- not run: hours -->
```bash
exit 1
```

```python
print("found", open("first").read())
```

## Others?

```bash
exit 3
```
"""


@pytest.fixture
def new_user(monkeypatch, tmp_path):
    made = script("new_user")
    page = tmp_path / "quick-start.md"
    page.write_text(PAGE)
    monkeypatch.setattr(made, "PAGE", page)
    (tmp_path / "videos" / "singles").mkdir(parents=True)
    (tmp_path / "videos" / "singles" / "walking.mp4").touch()
    return made


def run(new_user, monkeypatch, section):
    monkeypatch.setattr(sys, "argv", ["new_user.py", section, "--data", str(new_user.PAGE.parent)])
    new_user.main()


def test_its_blocks_run_in_their_order_and_those_of_others_do_not(new_user, monkeypatch, capfd):
    run(new_user, monkeypatch, "Videos?")
    printed = capfd.readouterr().out
    assert "found walking.mp4" in printed and "2 blocks in 0 s" in printed
    assert not Path("first").exists()


def test_a_command_that_fails_ends_it(new_user, monkeypatch):
    with pytest.raises(SystemExit) as ended:
        run(new_user, monkeypatch, "Others?")
    assert ended.value.code == 3


def test_a_section_that_is_not_there_is_told(new_user, monkeypatch):
    with pytest.raises(SystemExit, match=r"there is no section 'Mine\?'; there are Videos\?, Others\?"):
        run(new_user, monkeypatch, "Mine?")
