"""Trains a small student for 20 steps, as told on the command line; saves weights.

Run by test_distribution in processes of their own: the number of devices is fixed when
TensorFlow starts.
"""

import argparse

import keras_hub
import numpy as np
import tensorflow as tf

import keras_minilmv2 as km

STEPS, BATCH, LENGTH, VOCABULARY = 20, 8, 12, 40


def make_examples():
    generator = np.random.default_rng(0)
    shape = STEPS * BATCH, LENGTH
    # Ragged, one of them empty of tokens in every batch of 8.
    lengths = generator.integers(1, LENGTH + 1, shape[0])
    lengths[::BATCH] = 0
    mask = np.arange(LENGTH) < lengths[:, None]
    ids = generator.integers(0, VOCABULARY, shape) * mask
    return {"token_ids": ids.astype("int32"), "padding_mask": mask.astype("int32")}


def spread(backbone, seed):
    generator = np.random.default_rng(seed)
    for variable in backbone.trainable_variables:
        if len(variable.shape) > 1:
            variable.assign(generator.normal(scale=0.5, size=variable.shape))
    return backbone


def make_strategy(name, devices):
    if name == "workers":
        return tf.distribute.MultiWorkerMirroredStrategy()
    cpus = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(
        cpus[0], [tf.config.LogicalDeviceConfiguration()] * devices
    )
    if name == "mirrored":
        return tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(devices)])
    return tf.distribute.get_strategy()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("output")
    parser.add_argument("--strategy", default="none")
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--accumulation", type=int, default=1)
    parser.add_argument("--steps-per-execution", type=int, default=1)
    parser.add_argument("--jit", action="store_true")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--dropout", type=float, default=0.0)
    options = parser.parse_args()

    strategy = make_strategy(options.strategy, options.devices)
    with strategy.scope():
        sizes = {"num_heads": 4, "hidden_dim": 16, "intermediate_dim": 24}
        teacher = spread(
            keras_hub.models.BertBackbone(
                vocabulary_size=VOCABULARY,
                num_layers=3,
                max_sequence_length=16,
                dtype=options.dtype,
                **sizes,
            ),
            seed=1,
        )
        student = spread(
            km.student_backbone(
                teacher,
                num_layers=2,
                num_heads=2,
                hidden_dim=8,
                intermediate_dim=16,
                dropout=options.dropout,
                seed=2,
                dtype=options.dtype,
            ),
            seed=2,
        )
        distiller = km.RelationDistiller(
            teacher, student, teacher_layer=3, num_relation_heads=4
        )
        # A large epsilon: Adam makes a step of rounding where a gradient is 0. The
        # clipping acts in every step.
        distiller.compile(
            optimizer=km.adamw(
                0.01, 5, STEPS, epsilon=1e-3, gradient_clip_norm=0.5, weight_decay=0.1
            ),
            jit_compile=options.jit,
            accumulation_steps=options.accumulation,
            steps_per_execution=options.steps_per_execution,
        )
    dataset = tf.data.Dataset.from_tensor_slices(make_examples())
    dataset = dataset.batch(BATCH, drop_remainder=True)
    history = distiller.fit(dataset, verbose=0, shuffle=False).history
    losses = distiller.evaluate(dataset, return_dict=True, verbose=0)
    np.savez(
        options.output,
        *[np.asarray(variable) for variable in student.weights],
        train=history["loss"][-1],
        held_out=losses["loss"],
        steps=tf.convert_to_tensor(distiller.optimizer.iterations).numpy(),
    )


main()
