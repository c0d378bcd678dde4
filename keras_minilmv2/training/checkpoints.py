"""Everything a run needs to go on, in one file for each checkpoint."""

import json
import re
import zipfile
from pathlib import Path

import numpy as np
from keras import ops

from keras_minilmv2.utils.files import replacing_file

_NAME = re.compile(r"step-(\d{8,})\.npz")


class Checkpoints:
    """The checkpoints of a run: student, optimizer, random state, metrics, notes.

    A checkpoint is a NumPy archive `step-00001000.npz`, written to a temporary name
    and renamed. Nothing in it comes from the teacher. The position in the data is the
    step: batches depend on the step alone.

    Args:
        directory: str or path. Made when the first checkpoint is saved.
        num_kept: int. Older checkpoints are removed.
    """

    def __init__(self, directory, num_kept=2):
        self.directory = Path(directory)
        self.num_kept = num_kept

    def steps(self):
        """Steps of the checkpoints that are there, ascending."""
        if not self.directory.is_dir():
            return []
        names = (_NAME.fullmatch(path.name) for path in self.directory.iterdir())
        return sorted(int(name[1]) for name in names if name)

    def path(self, step):
        """Where the checkpoint of a step is."""
        return self.directory / f"step-{step:08}.npz"

    def save(self, step, distiller, notes):
        """Writes a checkpoint and removes those that are too old.

        Args:
            step: int, optimizer updates done.
            distiller: a compiled `RelationDistiller`.
            notes: what JSON can hold, given back by `restore`.

        Raises:
            OSError: if it cannot be written; earlier checkpoints are then untouched.
        """
        arrays = {
            f"{group}/{i}": ops.convert_to_numpy(variable)
            for group, variables in _variables(distiller).items()
            for i, variable in enumerate(variables)
        }
        text = json.dumps({"step": step, "notes": notes}).encode()
        with replacing_file(self.path(step)) as temporary:
            np.savez(temporary, notes=np.frombuffer(text, "uint8"), **arrays)
        for old in self.steps()[: -self.num_kept]:
            self.path(old).unlink()

    def read(self, step):
        """Reads a checkpoint whole, so that damage shows before anything changes.

        Raises:
            ValueError: if the file is damaged.
        """
        path = self.path(step)
        try:
            with np.load(path) as archive:
                return {name: archive[name] for name in archive.files}
        except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
            raise ValueError(
                f"A checkpoint must be whole. Received: {path} ({error})."
            ) from error

    def latest(self):
        """The latest checkpoint that is whole, and the steps of those that are not.

        Returns:
            tuple of a dict of arrays, or None, and a list of int.
        """
        damaged = []
        for step in reversed(self.steps()):
            try:
                return self.read(step), damaged
            except ValueError:
                damaged.append(step)
        return None, damaged

    @staticmethod
    def notes(arrays):
        """The step and the notes of a checkpoint that was read."""
        content = json.loads(arrays["notes"].tobytes())
        return content["step"], content["notes"]

    @staticmethod
    def restore(arrays, distiller):
        """Puts the arrays of a checkpoint into a distiller of the same run.

        Raises:
            ValueError: if the checkpoint is of another student or optimizer.
        """
        for group, variables in _variables(distiller).items():
            names = [name for name in arrays if name.startswith(f"{group}/")]
            shapes = [arrays[f"{group}/{i}"].shape for i in range(len(names))]
            if shapes != [tuple(variable.shape) for variable in variables]:
                raise ValueError(
                    f"A checkpoint must fit the {group} of the run. Received: "
                    f"{len(names)} arrays for {len(variables)} variables, or another "
                    "shape."
                )
        for group, variables in _variables(distiller).items():
            for i, variable in enumerate(variables):
                variable.assign(arrays[f"{group}/{i}"])


def _variables(distiller):
    """All that changes in training, by group."""
    student = distiller.student.variables
    held = {id(variable) for variable in student}
    return {
        # With the state of its dropout's random generators.
        "student": student,
        # What some losses train along: a projection, a head.
        "beside": [each for each in distiller.variables if id(each) not in held],
        "optimizer": distiller.optimizer.variables,
        "metrics": distiller.metrics_variables,
    }
