"""Encoders without some of their heads and neurons compute what masked ones compute."""

import json
import shutil
import subprocess
import sys

import keras
import keras_hub
import numpy as np
import pytest
import tensorflow as tf
from families import CLASSES, make_backbone, make_inputs
from processes import finish, largest_difference, start
from pruned import make_masks, make_pruned, masked
from small_exports import small_backbone
from small_runs import make_recipe, make_teacher, write_task
from small_tokenizers import make_tokenizer

import keras_minilmv2 as km
from keras_minilmv2 import cli
from keras_minilmv2.backbones.attention import attention_of
from keras_minilmv2.backbones.flat_blocks import can_be_flat, with_flat_blocks
from keras_minilmv2.backbones.loading import load_backbone, load_tokenizer
from keras_minilmv2.backbones.precision import cast_once
from keras_minilmv2.backbones.projections import block_calls
from keras_minilmv2.backbones.pruned import is_pruned, layer_counts
from keras_minilmv2.backbones.variants import Variant, set_variant, variant_of
from keras_minilmv2.runs.info import model_facts, paper_settings
from keras_minilmv2.serving.serve_check import serve_check

# With blocks of their own, and shared.
BOTH = [
    name
    if name in ("bert", "albert_groups")
    else pytest.param(name, marks=pytest.mark.slow)
    for name in CLASSES
]


def outputs(backbone, inputs, **kwargs):
    return [np.asarray(x) for x in tf.nest.flatten(backbone(inputs, **kwargs))]


def assert_close(one, two, inputs, atol):
    for x, y in zip(outputs(one, inputs), outputs(two, inputs), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=atol)


@pytest.fixture(scope="module")
def backbone():
    return make_backbone("bert")


@pytest.fixture(scope="module")
def pruned(backbone):
    return make_pruned(backbone)


# What a pruned encoder computes.


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize(
    ("dtype", "atol"),
    [("float64", 1e-10), pytest.param("float32", 1e-5, marks=pytest.mark.slow)],
)
def test_a_pruned_encoder_computes_what_a_masked_one_computes(name, dtype, atol):
    backbone = make_backbone(name, dtype=dtype)
    before = [np.array(weight) for weight in backbone.weights]
    masks = make_masks(backbone)
    pruned = km.prune_heads(backbone, *masks)
    assert isinstance(pruned, type(backbone))
    assert pruned.dtype_policy.name == dtype
    assert pruned.head_counts == tuple(masks[0].sum(axis=1))
    assert pruned.neuron_counts == tuple(masks[1].sum(axis=1))
    inputs = make_inputs(backbone)
    assert_close(pruned, masked(backbone, *masks), inputs, atol)
    # Something was removed that mattered, and the given one is left as it is.
    assert np.abs(outputs(pruned, inputs)[0] - outputs(backbone, inputs)[0]).max() > 0.1
    for old, weight in zip(before, backbone.weights, strict=True):
        np.testing.assert_array_equal(old, weight)


ROW = np.arange(4)


@pytest.mark.parametrize(
    ("head_row", "neuron_row"),
    [(0 * ROW, 1), (ROW == 3, 1), (1 + 0 * ROW, 0), (0 * ROW, 0)],
    ids=["no head", "one head", "no neuron", "nothing"],
)
def test_every_layer_may_be_left_with_little(backbone, head_row, neuron_row):
    masks = np.tile(head_row, (4, 1)), np.full((4, 32), neuron_row)
    pruned = km.prune_heads(backbone, *masks)
    inputs = make_inputs(backbone)
    assert_close(pruned, masked(backbone, *masks), inputs, 1e-5)
    assert_close(with_flat_blocks(pruned), pruned, inputs, 1e-5)


def test_one_head_in_all(backbone):
    head_mask = np.zeros((4, 4))
    head_mask[2, 1] = 1
    pruned = km.prune_heads(backbone, head_mask)
    assert pruned.head_counts == (0, 0, 1, 0)
    assert pruned.neuron_counts == (32,) * 4
    assert_close(pruned, masked(backbone, head_mask), make_inputs(backbone), 1e-5)


