"""Imports run one way, and private names of other libraries have one place."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "keras_minilmv2"
# A module may import from its own rank's package and from lower ranks.
RANKS = {
    "version": 0,
    "files": 0,
    "tables": 0,
    "seeds": 0,
    "gradients": 0,
    "devices": 0,
    "backbones": 1,
    "distillation": 2,
    "training": 3,
    "data": 3,
    "evaluation": 3,
    "serving": 3,
    "recipes": 3,
    "report": 4,
    "plots": 4,
    "grid_runs": 4,
    "runs": 5,
    "fine_tuning_report": 5,
    "span_runs": 5,
    "shrinking": 5,
    "planning": 5,
    "info": 5,
    "demo": 6,
    "fine_tuning_runs": 6,
    "layer_choice": 7,
    "exporting": 7,
    "commands": 8,
    "cli": 9,
    "__main__": 10,
    "__init__": 11,
}
MODULES = sorted(PACKAGE.rglob("*.py"))


def part_of(path):
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path.name} has a relative import"
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_run_one_way(path):
    part = part_of(path)
    for module in imports(path):
        if module.startswith("keras_minilmv2."):
            other = module.split(".")[1]
            assert other == part or RANKS[other] < RANKS[part], module


def private_attributes(path):
    """Private attributes read of anything but self, cls and the module's own names."""
    tree = ast.parse(path.read_text())
    own = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id in ("self", "cls")
    }
    own |= {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
    }
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Attribute)
            and node.attr.startswith("_")
            and not node.attr.startswith("__")
            and node.attr not in own
        ):
            yield node.attr


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_private_names_of_libraries_are_read_in_backbones_only(path):
    if part_of(path) == "backbones":
        return
    assert list(private_attributes(path)) == []
    for module in imports(path):
        assert ".src" not in module, module
        assert not any(part.startswith("_") for part in module.split(".")), module


def test_importing_the_package_imports_no_framework():
    import subprocess
    import sys

    code = "import sys, keras_minilmv2; print('tensorflow' in sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout == "False\n"


def test_every_public_name_is_there():
    import keras_minilmv2 as km

    assert sorted(km.__all__) == dir(km)
    for name in km.__all__:
        assert getattr(km, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        km.nothing  # noqa: B018
