"""A recipe: everything that decides what one run does."""

import dataclasses
import difflib
import json
import runpy
import types
import typing
from dataclasses import InitVar, dataclass, field
from pathlib import Path

from keras_minilmv2.distillation.initialization import Initialization
from keras_minilmv2.distillation.objectives import OBJECTIVES
from keras_minilmv2.utils.files import replacing_file

_OLD_FIELDS = {
    "student_teacher_layers": tuple[int, ...] | None,
    "student_preset": str | None,
}
DTYPE_POLICIES = ("float32", "mixed_bfloat16", "mixed_float16")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Settings of one distillation run.

    A recipe file is a Python file that sets `recipe = Recipe(...)`, or the JSON file
    that a run leaves behind. Fields without a default must be given: a misspelt or
    missing one is an error that names it.

    Args:
        teacher: str. Preset name, `hf://` handle or directory.
        teacher_layer: int, from 1. The layer whose relations are distilled.
        student_num_layers: int.
        student_num_heads: int.
        student_hidden_dim: int.
        student_intermediate_dim: int.
        student_embedding_dim: int or None. For ALBERT and ELECTRA.
        student_initialization: str. `"random"`; `"layers"` or `"projection"`, also with
            the teacher's layers as in `"layers:1,3,6"`; or `"preset:PATH"`, an earlier
            student of the shape above, named as `teacher` is.
        student_dropout: float.
        objective: str. What the student learns: `"relations"`, or, to compare with,
            `"attention_values"` (MiniLM v1), `"hidden_states"` or `"masked_tokens"`
            (no teacher).
        num_relation_heads: int.
        relation_weights: dict of float by pair of letters q, k, v.
        whole_words: bool. Whether `"masked_tokens"` masks whole words.
        corpus: tuple of str. Files, directories, globs, `-`, or `tfds:` data sets.
        document_separator: str. `"blank_line"`, `"line"` or `"file"`.
        decode_errors: str. `"strict"` or `"replace"`.
        tfds_data_dir: str or None. Where TFDS keeps its data sets.
        sequence_length: int, tokens.
        batch_size: int, sequences, global.
        held_out_every: int. Every so many-th piece of the corpus is held out.
        held_out_examples: int, sequences that the held-out loss is computed on.
        peak_learning_rate: float.
        warmup_steps: int, optimizer updates.
        total_steps: int, optimizer updates.
        weight_decay: float. Not on biases and norms.
        beta_1: float.
        beta_2: float.
        epsilon: float.
        gradient_clip_norm: float or None.
        log_every: int, optimizer updates between two lines of history.csv.
        evaluate_every: int, optimizer updates between two held-out losses.
        keep_every: int, optimizer updates between two students that are kept in
            `kept/`, or None to keep none; a multiple of `evaluate_every`.
        checkpoint_every: int, optimizer updates between two checkpoints.
        strategy: str. Devices: `"auto"`, `"one_device"`, `"mirrored"`,
            `"multi_worker"`, `"tpu"` or `"tpu:NAME"`.
        steps_per_execution: int. Updates that run without a word in between; must
            divide all numbers of updates above.
        accumulation_steps: int. Micro-batches that a replica's batch is cut into, to
            save memory.
        dtype_policy: str. `"float32"`, `"mixed_bfloat16"` or `"mixed_float16"`.
        seed: int. Of the drawn weights, the dropout and the order of the data.
    """

    # Teacher.
    teacher: str
    teacher_layer: int
    # Student.
    student_num_layers: int
    student_num_heads: int
    student_hidden_dim: int
    student_intermediate_dim: int
    student_embedding_dim: int | None = None
    student_initialization: str = "random"
    # Of older recipes; both are part of `student_initialization` now.
    student_teacher_layers: InitVar[tuple[int, ...] | None] = None
    student_preset: InitVar[str | None] = None
    student_dropout: float = 0.1
    # Objective.
    objective: str = "relations"
    num_relation_heads: int
    relation_weights: dict[str, float] = field(
        default_factory=lambda: {"qq": 1.0, "kk": 1.0, "vv": 1.0}
    )
    whole_words: bool = False
    # Data.
    corpus: tuple[str, ...]
    document_separator: str = "blank_line"
    decode_errors: str = "strict"
    tfds_data_dir: str | None = None
    sequence_length: int
    batch_size: int
    held_out_every: int = 100
    held_out_examples: int = 256
    # Optimizer.
    peak_learning_rate: float
    warmup_steps: int
    total_steps: int
    weight_decay: float = 0.01
    beta_1: float = 0.9
    beta_2: float = 0.999
    epsilon: float = 1e-6
    gradient_clip_norm: float | None = 1.0
    # Run.
    log_every: int = 50
    evaluate_every: int = 1_000
    keep_every: int | None = None
    checkpoint_every: int = 1_000
    strategy: str = "auto"
    steps_per_execution: int = 1
    accumulation_steps: int = 1
    dtype_policy: str = "float32"
    seed: int = 0

    def __post_init__(self, student_teacher_layers, student_preset):
        for spec in dataclasses.fields(self):
            value = _converted(getattr(self, spec.name), spec.type)
            if value is _WRONG:
                raise TypeError(
                    f"`{spec.name}` must be {_type_name(spec.type)}. "
                    f"Received: {spec.name}={getattr(self, spec.name)!r}."
                )
            object.__setattr__(self, spec.name, value)
        initialization = Initialization.from_fields(
            self.student_initialization, student_teacher_layers, student_preset
        )
        object.__setattr__(self, "student_initialization", str(initialization))
        for name in (
            "batch_size",
            "checkpoint_every",
            "steps_per_execution",
            "accumulation_steps",
            "held_out_examples",
            "log_every",
            "evaluate_every",
            "total_steps",
        ):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"`{name}` must be at least 1. "
                    f"Received: {name}={getattr(self, name)}."
                )
        for name in ("total_steps", "log_every", "evaluate_every", "checkpoint_every"):
            if getattr(self, name) % self.steps_per_execution != 0:
                raise ValueError(
                    f"`steps_per_execution` must divide `{name}`. Received: "
                    f"steps_per_execution={self.steps_per_execution}, "
                    f"{name}={getattr(self, name)}."
                )
        kept = self.keep_every
        if kept is not None and (kept < 1 or kept % self.evaluate_every != 0):
            raise ValueError(
                "`keep_every` must be a multiple of `evaluate_every`, or None. "
                f"Received: keep_every={kept}, evaluate_every={self.evaluate_every}."
            )
        for name, known in (
            ("dtype_policy", DTYPE_POLICIES),
            ("objective", OBJECTIVES),
        ):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"`{name}` must be one of {', '.join(known)}. "
                    f"Received: {name}={getattr(self, name)!r}."
                )

    @property
    def initialization(self):
        """The `Initialization` that `student_initialization` describes."""
        return Initialization.parse(self.student_initialization)

    def override(self, assignments):
        """Returns a recipe with some fields set from text.

        Args:
            assignments: iterable of str `field=value`. A tuple's items are separated
                by commas, a dict is `qq:1,vv:0.5`, and `none` is None.

        Raises:
            ValueError: if there is no such field, or the text is not of its type.
        """
        changes = {}
        for assignment in assignments:
            name, equals, text = assignment.partition("=")
            if not equals:
                raise ValueError(
                    "`--set` must be given as field=value. "
                    f"Received: --set {assignment!r}."
                )
            changes[name] = _parsed(name, text, _field_types_or_error([name])[name])
        return dataclasses.replace(self, **changes)

    def to_json(self):
        """The fields as JSON text."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    def save(self, path):
        """Writes the fields as a JSON file that `load_recipe` reads."""
        with replacing_file(path) as temporary:
            temporary.write_text(self.to_json(), encoding="utf-8")


