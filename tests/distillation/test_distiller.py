import keras
import keras_hub
import numpy as np
import pytest
import tensorflow as tf
from oracle import relation_loss

import keras_minilmv2 as km
from keras_minilmv2.distillation.losses import AttentionValueLoss, RelationLoss

VOCABULARY = 40
SIZES = {
    "vocabulary_size": VOCABULARY,
    "num_layers": 3,
    "num_heads": 4,
    "hidden_dim": 16,
    "intermediate_dim": 24,
    "max_sequence_length": 12,
}


def spread(backbone, seed=0):
    """Large weights: relations of freshly drawn ones are nearly uniform."""
    generator = np.random.default_rng(seed)
    for variable in backbone.trainable_variables:
        if len(variable.shape) > 1:
            variable.assign(generator.normal(scale=0.5, size=variable.shape))
    return backbone


@pytest.fixture
def teacher():
    return spread(keras_hub.models.BertBackbone(**SIZES))


def make_student(teacher, dropout=0.0, **kwargs):
    sizes = {"num_layers": 2, "num_heads": 2, "hidden_dim": 8, "intermediate_dim": 16}
    return spread(
        km.student_backbone(teacher, **{**sizes, **kwargs}, dropout=dropout, seed=1), 1
    )


def make_distiller(teacher, student, **kwargs):
    arguments = {"teacher_layer": 2, "num_relation_heads": 4, **kwargs}
    return km.RelationDistiller(teacher, student, **arguments)


def make_batch(size=4, length=9, seed=0):
    generator = np.random.default_rng(seed)
    lengths = generator.integers(1, length + 1, size)
    mask = np.arange(length) < lengths[:, None]
    return {
        "token_ids": (generator.integers(0, VOCABULARY, (size, length)) * mask).astype(
            "int32"
        ),
        "padding_mask": mask.astype("int32"),
    }


def dataset(batch_size=4):
    batches = [make_batch(seed=seed) for seed in range(3)]
    joined = {k: np.concatenate([b[k] for b in batches]) for k in batches[0]}
    return tf.data.Dataset.from_tensor_slices(joined).batch(batch_size)


def test_evaluate_gives_the_oracle_of_the_projections(teacher):
    student = make_student(teacher)
    distiller = make_distiller(teacher, student)
    distiller.compile(optimizer="sgd")
    batch = make_batch()
    value = distiller.evaluate(
        tf.data.Dataset.from_tensors(batch), return_dict=True, verbose=0
    )
    inputs = {**batch, "segment_ids": np.zeros_like(batch["token_ids"])}
    theirs = km.qkv_model(teacher, 2)(inputs)
    ours = km.qkv_model(student, 2)(inputs)
    for name, weights in {
        "loss": {"qq": 1.0, "kk": 1.0, "vv": 1.0},
        "qq": {"qq": 1.0},
        "kk": {"kk": 1.0},
        "vv": {"vv": 1.0},
    }.items():
        expected = relation_loss(theirs, ours, batch["padding_mask"], 4, weights)
        assert value[name] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {},
        pytest.param({"jit_compile": True}, marks=pytest.mark.slow),
        pytest.param({"run_eagerly": True}, marks=pytest.mark.slow),
    ],
)
def test_fit_lowers_the_loss(teacher, options):
    distiller = make_distiller(teacher, make_student(teacher, dropout=0.1))
    distiller.compile(optimizer=keras.optimizers.Adam(0.01), **options)
    before = distiller.evaluate(dataset(), return_dict=True, verbose=0)["loss"]
    distiller.fit(dataset().repeat(10), verbose=0, shuffle=False)
    after = distiller.evaluate(dataset(), return_dict=True, verbose=0)["loss"]
    assert after < 0.8 * before


def weights_after(teacher, **options):
    student = make_student(teacher)
    distiller = make_distiller(teacher, student)
    # A large epsilon: Adam makes a step of rounding where a gradient is 0, as that of
    # the key biases below the last layer is.
    distiller.compile(optimizer=km.adamw(0.01, 2, 20, epsilon=1e-3), **options)
    distiller.fit(dataset().repeat(4), verbose=0, shuffle=False)
    return [np.asarray(weight) for weight in student.weights]


