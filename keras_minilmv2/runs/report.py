"""What a run found, said once: `report.json` for machines, `report.md` for people."""

import base64
import datetime
import re
from pathlib import Path

import keras
import keras_hub
import tensorflow as tf

from keras_minilmv2.backbones.families import family_of
from keras_minilmv2.backbones.projections import block_calls
from keras_minilmv2.utils.files import replacing_file, write_json
from keras_minilmv2.utils.hardware import hardware
from keras_minilmv2.utils.tables import clock, count, markdown_table
from keras_minilmv2.version import __version__

_JSON, _MARKDOWN = "report.json", "report.md"
OUTPUTS = (_JSON, _MARKDOWN)


class Report:
    """What a run found, in the order in which people read it.

    Everything is told once: `save` writes the values to `report.json` and the same,
    in words and tables, to `report.md`. The facts, with hardware, date and versions
    after them, are the last table but for the closing text.

    Args:
        directory: path of the run.
        title: str.
    """

    def __init__(self, directory, title):
        self.directory = Path(directory)
        self.title = title
        self._parts = []
        self._closing = []
        self._values = {"title": title, "facts": {}, "tables": {}, "pictures": []}
        self._rows = []

    def text(self, paragraph):
        """Adds a paragraph of Markdown."""
        self._parts.append(paragraph)

    def closing(self, paragraph):
        """Adds a paragraph that comes after the facts."""
        self._closing.append(paragraph)

    def fact(self, name, value, shown=None):
        """Adds one fact.

        Args:
            name: str, in words: in the key in the JSON file, `_` stands between them.
            value: str, number or None, as the JSON file has it.
            shown: str. How people read it. Defaults to the value.
        """
        self._values["facts"][re.sub(r"\W+", "_", name)] = value
        self._rows.append([name, _shown(value) if shown is None else shown])

    def table(self, name, rows, formats=None):
        """Adds a table.

        Args:
            name: str, of the table in the JSON file.
            rows: list of dicts by column, all with the same columns. None is a value
                that is not there.
            formats: dict by column of functions that give the text of a value that is
                a number.
        """
        self._values["tables"][name] = rows
        self._parts.append(rows_table(rows, formats))

    def values(self, name, values):
        """Adds values that the JSON file alone has: a dict or list."""
        self._values[name] = values

    def picture(self, file, caption):
        """Adds a picture that lies in the directory.

        Args:
            file: str, its name.
            caption: str.
        """
        self._values["pictures"].append(file)
        self._parts.append(f"![{caption}]({file})")

    def save(self, seconds=None):
        """Writes `report.json` and then `report.md`.

        Args:
            seconds: float. The wall time of the run, or None.
        """
        if seconds is not None:
            self.fact("wall time", round(seconds, 1), clock(seconds))
        self.fact("hardware", hardware())
        self.fact("date", datetime.date.today().isoformat())
        self.fact(
            "versions",
            f"keras-minilmv2 {__version__}, Keras {keras.__version__}, TensorFlow "
            f"{tf.__version__}, keras-hub {keras_hub.__version__}",
        )
        facts = markdown_table(["setting", "value"], self._rows)
        parts = [f"# {self.title}", *self._parts, facts, *self._closing]
        write_json(self.directory / _JSON, self._values)
        with replacing_file(self.directory / _MARKDOWN) as temporary:
            # A file that is named in it may have a name that is no UTF-8.
            text = "\n\n".join(parts) + "\n"
            temporary.write_bytes(text.encode("utf-8", "backslashreplace"))


def report_text(directory):
    """The `report.md` of a run with its pictures inside, to show in a notebook.

    Args:
        directory: str or path. The run's.

    Returns:
        str, Markdown. A picture is a data URI, for a notebook does not know the
        directory that `report.md` lies in.
    """
    directory = Path(directory)

    def embed(match):
        picture = base64.b64encode((directory / match[2]).read_bytes()).decode()
        return f"![{match[1]}](data:image/png;base64,{picture})"

    text = (directory / _MARKDOWN).read_text(encoding="utf-8")
    return re.sub(r"!\[([^]]*)\]\(([^):]+\.png)\)", embed, text)


def model_name(preset):
    """A short name for a preset: of a directory `name/model`, its parent's too."""
    path = Path(preset)
    if path.name in ("model", "student", "teacher") and path.parent.name:
        return f"{path.parent.name}/{path.name}"
    return path.name


def describe(backbone):
    """One phrase about a backbone."""
    return (
        f"{family_of(backbone).name} {len(block_calls(backbone))}x"
        f"{backbone.hidden_dim}, {count(backbone.count_params())} parameters"
    )


def rows_table(rows, formats=None):
    """Rows as a Markdown table; arguments as for `Report.table`."""
    columns, formats = list(rows[0]), formats or {}
    cells = [
        [_shown(row[column], formats.get(column)) for column in columns] for row in rows
    ]
    return markdown_table(columns, cells)


def _shown(value, form=None):
    """A value as people read it."""
    if value is None:
        return ""
    if form is not None and not isinstance(value, str):
        return form(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4f}"
    if isinstance(value, int):
        return f"{value:,}"
    return str(value)
