"""One process owns the directory of a run, and loses nothing of anybody."""

import errno
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from keras_minilmv2.runs.directory import (
    FINISHED,
    NEW,
    RESUMED,
    RunDirectory,
    RunKind,
    check_outside,
)
from keras_minilmv2.runs.settings import Settings, not_compared
from keras_minilmv2.utils.locks import InUseError

HELPERS = Path(__file__).parents[1] / "helpers"


@dataclass(frozen=True, kw_only=True)
class Small(Settings):
    """Settings of the runs of this file."""

    rate: float = 0.1
    where: str | None = not_compared(default=None)


KIND = RunKind(
    name="small",
    settings_class=Small,
    settings_file="settings.json",
    outputs=("settings.json", "student", "prepared", "steps", "report.md"),
    temporary=("steps",),
    evidence=("steps",),
)


def names(path):
    return sorted(entry.name for entry in path.iterdir())


def run(path, settings=None, stop=None, **options):
    """A run of three steps; `stop` is where it ends early."""
    settings = settings or Small()
    with RunDirectory.open(path, settings, KIND, **options) as directory:
        found = directory.state
        if found == FINISHED:
            return found
        prepared = directory.working("prepared")
        prepared.mkdir(parents=True, exist_ok=True)
        (prepared / "shard").write_text(str(settings.rate))
        if stop == "prepared":
            raise KeyboardInterrupt
        directory.start()
        if stop == "started":
            raise KeyboardInterrupt
        for name in ("steps", "student"):
            (directory.path / name).mkdir(exist_ok=True)
            (directory.path / name / "file").write_text(str(settings.rate))
        if stop == "stepped":
            raise KeyboardInterrupt
        (directory.path / "report.md").write_text("report")
        directory.finish()
        return found


FINISHED_NAMES = [".run.json", "prepared", "report.md", "settings.json", "student"]


def test_a_run_is_new_then_resumed_then_finished(tmp_path):
    out = tmp_path / "a" / "out"
    with pytest.raises(KeyboardInterrupt):
        run(out, stop="stepped")
    assert run(out) == RESUMED
    assert names(out) == FINISHED_NAMES
    # Returned, not refused, and not changed.
    assert run(out, Small(where="elsewhere")) == FINISHED
    assert run(out, overwrite=True) == NEW
    assert names(out) == FINISHED_NAMES


def test_what_was_prepared_before_a_run_started_is_found_again(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "out", stop="prepared")
    assert names(tmp_path / "out") == [".staging"]
    assert run(tmp_path / "out") == NEW
    assert names(tmp_path / "out") == FINISHED_NAMES


def test_what_was_prepared_for_another_run_is_removed(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "out", stop="prepared")
    with RunDirectory.open(tmp_path / "out", Small(), KIND) as directory:
        directory.start()
        assert names(tmp_path / "out") == [".lock", ".run.json", "settings.json"]


def test_a_run_of_other_settings_is_named_and_kept(tmp_path):
    run(tmp_path / "out")
    with pytest.raises(FileExistsError, match="other settings.*has rate=0.1.*Use"):
        run(tmp_path / "out", Small(rate=0.2))
    other = RunKind(**{**vars(KIND), "name": "other"})
    with pytest.raises(FileExistsError, match="must not hold a run of `small`"):
        RunDirectory.open(tmp_path / "out", Small(), other)
    assert (tmp_path / "out" / "student" / "file").read_text() == "0.1"


