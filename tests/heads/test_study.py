"""Coherence of importances, acceptable deduction and losses without heads."""

import itertools

import numpy as np
import pytest
from scipy import stats
from small_trainers import VOCABULARY, make_batch, make_teacher, make_tokenizer

from keras_minilmv2.distillation.masked_tokens import MaskedTokenTrainer
from keras_minilmv2.heads.importance import GateStatistics
from keras_minilmv2.heads.orders import random_order
from keras_minilmv2.heads.pruning import prune_heads
from keras_minilmv2.heads.study import (
    _drops,
    acceptable_deduction,
    coherence,
    masked_token_loss,
    paired_difference,
    step_of_loss,
    trainer_like,
    unigram_entropy,
    within_layers,
)

RAW = {"normalize": False}


def statistics(first, second=None):
    """Those of two halves of ten examples each whose mean importances are given."""
    halves = 10 * np.array([first, first if second is None else second], "float64")
    return GateStatistics(np.array([10, 10]), halves, halves**2, halves**4)


def noisy(scores, seed, noise=0.3):
    generator = np.random.default_rng(seed)
    halves = [scores + noise * generator.random(np.shape(scores)) for _ in range(2)]
    return statistics(*halves)


def test_correlation_is_spearmans_and_corrected_by_both_reliabilities():
    scores = np.random.default_rng(0).random((3, 4))
    one, other = noisy(scores, 1), noisy(scores, 2)
    found = coherence([(one, other)], **RAW)
    wanted = stats.spearmanr(one.absolute, other.absolute, axis=None).statistic
    assert found.spearman == pytest.approx(wanted)
    reliabilities = [each.reliability(normalize=False) for each in (one, other)]
    assert found.corrected == pytest.approx(wanted / np.sqrt(np.prod(reliabilities)))
    assert found.corrected > found.spearman


def test_a_loss_that_two_halves_do_not_agree_on_has_no_corrected_correlation():
    scores = np.arange(6.0).reshape(2, 3) + 1
    unreliable = statistics(scores, 2 * scores[::-1, ::-1])
    assert unreliable.reliability(normalize=False) == 0
    found = coherence([(statistics(scores), unreliable)], **RAW)
    assert found.corrected is None
    # Halves that make all means equal.
    equal = statistics(scores, scores[::-1, ::-1])
    found = coherence([(statistics(scores), equal)], **RAW)
    assert (found.spearman, found.corrected, found.p_value) == (0.0, None, 1.0)


def test_the_mean_is_over_pairs():
    scores = np.random.default_rng(0).random((3, 4))
    runs = [noisy(scores, seed) for seed in range(3)]
    pairs = list(itertools.combinations(runs, 2))
    found = coherence(pairs, **RAW)
    singly = [coherence([pair], **RAW) for pair in pairs]
    for name in ("spearman", "corrected"):
        wanted = np.mean([getattr(each, name) for each in singly])
        assert getattr(found, name) == pytest.approx(wanted)
    np.testing.assert_allclose(
        found.overlap, np.mean([each.overlap for each in singly], axis=0)
    )
    assert found.num_pairs == 3


