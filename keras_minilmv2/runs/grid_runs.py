"""A directory of fine-tuning runs: what is finished, what is best, what is written."""

import contextlib
import errno
import gc
import hashlib
import json
import os
import shutil

import numpy as np

from keras_minilmv2.backbones.families import family_of
from keras_minilmv2.backbones.hugging_face.tokenizers import split_words_like_gpt2
from keras_minilmv2.backbones.loading import load_backbone, load_tokenizer
from keras_minilmv2.runs.grid import Cell, best_cell, best_summary, summaries
from keras_minilmv2.runs.recipes import DTYPE_POLICIES
from keras_minilmv2.utils.files import remove, replacing_file
from keras_minilmv2.utils.seeds import set_seed
from keras_minilmv2.utils.tables import clock, markdown_table

# What a run writes; overwriting a run removes these and nothing else.
OUTPUTS = (
    "settings.json",
    "cells",
    "model",
    "predictions",
    "metrics.json",
    "report.md",
)

# Where the data and the model lay does not matter, what was in them does.
_NOT_COMPARED = ("model", "data_dir")
# Bytes of a preset that are not weights: vocabulary, settings.
_MARGIN = 20_000_000


class NoFiniteLossError(RuntimeError):
    """The loss of every run was not finite."""


def as_values(given, default):
    """A value or values that were given, or the default, as a tuple."""
    value = default if given is None else given
    return tuple(value) if isinstance(value, list | tuple | range) else (value,)


def check_settings(
    batch_size, num_train_examples, warmup_fraction, weight_decay, dtype_policy
):
    """Raises unless the settings of a run are in their ranges."""
    check_counts(batch_size=batch_size, num_train_examples=num_train_examples)
    if not 0 <= warmup_fraction < 1:
        raise ValueError(
            "`warmup_fraction` must be at least 0 and below 1. "
            f"Received: warmup_fraction={warmup_fraction}."
        )
    if not weight_decay >= 0:
        raise ValueError(
            f"`weight_decay` must be at least 0. Received: weight_decay={weight_decay}."
        )
    if dtype_policy not in DTYPE_POLICIES:
        raise ValueError(
            f"`dtype_policy` must be one of {', '.join(DTYPE_POLICIES)}. "
            f"Received: dtype_policy={dtype_policy!r}."
        )


def check_counts(**counts):
    """Raises unless each of some numbers is None or at least 1."""
    for name, value in counts.items():
        if value is not None and value < 1:
            raise ValueError(f"`{name}` must be at least 1. Received: {name}={value}.")


def load_model(model, tokenizer, dtype_policy):
    """The encoder and tokenizer of a preset, or those that were given."""
    if isinstance(model, str | os.PathLike):
        if tokenizer is not None:
            raise ValueError(
                "`tokenizer` must be left out where `model` is a preset. "
                f"Received: model={model}, tokenizer={tokenizer!r}."
            )
        # What the preset has no weights for is drawn: the same in every process.
        set_seed(0)
        return load_backbone(model, dtype=dtype_policy), load_tokenizer(model)
    family_of(model)
    if tokenizer is None:
        raise ValueError(
            "`tokenizer` must be given with a backbone. Received: tokenizer=None."
        )
    # Of a tokenizer that keras-nlp itself has loaded, eager calls would differ from
    # those of the saved one.
    return model, split_words_like_gpt2(tokenizer)


def check_directory(path):
    """Raises unless a path is free for a directory, or holds outputs of a run."""
    check_no_file(path)
    names = visible_names(path)
    if names and "settings.json" not in names:
        raise FileExistsError(
            "`output_dir` must be empty or new. "
            f"Received: output_dir={path}, which holds {', '.join(names[:3])}."
        )


def check_no_file(path):
    """Raises if a path that a directory is wanted at is that of a file."""
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(
            f"`output_dir` must be a directory. Received: output_dir={path}, a file."
        )


def check_evaluation_dir(path, overwrite):
    """Raises unless a directory is free, or holds another evaluation."""
    check_no_file(path)
    names = visible_names(path)
    if names and not (overwrite and set(names) <= {"metrics.json", "predictions"}):
        raise FileExistsError(
            "`output_dir` must be empty or new, or hold another evaluation and "
            "--overwrite be given. "
            f"Received: output_dir={path}, which holds {', '.join(names[:3])}."
        )


def visible_names(path):
    """Names in a directory, sorted; none if it is not there."""
    if not path.is_dir():
        return []
    return sorted(e.name for e in path.iterdir() if not e.name.startswith("."))


