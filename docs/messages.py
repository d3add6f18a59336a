"""List every error and warning of the package as its code spells them: `make messages` writes messages.md.

What the code puts in at run time stands in braces; alternatives are parted by a bar.
"""

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from inflate3d.atomic import write_text

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "inflate3d"
PAGE_FILE = Path(__file__).parent / "messages.md"
SLOTS = ("where", "expected", "got", "fix")
LONGEST = 48  # letters of code in braces
FEWEST_WORDS = 3  # of a constant that is a text
TELLING = {"InflateError", "warnings.warn"}
TELLING_NAMES = {"problem", "what"}  # parameters that are a part of what is wrong
PARTS = ("fault", "note", "reason", "difference", "problem")  # in the names of what holds or gives such texts

Function = ast.FunctionDef | ast.AsyncFunctionDef
Place = tuple[str, Function | None]  # a file, and a function in it


class Message(NamedTuple):
    """One place in the code that tells the user something."""

    file: str
    line: int
    kind: str
    slots: tuple[str, ...]


class Package(NamedTuple):
    """The code, and who calls whom.

    Attributes:
        trees: By file.
        owners: The innermost function around a node, by the node's id.
        calls: By the name of what is called: the file, and the call.
        importers: By module and name: the files that import it.
    """

    trees: dict[str, ast.Module]
    owners: dict[int, Function | None]
    calls: dict[str, list[tuple[str, ast.Call]]]
    importers: dict[tuple[str, str], set[str]]


def main() -> None:
    """Write the page."""
    write_text(PAGE_FILE, page(list(messages())))


def messages() -> Iterator[Message]:
    """Find each `InflateError(...)`, `warnings.warn(...)`, `raise` of another class, and what is put into these."""
    package = read_package()
    found = []
    for name, tree in package.trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                found += told_by(package, name, node)
            elif isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                kind = ast.unparse(node.exc.func)
                if kind[0].isupper() and kind != "InflateError":
                    found.append(Message(name, node.lineno, kind, tuple(map(in_words, node.exc.args))))
            found += [Message(name, node.lineno, "part", (in_words(text),)) for text in parts(package, node)]
        found += [Message(name, node.lineno, "part", (text,)) for node, text in constants(package, tree)]
    yield from sorted(dict.fromkeys(found), key=lambda message: (message.file, message.line))


def read_package() -> Package:
    """Parse all files."""
    files = sorted(SOURCE.rglob("*.py"))
    trees = {str(file.relative_to(SOURCE)): ast.parse(file.read_text()) for file in files}
    package = Package(trees, {}, defaultdict(list), defaultdict(set))
    for name, tree in trees.items():
        note_owners(package.owners, tree, None)
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                package.calls[ast.unparse(node.func).rpartition(".")[2]].append((name, node))
            elif isinstance(node, ast.ImportFrom) and node.module:
                for alias in node.names:
                    package.importers[node.module, alias.name].add(name)
    return package


def note_owners(owners: dict[int, Function | None], node: ast.AST, function: Function | None) -> None:
    """Write down the innermost function around each node."""
    owners[id(node)] = function
    for child in ast.iter_child_nodes(node):
        note_owners(owners, child, node if isinstance(node, Function) else function)


def told_by(package: Package, file: str, call: ast.Call) -> Iterator[Message]:
    """Give the messages that a call makes, one for each caller where a function makes them of what it is given."""
    function, owner = ast.unparse(call.func), package.owners[id(call)]
    if function == "warnings.warn":
        for name, line, (text,) in spelled(package, (file, owner), call.lineno, (assigned(owner, call.args[0]),)):
            yield Message(name, line, "warning", (text,))
    elif function == "InflateError" and call.args and getattr(owner, "name", "") != "_rebuild":
        given = {word.arg: word.value for word in call.keywords}
        texts = (call.args[0], *(given[slot] for slot in SLOTS if slot in given))
        for name, line, slots in spelled(package, (file, owner), call.lineno, texts):
            yield Message(name, line, "error", slots)


def assigned(function: Function | None, text: ast.expr) -> ast.expr:
    """Give what a function assigns to a text that is a name."""
    for node in ast.walk(function) if function and isinstance(text, ast.Name) else ():
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=value) if name == text.id:
                return value
    return text


def spelled(
    package: Package, place: Place, line: int, texts: tuple[ast.expr, ...], depth: int = 4
) -> Iterator[tuple[str, int, tuple[str, ...]]]:
    """Spell texts at their place; where one of them is a parameter, or a part of the first, at each call of it."""
    file, function = place
    given = {text.id for text in (texts[0], *texts[2:]) if isinstance(text, ast.Name)}  # the second one says where
    given |= {node.id for node in ast.walk(texts[0]) if isinstance(node, ast.Name) and node.id in TELLING_NAMES}
    follow = function and depth and given & {argument.arg for argument in arguments(function)}
    callers = callers_of(package, file, function) if follow else []
    if not callers:
        yield file, line, tuple(map(in_words, texts))
    for name, call in callers:
        values = bound(function, call)
        inner = tuple(Filled(values).visit(ast.parse(ast.unparse(text), mode="eval").body) for text in texts)
        yield from spelled(package, (name, package.owners[id(call)]), call.lineno, inner, depth - 1)


def arguments(function: Function | None) -> list[ast.arg]:
    """List the parameters of a function, without `self`."""
    if function is None:
        return []
    every = (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)
    return [argument for argument in every if argument.arg not in {"self", "cls"}]


def callers_of(package: Package, file: str, function: Function) -> list[tuple[str, ast.Call]]:
    """Find the calls of a function: in its file, and in those that import it by name."""
    module = "inflate3d." + file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    importing = {file, *package.importers.get((module, function.name), ())}
    return [(name, call) for name, call in package.calls.get(function.name, []) if name in importing]


