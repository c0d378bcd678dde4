"""Code blocks, commands and links of the README and of the pages in docs/."""

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = sorted((ROOT / "docs").glob("*.md"))


def code_blocks(path, language):
    """The code blocks of a page in one language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(), re.S | re.M)


def commands(path):
    """Each `keras-minilmv2` command of a page as a list of arguments."""
    for block in code_blocks(path, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line.rpartition("| ")[2], comments=True)
            if words and words[0].endswith("keras-minilmv2"):
                yield words[1:]


def run_python(path):
    """Runs the Python blocks of a page, one after the other, in one namespace."""
    namespace = {}
    for block in code_blocks(path, "python"):
        exec(compile(block, path.name, "exec"), namespace)


def broken_links(path):
    """The relative links of a page that lead to no file or no heading of one."""
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        file = (path.parent / name).resolve() if name else path
        if not file.exists() or (anchor and anchor not in _anchors(file)):
            yield target


def _anchors(path):
    """The anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(), re.M)
    return {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}
