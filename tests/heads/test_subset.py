"""The choice of K heads, against enumeration, closed forms and finite differences."""

import itertools

import numpy as np
import pytest
import tensorflow as tf

from keras_minilmv2.heads.subset import (
    HeadSubset,
    TemperatureSchedule,
    bounded_gates,
    soft_top_k,
)

TEMPERATURES = (1e3, 1.0, 0.1, 1e-2, 1e-3, 1e-4, 1e-6, 1e-8)
VARIANTS = ("gumbel", "straight_through", "bounded")


def soft_top_k_in_float64(scores, k, temperature):
    r, total = np.array(scores, "float64"), 0.0
    for _ in range(k):
        scaled = r / temperature
        exponentials = np.exp(scaled - scaled.max())
        p = exponentials / exponentials.sum()
        total = total + p
        r = r + np.log1p(-np.minimum(p, 1 - 1e-16))
    return total


def bounded_in_float64(scores, temperature, costs, budget):
    def gates(theta):
        return 1 / (1 + np.exp(-np.clip((scores - theta) / temperature, -500, 500)))

    low, high = scores.min() - 50 * temperature, scores.max() + 50 * temperature
    for _ in range(200):
        middle = (low + high) / 2
        if costs @ gates(middle) > budget:
            low = middle
        else:
            high = middle
    return gates((low + high) / 2)


def inclusion_probabilities(logits, k):
    """Of every item, by all orders in which k are drawn without replacement."""
    weights, found = np.exp(logits), np.zeros(len(logits))
    for order in itertools.permutations(range(len(logits)), k):
        probability, rest = 1.0, weights.sum()
        for item in order:
            probability *= weights[item] / rest
            rest -= weights[item]
        found[list(order)] += probability
    return found


def differences(function, at, step):
    """Central finite differences of a scalar function in float64."""
    found = np.zeros_like(at)
    for i in range(len(at)):
        moved = np.array([at, at])
        moved[0, i] += step
        moved[1, i] -= step
        found[i] = (function(moved[0]) - function(moved[1])) / (2 * step)
    return found


def random_layer(variant, kept=12, seed=0, scale=1.0, **options):
    layer = HeadSubset(12, 12, kept, variant=variant, seed=seed, **options)
    logits = np.random.default_rng(seed).normal(size=(12, 12)) * scale
    layer.logits.assign(logits)
    return layer


@pytest.mark.parametrize("variant", ["gumbel", "bounded"])
def test_small_temperatures_draw_gumbel_top_k(variant):
    logits = np.float32([1.5, 0.2, -0.7, 0.9, 0.0, -1.2])
    number, k = 100_000, 3
    uniform = np.random.default_rng(0).random((number, 6))
    noisy = (logits - np.log(-np.log(uniform))).astype("float32")
    if variant == "gumbel":
        gates = soft_top_k(noisy, k, 1e-4).numpy()
    else:
        ones = np.ones(6, "float32")
        draw = tf.function(
            lambda rows: tf.vectorized_map(
                lambda row: bounded_gates(row, 1e-4, ones, float(k)), rows
            )
        )
        gates = draw(noisy).numpy()
    wanted = inclusion_probabilities(logits, k)
    error = np.sqrt(wanted * (1 - wanted) / number)
    assert np.abs(gates.mean(axis=0) - wanted).max() < 3 * error.max()
    assert (np.abs(gates.mean(axis=0) - wanted) < 3 * error).all()


def test_noise_of_the_layer_is_gumbel():
    layer = HeadSubset(50, 40, 10, seed=3)
    noise = np.array([layer.noise(step).numpy() for step in range(50)])
    # Steps and heads are not correlated.
    for pairs in ((noise[1:], noise[:-1]), (noise[:, 1:], noise[:, :-1])):
        correlation = np.corrcoef(*(each.ravel() for each in pairs))[0, 1]
        assert abs(correlation) < 4 / np.sqrt(noise.size)
    # Mean Euler's constant, variance pi^2 / 6.
    assert noise.mean() == pytest.approx(0.5772, abs=0.012)
    assert noise.var() == pytest.approx(np.pi**2 / 6, rel=0.02)


@pytest.mark.parametrize("temperature", [10.0, 1.0, 0.1])
def test_soft_top_k_and_its_gradient_are_those_of_float64(temperature):
    generator = np.random.default_rng(1)
    scores, weights = generator.normal(size=(2, 8))

    def value(at):
        return weights @ soft_top_k_in_float64(at, 3, temperature)

    with tf.GradientTape() as tape:
        x = tf.constant(scores, "float32")
        tape.watch(x)
        gates = soft_top_k(x, 3, temperature)
        loss = tf.reduce_sum(gates * tf.constant(weights, "float32"))
    wanted = soft_top_k_in_float64(scores, 3, temperature)
    np.testing.assert_allclose(gates, wanted, rtol=2e-5, atol=1e-6)
    gradient = differences(value, scores, 1e-6)
    np.testing.assert_allclose(
        tape.gradient(loss, x), gradient, rtol=2e-3, atol=2e-4 * np.abs(gradient).max()
    )


