"""Trains a small student for 20 steps, as told on the command line; saves weights.

Run by test_distribution and test_jax in processes of their own: the backend and the
number of devices are fixed when Keras and its framework start.
"""

import argparse
import contextlib

import keras
import numpy as np

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


def make_scope(name, devices):
    if keras.backend.backend() == "jax":
        if devices == 1:
            return contextlib.nullcontext()
        import jax

        jax.config.update("jax_num_cpu_devices", devices)
        return keras.distribution.DataParallel().scope()
    import tensorflow as tf

    return make_strategy(tf, name, devices).scope()


def make_strategy(tf, name, devices):
    if name == "workers":
        return tf.distribute.MultiWorkerMirroredStrategy()
    cpus = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(
        cpus[0], [tf.config.LogicalDeviceConfiguration()] * devices
    )
    if name == "mirrored":
        return tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(devices)])
    return tf.distribute.get_strategy()


def make_dataset():
    examples = make_examples()
    if keras.backend.backend() == "jax":
        return [
            {name: rows[i : i + BATCH] for name, rows in examples.items()}
            for i in range(0, STEPS * BATCH, BATCH)
        ]
    import tensorflow as tf

    dataset = tf.data.Dataset.from_tensor_slices(examples)
    return dataset.batch(BATCH, drop_remainder=True)


def without_heads(backbone):
    """A copy without heads and neurons in layer 1, and one head less in the last."""
    head_mask = np.ones((backbone.num_layers, backbone.num_heads))
    head_mask[0] = head_mask[-1, 0] = 0
    neuron_mask = np.ones((backbone.num_layers, backbone.intermediate_dim))
    neuron_mask[0] = 0
    return km.prune_heads(backbone, head_mask, neuron_mask)


def make_distiller(
    dtype="float32", dropout=0.0, optimizer=None, pruned=False, **options
):
    """A compiled distiller of a small BERT, with large weights."""
    import keras_hub

    sizes = {"num_heads": 4, "hidden_dim": 16, "intermediate_dim": 24}
    teacher = spread(
        keras_hub.models.BertBackbone(
            vocabulary_size=VOCABULARY,
            num_layers=3,
            max_sequence_length=16,
            dtype=dtype,
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
            dropout=dropout,
            seed=2,
            dtype=dtype,
        ),
        seed=2,
    )
    if pruned:
        teacher, student = map(without_heads, (teacher, student))
    distiller = km.RelationDistiller(
        teacher, student, teacher_layer=3, num_relation_heads=4
    )
    # A large epsilon: Adam makes a step of rounding where a gradient is 0. The
    # clipping acts in every step.
    adamw = km.adamw(
        0.01, 5, STEPS, epsilon=1e-3, gradient_clip_norm=0.5, weight_decay=0.1
    )
    distiller.compile(optimizer=optimizer or adamw, **options)
    return distiller


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
    parser.add_argument("--pruned", action="store_true")
    parser.add_argument("--hide-tensorflow", action="store_true")
    options = parser.parse_args()
    if options.hide_tensorflow:
        import tensorflow_hidden  # noqa: F401

    with make_scope(options.strategy, options.devices):
        distiller = make_distiller(
            options.dtype,
            options.dropout,
            pruned=options.pruned,
            jit_compile=options.jit or "auto",
            accumulation_steps=options.accumulation,
            steps_per_execution=options.steps_per_execution,
        )
    dataset = make_dataset()
    start = distiller.evaluate(dataset, return_dict=True, verbose=0)
    history = distiller.fit(dataset, verbose=0, shuffle=False).history
    norm = distiller.gradient_norm
    losses = distiller.evaluate(dataset, return_dict=True, verbose=0)
    np.savez(
        options.output,
        *[np.asarray(variable) for variable in distiller.student.weights],
        start=start["loss"],
        train=history["loss"][-1],
        gradient_norm=norm,
        held_out=losses["loss"],
        steps=keras.ops.convert_to_numpy(distiller.optimizer.iterations),
    )


if __name__ == "__main__":
    main()
