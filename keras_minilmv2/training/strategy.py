"""The devices of a run, and what its workers tell one another."""

import contextlib
import json
import os
import socket
import time

import numpy as np
import tensorflow as tf

# Bytes that a worker sends at a time, each as a float32.
_CHUNK_BYTES = 2**22
_WORKER_SECONDS = 45

STRATEGIES = ("auto", "one_device", "mirrored", "multi_worker", "tpu")


def make_strategy(name="auto"):
    """Makes the `tf.distribute.Strategy` of a run.

    Call it before any other use of TensorFlow's devices.

    Args:
        name: str. `"one_device"`; `"mirrored"`, all GPUs of this machine, or its
            logical CPU devices where there is none; `"multi_worker"`, the workers that
            the environment variable TF_CONFIG names; `"tpu"`, the TPU of this machine,
            or `"tpu:NAME"`, another one; `"auto"`, the workers of TF_CONFIG if it
            names several, else a TPU of this machine, else its GPUs if there are
            several, else one device.

    Returns:
        `tf.distribute.Strategy`.

    Raises:
        ValueError: if there is no such strategy, or TF_CONFIG does not fit it.
        ConnectionError: if a worker of TF_CONFIG does not answer within 45 seconds.
    """
    if name.startswith("tpu:"):
        return _tpu(name.removeprefix("tpu:"))
    if name not in STRATEGIES:
        raise ValueError(
            f"`strategy` must be one of {', '.join(STRATEGIES)}, or tpu:NAME. "
            f"Received: strategy={name!r}."
        )
    if name == "auto":
        name = _found()
    if name == "tpu":
        return _tpu("local")
    if name == "multi_worker":
        if num_workers() < 2:
            raise ValueError(
                '`strategy="multi_worker"` must have an environment variable TF_CONFIG '
                f"that names several workers. Received: {num_workers()} of them."
            )
        _await_workers()
        return tf.distribute.MultiWorkerMirroredStrategy()
    if name == "mirrored":
        devices = tf.config.list_logical_devices("GPU")
        devices = devices or tf.config.list_logical_devices("CPU")
        return tf.distribute.MirroredStrategy([device.name for device in devices])
    return tf.distribute.get_strategy()


def num_workers():
    """Workers that TF_CONFIG names, or 1.

    Raises:
        ValueError: if TF_CONFIG is no JSON object.
    """
    text = os.environ.get("TF_CONFIG", "").strip()
    if not text:
        return 1
    try:
        return len(json.loads(text)["cluster"]["worker"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            "TF_CONFIG must be a JSON object with cluster.worker, a list of addresses. "
            f"Received: TF_CONFIG={text!r}."
        ) from error


def is_chief(strategy):
    """Whether this process writes the files of the run."""
    resolver = strategy.cluster_resolver
    return resolver is None or not resolver.task_type or resolver.task_id == 0


def has_workers(strategy):
    """Whether several processes train together."""
    # TF_CONFIG alone does not tell: a run on one device does not read it.
    return isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)


def on_any_worker(strategy):
    """A function that tells whether something is true on any worker.

    All workers must call it at the same steps: it is a collective operation.

    Args:
        strategy: `tf.distribute.Strategy`.

    Returns:
        function of a bool that returns a bool, or None with a single worker.
    """
    if not has_workers(strategy):
        return None
    total = _summed(strategy)
    return lambda value: bool(total(np.float32([value]))[0])


def from_chief(strategy, content):
    """Bytes of the chief, on every worker.

    Args:
        strategy: `tf.distribute.Strategy`.
        content: bytes. Only the chief's count.

    Returns:
        bytes.
    """
    if not has_workers(strategy):
        return content
    total = _summed(strategy)
    content = content if is_chief(strategy) else b""
    # 24 bits of the length at a time: float32 holds them exactly.
    high, low = divmod(len(content), 2**24)
    high, low = total(np.float32([high, low]))
    num_bytes = int(high) * 2**24 + int(low)
    parts = []
    for start in range(0, num_bytes, _CHUNK_BYTES):
        chunk = np.zeros(min(_CHUNK_BYTES, num_bytes - start), "float32")
        if content:
            chunk[:] = np.frombuffer(content[start : start + len(chunk)], "uint8")
        parts.append(total(chunk).astype("uint8").tobytes())
    return b"".join(parts)


