"""Documents become packed examples: `sequence_length` tokens, no padding."""

import contextlib
import itertools
import re
import unicodedata

import keras_hub
import numpy as np
import tensorflow as tf
import tokenizers

from keras_minilmv2.tokenization.packable import (
    check_packable,
    without_special_tokens_in_text,
)
from keras_minilmv2.utils.datasets import without_autotune

BATCH_CHARS = 65_536

# Unicode's spaces and separators of lines and paragraphs, the ASCII ones left out.
_SPACES = re.compile("[\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]")


def packed_examples(corpus, tokenizer, sequence_length, *, segment_ids=False):
    """Packs the documents of a corpus into examples without padding.

    The tokens of all documents are one stream, with the end token between one
    document and the next. An example is the start token, `sequence_length - 2`
    tokens of the stream and the end token. Only the last example of the stream is
    padded, with the pad token.

    Text does not become a special token: `"</s>"` in a document is punctuation and
    a letter, whatever `special_tokens_in_strings` and `unsplittable_tokens` of the
    tokenizer are. Only a SentencePiece model that itself defines `"[MASK]"` or the
    like as a user symbol still gives it. For WordPiece, which keras-hub 0.32 splits
    at ASCII white space only, every other Unicode space is made a plain one, as
    Hugging Face's tokenizers do.

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
    num_content = sequence_length - 2

    def add_special_tokens(content):
        tokens = tf.concat(
            [[tokenizer.start_token_id], content, [tokenizer.end_token_id]], axis=0
        )
        num_padding = sequence_length - tf.shape(tokens)[0]
        token_ids = tf.pad(
            tokens, [[0, num_padding]], constant_values=tokenizer.pad_token_id
        )
        padding_mask = tf.pad(tf.ones_like(tokens), [[0, num_padding]])
        example = {
            "token_ids": tf.ensure_shape(token_ids, [sequence_length]),
            "padding_mask": tf.ensure_shape(padding_mask, [sequence_length]),
        }
        if segment_ids:
            example["segment_ids"] = tf.zeros([sequence_length], "int32")
        return example

    stream = _token_stream(corpus, tokenizer)
    return stream.rebatch(num_content).map(
        add_special_tokens, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
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
        repeat: bool. Whether to begin again, without end, after the last example.
            A batch may then hold examples of two epochs.
        drop_remainder: bool. Whether to leave out a last batch that is not full.

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
    num_needed = num_examples * (sequence_length - 2)
    num_found = 0
    with corpus_errors(corpus):
        for tokens in _token_stream(corpus, tokenizer):
            num_found += int(tokens.shape[0])
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


def piece_batches(pieces, max_chars):
    """Gathers pieces of text for tokenization.

    Args:
        pieces: iterable of `(text, starts_document)`.
        max_chars: int. A batch ends with the piece that reaches so many characters.

    Yields:
        `(texts, separate)`: list of str, and list of bool that says before which
        texts an end token belongs.
    """
    texts, separate, num_chars, is_first = [], [], 0, True
    for text, starts_document in pieces:
        texts.append(text)
        separate.append(starts_document and not is_first)
        is_first = False
        num_chars += len(text)
        if num_chars >= max_chars:
            yield texts, separate
            texts, separate, num_chars = [], [], 0
    if texts:
        yield texts, separate


def tokenize_function(tokenizer, num_threads=1):
    """Makes a function that gives the tokens of a batch of pieces, without tf.data.

    Args:
        tokenizer: keras-nlp tokenizer.
        num_threads: int. How many threads will call it.

    Returns:
        Function of `(texts, separate)`, as `piece_batches` yields them, to an int32
        vector. It may be called from several threads at once.
    """
    if isinstance(tokenizer, keras_hub.tokenizers.BytePairTokenizer):
        return _byte_pair_encoder(tokenizer, num_threads)
    graph = tf.function(
        _graph_function(tokenizer),
        input_signature=[
            tf.TensorSpec([None], tf.string),
            tf.TensorSpec([None], tf.bool),
        ],
    )
    clean = _cleaning(tokenizer)
    return lambda texts, separate: graph(clean(texts), separate).numpy()


def _token_stream(corpus, tokenizer):
    """Dataset of int32 vectors that, concatenated, are the tokens of the corpus."""
    clean = _cleaning(tokenizer)

    def cleaned_batches():
        for texts, separate in piece_batches(corpus, BATCH_CHARS):
            yield [text.encode() for text in clean(texts)], separate

    pieces = tf.data.Dataset.from_generator(
        cleaned_batches,
        output_signature=(
            tf.TensorSpec([None], tf.string),
            tf.TensorSpec([None], tf.bool),
        ),
    )
    if isinstance(tokenizer, keras_hub.tokenizers.BytePairTokenizer):
        tokenize = _byte_pair_function(tokenizer)
    else:
        tokenize = _graph_function(tokenizer)
    return without_autotune(
        pieces.map(tokenize, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    )


def _cleaning(tokenizer):
    """What to do with texts before tokenization."""
    if isinstance(tokenizer, keras_hub.tokenizers.WordPieceTokenizer):
        return lambda texts: [_SPACES.sub(" ", text) for text in texts]
    return lambda texts: texts


def _graph_function(tokenizer):
    """Pieces to one vector of tokens, by the tokenizer's own ops."""
    tokenizer = without_special_tokens_in_text(tokenizer)
    end_token_id = tokenizer.end_token_id

    def tokenize(texts, separate):
        tokens = tokenizer(texts)  # ragged (pieces, tokens)
        counts = tf.cast(separate, tokens.row_splits.dtype)
        separators = tf.RaggedTensor.from_row_lengths(
            tf.fill([tf.reduce_sum(counts)], end_token_id), counts
        )
        return tf.concat([separators, tokens], axis=1).flat_values

    return tokenize