@pytest.mark.slow
def test_graph_eager_and_xla_train_the_same_weights(teacher):
    graph = weights_after(teacher, jit_compile=False)
    for options in ({"jit_compile": True}, {"run_eagerly": True}):
        other = weights_after(teacher, **options)
        for a, b in zip(graph, other, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.slow
def test_embedding_rows_that_no_token_touched_move_too(teacher):
    """Adam's moments are dense in the papers; only the first update is sparse."""
    student = make_student(teacher)
    before = np.asarray(student.token_embedding.embeddings)
    distiller = make_distiller(teacher, student)
    distiller.compile(optimizer=keras.optimizers.Adam(0.01))
    first, second = make_batch(seed=1), make_batch(seed=2)
    only_first = np.setdiff1d(first["token_ids"], second["token_ids"])
    assert len(only_first)
    distiller.train_on_batch(first)
    middle = np.asarray(student.token_embedding.embeddings)
    distiller.train_on_batch(second)
    after = np.asarray(student.token_embedding.embeddings)
    assert (np.abs(after - middle)[only_first] > 1e-4).all()
    assert not np.array_equal(before, middle)


def test_evaluate_is_deterministic_with_dropout(teacher):
    distiller = make_distiller(teacher, make_student(teacher, dropout=0.5))
    distiller.compile(optimizer="sgd")
    first = distiller.evaluate(dataset(), return_dict=True, verbose=0)
    assert first == distiller.evaluate(dataset(), return_dict=True, verbose=0)


def test_dropout_acts_in_training(teacher):
    distiller = make_distiller(teacher, make_student(teacher, dropout=0.5))
    distiller.compile(optimizer=keras.optimizers.SGD(0.0), run_eagerly=True)
    held_out = distiller.evaluate(dataset(), return_dict=True, verbose=0)["loss"]
    history = distiller.fit(dataset(), verbose=0, shuffle=False).history
    assert history["loss"][0] != pytest.approx(held_out, rel=1e-3)


def test_teacher_is_not_trained_and_not_held(teacher):
    before = [np.asarray(weight) for weight in teacher.weights]
    student = make_student(teacher)
    distiller = make_distiller(teacher, student)
    distiller.compile(optimizer=keras.optimizers.Adam(0.1), run_eagerly=True)
    distiller.fit(dataset(), verbose=0, shuffle=False)
    for old, new in zip(before, teacher.weights, strict=True):
        np.testing.assert_array_equal(old, np.asarray(new))
    ours = {id(weight) for weight in student.weights}
    assert {id(weight) for weight in distiller.weights} == ours
    assert {id(w) for w in distiller.trainable_weights} <= ours


def test_what_the_loss_does_not_reach_stays_as_initialized(teacher):
    student = make_student(teacher)
    distiller = make_distiller(teacher, student)
    reached = {id(variable) for variable in distiller.distilled_variables}
    rest = [w for w in student.trainable_weights if id(w) not in reached]
    paths = [weight.path for weight in rest]
    assert sum("pooled_dense" in path for path in paths) == 2
    # Attention output, two norms and feed-forward of the second layer.
    assert sum("transformer_layer_1" in path for path in paths) == 10
    assert len(paths) == 12
    assert not any(f"/{name}/" in path for path in paths for name in ("query", "key"))
    before = [np.asarray(weight) for weight in rest]
    # Weight decay would move them even without a gradient.
    optimizer = km.adamw(0.1, 0, 10, weight_decay=0.5)
    distiller.compile(optimizer, run_eagerly=True)
    distiller.fit(dataset(), verbose=0, shuffle=False)
    for old, new in zip(before, rest, strict=True):
        np.testing.assert_array_equal(old, np.asarray(new))


def test_projections_that_no_pair_names_are_not_trained(teacher):
    student = make_student(teacher)
    value = km.qkv_model(student, 2, ["value"]).trainable_variables[-2:]
    before = [np.asarray(v) for v in value]
    distiller = make_distiller(teacher, student, relation_weights={"qk": 1.0})
    optimizer = km.adamw(0.1, 0, 10, weight_decay=0.5)
    distiller.compile(optimizer, run_eagerly=True)
    distiller.fit(dataset(), verbose=0, shuffle=False)
    for variable, start in zip(value, before, strict=True):
        np.testing.assert_array_equal(np.asarray(variable), start)


def test_optimizer_is_built_before_the_first_step(teacher):
    distiller = make_distiller(teacher, make_student(teacher))
    distiller.compile(optimizer="adam")
    num_slots = 2 * len(distiller.distilled_variables)
    assert len(distiller.optimizer.variables) == num_slots + 2


@pytest.mark.parametrize(
    "run_eagerly", [True, pytest.param(False, marks=pytest.mark.slow)]
)
def test_optimizer_may_average_the_weights_that_it_trains(teacher, run_eagerly):
    distiller = make_distiller(teacher, make_student(teacher))
    optimizer = keras.optimizers.Adam(use_ema=True)
    distiller.compile(optimizer, run_eagerly=run_eagerly)
    distiller.fit(dataset(), verbose=0, shuffle=False)
    reached = [id(variable) for variable in distiller.distilled_variables]
    assert [id(variable) for variable in distiller.trainable_variables] == reached


def test_metrics_are_the_total_and_one_for_each_relation(teacher):
    distiller = make_distiller(
        teacher, make_student(teacher), relation_weights={"qk": 0.5, "vv": 2.0}
    )
    distiller.compile(optimizer="sgd", run_eagerly=True)
    value = distiller.evaluate(dataset(), return_dict=True, verbose=0)
    assert set(value) == {"loss", "qk", "vv"}
    total = 0.5 * value["qk"] + 2.0 * value["vv"]
    assert value["loss"] == pytest.approx(total, rel=1e-5)
    history = distiller.fit(dataset(), verbose=0, shuffle=False).history
    assert set(history) == {"loss", "qk", "vv"}


def test_mean_of_evaluate_is_over_sequences_also_with_a_short_last_batch(teacher):
    distiller = make_distiller(teacher, make_student(teacher))
    distiller.compile(optimizer="sgd")
    values = [
        distiller.evaluate(dataset(size), return_dict=True, verbose=0)["loss"]
        for size in (1, 5, 12)
    ]
    assert values[0] == pytest.approx(values[1], rel=1e-5)
    assert values[0] == pytest.approx(values[2], rel=1e-5)


@pytest.mark.slow
def test_mixed_bfloat16_trains_float32_weights():
    teacher = spread(keras_hub.models.BertBackbone(**SIZES, dtype="mixed_bfloat16"))
    student = make_student(teacher, dtype="mixed_bfloat16")
    distiller = make_distiller(teacher, student)
    distiller.compile(optimizer=keras.optimizers.Adam(0.01))
    before = distiller.evaluate(dataset(), return_dict=True, verbose=0)["loss"]
    distiller.fit(dataset().repeat(10), verbose=0, shuffle=False)
    after = distiller.evaluate(dataset(), return_dict=True, verbose=0)["loss"]
    assert after < before
    assert {weight.dtype for weight in student.trainable_weights} == {"float32"}


@pytest.mark.slow
def test_mixed_float16_scales_the_loss(teacher):
    student = make_student(teacher, dtype="mixed_float16")
    distiller = make_distiller(teacher, student)
    distiller.compile(optimizer=keras.optimizers.Adam(0.001))
    assert isinstance(distiller.optimizer, keras.optimizers.LossScaleOptimizer)
    distiller.fit(dataset().repeat(3), verbose=0, shuffle=False)
    assert all(np.isfinite(np.asarray(w)).all() for w in student.weights)


def test_gradient_norm_is_that_of_the_gradients_before_clipping(teacher):
    rate = 0.5
    norms = []
    for clip in (None, 1e-3):
        student = make_student(teacher)
        distiller = make_distiller(teacher, student)
        before = [np.asarray(v) for v in distiller.distilled_variables]
        sgd = keras.optimizers.SGD(rate, global_clipnorm=clip)
        distiller.compile(optimizer=sgd, run_eagerly=True)
        distiller.train_on_batch(make_batch())
        after = [np.asarray(v) for v in distiller.distilled_variables]
        moved = sum(((a - b) ** 2).sum() for a, b in zip(after, before, strict=True))
        norms.append((distiller.gradient_norm, moved**0.5 / rate))
    (plain, step), (clipped, clipped_step) = norms
    assert plain == pytest.approx(step, rel=1e-3)
    assert clipped == pytest.approx(plain, rel=1e-6)
    assert clipped_step == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.slow
def test_float16_updates_that_overflow_are_skipped_and_counted(teacher):
    student = make_student(teacher)
    distiller = make_distiller(teacher, student, relation_weights={"qq": 1_000.0})
    sgd = keras.optimizers.SGD(1e-4)
    # Gradients of float32 overflow as well at this scale.
    scaled = keras.optimizers.LossScaleOptimizer(sgd, initial_scale=1e38)
    distiller.compile(optimizer=scaled)
    before = [np.asarray(v) for v in distiller.distilled_variables]
    norms = []
    while distiller.skipped_steps == len(norms) and len(norms) < 50:
        logs = distiller.train_on_batch(make_batch(), return_dict=True)
        norms.append(distiller.gradient_norm)
        assert np.isfinite(logs["loss"])
        if distiller.skipped_steps == len(norms):
            after = [np.asarray(v) for v in distiller.distilled_variables]
            assert all(map(np.array_equal, before, after))
    assert 1 <= distiller.skipped_steps == len(norms) - 1
    assert norms[0] == 0.0
    assert 0.0 < norms[-1] < 1e5
    distiller.reset_metrics()
    assert distiller.skipped_steps == len(norms) - 1


def test_compiled_step_has_static_shapes_and_nothing_of_the_host(teacher):
    distiller = make_distiller(teacher, make_student(teacher, dropout=0.1))
    distiller.compile(optimizer="sgd", jit_compile=True, accumulation_steps=2)
    batch = {name: tf.constant(value) for name, value in make_batch().items()}
    batch["segment_ids"] = tf.zeros_like(batch["token_ids"])
    step = tf.function(distiller._gradients, jit_compile=True)
    program = step.experimental_get_compiler_ir(batch)(stage="hlo")
    assert "f32[2,9,16]" in program  # a micro-batch in the teacher
    for host in ("infeed", "outfeed", "callback", "send(", "recv(", "<="):
        assert host not in program


@pytest.mark.slow
def test_callbacks_and_validation_data_work(teacher, tmp_path):
    distiller = make_distiller(teacher, make_student(teacher))
    distiller.compile(optimizer="adam")
    history = distiller.fit(
        dataset(),
        validation_data=dataset(),
        epochs=2,
        verbose=0,
        shuffle=False,
        callbacks=[
            keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}.keras"),
            keras.callbacks.EarlyStopping(patience=3),
        ],
    ).history
    assert len(history["val_loss"]) == 2
    saved = keras_hub.models.Backbone.from_preset(str(tmp_path / "2.keras"))
    for a, b in zip(saved.weights, distiller.student.weights, strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_saved_student_is_a_preset_with_equal_outputs(teacher, tmp_path):
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "##b"]
    tokenizer = keras_hub.models.BertTokenizer(vocabulary)
    student = make_student(teacher)
    km.save_student(student, tokenizer, tmp_path / "student")
    loaded = keras_hub.models.Backbone.from_preset(str(tmp_path / "student"))
    batch = make_batch()
    inputs = {**batch, "segment_ids": np.zeros_like(batch["token_ids"])}
    np.testing.assert_array_equal(
        loaded(inputs)["sequence_output"], student(inputs)["sequence_output"]
    )
    again = keras_hub.models.BertTokenizer.from_preset(str(tmp_path / "student"))
    assert again.get_vocabulary() == vocabulary
    size = sum(f.stat().st_size for f in tmp_path.rglob("*.h5"))
    # HDF5 has a header for each variable; nothing of the teacher is in it.
    assert size < 4 * student.count_params() + 3_000 * len(student.weights)


