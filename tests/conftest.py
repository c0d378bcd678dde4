import contextlib
import ctypes
import gc
import os
import sys
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    # The workers share the cores: more threads would only wait for each other.
    os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
    os.environ.setdefault("TF_NUM_INTEROP_THREADS", "1")


def pytest_collection_finish():
    """What was imported stays, and is not looked through at every collection."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def data_dir():
    """The real data of the project; tests that need it are skipped without it."""
    default = Path(__file__).parents[2] / "shared" / "data"
    path = Path(os.environ.get("KERAS_MINILMV2_DATA", default))
    if not path.is_dir():
        pytest.skip(f"no data at {path}")
    return path


@pytest.fixture(autouse=True, scope="module")
def _memory_is_given_back():
    """Models are cycles, and freed memory stays with the process unless it is asked."""
    from keras_minilmv2.backbones.traces import forgotten_gradients

    with forgotten_gradients():
        yield
    gc.collect()
    if sys.platform.startswith("linux"):
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)


@pytest.fixture(autouse=True)
def _traced_steps_are_given_back():
    """Within a module too: some trace twenty of them."""
    from keras_minilmv2.backbones.traces import forgotten_gradients

    with forgotten_gradients():
        yield
