"""Checkpoints that cannot be used are skipped, whatever is wrong with them."""

import io
import json
import zipfile
from types import SimpleNamespace

import keras
import numpy as np
import pytest

from keras_minilmv2.training.checkpoints import Checkpoints


def make_trainer(value=1.0, size=3):
    weight = keras.Variable(np.full(size, value, "float32"))
    step = keras.Variable(4, dtype="int64", trainable=False)
    return SimpleNamespace(
        student=SimpleNamespace(variables=[weight]),
        variables=[weight],
        optimizer=SimpleNamespace(variables=[step]),
        metrics_variables=[],
        separate_seeds=lambda restored: None,
    )


@pytest.fixture
def checkpoints(tmp_path):
    """Two checkpoints, of steps 3 and 6."""
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    for step in (3, 6):
        checkpoints.save(step, make_trainer(step), {"2": {"loss": 0.5}})
    return checkpoints


def test_the_latest_is_restored_with_its_notes(checkpoints):
    trainer = make_trainer()
    arrays, unusable = checkpoints.latest(trainer)
    assert unusable == []
    assert checkpoints.notes(arrays) == (6, {"2": {"loss": 0.5}})
    checkpoints.restore(arrays, trainer)
    np.testing.assert_array_equal(trainer.variables[0], [6, 6, 6])


def rewrite(path, name, content):
    """Replaces a member of an archive; its checksum is right."""
    with zipfile.ZipFile(path) as archive:
        members = {each: archive.read(each) for each in archive.namelist()}
    members[name] = content
    with zipfile.ZipFile(path, "w") as archive:
        for each, value in members.items():
            archive.writestr(each, value)


def forged(shape):
    """An array file whose header announces another shape than its data have."""
    file = io.BytesIO()
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue() + bytes(12)


DAMAGES = {
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "overwritten": lambda path: path.write_bytes(bytes(len(path.read_bytes()))),
    "another file": lambda path: path.write_text("step 6"),
    "a directory": lambda path: (path.unlink(), path.mkdir()),
    # 4 EB, 4 TB and 4 GB.
    "forged 2**60": lambda path: rewrite(path, "student/0.npy", forged((2**60,))),
    "forged 2**40": lambda path: rewrite(path, "student/0.npy", forged((2**40,))),
    "forged 2**30": lambda path: rewrite(path, "student/0.npy", forged((2**30,))),
    "forged 2**70": lambda path: rewrite(path, "student/0.npy", forged((2**70,))),
    "forged (2,)": lambda path: rewrite(path, "student/0.npy", forged((2,))),
    "no header": lambda path: rewrite(path, "student/0.npy", b"\x93NUMPY\x01\x00"),
    "notes": lambda path: rewrite(path, "notes.npy", forged((3,))),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_checkpoint_is_skipped(checkpoints, damage):
    damage(checkpoints.path(6))
    arrays, unusable = checkpoints.latest(make_trainer())
    assert unusable == [6]
    assert checkpoints.notes(arrays)[0] == 3
    if checkpoints.path(6).is_dir():
        return
    with pytest.raises(ValueError, match="A checkpoint must (be whole|fit the stud)"):
        checkpoints.read(6, make_trainer())


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_checkpoint_of_broken_weights_is_skipped(checkpoints, value):
    checkpoints.save(9, make_trainer(value), {})
    arrays, unusable = checkpoints.latest(make_trainer())
    assert unusable == [9]
    assert checkpoints.notes(arrays)[0] == 6
    with pytest.raises(ValueError, match="must have finite numbers.*student/0"):
        checkpoints.read(9)


def test_without_a_usable_checkpoint_there_is_none(checkpoints):
    assert checkpoints.latest(make_trainer(size=4)) == (None, [6, 3])


def test_a_checkpoint_of_another_trainer_is_not_restored(checkpoints):
    trainer = make_trainer(size=4)
    with pytest.raises(ValueError, match="must fit the student of the run"):
        checkpoints.restore(checkpoints.read(6), trainer)
    np.testing.assert_array_equal(trainer.variables[0], [1, 1, 1, 1])


def test_steps_in_notes_are_text_as_json_has_them(checkpoints):
    with np.load(checkpoints.path(6)) as archive:
        content = json.loads(archive["notes"].tobytes())
    assert content == {"step": 6, "notes": {"2": {"loss": 0.5}}}
