"""Weights of a student, copied or projected from its teacher before training.

Reads private attributes of keras-nlp's `TransformerEncoder`; checked on keras-nlp
0.32. All supported families normalize after the residual sum.
"""

import math
from dataclasses import dataclass

import keras_hub
import numpy as np
from keras import ops

from keras_minilmv2.backbones.attention import attention_of
from keras_minilmv2.backbones.families import family_of, vocabulary_size
from keras_minilmv2.backbones.projections import block_calls

# Tokens that principal directions are computed from; more changes little.
_MAX_TOKENS = 8_192


def copy_layers(teacher, student, teacher_layers):
    """Copies embeddings, pooler and the chosen layers; widths are equal."""
    for layer in student.layers:
        if layer.weights and not isinstance(layer, keras_hub.layers.TransformerEncoder):
            _copy_weights(teacher.get_layer(layer.name), layer)
    teacher_blocks = [block for block, _ in block_calls(teacher)]
    for block, layer in _first_runs(student, teacher_layers):
        _copy_weights(teacher_blocks[layer - 1], block)


def _copy_weights(source, target):
    for old, new in zip(source.weights, target.weights, strict=True):
        # A student may have fewer positions.
        new.assign(ops.convert_to_numpy(old)[: new.shape[0]])


def _first_runs(student, teacher_layers):
    """Pairs of each student block and the teacher layer of its first run."""
    layer_of_block = {}
    for (block, _), layer in zip(block_calls(student), teacher_layers, strict=True):
        layer_of_block.setdefault(id(block), (block, layer))
    return list(layer_of_block.values())


@dataclass
class _BlockTrace:
    """What one run of a teacher's block computes at the real tokens, a row each."""

    query: np.ndarray  # (tokens, hidden_dim), heads side by side
    key: np.ndarray
    value: np.ndarray
    attention_sum: np.ndarray  # before the first norm
    attention_norm: np.ndarray  # after it
    neurons: np.ndarray  # (tokens, intermediate_dim), before the activation
    activations: np.ndarray
    output_sum: np.ndarray  # before the second norm
    outputs: np.ndarray  # after it


def _rows(x, keep):
    """Float64 rows of the real tokens, trailing axes flattened."""
    x = ops.convert_to_numpy(ops.cast(x, "float32"))
    return x.reshape(*x.shape[:2], -1)[keep].astype("float64")


def _attend(attention, x, padding_mask):
    """The heads' outputs, before the output projection, in inference mode."""
    query, key, value = (
        dense(x)
        for dense in (attention.query_dense, attention.key_dense, attention.value_dense)
    )
    context, _ = attention._compute_attention(
        query, key, value, attention_mask=padding_mask[:, None, :], training=False
    )
    return query, key, value, context


def _trace_block(block, x, padding_mask, keep):
    attention = attention_of(block)
    query, key, value, context = _attend(attention, x, padding_mask)
    attention_sum = x + attention.output_dense(context)
    attention_norm = block._self_attention_layer_norm(attention_sum)
    up = block._feedforward_intermediate_dense
    neurons = ops.matmul(attention_norm, ops.cast(up.kernel, up.compute_dtype))
    neurons = neurons + ops.cast(up.bias, up.compute_dtype)
    activations = up.activation(neurons)
    output_sum = attention_norm + block._feedforward_output_dense(activations)
    outputs = block._feedforward_layer_norm(output_sum)
    tensors = (
        query,
        key,
        value,
        attention_sum,
        attention_norm,
        neurons,
        activations,
        output_sum,
        outputs,
    )
    return _BlockTrace(*(_rows(tensor, keep) for tensor in tensors)), outputs


def _embedding_layers(backbone):
    """Token, position and, where there is one, segment embedding."""
    if not family_of(backbone).has_segments:
        return [backbone.token_embedding, backbone.embeddings.position_embedding]
    return [
        backbone.token_embedding,
        backbone.position_embedding,
        backbone.segment_embedding,
    ]


def _embedding_sum(backbone, inputs):
    """Sum of token, position and segment embeddings."""
    if not family_of(backbone).has_segments:
        return backbone.embeddings(inputs["token_ids"])
    tokens = backbone.token_embedding(inputs["token_ids"])
    positions = backbone.position_embedding(tokens)
    return tokens + positions + backbone.segment_embedding(inputs["segment_ids"])


def _embed(backbone, inputs):
    """Normalized sum of embeddings."""
    return backbone.embeddings_layer_norm(_embedding_sum(backbone, inputs))


def _second_moment(rows):
    """`(dim, dim)` second moment of rows, with a trace of 1."""
    return rows.T @ rows / np.square(rows).sum()


def _principal_directions(moment, num_directions):
    """Leading eigenvectors of a second moment, as orthonormal columns."""
    _, vectors = np.linalg.eigh(moment)
    return vectors[:, ::-1][:, :num_directions]


