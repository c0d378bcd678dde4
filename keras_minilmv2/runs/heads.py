"""The study of heads: which ones matter to what, and how much may be given up."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from keras_minilmv2.backbones.families import family_of
from keras_minilmv2.backbones.loading import load_backbone, load_tokenizer
from keras_minilmv2.backbones.projections import block_calls
from keras_minilmv2.backbones.pruned import is_pruned
from keras_minilmv2.data.packing import check_packing, corpus_errors, packed_examples
from keras_minilmv2.data.pipeline import sample
from keras_minilmv2.data.shards import MANIFEST, PreparedExamples
from keras_minilmv2.data.text import Corpus
from keras_minilmv2.distillation.masked_tokens import (
    has_masked_token_head,
    load_masked_token_trainer,
)
from keras_minilmv2.downstream.registry import get_trained_task
from keras_minilmv2.runs.directory import FINISHED, RunDirectory, RunKind
from keras_minilmv2.runs.examples import with_segment_ids
from keras_minilmv2.runs.grid import (
    CELLS,
    FinishedCells,
    check_some_finished,
    run_grid,
)
from keras_minilmv2.runs.heads_cells import (
    IMPORTANCE,
    WHOLE,
    Encoder,
    Study,
    StudyCell,
    StudySettings,
    TaskData,
)
from keras_minilmv2.runs.heads_report import PICTURES, write_report
from keras_minilmv2.runs.report import OUTPUTS, describe, model_name
from keras_minilmv2.runs.settings import not_compared
from keras_minilmv2.utils.checksums import sha256
from keras_minilmv2.utils.files import check_directory, writing
from keras_minilmv2.utils.hardware import hardware


@dataclass(frozen=True, kw_only=True)
class _Compared(StudySettings):
    """What must be the same for a directory to hold this study."""

    model: str = not_compared()
    data_dir: str | None = not_compared()
    weights_sha256: str
    text_sha256: str
    data_sha256: dict[str, str]


KIND = RunKind(
    name="heads study",
    settings_class=_Compared,
    settings_file="settings.json",
    outputs=("settings.json", CELLS, IMPORTANCE, *PICTURES, *OUTPUTS),
    evidence=("settings.json",),
)


def study_heads(
    model,
    output_dir,
    settings=None,
    *,
    corpus,
    students=(),
    data_dir=None,
    tfds_data_dir=None,
    overwrite=False,
    progress_stream=None,
    log=print,
    **changes,
):
    """Measures which heads matter to pre-training and to tasks, and what may be lost.

    1. Importance of heads for masked language modelling on held-out text, and the loss
       as heads go: by importance, at random, reversed.
    2. The encoder fine-tuned on each task with each seed, and importance there.
    3. Encoders without some heads, really removed: their pre-training loss, and their
       scores before and after fine-tuning; random heads at equal loss, truncated
       encoders and students beside them.

    The directory then holds `report.md`, `report.json`, pictures, `importance/` (each a
    `HeadImportance`) and `cells/`, a file for each measurement. A study that was
    interrupted goes on where it was; further seeds, students and `first_layers` are
    added to a finished one.

    Args:
        model: str or path. What `pretrain` wrote, or transformers' `...ForMaskedLM`: an
            encoder with the head that was trained to predict its masked tokens.
        output_dir: str or path. Made if missing.
        settings: `StudySettings`.
        corpus: str, path or sequence of them, as for `Corpus`: what the model was
            pre-trained on, of which the held-out part is read; or a directory that
            `prepare` wrote.
        students: sequence of str or path. Other encoders, as for `load_backbone`; the
            loss of those without a masked-token head is not measured.
        data_dir: str or path of the tasks' published files. None for TFDS.
        tfds_data_dir: str or path. Where TFDS keeps its data.
        overwrite: bool. Whether to replace another run's outputs.
        progress_stream: text stream of the progress line. Defaults to standard error.
        log: function that is called with each line of information.
        **changes: fields of `StudySettings` that replace those of `settings`.

    Returns:
        `Study`, with all results.

    Raises:
        ValueError, TypeError, OSError: if something does not fit; the sentence names
            it. Settings and data are checked before anything is written.
        RuntimeError: if on a task the loss was not finite for every seed.
    """
    check_directory("output_dir", output_dir)
    if settings is None:
        settings = StudySettings(**changes)
    else:
        settings.field_types(changes)
        settings = dataclasses.replace(settings, **changes)
    tasks = [get_trained_task(task) for task in dict.fromkeys(settings.task)]
    if isinstance(corpus, str | Path):
        corpus = [corpus]
    study = _prepare(model, settings, tasks, corpus, students, data_dir, tfds_data_dir)
    study.progress_stream = progress_stream
    cells = study.cells()
    with RunDirectory.open(
        output_dir,
        _compared(study, model, data_dir),
        KIND,
        overwrite,
        reads={"model": model, "corpus": corpus, "students": students},
    ) as directory:
        directory.start()
        study.path = directory.path
        study.results = FinishedCells(directory.path / CELLS, StudyCell).load()
        if directory.state == FINISHED and set(cells) <= set(study.results):
            log(f"Finished already: {output_dir}.")
            return study
        if directory.state == FINISHED:
            directory.reopen()
        log(f"{describe(study.whole.backbone)}; {len(cells)} cells; on {hardware()}.")
        study.results |= run_grid(
            directory.path,
            cells,
            study.run,
            show=study.show,
            cell_class=StudyCell,
            log=log,
        )
        for task in study.tasks:
            runs = [StudyCell(WHOLE, task, seed) for seed in study.settings.seed]
            check_some_finished({cell: study.results[cell] for cell in runs})
        with writing(directory.path):
            write_report(study, directory.settings)
        directory.finish()
    return study


def _prepare(model, settings, tasks, corpus, students, data_dir, tfds_data_dir):
    """Loads models and data, and checks that they fit each other."""
    whole = load_encoder(model)
    family = family_of(whole.backbone)
    if family.masked_lm_class is None:
        raise ValueError(
            "`model` must be of a family for which keras-hub has a head that predicts "
            f"masked tokens. Received: model={model}, {family.name}."
        )
    if whole.trainer is None:
        raise ValueError(
            "`model` must hold an encoder with the head that was trained to predict "
            "masked tokens, as `keras-minilmv2 pretrain` writes it. "
            f"Received: model={model}, an encoder alone."
        )
    if is_pruned(whole.backbone):
        raise ValueError(
            "`model` must have all heads of its layers. Received: "
            f"model={model}, a pruned encoder."
        )
    depth = len(block_calls(whole.backbone))
    first_layers = settings.first_layers
    if first_layers is None:
        first_layers = (depth // 2,) if depth > 1 else ()
    for number in first_layers:
        if number >= depth:
            raise ValueError(
                "`first_layers` must be below the layers of the model. Received: "
                f"first_layers={number}, a model of {depth} layers."
            )
    loss_batches, importance_batches = _text_batches(settings, whole, corpus)
    return Study(
        settings=settings,
        whole=whole,
        first_layers=tuple(dict.fromkeys(first_layers)),
        students=_named_students(students),
        tasks={
            task.name: _task_data(task, settings, whole, data_dir, tfds_data_dir)
            for task in tasks
        },
        loss_batches=loss_batches,
        importance_batches=importance_batches,
    )


def load_encoder(path):
    """An `Encoder`, with the trainer of its head where it has one."""
    if not has_masked_token_head(path):
        return Encoder(load_backbone(path), load_tokenizer(path))
    trainer = load_masked_token_trainer(path)
    return Encoder(trainer.student, load_tokenizer(path), trainer)


def _named_students(paths):
    """Students by a name that tells their weights too."""
    found = {}
    for path in paths:
        encoder = load_encoder(path)
        checksum = sha256(*encoder.backbone.get_weights())
        found[f"student {model_name(path)} {checksum[:8]}"] = encoder
    return found


def _text_batches(settings, whole, corpus):
    """Batches for the loss, and others for importance, of held-out text."""
    backbone, tokenizer = whole.backbone, whole.tokenizer
    numbers = settings.num_loss_examples, settings.num_importance_examples
    length = settings.sequence_length
    check_packing(tokenizer, length)
    if length > backbone.max_sequence_length:
        raise ValueError(
            "`sequence_length` must not be beyond the position table of the model. "
            f"Received: sequence_length={length}, "
            f"max_sequence_length={backbone.max_sequence_length}."
        )
    if len(corpus) == 1 and (Path(corpus[0]) / MANIFEST).is_file():
        examples = PreparedExamples(corpus[0], "held_out")
        examples.check_tokenizer(tokenizer)
        if examples.sequence_length != length:
            raise ValueError(
                "`sequence_length` must be that of the prepared corpus. Received: "
                f"sequence_length={length}, prepared with {examples.sequence_length}."
            )
        rows = sample(examples, sum(numbers), seed=settings.text_seed)
    else:
        rows = _packed_sample(settings, tokenizer, corpus, sum(numbers))
    found = len(rows["token_ids"])
    if found < sum(numbers):
        raise ValueError(
            "`corpus` must have enough held-out text for `num_loss_examples` and "
            f"`num_importance_examples` sequences. Received: corpus={corpus} with "
            f"{found:,} sequences of {length} tokens, of {sum(numbers):,}. Lower these "
            "or `held_out_every`."
        )
    rows = with_segment_ids(backbone, rows)

    def batches(begin, end):
        return [
            {name: x[i : min(i + settings.batch_size, end)] for name, x in rows.items()}
            for i in range(begin, end, settings.batch_size)
        ]

    return batches(0, numbers[0]), batches(numbers[0], sum(numbers))


def _packed_sample(settings, tokenizer, sources, number):
    """Some packed sequences of a corpus, from everywhere in it."""
    every = settings.held_out_every
    corpus = Corpus(
        sources,
        document_separator=settings.document_separator,
        decode_errors=settings.decode_errors,
        held_out_every=every,
        part="train" if every is None else "held_out",
    )
    generator = np.random.default_rng(settings.text_seed)
    kept = []
    with corpus_errors(corpus):
        packed = packed_examples(corpus, tokenizer, settings.sequence_length)
        for count, row in enumerate(packed.as_numpy_iterator()):
            # Reservoir sampling: every sequence is as likely to stay.
            place = count if count < number else int(generator.integers(count + 1))
            if place < number:
                kept[place : place + 1] = [row]
    kept = [kept[i] for i in generator.permutation(len(kept))]
    names = ("token_ids", "padding_mask")
    return {name: np.array([row[name] for row in kept]) for name in names}


def _task_data(task, settings, whole, data_dir, tfds_data_dir):
    options = {"sequence_length": settings.task_sequence_length}
    if settings.task_sequence_length is None:
        longest = min(task.sequence_length, whole.backbone.max_sequence_length)
        options = {"sequence_length": longest}
    task = task.with_options(whole.backbone, **options)
    splits = [
        task.load(split, data_dir, tfds_data_dir) for split in ("train", task.dev_split)
    ]
    numbers = settings.num_train_examples, settings.num_dev_examples
    splits = [
        examples if number is None else examples.sample(number)
        for examples, number in zip(splits, numbers, strict=True)
    ]
    return TaskData(task, *splits)


def _compared(study, model, data_dir):
    """What must be the same for a directory to be resumed."""
    batches = (*study.loss_batches, *study.importance_batches)
    return _Compared(
        **dataclasses.asdict(study.settings),
        model=str(model),
        data_dir=None if data_dir is None else str(data_dir),
        weights_sha256=sha256(
            *study.whole.backbone.get_weights(),
            *study.whole.trainer.head.get_weights(),
        ),
        text_sha256=sha256(*(batch["token_ids"] for batch in batches)),
        data_sha256={
            name: sha256(*(x for f in data.features(study.whole) for x in f.identity()))
            for name, data in study.tasks.items()
        },
    )
