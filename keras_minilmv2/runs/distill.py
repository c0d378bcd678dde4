"""A distillation run: from a recipe to a directory with a student in it."""

import contextlib
import dataclasses
import importlib.util
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf

from keras_minilmv2.backbones.families import check_tokenizer, uses_segment_ids
from keras_minilmv2.backbones.loading import load_backbone, load_tokenizer
from keras_minilmv2.backbones.projections import block_calls, check_layer
from keras_minilmv2.backbones.saving import save_student
from keras_minilmv2.backbones.students import student_backbone
from keras_minilmv2.data.packing import corpus_errors, require_examples
from keras_minilmv2.data.pipeline import as_dataset, sample
from keras_minilmv2.data.preparation import prepare
from keras_minilmv2.data.shards import MANIFEST, PreparedExamples
from keras_minilmv2.data.text import Corpus
from keras_minilmv2.distillation.initialization import Initialization
from keras_minilmv2.distillation.objectives import OBJECTIVES
from keras_minilmv2.runs.recipes import load_recipe
from keras_minilmv2.runs.report import describe, run_title, write_report
from keras_minilmv2.training.callbacks import (
    CheckpointWriter,
    HeldOutEvaluation,
    HistoryLog,
    NanGuard,
    Progress,
    Resume,
    RunState,
    StopOnSignal,
    fit_remaining,
)
from keras_minilmv2.training.checkpoints import Checkpoints
from keras_minilmv2.training.history import History
from keras_minilmv2.training.progress import ProgressLine
from keras_minilmv2.training.schedule import adamw
from keras_minilmv2.training.strategy import (
    is_chief,
    make_strategy,
    num_workers,
    share_out,
)
from keras_minilmv2.utils.files import check_outside, remove
from keras_minilmv2.utils.hardware import hardware
from keras_minilmv2.utils.seeds import set_seed

# What a run writes; overwriting a run removes these and nothing else.
OUTPUTS = (
    "recipe.json",
    "prepared",
    "checkpoints",
    "student",
    "best",
    "kept",
    "tensorboard",
    "history.csv",
    "curves.png",
    "report.md",
)

# Sequences that the "projection" initialization looks at.
NUM_PROJECTION_EXAMPLES = 64


class DivergedError(RuntimeError):
    """The loss of a run was not finite."""


@dataclass(frozen=True)
class Run:
    """What a run leaves in memory."""

    recipe: object
    output_dir: Path
    teacher: object
    tokenizer: object
    student: object
    held_out: object  # dataset of dict batches
    history: History
    seconds: float  # of this process
    finished: bool  # or stopped by a signal, with a checkpoint


def check_output_dir(recipe, output_dir, overwrite=False):
    """Says whether a run begins, or goes on with what is in its directory.

    Args:
        recipe: `Recipe` of the run.
        output_dir: str or path.
        overwrite: bool. Whether another run there may be replaced.

    Returns:
        bool. Whether the run goes on: the directory holds an unfinished run of the
        same recipe.

    Raises:
        FileExistsError: if it holds a finished run, one of another recipe, or other
            files.
        NotADirectoryError: if it is a file.
        ValueError: if the teacher, or the student to go on from, lies in it.
    """
    path = Path(output_dir)
    if not path.exists():
        return False
    if not path.is_dir():
        raise NotADirectoryError(
            f"`output_dir` must be a directory. Received: output_dir={path}, a file."
        )
    check_outside("teacher", recipe.teacher, path)
    check_outside("student_initialization", recipe.initialization.preset, path)
    names = {entry.name for entry in path.iterdir() if not entry.name.startswith(".")}
    if names and not names & set(OUTPUTS):
        raise FileExistsError(
            "`output_dir` must be empty or new. "
            f"Received: output_dir={path}, which holds {', '.join(sorted(names)[:3])}."
        )
    if "recipe.json" not in names or overwrite:
        return False
    other = dataclasses.asdict(load_recipe(path / "recipe.json"))
    ours = dataclasses.asdict(recipe)
    differing = [name for name in ours if ours[name] != other[name]]
    if differing:
        values = ", ".join(f"{name}={other[name]!r}" for name in differing)
        raise FileExistsError(
            "`output_dir` must not hold a run of another recipe. "
            f"Received: output_dir={path}, whose recipe has {values}. Use that recipe "
            "to go on with it, pass --overwrite to replace it, or name another "
            "directory."
        )
    if "report.md" in names:
        raise FileExistsError(
            "`output_dir` must not hold a finished run. "
            f"Received: output_dir={path}. Pass --overwrite to replace that run, or "
            "name another directory."
        )
    return True


