"""SentencePiece models as bytes: read, built from pieces, given another normalizer."""

import functools
import io
import sys
import tempfile
import unicodedata
from pathlib import Path

import sentencepiece
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4
_KINDS = {NORMAL, UNKNOWN, CONTROL, USER_DEFINED}
UNIGRAM = 1

# The fields used here, by number in sentencepiece_model.proto; protobuf carries the
# others along. The module generated from the whole file, which sentencepiece ships,
# refuses to load beside a protobuf older than its compiler.
_FIELDS = {
    "SentencePiece": {
        1: ("piece", "TYPE_STRING"),
        2: ("score", "TYPE_FLOAT"),
        3: ("type", "TYPE_INT32", NORMAL),
    },
    "TrainerSpec": {
        3: ("model_type", "TYPE_INT32", UNIGRAM),
        4: ("vocab_size", "TYPE_INT32"),
        40: ("unk_id", "TYPE_INT32"),
        41: ("bos_id", "TYPE_INT32"),
        42: ("eos_id", "TYPE_INT32"),
        43: ("pad_id", "TYPE_INT32"),
    },
    "NormalizerSpec": {
        2: ("precompiled_charsmap", "TYPE_BYTES"),
        3: ("add_dummy_prefix", "TYPE_BOOL"),
        4: ("remove_extra_whitespaces", "TYPE_BOOL"),
        5: ("escape_whitespaces", "TYPE_BOOL"),
    },
    "ModelProto": {
        1: ("pieces", "SentencePiece"),
        2: ("trainer_spec", "TrainerSpec"),
        3: ("normalizer_spec", "NormalizerSpec"),
    },
}


@functools.cache
def _model_class():
    """The message class `ModelProto`."""
    field_type = descriptor_pb2.FieldDescriptorProto
    package = "keras_minilmv2"
    file = descriptor_pb2.FileDescriptorProto(
        name="sentencepiece_model.proto", package=package, syntax="proto2"
    )
    for message_name, fields in _FIELDS.items():
        message = file.message_type.add(name=message_name)
        for number, (name, kind, *default) in fields.items():
            field = message.field.add(name=name, number=number)
            if default:
                field.default_value = str(default[0])
            field.label = field_type.LABEL_OPTIONAL
            if name == "pieces":
                field.label = field_type.LABEL_REPEATED
            if kind in _FIELDS:
                field.type = field_type.TYPE_MESSAGE
                field.type_name = f".{package}.{kind}"
            else:
                field.type = getattr(field_type, kind)
    # A pool of its own: the real ModelProto may be loaded in the same process.
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(
        pool.FindMessageTypeByName(f"{package}.ModelProto")
    )


def read_model(path):
    """Parses a SentencePiece model file.

    Raises:
        google.protobuf.message.DecodeError: if the file is not such a model.
    """
    return parse_model(Path(path).read_bytes())


def parse_model(content):
    """Parses the bytes of a SentencePiece model.

    Raises:
        google.protobuf.message.DecodeError: if they are not such a model.
    """
    return _model_class().FromString(content)


def check_unigram(model):
    """Refuses a SentencePiece model that is not of the kind XLM-R and ALBERT have.

    Raises:
        ValueError: if it is no unigram model or falls back to bytes.
    """
    kinds = {piece.type for piece in model.pieces}
    if model.trainer_spec.model_type != UNIGRAM or kinds - _KINDS:
        raise ValueError(
            "`tokenizer` must hold a unigram model of SentencePiece, without pieces "
            "for bytes. Received: a model of type "
            f"{model.trainer_spec.model_type} with pieces of types {sorted(kinds)}."
        )


