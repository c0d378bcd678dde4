"""A task's data and model, as all verbs read, train, save and score them."""

import math

import keras
import numpy as np

from keras_minilmv2.backbones.saving import check_space
from keras_minilmv2.downstream.batches import training_epochs
from keras_minilmv2.downstream.registry import get_task
from keras_minilmv2.downstream.saved import NOTES_FILE, load_fine_tuned
from keras_minilmv2.heads.pruning import prune_heads
from keras_minilmv2.training.progress import ProgressLine
from keras_minilmv2.training.schedule import adamw
from keras_minilmv2.training.supervised import (
    NotFiniteError,
    train,
    training_step,
)
from keras_minilmv2.utils.files import replacing_directory, write_json

_CALIBRATION_BATCH = 32


def task_of(saved, task, model):
    """The task that a saved model is for.

    Args:
        saved: `Saved`.
        task: str or `Task`. None for the one that the model was fine-tuned on.
        model: str or path of the model, for messages.

    Raises:
        ValueError, TypeError: if it is not known, or the model is not one for it.
    """
    if task is None and saved.task is None:
        raise ValueError(
            "`task` must be given for a model that does not name its own. "
            f"Received: task=None, model={model}."
        )
    task = get_task(saved.task if task is None else task)
    task.check_model(saved.model, saved.notes)
    return task


def load_dev_splits(task, data_dir=None, tfds_data_dir=None):
    """The examples of a task's dev splits by name, of those that there are files of."""
    return {
        split: task.load(split, data_dir, tfds_data_dir)
        for split in task.splits
        if split == task.dev_split
        or (split.startswith("dev") and task.has_split(split, data_dir))
    }


def save_task_model(task, model, tokenizer, path, notes):
    """Writes a model and what `load_saved` must know of it; they appear together."""
    with replacing_directory(path) as fresh:
        check_space(fresh, model)
        task.save_model(model, tokenizer, fresh)
        write_json(fresh / NOTES_FILE, {**task.notes(), **notes})


def evaluate_saved(task, path, splits):
    """Loads a model that was written, and scores it.

    Args:
        task: `Task`.
        path: path of the model.
        splits: dict of examples by name of the split.

    Returns:
        dict of `Evaluation` by name of the split.
    """
    saved = load_fine_tuned(path)

    def evaluate(split, examples):
        features = task.features(examples, saved.backbone, saved.tokenizer)
        return task.evaluate(saved.model, features, split, examples)

    return {split: evaluate(split, examples) for split, examples in splits.items()}


def train_model(
    task,
    model,
    features,
    cell,
    *,
    batch_size,
    rows=None,
    warmup_fraction=0.1,
    weight_decay=0.01,
    dtype_policy="float32",
    progress_stream=None,
    training_model=None,
    loss=None,
    with_targets=None,
    make_step=None,
    start=None,
    keep=None,
):
    """Trains a model of a task, with a line of progress.

    Args:
        task: `Task`.
        model: as `task.model` builds it. It is changed.
        features: `Features` to train on.
        cell: `Cell`: peak learning rate, epochs, and the seed of the batches.
        batch_size: int, rows.
        rows: int `(rows,)`, those to train on. Defaults to all.
        warmup_fraction: float, of all steps.
        weight_decay: float.
        dtype_policy: str, the model's.
        progress_stream: text stream. Defaults to standard error.
        training_model: Keras model of the same weights, whose outputs the loss is
            given. Defaults to the task's.
        loss: function of targets and outputs. Defaults to the task's.
        with_targets: function of a batch's inputs and targets that returns what the
            loss is given in place of the targets. Defaults to the targets.
        make_step: function of the training model, the loss and the optimizer, and
            `jit_compile`, which returns the step. Defaults to `training_step`.
        start: function without arguments that returns what `train` starts from. It
            is called when the step is made.
        keep: as for `train`.

    Returns:
        list of float, the mean loss of each epoch.

    Raises:
        NotFiniteError: if a loss is not finite.
    """
    rows = features.training_rows() if rows is None else rows
    total_steps = cell.epochs * math.ceil(len(rows) / batch_size)
    optimizer = adamw(
        cell.learning_rate,
        int(warmup_fraction * total_steps),
        total_steps,
        weight_decay=weight_decay,
    )
    if dtype_policy == "mixed_float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    batches = training_epochs(features, batch_size, cell.epochs, cell.seed, rows)
    if with_targets is not None:
        batches = (
            ((inputs, with_targets(inputs, targets)) for inputs, targets in epoch)
            for epoch in batches
        )
    tokens = features.padded_lengths(rows).mean() * batch_size
    progress = ProgressLine(total_steps, tokens, progress_stream)
    progress.start()
    step = (make_step or training_step)(
        training_model or task.training_model(model),
        loss or task.loss,
        optimizer,
        jit_compile=features.jit_compile,
    )
    try:
        return train(
            step,
            batches,
            on_step=lambda step, value: progress.update(step, {"loss": value}),
            start=None if start is None else start(),
            keep=keep,
        )
    finally:
        progress.close()


