"""Loads a model, keeps the vocabulary that a corpus uses, and saves it."""

import os
from pathlib import Path

from keras_minilmv2.backbones.loading import load_backbone, load_tokenizer
from keras_minilmv2.backbones.preset_files import check_new_directory
from keras_minilmv2.backbones.saving import save_student
from keras_minilmv2.backbones.vocabulary import shrink_vocabulary
from keras_minilmv2.data.sources import log_skipped
from keras_minilmv2.data.text import Corpus
from keras_minilmv2.utils.files import writing
from keras_minilmv2.utils.tables import count, megabytes


def shrink(
    model,
    corpus,
    output_dir,
    *,
    min_count=1,
    all_characters=True,
    held_out=(),
    overwrite=False,
    log=print,
):
    """Saves a model with the pieces of its vocabulary that a corpus uses.

    Args:
        model: str or path. As for `load_backbone`.
        corpus: a `Corpus`, or its sources.
        output_dir: str or path of a directory: a keras-nlp preset, with its tokenizer.
        min_count: int. Pieces that occur less often in the corpus are dropped.
        all_characters: bool. Whether every single character stays, or only those of
            the corpus, and ASCII.
        held_out: sequence of sources of a `Corpus`. Of each, tokens and unknown
            pieces are counted before and after.
        overwrite: bool. Whether a directory that holds another model, and nothing
            else, is replaced.
        log: function of a line of information.

    Returns:
        list of rows of str, `[what, before, after]`.

    Raises:
        ValueError: if the model cannot be loaded or is of no supported family, the
            corpus cannot be read or has no text, or `min_count` is not positive.
        FileExistsError: if `output_dir` is not empty and `overwrite` is not set, or
            it holds a file that is no model's.
    """
    output_dir = Path(output_dir)
    check_new_directory("output_dir", output_dir, overwrite)
    if not isinstance(corpus, Corpus):
        corpus = Corpus(corpus)
    if isinstance(held_out, str | os.PathLike):
        held_out = [held_out]
    held_out = {os.fspath(source): Corpus(source) for source in held_out}
    skipped = dict(corpus.skipped)
    for held in held_out.values():
        skipped.update(held.skipped)
    log_skipped(skipped, log)
    if not any(True for _ in corpus):
        raise ValueError(
            f"`corpus` must hold text. Received: corpus={', '.join(corpus.sources)}."
        )
    backbone, tokenizer, facts = shrink_vocabulary(
        load_backbone(model),
        load_tokenizer(model),
        _texts(corpus),
        min_count=min_count,
        all_characters=all_characters,
        held_out={name: _texts(held) for name, held in held_out.items()},
    )
    with writing(output_dir):
        save_student(backbone, tokenizer, output_dir)
    return _rows(*facts)


def _texts(corpus):
    return (text for text, _ in corpus)


def _rows(before, after):
    rows = [
        ["token ids", f"{before.num_pieces:,}", f"{after.num_pieces:,}"],
        ["parameters", count(before.num_parameters), count(after.num_parameters)],
        ["float32 weights", megabytes(before.num_bytes), megabytes(after.num_bytes)],
    ]
    for name, (num_tokens, unknown_share) in before.held_out.items():
        num_tokens_after, unknown_share_after = after.held_out[name]
        rows += [
            [f"tokens in {name}", f"{num_tokens:,}", f"{num_tokens_after:,}"],
            [
                f"unknown in {name}",
                f"{unknown_share:.3%}",
                f"{unknown_share_after:.3%}",
            ],
        ]
    return rows