def distill(recipe, output_dir, overwrite=False, progress_stream=None, say=print):
    """Runs a recipe, or goes on with its run.

    Settings are checked before the first file is written. The directory then holds
    `recipe.json` (as resolved), `prepared/` (the corpus as token ids, unless the
    recipe's corpus is such a directory), `student/` (a keras-nlp preset, tokenizer
    included; replaced at each evaluation, and readable all the time), `best/` (the
    student with the lowest held-out loss), `kept/` (what `keep_every` says, one
    directory a student), `checkpoints/` (until the run is finished), `history.csv`,
    `curves.png`, `tensorboard/` and `report.md`.

    A directory with an unfinished run of the same recipe goes on from its latest
    checkpoint and ends with the bits of a run that nobody touched. SIGTERM and the
    first SIGINT save a checkpoint and end the run.

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
    resume = check_output_dir(recipe, output_dir, overwrite)
    started = time.perf_counter()
    # First of all: several workers must be set up before any device is used.
    strategy = make_strategy(recipe.strategy)
    set_seed(recipe.seed)
    chief = is_chief(strategy)
    with strategy.scope():
        teacher, tokenizer = load_teacher(recipe)
        # Built once before anything is written: it checks most settings.
        if not recipe.initialization.needs_examples:
            make_distiller(teacher, make_student(teacher, recipe), recipe, tokenizer)
    with _undone_on_error(output_dir, keep=resume):
        examples = make_examples(recipe, tokenizer, output_dir, overwrite, say)
    with corpus_errors(*examples.values()):
        held_out = held_out_batches(recipe, teacher, examples["held_out"])
        first = None
        if recipe.initialization.needs_examples:
            first = with_segment_ids(
                teacher, sample(examples["train"], NUM_PROJECTION_EXAMPLES)
            )
        with strategy.scope():
            student = make_student(teacher, recipe, first)
            distiller = make_distiller(teacher, student, recipe, tokenizer)
        if chief and not resume:
            with _writing(output_dir):
                for name in set(OUTPUTS) - {"prepared"}:
                    remove(output_dir / name)
                recipe.save(output_dir / "recipe.json")
        run = Run(
            recipe=recipe,
            output_dir=output_dir,
            teacher=teacher,
            tokenizer=tokenizer,
            student=student,
            held_out=held_out,
            history=History(),
            seconds=0.0,
            finished=False,
        )
        state = _train(
            run,
            distiller,
            strategy,
            examples["train"],
            resume,
            chief,
            progress_stream,
            say,
        )
    run = dataclasses.replace(
        run, seconds=time.perf_counter() - started, finished=state.finished
    )
    if chief:
        _finish(run, state, say)
    return run


def load_teacher(recipe):
    """Loads the teacher and tokenizer of a recipe and checks the recipe with them."""
    teacher = load_backbone(recipe.teacher, dtype=recipe.dtype_policy)
    tokenizer = load_tokenizer(recipe.teacher)
    check_tokenizer(teacher, tokenizer)
    preset = recipe.initialization.preset
    if preset is not None:
        theirs = load_tokenizer(preset)
        if list(theirs.get_vocabulary()) != list(tokenizer.get_vocabulary()):
            raise ValueError(
                "`student_initialization` must name a preset with the teacher's "
                f"vocabulary. Received: student_initialization=preset:{preset}."
            )
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
        initialization: str, another one than the recipe's.
    """
    chosen = recipe.initialization
    if initialization is not None:
        chosen = Initialization.parse(initialization)
    student = student_backbone(
        teacher,
        num_layers=recipe.student_num_layers,
        num_heads=recipe.student_num_heads,
        hidden_dim=recipe.student_hidden_dim,
        intermediate_dim=recipe.student_intermediate_dim,
        embedding_dim=recipe.student_embedding_dim,
        dropout=recipe.student_dropout,
        seed=recipe.seed,
        dtype=recipe.dtype_policy,
        **chosen.arguments(examples, recipe.num_relation_heads),
    )
    if chosen.preset is not None:
        _go_on_from(chosen.preset, student)
    return student


