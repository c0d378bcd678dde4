"""Subset pruning: exactly K heads, chosen by gradient descent or otherwise."""

import dataclasses
from dataclasses import dataclass

from keras_minilmv2.backbones.pruned import is_pruned
from keras_minilmv2.downstream.registry import get_trained_task
from keras_minilmv2.runs.directory import FINISHED, RunDirectory, RunKind
from keras_minilmv2.runs.evaluate import EVALUATION_FILES, write_evaluations
from keras_minilmv2.runs.fine_tune import load_model
from keras_minilmv2.runs.grid import CELLS, FinishedCells, check_some_finished, run_grid
from keras_minilmv2.runs.report import OUTPUTS, describe
from keras_minilmv2.runs.settings import not_compared
from keras_minilmv2.runs.subset_cells import (
    CHECKPOINTS,
    STARTS,
    WHOLE,
    SubsetCell,
    Subsets,
    SubsetSettings,
    check_sizes,
)
from keras_minilmv2.runs.subset_report import PICTURES, write_report
from keras_minilmv2.runs.supervised import (
    evaluate_saved,
    load_dev_splits,
    save_task_model,
)
from keras_minilmv2.utils.checksums import sha256
from keras_minilmv2.utils.files import check_directory, writing
from keras_minilmv2.utils.hardware import hardware


@dataclass(frozen=True, kw_only=True)
class _Compared(SubsetSettings):
    """What must be the same for a directory to hold this run."""

    task: str
    model: str = not_compared()
    data_dir: str | None = not_compared()
    weights_sha256: str
    data_sha256: str


KIND = RunKind(
    name="heads subset",
    settings_class=_Compared,
    settings_file="settings.json",
    outputs=(
        *("settings.json", CELLS, STARTS, CHECKPOINTS, "model"),
        *EVALUATION_FILES,
        *PICTURES,
        *OUTPUTS,
    ),
    temporary=(CHECKPOINTS,),
    evidence=("settings.json",),
)


