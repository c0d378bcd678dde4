"""What holds on JAX where TensorFlow is not installed.

Run by test_jax in a process of its own: `KERAS_BACKEND=jax pytest facts_on_jax.py`.
"""

import importlib
import itertools
import sys
from pathlib import Path
from types import SimpleNamespace

import tensorflow_hidden  # noqa: F401  # isort: skip

import jax
import keras
import keras_hub
import numpy as np
import pytest
from oracle import relation_loss

import keras_minilmv2 as km
from keras_minilmv2.distillation.masked_tokens import MaskedTokenTrainer
from keras_minilmv2.distillation.objectives import OBJECTIVES

REFERENCE = Path(__file__).parents[1] / "reference"
VOCABULARY = 40
SIZES = {
    "vocabulary_size": VOCABULARY,
    "num_layers": 3,
    "num_heads": 4,
    "hidden_dim": 16,
    "intermediate_dim": 24,
    "max_sequence_length": 12,
}


def spread(backbone, seed):
    """Large weights: relations of freshly drawn ones are nearly uniform."""
    generator = np.random.default_rng(seed)
    for variable in backbone.trainable_variables:
        if len(variable.shape) > 1:
            variable.assign(generator.normal(scale=0.5, size=variable.shape))
    return backbone


def make_distiller(
    optimizer="sgd", dropout=0.0, dtype=None, head_weights=None, **options
):
    teacher = spread(keras_hub.models.BertBackbone(**SIZES, dtype=dtype), 0)
    sizes = {"num_layers": 2, "num_heads": 2, "hidden_dim": 8, "intermediate_dim": 16}
    student = km.student_backbone(
        teacher, **sizes, dropout=dropout, dtype=dtype, seed=1
    )
    distiller = km.RelationDistiller(
        teacher,
        spread(student, 1),
        teacher_layer=2,
        num_relation_heads=4,
        relation_head_weights=head_weights,
    )
    distiller.compile(optimizer=optimizer, **options)
    return teacher, distiller


def make_batch(seed=0, size=4, length=9):
    generator = np.random.default_rng(seed)
    mask = np.arange(length) < generator.integers(1, length + 1, size)[:, None]
    ids = generator.integers(0, VOCABULARY, (size, length)) * mask
    return {"token_ids": ids.astype("int32"), "padding_mask": mask.astype("int32")}


BATCHES = [make_batch(seed) for seed in range(3)]


def held_out(distiller):
    return distiller.evaluate(BATCHES, return_dict=True, verbose=0)


def values(variables):
    return [np.array(keras.ops.convert_to_numpy(v)) for v in variables]


def trained(data, optimizer=None, fit=None, **options):
    """Weights of the student after two epochs."""
    optimizer = optimizer or km.adamw(0.01, 2, 20, epsilon=1e-3)
    _, distiller = make_distiller(optimizer, **options)
    distiller.fit(data, epochs=2, verbose=0, **(fit or {}))
    return values(distiller.student.weights)


@pytest.fixture(scope="module")
def weights():
    return trained(BATCHES)


def assert_close(weights, others, atol=1e-6):
    for a, b in zip(weights, others, strict=True):
        np.testing.assert_allclose(a, b, atol=atol)


def test_tensorflow_is_not_there():
    with pytest.raises(ModuleNotFoundError, match="No module named 'tensorflow'"):
        importlib.import_module("tensorflow")
    assert not {"tensorflow", "tensorflow_text"} & set(sys.modules)


def test_what_needs_tensorflow_is_refused_in_one_sentence():
    for name in ("packed_examples", "batches"):
        with pytest.raises(ImportError) as error:
            getattr(km, name)
        assert str(error.value) == (
            f"`{name}` needs TensorFlow and tensorflow-text. Install tensorflow-text, "
            "which brings both, or prepare the corpus where they are."
        )


@pytest.mark.parametrize("head_weights", [None, [0.0, 1.0, 3.0, 2.0]])
def test_evaluate_gives_the_oracle_of_the_projections(head_weights):
    teacher, distiller = make_distiller(head_weights=head_weights)
    value = distiller.evaluate([BATCHES[0]], return_dict=True, verbose=0)
    inputs = {**BATCHES[0], "segment_ids": np.zeros_like(BATCHES[0]["token_ids"])}
    theirs = jax.jit(km.qkv_model(teacher, 2))(inputs)
    ours = jax.jit(km.qkv_model(distiller.student, 2))(inputs)
    mask = BATCHES[0]["padding_mask"]
    assert list(value) == ["kk", "loss", "qq", "vv"]
    for pair in ("qq", "kk", "vv"):
        expected = relation_loss(theirs, ours, mask, 4, {pair: 1.0}, head_weights)
        assert value[pair] == pytest.approx(expected, rel=1e-4)
    total = value["qq"] + value["kk"] + value["vv"]
    assert value["loss"] == pytest.approx(total, rel=1e-5)