def _go_on_from(preset, student):
    """Gives a student the weights of a preset of its own shape."""
    # What the preset has no weights for is drawn: the same each time.
    set_seed(0)
    begun = load_backbone(preset)
    theirs, ours = (_shape(backbone) for backbone in (begun, student))
    different = [name for name in ours if theirs.get(name) != ours[name]]
    if different:
        name = different[0]
        raise ValueError(
            f"`student_initialization` must name a preset with the student's {name}, "
            f"{ours[name]}. Received: student_initialization=preset:{preset}, "
            f"{name}={theirs.get(name)}."
        )
    student.set_weights(begun.get_weights())


def _shape(backbone):
    """What must be equal for weights to be carried over."""
    config = backbone.get_config()
    for name in ("name", "dtype", "trainable", "dropout"):
        config.pop(name, None)
    return {"class": type(backbone).__name__, **config}


def make_distiller(teacher, student, recipe, tokenizer):
    """Builds and compiles what trains the student of a recipe."""
    objective = OBJECTIVES[recipe.objective]
    distiller = objective.make_trainer(teacher, student, tokenizer, recipe)
    distiller.compile(
        optimizer=recipe_optimizer(recipe),
        steps_per_execution=recipe.steps_per_execution,
        accumulation_steps=recipe.accumulation_steps,
    )
    return distiller


def recipe_optimizer(recipe):
    """The optimizer of a recipe, with its schedule."""
    return adamw(
        recipe.peak_learning_rate,
        recipe.warmup_steps,
        recipe.total_steps,
        weight_decay=recipe.weight_decay,
        beta_1=recipe.beta_1,
        beta_2=recipe.beta_2,
        epsilon=recipe.epsilon,
        gradient_clip_norm=recipe.gradient_clip_norm,
    )


def write_student(recipe, output_dir, truncated_teacher=False):
    """Writes a recipe's student before any training, as a keras-nlp preset.

    Args:
        recipe: `Recipe` whose student does not begin from `"projection"`.
        output_dir: str or path. Empty or new.
        truncated_teacher: bool. The teacher's own first layers instead, as many as
            the student has.

    Returns:
        The student.

    Raises:
        ValueError: if the student begins from `"projection"`, which needs a corpus.
        FileExistsError: if the directory holds anything.
    """
    path = Path(output_dir)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(
            f"`output_dir` must be empty or new. Received: output_dir={path}."
        )
    if recipe.initialization.needs_examples and not truncated_teacher:
        raise ValueError(
            "`student_initialization` must be random, layers or preset for a student "
            "that is not trained. "
            f"Received: student_initialization={recipe.student_initialization!r}."
        )
    teacher, tokenizer = load_teacher(recipe)
    if truncated_teacher:
        student = truncated(teacher, recipe.student_num_layers)
    else:
        student = make_student(teacher, recipe)
    with _writing(path):
        save_student(student, tokenizer, path, overwrite=True)
    return student


def truncated(teacher, num_layers):
    """The teacher's own first layers, as an encoder of their own."""
    return student_backbone(
        teacher,
        num_layers=num_layers,
        num_heads=teacher.num_heads,
        hidden_dim=teacher.hidden_dim,
        intermediate_dim=teacher.intermediate_dim,
        initialization="layers",
        teacher_layers=range(1, num_layers + 1),
    )


def make_corpus(recipe):
    """The training part of a recipe's corpus."""
    return Corpus(
        recipe.corpus,
        document_separator=recipe.document_separator,
        decode_errors=recipe.decode_errors,
        tfds_data_dir=recipe.tfds_data_dir,
        held_out_every=recipe.held_out_every,
    )


def prepared_corpus(recipe):
    """The directory that a recipe's corpus is, if it was prepared; else None."""
    if len(recipe.corpus) == 1 and (Path(recipe.corpus[0]) / MANIFEST).is_file():
        return Path(recipe.corpus[0])
    return None


@contextlib.contextmanager
def _undone_on_error(output_dir, keep):
    """Removes the prepared corpus when it is refused, unless a run needs it.

    Nothing is left then that an attempt with other settings would trip over.
    """
    existed = output_dir.exists()
    try:
        yield
    except ValueError:
        if not keep:
            remove(output_dir / "prepared")
            if not existed and output_dir.exists():
                output_dir.rmdir()
        raise


