import functools
import json
import random
import shutil

import keras
import keras_hub
import numpy as np
import pytest
import tensorflow as tf
from families import make_backbone
from small_vocabularies import (
    TOKENIZER_OF,
    TOKENIZERS,
    alphabet,
    make_pair,
    make_tokenizer,
    sentence_piece_model,
)

from keras_minilmv2.backbones.families import vocabulary_size
from keras_minilmv2.backbones.hugging_face.tokenizers import split_words_like_gpt2
from keras_minilmv2.backbones.loading import load_backbone, load_tokenizer
from keras_minilmv2.backbones.vocabulary import shrink_vocabulary, token_counter
from keras_minilmv2.data.text import Corpus
from keras_minilmv2.runs.shrink import shrink
from keras_minilmv2.tokenization import sentence_piece as spm

KEPT = ("the quick fox", "fox the, quick 12", "(quick) quick the!")
NEW = ("the lazy dog jumps", "foxes jumps the dogs")


def ids_of(tokenizer, texts):
    return [[int(i) for i in row] for row in tokenizer(texts)]


def ids_in_graph(tokenizer, texts):
    dataset = tf.data.Dataset.from_tensors(list(texts)).map(tokenizer)
    return next(iter(dataset)).to_list()


def pieces_of(tokenizer, texts):
    return [[tokenizer.id_to_token(i) for i in row] for row in ids_of(tokenizer, texts)]


def states(backbone, tokenizer, texts):
    """Outputs of the backbone on padded texts."""
    rows = ids_of(tokenizer, texts)
    token_ids = np.full((len(rows), 16), tokenizer.pad_token_id, "int32")
    for row, ids in zip(token_ids, rows, strict=True):
        row[: len(ids)] = ids[:16]
    padding_mask = (token_ids != tokenizer.pad_token_id).astype("int32")
    inputs = {
        "token_ids": token_ids,
        "padding_mask": padding_mask,
        "segment_ids": np.zeros_like(token_ids),
    }
    outputs = backbone({name: inputs[name] for name in backbone.input})
    outputs = outputs if isinstance(outputs, dict) else {"sequence_output": outputs}
    return {name: keras.ops.convert_to_numpy(x) for name, x in outputs.items()}


@functools.cache
def small_tokenizer(name, texts, **arguments):
    """A tokenizer made smaller, beside a backbone that has no more to say."""
    tokenizer = split_words_like_gpt2(make_tokenizer(name))
    backbone = keras_hub.models.BertBackbone(
        vocabulary_size=tokenizer.vocabulary_size(),
        num_layers=1,
        num_heads=1,
        hidden_dim=2,
        intermediate_dim=2,
    )
    return shrink_vocabulary(backbone, tokenizer, texts, **arguments)[1]


# What stays.


@pytest.mark.parametrize("name", sorted(TOKENIZER_OF))
def test_outputs_on_kept_pieces_are_the_same_bits(name):
    # Two spare rows, as padded tables have.
    rows = make_tokenizer(TOKENIZER_OF[name]).vocabulary_size() + 2
    size = "vocab_size" if name.startswith("electra") else "vocabulary_size"
    backbone, tokenizer = make_pair(name, **{size: rows})
    smaller, small, (before, after) = shrink_vocabulary(backbone, tokenizer, KEPT)
    assert type(smaller) is type(backbone)
    assert type(small) is type(tokenizer)
    assert small.vocabulary_size() == vocabulary_size(smaller) == after.num_pieces
    assert after.num_pieces < before.num_pieces == rows - 2
    assert after.num_parameters == smaller.count_params() < before.num_parameters
    assert before.num_bytes == 4 * backbone.count_params()
    assert pieces_of(small, KEPT) == pieces_of(tokenizer, KEPT)
    expected = states(backbone, tokenizer, KEPT)
    for key, values in states(smaller, small, KEPT).items():
        np.testing.assert_array_equal(values, expected[key])


