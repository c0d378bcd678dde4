"""Imported, hides TensorFlow, as if it were not installed."""

import importlib.abc
import sys


class _Hidden(importlib.abc.MetaPathFinder):
    def find_spec(self, fullname, path=None, target=None):
        library = fullname.partition(".")[0]
        if library in ("tensorflow", "tensorflow_datasets", "tensorflow_text"):
            raise ModuleNotFoundError(f"No module named {library!r}", name=library)


sys.meta_path.insert(0, _Hidden())
