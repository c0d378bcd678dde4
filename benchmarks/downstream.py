"""What students are worth downstream, against the tokens they were distilled on.

    python benchmarks/downstream.py --corpus DIR --glue DIR --output-dir out/downstream

Runs `recipes/laptop_l3_h384.py` with three initializations, and fine-tunes all students
alike, with the baselines: an untrained student, the teacher's first layers, the layers
that a student is initialized from, and a student of the hidden-state objective.
Writes `table.md`, `rows.json` and `curve.png`.

Takes hours: 7,500 steps of 64 x 64 tokens are 30.7M tokens, 1 to 3 hours on 2 cores,
and the scores as long again. The same command resumes after what is finished.
"""

import argparse
import json
import statistics
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import harness
import numpy as np
from matplotlib.figure import Figure
from scipy.stats import spearmanr

from keras_minilmv2.backbones.families import uses_segment_ids
from keras_minilmv2.backbones.loading import load_backbone, load_tokenizer
from keras_minilmv2.downstream.classifiers import text_preprocessor
from keras_minilmv2.downstream.registry import TASKS as ALL_TASKS
from keras_minilmv2.downstream.texts import encode
from keras_minilmv2.runs.directory import RunDirectory, RunKind
from keras_minilmv2.runs.grid import CELLS, FinishedCells, grid_cells
from keras_minilmv2.runs.recipes import load_recipe
from keras_minilmv2.runs.settings import Settings
from keras_minilmv2.training.history import History
from keras_minilmv2.utils.files import replacing_file
from keras_minilmv2.utils.hardware import hardware
from keras_minilmv2.utils.tables import count, markdown_table

RECIPE = Path(__file__).parents[1] / "recipes" / "laptop_l3_h384.py"
LAYERS = ",".join(map(str, load_recipe(RECIPE).initialization.teacher_layers))
# Epochs, and training examples where not all of them.
TASKS = {"stsb": (3, None), "mrpc": (3, None), "sst2": (1, 16_000)}
TITLES = {"stsb": "STS-B", "mrpc": "MRPC", "sst2": "SST-2"}
# The papers' rates are for students that have seen far more text.
LEARNING_RATE = 3e-4
# Shares of the steps of a run after which a student is scored too.
POINTS = (1 / 15, 2 / 15, 1 / 3, 2 / 3)
# What the other runs change in the recipe.
OTHERS = {
    "from projection": [f"student_initialization=projection:{LAYERS}"],
    "from random weights": ["student_initialization=random"],
    "hidden states": ["objective=hidden_states"],
}


@dataclass(frozen=True)
class Student:
    """A student to score.

    Args:
        name: str.
        path: path of its preset.
        tokens: int, that it was distilled on.
        loss: float, held-out relation loss, or None where it was not measured.
        tasks: names of the tasks that it is fine-tuned on.
    """

    name: str
    path: Path
    tokens: int = 0
    loss: float | None = None
    tasks: tuple = tuple(TASKS)


@dataclass(frozen=True, kw_only=True)
class DownstreamSettings(Settings):
    """What all runs in the output directory share."""

    corpus: str
    glue: str
    steps: int
    other_steps: int
    dtype_policy: str


def directory(name):
    """A name as that of a directory."""
    kept_characters = (c if c.isalnum() else " " for c in name.replace("'", ""))
    return "_".join("".join(kept_characters).split())


MAIN_RUN = f"from layers {LAYERS}"
UNDISTILLED = f"layers {LAYERS}, not distilled"
# Students that are written without distillation, and how.
BASELINES = {
    "teacher's first layers": ["--truncated-teacher"],
    UNDISTILLED: [],
    "untrained": ["--set", "student_initialization=random"],
}
KIND = RunKind(
    name="downstream",
    settings_class=DownstreamSettings,
    settings_file="settings.json",
    outputs=(
        *("settings.json", "recipe.json", "prepared", "scores"),
        *("rows.json", "table.md", "curve.png"),
        *map(directory, (MAIN_RUN, *BASELINES, *OTHERS)),
    ),
    evidence=("settings.json",),
    last="",
)


