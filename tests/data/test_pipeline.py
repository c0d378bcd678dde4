import itertools
import re
import time

import numpy as np
import pytest
import tensorflow as tf
from small_examples import numbers, write_examples

from keras_minilmv2.data.packing import corpus_errors
from keras_minilmv2.data.pipeline import (
    as_dataset,
    batch_indices,
    sample,
    shuffled,
    training_batches,
)
from keras_minilmv2.data.shards import PreparedExamples


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    return write_examples(tmp_path_factory.mktemp("prepared"), 100)


def order(examples, num_batches, batch_size=20, **kwargs):
    """The numbers of the examples, `(num_batches, batch_size)`."""
    batches = training_batches(examples, batch_size, **{"seed": 0, **kwargs})
    return np.array([numbers(b) for b in itertools.islice(batches, num_batches)])


# Order.


@pytest.mark.parametrize("num_workers", [1, 2, 4])
@pytest.mark.parametrize("batch_size", [20, 12, 60])
def test_every_example_is_seen_once_an_epoch(examples, num_workers, batch_size):
    num_steps = 3 * 100 // batch_size  # three epochs exactly
    seen = np.concatenate(
        [
            order(
                examples, num_steps, batch_size, num_workers=num_workers, worker=worker
            )
            for worker in range(num_workers)
        ],
        axis=1,
    )
    for epoch in seen.reshape(3, 100):
        assert np.bincount(epoch, minlength=100).tolist() == [1] * 100


@pytest.mark.parametrize("num_workers", [2, 4])
def test_workers_together_give_the_batch_of_one_worker(examples, num_workers):
    parts = [
        order(examples, 8, num_workers=num_workers, worker=worker)
        for worker in range(num_workers)
    ]
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), order(examples, 8))


def test_a_seed_gives_one_order_and_another_seed_another(examples):
    first = order(examples, 5, seed=1)
    np.testing.assert_array_equal(order(examples, 5, seed=1), first)
    assert (order(examples, 5, seed=2) != first).mean() > 0.9


def test_every_epoch_has_another_order(examples):
    first, second, third = order(examples, 15).reshape(3, 100)
    assert (first != second).mean() > 0.9
    assert (second != third).mean() > 0.9


def test_a_batch_may_hold_examples_of_two_epochs(examples):
    seen = order(examples, 10, batch_size=30).ravel()
    for epoch in seen.reshape(3, 100):
        np.testing.assert_array_equal(np.sort(epoch), np.arange(100))


def test_a_batch_larger_than_an_epoch_repeats_it(examples):
    counts = np.bincount(order(examples, 1, batch_size=300)[0])
    assert counts.tolist() == [3] * 100


@pytest.mark.parametrize("start_step", [1, 4, 5, 7, 1_000, 10**15])
def test_batches_begin_at_any_step(examples, start_step):
    found = order(examples, 3, start_step=start_step, batch_size=30)
    for step, batch in enumerate(found, start=start_step):
        np.testing.assert_array_equal(batch, batch_indices(100, 30, step, seed=0))
    if start_step < 100:
        rest = order(examples, start_step + 3, batch_size=30)[start_step:]
        np.testing.assert_array_equal(found, rest)


def test_batches_are_int32_with_segment_ids_when_asked_for(examples):
    batch = next(training_batches(examples, 4, seed=0, segment_ids=True))
    assert sorted(batch) == ["padding_mask", "segment_ids", "token_ids"]
    assert all(v.shape == (4, 4) and v.dtype == np.int32 for v in batch.values())
    assert not batch["segment_ids"].any()


def test_a_sample_is_drawn_without_replacement(examples):
    drawn = numbers(sample(examples, 30))
    assert len(set(drawn)) == 30
    assert max(drawn) > 80  # from everywhere
    assert (drawn != numbers(sample(examples, 30, seed=1))).any()
    assert sorted(numbers(sample(examples, 1_000))) == list(range(100))


# The permutation.


@pytest.mark.parametrize("size", [1, 2, 3, 5, 127, 128, 129, 1_000, 65_537])
def test_shuffled_is_a_permutation(size):
    for seed, epoch in ((0, 0), (1, 0), (0, 1)):
        found = shuffled(np.arange(size), size, seed, epoch)
        np.testing.assert_array_equal(np.sort(found), np.arange(size))


def test_shuffled_does_not_depend_on_what_is_asked_with_it():
    whole = shuffled(np.arange(1_000), 1_000, seed=3)
    np.testing.assert_array_equal(shuffled([7, 5, 7], 1_000, seed=3), whole[[7, 5, 7]])


def test_shuffled_reaches_every_place_equally_often():
    counts = np.zeros((10, 10))
    for seed in range(300):
        counts[np.arange(10), shuffled(np.arange(10), 10, seed)] += 1
    # Chi-squared of 81 degrees of freedom: mean 81, standard deviation 12.7.
    assert ((counts - 30) ** 2 / 30).sum() < 81 + 4 * 12.7


