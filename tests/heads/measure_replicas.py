"""Measures importance on one device and on two replicas; saves both.

    python measure_replicas.py FILE.npz

Run by test_importance in a process of its own: the number of devices is fixed when
TensorFlow starts. The last batch leaves one replica without an example.
"""

import contextlib
import sys
from pathlib import Path

import numpy as np
import tensorflow as tf

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

from families import make_backbone, make_inputs
from small_trainers import make_batch, make_student, make_teacher

import keras_minilmv2 as km
from keras_minilmv2.downstream.classifiers import text_classifier
from keras_minilmv2.downstream.registry import get_task
from keras_minilmv2.heads.importance import attention_entropy, head_importance


def replicas():
    # Collectives know one number of devices in a process.
    reduction = tf.distribute.ReductionToOneDevice()
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"], reduction).scope()


def measured(scope):
    with scope:
        classifier = text_classifier(make_backbone("albert"), num_outputs=3, seed=0)
        teacher = make_teacher()
        trainer = km.RelationDistiller(teacher, make_student(teacher), 4, 4)
    inputs = make_inputs(classifier.backbone, batch=9)
    labels = (np.arange(9) % 3).astype("int32")
    dataset = tf.data.Dataset.from_tensor_slices((inputs, labels)).batch(4)
    texts = tf.data.Dataset.from_tensor_slices(make_batch(size=6)).batch(4)
    found = {"entropy": attention_entropy(classifier, dataset)}
    for name, result in (
        ("task", head_importance(classifier, dataset, get_task("mnli"))),
        ("relations", head_importance(trainer, texts)),
    ):
        found[f"{name}.heads"] = result.heads.fisher
        found[f"{name}.neurons"] = result.neurons.absolute
        found[f"{name}.blocks"] = result.head_blocks
        found[f"{name}.numbers"] = [result.num_examples, result.loss]
    found["shared"] = found["task.blocks"][0].diagonal()
    return found


def main(path):
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(
        cpu, [tf.config.LogicalDeviceConfiguration()] * 2
    )
    one, two = measured(contextlib.nullcontext()), measured(replicas())
    np.savez(
        path,
        **{f"one.{name}": values for name, values in one.items()},
        **{f"two.{name}": values for name, values in two.items()},
    )


if __name__ == "__main__":
    main(sys.argv[1])
