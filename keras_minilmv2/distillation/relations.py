"""Self-attention relations and their divergence: tensors in, tensors out.

Letters in shapes: `b` batch, `a` relation head, `h` attention head, `l` row token,
`m` column token, `d` channel.

Reference:
    [Wang et al., 2021](https://arxiv.org/abs/2012.15828), equations 5 to 8.
"""

import math

from keras import ops

PROJECTION_OF_LETTER = {"q": "query", "k": "key", "v": "value"}

# Not -inf: a padded column would then add 0 * (-inf + inf) = nan to the KL.
MASKED_LOGIT = -1e9


def check_relation_heads(num_relation_heads, hidden_dims, widths):
    """Raises unless relation heads divide the channels that are compared.

    Args:
        num_relation_heads: int.
        hidden_dims: dict of int by role, `"teacher"` and `"student"`.
        widths: the same of the channels of all heads in the layer that is compared,
            which are fewer than `hidden_dim` where heads were removed.

    Raises:
        ValueError: if there is no channel, or a remainder.
    """
    for role, width in widths.items():
        if width == 0:
            raise ValueError(
                f"`{role}` must have attention heads in the layer that is compared. "
                f"Received: {role} whose heads in it were all removed."
            )
    for role, width in widths.items():
        if width % num_relation_heads == 0:
            continue
        if hidden_dims == widths:
            raise ValueError(
                "`num_relation_heads` must divide the `hidden_dim` of teacher and "
                f"student. Received: num_relation_heads={num_relation_heads}, "
                f"{role} hidden_dim={width}."
            )
        common = math.gcd(*widths.values())
        divisors = [str(n) for n in range(1, common + 1) if common % n == 0]
        raise ValueError(
            "`num_relation_heads` must divide the channels of the heads left in the "
            f"layers that are compared: it can be {', '.join(divisors)}. Received: "
            f"num_relation_heads={num_relation_heads}, {widths['teacher']} channels "
            f"left in the teacher's layer, {widths['student']} in the student's."
        )


def split_relation_heads(vectors, num_relation_heads):
    """Joins attention heads and splits the full width anew.

    Args:
        vectors: `(batch, length, num_heads, head_dim)`, any float dtype.
        num_relation_heads: int. Must divide `num_heads * head_dim`.

    Returns:
        float32 `(batch, num_relation_heads, length, relation_head_dim)`.

    Raises:
        ValueError: if `num_relation_heads` does not divide the full width.
    """
    num_heads, head_dim = vectors.shape[-2:]
    hidden_dim = num_heads * head_dim
    if hidden_dim % num_relation_heads != 0:
        raise ValueError(
            "`num_relation_heads` must divide `hidden_dim`. Received: "
            f"num_relation_heads={num_relation_heads}, hidden_dim={hidden_dim}."
        )
    batch, length = ops.shape(vectors)[:2]
    vectors = ops.reshape(
        ops.cast(vectors, "float32"),
        (batch, length, num_relation_heads, hidden_dim // num_relation_heads),
    )
    return ops.transpose(vectors, (0, 2, 1, 3))  # blad -> bald


def relation_log_probs(left, right, padding_mask):
    """Logarithm of a relation: row softmax of scaled dot products.

    Args:
        left: float32 `(batch, relation heads, length, channels)`, the rows.
        right: same layout, the columns.
        padding_mask: `(batch, length)`, 1 for a real token. Padded columns get
            probability 0.

    Returns:
        float32 `(batch, relation heads, length, length)`.
    """
    scale = 1.0 / math.sqrt(left.shape[-1])
    logits = ops.einsum("bald,bamd->balm", left * scale, right)
    keep = ops.cast(padding_mask, "bool")[:, None, None, :]
    return ops.log_softmax(ops.where(keep, logits, MASKED_LOGIT), axis=-1)


def relation_kl(
    teacher_log_probs, student_log_probs, padding_mask, relation_head_weights=None
):
    """Mean `KL(teacher || student)` over relation heads and real tokens.

    Args:
        teacher_log_probs: float32 `(batch, relation heads, length, length)`.
        student_log_probs: same layout.
        padding_mask: `(batch, length)`, 1 for a real token.
        relation_head_weights: sequence of float `(relation heads,)`, mean 1, that the
            heads are multiplied by. Defaults to none.

    Returns:
        float32 `(batch,)`, nats; 0 for a sequence without a real token.
    """
    rows = ops.sum(
        ops.exp(teacher_log_probs) * (teacher_log_probs - student_log_probs), axis=-1
    )
    keep = ops.cast(ops.cast(padding_mask, "bool"), "float32")  # bl
    per_head = ops.sum(rows * keep[:, None, :], axis=-1)  # ba
    if relation_head_weights is not None:
        per_head *= ops.convert_to_tensor(relation_head_weights, "float32")
    num_tokens = ops.maximum(ops.sum(keep, axis=-1), 1.0)
    return ops.mean(per_head, axis=-1) / num_tokens


def relation_losses(
    teacher,
    student,
    padding_mask,
    num_relation_heads,
    pairs,
    relation_head_weights=None,
):
    """Relation divergence of each pair of projections.

    Args:
        teacher: dict of `"query"`, `"key"`, `"value"`, each
            `(batch, length, num_heads, head_dim)`.
        student: same keys and layout; widths and heads may differ.
        padding_mask: `(batch, length)`, 1 for a real token.
        num_relation_heads: int. Must divide both full widths.
        pairs: iterable of two letters of q, k, v: rows, columns.
        relation_head_weights: as for `relation_kl`.

    Returns:
        dict by pair of float32 `(batch,)`, nats.
    """

    def split(vectors):
        # Only the projections that a pair names.
        return {
            letter: split_relation_heads(
                vectors[PROJECTION_OF_LETTER[letter]], num_relation_heads
            )
            for letter in sorted(set("".join(pairs)))
        }

    teacher, student = split(teacher), split(student)
    losses = {}
    for rows, columns in pairs:
        losses[rows + columns] = relation_kl(
            relation_log_probs(teacher[rows], teacher[columns], padding_mask),
            relation_log_probs(student[rows], student[columns], padding_mask),
            padding_mask,
            relation_head_weights,
        )
    return losses
