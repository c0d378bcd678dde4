"""`keras-minilmv2 distill`: a recipe's student, trained by its teacher."""

from keras_minilmv2.commands.parsing import (
    add_assignments,
    add_command,
    add_overwrite,
)


def add(commands):
    """Adds the command to a parser."""
    command = add_command(
        commands,
        "distill",
        run,
        "distil a teacher into the student of a recipe",
        """
  keras-minilmv2 distill recipes/bert_base_l6_h384.py --output-dir out/l6_h384
  keras-minilmv2 distill recipes/demo.py --output-dir out/mine \\
      --set corpus=my_texts,more.txt.gz --set total_steps=1000
  zcat dump.gz | keras-minilmv2 distill recipes/demo.py --output-dir out/mine \\
      --set corpus=-""",
    )
    command.add_argument(
        "recipe", help="a .py file that sets `recipe`, or a .json file"
    )
    command.add_argument("--output-dir", required=True, metavar="DIR")
    add_assignments(command)
    command.add_argument(
        "--decode-errors",
        choices=("strict", "replace"),
        help="how bytes that are not UTF-8 are handled; short for "
        "--set decode_errors=...",
    )
    add_overwrite(command)


def run(options):
    """Runs a recipe."""
    from keras_minilmv2.runs.recipes import load_recipe

    recipe = load_recipe(options.recipe).override(options.assignments)
    if options.decode_errors:
        recipe = recipe.override([f"decode_errors={options.decode_errors}"])
    run_recipe(recipe, options)


def run_recipe(recipe, options):
    """Trains the student of a recipe and prints the result."""
    from keras_minilmv2.runs.distill import distill, held_out_summary

    result = distill(recipe, options.output_dir, overwrite=options.overwrite)
    if not result.finished:
        return
    print(held_out_summary(recipe, result.history))
    print(
        f"Written: {result.output_dir / 'student'}, {result.output_dir / 'report.md'}"
    )
