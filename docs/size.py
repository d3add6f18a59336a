"""Count files, lines and repetitions of the package and its tests: `python docs/size.py`.

Lines of code are those that hold more than comments and docstrings. A repetition is a run of at least six of them that
stands at two places, word for word; imports do not count.
"""

import ast
import io
import statistics
import tokenize
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).parents[1]
RUN = 6
EMPTY = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def main() -> None:
    """Count, and print."""
    package, tests = (sorted((ROOT / folder).rglob("*.py")) for folder in ("src", "tests"))
    lengths = [len(file.read_text(encoding="utf-8").splitlines()) for file in package]
    here, there = (sum(len(code_lines(file)) for file in files) for files in (package, tests))
    print(f"{len(package)} files, the longest of {max(lengths)} lines, the median of {statistics.median(lengths):g}")
    print(f"{here} lines of code and {there} of tests, {there / here:.2f} for each")
    found = list(repetitions(package))
    for first, second in found:
        print(f"{first} is repeated at {second}")
    print(f"{len(found)} repetitions of {RUN} lines or more")


def code_lines(file: Path) -> list[tuple[int, str]]:
    """List the numbers and texts of the lines of code."""
    text = file.read_text(encoding="utf-8")
    held = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in EMPTY:
            held.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            held.difference_update(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    return [(number, line.strip()) for number, line in enumerate(text.splitlines(), start=1) if number in held]


def repetitions(files: Sequence[Path]) -> Iterator[tuple[str, str]]:
    """Find runs of lines that stand at two places, each by its first lines there."""
    places: dict[tuple[str, ...], list[tuple[Path, int, int]]] = defaultdict(list)
    for file in files:
        lines = [(number, line) for number, line in code_lines(file) if not line.startswith(("import ", "from "))]
        for start in range(len(lines) - RUN + 1):
            run = lines[start : start + RUN]
            places[tuple(line for _, line in run)].append((file, start, run[0][0]))
    seen = set()
    for found in places.values():
        for (file, start, line), (other, start_there, line_there) in pairwise(found):
            seen.add((file, start, other, start_there))
            if (file, start - 1, other, start_there - 1) not in seen:  # else it goes on
                yield f"{file.relative_to(ROOT)}:{line}", f"{other.relative_to(ROOT)}:{line_there}"


if __name__ == "__main__":
    main()
