"""Competitors on PyTorch: a batched reference of the relation loss, and its step.

See worker.py. The reference computes all relation heads at once and leaves the gradient
to autograd, as other implementations of the method do, but without their loops over
heads or sequences.
"""

import torch
from shapes import PAIRS
from torch.nn import functional
from worker import Work, serve


def relation_loss(teacher, student, mask, num_relation_heads):
    """Sum over projections of the mean divergence, mean over sequences.

    Products in the dtype of the vectors, softmax and divergence in float32.

    Args:
        teacher: list of `(batch, length, width)`.
        student: same, of another width.
        mask: bool `(batch, length)`, True for a real token.
        num_relation_heads: int.
    """

    def log_probs(vectors):
        batch, length, width = vectors.shape
        heads = vectors.view(batch, length, num_relation_heads, -1).transpose(1, 2)
        logits = heads @ heads.transpose(-1, -2)
        scale = (width // num_relation_heads) ** -0.5
        logits = (logits.float() * scale).masked_fill(~mask[:, None, None], -1e9)
        return functional.log_softmax(logits, dim=-1)

    num_tokens = mask.sum(-1)
    total = 0.0
    for x, u in zip(teacher, student, strict=True):
        with torch.no_grad():
            of_teacher = log_probs(x)
        rows = functional.kl_div(
            log_probs(u), of_teacher, reduction="none", log_target=True
        ).sum(-1)
        per_head = (rows * mask[:, None]).sum(-1) / num_tokens[:, None]
        total = total + per_head.mean()
    return total


def loss(
    batch,
    length,
    widths,
    num_relation_heads,
    dtype="float32",
    share_of_real=1.0,
    seed=0,
    device="cpu",
    compiled=False,
):
    """The relation loss of random vectors and its gradient."""
    torch.manual_seed(seed)
    teacher, student = (
        [
            torch.randn(batch, length, width, device=device).to(getattr(torch, dtype))
            for _ in range(3)
        ]
        for width in widths
    )
    for vectors in student:
        vectors.requires_grad_()
    mask = torch.arange(length, device=device) < round(share_of_real * length)
    mask = mask.expand(batch, length).contiguous()
    function = torch.compile(relation_loss) if compiled else relation_loss

    def run():
        value = function(teacher, student, mask, num_relation_heads)
        gradients = torch.autograd.grad(value, student)
        gradients[0].sum().item()  # waits for the device

    facts = {"torch": torch.__version__}
    if device == "cpu":
        return Work(run, facts)

    def finish():
        return {"peak_device_memory": torch.cuda.max_memory_allocated()}

    return Work(run, {**facts, "device": torch.cuda.get_device_name()}, finish)


class Projections(torch.nn.Module):
    """Queries, keys and values of a layer; what lies above is not computed."""

    def __init__(self, encoder, layer):
        super().__init__()
        layers = encoder.encoder.layer
        self.attention = layers[layer - 1].attention.self
        encoder.encoder.layer = layers[: layer - 1]
        self.encoder = encoder

    def forward(self, **inputs):
        """Three of `(batch, length, width)`."""
        hidden = self.encoder(**inputs).last_hidden_state
        attention = self.attention
        return [
            part(hidden) for part in (attention.query, attention.key, attention.value)
        ]


def step(pair, batch=None, length=None, policy="float32", seed=0):
    """One update of the student: AdamW, clipping, dropout on."""
    import transformers

    torch.manual_seed(seed)
    pair = PAIRS[pair]
    batch, length = batch or pair.batch, length or pair.length

    def projections(sizes, layer):
        options = dict(
            vocab_size=pair.vocabulary_size,
            hidden_size=sizes.hidden_dim,
            num_hidden_layers=sizes.num_layers,
            num_attention_heads=sizes.num_heads,
            intermediate_size=sizes.intermediate_dim,
            attn_implementation="sdpa",
        )
        if pair.family == "bert":
            options["max_position_embeddings"] = pair.max_sequence_length
            config = transformers.BertConfig(**options)
            model = transformers.BertModel(config, add_pooling_layer=False)
        else:
            # RoBERTa counts positions from 2.
            options["max_position_embeddings"] = pair.max_sequence_length + 2
            config = transformers.XLMRobertaConfig(**options)
            model = transformers.XLMRobertaModel(config, add_pooling_layer=False)
        return Projections(model, layer)

    teacher = projections(pair.teacher, pair.teacher_layer).eval()
    student = projections(pair.student, pair.student.num_layers).train()
    optimizer = torch.optim.AdamW(
        student.parameters(), lr=6e-4, weight_decay=0.01, eps=1e-6, fused=True
    )
    # Id 1 is XLM-R's padding.
    token_ids = torch.randint(2, pair.vocabulary_size, (batch, length))
    mask = torch.ones_like(token_ids)
    inputs = {"input_ids": token_ids, "attention_mask": mask}

    def run():
        mixed = policy == "mixed_bfloat16"
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=mixed):
            with torch.no_grad():
                y_true = teacher(**inputs)
            value = relation_loss(
                y_true, student(**inputs), mask.bool(), pair.num_relation_heads
            )
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        value.item()

    facts = {"torch": torch.__version__, "transformers": transformers.__version__}
    return Work(run, facts)


if __name__ == "__main__":
    serve({"loss": loss, "step": step})