# Characters that every version of Unicode has put into the same class.
COMMON = "".join(map(chr, [*range(0x250), *range(0x2010, 0x2028), 0x20AC, 0x2122]))
_IS_COMMON = re.compile(f"[{re.escape(COMMON)}]*")
# Words that a tokenizer keeps the tokens of, about 20 MB.
_MAX_WORDS = 100_000
_MAX_WORD_CHARS = 32
# With more threads, those of `tokenizers` outrun the one that holds the lock.
_MAX_THREADS_OF_WORDS = 4


def _gpt2_words():
    """GPT-2's expression for words, over the common characters."""
    letters, numbers = (
        "".join(c for c in COMMON if unicodedata.category(c)[0] == group)
        for group in "LN"
    )
    # White space of Unicode; Python's has the separators of files and records too.
    spaces = "\t\n\v\f\r \x85\xa0"
    return re.compile(
        f"'s|'t|'re|'ve|'m|'ll|'d| ?[{letters}]+| ?[{numbers}]+"
        f"| ?[^{spaces}{letters}{numbers}]+|[{spaces}]+(?![^{spaces}])|[{spaces}]+"
    )


class _TokensOfWords(dict):
    """Tokens by word; a word that is not there yet is tokenized."""

    def __init__(self, encoder):
        super().__init__()
        self._encoder = encoder

    def __missing__(self, word):
        tokens = tuple(self._encoder.encode(word).ids)
        if len(self) < _MAX_WORDS and len(word) <= _MAX_WORD_CHARS:
            self[word] = tokens
        return tokens


def _byte_pair_encoder(tokenizer, num_threads=1):
    """Pieces to one vector of tokens, by the `tokenizers` library.

    The ops of keras-hub 0.32 give the same ids for ordinary text, at a tenth of the
    speed and with a cache of every word ever seen. They differ in a blank line (one
    token, where GPT-2 has two), in `"</s>"` within a text (the special token), and
    in the Devanagari digit six and NUL, which they lose.

    Keeping the tokens of words takes a third of the library's time; text with other
    than common characters is left to the library, whose version of Unicode counts.
    """
    merges = [
        tuple(merge.split(" "))
        for merge in tokenizer.merges
        if "#version:" not in merge
    ]
    encoder = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocab=dict(tokenizer.vocabulary), merges=merges)
    )
    encoder.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
        add_prefix_space=False, use_regex=True
    )
    end_token_id = tokenizer.end_token_id
    find_words = _gpt2_words().findall
    tokens_of_words = _TokensOfWords(encoder)
    keeps_words = num_threads <= _MAX_THREADS_OF_WORDS

    def tokens_of(text):
        words = map(tokens_of_words.__getitem__, find_words(text))
        return itertools.chain.from_iterable(words)

    def encode(texts, separate):
        if tokenizer.add_prefix_space:
            texts = [text if text[:1] == " " else " " + text for text in texts]
        common = [keeps_words and _IS_COMMON.fullmatch(text) for text in texts]
        rest = [text for text, kept in zip(texts, common, strict=True) if not kept]
        encodings = iter(encoder.encode_batch_fast(rest))
        tokens = []
        for text, kept, separated in zip(texts, common, separate, strict=True):
            if separated:
                tokens.append(end_token_id)
            tokens.extend(tokens_of(text) if kept else next(encodings).ids)
        return np.array(tokens, "int32")

    return encode


def _byte_pair_function(tokenizer):
    """The same as a function of tensors."""
    encode = _byte_pair_encoder(tokenizer)

    def encode_bytes(texts, separate):
        return encode([text.decode() for text in texts], separate)

    def tokenize(texts, separate):
        tokens = tf.numpy_function(
            encode_bytes, [texts, separate], tf.int32, stateful=False
        )
        return tf.ensure_shape(tokens, [None])

    return tokenize
