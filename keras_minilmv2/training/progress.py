"""A progress line for training loops."""

import sys
import time

from keras_minilmv2.utils.checks import check_int
from keras_minilmv2.utils.tables import clock

# Seconds without a line, where lines are not redrawn.
_SILENCE = 60.0


class ProgressLine:
    """One line with the steps done, the losses, the speed and the time left.

    On a terminal the line is redrawn; elsewhere, as in a notebook, a new line is
    printed at every tenth of the run and at least every minute.

    Args:
        total_steps: int, optimizer updates. Steps beyond it are shown too, without a
            time left.
        tokens_per_step: int, tokens of a batch, padding included.
        stream: a text stream. Defaults to standard error.
    """

    def __init__(self, total_steps, tokens_per_step, stream=None):
        check_int(total_steps=total_steps)
        self.total_steps = total_steps
        self.tokens_per_step = tokens_per_step
        self.stream = sys.stderr if stream is None else stream
        self._redraw = self.stream.isatty()
        self._width = 0
        self._started = None
        self._last_tenth = 0
        self._last_time = None

    def start(self):
        """Starts the clock. The first update, which compiles, does not count."""
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
        # The last step is a tenth of its own; beyond it only the clock prints.
        tenth = min(step, self.total_steps) * 10 // self.total_steps
        news = tenth != self._last_tenth
        if not self._redraw and not news and now - self._last_time < _SILENCE:
            return
        self._last_tenth, self._last_time = tenth, now
        cells = [self._bar(step)]
        cells += [f"{name} {value:.4f}" for name, value in losses.items()]
        if rate:
            cells.append(f"{rate * self.tokens_per_step:,.0f} tokens/s")
            cells.append(f"ETA {clock(max(0, self.total_steps - step) / rate)}")
        self._write("  ".join(cells))

    def close(self):
        """Ends the line."""
        if self._redraw and self._width:
            self.stream.write("\n")
            self.stream.flush()

    def _bar(self, step):
        width = 20
        filled = width * min(step, self.total_steps) // self.total_steps
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
