"""A recipe: everything that decides what one run does."""

from dataclasses import InitVar, dataclass, field

from keras_minilmv2.distillation.head_weights import check_relation_head_weights
from keras_minilmv2.distillation.initialization import Initialization
from keras_minilmv2.distillation.objectives import OBJECTIVES, objective_for
from keras_minilmv2.runs.settings import Settings
from keras_minilmv2.utils.checks import check_choice, check_int, check_number

DTYPE_POLICIES = ("float32", "mixed_bfloat16", "mixed_float16")
_OLD_FIELDS = {
    "student_teacher_layers": tuple[int, ...] | None,
    "student_preset": str | None,
}


@dataclass(frozen=True, kw_only=True)
class Recipe(Settings):
    """Settings of one distillation run.

    A recipe file is a Python file that sets `recipe = Recipe(...)`, or the JSON file
    that a run leaves behind. Fields without a default must be given: a misspelt or
    missing one is an error that names it.

    Args:
        teacher: str. Preset name, `hf://` handle or directory.
        teacher_layer: int, from 1. The layer whose relations are distilled.
        student_num_layers: int.
        student_num_heads: int.
        student_hidden_dim: int.
        student_intermediate_dim: int.
        student_embedding_dim: int or None. For ALBERT and ELECTRA.
        student_initialization: str. `"random"`; `"layers"` or `"projection"`, also with
            the teacher's layers as in `"layers:1,3,6"`; or `"preset:PATH"`, an earlier
            student of the shape above, named as `teacher` is.
        student_teacher_layers: tuple of int or None. Only in older recipes; becomes
            part of `student_initialization`.
        student_preset: str or None. Only in older recipes; likewise.
        student_dropout: float.
        objective: str. What the student learns: `"relations"`, or, to compare with,
            `"attention_values"` (MiniLM v1), `"hidden_states"` or `"masked_tokens"`
            (no teacher).
        num_relation_heads: int.
        relation_weights: dict of float by pair of letters q, k, v.
        relation_head_weights: tuple of float or None. One for each relation head, for
            `"relations"`; only their ratios matter. See
            `keras_minilmv2.relation_head_weights`, which computes them.
        whole_words: bool. Whether `"masked_tokens"` masks whole words.
        corpus: tuple of str. Files, directories, globs, `-`, or `tfds:` data sets.
        document_separator: str. `"blank_line"`, `"line"` or `"file"`.
        decode_errors: str. `"strict"` or `"replace"`.
        tfds_data_dir: str or None. Where TFDS keeps its data sets.
        sequence_length: int, tokens.
        batch_size: int, sequences, global.
        held_out_every: int. Every N-th chunk of the corpus is held out.
        held_out_examples: int, sequences that the held-out loss is computed on.
        peak_learning_rate: float.
        warmup_steps: int, optimizer updates.
        total_steps: int, optimizer updates.
        weight_decay: float. Not on biases and norms.
        beta_1: float.
        beta_2: float.
        epsilon: float.
        gradient_clip_norm: float or None.
        log_every: int, optimizer updates between two lines of history.csv.
        evaluate_every: int, optimizer updates between two held-out losses.
        keep_every: int, optimizer updates between two students that are kept in
            `kept/`, or None to keep none; a multiple of `evaluate_every`.
        checkpoint_every: int, optimizer updates between two checkpoints.
        strategy: str. Devices: `"auto"`, `"one_device"`, `"mirrored"`,
            `"multi_worker"`, `"tpu"` or `"tpu:NAME"`.
        steps_per_execution: int. Optimizer updates per call of the compiled step;
            must divide all numbers of updates above.
        accumulation_steps: int. Micro-batches that a replica's batch is cut into, to
            save memory.
        dtype_policy: str. `"float32"`, `"mixed_bfloat16"` or `"mixed_float16"`.
        seed: int. Of the drawn weights, the dropout and the order of the data.
    """

    # Teacher.
    teacher: str
    teacher_layer: int
    # Student.
    student_num_layers: int
    student_num_heads: int
    student_hidden_dim: int
    student_intermediate_dim: int
    student_embedding_dim: int | None = None
    student_initialization: str = "random"
    student_teacher_layers: InitVar[tuple[int, ...] | None] = None
    student_preset: InitVar[str | None] = None
    student_dropout: float = 0.1
    # Objective.
    objective: str = "relations"
    num_relation_heads: int
    relation_weights: dict[str, float] = field(
        default_factory=lambda: {"qq": 1.0, "kk": 1.0, "vv": 1.0}
    )
    relation_head_weights: tuple[float, ...] | None = None
    whole_words: bool = False
    # Data.
    corpus: tuple[str, ...]
    document_separator: str = "blank_line"
    decode_errors: str = "strict"
    tfds_data_dir: str | None = None
    sequence_length: int
    batch_size: int
    held_out_every: int = 100
    held_out_examples: int = 256
    # Optimizer.
    peak_learning_rate: float
    warmup_steps: int
    total_steps: int
    weight_decay: float = 0.01
    beta_1: float = 0.9
    beta_2: float = 0.999
    epsilon: float = 1e-6
    gradient_clip_norm: float | None = 1.0
    # Run.
    log_every: int = 50
    evaluate_every: int = 1_000
    keep_every: int | None = None
    checkpoint_every: int = 1_000
    strategy: str = "auto"
    steps_per_execution: int = 1
    accumulation_steps: int = 1
    dtype_policy: str = "float32"
    seed: int = 0

    def __post_init__(self, student_teacher_layers, student_preset):
        if isinstance(self.student_initialization, str):
            initialization = Initialization.from_fields(
                self.student_initialization, student_teacher_layers, student_preset
            )
            object.__setattr__(self, "student_initialization", str(initialization))
        super().__post_init__()

    @property
    def initialization(self):
        """The `Initialization` that `student_initialization` describes."""
        return Initialization.parse(self.student_initialization)

    @classmethod
    def field_types(cls, names=()):
        """As for `Settings`; fields of older recipes are known but not listed."""
        old = {name: _OLD_FIELDS[name] for name in names if name in _OLD_FIELDS}
        return super().field_types([name for name in names if name not in old]) | old

    def check(self):
        """Raises unless all values are in their ranges and fit together."""
        check_int(
            batch_size=self.batch_size,
            total_steps=self.total_steps,
            log_every=self.log_every,
            evaluate_every=self.evaluate_every,
            checkpoint_every=self.checkpoint_every,
            steps_per_execution=self.steps_per_execution,
            accumulation_steps=self.accumulation_steps,
            held_out_examples=self.held_out_examples,
            held_out_every=self.held_out_every,
        )
        check_int(least=0, warmup_steps=self.warmup_steps)
        check_int(least=0, below=2**32, seed=self.seed)
        check_number(above=0, peak_learning_rate=self.peak_learning_rate)
        check_number(above=0, epsilon=self.epsilon)
        check_number(least=0, weight_decay=self.weight_decay)
        check_number(
            least=0,
            below=1,
            beta_1=self.beta_1,
            beta_2=self.beta_2,
            student_dropout=self.student_dropout,
        )
        if self.gradient_clip_norm is not None:
            check_number(above=0, gradient_clip_norm=self.gradient_clip_norm)
        for name in ("total_steps", "log_every", "evaluate_every", "checkpoint_every"):
            if getattr(self, name) % self.steps_per_execution != 0:
                raise ValueError(
                    f"`steps_per_execution` must divide `{name}`. Received: "
                    f"steps_per_execution={self.steps_per_execution}, "
                    f"{name}={getattr(self, name)}."
                )
        if self.batch_size % self.accumulation_steps != 0:
            raise ValueError(
                "`accumulation_steps` must divide `batch_size`. Received: "
                f"accumulation_steps={self.accumulation_steps}, "
                f"batch_size={self.batch_size}."
            )
        kept = self.keep_every
        if kept is not None and (kept < 1 or kept % self.evaluate_every != 0):
            raise ValueError(
                "`keep_every` must be a multiple of `evaluate_every`, or None. "
                f"Received: keep_every={kept}, evaluate_every={self.evaluate_every}."
            )
        check_choice(DTYPE_POLICIES, dtype_policy=self.dtype_policy)
        check_choice(OBJECTIVES, objective=self.objective)
        if self.relation_head_weights is not None:
            objective_for(
                self.objective,
                lambda each: each.weighs_heads,
                "to weigh relation heads",
            )
            check_relation_head_weights(
                self.relation_head_weights, self.num_relation_heads
            )


def load_recipe(path):
    """Reads a recipe file.

    Args:
        path: str or path of a `.py` file that sets `recipe`, or of a `.json` file.

    Returns:
        `Recipe`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds no recipe, or a field is unknown or missing.
        TypeError: if a field has a value of the wrong type.
    """
    return Recipe.load_recipe(path)