def test_permutations_keep_heads_in_their_layers():
    orders = within_layers((3, 4), 200)
    assert (orders // 4 == np.repeat(np.arange(3), 4)).all()
    assert (np.sort(orders) == np.arange(12)).all()
    assert len(np.unique(orders, axis=0)) > 190


def test_p_value_is_the_share_of_all_permutations_within_layers():
    generator = np.random.default_rng(3)
    one, other = generator.random((2, 2, 3))
    found = coherence([(statistics(one), statistics(other))], **RAW)
    observed = stats.spearmanr(one, other, axis=None).statistic
    exact = []
    for first in itertools.permutations(range(3)):
        for second in itertools.permutations(range(3)):
            mixed = np.stack([other[0][list(first)], other[1][list(second)]])
            exact.append(stats.spearmanr(one, mixed, axis=None).statistic)
    wanted = np.mean(np.array(exact) >= observed - 1e-12)
    assert found.p_value == pytest.approx(wanted, abs=0.04)


def test_layer_means_alone_are_no_evidence_within_layers():
    generator = np.random.default_rng(0)
    means = 10 * np.arange(6.0)[:, None] + 1
    one, other, like = means + generator.random((3, 6, 8))
    like = one + 0.1 * (like - means)
    apart = coherence([(statistics(one), statistics(other))], **RAW)
    alike = coherence([(statistics(one), statistics(like))], **RAW)
    assert apart.spearman > 0.95
    assert apart.p_value > 0.05
    assert alike.p_value < 0.001


def test_overlap_is_that_of_sets():
    generator = np.random.default_rng(1)
    one, other = generator.random((2, 3, 4))
    found = coherence([(statistics(one), statistics(other))], **RAW)
    for k in range(1, 13):
        best = [set(np.argsort(-x, axis=None)[:k]) for x in (one, other)]
        assert found.overlap[k - 1] == pytest.approx(len(best[0] & best[1]) / k)


def test_overlap_by_chance_is_what_random_rankings_have():
    generator = np.random.default_rng(2)
    one = statistics(generator.random((1, 10)))
    found = [
        coherence([(one, statistics(generator.random((1, 10))))], num_permutations=1)
        for _ in range(300)
    ]
    mean = np.mean([each.overlap for each in found], axis=0)
    np.testing.assert_allclose(mean, found[0].overlap_by_chance, atol=0.06)
    # In a single layer, permuting within it is permuting all.
    within = coherence([(one, one)]).overlap_within
    np.testing.assert_allclose(within, found[0].overlap_by_chance, atol=0.03)


def test_pairs_of_different_shapes_are_refused():
    ones = statistics(np.ones((2, 3))), statistics(np.ones((2, 4)))
    with pytest.raises(ValueError, match=r"`pairs` must be .*1 pairs, shapes"):
        coherence([ones])
    with pytest.raises(ValueError, match=r"`pairs` must be .*0 pairs"):
        coherence([])


def test_the_fit_is_the_isotonic_one():
    """By the formula of minima and maxima of means, for random scores."""
    generator = np.random.default_rng(0)
    for _ in range(20):
        scores = generator.random((1, 6))
        losses = np.sort(generator.random((1, 6)))
        losses[0, 0] = 0.0
        y = scores[0]
        fit = [
            min(max(y[a : b + 1].mean() for b in range(i, 6)) for a in range(i + 1))
            for i in range(6)
        ]
        found = _drops(losses, scores, losses[0])
        np.testing.assert_allclose(found, np.array(fit) - y[0])


def test_points_of_equal_loss_are_one_point():
    losses, scores = np.array([[0.0, 0.5, 0.5]]), np.array([[0.9, 0.7, 0.5]])
    found = _drops(losses, scores, np.array([0.0, 0.25, 0.5]))
    np.testing.assert_allclose(found, [0.0, -0.15, -0.3])


def test_a_deduction_without_noise_is_read_off_the_line():
    losses = [0.0, 0.1, 0.2, 0.3]
    found = acceptable_deduction(losses, [[0.9, 0.9, 0.895, 0.88]] * 2)
    # 0.5 points of the 1.5 between the last two.
    assert found.value == pytest.approx(0.2 + 0.1 / 3)
    assert (found.lower, found.upper) == pytest.approx((found.value, found.value))
    assert not found.is_all


def test_a_deduction_may_be_all_that_was_measured_or_none():
    better = acceptable_deduction([0.0, 0.1, 0.4], [[0.8, 0.81, 0.82]] * 2)
    assert (better.value, better.is_all) == (0.4, True)
    # A point of no loss that is worse than the whole encoder.
    worse = acceptable_deduction([0.0, -0.1, 0.4], [[0.8, 0.7, 0.6]] * 2)
    assert worse.value is None
    assert (worse.lower, worse.upper) == (0.0, 0.0)


def test_the_bound_is_that_of_the_worst_sample_of_two_runs():
    """Each run alone makes a quarter of the samples, more than one in twenty."""
    losses = [0.0, 0.1, 0.2]
    good, bad = [0.9, 0.9, 0.89], [0.9, 0.88, 0.8]
    found = acceptable_deduction(losses, [good, bad])
    assert found.value == pytest.approx(0.05)
    assert found.lower == pytest.approx(0.05)
    assert found.upper == pytest.approx(0.2)
    mean = acceptable_deduction(losses, [good, bad], confidence=0.5)
    # The mean of both: -1 point at 0.1.
    assert mean.value == pytest.approx(0.1)


def test_losses_may_differ_between_runs():
    losses = [[0.0, 0.1, 0.3], [0.0, 0.2, 0.4]]
    scores = [[0.9, 0.895, 0.87], [0.9, 0.895, 0.87]]
    found = acceptable_deduction(losses, scores)
    # Of the first run alone, 0.5 of the 2.5 points between 0.1 and 0.3.
    assert found.value == pytest.approx(0.1 + 0.2 * 0.005 / 0.025, abs=1e-6)
    assert found.upper == pytest.approx(0.2 + 0.2 * 0.005 / 0.025, abs=1e-6)


def test_a_deduction_of_one_run_is_not_known():
    assert acceptable_deduction([0.0, 0.1], [[0.9, 0.8]]) is None
    assert acceptable_deduction([0.0, 0.1], np.zeros((0, 2))) is None


@pytest.mark.parametrize(
    ("losses", "scores"),
    [
        ([0.0, 0.1], [[0.9, 0.8, 0.7]] * 2),
        ([0.0, np.nan], [[0.9, 0.8]] * 2),
        ([0.0, 0.1], [0.9, 0.8]),
    ],
)
def test_losses_and_scores_that_do_not_fit_are_refused(losses, scores):
    with pytest.raises(ValueError, match="`losses` and `scores` must be finite"):
        acceptable_deduction(losses, scores)


def test_a_difference_has_students_interval():
    one, other = np.random.default_rng(0).random((2, 5))
    found = paired_difference(one, other)
    wanted = stats.ttest_rel(one, other).confidence_interval()
    assert (found.lower, found.upper) == pytest.approx((wanted.low, wanted.high))
    assert paired_difference([1.0, 1.1], [0.0, 0.1]).sign == 1
    assert paired_difference([0.0, 0.1], [1.0, 1.1]).sign == -1
    assert paired_difference([0.0, 1.0], [0.5, 0.4]).sign == 0
    single = paired_difference([0.9], [0.5])
    assert (single.mean, single.lower, single.sign) == (pytest.approx(0.4), None, 0)


@pytest.mark.parametrize("target", [-1.0, 0.0, 0.31, 0.55, 0.9, 5.0])
def test_the_step_of_nearest_loss_is_found_with_few_of_them(target):
    order = random_order((4, 5), seed=0)
    rising = np.sort(np.random.default_rng(0).random(21))
    asked = []

    def loss_of(mask):
        asked.append(mask)
        return rising[int(20 - mask.sum())]

    step, loss = step_of_loss(order, loss_of, target)
    assert step == np.abs(rising - target).argmin()
    assert loss == rising[step]
    assert len(asked) <= 5


def test_unigram_entropy_counts_real_tokens_that_are_not_special():
    tokenizer = make_tokenizer()
    first, second = VOCABULARY.index("w1"), VOCABULARY.index("w2")
    ids = np.array([[2, first, first, second, 3, 0], [2, second, 4, 3, 0, first]])
    batches = [{"token_ids": ids, "padding_mask": (np.arange(6) < 5) * 1 + 0 * ids}]
    assert unigram_entropy(batches, tokenizer) == pytest.approx(np.log(2))


def test_the_loss_without_heads_is_that_of_an_encoder_that_has_none():
    trainer = MaskedTokenTrainer(make_teacher(), make_tokenizer())
    batches = [make_batch(seed=seed) for seed in range(2)]
    loss_of = masked_token_loss(trainer, batches)
    whole = loss_of()
    ones = np.ones((4, 4), "float32")
    assert loss_of(ones) == pytest.approx(whole, rel=1e-5)
    assert loss_of() == whole
    mask = np.array([[1, 0, 1, 1], [0, 0, 0, 0], [1, 1, 1, 1], [0, 1, 0, 0]])
    without = loss_of(mask)
    assert abs(without - whole) > 1e-3
    smaller = prune_heads(trainer.student, mask)
    pruned = trainer_like(trainer, smaller, make_tokenizer())
    assert masked_token_loss(pruned, batches)() == pytest.approx(without, rel=1e-5)
    assert masked_token_loss(trainer, batches, seed=1)() != whole
