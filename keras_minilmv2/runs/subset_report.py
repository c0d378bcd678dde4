"""The report of subset pruning: scores by method, and which heads stay."""

import dataclasses

import numpy as np

from keras_minilmv2.heads.pictures import importance_heat_maps, methods_picture
from keras_minilmv2.heads.study import paired_difference
from keras_minilmv2.runs.report import Report, describe, model_name
from keras_minilmv2.runs.subset_cells import LEARNED, WHOLE
from keras_minilmv2.utils.files import replacing_file
from keras_minilmv2.utils.tables import count, percent

PICTURES = ("scores.png", "survivors.png")
# What differences are taken from, if it was run: the first of these.
_BASELINES = ("absolute", "fisher", "random")
_COLUMNS = {"dev": "no retraining", "dev_retrained": "retrained"}


def write_report(subsets, results, compared):
    """Writes `report.md`, `report.json` and the pictures of a finished run.

    Args:
        subsets: `Subsets`.
        results: dict of `Result` by `SubsetCell`.
        compared: the settings, with the model's.
    """
    task, settings = subsets.task, subsets.settings
    groups, whole = grouped(results), whole_scores(results)
    report = Report(
        subsets.path, f"{model_name(compared.model)} on {task.title} with fewer heads"
    )
    report.text(
        f"{task.main_metric.capitalize()} on {task.dev_split}, times 100, mean and "
        "sample standard deviation over seeds; *heads* are those that stay. With all "
        "heads: " + ", ".join(_whole(whole)) + "."
    )
    report.table("scores", _scores(groups, whole), {"parameters": count})
    _add_differences(report, groups)
    for name, figure in zip(PICTURES, _pictures(subsets, results), strict=True):
        with replacing_file(subsets.path / name) as temporary:
            figure.savefig(temporary, format="png")
    report.picture(PICTURES[0], "Scores by heads that stay")
    report.picture(PICTURES[1], "How often each head stays")
    report.text("Heads that stay by layer, mean over runs:")
    report.table("layers", _layers(results))
    if rows := _gates(results):
        report.text(
            "Training of gates. *Zero gradients*: the share of logits that nothing "
            "moved; *overlap*: the share of the heads kept in the end, if training "
            "had stopped there, that a step had drawn. Means of the first and the "
            "last tenth, and of all steps."
        )
        report.table("gates", rows)
    report.fact(
        "model", compared.model, f"{compared.model}, {describe(subsets.encoder[0])}"
    )
    report.fact("data", compared.data_dir or "TFDS")
    report.fact("training rows", len(subsets.train))
    for name, value in dataclasses.asdict(settings).items():
        if value is not None:
            shown = ", ".join(map(str, value)) if isinstance(value, tuple) else None
            report.fact(name.replace("_", " "), value, shown)
    report.closing(
        "Models were chosen on the examples that are held out of training; no score on "
        f"{task.dev_split} chose anything. Intervals are of 95%, by Student's t over "
        "seeds, and leave the size of the split out. `model/` is the best model with "
        "fewer heads, which `keras_minilmv2.load_saved` reads."
    )
    report.save(sum(result.seconds for result in results.values()))


def grouped(results):
    """Results without draws: the mean of a seed's.

    Returns:
        dict by method and number of heads of dicts by seed of dicts of float:
        `"dev"`, `"dev_retrained"` if there is one, `"parameters"`.
    """
    found = {}
    for cell, result in results.items():
        if result.score is not None and cell.method != WHOLE:
            group = found.setdefault((cell.method, cell.num_kept_heads), {})
            group.setdefault(cell.seed, []).append(result.metrics)
    names = (*_COLUMNS, "parameters")

    def mean(draws):
        return {
            name: float(np.mean([draw[name] for draw in draws]))
            for name in names
            if name in draws[0]
        }

    return {
        key: {seed: mean(draws) for seed, draws in group.items()}
        for key, group in sorted(found.items(), key=lambda item: (item[0][1], item[0]))
    }


def whole_scores(results):
    """Scores with all heads: dict by name of dicts by seed."""
    found = {}
    for cell, result in results.items():
        if cell.method == WHOLE and result.score is not None:
            for name in _COLUMNS:
                if name in result.metrics:
                    found.setdefault(name, {})[cell.seed] = result.metrics[name]
    return found


def _whole(whole):
    for name, values in whole.items():
        yield f"{_COLUMNS[name]} {_mean(list(values.values()))}"


def _mean(values):
    shown = percent(float(np.mean(values)))
    if len(values) > 1:
        shown += f" ± {percent(float(np.std(values, ddof=1)))}"
    return shown


