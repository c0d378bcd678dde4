"""A distillation run: from a recipe to a directory with a student in it."""

import contextlib
import datetime
import os
import platform
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import keras
import keras_hub
import tensorflow as tf

from keras_minilmv2.backbones.families import (
    check_tokenizer,
    family_of,
    uses_segment_ids,
)
from keras_minilmv2.backbones.loading import load_backbone, load_tokenizer
from keras_minilmv2.backbones.projections import block_calls, check_layer
from keras_minilmv2.backbones.students import student_backbone
from keras_minilmv2.data.packing import (
    batches,
    corpus_errors,
    packed_examples,
    require_examples,
)
from keras_minilmv2.data.text import Corpus
from keras_minilmv2.distillation.distiller import RelationDistiller
from keras_minilmv2.files import replacing_file, save_student
from keras_minilmv2.tables import count, markdown_table, megabytes
from keras_minilmv2.training.callbacks import ProgressLine, RunMonitor, clock
from keras_minilmv2.training.history import History
from keras_minilmv2.training.schedule import adamw
from keras_minilmv2.version import __version__

# What a run writes; overwriting a run removes these and nothing else.
OUTPUTS = ("recipe.json", "student", "history.csv", "curves.png", "report.md")

# Sequences that the "projection" initialization looks at.
_NUM_EXAMPLES = 64


class DivergedError(RuntimeError):
    """The loss of a run was not finite."""


@dataclass(frozen=True)
class Run:
    """What a finished run leaves in memory."""

    recipe: object
    output_dir: Path
    teacher: object
    tokenizer: object
    student: object
    held_out: object  # dataset of dict batches
    history: History
    seconds: float


def check_output_dir(output_dir, overwrite):
    """Raises unless a run may write into a directory.

    Raises:
        FileExistsError: if it holds another run and `overwrite` is not set, or any
            other file.
        NotADirectoryError: if it is a file.
    """
    path = Path(output_dir)
    if not path.exists():
        return
    if not path.is_dir():
        raise NotADirectoryError(
            f"`output_dir` must be a directory. Received: output_dir={path}, a file."
        )
    names = {entry.name for entry in path.iterdir() if not entry.name.startswith(".")}
    if not names:
        return
    if not names & set(OUTPUTS):
        raise FileExistsError(
            "`output_dir` must be empty or new. "
            f"Received: output_dir={path}, which holds {', '.join(sorted(names)[:3])}."
        )
    if not overwrite:
        raise FileExistsError(
            "`output_dir` must not hold another run. "
            f"Received: output_dir={path}. Pass --overwrite to replace that run, or "
            "name another directory; a run cannot be resumed yet."
        )


def distill(recipe, output_dir, overwrite=False, progress_stream=None, say=print):
    """Runs a recipe.

    Everything is checked before the first file is written. The directory then holds
    `recipe.json` (as resolved), `student/` (a keras-nlp preset, tokenizer included;
    saved at each evaluation), `history.csv`, `curves.png` and `report.md`.

    Args:
        recipe: `Recipe`.
        output_dir: str or path. Made if missing.
        overwrite: bool. Whether to replace another run's outputs.
        progress_stream: text stream of the progress line. Defaults to standard error.
        say: function that is called with each line of information.

    Returns:
        `Run`.

    Raises:
        ValueError, TypeError, OSError: if something in the recipe does not fit; the
            sentence says what.
        DivergedError: if the loss is not finite. The last good student is kept.
    """
    output_dir = Path(output_dir)
    check_output_dir(output_dir, overwrite)
    started = time.perf_counter()
    keras.utils.set_random_seed(recipe.seed)

    teacher, tokenizer = load_teacher(recipe)
    corpora = {part: _corpus(recipe, part) for part in ("train", "held_out")}
    require_examples(
        corpora["train"], tokenizer, recipe.sequence_length, recipe.batch_size
    )
    with corpus_errors(*corpora.values()):
        return _distill(
            recipe,
            output_dir,
            teacher,
            tokenizer,
            corpora,
            progress_stream,
            say,
            started,
        )


def load_teacher(recipe):
    """Loads the teacher and tokenizer of a recipe and checks the recipe with them."""
    teacher = load_backbone(recipe.teacher, dtype=recipe.dtype_policy)
    tokenizer = load_tokenizer(recipe.teacher)
    check_tokenizer(teacher, tokenizer)
    check_layer("teacher_layer", recipe.teacher_layer, len(block_calls(teacher)))
    if not 3 <= recipe.sequence_length <= teacher.max_sequence_length:
        raise ValueError(
            "`sequence_length` must be at least 3 and not beyond the position table "
            f"of the teacher. Received: sequence_length={recipe.sequence_length}, "
            f"max_sequence_length={teacher.max_sequence_length}."
        )
    return teacher, tokenizer


def make_student(teacher, recipe, examples=None, initialization=None):
    """Builds the student of a recipe.

    Args:
        teacher: the teacher of the recipe.
        recipe: `Recipe`.
        examples: batch of token ids for `"projection"`.
        initialization: another way to begin than the recipe's.
    """
    initialization = initialization or recipe.student_initialization
    projected = initialization == "projection"
    return student_backbone(
        teacher,
        num_layers=recipe.student_num_layers,
        num_heads=recipe.student_num_heads,
        hidden_dim=recipe.student_hidden_dim,
        intermediate_dim=recipe.student_intermediate_dim,
        embedding_dim=recipe.student_embedding_dim,
        dropout=recipe.student_dropout,
        initialization=initialization,
        teacher_layers=(
            None if initialization == "random" else recipe.student_teacher_layers
        ),
        examples=examples if projected else None,
        num_relation_heads=recipe.num_relation_heads if projected else None,
        seed=recipe.seed,
        dtype=recipe.dtype_policy,
    )