def test_padding_does_not_change_real_tokens(pruned):
    inputs = make_inputs(pruned)
    together = pruned(inputs)["sequence_output"]
    for row, length in enumerate(inputs["padding_mask"].sum(axis=1)):
        alone = {name: x[row : row + 1, :length] for name, x in inputs.items()}
        np.testing.assert_allclose(
            pruned(alone)["sequence_output"][0], together[row, :length], atol=1e-5
        )


def test_a_masked_layer_without_neurons_still_has_its_bias(backbone):
    neuron_mask = np.zeros((4, 32))
    pruned = km.prune_heads(backbone, np.ones((4, 4)), neuron_mask)
    before = outputs(pruned, make_inputs(backbone))[0]
    block_calls(pruned)[0][0]._feedforward_output_dense.bias.assign(np.ones(24))
    assert np.abs(outputs(pruned, make_inputs(backbone))[0] - before).max() > 1e-3


def test_pruning_twice_is_pruning_once(backbone):
    head_mask, neuron_mask = make_masks(backbone)
    first = km.prune_heads(backbone, head_mask)
    # A row for what is left of each layer.
    more = [np.arange(count) != 0 for count in first.head_counts]
    second = km.prune_heads(first, more, neuron_mask)
    for row in head_mask:
        row[np.flatnonzero(row)[:1]] = 0
    assert second.head_counts == tuple(head_mask.sum(axis=1)) == (0, 0, 3, 2)
    at_once = km.prune_heads(backbone, head_mask, neuron_mask)
    for one, other in zip(second.weights, at_once.weights, strict=True):
        np.testing.assert_array_equal(one, other)


def test_pruning_nothing_copies(backbone, pruned):
    copy = km.prune_heads(backbone, np.ones((4, 4), bool), np.ones((4, 32)))
    assert type(copy) is type(backbone)
    assert copy is not backbone
    assert_close(copy, backbone, make_inputs(backbone), 1e-6)
    head_counts, neuron_counts = layer_counts(pruned)
    again = km.prune_heads(
        pruned, [[1] * n for n in head_counts], [[True] * n for n in neuron_counts]
    )
    assert_close(again, pruned, make_inputs(pruned), 1e-6)


def test_masks_may_be_tensors_of_any_number_type(backbone):
    head_mask, neuron_mask = make_masks(backbone)
    expected = make_pruned(backbone).get_weights()
    for convert in (tf.constant, list, np.float16):
        pruned = km.prune_heads(backbone, convert(head_mask), convert(neuron_mask))
        for one, other in zip(pruned.get_weights(), expected, strict=True):
            np.testing.assert_array_equal(one, other)


def test_another_gelu_and_epsilon_stay():
    backbone = make_backbone("bert")
    variant = Variant("gelu", 3e-3)
    set_variant(backbone, variant)
    head_mask, neuron_mask = make_masks(backbone)
    neuron_mask[0] = 0
    pruned = km.prune_heads(backbone, head_mask, neuron_mask)
    assert variant_of(pruned) == variant
    assert_close(
        pruned, masked(backbone, head_mask, neuron_mask), make_inputs(backbone), 1e-5
    )


def test_scores_of_a_layer_without_heads_have_no_heads(pruned):
    for (block, _), num_heads in zip(
        block_calls(pruned), pruned.head_counts, strict=True
    ):
        x = np.ones((2, 5, 24), "float32")
        output, scores = block(x, return_attention_scores=True)
        assert output.shape == (2, 5, 24)
        assert scores.shape == (2, num_heads, 5, 5)


# How it runs.


@pytest.mark.parametrize("name", ["bert", "roberta", "albert_groups"])
def test_flat_blocks_have_its_outputs_and_gradients(name):
    pruned = make_pruned(make_backbone(name, dropout=0.0))
    assert all(can_be_flat(block) for block, _ in block_calls(pruned))
    inputs = make_inputs(pruned)

    def gradient(model):
        with tf.GradientTape() as tape:
            states = tf.nest.flatten(model(inputs, training=True))
            loss = tf.add_n([tf.reduce_mean(state**3) for state in states])
        gradients = tape.gradient(loss, pruned.trainable_variables)
        return [np.asarray(tf.convert_to_tensor(g)) for g in gradients if g is not None]

    flat = with_flat_blocks(pruned)
    assert_close(flat, pruned, inputs, 1e-5)
    exact, fast = gradient(pruned), gradient(flat)
    assert len(exact) == len(fast) >= len(pruned.trainable_variables) - 2
    for one, other in zip(exact, fast, strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-3, atol=1e-4)


