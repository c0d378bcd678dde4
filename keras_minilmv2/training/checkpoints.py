"""Checkpoints of a run: all that a resumed run needs, in one file each."""

import io
import json
import re
from pathlib import Path

import numpy as np
from keras import ops

from keras_minilmv2.training.strategy import from_chief, has_workers, is_chief
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
        """Steps of the existing checkpoints, ascending."""
        if not self.directory.is_dir():
            return []
        names = (_NAME.fullmatch(path.name) for path in self.directory.iterdir())
        return sorted(int(name[1]) for name in names if name)

    def path(self, step):
        """Where the checkpoint of a step is."""
        return self.directory / f"step-{step:08}.npz"

    def save(self, step, distiller, notes, writes=True):
        """Writes a checkpoint and removes those that are too old.

        Args:
            step: int, optimizer updates done.
            distiller: a compiled `RelationDistiller`.
            notes: what JSON can hold; `notes` returns it.
            writes: bool. Whether this process writes the file. All workers must call
                `save`: reading a metric sums it over them.

        Raises:
            OSError: if it cannot be written; earlier checkpoints are then untouched.
        """
        arrays = {
            f"{group}/{i}": ops.convert_to_numpy(variable)
            for group, variables in _variables(distiller).items()
            for i, variable in enumerate(variables)
        }
        if not writes:
            return
        text = json.dumps({"step": step, "notes": notes}).encode()
        with replacing_file(self.path(step)) as temporary:
            np.savez(temporary, notes=np.frombuffer(text, "uint8"), **arrays)
        for old in self.steps()[: -self.num_kept]:
            self.path(old).unlink()

    def read(self, step, distiller=None):
        """Reads a whole checkpoint, so that damage shows before anything changes.

        Args:
            step: int.
            distiller: a compiled `RelationDistiller` that it must fit, or None.

        Returns:
            dict of arrays.

        Raises:
            ValueError: if the file is damaged, has weights that are not finite, or does
                not fit.
        """
        path = self.path(step)
        try:
            # NumPy leaves the file of a damaged archive open.
            with path.open("rb") as file, np.load(file) as archive:
                arrays = {name: archive[name] for name in archive.files}
            self.notes(arrays)
        except Exception as error:
            # Damage may show as anything: as MemoryError, if a header is forged.
            raise ValueError(
                f"A checkpoint must be whole. Received: {path} "
                f"({type(error).__name__}: {error})."
            ) from error
        for name, array in arrays.items():
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise ValueError(
                    "A checkpoint must have finite numbers. "
                    f"Received: {path}, whose {name} has others."
                )
        if distiller is not None:
            _check_fits(arrays, distiller)
        return arrays

    def latest(self, distiller=None):
        """The latest checkpoint that can be used, and the steps of later ones.

        Args:
            distiller: as for `read`.

        Returns:
            tuple of a dict of arrays, or None, and a list of int.
        """
        unusable = []
        for step in reversed(self.steps()):
            try:
                return self.read(step, distiller), unusable
            except ValueError:
                unusable.append(step)
        return None, unusable

    def latest_of_chief(self, strategy, distiller):
        """As `latest`, but of the chief's directory on every worker.

        So workers without a shared file system resume at the same step. All workers
        must call it.

        Args:
            strategy: `tf.distribute.Strategy`.
            distiller: as for `read`.
        """
        if not has_workers(strategy):
            return self.latest(distiller)
        arrays, unusable = None, []
        chief = is_chief(strategy)
        if chief:
            arrays, unusable = self.latest(distiller)
        content = b""
        if arrays is not None:
            content = self.path(self.notes(arrays)[0]).read_bytes()
        content = from_chief(strategy, content)
        if not chief and content:
            with np.load(io.BytesIO(content)) as archive:
                arrays = {name: archive[name] for name in archive.files}
        return arrays, unusable

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
        _check_fits(arrays, distiller)
        for group, variables in _variables(distiller).items():
            for i, variable in enumerate(variables):
                variable.assign(arrays[f"{group}/{i}"])
        distiller.separate_seeds(restored=True)


def _check_fits(arrays, distiller):
    """Raises unless there is an array of its shape for each variable."""
    for group, variables in _variables(distiller).items():
        shapes = {
            name: array.shape
            for name, array in arrays.items()
            if name.startswith(f"{group}/")
        }
        wanted = {f"{group}/{i}": tuple(v.shape) for i, v in enumerate(variables)}
        if shapes != wanted:
            raise ValueError(
                f"A checkpoint must fit the {group} of the run. Received: "
                f"{len(shapes)} arrays for {len(variables)} variables, or another "
                "shape."
            )


def _variables(distiller):
    """All that changes in training, by group."""
    student = distiller.student.variables
    held = {id(variable) for variable in student}
    return {
        # Including the seeds of its dropout.
        "student": student,
        # What some losses train beside it: a projection, a head.
        "beside": [each for each in distiller.variables if id(each) not in held],
        "optimizer": distiller.optimizer.variables,
        "metrics": distiller.metrics_variables,
    }
