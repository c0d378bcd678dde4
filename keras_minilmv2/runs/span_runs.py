"""Question-answering runs: SQuAD and MLQA, from a model to a directory of answers."""

import contextlib
import dataclasses
import datetime
import os
import time
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np

from keras_minilmv2.downstream.question_answering import (
    labelled_windows,
    load_span_examples,
    num_misplaced,
)
from keras_minilmv2.downstream.span_metrics import MLQA_LANGUAGES
from keras_minilmv2.downstream.span_model import (
    NotFiniteError,
    SpanModel,
    evaluate_spans,
    fit_spans,
    is_span_model,
    load_span_model,
    model_features,
    save_span_model,
)
from keras_minilmv2.runs.directory import check_outside
from keras_minilmv2.runs.grid import FinishedCells, Result, grid_cells
from keras_minilmv2.runs.grid_runs import (
    as_values,
    begin,
    check_counts,
    check_directory,
    check_evaluation_dir,
    check_room,
    check_settings,
    check_some_finished,
    grid_parts,
    load_model,
    read_notes,
    run_cells,
    sha256,
    write_json,
    writing,
)
from keras_minilmv2.runs.report import describe, model_name
from keras_minilmv2.training.callbacks import ProgressLine
from keras_minilmv2.training.schedule import adamw
from keras_minilmv2.utils.files import replacing_directory, replacing_file
from keras_minilmv2.utils.hardware import hardware
from keras_minilmv2.utils.seeds import set_seed
from keras_minilmv2.utils.tables import clock, markdown_table


@dataclass(frozen=True)
class SpanTask:
    """A question-answering dataset to train on.

    Args:
        name: str.
        title: str. The name that papers use.
        dataset: str, as `load_span_examples` takes it.
        main_metric: str, what settings are chosen by.
        batch_size: int, windows. This, rates, epochs and length are the paper's
            settings: of SQuAD 2.0, and for SQuAD 1.1 those of MLQA.
        learning_rates: tuple of float.
        epochs: tuple of int.
        learning_rate: float. Of the grid, the rate of a single run.
        sequence_length: int, tokens of a window.
        doc_stride: int, tokens.
        max_question_length: int, tokens.
    """

    name: str
    title: str
    dataset: str
    main_metric: str = "f1"
    batch_size: int = 32
    learning_rates: tuple = (3e-5, 6e-5, 8e-5, 9e-5)
    epochs: tuple = (3,)
    learning_rate: float = 6e-5
    sequence_length: int = 384
    doc_stride: int = 128
    max_question_length: int = 64


SPAN_TASKS = {
    task.name: task
    for task in (
        SpanTask(
            "squad1",
            "SQuAD 1.1",
            "squad/v1.1",
            learning_rates=(3e-5, 4e-5, 5e-5, 6e-5),
            epochs=(4,),
            sequence_length=512,
        ),
        SpanTask("squad2", "SQuAD 2.0", "squad/v2.0", main_metric="best_f1"),
    )
}
# Answered with what was learned on English SQuAD.
MLQA = "mlqa"


@dataclass(frozen=True)
class SpanScores:
    """Answers to one dataset, and what they are worth.

    Args:
        title: str.
        split: str.
        evaluations: dict of `SpanEvaluation` by language, None for English alone.
        num_misplaced: int. Answers of the dataset that do not stand in their context.
    """

    title: str
    split: str
    evaluations: dict
    num_misplaced: int = 0

    @property
    def metrics(self):
        """Means over the languages of what `evaluate_spans` gives, in percent."""
        each = [evaluation.metrics for evaluation in self.evaluations.values()]
        return {name: float(np.mean([m[name] for m in each])) for name in each[0]}

    def table(self):
        """Markdown: a row for each language."""
        known = ("exact_match", "exact", "f1", "best_exact", "best_f1")
        names = [name for name in known if name in self.metrics]
        rows = [
            [
                language or "en",
                f"{len(evaluation.predictions):,}",
                *(f"{evaluation.metrics[name]:.2f}" for name in names),
            ]
            for language, evaluation in self.evaluations.items()
        ]
        if len(rows) > 1:
            means = (f"{self.metrics[name]:.2f}" for name in names)
            rows.append(["mean", "", *means])
        return markdown_table(["language", "questions", *names], rows)

    def __str__(self):
        text = f"{self.title} {self.split}\n\n{self.table()}"
        if self.num_misplaced:
            text += (
                "\n\nAnswers that do not stand in their context, which count in the "
                f"scores: {self.num_misplaced:,}."
            )
        return text


