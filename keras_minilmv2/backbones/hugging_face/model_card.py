"""The README.md of an exported model: what it is, where it is from, what it scored."""

import html
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

from keras_minilmv2.backbones.families import family_of, vocabulary_size
from keras_minilmv2.backbones.preset_files import CARD_SIGNATURE
from keras_minilmv2.backbones.variants import variant_of
from keras_minilmv2.utils.tables import count, markdown_table
from keras_minilmv2.version import __version__

_RECIPE, _REPORT = "recipe.json", "report.json"
# The report of a run of version 0.1.0, which wrote no report.json.
_OLD_REPORT = "report.md"
# What reading a file of another form raises.
_DAMAGED = (ValueError, TypeError, LookupError, AttributeError, RecursionError)
_FORMS = "a dict, or the path of a run directory, its recipe.json or its report.json"


def read_facts(facts):
    """Reads the facts of a model's origin.

    Args:
        facts: None; a dict, of which `"results"` (Markdown text, or a dict) and
            `"license"` have places of their own in the card and all else becomes a
            row of its table; or the path of a run's directory, of its `recipe.json`
            or of its report.

    Returns:
        dict.

    Raises:
        TypeError: if `facts` is none of these.
        ValueError: if there is no such file, or it cannot be read.
    """
    if facts is None:
        return {}
    if isinstance(facts, Mapping):
        return dict(facts)
    if not isinstance(facts, str | os.PathLike):
        raise TypeError(
            f"`facts` must be {_FORMS}. "
            f"Received: facts={facts!r} of type {type(facts).__name__}."
        )
    path = Path(facts)
    files = [path]
    if path.is_dir():
        report = _REPORT if (path / _REPORT).is_file() else _OLD_REPORT
        files = [path / _RECIPE, path / report]
    files = [file for file in files if file.is_file()]
    if not files:
        raise ValueError(f"`facts` must be {_FORMS}. Received: facts={str(facts)!r}.")
    found = {}
    for file in files:
        try:
            found.update(_read(file))
        except (
            ValueError,
            TypeError,
            LookupError,
            AttributeError,
            RecursionError,
        ) as error:
            raise ValueError(
                f"`facts` must hold a {file.name} that can be read. "
                f"Received: facts={str(facts)!r} ({error})."
            ) from error
    return found


def _read(file):
    """The facts in one file of a run."""
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".md":
        # Without its title, and without pictures, which lie beside it.
        parts = [p for p in text.split("\n\n") if not p.startswith(("# ", "!["))]
        return {"results": "\n\n".join(parts).strip()}
    content = json.loads(text)
    if file.name != _REPORT:
        return dict(content.items())
    tables = [_rows(rows) for rows in content["tables"].values()]
    return {"results": "\n\n".join([*tables, _table("setting", content["facts"])])}


def _rows(rows):
    """A table of a report.json, a list of dicts by column."""
    columns = list(rows[0])
    cells = [[_shown(row[column]) for column in columns] for row in rows]
    return markdown_table([_shown(column) for column in columns], cells)


def model_card(backbone, facts, num_classes, sentence_transformers):
    """Markdown of the card, with the header that the Hugging Face hub reads.

    Args:
        backbone: a keras-nlp backbone of a supported family.
        facts: dict, as from `read_facts`.
        num_classes: int, the outputs of a classifier; None for an encoder alone.
        sentence_transformers: bool. Whether sentence-transformers reads the model.
    """
    family = family_of(backbone)
    facts = dict(facts)
    results = facts.pop("results", None) or "Not measured."
    if isinstance(results, Mapping):
        results = _table("measure", results)
    header = _header(family, facts, num_classes, sentence_transformers)
    teacher = facts.get("teacher")
    origin = (
        f"distilled from {_code(teacher)} by MiniLMv2 self-attention relation "
        "distillation"
        if teacher
        else "exported from keras-nlp"
    )
    kind = "encoder" if num_classes is None else f"classifier of {num_classes} classes"
    parts = [
        header,
        f"# {family.name} {backbone.num_layers}x{backbone.hidden_dim}",
        f"A {family.name} {kind} of {backbone.num_layers} layers of "
        f"{backbone.hidden_dim}, {backbone.num_heads} heads, "
        f"{vocabulary_size(backbone):,} token ids and at most "
        f"{backbone.max_sequence_length} tokens, {origin}; "
        f"{count(backbone.count_params())} parameters in the encoder.",
        "## Use",
        f"```python\n{_usage(num_classes, sentence_transformers)}\n```",
        "## Results",
        results,
        "## Origin",
        _table("fact", facts) if facts else "Not stated.",
        "## Notes",
        _notes(family, backbone, num_classes, teacher),
        f"{CARD_SIGNATURE}{__version__}.",
    ]
    return "\n\n".join(parts) + "\n"