def test_student_stays_a_plain_backbone_for_keras_nlp_tasks(teacher):
    student = make_student(teacher)
    distiller = make_distiller(teacher, student)
    distiller.compile(optimizer="adam", run_eagerly=True)
    distiller.fit(dataset(), verbose=0, shuffle=False)
    assert type(student) is keras_hub.models.BertBackbone
    classifier = keras_hub.models.BertTextClassifier(student, num_classes=3)
    batch = make_batch()
    inputs = {**batch, "segment_ids": np.zeros_like(batch["token_ids"])}
    assert classifier.predict(inputs, verbose=0).shape == (4, 3)


def test_minilm_v1_is_a_relation_loss_of_the_distiller(teacher):
    student = make_student(teacher, num_heads=4)
    distiller = km.RelationDistiller(
        teacher, student, teacher_layer=3, relation_loss=AttentionValueLoss()
    )
    distiller.compile(optimizer="sgd", run_eagerly=True)
    value = distiller.evaluate(dataset(), return_dict=True, verbose=0)
    assert set(value) == {"loss", "qk", "vv"}


def test_roberta_needs_no_segment_ids():
    teacher = spread(keras_hub.models.RobertaBackbone(**SIZES))
    distiller = make_distiller(teacher, make_student(teacher))
    distiller.compile(optimizer="sgd")
    assert distiller.evaluate(dataset(), return_dict=True, verbose=0)["loss"] > 0


