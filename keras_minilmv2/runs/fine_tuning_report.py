"""`report.md` of a fine-tuning run: the scores, how they were chosen, and on what."""

import datetime

import keras
import keras_hub
import numpy as np
import tensorflow as tf

from keras_minilmv2.backbones.families import family_of
from keras_minilmv2.downstream.classifiers import CLASSIFIERS
from keras_minilmv2.downstream.metrics import main_metric
from keras_minilmv2.runs.grid_runs import grid_parts, percent
from keras_minilmv2.runs.report import describe, model_name
from keras_minilmv2.utils.files import replacing_file
from keras_minilmv2.utils.hardware import hardware
from keras_minilmv2.utils.tables import clock, markdown_table
from keras_minilmv2.version import __version__


def write_report(run, setup, settings):
    """Writes `report.md`: the scores, how they were chosen, and on what."""
    task, results = run.task, run.results
    metric = main_metric(task)
    evaluation = run.evaluations[task.dev_split]
    parts = [
        f"# {model_name(settings['model'])} on {task.title}",
        f"{metric.capitalize()} on {task.dev_split}: "
        f"{percent(evaluation.metrics[metric])}. All scores are times 100.",
        _score_table(run),
    ]
    missing = [
        split
        for split in task.splits
        if split.startswith("dev") and split not in run.evaluations
    ]
    if missing:
        parts.append(f"Not measured, as there is no file: {', '.join(missing)}.")
    if len(results) > 1:
        parts += grid_parts(results, run.cell, metric, task.dev_split)
    parts += [
        markdown_table(["setting", "value"], _facts(run, setup, settings)),
        "The model is in `model/`, a keras-nlp preset: "
        "`keras_hub.models.TextClassifier.from_preset` reads it"
        + _import_note(setup.backbone)
        + ". Its predictions are in `predictions/`, all metrics in `metrics.json`, the "
        "result of each run in `cells/`. For a test split: `keras-minilmv2 evaluate`.",
    ]
    with replacing_file(run.output_dir / "report.md") as temporary:
        temporary.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _score_table(run):
    task = run.task
    if not task.languages:
        rows = [
            [
                split,
                f"{len(evaluation.examples):,}",
                *(percent(evaluation.metrics[name]) for name in task.metrics),
            ]
            for split, evaluation in run.evaluations.items()
        ]
        return markdown_table(["split", "examples", *task.metrics], rows)
    metric = main_metric(task)
    rows = [["mean of languages"], *([language] for language in task.languages)]
    for evaluation in run.evaluations.values():
        names = [metric, *(f"{metric}_{language}" for language in task.languages)]
        for row, name in zip(rows, names, strict=True):
            known = name in evaluation.metrics
            row.append(percent(evaluation.metrics[name]) if known else "not measured")
    header = ["language", *(f"{split} {metric}" for split in run.evaluations)]
    return markdown_table(header, rows)


def _facts(run, setup, settings):
    task, cell = run.task, run.cell
    result = run.results[cell]
    number = f"{settings['num_train_examples']:,}"
    if task.num_train and task.num_train != settings["num_train_examples"]:
        number += f" of {task.num_train:,}"
    reaching = np.mean(setup.train.lengths == setup.train.sequence_length)
    facts = [
        ["model", f"{settings['model']}, {describe(setup.backbone)}"],
        ["training examples", number],
        ["data", settings["data_dir"] or "TFDS"],
        [
            "learning rate, epochs, seed",
            f"{cell.learning_rate:g}, {cell.epochs}, {cell.seed}",
        ],
        ["batch size", f"{setup.batch_size}"],
        [
            "sequence length",
            f"{setup.train.sequence_length} tokens, which {100 * reaching:.1f}% of the "
            "training examples reach",
        ],
        ["warm-up, weight decay", f"{setup.warmup_fraction}, {setup.weight_decay}"],
        ["training loss by epoch", ", ".join(f"{x:.4f}" for x in result.losses)],
        ["runs", f"{len(run.results)}"],
        ["precision", setup.dtype_policy],
        ["hardware", hardware()],
        ["wall time", clock(sum(result.seconds for result in run.results.values()))],
        ["date", datetime.date.today().isoformat()],
        [
            "versions",
            f"keras-minilmv2 {__version__}, Keras {keras.__version__}, TensorFlow "
            f"{tf.__version__}, keras-hub {keras_hub.__version__}",
        ],
    ]
    num_broken = setup.train_examples.num_broken + setup.dev_examples.num_broken
    if num_broken:
        facts.insert(2, ["rows left out, too few columns", f"{num_broken}"])
    return facts


def _import_note(backbone):
    """What must be imported first for a classifier that keras-hub does not have."""
    module = CLASSIFIERS[family_of(backbone).backbone_class].__module__
    if not module.startswith("keras_minilmv2"):
        return ""
    return f" after `import {module}`"
