"""What a student can be trained for: one record for each objective of a recipe."""

from collections.abc import Callable
from dataclasses import dataclass

# The trainers are imported when one is made: a recipe is checked without TensorFlow.

_ABOVE_LAST_PROJECTIONS = (
    "The attention output, norms and feed-forward of its last layer, and a pooler, "
    "got no gradient and are as initialized"
)
_POOLER = "A pooler got no gradient and is as initialized"


@dataclass(frozen=True, kw_only=True)
class Objective:
    """All that differs between the objectives.

    `settings` below is a `Recipe`, or anything with its fields.

    Args:
        name: str. The value of a recipe's field `objective`.
        loss_name: str. What reports call the loss.
        unit: str. Of the loss.
        title_format: str. For `title`, a format of `settings`, `teacher`, `student`.
        facts: function of `settings` that returns rows for reports: lists of a setting
            and its value, str both.
        make_trainer: function of teacher, student, tokenizer and `settings` that
            returns a `StudentTrainer`, which is still to be compiled.
        untrained: str. Clause that names the weights of the student that the loss does
            not reach.
        needs_teacher: bool. Whether the teacher runs; if not, it only lends its
            tokenizer and shape.
        relations: function of `settings` and the teacher's number of attention heads
            that returns the pairs of letters (list of str) and the number of relation
            heads, or None for a loss without relations, whose costs are not counted.
        weighs_heads: bool. Whether relation heads can have weights.
        compares_layers: bool. Whether students of several teacher layers can be trained
            side by side to choose a layer.
    """

    name: str
    loss_name: str
    unit: str
    title_format: str
    facts: Callable
    make_trainer: Callable
    untrained: str
    needs_teacher: bool = True
    relations: Callable | None = None
    weighs_heads: bool = False
    compares_layers: bool = False

    def title(self, settings, teacher, student):
        """The title of a run.

        Args:
            settings: as above.
            teacher: str, a short name.
            student: str, its shape.
        """
        return self.title_format.format(
            settings=settings, teacher=teacher, student=student
        )

    @property
    def loss_label(self):
        """The loss with its unit, for an axis: `"relation loss [nats]"`."""
        return f"{self.loss_name} [{self.unit}]"

    def held_out_summary(self, before, after):
        """One sentence with the held-out loss before and after training.

        Args:
            before: float.
            after: float.
        """
        return (
            f"Held-out {self.loss_name}: {before:.4f} {self.unit} before, "
            f"{after:.4f} after."
        )


def objective_for(name, accepts, purpose):
    """The objective of a name, which must serve a purpose.

    Args:
        name: str, a key of `OBJECTIVES`.
        accepts: function of an `Objective` that returns whether it does.
        purpose: str, such as `"to choose a layer"`.

    Returns:
        `Objective`.

    Raises:
        ValueError: naming the objectives that serve the purpose.
    """
    objective = OBJECTIVES[name]
    if not accepts(objective):
        names = " or ".join(each.name for each in OBJECTIVES.values() if accepts(each))
        raise ValueError(
            f"`objective` must be {names} {purpose}. Received: objective={name!r}."
        )
    return objective


def _teacher_row(settings):
    return ["teacher", f"{settings.teacher}, layer {settings.teacher_layer}"]


def _relations(settings, num_heads):
    from keras_minilmv2.distillation.losses import check_relation_weights

    weights = check_relation_weights(settings.relation_weights)
    pairs = [pair for pair, weight in weights.items() if weight]
    return pairs, settings.num_relation_heads


def _relation_heads(settings):
    weights = settings.relation_head_weights
    if weights is None:
        return f"{settings.num_relation_heads}"
    mean = sum(weights) / len(weights)
    lowest, highest = min(weights) / mean, max(weights) / mean
    return f"{len(weights)}, with weights from {lowest:.2f} to {highest:.2f}"


def _relation_distiller(teacher, student, tokenizer, settings):
    from keras_minilmv2.distillation.distiller import RelationDistiller

    return RelationDistiller(
        teacher,
        student,
        teacher_layer=settings.teacher_layer,
        num_relation_heads=settings.num_relation_heads,
        relation_weights=settings.relation_weights,
        relation_head_weights=settings.relation_head_weights,
    )


def _attention_value_distiller(teacher, student, tokenizer, settings):
    from keras_minilmv2.distillation.distiller import RelationDistiller
    from keras_minilmv2.distillation.losses import AttentionValueLoss

    return RelationDistiller(
        teacher,
        student,
        teacher_layer=settings.teacher_layer,
        relation_loss=AttentionValueLoss(),
    )


def _hidden_state_distiller(teacher, student, tokenizer, settings):
    from keras_minilmv2.distillation.hidden_states import HiddenStateDistiller

    return HiddenStateDistiller(
        teacher, student, settings.teacher_layer, seed=settings.seed
    )


def _masked_token_trainer(teacher, student, tokenizer, settings):
    from keras_minilmv2.distillation.masked_tokens import MaskedTokenTrainer

    return MaskedTokenTrainer(
        student, tokenizer, whole_words=settings.whole_words, seed=settings.seed
    )


_ALL = (
    Objective(
        name="relations",
        loss_name="relation loss",
        unit="nats",
        title_format="Distillation of {teacher} to {student}, "
        "{settings.num_relation_heads} relation heads",
        facts=lambda settings: [
            _teacher_row(settings),
            ["relation heads", _relation_heads(settings)],
        ],
        make_trainer=_relation_distiller,
        untrained=_ABOVE_LAST_PROJECTIONS,
        relations=_relations,
        weighs_heads=True,
        compares_layers=True,
    ),
    Objective(
        name="attention_values",
        loss_name="attention and value-relation loss",
        unit="nats",
        title_format="Distillation of {teacher} to {student}, "
        "attention and value-relation loss",
        facts=lambda settings: [
            _teacher_row(settings),
            ["objective", "attention values"],
        ],
        make_trainer=_attention_value_distiller,
        untrained=_ABOVE_LAST_PROJECTIONS,
        relations=lambda settings, num_heads: (["qk", "vv"], num_heads),
    ),
    Objective(
        name="hidden_states",
        loss_name="hidden-state loss",
        unit="squared units",
        title_format="Distillation of {teacher} to {student}, hidden-state loss",
        facts=lambda settings: [
            _teacher_row(settings),
            ["objective", "hidden states"],
        ],
        make_trainer=_hidden_state_distiller,
        untrained=_POOLER,
    ),
    Objective(
        name="masked_tokens",
        loss_name="masked-token loss",
        unit="nats",
        title_format="Masked language modelling of a {student} like {teacher}",
        facts=lambda settings: [
            ["tokenizer and shape of", settings.teacher],
            ["objective", f"masked {'words' if settings.whole_words else 'tokens'}"],
        ],
        make_trainer=_masked_token_trainer,
        untrained=_POOLER,
        needs_teacher=False,
    ),
)

# In the order in which messages list them.
OBJECTIVES = {objective.name: objective for objective in _ALL}
