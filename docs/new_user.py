"""Do what a section of the quick start says, as a new user would, and tell the time until the result is there.

    python docs/new_user.py "What happens in my videos?" --data FOLDER

All commands of the section run in an empty folder and with an empty cache, in which only the folders lie that the page
takes to be the user's: videos and scans of FOLDER. The package is installed already.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PAGE = Path(__file__).with_name("quick-start.md")
BLOCK = re.compile(
    r"^(?P<not_run><!-- not run: [^\n]+ -->\n)?```(?P<language>bash|python)\n(?P<code>.+?)^```",
    re.MULTILINE | re.DOTALL,
)
THEIRS = {
    "videos": "videos/singles",
    "real": "videos/asl",
    "generated": "videos/singles",
    "scans": "volumes/hippocampus",
}


def main() -> None:
    """Run a section."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("section", help="its heading")
    parser.add_argument("--data", type=Path, required=True, help="the project's data folder")
    given = parser.parse_args()
    commands = commands_of(PAGE.read_text(encoding="utf-8"), given.section)
    with tempfile.TemporaryDirectory() as folder:
        for name, place in THEIRS.items():
            (Path(folder) / name).symlink_to((given.data / place).resolve())
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        env = {**os.environ, "PATH": path, "INFLATE3D_CACHE": f"{folder}/cache"}
        began = time.perf_counter()
        for command in commands:
            if code := subprocess.run(command, cwd=folder, env=env, check=False).returncode:
                sys.exit(code)
        print(f"{len(commands)} blocks in {time.perf_counter() - began:.0f} s")


def commands_of(page: str, section: str) -> list[list[str]]:
    """Find the blocks of a section that are to be run, and what runs them."""
    texts = {title: text for title, _, text in (part.partition("\n") for part in page.split("\n## ")[1:])}
    if section not in texts:
        sys.exit(f"there is no section {section!r}; there are {', '.join(texts)}")
    shells = {"bash": ["bash", "-euo", "pipefail", "-c"], "python": [sys.executable, "-c"]}
    found = [block for block in BLOCK.finditer(texts[section]) if not block["not_run"]]
    return [[*shells[block["language"]], block["code"]] for block in found]


if __name__ == "__main__":
    main()
