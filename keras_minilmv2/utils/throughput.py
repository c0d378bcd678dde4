"""How fast models are on this machine, side by side."""

import statistics
import time

import tensorflow as tf


def seconds_per_batch(models, batch, repeats=5):
    """Measures models side by side.

    Each repeat runs every model once, so that a change in the machine's load meets all
    of them alike. The first run, which compiles, is not counted.

    Args:
        models: dict by name of Keras models with the same inputs.
        batch: dict of arrays, the inputs.
        repeats: int.

    Returns:
        dict by name of list of float, the seconds of each repeat.
    """
    batch = {name: tf.convert_to_tensor(value) for name, value in batch.items()}
    functions = {
        name: tf.function(lambda inputs, model=model: model(inputs, training=False))
        for name, model in models.items()
    }
    seconds = {name: [] for name in models}
    for repeat in range(repeats + 1):
        for name, function in functions.items():
            started = time.perf_counter()
            for output in tf.nest.flatten(function(batch)):
                output.numpy()
            if repeat:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def sentences_per_second(backbones, batch, repeats=5):
    """The median of sequences per second; arguments as for `seconds_per_batch`.

    Returns:
        dict by name of float.
    """
    num_sentences = len(batch["token_ids"])
    return {
        name: num_sentences / statistics.median(times)
        for name, times in seconds_per_batch(backbones, batch, repeats).items()
    }