def bound(function: Function, call: ast.Call) -> dict[str, ast.expr]:
    """Give each parameter the expression that a call passes, or its default."""
    every = arguments(function)
    positional = [argument for argument in every if argument not in function.args.kwonlyargs]
    values = dict(zip([one.arg for one in positional[::-1]], function.args.defaults[::-1], strict=False))
    keyword = zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True)
    values |= {argument.arg: default for argument, default in keyword if default is not None}
    values |= dict(zip([one.arg for one in positional], call.args, strict=False))
    return values | {word.arg: word.value for word in call.keywords if word.arg}


class Filled(ast.NodeTransformer):
    """Puts what is passed in the place of parameters."""

    def __init__(self, values: dict[str, ast.expr]) -> None:
        self.values = values

    def visit_Name(self, node: ast.Name) -> ast.expr:
        """Replace a name."""
        return self.values.get(node.id, node)


def parts(package: Package, node: ast.AST) -> Iterator[ast.expr]:
    """Give the texts that are put on a list of faults or notes, or that a function of such a name gives back."""
    match node:
        case ast.Call(func=ast.Attribute(value=target, attr="append"), args=[value]):
            name = ast.unparse(target)
        case ast.AugAssign(target=target, value=value) | ast.Assign(targets=[target], value=value):
            name = ast.unparse(target)
        case ast.Return(value=ast.expr() as value) | ast.Yield(value=ast.expr() as value):
            name = getattr(package.owners[id(node)], "name", "")
        case _:
            return
    if is_part(name):
        yield from texts_in(value)


def is_part(name: str) -> bool:
    """Whether something of this name holds texts that are put into messages."""
    return any(word in name.lower() for word in PARTS)


def texts_in(value: ast.expr) -> Iterator[ast.expr]:
    """Give the texts in an expression: itself, those of a list, or of a choice between them."""
    match value:
        case ast.Constant(value=str(text)) if len(text.split()) >= FEWEST_WORDS:
            yield value
        case ast.JoinedStr() if any(isinstance(part, ast.Constant) for part in value.values):
            yield value
        case ast.List(elts=many) | ast.Tuple(elts=many):
            for one in many:
                yield from texts_in(one)
        case ast.IfExp(body=one, orelse=other):
            yield from (*texts_in(one), *texts_in(other))
        case ast.ListComp(elt=one) | ast.GeneratorExp(elt=one):
            yield from texts_in(one)
        case ast.BinOp(op=ast.Mult(), left=one):
            yield from texts_in(one)
        case ast.BinOp(op=ast.Add(), left=one, right=other):
            yield from (*texts_in(one), *texts_in(other))


def constants(package: Package, tree: ast.Module) -> Iterator[tuple[ast.stmt, str]]:
    """Give the constants of a file that are sentences, and told as they are."""
    told = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) in TELLING]
    told += [node for node in ast.walk(tree) if is_part(getattr(package.owners.get(id(node)), "name", ""))]
    names = {name.id for node in told for name in ast.walk(node) if isinstance(name, ast.Name)}
    for node in tree.body:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Constant(value=str(text))):
                if name in names and len(text.split()) >= FEWEST_WORDS:
                    yield node, text


def in_words(text: ast.expr) -> str:
    """Spell an expression that makes a text as the text it makes."""
    match text:
        case ast.Constant():
            words = str(text.value)
        case ast.JoinedStr():
            words = "".join(map(in_words, text.values))
        case ast.FormattedValue():
            words = in_words(text.value)
        case ast.BinOp(op=ast.Add()) if not is_arithmetic(text):
            words = in_words(text.left) + in_words(text.right)
        case ast.BinOp(op=ast.Mult()):  # a text times a condition
            words = f"[{in_words(text.left)}]"
        case ast.IfExp(orelse=ast.Constant(value="")):
            words = f"[{in_words(text.body)}]"
        case ast.IfExp():
            words = f"({in_words(text.body)} | {in_words(text.orelse)})"
        case ast.BoolOp(op=ast.Or(), values=[ast.Constant(value=""), other]):
            words = in_words(other)
        case ast.Call(func=ast.Name(id="str"), args=[one]):
            words = in_words(one)
        case _:
            code = ast.unparse(text)
            words = "{" + (code if len(code) <= LONGEST else code[: LONGEST - 1] + "…") + "}"
    return words


def is_arithmetic(text: ast.BinOp) -> bool:
    """Whether a sum is one of numbers."""
    return any(isinstance(one, ast.Constant) and not isinstance(one.value, str) for one in (text.left, text.right))


def page(found: list[Message]) -> str:
    """Set all in tables; without numbers of lines, which change with every edit."""
    kinds = {"error", "warning", "part"}
    groups = [
        ("Errors", "error", ("problem", *SLOTS)),
        ("Warnings", "warning", ("text",)),
        ("Texts that are put into these, such as faults of which several are told together", "part", ("text",)),
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
        own = [one for one in found if one.kind == kind or (not kind and one.kind not in kinds)]
        lines += ["", f"## {title} ({len(own)})"]
        for file in dict.fromkeys(message.file for message in own):
            lines += ["", f"### {file}", "", row(head), row(["---"] * len(head))]
            cells = [one.slots if kind else (one.kind, "; ".join(one.slots)) for one in own if one.file == file]
            lines += dict.fromkeys(row([*filled, *[""] * (len(head) - len(filled))]) for filled in cells)
    return "\n".join(lines) + "\n"


def row(cells: list[str] | tuple[str, ...]) -> str:
    """Write a row of a table."""
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;") for cell in cells) + " |"


if __name__ == "__main__":
    main()
