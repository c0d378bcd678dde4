"""A smaller vocabulary: the pieces that a corpus uses, and what every text needs."""

import itertools
import string
from dataclasses import dataclass

import keras_hub
import numpy as np
from keras import ops
from tokenizers import pre_tokenizers

from keras_minilmv2.backbones.families import check_tokenizer, family_of
from keras_minilmv2.backbones.hugging_face.tokenizers import split_words_like_gpt2
from keras_minilmv2.backbones.variants import rebuild
from keras_minilmv2.tokenization import sentence_piece as spm
from keras_minilmv2.tokenization.byte_pairs import plain_merges
from keras_minilmv2.tokenization.fast import fast_tokenizer
from keras_minilmv2.utils.checks import check_int

# Texts tokenized at a time.
_BATCH = 256


@dataclass(frozen=True)
class VocabularyFacts:
    """A model before or after its vocabulary was made smaller.

    Args:
        num_pieces: int. Token ids.
        num_parameters: int. Of the whole encoder.
        held_out: dict of pairs (number of tokens, share of unknown ones) by name of
            the held-out texts.
    """

    num_pieces: int
    num_parameters: int
    held_out: dict

    @property
    def num_bytes(self):
        """Bytes of the weights in float32."""
        return 4 * self.num_parameters


def shrink_vocabulary(
    backbone,
    tokenizer,
    texts,
    *,
    min_count=1,
    all_characters=True,
    held_out=None,
):
    """Keeps the pieces of a vocabulary that a corpus uses.

    A text whose pieces are all kept gets the same pieces and the same outputs, bit for
    bit; others are cut into more and smaller pieces. Kept are

    - the pieces that occur at least `min_count` times in `texts`;
    - special tokens; the rest of the ids that no text gives, `[unused1]` for
      instance, go;
    - every single character that the vocabulary has, so that a text that had no
      unknown piece gets none. With `all_characters=False` only those that occur in
      `texts`, and ASCII: a text in another script then becomes unknown;
    - of byte-level BPE all bytes, and the pieces that kept pieces are merged from;
    - of SentencePiece the pieces with the lowest and the highest score, on which the
      score of an unknown character depends.

    Args:
        backbone: a keras-nlp backbone of a supported family.
        tokenizer: its keras-nlp tokenizer.
        texts: iterable of str.
        min_count: int.
        all_characters: bool.
        held_out: dict of iterables of str by name: texts to count tokens and unknown
            pieces of, before and after.

    Returns:
        tuple of a backbone, a tokenizer and a pair of `VocabularyFacts`, before and
        after. The token embedding has one row per piece; spare rows are gone too.

    Raises:
        TypeError: if the backbone or the tokenizer is of no supported family.
        ValueError: if `texts` holds no token, `min_count` is not positive, or
            tokenizer and backbone do not fit.
    """
    family_of(backbone)
    vocabulary = _vocabulary_of(tokenizer)
    check_tokenizer(backbone, tokenizer)
    check_int(min_count=min_count)
    held_out = {name: list(held) for name, held in (held_out or {}).items()}
    count = token_counter(tokenizer)
    counts = count(texts)
    if not counts.any():
        raise ValueError(
            "`texts` must hold at least one token. Received: texts without any."
        )
    kept = _kept_ids(vocabulary, counts, min_count, all_characters)
    small_tokenizer = vocabulary.rebuild(kept)
    small_backbone = _gather_embedding(backbone, kept)
    small_vocabulary = _vocabulary_of(small_tokenizer)
    facts = (
        _facts(backbone, vocabulary, count, held_out),
        _facts(
            small_backbone, small_vocabulary, token_counter(small_tokenizer), held_out
        ),
    )
    return small_backbone, small_tokenizer, facts


def token_counter(tokenizer):
    """Builds a function that counts how often each token id occurs.

    Args:
        tokenizer: a keras-nlp tokenizer.

    Returns:
        function from an iterable of str to an int64 array `(vocabulary_size,)`.
    """
    fast = fast_tokenizer(tokenizer)
    size = tokenizer.vocabulary_size()

    def count(texts):
        counts = np.zeros(size, "int64")
        texts = iter(texts)
        while batch := list(itertools.islice(texts, _BATCH)):
            counts += np.bincount(fast.ids(batch)[0], minlength=size)
        return counts

    return count


