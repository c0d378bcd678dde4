"""Exports a small model again and again, until it is killed.

python export_repeatedly.py DIRECTORY
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

if __name__ == "__main__":
    from small_exports import small_export

    while True:
        version = small_export(sys.argv[1], "word_piece", sequence_length=8)
        print(version.name, flush=True)