def fine_tune_on_squad(
    model,
    task,
    output_dir,
    *,
    data_dir=None,
    tokenizer=None,
    learning_rate=None,
    epochs=None,
    seed=0,
    grid=False,
    batch_size=None,
    sequence_length=None,
    doc_stride=None,
    warmup_fraction=0.1,
    weight_decay=0.01,
    num_train_examples=None,
    num_dev_examples=None,
    dtype_policy="float32",
    tfds_data_dir=None,
    strict=False,
    overwrite=False,
    progress_stream=None,
    say=print,
):
    """Fine-tunes an encoder on SQuAD, once or with a grid of settings.

    As `fine_tune` does for classification: the directory then holds `model/` (which
    `load_span_model` reads), `predictions/`, `metrics.json`, `report.md`,
    `settings.json` and `cells/`, and runs that are missing are run when the command is
    given again.

    Args:
        model: str or path of a preset, as for `load_backbone`, or a keras-nlp
            backbone.
        task: str, `"squad1"` or `"squad2"`.
        output_dir: str or path. Made if missing.
        data_dir: str or path of the published files. None for TFDS.
        tokenizer: keras-nlp tokenizer, needed with a backbone.
        learning_rate: float or sequence of float. The peak.
        epochs: int or sequence of int.
        seed: int or sequence of int.
        grid: bool. Whether learning rate and epochs, where not given, are all of the
            paper's.
        batch_size: int, windows.
        sequence_length: int, tokens of a window.
        doc_stride: int, tokens between the begins of two windows.
        warmup_fraction: float, of all steps.
        weight_decay: float.
        num_train_examples: int. Train on so many questions, drawn once for all seeds.
        num_dev_examples: int. Score so many questions, drawn once.
        dtype_policy: str. The policy of training; models are evaluated and saved in
            float32.
        tfds_data_dir: str or path. Where TFDS keeps its data.
        strict: bool. Whether an answer that does not stand in its context is an error;
            else such answers are counted, and left out of training.
        overwrite: bool. Whether to replace another run's outputs.
        progress_stream: text stream of the progress line. Defaults to standard error.
        say: function that is called with each line of information.

    Returns:
        tuple of `SpanScores` of the best run on the dev split, and the dict of
        `Result` by `Cell`.

    Raises:
        ValueError, TypeError, OSError: if something does not fit; the sentence says
            what.
        RuntimeError: if the loss of every run was not finite.
    """
    task, output_dir = get_span_task(task), Path(output_dir)
    cells = grid_cells(
        as_values(learning_rate, task.learning_rates if grid else task.learning_rate),
        as_values(epochs, task.epochs if grid else task.epochs[0]),
        as_values(seed, 0),
    )
    check_directory(output_dir)
    check_outside("model", model, output_dir)
    batch_size = task.batch_size if batch_size is None else batch_size
    check_settings(
        batch_size, num_train_examples, warmup_fraction, weight_decay, dtype_policy
    )
    check_counts(num_dev_examples=num_dev_examples, sequence_length=sequence_length)
    backbone, tokenizer = load_model(model, tokenizer, dtype_policy)
    data = {"tfds_data_dir": tfds_data_dir, "strict": strict}
    train_examples = load_span_examples(task.dataset, "train", data_dir, **data)
    dev_examples = load_span_examples(task.dataset, "dev", data_dir, **data)
    _check_answered(task.name, train_examples + dev_examples)
    train_examples = _some(train_examples, num_train_examples)
    misplaced = num_misplaced(train_examples)
    dev_examples = _some(dev_examples, num_dev_examples)
    if sequence_length is None:
        sequence_length = min(task.sequence_length, backbone.max_sequence_length)
    # The papers' for their lengths; shorter windows need room for a context too.
    if doc_stride is None:
        doc_stride = min(task.doc_stride, max(1, sequence_length // 3))
    sizes = {
        "sequence_length": sequence_length,
        "doc_stride": doc_stride,
        "max_question_length": min(
            task.max_question_length, max(1, sequence_length // 4)
        ),
    }
    features = model_features(backbone, tokenizer, train_examples, **sizes)
    labelled_windows(features)
    settings = {
        "task": task.name,
        "model": str(model) if isinstance(model, str | os.PathLike) else model.name,
        "data_dir": None if data_dir is None else str(data_dir),
        "weights_sha256": sha256(*backbone.get_weights()),
        "data_sha256": sha256(
            *(
                np.frombuffer(repr(dataclasses.astuple(example)).encode(), "uint8")
                for example in train_examples + dev_examples
            )
        ),
        "num_train_examples": len(train_examples),
        "num_dev_examples": len(dev_examples),
        "num_left_out": misplaced,
        "batch_size": batch_size,
        **sizes,
        "warmup_fraction": warmup_fraction,
        "weight_decay": weight_decay,
        "dtype_policy": dtype_policy,
    }
    finished = FinishedCells(output_dir / "cells")
    begin(output_dir, settings, finished, cells, overwrite)
    say(
        f"{describe(backbone)}; {task.title}: {len(train_examples):,} training "
        f"questions, {len(dev_examples):,} of dev; on {hardware()}."
    )
    if misplaced:
        say(f"Answers that do not stand in their context, left out: {misplaced}.")

    def run_cell(cell):
        started = time.perf_counter()
        set_seed(cell.seed)
        # Of a preset that was saved frozen, the encoder is trained all the same.
        twin = backbone.from_config(
            {**backbone.get_config(), "dtype": dtype_policy, "trainable": True}
        )
        twin.set_weights(backbone.get_weights())
        span_model = SpanModel(twin)
        tokens = batch_size * features.padded_lengths(slice(None)).mean()
        progress = _Progress(tokens, progress_stream)
        history = fit_spans(
            span_model,
            features,
            optimizer=lambda steps: progress.of(
                steps,
                adamw(
                    cell.learning_rate,
                    int(warmup_fraction * steps),
                    steps,
                    weight_decay=weight_decay,
                ),
                dtype_policy,
            ),
            batch_size=batch_size,
            num_epochs=cell.epochs,
            seed=cell.seed,
            callbacks=[progress, keras.callbacks.TerminateOnNaN()],
            verbose=0,
        )
        losses = [float(loss) for loss in history.history["loss"]]
        span_model = _in_float32(span_model)
        metrics = None
        if np.isfinite(losses).all():
            # A loss is taken before its update: of the last one the logits tell.
            with contextlib.suppress(NotFiniteError):
                metrics = evaluate(span_model).metrics
        if metrics is None:
            return Result(None, {}, [], time.perf_counter() - started), span_model
        seconds = time.perf_counter() - started
        # A share, as other tasks have.
        score = metrics[task.main_metric] / 100
        return Result(score, metrics, losses, seconds), span_model

    def evaluate(span_model):
        return evaluate_spans(
            span_model,
            tokenizer,
            dev_examples,
            no_answer=task.name == "squad2",
            **sizes,
        )

    def save_model(span_model, cell, path):
        check_room(path.parent, span_model.count_params())
        notes = {"task": task.name, "cell": dataclasses.asdict(cell), "sizes": sizes}
        # Model and notes appear together.
        with replacing_directory(path) as fresh:
            save_span_model(span_model, tokenizer, fresh)
            write_json(fresh / "fine_tuning.json", notes)

    results = run_cells(
        output_dir,
        cells,
        finished,
        run_cell,
        save_model,
        f"dev {task.main_metric}",
        say,
    )
    best = check_some_finished(results)
    span_model, tokenizer = load_span_model(output_dir / "model")
    scores = SpanScores(
        task.title, "dev", {None: evaluate(span_model)}, num_misplaced(dev_examples)
    )
    with writing(output_dir):
        _write_answers(output_dir, scores, task.name, dataclasses.asdict(best))
        _write_report(output_dir, task, scores, results, best, settings, backbone)
    say(str(scores))
    return scores, results


def evaluate_on_questions(
    model,
    task=None,
    *,
    data_dir=None,
    split="dev",
    languages=None,
    output_dir=None,
    num_examples=None,
    tfds_data_dir=None,
    strict=False,
    overwrite=False,
):
    """Scores a question-answering model on SQuAD or, zero-shot, on MLQA.

    Args:
        model: str or path. What `fine_tune_on_squad` wrote, or the `model` in it.
        task: str, `"squad1"`, `"squad2"` or `"mlqa"`. Defaults to what the model was
            fine-tuned on.
        data_dir: str or path of the published files. None for TFDS.
        split: str.
        languages: sequence of str, of MLQA. Defaults to all that there are files of.
        output_dir: str or path of a new or empty directory for `metrics.json` and
            `predictions/`; None writes nothing.
        num_examples: int. Score so many questions of a language, drawn once.
        tfds_data_dir: str or path. Where TFDS keeps its data.
        strict: bool. Whether an answer that does not stand in its context is an error;
            else such answers are counted.
        overwrite: bool. Whether another evaluation there may be replaced.

    Returns:
        `SpanScores`.

    Raises:
        ValueError, OSError: if there is no such model, task, split or data.
    """
    path = span_model_dir(model)
    if path is None:
        raise FileNotFoundError(
            "`model` must be a directory that `keras-minilmv2 finetune` wrote. "
            f"Received: model={model}."
        )
    notes = read_notes(path)
    task = notes.get("task") if task is None else task
    check_counts(num_examples=num_examples)
    if output_dir is not None:
        check_evaluation_dir(Path(output_dir), overwrite)
    if languages is not None and task != MLQA:
        raise ValueError(
            f"`languages` must be left out for another task than {MLQA}. "
            f"Received: languages={languages}, task={task!r}."
        )
    data = {"tfds_data_dir": tfds_data_dir, "strict": strict}
    if task == MLQA:
        datasets = _mlqa(languages, split, data_dir, data)
        title = "MLQA"
    else:
        task = get_span_task(task)
        examples = load_span_examples(task.dataset, split, data_dir, **data)
        datasets, title, task = {None: examples}, task.title, task.name
    for examples in datasets.values():
        _check_answered(task, examples)
    datasets = {lang: _some(all_, num_examples) for lang, all_ in datasets.items()}
    span_model, tokenizer = load_span_model(path)
    evaluations = {
        language: evaluate_spans(
            span_model,
            tokenizer,
            examples,
            language=language,
            no_answer=task == "squad2",
            **notes.get("sizes", {}),
        )
        for language, examples in datasets.items()
    }
    misplaced = sum(map(num_misplaced, datasets.values()))
    scores = SpanScores(title, split, evaluations, misplaced)
    if output_dir is not None:
        with writing(output_dir):
            _write_answers(Path(output_dir), scores, task)
    return scores


def get_span_task(task):
    """The `SpanTask` of a name.

    Raises:
        ValueError: if there is none.
    """
    if task not in SPAN_TASKS:
        raise ValueError(
            f"`task` must be one of {', '.join(SPAN_TASKS)}. Received: task={task!r}."
        )
    return SPAN_TASKS[task]


def span_model_dir(model):
    """The directory of a question-answering model, or None.

    Args:
        model: str or path. What `fine_tune_on_squad` wrote, or the `model` in it.
    """
    path = Path(model).expanduser()
    return next((p for p in (path, path / "model") if is_span_model(p)), None)


class _Progress(keras.callbacks.Callback):
    """The progress line of a fit."""

    def __init__(self, tokens_per_step, stream):
        super().__init__()
        self.tokens_per_step = tokens_per_step
        self.stream = stream
        self.line = None
        self.step = 0

    def of(self, steps, optimizer, dtype_policy):
        """The optimizer of so many steps, which the line then counts."""
        self.line = ProgressLine(steps, self.tokens_per_step, self.stream)
        self.line.start()
        if dtype_policy == "mixed_float16":
            return keras.optimizers.LossScaleOptimizer(optimizer)
        return optimizer

    def on_train_batch_end(self, batch, logs=None):
        self.step += 1
        self.line.update(self.step, {"loss": float(logs["loss"])})

    def on_train_end(self, logs=None):
        self.line.close()


def _some(examples, number):
    """So many examples, the same each time; all if there are not more."""
    if number is None or number >= len(examples):
        return examples
    order = np.random.default_rng(0).permutation(len(examples))
    return [examples[i] for i in sorted(order[:number])]


def _check_answered(task, examples):
    """Raises if a question has no answer where the task has one for each."""
    missing = [example.id for example in examples if not example.answers]
    if missing and task != "squad2":
        raise ValueError(
            f"`data_dir` must have an answer to each question of {task}. "
            f"Received: question {missing[0]!r} without one."
        )


def _in_float32(span_model):
    backbone = span_model.backbone
    if backbone.dtype_policy.name == "float32":
        return span_model
    twin = SpanModel(
        backbone.from_config({**backbone.get_config(), "dtype": "float32"})
    )
    twin.set_weights(span_model.get_weights())
    return twin


def _mlqa(languages, split, data_dir, data):
    """Examples by language; of all languages that there are files of by default."""
    datasets = {}
    for language in languages or ():
        if language not in MLQA_LANGUAGES:
            raise ValueError(
                f"`languages` must be out of {', '.join(MLQA_LANGUAGES)}. "
                f"Received: {language!r}."
            )
    for language in languages or MLQA_LANGUAGES:
        try:
            datasets[language] = load_span_examples(
                f"{MLQA}/{language}", split, data_dir, **data
            )
        except FileNotFoundError:
            if languages:
                raise
    if not datasets:
        # The sentence of the first one says where files were looked for.
        load_span_examples(f"{MLQA}/{MLQA_LANGUAGES[0]}", split, data_dir)
    return datasets


def _write_answers(output_dir, scores, task, cell=None):
    """Writes `predictions/`, in the official format, and `metrics.json`.

    Of SQuAD 2.0 the answers that are not blanked too: the official script finds the
    best threshold from these and the null odds.
    """
    with replacing_directory(output_dir / "predictions") as fresh:
        for language, evaluation in scores.evaluations.items():
            name = "-".join(filter(None, (scores.split, language)))
            write_json(fresh / f"{name}.json", evaluation.predictions)
            write_json(fresh / f"{name}-nbest.json", evaluation.nbest)
            if "best_f1" in evaluation.metrics:
                write_json(fresh / f"{name}-null_odds.json", evaluation.null_odds)
                write_json(fresh / f"{name}-not_blanked.json", evaluation.answers)
    write_json(
        output_dir / "metrics.json",
        {
            "task": task,
            "split": scores.split,
            "num_examples": sum(
                len(e.predictions) for e in scores.evaluations.values()
            ),
            **(cell or {}),
            "metrics": scores.metrics,
            "by_language": {
                language: evaluation.metrics
                for language, evaluation in scores.evaluations.items()
                if language
            },
        },
    )


def _write_report(output_dir, task, scores, results, cell, settings, backbone):
    parts = [
        f"# {model_name(settings['model'])} on {task.title}",
        "All scores are times 100.",
        scores.table(),
    ]
    if len(results) > 1:
        parts += grid_parts(results, cell, task.main_metric, "dev")
    facts = [
        ["model", f"{settings['model']}, {describe(backbone)}"],
        [
            "training questions",
            f"{settings['num_train_examples']:,}; answers that do not stand in their "
            f"context, left out: {settings['num_left_out']:,}",
        ],
        ["data", settings["data_dir"] or "TFDS"],
        [
            "learning rate, epochs, seed",
            f"{cell.learning_rate:g}, {cell.epochs}, {cell.seed}",
        ],
        ["batch size", f"{settings['batch_size']} windows"],
        [
            "windows",
            f"{settings['sequence_length']} tokens, {settings['doc_stride']} apart",
        ],
        [
            "training loss by epoch",
            ", ".join(f"{loss:.4f}" for loss in results[cell].losses),
        ],
        ["precision", settings["dtype_policy"]],
        ["runs", f"{len(results)}"],
        ["hardware", hardware()],
        ["wall time", clock(sum(result.seconds for result in results.values()))],
        ["date", datetime.date.today().isoformat()],
    ]
    parts += [
        markdown_table(["setting", "value"], facts),
        "The model is in `model/`, which `keras_minilmv2.downstream.span_model."
        "load_span_model` reads; its encoder and tokenizer are a keras-nlp preset. "
        "Answers are in `predictions/`, in the official format.",
    ]
    with replacing_file(output_dir / "report.md") as temporary:
        temporary.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
