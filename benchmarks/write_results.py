"""Writes RESULTS.md out of what the benchmarks wrote with `--json`.

    python benchmarks/write_results.py benchmarks/results/*.json

A benchmark without a file is "not measured" there.
"""

import argparse
import json
from pathlib import Path

from harness import NOT_MEASURED

from keras_minilmv2.utils.files import replacing_file
from keras_minilmv2.utils.tables import markdown_table

SECTIONS = {
    "relation_loss": "The relation loss alone",
    "train_step": "The whole step, and the floor",
    "profile_step": "Where the time of a step goes",
    "largest_batch": "The largest batch",
    "paper_batch": "The paper's batch through accumulation",
    "fine_tuning": "A step of fine-tuning",
    "growth": "Growth",
    "inputs": "Input and `prepare`",
    "inference": "Inference",
    "serving_load": "Serving under load",
    "gpu_relation_loss": "The relation loss on a GPU",
}
# How each is run, from the root; TORCH is a Python that has PyTorch and transformers.
COMMANDS = {
    "relation_loss": "relation_loss.py --torch-python TORCH",
    "train_step": "train_step.py --torch-python TORCH",
    "profile_step": "profile_step.py",
    "largest_batch": "train_step.py --largest-batch --torch-python TORCH",
    "paper_batch": "train_step.py --paper-batch",
    "fine_tuning": "fine_tuning.py",
    "growth": "growth.py",
    "inputs": "inputs.py --text TEXT --vocabularies VOCABULARIES",
    "inference": "inference.py",
    "serving_load": "serving_load.py",
    "gpu_relation_loss": "gpu_relation_loss.py",
}
INTRODUCTION = """\
# Results

Written by `benchmarks/write_results.py` from what the benchmarks measured. To measure
again, on a machine that does nothing else:

```sh
{commands}
PYTHONPATH=. python benchmarks/write_results.py benchmarks/results/*.json
```

`TORCH` is a Python that has PyTorch and transformers; rows of PyTorch are skipped
without. Competitors are processes of their own, warmed up, that take turns; times are
medians with the smallest and the largest, memory is the peak of the whole process in
units of 10^6 bytes. All models have random weights."""


def main():
    """Writes the file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("json", nargs="+", type=Path)
    default = Path(__file__).parent / "RESULTS.md"
    parser.add_argument("--output", type=Path, default=default)
    options = parser.parse_args()
    contents = [json.loads(path.read_text()) for path in options.json]
    with replacing_file(options.output) as path:
        path.write_text(results(contents))


def results(contents):
    """RESULTS.md as text.

    Args:
        contents: list of what the benchmarks wrote. Of two of one benchmark, both are
            shown.

    Raises:
        ValueError: if one is of an unknown benchmark.
    """
    for content in contents:
        if content["benchmark"] not in SECTIONS:
            raise ValueError(
                f"`json` must be of one of {', '.join(SECTIONS)}. "
                f"Received: benchmark={content['benchmark']!r}."
            )
    commands = "\n".join(
        f"PYTHONPATH=. python benchmarks/{command} \\\n"
        f"    --json benchmarks/results/{name}.json"
        for name, command in COMMANDS.items()
    )
    parts = [INTRODUCTION.format(commands=commands)]
    for name, title in SECTIONS.items():
        parts.append(f"## {title}")
        found = [content for content in contents if content["benchmark"] == name]
        for content in found:
            parts += section(content)
        if not found:
            parts.append(f"{NOT_MEASURED.capitalize()}.")
    return "\n\n".join(parts) + "\n"


def section(content):
    """Paragraphs and tables of one benchmark."""
    machine = content["environment"]
    versions = ", ".join(f"{name} {v}" for name, v in machine["versions"].items())
    options = content["options"]
    yield (
        f"{content['date']}; {machine['cpu']}, {machine['num_cores']} cores, "
        f"{machine['memory'] / 1e9:.0f} GB, {' '.join(machine['instructions'])}; "
        f"{versions}. Repeats: up to {options['repeats']}; seed: {options['seed']}."
    )
    yield f"```sh\n{content['command']}\n```"
    if content["notes"]:
        yield "\n".join(content["notes"])
    for table in content["tables"]:
        yield f"### {table['title']}"
        yield markdown_table(table["header"], table["rows"])


if __name__ == "__main__":
    main()
