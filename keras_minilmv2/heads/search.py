"""Which heads and neurons to keep under a budget, without training.

Three steps, each a function of arrays: how many heads and neurons every layer keeps
(`choose_counts`), which ones (`kept_units`), and new output matrices for what is left
(`OutputFit`).

Reference:
    Kwon et al., 2022, [arXiv:2204.09656](https://arxiv.org/abs/2204.09656), whose
    budget is a number of operations or a latency that is a straight line in the
    neurons; here any table of costs is met exactly.
"""

import itertools
import math

import numpy as np

from keras_minilmv2.utils.checks import check_number

# With more sets of heads than this, units are exchanged one by one.
_MOST_SETS = 20_000
# With more undominated choices than this, those of nearly equal cost are merged.
_MOST_CHOICES = 10_000


class BudgetError(ValueError):
    """A budget below the cost of an encoder without heads and neurons."""


def choose_counts(values, costs, budget):
    """How many units to keep in every part, for the highest value within a budget.

    Maximizes `sum_i values[i][n_i]` over the choices `n_i`, subject to
    `sum_i costs[i][n_i] <= budget`, by a dynamic program over the parts. Exact unless
    there are more than 10,000 sets of choices of which none is better in both cost
    and value; then choices whose costs agree to a 10,000th of the budget are merged.

    Args:
        values: sequence of float arrays `(choices_i,)`, one for each part.
        costs: sequence of float arrays of the same shapes, not negative.
        budget: float.

    Returns:
        list of int, the index of the choice for each part.

    Raises:
        BudgetError: if the cheapest choices cost more than the budget.
        ValueError: if shapes differ or a number is not finite.
    """
    values = [np.asarray(value, "float64") for value in values]
    costs = [np.asarray(cost, "float64") for cost in costs]
    if [v.shape for v in values] != [c.shape for c in costs]:
        raise ValueError(
            "`costs` must have the shapes of `values`. Received: shapes "
            f"{[c.shape for c in costs]} and {[v.shape for v in values]}."
        )
    for name, arrays in {"values": values, "costs": costs}.items():
        if not all(np.isfinite(array).all() for array in arrays):
            raise ValueError(f"`{name}` must be finite.")
    check_number(least=0, budget=budget)
    # What the parts that are still to come cost at least.
    rest = np.cumsum([0.0, *(cost.min() for cost in reversed(costs))])[::-1]
    # Sums of costs are rounded: a budget that is such a sum must be met.
    limit = budget * (1 + 1e-12)
    if rest[0] > limit:
        raise BudgetError(
            "`budget` must not be below the cost of the cheapest choices. Received: "
            f"budget={budget:g}, cheapest={rest[0]:g}."
        )
    total_cost, total_value = np.zeros(1), np.zeros(1)
    steps = []
    for part, (value, cost) in enumerate(zip(values, costs, strict=True)):
        new_cost = (total_cost[:, None] + cost).ravel()
        new_value = (total_value[:, None] + value).ravel()
        kept = np.flatnonzero(new_cost + rest[part + 1] <= limit)
        kept = _undominated(new_cost, new_value, kept, budget)
        total_cost, total_value = new_cost[kept], new_value[kept]
        steps.append(np.divmod(kept, len(cost)))
    place = int(np.argmax(total_value))
    choices = []
    for parents, chosen in reversed(steps):
        choices.append(int(chosen[place]))
        place = parents[place]
    return choices[::-1]


def _undominated(cost, value, places, budget):
    """The places that no other beats: rising cost, and with it rising value."""
    # Of one cost the highest value comes first.
    places = places[np.lexsort((-value[places], cost[places]))]
    best = np.maximum.accumulate(value[places])
    places = places[np.concatenate([[True], best[1:] > best[:-1]])]
    if len(places) > _MOST_CHOICES and budget > 0:
        # The last of a cell is its most valuable one.
        cells = np.floor(cost[places] / budget * _MOST_CHOICES)
        places = places[np.concatenate([cells[1:] > cells[:-1], [True]])]
    return places


