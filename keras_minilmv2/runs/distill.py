"""A distillation run: from a recipe to a directory with a student in it."""

import dataclasses
import importlib.util
import time
from dataclasses import dataclass
from pathlib import Path

import tensorflow as tf

from keras_minilmv2.backbones.families import uses_segment_ids
from keras_minilmv2.backbones.loading import load_backbone
from keras_minilmv2.backbones.saving import save_student
from keras_minilmv2.backbones.traces import forgotten_gradients
from keras_minilmv2.data.packing import corpus_errors
from keras_minilmv2.data.pipeline import as_dataset, sample
from keras_minilmv2.data.shards import MANIFEST
from keras_minilmv2.distillation.objectives import OBJECTIVES
from keras_minilmv2.runs.directory import (
    FINISHED,
    RESUMED,
    RunDirectory,
    RunKind,
)
from keras_minilmv2.runs.examples import (
    NUM_PROJECTION_EXAMPLES,
    PREPARED,
    held_out_batches,
    make_examples,
    prepared_corpus,
    with_segment_ids,
)
from keras_minilmv2.runs.models import load_teacher, make_distiller, make_student
from keras_minilmv2.runs.recipes import Recipe
from keras_minilmv2.runs.report import OUTPUTS, Report, describe, model_name
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
from keras_minilmv2.training.strategy import (
    is_chief,
    make_strategy,
    on_any_worker,
    share_out,
)
from keras_minilmv2.utils.files import writing
from keras_minilmv2.utils.hardware import hardware
from keras_minilmv2.utils.seeds import set_seed
from keras_minilmv2.utils.tables import count, megabytes

KIND = RunKind(
    name="distill",
    settings_class=Recipe,
    settings_file="recipe.json",
    outputs=(
        "recipe.json",
        PREPARED,
        "checkpoints",
        "student",
        "best",
        "kept",
        "tensorboard",
        "history.csv",
        "curves.png",
        *OUTPUTS,
    ),
    temporary=("checkpoints",),
    evidence=("checkpoints", "history.csv"),
)


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
    held_out: object  # dataset of dict batches; None if the examples are gone
    history: History
    seconds: float  # of this process
    finished: bool  # or stopped by a signal, with a checkpoint


@forgotten_gradients()
def distill(recipe, output_dir, overwrite=False, progress_stream=None, log=print):
    """Runs a recipe, resumes its run, or returns it if it is finished.

    Settings are checked before the first file is written, and an earlier run that
    `overwrite` replaces is untouched until the corpus is prepared. The directory then
    holds `recipe.json` (as resolved), `prepared/` (the corpus as token ids, unless the
    recipe's corpus is such a directory), `student/` (a keras-nlp preset, tokenizer
    included; replaced at each evaluation, and readable all the time), `best/` (the
    student with the lowest held-out loss), `kept/` (what `keep_every` keeps, one
    directory a student), `checkpoints/` (until the run is finished), `history.csv`,
    `curves.png`, `tensorboard/`, `report.json` and `report.md`.

    An unfinished run of the same recipe is resumed from its latest checkpoint, and
    produces bit-identical weights to an uninterrupted run. SIGTERM and the first
    SIGINT save a checkpoint and end the run.

    Args:
        recipe: `Recipe`.
        output_dir: str or path. Made if missing.
        overwrite: bool. Whether to replace another run's outputs.
        progress_stream: text stream of the progress line. Defaults to standard error.
        log: function of a line of information.

    Returns:
        `Run`.

    Raises:
        ValueError, TypeError, OSError: if something in the recipe does not fit; the
            sentence names it. Nothing that the directory held is lost.
        DivergedError: if the loss is not finite. The last good student is kept.
    """
    started = time.perf_counter()
    # First of all: several workers must be set up before any device is used.
    strategy = make_strategy(recipe.strategy)
    set_seed(recipe.seed)
    chief = is_chief(strategy)
    with open_directory(recipe, output_dir, overwrite, chief) as directory:
        check_shares(recipe, strategy)
        with strategy.scope():
            teacher, tokenizer = load_teacher(recipe)
            # Built once before the corpus is prepared: it checks most settings.
            if not recipe.initialization.needs_examples:
                make_distiller(
                    teacher, make_student(teacher, recipe), recipe, tokenizer
                )
        run = Run(
            recipe=recipe,
            output_dir=directory.path,
            teacher=teacher,
            tokenizer=tokenizer,
            student=None,
            held_out=None,
            history=History(),
            seconds=0.0,
            finished=False,
        )
        if directory.state == FINISHED:
            return _finished(run, directory, log)
        examples = make_examples(recipe, tokenizer, directory, log)
        first = None
        with corpus_errors(*examples.values()):
            held_out = held_out_batches(recipe, teacher, examples["held_out"])
            if recipe.initialization.needs_examples:
                first = with_segment_ids(
                    teacher, sample(examples["train"], NUM_PROJECTION_EXAMPLES)
                )
        with strategy.scope():
            student = make_student(teacher, recipe, first)
            distiller = make_distiller(teacher, student, recipe, tokenizer)
        run = dataclasses.replace(run, student=student, held_out=held_out)
        resumed = directory.state == RESUMED
        if chief:
            directory.start()
            # `start` has moved them.
            examples = make_examples(recipe, tokenizer, directory, log)
        train = _Training(
            run, distiller, strategy, examples["train"], progress_stream, log
        )
        state = train.state
        log(f"{run_title(recipe)}.")
        log(f"Teacher: {describe(teacher)}; layer {recipe.teacher_layer}.")
        initialization = recipe.initialization.description()
        log(f"Student: {describe(student)}; initialized from {initialization}.")
        log(f"Runs on {hardware()}.")
        if resumed:
            log(f"Resumes after step {state.start_step} of {recipe.total_steps}.")

        def way_out():
            return (
                f" After step {state.last_step}; when it is, give the same command "
                "to resume from the latest checkpoint."
            )

        with corpus_errors(*examples.values()), writing(directory.path, way_out):
            train()
            run = dataclasses.replace(
                run,
                seconds=time.perf_counter() - started,
                finished=state.finished,
            )
            if chief:
                _finish(run, directory, train, log)
    return run