def _facts(backbone, vocabulary, count, held_out):
    measured = {}
    for name, texts in held_out.items():
        counts = count(texts)
        unknown = 0 if vocabulary.unknown is None else counts[vocabulary.unknown]
        measured[name] = int(counts.sum()), float(unknown / max(counts.sum(), 1))
    return VocabularyFacts(len(vocabulary.pieces), backbone.count_params(), measured)


def _gather_embedding(backbone, kept):
    """A copy of the backbone with these rows of its token embedding."""
    copy = rebuild(backbone, **{family_of(backbone).vocabulary_argument: len(kept)})
    table = backbone.token_embedding.embeddings
    for old, new in zip(backbone.weights, copy.weights, strict=True):
        new.assign(ops.take(old, kept, axis=0) if old is table else old)
    return copy


def _kept_ids(vocabulary, counts, min_count, all_characters):
    """Ids of the pieces to keep, ascending."""
    pieces = vocabulary.pieces
    spelled = [vocabulary.spell(piece) for piece in pieces]
    wanted = set(string.printable)
    for i in np.flatnonzero(counts):
        wanted.update(map(vocabulary.plain, spelled[i]))
    known = set(pieces)
    kept = vocabulary.always | set(np.flatnonzero(counts >= min_count).tolist())
    for i, piece in enumerate(pieces):
        if spelled[i] == [piece]:
            needed = all_characters or vocabulary.plain(piece) in wanted
        else:
            # Nothing else has this piece's characters.
            needed = not known.issuperset(spelled[i])
            needed = needed and (all_characters or counts[i] > 0)
        if needed:
            kept.add(i)
    return sorted(vocabulary.with_parents(kept))


def _vocabulary_of(tokenizer):
    """The vocabulary of a tokenizer.

    Raises:
        TypeError: if the tokenizer is of no supported family.
        ValueError: if its vocabulary is of another form than the family's.
    """
    for tokenizer_class, vocabulary_class in (
        (keras_hub.tokenizers.WordPieceTokenizer, _WordPieceVocabulary),
        (keras_hub.tokenizers.BytePairTokenizer, _BytePairVocabulary),
        (keras_hub.models.XLMRobertaTokenizer, _XLMRobertaVocabulary),
        (keras_hub.models.AlbertTokenizer, _UnigramVocabulary),
    ):
        if isinstance(tokenizer, tokenizer_class):
            return vocabulary_class(tokenizer)
    raise TypeError(
        "`tokenizer` must be a tokenizer of BERT, RoBERTa, XLM-R, ALBERT, DistilBERT "
        f"or ELECTRA. Received: tokenizer of type {type(tokenizer).__name__}."
    )


class _Vocabulary:
    """The pieces of a tokenizer, and how to build one with fewer.

    Attributes:
        pieces: list of str, by id.
        always: set of int. Ids that stay whatever the corpus.
        unknown: int, the id of what has no piece, or None where all has one.
    """

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.pieces = list(tokenizer.get_vocabulary())
        self.always = set(tokenizer.special_token_ids)

    def spell(self, piece):
        """The single-character pieces that spell a piece."""
        return list(piece)

    def plain(self, character):
        """The character of a single-character piece."""
        return character

    def with_parents(self, kept):
        """The ids, and those of the pieces that they are made from."""
        return kept

    def rebuild(self, kept):
        """A tokenizer with the pieces of these ids alone."""
        arguments = self.arguments([int(i) for i in kept])
        config = {**self.tokenizer.get_config(), **arguments}
        return split_words_like_gpt2(type(self.tokenizer).from_config(config))


