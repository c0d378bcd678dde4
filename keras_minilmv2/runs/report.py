"""What a run was: names, hardware, `report.md`."""

import base64
import datetime
import re
from pathlib import Path

import keras
import keras_hub
import tensorflow as tf

from keras_minilmv2.backbones.families import family_of
from keras_minilmv2.backbones.projections import block_calls
from keras_minilmv2.distillation.objectives import OBJECTIVES
from keras_minilmv2.training.progress import clock
from keras_minilmv2.utils.files import replacing_file
from keras_minilmv2.utils.hardware import hardware
from keras_minilmv2.utils.tables import count, markdown_table, megabytes
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


def held_out_summary(recipe, history):
    """One sentence: the held-out loss before and after."""
    losses = history.series("held_out_loss")[1]
    return OBJECTIVES[recipe.objective].held_out_summary(losses[0], losses[-1])


def report_text(directory):
    """The `report.md` of a run with its pictures inside, to show in a notebook.

    Args:
        directory: str or path. The run's.

    Returns:
        str, Markdown. A picture is a data URI, for a notebook does not know the
        directory that `report.md` lies in.
    """
    directory = Path(directory)

    def embed(match):
        picture = base64.b64encode((directory / match[2]).read_bytes()).decode()
        return f"![{match[1]}](data:image/png;base64,{picture})"

    text = (directory / "report.md").read_text(encoding="utf-8")
    return re.sub(r"!\[([^]]*)\]\(([^):]+\.png)\)", embed, text)


def write_report(run):
    """Writes `report.md`: what was run, on what, with which result."""
    recipe, history = run.recipe, run.history
    objective = OBJECTIVES[recipe.objective]
    prefix = "held_out_"
    parts = [
        name.removeprefix(prefix)
        for name in history.names()
        if name.startswith(prefix) and name != f"{prefix}loss"
    ]
    losses = [
        [
            name,
            *(
                f"{history.series(f'{prefix}{column}')[1][index]:.4f}"
                for column in ("loss", *parts)
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
        *objective.facts(recipe),
        ["student begins from", recipe.initialization.description()],
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
            f"# {run_title(recipe)}",
            held_out_summary(recipe, history),
            markdown_table(["student", "loss", *parts], losses),
            "![Loss and learning rate over steps](curves.png)",
            markdown_table(["model", "shape", "float32 weights"], models),
            markdown_table(["setting", "value"], facts),
            "The student is in `student/`, a keras-nlp preset: "
            f"`keras_hub.models.Backbone.from_preset` reads it. "
            f"{objective.untrained}: fine-tune before use. All settings are in "
            "`recipe.json`, the numbers behind the curves in `history.csv`.",
        ]
    )
    with replacing_file(run.output_dir / "report.md") as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def run_title(recipe):
    """What a run does, in one line."""
    teacher = model_name(recipe.teacher)
    student = f"{recipe.student_num_layers}x{recipe.student_hidden_dim}"
    return OBJECTIVES[recipe.objective].title(recipe, teacher, student)
