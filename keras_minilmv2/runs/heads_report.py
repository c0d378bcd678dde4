"""The report of a study of heads: tables, pictures, and what they say in words."""

import dataclasses
import itertools

import numpy as np

from keras_minilmv2.backbones.pruned import layer_counts
from keras_minilmv2.heads.pictures import (
    curves_picture,
    importance_heat_maps,
    overlap_picture,
    scores_picture,
)
from keras_minilmv2.heads.study import (
    acceptable_deduction,
    coherence,
    head_statistics,
    paired_difference,
)
from keras_minilmv2.runs.heads_cells import ORDERS, PRETRAINING, WHOLE, StudyCell
from keras_minilmv2.runs.report import Report, describe, model_name
from keras_minilmv2.utils.files import replacing_file
from keras_minilmv2.utils.tables import percent

PICTURES = ("importance.png", "curves.png", "overlap.png", "scores.png")
_LOSS = "{:.3f}".format
# What removing all heads must cost, in nats, for their importance to mean something.
_LEAST_COST = 0.5


def write_report(study, compared):
    """Writes `report.md`, `report.json` and the pictures of a finished study.

    Args:
        study: `Study`.
        compared: its settings, with the model's.
    """
    numbers = Numbers(study)
    pictures = (
        ("Importance by layer and head", importance_heat_maps(numbers.heat_maps())),
        ("Masked-token loss as heads go", numbers.curves_picture()),
        ("Common share of the top k heads", overlap_picture(numbers.overlaps())),
        ("Scores by the loss given up", scores_picture(numbers.series())),
    )
    for name, (_, figure) in zip(PICTURES, pictures, strict=True):
        with replacing_file(study.path / name) as temporary:
            figure.savefig(temporary, format="png")
    report = Report(study.path, f"Heads of {model_name(compared.model)}")
    report.text(" ".join(findings(numbers)))
    _add_tables(report, numbers)
    for name, (caption, _) in zip(PICTURES, pictures, strict=True):
        report.picture(name, caption)
    report.fact(
        "model",
        compared.model,
        f"{compared.model}, {describe(study.whole.backbone)}",
    )
    report.fact("data", compared.data_dir or "TFDS")
    for name, value in dataclasses.asdict(study.settings).items():
        if value is not None:
            report.fact(name.replace("_", " "), value, _setting(value))
    report.closing(
        "Scores are times 100; ± is the sample standard deviation over seeds, "
        "intervals are of 95% over seeds and leave the size of the dev split out. "
        "Before fine-tuning: the heads are removed from the fine-tuned encoder, and "
        "nothing is trained. The acceptable deduction is a definition of this package: "
        "the largest loss on pre-training whose score, by an isotonic fit, is not more "
        f"than {percent(study.settings.tolerance)} below the whole encoder's, by a "
        "one-sided 95% bound of a bootstrap over seeds."
    )
    report.save(sum(result.seconds for result in study.results.values()))


