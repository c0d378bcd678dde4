"""Training and evaluation steps on TensorFlow, under any `tf.distribute` strategy.

Keras' own training function breaks under `tf.distribute` with several steps per
execution, with XLA, with several workers and with gradient accumulation. This one is a
plain loop over `strategy.run` in one `tf.function`, with XLA around the gradients of a
replica and, without a strategy, around the update; the logs are read from the metrics.
Replaces `make_train_function`, `make_test_function` and `_maybe_symbolic_build` of
`keras.Model`; checked on Keras 3.15 and TensorFlow 2.21.
"""

import keras
import tensorflow as tf

from keras_minilmv2.training.gradients import dense
from keras_minilmv2.utils.datasets import without_autotune
from keras_minilmv2.utils.devices import runs_on_accelerator

# Keras draws seeds below 1e9 and takes them modulo 2**31 - 2.
_SEED_DISTANCE = 1_000_000_007
_NUM_SEEDS = 2**31 - 2


class TensorFlowSteps:
    """`train_step` and `test_step` of a `StudentTrainer` on TensorFlow."""

    _compiled_gradients = None
    _compiled_update = None
    # The first replica's random seeds, by variable, once the others have their own.
    _first_seeds = None

    def train_step(self, data):
        """One update of the student, in one replica."""
        inputs = self._inputs(data)
        compute = self._compiled_gradients or self._gradients
        gradients, losses, pair_losses = compute(inputs)
        update = self._compiled_update or self._update
        update(gradients)
        self._update_metrics(losses, pair_losses)
        return self.get_metrics_result()

    def train_on_targets(self, inputs, y_true):
        """One update against targets that are given, in one replica.

        Args:
            inputs: dict of the student's inputs.
            y_true: what `_targets` would return for them.

        Returns:
            dict of the metrics' results.
        """
        gradients, losses, pair_losses = self._student_gradients(inputs, y_true)
        self._update(gradients)
        self._update_metrics(losses, pair_losses)
        return self.get_metrics_result()

    def _update(self, gradients):
        """Updates the student with the gradients of a replica's share of the loss."""
        num_replicas = self.distribute_strategy.num_replicas_in_sync
        if num_replicas > 1:
            context = tf.distribute.get_replica_context()
            gradients = context.all_reduce(tf.distribute.ReduceOp.SUM, gradients)
        norm = self._update_gradient_metrics(gradients, num_replicas)
        if num_replicas > 1:
            gradients = self._clipped_share(gradients, norm, num_replicas)
        self.optimizer.apply(gradients, self.distilled_variables)

    def test_step(self, data):
        """The loss on one batch, without dropout, in one replica."""
        inputs = self._inputs(data)
        self._update_metrics(*self._held_out_losses(inputs))
        return self.get_metrics_result()

    def make_train_function(self, force=False):
        """Builds the function that `fit` calls with an iterator of batches."""
        if self.train_function is None or force:
            gradients = self._gradients
            if self.jit_compile and not self.run_eagerly:
                gradients = tf.function(gradients, jit_compile=True)
            self._compiled_gradients = gradients
            self._compiled_update = self._maybe_compiled_update()
            self.train_function = self._step_loop(self.train_step)

    def make_test_function(self, force=False):
        """Builds the function that `evaluate` calls with an iterator of batches."""
        if self.test_function is None or force:
            step = self.test_step
            if self.jit_compile and not self.run_eagerly:
                step = self._compiled_test_step()
            self.test_function = self._step_loop(step)

    def _maybe_compiled_update(self):
        """The update in one compiled pass, where no strategy merges replicas in it.

        Op by op it reads and writes a large embedding and its moments many times: a
        tenth of a step of XLM-R's students.
        """
        # With one replica too, a strategy's variables are updated by merging.
        merges = isinstance(
            self.distilled_variables[0].value, tf.distribute.DistributedValues
        )
        if self.run_eagerly or merges:
            return None
        if not self.optimizer.built:
            self.optimizer.build(self.distilled_variables)
        return tf.function(self._update, jit_compile=True)

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        """Nothing is left to build; Keras' attempt fails under several workers."""

    def _jit_compile_by_default(self):
        """XLA made the step slower on a CPU."""
        return runs_on_accelerator()

    @property
    def _needs_static_shapes(self):
        return bool(self.jit_compile)

    def _held_out_losses(self, inputs):
        y_true = self._targets(inputs, training=False)
        return self._sequence_losses(inputs, y_true, training=False)

    def _compiled_test_step(self):
        losses = tf.function(self._held_out_losses, jit_compile=True)

        def step(data):
            self._update_metrics(*losses(self._inputs(data)))

        return step

    def fit(self, x=None, *, steps_per_epoch=None, validation_data=None, **kwargs):
        """Trains, as `keras.Model.fit` does, on one device or many.

        A `tf.data.Dataset` holds global batches: every replica gets an equal share of
        each, with static shapes.
        """
        several = self.distribute_strategy.num_replicas_in_sync > 1
        self.separate_seeds()
        if several and isinstance(x, tf.data.Dataset):
            steps_per_epoch = self._check_steps(x, steps_per_epoch)
            x = self._shared_out(x.repeat())
        return super().fit(
            without_autotune(x),
            steps_per_epoch=steps_per_epoch,
            validation_data=without_autotune(validation_data),
            **kwargs,
        )

    def evaluate(self, x=None, **kwargs):
        """Evaluates, as `keras.Model.evaluate` does."""
        return super().evaluate(without_autotune(x), **kwargs)

    def separate_seeds(self, restored=False):
        """Gives every replica random seeds of its own; the first one keeps its seeds.

        Keras gives all replicas the same seeds, and so the same dropout masks.

        Args:
            restored: bool. Whether all replicas have got the seeds of a checkpoint.
        """
        strategy = self.distribute_strategy
        if strategy.num_replicas_in_sync == 1:
            return
        if restored or self._first_seeds is None:
            self._first_seeds = {}
        for variable in self.non_trainable_variables:
            if not variable.path.endswith("seed_generator_state"):
                continue
            components = strategy.experimental_local_results(variable.value)
            first = self._first_seeds.setdefault(id(variable), int(components[0][0]))
            before = 0  # replicas of the workers before this one
            if len(components) < strategy.num_replicas_in_sync:
                before = strategy.cluster_resolver.task_id * len(components)
            for replica, component in enumerate(components, before):
                seed = (first + _SEED_DISTANCE * replica) % _NUM_SEEDS
                component.assign([seed, component[1]])

    def _check_steps(self, dataset, steps_per_epoch):
        """Steps of an epoch: the replicas must not look for data that is not there."""
        if steps_per_epoch is None:
            steps_per_epoch = int(dataset.cardinality())
        if steps_per_epoch < 0:
            raise ValueError(
                "`steps_per_epoch` must be given with several replicas and a dataset "
                "of unknown length. Received: steps_per_epoch=None."
            )
        if steps_per_epoch % self.steps_per_execution != 0:
            raise ValueError(
                "`steps_per_execution` must divide `steps_per_epoch` with several "
                f"replicas. Received: steps_per_execution={self.steps_per_execution}, "
                f"steps_per_epoch={steps_per_epoch}."
            )
        return steps_per_epoch

    def _shared_out(self, dataset):
        """A dataset of global batches as one of per-replica batches."""
        strategy = self.distribute_strategy
        num_replicas = strategy.num_replicas_in_sync
        sizes = {spec.shape[0] for spec in tf.nest.flatten(dataset.element_spec)}
        size = sizes.pop()
        if sizes or size is None or size % num_replicas != 0:
            raise ValueError(
                "`batch_size` must be static (`drop_remainder=True`) and a multiple of "
                f"the number of replicas. Received: batch_size={size}, "
                f"num_replicas={num_replicas}."
            )

        def of_worker(context):
            share = size // context.num_input_pipelines
            begin = context.input_pipeline_id * share
            part = without_autotune(dataset).map(
                lambda batch: tf.nest.map_structure(
                    lambda value: value[begin : begin + share], batch
                )
            )
            return part.rebatch(size // num_replicas, drop_remainder=True)

        return strategy.distribute_datasets_from_function(of_worker)

    def _step_loop(self, step):
        strategy = self.distribute_strategy

        def one_step(data):
            strategy.run(step, args=(data,))

        if self.run_eagerly:
            run_steps = None
        else:
            run_steps = tf.function(
                self._several_steps(one_step), reduce_retracing=True
            )
            one_step = tf.function(one_step, reduce_retracing=True)

        def function(iterator):
            distributed = tf.data.Iterator, tf.distribute.DistributedIterator
            if run_steps is not None and isinstance(iterator, distributed):
                if run_steps(iterator) == 0:
                    raise StopIteration
            else:
                # Eager, or a plain iterator of `train_on_batch`.
                batches = zip(range(self.steps_per_execution), iterator, strict=False)
                for _, data in batches:
                    one_step(data)
            return self.get_metrics_result()

        return function

    def _several_steps(self, one_step):
        """A function of an iterator that takes steps and returns how many it took."""
        if self.distribute_strategy.num_replicas_in_sync > 1:
            # A step must not stand inside a condition: replicas merge in it.
            def run_steps(iterator):
                for _ in tf.range(self.steps_per_execution):
                    # The default of 10 would keep ten teacher passes in memory.
                    tf.autograph.experimental.set_loop_options(parallel_iterations=1)
                    one_step(next(iterator))
                return self.steps_per_execution
        else:
            # At the end of the data, a step without data would count up the
            # optimizer's iterations.
            def run_steps(iterator):
                done = 0
                for _ in tf.range(self.steps_per_execution):
                    # The default of 10 would keep ten teacher passes in memory.
                    tf.autograph.experimental.set_loop_options(parallel_iterations=1)
                    data = iterator.get_next_as_optional()
                    if not data.has_value():
                        break
                    one_step(data.get_value())
                    done += 1
                return done

        return run_steps

    def _gradients(self, inputs):
        """Gradients of a replica's share of the loss; losses of its sequences.

        With `accumulation_steps`, micro-batches run one after the other and their
        gradients are summed, so that only one micro-batch's activations are held.
        """
        steps = self.accumulation_steps
        if steps == 1:
            return self._micro_gradients(inputs)
        inputs = {name: _split(value, steps) for name, value in inputs.items()}
        gradients, losses, pair_losses = self._micro_gradients(
            {name: value[0] for name, value in inputs.items()}
        )
        # One array for each quantity, filled in place: shapes stay static.
        per_sequence = {"loss": losses, **pair_losses}
        arrays = {
            name: tf.TensorArray(value.dtype, steps, element_shape=value.shape).write(
                0, value
            )
            for name, value in per_sequence.items()
        }

        def body(i, gradients, arrays):
            more, losses, pair_losses = self._micro_gradients(
                {name: value[i] for name, value in inputs.items()}
            )
            gradients = [a + b for a, b in zip(gradients, more, strict=True)]
            for name, value in {"loss": losses, **pair_losses}.items():
                arrays[name] = arrays[name].write(i, value)
            return i + 1, gradients, arrays

        # The default of 10 parallel iterations would keep ten teacher passes in memory.
        _, gradients, arrays = tf.while_loop(
            lambda i, *_: i < steps,
            body,
            (tf.constant(1), gradients, arrays),
            parallel_iterations=1,
        )
        per_sequence = {name: array.concat() for name, array in arrays.items()}
        return gradients, per_sequence.pop("loss"), per_sequence

    def _micro_gradients(self, inputs):
        return self._student_gradients(inputs, self._targets(inputs, training=True))

    def _student_gradients(self, inputs, y_true):
        with tf.GradientTape() as tape:
            losses, pair_losses = self._sequence_losses(inputs, y_true, training=True)
            # The mean over the global batch: micro-batches and replicas are summed.
            num_replicas = self.distribute_strategy.num_replicas_in_sync
            share = tf.reduce_mean(losses) / (num_replicas * self.accumulation_steps)
            loss = self.optimizer.scale_loss(share)
        variables = self.distilled_variables
        gradients = tape.gradient(loss, variables)
        gradients = [dense(g, v) for g, v in zip(gradients, variables, strict=True)]
        return gradients, losses, pair_losses

    def _clipped_share(self, gradients, norm, num_replicas):
        """A replica's share of the sum of all replicas' gradients, clipped.

        A Keras optimizer clips what each replica has and then sums, which is not
        what one device does with the whole batch. Its own clipping leaves the share of
        the clipped sum alone.
        """
        optimizer = self.optimizer
        # Under mixed_float16 the gradients are still scaled.
        scale = optimizer.scale_loss(tf.constant(1.0))
        if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
            optimizer = optimizer.inner_optimizer
        if optimizer.clipnorm is not None:
            largest = scale * optimizer.clipnorm
            gradients = [tf.clip_by_norm(gradient, largest) for gradient in gradients]
        elif optimizer.global_clipnorm is not None:
            largest = scale * optimizer.global_clipnorm
            gradients, _ = tf.clip_by_global_norm(gradients, largest, norm)
        elif optimizer.clipvalue is not None:
            largest = scale * optimizer.clipvalue
            gradients = [
                tf.clip_by_value(gradient, -largest, largest) for gradient in gradients
            ]
        return [gradient / num_replicas for gradient in gradients]


def _split(value, steps):
    """Cuts a batch into micro-batches: `(steps, batch / steps, ...)`."""
    batch = value.shape[0]
    if batch is None or batch % steps != 0:
        raise ValueError(
            "`accumulation_steps` must divide the batch of a replica, whose size must "
            f"be static. Received: accumulation_steps={steps}, batch={batch}."
        )
    return tf.reshape(value, (steps, batch // steps, *value.shape[1:]))
