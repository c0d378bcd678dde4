"""Writes the importance of heads and neurons that PyTorch computes by `head_mask`.

    python tests/reference/make_head_importance.py

Reads the encoders beside this file; nothing of keras_minilmv2 is imported. transformers
has `head_mask` up to version 4. Made with transformers 4.57.6 and PyTorch 2.13.0, in
float64 on a CPU, one example at a time. The loss of an example is the cross-entropy of
the first three channels of its first token's last hidden state.
"""

import json
from pathlib import Path

import torch
import transformers

HERE = Path(__file__).parent
ENCODERS = {"bert": "bert_teacher", "roberta": "roberta_teacher"}
LENGTHS = [9, 4, 7, 9, 2, 6]
NUM_CLASSES = 3


def batch(config, generator):
    """Random ids below padding, and labels."""
    token_ids = torch.randint(
        5, config.vocab_size, (len(LENGTHS), max(LENGTHS)), generator=generator
    )
    padding_mask = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    token_ids[~padding_mask] = config.pad_token_id
    labels = torch.randint(NUM_CLASSES, (len(LENGTHS),), generator=generator)
    return token_ids, padding_mask.long(), labels


def derivatives(model, token_ids, padding_mask, label):
    """One example's loss, and its derivatives by head and by neuron."""
    config = model.config
    heads = torch.ones(config.num_hidden_layers, config.num_attention_heads).double()
    neurons = torch.ones(config.num_hidden_layers, config.intermediate_size).double()
    heads.requires_grad_(), neurons.requires_grad_()
    hooks = [
        layer.output.dense.register_forward_pre_hook(
            lambda _, inputs, gate=gate: (inputs[0] * gate,)
        )
        for layer, gate in zip(model.encoder.layer, neurons, strict=True)
    ]
    outputs = model(token_ids[None], padding_mask[None], head_mask=heads)
    logits = outputs.last_hidden_state[:, 0, :NUM_CLASSES]
    loss = torch.nn.functional.cross_entropy(logits, label[None])
    for hook in hooks:
        hook.remove()
    return loss.item(), *torch.autograd.grad(loss, [heads, neurons])


def importance(directory, generator):
    """What one encoder is expected to give."""
    model = transformers.AutoModel.from_pretrained(
        HERE / directory, attn_implementation="eager"
    )
    model = model.double().eval()
    examples = batch(model.config, generator)
    losses, *found = zip(
        *(derivatives(model, *row) for row in zip(*examples, strict=True)), strict=True
    )
    token_ids, padding_mask, labels = (values.tolist() for values in examples)
    expected = {
        "directory": directory,
        "token_ids": token_ids,
        "padding_mask": padding_mask,
        "labels": labels,
        "losses": losses,
    }
    for name, each in zip(("heads", "neurons"), map(torch.stack, found), strict=True):
        expected[name] = {
            "absolute": each.abs().mean(dim=0).tolist(),
            "fisher": (each**2).mean(dim=0).tolist(),
        }
    return expected


def rounded(value):
    """Eight significant digits."""
    if isinstance(value, dict):
        return {name: rounded(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(each) for each in value]
    return float(f"{value:.8g}") if isinstance(value, float) else value


def main():
    """Writes head_importance.json beside this file."""
    generator = torch.Generator().manual_seed(0)
    expected = {
        family: rounded(importance(directory, generator))
        for family, directory in ENCODERS.items()
    }
    path = HERE / "head_importance.json"
    path.write_text(json.dumps(expected) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
