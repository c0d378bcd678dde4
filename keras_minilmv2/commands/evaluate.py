"""`keras-minilmv2 evaluate`."""

from keras_minilmv2.commands.parsing import add_command, add_overwrite, add_task_data


def add(commands):
    """Adds the command to a parser."""
    command = add_command(
        commands,
        "evaluate",
        run,
        "score a fine-tuned model; predictions in the official formats",
        """
  keras-minilmv2 evaluate out/sst2 --data-dir glue_data
  keras-minilmv2 evaluate out/sst2 --data-dir glue_data --split test \\
      --output-dir out/sst2_test
  keras-minilmv2 evaluate out/squad1 --task mlqa --data-dir MLQA_V1 \\
      --languages en de""",
    )
    command.add_argument("model", help="a directory that finetune wrote")
    command.add_argument(
        "--task", help="default: the task of the model; mlqa for a model of squad1"
    )
    command.add_argument("--split", help="default: the task's dev split")
    add_task_data(command)
    command.add_argument("--output-dir", metavar="DIR")
    command.add_argument(
        "--languages",
        nargs="+",
        metavar="CODE",
        help="of mlqa; default: all that there are files of",
    )
    command.add_argument(
        "--num-examples",
        type=int,
        metavar="N",
        help="score N examples of each language, drawn once; default: all",
    )
    command.add_argument(
        "--strict",
        action="store_true",
        help="of squad1, squad2 and mlqa: an answer that is not at its answer_start is "
        "an error",
    )
    add_overwrite(command, "the evaluation that the output directory holds")


def run(options):
    """Evaluates a model."""
    from keras_minilmv2.runs.evaluate import evaluate_model

    evaluation = evaluate_model(
        options.model,
        options.task,
        data_dir=options.data_dir,
        tfds_data_dir=options.tfds_data_dir,
        split=options.split,
        output_dir=options.output_dir,
        num_examples=options.num_examples,
        languages=options.languages,
        strict=options.strict,
        overwrite=options.overwrite,
    )
    print(evaluation)
