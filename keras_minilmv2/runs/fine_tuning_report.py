"""`report.md` of a fine-tuning run: the scores, how they were chosen, and on what."""

import datetime

import keras
import keras_hub
import numpy as np
import tensorflow as tf

from keras_minilmv2.downstream.tasks import percent
from keras_minilmv2.runs.grid_runs import grid_parts
from keras_minilmv2.runs.report import describe, model_name
from keras_minilmv2.training.callbacks import clock
from keras_minilmv2.utils.files import replacing_file
from keras_minilmv2.utils.hardware import hardware
from keras_minilmv2.utils.tables import markdown_table
from keras_minilmv2.version import __version__


def write_report(run, setup, settings):
    """Writes `report.md`: the scores, how they were chosen, and on what."""
    task, results = run.task, run.results
    metric = task.main_metric
    evaluation = run.evaluations[task.dev_split]
    parts = [
        f"# {model_name(settings['model'])} on {task.title}",
        f"{metric.capitalize()} on {task.dev_split}: "
        f"{percent(evaluation.metrics[metric])}. All scores are times 100.",
        task.table(list(run.evaluations.values())),
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
        "The model is in `model/`, which `keras_minilmv2.load_saved` reads; a text "
        "classifier is a preset of `keras_hub.models.TextClassifier`. Its predictions "
        "are in `predictions/`, all metrics in `metrics.json`, the result of each run "
        "in `cells/`. For a test split: `keras-minilmv2 evaluate`.",
    ]
    with replacing_file(run.output_dir / "report.md") as temporary:
        temporary.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _facts(run, setup, settings):
    task, cell = run.task, run.cell
    result = run.results[cell]
    number = f"{settings['num_train_examples']:,}"
    published = getattr(task, "num_train", None)
    if published and published != settings["num_train_examples"]:
        number += f" of {published:,}"
    if setup.train_examples.skipped:
        number += f"; {setup.train_examples.skipped}"
    reaching = np.mean(setup.train.lengths == setup.train.sequence_length)
    facts = [
        ["model", f"{settings['model']}, {describe(setup.backbone)}"],
        [f"training {task.unit}", number],
        ["data", settings["data_dir"] or "TFDS"],
        [
            "learning rate, epochs, seed",
            f"{cell.learning_rate:g}, {cell.epochs}, {cell.seed}",
        ],
        ["batch size", f"{setup.batch_size}"],
        [
            "sequence length",
            f"{setup.train.sequence_length} tokens, which {100 * reaching:.1f}% of the "
            "training rows reach",
        ],
        *(
            [name.replace("_", " "), f"{settings[name]} tokens"]
            for name in task.sizes
            if name != "sequence_length"
        ),
        [
            "warm-up, weight decay",
            f"{settings['warmup_fraction']}, {settings['weight_decay']}",
        ],
        ["training loss by epoch", ", ".join(f"{x:.4f}" for x in result.losses)],
        ["runs", f"{len(run.results)}"],
        ["precision", settings["dtype_policy"]],
        ["hardware", hardware()],
        ["wall time", clock(sum(result.seconds for result in run.results.values()))],
        ["date", datetime.date.today().isoformat()],
        [
            "versions",
            f"keras-minilmv2 {__version__}, Keras {keras.__version__}, TensorFlow "
            f"{tf.__version__}, keras-hub {keras_hub.__version__}",
        ],
    ]
    return facts
