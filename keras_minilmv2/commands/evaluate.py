"""`keras-minilmv2 evaluate`."""

from keras_minilmv2.commands.parsing import add_command, add_overwrite


def add(commands):
    """Adds the command to a parser."""
    command = add_command(
        commands,
        "evaluate",
        run,
        "score a fine-tuned model; predictions as GLUE wants them",
        """
  keras-minilmv2 evaluate out/sst2 --data-dir glue_data
  keras-minilmv2 evaluate out/sst2 --data-dir glue_data --split test \\
      --output-dir out/sst2_test""",
    )
    command.add_argument("model", help="a directory that finetune wrote")
    command.add_argument("--task", help="default: the task of the model")
    command.add_argument("--split", help="default: the task's dev split")
    command.add_argument(
        "--data-dir", metavar="DIR", help="the task's published files; default: TFDS"
    )
    command.add_argument("--tfds-data-dir", metavar="DIR")
    command.add_argument("--output-dir", metavar="DIR")
    add_overwrite(command, "the evaluation that the output directory holds")


def run(options):
    """Evaluates a model."""
    from keras_minilmv2.fine_tuning_runs import evaluate_model

    print(
        evaluate_model(
            options.model,
            options.task,
            data_dir=options.data_dir,
            tfds_data_dir=options.tfds_data_dir,
            split=options.split,
            output_dir=options.output_dir,
            overwrite=options.overwrite,
        )
    )
