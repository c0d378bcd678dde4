import functools

import pytest


@pytest.fixture(scope="session")
def export_of(tmp_path_factory):
    """The export of a small backbone, by the kind of its tokenizer."""
    from small_exports import small_export

    directory = tmp_path_factory.mktemp("exports")
    return functools.cache(lambda kind: small_export(directory / kind, kind))