def test_dropout_acts_on_what_is_left():
    pruned = make_pruned(make_backbone("bert", dropout=0.5))
    inputs = make_inputs(pruned)
    for model in (pruned, with_flat_blocks(pruned)):
        one, other = (outputs(model, inputs, training=True)[0] for _ in range(2))
        assert np.isfinite(one).all()
        assert np.abs(one - other).max() > 0.1


def test_mixed_bfloat16_is_near_float32(backbone):
    masks = make_masks(backbone)
    mixed = make_backbone("bert", dtype="mixed_bfloat16")
    mixed = km.prune_heads(mixed, *masks)
    exact = km.prune_heads(backbone, *masks)(make_inputs(backbone))["sequence_output"]
    assert {weight.dtype for weight in mixed.weights} == {"float32"}
    cast = cast_once(mixed)
    assert cast is not mixed
    assert {weight.dtype for weight in cast.weights} == {"bfloat16"}
    for model in (mixed, with_flat_blocks(mixed), cast):
        found = model(make_inputs(backbone))["sequence_output"]
        assert found.dtype == "bfloat16"
        assert np.abs(np.asarray(found, "float32") - exact).mean() < 0.05


@pytest.mark.parametrize("flat", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_xla_compiles_it(pruned, flat):
    model = with_flat_blocks(pruned) if flat else pruned
    inputs = make_inputs(pruned)

    @tf.function(jit_compile=True)
    def loss_and_gradient(inputs):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(model(inputs)["pooled_output"] ** 3)
        return loss, tape.gradient(loss, block_calls(pruned)[0][0].trainable_weights)

    loss, gradients = loss_and_gradient(inputs)
    expected = np.mean(np.asarray(model(inputs)["pooled_output"]) ** 3)
    assert float(loss) == pytest.approx(float(expected), rel=1e-4)
    assert max(np.abs(g).max() for g in gradients) > 0


@pytest.fixture(scope="module")
def one_device(tmp_path_factory):
    path = tmp_path_factory.mktemp("one") / "one.npz"
    finish(start(path, "--pruned"))
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [["--strategy", "mirrored", "--devices", 2], ["--jit"], ["--accumulation", 2]],
    ids=lambda options: options[0],
)
def test_every_device_trains_the_weights_of_one(one_device, options, tmp_path):
    finish(start(tmp_path / "other.npz", "--pruned", *options))
    assert largest_difference(one_device, tmp_path / "other.npz") < 1e-5


# On disk.


@pytest.mark.parametrize("name", BOTH)
def test_a_preset_is_read_by_every_loader(name, tmp_path):
    backbone = make_backbone(name)
    set_variant(backbone, Variant("gelu", 3e-3))
    pruned = make_pruned(backbone)
    path = str(tmp_path / "preset")
    km.save_student(pruned, None, path)
    inputs = make_inputs(pruned)
    for load in (
        km.load_backbone,
        keras_hub.models.Backbone.from_preset,
        type(backbone).from_preset,
    ):
        read = load(path)
        assert type(read) is type(pruned)
        assert layer_counts(read) == layer_counts(pruned)
        assert_close(read, pruned, inputs, 1e-6)
    drawn = keras_hub.models.Backbone.from_preset(path, load_weights=False)
    assert drawn.count_params() == pruned.count_params()
    halves = load_backbone(path, dtype="bfloat16")
    assert {weight.dtype for weight in halves.weights} == {"bfloat16"}


def test_classifiers_are_made_of_it_and_read(pruned, tmp_path):
    km.save_student(pruned, None, tmp_path / "encoder")
    # Of the encoder alone, a new head.
    classifier = keras_hub.models.TextClassifier.from_preset(
        str(tmp_path / "encoder"), num_classes=2, preprocessor=None
    )
    assert type(classifier) is keras_hub.models.BertTextClassifier
    inputs = make_inputs(pruned)
    assert_close(classifier.backbone, pruned, inputs, 1e-6)
    classifier.save_to_preset(str(tmp_path / "classifier"))
    read = keras_hub.models.TextClassifier.from_preset(str(tmp_path / "classifier"))
    assert is_pruned(read.backbone)
    assert_close(read, classifier, inputs, 1e-6)
    classifier.save(tmp_path / "classifier.keras")
    read = keras.saving.load_model(tmp_path / "classifier.keras", compile=False)
    assert_close(read, classifier, inputs, 1e-6)


