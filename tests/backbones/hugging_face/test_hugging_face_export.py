import json
import re
import shutil
from math import erf
from pathlib import Path

import keras
import keras_hub
import numpy as np
import pytest
import tokenizers
from families import make_backbone, make_inputs, others_slow
from pruned import make_pruned
from safetensors.numpy import load_file
from small_vocabularies import (
    TEXTS,
    TOKENIZER_OF,
    TOKENIZERS,
    make_pair,
    make_tokenizer,
    sentence_piece_model,
    word_pieces,
)

from keras_minilmv2.backbones.families import family_of
from keras_minilmv2.backbones.hugging_face.export import export_to_hugging_face
from keras_minilmv2.backbones.loading import load_backbone, load_tokenizer
from keras_minilmv2.backbones.variants import Variant, set_variant, variant_of
from keras_minilmv2.backbones.vocabulary import shrink_vocabulary
from keras_minilmv2.downstream.classifiers import ElectraTextClassifier
from keras_minilmv2.tokenization import sentence_piece as spm
from keras_minilmv2.tokenization.fast import fast_tokenizer

# Models that transformers saved, with tanh-GELU where keras-nlp computes that: see
# tests/reference/make_reference.py. check_hugging_face_export.py beside it compares
# exported directories in transformers itself.
REFERENCE = Path(__file__).parents[2] / "reference"
NAMES = ["albert", "bert_teacher", "distilbert", "electra", "roberta_teacher"]
NAMES += ["xlm_roberta"]

no_pooler = pytest.mark.filterwarnings("ignore:The weights of preset:UserWarning")


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def token_ids(tokenizer, texts):
    if hasattr(tokenizer, "proto"):
        # SentencePiece outside of TensorFlow decides a tie of scores as `tokenizers`
        # does. Small models have ties, the published ones have none in real text.
        return [[int(i) for i in row] for row in tokenizer(texts)]
    return [row.tolist() for row in fast_tokenizer(tokenizer).rows(texts)]


def saved_token_ids(directory, texts):
    """What the library that transformers rests on reads from tokenizer.json."""
    saved = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
    return [row.ids for row in saved.encode_batch(texts, add_special_tokens=False)]


# The encoder.


@no_pooler
@pytest.mark.parametrize("name", NAMES)
def test_weights_and_config_are_those_of_transformers(name, tmp_path):
    backbone, tokenizer = (
        load(REFERENCE / name) for load in (load_backbone, load_tokenizer)
    )
    export_to_hugging_face(backbone, tokenizer, tmp_path)
    expected = load_file(REFERENCE / name / "model.safetensors")
    weights = load_file(tmp_path / "model.safetensors")
    if name == "electra":  # transformers' ELECTRA has no pooler.
        del weights["pooler.dense.weight"], weights["pooler.dense.bias"]
    if name in ("roberta_teacher", "xlm_roberta"):
        # RobertaBackbone has both in one table, and no row for the padding token.
        positions, segments = (
            f"embeddings.{kind}_embeddings.weight"
            for kind in ("position", "token_type")
        )
        expected[positions] += expected[segments]
        expected[positions][:2] = expected[segments][:] = 0
    assert weights.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_array_equal(weights[key], value, err_msg=key)
    config = read(tmp_path / "config.json")
    assert config.items() <= read(REFERENCE / name / "config.json").items()
    activation = config.get("hidden_act", config.get("activation"))
    is_tanh = name in ("albert", "bert_teacher", "electra")
    assert activation == ("gelu_pytorch_tanh" if is_tanh else "gelu")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", sorted(TOKENIZER_OF))
def test_config_names_the_activation_and_epsilon_that_are_computed(name, tmp_path):
    backbone, tokenizer = make_pair(name)
    gelus = {"gelu": "gelu_pytorch_tanh", "gelu_pytorch_tanh": "gelu"}
    family = family_of(backbone)
    epsilon = 1e-3 if family.epsilon_name else family.layer_norm_epsilon
    variant = Variant(gelus[family.gelu], epsilon)
    set_variant(backbone, variant)
    export_to_hugging_face(backbone, tokenizer, tmp_path)
    config = read(tmp_path / "config.json")
    assert config[family.activation_name] == variant.gelu
    assert variant_of(load_backbone(tmp_path)) == variant


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", sorted(TOKENIZER_OF))
def test_directory_loads_back_bit_for_bit(name, tmp_path):
    backbone, tokenizer = make_pair(name, dropout=0.25)
    export_to_hugging_face(backbone, tokenizer, tmp_path)
    again = load_backbone(tmp_path)
    assert type(again) is type(backbone)
    unlike = {"name": None}
    assert {**again.get_config(), **unlike} == {**backbone.get_config(), **unlike}
    for old, new in zip(backbone.weights, again.weights, strict=True):
        assert np.asarray(old).tobytes() == np.asarray(new).tobytes(), old.path