def _summed(strategy):
    """A function of float32 vectors, equally long on all workers, that sums them."""
    num_local = strategy.num_replicas_in_sync // num_workers()

    def replica(vector):
        context = tf.distribute.get_replica_context()
        # All replicas of a worker get its vector; one of them is to count.
        counts = context.replica_id_in_sync_group % num_local == 0
        vector = tf.cast(counts, "float32") * vector
        return context.all_reduce(tf.distribute.ReduceOp.SUM, vector)

    @tf.function(reduce_retracing=True)
    def all_reduce(vector):
        results = strategy.run(replica, args=(vector,))
        return strategy.experimental_local_results(results)[0]

    return lambda vector: all_reduce(tf.constant(vector)).numpy()


def share_out(strategy, make_dataset, batch_size):
    """A dataset of per-replica batches that together are the global ones.

    Args:
        strategy: `tf.distribute.Strategy`.
        make_dataset: function of `num_workers` and `worker` that gives a worker's part
            of every global batch, with static shapes.
        batch_size: int, sequences, global.

    Returns:
        A dataset for `RelationDistiller.fit`.

    Raises:
        ValueError: if the replicas cannot have equal shares.
    """
    num_replicas = strategy.num_replicas_in_sync
    if batch_size % num_replicas != 0:
        raise ValueError(
            "`batch_size` must be a multiple of the number of replicas. Received: "
            f"batch_size={batch_size}, num_replicas={num_replicas}."
        )
    if num_replicas == 1:
        return make_dataset(1, 0)

    def of_worker(context):
        part = make_dataset(context.num_input_pipelines, context.input_pipeline_id)
        return part.rebatch(batch_size // num_replicas, drop_remainder=True)

    return strategy.distribute_datasets_from_function(of_worker)


def _found():
    if num_workers() > 1:
        return "multi_worker"
    if tf.config.list_physical_devices("TPU") or "TPU_WORKER_ID" in os.environ:
        return "tpu"
    if len(tf.config.list_physical_devices("GPU")) > 1:
        return "mirrored"
    return "one_device"


def _await_workers():
    """Waits until all workers of TF_CONFIG run.

    TensorFlow would wait for ever, and block Python meanwhile. So each worker first
    listens at its own address and calls all others, until it has reached every one
    and has been reached by every one.
    """
    config = json.loads(os.environ["TF_CONFIG"])
    workers, index = config["cluster"]["worker"], int(config["task"]["index"])
    addresses = [(w.rpartition(":")[0], int(w.rpartition(":")[2])) for w in workers]
    deadline = time.monotonic() + _WORKER_SECONDS
    silent = set(range(len(workers))) - {index}  # not reached yet
    absent = set(silent)  # have not called yet
    with socket.create_server(("", addresses[index][1])) as server:
        server.settimeout(0.2)
        while (silent or absent) and time.monotonic() < deadline:
            for other in sorted(silent):
                with contextlib.suppress(OSError):
                    with socket.create_connection(addresses[other], 0.2) as call:
                        call.sendall(index.to_bytes(4, "big"))
                    silent.discard(other)
            with contextlib.suppress(OSError):
                call, _ = server.accept()
                with call:
                    call.settimeout(2)
                    absent.discard(int.from_bytes(call.recv(4), "big"))
    if missing := silent | absent:
        names = ", ".join(workers[other] for other in sorted(missing))
        raise ConnectionError(
            f"TF_CONFIG must name workers that all run. Received: {names}, not there "
            f"within {_WORKER_SECONDS} seconds."
        )


def _tpu(name):
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(tpu=name)
        tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
    except (ValueError, RuntimeError, tf.errors.OpError) as error:
        raise ValueError(
            "`strategy` must name a TPU that can be reached. "
            f"Received: strategy='tpu:{name}' ({str(error).splitlines()[0]})."
        ) from error
    return tf.distribute.TPUStrategy(resolver)