class Numbers:
    """What is made of the results of a study.

    Args:
        study: `Study`, all its cells finished.

    Attributes:
        loss: float, of the whole encoder, nats.
        entropy: float, of the tokens it was measured on.
        curves: dict of `RemovalCurve` by name.
        no_heads: float. Loss without any head.
        coherences: dict of `Coherence` by pair of names of losses; a pair of one name
            are the seeds of one task.
        learned: dict of bool by task: whether the whole encoder scores higher than it
            does without any head, beyond the interval; True if that is not measured.
        deductions: dict of `Deduction`, or None, by task and `"before"` or `"after"`.
        controls: list of dicts, importance against random heads at equal loss.
    """

    def __init__(self, study):
        self.study = study
        self.settings = study.settings
        self.seeds = list(dict.fromkeys(self.settings.seed))
        found = self._result(WHOLE, PRETRAINING).metrics
        self.loss, self.entropy = found["loss"], found["unigram_entropy"]
        random = range(self.settings.num_random_orders)
        self.curves = {name: study.curve(name) for name in (*ORDERS, "reversed")}
        self.curves["random"] = study.curve("random", random)
        self.no_heads = float(self.curves[self.settings.order].mean[-1])
        self.coherences = self._coherences()
        self.learned = {task: self._learned(task) for task in study.tasks}
        self.deductions = {
            (task, when): self._deduction(task, when) if self.learned[task] else None
            for task in study.tasks
            for when in ("before", "after")
        }
        # Without all heads there is nothing left to choose.
        self.controls = [
            self._control(task, share)
            for task in study.tasks
            for share in self.settings.pruned_shares
            if share < 1 and self.learned[task]
        ]

    def _result(self, encoder, task, seed=0):
        return self.study.results[StudyCell(encoder, task, seed)]

    def title(self, loss):
        """What a loss is called: pre-training, or the title of a task."""
        tasks = self.study.tasks
        return tasks[loss].task.title if loss in tasks else "pre-training"

    def given_up(self, encoder, seed=0):
        """Loss on pre-training above the whole encoder's, nats, or None."""
        if encoder == WHOLE:
            return 0.0
        cell = StudyCell(encoder, PRETRAINING, seed)
        if cell not in self.study.results:
            # Scored before fine-tuning alone.
            curve = self.curves[self.settings.order]
            share = float(encoder.partition(" ")[2])
            loss = float(curve.mean[np.abs(curve.shares - share).argmin()])
        else:
            loss = self.study.results[cell].metrics["loss"]
        return None if loss is None else loss - self.loss

    def losses(self, encoder):
        """`given_up` by seed, float `(seeds,)`, or None."""
        seeds = self.seeds if encoder.startswith("random") else [0] * len(self.seeds)
        found = [self.given_up(encoder, seed) for seed in seeds]
        return None if None in found else np.array(found)

    def scores(self, encoder, task, when="after"):
        """Scores by seed, float `(seeds,)`, nan where a run diverged; None if none."""
        found = []
        for seed in self.seeds:
            if when == "after":
                score = self._result(encoder, task, seed).score
            elif encoder == WHOLE:
                score = self._result(WHOLE, task, seed).score
            else:
                removed = self._result(WHOLE, task, seed).metrics.get("removed", {})
                score = removed.get(encoder)
            found.append(np.nan if score is None else score)
        return None if np.isnan(found).all() else np.array(found)

    def encoders(self, when):
        """Names of the encoders that are pruned by importance, the whole one first."""
        shares = self.settings.pruned_shares
        if when == "before":
            shares = sorted({*shares, *self.settings.shares} - {0.0})
        return [WHOLE, *(f"importance {share:g}" for share in shares)]

    def _points(self, task, when):
        """Losses given up `(points,)` and scores `(runs, points)` of these encoders."""
        encoders = self.encoders(when)
        losses = [self.given_up(name) for name in encoders]
        scores = [self.scores(name, task, when) for name in encoders]
        missing = np.full(len(self.seeds), np.nan)
        scores = np.array([missing if s is None else s for s in scores]).T
        return np.array(losses), scores[np.isfinite(scores).all(axis=1)]

    def _learned(self, task):
        scores = [self.scores(n, task, "before") for n in (WHOLE, "importance 1")]
        found = _difference(scores)
        if found is None:
            return True
        return found.sign > 0 or (found.lower is None and found.mean > 0)

    def _deduction(self, task, when):
        losses, scores = self._points(task, when)
        return acceptable_deduction(losses, scores, tolerance=self.settings.tolerance)

    def _control(self, task, share):
        by_importance, by_chance = f"importance {share:g}", f"random {share:g}"
        row = {
            "task": task,
            "share": share,
            "share, random": self._share_removed(by_chance),
            "loss, importance": self.given_up(by_importance),
            "loss, random": float(self.losses(by_chance).mean()),
        }
        for when in ("before", "after"):
            names = by_importance, by_chance
            row[when] = _difference([self.scores(n, task, when) for n in names])
        return row

    def _share_removed(self, encoder):
        """Mean over seeds, of random heads."""
        total = sum(layer_counts(self.study.whole.backbone)[0])
        kept = [
            self._result(encoder, PRETRAINING, seed).metrics["heads"]
            for seed in self.seeds
        ]
        return float(1 - np.mean(kept) / total)

    def _statistics(self, loss):
        """`GateStatistics` of a loss, one for each run that did not diverge."""
        study = self.study
        if loss == PRETRAINING:
            return [head_statistics(study.importance(loss))[0]]
        return [
            head_statistics(study.importance(loss, seed))[0]
            for seed in self.seeds
            if self._result(WHOLE, loss, seed).score is not None
        ]

    def _coherences(self):
        losses = [PRETRAINING, *self.study.tasks]
        runs = {loss: self._statistics(loss) for loss in losses}
        pairs = {
            (one, other): list(itertools.product(runs[one], runs[other]))
            for one, other in itertools.combinations(losses, 2)
        }
        pairs |= {
            (loss, loss): list(itertools.combinations(runs[loss], 2))
            for loss in self.study.tasks
        }
        options = {
            "kind": self.settings.kind,
            "normalize": self.settings.normalize,
            "num_permutations": self.settings.num_permutations,
        }
        return {
            names: coherence(each, **options) for names, each in pairs.items() if each
        }

    def heat_maps(self):
        """Importance by layer, by title: pre-training and the mean of each task."""
        study = self.study

        def scores(loss, seed=0):
            heads = study.importance(loss, seed).heads
            return heads.scores(self.settings.kind, self.settings.normalize)

        maps = {"pre-training": scores(PRETRAINING)}
        for task in study.tasks:
            found = [
                scores(task, seed)
                for seed in self.seeds
                if self._result(WHOLE, task, seed).score is not None
            ]
            if found:
                maps[self.title(task)] = np.mean(found, axis=0)
        return maps

    def curves_picture(self):
        """The curves beside the loss without heads and the unigram entropy."""
        lines = {"all heads removed": self.no_heads, "unigram entropy": self.entropy}
        curves = list(self.curves.values())
        return curves_picture(curves, lines, "masked-token loss, nats")

    def overlaps(self):
        """`coherences` by label; pairs of tasks are left to the tables."""
        found = {}
        for (one, other), each in self.coherences.items():
            if PRETRAINING in (one, other):
                found[f"pre-training, {self.title(other)}"] = each
            elif one == other:
                found[f"{self.title(one)}, two seeds"] = each
        return found

    def series(self):
        """Losses given up and scores, by title of the task and label."""
        found = {}
        for task in self.study.tasks:
            series = {}
            for when in ("before", "after"):
                losses, scores = self._points(task, when)
                if len(scores):
                    series[f"{when} fine-tuning"] = losses, scores
            random = [f"random {share:g}" for share in self.settings.pruned_shares]
            for label, names in (
                ("random heads, after", random),
                *((name, [name]) for name in self.study.others),
            ):
                losses = [self.losses(name) for name in names]
                scores = [self.scores(name, task) for name in names]
                known = [
                    (x.mean(), y)
                    for x, y in zip(losses, scores, strict=True)
                    if x is not None and y is not None and np.isfinite(y).all()
                ]
                if known:
                    x, y = zip(*known, strict=True)
                    series[label] = np.array(x), np.array(y).T
            if series:
                found[self.title(task)] = series
        return found


