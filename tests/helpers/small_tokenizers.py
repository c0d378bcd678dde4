"""Small tokenizers of every family."""

import functools
import io

import keras_hub
import sentencepiece
from tokenizers.pre_tokenizers import ByteLevel

WORDS = ["a", "quick", "brown", "fox", "jumps", "over", "the", "lazy", "dog", "runs"]
FAMILIES = ["Bert", "DistilBert", "Electra", "Roberta", "XLMRoberta", "Albert"]


def word_piece_vocabulary():
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    return special + letters + ["##" + letter for letter in letters] + WORDS[1:]


def byte_pair_vocabulary():
    alphabet = sorted(ByteLevel.alphabet())
    merges = ["Ġ q", "u i", "c k", "ui ck", "Ġq uick", "f o", "fo x", "Ġ fox"]
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *alphabet]
    tokens += [merge.replace(" ", "") for merge in merges] + ["<mask>"]
    return {token: index for index, token in enumerate(tokens)}, merges


def sentence_piece_model(**kwargs):
    model = io.BytesIO()
    text = [" ".join(WORDS), "abcdefghijklmnopqrstuvwxyz .,!?</>[]", "zebras yawn"]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text * 20),
        model_writer=model,
        vocab_size=60,
        hard_vocab_limit=False,
        minloglevel=2,
        **kwargs,
    )
    return model.getvalue()


@functools.cache
def make_tokenizer(family, **kwargs):
    cls = getattr(keras_hub.models, f"{family}Tokenizer")
    if family == "Roberta":
        return cls(*byte_pair_vocabulary(), **kwargs)
    if family == "XLMRoberta":
        return cls(sentence_piece_model(unk_id=0, bos_id=1, eos_id=2), **kwargs)
    if family == "Albert":
        ids = {"pad_id": 0, "unk_id": 1, "bos_id": 2, "eos_id": 3}
        pieces = {"pad_piece": "<pad>", "bos_piece": "[CLS]", "eos_piece": "[SEP]"}
        model = sentence_piece_model(**ids, **pieces, control_symbols="[MASK]")
        return cls(model, **kwargs)
    return cls(word_piece_vocabulary(), **kwargs)
