"""Pre-training by masked language modelling, without a teacher."""

import keras
import keras_hub
import numpy as np
from keras import ops

from keras_minilmv2.backbones.families import family_of
from keras_minilmv2.backbones.hugging_face.weights import (
    has_masked_lm_head,
    load_masked_lm_head,
)
from keras_minilmv2.backbones.loading import load_backbone, load_tokenizer
from keras_minilmv2.backbones.precision import look_up_before_casting
from keras_minilmv2.backbones.preset_files import (
    find_file,
    first_line,
    is_masked_lm,
    preset_error,
)
from keras_minilmv2.backbones.projections import block_calls, hidden_states_model
from keras_minilmv2.backbones.variants import GELUS, rebuild
from keras_minilmv2.distillation.trainer import StudentTrainer

MASK_SHARE = 0.15
_HEAD_FILE = "task.weights.h5"
# Of the chosen tokens: replaced by the mask token, and by any token.
_TO_MASK, _TO_ANY = 0.8, 0.1


class MaskedTokenTrainer(StudentTrainer):
    """Trains a student to predict masked tokens.

        L = -1 / |C| sum_{t in C} log p(x_t | x with C masked)

    then the mean over sequences. C is 15% of a sequence's tokens, without special ones,
    drawn anew in every step: 80% of them become the mask token, 10% any token, 10%
    stay. The head over the student, `keras_hub.layers.MaskedLMHead` with the student's
    token embedding, is trained along. It is no part of the student; `save` writes both
    as a `keras_hub.models.MaskedLM`, ELECTRA's student alone, for which keras-hub has
    no such model.

    A baseline: what the same student learns from the same text alone. `evaluate`
    masks the same tokens each time. Metrics: `loss`, in nats, and `accuracy`. Trains
    on TensorFlow and JAX.

    Args:
        student: a keras-nlp backbone. Trained in place.
        tokenizer: its keras-nlp tokenizer, with a mask token.
        whole_words: bool. Whether all tokens of a word are chosen together; the last
            word may be cut where 15% are reached.
        seed: int. Of the head and the choice of tokens.
        **kwargs: as for `keras.Model`.

    Raises:
        ValueError: if the tokenizer has no mask token.

    Reference:
        [Devlin et al., 2019](https://arxiv.org/abs/1810.04805), section 3.1.
    """

    def __init__(self, student, tokenizer, whole_words=False, seed=0, **kwargs):
        if getattr(tokenizer, "mask_token_id", None) is None:
            raise ValueError(
                "`tokenizer` must have a `mask_token_id` to mask tokens. "
                f"Received: tokenizer of type {type(tokenizer).__name__}."
            )
        look_up_before_casting(student)
        super().__init__(
            student,
            hidden_states_model(student, [len(block_calls(student))]),
            ["accuracy"],
            student.max_sequence_length,
            **kwargs,
        )
        self.whole_words = whole_words
        self._mask_token_id = tokenizer.mask_token_id
        self._vocabulary_size = tokenizer.vocabulary_size()
        special = np.zeros(self._vocabulary_size, "bool")
        special[list(special_token_ids(tokenizer))] = True
        self._special = special
        self._begins_word = begins_word(tokenizer) if whole_words else None
        self.head = keras_hub.layers.MaskedLMHead(
            token_embedding=student.token_embedding,
            intermediate_activation=GELUS[family_of(student).masked_lm_gelu],
            kernel_initializer=keras.initializers.TruncatedNormal(0.0, 0.02, seed),
            dtype=self.dtype_policy,
            name="masked_lm_head",
        )
        self.head.build((None, None, student.hidden_dim), (None, None))
        self.seed_generator = keras.random.SeedGenerator(seed)

    @property
    def distilled_variables(self):
        """The student's trainable variables below its pooler, and the head's."""
        unique = {
            id(variable): variable
            for variable in (
                *super().distilled_variables,
                *self.head.trainable_variables,
            )
        }
        return list(unique.values())

    @property
    def model_to_save(self):
        """The student under its head, a `keras_hub.models.MaskedLM`."""
        masked_lm_class = family_of(self.student).masked_lm_class
        if masked_lm_class is None:
            return self.student
        student, policy = self.student, self.student.dtype_policy
        if policy.variable_dtype != policy.compute_dtype:
            # keras-hub 0.32 cannot load a task of mixed precision.
            student = rebuild(student, dtype=policy.variable_dtype)
            student.set_weights(self.student.get_weights())
        model = masked_lm_class(backbone=student)
        model.masked_lm_head.set_weights(self.head.get_weights())
        return model

    def _targets(self, inputs, training):
        return self._masked(inputs, [self.seed_generator] * 3 if training else range(3))

    def _drawn_targets(self, inputs, seed_generator):
        return self._masked(inputs, [seed_generator] * 3)

    def _masked(self, inputs, seeds):
        ids = inputs["token_ids"]
        shape = ops.shape(ids)
        special = ops.take(ops.convert_to_tensor(self._special), ids)
        mask = ops.cast(inputs["padding_mask"], "bool")
        can_be_chosen = ops.logical_and(mask, ops.logical_not(special))
        scores = keras.random.uniform(shape, seed=seeds[0])
        if self.whole_words:
            begins = ops.take(ops.convert_to_tensor(self._begins_word), ids)
            begins = ops.logical_or(begins, ops.logical_not(can_be_chosen))
            word = ops.cumsum(ops.cast(begins, "int32"), axis=1) - 1
            scores = ops.take_along_axis(scores, ops.maximum(word, 0), axis=1)
        scores = ops.where(can_be_chosen, scores, -1.0)
        if isinstance(shape[1], int):
            number = int(np.ceil(MASK_SHARE * shape[1]))
        else:
            share = MASK_SHARE * ops.cast(shape[1], "float32")
            number = ops.cast(ops.ceil(share), "int32")
        # Equal scores, those of a word, stay in their order.
        order = ops.argsort(-scores, axis=1)
        positions = ops.cast(order[:, :number], "int32")
        available = ops.sum(ops.cast(can_be_chosen, "float32"), axis=1, keepdims=True)
        wanted = ops.minimum(
            available, ops.maximum(1.0, ops.round(MASK_SHARE * available))
        )
        ranks = ops.cumsum(ops.ones_like(positions), axis=1) - 1
        weights = ops.cast(ops.cast(ranks, "float32") < wanted, "float32")
        dice = keras.random.uniform(shape, seed=seeds[1])
        any_token = ops.cast(
            keras.random.uniform(shape, 0, self._vocabulary_size, seed=seeds[2]),
            ids.dtype,
        )
        replaced = ops.where(dice < _TO_MASK + _TO_ANY, any_token, ids)
        replaced = ops.where(
            dice < _TO_MASK, ops.cast(self._mask_token_id, ids.dtype), replaced
        )
        chosen = ops.sum(
            ops.one_hot(positions, shape[1], dtype="float32") * weights[..., None],
            axis=1,
        )
        return {
            "token_ids": ops.where(chosen > 0, replaced, ids),
            "positions": positions,
            "labels": ops.take_along_axis(ids, positions, axis=1),
            "weights": weights,
        }

    def _student_inputs(self, inputs, y_true):
        return {**inputs, "token_ids": y_true["token_ids"]}

    def _has_loss(self, inputs, y_true):
        return ops.any(y_true["weights"] > 0, axis=-1)

    def _losses_of(self, outputs, inputs, y_true, static_shapes):
        (states,) = outputs.values()
        logits = ops.cast(self.head(states, y_true["positions"]), "float32")
        weights = y_true["weights"]
        share = weights / ops.maximum(ops.sum(weights, axis=-1, keepdims=True), 1.0)
        losses = ops.sparse_categorical_crossentropy(
            y_true["labels"], logits, from_logits=True
        )
        right = ops.cast(ops.argmax(logits, axis=-1), "int32") == ops.cast(
            y_true["labels"], "int32"
        )
        accuracy = ops.sum(share * ops.cast(right, "float32"), axis=-1)
        return ops.sum(share * losses, axis=-1), {"accuracy": accuracy}


