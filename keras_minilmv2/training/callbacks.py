"""What watches a run: progress line, history, NaN guard."""

import math
import sys
import time

import keras
import numpy as np
from keras import ops

from keras_minilmv2.utils.tables import clock

# A loss scale of 2**15 is down to 1e-4 after 28 halvings.
_MOST_SKIPPED_IN_A_ROW = 100
# Seconds without a line, where lines are not redrawn.
_SILENCE = 60.0


class ProgressLine:
    """One line that says how far a run is, at what loss and speed.

    On a terminal the line is redrawn; elsewhere, as in a notebook, a new line is
    printed at every tenth of the run and at least every minute.

    Args:
        total_steps: int, optimizer updates.
        tokens_per_step: int, tokens of a batch, padding included.
        stream: a text stream. Defaults to standard error.
    """

    def __init__(self, total_steps, tokens_per_step, stream=None):
        self.total_steps = total_steps
        self.tokens_per_step = tokens_per_step
        self.stream = sys.stderr if stream is None else stream
        self._redraw = self.stream.isatty()
        self._width = 0
        self._started = None
        self._last_tenth = 0
        self._last_time = None

    def start(self):
        """Starts the clock. The first update, which compiles, is left out of it."""
        self._started = None
        self._first_step = 0

    def update(self, step, losses):
        """Shows a step, counted from 1, and its losses, a dict of float."""
        now = time.perf_counter()
        if self._started is None:
            self._started, self._first_step = now, step
            self._last_time = now
        done = step - self._first_step
        rate = done / (now - self._started) if done else 0.0
        tenth = step * 10 // self.total_steps
        news = tenth != self._last_tenth or step >= self.total_steps
        if not self._redraw and not news and now - self._last_time < _SILENCE:
            return
        self._last_tenth, self._last_time = tenth, now
        cells = [self._bar(step)]
        cells += [f"{name} {value:.4f}" for name, value in losses.items()]
        if rate:
            cells.append(f"{rate * self.tokens_per_step:,.0f} tokens/s")
            cells.append(f"ETA {clock((self.total_steps - step) / rate)}")
        self._write("  ".join(cells))

    def close(self):
        """Ends the line."""
        if self._redraw and self._width:
            self.stream.write("\n")
            self.stream.flush()

    def _bar(self, step):
        width = 20
        filled = width * step // self.total_steps
        bar = "#" * filled + "." * (width - filled)
        digits = len(f"{self.total_steps:,}")
        return f"{step:>{digits},}/{self.total_steps:,} [{bar}]"

    def _write(self, line):
        if self._redraw:
            self.stream.write("\r" + line.ljust(self._width))
            self._width = len(line)
        else:
            self.stream.write(line + "\n")
        self.stream.flush()


