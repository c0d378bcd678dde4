"""The study of heads: its cells, its report, and what it refuses."""

import json

import numpy as np
import pytest
from families import make_backbone
from small_runs import (
    make_masked_model,
    make_teacher,
    save_masked_model,
    write_task,
    write_text,
)
from small_tokenizers import make_tokenizer

from keras_minilmv2 import cli
from keras_minilmv2.backbones.pruned import layer_counts
from keras_minilmv2.backbones.saving import save_student
from keras_minilmv2.heads.importance import GateStatistics, HeadImportance
from keras_minilmv2.runs.grid import Result
from keras_minilmv2.runs.heads import study_heads
from keras_minilmv2.runs.heads_cells import (
    PRETRAINING,
    WHOLE,
    Study,
    StudyCell,
    StudySettings,
)
from keras_minilmv2.runs.heads_report import PICTURES, Numbers, findings

SETTINGS = {
    "task": ("sst2",),
    "seed": (0, 1),
    "shares": (0.0, 0.25, 0.5),
    "sequence_length": 16,
    "held_out_every": 2,
    "num_loss_examples": 32,
    "num_importance_examples": 32,
    "num_random_orders": 2,
    "epochs": 1,
}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    path = tmp_path_factory.mktemp("heads")
    return {
        "model": make_masked_model(path / "model"),
        "teacher": make_teacher(path / "teacher"),
        "data": write_task(path / "data"),
        "corpus": write_text(path / "corpus.txt"),
    }


def run_study(places, out, **changes):
    lines = []
    options = {"students": (), "model": places["model"], **changes}
    settings = {k: v for k, v in options.items() if k in StudySettings.field_types()}
    rest = {k: v for k, v in options.items() if k not in settings}
    study = study_heads(
        output_dir=out,
        settings=StudySettings(**{**SETTINGS, **settings}),
        corpus=places["corpus"],
        data_dir=places["data"],
        log=lines.append,
        **rest,
    )
    return study, lines


def planted(seed, scores):
    """Importance of three layers of four heads whose two halves differ a little."""
    noise = 0.05 * np.random.default_rng(seed).random((2, *scores.shape))
    halves = 10 * (scores + noise)
    heads = GateStatistics(np.array([10, 10]), halves, halves**2, halves**4)
    return HeadImportance(
        heads=heads,
        neurons=None,
        shared_heads=None,
        shared_neurons=None,
        head_blocks=None,
        neuron_blocks=None,
        head_mask=np.ones(scores.shape, "float32"),
        neuron_mask=np.ones((3, 24), "float32"),
        block_of_layer=np.arange(3),
        loss=1.0,
        num_examples=20,
        num_left_out=0,
    )


@pytest.fixture
def made_up(monkeypatch):
    """Cells that compute nothing: a loss of 2 + removed, a task that needs other heads.

    Returns the list of cells that ran.
    """
    ran = []
    scores = np.random.default_rng(0).random((2, 3, 4)) + 0.1
    losses = {"iterative": 1.0, "one_shot": 1.2, "reversed": 3.0, "random": 2.0}
    shares = [0.0, 0.25, 0.5, 1.0]

    def run(study, cell):
        ran.append(cell)
        kind, _, rest = cell.encoder.partition(" ")
        if cell.task == PRETRAINING:
            if kind == WHOLE:
                study._save_importance(planted(0, scores[0]), PRETRAINING)
                found = {"loss": 2.0, "unigram_entropy": 5.0}
            elif kind == "order":
                curve = [2 + losses[rest] * x * (1 + cell.seed / 9) for x in shares]
                curve[-1] = 6.0
                ranks = np.arange(12).reshape(3, 4).tolist()
                found = {"shares": shares, "removed": shares, "losses": curve}
                found |= {"ranks": ranks, "loss": curve[-1]}
            elif kind == "student":
                found = {"loss": None, "heads": 12}
            else:
                loss = 2.4 if kind == "first" else 2 + float(rest)
                found = {"loss": loss, "step": 3, "heads": 8}
            result = Result(found["loss"] or 0.0, found)
        else:
            given_up = 0.0 if kind in (WHOLE, "student") else float(rest)
            score = {"random": 0.5, "student": 0.6}.get(kind, 0.9)
            score += 0.002 * cell.seed - 0.04 * (given_up >= 0.5)
            found = {"accuracy": score}
            if kind == WHOLE:
                study._save_importance(planted(cell.seed, scores[1]), "sst2", cell.seed)
                names = study.before_tuning
                found["removed"] = {n: 0.8 - 0.2 * ("random" in n) for n in names}
            result = Result(score, found)
        study.results[cell] = result
        return result, None

    monkeypatch.setattr(Study, "run", run)
    return ran


