"""Competitors for the input: reading examples, preparing a corpus, and Rust's tokens.

See worker.py.
"""

import contextlib
import dataclasses
import io
import json
import shutil
import tempfile
import time
from pathlib import Path

from worker import Work, serve

PIECES = 1_000  # of a call of `encode_batch_fast`


def batches(directory, batch, num_batches, seed=0):
    """Shuffled batches of prepared examples, as training reads them."""
    from keras_minilmv2.data.pipeline import as_dataset
    from keras_minilmv2.data.shards import PreparedExamples

    examples = PreparedExamples(directory)
    dataset = iter(as_dataset(examples, batch, seed=seed))

    def run():
        for _ in range(num_batches):
            next(dataset)["token_ids"].numpy()

    return Work(run, {"num_examples": len(examples)})


def first_batch(directory, batch, seed=0):
    """From an open directory to the batch of a step, which is the key."""
    from keras_minilmv2.data.pipeline import as_dataset
    from keras_minilmv2.data.shards import PreparedExamples

    examples = PreparedExamples(directory)

    def run(step):
        dataset = as_dataset(examples, batch, seed=seed, start_step=int(step))
        next(iter(dataset))["token_ids"].numpy()

    return Work(run)


def first_update(directory, steps):
    """`distill` until its first update, after the step that is the key."""
    import keras
    import numpy as np

    from keras_minilmv2.runs.demo import demo_recipe
    from keras_minilmv2.runs.distill import distill

    recipe = dataclasses.replace(
        demo_recipe(corpus=(directory,)),
        student_initialization="random",
        total_steps=max(steps) + 10,
        held_out_examples=32,
        evaluate_every=max(steps) + 10,
        checkpoint_every=1,
    )
    kept = tempfile.TemporaryDirectory()

    class Stream(io.StringIO):
        """A terminal that leaves off at the second line."""

        def isatty(self):
            return True

        def write(self, text):
            if text.startswith("\r"):
                self.updates = getattr(self, "updates", 0) + 1
                if self.updates == self.last:
                    raise KeyboardInterrupt
            return len(text)

    def begin(output_dir, num_updates):
        stream = Stream()
        stream.last = num_updates
        keras.backend.clear_session()
        started = time.perf_counter()
        with contextlib.suppress(KeyboardInterrupt):
            distill(recipe, output_dir, progress_stream=stream, log=lambda line: None)
        return time.perf_counter() - started

    # A run with a checkpoint, whose step is then said to be another.
    fresh = Path(kept.name, "fresh")
    begin(fresh, 3)
    (path,) = sorted((fresh / "checkpoints").iterdir())[-1:]
    for step in steps:
        copy = Path(kept.name, str(step))
        shutil.copytree(fresh, copy)
        shutil.rmtree(copy / "checkpoints")
        (copy / "checkpoints").mkdir()
        with np.load(path) as archive:
            arrays = dict(archive)
        notes = {**json.loads(arrays["notes"].tobytes()), "step": step}
        arrays["notes"] = np.frombuffer(json.dumps(notes).encode(), "uint8")
        np.savez(copy / "checkpoints" / f"step-{step:08}.npz", **arrays)

    def run(step):
        with tempfile.TemporaryDirectory() as scratch:
            output_dir = Path(scratch, "run")
            if step != "0":
                shutil.copytree(Path(kept.name, step), output_dir)
            return begin(output_dir, 1)

    return Work(run)


def prepare(text, family, vocabularies):
    """A text file becomes examples of 128 tokens on disk."""
    import keras_hub

    from keras_minilmv2.data.preparation import prepare
    from keras_minilmv2.data.text import Corpus

    files = vocabulary_files(family, vocabularies)
    if family == "BERT":
        tokenizer = keras_hub.models.BertTokenizer(*files, lowercase=True)
    else:
        tokenizer = keras_hub.models.RobertaTokenizer(*files)

    def prepare_once():
        with tempfile.TemporaryDirectory() as directory:
            manifest = prepare(Corpus(text), tokenizer, 128, directory)
        # Without the special ones.
        return manifest.num_tokens() - 2 * manifest.num_examples()

    return counting(prepare_once)


def rust(text, family, vocabularies):
    """The same text becomes ids, which are dropped, by the library `tokenizers`."""
    import tokenizers

    from keras_minilmv2.data.text import Corpus

    files = vocabulary_files(family, vocabularies)
    if family == "BERT":
        tokenizer = tokenizers.BertWordPieceTokenizer(*files, lowercase=True)
    else:
        tokenizer = tokenizers.ByteLevelBPETokenizer(*files)

    def count(pieces):
        encodings = tokenizer._tokenizer.encode_batch_fast(
            pieces, add_special_tokens=False
        )
        return sum(map(len, encodings))

    def encode():
        num_tokens, pieces = 0, []
        for piece, _ in Corpus(text):
            pieces.append(piece)
            if len(pieces) == PIECES:
                num_tokens += count(pieces)
                pieces = []
        return num_tokens + count(pieces)

    return counting(encode, {"tokenizers": tokenizers.__version__})


def counting(function, facts=None):
    """The work of a function that returns a number of tokens."""
    last = {}

    def run():
        started = time.process_time()
        last["num_tokens"] = function()
        last["processor_seconds"] = time.process_time() - started

    return Work(run, facts or {}, lambda: last)


def vocabulary_files(family, vocabularies):
    """Files of a vocabulary, as the papers' models have it."""
    if family == "BERT":
        return [str(Path(vocabularies, "bert-base-uncased", "vocab.txt"))]
    return [
        str(Path(vocabularies, "roberta-base", name))
        for name in ("vocab.json", "merges.txt")
    ]


if __name__ == "__main__":
    serve({f.__name__: f for f in (batches, first_batch, first_update, prepare, rust)})