def test_export_leaves_the_model_alone(tmp_path):
    backbone, tokenizer = make_pair("xlm_roberta")
    positions = backbone.embeddings.position_embedding.position_embeddings
    positions.assign(np.where(np.indices(positions.shape).sum(0) % 2, -0.0, 1.5))
    before = [np.asarray(weight).tobytes() for weight in backbone.weights]
    export_to_hugging_face(backbone, tokenizer, tmp_path)
    assert [np.asarray(weight).tobytes() for weight in backbone.weights] == before


def test_half_precision_is_saved_in_float32(tmp_path):
    backbone, tokenizer = make_pair("bert", dtype="bfloat16")
    export_to_hugging_face(backbone, tokenizer, tmp_path)
    assert {w.dtype.name for w in load_file(tmp_path / "model.safetensors").values()}
    again = load_backbone(tmp_path, dtype="bfloat16")
    for old, new in zip(backbone.weights, again.weights, strict=True):
        np.testing.assert_array_equal(old.numpy(), new.numpy())


@pytest.mark.parametrize("name", ["roberta", "xlm_roberta", "electra_small"])
def test_a_model_made_smaller_is_exported(name, tmp_path):
    backbone, tokenizer = make_pair(name)
    backbone, tokenizer, _ = shrink_vocabulary(backbone, tokenizer, ["the quick fox"])
    export_to_hugging_face(backbone, tokenizer, tmp_path)
    assert read(tmp_path / "config.json")["vocab_size"] == tokenizer.vocabulary_size()
    assert saved_token_ids(tmp_path, TEXTS) == token_ids(tokenizer, TEXTS)
    assert token_ids(load_tokenizer(tmp_path), TEXTS) == token_ids(tokenizer, TEXTS)


