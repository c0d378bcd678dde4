"""One of two workers of a run that may be stopped and resumed.

Run by test_distribution, once for each worker: `train_workers.py DIRECTORY STOP_STEP`.
The worker sends itself SIGTERM after that step; 0 is never. Only the chief writes.
"""

import os
import signal
import sys

import numpy as np
import tensorflow as tf
from train_small import BATCH, LENGTH, STEPS, make_distiller, make_examples

from keras_minilmv2.data.pipeline import as_dataset
from keras_minilmv2.training.callbacks import (
    CheckpointWriter,
    NanGuard,
    Progress,
    Resume,
    RunState,
    StopOnSignal,
    fit_remaining,
)
from keras_minilmv2.training.checkpoints import Checkpoints
from keras_minilmv2.training.history import History
from keras_minilmv2.training.progress import ProgressLine
from keras_minilmv2.training.strategy import (
    is_chief,
    make_strategy,
    on_any_worker,
    share_out,
)


class Examples:
    """Examples in memory, read as prepared ones are."""

    sequence_length = LENGTH

    def __init__(self):
        self.examples = make_examples()

    def __len__(self):
        return len(self.examples["token_ids"])

    def __getitem__(self, indices):
        return {name: rows[indices] for name, rows in self.examples.items()}


class SignalAt(Progress):
    def __init__(self, state, line, step):
        super().__init__(state, line)
        self.step = step

    def after_step(self, step, logs):
        super().after_step(step, logs)
        if step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


def main(directory, stop_step):
    strategy = make_strategy("multi_worker")
    with strategy.scope():
        distiller = make_distiller(dropout=0.3)
    checkpoints = Checkpoints(os.path.join(directory, "checkpoints"))
    arrays, _ = checkpoints.latest_of_chief(strategy, distiller)
    start_step = checkpoints.notes(arrays)[0] if arrays else 0
    state, history = RunState(STEPS, start_step), History()
    stop = StopOnSignal(state, on_any_worker(strategy))
    line = ProgressLine(STEPS, BATCH * LENGTH)
    writer = CheckpointWriter(state, checkpoints, STEPS, history, is_chief(strategy))
    callbacks = [NanGuard(state, (5,)), SignalAt(state, line, stop_step), stop, writer]
    if arrays:
        callbacks.insert(0, Resume(state, checkpoints, arrays))

    def make_dataset(num_workers, worker):
        return as_dataset(
            Examples(),
            BATCH,
            seed=0,
            start_step=start_step,
            num_workers=num_workers,
            worker=worker,
        )

    with stop:
        fit_remaining(
            distiller, share_out(strategy, make_dataset, BATCH), state, callbacks
        )
    os.makedirs(directory, exist_ok=True)
    np.savez(
        os.path.join(directory, "end.npz"),
        *[tf.convert_to_tensor(v.value).numpy() for v in distiller.student.weights],
        start=start_step,
        last=state.last_step,
    )


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
