"""A small teacher, its text and its recipe, for runs that take seconds."""

import keras_hub
import numpy as np

from keras_minilmv2.backbones.loading import load_backbone, load_tokenizer
from keras_minilmv2.backbones.saving import save_student
from keras_minilmv2.distillation.masked_tokens import MaskedTokenTrainer
from keras_minilmv2.runs.recipes import Recipe

# Recipes whose teacher is in a package.
PACKAGED = ("demo", "laptop_l3_h384")
WORDS = ["the", "a", "of", "and", "to", "in", "is", "it", "was", "he", "she", "they"]
WORDS += ["sea", "ship", "wind", "night", "day", "king"]


def make_teacher(path, **sizes):
    """A BERT preset of 72 word pieces, with relations far from uniform."""
    letters = [chr(ord("a") + i) for i in range(26)]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", *WORDS]
    vocabulary += [piece for piece in letters if piece not in vocabulary]
    vocabulary += [f"##{letter}" for letter in letters]
    tokenizer = keras_hub.models.BertTokenizer(vocabulary, lowercase=True)
    backbone = keras_hub.models.BertBackbone(
        vocabulary_size=len(vocabulary),
        **{
            "num_layers": 3,
            "num_heads": 4,
            "hidden_dim": 16,
            "intermediate_dim": 24,
            "max_sequence_length": 32,
            **sizes,
        },
    )
    generator = np.random.default_rng(0)
    for variable in backbone.trainable_variables:
        if len(variable.shape) > 1:
            variable.assign(generator.normal(scale=0.5, size=variable.shape))
    backbone.save_to_preset(str(path))
    tokenizer.save_to_preset(str(path))
    return path


def make_masked_model(path, **sizes):
    """The same with a masked-token head, as `pretrain` writes it."""
    make_teacher(path, **sizes)
    tokenizer = load_tokenizer(path)
    return save_masked_model(path, load_backbone(path), tokenizer)


def save_masked_model(path, backbone, tokenizer):
    trainer = MaskedTokenTrainer(backbone, tokenizer)
    save_student(trainer.model_to_save, tokenizer, path)
    return path


def write_text(path, num_documents=200, seed=0):
    generator = np.random.default_rng(seed)
    documents = [
        " ".join(generator.choice(WORDS, generator.integers(5, 40))) + "."
        for _ in range(num_documents)
    ]
    path.write_text("\n\n".join(documents))
    return path


def write_task(path, num_train=60, num_dev=30):
    """Writes SST-2: is the first word of the first half? Returns `path`."""
    generator = np.random.default_rng(0)
    (path / "SST-2").mkdir(parents=True)
    for split, number in (("train", num_train), ("dev", num_dev)):
        rows = ["sentence\tlabel"]
        for _ in range(number):
            words = generator.choice(WORDS, 5)
            label = int(WORDS.index(words[0]) < len(WORDS) // 2)
            rows.append(f"{' '.join(words)}\t{label}")
        (path / "SST-2" / f"{split}.tsv").write_text("\n".join(rows) + "\n")
    return path


def make_recipe(directory, teacher, **changes):
    """Writes a corpus and a recipe; returns the path of the recipe."""
    write_text(directory / "corpus.txt")
    fields = {
        "teacher": str(teacher),
        "teacher_layer": 2,
        "student_num_layers": 2,
        "student_num_heads": 2,
        "student_hidden_dim": 8,
        "student_intermediate_dim": 12,
        "num_relation_heads": 4,
        "corpus": (str(directory / "corpus.txt"),),
        "sequence_length": 16,
        "batch_size": 8,
        "held_out_every": 10,
        "held_out_examples": 16,
        "peak_learning_rate": 0.02,
        "warmup_steps": 2,
        "total_steps": 12,
        "log_every": 4,
        "evaluate_every": 6,
    }
    Recipe(**{**fields, **changes}).save(directory / "recipe.json")
    return directory / "recipe.json"


def columns(path):
    """The history, without the column that tells the time."""
    lines = [line.split(",") for line in path.read_text().splitlines()]
    time = lines[0].index("tokens_per_second")
    return [line[:time] + line[time + 1 :] for line in lines]


def assert_same_run(one, other):
    assert columns(one / "history.csv") == columns(other / "history.csv")
    for name in ("student", "best"):
        a, b = (
            keras_hub.models.Backbone.from_preset(str(path / name))
            for path in (one, other)
        )
        for x, y in zip(a.weights, b.weights, strict=True):
            np.testing.assert_array_equal(np.asarray(x), np.asarray(y))
