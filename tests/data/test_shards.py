import json
import pickle
import re
import subprocess
import sys

import keras_hub
import numpy as np
import pytest
from small_examples import numbers, write_examples
from small_tokenizers import FAMILIES, make_tokenizer, word_piece_vocabulary

from keras_minilmv2.backbones.loading import load_tokenizer
from keras_minilmv2.backbones.saving import save_student
from keras_minilmv2.data.shards import (
    PreparedExamples,
    ShardWriter,
    read_manifest,
    row_dtype,
    tokenizer_identity,
)


@pytest.fixture
def examples(tmp_path):
    return write_examples(tmp_path / "prepared", 100)


# Reading.


def test_an_index_gives_one_example(examples):
    example = examples[57]
    assert numbers(example) == 57
    assert example["token_ids"].shape == example["padding_mask"].shape == (4,)
    assert example["token_ids"].dtype == example["padding_mask"].dtype == np.int32
    assert len(examples) == 100


def test_indices_give_a_batch_in_their_order(examples):
    indices = [99, 0, 39, 40, 0, 41]
    np.testing.assert_array_equal(numbers(examples[indices]), indices)
    np.testing.assert_array_equal(numbers(examples[np.array(indices)]), indices)
    np.testing.assert_array_equal(numbers(examples[35:45]), np.arange(35, 45))
    assert examples[[]]["token_ids"].shape == (0, 4)


def test_examples_can_be_iterated(examples):
    np.testing.assert_array_equal([numbers(e) for e in examples], np.arange(100))


def test_padding_mask_is_one_for_real_tokens(examples):
    mask = examples[:]["padding_mask"]
    expected = np.ones((100, 4))
    expected[[39, 79, 99], -1] = 0
    np.testing.assert_array_equal(mask, expected)
    assert examples.manifest.num_tokens() == mask.sum()


def test_ids_beyond_two_bytes_are_kept(tmp_path):
    path = tmp_path / "prepared"
    examples = write_examples(path, 70_000, shard_size=70_000, vocabulary_size=250_002)
    assert examples[69_999]["token_ids"][1] == 69_999
    assert np.load(path / "train-00000.npy").dtype["token_ids"].base == "<u4"
    assert row_dtype(4, 65_536)["token_ids"].base == "<u2"


def test_a_shard_is_a_file_that_numpy_reads_and_would_write(examples, tmp_path):
    rows = np.load(examples.path / "train-00001.npy")
    np.testing.assert_array_equal(rows["token_ids"][:, 1], np.arange(40, 80))
    np.save(tmp_path / "same.npy", rows)
    shard = (examples.path / "train-00001.npy").read_bytes()
    assert (tmp_path / "same.npy").read_bytes() == shard


def test_a_shard_without_rows_can_be_read(tmp_path):
    writer = ShardWriter(tmp_path / "a.npy", row_dtype(4, 100))
    writer.close()
    assert np.load(tmp_path / "a.npy").shape == (0,)


def test_id_that_does_not_fit_is_refused(tmp_path):
    writer = ShardWriter(tmp_path / "a.npy", row_dtype(4, 60_000))
    message = (
        "`token_ids` must be at most 65535 in a vocabulary of this size. "
        "Received: token_ids up to 65536."
    )
    with pytest.raises(ValueError, match="^" + re.escape(message) + "$"):
        writer.write(np.full((1, 4), 65_536), [4])
    writer.abort()


def test_prepared_examples_can_be_sent_to_another_process(examples):
    numbers(examples[[1, 2]])
    copy = pickle.loads(pickle.dumps(examples))
    np.testing.assert_array_equal(numbers(copy[[1, 50]]), [1, 50])


def test_more_shards_than_can_be_open_are_read(examples, monkeypatch):
    monkeypatch.setattr("keras_minilmv2.data.shards._MAX_OPEN", 1)
    few = PreparedExamples(examples.path)
    np.testing.assert_array_equal(numbers(few[:]), np.arange(100))


@pytest.mark.parametrize("index", [100, -1, [3, 100], [-1]])
def test_index_out_of_range_is_named(examples, index):
    first = np.min(index)
    message = (
        "`index` must be at least 0 and below 100. "
        f"Received: index={first} to {np.max(index)}."
    )
    with pytest.raises(IndexError, match="^" + re.escape(message) + "$"):
        examples[index]


