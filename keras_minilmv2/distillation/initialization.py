"""How a student is initialized: one setting, written as text in a recipe."""

from dataclasses import dataclass

from keras_minilmv2.utils.checks import check_choice

KINDS = ("random", "layers", "projection", "preset")
_WITH_LAYERS = ("layers", "projection")
_FORMS = "random, layers, layers:1,3,6, projection, projection:1,3,6 or preset:PATH"


@dataclass(frozen=True)
class Initialization:
    """How a student is initialized.

    | text | the student's weights |
    |---|---|
    | `random` | drawn |
    | `layers`, `layers:1,3,6` | the teacher's; by default evenly spaced |
    | `projection`, `projection:1,3,6` | such layers, projected to the student's width |
    | `preset:PATH` | those of an earlier student of the same shape |

    Args:
        kind: str. `"random"`, `"layers"`, `"projection"` or `"preset"`.
        teacher_layers: tuple of int, from 1, or None. Layers of the teacher, one for
            each of the student's, for `"layers"` and `"projection"`.
        preset: str or None. Preset name, `hf://` handle or directory, for `"preset"`.

    Raises:
        ValueError: if there is no such kind, or an argument does not belong to it.
    """

    kind: str = "random"
    teacher_layers: tuple[int, ...] | None = None
    preset: str | None = None

    def __post_init__(self):
        check_choice(KINDS, student_initialization=self.kind)
        wrong_layers = self.teacher_layers is not None and (
            self.kind not in _WITH_LAYERS
            or not self.teacher_layers
            or any(type(n) is not int or n < 1 for n in self.teacher_layers)
        )
        if wrong_layers or bool(self.preset) != (self.kind == "preset"):
            raise _wrong(
                self.kind,
                teacher_layers=self.teacher_layers,
                preset=self.preset,
            )

    @classmethod
    def parse(cls, text):
        """Reads the text of a recipe's `student_initialization`.

        Args:
            text: str.

        Returns:
            `Initialization`.

        Raises:
            ValueError: if the text has none of the forms above.
        """
        kind, colon, rest = text.strip().partition(":")
        if kind not in KINDS or (colon and kind == "random"):
            raise _wrong(text)
        if kind == "preset":
            return cls(kind, preset=rest.strip())
        if not colon:
            return cls(kind)
        try:
            return cls(kind, tuple(int(number) for number in rest.split(",")))
        except ValueError:
            raise _wrong(text) from None

    @classmethod
    def from_fields(cls, initialization="random", teacher_layers=None, preset=None):
        """Joins the three fields of older recipes into one setting.

        Args:
            initialization: str. `student_initialization`, in either form.
            teacher_layers: sequence of int or None. `student_teacher_layers`; it had no
                effect on `"random"` and `"preset"`.
            preset: str or None. `student_preset`.

        Raises:
            ValueError: if a preset is given without the kind `"preset"`, or twice.
        """
        if initialization == "preset":
            return cls("preset", preset=preset)
        ours = cls.parse(initialization)
        if preset is not None and preset != ours.preset:
            raise _wrong(initialization, student_preset=preset)
        if teacher_layers is not None and ours.kind in _WITH_LAYERS:
            return cls(ours.kind, tuple(teacher_layers))
        return ours

    def __str__(self):
        """The text that `parse` reads."""
        if self.preset:
            return f"{self.kind}:{self.preset}"
        if self.teacher_layers:
            return f"{self.kind}:{','.join(map(str, self.teacher_layers))}"
        return self.kind

    @property
    def needs_examples(self):
        """Whether the student is fitted to examples of the corpus."""
        return self.kind == "projection"

    @property
    def is_copy(self):
        """Whether weights are copied, so that widths must be the teacher's."""
        return self.kind == "layers"

    def description(self):
        """Words for a report: `"layers 1, 3, 6"`, or the preset."""
        if self.preset:
            return self.preset
        if not self.teacher_layers:
            return self.kind
        numbers = ", ".join(map(str, self.teacher_layers))
        of = "" if self.is_copy else " of layers"
        return f"{self.kind}{of} {numbers}"

    def arguments(self, examples=None, num_relation_heads=None):
        """Arguments of `student_backbone` that this initialization decides.

        The weights of a preset are for the caller to set afterwards.

        Args:
            examples: dict batch of the teacher's inputs, used where `needs_examples`.
            num_relation_heads: int, likewise.

        Returns:
            dict.
        """
        fitted = self.needs_examples
        return {
            "initialization": "random" if self.preset else self.kind,
            "teacher_layers": self.teacher_layers,
            "examples": examples if fitted else None,
            "num_relation_heads": num_relation_heads if fitted else None,
        }


def _wrong(received, **related):
    others = "".join(f", {name}={value!r}" for name, value in related.items() if value)
    return ValueError(
        f"`student_initialization` must be {_FORMS}. "
        f"Received: student_initialization={received!r}{others}."
    )