def findings(numbers):
    """What the numbers say, a list of sentences; each holds under its condition.

    Args:
        numbers: `Numbers`.
    """
    return [
        *_of_pretraining(numbers),
        *_of_coherence(numbers),
        *_of_deductions(numbers),
        *_of_controls(numbers),
        *_of_others(numbers),
    ]


def _of_pretraining(numbers):
    cost, learned = numbers.no_heads - numbers.loss, numbers.entropy - numbers.loss
    yield (
        f"The masked-token loss is {numbers.loss:.3f} nats, {abs(learned):.3f} "
        f"{'below' if learned > 0 else 'above'} the unigram entropy of the same text; "
        f"removing all heads costs {cost:.3f}."
    )
    if learned <= 0 or cost < _LEAST_COST:
        yield (
            "That is too little for the importance of heads to mean much: the model "
            "needs more pre-training."
        )
    curve, random = numbers.curves[numbers.settings.order], numbers.curves["random"]
    point = int(np.abs(curve.shares - 0.5).argmin())
    ours, theirs = curve.mean[point], random.mean[point]
    low, high = (bound[point] for bound in random.band())
    text = (
        f"Removing {100 * curve.shares[point]:.0f}% of the heads by importance changes "
        f"the loss by {ours - numbers.loss:+.3f}, at random by "
        f"{theirs - numbers.loss:+.3f}"
    )
    if not np.isfinite(low):
        yield f"{text} (a single order, no interval)."
    elif ours < low or ours > high:
        yield f"{text}, a difference beyond the interval of the random orders."
    else:
        yield f"{text}, which is within the interval of the random orders."