def choose_masks(
    head_fisher,
    neuron_fisher,
    costs,
    budget,
    *,
    head_products=None,
    neuron_products=None,
    num_runs=None,
):
    """The heads and neurons of an encoder to keep within a budget.

    Maximizes the kept sum of the Fisher information, then chooses within each layer by
    its block of it; see `choose_counts` and `kept_units`.

    Args:
        head_fisher: float `(layers, heads)`, `E (dL/dg)^2`. Where layers share their
            weights, as in ALBERT, one row for each block of weights.
        neuron_fisher: float `(layers, neurons)`, or None to keep all neurons.
        costs: `Costs` of a layer.
        budget: float, in the unit of the costs, of the whole encoder.
        head_products: float `(layers, heads, heads)`, `E g g'`, or None.
        neuron_products: the same of neurons.
        num_runs: int `(layers,)`. How often each block of weights runs; once by
            default.

    Returns:
        tuple of int32 masks `(layers, heads)` and `(layers, neurons)`.

    Raises:
        BudgetError: if the encoder costs more without any of them.
    """
    runs = np.ones(len(head_fisher), int) if num_runs is None else np.asarray(num_runs)
    kinds = [(head_fisher, head_products, np.arange(len(costs.heads)), costs.heads)]
    base = costs.base
    if neuron_fisher is None:
        base += costs.neurons[-1] * runs.sum()
    else:
        counts, cost = costs.neuron_counts, costs.neurons
        kinds.append((neuron_fisher, neuron_products, counts, cost))
    if budget < base:
        raise BudgetError(
            "`budget` must not be below the cost of what cannot be removed. Received: "
            f"budget={budget:g} {costs.unit}, least={base:g}."
        )
    values = [kept_values(row)[n] for fisher, _, n, _ in kinds for row in fisher]
    prices = [cost * number for _, _, _, cost in kinds for number in runs]
    chosen = iter(choose_counts(values, prices, budget - base))
    masks = []
    for fisher, products, counts, _ in kinds:
        products = [None] * len(fisher) if products is None else products
        rows = [
            kept_units(row, counts[next(chosen)], block)
            for row, block in zip(fisher, products, strict=True)
        ]
        masks.append(np.array(rows, "int32"))
    if neuron_fisher is None:
        masks.append(np.ones((len(runs), costs.neuron_counts[-1]), "int32"))
    return tuple(masks)


def kept_values(importance):
    """The importance kept with the best n of a layer's units, for every n.

    Args:
        importance: float `(units,)`.

    Returns:
        float64 `(units + 1,)`; the first is 0.
    """
    ordered = np.sort(np.asarray(importance, "float64"))[::-1]
    return np.concatenate([[0.0], np.cumsum(ordered)])


def kept_units(importance, count, products=None):
    """Which units of a layer to keep, given how many.

    Without `products`, those of the highest importance. With them, the set that
    minimizes `(1 - m)' I (1 - m)` over masks `m` with `count` ones, where
    `I = E g g'` is the layer's block of the Fisher information: units that stand in
    for each other are not removed together. All sets are tried where there are at
    most 20,000; else kept and removed units are exchanged, the best pair first, from
    the most important ones, until no exchange helps.

    Args:
        importance: float `(units,)`.
        count: int.
        products: float `(units, units)`, symmetric, or None.

    Returns:
        bool `(units,)`.

    Raises:
        ValueError: if `count` is below 0 or above the number of units, or shapes do
            not fit.
    """
    importance = np.asarray(importance, "float64")
    units = len(importance)
    if not 0 <= count <= units:
        raise ValueError(
            f"`count` must be from 0 to {units}, the number of units. Received: "
            f"count={count}."
        )
    keep = np.zeros(units, bool)
    keep[np.argsort(-importance, kind="stable")[:count]] = True
    if products is None or count in (0, units):
        return keep
    products = np.asarray(products, "float64")
    if products.shape != (units, units):
        raise ValueError(
            "`products` must have a row and a column for each unit. Received: shape "
            f"{products.shape}, units={units}."
        )
    if math.comb(units, count) <= _MOST_SETS:
        return _best_set(products, count)
    return _exchanged(products, keep)


