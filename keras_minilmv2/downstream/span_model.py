"""An encoder that points at answers: the model, its training, what it is worth."""

import json
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from keras import ops
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from keras_minilmv2.backbones.families import (
    check_tokenizer,
    family_of,
    zero_segment_ids,
)
from keras_minilmv2.backbones.loading import load_backbone, load_tokenizer
from keras_minilmv2.downstream.question_answering import (
    best_answers,
    check_positive,
    span_dataset,
    span_features,
)
from keras_minilmv2.downstream.span_metrics import (
    mlqa_metrics,
    squad_metrics,
    squad_v2_metrics,
)
from keras_minilmv2.training.gradients import dense
from keras_minilmv2.utils.devices import runs_on_accelerator
from keras_minilmv2.utils.files import replacing_directory

_CONFIG_FILE = "span_model.json"
_HEAD_FILE = "span_head.safetensors"
# Not -inf: the gradient of a cross-entropy would be nan.
_MASKED = -1e9


@keras.saving.register_keras_serializable(package="keras_minilmv2")
class SpanModel(keras.Model):
    """An encoder with a head that points at the first and last token of an answer.

    One dense layer over the encoder's last hidden states gives a start and an end logit
    for every token, in float32 under every dtype policy. The loss is the mean of the
    cross-entropies of the two softmaxes over the tokens of a window, where the start
    token stands for no answer.

    The pooler of BERT, ALBERT and ELECTRA is not used and stays as it is. The gradient
    of the token embedding is dense, so that the optimizer moves every row of it, on
    every device.

    Args:
        backbone: a keras-nlp backbone of one of the six families. Trained in place.
        mask_question: bool. Whether the tokens of the question are out of the two
            softmaxes. The original BERT code has them in.
        **kwargs: as for `keras.Model`.

    Call arguments:
        inputs: dict of int32 `(batch, length)`, as `SpanFeatures.inputs` gives them:
            `"token_ids"`, `"padding_mask"`, `"segment_ids"` (0 where left out) and,
            with `mask_question`, `"answer_mask"`. Others are ignored.

    Returns:
        dict of float32 `(batch, length)`: `"start_logits"` and `"end_logits"`, -1e9
        at tokens that are masked.

    Raises:
        TypeError: if the backbone is of no supported family.

    Reference:
        [Devlin et al., 2019](https://arxiv.org/abs/1810.04805), section 4.2.
    """

    def __init__(self, backbone, mask_question=False, **kwargs):
        family_of(backbone)
        super().__init__(**kwargs)
        self.backbone = backbone
        self.mask_question = mask_question
        self.span_head = keras.layers.Dense(
            2,
            kernel_initializer=keras.initializers.TruncatedNormal(stddev=0.02),
            dtype="float32",
            name="span_head",
        )
        self.span_head.build((None, None, backbone.hidden_dim))
        self.loss_metric = keras.metrics.Mean(name="loss")
        # XLA made steps slower on a CPU.
        self.jit_compile = runs_on_accelerator()
        self.built = True

    def call(self, inputs, training=False):
        """Start and end logits."""
        encoder_inputs = zero_segment_ids(self.backbone, inputs)
        outputs = self.backbone(
            {name: encoder_inputs[name] for name in self.backbone.input},
            training=training,
        )
        if isinstance(outputs, dict):
            outputs = outputs["sequence_output"]
        logits = self.span_head(outputs)  # (batch, length, 2)
        mask = inputs["answer_mask" if self.mask_question else "padding_mask"]
        logits = ops.where(ops.expand_dims(mask, -1) != 0, logits, _MASKED)
        return {"start_logits": logits[..., 0], "end_logits": logits[..., 1]}

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        """Mean of the two cross-entropies, in nats.

        Args:
            x: ignored.
            y: dict of int32 `(batch,)`: `"start_positions"` and `"end_positions"`.
            y_pred: dict of logits, as `call` returns them.
            sample_weight: float `(batch,)` or None.
            training: ignored.

        Returns:
            float32 scalar, divided by the number of replicas as every Keras loss.
        """
        cross_entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        start = cross_entropy(
            y["start_positions"], y_pred["start_logits"], sample_weight
        )
        end = cross_entropy(y["end_positions"], y_pred["end_logits"], sample_weight)
        return (start + end) / 2

    def compile(self, optimizer="rmsprop", jit_compile="auto", **kwargs):
        """Sets the optimizer.

        Args:
            optimizer: a Keras optimizer.
            jit_compile: bool or `"auto"`: XLA where there is a GPU or TPU.
            **kwargs: as for `keras.Model.compile`, without losses and metrics.

        Raises:
            ValueError: if a loss or a metric is passed.
        """
        for name in ("loss", "loss_weights", "metrics", "weighted_metrics"):
            if kwargs.get(name) is not None:
                raise ValueError(
                    f"`{name}` must not be passed: a SpanModel has its own loss. "
                    f"Received: {name}={kwargs[name]!r}."
                )
        if jit_compile == "auto":
            jit_compile = runs_on_accelerator()
        super().compile(optimizer=optimizer, jit_compile=jit_compile, **kwargs)

    @property
    def metrics(self):
        """The loss."""
        return [self.loss_metric]

    def train_step(self, data):
        """One update."""
        with tf.GradientTape() as tape:
            loss = self._tracked_loss(data, training=True)
            loss = self.optimizer.scale_loss(loss)
        variables = self.trainable_variables
        gradients = tape.gradient(loss, variables)
        reached = [
            (dense(gradient, variable), variable)
            for gradient, variable in zip(gradients, variables, strict=True)
            if gradient is not None
        ]
        self.optimizer.apply(*zip(*reached, strict=True))
        return self.get_metrics_result()

    def test_step(self, data):
        """The loss of one batch, without dropout."""
        self._tracked_loss(data, training=False)
        return self.get_metrics_result()

    def _tracked_loss(self, data, training):
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        y_pred = self(x, training=training)
        loss = self.compute_loss(x, y, y_pred, sample_weight)
        num_replicas = self.distribute_strategy.num_replicas_in_sync
        self.loss_metric.update_state(
            loss * num_replicas, sample_weight=tf.shape(x["token_ids"])[0]
        )
        return loss

    def get_config(self):
        """The arguments of the constructor."""
        return {
            **super().get_config(),
            "backbone": keras.saving.serialize_keras_object(self.backbone),
            "mask_question": self.mask_question,
        }

    @classmethod
    def from_config(cls, config):
        """Builds the model, its weights not set."""
        backbone = keras.saving.deserialize_keras_object(config["backbone"])
        return cls(**{**config, "backbone": backbone})


