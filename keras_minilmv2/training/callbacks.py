"""Keras callbacks of a run, each with one job, and the state that they share."""

import math
import signal
import threading
import time

import keras
import numpy as np
from keras import ops

from keras_minilmv2.training.schedule import last_learning_rate

# A loss scale of 2**15 is down to 1e-4 after 28 halvings.
_MOST_SKIPPED_IN_A_ROW = 100


class RunState:
    """Where a run is: shared by the callbacks of one `fit`.

    Args:
        total_steps: int, optimizer updates of the whole run.
        start_step: int, updates that were done before this `fit`.

    Attributes:
        last_step: int. The latest step whose loss was finite.
        losses: dict of float by name, means since the last log, at `last_step`.
        evaluated_step: int or None. The latest step whose held-out loss was finite.
        last_good_step: int or None. The latest step whose weights are known to give a
            finite loss; `NanGuard` puts them back after a divergence.
        diverged_step: int or None. The step at which the run diverged.
        problem: str. What was not finite.
        stop_requested: bool. Whether the run ends, with a checkpoint, at this step.
    """

    def __init__(self, total_steps, start_step=0):
        self.total_steps = total_steps
        self.start_step = start_step
        self.last_step = start_step
        self.losses = {}
        self.evaluated_step = None
        self.last_good_step = None
        self.diverged_step = None
        self.problem = "The loss was not finite"
        self.stop_requested = False

    @property
    def finished(self):
        """Whether the last step is done."""
        return self.last_step >= self.total_steps

    def is_due(self, step, *intervals):
        """Whether a step is a multiple of an interval, or the last one."""
        return step == self.total_steps or any(step % n == 0 for n in intervals)


class _RunCallback(keras.callbacks.Callback):
    """Acts after each optimizer update until the run diverges."""

    def __init__(self, state):
        super().__init__()
        self.state = state

    def on_epoch_begin(self, epoch, logs=None):
        """Prepares for the first step."""
        # Not in on_train_begin: fit resets the metrics after that.
        self.start()

    def on_train_batch_end(self, batch, logs=None):
        """Acts after a step."""
        if self.state.diverged_step is None:
            self.after_step(self.state.start_step + batch + 1, logs)

    def start(self):
        """Called before the first step."""

    def after_step(self, step, logs):
        """Called after each step, counted from 1 over all parts of a resumed run."""

    def diverge(self, step, problem=None):
        """Ends the run because something was not finite."""
        self.state.diverged_step = step
        self.state.problem = problem or self.state.problem
        self.model.stop_training = True


class Resume(_RunCallback):
    """Puts a checkpoint back before the first step. Must be the first callback.

    Args:
        state: `RunState` that starts at the checkpoint's step.
        checkpoints: `Checkpoints`.
        arrays: what `checkpoints.read` returned.
    """

    def __init__(self, state, checkpoints, arrays):
        super().__init__(state)
        self.checkpoints = checkpoints
        self.arrays = arrays

    def start(self):
        """Restores the model, its optimizer and its metrics."""
        self.checkpoints.restore(self.arrays, self.model)
        self.arrays = None


