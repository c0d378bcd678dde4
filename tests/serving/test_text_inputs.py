import keras_hub
import numpy as np
import pytest
import tensorflow as tf
from small_exports import make_tokenizer
from small_tokenizers import FAMILIES, WORDS

from keras_minilmv2.backbones.hugging_face.tokenizers import split_words_like_gpt2
from keras_minilmv2.data.packing import tokenize_function
from keras_minilmv2.serving.text_inputs import TextInputs

TEXTS = ["the quick brown fox", "", "zebras yawn [MASK] </s>!", "dog " * 30]


def arrays(inputs):
    return {name: np.asarray(tensor) for name, tensor in inputs.items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_one_text_is_packed_as_in_training(family):
    tokenizer = make_tokenizer(family)
    found = arrays(TextInputs(tokenizer, (16,), 1, True)(tf.constant(TEXTS)))
    assert not found["segment_ids"].any()
    tokenize = tokenize_function(tokenizer)
    for row, text in enumerate(TEXTS):
        content = tokenize([text], [False]).tolist()[:14]
        tokens = [tokenizer.start_token_id, *content, tokenizer.end_token_id]
        padding = [tokenizer.pad_token_id] * (16 - len(tokens))
        assert found["token_ids"][row].tolist() == tokens + padding
        mask = [1] * len(tokens) + [0] * len(padding)
        assert found["padding_mask"][row].tolist() == mask


@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "Electra"])
def test_two_texts_are_packed_as_keras_nlp_does(family):
    tokenizer = split_words_like_gpt2(make_tokenizer(family))
    preprocessor = getattr(keras_hub.models, f"{family}TextClassifierPreprocessor")(
        tokenizer, sequence_length=16
    )
    generator = np.random.default_rng(0)
    texts = [" ".join(generator.choice(WORDS, size)) for size in range(12)]
    first, second = texts * 12, [text for text in texts for _ in texts]
    expected = arrays(preprocessor(x=(first, second)))
    pack = TextInputs(tokenizer, (16,), 2, "segment_ids" in expected)
    found = arrays(pack(tf.constant(first), tf.constant(second)))
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def test_a_bert_with_the_vocabulary_of_xlm_r_has_no_second_segment():
    tokenizer = make_tokenizer("XLMRoberta")
    pack = TextInputs(tokenizer, (16,), 2, segment_ids=True)
    found = arrays(pack(tf.constant(["quick fox"]), tf.constant(["dog"])))
    ends = found["token_ids"] == tokenizer.end_token_id
    assert ends.sum() == 3
    assert not found["segment_ids"].any()


@pytest.mark.parametrize(
    ("texts", "length"),
    [(["a"], 4), (["a", "a " * 4], 8), (["a " * 14], 16), (["a " * 99], 16), ([], 4)],
)
def test_a_batch_is_padded_to_the_smallest_length_that_holds_it(texts, length):
    tokenizer = make_tokenizer("Bert")
    pack = TextInputs(tokenizer, (4, 8, 16), 1, segment_ids=True)
    found = arrays(pack(tf.constant(texts, tf.string)))
    for name, array in found.items():
        assert array.shape == (len(texts), length), name
    expected = TextInputs(tokenizer, (16,), 1, segment_ids=True)
    if texts:
        for name, array in arrays(expected(tf.constant(texts))).items():
            np.testing.assert_array_equal(found[name], array[:, :length])


def test_bytes_that_are_no_utf_8_become_the_replacement_character():
    pack = TextInputs(make_tokenizer("Roberta"), (16,), 1, segment_ids=False)
    broken = b"fox \xff\xed\xa0\x80 \xc3"
    repaired = broken.decode(errors="replace").encode()
    assert broken != repaired
    found, expected = pack(tf.constant([broken, repaired]))["token_ids"].numpy()
    np.testing.assert_array_equal(found, expected)


def test_special_tokens_in_text_are_text_for_every_setting_of_the_tokenizer():
    texts = tf.constant(["[MASK] fox", "你 [SEP]"])
    plain = make_tokenizer("Bert", split_on_cjk=False)
    special = make_tokenizer("Bert", split_on_cjk=False, special_tokens_in_strings=True)
    expected, found = (
        TextInputs(tokenizer, (16,), 1, True)(texts)["token_ids"].numpy()
        for tokenizer in (plain, special)
    )
    np.testing.assert_array_equal(found, expected)
    assert plain.mask_token_id not in found


def test_a_tokenizer_that_packs_itself_is_refused():
    tokenizer = make_tokenizer("Bert", sequence_length=8)
    with pytest.raises(ValueError, match="`") as caught:
        TextInputs(tokenizer, (16,), 1, True)
    assert str(caught.value) == (
        "`tokenizer` must not set `sequence_length`: packing does it. "
        "Received: sequence_length=8."
    )


def test_a_tokenizer_of_another_kind_is_refused():
    tokenizer = keras_hub.tokenizers.ByteTokenizer()
    with pytest.raises(TypeError) as caught:
        TextInputs(tokenizer, (16,), 1, True)
    assert str(caught.value) == (
        "`tokenizer` must be one of WordPieceTokenizer, BytePairTokenizer, "
        "SentencePieceTokenizer. Received: tokenizer of type ByteTokenizer."
    )


@pytest.mark.parametrize(
    ("family", "num_texts", "num_special"),
    [("Bert", 1, 2), ("Bert", 2, 3), ("Roberta", 2, 4)],
)
def test_a_length_without_room_for_text_is_refused(family, num_texts, num_special):
    tokenizer = make_tokenizer(family)
    least = num_special + num_texts
    TextInputs(tokenizer, (least,), num_texts, False)
    with pytest.raises(ValueError, match="`") as caught:
        TextInputs(tokenizer, (least - 1,), num_texts, False)
    assert str(caught.value) == (
        f"`sequence_length` must be at least {least}: {num_special} special tokens "
        f"and a token of each text. Received: sequence_length={least - 1}."
    )