def has_masked_token_head(preset):
    """Whether `load_masked_token_trainer` finds a head beside an encoder."""
    return is_masked_lm(preset) or has_masked_lm_head(preset)


def load_masked_token_trainer(preset, whole_words=False, seed=0, dtype=None):
    """Loads an encoder and its trained head for masked tokens.

    Args:
        preset: str or path. What `pretrain` wrote, another preset of a
            `keras_hub.models.MaskedLM`, or transformers' `...ForMaskedLM` or
            `...ForPreTraining` of a family other than ELECTRA. The epsilon of
            keras-hub's head, 1e-5, takes the place of transformers'.
        whole_words: bool, as for `MaskedTokenTrainer`.
        seed: int, of the choice of tokens.
        dtype: str or `keras.DTypePolicy`, as for `load_backbone`.

    Returns:
        `MaskedTokenTrainer`, to be compiled before it is trained or evaluated.

    Raises:
        TypeError, ValueError, ConnectionError: as `load_backbone`, and if there is no
            head.
    """
    if not has_masked_token_head(preset):
        raise preset_error(
            preset,
            "have a head for masked tokens, as `pretrain` writes it, or transformers' "
            "...ForMaskedLM",
        )
    student = load_backbone(preset, dtype=dtype)
    trainer = MaskedTokenTrainer(student, load_tokenizer(preset), whole_words, seed)
    if not is_masked_lm(preset):
        load_masked_lm_head(str(preset), family_of(student), trainer.head)
        return trainer
    model = trainer.model_to_save
    try:
        model.load_task_weights(find_file(str(preset), _HEAD_FILE))
    except Exception as error:
        # keras and h5py raise OSError, KeyError, ValueError and TypeError here.
        raise preset_error(
            preset,
            f"hold a {_HEAD_FILE} that can be read and fits its task.json",
            error=first_line(error),
        ) from error
    trainer.head.set_weights(model.masked_lm_head.get_weights())
    return trainer


def special_token_ids(tokenizer):
    """Ids that stand for no text: start, end, padding, mask and unknown."""
    ids = {
        getattr(tokenizer, f"{name}_token_id", None)
        for name in ("start", "end", "pad", "mask")
    }
    # Of WordPiece, and of the other tokenizers.
    unknown = getattr(tokenizer, "oov_token", "<unk>")
    if unknown in tokenizer.get_vocabulary():
        ids.add(tokenizer.token_to_id(unknown))
    return sorted(ids - {None})


def begins_word(tokenizer):
    """Which ids begin a word, as a bool vector over the vocabulary.

    WordPiece marks a piece inside a word with `##`; byte-level BPE and SentencePiece
    mark a piece that follows a space.
    """
    pieces = [
        tokenizer.id_to_token(token_id)
        for token_id in range(tokenizer.vocabulary_size())
    ]
    if isinstance(tokenizer, keras_hub.tokenizers.WordPieceTokenizer):
        return np.array([not piece.startswith("##") for piece in pieces])
    return np.array([piece.startswith(("Ġ", "\u2581")) for piece in pieces])
