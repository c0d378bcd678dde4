"""Documents become packed examples: `sequence_length` tokens, no padding."""

import collections
import contextlib
import functools
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import tensorflow as tf

from keras_minilmv2.tokenization.fast import fast_tokenizer
from keras_minilmv2.tokenization.packable import check_packable
from keras_minilmv2.utils.datasets import without_autotune

# Characters of text that are tokenized at a time.
BATCH_CHARS = 262_144
# With more threads, those of `tokenizers` outrun the one that holds the lock.
_MAX_THREADS_OF_WORDS = 4


def packed_examples(corpus, tokenizer, sequence_length, *, segment_ids=False):
    """Packs the documents of a corpus into examples without padding.

    The tokens of all documents are one stream, with the end token between one
    document and the next. An example is the start token, `sequence_length - 2`
    tokens of the stream and the end token. Only the last example of the stream is
    padded, with the pad token.

    The token ids are those of `fast_tokenizer`: text does not become a special token,
    `"</s>"` in a document is punctuation and a letter.

    Reads the corpus as it is iterated, in blocks, with tokenization in parallel; the
    order of the examples is the order of the text. Errors of the corpus surface from
    tf.data with a trace; `corpus_errors` turns them back.

    Args:
        corpus: `Corpus`, or any iterable of `(text, starts_document)` that can be
            iterated anew for each epoch.
        tokenizer: keras-nlp tokenizer of the model's family.
        sequence_length: int. Tokens of an example, the special ones included.
        segment_ids: bool. Whether to add `"segment_ids"`, which are all 0.

    Returns:
        `tf.data.Dataset` of dicts of int32 `(sequence_length,)`: `"token_ids"`,
        `"padding_mask"` (1 = real token) and, when asked for, `"segment_ids"`.

    Raises:
        ValueError: if `sequence_length` is below 3, or the tokenizer pads, truncates
            or adds special tokens itself.
        TypeError: if the tokenizer has no start, end and pad token.
    """
    check_packing(tokenizer, sequence_length)

    def blocks():
        for rows, num_tokens in _packed_blocks(corpus, tokenizer, sequence_length):
            mask = np.arange(sequence_length) < num_tokens[:, np.newaxis]
            block = {"token_ids": rows, "padding_mask": mask.astype("int32")}
            if segment_ids:
                block["segment_ids"] = np.zeros_like(rows)
            yield block

    names = ["token_ids", "padding_mask"] + ["segment_ids"] * segment_ids
    signature = tf.TensorSpec([None, sequence_length], tf.int32)
    return without_autotune(
        tf.data.Dataset.from_generator(
            blocks, output_signature=dict.fromkeys(names, signature)
        ).unbatch()
    )


def batches(
    examples,
    batch_size,
    *,
    shuffle_buffer=0,
    seed=0,
    repeat=False,
    drop_remainder=True,
):
    """Shuffles, repeats and batches examples.

    Args:
        examples: `tf.data.Dataset` of dicts, as `packed_examples` returns.
        batch_size: int. Examples of a batch.
        shuffle_buffer: int. Examples to draw the next one from, held in memory; 0
            keeps the order.
        seed: int. Two datasets made alike with the same seed give the same batches,
            in every epoch; each epoch is shuffled anew.
        repeat: bool. Whether to start over, without end, after the last example.
            A batch may then hold examples of two epochs.
        drop_remainder: bool. Whether to skip a last batch that is not full.

    Returns:
        `tf.data.Dataset` of dicts of int32 `(batch_size, sequence_length)`.
    """
    if shuffle_buffer:
        examples = examples.shuffle(shuffle_buffer, seed=seed)
    if repeat:
        examples = examples.repeat()
    return examples.batch(batch_size, drop_remainder=drop_remainder).prefetch(
        tf.data.AUTOTUNE
    )


def require_examples(corpus, tokenizer, sequence_length, num_examples=1):
    """Raises unless a corpus fills a number of examples.

    Reads no more of the corpus than it takes to know.

    Args:
        corpus: `Corpus`.
        tokenizer: keras-nlp tokenizer.
        sequence_length: int. As for `packed_examples`.
        num_examples: int. Full examples that must be there, for instance the batch
            size.

    Raises:
        ValueError: if there are fewer, or the corpus cannot be read.
    """
    check_packing(tokenizer, sequence_length)
    fast = fast_tokenizer(tokenizer)
    num_needed = num_examples * (sequence_length - 2)
    num_found = 0
    with corpus_errors(corpus):
        for text, starts_document in corpus:
            separators = int(starts_document and num_found > 0)
            num_found += separators + len(fast.ids([text])[0])
            if num_found >= num_needed:
                return
    part = ""
    if corpus.held_out_every is not None:
        part = f", part={corpus.part!r}, held_out_every={corpus.held_out_every}"
    raise ValueError(
        f"`corpus` must have at least {num_needed} tokens, {num_examples} x "
        f"({sequence_length} - 2). Received: corpus with {num_found} tokens, "
        f"sources={corpus.sources}{part}."
    )