def _turn_mean_away(directions):
    """Turns the basis so that a layer norm's mean falls on the weakest direction.

    A layer norm removes the component along (1, ..., 1). In the turned basis that is
    the last, weakest direction of `directions`, so little is lost.
    """
    dim = directions.shape[1]
    mirror = -np.full(dim, 1 / math.sqrt(dim))
    mirror[-1] += 1
    if np.allclose(mirror, 0):  # dim = 1
        return directions
    # Householder reflection that sends the last axis to (1, ..., 1) / sqrt(dim).
    reflection = np.eye(dim) - 2 * np.outer(mirror, mirror) / (mirror @ mirror)
    return directions @ reflection


def _fit_norm(norm, inputs, targets):
    """Sets scale and offset of a layer norm so that inputs come close to targets."""
    centred = inputs - inputs.mean(axis=1, keepdims=True)
    deviation = np.sqrt(centred.var(axis=1, keepdims=True) + norm.epsilon)
    unit = centred / deviation
    covariance = ((unit - unit.mean(0)) * (targets - targets.mean(0))).mean(0)
    gamma = covariance / np.maximum(unit.var(axis=0), 1e-12)
    norm.gamma.assign(gamma)
    norm.beta.assign(targets.mean(0) - gamma * unit.mean(0))


def _slice_directions(groups, num_slices, width):
    """Block-diagonal `(teacher width, width)` map, one block for each head slice.

    Scaled so that inner products over the square root of the slice width stay what
    they were: both sides of the relation loss divide by their own.
    """
    dim = groups[0].shape[1]
    taken, given = dim // num_slices, width // num_slices
    scale = (width / dim) ** 0.25
    mapping = np.zeros((dim, width))
    for i in range(num_slices):
        rows = slice(i * taken, (i + 1) * taken)
        moment = sum(_second_moment(group[:, rows]) for group in groups)
        mapping[rows, i * given : (i + 1) * given] = scale * _principal_directions(
            moment, given
        )
    return mapping


def _num_slices(teacher, student, num_relation_heads):
    """Slices of the head vectors that keep attention heads and relation heads apart."""
    widths = teacher.hidden_dim, student.hidden_dim
    candidates = []
    if teacher.num_heads == student.num_heads:
        if num_relation_heads:
            candidates.append(math.lcm(student.num_heads, num_relation_heads))
    elif num_relation_heads:
        candidates.append(num_relation_heads)
    candidates.append(student.num_heads)
    return next((n for n in candidates if all(w % n == 0 for w in widths)), 1)