def _of_coherence(numbers):
    groups = {
        "between pre-training and tasks": lambda a, b: a == PRETRAINING,
        "between tasks": lambda a, b: PRETRAINING != a != b,
        "between two seeds of one task": lambda a, b: a == b,
    }
    for name, belongs in groups.items():
        found = [c for pair, c in numbers.coherences.items() if belongs(*pair)]
        if not found:
            continue
        text = (
            f"Rank correlation of importance {name}: "
            f"{np.mean([each.spearman for each in found]):.2f}"
        )
        corrected = [each.corrected for each in found if each.corrected is not None]
        if corrected:
            text += f" ({np.mean(corrected):.2f} corrected for reliability)"
        above = sum(each.p_value < 0.05 for each in found)
        yield f"{text}; within layers beyond chance in {above} of {len(found)}."
    lower = [
        numbers.coherences[PRETRAINING, task].spearman < ceiling.spearman
        for (task, other), ceiling in numbers.coherences.items()
        if task == other
    ]
    if lower:
        yield (
            "Pre-training ranks the heads less like a task than another seed of the "
            f"task does in {sum(lower)} of {len(lower)} tasks."
        )


def _of_deductions(numbers):
    if len(numbers.seeds) < 2:
        yield "With one seed there is no interval and no acceptable deduction."
        return
    points = percent(numbers.settings.tolerance)
    for task in numbers.study.tasks:
        if not numbers.learned[task]:
            yield (
                f"On {numbers.title(task)} the whole encoder scores like one without "
                "heads, so that no deduction is known and it is not compared below."
            )
            continue
        parts = []
        for when in ("before", "after"):
            found = numbers.deductions[task, when]
            if found is None:
                parts.append(f"not known {when} fine-tuning")
            elif found.value is None:
                parts.append(f"none {when} fine-tuning")
            else:
                parts.append(
                    f"{'at least ' * found.is_all}{found.value:.3f} nats "
                    f"({found.lower:.3f} to {found.upper:.3f}) {when} fine-tuning"
                )
        yield (
            f"Acceptable deduction (our definition, {points} points) for "
            f"{numbers.title(task)}: {', '.join(parts)}."
        )


def _of_controls(numbers):
    for when in ("before", "after"):
        found = [row[when] for row in numbers.controls if row[when] is not None]
        if not found:
            continue
        signs = [each.sign for each in found]
        mean = 100 * np.mean([each.mean for each in found])
        text = (
            f"At equal pre-training loss, {when} fine-tuning, heads kept by importance "
            f"score {mean:+.2f} points against random ones on average"
        )
        if any(signs):
            yield (
                f"{text}: higher beyond the interval in {signs.count(1)} of "
                f"{len(found)} comparisons, lower in {signs.count(-1)}."
            )
        else:
            yield f"{text}; no difference is beyond its interval."


def _of_others(numbers):
    """Truncated encoders and students, beside what is pruned to the nearest loss."""
    pruned = numbers.encoders("after")
    for name in numbers.study.others:
        losses = numbers.losses(name)
        if losses is None:
            yield f"Of {name} the loss is not measured: it has no masked-token head."
            continue
        nearest = min(pruned, key=lambda each: abs(numbers.given_up(each) - losses[0]))
        differences = []
        for task in numbers.study.tasks:
            found = _difference([numbers.scores(n, task) for n in (name, nearest)])
            if found is not None and numbers.learned[task]:
                mark = "" if found.sign else " (within its interval)"
                differences.append(
                    f"{numbers.title(task)} {100 * found.mean:+.2f}{mark}"
                )
        yield (
            f"The encoder {name} gives up {losses[0]:.3f} nats; against "
            f"{nearest}, which gives up {numbers.given_up(nearest):.3f}, it scores "
            f"{', '.join(differences) or 'nothing that was measured'}."
        )


