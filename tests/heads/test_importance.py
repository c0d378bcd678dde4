"""Importance against finite differences, PyTorch, and one example at a time."""

import functools
import json
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from families import CLASSES, make_backbone, make_inputs
from processes import finish, start
from small_trainers import make_batch, make_student, make_teacher, make_tokenizer

import keras_minilmv2 as km
from keras_minilmv2.backbones.attention import attention_of
from keras_minilmv2.backbones.loading import load_backbone
from keras_minilmv2.backbones.projections import block_calls
from keras_minilmv2.distillation.hidden_states import HiddenStateDistiller
from keras_minilmv2.distillation.masked_tokens import MaskedTokenTrainer
from keras_minilmv2.downstream.classifiers import text_classifier
from keras_minilmv2.downstream.registry import get_task
from keras_minilmv2.downstream.span_model import SpanModel, span_loss
from keras_minilmv2.heads.gates import gated_model
from keras_minilmv2.heads.importance import (
    GateStatistics,
    HeadImportance,
    attention_entropy,
    head_importance,
    layer_normalized,
)
from keras_minilmv2.training.supervised import NotFiniteError

REFERENCE = Path(__file__).parents[1] / "reference"
EXPECTED = json.loads((REFERENCE / "head_importance.json").read_text("utf-8"))
SMALL = {"num_layers": 2, "intermediate_dim": 6}
LABELS = np.array([0, 2, 1, 1, 0], "int32")


def cross_entropy(targets, outputs):
    """In the dtype of the outputs."""
    log_probs = tf.nn.log_softmax(outputs)
    return -tf.gather(log_probs, targets, axis=1, batch_dims=1)


def make_classifier(name="bert", **kwargs):
    backbone = make_backbone(name, **{**SMALL, **kwargs})
    return text_classifier(backbone, num_outputs=3, seed=0)


def make_examples(classifier):
    return make_inputs(classifier.backbone, batch=len(LABELS)), LABELS


def rows(batch, chosen):
    return tf.nest.map_structure(lambda x: x[chosen], batch)


def perturbed_losses(losses_of, shapes, step, tied=None):
    """Derivatives of one example's loss by central differences, one for each gate.

    `losses_of` takes a batch of gates. `tied` has the block of each layer: layers of
    one block are perturbed together.
    """
    tied = np.arange(shapes["head_gate"][0]) if tied is None else tied
    found = {}
    for name, (_, size) in shapes.items():
        places = [(block, i) for block in range(tied.max() + 1) for i in range(size)]
        gates = {
            other: np.ones((2 * len(places), *shape)) for other, shape in shapes.items()
        }
        for row, (block, i) in enumerate(places):
            gates[name][2 * row, tied == block, i] += step
            gates[name][2 * row + 1, tied == block, i] -= step
        up_and_down = np.asarray(losses_of(gates)).reshape(-1, 2)
        slopes = (up_and_down[:, 0] - up_and_down[:, 1]) / (2 * step)
        found[name] = slopes.reshape(-1, size)
    return found


def check(statistics, derivatives, rtol):
    derivatives = np.array(derivatives)
    # Rounding of the differences is the same for all gates.
    atol = rtol * np.abs(derivatives).max()
    np.testing.assert_allclose(
        statistics.absolute, np.abs(derivatives).mean(axis=0), rtol, rtol * atol
    )
    np.testing.assert_allclose(
        statistics.fisher, (derivatives**2).mean(axis=0), rtol, rtol * atol**2
    )