def project_layers(teacher, student, teacher_layers, examples, num_relation_heads):
    """Carries the teacher's weights over to a narrower student.

    A student state stands for `s = T' x`, with `x` a state of the teacher and `T` the
    principal directions of the teacher's embeddings and hidden states, as orthonormal
    columns. Every matrix is turned into that basis. Then, layer by layer, each matrix
    is corrected by a ridge regression from what the student really computes on
    `examples` to what the teacher computes there: that makes up for dropped
    directions, neurons and layers.
    """
    examples = {
        name: np.asarray(ops.convert_to_numpy(examples[name])) for name in teacher.input
    }
    num_rows = max(1, _MAX_TOKENS // examples["token_ids"].shape[1])
    examples = {name: rows[:num_rows] for name, rows in examples.items()}
    keep = examples["padding_mask"].astype(bool)
    if not keep.any():
        raise ValueError(
            "`examples` must hold at least one real token. "
            "Received: a padding_mask of zeros."
        )
    largest, size = examples["token_ids"].max(), vocabulary_size(teacher)
    if largest >= size:
        raise ValueError(
            "`examples` must hold token ids of the teacher's vocabulary. "
            f"Received: token id {largest}, vocabulary of {size}."
        )
    padding_mask = ops.convert_to_tensor(keep)

    factorised = _is_factorised(teacher)
    embedded = _embed(teacher, examples)
    x = teacher.embeddings_projection(embedded) if factorised else embedded
    moment = _second_moment(_rows(x, keep))
    inputs_of_layer = {}
    for number, (block, _) in enumerate(block_calls(teacher), start=1):
        if number in teacher_layers:
            inputs_of_layer[number] = x
        trace, x = _trace_block(block, x, padding_mask, keep)
        moment += _second_moment(trace.attention_norm) + _second_moment(trace.outputs)
    basis = _turn_mean_away(_principal_directions(moment, student.hidden_dim))

    _project_embeddings(teacher, student, basis, factorised)
    if not factorised:
        # The norm's input is the sum that the student itself forms.
        total = _rows(_embedding_sum(student, examples), keep)
        _fit_norm(student.embeddings_layer_norm, total, _rows(embedded, keep) @ basis)
    state = _embed(student, examples)
    if factorised:
        state = student.embeddings_projection(state)

    teacher_blocks = [block for block, _ in block_calls(teacher)]
    calls = block_calls(student)
    done = set()
    for i, ((block, _), layer) in enumerate(zip(calls, teacher_layers, strict=True)):
        if id(block) not in done:
            source = teacher_blocks[layer - 1]
            trace, _ = _trace_block(source, inputs_of_layer[layer], padding_mask, keep)
            # Relation heads are compared in the last layer only.
            last = i == len(calls) - 1
            slices = _num_slices(teacher, student, num_relation_heads if last else None)
            _project_block(
                source, trace, block, state, basis, slices, padding_mask, keep
            )
            done.add(id(block))
        state = block(state, padding_mask=padding_mask, training=False)
    if family_of(teacher).has_pooler:
        kernel, bias = map(ops.convert_to_numpy, teacher.pooled_dense.weights)
        student.pooled_dense.kernel.assign(basis.T @ kernel @ basis)
        student.pooled_dense.bias.assign(bias @ basis)


def _is_factorised(backbone):
    """Whether token embeddings are narrower than the layers, as in ALBERT."""
    return "embeddings_projection" in vars(backbone)


def _project_embeddings(teacher, student, basis, factorised):
    pairs = zip(_embedding_layers(teacher), _embedding_layers(student), strict=True)
    for old, new in pairs:
        table = ops.convert_to_numpy(old.weights[0])
        new.weights[0].assign(
            (table if factorised else table @ basis)[: new.weights[0].shape[0]]
        )
    if factorised:
        _copy_weights(teacher.embeddings_layer_norm, student.embeddings_layer_norm)
        kernel, bias = map(ops.convert_to_numpy, teacher.embeddings_projection.weights)
        student.embeddings_projection.kernel.assign(kernel @ basis)
        student.embeddings_projection.bias.assign(bias @ basis)


def _regress(dense, inputs, targets, prior):
    """Sets kernel and bias by ridge regression, drawn towards a prior kernel.

    Args:
        dense: the layer to set.
        inputs: `(tokens, in)`, what the layer receives.
        targets: `(tokens, out)`, what it should give.
        prior: `(in, out)`, the kernel that few tokens do not move far from.
    """
    mean_input, mean_target = inputs.mean(axis=0), targets.mean(axis=0)
    centred = inputs - mean_input
    moment = centred.T @ centred
    ridge = 0.01 * np.trace(moment) / len(moment) + 1e-9
    missing = targets - mean_target - centred @ prior
    kernel = prior + np.linalg.solve(
        moment + ridge * np.eye(len(moment)), centred.T @ missing
    )
    dense.kernel.assign(kernel.reshape(dense.kernel.shape))
    bias = mean_target - mean_input @ kernel
    dense.bias.assign(bias.reshape(dense.bias.shape))


def _matrix(dense, fan_in):
    """Kernel of a dense layer as `(fan_in, out)`."""
    return ops.convert_to_numpy(dense.kernel).reshape(fan_in, -1).astype("float64")


def _project_block(source, trace, block, x, basis, num_slices, padding_mask, keep):
    """Sets the weights of one student block that receives the states `x`."""
    hidden_dim, width = basis.shape
    old, new = attention_of(source), attention_of(block)
    inputs = _rows(x, keep)
    attended = _slice_directions((trace.query, trace.key), num_slices, width)
    carried = _slice_directions((trace.value,), num_slices, width)
    for name, vectors, mapping in (
        ("query_dense", trace.query, attended),
        ("key_dense", trace.key, attended),
        ("value_dense", trace.value, carried),
    ):
        prior = basis.T @ _matrix(getattr(old, name), hidden_dim) @ mapping
        _regress(getattr(new, name), inputs, vectors @ mapping, prior)

    *_, context = _attend(new, x, padding_mask)
    prior = np.linalg.pinv(carried) @ _matrix(old.output_dense, hidden_dim) @ basis
    target = trace.attention_sum @ basis - inputs
    _regress(new.output_dense, _rows(context, keep), target, prior)
    attention_sum = x + new.output_dense(context)
    norm = block._self_attention_layer_norm
    _fit_norm(norm, _rows(attention_sum, keep), trace.attention_norm @ basis)

    x = norm(attention_sum)
    inputs = _rows(x, keep)
    up, down = block._feedforward_intermediate_dense, block._feedforward_output_dense
    old_down = _matrix(source._feedforward_output_dense, trace.neurons.shape[1]) @ basis
    # The neurons that write most into what is kept of the residual stream.
    strength = np.square(trace.activations).mean(axis=0) * np.square(old_down).sum(1)
    kept = np.sort(np.argsort(-strength)[: up.kernel.shape[-1]])
    prior = basis.T @ _matrix(source._feedforward_intermediate_dense, hidden_dim)
    _regress(up, inputs, trace.neurons[:, kept], prior[:, kept])
    activations = up(x)
    target = trace.output_sum @ basis - inputs
    _regress(down, _rows(activations, keep), target, old_down[kept])
    _fit_norm(
        block._feedforward_layer_norm,
        _rows(x + down(activations), keep),
        trace.outputs @ basis,
    )