def test_the_report_says_what_the_numbers_say(places, made_up, tmp_path):
    out = tmp_path / "out"
    study, _ = run_study(places, out, students=[places["teacher"]])
    assert made_up == study.cells()
    report = json.loads((out / "report.json").read_text())
    tables = report["tables"]
    for name in PICTURES:
        assert (out / name).read_bytes()[1:4] == b"PNG"
    assert [row["random"] for row in tables["curves"]] == pytest.approx(
        [2, 2 + 0.5 * (1 + 1 / 18), 2 + 1 + 1 / 18, 6]
    )
    # Before, a point is lost at 0.025 nats; after, between 0.25 and 0.5.
    before, after = tables["deduction"]
    assert before["deduction"] == pytest.approx(0.25 * 0.01 / 0.101, rel=0.05)
    assert after["deduction"] == pytest.approx(0.25 + 0.25 * 0.01 / 0.04)
    control = tables["control"][0]
    assert control["after"] == pytest.approx(0.4)
    assert control["before"] == pytest.approx(0.2)
    assert control["share, random"] == pytest.approx(1 / 3)
    pretraining, ceiling = tables["coherence"]
    assert pretraining["Spearman"] < ceiling["Spearman"]
    assert pretraining["p within layers"] > 0.05 > ceiling["p within layers"]
    overlap = report["overlap"]["pretraining, sst2"]
    assert overlap["common"][-1] == overlap["by chance"][-1] == 1.0
    text = " ".join(findings(Numbers(study)))
    assert text in (out / "report.md").read_text()
    for sentence in (
        "is 2.000 nats, 3.000 below the unigram entropy of the same text; removing all "
        "heads costs 4.000.",
        "by importance changes the loss by +0.500, at random by +1.056",
        "than another seed of the task does in 1 of 1 tasks.",
        "for SST-2: 0.025 nats (0.025 to 0.025) before fine-tuning, 0.312 nats",
        "after fine-tuning, heads kept by importance score +40.00 points against "
        "random ones on average: higher beyond the interval in 2 of 2 comparisons",
        "The encoder first 1 gives up 0.400 nats; against importance 0.5, which gives "
        "up 0.500, it scores SST-2 +0.00",
        "the loss is not measured: it has no masked-token head.",
    ):
        assert sentence in text, text
    assert "too little" not in text


def test_a_task_that_was_not_learned_is_not_compared(places, made_up, tmp_path):
    study, _ = run_study(places, tmp_path / "out")
    assert Numbers(study).learned == {"sst2": True}
    for cell, result in study.results.items():
        if (cell.encoder, cell.task) == (WHOLE, "sst2"):
            result.metrics["removed"]["importance 1"] = result.score
    numbers = Numbers(study)
    assert set(numbers.deductions.values()) == {None}
    assert numbers.controls == []
    text = " ".join(findings(numbers))
    assert "On SST-2 the whole encoder scores like one without heads" in text
    assert "at equal" not in text.lower()


@pytest.mark.slow
def test_a_study_that_was_ended_goes_on_and_takes_further_seeds(
    places, made_up, tmp_path, monkeypatch
):
    out, full = tmp_path / "out", Study.run

    def ends(study, cell):
        if len(made_up) == 9:
            raise KeyboardInterrupt
        return full(study, cell)

    monkeypatch.setattr(Study, "run", ends)
    with pytest.raises(KeyboardInterrupt):
        run_study(places, out)
    first = list(made_up)
    monkeypatch.setattr(Study, "run", full)
    study, _ = run_study(places, out)
    assert (out / "report.md").is_file()
    assert made_up == study.cells()
    assert made_up[:9] == first
    _, lines = run_study(places, out)
    assert lines == [f"Finished already: {out}."]
    assert made_up == study.cells()
    more, _ = run_study(places, out, seed=(0, 1, 2))
    assert {cell.seed for cell in made_up[len(study.cells()) :]} == {2}
    assert set(made_up) == set(more.cells())
    runs = json.loads((out / "report.json").read_text())["tables"]["scores_sst2"]
    assert runs[0]["runs"] == 3
    with pytest.raises(FileExistsError, match="run of other settings.*shares"):
        run_study(places, out, shares=(0.5,))