@pytest.mark.parametrize("name", CLASSES)
def test_importance_is_that_of_finite_differences(name):
    # As many as there are groups would share nothing.
    num_layers = 4 if name == "albert_groups" else 2
    classifier = make_classifier(name, dtype="float64", num_layers=num_layers)
    inputs, labels = make_examples(classifier)
    found = head_importance(classifier, [(inputs, labels)], cross_entropy)
    gated = gated_model(classifier)
    shapes = {n: tuple(gated.input[n].shape[1:]) for n in ("head_gate", "neuron_gate")}
    run = tf.function(lambda x: gated(x, training=False), autograph=False)

    def derivatives(tied=None):
        for row in range(len(labels)):

            def losses_of(gates, row=row):
                number = len(gates["head_gate"])
                repeated = {
                    n: np.repeat(x[row : row + 1], number, 0) for n, x in inputs.items()
                }
                return cross_entropy(
                    np.full(number, labels[row]), run({**repeated, **gates})
                )

            yield perturbed_losses(losses_of, shapes, 1e-5, tied)

    by_example = list(derivatives())
    check(found.heads, [each["head_gate"] for each in by_example], 1e-4)
    check(found.neurons, [each["neuron_gate"] for each in by_example], 1e-4)
    shares = "albert" in name
    assert (found.shared_heads is None) is (found.shared_neurons is None) is not shares
    if shares:
        groups = 2 if name == "albert_groups" else 1
        assert found.shared_heads.fisher.shape == (groups, 4)
        by_example = list(derivatives(found.block_of_layer))
        check(found.shared_heads, [each["head_gate"] for each in by_example], 1e-4)
        check(found.shared_neurons, [each["neuron_gate"] for each in by_example], 1e-4)


@pytest.mark.parametrize("family", EXPECTED)
def test_importance_is_that_of_pytorch(family):
    expected = EXPECTED[family]
    backbone = load_backbone(REFERENCE / expected["directory"], "float64")
    inputs = {n: np.array(expected[n], "int32") for n in ("token_ids", "padding_mask")}
    labels = np.array(expected["labels"], "int32")

    def loss(targets, outputs):
        if isinstance(outputs, dict):
            outputs = outputs["sequence_output"]
        return cross_entropy(targets, outputs[:, 0, :3])

    found = head_importance(backbone, [(inputs, labels)], loss)
    np.testing.assert_allclose(found.loss, np.mean(expected["losses"]), rtol=1e-6)
    for name in ("heads", "neurons"):
        for kind, values in expected[name].items():
            np.testing.assert_allclose(
                getattr(getattr(found, name), kind), values, rtol=1e-6, atol=1e-9
            )


def by_example(classifier, batch, **kwargs):
    """Results of each example alone: `absolute` is then `|g|`."""
    number = len(batch[1])
    return [
        head_importance(
            classifier, [rows(batch, slice(i, i + 1))], cross_entropy, **kwargs
        )
        for i in range(number)
    ]


def test_statistics_are_those_of_examples_alone():
    classifier = make_classifier()
    batch = make_examples(classifier)
    alone = by_example(classifier, batch)
    dataset = [rows(batch, slice(3)), rows(batch, slice(3, 5))]
    steps = []
    found = head_importance(
        classifier,
        dataset,
        cross_entropy,
        fisher_blocks=("heads", "neurons"),
        on_step=lambda number, loss: steps.append((number, loss)),
    )
    assert (found.num_examples, found.num_left_out) == (5, 0)
    losses = [each.loss for each in alone]
    assert found.loss == pytest.approx(np.mean(losses), rel=1e-5)
    assert [number for number, _ in steps] == [1, 2]
    assert steps[1][1] == pytest.approx(np.mean(losses[3:]), rel=1e-5)
    for name in ("heads", "neurons"):
        statistics = getattr(found, name)
        g = np.array([getattr(each, name).absolute for each in alone])
        for kind, values in (("absolute", g), ("fisher", g**2)):
            np.testing.assert_allclose(
                getattr(statistics, kind), values.mean(axis=0), rtol=1e-3, atol=1e-8
            )
            error = values.std(axis=0, ddof=1) / np.sqrt(5)
            np.testing.assert_allclose(
                getattr(statistics, f"{kind}_error"), error, rtol=1e-2, atol=1e-6
            )
        np.testing.assert_array_equal(statistics.counts, [3, 2])
        np.testing.assert_allclose(
            statistics.absolutes[1], g[1] + g[3], rtol=1e-3, atol=1e-7
        )
        blocks = getattr(found, f"{name[:-1]}_blocks")
        np.testing.assert_allclose(
            np.diagonal(blocks, axis1=1, axis2=2), statistics.fisher, rtol=1e-5
        )
        np.testing.assert_allclose(blocks, np.swapaxes(blocks, 1, 2), rtol=1e-5)
        # |E g g'| is at most the geometric mean of its two diagonal elements.
        bound = np.sqrt(statistics.fisher[:, :, None] * statistics.fisher[:, None, :])
        assert (np.abs(blocks) <= bound * (1 + 1e-5)).all()
    (first,) = by_example(classifier, rows(batch, slice(1)), fisher_blocks=("heads",))
    outer = np.einsum("lh,lk->lhk", first.heads.absolute, first.heads.absolute)
    np.testing.assert_allclose(np.abs(first.head_blocks), outer, rtol=1e-4)


