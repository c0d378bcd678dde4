"""The relation loss written as loops from the paper, in float64."""

import numpy as np

LETTERS = {"q": "query", "k": "key", "v": "value"}


def log_softmax(row):
    row = row - row.max()
    return row - np.log(np.exp(row).sum())


def relation_loss(
    teacher, student, padding_mask, num_relation_heads, weights, head_weights=None
):
    """Equations 5 to 8 of Wang et al., 2021, a sequence at a time.

    `head_weights` are those of relation heads, which the paper does not have.
    """
    if head_weights is None:
        head_weights = np.ones(num_relation_heads)
    head_weights = np.asarray(head_weights, "float64") / np.mean(head_weights)
    total = 0.0
    batch = len(padding_mask)
    for b in range(batch):
        real = np.flatnonzero(padding_mask[b])
        for pair, weight in weights.items():
            kl = 0.0
            for a in range(num_relation_heads):
                p = log_relation(teacher, b, real, pair, a, num_relation_heads)
                q = log_relation(student, b, real, pair, a, num_relation_heads)
                for t in range(len(real)):
                    kl += head_weights[a] * np.sum(np.exp(p[t]) * (p[t] - q[t]))
            if len(real):
                total += weight * kl / (num_relation_heads * len(real))
    return total / batch


def log_relation(vectors, b, real, pair, a, num_relation_heads):
    slices = []
    for letter in pair:
        x = np.asarray(vectors[LETTERS[letter]], "float64")[b]
        x = x.reshape(len(x), -1)[real]
        width = x.shape[1] // num_relation_heads
        slices.append(x[:, a * width : (a + 1) * width])
    rows, columns = slices
    logits = rows @ columns.T / np.sqrt(rows.shape[1])
    return [log_softmax(row) for row in logits]


def vectors(generator, batch, length, num_heads, head_dim):
    shape = batch, length, num_heads, head_dim
    return {name: generator.normal(size=shape) for name in LETTERS.values()}


def ragged_mask(lengths, length):
    return (np.arange(length) < np.array(lengths)[:, None]).astype("int32")