ALONE = """
import sys
{imports}
model = keras_hub.models.Backbone.from_preset(sys.argv[1])
print(model.head_counts)
"""


@pytest.mark.parametrize(
    "imports",
    [
        "import keras_minilmv2, keras_hub",
        pytest.param("import keras_hub, keras_minilmv2", marks=pytest.mark.slow),
        pytest.param(
            "import keras_minilmv2, keras_nlp as keras_hub", marks=pytest.mark.slow
        ),
    ],
)
def test_keras_hub_reads_it_once_the_package_is_imported(pruned, imports, tmp_path):
    km.save_student(pruned, None, tmp_path / "preset")
    code = ALONE.format(imports=imports)
    command = [sys.executable, "-c", code, tmp_path / "preset"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout == f"{pruned.head_counts}\n"


def change_config(path, **changes):
    config = json.loads((path / "config.json").read_text())
    config["config"].update(changes)
    config["config"] = {k: v for k, v in config["config"].items() if v != "gone"}
    (path / "config.json").write_text(json.dumps(config))


UNKNOWN = "`format_version` must be 1 for a pruned encoder; another version of"


@pytest.mark.parametrize("version", [2, 0, "1", 1.0, True, None, "gone"])
def test_an_unknown_version_is_refused(pruned, version, tmp_path):
    km.save_student(pruned, None, tmp_path / "preset")
    change_config(tmp_path / "preset", format_version=version, new_argument=3)
    with pytest.raises(ValueError, match="a format that this version of") as error:
        km.load_backbone(tmp_path / "preset")
    assert UNKNOWN in str(error.value)
    with pytest.raises(ValueError, match=UNKNOWN):
        keras_hub.models.Backbone.from_preset(str(tmp_path / "preset"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("head_counts", [0, 1, 4]),
        ("head_counts", [0, 1, 4, 5]),
        ("head_counts", [0, 1, 4, -1]),
        ("head_counts", [0, 1, 4, 2.0]),
        ("head_counts", [0, 1, 4, True]),
        ("head_counts", 3),
        ("neuron_counts", [32, 0, 32, 33]),
        ("neuron_counts", "gone"),
        ("neuron_counts", [32, 0, 32, 32]),
    ],
)
def test_damaged_counts_are_refused(pruned, name, value, tmp_path):
    km.save_student(pruned, None, tmp_path / "preset")
    change_config(tmp_path / "preset", **{name: value})
    with pytest.raises(ValueError, match="`preset` must ") as error:
        km.load_backbone(tmp_path / "preset")
    assert "\n" not in str(error.value)


# In the rest of the package.


@pytest.mark.parametrize("name", BOTH)
def test_info_lists_what_is_left(name, tmp_path):
    backbone = make_backbone(name)
    pruned = make_pruned(backbone)
    km.save_student(pruned, None, tmp_path / "preset")
    facts = dict(model_facts(str(tmp_path / "preset")))
    heads, neurons = make_masks(backbone)
    heads, neurons = heads.sum(axis=1), neurons.sum(axis=1)
    assert facts["heads left in each layer"] == ", ".join(map(str, heads))
    assert facts["neurons left in each layer"] == ", ".join(map(str, neurons))
    parameters = sum(weight.numpy().size for weight in pruned.weights)
    assert facts["parameters"].startswith(f"{parameters:,} (")
    layer, relation_heads, _ = paper_settings(pruned)
    assert layer == 1 + max(np.flatnonzero(heads))
    assert (heads[layer - 1] * 6) % relation_heads == 0


def test_info_of_an_encoder_without_heads(backbone):
    empty = km.prune_heads(backbone, np.zeros((4, 4)))
    assert paper_settings(empty)[1:] == (
        0,
        "no layer has heads: nothing to distil relations of",
    )


def make_pair(**sizes):
    """A pruned teacher with 3 and a student with 2 heads in their last layers."""
    teacher = make_backbone("bert")
    student = km.student_backbone(
        teacher, **{"num_layers": 2, "num_heads": 4, **sizes}, dropout=0.0, seed=1
    )
    head_mask = np.ones((2, 4))
    head_mask[0] = head_mask[1, :2] = 0
    neuron_mask = np.ones((2, student.intermediate_dim))
    neuron_mask[0] = 0
    return make_pruned(teacher), km.prune_heads(student, head_mask, neuron_mask)


@pytest.mark.slow
def test_it_distils_and_is_distilled():
    teacher, student = make_pair(hidden_dim=16, intermediate_dim=20)
    distiller = km.RelationDistiller(
        teacher, student, teacher_layer=4, num_relation_heads=2
    )
    distiller.compile(optimizer=km.adamw(0.01, 1, 30))
    dataset = tf.data.Dataset.from_tensors(make_inputs(teacher))
    before = distiller.evaluate(dataset, verbose=0, return_dict=True)["loss"]
    counts = layer_counts(student)
    distiller.fit(dataset.repeat(30), verbose=0, shuffle=False)
    after = distiller.evaluate(dataset, verbose=0, return_dict=True)["loss"]
    assert after < 0.7 * before
    assert layer_counts(student) == counts


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            {"teacher_layer": 4, "num_relation_heads": 4},
            "it can be 1, 2. Received: num_relation_heads=4, 18 channels left in the "
            "teacher's layer, 8 in the student's.",
        ),
        (
            {"teacher_layer": 1, "num_relation_heads": 1},
            "`teacher` must have attention heads in the layer that is compared. "
            "Received: teacher whose heads in it were all removed.",
        ),
    ],
)
def test_relation_heads_must_divide_what_is_left(arguments, sentence):
    teacher, student = make_pair(hidden_dim=16, intermediate_dim=20)
    with pytest.raises(ValueError, match=r"`teacher`|`num_relation") as error:
        km.RelationDistiller(teacher, student, **arguments)
    assert str(error.value).endswith(sentence)


