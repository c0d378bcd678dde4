"""Settings of a run: frozen, type-checked, saved as JSON and compared."""

import dataclasses
import difflib
import json
import runpy
import types
import typing
from dataclasses import dataclass
from pathlib import Path

from keras_minilmv2.utils.files import replacing_file


def not_compared(**kwargs):
    """A field in which two runs of the same directory may differ."""
    return dataclasses.field(metadata={"compared": False}, **kwargs)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Base class of the settings of a run.

    A subclass is a frozen dataclass whose fields are of the types bool, int, float,
    str, tuples and dicts of these, or None beside one of them. Values are checked and
    converted when it is built: an int becomes a float where a float is wanted, a list
    becomes a tuple. A subclass checks ranges in `check`.

    Raises:
        TypeError: if a value is of another type than its field.
        ValueError: as `check` does.
    """

    def __post_init__(self):
        for spec in dataclasses.fields(self):
            value = _converted(getattr(self, spec.name), spec.type)
            if value is _WRONG:
                raise TypeError(
                    f"`{spec.name}` must be {_type_name(spec.type)}. "
                    f"Received: {spec.name}={getattr(self, spec.name)!r}."
                )
            object.__setattr__(self, spec.name, value)
        self.check()

    def check(self):
        """Raises unless all values are in their ranges."""

    def override(self, assignments):
        """Returns settings with some fields set from text.

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
            changes[name] = _parsed(name, text, self.field_types([name])[name])
        return dataclasses.replace(self, **changes)

    def to_json(self):
        """The fields as JSON text."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    def save(self, path):
        """Writes the fields as a JSON file that `load` reads."""
        with replacing_file(path) as temporary:
            temporary.write_text(self.to_json(), encoding="utf-8")

    @classmethod
    def load(cls, path):
        """Reads a JSON file of fields.

        Raises:
            ValueError: if it is no JSON object, or a field is unknown or missing.
            TypeError: if a field has a value of the wrong type.
        """
        try:
            fields = json.loads(Path(path).read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(
                f"{cls._noun()} must be a JSON file. Received: {path} ({error})."
            ) from error
        if not isinstance(fields, dict):
            raise ValueError(
                f"{cls._noun()} must be a JSON object of fields. "
                f"Received: {path} with a {type(fields).__name__}."
            )
        return cls.from_fields(fields, path)

    @classmethod
    def load_recipe(cls, path):
        """Reads a recipe file.

        Args:
            path: str or path of a `.py` file that sets `recipe`, or of a `.json` file.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it holds no such settings, or a field is unknown or missing.
            TypeError: if a field has a value of the wrong type.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(
                f"`recipe` must be a .py or .json file. Received: recipe={path}."
            )
        if path.suffix == ".json":
            return cls.load(path)
        try:
            recipe = runpy.run_path(str(path)).get("recipe")
        except TypeError as error:
            raise cls.constructor_error(error, path) from None
        except (ValueError, OSError, ImportError):
            raise
        except Exception as error:
            # Whatever a file of Python can raise: it may have been no Python at all.
            raise ValueError(
                "`recipe` must be a Python file that runs. "
                f"Received: recipe={path} ({type(error).__name__}: {error})."
            ) from error
        if not isinstance(recipe, cls):
            raise ValueError(
                f"`recipe` must be a Python file that sets `recipe = {cls.__name__}"
                f"(...)`. Received: recipe={path}."
            )
        return recipe

    @classmethod
    def from_fields(cls, fields, source=None):
        """Builds settings of a dict of fields; unknown and missing ones are named."""
        cls.field_types(fields)
        try:
            return cls(**fields)
        except TypeError as error:
            raise cls.constructor_error(error, source or cls.__name__.lower()) from None

    @classmethod
    def constructor_error(cls, error, source):
        """Turns Python's complaint about arguments into one about fields."""
        prefix = f"{cls.__name__}.__init__() "
        if prefix not in str(error):
            return error
        message = str(error).removeprefix(prefix)
        message = message.replace("keyword-only ", "").replace("keyword ", "")
        return ValueError(
            f"{source}: {message.replace('argument', 'field')}. "
            f"Known fields: {', '.join(cls.field_types())}."
        )

    def differences(self, other):
        """Names of the compared fields in which other settings differ."""
        return [
            spec.name
            for spec in dataclasses.fields(self)
            if spec.metadata.get("compared", True)
            and getattr(self, spec.name) != getattr(other, spec.name)
        ]

    @classmethod
    def field_types(cls, names=()):
        """Types by field name; raises if one of `names` is no field."""
        types_by_name = {spec.name: spec.type for spec in dataclasses.fields(cls)}
        for name in names:
            if name not in types_by_name:
                close = difflib.get_close_matches(name, types_by_name, n=1)
                raise ValueError(
                    f"{cls._noun()} has no field `{name}`."
                    + (f" Did you mean `{close[0]}`?" if close else "")
                    + f" Known fields: {', '.join(types_by_name)}."
                )
        return types_by_name

    @classmethod
    def _noun(cls):
        """What the settings are called in a message: `A recipe`."""
        name = "".join(f" {c.lower()}" if c.isupper() else c for c in cls.__name__)
        return f"A{name}"


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
