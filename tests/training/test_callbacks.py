import io
import signal
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_minilmv2.training import progress
from keras_minilmv2.training.callbacks import (
    HeldOutEvaluation,
    HistoryLog,
    NanGuard,
    Progress,
    RunState,
    StopOnSignal,
    fit_remaining,
)
from keras_minilmv2.training.history import History
from keras_minilmv2.training.progress import ProgressLine
from keras_minilmv2.training.schedule import WarmupLinearDecay, last_learning_rate
from keras_minilmv2.utils.tables import clock


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Slope(keras.Model):
    """Moves one weight by 1 a step; its loss is the weight, or nan from some step."""

    gradient_norm = 1.0
    skipped_steps = None

    def __init__(self, nan_step=None):
        super().__init__()
        self.weight = self.add_weight(shape=(), initializer="zeros")
        self.nan_step = nan_step
        self.tracker = keras.metrics.Mean(name="loss")
        self.built = True

    @property
    def metrics(self):
        return [self.tracker]

    @property
    def distilled_variables(self):
        return [self.weight]

    def train_step(self, data):
        self.weight.assign_add(1.0)
        if self.nan_step is not None and self.weight >= self.nan_step:
            self.weight.assign(float("nan"))
        self.tracker.update_state(self.weight)
        return {"loss": self.tracker.result()}

    def test_step(self, data):
        self.tracker.update_state(100 + self.weight)
        return {"loss": self.tracker.result()}


def run(total_steps=10, nan_step=None, stream=None, model=None, log_every=2, every=4):
    model = model or Slope(nan_step)
    model.compile(optimizer="sgd", run_eagerly=True)
    saves, history, state = [], History(), RunState(total_steps)
    intervals = log_every, every
    callbacks = [
        NanGuard(state, intervals),
        Progress(state, ProgressLine(total_steps, 64, stream or io.StringIO())),
        HistoryLog(state, history, intervals, tokens_per_step=64),
        HeldOutEvaluation(
            state,
            history,
            np.zeros((1, 1)),
            every,
            save=lambda step, best: saves.append(float(model.weight)),
        ),
    ]
    data = tf.data.Dataset.from_tensors(np.zeros((1, 1))).repeat()
    fit_remaining(model, data, state, callbacks)
    return model, state, history, saves


def test_history_has_means_between_lines_and_held_out_losses():
    _, _, history, saves = run()
    assert history.series("loss") == ([2, 4, 6, 8, 10], [1.5, 3.5, 5.5, 7.5, 9.5])
    assert history.series("held_out_loss") == ([0, 4, 8, 10], [100, 104, 108, 110])
    assert saves == [4.0, 8.0, 10.0]
    assert all(rate > 0 for rate in history.series("tokens_per_second")[1])


def test_last_step_is_logged_and_evaluated_whatever_the_intervals():
    _, _, history, saves = run(total_steps=7, log_every=5, every=100)
    assert history.series("loss") == ([5, 7], [3.0, 6.5])
    assert history.series("held_out_loss")[0] == [0, 7]
    assert saves == [7.0]


def test_a_loss_that_is_not_finite_stops_and_puts_back_good_weights():
    model, state, history, saves = run(nan_step=7)
    assert state.diverged_step == 7
    # The loss of step 7 was computed with the weights of step 6.
    assert state.last_good_step == 4
    assert float(model.weight) == 4.0
    assert saves == [4.0]
    assert history.series("loss")[0] == [2, 4, 6]


class Exploding(Slope):
    """Its weight becomes huge after step 6, whose loss was computed before that."""

    def train_step(self, data):
        loss = self.weight if self.weight < 1e3 else float("nan")
        self.tracker.update_state(loss)
        self.weight.assign_add(1e30 if self.weight > 4.5 else 1.0)
        return {"loss": self.tracker.result()}

    def test_step(self, data):
        self.tracker.update_state(self.weight if self.weight < 1e3 else float("nan"))
        return {"loss": self.tracker.result()}


def test_weights_are_good_once_a_loss_was_computed_with_them():
    model, state, _, saves = run(model=Exploding())
    assert state.diverged_step == 7
    # Finite as well are those of step 6, which are remembered and give no loss.
    assert state.last_good_step == 4
    assert float(model.weight) == 4.0
    assert saves == [4.0]