def save_span_model(model, tokenizer, path, overwrite=True):
    """Saves a model as a directory that `load_span_model` reads.

    The encoder and its tokenizer are a keras-nlp preset, which
    `keras_hub.models.Backbone.from_preset(path)` reads as well. Written to a temporary
    directory and renamed.

    Args:
        model: `SpanModel`.
        tokenizer: keras-nlp tokenizer.
        path: str or path of the directory.
        overwrite: bool. Whether an existing directory is replaced.

    Raises:
        FileExistsError: if `path` exists and `overwrite` is not set.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise FileExistsError(
            f"`path` must not exist unless `overwrite` is set. Received: path={path}."
        )
    head = {
        "kernel": ops.convert_to_numpy(model.span_head.kernel),
        "bias": ops.convert_to_numpy(model.span_head.bias),
    }
    with replacing_directory(path) as fresh:
        model.backbone.save_to_preset(str(fresh))
        tokenizer.save_to_preset(str(fresh))
        save_file(head, fresh / _HEAD_FILE)
        config = json.dumps({"mask_question": model.mask_question}, indent=2)
        (fresh / _CONFIG_FILE).write_text(config + "\n", encoding="utf-8")


def is_span_model(path):
    """Whether a path is of a directory that `save_span_model` wrote."""
    return (Path(path) / _CONFIG_FILE).is_file()


def load_span_model(path, dtype=None):
    """Loads what `save_span_model` wrote.

    Args:
        path: str or path of the directory.
        dtype: str or `keras.DTypePolicy`. As for `load_backbone`.

    Returns:
        `SpanModel` and its tokenizer.

    Raises:
        ValueError: if the directory or one of its files is not there, cannot be read or
            does not fit the encoder.
    """
    path = Path(path)
    for name in (_CONFIG_FILE, _HEAD_FILE):
        if not (path / name).is_file():
            raise _model_error(path, f"it has no {name}")
    try:
        config = json.loads((path / _CONFIG_FILE).read_text(encoding="utf-8"))
        mask_question = config["mask_question"]
    except (ValueError, KeyError, TypeError) as error:
        reason = f"{_CONFIG_FILE} is not one of a SpanModel"
        raise _model_error(path, reason) from error
    try:
        head = load_file(path / _HEAD_FILE)
    except SafetensorError as error:
        raise _model_error(path, f"{_HEAD_FILE} cannot be read") from error
    model = SpanModel(load_backbone(path, dtype), mask_question=mask_question)
    variables = {"kernel": model.span_head.kernel, "bias": model.span_head.bias}
    shapes = {name: tuple(values.shape) for name, values in head.items()}
    if shapes != {name: tuple(value.shape) for name, value in variables.items()}:
        raise _model_error(path, f"{_HEAD_FILE} does not fit the encoder")
    for name, variable in variables.items():
        variable.assign(head[name])
    return model, load_tokenizer(path)


def fine_tune_spans(
    model,
    tokenizer,
    train_examples,
    *,
    optimizer,
    batch_size=32,
    num_epochs=2,
    sequence_length=384,
    doc_stride=128,
    max_question_length=64,
    seed=0,
    callbacks=None,
    verbose="auto",
):
    """Trains a model to find answers.

    Args:
        model: `SpanModel`. Trained in place.
        tokenizer: keras-nlp tokenizer of its encoder.
        train_examples: list of `SpanExample`.
        optimizer: a Keras optimizer, or a function of the number of updates that makes
            one: `lambda steps: keras_minilmv2.adamw(3e-5, steps // 10, steps)`.
        batch_size: int. Windows of a batch.
        num_epochs: int.
        sequence_length: int. As for `span_features`, like the next two.
        doc_stride: int.
        max_question_length: int.
        seed: int. Order of the windows. Dropout and the head's first weights follow
            `keras.utils.set_random_seed`.
        callbacks: list of Keras callbacks.
        verbose: as for `keras.Model.fit`.

    Returns:
        `keras.callbacks.History`.

    Raises:
        ValueError: if a size is not positive, the sizes do not fit the encoder or each
            other, the tokenizer does not fit the encoder, or there is nothing to train
            on.
        TypeError: if `optimizer` is neither an optimizer nor a function.
    """
    if not (isinstance(optimizer, keras.optimizers.Optimizer) or callable(optimizer)):
        raise TypeError(
            "`optimizer` must be a Keras optimizer or a function that makes one. "
            f"Received: optimizer={optimizer!r}."
        )
    features = model_features(
        model.backbone,
        tokenizer,
        train_examples,
        sequence_length=sequence_length,
        doc_stride=doc_stride,
        max_question_length=max_question_length,
    )
    return fit_spans(
        model,
        features,
        optimizer=optimizer,
        batch_size=batch_size,
        num_epochs=num_epochs,
        seed=seed,
        callbacks=callbacks,
        verbose=verbose,
    )


def fit_spans(
    model,
    features,
    *,
    optimizer,
    batch_size,
    num_epochs,
    seed,
    callbacks=None,
    verbose="auto",
):
    """Trains a model on windows that are cut already; see `fine_tune_spans`.

    Args:
        model: `SpanModel`. Trained in place.
        features: `SpanFeatures`.
        optimizer: as for `fine_tune_spans`, and so are the others.
        batch_size: int.
        num_epochs: int.
        seed: int.
        callbacks: list of Keras callbacks.
        verbose: as for `keras.Model.fit`.

    Returns:
        `keras.callbacks.History`.
    """
    dataset = span_dataset(features, batch_size, num_epochs=num_epochs, seed=seed)
    total_steps = int(dataset.cardinality())
    if not isinstance(optimizer, keras.optimizers.Optimizer):
        optimizer = optimizer(total_steps)
    model.compile(optimizer)
    return model.fit(
        dataset,
        epochs=num_epochs,
        steps_per_epoch=total_steps // num_epochs,
        callbacks=callbacks,
        verbose=verbose,
        shuffle=False,  # The dataset does it.
    )


class NotFiniteError(ValueError):
    """A model's logits are not finite."""


