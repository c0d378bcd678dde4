"""`keras-minilmv2 pretrain`: masked language modelling of a recipe's student."""

from keras_minilmv2.commands.distill import run_recipe
from keras_minilmv2.commands.parsing import (
    add_assignments,
    add_command,
    add_overwrite,
)


def add(commands):
    """Adds the command to a parser."""
    command = add_command(
        commands,
        "pretrain",
        run,
        "train a recipe's student by masked language modelling, without its teacher: "
        "from random weights unless --set student_initialization=... is given",
        """
  keras-minilmv2 pretrain recipes/bert_base_l6_h384.py --output-dir out/l6_h384_mlm
  keras-minilmv2 pretrain recipes/demo.py --whole-words --output-dir out/mine_mlm \\
      --set corpus=my_texts --set total_steps=1000""",
    )
    command.add_argument(
        "recipe", help="a .py file that sets `recipe`, or a .json file"
    )
    command.add_argument("--output-dir", required=True, metavar="DIR")
    command.add_argument(
        "--whole-words",
        action="store_true",
        help="mask all tokens of a word; short for --set whole_words=true",
    )
    add_assignments(command)
    add_overwrite(command)


def run(options):
    """Pre-trains the student of a recipe."""
    from keras_minilmv2.distillation.objectives import objective_for
    from keras_minilmv2.runs.recipes import load_recipe

    # Without the teacher, also for the student's first weights, unless --set asks.
    changes = ["student_initialization=random", "objective=masked_tokens"]
    recipe = load_recipe(options.recipe).override([*changes, *options.assignments])
    objective_for(recipe.objective, lambda each: not each.needs_teacher, "to pre-train")
    if options.whole_words:
        recipe = recipe.override(["whole_words=true"])
    run_recipe(recipe, options)