@pytest.mark.slow
def test_a_run_that_diverged_is_left_out(places, made_up, tmp_path, monkeypatch):
    full, least = Study.run, 1

    def diverges(study, cell):
        result, model = full(study, cell)
        if cell.task == "sst2" and cell.seed >= least and cell.encoder != "first 1":
            result = study.results[cell] = Result(None)
        return result, model

    monkeypatch.setattr(Study, "run", diverges)
    run_study(places, tmp_path / "out")
    report = json.loads((tmp_path / "out" / "report.json").read_text())["tables"]
    assert [row["deduction"] for row in report["deduction"]] == [None, None]
    assert report["control"][0]["after"] == pytest.approx(0.4)
    assert report["control"][0]["after, from"] is None
    assert len(report["coherence"]) == 1
    least = 0
    with pytest.raises(RuntimeError, match="The loss was not finite in any run"):
        run_study(places, tmp_path / "none")


def test_the_measurements_of_a_study(places, tmp_path):
    """All of a small one: nothing is fine-tuned but the whole encoder."""
    model = make_masked_model(tmp_path / "model", num_layers=1, num_heads=4)
    study, lines = run_study(
        {**places, "model": model},
        tmp_path / "out",
        seed=(0,),
        shares=(0.5,),
        tuned_shares=(),
        first_layers=(),
        heads_per_step=2,
        num_random_orders=1,
    )
    results = study.results
    pretraining = results[StudyCell(WHOLE, PRETRAINING, 0)].metrics
    curves = {
        name: results[StudyCell(f"order {name}", PRETRAINING, 0)].metrics["losses"]
        for name in ("iterative", "one_shot", "reversed", "random")
    }
    for losses in curves.values():
        assert losses[0] == pytest.approx(pretraining["loss"], rel=1e-5)
        assert losses[2] == pytest.approx(curves["random"][2], rel=1e-6)
    assert len({round(losses[1], 4) for losses in curves.values()}) >= 2
    importance = study.importance(PRETRAINING)
    lowest = np.unravel_index(importance.heads.scores().argmin(), (1, 4))
    assert study.order("one_shot").removed()[0] == [lowest]
    ranks = results[StudyCell("order iterative", PRETRAINING, 0)].metrics["ranks"]
    assert sorted(np.ravel(ranks)) == list(range(4))
    tuned = results[StudyCell(WHOLE, "sst2", 0)].metrics
    assert list(tuned["removed"]) == ["importance 0.5"]
    assert study.importance("sst2", 0).heads.absolute.shape == (1, 4)
    assert "no acceptable deduction" in (tmp_path / "out" / "report.md").read_text()
    assert any(line.startswith("  dev accuracy ") for line in lines)


@pytest.mark.slow
def test_pruned_random_truncated_and_other_encoders(places, tmp_path):
    study, _ = run_study(
        places,
        tmp_path / "out",
        seed=(0,),
        shares=(0.5,),
        num_random_orders=1,
        students=[places["teacher"], places["model"]],
    )
    results = study.results
    losses = {
        name: results[StudyCell(name, PRETRAINING, 0)].metrics["loss"]
        for name in (WHOLE, "importance 0.5", "random 0.5", "first 1", *study.students)
    }
    headless, same = study.students
    assert losses[headless] is None
    assert losses[same] == pytest.approx(losses[WHOLE], rel=1e-6)
    # What is removed is what the curve is without.
    curve = study.curve("iterative")
    assert losses["importance 0.5"] == pytest.approx(curve.mean[1], rel=1e-5)
    assert sum(layer_counts(study.encoder("importance 0.5").backbone)[0]) == 6
    # No step of the random order that was tried is nearer.
    steps = [study.loss_of(mask) for mask in study.order("random", 0).head_masks]
    near = np.abs(np.array(steps) - losses["importance 0.5"])
    chosen = results[StudyCell("random 0.5", PRETRAINING, 0)].metrics["step"]
    assert steps[chosen] == pytest.approx(losses["random 0.5"], rel=1e-5)
    assert near[chosen] <= near[6]
    assert len(layer_counts(study.encoder("first 1").backbone)[0]) == 1
    for name in (WHOLE, "importance 0.5", "random 0.5", "first 1", headless, same):
        assert 0 <= results[StudyCell(name, "sst2", 0)].score <= 1
    # Without a seed's noise: the same encoder, fine-tuned alike.
    scores = [results[StudyCell(name, "sst2", 0)].score for name in (WHOLE, same)]
    assert scores[0] == scores[1]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["albert", "albert_groups", "roberta"])
