import os

import pytest

from keras_minilmv2.utils.files import (
    read_json,
    remove_partial,
    replacing_directory,
    replacing_file,
    write_json,
)
from keras_minilmv2.utils.tables import count, markdown_table, megabytes


def names(directory):
    return sorted(entry.name for entry in directory.iterdir())


def test_a_file_is_replaced_when_all_went_well(tmp_path):
    path = tmp_path / "deep" / "file.txt"
    for text in ("old", "new"):
        with replacing_file(path) as temporary:
            temporary.write_text(text)
    assert path.read_text() == "new"
    assert names(path.parent) == ["file.txt"]
    assert path.stat().st_mode & 0o777 == 0o666 & ~0o022


def fail_in(context):
    with context as temporary:
        target = temporary / "half" if temporary.is_dir() else temporary
        target.write_text("half")
        raise RuntimeError("out of paper")


@pytest.mark.parametrize("replacing", [replacing_file, replacing_directory])
def test_a_failure_leaves_what_was_there(replacing, tmp_path):
    path = tmp_path / "output"
    if replacing is replacing_directory:
        path.mkdir()
        (path / "old.txt").write_text("old")
    else:
        path.write_text("old")
    with pytest.raises(RuntimeError, match="out of paper"):
        fail_in(replacing(path))
    assert names(tmp_path) == ["output"]
    old = path / "old.txt" if path.is_dir() else path
    assert old.read_text() == "old"


def test_a_directory_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "output"
    for name in ("old.txt", "new.txt"):
        with replacing_directory(path) as fresh:
            (fresh / name).write_text(name)
    assert names(path) == ["new.txt"]
    assert names(tmp_path) == ["output"]


def test_numbers_read_well():
    assert [count(n) for n in (7, 1_234, 22_713_216, 1.2e9)] == [
        "7",
        "1.23K",
        "22.7M",
        "1.2G",
    ]
    assert megabytes(90_868_376) == "90.9 MB"


def test_tables_line_up():
    assert markdown_table(["name", "value"], [["a", "1.5"], ["longer", "10"]]) == (
        "| name   | value |\n| ------ | ----: |\n| a      |   1.5 |\n| longer |    10 |"
    )


def test_a_bar_in_a_cell_does_not_end_it():
    assert markdown_table(["a"], [["x|y"]]).splitlines()[-1] == "| x\\|y |"


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path):
    for name in (
        ".out-ab12.partial",
        ".out-ab12",
        ".out-a-b.partial",
        ".other-ab12.partial",
        ".out-ab12.partial.md",
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("half")
    with replacing_directory(tmp_path / "out") as living:
        remove_partial(tmp_path / "out")
        assert living.is_dir()
        (living / "file").write_text("whole")
    assert names(tmp_path) == [
        ".other-ab12.partial",
        ".out-a-b.partial",
        ".out-ab12",
        ".out-ab12.partial.md",
        "out",
    ]


@pytest.mark.parametrize("replacing", [replacing_file, replacing_directory])
def test_of_a_link_the_target_is_replaced(replacing, tmp_path):
    target, link = tmp_path / "disk" / "target", tmp_path / "link"
    target.parent.mkdir()
    link.symlink_to(target)
    for text in ("old", "new"):
        with replacing(link) as temporary:
            file = temporary / "file" if temporary.is_dir() else temporary
            file.write_text(text)
    assert link.is_symlink()
    file = target / "file" if target.is_dir() else target
    assert file.read_text() == "new"
    assert names(target.parent) == ["target"]


def test_names_that_are_no_utf_8_are_written_to_json_and_read_back(tmp_path):
    name = b"b\xe9.txt".decode("utf-8", "surrogateescape")
    for text in (name, "bé"):
        write_json(tmp_path / "values.json", {"corpus": text})
        assert read_json(tmp_path / "values.json") == {"corpus": text}


@pytest.mark.parametrize("text", ["", "{", "[1]", "[" * 100_000])
def test_json_that_is_no_object_is_refused_by_name(tmp_path, text):
    path = tmp_path / "values.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="values.json must be"):
        read_json(path)


def test_a_directory_that_was_never_renamed_goes_unless_it_holds_something(tmp_path):
    left, full = (tmp_path / f".out-{letter * 32}.new" for letter in "ab")
    for path in (left, full, tmp_path / ".other-c.new"):
        path.mkdir()
    (full / "mine").touch()
    with replacing_directory(tmp_path / "out"):
        pass
    assert names(tmp_path) == [".other-c.new", full.name, "out"]


@pytest.mark.parametrize("called", ["open", "rename"])
def test_a_directory_that_another_process_removes_too_early_is_made_again(
    tmp_path, monkeypatch, called
):
    """The other one takes it for what a killed process left."""
    whole, times = getattr(os, called), []

    def late(path, *arguments):
        if str(path).endswith(".new"):
            times.append(path)
            if len(times) < 3:
                remove_partial(tmp_path / "out")
        return whole(path, *arguments)

    monkeypatch.setattr(os, called, late)
    with replacing_directory(tmp_path / "out") as fresh:
        (fresh / "file").touch()
    assert len(times) == 3
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["file"]
