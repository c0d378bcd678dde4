"""What two replicas of one process do, printed as JSON.

Run by test_distribution in a process of its own: the number of devices is fixed when
TensorFlow starts.
"""

import contextlib
import json
import sys
import tempfile

import keras
import numpy as np
import tensorflow as tf
from train_small import BATCH, LENGTH, VOCABULARY, make_distiller, make_examples

from keras_minilmv2.training.checkpoints import Checkpoints

DEVICES = ["CPU:0", "CPU:1"]
# Far below the norm of any gradient that is not 0.
LIMIT = 1e-3


def replicas():
    # Collectives know one number of devices in a process.
    reduction = tf.distribute.ReductionToOneDevice()
    return tf.distribute.MirroredStrategy(DEVICES, reduction).scope()


def two_halves_alike():
    """Batches whose second half, that of the second replica, is the first again."""
    generator = np.random.default_rng(1)
    ids = generator.integers(1, VOCABULARY, (BATCH // 2, LENGTH)).astype("int32")
    ids = np.concatenate([ids, ids])
    batch = {"token_ids": ids, "padding_mask": np.ones_like(ids)}
    return tf.data.Dataset.from_tensors(batch).repeat()


def weights(distiller):
    return [np.array(keras.ops.convert_to_numpy(v)) for v in distiller.student.weights]


def difference(ours, theirs):
    return float(max(np.abs(a - b).max() for a, b in zip(ours, theirs, strict=True)))


def seeds(distiller):
    """The dropout seeds of each replica."""
    strategy = distiller.distribute_strategy
    return [
        [
            [int(number) for number in component.numpy()]
            for component in strategy.experimental_local_results(variable.value)
        ]
        for variable in distiller.non_trainable_variables
        if variable.path.endswith("seed_generator_state")
    ]


def with_dropout(steps, distiller=None):
    if distiller is None:
        with replicas():
            distiller = make_distiller(
                dropout=0.5, optimizer=keras.optimizers.SGD(0.01)
            )
    distiller.fit(two_halves_alike(), steps_per_epoch=steps, verbose=0, shuffle=False)
    return distiller


def one_step():
    """The dropout seeds after a step, and how long each clipped update was."""
    with replicas():
        optimizer = keras.optimizers.SGD(1.0, clipnorm=LIMIT)
        distiller = make_distiller(dropout=0.5, optimizer=optimizer)
    variables = distiller.student.trainable_variables
    before = [np.array(variable) for variable in variables]
    with_dropout(1, distiller)
    updates = [
        float(np.linalg.norm(np.array(variable) - old)) / LIMIT
        for variable, old in zip(variables, before, strict=True)
    ]
    return {"seeds": seeds(distiller), "updates": updates}


def clipped(scope, **limit):
    with scope:
        distiller = make_distiller(optimizer=keras.optimizers.SGD(1.0, **limit))
    before = weights(distiller)
    examples = {name: rows[:BATCH] for name, rows in make_examples().items()}
    dataset = tf.data.Dataset.from_tensor_slices(examples)
    dataset = dataset.batch(BATCH, drop_remainder=True)
    distiller.fit(dataset, verbose=0, shuffle=False)
    return [a - b for a, b in zip(weights(distiller), before, strict=True)]


def main():
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(
        cpu, [tf.config.LogicalDeviceConfiguration()] * 2
    )
    facts = {}
    if sys.argv[1] == "one step":
        facts = one_step()
    elif sys.argv[1] == "clipping":
        for limit in ({"clipnorm": 1e-3}, {"clipvalue": 1e-4}):
            one = clipped(contextlib.nullcontext(), **limit)
            two = clipped(replicas(), **limit)
            largest = max(np.abs(change).max() for change in one)
            facts[next(iter(limit))] = difference(one, two) / float(largest)
    else:
        whole = with_dropout(4)
        facts["seeds"] = seeds(whole)
        with tempfile.TemporaryDirectory() as path:
            checkpoints = Checkpoints(path)
            parts = with_dropout(2)
            checkpoints.save(2, parts, {})
            with_dropout(2, parts)
            resumed = with_dropout(1)
            checkpoints.restore(checkpoints.read(2, resumed), resumed)
            with_dropout(2, resumed)
        facts["parts"] = difference(weights(whole), weights(parts))
        facts["resumed"] = difference(weights(whole), weights(resumed))
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