def test_heads_that_layers_share_count_once(places, tmp_path, name):
    family = "Roberta" if name == "roberta" else "Albert"
    tokenizer = make_tokenizer(family)
    size = tokenizer.vocabulary_size()
    backbone = make_backbone(name, vocabulary_size=size)
    model = save_masked_model(tmp_path / "model", backbone, tokenizer)
    study, _ = run_study(
        {**places, "model": model},
        tmp_path / "out",
        seed=(0,),
        shares=(0.5,),
        num_random_orders=1,
    )
    shape = {"albert": (1, 4), "albert_groups": (2, 4), "roberta": (4, 4)}[name]
    ranks = study.results[StudyCell("order iterative", PRETRAINING, 0)].metrics["ranks"]
    assert np.shape(ranks) == shape
    assert sorted(np.ravel(ranks)) == list(range(np.prod(shape)))
    mask = study.head_mask("importance 0.5")
    assert mask.shape == (4, 4)
    assert mask.sum() == 8
    losses = study.curve("iterative").mean
    pruned = study.results[StudyCell("importance 0.5", PRETRAINING, 0)].metrics["loss"]
    assert pruned == pytest.approx(losses[1], rel=1e-5)
    found = Numbers(study).coherences[PRETRAINING, "sst2"]
    assert len(found.overlap) == np.prod(shape)
    assert Numbers(study).heat_maps()["pre-training"].shape == (4, 4)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--task", "nothing"], "`task` must be one of"),
        (["--task", "mlqa"], "`task` must be one of"),
        (["--shares", "0.5", "1.5"], "`shares` must be a finite number at least 0"),
        (["--tuned-shares", "nan"], "`tuned_shares` must be a finite number"),
        (["--set", "order=random"], "`order` must be one of iterative, one_shot"),
        (["--set", "held_out_every=1"], "`held_out_every` must be"),
        (["--set", "num_random_orders=0"], "`num_random_orders` must be an int"),
        (["--set", "nothing=0"], "The settings of a study has no field `nothing`"),
        (["--seed", "-1"], "`seed` must be an int of at least 0"),
        (["--first-layers", "3"], "`first_layers` must be below the layers"),
        (["--set", "sequence_length=64"], "`sequence_length` must not be beyond"),
        (["--set", "num_loss_examples=90000"], "`corpus` must have enough held-out"),
        (["--corpus", "{empty}"], "{empty}"),
        (["--corpus", "{tmp_path}/none"], "{tmp_path}/none"),
        (["--data-dir", "{tmp_path}"], "`data_dir` must hold SST-2/train.tsv"),
        (["--data-dir", "{unlabelled}"], "with the columns sentence, label"),
        (["--student", "{tmp_path}"], "{tmp_path}"),
    ],
)
def test_bad_input_is_one_sentence(places, tmp_path, capsys, arguments, words):
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "unlabelled" / "SST-2").mkdir(parents=True)
    for split in ("train", "dev"):
        file = tmp_path / "unlabelled" / "SST-2" / f"{split}.tsv"
        file.write_text("sentence\nthe sea\n")
    names = {
        "tmp_path": tmp_path,
        "empty": tmp_path / "empty.txt",
        "unlabelled": tmp_path / "unlabelled",
    }
    arguments = [each.format(**names) for each in arguments]
    command = ["heads", "study", str(places["model"])]
    command += ["--corpus", str(places["corpus"]), "--data-dir", str(places["data"])]
    command += ["--task", "sst2", "--set", "sequence_length=16"]
    command += ["--set", "held_out_every=2", "--set", "num_loss_examples=16"]
    command += ["--set", "num_importance_examples=16"]
    out = tmp_path / "out"
    assert cli.main([*command, *arguments, "--output-dir", str(out)]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("keras-minilmv2: ")
    assert words.format(**names) in error
    assert not out.exists()


def test_a_model_without_its_head_and_several_models_are_refused(
    places, tmp_path, capsys
):
    rest = ["--corpus", str(places["corpus"]), "--data-dir", str(places["data"])]
    rest += ["--task", "sst2", "--output-dir", str(tmp_path / "out")]
    model, teacher = str(places["model"]), str(places["teacher"])
    assert cli.main(["heads", "study", teacher, *rest]) == 2
    error = capsys.readouterr().err
    assert "as `keras-minilmv2 pretrain` writes it" in error
    assert teacher in error
    assert cli.main(["heads", "study", model, teacher, *rest]) == 2
    assert "`model` must be one model; others" in capsys.readouterr().err
    electra, tokenizer = tmp_path / "electra", make_tokenizer("Electra")
    vocab_size = tokenizer.vocabulary_size()
    save_student(make_backbone("electra", vocab_size=vocab_size), tokenizer, electra)
    assert cli.main(["heads", "study", str(electra), *rest]) == 2
    assert f"masked tokens. Received: model={electra}, ELECTRA." in (
        capsys.readouterr().err
    )
    assert not (tmp_path / "out").exists()


def test_no_task_is_refused():
    with pytest.raises(ValueError, match="`task` must have a value"):
        StudySettings(task=())