class NanGuard(_RunCallback):
    """Stops a run that diverges and puts back the last good weights.

    Weights are good if they are finite and a loss that was computed with them is: the
    loss of the next update, or the held-out loss. A loss that is not finite stops the
    run. Under loss scaling an update whose gradients are not finite is skipped, and
    100 of them in a row stop the run.

    It sets `last_step` and `losses` of the state: put it before the callbacks below.

    Args:
        state: `RunState`.
        intervals: tuple of int. Weights are remembered at multiples of these steps and
            at the last one; the metrics must be reset then, as `HistoryLog` does.
    """

    def __init__(self, state, intervals):
        super().__init__(state)
        self.intervals = intervals

    def start(self):
        """Remembers the weights that the run starts with."""
        self._good = self._candidate = None
        self._remember(self.state.start_step)
        self._skipped_steps = self.model.skipped_steps
        self._updated_step = self.state.start_step

    def after_step(self, step, logs):
        """Checks the losses of a step."""
        if self._candidate and self._candidate[0] == self.state.evaluated_step:
            self._confirm()
        losses = {m.name: float(logs[m.name]) for m in self.model.metrics}
        if not all(math.isfinite(value) for value in losses.values()):
            self.diverge(step)
            return
        if self._was_updated(step):
            # Its gradients were computed with the weights of the candidate.
            self._updated_step = step
            self._confirm()
        if step - self._updated_step >= _MOST_SKIPPED_IN_A_ROW:
            self.diverge(
                step, f"{_MOST_SKIPPED_IN_A_ROW} updates in a row were not finite"
            )
            return
        self.state.last_step, self.state.losses = step, losses
        if self.state.is_due(step, *self.intervals):
            self._remember(step)

    def on_train_end(self, logs=None):
        """Puts the last good weights back if the run diverged."""
        if self.state.diverged_step is None:
            return
        if self._candidate and self._candidate[0] == self.state.evaluated_step:
            self._confirm()
        kept = self._good or self._candidate
        if kept is not None:
            variables = self.model.distilled_variables
            for variable, value in zip(variables, kept[1], strict=True):
                variable.assign(value)

    def _was_updated(self, step):
        """Whether an update since the last step was not skipped."""
        before, self._skipped_steps = self._skipped_steps, self.model.skipped_steps
        if before is None:
            return True
        return self._skipped_steps - before < step - self.state.last_step

    def _remember(self, step):
        """Keeps the weights until they are confirmed, unless one is not finite."""
        weights = [ops.convert_to_numpy(v) for v in self.model.distilled_variables]
        if all(np.isfinite(w).all() for w in weights):
            self._candidate = step, weights

    def _confirm(self):
        if self._candidate is not None:
            self._good, self._candidate = self._candidate, None
            self.state.last_good_step = self._good[0]


class Progress(_RunCallback):
    """Shows the steps on a progress line.

    Args:
        state: `RunState`.
        line: `ProgressLine`.
    """

    def __init__(self, state, line):
        super().__init__(state)
        self.line = line

    def start(self):
        """Starts the clock of the line."""
        self.line.start()

    def after_step(self, step, logs):
        """Shows a step."""
        self.line.update(step, self.state.losses)

    def on_train_end(self, logs=None):
        """Ends the line."""
        self.line.close()


class HistoryLog(_RunCallback):
    """Adds mean losses, gradient norm, learning rate and speed to a history.

    The means are over the steps since the last log. A line is logged once when the
    loss is well above where it has been.

    Args:
        state: `RunState`.
        history: `History`.
        intervals: tuple of int. It logs at multiples of these steps and at the last.
        tokens_per_step: int, tokens of a batch, padding included.
        log: function that is called with each line of information.
    """

    def __init__(self, state, history, intervals, tokens_per_step, log=print):
        super().__init__(state)
        self.history = history
        self.intervals = intervals
        self.tokens_per_step = tokens_per_step
        self.log = log
        self._warned = False

    def start(self):
        """Starts the clock."""
        self._started = time.perf_counter()
        self._logged_step = self.state.start_step

    def on_train_batch_begin(self, batch, logs=None):
        """Starts the clock again after a log, evaluations and files excluded."""
        if self._started is None:
            self._started = time.perf_counter()

    def after_step(self, step, logs):
        """Logs when it is due."""
        if not self.state.is_due(step, *self.intervals):
            return
        seconds = time.perf_counter() - self._started
        num_tokens = (step - self._logged_step) * self.tokens_per_step
        losses = self.state.losses
        self._check_band(losses["loss"])
        values = {
            **losses,
            "gradient_norm": self.model.gradient_norm,
            "learning_rate": last_learning_rate(self.model.optimizer),
            "tokens_per_second": num_tokens / seconds,
        }
        if self.model.skipped_steps is not None:
            values["skipped_steps"] = self.model.skipped_steps
        self.history.add(step, **values)
        self.model.reset_metrics()
        self._started, self._logged_step = None, step

    def _check_band(self, loss):
        """Logs once that the loss is well above where it has been."""
        _, earlier = self.history.series("loss")
        if not self._warned and earlier and loss > 1.5 * min(earlier):
            self._warned = True
            self.log(
                f"Note: the loss is {loss:.4f} and was {min(earlier):.4f}; the peak "
                "learning rate may be too high."
            )