def test_weights_that_a_held_out_loss_shows_to_be_broken_are_not_saved():
    model, state, history, saves = run(model=Exploding(), log_every=3, every=6)
    assert state.diverged_step == 6
    assert state.last_good_step == 3
    assert float(model.weight) == 3.0
    assert saves == []
    assert history.series("held_out_loss")[0] == [0]


def test_weights_that_are_broken_from_the_start_are_called_so():
    model = Exploding()
    model.weight.assign(1e30)
    model, state, history, _ = run(model=model)
    assert state.diverged_step == 0
    assert state.last_good_step is None
    assert float(model.weight) == np.float32(1e30)
    assert history.rows == {}


class Fits(Slope):
    def fit(self, *args, **kwargs):
        raise AssertionError("fit reads 0 steps as no limit")


@pytest.mark.parametrize("beyond", [0, 3])
def test_a_run_without_steps_left_is_finished_and_not_fitted(beyond):
    model, history = Fits(), History()
    state = RunState(total_steps=10, start_step=10 + beyond)
    assert state.finished
    started = []

    class Restore(Progress):
        def start(self):
            started.append(self.model)

        def on_train_end(self, logs=None):
            pass

    evaluation = HeldOutEvaluation(state, history, None, 4, save=None)
    callbacks = [Restore(state, None), NanGuard(state, (2,)), evaluation]
    fit_remaining(model, None, state, callbacks)
    assert started == [model]
    assert state.diverged_step is None
    assert history.rows == {}


def test_a_signal_stops_after_the_step_and_the_next_one_acts_at_once():
    model = Slope()
    model.compile(optimizer="sgd", run_eagerly=True)
    state, caught = RunState(10), []
    before = signal.signal(signal.SIGTERM, lambda *_: caught.append("outside"))
    try:
        stop = StopOnSignal(state)

        class Signals(Progress):
            def start(self):
                pass

            def after_step(self, step, logs):
                if step == 3:
                    signal.raise_signal(signal.SIGTERM)
                    assert caught == []
                    signal.raise_signal(signal.SIGTERM)
                    assert caught == ["outside"]

            def on_train_end(self, logs=None):
                pass

        data = tf.data.Dataset.from_tensors(np.zeros((1, 1))).repeat()
        with stop:
            callbacks = [NanGuard(state, (2,)), Signals(state, None), stop]
            fit_remaining(model, data, state, callbacks)
        assert signal.getsignal(signal.SIGTERM)(0, None) is None
        assert caught == ["outside"] * 2
    finally:
        signal.signal(signal.SIGTERM, before)
    assert (state.last_step, state.stop_requested) == (3, True)
    assert not state.finished


def test_a_worker_stops_when_another_one_was_signalled():
    model = Slope()
    model.compile(optimizer="sgd", run_eagerly=True)
    state, asked = RunState(10), []

    def any_worker(value):
        asked.append(value)
        return len(asked) == 4

    data = tf.data.Dataset.from_tensors(np.zeros((1, 1))).repeat()
    with StopOnSignal(state, any_worker) as stop:
        fit_remaining(model, data, state, [NanGuard(state, (2,)), stop])
    assert asked == [False] * 4
    assert state.last_step == 4


def test_progress_beyond_the_end_is_shown_once_and_by_the_clock(monkeypatch):
    clock_time = iter(np.arange(0.0, 1e6, 1.0))
    fake = SimpleNamespace(perf_counter=lambda: next(clock_time))
    monkeypatch.setattr(progress, "time", fake)
    stream = io.StringIO()
    line = ProgressLine(total_steps=6, tokens_per_step=1, stream=stream)
    line.start()
    for step in range(1, 181):
        line.update(step, {"loss": 1.0})
    lines = stream.getvalue().splitlines()
    # A line for each step, and two minutes of them beyond.
    assert len(lines) == 6 + 2
    assert lines[5].startswith("6/6 [####################]")
    assert "[####################]" in lines[-1]
    assert lines[-1].endswith("ETA 0:00")