def test_blocks_of_shared_heads_are_of_the_sum_over_applications():
    classifier = make_classifier("albert")
    found = head_importance(classifier, [make_examples(classifier)], cross_entropy)
    assert found.head_blocks.shape == (1, 4, 4)
    np.testing.assert_allclose(
        np.diagonal(found.head_blocks[0]), found.shared_heads.fisher[0], rtol=1e-5
    )
    np.testing.assert_array_equal(found.block_of_layer, [0, 0])


def test_a_data_set_of_tensorflow_gives_what_a_list_does():
    classifier = make_classifier("roberta")
    batch = make_examples(classifier)
    dataset = tf.data.Dataset.from_tensor_slices(batch).batch(2)
    ours = head_importance(classifier, dataset, cross_entropy)
    theirs = head_importance(classifier, [batch], cross_entropy)
    np.testing.assert_allclose(ours.heads.fisher, theirs.heads.fisher, rtol=1e-4)


def test_padding_does_not_matter():
    classifier = make_classifier("distil_bert")
    inputs, labels = make_examples(classifier)
    found = head_importance(classifier, [(inputs, labels)], cross_entropy)
    padding = inputs["padding_mask"] == 0
    assert padding.any()
    other = {**inputs, "token_ids": np.where(padding, 7, inputs["token_ids"])}
    longer = {n: np.pad(x, ((0, 0), (0, 3))) for n, x in other.items()}
    again = head_importance(classifier, [(longer, labels)], cross_entropy)
    np.testing.assert_allclose(again.heads.absolute, found.heads.absolute, rtol=1e-4)


def test_dropout_is_off():
    classifier = make_classifier(dropout=0.5)
    ours, theirs = (
        head_importance(classifier, [make_examples(classifier)], cross_entropy)
        for _ in range(2)
    )
    np.testing.assert_array_equal(ours.heads.fisher, theirs.heads.fisher)


def test_removed_heads_have_no_importance_and_no_part_in_the_norm():
    classifier = make_classifier()
    batch = make_examples(classifier)
    head_mask = np.array([[1, 0, 1, 0], [0, 0, 0, 1]])
    neuron_mask = np.ones((2, 6))
    neuron_mask[1] = 0
    found = head_importance(
        classifier,
        [batch],
        cross_entropy,
        head_mask=head_mask,
        neuron_mask=neuron_mask,
        fisher_blocks=("heads",),
    )
    for kind in ("absolute", "fisher"):
        scores = found.heads.scores(kind)
        assert ((scores > 0) == (head_mask == 1)).all()
        np.testing.assert_allclose(np.linalg.norm(scores, axis=1), [1, 1])
        assert scores[1, 3] == 1
        raw = found.heads.scores(kind, normalize=False)
        np.testing.assert_allclose(layer_normalized(raw), scores)
        assert raw[1, 3] != pytest.approx(1)
    assert (found.head_blocks[0, 1] == 0).all()
    assert (found.neurons.scores()[1] == 0).all()
    # The same as in a model whose output matrices have no rows for them.
    for layer, (block, _) in enumerate(block_calls(classifier.backbone)):
        kernel = attention_of(block).output_dense.kernel
        kernel.assign(kernel * head_mask[layer][:, None, None])
        narrow = block._feedforward_output_dense.kernel
        narrow.assign(narrow * neuron_mask[layer][:, None])
    again = head_importance(classifier, [batch], cross_entropy)
    np.testing.assert_allclose(again.loss, found.loss, rtol=1e-5)
    np.testing.assert_allclose(
        again.heads.absolute, found.heads.absolute, rtol=1e-4, atol=1e-7
    )


