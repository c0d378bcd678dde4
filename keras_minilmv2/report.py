"""What a run was: names, hardware, `report.md`."""

import contextlib
import datetime
import os
import platform
from pathlib import Path

import keras
import keras_hub
import tensorflow as tf

from keras_minilmv2.backbones.families import family_of
from keras_minilmv2.backbones.projections import block_calls
from keras_minilmv2.files import replacing_file
from keras_minilmv2.tables import count, markdown_table, megabytes
from keras_minilmv2.training.callbacks import clock
from keras_minilmv2.version import __version__


def model_name(preset):
    """A short name for a preset: of a directory `name/model`, its parent's too."""
    path = Path(preset)
    if path.name in ("model", "student", "teacher") and path.parent.name:
        return f"{path.parent.name}/{path.name}"
    return path.name


def describe(backbone):
    """One phrase about a backbone."""
    return (
        f"{family_of(backbone).name} {len(block_calls(backbone))}x"
        f"{backbone.hidden_dim}, {count(backbone.count_params())} parameters"
    )


def hardware():
    """What this runs on: processor or accelerators, cores."""
    accelerators = [
        tf.config.experimental.get_device_details(device).get("device_name", "GPU")
        for device in tf.config.list_physical_devices("GPU")
    ]
    if accelerators:
        return ", ".join(accelerators)
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    return f"{model}, {os.cpu_count()} cores"


def write_report(run):
    """Writes `report.md`: what was run, on what, with which result."""
    recipe, history = run.recipe, run.history
    before = history.series("held_out_loss")[1][0]
    after = history.last("held_out_loss")
    pairs = [pair for pair, weight in recipe.relation_weights.items() if weight]
    losses = [
        [
            name,
            *(
                f"{history.series(f'held_out_{column}')[1][index]:.4f}"
                for column in ("loss", *pairs)
            ),
        ]
        for name, index in (("before", 0), ("after", -1))
    ]
    tokens = recipe.total_steps * recipe.batch_size * recipe.sequence_length
    models = [
        [
            role,
            describe(backbone),
            megabytes(4 * backbone.count_params()),
        ]
        for role, backbone in (("teacher", run.teacher), ("student", run.student))
    ]
    facts = [
        ["teacher", f"{recipe.teacher}, layer {recipe.teacher_layer}"],
        ["relation heads", f"{recipe.num_relation_heads}"],
        ["student begins from", recipe.student_initialization],
        ["corpus", ", ".join(recipe.corpus)],
        [
            "steps",
            f"{recipe.total_steps:,} of {recipe.batch_size} x "
            f"{recipe.sequence_length} tokens, {count(tokens)} tokens",
        ],
        [
            "held-out text",
            f"{recipe.held_out_examples} sequences at most, every "
            f"{recipe.held_out_every}-th piece of the corpus",
        ],
        ["seed, runs", f"{recipe.seed}, 1"],
        ["precision", recipe.dtype_policy],
        ["hardware", hardware()],
        ["wall time", clock(run.seconds)],
        ["date", datetime.date.today().isoformat()],
        [
            "versions",
            f"keras-minilmv2 {__version__}, Keras {keras.__version__}, TensorFlow "
            f"{tf.__version__}, keras-hub {keras_hub.__version__}",
        ],
    ]
    text = "\n\n".join(
        [
            f"# Distillation of {model_name(recipe.teacher)}",
            f"Held-out relation loss: {before:.4f} nats before, {after:.4f} after.",
            markdown_table(["student", "loss", *pairs], losses),
            "![Loss and learning rate over steps](curves.png)",
            markdown_table(["model", "shape", "float32 weights"], models),
            markdown_table(["setting", "value"], facts),
            "The student is in `student/`, a keras-nlp preset: "
            "`keras_hub.models.Backbone.from_preset` reads it. The attention output, "
            "norms and feed-forward of its last layer, and a pooler, got no gradient "
            "and are as initialised: fine-tune before use. All settings are in "
            "`recipe.json`, the numbers behind the curves in `history.csv`.",
        ]
    )
    with replacing_file(run.output_dir / "report.md") as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
