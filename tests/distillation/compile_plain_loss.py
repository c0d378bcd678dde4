"""Trains a plain Keras model with `compile(loss=...)` on 1, 2 and 4 devices.

Run by test_losses in a process of its own: the number of devices is fixed when
TensorFlow starts. Prints the largest difference of the weights from one device's.
"""

import contextlib

import keras
import numpy as np
import tensorflow as tf

import keras_minilmv2 as km

BATCH, LENGTH, WIDTH, STEPS = 8, 6, 8, 5


def make_model():
    keras.utils.set_random_seed(0)
    states = keras.Input((LENGTH, WIDTH), name="states")
    mask = keras.Input((LENGTH,), dtype="int32", name="padding_mask")
    projections = {
        name: keras.layers.EinsumDense("abc,cde->abde", (LENGTH, 2, 4), name=name)(
            states
        )
        for name in ("query", "key", "value")
    }
    model = keras.Model([states, mask], {**projections, "padding_mask": mask})
    model.compile(
        keras.optimizers.SGD(0.5),
        loss=[km.RelationLoss(4, {"qk": 1.0, "vv": 2.0})],
        jit_compile=False,
    )
    model.optimizer.build(model.trainable_variables)
    return model


def make_dataset():
    generator = np.random.default_rng(0)
    size = BATCH * STEPS
    mask = np.arange(LENGTH) < generator.integers(1, LENGTH + 1, size)[:, None]
    teacher = {
        name: generator.normal(size=(size, LENGTH, 3, 4)).astype("float32")
        for name in ("query", "key", "value")
    }
    states = generator.normal(size=(size, LENGTH, WIDTH)).astype("float32")
    mask = mask.astype("int32")
    data = ((states, mask), {**teacher, "padding_mask": mask})
    dataset = tf.data.Dataset.from_tensor_slices(data)
    return dataset.batch(BATCH, drop_remainder=True)


def trained(num_devices):
    scope = contextlib.nullcontext()
    if num_devices > 1:
        devices = [f"CPU:{i}" for i in range(num_devices)]
        # Collectives know one number of devices in a process.
        reduction = tf.distribute.ReductionToOneDevice()
        scope = tf.distribute.MirroredStrategy(devices, reduction).scope()
    with scope:
        model = make_model()
    start = [np.asarray(v) for v in model.trainable_variables]
    model.fit(make_dataset(), verbose=0)
    return start, [np.asarray(v) for v in model.trainable_variables]


def main():
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(
        cpu, [tf.config.LogicalDeviceConfiguration()] * 4
    )
    start, expected = trained(1)
    moved = max(np.abs(a - b).max() for a, b in zip(start, expected, strict=True))
    differences = [
        max(np.abs(a - b).max() for a, b in zip(expected, weights, strict=True))
        for weights in (trained(number)[1] for number in (2, 4))
    ]
    print(f"moved {moved}, different {max(differences)}")


if __name__ == "__main__":
    main()
