"""Makes the reference models and numbers with PyTorch and transformers alone.

    python tests/reference/make_reference.py

Nothing of keras_minilmv2 is imported: the loss is written from Wang et al., 2021
(https://arxiv.org/abs/2012.15828), equations 5 to 8, and computed in float64. Made
with transformers 5.23 and PyTorch 2.13.
"""

import json
import logging
import math
import shutil
from pathlib import Path

import torch
import transformers

HERE = Path(__file__).parent

# Far from the usual 0.02: relations of such models are near uniform, and their KL
# near 4e-5, of which float32 keeps three digits.
STANDARD_DEVIATION = 0.5

WORDS = ["the", "quick", "brown", "fox", "over", "lazy", "dog", "code", "a", "e", "u"]
SENTENCES = [
    "The quick brown fox jumped over the lazy dog.",
    "quick quick, Ünicode fox",
    "  over  the fox's dogs , 12 foxes.",
]


def common_config(hidden_dim, num_heads, num_layers, vocabulary_size):
    """Fields that all families but DistilBERT share."""
    return {
        "vocab_size": vocabulary_size,
        "hidden_size": hidden_dim,
        "num_hidden_layers": num_layers,
        "num_attention_heads": num_heads,
        "intermediate_size": 16,
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
    }


def bert(hidden_dim, num_heads, num_layers, vocabulary_size):
    config = transformers.BertConfig(
        **common_config(hidden_dim, num_heads, num_layers, vocabulary_size),
        max_position_embeddings=10,
        hidden_act="gelu_pytorch_tanh",
    )
    return transformers.BertModel(config)


def roberta(hidden_dim, num_heads, num_layers, vocabulary_size):
    config = transformers.RobertaConfig(
        **common_config(hidden_dim, num_heads, num_layers, vocabulary_size),
        max_position_embeddings=12,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        pad_token_id=1,
    )
    return transformers.RobertaModel(config, add_pooling_layer=False)


def xlm_roberta(vocabulary_size):
    config = transformers.XLMRobertaConfig(
        **common_config(8, 2, 2, vocabulary_size),
        max_position_embeddings=12,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        pad_token_id=1,
    )
    return transformers.XLMRobertaModel(config, add_pooling_layer=False)


def albert(vocabulary_size):
    config = transformers.AlbertConfig(
        **common_config(8, 2, 4, vocabulary_size),
        embedding_size=4,
        num_hidden_groups=2,
        max_position_embeddings=10,
        hidden_act="gelu_pytorch_tanh",
    )
    return transformers.AlbertModel(config)


def distilbert(vocabulary_size):
    config = transformers.DistilBertConfig(
        vocab_size=vocabulary_size,
        dim=8,
        n_heads=2,
        n_layers=2,
        hidden_dim=16,
        max_position_embeddings=10,
    )
    return transformers.DistilBertModel(config)


def electra(vocabulary_size):
    config = transformers.ElectraConfig(
        **common_config(8, 2, 2, vocabulary_size),
        embedding_size=4,
        max_position_embeddings=10,
        hidden_act="gelu_pytorch_tanh",
    )
    return transformers.ElectraModel(config)


def word_piece_tokenizer():
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ",", ".", "'", "12"]
    pieces += [*WORDS, "jump", "uni", "##ed", "##s", "##es", "##code"]
    return transformers.BertTokenizer(vocab={p: i for i, p in enumerate(pieces)})


def byte_pair_tokenizer():
    # Ġ is a space before a word; ÃĿ are the bytes of Ü.
    letters = "abcdefghijklmnopqrstuvwxyzTĠÃľ.,'12"
    merges = ["t h", "th e", "Ġ the", "Ġ f", "o x", "Ġf ox", "c k", "Ġ q", "u i"]
    merges += ["Ġq ui", "Ġqui ck", "e d", "d o", "T h", "Th e"]
    pieces = ["<s>", "<pad>", "</s>", "<unk>", *letters]
    pieces += [merge.replace(" ", "") for merge in merges] + ["<mask>"]
    return transformers.RobertaTokenizer(
        vocab={piece: i for i, piece in enumerate(pieces)},
        merges=[tuple(merge.split()) for merge in merges],
    )


