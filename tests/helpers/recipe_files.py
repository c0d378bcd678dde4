"""The files in `recipes/`, by what they are recipes of."""

from pathlib import Path

RECIPE_FILES = sorted((Path(__file__).parents[2] / "recipes").glob("*.py"))
# Of `keras-minilmv2 heads study`, of `heads subset`, and of distillations.
STUDIES = [path for path in RECIPE_FILES if path.stem.startswith("heads_")]
SUBSETS = [path for path in RECIPE_FILES if path.stem.startswith("subset_")]
DISTILLATIONS = [path for path in RECIPE_FILES if path not in (*STUDIES, *SUBSETS)]
