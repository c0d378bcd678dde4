"""Settings of Sphinx. `make docs` writes HTML pages in build/docs.

The source directory is the repository, not docs/: links from a page to the README or to
the tables of the benchmarks are then the same on GitHub and in the built pages.
"""

import inspect
import re

from keras_minilmv2.version import __version__

project = "keras-minilmv2"
release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "docs/index"
include_patterns = ["README.md", "CHANGELOG.md", "benchmarks/RESULTS.md", "docs/*.md"]
exclude_patterns = [".*", "build", "out", "shared", "tests", "keras_minilmv2"]
myst_heading_anchors = 3
# Formulas and drawings are no Python.
highlight_language = "none"

html_theme = "furo"
html_title = f"keras-minilmv2 {__version__}"
html_show_copyright = False
html_static_path = ["_static"]
html_css_files = ["pages.css"]
# index.html, which leads to docs/index.html.
html_extra_path = ["_extra"]

# Types stand in the text. A signature has one argument a line where it is long.
autodoc_typehints = "none"
autodoc_preserve_defaults = True
maximum_signature_line_length = 80
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_custom_sections = [("Call arguments", "params_style")]

# [title](url), or code in backticks and a letter right behind it.
_INLINE = re.compile(r"\[([^\]]+)\]\((https?:[^)]+)\)|(`+)(.+?)\3(\w?)", re.S)
# A list item behind a line of text.
_LIST = re.compile(r"(\n *[^\s-][^\n]*)(?=\n *- )")
# Indented lines between two paragraphs that are not.
_FORMULA = re.compile(r"(?<=\n\n)((?:    \S.*\n)+)(?=\n\S)")
_CODE = re.compile(r"^```python\n(.*?)^```$", re.S | re.M)


def to_restructured_text(app, what, name, obj, options, lines):
    """Translates the Markdown of a docstring, in place, for napoleon to read."""
    parts = _CODE.split("\n".join(lines))
    for index, part in enumerate(parts):
        if index % 2:
            indented = re.sub(r"^(?=.)", "    ", part, flags=re.M)
            parts[index] = f".. code-block:: python\n\n{indented}"
        else:
            part = _LIST.sub(r"\1\n", _INLINE.sub(_inline, part))
            parts[index] = _FORMULA.sub(r"::\n\n\1", part)
    lines[:] = "".join(parts).split("\n")


def _inline(match):
    title, url, _, code, letter = match.groups()
    if url:
        return f"`{title} <{url}>`__"
    return f"``{code}``" + (f"\\ {letter}" if letter else "")


def signature_of_init(app, what, name, obj, options, signature, returns):
    """The arguments of a class; Keras' own `__new__` would hide them."""
    if what == "class" and signature == "(*args, **kwargs)":
        arguments = list(inspect.signature(obj.__init__).parameters.values())
        signature = str(inspect.Signature(arguments[1:]))
    return signature, returns


def setup(app):
    """Puts the translation before napoleon, whose priority is 500."""
    app.connect("autodoc-process-signature", signature_of_init)
    app.connect("autodoc-process-docstring", to_restructured_text, priority=400)