def test_shuffled_neighbours_are_far_apart():
    size = 100_000
    found = shuffled(np.arange(size), size, seed=0)
    gaps = np.abs(np.diff(found)) / size
    assert gaps.mean() == pytest.approx(1 / 3, abs=0.01)
    assert abs(np.corrcoef(np.arange(size), found)[0, 1]) < 0.02
    other = shuffled(np.arange(size), size, seed=0, epoch=1)
    assert abs(np.corrcoef(found, other)[0, 1]) < 0.02


def test_the_order_of_a_seed_stays_what_it_was():
    # A run is resumed by a later version of the package.
    found = shuffled(np.arange(5), 1_000, seed=0)
    assert found.tolist() == [794, 114, 539, 455, 309]
    found = shuffled(np.arange(3), 10**9, seed=7, epoch=2)
    assert found.tolist() == [331757279, 235951711, 561803519]


# Speed.


def test_first_batch_of_a_million_examples_takes_under_two_seconds(tmp_path):
    write_examples(tmp_path, 1_000_000, shard_size=30_000)
    seconds = {}
    for step in (10, 100_000):
        started = time.perf_counter()
        batches = as_dataset(PreparedExamples(tmp_path), 64, seed=0, start_step=step)
        found = numbers(next(iter(batches)))
        seconds[step] = time.perf_counter() - started
        np.testing.assert_array_equal(found, batch_indices(10**6, 64, step, seed=0))
    assert max(seconds.values()) < 2, seconds


def test_input_alone_delivers_1200_examples_a_second(tmp_path):
    examples = write_examples(tmp_path, 5_000, sequence_length=128, shard_size=1_000)
    for batches in (
        training_batches(examples, 64, seed=0),
        iter(as_dataset(examples, 64, seed=0)),
    ):
        next(batches)
        started = time.perf_counter()
        for _ in range(40):
            next(batches)
        assert 40 * 64 / (time.perf_counter() - started) > 1_200


# tf.data.


@pytest.mark.parametrize("segment_ids", [False, True])
def test_dataset_gives_the_batches_with_static_shapes(examples, segment_ids):
    options = {"seed": 1, "num_workers": 2, "worker": 1, "segment_ids": segment_ids}
    dataset = as_dataset(examples, 30, start_step=4, **options)
    spec = tf.TensorSpec([15, 4], tf.int32)
    names = ["token_ids", "padding_mask"] + ["segment_ids"] * segment_ids
    assert dataset.element_spec == dict.fromkeys(names, spec)
    expected = training_batches(examples, 30, start_step=4, **options)
    for batch in dataset.take(5).as_numpy_iterator():
        assert {n: v.tolist() for n, v in batch.items()} == {
            n: v.tolist() for n, v in next(expected).items()
        }


def test_dataset_is_not_sharded_again(examples):
    options = as_dataset(examples, 4, seed=0).options()
    policy = options.experimental_distribute.auto_shard_policy
    assert policy == tf.data.experimental.AutoShardPolicy.OFF


def test_state_of_the_dataset_iterator_is_saved_and_restored(examples, tmp_path):
    iterator = iter(as_dataset(examples, 20, seed=0))
    for _ in range(3):
        next(iterator)
    saved = tf.train.Checkpoint(iterator=iterator).save(str(tmp_path / "state"))
    fresh = iter(as_dataset(examples, 20, seed=0))
    tf.train.Checkpoint(iterator=fresh).restore(saved)
    np.testing.assert_array_equal(numbers(next(fresh)), numbers(next(iterator)))


def test_damage_keeps_its_text_in_a_dataset(tmp_path):
    examples = write_examples(tmp_path, 100)
    shard = tmp_path / "train-00001.npy"
    data = bytearray(shard.read_bytes())
    data[-20] ^= 1
    shard.write_bytes(data)
    with (
        pytest.raises(ValueError, match=r"^`path` must hold .* checksum for row 38\."),
        corpus_errors(examples),
    ):
        list(as_dataset(examples, 20, seed=0).take(5))


# Arguments.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"num_workers": 3},
            "`num_workers` must divide `batch_size`, and both be at least 1. "
            "Received: num_workers=3, batch_size=20.",
        ),
        (
            {"batch_size": 0},
            "`num_workers` must divide `batch_size`, and both be at least 1. "
            "Received: num_workers=1, batch_size=0.",
        ),
        (
            {"worker": 1},
            "`worker` must be at least 0 and below `num_workers`. "
            "Received: worker=1, num_workers=1.",
        ),
        ({"seed": -1}, "`seed` must be at least 0. Received: seed=-1."),
        (
            {"start_step": -1},
            "`start_step` must be at least 0. Received: start_step=-1.",
        ),
    ],
)
def test_wrong_argument_is_named(examples, arguments, message):
    for function in (training_batches, as_dataset):
        with pytest.raises(ValueError, match="^" + re.escape(message) + "$"):
            function(examples, **{"batch_size": 20, "seed": 0, **arguments})


def test_examples_must_not_be_empty(tmp_path):
    message = "`examples` must not be empty. Received: 0 examples."
    with pytest.raises(ValueError, match="^" + re.escape(message) + "$"):
        training_batches(write_examples(tmp_path, 0), 20, seed=0)