@pytest.mark.parametrize("name", TOKENIZERS)
def test_special_tokens_and_characters_stay_and_unused_pieces_go(name):
    tokenizer, small = make_tokenizer(name), small_tokenizer(name, KEPT)
    old, new = list(tokenizer.get_vocabulary()), list(small.get_vocabulary())
    assert set(new) < set(old)
    assert {piece for piece in old if len(piece.removeprefix("##")) == 1} <= set(new)
    assert not {"[unused1]", "dog", "Ġdog", "##es"} & set(new)
    for role in ("start_token", "end_token", "pad_token"):
        assert getattr(small, role) == getattr(tokenizer, role)
        assert small.id_to_token(getattr(small, f"{role}_id")) == getattr(small, role)
    mask = "[MASK]" if "[MASK]" in old else "<mask>"
    assert small.token_to_id(mask) == small.mask_token_id == new.index(mask)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_no_text_becomes_unknown(name):
    small = small_tokenizer(name, KEPT)
    tokenizer = make_tokenizer(name)
    unknown = {"[UNK]", "<unk>"}
    for old, new in zip(pieces_of(tokenizer, NEW), pieces_of(small, NEW), strict=True):
        assert unknown.isdisjoint(new) or not unknown.isdisjoint(old)
        assert len(new) > len(old)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_random_texts_of_kept_pieces_are_cut_as_before(name):
    tokenizer, small = make_tokenizer(name), small_tokenizer(name, KEPT)
    generator = random.Random(0)
    letters = "the quickfox 12,.!()dogs"
    texts = ["".join(generator.choices(letters, k=12)) for _ in range(2_000)]
    texts += [" ".join(generator.choices(KEPT[0].split(), k=3)) for _ in range(50)]
    kept = set(small.get_vocabulary())
    pairs = zip(pieces_of(tokenizer, texts), pieces_of(small, texts), strict=True)
    same = [old == new for old, new in pairs if kept.issuperset(old)]
    assert all(same)
    assert len(same) > 100


@pytest.mark.slow
def test_settings_of_a_tokenizer_stay():
    small = small_tokenizer("bert", KEPT)
    assert (small.lowercase, small.strip_accents, small.split_on_cjk) == (True,) * 3
    small = small_tokenizer("bert_cased", KEPT)
    assert (small.lowercase, small.strip_accents, small.split_on_cjk) == (False,) * 3
    # In eager calls too words are split, as load_tokenizer arranges it.
    small = small_tokenizer("roberta", KEPT)
    assert ids_in_graph(small, KEPT) == ids_of(small, KEPT)


def test_rare_pieces_go():
    texts = ("the fox", "the quick")
    often = small_tokenizer("bert", texts, min_count=2).get_vocabulary()
    assert "the" in often
    assert not {"fox", "quick"} & set(often)
    assert {"fox", "quick"} < set(small_tokenizer("bert", texts).get_vocabulary())


def test_characters_that_the_corpus_lacks_go_on_request():
    new = small_tokenizer("bert", (*KEPT, "中"), all_characters=False).get_vocabulary()
    assert {"中", "##中", "a", "##a", "~"} < set(new)
    assert not {"ä", "##ä"} & set(new)
    kept = set(alphabet()) - {"Ġ"}
    pairs = small_tokenizer("roberta", KEPT, all_characters=False).get_vocabulary()
    assert kept < set(pairs)


def test_a_piece_stays_if_nothing_else_has_its_characters():
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "##a", "aé", "aa"]
    tokenizer = keras_hub.models.BertTokenizer(pieces)
    backbone = make_backbone("bert", vocabulary_size=len(pieces))
    _, small, _ = shrink_vocabulary(backbone, tokenizer, ["a"])
    assert small.get_vocabulary() == pieces[:-1]
    _, small, _ = shrink_vocabulary(backbone, tokenizer, ["a"], all_characters=False)
    assert small.get_vocabulary() == pieces[:-2]


def test_kept_byte_pairs_keep_what_they_are_merged_from():
    small = small_tokenizer("roberta", ("a foxes",))
    pieces = set(small.get_vocabulary()) - set(alphabet())
    assert {"Ġfoxes", "Ġfox", "es", "Ġf", "ox"} < pieces
    assert small.merges == ["t h", "o x", "Ġ f", "Ġf ox", "e s", "Ġfox es"]
    assert sorted(small.vocabulary.values()) == list(range(len(small.vocabulary)))


def test_a_corpus_without_byte_pairs_will_do():
    assert small_tokenizer("roberta", ("z",)).merges == ["t h"]


def test_the_score_of_an_unknown_character_stays():
    tokenizer, small = make_tokenizer("albert"), small_tokenizer("albert", KEPT)

    def scores(tokenizer):
        model = spm.parse_model(tokenizer.proto)
        return {p.piece: p.score for p in model.pieces if p.type == spm.NORMAL}

    old, new = scores(tokenizer), scores(small)
    assert min(old.values()) == min(new.values())
    assert max(old.values()) == max(new.values())
    assert old.items() >= new.items()
    kinds = [p.type for p in spm.parse_model(small.proto).pieces]
    assert kinds.count(spm.USER_DEFINED) == 2
    spec = spm.parse_model(small.proto).trainer_spec
    assert (spec.pad_id, spec.unk_id, spec.bos_id, spec.eos_id) == (0, 1, 2, 3)
    assert spec.vocab_size == len(kinds)


