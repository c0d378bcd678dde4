import itertools

import numpy as np
import pytest

from keras_minilmv2.heads.costs import Costs
from keras_minilmv2.heads.search import (
    BudgetError,
    OutputFit,
    choose_counts,
    choose_masks,
    kept_units,
    kept_values,
)


def by_trying(values, costs, budget):
    """The best choice, by trying all."""
    best = None
    for choice in itertools.product(*(range(len(value)) for value in values)):
        cost = sum(c[n] for c, n in zip(costs, choice, strict=True))
        value = sum(v[n] for v, n in zip(values, choice, strict=True))
        if cost <= budget and (best is None or value > best[0]):
            best = value, list(choice)
    return best[1]


@pytest.mark.parametrize("seed", range(20))
def test_counts_are_those_that_trying_all_finds(seed):
    """Two layers of 3 heads and 4 neurons, measured times that are no straight line."""
    generator = np.random.default_rng(seed)
    values = [kept_values(generator.exponential(size=n)) for n in (3, 4, 3, 4)]
    heads, neurons = (
        np.concatenate([[0], np.cumsum(generator.uniform(0.2, 2, n))]) for n in (3, 4)
    )
    costs = [heads, neurons, heads, neurons]
    for share in (0.1, 0.4, 0.7, 1.0):
        budget = share * sum(cost[-1] for cost in costs)
        wanted = by_trying(values, costs, budget)
        assert choose_counts(values, costs, budget) == wanted


def test_a_choice_that_costs_more_and_is_worth_less_is_not_taken():
    """Eleven heads may be slower than twelve."""
    values, costs = [np.array([0, 1.0, 2.0])], [np.array([0, 5.0, 4.0])]
    assert choose_counts(values, costs, 4.5) == [2]
    assert choose_counts(values, costs, 10) == [2]
    assert choose_counts(values, costs, 3.9) == [0]


def test_many_layers_stay_within_the_budget_and_lose_nearly_nothing():
    """Costs that merge: 24 parts of 97 choices, against the bound of real numbers."""
    generator = np.random.default_rng(0)
    values = [kept_values(np.sort(generator.exponential(size=96))) for _ in range(24)]
    costs = [np.arange(97) * generator.uniform(1, 2) for _ in range(24)]
    budget = 0.5 * sum(cost[-1] for cost in costs)
    chosen = choose_counts(values, costs, budget)
    spent = sum(cost[n] for cost, n in zip(costs, chosen, strict=True))
    kept = sum(value[n] for value, n in zip(values, chosen, strict=True))
    # Values are concave: units in the order of value for cost are the best in reals.
    gains = np.concatenate([np.diff(value) for value in values])
    prices = np.concatenate([np.diff(cost) for cost in costs])
    order = np.argsort(-gains / prices)
    bound = gains[order][np.cumsum(prices[order]) <= budget].sum()
    assert spent <= budget
    assert kept >= 0.999 * bound


def test_a_budget_below_the_cheapest_choices_is_refused():
    with pytest.raises(BudgetError, match="budget=1, cheapest=2"):
        choose_counts([np.zeros(2)], [np.array([2.0, 3.0])], 1)
    with pytest.raises(ValueError, match="shapes of `values`"):
        choose_counts([np.zeros(2)], [np.zeros(3)], 1)
    with pytest.raises(ValueError, match="`costs` must be finite"):
        choose_counts([np.zeros(2)], [np.array([0, np.nan])], 1)


def costs(heads=3, neurons=4, base=1.0):
    return Costs(
        "seconds",
        base,
        np.array([0, 0.9, 1.3, 2.0, 2.9][: heads + 1]),
        np.arange(neurons + 1),
        np.array([0, 0.4, 0.5, 1.1, 1.3][: neurons + 1]),
    )


@pytest.mark.parametrize("budget", [1.0, 2.7, 4.0, 5.6, 7.6])
def test_masks_are_those_that_trying_all_finds(budget):
    """Two layers of 3 heads and 4 neurons: all 16,384 pairs of masks."""
    generator = np.random.default_rng(int(10 * budget))
    heads, neurons = (
        generator.exponential(size=(2, 3)),
        generator.exponential(size=(2, 4)),
    )
    fisher = np.concatenate([heads.ravel(), neurons.ravel()])
    masks = np.array(list(itertools.product((0, 1), repeat=14)))
    head_masks, neuron_masks = (
        masks[:, :6].reshape(-1, 2, 3),
        masks[:, 6:].reshape(-1, 2, 4),
    )
    table = costs()
    cost = table.base + table.heads[head_masks.sum(2)].sum(1)
    cost += table.neurons[neuron_masks.sum(2)].sum(1)
    value = np.where(cost <= budget + 1e-9, masks @ fisher, -1)
    best = int(np.argmax(value))
    got = choose_masks(heads, neurons, table, budget)
    assert got[0].tolist() == head_masks[best].tolist()
    assert got[1].tolist() == neuron_masks[best].tolist()
    assert table.total(got[0].sum(1), got[1].sum(1)) == pytest.approx(cost[best])


