"""Fine-tuning of a model with a larger one of the same task as its teacher."""

import math

import keras

from keras_minilmv2.backbones.projections import with_projections
from keras_minilmv2.backbones.pruned import last_layer_with_heads, layer_width
from keras_minilmv2.distillation.blocked import suitable_block_size
from keras_minilmv2.distillation.losses import RelationLoss
from keras_minilmv2.runs.supervised import train_model
from keras_minilmv2.training.supervised import compiled


def compared_relations(teacher, student):
    """The layer whose relations are compared, and the number of relation heads.

    Args:
        teacher: a keras-nlp backbone.
        student: a backbone of as many layers, made from the teacher by removing heads.

    Returns:
        tuple of int: the last layer in which the student has heads, from 1, and the 48
        heads of the papers, or what divides 48 and the channels of both.

    Raises:
        ValueError: if the student has no heads.
    """
    layer = last_layer_with_heads(student)
    if not layer:
        raise ValueError(
            "`relation_weight` must be 0 for a model without attention heads, which "
            "has no relations. Received: a model whose heads were all removed."
        )
    widths = (layer_width(backbone, layer) for backbone in (teacher, student))
    return layer, math.gcd(48, *widths)


def train_with_teacher(
    task, model, teacher, features, cell, *, distill, relation_weight=0.0, **options
):
    """Trains a model of a task with another one as its teacher.

        L = (1 - distill) L_task + distill D + relation_weight L_relations

    with the divergence `D` of the two models' outputs and the relation loss of the
    queries, keys and values of one layer, see `compared_relations`.

    Args:
        task: `Task`.
        model: as `task.model` builds it. It is changed.
        teacher: another one.
        features: `Features` to train on.
        cell: `Cell`, as for `train_model`.
        distill: float from 0 to 1.
        relation_weight: float. With 0 no relations are computed.
        **options: as for `train_model`.

    Returns:
        list of float, the mean loss of each epoch.

    Raises:
        ValueError: if relations are to be compared and the model has no heads.
        NotFiniteError: if a loss is not finite.
    """
    models = [task.training_model(each) for each in (teacher, model)]
    relation_loss = None
    if relation_weight:
        layer, num_relation_heads = compared_relations(teacher.backbone, model.backbone)
        # The graph knows no length: it would take blocks that suit 512 tokens.
        block_size = suitable_block_size(features.sequence_length)
        relation_loss = RelationLoss(num_relation_heads, block_size=block_size)
        models = [with_projections(each, layer) for each in models]
    of_teacher, trained = models
    predict = compiled(lambda inputs: of_teacher(inputs, training=False))
    return train_model(
        task,
        model,
        features,
        cell,
        training_model=trained,
        loss=taught_loss(
            task.loss, distill, relation_weight, relation_loss, features.jit_compile
        ),
        with_targets=lambda inputs, targets: (targets, predict(inputs)),
        **options,
    )


def taught_loss(
    task_loss, distill, relation_weight=0.0, relation_loss=None, static_shapes=False
):
    """The loss of a model with a teacher; see `train_with_teacher`.

    Args:
        task_loss: function of targets and outputs.
        distill: float.
        relation_weight: float.
        relation_loss: `RelationLoss`, or None to compare outputs alone.
        static_shapes: bool, as for `RelationLoss.sequence_losses`.

    Returns:
        Function that returns a scalar, given a pair, the targets and the outputs of the
        teacher, and the outputs of the model. With a `relation_loss` both outputs are
        those of `with_projections`.
    """

    def of_outputs(targets, wanted, outputs):
        pairs = zip(
            keras.tree.flatten(wanted), keras.tree.flatten(outputs), strict=True
        )
        divergences = [_divergence(*pair) for pair in pairs]
        divergence = sum(divergences) / len(divergences)
        return (1 - distill) * task_loss(targets, outputs) + distill * divergence

    def loss(targets, outputs):
        targets, wanted = targets
        if relation_loss is None:
            return of_outputs(targets, wanted, outputs)
        losses, _ = relation_loss.sequence_losses(
            wanted["projections"], outputs["projections"], static_shapes
        )
        return of_outputs(
            targets, wanted["outputs"], outputs["outputs"]
        ) + relation_weight * keras.ops.mean(losses)

    return loss


def _divergence(teacher, student):
    """KL divergence of the last axis, in nats, or the squared error of one output."""
    # The teacher's outputs come as an argument of a graph, without sizes.
    if student.shape[-1] == 1:
        return keras.ops.mean(keras.ops.square(teacher - student))
    log_teacher = keras.ops.log_softmax(teacher)
    terms = keras.ops.exp(log_teacher) * (log_teacher - keras.ops.log_softmax(student))
    return keras.ops.mean(keras.ops.sum(terms, axis=-1))