def test_dtype_and_the_original_stay():
    backbone, tokenizer = make_pair("xlm_roberta", dtype="bfloat16")
    before = [np.array(weight.value) for weight in backbone.weights]
    smaller, _, _ = shrink_vocabulary(backbone, tokenizer, KEPT)
    assert smaller.dtype_policy.name == "bfloat16"
    for weight, value in zip(backbone.weights, before, strict=True):
        np.testing.assert_array_equal(weight.value, value)


def test_held_out_texts_are_measured_before_and_after():
    backbone, tokenizer = make_pair("bert")
    held_out = {"kept": iter(KEPT), "new": [*NEW, "ж"], "none": []}
    *_, (before, after) = shrink_vocabulary(
        backbone, tokenizer, KEPT, held_out=held_out
    )
    assert before.held_out["kept"] == after.held_out["kept"] == (15, 0.0)
    tokens, share = before.held_out["new"]
    assert share == pytest.approx(1 / tokens)
    assert after.held_out["new"][0] > tokens
    assert after.held_out["none"] == (0, 0.0)


def test_tokens_are_counted():
    tokenizer = make_tokenizer("bert")
    counts = token_counter(tokenizer)(["the the", "fox"] * 300)
    assert counts[tokenizer.token_to_id("the")] == 600
    assert counts[tokenizer.token_to_id("fox")] == 300
    assert counts.sum() == 900


# What cannot be made smaller.


def test_texts_without_a_token_raise():
    backbone, tokenizer = make_pair("bert")
    for texts in ([], ["", " "]):
        with pytest.raises(ValueError, match="`texts` must hold at least one token"):
            shrink_vocabulary(backbone, tokenizer, texts)


@pytest.mark.parametrize(
    ("min_count", "error"), [(0, ValueError), (1.5, TypeError), (True, TypeError)]
)
def test_min_count_must_be_positive(min_count, error):
    backbone, tokenizer = make_pair("bert")
    with pytest.raises(error, match="`min_count` must be an int of at least 1"):
        shrink_vocabulary(backbone, tokenizer, KEPT, min_count=min_count)


def test_another_family_raises():
    backbone, tokenizer = make_pair("bert")
    with pytest.raises(TypeError, match="`backbone` must be one of BertBackbone"):
        shrink_vocabulary(keras.Sequential(), tokenizer, KEPT)
    with pytest.raises(TypeError, match="`tokenizer` must be a tokenizer of BERT, R"):
        shrink_vocabulary(backbone, keras_hub.tokenizers.ByteTokenizer(), KEPT)


def test_a_tokenizer_too_large_raises():
    with pytest.raises(ValueError, match="must not have more token ids than"):
        shrink_vocabulary(make_backbone("bert"), make_tokenizer("bert"), KEPT)


def test_a_model_of_another_kind_raises():
    proto = sentence_piece_model(unk_id=0, bos_id=1, eos_id=2, model_type="bpe")
    tokenizer = keras_hub.models.XLMRobertaTokenizer(proto)
    backbone = make_backbone("xlm_roberta", vocabulary_size=200)
    with pytest.raises(ValueError, match="`tokenizer` must hold a unigram model"):
        shrink_vocabulary(backbone, tokenizer, KEPT)


def test_byte_pairs_without_a_byte_raise():
    pieces = ["<s>", "<pad>", "</s>", "<mask>", "a", "b", "ab"]
    tokenizer = keras_hub.models.RobertaTokenizer(
        {piece: i for i, piece in enumerate(pieces)}, ["a b"]
    )
    with pytest.raises(ValueError, match="a piece for every byte.*2 of 256 bytes"):
        shrink_vocabulary(make_backbone("roberta"), tokenizer, KEPT)


# From a preset to a preset.