class HeldOutEvaluation(_RunCallback):
    """Computes the held-out loss and then has the student saved.

    The loss is also computed before the first step of a run. One that is not finite
    ends the run, and nothing is saved.

    Args:
        state: `RunState`.
        history: `History`.
        held_out: dataset for `evaluate`.
        every: int, optimizer updates between two evaluations; there is one at the end.
        save: function that saves the student; called with the step and whether the
            held-out loss is the lowest so far.
    """

    def __init__(self, state, history, held_out, every, save):
        super().__init__(state)
        self.history = history
        self.held_out = held_out
        self.every = every
        self.save = save

    def start(self):
        """Evaluates the student as it is before training."""
        if self.state.start_step == 0:
            self._evaluate(0)

    def after_step(self, step, logs):
        """Evaluates and saves when it is due."""
        if self.state.is_due(step, self.every):
            best = self._evaluate(step)
            if self.state.diverged_step is None:
                self.save(step, best)

    def _evaluate(self, step):
        """Adds the held-out loss to the history; returns whether it is the lowest."""
        losses = self.model.evaluate(self.held_out, return_dict=True, verbose=0)
        self.model.reset_metrics()
        if not all(math.isfinite(value) for value in losses.values()):
            self.diverge(step)
            return False
        self.state.evaluated_step = step
        _, earlier = self.history.series("held_out_loss")
        self.history.add(
            step,
            **{f"held_out_{m.name}": losses[m.name] for m in self.model.metrics},
        )
        return losses["loss"] < min(earlier, default=math.inf)


class StopOnSignal(_RunCallback):
    """Ends a run after SIGTERM or SIGINT, at a step that all workers share.

    Use it as a context manager around `fit`. A second signal acts at once. It must
    come before `CheckpointWriter`, which then saves the last step.

    Args:
        state: `RunState`.
        any_worker: function of a bool that returns whether it is true on any worker,
            such as `AnyWorker`; called after every step. None for one worker.
    """

    def __init__(self, state, any_worker=None):
        super().__init__(state)
        self.any_worker = any_worker
        self._signalled = False
        self._handlers = {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            self._handlers = {
                number: signal.signal(number, self._handle)
                for number in (signal.SIGTERM, signal.SIGINT)
            }
        return self

    def __exit__(self, *error):
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def after_step(self, step, logs):
        """Stops if a signal has come."""
        stop = self._signalled
        if self.any_worker is not None:
            stop = self.any_worker(stop)
        if stop:
            self.state.stop_requested = True
            self.model.stop_training = True

    def _handle(self, number, frame):
        self._signalled = True
        signal.signal(number, self._handlers[number])


class CheckpointWriter(_RunCallback):
    """Saves checkpoints at intervals and when the run is to stop.

    Args:
        state: `RunState`.
        checkpoints: `Checkpoints`.
        every: int, optimizer updates.
        history: `History`, whose rows are kept in the checkpoint.
        writes: bool. Whether this process writes them; every worker needs the callback.
    """

    def __init__(self, state, checkpoints, every, history, writes=True):
        super().__init__(state)
        self.checkpoints = checkpoints
        self.every = every
        self.history = history
        self.writes = writes

    def after_step(self, step, logs):
        """Saves when it is due."""
        if self.state.stop_requested or step % self.every == 0:
            self.checkpoints.save(step, self.model, self.history.rows, self.writes)


def fit_remaining(model, dataset, state, callbacks):
    """Trains for the steps of a run that are not done yet, which may be none.

    Args:
        model: a compiled `StudentTrainer`.
        dataset: endless batches, from `state.start_step` on.
        state: `RunState`.
        callbacks: list of the callbacks above.
    """
    num_steps = state.total_steps - state.start_step
    if num_steps > 0:
        model.fit(
            dataset,
            steps_per_epoch=num_steps,
            shuffle=False,  # the examples are shuffled already
            verbose=0,
            callbacks=callbacks,
        )
        return
    # Keras reads 0 steps as no limit. Only the checkpoint is put back.
    callbacks = keras.callbacks.CallbackList(callbacks, model=model)
    callbacks.on_train_begin()
    callbacks.on_epoch_begin(0)
    callbacks.on_train_end()
