"""Heads and neurons that each layer of an encoder has: arithmetic on its sizes."""

# Of the entries of a pruned encoder's config.
FORMAT_VERSION = 1
COUNTED = {"head_counts": "num_heads", "neuron_counts": "intermediate_dim"}


def block_runs(family, sizes):
    """For each layer, as they run, which block's weights it runs with.

    Args:
        family: `Family`.
        sizes: dict of int by name of an argument of the family's class.

    Returns:
        list of int. ALBERT runs the blocks of a group many times.
    """
    if not family.shares_blocks:
        return list(range(sizes["num_layers"]))
    inner = sizes["num_inner_repetitions"]
    return [
        group * inner + i
        for group in range(sizes["num_groups"])
        for _ in range(sizes["num_layers"] // sizes["num_groups"])
        for i in range(inner)
    ]


def counts_of_layers(counts, layers, runs):
    """The counts of an encoder that is made of another one's layers.

    Args:
        counts: sequence of int, of the other one's layers.
        layers: sequence of int, from 1, the other one's layer for each layer.
        runs: list of int, as `block_runs` returns for the encoder.

    Returns:
        tuple of int. A block of several runs is that of its first one.
    """
    return tuple(counts[layers[runs.index(block)] - 1] for block in runs)


def check_format_version(version):
    """Raises unless this package can read what a pruned encoder's config says.

    Raises:
        ValueError: if the format is unknown.
    """
    if type(version) is not int or version != FORMAT_VERSION:
        raise ValueError(
            f"`format_version` must be {FORMAT_VERSION} for a pruned encoder; another "
            "version of keras-minilmv2 has written this one. "
            f"Received: format_version={version!r}."
        )


def check_counts(family, sizes, **counts):
    """Checks how many heads or neurons the layers of an encoder have.

    Args:
        family: `Family`.
        sizes: dict of int by name of an argument of the family's class.
        **counts: sequences of int, one for each layer, as `head_counts` and
            `neuron_counts`.

    Raises:
        TypeError: if one is no sequence of int.
        ValueError: if it has another length, a count is too large, or layers that
            share a block differ.
    """
    runs = block_runs(family, sizes)
    for name, values in counts.items():
        if not isinstance(values, list | tuple) or any(
            type(value) is not int for value in values
        ):
            raise TypeError(
                f"`{name}` must be a sequence of int. Received: {name}={values!r}."
            )
        most = sizes[COUNTED[name]]
        if len(values) != len(runs) or not all(0 <= n <= most for n in values):
            raise ValueError(
                f"`{name}` must have a count from 0 to {COUNTED[name]}={most} for each "
                f"of the {len(runs)} layers. Received: {name}={list(values)}."
            )
        check_shared(name, values, runs)


def check_shared(name, values, runs):
    """Raises unless layers that run with the same block have the same value.

    Args:
        name: str, the argument's, for the error message.
        values: sequence of anything that can be compared, one for each layer.
        runs: list of int, as `block_runs` returns.

    Raises:
        ValueError: naming the first two layers that differ.
    """
    for layer, block in enumerate(runs):
        first = runs.index(block)
        if values[layer] != values[first]:
            raise ValueError(
                f"`{name}` must be the same for layers that share one block's weights. "
                f"Received: another for layer {layer + 1} than for layer {first + 1}."
            )