def make_distiller(teacher, student, recipe):
    """Builds and compiles the distiller of a recipe."""
    distiller = RelationDistiller(
        teacher,
        student,
        teacher_layer=recipe.teacher_layer,
        num_relation_heads=recipe.num_relation_heads,
        relation_weights=recipe.relation_weights,
    )
    distiller.compile(
        optimizer=adamw(
            recipe.peak_learning_rate,
            recipe.warmup_steps,
            recipe.total_steps,
            weight_decay=recipe.weight_decay,
            beta_1=recipe.beta_1,
            beta_2=recipe.beta_2,
            epsilon=recipe.epsilon,
            gradient_clip_norm=recipe.gradient_clip_norm,
        )
    )
    return distiller


def _corpus(recipe, part):
    return Corpus(
        recipe.corpus,
        document_separator=recipe.document_separator,
        decode_errors=recipe.decode_errors,
        tfds_data_dir=recipe.tfds_data_dir,
        held_out_every=recipe.held_out_every,
        part=part,
    )


def _held_out(recipe, examples):
    """Held-out batches, in memory; drawn from more text than they hold."""
    chosen = examples.shuffle(8 * recipe.held_out_examples, seed=recipe.seed).take(
        recipe.held_out_examples
    )
    kept = list(chosen.batch(recipe.held_out_examples))
    if not kept:
        raise ValueError(
            "`held_out_every` must leave some held-out text. "
            f"Received: held_out_every={recipe.held_out_every} for a corpus with "
            "fewer documents than that; lower it."
        )
    return tf.data.Dataset.from_tensor_slices(kept[0]).batch(recipe.batch_size)


def _distill(
    recipe, output_dir, teacher, tokenizer, corpora, progress_stream, say, started
):
    segment_ids = uses_segment_ids(teacher)
    examples = {
        part: packed_examples(
            corpus, tokenizer, recipe.sequence_length, segment_ids=segment_ids
        )
        for part, corpus in corpora.items()
    }
    held_out = _held_out(recipe, examples["held_out"])
    first = None
    if recipe.student_initialization == "projection":
        first = next(iter(examples["train"].batch(_NUM_EXAMPLES)))
    student = make_student(teacher, recipe, first)
    distiller = make_distiller(teacher, student, recipe)
    train = batches(
        examples["train"],
        recipe.batch_size,
        shuffle_buffer=recipe.shuffle_buffer,
        seed=recipe.seed,
        repeat=True,
    )

    with _writing(output_dir):
        for name in OUTPUTS:
            _remove(output_dir / name)
        recipe.save(output_dir / "recipe.json")
    say(
        f"Teacher: {describe(teacher)}; its layer {recipe.teacher_layer} is distilled "
        f"in {recipe.num_relation_heads} relation heads."
    )
    say(f"Student: {describe(student)}; begins from {recipe.student_initialization}.")

    history = History()
    tokens_per_step = recipe.batch_size * recipe.sequence_length

    def save():
        save_student(student, tokenizer, output_dir / "student")
        save_history(history, output_dir, recipe)

    monitor = RunMonitor(
        total_steps=recipe.total_steps,
        log_every=recipe.log_every,
        evaluate_every=recipe.evaluate_every,
        held_out=held_out,
        save=save,
        history=history,
        progress=ProgressLine(recipe.total_steps, tokens_per_step, progress_stream),
    )
    distiller.fit(
        train,
        steps_per_epoch=recipe.total_steps,
        shuffle=False,  # the dataset is shuffled already
        verbose=0,
        callbacks=[monitor],
    )
    save()
    if monitor.nan_step is not None:
        raise DivergedError(
            f"The loss was not finite at step {monitor.nan_step}; the student of step "
            f"{monitor.last_good_step} is kept in {output_dir / 'student'}. Try a "
            "lower peak_learning_rate, or mixed_bfloat16 in place of mixed_float16."
        )
    # Both parts read all of the text.
    replaced = max(corpus.num_decode_errors for corpus in corpora.values())
    if replaced:
        say(f"Byte sequences that were not UTF-8 and were replaced: {replaced}.")
    run = Run(
        recipe=recipe,
        output_dir=output_dir,
        teacher=teacher,
        tokenizer=tokenizer,
        student=student,
        held_out=held_out,
        history=history,
        seconds=time.perf_counter() - started,
    )
    _write_report(run)
    return run


def save_history(history, output_dir, recipe):
    """Writes `history.csv` and `curves.png`."""
    history.save_csv(output_dir / "history.csv")
    title = (
        f"{model_name(recipe.teacher)} to {recipe.student_num_layers}x"
        f"{recipe.student_hidden_dim}, {recipe.num_relation_heads} relation heads"
    )
    history.save_curves(output_dir / "curves.png", title)


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


@contextlib.contextmanager
def _writing(output_dir):
    """Makes the directory; an error says that it is the output directory's."""
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise OSError(
            "`output_dir` must be writable. "
            f"Received: output_dir={output_dir} ({error.strerror})."
        ) from error


def _remove(path):
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _write_report(run):
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
