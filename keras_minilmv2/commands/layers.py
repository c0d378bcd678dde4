"""`keras-minilmv2 layers`."""

from keras_minilmv2.commands.parsing import add_assignments, add_command, add_task_data


def add(commands):
    """Adds the command to a parser."""
    command = add_command(
        commands,
        "layers",
        run,
        "try which layer of a teacher to distil",
        """
  keras-minilmv2 layers recipes/bert_large_l6_h384.py --task sst2 \\
      --data-dir glue_data --layers 18 19 20 21 22 23 24 --steps 5000 \\
      --set batch_size=32 --set sequence_length=128 --output-dir out/layers
  keras-minilmv2 layers recipes/demo.py --task mrpc --set corpus=my_texts \\
      --output-dir out/layers""",
    )
    command.add_argument(
        "recipe", help="a .py file that sets `recipe`, or a .json file"
    )
    command.add_argument("--output-dir", required=True, metavar="DIR")
    command.add_argument("--task", required=True, help="the probe: a task of GLUE")
    add_task_data(command)
    command.add_argument(
        "--layers", type=int, nargs="+", metavar="N", help="default: the upper half"
    )
    command.add_argument(
        "--steps",
        type=int,
        default=1_000,
        metavar="N",
        help="updates of each layer, the first tenth warm-up; default: %(default)s",
    )
    command.add_argument(
        "--num-train-examples", type=int, default=2_000, metavar="N", help="of the task"
    )
    command.add_argument("--epochs", type=int, default=3, metavar="N")
    command.add_argument("--learning-rate", type=float, default=1e-4, metavar="RATE")
    command.add_argument(
        "--seed", type=int, nargs="+", default=[0, 1], metavar="N", help="of the probe"
    )
    add_assignments(command)


def run(options):
    """Tries layers."""
    from keras_minilmv2.runs.layers import best_trial, choose_layer, trial_table
    from keras_minilmv2.runs.recipes import load_recipe

    recipe = load_recipe(options.recipe).override(
        [
            f"total_steps={options.steps}",
            f"warmup_steps={options.steps // 10}",
            *options.assignments,
        ]
    )
    trials = choose_layer(
        recipe,
        options.output_dir,
        options.task,
        layers=options.layers,
        data_dir=options.data_dir,
        tfds_data_dir=options.tfds_data_dir,
        num_train_examples=options.num_train_examples,
        epochs=options.epochs,
        learning_rate=options.learning_rate,
        seed=options.seed,
    )
    print(trial_table(trials, options.task))
    print(f"Best by the probe: layer {best_trial(trials).layer}.")
    print(f"Written: {options.output_dir}/report.md, {options.output_dir}/curve.png")