# The tokenizer.


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Directories by name of the tokenizer."""
    root = tmp_path_factory.mktemp("exported")
    for name in TOKENIZERS:
        backbone, _ = make_pair(name.removesuffix("_cased"))
        export_to_hugging_face(backbone, make_tokenizer(name), root / name)
    return root


@pytest.mark.parametrize("name", TOKENIZERS)
def test_saved_tokenizer_gives_the_same_ids(name, exported):
    expected = token_ids(make_tokenizer(name), TEXTS)
    assert saved_token_ids(exported / name, TEXTS) == expected
    # Not all unknown.
    assert len({i for row in expected for i in row}) > 12


@pytest.mark.parametrize("name", TOKENIZERS)
def test_tokenizer_loads_back(name, exported):
    tokenizer, again = make_tokenizer(name), load_tokenizer(exported / name)
    assert type(again) is type(tokenizer)
    assert list(again.get_vocabulary()) == list(tokenizer.get_vocabulary())
    assert token_ids(again, TEXTS) == token_ids(tokenizer, TEXTS)
    for setting in ("lowercase", "strip_accents", "split_on_cjk", "merges"):
        assert getattr(again, setting, None) == getattr(tokenizer, setting, None)
    if hasattr(tokenizer, "proto"):
        old, new = (spm.parse_model(t.proto) for t in (tokenizer, again))
        table = old.normalizer_spec.precompiled_charsmap
        assert new.normalizer_spec.precompiled_charsmap == table
        for one, other in zip(old.pieces, new.pieces, strict=True):
            assert one.piece == other.piece
            assert one.score == other.score or one.type != spm.NORMAL


@pytest.mark.parametrize("name", TOKENIZERS)
def test_older_vocabulary_files_load_back(name, exported, tmp_path):
    directory = tmp_path / "older"
    shutil.copytree(exported / name, directory)
    (directory / "tokenizer.json").unlink()
    again = load_tokenizer(directory)
    assert list(again.get_vocabulary()) == list(make_tokenizer(name).get_vocabulary())


def test_case_and_accents_are_kept_apart(tmp_path):
    texts = ["NAÏVE Straße Σοφός", "naïve STRASSE ΣΟΦΟΣ \u00e4 A\u0308", "…", "a…b⑴"]
    for lowercase in (False, True):
        for strip_accents in (False, True):
            tokenizer = keras_hub.models.BertTokenizer(
                word_pieces(), lowercase=lowercase, strip_accents=strip_accents
            )
            backbone = make_backbone("bert", vocabulary_size=len(word_pieces()))
            export_to_hugging_face(backbone, tokenizer, tmp_path, overwrite=True)
            expected = token_ids(tokenizer, texts)
            assert saved_token_ids(tmp_path, texts) == expected
            assert token_ids(load_tokenizer(tmp_path), texts) == expected


def test_all_the_cleaning_of_albert_is_exported(tmp_path):
    # load_tokenizer puts it into the table of the SentencePiece model.
    preset = tmp_path / "preset"
    preset.mkdir()
    proto = make_tokenizer("albert").proto
    (preset / "spiece.model").write_bytes(proto)
    (preset / "config.json").write_text('{"model_type": "albert"}')
    tokenizer = load_tokenizer(preset)
    backbone, _ = make_pair("albert")
    export_to_hugging_face(backbone, tokenizer, tmp_path / "out")
    texts = ["The QUÏCK fox", "``the'' e\u0301 (dog)", "한글 각 \u1100\u1161"]
    expected = token_ids(tokenizer, texts)
    assert saved_token_ids(tmp_path / "out", texts) == expected
    again = load_tokenizer(tmp_path / "out")
    assert token_ids(again, texts) == expected
    tables = [
        spm.parse_model(t.proto).normalizer_spec.precompiled_charsmap
        for t in (tokenizer, again)
    ]
    assert tables[0] == tables[1]


@pytest.mark.parametrize(
    ("name", "single", "pair", "types"),
    [
        ("bert", "[CLS] a [SEP]", "[CLS] a [SEP] b [SEP]", [0, 0, 0, 1, 1]),
        ("albert", "[CLS] a [SEP]", "[CLS] a [SEP] b [SEP]", [0, 0, 0, 1, 1]),
        ("roberta", "<s> a </s>", "<s> a </s> </s> b </s>", [0] * 6),
        ("xlm_roberta", "<s> a </s>", "<s> a </s> </s> b </s>", [0] * 6),
    ],
)
def test_special_tokens_stand_where_keras_nlp_puts_them(
    name, single, pair, types, exported
):
    saved = tokenizers.Tokenizer.from_file(str(exported / name / "tokenizer.json"))

    def shown(encoding):
        tokens = (token.removeprefix("▁") for token in encoding.tokens)
        return " ".join(token for token in tokens if token)

    assert shown(saved.encode("a")) == single
    encoding = saved.encode("a", "b")
    assert shown(encoding) == pair
    if name in ("bert", "roberta"):  # The others' "▁" is a token of its own here.
        assert encoding.type_ids == types
    assert encoding.type_ids[-1] == types[-1]
    settings = read(exported / name / "tokenizer_config.json")
    mask = settings["mask_token"]
    assert saved.token_to_id(mask) == make_tokenizer(name).mask_token_id
    assert saved.encode(f"a {mask}", add_special_tokens=False).tokens[-1] == mask
    special = read(exported / name / "special_tokens_map.json")
    assert special.items() <= settings.items()
    assert settings["model_max_length"] == 16
    has_segments = name in ("bert", "albert")
    assert ("token_type_ids" in settings["model_input_names"]) == has_segments


def test_bert_with_the_vocabulary_of_xlm_roberta(tmp_path):
    tokenizer = make_tokenizer("xlm_roberta")
    backbone = make_backbone("bert", vocabulary_size=tokenizer.vocabulary_size())
    export_to_hugging_face(backbone, tokenizer, tmp_path)
    assert isinstance(load_backbone(tmp_path), keras_hub.models.BertBackbone)
    assert isinstance(load_tokenizer(tmp_path), keras_hub.models.XLMRobertaTokenizer)
    assert read(tmp_path / "config.json")["pad_token_id"] == 1


@pytest.mark.parametrize(
    ("folder", "model_type"),
    [
        ("bert-base-uncased", "bert"),
        ("roberta-base", "roberta"),
        ("albert-base-v2", "albert"),
        ("xlm-roberta-base", "xlm_roberta"),
    ],
)
def test_published_vocabularies_on_fifteen_languages(
    folder, model_type, data_dir, tmp_path
):
    preset = tmp_path / "preset"
    shutil.copytree(data_dir / "vocab" / folder, preset, copy_function=shutil.copyfile)
    preset.chmod(0o755)
    config = json.dumps({"model_type": model_type.replace("_", "-")})
    (preset / "config.json").write_text(config)
    tokenizer = load_tokenizer(preset)
    backbone = make_backbone(model_type, vocabulary_size=tokenizer.vocabulary_size())
    export_to_hugging_face(backbone, tokenizer, tmp_path / "out")
    lines = (data_dir / "XNLI-1.0/xnli.dev.tsv").read_text(encoding="utf-8").split("\n")
    texts = [line.split("\t")[2] for line in lines[1:-1:37]]
    assert len(texts) > 1_000
    assert saved_token_ids(tmp_path / "out", texts) == token_ids(tokenizer, texts)


# Classifiers.

CLASSIFIERS = {
    "electra_small": (
        ElectraTextClassifier,
        lambda x: x * (1 + np.vectorize(erf)(x / 2**0.5)) / 2,
    ),
    "bert": (keras_hub.models.BertTextClassifier, None),
    "albert": (keras_hub.models.AlbertTextClassifier, None),
    "roberta": (keras_hub.models.RobertaTextClassifier, np.tanh),
    "xlm_roberta": (keras_hub.models.XLMRobertaTextClassifier, np.tanh),
    "distil_bert": (
        keras_hub.models.DistilBertTextClassifier,
        lambda x: np.maximum(x, 0),
    ),
}


def make_classifier(name, num_classes=3, **arguments):
    backbone, tokenizer = make_pair(name)
    classifier = CLASSIFIERS[name][0](backbone, num_classes=num_classes, **arguments)
    generator = np.random.default_rng(1)
    for variable in classifier.trainable_variables[-4:]:
        variable.assign(generator.normal(size=variable.shape))
    return classifier, tokenizer


@no_pooler
@pytest.mark.parametrize("name", others_slow(sorted(CLASSIFIERS)))
def test_classifier_is_computed_from_the_saved_head(name, tmp_path):
    classifier, tokenizer = make_classifier(name, dropout=0.25)
    export_to_hugging_face(classifier, tokenizer, tmp_path, labels=["no", "so", "yes"])
    config = read(tmp_path / "config.json")
    [architecture] = config["architectures"]
    assert architecture.endswith("ForSequenceClassification")
    assert config["id2label"] == {"0": "no", "1": "so", "2": "yes"}
    assert config["label2id"] == {"no": 0, "so": 1, "yes": 2}
    assert 0.25 in (config.get(key) for key in config if "drop" in key)
    weights = load_file(tmp_path / "model.safetensors")
    scope = {"xlm_roberta": "roberta", "distil_bert": "distilbert"}.get(name, name)
    scope = scope.removesuffix("_small")
    head = {key for key in weights if not key.startswith(f"{scope}.")}

    backbone = load_backbone(tmp_path)
    inputs = make_inputs(backbone)
    outputs = backbone(inputs)
    activation = CLASSIFIERS[name][1]
    if activation is None:
        x = keras.ops.convert_to_numpy(outputs["pooled_output"])
        layers = ["classifier"]
    else:
        outputs = outputs["sequence_output"] if "electra" in name else outputs
        x = keras.ops.convert_to_numpy(outputs)[:, 0]
        layers = ["classifier.dense", "classifier.out_proj"]
        if name == "distil_bert":
            layers = ["pre_classifier", "classifier"]
    assert head == {
        f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")
    }
    for i, layer in enumerate(layers):
        # PyTorch's matrices are (out, in).
        x = x @ weights[f"{layer}.weight"].T + weights[f"{layer}.bias"]
        x = activation(x) if i + 1 < len(layers) else x
    np.testing.assert_allclose(
        # As the backbone above: a compiled one adds in another order.
        x,
        keras.ops.convert_to_numpy(classifier(inputs)),
        rtol=1e-5,
        atol=1e-5,
    )


def test_classifier_brings_its_own_tokenizer(tmp_path):
    tokenizer = make_tokenizer("bert")
    preprocessor = keras_hub.models.BertTextClassifierPreprocessor(tokenizer)
    classifier, _ = make_classifier("bert", preprocessor=preprocessor)
    export_to_hugging_face(classifier, None, tmp_path)
    assert load_tokenizer(tmp_path).get_vocabulary() == tokenizer.get_vocabulary()
    assert read(tmp_path / "config.json")["id2label"]["2"] == "LABEL_2"


def test_classifier_without_tokenizer_raises(tmp_path):
    classifier, _ = make_classifier("bert")
    with pytest.raises(ValueError, match="`tokenizer` must be given for a model with"):
        export_to_hugging_face(classifier, None, tmp_path)


@pytest.mark.parametrize("labels", [["yes"], []])
def test_labels_must_name_every_class(labels, tmp_path):
    classifier, tokenizer = make_classifier("bert")
    with pytest.raises(ValueError, match="`labels` must name every class"):
        export_to_hugging_face(classifier, tokenizer, tmp_path, labels=labels)


def test_labels_of_an_encoder_raise(tmp_path):
    with pytest.raises(ValueError, match=r"`labels` must name every.*num_classes=None"):
        export_to_hugging_face(*make_pair("bert"), tmp_path, labels=["yes"])


def test_head_of_another_width_raises(tmp_path):
    classifier, tokenizer = make_classifier("roberta", hidden_dim=7)
    with pytest.raises(ValueError, match=r"`model` must have a head as wide as"):
        export_to_hugging_face(classifier, tokenizer, tmp_path)


def test_classifier_without_the_usual_head_raises(tmp_path):
    class OtherClassifier(keras_hub.models.TextClassifier):
        def __init__(self, backbone):
            self.backbone = backbone
            self.preprocessor = None
            self.num_classes, self.dropout = 24, 0.0
            outputs = backbone(backbone.input)["pooled_output"]
            super().__init__(inputs=backbone.input, outputs=outputs)

    backbone, tokenizer = make_pair("bert")
    with pytest.raises(TypeError, match="`model` must be a text classifier with a lay"):
        export_to_hugging_face(OtherClassifier(backbone), tokenizer, tmp_path)


# sentence-transformers, and the card.


def test_files_of_sentence_transformers(tmp_path):
    export_to_hugging_face(*make_pair("bert"), tmp_path, sentence_transformers=True)
    modules = read(tmp_path / "modules.json")
    assert [module["path"] for module in modules] == ["", "1_Pooling"]
    pooling = read(tmp_path / "1_Pooling" / "config.json")
    assert pooling["word_embedding_dimension"] == 24
    assert pooling["pooling_mode_mean_tokens"]
    assert read(tmp_path / "sentence_bert_config.json")["max_seq_length"] == 16
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "from sentence_transformers import SentenceTransformer" in card


def test_sentence_transformers_takes_no_classifier(tmp_path):
    with pytest.raises(ValueError, match="`sentence_transformers` must not be set"):
        export_to_hugging_face(
            *make_classifier("bert"), tmp_path, sentence_transformers=True
        )


def card_of(tmp_path, facts, name="bert"):
    directory = tmp_path / "out"
    export_to_hugging_face(*make_pair(name), directory, facts=facts, overwrite=True)
    return (directory / "README.md").read_text(encoding="utf-8")


def test_card_without_facts_claims_nothing(tmp_path):
    card = card_of(tmp_path, None)
    assert card.startswith('---\nlibrary_name: "transformers"\n')
    assert "exported from keras-nlp" in card
    assert "## Results\n\nNot measured." in card
    assert "## Origin\n\nNot stated." in card
    assert "distil" not in card
    assert "tanh form of GELU" in card
    card = card_of(tmp_path, None, "roberta")
    assert "tanh" not in card
    assert "no pooler" in card
    assert "these weights are not used" in card_of(tmp_path, None, "electra")


def test_card_shows_the_facts_it_is_given(tmp_path):
    facts = {
        "teacher": "hf://google-bert/bert-base-uncased",
        "corpus": ["a.txt", "b|c.txt"],
        "relation_weights": {"qq": 1.0},
        "seed": None,
        "license": "apache-2.0",
        "results": {"MNLI-m": 0.824},
    }
    card = card_of(tmp_path, facts)
    assert 'base_model: "google-bert/bert-base-uncased"\nlicense: "apache-2.0"' in card
    assert "distilled from `hf://google-bert/bert-base-uncased` by MiniLMv2" in card
    assert "a.txt, b\\|c.txt" in card
    assert "qq 1" in card
    assert "| MNLI-m  | 0.824 |" in card
    assert "seed" not in card
    assert "fine-tune before use" in card


def test_card_reads_a_run(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.json").write_text('{"teacher": "bert_base", "total_steps": 20}')
    report = {
        "title": "Distillation",
        "facts": {"corpus": ["a.txt"], "steps": 20, "date": "2026-01-01"},
        "tables": {"held_out": [{"student": "before", "loss": 0.75}]},
        "pictures": ["curves.png"],
    }
    (run / "report.json").write_text(json.dumps(report))
    (run / "report.md").write_text("# Distillation\n\nNot for machines.\n")
    card = card_of(tmp_path, run)
    assert "## Results\n\n| student | loss |\n" in card
    assert "| before  | 0.75 |" in card
    assert "| steps   | 20         |" in card
    assert "curves.png" not in card
    assert "Not for machines" not in card
    assert "| total steps" in card
    assert "distilled from `bert_base` by" in card
    assert "Not measured." in card_of(tmp_path, run / "recipe.json")
    card = card_of(tmp_path, str(run / "report.json"))
    assert "| before  | 0.75 |" in card
    assert "distilled" not in card


def test_card_reads_the_report_of_a_run_without_a_json_file(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.json").write_text('{"teacher": "bert_base", "total_steps": 20}')
    report = "# Distillation\n\nHeld-out relation loss: 0.5.\n\n![Loss](curves.png)\n\n"
    (run / "report.md").write_text(report + "| student | loss |\n| - | - |\n")
    for facts in (run, run / "report.md"):
        card = card_of(tmp_path, facts)
        assert (
            "## Results\n\nHeld-out relation loss: 0.5.\n\n| student | loss |" in card
        )
        assert "curves.png" not in card


@pytest.mark.parametrize(
    "teacher",
    ["bert\n\n# Heading", "<script>alert(1)</script>", "a`b``c", "[x](y) | ![z](w)"],
)
def test_card_takes_a_name_for_a_name(teacher, tmp_path):
    card = card_of(tmp_path, {"teacher": teacher, "<b>": "<i>"})
    assert "\n# Heading" not in card
    outside_code = re.sub(r"(`+)(?!`).+?(?<!`)\1(?!`)", "", card)
    for markup in ("<script>", "<b>", "<i>"):
        assert markup not in outside_code
    sentence = next(line for line in card.splitlines() if "distilled from" in line)
    assert "[x](y)" not in re.sub(r"(`+)(?!`).+?(?<!`)\1(?!`)", "", sentence)


@pytest.mark.parametrize(
    "value", ["\U0001f600 free", "a: b # c", "x\u0085\u2028\ufeff\x00", '"', ["a", "b"]]
)
def test_card_has_a_header_that_yaml_reads(value, tmp_path):
    yaml = pytest.importorskip("yaml")
    card = card_of(tmp_path, {"license": value, "teacher": f"hf://{value}"})
    header = yaml.safe_load(card.split("---\n")[1])
    assert header["license"] == value
    assert header["base_model"] == str(value)


def test_facts_that_cannot_be_read_raise(tmp_path):
    for facts in (tmp_path / "nothing", tmp_path):
        with pytest.raises(ValueError, match="`facts` must be a dict, or the path of"):
            card_of(tmp_path, facts)
    with pytest.raises(TypeError, match="`facts` must be a dict, or the path of"):
        card_of(tmp_path, 3)
    (tmp_path / "recipe.json").write_text("[1]")
    with pytest.raises(ValueError, match="must hold a recipe.json that can be read"):
        card_of(tmp_path, tmp_path)
    for damaged in ("{}", "[]", '{"tables": {"a": []}, "facts": {}}'):
        (tmp_path / "report.json").write_text(damaged)
        with pytest.raises(ValueError, match="must hold a report.json that can be r"):
            card_of(tmp_path, tmp_path / "report.json")
    (tmp_path / "recipe.json").write_bytes(b"\xff")
    with pytest.raises(ValueError, match="must hold a recipe.json that can be read"):
        card_of(tmp_path, tmp_path)


# What cannot be exported.


def test_model_of_another_kind_raises(tmp_path):
    tokenizer = make_tokenizer("bert")
    with pytest.raises(TypeError, match="`model` must be a keras-nlp backbone or text"):
        export_to_hugging_face(keras.Sequential(), tokenizer, tmp_path)
    backbone = keras_hub.models.FNetBackbone(10, 1, 2, 2)
    with pytest.raises(TypeError, match="`backbone` must be one of BertBackbone"):
        export_to_hugging_face(backbone, tokenizer, tmp_path)


def test_tokenizer_of_another_kind_raises_and_writes_nothing(tmp_path):
    backbone = make_backbone("bert", vocabulary_size=300)
    tokenizer = keras_hub.tokenizers.ByteTokenizer()
    with pytest.raises(TypeError, match="`tokenizer` must be a tokenizer of BERT, R"):
        export_to_hugging_face(backbone, tokenizer, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert list(tmp_path.iterdir()) == []


def test_tokenizer_that_does_not_fit_raises(tmp_path):
    with pytest.raises(ValueError, match="must not have more token ids than"):
        export_to_hugging_face(make_backbone("bert"), make_tokenizer("bert"), tmp_path)


def test_padding_token_of_roberta_must_have_id_1(tmp_path):
    pieces = ["<pad>", "<s>", "</s>", "<mask>", "a", "b", "ab"]
    tokenizer = keras_hub.models.RobertaTokenizer(
        {piece: i for i, piece in enumerate(pieces)}, ["a b"]
    )
    with pytest.raises(ValueError, match="must have the padding token at id 1"):
        export_to_hugging_face(make_backbone("roberta"), tokenizer, tmp_path)


def test_byte_pair_model_of_sentence_piece_raises(tmp_path):
    proto = sentence_piece_model(unk_id=0, bos_id=1, eos_id=2, model_type="bpe")
    tokenizer = keras_hub.models.XLMRobertaTokenizer(proto)
    backbone = make_backbone("xlm_roberta", vocabulary_size=200)
    with pytest.raises(ValueError, match="`tokenizer` must hold a unigram model"):
        export_to_hugging_face(backbone, tokenizer, tmp_path)


def test_model_with_removed_heads_raises(tmp_path):
    backbone, tokenizer = make_pair("bert")
    with pytest.raises(ValueError, match=r"`model` must have in every layer the heads"):
        export_to_hugging_face(make_pruned(backbone), tokenizer, tmp_path)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", others_slow(sorted(TOKENIZER_OF)))
def test_removed_heads_are_written_as_zeros(name, tmp_path):
    backbone, tokenizer = make_pair(name)
    pruned = make_pruned(backbone)
    export_to_hugging_face(pruned, tokenizer, tmp_path / "hf", dense=True)
    read = load_backbone(tmp_path / "hf")
    assert type(read) is type(backbone)
    assert read.count_params() == backbone.count_params() > pruned.count_params()
    inputs = make_inputs(pruned)
    ours, theirs = pruned(inputs), read(inputs)
    if isinstance(ours, dict):
        ours, theirs = ours["sequence_output"], theirs["sequence_output"]
    np.testing.assert_allclose(theirs, ours, atol=1e-5)
    assert (
        "the others are zeros, so no faster" in (tmp_path / "hf/README.md").read_text()
    )


def test_directory_must_be_empty_unless_it_is_to_be_replaced(tmp_path):
    pair = make_pair("bert")
    export_to_hugging_face(*pair, tmp_path / "out")
    with pytest.raises(FileExistsError, match="`directory` must be a new or empty"):
        export_to_hugging_face(*pair, tmp_path / "out")
    (tmp_path / "out" / "old.safetensors").touch()
    export_to_hugging_face(*pair, str(tmp_path / "out"), overwrite=True)
    assert not (tmp_path / "out" / "old.safetensors").exists()