def make_examples(recipe, tokenizer, output_dir, overwrite=False, say=print):
    """The examples of a recipe, prepared in a directory unless they are already.

    Args:
        recipe: `Recipe`.
        tokenizer: that of its teacher.
        output_dir: path of the run.
        overwrite: bool. Whether to prepare anew.
        say: function that is called with each line of information.

    Returns:
        dict of `PreparedExamples`, `"train"` and `"held_out"`.

    Raises:
        ValueError: if they are not what the recipe needs.
    """
    prepared_dir = _prepare(recipe, tokenizer, output_dir, overwrite, say)
    examples = {
        part: PreparedExamples(prepared_dir, part) for part in ("train", "held_out")
    }
    _check_examples(recipe, examples, tokenizer)
    return examples


def _prepare(recipe, tokenizer, output_dir, overwrite, say):
    """The directory of the prepared corpus; prepares it where that is needed."""
    if prepared := prepared_corpus(recipe):
        return prepared
    if num_workers() > 1:
        raise ValueError(
            "`corpus` must be a directory that `keras-minilmv2 prepare` wrote when "
            f"there are several workers. Received: corpus={recipe.corpus}."
        )
    corpus = make_corpus(recipe)
    path = output_dir / "prepared"
    if not (path / MANIFEST).is_file() or overwrite:
        require_examples(corpus, tokenizer, recipe.sequence_length, recipe.batch_size)
    say(f"Prepares the corpus in {path}.")
    reported = [0.0]

    def report(progress):
        # A line now and then: preparing takes seconds for most corpora.
        if time.perf_counter() - reported[0] > 10:
            reported[0] = time.perf_counter()
            say(f"  {progress}")

    prepare(
        corpus,
        tokenizer,
        recipe.sequence_length,
        path,
        tokenizer_name=recipe.teacher,
        overwrite=overwrite,
        report=report,
    )
    if corpus.num_decode_errors:
        say(
            "Byte sequences that were not UTF-8 and were replaced: "
            f"{corpus.num_decode_errors}."
        )
    return path


def _check_examples(recipe, examples, tokenizer):
    """Raises unless prepared examples are what a recipe needs."""
    train, held_out = examples["train"], examples["held_out"]
    train.check_tokenizer(tokenizer)
    if train.sequence_length != recipe.sequence_length:
        raise ValueError(
            "`sequence_length` must be that of the prepared corpus. Received: "
            f"sequence_length={recipe.sequence_length}, prepared with "
            f"{train.sequence_length}."
        )
    if not len(train):
        raise ValueError(
            "`corpus` must have at least one training example. "
            f"Received: corpus={recipe.corpus}."
        )
    if not len(held_out):
        raise ValueError(
            "`held_out_every` must leave some held-out text. "
            f"Received: held_out_every={recipe.held_out_every} for a corpus with "
            "fewer documents than that; lower it."
        )


def with_segment_ids(backbone, batch):
    """A batch with the segment ids that the backbone reads."""
    if uses_segment_ids(backbone):
        return {**batch, "segment_ids": np.zeros_like(batch["token_ids"])}
    return batch


def held_out_batches(recipe, teacher, examples):
    """Held-out batches, in memory."""
    chosen = sample(examples, recipe.held_out_examples, seed=recipe.seed)
    dataset = tf.data.Dataset.from_tensor_slices(with_segment_ids(teacher, chosen))
    return dataset.batch(recipe.batch_size)