def _interval(values, others):
    """A mean difference in points, and its interval."""
    found = paired_difference(100 * np.array(values), 100 * np.array(others))
    if found.lower is None:
        return f"{found.mean:+.2f}"
    return f"{found.mean:+.2f} ({found.lower:+.2f} to {found.upper:+.2f})"


def _scores(groups, whole):
    rows = []
    for (method, kept), group in groups.items():
        row = {"heads": kept, "method": method, "seeds": len(group)}
        row["parameters"] = int(np.mean([run["parameters"] for run in group.values()]))
        for name, title in _COLUMNS.items():
            values = {seed: run[name] for seed, run in group.items() if name in run}
            if not values:
                continue
            row[title] = _mean(list(values.values()))
            of_whole = whole.get(name, {})
            common = [seed for seed in values if seed in of_whole]
            row[f"{title} - all heads"] = (
                _interval([values[s] for s in common], [of_whole[s] for s in common])
                if common
                else None
            )
        rows.append(row)
    return rows


def _add_differences(report, groups):
    methods = {method for method, _ in groups}
    baseline = next((name for name in _BASELINES if name in methods), None)
    rows = []
    for (method, kept), group in groups.items():
        others = groups.get((baseline, kept), {})
        common = [seed for seed in group if seed in others]
        if method == baseline or not common:
            continue
        row = {"heads": kept, "method": method}
        for name, title in _COLUMNS.items():
            if name in group[common[0]]:
                row[title] = _interval(
                    [group[seed][name] for seed in common],
                    [others[seed][name] for seed in common],
                )
        rows.append(row)
    if rows:
        report.text(f"Points more than `{baseline}` with as many heads:")
        report.table("differences", rows)


def _layers(results):
    rows = {}
    for cell, result in results.items():
        if cell.method != WHOLE and result.score is not None:
            key = cell.num_kept_heads, cell.method
            rows.setdefault(key, []).append(result.metrics["heads"])
    # The first layers alone have no others.
    depth = max((len(heads) for found in rows.values() for heads in found), default=0)
    table = []
    for (kept, method), found in sorted(rows.items()):
        padded = [heads + [0] * (depth - len(heads)) for heads in found]
        means = np.mean(padded, axis=0)
        by_layer = {f"{layer}": f"{x:.1f}" for layer, x in enumerate(means, start=1)}
        table.append({"heads": kept, "method": method, **by_layer})
    return table


def _gates(results):
    groups = {}
    for cell, result in results.items():
        if cell.method in LEARNED and result.score is not None:
            key = cell.num_kept_heads, cell.method
            groups.setdefault(key, []).append(result.metrics)
    rows = []
    for (kept, method), found in sorted(groups.items()):
        row = {"heads": kept, "method": method}
        for name in ("zero_gradients", "overlap"):
            tenths = np.mean([metrics[name] for metrics in found], axis=0)
            shown = [tenths[0], tenths[-1], tenths.mean()]
            row[name.replace("_", " ")] = ", ".join(f"{x:.2f}" for x in shown)
        opened = [metrics["num_open"] for metrics in found if "num_open" in metrics]
        row["gates above a half"] = f"{np.mean(opened):.1f}" if opened else None
        rows.append(row)
    return rows


def survivors(results):
    """How often each head is kept, of the runs of each method and number of heads.

    Args:
        results: dict of `Result` by `SubsetCell`.

    Returns:
        dict of float `(num_layers, num_heads)` by method and number of heads; without
        random ones.
    """
    masks = {}
    for cell, result in results.items():
        if "mask" in result.metrics and cell.method != "random":
            key = cell.method, cell.num_kept_heads
            masks.setdefault(key, []).append(result.metrics["mask"])
    return {key: np.mean(found, axis=0) for key, found in sorted(masks.items())}


def _pictures(subsets, results):
    groups, whole = grouped(results), whole_scores(results)
    panels = {}
    for name, title in _COLUMNS.items():
        series = {}
        for (method, kept), group in groups.items():
            values = [run[name] for run in group.values() if name in run]
            if values:
                series.setdefault(method, {})[kept] = values
        if series:
            panels[title] = series
    ylabel = f"{subsets.task.dev_split} {subsets.task.main_metric}, x 100"
    lines = {_COLUMNS[name]: np.mean(list(of.values())) for name, of in whole.items()}
    yield methods_picture(panels, lines, ylabel)
    kept = survivors(results)
    maps = {f"{method}, {number}": mask for (method, number), mask in kept.items()}
    if not maps:
        maps = {"all heads": np.ones(subsets.shape)}
    yield importance_heat_maps(maps, label="share of runs that keep it")