def open_directory(recipe, output_dir, overwrite=False, chief=True):
    """Opens the `RunDirectory` of a recipe's run."""
    return RunDirectory.open(
        output_dir,
        recipe,
        KIND,
        overwrite,
        reads={
            "teacher": recipe.teacher,
            "student_initialization": recipe.initialization.preset,
            "corpus": recipe.corpus,
        },
        accepts=(PREPARED,),
        chief=chief,
    )


def check_shares(recipe, strategy):
    """Raises unless the replicas of a strategy can share a recipe's batches."""
    num_replicas = strategy.num_replicas_in_sync
    if recipe.batch_size % (num_replicas * recipe.accumulation_steps) != 0:
        raise ValueError(
            "`batch_size` must be a multiple of `accumulation_steps` times the number "
            f"of replicas. Received: batch_size={recipe.batch_size}, "
            f"accumulation_steps={recipe.accumulation_steps}, "
            f"num_replicas={num_replicas}."
        )


def _finished(run, directory, log):
    """The run that a directory holds."""
    recipe, path = run.recipe, directory.path
    log(f"Finished already: {path}.")
    prepared = prepared_corpus(recipe) or path / PREPARED
    held_out = None
    if (prepared / MANIFEST).is_file():
        examples = make_examples(recipe, run.tokenizer, directory, log)
        held_out = held_out_batches(recipe, run.teacher, examples["held_out"])
    return dataclasses.replace(
        run,
        student=load_backbone(path / "student", dtype=recipe.dtype_policy),
        held_out=held_out,
        history=History.load_csv(path / "history.csv"),
        finished=True,
    )


class _Training:
    """The steps of a run that remain; files are the chief's."""

    def __init__(self, run, distiller, strategy, examples, progress_stream, log):
        recipe = run.recipe
        self.distiller, self.strategy, self.examples = distiller, strategy, examples
        self.run = run
        chief = is_chief(strategy)
        checkpoints = Checkpoints(run.output_dir / "checkpoints")
        arrays, unusable = checkpoints.latest_of_chief(strategy, distiller)
        for step in unusable:
            log(f"Note: {checkpoints.path(step)} is damaged and is skipped.")
        start_step, rows = 0, {}
        if arrays is not None:
            start_step, rows = checkpoints.notes(arrays)
        run.history.add_rows(rows)
        if chief:
            run.history.on_add = _tensorboard(run.output_dir / "tensorboard")
        self.state = RunState(recipe.total_steps, start_step)
        tokens_per_step = recipe.batch_size * recipe.sequence_length
        line = ProgressLine(recipe.total_steps, tokens_per_step, progress_stream)
        intervals = recipe.log_every, recipe.evaluate_every
        self.stop = StopOnSignal(self.state, on_any_worker(strategy))
        # In this order: each acts on what those before it have found.
        self.callbacks = [
            NanGuard(self.state, intervals),
            Progress(self.state, line),
            HistoryLog(self.state, run.history, intervals, tokens_per_step, log),
            HeldOutEvaluation(
                self.state,
                run.history,
                run.held_out,
                recipe.evaluate_every,
                self._save if chief else lambda step, best: None,
            ),
            self.stop,
            CheckpointWriter(
                self.state, checkpoints, recipe.checkpoint_every, run.history, chief
            ),
        ]
        if arrays is not None:
            self.callbacks.insert(0, Resume(self.state, checkpoints, arrays))

    def __call__(self):
        """Trains."""
        recipe = self.run.recipe

        def make_dataset(num_workers, worker):
            return as_dataset(
                self.examples,
                recipe.batch_size,
                seed=recipe.seed,
                start_step=self.state.start_step,
                num_workers=num_workers,
                worker=worker,
                segment_ids=uses_segment_ids(self.run.student),
            )

        dataset = share_out(self.strategy, make_dataset, recipe.batch_size)
        with self.stop:
            fit_remaining(self.distiller, dataset, self.state, self.callbacks)

    def _save(self, step, best):
        run = self.run
        paths = [run.output_dir / "student"]
        if best:
            paths.append(run.output_dir / "best")
        if run.recipe.keep_every is not None and step % run.recipe.keep_every == 0:
            paths.append(run.output_dir / "kept" / f"step-{step:08}")
        for path in paths:
            self.save_student(path)
        _save_history(run)

    def save_student(self, path):
        """Writes the student as it is."""
        save_student(self.distiller.model_to_save, self.run.tokenizer, path)


