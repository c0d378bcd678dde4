"""Imports run one way, and private names of other libraries have one place."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "keras_minilmv2"
# The floor that each room stands on: it may import from itself and from lower floors.
FLOORS = {
    "version": 0,
    "utils": 0,
    "tokenization": 1,
    "backbones": 2,
    "data": 2,
    "training": 2,
    "distillation": 3,
    "downstream": 3,
    "serving": 3,
    "heads": 4,
    "planning": 5,
    "runs": 5,
    "commands": 6,
    "cli": 7,
    "__main__": 8,
    "__init__": 8,
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
            assert other == part or FLOORS[other] < FLOORS[part], module


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


def compared_texts(path):
    """Texts that a value is compared with or matched."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Compare | ast.MatchValue):
            for each in ast.walk(node):
                if isinstance(each, ast.Constant) and isinstance(each.value, str):
                    yield each.value


def dict_keys(path):
    """The texts that are keys of each dict."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Dict):
            yield {k.value for k in node.keys if isinstance(k, ast.Constant)}


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_what_differs_between_objectives_is_in_their_records(path):
    from keras_minilmv2.distillation.objectives import OBJECTIVES

    if path.name == "objectives.py":
        return
    assert set(OBJECTIVES).isdisjoint(compared_texts(path))
    # A table by objective; a single name is also an English word.
    assert all(len(keys & set(OBJECTIVES)) < 2 for keys in dict_keys(path))


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_name_of_a_family_is_compared_outside_families(path):
    from keras_minilmv2.backbones.families import FAMILIES

    names = {family.name for family in FAMILIES}
    names |= {family.model_type for family in FAMILIES}
    if path.name == "families.py":
        return
    assert names.isdisjoint(compared_texts(path))
    assert all(names.isdisjoint(keys) for keys in dict_keys(path))


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
