"""The folders tell the story: imports point down only, files stay small, optional packages stay optional."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "inflate3d"
FILES = sorted(SOURCE.rglob("*.py"))

# Top to bottom; parts in one row do not know each other.
LAYERS = [
    ["__main__"],
    ["cli", "app"],
    ["train"],
    ["show"],
    ["results"],
    ["speed"],
    ["weights"],
    ["models"],
    ["inflation", "clips", "flow"],
    ["axes", "atomic"],
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
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: imports are written in full"
            submodules = {f"{node.module}.{alias.name}" for alias in node.names}
            known = {module_name(file) for file in FILES}
            found |= (submodules & known) or {node.module}
    return found


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
    allowed = required | set(sys.stdlib_module_names) | {"inflate3d"}
    for path in FILES:
        foreign = {module.split(".")[0] for module in imports(path, inside_functions=False)} - allowed
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


def test_the_public_names_are_few_and_real():
    import inflate3d

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
