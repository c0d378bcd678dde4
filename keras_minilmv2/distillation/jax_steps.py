"""Training and evaluation steps on JAX, within Keras' own trainer.

On JAX a step is a pure function: it gets the values of all variables and returns the
new ones. Keras' trainer compiles it, feeds it and puts the values back. Replaces
`train_step` and `test_step` of `keras.Model` and adds to its other methods; checked on
Keras 3.15 and JAX 0.10.
"""

import itertools
from collections.abc import Iterable, Sequence

import jax
import keras

from keras_minilmv2.utils.datasets import without_autotune

# As Keras' trainer calls the parts of the state of its two functions.
_TEST_STATE = ("trainable_variables", "non_trainable_variables", "metrics_variables")
_TRAIN_STATE = (*_TEST_STATE[:2], "optimizer_variables", _TEST_STATE[2])


class JaxSteps:
    """`train_step` and `test_step` of a `StudentTrainer` on JAX."""

    _needs_static_shapes = True

    def train_step(self, state, data):
        """One update of the student.

        Args:
            state: values of the trainable, the other, the optimizer's and the metrics'
                variables.
            data: pair of the values of the teacher's variables and a batch.

        Returns:
            Pair of the metrics' results and the new `state`.
        """
        variables, rest, optimizer_variables, metrics_variables = state
        gradients, rest, losses = self._gradients(
            variables, rest, optimizer_variables, data
        )
        variables, optimizer_variables = self.optimizer.stateless_apply(
            optimizer_variables, gradients, variables
        )
        logs, metrics_variables = self._updated_metrics(
            metrics_variables, losses, gradients, state[2]
        )
        return logs, (variables, rest, optimizer_variables, metrics_variables)

    def test_step(self, state, data):
        """The loss on one batch, without dropout; as `train_step`, but no update."""
        variables, rest, metrics_variables = state
        teacher, inputs = data[0], self._tensors(data[1])
        y_true, _ = self._stateless_targets(teacher, rest, inputs, training=False)
        with self._student_scope(variables, rest):
            losses = self._sequence_losses(inputs, y_true, training=False)
        logs, metrics_variables = self._updated_metrics(metrics_variables, losses)
        return logs, (variables, rest, metrics_variables)

    def make_train_function(self, force=False):
        """Builds the function that `fit` calls with the state and batches."""
        if self.train_function is None or force:
            super().make_train_function(force)
            self.train_function = self._beside_teacher(
                self.train_function, _TRAIN_STATE
            )

    def make_test_function(self, force=False):
        """Builds the function that `evaluate` calls with the state and batches."""
        if self.test_function is None or force:
            super().make_test_function(force)
            self.test_function = self._beside_teacher(self.test_function, _TEST_STATE)

    def fit(
        self,
        x=None,
        *,
        validation_data=None,
        validation_steps=None,
        **kwargs,
    ):
        """Trains, as `keras.Model.fit` does.

        Beside what Keras takes, `x` and `validation_data` may be any Python iterable
        of dict batches of NumPy arrays. Sequences are read anew in every epoch, other
        iterables are read on and may be endless if `steps_per_epoch` is given.
        """
        batches = _readable(x)
        if batches is not x:
            # Else Keras warns that it cannot shuffle a generator.
            kwargs.setdefault("shuffle", False)
        if _is_iterable_of_batches(validation_data):
            # Held: the second validation would see other batches of a generator.
            validation_data = _Batches(
                list(itertools.islice(validation_data, validation_steps))
            )
        return super().fit(
            without_autotune(batches),
            validation_data=without_autotune(validation_data),
            validation_steps=validation_steps,
            **kwargs,
        )

    def evaluate(self, x=None, **kwargs):
        """Evaluates, as `keras.Model.evaluate` does; `x` as for `fit`."""
        return super().evaluate(without_autotune(_readable(x)), **kwargs)

    def separate_seeds(self, restored=False):
        """Nothing to do: on JAX a dropout mask is drawn once for the global batch."""

    def _jit_compile_by_default(self):
        return "auto"

    def _beside_teacher(self, function, names):
        """Passes the values of the teacher's variables along with every batch.

        They are arguments of the compiled step: closed over, they would be constants
        in its program. The state's buffers are given up to the step; these are not.
        """

        def function_beside_teacher(state, iterator):
            values = [variable.value for variable in self.teacher_variables]
            try:
                batches = list(itertools.islice(iterator, self.steps_per_execution))
                return function(state, iter([(values, batch) for batch in batches]))
            except BaseException:
                self._put_back(dict(zip(names, state, strict=True)))
                raise

        return function_beside_teacher

    def _put_back(self, state):
        """Gives the variables their values after an error, such as a wrong batch.

        Keras takes the values out of the variables while it runs, and loses them if
        the first step fails.
        """
        if not any(value.is_deleted() for value in jax.tree.leaves(state)):
            self._jax_state, self._jax_state_synced = state, False
            self.jax_state_sync()

    def _tensors(self, batch):
        """The student's inputs; a step that is not compiled gets NumPy arrays."""
        return self._inputs(jax.tree.map(jax.numpy.asarray, batch))

    def _stateless_targets(self, teacher, rest, inputs, training):
        """The targets, and new values of the variables that are not trained.

        Random choices of the targets, such as masked tokens, advance a seed.
        """
        variables = self.non_trainable_variables
        with _scope([*self.teacher_variables, *variables], [*teacher, *rest]) as scope:
            y_true = self._targets(inputs, training=training)
        return y_true, [scope.get_current_value(variable) for variable in variables]

    def _student_scope(self, variables, rest, optimizer_variables=()):
        return _scope(
            [
                *self.trainable_variables,
                *self.non_trainable_variables,
                *(self.optimizer.variables if optimizer_variables else ()),
            ],
            [*variables, *rest, *optimizer_variables],
        )

    def _gradients(self, variables, rest, optimizer_variables, data):
        """Gradients of the loss; the dropout's new seeds; losses of the sequences.

        With `accumulation_steps`, micro-batches run one after the other and their
        gradients are summed, so that only one micro-batch's activations are held.
        """
        teacher, inputs = data[0], self._tensors(data[1])
        steps = self.accumulation_steps

        def micro_gradients(rest, inputs):
            y_true, rest = self._stateless_targets(teacher, rest, inputs, training=True)

            def loss_of(variables):
                with self._student_scope(variables, rest, optimizer_variables) as scope:
                    losses, pair_losses = self._sequence_losses(
                        inputs, y_true, training=True
                    )
                    # The mean over the batch: micro-batches are summed.
                    loss = self.optimizer.scale_loss(losses.mean() / steps)
                    new_rest = [
                        scope.get_current_value(v) for v in self.non_trainable_variables
                    ]
                return loss, (new_rest, (losses, pair_losses))

            gradients, (new_rest, losses) = jax.grad(loss_of, has_aux=True)(variables)
            return gradients, new_rest, losses

        if steps == 1:
            return micro_gradients(rest, inputs)

        def body(carry, inputs):
            total, rest = carry
            gradients, rest, losses = micro_gradients(rest, inputs)
            return (jax.tree.map(jax.numpy.add, total, gradients), rest), losses

        zeros = jax.tree.map(jax.numpy.zeros_like, variables)
        inputs = {name: _split(value, steps) for name, value in inputs.items()}
        (gradients, rest), losses = jax.lax.scan(body, (zeros, rest), inputs)
        return gradients, rest, jax.tree.map(jax.numpy.ravel, losses)

    def _updated_metrics(self, values, losses, gradients=None, optimizer_variables=()):
        variables = [*self.metrics_variables]
        if gradients is not None:
            # One of them is the scale of the gradients.
            variables += self.optimizer.variables
        with _scope(variables, [*values, *optimizer_variables]) as scope:
            self._update_metrics(*losses)
            if gradients is not None:
                self._update_gradient_metrics(gradients)
            logs = self.get_metrics_result()
        return logs, [scope.get_current_value(v) for v in self.metrics_variables]