def test_fit_on_an_endless_generator_lowers_the_loss():
    _, distiller = make_distiller(keras.optimizers.Adam(0.01), dropout=0.1)
    before = held_out(distiller)["loss"]
    endless = itertools.cycle(BATCHES)
    history = distiller.fit(endless, steps_per_epoch=30, verbose=0).history
    assert set(history) == {"loss", "qq", "kk", "vv"}
    assert held_out(distiller)["loss"] < 0.8 * before


class Dataset(keras.utils.PyDataset):
    def __len__(self):
        return len(BATCHES)

    def __getitem__(self, index):
        return BATCHES[index]


def test_every_form_of_data_gives_the_same_weights(weights):
    one_epoch = {"steps_per_epoch": 3}
    joined = {k: np.concatenate([b[k] for b in BATCHES]) for k in BATCHES[0]}
    assert_close(weights, trained((b for b in BATCHES * 2), fit=one_epoch))
    assert_close(weights, trained(Dataset(), fit={"shuffle": False}))
    assert_close(weights, trained(joined, fit={"batch_size": 4, "shuffle": False}))


@pytest.mark.parametrize(
    "options",
    [{"run_eagerly": True}, {"steps_per_execution": 2}, {"accumulation_steps": 2}],
    ids=str,
)
def test_every_way_to_run_the_step_gives_the_same_weights(weights, options):
    assert_close(weights, trained(BATCHES, **options))


def test_a_loss_scale_changes_nothing(weights):
    optimizer = keras.optimizers.LossScaleOptimizer(km.adamw(0.01, 2, 20, epsilon=1e-3))
    assert_close(weights, trained(BATCHES, optimizer), atol=1e-5)


def test_what_the_loss_does_not_reach_stays_as_initialized():
    teacher, distiller = make_distiller(km.adamw(0.1, 0, 10, weight_decay=0.5))
    student = distiller.student
    reached = {id(variable) for variable in distiller.distilled_variables}
    rest = [w for w in student.weights if id(w) not in reached]
    # Attention output, two norms and feed-forward of the second layer; the pooler.
    assert len(rest) == 12
    before, moved = values(rest), values(distiller.distilled_variables)
    teachers = values(teacher.weights)
    distiller.fit(BATCHES, verbose=0)
    for old, new in zip(before, values(rest), strict=True):
        np.testing.assert_array_equal(old, new)
    for old, new in zip(moved, values(distiller.distilled_variables), strict=True):
        assert not np.array_equal(old, new)
    for old, new in zip(teachers, values(teacher.weights), strict=True):
        np.testing.assert_array_equal(old, new)
    assert {id(w) for w in distiller.weights} == {id(w) for w in student.weights}


def test_the_teacher_is_an_argument_of_the_compiled_step():
    teacher, distiller = make_distiller("adam")
    state = distiller._get_jax_state(True, True, True, True)
    theirs = [variable.value for variable in km.qkv_model(teacher, 2).variables]
    program = jax.make_jaxpr(distiller.train_step)(state, (theirs, BATCHES[0]))
    assert max((np.size(constant) for constant in program.consts), default=0) < 64


def test_dropout_is_drawn_anew_in_every_step_and_not_in_evaluate():
    _, distiller = make_distiller(keras.optimizers.SGD(0.0), dropout=0.5)
    one = BATCHES[:1]
    history = distiller.fit(one, epochs=3, verbose=0).history
    assert len(set(history["loss"])) == 3
    assert held_out(distiller) == held_out(distiller)


def test_equal_seeds_give_equal_weights():
    first, second = (trained(BATCHES, dropout=0.3) for _ in range(2))
    assert_close(first, second, atol=0)


def test_validation_sees_the_same_batches_in_every_epoch():
    _, distiller = make_distiller(keras.optimizers.SGD(0.0))
    history = distiller.fit(
        BATCHES,
        epochs=2,
        verbose=0,
        validation_data=itertools.cycle(BATCHES),
        validation_steps=3,
    ).history
    expected = held_out(distiller)["loss"]
    assert history["val_loss"] == pytest.approx([expected] * 2, rel=1e-6)


def test_a_wrong_batch_is_refused_and_leaves_the_student_as_it_was():
    _, distiller = make_distiller("adam")
    before = values(distiller.student.weights)
    mask = BATCHES[0]["padding_mask"]
    for batch, message in (
        ({"padding_mask": mask}, "Received: a batch without token_ids"),
        (make_batch(length=13), "sequence_length=13, max_sequence_length=12"),
    ):
        for function in (distiller.fit, distiller.evaluate):
            with pytest.raises(ValueError, match=message):
                function([batch], verbose=0)
    with pytest.raises(TypeError, match="`dataset` must yield dicts"):
        distiller.fit([mask], verbose=0)
    assert_close(before, values(distiller.student.weights), atol=0)


