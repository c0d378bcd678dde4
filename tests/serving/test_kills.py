import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from keras_minilmv2.serving.manifest import read_manifest
from keras_minilmv2.serving.versions import versions

SCRIPT = Path(__file__).with_name("export_repeatedly.py")


@pytest.mark.slow
@pytest.mark.parametrize("num_kills", [1, 4])
def test_an_export_that_is_killed_leaves_no_half_version(tmp_path, num_kills):
    generator = random.Random(0)
    for _ in range(num_kills):
        process = subprocess.Popen(
            [sys.executable, str(SCRIPT), str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        with process:
            process.stdout.readline()
            started = time.monotonic()
            process.stdout.readline()
            seconds = time.monotonic() - started
            time.sleep(generator.uniform(0, 1.2 * seconds))
            assert process.poll() is None
            process.kill()
    assert len(versions(tmp_path)) >= 2 * num_kills
    for number in versions(tmp_path):
        assert len(read_manifest(tmp_path / str(number))["files"]) >= 6
    for path in tmp_path.iterdir():
        assert path.name.startswith(".") or path.is_file() or path.name.isdigit()
