"""An encoder that points at the answer in a context: the model, saved and loaded."""

import json
from pathlib import Path

import keras
import tensorflow as tf
from keras import ops
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from keras_minilmv2.backbones.families import family_of, zero_segment_ids
from keras_minilmv2.backbones.flat_blocks import with_flat_blocks
from keras_minilmv2.backbones.loading import load_backbone, load_tokenizer
from keras_minilmv2.downstream.batches import MASKED
from keras_minilmv2.training.supervised import loss_and_gradients
from keras_minilmv2.utils.devices import runs_on_accelerator
from keras_minilmv2.utils.files import replacing_directory

CONFIG_FILE = "span_model.json"
_HEAD_FILE = "span_head.safetensors"


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
        mask_question: bool. Whether the two softmaxes exclude the tokens of the
            question. The original BERT code includes them.
        **kwargs: as for `keras.Model`.

    Call arguments:
        inputs: dict of int32 `(batch, length)`, as `SpanFeatures.inputs` gives them:
            `"token_ids"`, `"padding_mask"`, `"segment_ids"` (0 by default) and,
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
        return self._logits(self.backbone, inputs, training)

    def with_flat_blocks(self):
        """Builds a functional model of the same weights, fast to train.

        Returns:
            `keras.Model` of the inputs and outputs of this one; see
            `keras_minilmv2.backbones.flat_blocks`.
        """
        # All that `SpanFeatures.inputs` gives, needed or not.
        names = ("token_ids", "padding_mask", "segment_ids", "answer_mask")
        inputs = {n: keras.Input((None,), dtype="int32", name=n) for n in names}
        return keras.Model(
            inputs, self._logits(with_flat_blocks(self.backbone), inputs)
        )

    def _logits(self, encoder, inputs, training=None):
        encoder_inputs = zero_segment_ids(encoder, inputs)
        outputs = encoder(
            {name: encoder_inputs[name] for name in encoder.input}, training=training
        )
        if isinstance(outputs, dict):
            outputs = outputs["sequence_output"]
        logits = self.span_head(outputs)  # (batch, length, 2)
        mask = inputs["answer_mask" if self.mask_question else "padding_mask"]
        # Not -inf: the gradient of a cross-entropy would be nan.
        logits = ops.where(ops.expand_dims(mask, -1) != 0, logits, MASKED)
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
        return span_loss(y, y_pred, sample_weight)

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
        _, gradients, variables = loss_and_gradients(
            lambda: self._tracked_loss(data, training=True),
            self.trainable_variables,
            self.optimizer,
        )
        self.optimizer.apply(gradients, variables)
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


def span_loss(targets, outputs, sample_weight=None, reduction="sum_over_batch_size"):
    """Mean of the cross-entropies of start and end, in nats.

    Args:
        targets: dict of int32 `(batch,)`: `"start_positions"`, `"end_positions"`.
        outputs: dict of logits `(batch, length)`: `"start_logits"`, `"end_logits"`.
        sample_weight: float `(batch,)` or None.
        reduction: as for `keras.losses.Loss`.

    Returns:
        float32 scalar, divided by the number of replicas as every Keras loss; or, if
        `reduction` is None, `(batch,)`.
    """
    cross_entropy = keras.losses.SparseCategoricalCrossentropy(
        from_logits=True, reduction=reduction
    )
    start, end = (
        cross_entropy(
            targets[f"{side}_positions"], outputs[f"{side}_logits"], sample_weight
        )
        for side in ("start", "end")
    )
    return (start + end) / 2


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
        (fresh / CONFIG_FILE).write_text(config + "\n", encoding="utf-8")


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
    for name in (CONFIG_FILE, _HEAD_FILE):
        if not (path / name).is_file():
            raise _model_error(path, f"it has no {name}")
    try:
        config = json.loads((path / CONFIG_FILE).read_text(encoding="utf-8"))
        mask_question = config["mask_question"]
    except (ValueError, KeyError, TypeError) as error:
        reason = f"{CONFIG_FILE} is not one of a SpanModel"
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


def _model_error(path, reason):
    return ValueError(
        "`path` must be a directory that save_span_model wrote. "
        f"Received: path={str(path)!r}; {reason}."
    )