def scaled_loss(block, head, factor, loss):
    """A loss while a head's rows of the output matrix are scaled."""
    kernel = attention_of(block).output_dense.kernel
    before = np.asarray(kernel)
    scaled = before.copy()
    scaled[head] *= factor
    kernel.assign(scaled)
    value = loss()
    kernel.assign(before)
    return value


@pytest.mark.parametrize(
    "make", ["relations", pytest.param("hidden_states", marks=pytest.mark.slow)]
)
def test_losses_of_distillation_have_derivatives(make):
    teacher = make_teacher()
    student = make_student(teacher)
    if make == "relations":
        trainer = km.RelationDistiller(teacher, student, 4, num_relation_heads=4)
    else:
        trainer = HiddenStateDistiller(teacher, student, 4, seed=0)
    trainer.compile(optimizer="sgd")
    batch = make_batch(size=1)
    found = head_importance(trainer, [batch])
    dataset = tf.data.Dataset.from_tensors(batch)
    loss = functools.partial(
        lambda: trainer.evaluate(dataset, verbose=0, return_dict=True)["loss"]
    )
    assert found.loss == pytest.approx(loss(), rel=1e-5)
    expected = np.zeros((2, 2))
    for layer, (block, _) in enumerate(block_calls(student)):
        for head in range(2):
            up, down = (scaled_loss(block, head, x, loss) for x in (1.02, 0.98))
            expected[layer, head] = abs(up - down) / 0.04
    assert expected[0].min() > 1e-3
    if make == "relations":
        # Queries, keys and values of the last layer do not depend on its heads.
        assert (found.heads.absolute[1] == 0).all()
        assert (found.heads.scores()[1] == 0).all()
    np.testing.assert_allclose(found.heads.absolute, expected, rtol=2e-2, atol=1e-4)


def test_a_teacher_against_itself_has_no_gradient():
    teacher = make_teacher()
    itself = km.RelationDistiller(teacher, teacher, 4, num_relation_heads=4)
    student = make_student(teacher)
    other = km.RelationDistiller(teacher, student, 4, num_relation_heads=4)
    batches = [make_batch()]
    ours = head_importance(itself, batches).heads.absolute
    theirs = head_importance(other, batches).heads.absolute
    assert ours.max() < 1e-4 * theirs.max()


def test_a_sequence_of_padding_is_left_out():
    teacher = make_teacher()
    trainer = km.RelationDistiller(teacher, make_student(teacher), 4, 4)
    batch = make_batch(size=3)
    found = head_importance(trainer, [batch])
    batch["padding_mask"][1] = 0
    without = head_importance(trainer, [batch])
    assert (without.num_examples, without.num_left_out) == (2, 1)
    left = [rows(batch, [0]), rows(batch, [2])]
    expected = np.mean([head_importance(trainer, [x]).heads.fisher for x in left], 0)
    np.testing.assert_allclose(without.heads.fisher, expected, rtol=1e-3, atol=1e-9)
    assert found.num_examples == 3


def make_language_model(**kwargs):
    student = make_student(make_teacher(), **kwargs)
    return MaskedTokenTrainer(student, make_tokenizer())


def test_masked_language_modelling_has_derivatives():
    trainer = make_language_model()
    batch = {n: tf.constant(x) for n, x in make_batch(size=1).items()}
    found = head_importance(trainer, [batch], seed=5)
    part = trainer.student_part
    shapes = {"head_gate": (2, 2), "neuron_gate": (2, 16)}
    gated = gated_model(part)

    def losses_of(gates):
        # One by one: which tokens are masked depends on the place in the batch.
        for row in range(len(gates["head_gate"])):
            mine = {n: tf.constant(gate[[row]], "float32") for n, gate in gates.items()}
            losses, _ = trainer.example_losses(
                batch,
                lambda x, mine=mine: gated({**x, **mine}),
                keras.random.SeedGenerator(5),
            )
            yield float(losses[0])

    slopes = perturbed_losses(lambda gates: list(losses_of(gates)), shapes, 2e-2)
    np.testing.assert_allclose(
        found.heads.absolute, np.abs(slopes["head_gate"]), rtol=2e-2, atol=1e-3
    )
    np.testing.assert_allclose(
        found.neurons.absolute, np.abs(slopes["neuron_gate"]), rtol=2e-2, atol=2e-3
    )