@pytest.mark.parametrize("layer", [0, 4, -1])
def test_teacher_layers_that_are_not_there_are_refused(teacher, layer):
    with pytest.raises(
        ValueError,
        match=rf"`teacher_layer` must be between 1 and .* teacher_layer={layer}, "
        r"num_layers=3",
    ):
        make_distiller(teacher, make_student(teacher), teacher_layer=layer)


def test_relation_heads_must_divide_both_widths(teacher):
    with pytest.raises(ValueError, match="num_relation_heads=16, student hidden_dim=8"):
        make_distiller(teacher, make_student(teacher), num_relation_heads=16)
    with pytest.raises(
        ValueError, match=r"num_relation_heads=3, teacher hidden_dim=16"
    ):
        make_distiller(teacher, make_student(teacher), num_relation_heads=3)


def test_minilm_v1_demands_equal_heads(teacher):
    with pytest.raises(ValueError, match="`num_heads` of teacher and student"):
        km.RelationDistiller(
            teacher,
            make_student(teacher),
            teacher_layer=3,
            relation_loss=AttentionValueLoss(),
        )


def test_other_families_and_vocabularies_are_refused(teacher):
    roberta = keras_hub.models.RobertaBackbone(**SIZES)
    with pytest.raises(
        ValueError, match="teacher of family BERT, student of family RoBERTa"
    ):
        make_distiller(teacher, roberta)
    other = keras_hub.models.BertBackbone(**{**SIZES, "vocabulary_size": 41})
    with pytest.raises(ValueError, match="teacher with 40 token ids, student with 41"):
        make_distiller(teacher, other)


