"""The files in `recipes/`, by what they are recipes of."""

from pathlib import Path

RECIPE_FILES = sorted((Path(__file__).parents[2] / "recipes").glob("*.py"))
# Of `keras-minilmv2 heads study`, and of distillations.
STUDIES = [path for path in RECIPE_FILES if path.stem.startswith("heads_")]
DISTILLATIONS = [path for path in RECIPE_FILES if path not in STUDIES]
