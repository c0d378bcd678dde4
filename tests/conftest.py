import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data_dir():
    """The real data of the project; tests that need it are skipped without it."""
    default = Path(__file__).parents[2] / "shared" / "data"
    path = Path(os.environ.get("KERAS_MINILMV2_DATA", default))
    if not path.is_dir():
        pytest.skip(f"no data at {path}")
    return path