@pytest.fixture
def preset(tmp_path):
    backbone, tokenizer = make_pair("xlm_roberta")
    backbone.save_to_preset(tmp_path / "model")
    tokenizer.save_to_preset(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_text("\n\n".join(KEPT), encoding="utf-8")
    return path


def test_shrink_saves_a_preset(preset, corpus, tmp_path):
    held_out = tmp_path / "held_out.txt"
    held_out.write_text("\n\n".join(NEW), encoding="utf-8")
    output_dir = tmp_path / "small"
    rows = shrink(preset, corpus, output_dir, held_out=[held_out])
    assert [row[0] for row in rows] == [
        "token ids",
        "parameters",
        "float32 weights",
        f"tokens in {held_out}",
        f"unknown in {held_out}",
    ]
    assert int(rows[0][1]) > int(rows[0][2])
    backbone, tokenizer = load_backbone(output_dir), load_tokenizer(output_dir)
    assert vocabulary_size(backbone) == int(rows[0][2])
    expected = states(load_backbone(preset), load_tokenizer(preset), KEPT)
    actual = states(backbone, tokenizer, KEPT)
    np.testing.assert_array_equal(*(x["sequence_output"] for x in (actual, expected)))


def test_shrink_takes_a_corpus_and_a_single_held_out_file(preset, corpus, tmp_path):
    rows = shrink(
        preset, Corpus(corpus), tmp_path / "small", held_out=corpus, min_count=2
    )
    assert rows[3][0] == f"tokens in {corpus}"


def test_shrink_reports_the_files_that_it_skips(preset, corpus, tmp_path):
    for name, odd in (("texts", ".hidden.txt"), ("held_out", "b.csv")):
        (tmp_path / name).mkdir()
        shutil.copy(corpus, tmp_path / name / "a.txt")
        (tmp_path / name / odd).write_text("skipped")
    lines = []
    shrink(
        preset,
        tmp_path / "texts",
        tmp_path / "small",
        held_out=tmp_path / "held_out",
        log=lines.append,
    )
    assert lines == [
        "Skipped in the directories of the corpus: 1 hidden, 1 not named .txt or "
        ".txt.gz."
    ]


def test_output_directory_must_be_empty(preset, corpus, tmp_path):
    output_dir = tmp_path / "small"
    output_dir.mkdir()
    shrink(preset, corpus, output_dir)
    with pytest.raises(FileExistsError, match="`output_dir` must be a new or empty"):
        shrink(preset, corpus, output_dir)
    (output_dir / "vocab.txt").touch()
    shrink(preset, corpus, output_dir, overwrite=True)
    assert not (output_dir / "vocab.txt").exists()


def test_empty_corpus_raises_and_writes_nothing(preset, tmp_path):
    (tmp_path / "empty.txt").write_text("\n\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"`corpus` must hold text. Received: corpus="):
        shrink(preset, tmp_path / "empty.txt", tmp_path / "small")
    assert not (tmp_path / "small").exists()


def test_model_of_another_family_raises(corpus, tmp_path):
    config = json.dumps({"model_type": "gpt2"})
    (tmp_path / "config.json").write_text(config, encoding="utf-8")
    with pytest.raises(ValueError, match="model_type in its config.json that is one"):
        shrink(tmp_path, corpus, tmp_path / "small")


# Published vocabularies on real text.


@pytest.mark.parametrize(
    ("folder", "model_type"),
    [
        ("bert-base-uncased", "bert"),
        ("albert-base-v2", "albert"),
        pytest.param("roberta-base", "roberta", marks=pytest.mark.slow),
        pytest.param("xlm-roberta-base", "xlm-roberta", marks=pytest.mark.slow),
    ],
)
def test_published_vocabularies(folder, model_type, data_dir, tmp_path):
    preset = tmp_path / "preset"
    shutil.copytree(data_dir / "vocab" / folder, preset, copy_function=shutil.copyfile)
    preset.chmod(0o755)
    (preset / "config.json").write_text(json.dumps({"model_type": model_type}))
    tokenizer = load_tokenizer(preset)
    backbone = keras_hub.models.BertBackbone(
        vocabulary_size=tokenizer.vocabulary_size(),
        num_layers=1,
        num_heads=1,
        hidden_dim=2,
        intermediate_dim=2,
    )
    corpus = Corpus(data_dir / "corpus/multilingual/en.txt")
    texts = [text for text, _ in corpus]
    seen, new = texts[:300], texts[300:2_300]
    _, small, (before, after) = shrink_vocabulary(
        backbone, tokenizer, seen, held_out={"seen": seen, "new": new}
    )
    assert after.num_pieces < 0.6 * before.num_pieces
    assert after.held_out["seen"] == before.held_out["seen"]
    assert after.held_out["new"][1] <= before.held_out["new"][1]
    assert pieces_of(small, seen) == pieces_of(tokenizer, seen)
    kept = set(small.get_vocabulary())
    pairs = zip(pieces_of(tokenizer, new), pieces_of(small, new), strict=True)
    same = [old == cut for old, cut in pairs if kept.issuperset(old)]
    assert all(same)
    assert len(same) > 100