def test_an_error_of_the_data_leaves_what_was_trained():
    _, distiller = make_distiller("adam", steps_per_execution=2)
    start = values(distiller.distilled_variables)

    def broken():
        yield from BATCHES
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        distiller.fit(broken(), steps_per_epoch=4, verbose=0)
    assert int(distiller.optimizer.iterations) == 2
    for old, new in zip(start, values(distiller.distilled_variables), strict=True):
        assert not np.array_equal(old, new)


PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PIECES += [f"w{i}" for i in range(VOCABULARY - len(PIECES))]


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=lambda each: each.name)
@pytest.mark.parametrize("options", [{}, {"accumulation_steps": 2}], ids=str)
def test_every_objective_trains(objective, options):
    teacher = spread(keras_hub.models.BertBackbone(**SIZES), 0)
    sizes = {"num_layers": 2, "num_heads": 4, "hidden_dim": 8, "intermediate_dim": 16}
    student = spread(km.student_backbone(teacher, **sizes, dropout=0.1, seed=1), 1)
    settings = SimpleNamespace(
        teacher_layer=2,
        num_relation_heads=4,
        relation_weights={"qq": 1.0},
        relation_head_weights=None,
        whole_words=False,
        seed=0,
    )
    trainer = objective.make_trainer(
        teacher, student, keras_hub.models.BertTokenizer(PIECES), settings
    )
    trainer.compile(keras.optimizers.Adam(0.01), **options)
    teachers = values(teacher.weights)
    before = held_out(trainer)["loss"]
    trainer.fit(BATCHES, epochs=10, verbose=0)
    assert held_out(trainer)["loss"] < before
    assert held_out(trainer) == held_out(trainer)
    assert_close(teachers, values(teacher.weights), atol=0)


def test_masked_tokens_are_drawn_anew_in_every_step():
    student = spread(keras_hub.models.BertBackbone(**SIZES, dropout=0.0), 0)
    trainer = MaskedTokenTrainer(student, keras_hub.models.BertTokenizer(PIECES))
    trainer.compile(keras.optimizers.SGD(0.0))
    seed = int(keras.ops.convert_to_numpy(trainer.seed_generator.state)[1])
    history = trainer.fit(BATCHES[:1], epochs=3, verbose=0).history
    assert len(set(history["loss"])) == 3
    # Three draws a step: which, what, and by which token.
    state = keras.ops.convert_to_numpy(trainer.seed_generator.state)
    assert int(state[1]) == seed + 9


def test_accumulation_steps_must_divide_the_batch():
    _, distiller = make_distiller(accumulation_steps=3)
    with pytest.raises(ValueError, match="accumulation_steps=3, batch=4"):
        distiller.fit(BATCHES, verbose=0)


def test_mixed_bfloat16_trains_float32_weights():
    optimizer = keras.optimizers.Adam(0.01)
    _, distiller = make_distiller(optimizer, dtype="mixed_bfloat16")
    before = held_out(distiller)["loss"]
    distiller.fit(BATCHES, epochs=10, verbose=0)
    assert held_out(distiller)["loss"] < before
    assert {w.dtype for w in distiller.student.trainable_weights} == {"float32"}


def test_callbacks_save_a_student_that_loads(tmp_path):
    _, distiller = make_distiller("adam")
    distiller.fit(
        BATCHES,
        epochs=2,
        verbose=0,
        callbacks=[keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}.keras")],
    )
    loaded = km.load_backbone(tmp_path / "2.keras")
    assert_close(values(loaded.weights), values(distiller.student.weights), atol=0)


def test_a_preset_with_its_tokenizer_is_written_and_read(tmp_path):
    teacher = km.load_backbone(REFERENCE / "bert_teacher")
    tokenizer = km.load_tokenizer(REFERENCE / "bert_teacher")
    km.save_student(teacher, tokenizer, tmp_path / "student")
    loaded = km.load_backbone(tmp_path / "student")
    assert_close(values(teacher.weights), values(loaded.weights), atol=0)
    again = km.load_tokenizer(tmp_path / "student")
    assert again.get_vocabulary() == tokenizer.get_vocabulary()


@pytest.mark.parametrize(
    ("how", "largest"),
    [
        ({"initialization": "layers"}, 1e-6),
        ({"initialization": "projection", "examples": make_batch(size=8)}, 1e-2),
    ],
)
def test_a_student_as_large_as_its_teacher_starts_as_its_copy(how, largest):
    teacher = spread(keras_hub.models.RobertaBackbone(**SIZES), 0)
    names = ("num_layers", "num_heads", "hidden_dim", "intermediate_dim")
    sizes = {name: SIZES[name] for name in names}
    student = km.student_backbone(teacher, **sizes, **how)
    distiller = km.RelationDistiller(
        teacher, student, teacher_layer=3, relation_loss=km.AttentionValueLoss()
    )
    distiller.compile("sgd")
    assert (
        distiller.evaluate(BATCHES[:1], verbose=0, return_dict=True)["loss"] < largest
    )