def unigram_pieces(special):
    pieces = [(piece, 0.0) for piece in special]
    pieces += [("▁" + word, -2.0 - i / 8) for i, word in enumerate(WORDS)]
    pieces += [("▁", -3.0), ("s", -4.0), ("ed", -4.5), ("▁jump", -4.6), ("es", -4.7)]
    pieces += [(letter, -6.0 - i / 8) for i, letter in enumerate("ancdefiou,.'T12")]
    return pieces


def xlm_roberta_tokenizer():
    pieces = unigram_pieces(["<s>", "<pad>", "</s>", "<unk>"]) + [("<mask>", 0.0)]
    return transformers.XLMRobertaTokenizer(vocab=pieces)


def albert_tokenizer():
    special = ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"]
    return transformers.AlbertTokenizer(vocab=unigram_pieces(special))


def draw_weights(model, seed):
    """Replaces all weights, so that no bias is 0 and no scale 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(STANDARD_DEVIATION * noise)
            if name.endswith("LayerNorm.weight") or "layer_norm.weight" in name:
                parameter.add_(1.0)
    return model.eval()


def batch_of(vocabulary_size, pad_token_id, lengths, seed):
    """Random ids above the special ones, padded on the right."""
    generator = torch.Generator().manual_seed(seed)
    shape = (len(lengths), max(lengths))
    token_ids = torch.randint(5, vocabulary_size - 1, shape, generator=generator)
    padding_mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    token_ids[~padding_mask] = pad_token_id
    return {
        "token_ids": token_ids,
        "padding_mask": padding_mask.long(),
        "segment_ids": (torch.arange(max(lengths)) >= 2).long() * padding_mask,
    }


def inputs_of(model, batch):
    """transformers' names; RoBERTa has but one segment and DistilBERT none."""
    inputs = {
        "input_ids": batch["token_ids"],
        "attention_mask": batch["padding_mask"],
    }
    if getattr(model.config, "type_vocab_size", 1) > 1:
        inputs["token_type_ids"] = batch["segment_ids"]
    return inputs


def projections(model, batch, layer):
    """Q, K and V of a layer counted from 1, each (batch, length, width)."""
    outputs = model(**inputs_of(model, batch), output_hidden_states=True)
    # hidden_states[0] is the output of the embeddings, the input of layer 1.
    states = outputs.hidden_states[layer - 1]
    attention = model.encoder.layer[layer - 1].attention.self
    return attention.query(states), attention.key(states), attention.value(states)


def relations(projection, length, num_relation_heads):
    """Log-softmax of the scaled products within one sequence, equations 7 and 8."""
    heads = projection[:length].reshape(length, num_relation_heads, -1)
    heads = heads.transpose(0, 1)  # (relation heads, length, channels)
    products = heads @ heads.transpose(1, 2) / math.sqrt(heads.shape[-1])
    return products.log_softmax(dim=-1)


def minilm_loss(teacher, student, batch, teacher_layer, num_relation_heads):
    """Equations 5 and 6 with Q-Q, K-K and V-V, averaged over the sequences."""
    with torch.no_grad():
        of_teacher = projections(teacher, batch, teacher_layer)
    of_student = projections(student, batch, student.config.num_hidden_layers)
    lengths = batch["padding_mask"].sum(dim=1).tolist()
    total = 0.0
    for a_teacher, a_student in zip(of_teacher, of_student, strict=True):
        for row, length in enumerate(lengths):
            log_p = relations(a_teacher[row], length, num_relation_heads)
            log_q = relations(a_student[row], length, num_relation_heads)
            divergence = (log_p.exp() * (log_p - log_q)).sum()
            total = total + divergence / (num_relation_heads * length)
    return total / len(lengths)


