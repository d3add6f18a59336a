"""List every error and warning of the package as its code spells them: `make messages` writes messages.md.

What the code puts in at run time stands in braces; alternatives are parted by a bar.
"""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from inflate3d.atomic import replacing

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "inflate3d"
PAGE_FILE = Path(__file__).parent / "messages.md"
SLOTS = ("where", "expected", "got", "fix")
LONGEST = 48  # letters of code in braces


class Message(NamedTuple):
    """One place in the code that tells the user something."""

    file: str
    line: int
    kind: str
    slots: tuple[str, ...]


def main() -> None:
    """Write the page."""
    with replacing(PAGE_FILE) as draft:
        draft.write_text(page(list(messages())), encoding="utf-8")


def messages() -> Iterator[Message]:
    """Find each `InflateError(...)`, `warnings.warn(...)` and `raise` of another class, file by file."""
    for path in sorted(SOURCE.rglob("*.py")):
        tree, name = ast.parse(path.read_text()), str(path.relative_to(SOURCE))
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
        found = []
        for call in calls:
            function = ast.unparse(call.func)
            if function == "InflateError" and call.args:
                given = {word.arg: word.value for word in call.keywords}
                texts = (call.args[0], *(given[slot] for slot in SLOTS if slot in given))
                found.append(Message(name, call.lineno, "error", tuple(map(in_words, texts))))
            elif function == "warnings.warn":
                found.append(Message(name, call.lineno, "warning", (in_words(call.args[0]),)))
        for node in ast.walk(tree):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                kind = ast.unparse(node.exc.func)
                if kind[0].isupper() and kind != "InflateError":
                    found.append(Message(name, node.lineno, kind, tuple(map(in_words, node.exc.args))))
        yield from sorted(found, key=lambda message: message.line)


def in_words(text: ast.expr) -> str:
    """Spell an expression that makes a text as the text it makes."""
    match text:
        case ast.Constant():
            words = str(text.value)
        case ast.JoinedStr():
            words = "".join(map(in_words, text.values))
        case ast.FormattedValue():
            words = in_words(text.value)
        case ast.BinOp(op=ast.Add()):
            words = in_words(text.left) + in_words(text.right)
        case ast.BinOp(op=ast.Mult()):  # a text times a condition
            words = f"[{in_words(text.left)}]"
        case ast.IfExp():
            words = f"({in_words(text.body)} | {in_words(text.orelse)})"
        case _:
            code = ast.unparse(text)
            words = "{" + (code if len(code) <= LONGEST else code[: LONGEST - 1] + "…") + "}"
    return words


def page(found: list[Message]) -> str:
    """Set all in tables; without numbers of lines, which change with every edit."""
    groups = [
        ("Errors", "error", ("problem", *SLOTS)),
        ("Warnings", "warning", ("text",)),
        ("What the package raises and catches itself, or Python's own rules ask for", "", ("class", "text")),
    ]
    lines = [
        "# Messages",
        "",
        "Every message of the package as the code spells it: for an error what is wrong, who says so, what was",
        "expected, what was got, and what to type next. Braces hold what is put in at run time, brackets what may be",
        "left out, and a bar parts alternatives. Made by `make messages`.",
    ]
    for title, kind, head in groups:
        own = [one for one in found if one.kind == kind or (not kind and one.kind not in {"error", "warning"})]
        lines += ["", f"## {title} ({len(own)})"]
        for file in dict.fromkeys(message.file for message in own):
            lines += ["", f"### {file}", "", row(head), row(["---"] * len(head))]
            for one in (message for message in own if message.file == file):
                cells = one.slots if kind else (one.kind, "; ".join(one.slots))
                lines.append(row([*cells, *[""] * (len(head) - len(cells))]))
    return "\n".join(lines) + "\n"


def row(cells: list[str] | tuple[str, ...]) -> str:
    """Write a row of a table."""
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;") for cell in cells) + " |"


if __name__ == "__main__":
    main()