def _train(run, distiller, strategy, examples, resume, chief, progress_stream, say):
    """Trains for the steps that remain; files are the chief's. Returns the state."""
    recipe, output_dir, history = run.recipe, run.output_dir, run.history
    checkpoints = Checkpoints(output_dir / "checkpoints")
    arrays, unusable = checkpoints.latest(distiller) if resume else (None, [])
    for step in unusable:
        say(f"Note: {checkpoints.path(step)} is damaged and is skipped.")
    state = RunState(recipe.total_steps)
    if arrays is not None:
        start_step, rows = checkpoints.notes(arrays)
        state = RunState(recipe.total_steps, start_step)
        history.rows = {int(step): row for step, row in rows.items()}
    if chief:
        history.on_add = _tensorboard(output_dir / "tensorboard")
    say(f"{run_title(recipe)}.")
    say(f"Teacher: {describe(run.teacher)}; layer {recipe.teacher_layer}.")
    beginning = recipe.initialization.description()
    say(f"Student: {describe(run.student)}; begins from {beginning}.")
    say(f"Runs on {hardware()}.")
    if resume:
        say(f"Goes on after step {state.start_step} of {recipe.total_steps}.")

    def save(step, best):
        paths = [output_dir / "student"]
        if best:
            paths.append(output_dir / "best")
        if recipe.keep_every is not None and step % recipe.keep_every == 0:
            paths.append(output_dir / "kept" / f"step-{step:08}")
        for path in paths:
            save_student(run.student, run.tokenizer, path)
        _save_history(run)

    def make_dataset(num_workers, worker):
        return as_dataset(
            examples,
            recipe.batch_size,
            seed=recipe.seed,
            start_step=state.start_step,
            num_workers=num_workers,
            worker=worker,
            segment_ids=uses_segment_ids(run.student),
        )

    tokens_per_step = recipe.batch_size * recipe.sequence_length
    intervals = recipe.log_every, recipe.evaluate_every
    line = ProgressLine(recipe.total_steps, tokens_per_step, progress_stream)
    stop = StopOnSignal(state)
    # In this order: each acts on what those before it have found.
    callbacks = [
        NanGuard(state, intervals),
        Progress(state, line),
        HistoryLog(state, history, intervals, tokens_per_step, say),
        HeldOutEvaluation(
            state,
            history,
            run.held_out,
            recipe.evaluate_every,
            save if chief else lambda step, best: None,
        ),
        stop,
    ]
    if arrays is not None:
        callbacks.insert(0, Resume(state, checkpoints, arrays))
    if chief:
        callbacks.append(
            CheckpointWriter(state, checkpoints, recipe.checkpoint_every, history)
        )
    dataset = share_out(strategy, make_dataset, recipe.batch_size)
    with _writing(output_dir, state), stop:
        fit_remaining(distiller, dataset, state, callbacks)
    return state


def _finish(run, state, say):
    recipe, output_dir = run.recipe, run.output_dir
    if state.diverged_step is not None:
        kept = "no later student than that of the last evaluation is kept"
        if state.last_good_step is not None:
            save_student(run.student, run.tokenizer, output_dir / "student")
            kept = (
                f"the student of step {state.last_good_step} is kept in "
                f"{output_dir / 'student'}"
            )
        _save_history(run)
        raise DivergedError(
            f"{state.problem} at step {state.diverged_step}; {kept}. Try a "
            "lower peak_learning_rate, or mixed_bfloat16 in place of mixed_float16."
        )
    if not run.finished:
        say(
            f"Stopped after step {state.last_step} of {recipe.total_steps}, with a "
            "checkpoint. Give the same command to go on."
        )
        return
    write_report(run)
    remove(output_dir / "checkpoints")


def _save_history(run):
    """Writes `history.csv` and `curves.png`."""
    recipe = run.recipe
    run.history.save_csv(run.output_dir / "history.csv")
    loss_label = OBJECTIVES[recipe.objective].loss_label
    run.history.save_curves(
        run.output_dir / "curves.png", run_title(recipe), loss_label
    )


def _tensorboard(path):
    """A function of a step and a dict of float that writes TensorBoard scalars.

    None where TensorBoard is not installed, which is an extra.
    """
    if importlib.util.find_spec("tensorboard") is None:
        return None
    writer = tf.summary.create_file_writer(str(path))

    def scalars(step, values):
        with writer.as_default(step):
            for name, value in values.items():
                tf.summary.scalar(name, value)
        writer.flush()

    return scalars


@contextlib.contextmanager
def _writing(output_dir, state=None):
    """Makes the directory; an error says that it is the output directory's."""
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        way_out = ""
        if state is not None:
            way_out = (
                f" After step {state.last_step}; when it is, give the same command "
                "to go on from the latest checkpoint."
            )
        raise OSError(
            "`output_dir` must be writable and have room. "
            f"Received: output_dir={output_dir} ({error.strerror or error}).{way_out}"
        ) from error