def test_masks_of_tokens_depend_on_the_seed_and_on_the_batch():
    trainer = make_language_model(dropout=0.3)
    batch = make_batch()
    ours, again, other = (
        head_importance(trainer, [batch], seed=seed) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(ours.heads.fisher, again.heads.fisher)
    assert np.abs(ours.loss - other.loss) > 1e-4
    losses = []
    head_importance(
        trainer, [batch, batch], seed=1, on_step=lambda _, loss: losses.append(loss)
    )
    assert losses[0] == pytest.approx(ours.loss, rel=1e-5)
    assert abs(losses[1] - losses[0]) > 1e-4


def test_examples_without_a_masked_token_are_left_out():
    trainer = make_language_model()
    batch = make_batch(size=4)
    batch["padding_mask"][2, 2:] = 0
    # [CLS] and [SEP] alone.
    batch["token_ids"][2, :2] = [2, 3]
    found = head_importance(trainer, [batch])
    assert (found.num_examples, found.num_left_out) == (3, 1)


def make_spans():
    model = SpanModel(make_backbone("bert", **SMALL))
    inputs = make_inputs(model.backbone, batch=4)
    inputs["answer_mask"] = inputs["padding_mask"]
    targets = {
        "start_positions": np.array([1, 0, 2, 1], "int32"),
        "end_positions": np.array([2, 0, 3, 1], "int32"),
    }
    return model, (inputs, targets)


@pytest.mark.parametrize("name", ["mnli", "stsb", "squad1"])
def test_tasks_have_a_loss_of_each_example(name):
    task = get_task(name)
    if name == "squad1":
        model, batch = make_spans()
    else:
        model = text_classifier(
            make_backbone("bert", **SMALL), task.num_outputs, seed=0
        )
        inputs, labels = make_examples(model)
        batch = inputs, labels if name == "mnli" else labels.astype("float32")
    outputs = model(batch[0])
    losses = task.loss(batch[1], outputs, reduction=None)
    assert losses.shape == (len(batch[0]["token_ids"]),)
    mean = float(task.loss(batch[1], outputs))
    assert float(tf.reduce_mean(losses)) == pytest.approx(mean, rel=1e-5)
    found = head_importance(model, [batch], task)
    assert found.loss == pytest.approx(mean, rel=1e-4)
    assert (found.heads.absolute > 0).all()
    # A function, and a model that is fast already, give the same.
    again = head_importance(
        task.training_model(model),
        [batch],
        functools.partial(task.loss, reduction=None),
    )
    np.testing.assert_array_equal(again.heads.fisher, found.heads.fisher)


def test_a_span_model_can_be_given_with_a_function():
    model, batch = make_spans()
    found = head_importance(
        model, [batch], functools.partial(span_loss, reduction=None)
    )
    np.testing.assert_array_equal(
        found.heads.fisher,
        head_importance(model, [batch], get_task("squad1")).heads.fisher,
    )


@pytest.mark.parametrize("name", ["bert", "albert"])
def test_xla_gives_the_same(name):
    classifier = make_classifier(name)
    batch = make_examples(classifier)
    plain, fast = (
        head_importance(classifier, [batch], cross_entropy, jit_compile=jit)
        for jit in (False, True)
    )
    np.testing.assert_allclose(fast.heads.fisher, plain.heads.fisher, rtol=1e-3)
    np.testing.assert_allclose(
        fast.neurons.absolute, plain.neurons.absolute, rtol=1e-3, atol=1e-7
    )


def test_xla_compiles_the_relation_loss():
    teacher = make_teacher()
    trainer = km.RelationDistiller(teacher, make_student(teacher), 4, 4)
    plain, fast = (
        head_importance(trainer, [make_batch()], jit_compile=jit)
        for jit in (False, True)
    )
    np.testing.assert_allclose(
        fast.heads.fisher, plain.heads.fisher, rtol=1e-2, atol=1e-9
    )


@pytest.mark.slow
def test_xla_compiles_masked_language_modelling():
    trainer = make_language_model()
    # XLA draws other masks.
    ours, again = (
        head_importance(trainer, [make_batch()], jit_compile=True) for _ in range(2)
    )
    np.testing.assert_array_equal(ours.heads.fisher, again.heads.fisher)
    assert (ours.heads.fisher > 0).all()
    assert ours.num_examples == 6


def test_mixed_precision_gives_nearly_the_same():
    exact = make_classifier()
    batch = make_examples(exact)
    mixed = make_classifier(dtype="mixed_bfloat16")
    ours, theirs = (head_importance(x, [batch], cross_entropy) for x in (mixed, exact))
    np.testing.assert_allclose(
        ours.heads.absolute, theirs.heads.absolute, rtol=0.1, atol=0.02
    )
    assert ours.heads.fisher.dtype == "float64"


def test_neurons_can_be_left_out():
    classifier = make_classifier()
    batch = make_examples(classifier)
    found = head_importance(
        classifier, [batch], cross_entropy, neurons=False, fisher_blocks=()
    )
    assert found.neurons is found.head_blocks is found.neuron_blocks is None
    with pytest.raises(ValueError, match="`neurons` must be set for `fisher_blocks`"):
        head_importance(
            classifier, [batch], cross_entropy, neurons=False, fisher_blocks=["neurons"]
        )


def statistics(first, second):
    """Statistics with given mean scores of two halves of ten examples."""
    sums = 10.0 * np.array([first, second])
    return GateStatistics(np.array([10, 10]), sums, sums, sums)


def test_reliability_is_that_of_spearman_and_brown():
    ordered = [[1.0, 2.0, 3.0, 4.0]]
    assert statistics(ordered, ordered).reliability() == pytest.approx(1)
    # One exchange among four ranks: r = 1 - 6 * 2 / (4 * 15) = 0.8.
    exchanged = [[2.0, 1.0, 3.0, 4.0]]
    assert statistics(ordered, exchanged).reliability() == pytest.approx(1.6 / 1.8)
    assert statistics(ordered, [[4.0, 3.0, 2.0, 1.0]]).reliability() == 0
    assert np.isnan(statistics(ordered, [[1.0] * 4]).reliability())
    # A removed head has no rank.
    removed = statistics([[0.0, 1.0, 2.0, 3.0]], [[0.0, 2.0, 1.0, 3.0]])
    assert removed.reliability() == pytest.approx(2 * 0.5 / 1.5)
    halves = [[1.0, 2.0], [30.0, 10.0]], [[2.0, 4.0], [60.0, 20.0]]
    assert statistics(*halves).reliability(normalize=False) == pytest.approx(1)
    lone = GateStatistics(np.array([1, 0]), *3 * [np.ones((2, 1, 3))])
    assert np.isnan(lone.reliability())
    assert np.isnan(lone.absolute_error).all()


def test_results_are_saved_and_loaded(tmp_path):
    classifier = make_classifier("albert")
    found = head_importance(
        classifier, [make_examples(classifier)], cross_entropy, neurons=False
    )
    found.save(tmp_path / "importance.npz")
    again = HeadImportance.load(tmp_path / "importance.npz")
    assert again.neurons is again.neuron_blocks is None
    assert (again.loss, again.num_examples) == (found.loss, 5)
    for name in ("heads", "shared_heads"):
        ours, theirs = getattr(again, name), getattr(found, name)
        np.testing.assert_array_equal(ours.scores("fisher"), theirs.scores("fisher"))
        np.testing.assert_array_equal(ours.absolute_error, theirs.absolute_error)
    np.testing.assert_array_equal(again.head_blocks, found.head_blocks)
    np.testing.assert_array_equal(again.block_of_layer, found.block_of_layer)
    (tmp_path / "text.npz").write_text("no archive")
    np.savez(tmp_path / "other.npz", a=np.ones(3))
    for name in ("text.npz", "other.npz"):
        with pytest.raises(
            ValueError, match="`path` must be a file that HeadImportance"
        ):
            HeadImportance.load(tmp_path / name)


def test_attention_entropy_is_a_mean_over_examples():
    classifier = make_classifier()
    inputs, labels = make_examples(classifier)
    found = attention_entropy(classifier, [inputs])
    assert found.shape == (2, 4)
    alone = [attention_entropy(classifier, [rows(inputs, [i])]) for i in range(5)]
    np.testing.assert_allclose(found, np.mean(alone, axis=0), rtol=1e-5)
    pairs = [(rows(inputs, [0, 1]), labels[:2]), (rows(inputs, [2, 3, 4]), labels[2:])]
    np.testing.assert_allclose(attention_entropy(classifier, pairs), found, rtol=1e-5)
    lengths = inputs["padding_mask"].sum(axis=1)
    assert (found > 0).all()
    assert (found < np.log(lengths).mean()).all()
    masked = attention_entropy(classifier, [inputs], head_mask=[[0] * 4, [1] * 4])
    np.testing.assert_allclose(masked[0], found[0], rtol=1e-5)
    assert np.abs(masked[1] - found[1]).max() > 1e-3


def test_uniform_attention_has_the_entropy_of_its_length():
    trainer = make_language_model()
    for block, _ in block_calls(trainer.student):
        attention_of(block).query_dense.kernel.assign(
            0.0 * attention_of(block).query_dense.kernel
        )
        attention_of(block).query_dense.bias.assign(
            0.0 * attention_of(block).query_dense.bias
        )
    batch = make_batch()
    expected = np.log(batch["padding_mask"].sum(axis=1)).mean()
    np.testing.assert_allclose(attention_entropy(trainer, [batch]), expected, rtol=1e-5)


def test_bad_input_is_refused():
    classifier = make_classifier()
    inputs, labels = batch = make_examples(classifier)
    with pytest.raises(ValueError, match="`loss` must be given unless"):
        head_importance(classifier, [batch])
    with pytest.raises(ValueError, match="`dataset` must yield pairs .* type dict"):
        head_importance(classifier, [inputs], cross_entropy)
    with pytest.raises(ValueError, match="`dataset` must yield pairs .* type tuple"):
        head_importance(classifier, [(inputs, None)], cross_entropy)
    with pytest.raises(ValueError, match="must have an example with a loss. .*: 0 ex"):
        head_importance(classifier, [], cross_entropy)
    with pytest.raises(ValueError, match="`dataset` must have an example"):
        attention_entropy(classifier, [])
    with pytest.raises(ValueError, match="a batch without padding_mask"):
        head_importance(
            classifier, [({"token_ids": inputs["token_ids"]}, labels)], cross_entropy
        )
    with pytest.raises(ValueError, match=r"`loss` must return .* losses of shape \(\)"):
        head_importance(classifier, [batch], get_task("mnli").loss)
    with pytest.raises(ValueError, match=r"`head_mask` must have shape \(2, 4\)"):
        head_importance(classifier, [batch], cross_entropy, head_mask=np.ones((2, 5)))
    with pytest.raises(ValueError, match="`neuron_mask` must have values 0 and 1"):
        head_importance(
            classifier, [batch], cross_entropy, neuron_mask=np.full((2, 6), 0.5)
        )
    with pytest.raises(ValueError, match="`fisher_blocks` must be one of heads, neur"):
        head_importance(classifier, [batch], cross_entropy, fisher_blocks=["layers"])
    with pytest.raises(ValueError, match="`kind` must be one of absolute, fisher"):
        statistics([[1.0]], [[1.0]]).scores("taylor")
    with pytest.raises(ValueError, match="`loss` must not be given with a trainer"):
        head_importance(make_language_model(), [make_batch()], cross_entropy)
    classifier.get_layer("logits").kernel.assign(np.full((24, 3), np.inf))
    with pytest.raises(NotFiniteError, match="must have finite losses"):
        head_importance(classifier, [batch], cross_entropy)


@pytest.mark.slow
def test_two_replicas_measure_what_one_device_does(tmp_path):
    script = Path(__file__).with_name("measure_replicas.py")
    finish(start(tmp_path / "found.npz", script=script), timeout=900)
    with np.load(tmp_path / "found.npz") as found:
        names = {name.partition(".")[2] for name in found.files}
        assert len(names) == 10
        for name in names:
            np.testing.assert_allclose(
                found[f"two.{name}"], found[f"one.{name}"], rtol=1e-3, atol=1e-8
            )