def test_heads_alone_and_weights_that_run_several_times():
    heads = np.array([[3.0, 2.0, 1.0]])
    # Twice 1.3 seconds of heads, and twice 1.3 of all neurons, beside 1.
    table = costs()
    masks = choose_masks(heads, None, table, 6.3, num_runs=[2])
    assert masks[0].tolist() == [[1, 1, 0]]
    assert masks[1].tolist() == [[1, 1, 1, 1]]
    with pytest.raises(BudgetError, match="budget=3 seconds, least=3.6"):
        choose_masks(heads, None, table, 3.0, num_runs=[2])


def block(units, seed):
    """A Fisher block of gradients that depend on each other."""
    generator = np.random.default_rng(seed)
    gradients = generator.normal(size=(50, 3)) @ generator.normal(size=(3, units))
    gradients += 0.3 * generator.normal(size=(50, units))
    return gradients.T @ gradients / 50


def lost(products, keep):
    removed = (~np.asarray(keep)).astype(float)
    return removed @ products @ removed


@pytest.mark.parametrize("count", [1, 4, 7])
def test_kept_heads_lose_the_least_of_all_sets(count):
    products = block(8, seed=count)
    keep = kept_units(np.diag(products), count, products)
    sets = itertools.combinations(range(8), count)
    masks = [np.isin(np.arange(8), each) for each in sets]
    assert keep.sum() == count
    assert lost(products, keep) == pytest.approx(
        min(lost(products, mask) for mask in masks), rel=1e-12
    )


def test_exchanged_neurons_lose_less_and_no_exchange_is_left():
    products = block(64, seed=0)
    first = kept_units(np.diag(products), 24)
    keep = kept_units(np.diag(products), 24, products)
    assert keep.sum() == 24
    assert lost(products, keep) < 0.8 * lost(products, first)
    for back in np.flatnonzero(~keep):
        for out in np.flatnonzero(keep):
            other = keep.copy()
            other[[back, out]] = True, False
            assert lost(products, other) >= lost(products, keep) - 1e-9


def test_without_products_the_most_important_are_kept():
    keep = kept_units([0.3, 0.1, 0.5, 0.2], 2)
    assert keep.tolist() == [True, False, True, False]
    assert not kept_units([1.0, 2.0], 0).any()
    with pytest.raises(ValueError, match="from 0 to 2.*count=3"):
        kept_units([1.0, 2.0], 3)
    with pytest.raises(ValueError, match="a row and a column"):
        kept_units([1.0, 2.0], 1, np.zeros((3, 3)))


def test_least_squares_is_the_solution_of_the_normal_equations():
    generator = np.random.default_rng(0)
    inputs = generator.normal(1, 2, size=(300, 6)).astype("float32")
    outputs = generator.normal(size=(300, 4)).astype("float32")
    kernel, bias = generator.normal(size=(6, 4)), generator.normal(size=4)
    fit = OutputFit(kernel, bias)
    for part in range(0, 300, 70):
        fit.add(inputs[part : part + 70], outputs[part : part + 70])
    got_kernel, got_bias = fit.solve(penalty=0.1)
    x = np.asarray(inputs, "float64")
    centred = x - x.mean(0)
    ridge = 0.1 * np.trace(centred.T @ centred) / 6 * np.eye(6)
    # Without its mean the bias falls out of the equations.
    wanted = np.linalg.solve(
        centred.T @ centred + ridge,
        centred.T @ (outputs - outputs.mean(0)) + ridge @ kernel,
    )
    np.testing.assert_allclose(got_kernel, wanted, rtol=1e-4, atol=1e-5)
    wanted_bias = outputs.mean(0) - x.mean(0) @ wanted
    np.testing.assert_allclose(got_bias, wanted_bias, rtol=1e-4, atol=1e-5)


def test_a_layer_that_can_be_rebuilt_is_rebuilt():
    """Removed inputs that are sums of those left cost nothing."""
    generator = np.random.default_rng(0)
    left = generator.normal(size=(400, 5)).astype("float32")
    mixed = left @ generator.normal(size=(5, 3)).astype("float32")
    kernel = generator.normal(size=(8, 4))
    outputs = np.concatenate([left, mixed], 1) @ kernel + 0.5
    fit = OutputFit(kernel[:5], np.zeros(4))
    fit.add(left, outputs)
    new, bias = fit.solve(penalty=1e-8)
    np.testing.assert_allclose(left @ new + bias, outputs, atol=1e-3)


def test_units_without_signal_and_layers_without_tokens_keep_their_matrix():
    kernel, bias = np.ones((3, 2)), np.zeros(2)
    fit = OutputFit(kernel, bias)
    assert fit.solve()[0] is fit.kernel
    inputs = np.zeros((10, 3), "float32")
    inputs[:, 0] = np.arange(10)
    fit.add(inputs, inputs @ kernel + 1)
    new, new_bias = fit.solve()
    np.testing.assert_allclose(new, kernel, atol=1e-6)
    np.testing.assert_allclose(new_bias, 1, atol=1e-5)
    # A layer that kept nothing has a bias alone.
    fit = OutputFit(np.zeros((0, 2)), bias)
    fit.add(np.zeros((4, 0)), np.full((4, 2), 3.0))
    np.testing.assert_allclose(fit.solve()[1], 3)
