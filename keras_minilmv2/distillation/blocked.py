"""The relation loss and its gradient, block by block, without a whole relation.

The loss is a scalar for each sequence, so its gradient with respect to the student's
vectors is formed in the forward pass, while a block of relations is at hand, and only
multiplied by the upstream gradient in the backward pass. A block holds the relations of
some heads of some sequences; nothing of the size of a relation outlives it.

With p and q the relations of teacher and student, X, Y the teacher's rows and columns,
U, V the student's, all scaled by the fourth root of their width:

    KL_t    = x_t (E_p[y] - y_t) - u_t (E_p[v] - v_t) + log p_tt - log q_tt
    dL / dU = (q - p) V        dL / dV = (q - p)' U

The first line is exact: log p_tm = x_t y_m - log Z_t, and the diagonal gives log Z_t.
It needs one product of the relation with narrow matrices in place of three passes over
the relation. Where a diagonal underflows, the divergence is taken as it is written.

Reference:
    [Wang et al., 2021](https://arxiv.org/abs/2012.15828), equations 5 to 8.
"""

import keras
from keras import ops

from keras_minilmv2.distillation.relations import (
    MASKED_LOGIT,
    PROJECTION_OF_LETTER,
    split_relation_heads,
)
from keras_minilmv2.utils.devices import runs_on_accelerator

# Entries of the relations of a block. On a CPU 2 MB of float32, the fastest of the
# sizes tried at 128 and 512 tokens. Elsewhere 128 MB, which is not measured.
_CPU_ENTRIES = 2**19
_ACCELERATOR_ENTRIES = 2**25
# A smaller probability on the diagonal is not trusted.
_UNDERFLOW = 1e-30


def blocked_relation_losses(
    teacher,
    student,
    padding_mask,
    num_relation_heads,
    relation_weights,
    block_size=None,
    static_shapes=True,
    relation_head_weights=None,
):
    """Relation losses with a gradient that was formed block by block.

    Args:
        teacher: dict of `"query"`, `"key"`, `"value"`, those that a pair names, each
            `(batch, length, num_heads, head_dim)`. Gets no gradient.
        student: same keys and layout; widths and heads may differ.
        padding_mask: `(batch, length)`, 1 for a real token.
        num_relation_heads: int. Must divide both full widths.
        relation_weights: dict of positive float by pair of letters of q, k, v.
        block_size: int, relations of a pair that are held at a time. Defaults to what
            suits the device.
        static_shapes: bool. Whether every block has the full length, as XLA needs;
            else it ends at its last real token, and padding costs nothing.
        relation_head_weights: sequence of float `(num_relation_heads,)`, mean 1, that
            the heads are multiplied by. Defaults to none.

    Returns:
        tuple of the weighted sum of the pairs' losses, float32 `(batch,)`, nats, and
        a dict by pair of the losses that are summed. The gradient flows through the
        sum only.

    Raises:
        NotImplementedError: when a second derivative is asked for.
    """
    names = [
        name
        for letter, name in PROJECTION_OF_LETTER.items()
        if letter in "".join(relation_weights)
    ]
    # Once here and not for each block. The mask's cast keeps counts whole.
    teacher = {name: _heads(teacher[name], num_relation_heads) for name in names}
    mask = ops.cast(ops.cast(padding_mask, "bool"), "float32")
    share = 1.0 / (num_relation_heads * ops.maximum(ops.sum(mask, axis=-1), 1.0))

    @ops.custom_gradient
    def losses_of(*vectors):
        heads = {
            name: _heads(value, num_relation_heads)
            for name, value in zip(names, vectors, strict=True)
        }
        rows, slopes = _map_blocks(
            teacher,
            heads,
            mask,
            relation_weights,
            block_size,
            static_shapes,
            relation_head_weights,
        )
        pair_losses = [share * row for row in rows]
        losses = sum(
            weight * row
            for weight, row in zip(relation_weights.values(), pair_losses, strict=True)
        )

        def gradient(*arguments, upstream=None):
            upstream = arguments[0] if upstream is None else upstream
            if isinstance(upstream, list | tuple):
                upstream = upstream[0]
            scale = (upstream * share)[:, None, None, None]
            return tuple(
                _no_second_derivative(_joined(scale * slopes[name], value), value)
                for name, value in zip(names, vectors, strict=True)
            )

        return (losses, *pair_losses), gradient

    losses, *pair_losses = losses_of(*(student[name] for name in names))
    return losses, dict(zip(relation_weights, pair_losses, strict=True))