def loss_reference(teacher, student, batch, teacher_layer, num_relation_heads):
    teacher, student = teacher.double(), student.double()
    loss = minilm_loss(teacher, student, batch, teacher_layer, num_relation_heads)
    token_embedding = student.embeddings.word_embeddings.weight
    query = student.encoder.layer[-1].attention.self.query.weight
    gradients = torch.autograd.grad(loss, [token_embedding, query])
    return {
        "batch": {name: value.tolist() for name, value in batch.items()},
        "teacher_layer": teacher_layer,
        "num_relation_heads": num_relation_heads,
        "loss": loss.item(),
        "token_embedding_gradient_norm": gradients[0].norm().item(),
        "query_gradient_norm": gradients[1].norm().item(),
    }


def save(name, model, tokenizer=None):
    directory = HERE / name
    shutil.rmtree(directory, ignore_errors=True)
    model.save_pretrained(directory)
    if tokenizer is not None:
        tokenizer.save_pretrained(directory)
    for path in directory.glob("*.json"):
        # Compact: half of a tokenizer.json is indentation.
        content = json.loads(path.read_text(encoding="utf-8"))
        text = json.dumps(content, ensure_ascii=False, sort_keys=True)
        path.write_text(text + "\n", encoding="utf-8")


def output_reference(model, batch):
    with torch.no_grad():
        states = model.double()(**inputs_of(model, batch)).last_hidden_state
    return {
        "batch": {name: value.tolist() for name, value in batch.items()},
        "last_hidden_state": [
            [[round(value, 7) for value in token] for token in row]
            for row in states.tolist()
        ],
    }


def main():
    logging.getLogger("transformers").setLevel(logging.ERROR)
    word_piece, byte_pair = word_piece_tokenizer(), byte_pair_tokenizer()
    xlm_r, unigram = xlm_roberta_tokenizer(), albert_tokenizer()
    models = {
        "bert_teacher": (bert(12, 3, 3, len(word_piece)), word_piece),
        "bert_student": (bert(6, 2, 2, len(word_piece)), None),
        "roberta_teacher": (roberta(12, 3, 2, len(byte_pair)), byte_pair),
        "roberta_student": (roberta(12, 2, 2, len(byte_pair)), None),
        "xlm_roberta": (xlm_roberta(len(xlm_r)), xlm_r),
        "albert": (albert(len(unigram)), unigram),
        "distilbert": (distilbert(len(word_piece)), word_piece),
        "electra": (electra(len(word_piece)), word_piece),
    }
    outputs, token_ids, losses = {}, {}, {}
    for seed, (name, (model, tokenizer)) in enumerate(models.items()):
        draw_weights(model, seed)
        save(name, model, tokenizer)
        pad_token_id = model.config.pad_token_id
        batch = batch_of(model.config.vocab_size, pad_token_id, (6, 3), seed)
        if tokenizer is not None:
            outputs[name] = output_reference(model, batch)
            token_ids[name] = tokenizer(SENTENCES, add_special_tokens=False).input_ids
    for family, teacher_layer, num_relation_heads in (
        ("bert", 2, 6),  # of three layers
        ("roberta", 2, 4),
    ):
        teacher, _ = models[f"{family}_teacher"]
        student, _ = models[f"{family}_student"]
        size, pad_token_id = teacher.config.vocab_size, teacher.config.pad_token_id
        batch = batch_of(size, pad_token_id, (8, 5, 2), seed=20)
        losses[family] = loss_reference(
            teacher, student, batch, teacher_layer, num_relation_heads
        )
    reference = {
        "sentences": SENTENCES,
        "token_ids": token_ids,
        "outputs": outputs,
        "losses": losses,
    }
    text = json.dumps(reference, ensure_ascii=False, sort_keys=True)
    (HERE / "expected.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
