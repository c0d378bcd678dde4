"""An option that all data sets of the package have."""


def without_autotune(dataset):
    """A dataset whose iterator can be closed at once.

    tf.data tunes a pipeline in a thread whose period doubles from 10 ms on. Closing the
    iterator waits for the end of the current period: in a third of the calls as long as
    the whole loop took. Buffers and parallelism that are `AUTOTUNE` get their defaults.

    Args:
        dataset: `tf.data.Dataset`, or anything else, which is returned as it is.
    """
    if not type(dataset).__module__.startswith("tensorflow.python.data"):
        return dataset
    import tensorflow as tf

    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.with_options(options)