def _scope(variables, values):
    """A scope in which variables have these values and are not written to."""
    return keras.StatelessScope(list(zip(variables, values, strict=True)))


def _split(value, steps):
    """Cuts a batch into micro-batches: `(steps, batch / steps, ...)`."""
    if len(value) % steps != 0:
        raise ValueError(
            "`accumulation_steps` must divide the batch. Received: "
            f"accumulation_steps={steps}, batch={len(value)}."
        )
    # Every steps-th sequence: of several devices, each has a share of a micro-batch.
    return value.reshape(-1, steps, *value.shape[1:]).swapaxes(0, 1)


class _Batches(keras.utils.PyDataset):
    """A sequence of batches in the order it has."""

    def __init__(self, batches):
        super().__init__()
        self.batches = batches

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, index):
        return self.batches[index]


def _readable(x):
    """A Python iterable of batches as Keras reads one; other data unchanged."""
    if not _is_iterable_of_batches(x):
        return x
    if isinstance(x, Sequence):
        return _Batches(x)
    # Of generators, not of sequences, Keras wants tuples.
    return (batch if isinstance(batch, tuple) else (batch,) for batch in x)


def _is_iterable_of_batches(x):
    """Whether `x` is none of the kinds of data that Keras iterates itself."""
    library = type(x).__module__.partition(".")[0]
    return (
        isinstance(x, Iterable)
        and not isinstance(x, dict | tuple | keras.utils.PyDataset)
        and not hasattr(x, "shape")
        and library not in ("grain", "tensorflow", "torch")
    )