def test_index_that_is_no_int_is_refused(examples):
    message = (
        "`index` must be an int, a slice or an array of int. "
        "Received: index of dtype float64."
    )
    with pytest.raises(TypeError, match="^" + re.escape(message) + "$"):
        examples[np.array([0.5])]


def test_unknown_part_is_named(examples):
    message = '`part` must be "train" or "held_out". Received: part=\'test\'.'
    with pytest.raises(ValueError, match="^" + re.escape(message) + "$"):
        PreparedExamples(examples.path, part="test")


def test_reading_and_batching_need_numpy_alone(examples):
    code = """
import sys
for name in ("tensorflow", "keras", "keras_hub", "tokenizers", "fsspec", "jax"):
    sys.modules[name] = None
from keras_minilmv2.data.pipeline import training_batches
from keras_minilmv2.data.shards import PreparedExamples
examples = PreparedExamples(sys.argv[1])
examples.verify()
batch = next(training_batches(examples, 10, seed=0, start_step=7, segment_ids=True))
print(sorted(batch), batch["token_ids"].shape, batch["token_ids"].dtype)
"""
    found = subprocess.run(
        [sys.executable, "-c", code, str(examples.path)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert (
        found.stdout == "['padding_mask', 'segment_ids', 'token_ids'] (10, 4) int32\n"
    )


# Damage.


def damaged(examples, what):
    return (
        "`path` must hold the shards that its manifest lists. "
        f"Received: path={examples.path}, {what}. Copy that file again, or prepare the "
        "corpus again with --overwrite."
    )


def test_truncated_shard_is_named_when_opened(examples):
    shard = examples.path / "train-00001.npy"
    data = shard.read_bytes()
    shard.write_bytes(data[:-5])
    what = f"whose train-00001.npy has {len(data) - 5} bytes and not {len(data)}"
    message = "^" + re.escape(damaged(examples, what)) + "$"
    with pytest.raises(ValueError, match=message):
        PreparedExamples(examples.path)
    with pytest.raises(ValueError, match=message):
        examples[50]  # not open yet
    with pytest.raises(ValueError, match=message):
        examples.verify()


def test_missing_shard_is_named(examples):
    (examples.path / "train-00002.npy").unlink()
    message = damaged(examples, "whose train-00002.npy is missing")
    with pytest.raises(ValueError, match="^" + re.escape(message) + "$"):
        PreparedExamples(examples.path)


def flip(path, offset):
    data = bytearray(path.read_bytes())
    data[offset] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize("offset", range(1, 17))
def test_flipped_byte_of_a_row_is_found_when_it_is_read(examples, offset):
    row_bytes = row_dtype(4, 60_000).itemsize
    assert row_bytes == 16
    flip(examples.path / "train-00001.npy", -2 * row_bytes - offset)
    opened = PreparedExamples(examples.path)
    assert numbers(opened[76]) == 76
    message = damaged(examples, "whose train-00001.npy has another checksum for row 37")
    with pytest.raises(ValueError, match="^" + re.escape(message) + "$"):
        opened[[3, 77, 5]]
    assert str(opened.error) == message


@pytest.mark.parametrize("offset", [0, 40, 127, 200])
def test_flipped_byte_anywhere_is_found_by_verify(examples, offset):
    flip(examples.path / "train-00001.npy", offset)
    message = damaged(examples, "whose train-00001.npy has another SHA-256")
    with pytest.raises(ValueError, match="^" + re.escape(message) + "$"):
        PreparedExamples(examples.path).verify()


@pytest.mark.parametrize("offset", range(0, 128, 3))
def test_flipped_byte_of_a_header_is_found_or_harmless(examples, offset):
    flip(examples.path / "train-00000.npy", offset)
    opened = PreparedExamples(examples.path)
    try:
        found = opened[[3]]
    except ValueError as error:
        assert "whose train-00000.npy" in str(error)  # noqa: PT017
    else:
        assert numbers(found) == 3


def test_exchanged_shards_are_found_by_verify(examples):
    first, second = (examples.path / f"train-0000{i}.npy" for i in (0, 1))
    second.write_bytes(first.read_bytes())
    message = damaged(examples, "whose train-00001.npy has another SHA-256")
    with pytest.raises(ValueError, match="^" + re.escape(message) + "$"):
        PreparedExamples(examples.path).verify()


# Manifest.


def test_manifest_survives_its_file(examples):
    manifest = read_manifest(examples.path)
    assert manifest == examples.manifest
    text = (examples.path / "manifest.json").read_text()
    assert text == manifest.to_json()
    fields = json.loads(text)
    assert fields["train"] == {"num_examples": 100, "num_tokens": 397}
    assert fields["held_out"] == {"num_examples": 0, "num_tokens": 0}
    assert [shard["num_examples"] for shard in fields["shards"]] == [40, 40, 20]


def test_missing_manifest_is_named(tmp_path):
    message = (
        "`path` must be a directory that `keras-minilmv2 prepare` finished. "
        f"Received: path={tmp_path}, which has no manifest.json."
    )
    with pytest.raises(FileNotFoundError, match="^" + re.escape(message) + "$"):
        PreparedExamples(tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ('"format"', '"farmat"', "'format'"),
        ('"version": 1', '"version": 2', "it is not of the format"),
        ('"num_examples": 100', '"num_examples": 101', "its counts for 'train'"),
        ('"sequence_length"', '"sequense_length"', "unexpected keyword"),
        ('"name": "', '"name": "../other/', "it names '../other/train-"),
        ('"name": "', '"name": "/', "it names '/train-"),
        ("{", "", "Extra data"),
    ],
)
def test_damaged_manifest_is_named(examples, old, new, reason):
    file = examples.path / "manifest.json"
    file.write_text(file.read_text().replace(old, new, 1))
    message = (
        "`path` must hold a manifest that `keras-minilmv2 prepare` wrote. "
        f"Received: path={examples.path}, whose manifest.json cannot be read ("
    )
    with pytest.raises(ValueError, match="^" + re.escape(message)) as raised:
        read_manifest(examples.path)
    assert reason in str(raised.value)


# Identity of tokenizers.


@pytest.mark.parametrize("family", FAMILIES)
def test_identity_survives_a_preset(family, tmp_path):
    tokenizer = make_tokenizer(family)
    assert re.fullmatch("[0-9a-f]{64}", tokenizer_identity(tokenizer))
    sizes = {"num_layers": 1, "num_heads": 1, "hidden_dim": 4, "intermediate_dim": 4}
    vocabulary = "vocab_size" if family == "Electra" else "vocabulary_size"
    if family in ("Albert", "Electra"):
        sizes["embedding_dim"] = 4
    backbone = getattr(keras_hub.models, f"{family}Backbone")(
        **{vocabulary: tokenizer.vocabulary_size()}, max_sequence_length=8, **sizes
    )
    save_student(backbone, tokenizer, tmp_path / "preset")
    again = load_tokenizer(str(tmp_path / "preset"))
    assert tokenizer_identity(again) == tokenizer_identity(tokenizer)


def test_identity_differs_between_families():
    identities = {tokenizer_identity(make_tokenizer(family)) for family in FAMILIES}
    assert len(identities) == len(FAMILIES)


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("Bert", {"lowercase": True}),
        ("Bert", {"strip_accents": True}),
        ("Bert", {"split_on_cjk": False}),
        ("Roberta", {"add_prefix_space": True}),
    ],
)
def test_identity_differs_with_an_option_that_changes_ids(family, options):
    plain, other = make_tokenizer(family), make_tokenizer(family, **options)
    assert tokenizer_identity(plain) != tokenizer_identity(other)


def test_identity_differs_with_the_order_of_the_vocabulary():
    vocabulary = word_piece_vocabulary()
    vocabulary[-2:] = vocabulary[:-3:-1]
    other = keras_hub.models.BertTokenizer(vocabulary)
    assert tokenizer_identity(other) != tokenizer_identity(make_tokenizer("Bert"))


def test_identity_is_of_the_ids_and_not_of_how_specials_in_text_are_read():
    # Packing reads them as text, whatever the option says.
    plain = make_tokenizer("Bert")
    other = make_tokenizer("Bert", special_tokens_in_strings=True)
    assert tokenizer_identity(plain) == tokenizer_identity(other)