def test_history_has_the_rate_of_the_update_that_was_done():
    optimizer = keras.optimizers.SGD(WarmupLinearDecay(1.0, 4, 10))
    variable = keras.Variable([1.0])
    optimizer.build([variable])
    rates = [last_learning_rate(optimizer)]
    for _ in range(3):
        before = float(variable.value[0])
        optimizer.apply([keras.ops.ones(1)])
        rates.append(last_learning_rate(optimizer))
        assert before - float(variable.value[0]) == pytest.approx(rates[-1])
    assert rates == pytest.approx([0.25, 0.25, 0.5, 0.75])
    scaled = keras.optimizers.LossScaleOptimizer(optimizer)
    assert last_learning_rate(scaled) == pytest.approx(0.75)
    assert last_learning_rate(keras.optimizers.SGD(0.5)) == 0.5


def test_progress_prints_a_line_for_each_tenth_when_it_is_no_terminal():
    stream = io.StringIO()
    run(total_steps=20, stream=stream)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 10
    assert lines[-1].startswith("20/20 [####################]  loss ")
    assert "tokens/s  ETA 0:00" in lines[-1]


def test_progress_is_never_silent_for_more_than_a_minute(monkeypatch):
    clock_time = iter(np.arange(0.0, 1e6, 25.0))
    fake = SimpleNamespace(perf_counter=lambda: next(clock_time))
    monkeypatch.setattr(progress, "time", fake)
    stream = io.StringIO()
    line = ProgressLine(total_steps=1_000, tokens_per_step=1, stream=stream)
    line.start()
    for step in range(1, 12):
        line.update(step, {"loss": 1.0})
    steps = [int(line.split("/")[0]) for line in stream.getvalue().splitlines()]
    assert steps == [4, 7, 10]


def test_progress_redraws_one_line_on_a_terminal():
    stream = Terminal()
    run(total_steps=5, stream=stream)
    text = stream.getvalue()
    assert text.count("\r") == 5
    assert text.count("\n") == 1
    assert text.endswith("\n")


def test_clock_reads_as_minutes_or_hours():
    assert [clock(s) for s in (0, 59.6, 61, 3_600, 100_000)] == [
        "0:00",
        "1:00",
        "1:01",
        "1:00:00",
        "27:46:40",
    ]


@pytest.fixture
def history():
    history = History()
    history.add(0, held_out_loss=1.5)
    for step in (10, 20):
        history.add(step, loss=10 / step, qq=1 / step, learning_rate=0.1)
    history.add(20, held_out_loss=0.75)
    return history


def test_csv_has_a_row_for_each_step_and_empty_cells(history, tmp_path):
    history.save_csv(tmp_path / "history.csv")
    assert (tmp_path / "history.csv").read_text().splitlines() == [
        "step,loss,qq,learning_rate,held_out_loss",
        "0,,,,1.5",
        "10,1,0.1,0.1,",
        "20,0.5,0.05,0.1,0.75",
    ]


def test_curves_are_a_picture(history, tmp_path):
    history.save_curves(tmp_path / "curves.png", "a title", "loss [nats]")
    content = (tmp_path / "curves.png").read_bytes()
    assert content.startswith(b"\x89PNG")
    # Nothing but the picture is left behind.
    assert [file.name for file in tmp_path.iterdir()] == ["curves.png"]


def test_history_knows_its_latest_values(history):
    assert history.last("loss") == 0.5
    assert history.last("held_out_loss") == 0.75
    assert history.last("vv") is None


class Skipping(Slope):
    """Skips the first updates, as if its float16 gradients were not finite."""

    skipped_steps = 0

    def __init__(self, num_skipped):
        super().__init__()
        self.num_skipped = num_skipped

    def train_step(self, data):
        if self.skipped_steps < self.num_skipped:
            self.skipped_steps += 1
            return {"loss": self.tracker.result()}
        return super().train_step(data)


def test_skipped_updates_are_counted_in_the_history():
    _, state, history, _ = run(model=Skipping(3))
    assert state.finished
    assert history.series("skipped_steps") == ([2, 4, 6, 8, 10], [2, 3, 3, 3, 3])


def test_a_run_stops_when_a_hundred_updates_in_a_row_are_skipped():
    _, state, _, _ = run(
        model=Skipping(1_000), total_steps=200, log_every=50, every=200
    )
    assert state.diverged_step == 100
    assert state.problem == "100 updates in a row were not finite"
    assert not state.finished
