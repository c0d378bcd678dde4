"""How fast encoders are on this machine."""

import statistics
import time

import tensorflow as tf


def sentences_per_second(backbones, batch, repeats=5):
    """Measures encoders side by side.

    Each repeat runs every encoder once, so that a change in the machine's load meets
    all of them alike. The first run, which compiles, is not counted.

    Args:
        backbones: dict of keras-nlp backbones by name.
        batch: dict of int32 `(batch, length)`, the inputs of the backbones.
        repeats: int.

    Returns:
        dict by name of float, the median of sequences per second.
    """
    batch = {name: tf.convert_to_tensor(value) for name, value in batch.items()}
    functions = {
        name: tf.function(lambda inputs, model=model: model(inputs, training=False))
        for name, model in backbones.items()
    }
    seconds = {name: [] for name in backbones}
    for repeat in range(repeats + 1):
        for name, function in functions.items():
            started = time.perf_counter()
            for output in tf.nest.flatten(function(batch)):
                output.numpy()
            if repeat:
                seconds[name].append(time.perf_counter() - started)
    num_sentences = batch["token_ids"].shape[0]
    return {
        name: num_sentences / statistics.median(times)
        for name, times in seconds.items()
    }
