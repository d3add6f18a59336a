"""The folders tell the story: imports point down only, files stay small, optional packages stay optional."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import inflate3d

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "inflate3d"
FILES = sorted(SOURCE.rglob("*.py"))

# Top to bottom; parts in one row do not know each other.
LAYERS = [
    ["__main__"],
    ["cli"],
    ["app"],
    ["train"],
    ["show"],
    ["results"],
    ["speed"],
    ["weights"],
    ["models"],
    ["inflation", "clips", "flow"],
    ["axes", "arrays", "atomic", "threads"],
    ["errors"],
]
HEIGHT = {part: len(LAYERS) - row for row, parts in enumerate(LAYERS) for part in parts}


def module_name(path: Path) -> str:
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def part_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def imports(path: Path, *, inside_functions: bool) -> set[str]:
    """Modules a file imports; without `inside_functions`, only those that importing it imports."""
    tree = ast.parse(path.read_text())
    skipped = set()
    for node in ast.walk(tree):
        lazy = isinstance(node, ast.FunctionDef) or (
            isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        )
        if lazy and not inside_functions:
            skipped |= {id(child) for child in ast.walk(node)}
    found = set()
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{path}: imports are written in full"
            found |= {home_of(node.module, alias.name) for alias in node.names}
    return found


def home_of(module: str, name: str) -> str:
    """The module that `from module import name` needs: a submodule, the home of a public name, or `module` itself."""
    if module == "inflate3d" and name in inflate3d._HOMES:
        return f"inflate3d.{inflate3d._HOMES[name]}"
    return f"{module}.{name}" if f"{module}.{name}" in {module_name(file) for file in FILES} else module


@pytest.mark.parametrize(
    ("code", "module"),
    [
        ("from inflate3d import predict", "inflate3d.results.predict"),
        ("from inflate3d.clips import video", "inflate3d.clips.video"),
        ("from inflate3d.clips.video import open_frames", "inflate3d.clips.video"),
        ("import inflate3d.cli", "inflate3d.cli"),
        ("def f():\n    from inflate3d import load", "inflate3d.weights.load"),
    ],
)
def test_an_import_is_traced_to_its_home(tmp_path, code, module):
    (tmp_path / "file.py").write_text(code)
    assert imports(tmp_path / "file.py", inside_functions=True) == {module}


@pytest.mark.parametrize("code", ["from . import video", "from .video import open_frames"])
def test_relative_imports_are_refused(tmp_path, code):
    (tmp_path / "file.py").write_text(code)
    with pytest.raises(AssertionError, match="written in full"):
        imports(tmp_path / "file.py", inside_functions=True)


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_imports_point_down(path):
    own = part_of(module_name(path))
    for module in imports(path, inside_functions=True):
        other = part_of(module)
        if not module.startswith("inflate3d.") or not own or other == own:
            continue
        assert HEIGHT[other] < HEIGHT[own], f"{module_name(path)} imports {module}, which stands beside or above it"


def test_no_import_knots():
    graph = {module_name(path): imports(path, inside_functions=False) for path in FILES}
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join([*trail, module])
        if module in done or module not in graph:
            return
        for child in graph[module]:
            visit(child, (*trail, module))
        done.add(module)

    for module in graph:
        visit(module, ())


def test_optional_packages_are_imported_inside_functions():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    required = {requirement.split(">")[0].replace("-", "_") for requirement in project["dependencies"]}
    required |= {"PIL"} if "pillow" in required else set()
    allowed = required | set(sys.stdlib_module_names) | {"inflate3d"}
    for path in FILES:
        # a Lightning module inherits from one; what imports it, the command, asks for the extra first
        here = allowed | ({"lightning", "torchmetrics"} if part_of(module_name(path)) == "train" else set())
        foreign = {module.split(".")[0] for module in imports(path, inside_functions=False)} - here
        assert not foreign, f"{module_name(path)} imports {foreign} at the top, which a plain install has not"


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_a_file_says_its_purpose_and_stays_small(path):
    text = path.read_text()
    assert ast.get_docstring(ast.parse(text)), "the first line says what the file is for"
    assert len(text.splitlines()) <= 450
    assert path.stem not in {"utils", "util", "helpers", "helper", "common", "misc", "base"}


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_functions_have_at_most_six_parameters(path):
    command = path.parent.name == "cli"  # a command has as many parameters as it has options
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef) and not command:
            names = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            count = len([name for name in names if name.arg not in {"self", "cls"}])
            assert count <= 6, f"{path.name}: {node.name} has {count} parameters"


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_public_functions_take_at_most_three_parameters_by_position(path):
    command = path.parent.name == "cli"  # typer passes by name
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef) and not command and not node.name.startswith("_"):
            given = (*node.args.posonlyargs, *node.args.args)
            names = [arg.arg for arg in given if arg.arg not in {"self", "cls", "ctx"}]
            assert len(names) <= 3, f"{path.name}: {node.name}{tuple(names)}: put a * behind the second or third"


def test_the_public_names_are_few_and_real():
    assert len(inflate3d.__all__) <= 30
    for name in inflate3d.__all__:
        assert getattr(inflate3d, name) is not None
    assert set(inflate3d.__all__) <= set(dir(inflate3d))


def test_help_imports_nothing_heavy():
    code = "import sys; sys.argv = ['inflate3d', '--help']\n"
    code += "import inflate3d.cli\ntry:\n    inflate3d.cli.main()\nexcept SystemExit:\n    pass\n"
    code += "print('HEAVY', [m for m in ('torch', 'numpy', 'av', 'timm', 'torchvision') if m in sys.modules])"
    printed = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert "predict" in printed
    assert "HEAVY []" in printed


def public_functions(path: Path) -> list[ast.FunctionDef]:
    """Functions and methods of public classes whose names do not begin with an underscore."""
    tree = ast.parse(path.read_text())
    bodies = [tree.body, *(node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name[0] != "_")]
    return [one for body in bodies for one in body if isinstance(one, ast.FunctionDef) and one.name[0] != "_"]


@pytest.mark.parametrize("path", [path for path in FILES if "cli" not in path.parts], ids=module_name)
def test_docstrings_tell_errors_and_arguments(path):
    """What a function raises itself is in its docstring; and where there is an Args section, it names them all."""
    for function in public_functions(path):
        words = ast.get_docstring(function) or ""
        raised = [ast.unparse(node.exc) for node in ast.walk(function) if isinstance(node, ast.Raise) and node.exc]
        if any("InflateError" in error for error in raised):
            assert "Raises:" in words, f"{path.name}, {function.name}: Raises"
        arguments = [one.arg for one in (*function.args.args, *function.args.kwonlyargs)]
        if "Args:" in words:
            told = words.partition("Args:")[2]
            missing = [name for name in arguments if name not in {"self", "cls"} and f" {name}:" not in told]
            assert not missing, f"{path.name}, {function.name}: {missing}"


# Nothing is to be shown of them alone: what they hold comes out of the functions that make them
WITHOUT_EXAMPLE = {"Clip", "Failure", "InflateWarning", "Proof", "VideoPrediction"}


@pytest.mark.parametrize("name", sorted(set(inflate3d.__all__) - WITHOUT_EXAMPLE))
def test_public_names_come_with_an_example(name):
    assert "Example:" in (getattr(inflate3d, name).__doc__ or "")