def _best_set(products, count):
    units = len(products)
    removed = np.array(list(itertools.combinations(range(units), units - count)))
    lost = products[removed[:, :, None], removed[:, None, :]].sum((1, 2))
    keep = np.ones(units, bool)
    keep[removed[np.argmin(lost)]] = False
    return keep


def _exchanged(products, keep):
    keep = keep.copy()
    diagonal = np.diag(products)
    # Each exchange lowers what is lost, so that none comes back.
    least = 1e-12 * abs(products).sum()
    while True:
        # What the removed ones share with each unit.
        shared = products[:, ~keep].sum(1)
        back, out = np.flatnonzero(~keep), np.flatnonzero(keep)
        change = (diagonal - 2 * shared)[back, None] + (diagonal + 2 * shared)[out]
        change -= 2 * products[np.ix_(back, out)]
        i, j = np.unravel_index(np.argmin(change), change.shape)
        if change[i, j] >= -least:
            return keep
        keep[back[i]], keep[out[j]] = True, False


class OutputFit:
    """Least squares for the matrix behind what is left of a layer.

    With `X` the inputs of a layer's output matrix that are left and `Y` what the whole
    layer gave, the matrix and bias minimize
    `|X W + b - Y|^2 + penalty * n * |W - W_0|^2`, where `W_0` is the old matrix and
    `n` the mean of the diagonal of `X'X` without its mean. The bias has no penalty.
    Inputs stream: `add` sums what is needed.

    Args:
        kernel: float `(inputs, outputs)`, `W_0`: the rows that are left.
        bias: float `(outputs,)`, the old bias.
    """

    def __init__(self, kernel, bias):
        self.kernel = np.asarray(kernel, "float64")
        self.bias = np.asarray(bias, "float64")
        inputs, outputs = self.kernel.shape
        # Of [X, 1]: its products with itself and with the residual of the old matrix.
        self._squares = np.zeros((inputs + 1, inputs + 1))
        self._residuals = np.zeros((inputs + 1, outputs))

    def add(self, inputs, outputs):
        """Adds tokens.

        Args:
            inputs: float `(tokens, inputs)`, real tokens alone.
            outputs: float `(tokens, outputs)`, what the layer must give for them.
        """
        inputs = np.asarray(inputs, "float32")
        inputs = np.concatenate([inputs, np.ones((len(inputs), 1), "float32")], axis=1)
        old = np.concatenate([self.kernel, self.bias[None]]).astype("float32")
        residual = np.asarray(outputs, "float32") - inputs @ old
        self._squares += inputs.T @ inputs
        self._residuals += inputs.T @ residual

    def solve(self, penalty=1e-3):
        """The new matrix and bias.

        Args:
            penalty: float, not negative.

        Returns:
            tuple of float64 `(inputs, outputs)` and `(outputs,)`. The old ones where
            no token was added.
        """
        check_number(least=0, penalty=penalty)
        tokens = self._squares[-1, -1]
        if tokens == 0:
            return self.kernel, self.bias
        mean = self._squares[-1, :-1] / tokens
        squares = self._squares[:-1, :-1] - tokens * np.outer(mean, mean)
        mean_residual = self._residuals[-1] / tokens
        residuals = self._residuals[:-1] - np.outer(
            self._squares[-1, :-1], mean_residual
        )
        # Neurons that never fire have no square; the identity keeps them as they are.
        scale = np.trace(squares) / max(len(squares), 1)
        ridge = max(penalty * scale, 1e-10 * scale, np.finfo("float64").tiny)
        change = np.linalg.solve(squares + ridge * np.eye(len(squares)), residuals)
        return self.kernel + change, self.bias + mean_residual - mean @ change
