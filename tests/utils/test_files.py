import pytest

from keras_minilmv2.utils.files import (
    check_outside,
    replacing_directory,
    replacing_file,
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


def test_what_is_read_lies_outside_of_what_is_replaced(tmp_path, monkeypatch):
    (tmp_path / "out" / "student").mkdir(parents=True)
    (tmp_path / "teacher").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for preset in ("out/student", "~/out/student", tmp_path / "out"):
        with pytest.raises(ValueError, match="`model` must not lie in `output_dir`"):
            check_outside("model", preset, tmp_path / "out")
    # A name is no path, though it may look like one of a file here.
    for preset in ("teacher", "bert_base_en_uncased", "hf://someone/model", object()):
        check_outside("model", preset, tmp_path / "out")
    check_outside("model", "bert_base_en_uncased", tmp_path)


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
