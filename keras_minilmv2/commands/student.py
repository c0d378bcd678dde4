"""`keras-minilmv2 student`."""

from keras_minilmv2.commands.parsing import add_assignments, add_command


def add(commands):
    """Adds the command to a parser."""
    command = add_command(
        commands,
        "student",
        run,
        "write a recipe's student as it is before training, to compare with",
        """
  keras-minilmv2 student recipes/demo.py --output-dir out/untrained \\
      --set student_initialization=random
  keras-minilmv2 student recipes/demo.py --truncated-teacher \\
      --output-dir out/truncated""",
    )
    command.add_argument(
        "recipe", help="a .py file that sets `recipe`, or a .json file"
    )
    command.add_argument("--output-dir", required=True, metavar="DIR")
    command.add_argument(
        "--truncated-teacher",
        action="store_true",
        help="the teacher's own first layers, as many as the student has",
    )
    add_assignments(command)


def run(options):
    """Writes a student."""
    from keras_minilmv2.runs.models import write_student
    from keras_minilmv2.runs.recipes import load_recipe
    from keras_minilmv2.runs.report import describe

    recipe = load_recipe(options.recipe).override(options.assignments)
    student = write_student(recipe, options.output_dir, options.truncated_teacher)
    print(f"Written: {options.output_dir}, {describe(student)}")