def begin(output_dir, settings, finished, cells, overwrite):
    """Makes the directory ready; raises if it holds another run or a finished one."""
    path = output_dir / "settings.json"
    if path.is_file() and not overwrite:
        found = read_json(path)
        differing = [
            name
            for name in settings
            if name not in _NOT_COMPARED and found.get(name) != settings[name]
        ]
        if differing:
            raise FileExistsError(
                "`output_dir` must not hold a run of another model, other data or "
                f"other settings. Received: output_dir={output_dir}, which differs in "
                f"{', '.join(differing)}. Pass --overwrite to replace it, or name "
                "another directory."
            )
        if set(cells) <= set(finished.load()) and (output_dir / "report.md").is_file():
            raise FileExistsError(
                "`output_dir` must not hold a finished run. Received: "
                f"output_dir={output_dir}. Pass --overwrite to replace it, or name "
                "another directory."
            )
        # It is of fewer runs, and says that they are finished.
        remove(output_dir / "report.md")
        return
    with writing(output_dir):
        output_dir.mkdir(parents=True, exist_ok=True)
        for name in OUTPUTS:
            remove(output_dir / name)
        write_json(path, settings)


def sha256(*arrays):
    """One checksum of several arrays."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def percent(value):
    """A share, times 100."""
    return f"{100 * value:.2f}"


def read_json(path):
    """Reads what `write_json` wrote."""
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} must be JSON, as it was written.") from error


def write_json(path, values):
    """Writes a JSON file that appears whole."""
    with replacing_file(path) as temporary:
        temporary.write_text(json.dumps(values, indent=2) + "\n")


@contextlib.contextmanager
def writing(output_dir):
    """An error of a write says that it is the output directory's."""
    try:
        yield
    except OSError as error:
        raise OSError(
            "`output_dir` must be writable and have room. Received: "
            f"output_dir={output_dir} ({error.strerror or error})."
        ) from error


def run_cells(output_dir, cells, finished, run_cell, save_model, metric, say):
    """Runs what is not finished; keeps the model of the best run in `model/`.

    Runs that another grid in the same directory finished count too.

    Args:
        output_dir: path.
        cells: list of `Cell`.
        finished: `FinishedCells` of the directory.
        run_cell: function of a cell that returns its `Result` and its model.
        save_model: function of a model, its cell and a path, which writes the cell
            into `fine_tuning.json` beside the model.
        metric: str. What the scores are.
        say: function that is called with each line of information.

    Returns:
        dict of `Result` by `Cell`, in the order of the cells.
    """
    results = finished.load()
    notes = read_notes(output_dir / "model")
    if notes and Cell(**notes["cell"]) not in results:
        # Its model was saved and its result was not.
        cells = list(dict.fromkeys([Cell(**notes["cell"]), *cells]))
    if results:
        say(f"Finished runs in {output_dir}: {len(results)}.")
    missing = [cell for cell in cells if cell not in results]
    for number, cell in enumerate(missing, start=1):
        say(f"Run {number} of {len(missing)}: {cell}.")
        result, model = run_cell(cell)
        results[cell] = result
        with writing(output_dir):
            # The model first: a cell whose result is there is not run again.
            if best_cell(results) == cell:
                save_model(model, cell, output_dir / "model")
            finished.save(cell, result)
        if result.score is None:
            say("  The loss was not finite.")
        else:
            say(f"  {metric} {percent(result.score)}, {clock(result.seconds)}")
        del model
        gc.collect()  # a Keras model is a cycle, and a grid has many
    return dict(sorted(results.items()))


def check_room(path, num_params):
    """Raises where a model's weights would not fit on the disk.

    HDF5 writes errors of its own for a full disk, and again when Python ends.

    Raises:
        OSError: as a write to a full disk does.
    """
    if shutil.disk_usage(path).free < 4 * num_params + _MARGIN:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def check_some_finished(results):
    """The best cell; raises if the loss of every run was not finite."""
    best = best_cell(results)
    if best is None:
        raise NoFiniteLossError(
            "The loss was not finite in any run. Try a lower learning rate, or "
            "mixed_bfloat16 in place of mixed_float16."
        )
    return best


def read_notes(path):
    """What a run wrote beside its model; {} for a model from elsewhere."""
    file = path / "fine_tuning.json"
    return read_json(file) if file.is_file() else {}


def grid_parts(results, cell, metric, split):
    """Paragraphs of a report on several runs.

    Args:
        results: dict of `Result` by `Cell`.
        cell: the best one.
        metric: str.
        split: str. What the scores were made on.
    """
    best = best_summary(results)
    deviation = "" if best.deviation is None else f" ± {percent(best.deviation)}"
    rows = [
        [
            f"{summary.setting['learning_rate']:g}",
            str(summary.setting["epochs"]),
            str(len(summary.scores)),
            "" if summary.mean is None else percent(summary.mean),
            "" if summary.deviation is None else percent(summary.deviation),
            str(summary.num_diverged),
        ]
        for summary in summaries(results)
    ]
    header = ["learning rate", "epochs", "runs", "mean", "deviation", "diverged"]
    return [
        f"Best setting by mean {metric} on {split}: learning rate "
        f"{best.setting['learning_rate']:g}, epochs {best.setting['epochs']}: "
        f"{percent(best.mean)}"
        f"{deviation} over {len(best.scores)} seeds. `model/` is the best of "
        f"{len(results)} runs: {cell}. It was chosen on {split}, so its score "
        "there is on the high side.",
        f"{metric.capitalize()} on {split}, mean and sample standard deviation over "
        "seeds:",
        markdown_table(header, rows),
    ]
