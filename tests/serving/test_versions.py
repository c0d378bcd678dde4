import os
import threading

import pytest

from keras_minilmv2.serving.versions import (
    latest_version,
    publish,
    unpublished,
    versions,
)


def write_version(directory, text):
    with unpublished(directory) as fresh:
        (fresh / "saved_model.pb").write_text(text)
        return publish(fresh, directory)


def test_versions_are_numbered_from_1(tmp_path):
    assert write_version(tmp_path / "model", "a") == tmp_path / "model" / "1"
    assert write_version(tmp_path / "model", "b") == tmp_path / "model" / "2"
    assert (tmp_path / "model" / "1" / "saved_model.pb").read_text() == "a"
    assert versions(tmp_path / "model") == [1, 2]


def test_a_version_is_above_all_others_and_other_names_do_not_count(tmp_path):
    for name in ("9", "10", "12a", ".export-1", "²", "-3"):
        (tmp_path / name).mkdir()
    (tmp_path / "11").write_text("a file")
    assert versions(tmp_path) == [9, 10, 11]
    assert write_version(tmp_path, "") == tmp_path / "12"


def test_exports_at_once_get_a_number_each(tmp_path):
    number = 16
    barrier = threading.Barrier(number)
    written = []

    def write(text):
        with unpublished(tmp_path) as fresh:
            (fresh / "saved_model.pb").write_text(text)
            barrier.wait()
            written.append((publish(fresh, tmp_path), text))

    threads = [threading.Thread(target=write, args=(str(i),)) for i in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert versions(tmp_path) == list(range(1, number + 1))
    for path, text in written:
        assert (path / "saved_model.pb").read_text() == text
    assert len(list(tmp_path.iterdir())) == number


def test_what_was_not_published_is_removed(tmp_path):
    def fail():
        with unpublished(tmp_path) as fresh:
            (fresh / "saved_model.pb").write_text("half")
            assert fresh.name.startswith(".export-")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_a_rename_that_fails_for_another_reason_is_an_error(tmp_path):
    with (
        pytest.raises(FileNotFoundError, match=r"gone"),
        unpublished(tmp_path),
    ):
        publish(tmp_path / "gone", tmp_path)


def test_others_may_read_a_version(tmp_path):
    mask = os.umask(0o022)
    try:
        version = write_version(tmp_path, "")
    finally:
        os.umask(mask)
    assert version.stat().st_mode & 0o777 == 0o755


def test_the_latest_version_is_found(tmp_path):
    for _ in range(10):
        version = write_version(tmp_path, "")
    assert version.name == "10"
    assert latest_version(tmp_path) == version
    assert latest_version(tmp_path / "3") == tmp_path / "3"


@pytest.mark.parametrize("name", ["", "nothing"])
def test_a_directory_without_version_is_refused(tmp_path, name):
    with pytest.raises(FileNotFoundError, match="`directory`") as caught:
        latest_version(tmp_path / name)
    assert str(caught.value) == (
        "`directory` must be an export, or hold one in a directory named by its "
        f"version number. Received: directory={tmp_path / name}."
    )


def test_what_a_killed_export_left_is_removed_by_the_next(tmp_path):
    left = tmp_path / ".export-0123abcd.partial"
    left.mkdir()
    (left / "saved_model.pb").write_text("half")
    (tmp_path / ".export-notes").mkdir()
    write_version(tmp_path, "a")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".export-notes", "1"]
