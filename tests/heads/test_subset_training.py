"""Training of gates: against formulas of one step, and killed and resumed."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from families import make_backbone, make_inputs

from keras_minilmv2.distillation.distiller import RelationDistiller
from keras_minilmv2.downstream.registry import TASKS
from keras_minilmv2.heads.gates import gated_model, ones_gates
from keras_minilmv2.heads.l0_gates import L0Gates
from keras_minilmv2.heads.pruning import prune_heads
from keras_minilmv2.heads.subset import HeadSubset, TemperatureSchedule
from keras_minilmv2.heads.subset_training import SubsetTraining
from keras_minilmv2.runs.supervised import with_backbone
from keras_minilmv2.training.checkpoints import Checkpoints
from keras_minilmv2.training.schedule import adamw

TASK = TASKS["sst2"]


def make_model(family="bert", dropout=0.0, seed=0):
    model = TASK.model(make_backbone(family, dropout=dropout), seed=seed)
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.Dropout):
            # Keras' classifiers have their own.
            layer.rate = dropout
    return model


def batch_for(model, seed=0, number=8):
    inputs = make_inputs(model.backbone, number, seed=seed)
    labels = np.random.default_rng(seed).integers(0, 2, number).astype("int32")
    return inputs, labels


def make_training(model, gates, optimizer=None, rate=0.1, schedule=lambda step: 1.0):
    return SubsetTraining(
        TASK.training_model(model),
        gates,
        TASK.loss,
        optimizer,
        keras.optimizers.SGD(rate),
        lambda step: tf.convert_to_tensor(schedule(step), "float32"),
    )


@pytest.mark.parametrize("variant", ["gumbel", "straight_through", "bounded"])
def test_a_step_moves_logits_by_the_gradient_of_the_gated_loss(variant):
    model = make_model()
    gates = HeadSubset(4, 4, 6, variant=variant, seed=1)
    inputs, labels = batch_for(model)
    before = gates.logits.numpy()
    gated = gated_model(TASK.training_model(model))
    with tf.GradientTape() as tape:
        drawn = gates(training=True, temperature=tf.constant(1.0))
        given = {**ones_gates(gated), "head_gate": drawn[None]}
        given = {n: tf.convert_to_tensor(x) for n, x in {**inputs, **given}.items()}
        wanted_loss = TASK.loss(labels, gated(given, training=True))
    gradient = tape.gradient(wanted_loss, gates.logits.value).numpy()
    weights = [weight.numpy() for weight in model.weights]
    training = make_training(model, gates)
    loss = training.step(inputs, labels)
    assert loss == pytest.approx(float(wanted_loss), rel=1e-5)
    np.testing.assert_allclose(
        gates.logits.numpy(), before - 0.1 * gradient, rtol=1e-4, atol=1e-7
    )
    # The encoder is frozen.
    for ours, theirs in zip(model.weights, weights, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    (facts,) = training.facts
    assert facts["temperature"] == 1.0
    assert facts["zero_gradients"] == pytest.approx(np.mean(gradient == 0))


def test_encoder_and_gates_clip_apart():
    model = make_model()
    gates = HeadSubset(4, 4, 6, variant="bounded", seed=1)
    inputs, labels = batch_for(model)
    plain = make_model()
    plain.set_weights(model.get_weights())

    def training_of(model, gates, clip):
        return SubsetTraining(
            TASK.training_model(model),
            gates,
            TASK.loss,
            keras.optimizers.SGD(0.1, global_clipnorm=0.01),
            keras.optimizers.SGD(1.0, global_clipnorm=clip),
            lambda step: tf.constant(1.0),
        )

    training_of(model, gates, 1e-3).step(inputs, labels)
    other = HeadSubset(4, 4, 6, variant="bounded", seed=1)
    training_of(plain, other, None).step(inputs, labels)
    # What the logits' clipping is does not change the encoder's update.
    moved = 0.0
    for ours, theirs in zip(model.weights, plain.weights, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    start = HeadSubset(4, 4, 6, variant="bounded", seed=1).logits.numpy()
    moved = np.linalg.norm(gates.logits.numpy() - start)
    assert moved == pytest.approx(1e-3, rel=1e-3)
    assert np.linalg.norm(other.logits.numpy() - start) > 2e-3


def test_temperature_and_noise_follow_the_step():
    model = make_model()
    gates = HeadSubset(4, 4, 6, seed=1)
    schedule = TemperatureSchedule(10.0, 0.1, 2)
    training = make_training(model, gates, schedule=schedule, rate=0.0001)
    for seed in range(4):
        training.step(*batch_for(model, seed))
    temperatures = [facts["temperature"] for facts in training.facts]
    np.testing.assert_allclose(temperatures, [10.0, 1.0, 0.1, 0.1], rtol=1e-5)
    assert int(gates.step) == 3


@pytest.mark.parametrize("joint", [pytest.param(True, marks=pytest.mark.slow), False])
def test_a_killed_training_goes_on_to_the_bit(tmp_path, joint):
    def make():
        model = make_model(dropout=0.3, seed=2)
        gates = HeadSubset(4, 4, 6, seed=3)
        optimizer = adamw(1e-3, 0, 6) if joint else None
        training = SubsetTraining(
            TASK.training_model(model),
            gates,
            TASK.loss,
            optimizer,
            adamw(0.5, 0, 6, weight_decay=0.0),
            TemperatureSchedule(10.0, 0.01, 4, 6),
        )
        return model, gates, training

    def state(model, gates):
        return [np.array(x) for x in (*model.weights, *gates.weights)]

    model, gates, training = make()
    checkpoints = Checkpoints(tmp_path)
    losses = []
    for step in range(6):
        if step == 3:
            checkpoints.save(3, training, {})
        losses.append(training.step(*batch_for(model, step)))
    wanted = state(model, gates)
    model, gates, training = make()
    # What a process draws before it resumes does not matter.
    training.step(*batch_for(model, 9))
    arrays, unusable = checkpoints.latest(training)
    assert unusable == []
    checkpoints.restore(arrays, training)
    again = [training.step(*batch_for(model, step)) for step in range(3, 6)]
    assert again == losses[3:]
    for ours, theirs in zip(state(model, gates), wanted, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("family", ["bert", "albert", "distil_bert"])
def test_what_is_removed_computes_what_hard_gates_do(family):
    model = make_model(family)
    blocks = 1 if family == "albert" else 4
    gates = HeadSubset(blocks, 4, 2 * blocks - 1, seed=3)
    training = make_training(model, gates)
    inputs, labels = batch_for(model)
    training.step(inputs, labels)
    masks = training.masks()
    assert masks[0].shape == (4, 4)
    gated = gated_model(TASK.training_model(model))
    given = {**ones_gates(gated), "head_gate": masks[0][None].astype("float32")}
    wanted = gated({**inputs, **given}, training=False)
    smaller = with_backbone(TASK, model, prune_heads(model.backbone, *masks))
    np.testing.assert_allclose(
        smaller(inputs, training=False), wanted, rtol=1e-5, atol=1e-5
    )


def test_neurons_within_a_budget_are_trained_too():
    model = make_model()
    gates = HeadSubset(
        *(4, 4),
        variant="bounded",
        num_neurons=32,
        head_cost=4.0,
        budget=96.0,
    )
    training = make_training(model, gates)
    before = gates.neuron_logits.numpy()
    training.step(*batch_for(model))
    assert np.abs(gates.neuron_logits.numpy() - before).max() > 0
    heads, neurons = training.masks()
    assert neurons.shape == (4, 32)
    assert 4 * heads.sum() + neurons.sum() <= 96


def test_multipliers_close_as_many_gates_as_asked():
    gates = L0Gates(4, 4, 5, cooldown_steps=100, seed=0)
    optimizer = keras.optimizers.Adam(0.2)
    optimizer.build(gates.trainable_variables)
    useful = np.random.default_rng(0).permutation(16).reshape(4, 4) >= 11

    @tf.function
    def step(number):
        gates.step.assign(number)
        with tf.GradientTape() as tape:
            loss = -tf.reduce_sum(gates(training=True) * useful.astype("float32"))
            loss = 0.1 * loss + gates.penalty()
        found = tape.gradient(loss, [gates.logits.value, gates.multipliers.value])
        optimizer.apply([found[0], -found[1]], [gates.logits, gates.multipliers])

    for number in range(400):
        step(tf.constant(number, "int64"))
    assert abs(gates.num_open() - 5) <= 1
    np.testing.assert_array_equal(gates.masks()[0], useful)


def test_hard_concrete_gates_are_those_of_the_formula():
    gates = L0Gates(2, 3, 2, seed=4)
    gates.step.assign(7)
    u = gates.uniform(7).numpy().reshape(2, 3).astype("float64")
    a = gates.logits.numpy()
    s = 1 / (1 + np.exp(-(np.log(u) - np.log(1 - u) + a) / 0.33))
    np.testing.assert_allclose(
        gates(training=True), np.clip(1.2 * s - 0.1, 0, 1), atol=1e-5
    )
    gates.multipliers.assign([0.5, 2.0])
    share = np.mean(1 / (1 + np.exp(-(a - 0.33 * np.log(0.1 / 1.1)))))
    excess = share - 2 / 6  # step 7 is beyond the cooldown of 1
    wanted = 0.5 * excess + 2.0 * excess**2
    assert float(gates.penalty()) == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize(
    ("gates", "error", "sentence"),
    [
        (lambda: HeadSubset(3, 4, 2), ValueError, r"`gates` must have a row.*\(4, 4\)"),
        (lambda: HeadSubset(4, 5, 2), ValueError, r"Received: gates of shape \(4, 5\)"),
        (lambda: "gumbel", TypeError, "`gates` must be a HeadSubset or L0Gates"),
    ],
)
def test_gates_that_do_not_fit_are_refused(gates, error, sentence):
    with pytest.raises(error, match=sentence):
        make_training(make_model(), gates())


def test_a_student_is_pruned_while_it_is_distilled():
    teacher = make_backbone("bert", seed=1, dropout=0.0)
    student = make_backbone("bert", seed=2, dropout=0.0, num_layers=3)
    distiller = RelationDistiller(teacher, student, 4, num_relation_heads=4)
    gates = HeadSubset(2, 4, 3, variant="bounded", seed=0)
    training = SubsetTraining(
        distiller,
        gates,
        None,
        keras.optimizers.SGD(0.01),
        keras.optimizers.SGD(0.1),
        lambda step: tf.constant(1e-3),
    )
    batch = {n: tf.convert_to_tensor(x) for n, x in make_inputs(student).items()}
    # At so low a temperature the gates are 0 and 1: the student without these heads.
    drawn = gates(training=True, temperature=tf.constant(1e-3)).numpy()
    np.testing.assert_allclose(drawn, drawn.round(), atol=1e-3)
    mask = np.concatenate([drawn.round(), np.ones((1, 4))]).astype("int32")
    pruned = RelationDistiller(teacher, prune_heads(student, mask), 4, 4)
    pruned.compile(optimizer=keras.optimizers.SGD(0.01))
    wanted = pruned.evaluate(batch, batch_size=8, verbose=0, return_dict=True)["loss"]
    before = student.get_weights()
    assert training.step(batch) == pytest.approx(wanted, rel=1e-4)
    moved = [
        np.abs(ours - theirs).max()
        for ours, theirs in zip(student.get_weights(), before, strict=True)
    ]
    assert max(moved) > 0
    assert training.masks()[0].shape == (2, 4)
    with pytest.raises(ValueError, match="`loss` must be given, unless"):
        SubsetTraining(distiller, gates, TASK.loss, None, None, None)