def load_recipe(path):
    """Reads a recipe file.

    Args:
        path: str or path of a `.py` file that sets `recipe`, or of a `.json` file.

    Returns:
        `Recipe`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds no recipe, or a field is unknown or missing.
        TypeError: if a field has a value of the wrong type.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"`recipe` must be a .py or .json file. Received: recipe={path}."
        )
    if path.suffix == ".json":
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(
                f"`recipe` must be a JSON file. Received: recipe={path} ({error})."
            ) from error
        if not isinstance(fields, dict):
            raise ValueError(
                "`recipe` must be a JSON object of fields. "
                f"Received: recipe={path} with a {type(fields).__name__}."
            )
        return make_recipe(fields, path)
    try:
        recipe = runpy.run_path(str(path)).get("recipe")
    except TypeError as error:
        if "Recipe.__init__()" in str(error):
            raise ValueError(_constructor_message(error, path)) from error
        raise
    except (ValueError, OSError, ImportError):
        raise
    except Exception as error:
        # Whatever a file of Python can raise: it may have been no Python at all.
        raise ValueError(
            "`recipe` must be a Python file that runs. "
            f"Received: recipe={path} ({type(error).__name__}: {error})."
        ) from error
    if not isinstance(recipe, Recipe):
        raise ValueError(
            "`recipe` must be a Python file that sets `recipe = Recipe(...)`. "
            f"Received: recipe={path}."
        )
    return recipe


def make_recipe(fields, source="recipe"):
    """Makes a recipe of a dict of fields; unknown and missing ones are named."""
    _field_types_or_error(fields)
    try:
        return Recipe(**fields)
    except TypeError as error:
        if "Recipe.__init__()" in str(error):
            raise ValueError(_constructor_message(error, source)) from error
        raise


def _field_types():
    return {spec.name: spec.type for spec in dataclasses.fields(Recipe)}


def _field_types_or_error(names):
    types_by_name = _field_types()
    for name in names:
        if name not in types_by_name and name not in _OLD_FIELDS:
            close = difflib.get_close_matches(name, types_by_name, n=1)
            raise ValueError(
                f"A recipe has no field `{name}`."
                + (f" Did you mean `{close[0]}`?" if close else "")
                + f" Known fields: {', '.join(types_by_name)}."
            )
    return types_by_name | _OLD_FIELDS


def _constructor_message(error, source):
    """Turns Python's complaint about arguments into one about fields."""
    message = str(error).removeprefix("Recipe.__init__() ")
    message = message.replace("keyword-only ", "").replace("keyword ", "")
    return (
        f"{source}: {message.replace('argument', 'field')}. "
        f"Known fields: {', '.join(_field_types())}."
    )