@contextlib.contextmanager
def corpus_errors(*corpora):
    """Gives the errors of corpora inside a tf.data pipeline their own text back.

    Those of `PreparedExamples` too.

    ```python
    with corpus_errors(corpus):
        distiller.fit(batches(packed_examples(corpus, tokenizer, 128), 32))
    ```

    tf.data turns an error of its source into an `InvalidArgumentError` of many lines.
    Within this context the ValueError of the corpus is raised in its stead; every
    other error passes unchanged.
    """
    try:
        yield
    except tf.errors.OpError as error:
        for corpus in corpora:
            # The text tells an error of the corpus from one of another cause.
            if corpus.error is not None and str(corpus.error) in str(error):
                raise corpus.error from None
        raise


def check_packing(tokenizer, sequence_length):
    """Raises unless packing with these arguments is well defined.

    Raises:
        ValueError, TypeError: as `packed_examples` does.
    """
    if sequence_length < 3:
        raise ValueError(
            "`sequence_length` must be at least 3: a start token, a token and an end "
            f"token. Received: sequence_length={sequence_length}."
        )
    check_packable(tokenizer)


class TokenStream:
    """Chunks of text on their way to rows of tokens, tokenized by threads.

    Args:
        tokenizer: keras-nlp tokenizer.
        sequence_length: int. Tokens of a row, the special ones included.
        submit: function of a function and its arguments that returns a future, as
            `ThreadPoolExecutor.submit`.
        num_threads: int. How many threads there are.
    """

    def __init__(self, tokenizer, sequence_length, submit, num_threads):
        self._submit = functools.partial(
            submit, tokenize_function(tokenizer, num_threads)
        )
        self._max_waiting = 4 * num_threads
        self._sequence_length = sequence_length
        self._tokenizer = tokenizer
        self._texts, self._separate, self._num_chars = [], [], 0
        self._waiting = collections.deque()
        self._rest = np.zeros(0, "int32")
        self._has_text = False

    def add(self, text, starts_document):
        """Takes one chunk.

        Yields:
            `(rows, num_tokens)`, int32 `(rows, sequence_length)` and int64 `(rows,)`,
            of what is ready.
        """
        self._texts.append(text)
        self._separate.append(starts_document and self._has_text)
        self._has_text = True
        self._num_chars += len(text)
        if self._num_chars >= BATCH_CHARS:
            self._tokenize()
            while self._waiting and (
                self._waiting[0].done() or len(self._waiting) > self._max_waiting
            ):
                yield from self._packed(self._waiting.popleft().result())

    def close(self):
        """Ends the stream; yields as `add` does, the last row padded."""
        if self._texts:
            self._tokenize()
        while self._waiting:
            yield from self._packed(self._waiting.popleft().result())
        if self._rest.size:
            yield self._rows(self._rest[np.newaxis])

    def _tokenize(self):
        """Hands the chunks gathered so far to the threads."""
        self._waiting.append(self._submit(self._texts, self._separate))
        self._texts, self._separate, self._num_chars = [], [], 0

    def _packed(self, tokens):
        """The rows that are full; the rest waits."""
        tokens = np.concatenate([self._rest, tokens])
        num_content = self._sequence_length - 2
        num_rows = len(tokens) // num_content
        full = num_rows * num_content
        self._rest = tokens[full:]
        if num_rows:
            yield self._rows(tokens[:full].reshape(num_rows, num_content))

    def _rows(self, content):
        """Rows of content `(rows, tokens)` between special tokens."""
        num_rows, num_content = content.shape
        tokenizer = self._tokenizer
        rows = np.full(
            (num_rows, self._sequence_length), tokenizer.pad_token_id, "int32"
        )
        rows[:, 0] = tokenizer.start_token_id
        rows[:, 1 : num_content + 1] = content
        rows[:, num_content + 1] = tokenizer.end_token_id
        return rows, np.full(num_rows, num_content + 2)


def tokenize_function(tokenizer, num_threads=1):
    """Makes a function that gives the tokens of a batch of chunks.

    Args:
        tokenizer: keras-nlp tokenizer.
        num_threads: int. How many threads will call it.

    Returns:
        Function of a list of str and a list of bool, before which texts an end token
        belongs, to an int32 vector. It may be called from several threads at once.
    """
    fast = fast_tokenizer(tokenizer)
    end_token_id = tokenizer.end_token_id
    keep_words = num_threads <= _MAX_THREADS_OF_WORDS

    def tokenize(texts, separate):
        tokens, lengths = fast.ids(texts, keep_words)
        starts = np.cumsum(lengths) - lengths
        return np.insert(tokens, starts[np.array(separate, bool)], end_token_id)

    return tokenize


def num_cores():
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _packed_blocks(corpus, tokenizer, sequence_length):
    """Yields the rows of a corpus and how many tokens each has, block by block."""
    num_threads = num_cores()
    with ThreadPoolExecutor(num_threads) as executor:
        stream = TokenStream(tokenizer, sequence_length, executor.submit, num_threads)
        for text, starts_document in corpus:
            yield from stream.add(text, starts_document)
        yield from stream.close()