def main():
    """Runs what is missing and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name in ("--corpus", "--glue", "--output-dir"):
        parser.add_argument(name, required=True, type=Path, metavar="DIR")
    parser.add_argument("--steps", type=int, default=7_500, help="of the main run")
    parser.add_argument("--other-steps", type=int, default=1_000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], metavar="N")
    parser.add_argument("--dtype-policy", default="float32")
    parser.add_argument(
        "--without", nargs="+", default=[], choices=OTHERS, help="runs to skip"
    )
    parser.add_argument(
        "--tasks", nargs="+", default=list(TASKS), choices=TASKS, help="default: all"
    )
    options = parser.parse_args()
    settings = DownstreamSettings(
        corpus=str(options.corpus),
        glue=str(options.glue),
        steps=options.steps,
        other_steps=options.other_steps,
        dtype_policy=options.dtype_policy,
    )
    rows = []
    with RunDirectory.open(options.output_dir, settings, KIND) as output:
        output.start()
        # Scored one after the other: each makes a row of a table at once.
        for student in students(options):
            rows.append(score(student, options))
            write(rows, options)


def students(options):
    """Makes the students.

    Yields:
        `Student`; those that only make the curve come last.
    """
    recipe = write_recipe(options)
    *on_the_way, last = distilled(MAIN_RUN, recipe, [], options.steps, options)
    yield last
    for name, arguments in BASELINES.items():
        path = options.output_dir / directory(name)
        if not path.exists():
            run("student", recipe, "--output-dir", path, *arguments)
        loss = None
        if name == UNDISTILLED:
            loss = held_out(options.output_dir / directory(MAIN_RUN))[0][1]
        yield Student(name, path, loss=loss)
    for name, changes in OTHERS.items():
        if name not in options.without:
            *others, last = distilled(
                name, recipe, changes, options.other_steps, options
            )
            on_the_way += others
            yield last
    yield from on_the_way


def write_recipe(options):
    """Prepares the corpus and writes the main run's recipe; returns its path."""
    recipe = load_recipe(RECIPE)
    prepared = options.output_dir / "prepared"
    if not prepared.exists():
        run(
            *("prepare", options.corpus, "--tokenizer", recipe.teacher),
            *("--sequence-length", recipe.sequence_length, "--output-dir", prepared),
        )
    path = options.output_dir / "recipe.json"
    replace(
        recipe,
        corpus=(str(prepared),),
        dtype_policy=options.dtype_policy,
        **run_settings(options.steps),
    ).save(path)
    return path


