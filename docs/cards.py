"""Write the cards of the catalogue into docs/weights.md: `make cards`, or `python docs/cards.py`."""

import re
from pathlib import Path

from inflate3d.weights.catalogue import CATALOGUE
from inflate3d.weights.model_page import facts_of

PAGE = Path(__file__).parent / "weights.md"
PLACE = re.compile(r"(?<=<!-- cards: make cards -->\n).*?(?=<!-- end of cards -->)", re.DOTALL)


def cards() -> str:
    """Make a table for each entry."""
    parts = []
    for name, entry in CATALOGUE.items():
        rows = "\n".join(f"| {what} | {told} |" for what, told in facts_of(entry.card).items())
        parts.append(f"### {name}\n\n| | |\n|---|---|\n{rows}\n")
    return "\n".join(["", *parts, ""])


def main() -> None:
    """Write them into the page."""
    PAGE.write_text(PLACE.sub(lambda _: cards(), PAGE.read_text()))


if __name__ == "__main__":
    main()