@pytest.mark.parametrize("temperature", [10.0, 1.0, 0.1])
def test_the_bounded_gradient_is_its_closed_form(temperature):
    generator = np.random.default_rng(2)
    scores, weights = generator.normal(size=(2, 8))
    costs, budget = generator.uniform(0.5, 2.0, 8), 4.0
    with tf.GradientTape() as tape:
        x = tf.constant(scores, "float32")
        tape.watch(x)
        gates = bounded_gates(x, temperature, tf.constant(costs, "float32"), budget)
        loss = tf.reduce_sum(gates * tf.constant(weights, "float32"))
    m = bounded_in_float64(scores, temperature, costs, budget)
    np.testing.assert_allclose(gates, m, rtol=1e-4, atol=1e-6)
    slope = np.diag(m * (1 - m)) / temperature
    jacobian = slope - np.outer(slope @ np.ones(8), costs @ slope) / (
        costs @ slope @ np.ones(8)
    )
    gradient = weights @ jacobian
    np.testing.assert_allclose(tape.gradient(loss, x), gradient, rtol=1e-3, atol=1e-5)

    def value(at):
        return weights @ bounded_in_float64(at, temperature, costs, budget)

    np.testing.assert_allclose(
        gradient, differences(value, scores, 1e-5), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kept", [1, 12, 72, 144])
def test_gates_sum_to_k_and_gradients_are_finite(variant, kept):
    layer = random_layer(variant, kept, scale=5.0)

    @tf.function
    def gates_and_gradient(temperature):
        with tf.GradientTape() as tape:
            gates = layer(training=True, temperature=temperature)
            weights = tf.random.stateless_normal(gates.shape, [1, 2])
            loss = tf.reduce_sum(gates * weights)
        return gates, tape.gradient(loss, layer.logits.value)

    for step, temperature in enumerate(TEMPERATURES):
        layer.step.assign(step)
        gates, gradient = gates_and_gradient(tf.constant(temperature))
        assert np.sum(gates, dtype="float64") == pytest.approx(kept, abs=1e-3)
        assert np.isfinite(gates).all()
        assert np.isfinite(gradient).all()
        assert np.min(gates) >= 0
        if variant != "gumbel":
            assert np.max(gates) <= 1


def test_soft_gates_may_exceed_one_and_bounded_ones_not():
    seen = {}
    for variant in ("gumbel", "bounded"):
        layer = random_layer(variant, 72, temperature=1.0)
        layer.logits.assign(3 * layer.logits)
        seen[variant] = float(np.max(layer(training=True)))
    assert seen["gumbel"] > 1.5
    assert seen["bounded"] <= 1.0


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kept", [1, 5, 24])
def test_inference_keeps_exactly_k_also_of_equal_logits(variant, kept):
    layer = HeadSubset(4, 6, kept, variant=variant)
    layer.logits.assign(np.zeros((4, 6)))
    gates = layer(training=False).numpy()
    assert gates.ravel().tolist() == [1.0] * kept + [0.0] * (24 - kept)
    if variant == "straight_through":
        np.testing.assert_array_equal(layer(training=True), gates)
    logits = np.random.default_rng(0).permutation(24).reshape(4, 6)
    layer.logits.assign(logits)
    (mask, neurons) = layer.masks()
    assert neurons is None
    np.testing.assert_array_equal(mask, logits >= 24 - kept)


def test_straight_through_passes_the_gradient_on():
    layer = random_layer("straight_through")
    weights = np.random.default_rng(5).normal(size=(12, 12)).astype("float32")
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(layer(training=True) * weights)
    np.testing.assert_array_equal(tape.gradient(loss, layer.logits.value), weights)


@pytest.mark.parametrize("variant", ["gumbel", "bounded"])
def test_noise_depends_on_seed_and_step_alone(variant):
    def gates(seed, step, compiled=False):
        layer = random_layer(variant, seed=seed)
        layer.logits.assign(np.zeros((12, 12)))
        layer.step.assign(step)
        call = tf.function(layer, jit_compile=True) if compiled else layer
        return np.array(call(training=True))

    first = gates(0, 7)
    np.testing.assert_array_equal(first, gates(0, 7))
    np.testing.assert_allclose(first, gates(0, 7, compiled=True), atol=1e-4)
    assert np.abs(first - gates(0, 8)).max() > 0.01
    assert np.abs(first - gates(1, 7)).max() > 0.01


def test_seeds_vary_the_logits():
    logits = [HeadSubset(6, 12, 12, seed=seed).logits.numpy() for seed in (0, 0, 1)]
    np.testing.assert_array_equal(logits[0], logits[1])
    assert np.abs(logits[0] - logits[2]).max() > 0.01
    assert np.abs(logits[0]).max() <= np.sqrt(6 / 18)


def test_a_budget_is_a_hard_constraint():
    generator = np.random.default_rng(0)
    head_cost = generator.uniform(1, 3, (3, 4))
    layer = HeadSubset(
        *(3, 4),
        variant="bounded",
        num_neurons=16,
        head_cost=head_cost,
        neuron_cost=0.25,
        budget=20.0,
        fixed_cost=5.0,
        temperature=0.5,
    )
    heads, neurons = layer(training=True)
    spent = np.sum(heads * head_cost) + 0.25 * np.sum(neurons)
    assert spent == pytest.approx(15.0, abs=1e-3)
    for _ in range(5):
        layer.logits.assign(generator.normal(size=(3, 4)))
        layer.neuron_logits.assign(generator.normal(size=(3, 16)))
        head_mask, neuron_mask = layer.masks()
        assert head_mask.shape == (3, 4)
        assert neuron_mask.shape == (3, 16)
        spent = np.sum(head_mask * head_cost) + 0.25 * neuron_mask.sum()
        assert 15 - 3 < spent <= 15.0 + 1e-4


def test_overlap_of_the_sample_with_what_inference_keeps():
    layer = random_layer("gumbel", 12)
    layer.logits.assign(100 * layer.logits)
    layer.temperature = 1e-3
    assert float(layer.overlap(layer(training=True))) > 0.8
    layer.logits.assign(0 * layer.logits)

    @tf.function
    def drawn_at(step):
        layer.step.assign(step)
        return layer.overlap(layer(training=True))

    drawn = [float(drawn_at(tf.constant(step, "int64"))) for step in range(200)]
    # Chance: K of 144.
    assert np.mean(drawn) == pytest.approx(12 / 144, abs=0.02)


def test_replicas_draw_the_same_noise():
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with strategy.scope():
        layer = random_layer("gumbel")

    @tf.function
    def gates():
        return strategy.run(lambda: layer(training=True))

    first, second = strategy.experimental_local_results(gates())
    np.testing.assert_array_equal(first, second)


def test_temperature_falls_evenly_in_its_logarithm():
    schedule = TemperatureSchedule(1000.0, 1e-8, 100)
    found = [float(schedule(step)) for step in (0, 50, 100, 250)]
    np.testing.assert_allclose(found, [1e3, 10**-2.5, 1e-8, 1e-8], rtol=1e-4)


def test_a_layer_comes_back_from_its_config():
    layer = HeadSubset(
        2, 3, variant="bounded", num_neurons=4, head_cost=2.0, budget=6.0, seed=5
    )
    again = HeadSubset.from_config(layer.get_config())
    again.step.assign(4)
    layer.step.assign(4)
    for ours, theirs in zip(again(training=True), layer(training=True), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("arguments", "options", "sentence"),
    [
        ((2, 3, 0), {}, "`num_kept_heads` must be an int of at least 1"),
        ((2, 3, 7), {}, "from 1 to the 6 heads.*num_kept_heads=7"),
        ((2, 3), {}, "`num_kept_heads` must be given"),
        ((2, 3, 2), {"variant": "hard"}, "`variant` must be one of gumbel"),
        ((2, 3, 2), {"temperature": 0}, "`temperature` must be.* above 0"),
        ((2, 3, 2), {"num_neurons": 4}, "`variant` must be 'bounded'"),
        (
            (2, 3, 2),
            {"variant": "bounded", "budget": 3.0},
            "`num_kept_heads` must not be given with a `budget`",
        ),
        (
            (2, 3),
            {"variant": "bounded", "budget": 5.0, "fixed_cost": 5.0},
            "`budget` must be from 6.*budget=5",
        ),
        (
            (2, 3),
            {"variant": "bounded", "budget": 3.0, "head_cost": [1.0, 2.0]},
            "`head_cost` must be a number above 0",
        ),
    ],
)
def test_what_does_not_fit_is_refused(arguments, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        HeadSubset(*arguments, **options)


def test_a_cooldown_longer_than_training_says_what_is_left():
    with pytest.raises(ValueError, match=r"temperature of 3\.46e-06 in place of"):
        TemperatureSchedule(1e3, 1e-8, 130, total_steps=100)
