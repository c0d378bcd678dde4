"""From a recipe to its examples: the corpus as token ids, prepared once."""

import time
from pathlib import Path

import numpy as np
import tensorflow as tf

from keras_minilmv2.backbones.families import uses_segment_ids
from keras_minilmv2.data.packing import require_examples
from keras_minilmv2.data.pipeline import sample
from keras_minilmv2.data.preparation import OtherSettingsError, prepare
from keras_minilmv2.data.shards import MANIFEST, PreparedExamples
from keras_minilmv2.data.sources import log_skipped
from keras_minilmv2.data.text import Corpus
from keras_minilmv2.runs.directory import FINISHED
from keras_minilmv2.training.strategy import num_workers

PREPARED = "prepared"
# Sequences that the "projection" initialization looks at.
NUM_PROJECTION_EXAMPLES = 64


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


def make_examples(recipe, tokenizer, directory, log=print):
    """The examples of a recipe, prepared in the run's directory where that is needed.

    Args:
        recipe: `Recipe`.
        tokenizer: that of its teacher.
        directory: `RunDirectory`.
        log: function of a line of information.

    Returns:
        dict of `PreparedExamples`, `"train"` and `"held_out"`.

    Raises:
        ValueError: if they are not what the recipe needs.
    """
    path = prepared_corpus(recipe)
    if path is None:
        path = directory.working(PREPARED)
        if directory.state != FINISHED:
            in_staging = path.is_relative_to(directory.staging)
            _prepare(recipe, tokenizer, path, in_staging, log)
    examples = {part: PreparedExamples(path, part) for part in ("train", "held_out")}
    _check_examples(recipe, examples, tokenizer)
    return examples


def _prepare(recipe, tokenizer, path, in_staging, log):
    """Prepares the corpus, or resumes preparing it."""
    if num_workers() > 1:
        raise ValueError(
            "`corpus` must be a directory that `keras-minilmv2 prepare` wrote when "
            f"there are several workers. Received: corpus={recipe.corpus}."
        )
    corpus = make_corpus(recipe)
    if not (path / MANIFEST).is_file():
        require_examples(corpus, tokenizer, recipe.sequence_length, recipe.batch_size)
        log("Prepares the corpus.")
    log_skipped(corpus.skipped, log)
    reported = [0.0]

    def report(progress):
        # A line now and then: preparing takes seconds for most corpora.
        if time.perf_counter() - reported[0] > 10:
            reported[0] = time.perf_counter()
            log(f"  {progress}")

    arguments = corpus, tokenizer, recipe.sequence_length, path
    options = {"tokenizer_name": recipe.teacher, "report": report}
    try:
        prepare(*arguments, **options)
    except OtherSettingsError:
        if not in_staging:
            raise
        # A run that was killed before it started had other settings.
        prepare(*arguments, overwrite=True, **options)
    if corpus.num_decode_errors:
        log(
            "Byte sequences that were not UTF-8 and were replaced: "
            f"{corpus.num_decode_errors}."
        )


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