@dataclass(frozen=True)
class SpanEvaluation:
    """What `evaluate_spans` finds.

    Args:
        predictions: dict of str by question id, the official format.
        answers: dict of str by question id. The best answers that are not empty: what
            the thresholds of SQuAD 2.0 are sought among, with `null_odds`.
        nbest: dict of lists of dicts by question id, as in `SpanAnswers`.
        null_odds: dict of float by question id, as in `SpanAnswers`.
        metrics: dict of float, those of `squad_metrics`, `squad_v2_metrics` or
            `mlqa_metrics`.
    """

    predictions: dict
    answers: dict
    nbest: dict
    null_odds: dict
    metrics: dict


def evaluate_spans(
    model,
    tokenizer,
    examples,
    *,
    language=None,
    no_answer=None,
    null_threshold=0.0,
    n_best=20,
    max_answer_length=30,
    batch_size=32,
    sequence_length=384,
    doc_stride=128,
    max_question_length=64,
):
    """Answers questions and scores the answers, on one device.

    Args:
        model: `SpanModel`.
        tokenizer: keras-nlp tokenizer of its encoder.
        examples: list of `SpanExample`.
        language: str. Language of the contexts, for MLQA's scores; None for SQuAD's.
        no_answer: bool. Whether no answer is one, as in SQuAD 2.0. None takes it to be
            so if an example has no answer.
        null_threshold: float. With `no_answer`, a question whose `null_odds` are above
            it is not answered.
        n_best: int. As for `best_answers`.
        max_answer_length: int. As for `best_answers`.
        batch_size: int. Windows of a batch.
        sequence_length: int. As for `span_features`, like the next two.
        doc_stride: int.
        max_question_length: int.

    Returns:
        `SpanEvaluation`. With `no_answer`, the best thresholds in its metrics are
        sought among the best answers that are not empty.

    Raises:
        ValueError: if there is no example, two have the same id, a size is not
            positive, the sizes do not fit the encoder or each other, or `language` is
            not one of MLQA's or is given with `no_answer`.
        NotFiniteError: if the model's logits are not finite.
    """
    check_positive(batch_size=batch_size)
    golds = {example.id: example.answers for example in examples}
    if len(golds) != len(examples) or not golds:
        raise ValueError(
            "`examples` must have one example or more, each with an id of its own. "
            f"Received: {len(examples)} examples with {len(golds)} ids."
        )
    if no_answer is None:
        no_answer = not all(golds.values())
    if no_answer and language is not None:
        raise ValueError(
            "`language` must be None where there are questions without an answer. "
            f"Received: language={language!r}."
        )
    features = model_features(
        model.backbone,
        tokenizer,
        examples,
        sequence_length=sequence_length,
        doc_stride=doc_stride,
        max_question_length=max_question_length,
    )
    answers = best_answers(
        features,
        **_logits(model, features, batch_size),
        n_best=n_best,
        max_answer_length=max_answer_length,
        no_answer=no_answer,
    )
    predictions = answers.texts
    if no_answer:
        metrics = squad_v2_metrics(
            answers.texts, golds, answers.null_odds, null_threshold
        )
        predictions = {
            key: "" if answers.null_odds[key] > null_threshold else text
            for key, text in answers.texts.items()
        }
    elif language is not None:
        metrics = mlqa_metrics(predictions, golds, language)
    else:
        metrics = squad_metrics(predictions, golds)
    return SpanEvaluation(
        predictions, answers.texts, answers.nbest, answers.null_odds, metrics
    )