def _add_tables(report, numbers):
    curves = numbers.curves
    report.text("Masked-token loss, nats, by the share of heads removed:")
    first = curves[numbers.settings.order]
    report.table(
        "curves",
        [
            {
                "share": float(share),
                **{name: float(curve.mean[i]) for name, curve in curves.items()},
                "deviation of random": _finite(curves["random"].deviation[i]),
            }
            for i, share in enumerate(first.shares)
        ],
        {
            "share": "{:g}".format,
            **dict.fromkeys((*curves, "deviation of random"), _LOSS),
        },
    )
    report.text("How alike losses rank the heads; one name twice: seeds of one task.")
    report.table(
        "coherence",
        [_coherence_row(numbers, *pair, c) for pair, c in numbers.coherences.items()],
        dict.fromkeys(
            ("Spearman", "corrected", "top quarter", "by chance"), "{:.2f}".format
        )
        | {"p within layers": "{:.4f}".format},
    )
    report.values(
        "overlap",
        {
            f"{one}, {other}": {
                "common": found.overlap.tolist(),
                "by chance": found.overlap_by_chance.tolist(),
                "by chance within layers": found.overlap_within.tolist(),
            }
            for (one, other), found in numbers.coherences.items()
        },
    )
    report.text("Acceptable deduction, nats:")
    report.table(
        "deduction",
        [
            {
                "task": numbers.title(task),
                "fine-tuning": when,
                "deduction": None if found is None else found.value,
                "from": None if found is None else found.lower,
                "to": None if found is None else found.upper,
                "all measured": None if found is None else found.is_all,
            }
            for (task, when), found in numbers.deductions.items()
        ],
        dict.fromkeys(("deduction", "from", "to"), _LOSS),
    )
    if numbers.controls:
        report.text(
            "Score of heads kept by importance minus that of random ones at equal "
            "loss, points; nats given up by both:"
        )
        report.table(
            "control",
            [_control_row(numbers, row) for row in numbers.controls],
            {
                "share": "{:g}".format,
                "share, random": "{:.2f}".format,
                **dict.fromkeys(("loss, importance", "loss, random"), _LOSS),
                **{
                    f"{when}{bound}": percent
                    for when in ("before", "after")
                    for bound in ("", ", from", ", to")
                },
            },
        )
    for task in numbers.study.tasks:
        report.text(
            f"{numbers.title(task)}: {numbers.study.tasks[task].task.main_metric}"
        )
        report.table(
            f"scores_{task}",
            list(_score_rows(numbers, task)),
            dict.fromkeys(("before", "after", "±", "± "), percent)
            | {"given up": _LOSS},
        )


def _coherence_row(numbers, one, other, found):
    quarter = max(1, round(len(found.overlap) / 4)) - 1
    return {
        "one": numbers.title(one),
        "other": numbers.title(other),
        "Spearman": found.spearman,
        "corrected": found.corrected,
        "p within layers": found.p_value,
        "top quarter": float(found.overlap[quarter]),
        "by chance": float(found.overlap_by_chance[quarter]),
        "pairs of runs": found.num_pairs,
    }


def _control_row(numbers, row):
    cells = {**row, "task": numbers.title(row["task"])}
    for when in ("before", "after"):
        found = cells.pop(when)
        for name, bound in (("mean", ""), ("lower", ", from"), ("upper", ", to")):
            cells[when + bound] = None if found is None else getattr(found, name)
    return cells


def _score_rows(numbers, task):
    """A row for each encoder."""
    study = numbers.study
    random = [f"random {share:g}" for share in study.settings.pruned_shares]
    tuned = (*numbers.encoders("after"), *random, *study.others)
    for name in (*numbers.encoders("before"), *random, *study.others):
        losses = numbers.losses(name)
        row = {
            "encoder": name,
            "given up": None if losses is None else float(losses.mean()),
        }
        for when, mark in (("before", "±"), ("after", "± ")):
            known = when == "before" or name in tuned
            scores = numbers.scores(name, task, when) if known else None
            row[when] = None if scores is None else float(np.nanmean(scores))
            row[mark] = None if scores is None else _finite(_deviation(scores))
        row["runs"] = len(numbers.seeds)
        yield row


def _difference(pair):
    """`paired_difference` of the runs that both have, or None without any."""
    if any(scores is None for scores in pair):
        return None
    both = np.isfinite(pair).all(axis=0)
    return paired_difference(pair[0][both], pair[1][both]) if both.any() else None


def _deviation(scores):
    known = scores[np.isfinite(scores)]
    return known.std(ddof=1) if len(known) > 1 else np.nan


def _setting(value):
    if isinstance(value, tuple):
        return ", ".join(map(_setting, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _finite(value):
    return float(value) if np.isfinite(value) else None