class RunMonitor(keras.callbacks.Callback):
    """Logs, evaluates, saves and stops while `RelationDistiller.fit` runs.

    Use it with one epoch of `total_steps - start_step` steps. Every `log_every` steps
    the mean losses since the last time go to the history; every `evaluate_every`
    steps, before the first one and after the last one, the held-out loss does, and the
    student is saved; every `checkpoint_every` steps a checkpoint is. A loss that is
    not finite stops the run and puts back the weights of the last line of the history.
    Under loss scaling an update whose gradients are not finite is left out and
    counted, and the run stops after 100 of them in a row.

    Args:
        total_steps: int, optimizer updates.
        log_every: int, optimizer updates.
        evaluate_every: int, optimizer updates.
        held_out: dataset for `evaluate`.
        save: function that saves the student; called with whether its held-out loss is
            the lowest so far.
        history: `History` to add to.
        progress: `ProgressLine`.
        checkpoints: `Checkpoints`, or None to save none.
        checkpoint_every: int, optimizer updates.
        writes_checkpoints: bool. Whether this process saves them, or only goes on from
            them.
        resume_from: arrays of a checkpoint, or None to begin.
        scalars: function of a step and a dict of float, called with each line of the
            history, or None.
        say: function that is called with each line of information.
    """

    def __init__(
        self,
        *,
        total_steps,
        log_every,
        evaluate_every,
        held_out,
        save,
        history,
        progress,
        checkpoints=None,
        checkpoint_every=None,
        writes_checkpoints=True,
        resume_from=None,
        scalars=None,
        say=print,
    ):
        super().__init__()
        self.total_steps = total_steps
        self.log_every = log_every
        self.evaluate_every = evaluate_every
        self.held_out = held_out
        self.save = save
        self.history = history
        self.progress = progress
        self.checkpoints = checkpoints
        self.checkpoint_every = checkpoint_every
        self.writes_checkpoints = writes_checkpoints and checkpoints is not None
        self.scalars = scalars
        self.resume_from = resume_from
        self.say = say
        self.start_step = 0
        if resume_from is not None:
            self.start_step, rows = checkpoints.notes(resume_from)
            history.rows = {int(step): row for step, row in rows.items()}
        self.last_step = self.start_step
        self.stop_requested = False
        self.nan_step = None
        self.problem = "The loss was not finite"
        self.last_good_step = self.start_step
        self._warned = False
        self._skipped_steps = 0
        self._updated_step = self.start_step

    @property
    def finished(self):
        """Whether the last step is done."""
        return self.last_step == self.total_steps

    def on_epoch_begin(self, epoch, logs=None):
        """Goes on from a checkpoint, or takes the held-out loss before step one."""
        # Not in on_train_begin: fit resets the metrics after that.
        if self.resume_from is not None:
            self.checkpoints.restore(self.resume_from, self.model)
            self.resume_from = None
        else:
            self._remember(0)
            self._evaluate(0)
            self.model.reset_metrics()
        self._remember(self.start_step)
        self._skipped_steps = self.model.skipped_steps
        self.progress.start()
        self._logged_at = time.perf_counter()
        self._logged_step = self.start_step

    def on_train_batch_end(self, batch, logs=None):
        """Shows a step, and logs, evaluates and saves when it is time to."""
        step = self.start_step + batch + 1
        losses = {
            metric.name: float(logs[metric.name]) for metric in self.model.metrics
        }
        if not all(math.isfinite(value) for value in losses.values()):
            self._diverged(step)
            return
        if step - self._last_update(step) >= _MOST_SKIPPED_IN_A_ROW:
            self.problem = f"{_MOST_SKIPPED_IN_A_ROW} updates in a row were not finite"
            self._diverged(step)
            return
        self.last_step = step
        self.progress.update(step, losses)
        evaluate = self._is_due(step, self.evaluate_every)
        if evaluate or self._is_due(step, self.log_every):
            self._log(step, losses)
        if evaluate:
            best = self._evaluate(step)
            if self.nan_step is not None:
                return
            self.save(best)
            self._logged_at = time.perf_counter()
        if self.writes_checkpoints and (
            self.stop_requested or step % self.checkpoint_every == 0
        ):
            self.checkpoints.save(step, self.model, self.history.rows)
        if self.stop_requested:
            self.model.stop_training = True

    def on_train_end(self, logs=None):
        """Ends the progress line."""
        self.progress.close()

    def _last_update(self, step):
        """The last step whose update was not left out."""
        skipped = self.model.skipped_steps
        if skipped is None or skipped - self._skipped_steps < step - self.last_step:
            self._updated_step = step
        self._skipped_steps = skipped
        return self._updated_step

    def _is_due(self, step, interval):
        return step % interval == 0 or step == self.total_steps

    def _log(self, step, losses):
        now = time.perf_counter()
        steps = step - self._logged_step
        self._check_band(losses["loss"])
        speed = steps * self.progress.tokens_per_step / (now - self._logged_at)
        values = {
            **losses,
            "gradient_norm": self.model.gradient_norm,
            "learning_rate": float(self.model.optimizer.learning_rate),
            "tokens_per_second": speed,
        }
        if self.model.skipped_steps is not None:
            values["skipped_steps"] = self.model.skipped_steps
        self._add(step, **values)
        self._logged_at, self._logged_step = now, step
        self._remember(step)
        self.model.reset_metrics()

    def _add(self, step, **values):
        self.history.add(step, **values)
        if self.scalars is not None:
            self.scalars(step, values)

    def _check_band(self, loss):
        """Says once when the loss is well above where it has been."""
        _, earlier = self.history.series("loss")
        if not self._warned and earlier and loss > 1.5 * min(earlier):
            self._warned = True
            self.say(
                f"Note: the loss is {loss:.4f} and was {min(earlier):.4f}; the peak "
                "learning rate may be too high."
            )

    def _evaluate(self, step):
        """Adds the held-out loss to the history; says whether it is the lowest."""
        losses = self.model.evaluate(self.held_out, return_dict=True, verbose=0)
        self.model.reset_metrics()
        if not all(math.isfinite(value) for value in losses.values()):
            self._diverged(step)
            return False
        _, earlier = self.history.series("held_out_loss")
        self._add(
            step,
            **{f"held_out_{m.name}": losses[m.name] for m in self.model.metrics},
        )
        return losses["loss"] < min(earlier, default=math.inf)

    def _diverged(self, step):
        self.nan_step = step
        for variable, value in zip(
            self.model.distilled_variables, self._good_weights, strict=True
        ):
            variable.assign(value)
        self.model.stop_training = True

    def _remember(self, step):
        """Keeps the weights, unless an update has made one of them not finite."""
        weights = [ops.convert_to_numpy(v) for v in self.model.distilled_variables]
        if all(np.isfinite(w).all() for w in weights):
            self._good_weights, self.last_good_step = weights, step
