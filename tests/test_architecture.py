"""docs/architecture.md's picture of imports is true: every module is in it, and imports go downwards only."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "project" / "brats_inpainting"
PICTURE = (ROOT / "docs" / "architecture.md").read_text().partition("```text\ncli\n")[2].partition("```")[0]
LAYERS = [["cli"], *(line.split(", ") for line in PICTURE.splitlines())]
MODULES = {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in PACKAGE.rglob("*.py")}
MODULES = {name: path for name, path in MODULES.items() if not name.endswith(("__init__", "__main__"))}
UNBOUND = {"data", "diffusion"}  # they must not know each other
SPECIAL = {("fill", "cluster")}  # a type only


def room(module):
    """The package or module that a layer names."""
    return module.partition(".")[0]


def imports(path):
    """The modules of the package that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "brats_inpainting":
            base = node.module.partition(".")[2]
            for alias in node.names:
                full = f"{base}.{alias.name}".strip(".")
                yield full if full in MODULES or full in {room(name) for name in MODULES} else base


def test_every_module_is_in_one_layer():
    shown = [name for layer in LAYERS for name in layer]
    assert sorted(shown) == sorted({room(name) for name in MODULES})


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_downwards(module):
    level = {name: number for number, layer in enumerate(LAYERS) for name in layer}
    own = room(module)
    for other in {room(name) for name in imports(MODULES[module])} - {own, ""}:
        assert (own, other) in SPECIAL or level[other] >= level[own], f"{module} imports {other}"
        assert {own, other} != UNBOUND


def test_there_is_no_circle():
    left = {name: {other for other in imports(path) if (name, other) not in SPECIAL} for name, path in MODULES.items()}
    while free := {name for name, others in left.items() if not others & left.keys()}:
        left = {name: others for name, others in left.items() if name not in free}
    assert not left


def test_the_straight_line_is_short():
    assert len(MODULES["inpainter"].read_text().splitlines()) <= 220
