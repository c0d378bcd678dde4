"""Pictures of a study of heads: importance by layer, losses and scores as heads go."""

import numpy as np
from matplotlib.figure import Figure
from scipy import stats

_COLUMNS = 3


def importance_heat_maps(scores, label="importance"):
    """Draws a number of each head, such as its importance for several losses.

    Args:
        scores: dict by title of `(num_layers, num_heads)`, on a common scale.
        label: str. What the number is.

    Returns:
        `matplotlib.figure.Figure`.
    """
    figure, axes = _grid(len(scores), 3.4)
    largest = max(np.max(values) for values in scores.values())
    for ax, (title, values) in zip(axes, scores.items(), strict=True):
        num_layers, num_heads = np.shape(values)
        image = ax.imshow(
            values,
            cmap="viridis",
            vmin=0,
            vmax=largest,
            aspect="auto",
            origin="lower",
            extent=(0.5, num_heads + 0.5, 0.5, num_layers + 0.5),
        )
        ax.set(title=title, xlabel="head", ylabel="layer")
        ax.set_xticks(np.arange(1, num_heads + 1), minor=num_heads > 16)
        ax.set_yticks(np.arange(1, num_layers + 1), minor=num_layers > 24)
    figure.colorbar(image, ax=list(axes), label=label)
    return figure


def curves_picture(curves, lines, ylabel):
    """Draws a metric against the share of heads removed, with the bands of runs.

    Args:
        curves: list of `RemovalCurve`.
        lines: dict of float by label, horizontal lines.
        ylabel: str.

    Returns:
        `matplotlib.figure.Figure`.
    """
    figure = Figure(figsize=(8, 4.8), dpi=120, layout="constrained")
    ax = figure.subplots()
    for curve in curves:
        shares = curve.removed.mean(axis=0)
        label = curve.name
        if len(curve.scores) > 1:
            label += f", {len(curve.scores)} orders"
        (line,) = ax.plot(shares, curve.mean, marker="o", markersize=3, label=label)
        if len(curve.scores) > 1:
            ax.fill_between(shares, *curve.band(), color=line.get_color(), alpha=0.2)
    for number, (label, value) in enumerate(lines.items()):
        ax.axhline(value, color="0.4", linestyle=("--", ":")[number % 2], label=label)
    ax.set(xlabel="share of heads removed", ylabel=ylabel)
    ax.grid(alpha=0.3)
    ax.legend(fontsize=8)
    return figure


def overlap_picture(coherences):
    """Draws the share of the top k heads that two losses have in common, for each k.

    Args:
        coherences: dict of `Coherence` by label, all of as many heads.

    Returns:
        `matplotlib.figure.Figure`.
    """
    figure = Figure(figsize=(7, 4.8), dpi=110, layout="constrained")
    ax = figure.subplots()
    for label, found in coherences.items():
        numbers = np.arange(1, len(found.overlap) + 1)
        ax.plot(numbers, found.overlap, label=label)
    ax.plot(numbers, found.overlap_by_chance, color="0.4", ls="--", label="by chance")
    ax.set(xlabel="k", ylabel="common share of the top k heads", ylim=(0, 1.05))
    ax.grid(alpha=0.3)
    ax.legend(fontsize=8)
    return figure


def scores_picture(tasks):
    """Draws the scores of each task against the loss given up on pre-training.

    Args:
        tasks: dict by title of dicts by label of `(losses, scores)`: float `(points,)`
            and `(runs, points)`.

    Returns:
        `matplotlib.figure.Figure`. Bars are the standard deviation over runs.
    """
    figure, axes = _grid(len(tasks), 4.0)
    for ax, (title, series) in zip(axes, tasks.items(), strict=True):
        for label, (losses, scores) in series.items():
            order = np.argsort(losses)
            scores = 100 * np.asarray(scores)[:, order]
            spread = scores.std(axis=0, ddof=1) if len(scores) > 1 else None
            ax.errorbar(
                np.asarray(losses)[order],
                scores.mean(axis=0),
                spread,
                marker="o",
                markersize=3,
                capsize=2,
                linestyle="-" if len(order) > 1 else "none",
                label=label,
            )
        ax.set(title=title, xlabel="loss given up, nats", ylabel="score, x 100")
        ax.grid(alpha=0.3)
    axes[0].legend(fontsize=7)
    return figure


def methods_picture(panels, lines, ylabel):
    """Draws scores against the number of heads that stay, a line for each method.

    Args:
        panels: dict by title of dicts by method of dicts by number of heads of lists of
            scores, one for each seed.
        lines: dict of float by title: the score with all heads.
        ylabel: str.

    Returns:
        `matplotlib.figure.Figure`. Bars are intervals of 95% over seeds.
    """
    columns = len(panels)
    figure = Figure(figsize=(5.5 * columns + 2, 4.6), dpi=110, layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False, sharey=True)[0]
    for ax, (title, series) in zip(axes, panels.items(), strict=True):
        for number, (method, by_heads) in enumerate(series.items()):
            heads = sorted(by_heads)
            scores = [100 * np.asarray(by_heads[kept]) for kept in heads]
            half = [
                stats.t.ppf(0.975, len(s) - 1) * stats.sem(s) if len(s) > 1 else 0.0
                for s in scores
            ]
            ax.errorbar(
                heads,
                [s.mean() for s in scores],
                half,
                marker="osv^D"[number % 5],
                markersize=4,
                capsize=2,
                linewidth=1,
                label=method,
            )
        if title in lines:
            ax.axhline(100 * lines[title], color="0.4", ls="--", label="all heads")
        ax.set(title=title, xlabel="heads that stay", ylabel=ylabel)
        ax.grid(alpha=0.3)
    axes[-1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def _grid(number, height):
    """A figure of several axes, at most three in a row."""
    columns = min(number, _COLUMNS)
    rows = -(-number // columns)
    figure = Figure(
        figsize=(4.2 * columns + 1, height * rows), dpi=110, layout="constrained"
    )
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for ax in axes[number:]:
        ax.remove()
    return figure, axes[:number]