@pytest.mark.parametrize("name", ["student", "report.md", "settings.json", "notes"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_files_that_no_run_made_are_neither_removed_nor_replaced(
    tmp_path, name, overwrite
):
    (tmp_path / name).write_text("mine")
    with pytest.raises(FileExistsError, match=f"empty or new.*which holds {name}"):
        run(tmp_path, overwrite=overwrite)
    assert (tmp_path / name).read_text() == "mine"
    assert names(tmp_path) == [name]


def test_a_users_recipe_beside_their_files_is_no_run(tmp_path):
    Small().save(tmp_path / "settings.json")
    (tmp_path / "student").mkdir()
    with pytest.raises(FileExistsError, match="must be empty or new"):
        run(tmp_path)
    assert names(tmp_path) == ["settings.json", "student"]


def test_what_lies_beside_a_run_outlives_it(tmp_path):
    run(tmp_path / "out")
    (tmp_path / "out" / "notes").write_text("mine")
    run(tmp_path / "out", Small(rate=0.2), overwrite=True)
    assert names(tmp_path / "out") == sorted([*FINISHED_NAMES, "notes"])
    assert (tmp_path / "out" / "student" / "file").read_text() == "0.2"


def test_what_was_there_before_the_run_is_never_removed(tmp_path):
    prepared = tmp_path / "out" / "prepared"
    prepared.mkdir(parents=True)
    (prepared / "mine").write_text("mine")
    run(tmp_path / "out", accepts=("prepared",))
    run(tmp_path / "out", Small(rate=0.2), overwrite=True, accepts=("prepared",))
    assert (prepared / "mine").read_text() == "mine"


@pytest.mark.parametrize(("name", "file"), [("student", "file"), ("prepared", "shard")])
def test_a_link_to_another_disk_stays_one(tmp_path, name, file):
    out, disk = tmp_path / "out", tmp_path / "disk"
    run(out)
    (out / name).rename(disk)
    (out / name).symlink_to(disk)
    run(out, Small(rate=0.2), overwrite=True)
    assert (out / name).is_symlink()
    assert names(disk) == [file]
    assert (disk / file).read_text() == "0.2"
    assert names(out) == FINISHED_NAMES


@pytest.mark.parametrize("error", [ValueError, TypeError])
def test_a_refused_run_leaves_no_trace(tmp_path, error):
    run(tmp_path / "out")

    def refused(path, **options):
        with RunDirectory.open(path, Small(rate=0.2), KIND, **options) as directory:
            directory.working("prepared").mkdir(parents=True)
            raise error("no")

    with pytest.raises(error, match="no"):
        refused(tmp_path / "out", overwrite=True)
    assert names(tmp_path / "out") == FINISHED_NAMES
    with pytest.raises(error, match="no"):
        refused(tmp_path / "deep" / "new")
    assert names(tmp_path) == ["out"]


def test_a_file_is_no_directory(tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(NotADirectoryError, match="`output_dir` must be a directory"):
        run(tmp_path / "out")


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
    (tmp_path / "out" / "corpus.txt").write_text("text")
    with pytest.raises(ValueError, match="`corpus` must not lie in `output_dir`"):
        run(tmp_path / "out", reads={"corpus": ("none", "out/corpus.txt")})


HOLD = """
import sys, time
sys.path.insert(0, {tests!r})
from test_directory import *

with RunDirectory.open({path!r}, Small(), KIND) as directory:
    directory.start()
    print("held", flush=True)
    time.sleep(60)
"""


def test_one_process_holds_a_directory_and_a_dead_one_does_not(tmp_path):
    code = HOLD.format(tests=str(Path(__file__).parent), path=str(tmp_path / "out"))
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    with pytest.raises(InUseError, match=f"process {process.pid} on .* is writing to"):
        run(tmp_path / "out", overwrite=True)
    process.kill()
    process.communicate()
    assert run(tmp_path / "out") == RESUMED
    assert names(tmp_path / "out") == FINISHED_NAMES


COMMAND = """
import sys
sys.path.insert(0, {tests!r})
from test_directory import Small, run

run({path!r}, Small(rate=0.2), overwrite={overwrite})
"""


@pytest.mark.parametrize(
    "overwrite", [pytest.param(False, marks=pytest.mark.slow), True]
)
def test_killed_at_any_change_the_same_command_ends_alike(tmp_path, overwrite):
    """The process ends at the n-th change of the file system, for every n."""
    for number in range(1, 200):
        out = tmp_path / f"out{number}"
        if overwrite:
            run(out)
            (out / "notes").write_text("mine")
        script = tmp_path / "script.py"
        tests = str(Path(__file__).parent)
        script.write_text(
            COMMAND.format(tests=tests, path=str(out), overwrite=overwrite)
        )
        command = [sys.executable, str(HELPERS / "killed_at.py"), str(number)]
        code = subprocess.run([*command, str(out), str(script)]).returncode
        if code == 0:
            break
        assert code == 137
        # Given again without --overwrite where the old run is gone already.
        run(out, Small(rate=0.2), overwrite=overwrite)
        wanted = sorted([*FINISHED_NAMES, *(["notes"] if overwrite else [])])
        assert names(out) == wanted, number
        assert (out / "student" / "file").read_text() == "0.2"
        assert (out / "prepared" / "shard").read_text() == "0.2"
        assert json.loads((out / ".run.json").read_text())["state"] == "finished"
    assert number > 20, number


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_disk_that_is_full_at_any_write_costs_nothing_but_time(
    tmp_path, monkeypatch, overwrite
):
    """The n-th write of the directory's own files fails, for every n."""
    sync, writes = os.fsync, []

    def full(handle):
        writes.append(handle)
        if len(writes) == number:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(handle)

    message = r"^`output_dir` must be writable .* \(No space left on device\)\.$"
    for number in range(1, 20):
        out = tmp_path / f"out{number}"
        if overwrite:
            run(out)
            (out / "notes").write_text("mine")
        writes.clear()
        monkeypatch.setattr(os, "fsync", full)
        found = None
        try:
            run(out, Small(rate=0.2), overwrite=overwrite)
        except OSError as error:
            found = str(error)
        monkeypatch.undo()
        if found is None:
            break
        assert re.match(message, found), number
        run(out, Small(rate=0.2), overwrite=overwrite)
        notes = ["notes"] if overwrite else []
        assert names(out) == sorted([*FINISHED_NAMES, *notes]), number
        assert (out / "student" / "file").read_text() == "0.2"
    assert number > 6


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        '{"kind": "small", "state": "lost", "outputs": []}',
        '{"kind": "small", "state": "running", "outputs": ["../x"]}',
    ],
)
def test_a_damaged_record_is_refused_and_nothing_removed(tmp_path, text):
    run(tmp_path / "out")
    (tmp_path / "out" / ".run.json").write_text(text)
    with pytest.raises(ValueError, match=r"\.run\.json must be"):
        run(tmp_path / "out", overwrite=True)
    assert names(tmp_path / "out") == FINISHED_NAMES


def test_a_directory_that_cannot_be_written_to_is_named(tmp_path):
    if os.geteuid() == 0:
        path = Path("/proc/no_directory")
    else:
        (tmp_path / "closed").mkdir(mode=0o500)
        path = tmp_path / "closed" / "out"
    with pytest.raises(OSError, match="`output_dir` must be writable"):
        run(path)


def test_settings_differ_in_what_is_compared():
    one, other = Small(rate=1), Small(rate=2, where="there")
    assert one.rate == 1.0
    assert one.differences(other) == ["rate"]
    assert one.override(["where=here", "rate=2"]).differences(other) == []
    with pytest.raises(ValueError, match="no field `rat`. Did you mean `rate`"):
        one.override(["rat=2"])
    with pytest.raises(TypeError, match="`rate` must be a float. Received: rate='x'"):
        Small(rate="x")