@ops.custom_gradient
def _no_second_derivative(gradient, value):
    """The gradient, tied to what it is the gradient of."""

    def refuse(*arguments, upstream=None):
        raise NotImplementedError(
            "The blocked relation loss has no second derivative. Use "
            "`RelationLoss(..., blocked=False)`."
        )

    return ops.cast(gradient, value.dtype), refuse


def _heads(vectors, num_relation_heads):
    """Relation heads `(batch, heads, length, channels)`, scaled for their products."""
    heads = split_relation_heads(vectors, num_relation_heads)
    return heads * heads.shape[-1] ** -0.25


def _joined(heads, like):
    """The inverse of `_heads` for gradients: the layout of attention heads."""
    heads = ops.transpose(heads * heads.shape[-1] ** -0.25, (0, 2, 1, 3))  # bald->blad
    return ops.reshape(heads, ops.shape(like))


def block_shape(batch, num_relation_heads, length, block_size=None):
    """Sequences and relation heads of a block.

    A block has some heads of one sequence, or all heads of several, so that it can
    end where its sequences do. With `keras.distribution` a block has some heads of
    all sequences: each device then does its own part of every block.

    Args:
        batch: int, or None if it is not known.
        num_relation_heads: int.
        length: int, or None if it is not known.
        block_size: int, relations of a pair that a block may hold.

    Returns:
        tuple of int: divisors of `batch` and of `num_relation_heads`.
    """
    if block_size is None:
        block_size = suitable_block_size(length or 512)
    if batch is not None and keras.distribution.distribution() is not None:
        return batch, _divisor(num_relation_heads, block_size // batch)
    heads = _divisor(num_relation_heads, block_size)
    if heads < num_relation_heads or batch is None:
        return 1, heads
    return _divisor(batch, block_size // heads), heads


def suitable_block_size(length):
    """Relations of a pair that a block may hold on this device.

    Args:
        length: int, tokens.
    """
    entries = _ACCELERATOR_ENTRIES if runs_on_accelerator() else _CPU_ENTRIES
    return max(1, entries // length**2)


def _divisor(number, largest):
    """The largest divisor of a number that is not above `largest`, or 1."""
    return max(
        (n for n in range(1, min(number, largest) + 1) if number % n == 0), default=1
    )


def _map_blocks(
    teacher,
    student,
    mask,
    relation_weights,
    block_size,
    static_shapes,
    relation_head_weights,
):
    """Divergences, summed over heads and real tokens, and slopes, of all blocks.

    Args:
        teacher: dict by projection of `(batch, heads, length, channels)`.
        student: same layout.
        mask: float32 `(batch, length)`, 1 for a real token.
        relation_weights: dict of float by pair.
        block_size: see `block_shape`.
        static_shapes: bool. Else a block ends at its last real token.
        relation_head_weights: sequence of float `(heads,)`, or None.

    Returns:
        tuple of a list by pair of `(batch,)` and a dict by projection of slopes in
        the student's layout.
    """
    batch, num_heads, length, _ = next(iter(student.values())).shape
    sequences, heads = block_shape(batch, num_heads, length, block_size)
    groups = num_heads // heads

    def cut(x, heads):
        """`(batch, groups * heads, ...)` to `(blocks, sequences, heads, ...)`."""
        rest = ops.shape(x)[2:]
        x = ops.reshape(x, (-1, sequences, groups, heads, *rest))
        return ops.reshape(ops.moveaxis(x, 2, 1), (-1, sequences, heads, *rest))

    def join(x):
        """The inverse of `cut`."""
        rest = ops.shape(x)[3:]
        x = ops.reshape(x, (-1, groups, sequences, heads, *rest))
        return ops.reshape(ops.moveaxis(x, 1, 2), (-1, num_heads, *rest))

    def one_block(block):
        teacher, student, mask, *head_weights = block
        end = None
        if not static_shapes:
            positions = ops.arange(1, ops.shape(mask)[2] + 1, dtype="int32")
            real = ops.cast(mask[..., 0], "int32") * positions
            end = ops.maximum(ops.max(real), 1)
        sums, slopes = _block(
            {name: x[:, :, :end] for name, x in teacher.items()},
            {name: x[:, :, :end] for name, x in student.items()},
            mask[:, :, :end],
            relation_weights,
            *head_weights,
        )
        if not static_shapes:
            rest = ((0, 0), (0, 0), (0, ops.shape(mask)[2] - end), (0, 0))
            slopes = {name: ops.pad(slope, rest) for name, slope in slopes.items()}
        return tuple(sums), slopes

    blocks = (
        {name: cut(x, heads) for name, x in teacher.items()},
        {name: cut(x, heads) for name, x in student.items()},
        # One mask for the heads of a sequence.
        cut(ops.repeat(mask[:, None, :, None], groups, axis=1), 1),
    )
    if relation_head_weights is not None:
        weights = ops.convert_to_tensor(relation_head_weights, "float32")
        # (batch, heads, 1, 1)
        weights = weights[:, None, None] * ops.ones_like(mask[:, :1, None, None])
        blocks += (cut(weights, heads),)
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        specs = (
            tuple(tf.TensorSpec((sequences,)) for _ in relation_weights),
            {
                name: tf.TensorSpec((sequences, heads, length, x.shape[-1]))
                for name, x in student.items()
            },
        )
        # `ops.map` would hold ten blocks at a time. Two keep two cores busy.
        sums, slopes = tf.map_fn(
            one_block, blocks, parallel_iterations=2, fn_output_signature=specs
        )
    else:
        sums, slopes = ops.map(one_block, blocks)
    # A group of heads has its own sums: `(blocks, sequences)` to `(batch,)`.
    sums = [
        ops.reshape(ops.sum(ops.reshape(x, (-1, groups, sequences)), axis=1), (-1,))
        for x in sums
    ]
    return sums, {name: join(x) for name, x in slopes.items()}


def _block(teacher, student, mask, relation_weights, head_weights=None):
    """Divergences and slopes of one block.

    Args:
        teacher: dict by projection of `(sequences, heads, length, channels)`.
        student: same layout.
        mask: `(sequences, 1, length, 1)`, 1 for a real token.
        relation_weights: dict of float by pair.
        head_weights: `(sequences, heads, 1, 1)`, or None.

    Returns:
        tuple of a list by pair of `(sequences,)` and a dict by projection of slopes
        of the weighted sum.
    """
    sums, slopes = [], dict.fromkeys(student, 0.0)
    for pair, weight in relation_weights.items():
        rows, columns = (PROJECTION_OF_LETTER[letter] for letter in pair)
        x, y = teacher[rows], teacher[columns]
        u, v = student[rows], student[columns]
        p = ops.softmax(_logits(x, y, mask), axis=-1)
        q = ops.softmax(_logits(u, v, mask), axis=-1)
        sums.append(_divergence(p, q, x, y, u, v, mask, head_weights))
        # Padded rows and the weight are left to the narrow sides of the products.
        difference = q - p
        keep = weight * mask
        if head_weights is not None:
            keep *= head_weights
        slopes[rows] += keep * ops.matmul(difference, v)
        slopes[columns] += ops.matmul(ops.swapaxes(difference, -1, -2), keep * u)
    return sums, slopes


def _logits(rows, columns, mask):
    """Products of rows and columns; a padded column has one of -1e9."""
    # The mask is one more channel: no pass over the relation of its own.
    padding = MASKED_LOGIT * (1.0 - mask) * ops.ones_like(columns[..., :1])
    rows = ops.concatenate([rows, ops.ones_like(rows[..., :1])], axis=-1)
    columns = ops.concatenate([columns, padding], axis=-1)
    return ops.matmul(rows, ops.swapaxes(columns, -1, -2))


def _divergence(p, q, x, y, u, v, mask, head_weights):
    """`KL(p || q)`, summed over heads and real rows, `(sequences,)`."""
    real = ops.broadcast_to(mask[..., 0] > 0, ops.shape(p)[:-1])
    # Padded columns have none.
    diagonals = [
        ops.where(real, ops.diagonal(relation, axis1=-2, axis2=-1), 1.0)
        for relation in (p, q)
    ]

    def by_diagonals():
        expected = ops.matmul(p, ops.concatenate([y, v], axis=-1))
        of_teacher = ops.sum(x * (expected[..., : y.shape[-1]] - y), axis=-1)
        of_student = ops.sum(u * (expected[..., y.shape[-1] :] - v), axis=-1)
        return of_teacher - of_student + ops.log(diagonals[0]) - ops.log(diagonals[1])

    def as_written():
        logs = (ops.log_softmax(_logits(*pair, mask)) for pair in ((x, y), (u, v)))
        return ops.sum(p * (next(logs) - next(logs)), axis=-1)

    smallest = ops.minimum(*(ops.min(diagonal) for diagonal in diagonals))
    rows = ops.cond(smallest < _UNDERFLOW, as_written, by_diagonals)
    rows = ops.where(real, rows, 0.0)
    if head_weights is not None:
        rows *= head_weights[..., 0]
    return ops.sum(rows, axis=(1, 2))