_WRONG = object()


def _converted(value, annotation):
    """The value as its annotation wants it, or `_WRONG`."""
    origin = typing.get_origin(annotation)
    arguments = typing.get_args(annotation)
    if origin is types.UnionType:
        if value is None:
            return None
        return _converted(value, arguments[0])
    if origin is tuple:
        if not isinstance(value, tuple | list):
            return _WRONG
        items = tuple(_converted(item, arguments[0]) for item in value)
        return _WRONG if _WRONG in items else items
    if origin is dict:
        if not isinstance(value, dict):
            return _WRONG
        items = {key: _converted(item, arguments[1]) for key, item in value.items()}
        good = all(isinstance(key, arguments[0]) for key in items)
        return items if good and _WRONG not in items.values() else _WRONG
    if isinstance(value, bool):
        return value if annotation is bool else _WRONG
    if annotation is float and isinstance(value, int):
        return float(value)
    return value if isinstance(value, annotation) else _WRONG


def _parsed(name, text, annotation):
    """A field's value from command-line text."""
    try:
        return _from_text(text.strip(), annotation)
    except ValueError as error:
        raise ValueError(
            f"`{name}` must be {_type_name(annotation)}. "
            f"Received: --set {name}={text!r}."
        ) from error


def _from_text(text, annotation):
    origin = typing.get_origin(annotation)
    arguments = typing.get_args(annotation)
    if origin is types.UnionType:
        return None if text.lower() == "none" else _from_text(text, arguments[0])
    if origin is tuple:
        items = (item.strip() for item in text.split(","))
        return tuple(_from_text(item, arguments[0]) for item in items if item)
    if origin is dict:
        pairs = (item.split(":") for item in text.split(",") if item.strip())
        return {key.strip(): _from_text(value, arguments[1]) for key, value in pairs}
    if annotation is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError
        return text.lower() == "true"
    return annotation(text)


def _type_name(annotation):
    """A type in words."""
    origin = typing.get_origin(annotation)
    arguments = typing.get_args(annotation)
    if origin is types.UnionType:
        return f"{_type_name(arguments[0])} or None"
    if origin is tuple:
        return f"a tuple of {arguments[0].__name__}"
    if origin is dict:
        return f"a dict of {arguments[1].__name__}"
    return {bool: "true or false", int: "an int", str: "a str", float: "a float"}[
        annotation
    ]
