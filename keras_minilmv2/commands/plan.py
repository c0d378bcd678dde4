"""`keras-minilmv2 plan`."""

import json

from keras_minilmv2.commands.parsing import add_assignments, add_command


def add(commands):
    """Adds the command to a parser."""
    command = add_command(
        commands,
        "plan",
        run,
        "estimate what a run will cost before it is started",
        """
  keras-minilmv2 plan recipes/bert_base_l6_h384.py
  keras-minilmv2 plan recipes/bert_base_l6_h384.py --device 8xa100
  keras-minilmv2 plan recipes/demo.py --memory 8 --set batch_size=64""",
    )
    command.add_argument(
        "recipe", help="a .py file that sets `recipe`, or a .json file"
    )
    command.add_argument(
        "--device",
        metavar="NAME",
        help="an accelerator such as a100, 8xv100 or tpu-v3-8; default: this machine, "
        "whose speed is measured",
    )
    command.add_argument(
        "--memory",
        type=float,
        metavar="GB",
        help="memory of a device; default: what is known of it",
    )
    command.add_argument("--json", action="store_true", help="print JSON")
    add_assignments(command)


def run(options):
    """Prints operations, memory and hours of a recipe."""
    from keras_minilmv2.planning.plan import plan, plan_text
    from keras_minilmv2.runs.recipes import load_recipe

    recipe = load_recipe(options.recipe).override(options.assignments)
    result = plan(recipe, device=options.device, memory_gb=options.memory)
    print(json.dumps(result, indent=2) if options.json else plan_text(result))