class _WordPieceVocabulary(_Vocabulary):
    """BERT, DistilBERT and ELECTRA."""

    def __init__(self, tokenizer):
        super().__init__(tokenizer)
        self.unknown = tokenizer.token_to_id(tokenizer.oov_token)
        more = tokenizer.get_config()["special_tokens"] or []
        self.always |= {self.unknown, *map(tokenizer.token_to_id, more)}
        self.suffix = tokenizer.suffix_indicator

    def spell(self, piece):
        if len(piece) > len(self.suffix) and piece.startswith(self.suffix):
            return [self.suffix + c for c in piece[len(self.suffix) :]]
        return [*piece[:1], *(self.suffix + c for c in piece[1:])]

    def plain(self, character):
        return character[-1:]

    def arguments(self, kept):
        return {
            "vocabulary": [self.pieces[i] for i in kept],
            "split_on_cjk": self.tokenizer.split_on_cjk,
        }


class _BytePairVocabulary(_Vocabulary):
    """RoBERTa."""

    unknown = None

    def __init__(self, tokenizer):
        super().__init__(tokenizer)
        ids = dict(tokenizer.vocabulary)
        self.pieces.sort(key=ids.get)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        if sorted(ids.values()) != list(range(len(ids))) or not ids.keys() >= set(
            alphabet
        ):
            raise ValueError(
                "`tokenizer` must have a piece for every byte, and ids without a gap. "
                f"Received: {len(ids)} pieces with ids up to {max(ids.values())}, "
                f"{len(ids.keys() & set(alphabet))} of 256 bytes."
            )
        special = [*tokenizer.unsplittable_tokens, "<unk>"]
        self.always |= {ids[piece] for piece in [*special, *alphabet] if piece in ids}
        self.ids = ids
        self.merges = plain_merges(tokenizer.merges)
        # keras-nlp takes no empty list of merges.
        self.always |= {ids[merge.replace(" ", "")] for merge in self.merges[:1]}

    def with_parents(self, kept):
        merges_of = {}
        for merge in self.merges:
            parts = [self.ids[part] for part in merge.split(" ")]
            merges_of.setdefault(self.ids.get(merge.replace(" ", "")), []).append(parts)
        waiting = list(kept)
        while waiting:
            for parts in merges_of.get(waiting.pop(), ()):
                waiting += set(parts) - kept
                kept |= set(parts)
        return kept

    def arguments(self, kept):
        pieces = {self.pieces[i]: new for new, i in enumerate(kept)}
        # With all merges of its pieces and no other, a text of kept pieces is merged
        # in the same order as before.
        merges = [m for m in self.merges if m.replace(" ", "") in pieces]
        return {"vocabulary": pieces, "merges": merges}


class _UnigramVocabulary(_Vocabulary):
    """ALBERT, and with another place for the first piece XLM-R."""

    offset = 0

    def __init__(self, tokenizer):
        super().__init__(tokenizer)
        self.model = spm.parse_model(tokenizer.proto)
        spm.check_unigram(self.model)
        scores = {}
        for i, piece in enumerate(self.model.pieces, start=self.offset):
            if piece.type == spm.NORMAL:
                scores[i] = piece.score
            else:
                self.always.add(i)
            if piece.type == spm.UNKNOWN:
                self.unknown = i
        # What an unknown character scores is counted from the lowest score.
        self.always |= {min(scores, key=scores.get), max(scores, key=scores.get)}

    def arguments(self, kept):
        old = self.model
        places = [i - self.offset for i in kept]
        places = [i for i in places if 0 <= i < len(old.pieces)]
        model = spm.parse_model(self.tokenizer.proto)
        del model.pieces[:]
        model.pieces.extend(old.pieces[i] for i in places)
        spec = model.trainer_spec
        spec.vocab_size = len(places)
        for name in ("unk_id", "bos_id", "eos_id", "pad_id"):
            if getattr(spec, name) in places:
                setattr(spec, name, places.index(getattr(spec, name)))
        return {"proto": model.SerializeToString()}


class _XLMRobertaVocabulary(_UnigramVocabulary):
    """XLM-R: ids are one above the model's, and the last one is the mask's."""

    offset = 1

    def __init__(self, tokenizer):
        super().__init__(tokenizer)
        self.unknown = tokenizer.unk_token_id
        self.always.add(tokenizer.mask_token_id)