def test_other_models_are_refused(teacher):
    with pytest.raises(TypeError, match="`backbone` must be one of BertBackbone"):
        make_distiller(keras.Sequential(), teacher)


def test_relation_loss_excludes_its_arguments(teacher):
    student = make_student(teacher)
    with pytest.raises(ValueError, match="`relation_loss` must not be combined"):
        make_distiller(teacher, student, relation_loss=RelationLoss(4))
    with pytest.raises(ValueError, match="relation_head_weights=.1.0, 1.0."):
        make_distiller(
            teacher,
            student,
            num_relation_heads=None,
            relation_loss=RelationLoss(2),
            relation_head_weights=[1.0, 1.0],
        )
    with pytest.raises(ValueError, match="`num_relation_heads` must be given"):
        make_distiller(teacher, student, num_relation_heads=None)


def test_compile_refuses_a_loss(teacher):
    distiller = make_distiller(teacher, make_student(teacher))
    with pytest.raises(ValueError, match="`loss` must not be passed"):
        distiller.compile(optimizer="sgd", loss="mse")


def test_wrong_batches_are_refused(teacher):
    distiller = make_distiller(teacher, make_student(teacher))
    distiller.compile(optimizer="sgd", run_eagerly=True)
    batch = make_batch()
    with pytest.raises(ValueError, match="Received: a batch without padding_mask"):
        distiller.test_step({"token_ids": batch["token_ids"]})
    with pytest.raises(ValueError, match="Received: a batch without token_ids"):
        distiller.test_step({"padding_mask": batch["padding_mask"]})
    with pytest.raises(TypeError, match="`dataset` must yield dicts"):
        distiller.test_step(batch["token_ids"])
    with pytest.raises(ValueError, match=r"sequence_length=13, max_sequence_length=12"):
        distiller.test_step(make_batch(length=13))


@pytest.mark.slow
def test_blocked_and_plain_loss_train_the_same_weights(teacher):
    batches = [make_batch(size=8, seed=seed) for seed in range(50)]
    joined = {k: np.concatenate([b[k] for b in batches]) for k in batches[0]}
    examples = tf.data.Dataset.from_tensor_slices(joined).batch(8)
    students, losses = [], []
    for blocked in (True, False):
        student = make_student(teacher)
        relation_loss = RelationLoss(4, blocked=blocked)
        distiller = km.RelationDistiller(teacher, student, 2, None, None, relation_loss)
        distiller.compile(km.adamw(5e-3, warmup_steps=5, total_steps=50))
        history = distiller.fit(examples, verbose=0, shuffle=False).history
        assert distiller.optimizer.iterations == 50
        losses.append(history["loss"][0])
        students.append(student)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    moved = max(
        np.abs(ours - start).max()
        for ours, start in zip(
            students[0].get_weights(), make_student(teacher).get_weights(), strict=True
        )
    )
    assert moved > 0.05
    for ours, theirs in zip(
        students[0].get_weights(), students[1].get_weights(), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)
