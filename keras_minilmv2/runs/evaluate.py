"""Evaluation: scores and predictions of a fine-tuned model on one split of a task."""

from dataclasses import dataclass

from keras_minilmv2.downstream.saved import load_fine_tuned
from keras_minilmv2.runs.directory import FINISHED, RunDirectory, RunKind
from keras_minilmv2.runs.settings import Settings, not_compared
from keras_minilmv2.runs.supervised import task_of
from keras_minilmv2.utils.checks import check_int
from keras_minilmv2.utils.checksums import sha256
from keras_minilmv2.utils.files import (
    check_directory,
    replacing_directory,
    write_json,
    writing,
)

EVALUATION_FILES = ("predictions", "metrics.json")


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings(Settings):
    """What must be the same for an evaluation to be one that was written before."""

    task: str
    split: str
    model: str = not_compared()
    weights_sha256: str
    data_sha256: str

    @classmethod
    def _noun(cls):
        return "The settings of an evaluation"


KIND = RunKind(
    name="evaluate",
    settings_class=EvaluationSettings,
    settings_file="settings.json",
    outputs=("settings.json", *EVALUATION_FILES),
    last="metrics.json",
    evidence=("settings.json",),
)


def evaluate_model(
    model,
    task=None,
    *,
    data_dir=None,
    tfds_data_dir=None,
    split=None,
    output_dir=None,
    num_examples=None,
    languages=None,
    strict=False,
    overwrite=False,
):
    """Evaluates a fine-tuned model on one split of a task.

    Args:
        model: str or path. What `fine_tune` wrote, or the `model` in it.
        task: str or `Task`. Defaults to the one the model was fine-tuned on. A model
            of SQuAD may be evaluated on `"mlqa"`.
        data_dir: str or path of the task's published files. None for TFDS.
        tfds_data_dir: str or path. Where TFDS keeps its data.
        split: str. Defaults to the task's dev split.
        output_dir: str or path of a new or empty directory for `metrics.json`,
            `predictions/` and `settings.json`; None writes nothing.
        num_examples: int. Score N examples of each language, drawn once. Defaults to
            all.
        languages: sequence of str. Of MLQA alone; defaults to all that there are files
            of.
        strict: bool. Of question answering alone: whether an answer that is not at its
            `answer_start` is an error.
        overwrite: bool. Whether another evaluation there may be replaced.

    Returns:
        `Evaluation`.

    Raises:
        ValueError, TypeError, OSError: if there is no such model, task, split or data,
            or the model is not one for the task.
    """
    if num_examples is not None:
        check_int(num_examples=num_examples)
    if output_dir is not None:
        check_directory("output_dir", output_dir)
    saved = load_fine_tuned(model)
    task = task_of(saved, task, model)
    options = given({"languages": languages, "strict": strict})
    task = task.with_options(saved.backbone, **saved.sizes, **options)
    split = task.dev_split if split is None else split
    examples = task.load(split, data_dir, tfds_data_dir)
    if num_examples is not None:
        examples = examples.sample(num_examples)
    features = task.features(examples, saved.backbone, saved.tokenizer)
    if output_dir is None:
        return task.evaluate(saved.model, features, split, examples)
    settings = EvaluationSettings(
        task=task.name,
        split=split,
        model=str(model),
        weights_sha256=sha256(*saved.model.get_weights()),
        data_sha256=sha256(*features.identity()),
    )
    with RunDirectory.open(
        output_dir, settings, KIND, overwrite, reads={"model": model}
    ) as directory:
        evaluation = task.evaluate(saved.model, features, split, examples)
        if directory.state != FINISHED:
            directory.start()
            with writing(directory.path):
                write_evaluations(directory.path, [evaluation])
            directory.finish()
    return evaluation


def given(options):
    """Those of a dict of options that were given: not None and not False."""
    return {
        name: value
        for name, value in options.items()
        if value is not None and value is not False
    }


def write_evaluations(output_dir, evaluations, cell=None):
    """Writes `predictions/` and `metrics.json`.

    Args:
        output_dir: path.
        evaluations: iterable of `Evaluation` of one task.
        cell: dict of the fields of the run's cell, or None.
    """
    with replacing_directory(output_dir / "predictions") as fresh:
        for evaluation in evaluations:
            evaluation.task.write(
                evaluation.split, evaluation.examples, evaluation.predictions, fresh
            )
    task = next(iter(evaluations)).task
    write_json(
        output_dir / "metrics.json",
        {
            "task": task.name,
            "main_metric": task.main_metric,
            **(cell or {}),
            "splits": {
                evaluation.split: {
                    "num_examples": len(evaluation.examples),
                    "metrics": evaluation.metrics,
                }
                for evaluation in evaluations
            },
        },
    )