def test_projections_of_a_layer_without_heads_are_refused(pruned):
    with pytest.raises(ValueError, match="`layer` must be one that has attention he"):
        km.qkv_model(pruned, 1)
    vectors = km.qkv_model(pruned, 2)(make_inputs(pruned))
    assert vectors["query"].shape == (8, 12, 1, 6)


@pytest.mark.parametrize("name", ["bert", "roberta", "electra_small", "albert_groups"])
def test_students_are_made_of_its_layers(name):
    pruned = make_pruned(make_backbone(name))
    sizes = {n: getattr(pruned, n) for n in ("num_heads", "intermediate_dim")}
    student = km.student_backbone(
        pruned,
        num_layers=4,
        hidden_dim=24,
        initialization="layers",
        teacher_layers=(1, 2, 3, 4),
        **sizes,
    )
    assert_close(student, pruned, make_inputs(pruned), 1e-6)
    drawn = km.student_backbone(pruned, num_layers=2, hidden_dim=24, **sizes)
    assert type(drawn) is type(pruned).unpruned_class
    with pytest.raises(ValueError, match='"projection" needs a teacher with all heads'):
        km.student_backbone(
            pruned,
            num_layers=2,
            hidden_dim=12,
            initialization="projection",
            examples=make_inputs(pruned),
            **sizes,
        )


def test_students_of_some_layers_have_their_heads(pruned):
    student = km.student_backbone(
        pruned,
        num_layers=2,
        num_heads=4,
        hidden_dim=24,
        intermediate_dim=32,
        initialization="layers",
        teacher_layers=(4, 2),
    )
    assert student.head_counts == (3, 1)
    assert student.neuron_counts == (21, 0)


def test_a_smaller_vocabulary_keeps_what_is_left():
    tokenizer = make_tokenizer("Bert", lowercase=True)
    pruned = make_pruned(
        make_backbone("bert", vocabulary_size=tokenizer.vocabulary_size())
    )
    small, _, _ = km.shrink_vocabulary(pruned, tokenizer, ["the quick brown fox"])
    assert layer_counts(small) == layer_counts(pruned)
    assert small.vocabulary_size < pruned.vocabulary_size
    inputs = make_inputs(pruned)
    inputs["token_ids"] = inputs["token_ids"] * 0  # [PAD], which stays at id 0
    assert_close(small, pruned, inputs, 1e-6)


