"""Students of several teacher layers, trained side by side with one teacher pass."""

import tensorflow as tf

from keras_minilmv2.backbones.precision import cast_once
from keras_minilmv2.backbones.projections import qkv_models
from keras_minilmv2.distillation.distiller import RelationDistiller


class LayerCandidates:
    """Distils several layers of a teacher, each into a student of its own.

    The teacher runs once for each batch, up to the highest of the layers. Each student
    is trained as a `RelationDistiller` of its layer would train it by itself. For
    TensorFlow and one device.

    Args:
        teacher: a keras-nlp backbone.
        students: dict of keras-nlp backbone by layer.
        num_relation_heads: int.
        relation_weights: dict of float by pair.
        make_optimizer: function that returns a Keras optimizer, called for each.
    """

    def __init__(
        self, teacher, students, num_relation_heads, relation_weights, make_optimizer
    ):
        # One copy in the dtype it computes in, for all of them.
        teacher = cast_once(teacher)
        self.distillers = {}
        for layer, student in sorted(students.items()):
            distiller = RelationDistiller(
                teacher, student, layer, num_relation_heads, relation_weights
            )
            distiller.compile(make_optimizer())
            self.distillers[layer] = distiller
        first = next(iter(self.distillers.values()))
        self._teacher_qkv = qkv_models(
            teacher, list(self.distillers), first.relation_loss.projections
        )
        self._inputs = first._inputs
        self._step = tf.function(self._train_step)

    def train(self, batches, on_step):
        """Trains all students.

        Args:
            batches: iterable of dict batches, as for `RelationDistiller`.
            on_step: function called after each update with its number, from 1, and a
                dict of loss by layer.
        """
        for step, batch in enumerate(batches, start=1):
            losses = self._step(batch)
            on_step(step, {layer: float(loss) for layer, loss in losses.items()})

    def _train_step(self, batch):
        inputs = self._inputs(batch)
        vectors = self._teacher_qkv(inputs, training=False)
        losses = {}
        for layer, distiller in self.distillers.items():
            y_true = distiller.targets_of(vectors[str(layer)], inputs)
            distiller.reset_metrics()
            losses[layer] = distiller.train_on_targets(inputs, y_true)["loss"]
        return losses
