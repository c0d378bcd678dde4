"""The objectives' records: every one trains a student and is described in words."""

from types import SimpleNamespace

import pytest
import tensorflow as tf
from small_trainers import make_batch, make_student, make_teacher, make_tokenizer

import keras_minilmv2 as km
from keras_minilmv2.distillation.objectives import OBJECTIVES, objective_for

SETTINGS = SimpleNamespace(
    teacher="bert",
    teacher_layer=4,
    num_relation_heads=8,
    relation_weights={"qq": 1.0, "kv": 0.0},
    relation_head_weights=None,
    whole_words=True,
    seed=3,
)


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=lambda each: each.name)
def test_an_objective_trains_what_its_record_describes(objective):
    teacher = make_teacher()
    student = make_student(teacher, num_heads=4)
    trainer = objective.make_trainer(
        teacher if objective.needs_teacher else None,
        student,
        make_tokenizer(),
        SETTINGS,
    )
    # Tracing takes most of the time.
    trainer.compile(km.adamw(0.01, 1, 5), run_eagerly=True)
    before = student.get_weights()
    trainer.fit(tf.data.Dataset.from_tensors(make_batch()), verbose=0, shuffle=False)
    changed = [
        (a != b).any() for a, b in zip(before, student.get_weights(), strict=True)
    ]
    assert any(changed)
    assert not all(changed)
    assert ("feed-forward" in objective.untrained) == (objective.relations is not None)


def test_an_objective_is_described_in_words():
    objective = OBJECTIVES["relations"]
    assert objective.loss_label == "relation loss [nats]"
    assert objective.held_out_summary(2, 1.23456) == (
        "Held-out relation loss: 2.0000 nats before, 1.2346 after."
    )
    title = objective.title(SETTINGS, "bert", "6x384")
    assert title == "Distillation of bert to 6x384, 8 relation heads"
    rows = [["teacher", "bert, layer 4"], ["relation heads", "8"]]
    assert objective.facts(SETTINGS) == rows
    weighted = SimpleNamespace(
        **{**vars(SETTINGS), "relation_head_weights": (1.0, 3.0) * 4}
    )
    assert objective.facts(weighted)[1][1] == "8, with weights from 0.50 to 1.50"
    teacher = make_teacher()
    trainer = objective.make_trainer(teacher, make_student(teacher), None, weighted)
    assert trainer.relation_loss.relation_head_weights == (1.0, 3.0) * 4
    masked = OBJECTIVES["masked_tokens"]
    assert masked.title(SETTINGS, "bert", "6x384") == (
        "Masked language modelling of a 6x384 like bert"
    )
    assert masked.facts(SETTINGS)[1] == ["objective", "masked words"]


def test_relations_are_those_that_cost_something():
    assert OBJECTIVES["relations"].relations(SETTINGS, 12) == (["qq"], 8)
    assert OBJECTIVES["attention_values"].relations(SETTINGS, 12) == (["qk", "vv"], 12)


def test_an_objective_that_does_not_serve_is_refused_by_those_that_do():
    names = [each.name for each in OBJECTIVES.values() if each.relations]
    assert names == ["relations", "attention_values"]
    assert objective_for("relations", lambda each: each.relations, "").name == names[0]
    with pytest.raises(
        ValueError,
        match="`objective` must be relations or attention_values to count. "
        "Received: objective='hidden_states'",
    ):
        objective_for("hidden_states", lambda each: each.relations, "to count")


def test_settings_are_read_when_a_trainer_is_made():
    teacher = make_teacher()
    trainer = OBJECTIVES["relations"].make_trainer(
        teacher, make_student(teacher), None, SETTINGS
    )
    assert trainer.teacher_layer == 4
    assert trainer.relation_loss.pairs == ["qq"]
    assert len(trainer.teacher_variables) > 0
