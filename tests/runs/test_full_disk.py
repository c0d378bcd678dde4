"""A file system that is full or read-only: one sentence, and nothing lost."""

import os
import subprocess

import pytest
from families import make_backbone
from small_runs import assert_same_run, make_recipe, make_teacher

from keras_minilmv2 import cli
from keras_minilmv2.backbones.saving import save_student


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 330 KB; a student and three checkpoints need more."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=330k", "tmpfs", str(path)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a file system can be mounted by root only")
    yield path
    subprocess.run(["umount", str(path)], check=True)


@pytest.fixture
def prepared_recipe(tmp_path):
    teacher = make_teacher(tmp_path / "teacher")
    make_recipe(tmp_path, teacher)  # and its corpus.txt
    prepare = ["prepare", str(tmp_path / "corpus.txt"), "--tokenizer", str(teacher)]
    prepare += ["--sequence-length", "16", "--held-out-every", "10"]
    assert cli.main([*prepare, "--output-dir", str(tmp_path / "prepared")]) == 0
    corpus = (str(tmp_path / "prepared"),)
    return make_recipe(
        tmp_path, teacher, corpus=corpus, total_steps=40, checkpoint_every=4
    )


def distill(recipe, output_dir):
    return cli.main(["distill", str(recipe), "--output-dir", str(output_dir)])


@pytest.mark.slow
def test_a_full_disk_costs_nothing_but_time(
    small_disk, prepared_recipe, tmp_path, capsys
):
    assert distill(prepared_recipe, small_disk / "out") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "(No space left on device). After step" in error
    assert "give the same command to resume" in error
    larger = ["mount", "-o", "remount,size=50m", str(small_disk)]
    subprocess.run(larger, check=True)
    assert distill(prepared_recipe, small_disk / "out") == 0
    assert "Resumes after step 4 of 40" in capsys.readouterr().out
    assert distill(prepared_recipe, tmp_path / "whole") == 0
    assert_same_run(tmp_path / "whole", small_disk / "out")


def test_a_student_that_does_not_fit_is_refused_before_it_is_written(small_disk):
    student = make_backbone("bert", vocabulary_size=4_000)
    (small_disk / "student").mkdir()
    with pytest.raises(OSError, match="No space left on device"):
        save_student(student, None, small_disk / "student")
    assert [*small_disk.rglob("*")] == [small_disk / "student"]


def test_a_read_only_directory_is_refused(small_disk, prepared_recipe, capsys):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert distill(prepared_recipe, small_disk / "out") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "`output_dir` must be writable" in error
    assert "(Read-only file system)" in error