def prune_to_subset(
    model,
    task,
    output_dir,
    settings=None,
    *,
    data_dir=None,
    tfds_data_dir=None,
    overwrite=False,
    progress_stream=None,
    log=print,
    **changes,
):
    """Chooses which heads of an encoder to keep for a task, and removes the others.

    1. The encoder is fine-tuned, once for each seed; all methods but the joint ones
       start from it.
    2. Each method chooses K heads: gates that are trained, importance, chance.
    3. The other heads are removed, and the model is scored; then it is trained again,
       all methods alike, and scored again.

    Models are compared on training examples that are held out; the dev split is
    reported. The directory then holds `model/`, the best one with fewer heads,
    `metrics.json` and `predictions/` of it, `starts/` (the fine-tuned encoders),
    `cells/` (the result of each run), `report.md`, `report.json` and pictures. A run
    that was interrupted goes on where it was, within the training of gates from its
    last checkpoint; further numbers of heads, methods and seeds are added to a finished
    one.

    Args:
        model: str or path of a preset, as for `load_backbone`.
        task: str or `Task`.
        output_dir: str or path. Made if missing.
        settings: `SubsetSettings`.
        data_dir: str or path of the task's published files. None for TFDS.
        tfds_data_dir: str or path. Where TFDS keeps its data.
        overwrite: bool. Whether to replace another run's outputs.
        progress_stream: text stream of the progress line. Defaults to standard error.
        log: function that is called with each line of information.
        **changes: fields of `SubsetSettings` that replace those of `settings`.

    Returns:
        dict of `Result` by `SubsetCell`.

    Raises:
        ValueError, TypeError, OSError: if something does not fit; the sentence names
            it. Settings and data are checked before anything is written.
        RuntimeError: if the loss of every run was not finite.
    """
    check_directory("output_dir", output_dir)
    settings = settings or SubsetSettings()
    settings.field_types(changes)
    settings = dataclasses.replace(settings, **changes)
    task = get_trained_task(task)
    subsets, dev_splits = _prepare(model, task, settings, data_dir, tfds_data_dir)
    subsets.progress_stream = progress_stream
    task, (backbone, tokenizer) = subsets.task, subsets.encoder
    cells = subsets.cells()
    features = subsets.train, subsets.scored["dev"][2], subsets.scored["held_out"][2]
    compared = _Compared(
        **dataclasses.asdict(settings),
        task=task.name,
        model=str(model),
        data_dir=None if data_dir is None else str(data_dir),
        weights_sha256=sha256(*backbone.get_weights()),
        data_sha256=sha256(*(x for each in features for x in each.identity())),
    )
    with RunDirectory.open(
        output_dir, compared, KIND, overwrite, reads={"model": model}
    ) as directory:
        directory.start()
        subsets.path = directory.path
        finished = FinishedCells(directory.path / CELLS, SubsetCell).load()
        if directory.state == FINISHED and set(cells) <= set(finished):
            log(f"Finished already: {output_dir}.")
            return finished
        if directory.state == FINISHED:
            directory.reopen()
        log(
            f"{describe(backbone)}; {task.title}: "
            f"{len(subsets.train):,} training rows, "
            f"{settings.num_held_out_examples:,} held out; {len(cells)} cells; on "
            f"{hardware()}."
        )
        results = run_grid(
            directory.path,
            cells,
            subsets.run,
            save_model=lambda model, cell, path: save_task_model(
                task, model, tokenizer, path, {"cell": dataclasses.asdict(cell)}
            ),
            may_keep=lambda cell: cell.method != WHOLE,
            show=subsets.show,
            cell_class=SubsetCell,
            log=log,
        )
        check_some_finished(
            {cell: each for cell, each in results.items() if cell.method != WHOLE}
        )
        evaluations = evaluate_saved(task, directory.path / "model", dev_splits)
        with writing(directory.path):
            write_evaluations(directory.path, evaluations.values())
            write_report(subsets, results, directory.settings)
        directory.finish()
    for evaluation in evaluations.values():
        log(str(evaluation))
    return results


def _prepare(model, task, settings, data_dir, tfds_data_dir):
    """Loads the encoder and the data, and checks that they fit the settings."""

    def load_encoder():
        return load_model(model, None, settings.dtype_policy)

    encoder = load_encoder()
    backbone, _ = encoder
    if is_pruned(backbone):
        raise ValueError(
            "`model` must have all heads of its layers. Received: "
            f"model={model}, a pruned encoder."
        )
    options = {"sequence_length": settings.sequence_length}
    given = {name: value for name, value in options.items() if value is not None}
    task = task.with_options(backbone, **given)
    train_examples = task.load("train", data_dir, tfds_data_dir)
    dev_splits = load_dev_splits(task, data_dir, tfds_data_dir)
    if settings.num_dev_examples is not None:
        dev_splits = {
            split: examples.sample(settings.num_dev_examples)
            for split, examples in dev_splits.items()
        }
    number = settings.num_held_out_examples
    if number >= len(train_examples):
        raise ValueError(
            "`num_held_out_examples` must leave examples to train on. Received: "
            f"num_held_out_examples={number:,} of {len(train_examples):,}."
        )
    subsets = Subsets(
        settings, task, load_encoder, train_examples, dev_splits[task.dev_split]
    )
    check_sizes(settings, subsets.gates_shape)
    if not subsets.cells_with_fewer_heads():
        raise ValueError(
            "`num_kept_heads` must have a multiple of a layer's heads for the method "
            f"depth. Received: num_kept_heads={settings.num_kept_heads}, a model of "
            f"{subsets.shape[1]} heads a layer."
        )
    rows = len(subsets.train.training_rows())
    if rows < settings.num_importance_examples:
        raise ValueError(
            "`num_importance_examples` must not exceed the training rows. Received: "
            f"num_importance_examples={settings.num_importance_examples:,} of {rows:,}."
        )
    return subsets, dev_splits
