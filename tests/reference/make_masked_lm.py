"""Writes the logits that transformers' heads for masked tokens compute.

    python tests/reference/make_masked_lm.py

Reads the encoders beside this file; nothing of keras_minilmv2 is imported. Made with
transformers 4.57.6 and PyTorch 2.13.0, in float64 on a CPU. Weights of the heads are
drawn by NumPy, in the order of `HEADS`, so that a test can draw the same.
"""

import json
from pathlib import Path

import numpy as np
import torch
import transformers

HERE = Path(__file__).parent
# By encoder: dense layer, layer normalization, output bias.
HEADS = {
    "bert_teacher": [
        "cls.predictions.transform.dense",
        "cls.predictions.transform.LayerNorm",
        "cls.predictions.bias",
    ],
    "roberta_teacher": ["lm_head.dense", "lm_head.layer_norm", "lm_head.bias"],
    "xlm_roberta": ["lm_head.dense", "lm_head.layer_norm", "lm_head.bias"],
    "albert": ["predictions.dense", "predictions.LayerNorm", "predictions.bias"],
    "distilbert": ["vocab_transform", "vocab_layer_norm", "vocab_projector.bias"],
}
LENGTH = 6


def draw_head(names, width, inner, vocabulary_size):
    """Weights of a head by name; `width` of the encoder, `inner` of its embedding."""
    dense, norm, bias = names
    generator = np.random.default_rng(0)
    return {
        f"{dense}.weight": generator.normal(size=(inner, width)),
        f"{dense}.bias": generator.normal(size=inner),
        f"{norm}.weight": generator.normal(size=inner),
        f"{norm}.bias": generator.normal(size=inner),
        bias: generator.normal(size=vocabulary_size),
    }


def main():
    """Writes masked_lm.json beside this file."""
    expected = {}
    for directory, names in HEADS.items():
        model = transformers.AutoModelForMaskedLM.from_pretrained(
            HERE / directory, attn_implementation="eager"
        )
        model = model.double().eval()
        config = model.config
        weights = model.state_dict()
        inner = weights[f"{names[0]}.bias"].shape[0]
        head = draw_head(names, config.hidden_size, inner, config.vocab_size)
        model.load_state_dict(
            {name: torch.tensor(value) for name, value in head.items()}, strict=False
        )
        model.tie_weights()
        token_ids = torch.arange(5, 5 + LENGTH)[None] % config.vocab_size
        with torch.no_grad():
            logits = model(token_ids, torch.ones_like(token_ids)).logits[0]
        expected[directory] = {
            "names": names,
            "width": config.hidden_size,
            "inner": inner,
            "vocabulary_size": config.vocab_size,
            "token_ids": token_ids[0].tolist(),
            # Of the second and the last token.
            "logits": [
                [float(f"{x:.7g}") for x in row] for row in logits[[1, -1]].tolist()
            ],
        }
    path = HERE / "masked_lm.json"
    path.write_text(json.dumps(expected) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