def _finish(run, directory, train, log):
    recipe, output_dir = run.recipe, run.output_dir
    state = train.state
    if state.diverged_step is not None:
        kept = "no student later than that of the last evaluation is kept"
        if state.last_good_step is not None:
            train.save_student(output_dir / "student")
            kept = (
                f"the student of step {state.last_good_step} is kept in "
                f"{output_dir / 'student'}"
            )
        _save_history(run)
        raise DivergedError(
            f"{state.problem} at step {state.diverged_step}; {kept}. Try a lower "
            "peak_learning_rate, or mixed_bfloat16 in place of mixed_float16."
        )
    if not run.finished:
        log(
            f"Stopped after step {state.last_step} of {recipe.total_steps}, with a "
            "checkpoint. Give the same command to resume."
        )
        return
    write_report(run)
    directory.finish()


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
        try:
            with writer.as_default(step):
                for name, value in values.items():
                    tf.summary.scalar(name, value)
            writer.flush()
        except tf.errors.OpError as error:
            # The first line ends with what the file system says.
            reason = error.message.partition("\n")[0].rpartition("; ")[2]
            raise OSError(f"{path}: {reason}") from error

    return scalars


def write_report(run):
    """Writes `report.json` and `report.md`: what was run, on what, and the losses."""
    recipe, history = run.recipe, run.history
    prefix = "held_out_"
    parts = [
        name.removeprefix(prefix)
        for name in history.names()
        if name.startswith(prefix) and name != f"{prefix}loss"
    ]
    report = Report(run.output_dir, run_title(recipe))
    report.text(held_out_summary(recipe, history))
    report.table(
        "held_out",
        [
            {
                "student": name,
                **{
                    column: history.series(f"{prefix}{column}")[1][index]
                    for column in ("loss", *parts)
                },
            }
            for name, index in (("before", 0), ("after", -1))
        ],
    )
    report.picture("curves.png", "Loss and learning rate over steps")
    report.table(
        "models",
        [
            {
                "model": role,
                "shape": describe(backbone),
                "float32 weights": megabytes(4 * backbone.count_params()),
            }
            for role, backbone in (("teacher", run.teacher), ("student", run.student))
        ],
    )
    objective = OBJECTIVES[recipe.objective]
    for name, value in objective.facts(recipe):
        report.fact(name, value)
    tokens = recipe.total_steps * recipe.batch_size * recipe.sequence_length
    report.fact("student initialized from", recipe.initialization.description())
    report.fact("corpus", list(recipe.corpus), ", ".join(recipe.corpus))
    report.fact(
        "steps",
        recipe.total_steps,
        f"{recipe.total_steps:,} of {recipe.batch_size} x {recipe.sequence_length} "
        f"tokens, {count(tokens)} tokens",
    )
    report.fact(
        "held-out text",
        recipe.held_out_examples,
        f"{recipe.held_out_examples} sequences at most, every "
        f"{recipe.held_out_every}-th chunk of the corpus",
    )
    report.fact("seed, runs", recipe.seed, f"{recipe.seed}, 1")
    report.fact("precision", recipe.dtype_policy)
    report.closing(
        "The student is in `student/`, a keras-nlp preset: "
        f"`keras_hub.models.Backbone.from_preset` reads it. "
        f"{objective.untrained}: fine-tune before use. All settings are in "
        "`recipe.json`, the numbers behind the curves in `history.csv`."
    )
    report.save(run.seconds)


def held_out_summary(recipe, history):
    """One sentence: the held-out loss before and after."""
    losses = history.series("held_out_loss")[1]
    return OBJECTIVES[recipe.objective].held_out_summary(losses[0], losses[-1])


def run_title(recipe):
    """What a run does, in one line."""
    teacher = model_name(recipe.teacher)
    student = f"{recipe.student_num_layers}x{recipe.student_hidden_dim}"
    return OBJECTIVES[recipe.objective].title(recipe, teacher, student)