def model_features(backbone, tokenizer, examples, *, sequence_length, **sizes):
    """Windows that an encoder can read.

    Args:
        backbone: a keras-nlp backbone.
        tokenizer: its keras-nlp tokenizer.
        examples: list of `SpanExample`.
        sequence_length: int, as for `span_features`.
        **sizes: int, `doc_stride` and `max_question_length`.

    Returns:
        `SpanFeatures`.

    Raises:
        ValueError: if the encoder has too few positions or token embeddings, or the
            sizes do not fit each other.
    """
    check_tokenizer(backbone, tokenizer)
    if sequence_length > backbone.max_sequence_length:
        raise ValueError(
            "`sequence_length` must not be above the backbone's `max_sequence_length`. "
            f"Received: sequence_length={sequence_length}, "
            f"max_sequence_length={backbone.max_sequence_length}."
        )
    return span_features(tokenizer, examples, sequence_length=sequence_length, **sizes)


def _logits(model, features, batch_size):
    """Logits of all windows, from batches that are no longer than they need be."""
    shape = features.token_ids.shape
    logits = {
        name: np.full(shape, _MASKED, "float32")
        for name in ("start_logits", "end_logits")
    }
    # One graph for all lengths.
    names = features.inputs(np.arange(0))
    spec = {name: tf.TensorSpec([None, None], tf.int32) for name in names}
    predict = tf.function(
        lambda inputs: model(inputs, training=False),
        input_signature=[spec],
        jit_compile=model.jit_compile,
    )
    order = np.argsort(features.num_tokens, kind="stable")
    for begin in range(0, len(order), batch_size):
        rows = order[begin : begin + batch_size]
        length = features.padded_lengths(rows[-1:])[0]
        for name, values in predict(features.inputs(rows, length)).items():
            logits[name][rows, :length] = values.numpy()
    if not all(np.isfinite(values).all() for values in logits.values()):
        raise NotFiniteError("`model` must have finite weights and logits.")
    return logits


def _model_error(path, reason):
    return ValueError(
        "`path` must be a directory that save_span_model wrote. "
        f"Received: path={str(path)!r}; {reason}."
    )
