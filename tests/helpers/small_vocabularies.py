"""Small tokenizers of every family, with pieces that some texts use and some do not."""

import functools
import io

import keras_hub
import sentencepiece
from families import make_backbone
from tokenizers import pre_tokenizers

WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "lazy", "dog", "naïve"]
TEXTS = [
    "The quick brown fox jumps over the lazy dog.",
    "the dog's 12 foxes… (quick!) Straße ΣΟΦΟΣ, naïve Naïve",
    "no\u00a0break, 中國 and \uff21\uff22 half\u200bjoined e\u0301",
    "",
    " ",
]
TOKENIZERS = ["bert", "bert_cased", "roberta", "xlm_roberta", "albert"]
# The tokenizer of each of the backbones of `families`.
TOKENIZER_OF = {
    "bert": "bert",
    "distil_bert": "distil_bert",
    "electra": "electra",
    "electra_small": "electra",
    "roberta": "roberta",
    "xlm_roberta": "xlm_roberta",
    "albert": "albert",
    "albert_groups": "albert",
}


def word_pieces():
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[unused1]", "..."]
    letters = [chr(code) for code in range(33, 127)] + [*"äï中", chr(963)]
    return [*special, *letters, *(f"##{c}" for c in letters), *WORDS, "##es"]


def byte_pairs():
    merges = ["t h", "th e", "Ġ the", "u i", "c k", "Ġ q", "ui ck", "Ġq uick"]
    merges += ["o x", "Ġ f", "Ġf ox", "e s", "Ġfox es", "d o", "do g", "Ġ dog"]
    pieces = ["<s>", "<pad>", "</s>", "<unk>", *sorted(alphabet())]
    pieces += [merge.replace(" ", "") for merge in merges] + ["<mask>"]
    return {piece: i for i, piece in enumerate(pieces)}, merges


def alphabet():
    return pre_tokenizers.ByteLevel.alphabet()


@functools.cache
def sentence_piece_model(**options):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*TEXTS, " ".join(WORDS), "zebras yawn"] * 20),
        model_writer=model,
        vocab_size=90,
        hard_vocab_limit=False,
        minloglevel=2,
        **options,
    )
    # The trainer has set this for the whole process.
    sentencepiece.SetMinLogLevel(0)
    return model.getvalue()


@functools.cache
def make_tokenizer(name):
    models = keras_hub.models
    if name == "roberta":
        return models.RobertaTokenizer(*byte_pairs())
    if name == "xlm_roberta":
        return models.XLMRobertaTokenizer(
            sentence_piece_model(unk_id=0, bos_id=1, eos_id=2)
        )
    if name == "albert":
        proto = sentence_piece_model(
            pad_id=0,
            unk_id=1,
            bos_id=2,
            eos_id=3,
            pad_piece="<pad>",
            bos_piece="[CLS]",
            eos_piece="[SEP]",
            control_symbols="[MASK]",
            user_defined_symbols="(,)",
        )
        return models.AlbertTokenizer(proto)
    if name == "bert_cased":
        return models.BertTokenizer(word_pieces(), split_on_cjk=False)
    tokenizer_class = {
        "bert": models.BertTokenizer,
        "distil_bert": models.DistilBertTokenizer,
        "electra": models.ElectraTokenizer,
    }[name]
    return tokenizer_class(word_pieces(), lowercase=True, strip_accents=True)


def make_pair(name, **sizes):
    """A backbone of `families` and its tokenizer."""
    tokenizer = make_tokenizer(TOKENIZER_OF[name])
    size = "vocab_size" if name.startswith("electra") else "vocabulary_size"
    sizes = {size: tokenizer.vocabulary_size(), **sizes}
    return make_backbone(name, **sizes), tokenizer