def build_model(pieces, precompiled_charsmap, **special_ids):
    """Builds a unigram model.

    Args:
        pieces: list of (piece, score, type) in the order of their ids.
        precompiled_charsmap: bytes. The normalization table.
        **special_ids: `unk_id`, `bos_id`, `eos_id` and `pad_id`; -1 for none.

    Returns:
        The message `ModelProto`.
    """
    model = _model_class()()
    for piece, score, kind in pieces:
        model.pieces.add(piece=piece, score=score, type=kind)
    spec = model.trainer_spec
    spec.model_type = UNIGRAM
    spec.vocab_size = len(pieces)
    for name, value in special_ids.items():
        setattr(spec, name, value)
    normalizer = model.normalizer_spec
    normalizer.precompiled_charsmap = precompiled_charsmap
    normalizer.add_dummy_prefix = True
    normalizer.remove_extra_whitespaces = True
    normalizer.escape_whitespaces = True
    return model


@functools.cache
def whitespace_charsmap():
    """A table that turns every kind of white space into a space.

    For a model without a table: transformers splits at all of them.
    """
    spaces = [character for character in _characters() if character.isspace()]
    return _compile_charsmap(dict.fromkeys(spaces, " "))


@functools.lru_cache(maxsize=4)
def folded_charsmap(precompiled_charsmap, lowercase, strip_accents):
    """Puts ALBERT's text cleaning before a normalization table.

    transformers' ALBERT tokenizer turns `` and '' into double quotes, decomposes
    characters (NFKD) and drops their marks, and lower-cases, all before the
    table of the SentencePiece model. A table works on characters, and so do these
    steps: one table can do it all.

    Args:
        precompiled_charsmap: bytes. The table to start from.
        lowercase: bool.
        strip_accents: bool.

    Returns:
        bytes, the combined table.
    """

    def clean(character):
        if strip_accents:
            decomposed = unicodedata.normalize("NFKD", character)
            character = "".join(
                c for c in decomposed if not unicodedata.category(c).startswith("M")
            )
        return character.lower() if lowercase else character

    characters = _characters()
    cleaned = [clean(character) for character in characters]
    cleaned = apply_charsmap(precompiled_charsmap, cleaned)
    rules = dict(zip(characters, cleaned, strict=True))
    if not strip_accents:
        # A letter and its combining accent are what the composed letter is.
        decomposed = [
            unicodedata.normalize("NFD", character) for character in characters
        ]
        rules.update(zip(decomposed, cleaned, strict=True))
    rules.update({"``": '"', "''": '"'})
    return _compile_charsmap(rules)


def is_folded(precompiled_charsmap):
    """Whether `folded_charsmap` made this table: the models' own leave quotes alone."""
    return apply_charsmap(precompiled_charsmap, ["``"]) == ['"']


def _characters():
    """All assigned characters: no surrogate, no private one."""
    characters = map(chr, range(1, sys.maxunicode + 1))
    return [c for c in characters if unicodedata.category(c) not in ("Cn", "Co", "Cs")]


def apply_charsmap(precompiled_charsmap, texts):
    """Applies a normalization table to a list of texts, and nothing else."""
    model = build_model([("<unk>", 0.0, UNKNOWN)], precompiled_charsmap, unk_id=0)
    normalizer = sentencepiece.SentencePieceNormalizer(
        model_proto=model.SerializeToString(),
        add_dummy_prefix=False,
        escape_whitespaces=False,
        remove_extra_whitespaces=False,
    )
    return normalizer.Normalize(texts)


def _compile_charsmap(rules):
    """Compiles replacements, by string, by training a throw-away model."""
    content = "".join(
        "\t".join(" ".join(f"{ord(c):X}" for c in side) for side in rule) + "\n"
        for rule in rules.items()
        if rule[0] != rule[1]
    )
    trained = io.BytesIO()
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "rules.tsv"
        path.write_text(content, encoding="utf-8")
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(["a"]),
            model_writer=trained,
            model_type="char",
            vocab_size=4,
            hard_vocab_limit=False,
            normalization_rule_tsv=str(path),
            minloglevel=2,
        )
    # The trainer has set this for the whole process.
    sentencepiece.SetMinLogLevel(0)
    model = _model_class().FromString(trained.getvalue())
    return model.normalizer_spec.precompiled_charsmap