@pytest.fixture(scope="module")
def preset(tmp_path_factory):
    """The small runs' teacher, pruned: 3, 0 and 2 heads."""
    path = tmp_path_factory.mktemp("models")
    teacher = load_backbone(make_teacher(path / "teacher"))
    head_mask = np.ones((3, 4))
    head_mask[0, 1] = head_mask[1] = head_mask[2, :2] = 0
    neuron_mask = np.ones((3, 24))
    neuron_mask[0, 7:] = neuron_mask[1] = 0
    pruned = km.prune_heads(teacher, head_mask, neuron_mask)
    km.save_student(pruned, load_tokenizer(path / "teacher"), path / "pruned")
    return path / "pruned"


@pytest.mark.slow
def test_it_is_fine_tuned_and_served(preset, tmp_path, capsys):
    data = write_task(tmp_path / "data")
    finetune = ["finetune", str(preset), "--task", "sst2", "--data-dir", str(data)]
    finetune += ["--output-dir", str(tmp_path / "run"), "--epochs", "1"]
    assert cli.main([*finetune, "--sequence-length", "16"]) == 0
    saved = km.load_saved(tmp_path / "run")
    assert saved.backbone.head_counts == (3, 0, 2)
    assert saved.backbone.neuron_counts == (7, 0, 24)
    old = load_backbone(preset).token_embedding.embeddings
    assert np.abs(saved.backbone.token_embedding.embeddings - old).max() > 0
    export = ["export", str(tmp_path / "run"), "--output-dir"]
    served = ["--sequence-length", "16", "--weights", "int8"]
    assert cli.main([*export, str(tmp_path / "served"), *served]) == 0
    check = serve_check(tmp_path / "served", log=lambda line: None)
    assert max(check.differences.values()) < check.tolerance
    manifest = json.loads((tmp_path / "served/1/manifest.json").read_text())
    assert manifest["model"]["head_counts"] == [3, 0, 2]
    capsys.readouterr()
    form = ["--form", "hugging_face"]
    assert cli.main([*export, str(tmp_path / "hf"), *form]) == 2
    assert "set `dense` to write the removed ones as" in capsys.readouterr().err
    assert cli.main([*export, str(tmp_path / "hf"), *form, "--dense"]) == 0
    assert "it is no faster" in capsys.readouterr().out
    inputs = {n: x * 0 + 1 for n, x in make_inputs(saved.backbone).items()}
    np.testing.assert_allclose(
        load_backbone(tmp_path / "hf")(inputs)["sequence_output"],
        saved.backbone(inputs)["sequence_output"],
        atol=1e-5,
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["roberta", "albert"])
def test_encoders_of_other_families_are_served(name, tmp_path):
    pruned = make_pruned(small_backbone(name, num_layers=2))
    tokenizer = make_tokenizer({"roberta": "Roberta", "albert": "Albert"}[name])
    km.export_saved_model(pruned, tokenizer, tmp_path, sequence_length=16)
    check = serve_check(tmp_path, log=lambda line: None)
    assert max(check.differences.values()) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("start", ["layers:1,3", "preset", "random"])
def test_runs_take_it_as_teacher_and_as_student(preset, start, tmp_path):
    sizes = {"student_num_heads": 4, "student_hidden_dim": 16}
    sizes["student_intermediate_dim"] = 24
    teacher = preset
    if start == "preset":
        sizes["student_num_layers"] = 3
        start = f"preset:{preset}"
        teacher = make_teacher(tmp_path / "teacher")
    recipe = make_recipe(
        tmp_path,
        teacher,
        **sizes,
        teacher_layer=3,
        num_relation_heads=4,
        student_initialization=start,
    )
    assert cli.main(["plan", str(recipe), "--device", "a100"]) == 0
    out = tmp_path / "out"
    assert cli.main(["distill", str(recipe), "--output-dir", str(out)]) == 0
    heads, _ = layer_counts(km.load_backbone(out / "student"))
    expected = {"layers:1,3": (3, 2), "random": (4, 4)}
    assert heads == expected.get(start, (3, 0, 2))


# What is refused.


def bad(mask, place, value):
    mask = np.array(mask, float)
    mask[place] = value
    return mask


ONES = np.ones((4, 4))