def train_and_score(task, model, train, dev, dev_examples, cell, **options):
    """Trains a model and scores it on the dev split of its task.

    Args:
        task: `Task`.
        model: as `task.model` builds it. It is changed.
        train: `Features` to train on.
        dev: `Features` of the dev split.
        dev_examples: as `Task.load` gives them.
        cell: `Cell`.
        **options: as for `train_model`.

    Returns:
        tuple of the model, in float32; list of float, the mean loss of each epoch; and
        dict of the metrics. Both are empty where the loss was not finite.
    """
    try:
        losses = train_model(task, model, train, cell, **options)
        model = in_float32(task, model)
        found = task.evaluate(model, dev, task.dev_split, dev_examples)
    except NotFiniteError:
        # The last update may spoil the weights: only the outputs show it.
        return model, [], {}
    return model, losses, found.metrics


def calibration_batches(features, number, seed):
    """Batches of training rows in random order, for importance and the like.

    Args:
        features: `Features`.
        number: int. Rows, or all if there are fewer.
        seed: int or sequence of int, of the choice.

    Returns:
        list of pairs, inputs and targets.
    """
    rows = np.random.default_rng(seed).permutation(features.training_rows())[:number]
    order = seed if isinstance(seed, int) else seed[0]
    return list(next(training_epochs(features, _CALIBRATION_BATCH, 1, order, rows)))


def with_backbone(task, model, backbone, seed=0, dtype=None):
    """A model of a task around a copy of another encoder, with the weights of its head.

    Args:
        task: `Task`.
        model: as `task.model` builds it.
        backbone: keras-nlp backbone of the same width.
        seed: int, of dropout.
        dtype: dtype policy. Defaults to the backbone's.
    """
    new = task.model(backbone, seed, dtype)
    for ours, theirs in zip(_head_weights(new), _head_weights(model), strict=True):
        ours.assign(theirs)
    return new


def removal_metric(task, model, features, split, examples):
    """What a model scores without some of its heads and neurons, and without training.

    Args:
        task: `Task`.
        model: as `task.model` builds it.
        features: `Features` of the split.
        split: str.
        examples: as `Task.load` gives them.

    Returns:
        function of a head mask and a neuron mask, or None, that returns the main metric
        of the task, as `removal_curve` takes it.
    """

    def metric(head_mask, neuron_mask=None):
        smaller = prune_heads(model.backbone, head_mask, neuron_mask)
        smaller = with_backbone(task, model, smaller)
        return task.evaluate(smaller, features, split, examples).metrics[
            task.main_metric
        ]

    return metric


def _head_weights(model):
    inner = {id(weight) for weight in model.backbone.weights}
    # The seeds of dropout layers are not weights.
    return [weight for weight in model.weights if id(weight) not in inner]


def in_float32(task, model):
    """The same model; keras-hub 0.32 cannot load one of mixed precision."""
    if model.backbone.dtype_policy.name == "float32":
        return model
    twin = task.model(model.backbone, seed=0, dtype="float32")
    twin.set_weights(model.get_weights())
    return twin