def run_settings(steps):
    """Fields that depend on the length of a run; `keep_every` gives `POINTS`."""
    every = max(1, steps // 75)
    return {
        "total_steps": steps,
        "warmup_steps": min(150, steps // 10),
        "evaluate_every": every,
        "checkpoint_every": every,
        "keep_every": min(5 * every, steps),
    }


def distilled(name, recipe, changes, steps, options):
    """Distils; a finished run is returned as it is.

    Returns:
        list of `Student`: those on the way, for STS-B alone, and the last.
    """
    path = options.output_dir / directory(name)
    settings = [f"{key}={value}" for key, value in run_settings(steps).items()]
    sets = [part for one in (*settings, *changes) for part in ("--set", one)]
    run("distill", recipe, "--output-dir", path, *sets)
    losses = dict(held_out(path))
    last = max(losses)
    kept = {int(one.name[len("step-") :]): one for one in (path / "kept").iterdir()}
    kept.pop(last, None)
    chosen = {min(kept, key=lambda s: abs(s - p * last)) for p in POINTS if kept}
    presets = {step: kept[step] for step in sorted(chosen)} | {last: path / "student"}
    per_step = tokens_per_step(recipe)
    compares = "objective=hidden_states" not in changes
    return [
        Student(
            name,
            preset,
            step * per_step,
            losses[step] if compares else None,
            tuple(TASKS) if step == last else ("stsb",),
        )
        for step, preset in presets.items()
    ]


def tokens_per_step(recipe):
    """Tokens of an update of a recipe file."""
    recipe = load_recipe(recipe)
    return recipe.batch_size * recipe.sequence_length


def held_out(path):
    """Pairs of step and held-out loss out of a run's history."""
    history = History.load_csv(path / "history.csv")
    return list(zip(*history.series("held_out_loss"), strict=True))


def score(student, options):
    """Scores a student; a row of the table as a dict."""
    scores = {}
    for task in options.tasks:
        if task not in student.tasks:
            continue
        epochs, num_examples = TASKS[task]
        name = directory(student.name) + f"_{student.tokens}"
        path = options.output_dir / "scores" / task / name
        wanted = grid_cells([LEARNING_RATE], [epochs], options.seeds)
        finished = FinishedCells(path / CELLS)
        if not set(wanted) <= set(finished.load()):
            some = ()
            if num_examples is not None:
                some = ("--num-train-examples", num_examples)
            run(
                *("finetune", student.path, "--task", task),
                *("--data-dir", options.glue, "--output-dir", path),
                *("--learning-rate", LEARNING_RATE, "--epochs", epochs, *some),
                *("--dtype-policy", options.dtype_policy, "--seed", *options.seeds),
            )
        results = finished.load()
        found = [results[cell].score for cell in wanted]
        # A run that diverged has none.
        scores[task] = [score for score in found if score is not None]
    return {
        "student": student.name,
        "tokens": student.tokens,
        "held_out_loss": student.loss,
        "embeddings": embeddings_score(student.path, options.glue),
        "scores": scores,
    }


def embeddings_score(path, glue):
    """Spearman of STS-B dev: cosines of mean hidden states, without fine-tuning."""
    backbone = load_backbone(str(path))
    preprocessor = text_preprocessor(backbone, load_tokenizer(str(path)), 128)
    examples = ALL_TASKS["stsb"].load("dev", glue)
    means = []
    for column in examples.texts:
        encoded = encode((column,), preprocessor, uses_segment_ids(backbone))
        batches = np.array_split(np.arange(len(encoded)), 1 + len(encoded) // 50)
        means.append(np.concatenate([_means(backbone, encoded, b) for b in batches]))
    first, second = means
    norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    return float(spearmanr((first * second).sum(1) / norms, examples.labels)[0])


def _means(backbone, encoded, indices):
    batch = encoded.inputs(indices, encoded.lengths[indices].max())
    states = backbone(batch, training=False)["sequence_output"].numpy()
    mask = batch["padding_mask"][..., None]
    return (states * mask).sum(1) / mask.sum(1)


def write(rows, options):
    """Writes `rows.json`, `table.md` and `curve.png`, as far as there are rows."""
    settings = {
        "seeds": options.seeds,
        "learning_rate": LEARNING_RATE,
        "tasks": {task: TASKS[task] for task in options.tasks},
        "dtype_policy": options.dtype_policy,
        "hardware": hardware(),
    }
    with replacing_file(options.output_dir / "rows.json") as path:
        path.write_text(json.dumps({"settings": settings, "rows": rows}, indent=1))
    with replacing_file(options.output_dir / "table.md") as path:
        path.write_text(table(rows, options.tasks) + "\n")
    with replacing_file(options.output_dir / "curve.png") as path:
        curve(rows).savefig(path, format="png", dpi=150)
    print(table(rows, options.tasks), flush=True)


def table(rows, tasks):
    """The rows as Markdown; scores times 100, mean and deviation over seeds."""
    header = ["student", "tokens", "loss", "embeddings", *(TITLES[t] for t in tasks)]
    return markdown_table(
        header,
        [
            [
                row["student"],
                count(row["tokens"]),
                "" if row["held_out_loss"] is None else f"{row['held_out_loss']:.3f}",
                f"{100 * row['embeddings']:.1f}",
                *(_mean(row["scores"].get(task)) for task in tasks),
            ]
            for row in rows
        ],
    )


def _mean(scores):
    if not scores:
        return harness.NOT_MEASURED
    mean = f"{100 * statistics.fmean(scores):.1f}"
    if len(scores) > 1:
        mean += f" ± {100 * statistics.stdev(scores):.1f}"
    return mean


def curve(rows):
    """STS-B over tokens; what was not distilled as a level."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    scored = [row for row in rows if row["scores"].get("stsb")]
    for i, name in enumerate(dict.fromkeys(row["student"] for row in scored)):
        of = sorted(
            (row["tokens"], 100 * statistics.fmean(row["scores"]["stsb"]))
            for row in scored
            if row["student"] == name
        )
        if of[-1][0] == 0:
            axes.axhline(of[0][1], color=f"C{i}", linestyle="--", label=name)
        else:
            tokens, values = zip(*of, strict=True)
            axes.plot(np.divide(tokens, 1e6), values, f"C{i}o-", label=name)
    axes.set(xlabel="tokens distilled [millions]", ylabel="STS-B dev, Spearman x 100")
    axes.set_xlim(left=0)
    figure.legend(loc="outside right upper")
    axes.grid(alpha=0.3)
    return figure


def run(*arguments):
    """Runs a command of the package in a process of its own."""
    command = [sys.executable, "-m", "keras_minilmv2", *map(str, arguments)]
    print(" ".join(command[2:]), flush=True)
    subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