@pytest.mark.parametrize(
    ("mask", "error", "sentence"),
    [
        (np.ones((4, 3)), ValueError, r": \(4, 4\). Received: .* of shape \(4, 3\)\."),
        (np.ones((3, 4)), ValueError, r": \(4, 4\). Received: .* of shape \(3, 4\)\."),
        (np.ones((4, 5)), ValueError, r": \(4, 4\). Received: .* of shape \(4, 5\)\."),
        (np.ones(4), ValueError, r"of shape \(4,\)\."),
        (np.ones((4, 4, 1)), ValueError, r"of shape \(4, 4, 1\)\."),
        (1, ValueError, "a row for each layer"),
        (None, ValueError, "a row for each layer"),
        ([1, 1, 1, 1], ValueError, "a row for each layer"),
        ([[1, 1], [1], [1], [1]], ValueError, r"with 4 rows of 2, 1, 1, 1\."),
        (bad(ONES, (1, 2), 2), ValueError, r"no values but 0 and 1.*2.0 in layer 2\."),
        (bad(ONES, (1, 2), -1), ValueError, "no values but 0 and 1"),
        (bad(ONES, (3, 2), 0.5), ValueError, r"Received: 0.5 in layer 4\."),
        (bad(ONES, (0, 0), np.nan), ValueError, r"Received: nan in layer 1\."),
        (bad(ONES, (0, 0), np.inf), ValueError, r"Received: inf in layer 1\."),
        (np.full((4, 4), "1"), TypeError, "numbers 0 and 1 or bool"),
        (np.full((4, 4), None), TypeError, "with values of dtype object"),
        (np.ones((4, 4), complex), TypeError, "with values of dtype complex128"),
        ([["a"] * 4] * 4, TypeError, "numbers 0 and 1 or bool"),
    ],
)
def test_a_wrong_mask_is_refused(backbone, mask, error, sentence):
    with pytest.raises(error, match=f"^`head_mask` must .*{sentence}") as found:
        km.prune_heads(backbone, mask)
    assert "\n" not in str(found.value)


def test_a_wrong_mask_of_neurons_is_refused(backbone, pruned):
    with pytest.raises(ValueError, match=r"^`neuron_mask` must .* each neuron that"):
        km.prune_heads(backbone, ONES, np.ones((4, 4)))
    with pytest.raises(ValueError, match=r": 4 rows of 0, 1, 4, 3\. Received: head_m"):
        km.prune_heads(pruned, ONES)


def test_layers_that_share_a_block_need_the_same_row():
    backbone = make_backbone("albert_groups")
    with pytest.raises(
        ValueError, match=r"^`head_mask` must be the same for layers th"
    ):
        km.prune_heads(backbone, bad(ONES, (3, 0), 0))
    mask = np.ones((4, 32))
    mask[0, 3] = 0
    with pytest.raises(ValueError, match=r"another for layer 2 than for layer 1\."):
        km.prune_heads(backbone, ONES, mask)


@pytest.mark.parametrize("wrong", [None, "bert_tiny_en_uncased", keras.Sequential()])
def test_what_is_no_backbone_is_refused(wrong):
    with pytest.raises(TypeError, match="^`backbone` must be one of BertBackbone"):
        km.prune_heads(wrong, ONES)


def test_a_gated_encoder_is_refused():
    backbone = make_backbone("bert")

    class Gated(keras.layers.MultiHeadAttention):
        pass

    attention_of(block_calls(backbone)[0][0]).__class__ = Gated
    with pytest.raises(ValueError, match="neither gated nor quantized"):
        km.prune_heads(backbone, ONES)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Layer .* does not have a:UserWarning")
def test_a_quantized_encoder_is_refused():
    backbone = make_backbone("bert")
    backbone.quantize("int8")
    with pytest.raises(ValueError, match="neither gated nor quantized"):
        km.prune_heads(backbone, ONES)


def test_a_preset_without_its_weights_is_refused(pruned, tmp_path):
    km.save_student(pruned, None, tmp_path / "preset")
    km.save_student(make_backbone("bert"), None, tmp_path / "other")
    shutil.copy(tmp_path / "other/model.weights.h5", tmp_path / "preset")
    with pytest.raises(ValueError, match="fits its config.json"):
        km.load_backbone(tmp_path / "preset")
