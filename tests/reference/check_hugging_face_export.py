"""Compares exported directories in transformers with the keras-nlp models they are of.

By hand, in two environments: one of this package, one with torch, transformers and
sentence-transformers.

    python check_hugging_face_export.py write DATA DIRECTORY
    python check_hugging_face_export.py compare DIRECTORY

DATA is a directory with XNLI-1.0/xnli.dev.tsv and vocab/bert-base-uncased and so on.
Checked with transformers 5.23, torch 2.13, sentence-transformers 6.2.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

import numpy as np

NUM_SENTENCES = 1_000
BATCH = 50
MAX_TOKENS = 64
SIZES = {
    "num_layers": 3,
    "num_heads": 4,
    "hidden_dim": 64,
    "intermediate_dim": 128,
    "max_sequence_length": MAX_TOKENS,
}


def sentences(data):
    """Sentences of XNLI in all its languages, evenly drawn."""
    lines = (data / "XNLI-1.0/xnli.dev.tsv").read_text(encoding="utf-8").split("\n")
    rows = [line.split("\t") for line in lines[1:] if line]
    texts = [text for row in rows for text in row[2:4]]
    return texts[:: len(texts) // NUM_SENTENCES][:NUM_SENTENCES]


def tokenizers(data, scratch):
    """The published vocabularies as keras-nlp tokenizers, by name."""
    import keras_hub

    from keras_minilmv2 import load_tokenizer

    found = {}
    for name, folder, model_type in (
        ("bert", "bert-base-uncased", "bert"),
        ("distilbert", "bert-base-uncased", "distilbert"),
        ("electra", "bert-base-uncased", "electra"),
        ("roberta", "roberta-base", "roberta"),
        ("xlm_roberta", "xlm-roberta-base", "xlm-roberta"),
        ("albert", "albert-base-v2", "albert"),
    ):
        preset = scratch / name
        shutil.copytree(data / "vocab" / folder, preset, copy_function=shutil.copyfile)
        preset.chmod(0o755)
        config = json.dumps({"model_type": model_type})
        (preset / "config.json").write_text(config)
        found[name] = load_tokenizer(preset)
    pieces = found["bert"].get_vocabulary()
    found["bert_cased"] = keras_hub.models.BertTokenizer(pieces)
    proto = (scratch / "albert/spiece.model").read_bytes()
    found["albert_cased"] = keras_hub.models.AlbertTokenizer(proto)
    return found


def models(tokenizer_of):
    """Pairs of model and tokenizer by name, with weights far from fresh ones."""
    import keras_hub

    from keras_minilmv2.downstream.classifiers import ElectraTextClassifier

    keras_models = keras_hub.models
    classifiers = {
        "bert": (keras_models.BertBackbone, keras_models.BertTextClassifier),
        "distilbert": (
            keras_models.DistilBertBackbone,
            keras_models.DistilBertTextClassifier,
        ),
        "electra": (keras_models.ElectraBackbone, ElectraTextClassifier),
        "roberta": (keras_models.RobertaBackbone, keras_models.RobertaTextClassifier),
        "xlm_roberta": (
            keras_models.XLMRobertaBackbone,
            keras_models.XLMRobertaTextClassifier,
        ),
        "albert": (keras_models.AlbertBackbone, keras_models.AlbertTextClassifier),
    }
    generator = np.random.default_rng(0)
    for name, tokenizer in tokenizer_of.items():
        backbone_class, classifier_class = classifiers[name.removesuffix("_cased")]
        size = "vocab_size" if name == "electra" else "vocabulary_size"
        more = {"embedding_dim": 32} if name[:6] in ("albert", "electr") else {}
        if name == "albert":
            more["num_layers"] = 4
            more["num_groups"] = 2
        backbone = backbone_class(
            **{size: tokenizer.vocabulary_size(), **SIZES, **more}
        )
        model = classifier_class(backbone, num_classes=3)
        for variable in model.trainable_variables:
            noise = generator.normal(scale=0.2, size=variable.shape)
            variable.assign(np.asarray(variable) + noise)
        yield name, backbone, tokenizer
        yield f"{name}_classifier", model, tokenizer


def packed(tokenizer, model, texts, segments):
    """Token ids as transformers packs them, and the inputs of the Keras model."""
    import tensorflow as tf

    rows = next(iter(tf.data.Dataset.from_tensors(texts).map(tokenizer))).to_list()
    start, end = tokenizer.start_token_id, tokenizer.end_token_id
    ids = [[start, *row[: MAX_TOKENS - 2], end] for row in rows]
    token_ids = np.full((len(ids), MAX_TOKENS), tokenizer.pad_token_id, "int32")
    for row, tokens in zip(token_ids, ids, strict=True):
        row[: len(tokens)] = tokens
    lengths = np.array([len(row) for row in ids])
    inputs = {
        "token_ids": token_ids,
        "padding_mask": (np.arange(MAX_TOKENS) < lengths[:, None]).astype("int32"),
    }
    if segments:
        inputs["segment_ids"] = np.zeros_like(token_ids)
    return rows, inputs


def write(data, directory):
    """Exports every model, and what Keras computes with it."""
    from keras_minilmv2.backbones.families import uses_segment_ids
    from keras_minilmv2.backbones.hugging_face.export import export_to_hugging_face

    directory.mkdir(parents=True)
    texts = sentences(data)
    (directory / "sentences.json").write_text(json.dumps(texts))
    tokenizer_of = tokenizers(data, directory / "scratch")
    for name, model, tokenizer in models(tokenizer_of):
        backbone = getattr(model, "backbone", model)
        is_encoder = backbone is model
        export_to_hugging_face(
            model, tokenizer, directory / name, sentence_transformers=is_encoder
        )
        rows, inputs = packed(tokenizer, model, texts, uses_segment_ids(backbone))
        outputs = model.predict(inputs, batch_size=BATCH, verbose=0)
        if isinstance(outputs, dict):
            outputs = outputs["sequence_output"]
        np.savez(
            directory / f"{name}.npz", outputs=outputs, mask=inputs["padding_mask"]
        )
        (directory / f"{name}.ids.json").write_text(json.dumps(rows))


def compare(directory):
    """Prints the largest differences; returns whether all are small."""
    import torch
    import transformers
    from sentence_transformers import SentenceTransformer

    transformers.logging.set_verbosity_error()
    texts = json.loads((directory / "sentences.json").read_text())
    fine = True
    for path in sorted(directory.glob("*.npz")):
        name = path.stem
        expected = np.load(path)
        ids = json.loads((directory / f"{name}.ids.json").read_text())
        tokenizer = transformers.AutoTokenizer.from_pretrained(directory / name)
        ours = tokenizer(texts, add_special_tokens=False).input_ids
        num_equal = sum(a == b for a, b in zip(ids, ours, strict=True))
        is_classifier = name.endswith("_classifier")
        auto = transformers.AutoModel
        if is_classifier:
            auto = transformers.AutoModelForSequenceClassification
        model, report = auto.from_pretrained(directory / name, output_loading_info=True)
        model.eval()
        outputs = []
        for i in range(0, len(texts), BATCH):
            inputs = tokenizer(
                texts[i : i + BATCH],
                padding="max_length",
                truncation=True,
                return_tensors="pt",
            )
            with torch.no_grad():
                output = model(**inputs)
            outputs.append(output.logits if is_classifier else output[0])
        outputs = torch.cat(outputs).numpy()
        difference = np.abs(outputs - expected["outputs"])
        if not is_classifier:
            difference = difference * expected["mask"][..., None]
            mean = SentenceTransformer(str(directory / name), device="cpu").encode(
                texts
            )
            weights = expected["mask"][..., None]
            wanted = (expected["outputs"] * weights).sum(1) / weights.sum(1)
            sentence_difference = np.abs(mean - wanted).max()
        print(
            f"{name:24} {type(tokenizer).__name__:20} "
            f"ids equal {num_equal}/{len(texts)}, outputs differ by at most "
            f"{difference.max():.1e}"
            + ("" if is_classifier else f", sentences by {sentence_difference:.1e}")
            + f"; missing {sorted(report['missing_keys'])}"
            + f", unexpected {sorted(report['unexpected_keys'])}"
        )
        fine &= num_equal == len(texts) and difference.max() < 1e-4
        fine &= is_classifier or sentence_difference < 1e-4
    return fine


def main():
    """Runs one of the two halves."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    half = commands.add_parser("write")
    half.add_argument("data", type=Path)
    half.add_argument("directory", type=Path)
    commands.add_parser("compare").add_argument("directory", type=Path)
    options = parser.parse_args()
    if options.command == "write":
        return write(options.data, options.directory)
    return None if compare(options.directory) else 1


if __name__ == "__main__":
    sys.exit(main())