def _header(family, facts, num_classes, sentence_transformers):
    """The YAML block at the top of the card."""
    task = "feature-extraction" if num_classes is None else "text-classification"
    tags = [family.model_type, "keras-minilmv2"]
    if facts.get("teacher"):
        tags += ["minilmv2", "knowledge-distillation"]
    fields = {
        "library_name": "transformers",
        "pipeline_tag": task,
        "tags": tags,
    }
    if sentence_transformers:
        fields["library_name"] = "sentence-transformers"
        fields["pipeline_tag"] = "sentence-similarity"
    teacher = str(facts.get("teacher") or "")
    if teacher.startswith("hf://"):
        fields["base_model"] = teacher.removeprefix("hf://")
    if "license" in facts:
        fields["license"] = facts["license"]
    lines = [f"{name}: {_yaml(value)}" for name, value in fields.items()]
    return "\n".join(["---", *lines, "---"])


def _yaml(value):
    """A value as JSON that YAML reads: with its escapes, and no pairs of surrogates."""
    return "".join(
        c if c.isprintable() else f"\\U{ord(c):08X}"
        for c in json.dumps(value, ensure_ascii=False)
    )


def _usage(num_classes, sentence_transformers):
    if sentence_transformers:
        return (
            "from sentence_transformers import SentenceTransformer\n\n"
            'model = SentenceTransformer("path/of/this/directory")\n'
            'model.encode(["A small encoder."])'
        )
    model_class = (
        "AutoModel" if num_classes is None else "AutoModelForSequenceClassification"
    )
    output = "last_hidden_state" if num_classes is None else "logits"
    return (
        f"from transformers import AutoTokenizer, {model_class}\n\n"
        'directory = "path/of/this/directory"\n'
        "tokenizer = AutoTokenizer.from_pretrained(directory)\n"
        f"model = {model_class}.from_pretrained(directory)\n"
        'inputs = tokenizer(["A small encoder."], return_tensors="pt")\n'
        f"model(**inputs).{output}"
    )


def _table(what, facts):
    rows = [
        [_shown(str(name).replace("_", " ")), _shown(value)]
        for name, value in facts.items()
        if value is not None
    ]
    return markdown_table([what, "value"], rows)


def _shown(value):
    """A value as text of one cell of a table, without markup of HTML."""
    if isinstance(value, Mapping):
        return ", ".join(f"{_shown(name)} {_shown(v)}" for name, v in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_shown, value))
    if isinstance(value, float):
        return f"{value:g}"
    return html.escape(_line(value), quote=False)


def _code(value):
    """A value as code within a sentence: nothing in it is markup."""
    text = _line(value)
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{text}{fence}" if "`" not in text else f"{fence} {text} {fence}"


def _line(value):
    """A value as text of one line."""
    text = " ".join(str(value).split())
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _notes(family, backbone, num_classes, teacher):
    notes = [
        "The token ids are those of the keras-nlp tokenizer. Special tokens written "
        "out in a text, such as `[MASK]`, are special here and plain text there."
    ]
    if variant_of(backbone).gelu == "gelu_pytorch_tanh":
        notes.append(
            "`hidden_act` is the tanh form of GELU, which the keras-nlp model computes."
        )
    if teacher and num_classes is None:
        notes.append(
            "What stands above the queries, keys and values of the last layer gets no "
            "gradient from the distillation: fine-tune before use."
        )
    if num_classes is None and not family.has_pooler:
        notes.append(
            "The model has no pooler: where transformers' class has one, it is new."
        )
    if family.has_pooler and not family.transformers_has_pooler:
        notes.append(
            "`pooler.dense` is the pooler of keras-nlp's class; transformers' has none "
            "and reports that these weights are not used."
        )
    return "\n".join(f"- {note}" for note in notes)
