"""`keras-minilmv2 finetune`."""

from pathlib import Path

from keras_minilmv2.commands.parsing import add_command, add_overwrite, add_task_data


def add(commands):
    """Adds the command to a parser."""
    command = add_command(
        commands,
        "finetune",
        run,
        "fine-tune an encoder on a GLUE task, XNLI or SQuAD",
        """
  keras-minilmv2 finetune out/mine/student --task sst2 --data-dir glue_data \\
      --output-dir out/sst2
  keras-minilmv2 finetune out/mine/student --task rte --grid --seed 0 1 2 3 \\
      --output-dir out/rte
  keras-minilmv2 finetune out/mine/student --task squad1 --data-dir squad \\
      --output-dir out/squad1""",
    )
    command.add_argument("model", help="preset name, hf:// handle or directory")
    command.add_argument(
        "--task",
        required=True,
        help="cola, sst2, mrpc, stsb, qqp, mnli, qnli, rte, xnli, squad1 or squad2",
    )
    add_task_data(command)
    command.add_argument("--output-dir", required=True, metavar="DIR")
    command.add_argument(
        "--grid",
        action="store_true",
        help="the paper's learning rates and epochs, where they are not given",
    )
    command.add_argument("--learning-rate", type=float, nargs="+", metavar="RATE")
    command.add_argument("--epochs", type=int, nargs="+", metavar="N")
    command.add_argument("--seed", type=int, nargs="+", default=[0], metavar="N")
    command.add_argument("--batch-size", type=int, metavar="N")
    command.add_argument("--sequence-length", type=int, metavar="TOKENS")
    command.add_argument(
        "--doc-stride",
        type=int,
        metavar="TOKENS",
        help="of SQuAD: from one window of a context to the next; default: 128",
    )
    command.add_argument(
        "--num-train-examples", type=int, metavar="N", help="default: all"
    )
    command.add_argument(
        "--strict",
        action="store_true",
        help="of SQuAD: an answer that is not at its answer_start is an error",
    )
    command.add_argument(
        "--dtype-policy", default="float32", help="of training; default: %(default)s"
    )
    add_overwrite(command)


def run(options):
    """Fine-tunes a model."""
    from keras_minilmv2.runs.fine_tune import fine_tune

    settings = {
        name: getattr(options, name)
        for name in (
            *("learning_rate", "epochs", "seed", "grid"),
            *("batch_size", "sequence_length", "doc_stride", "strict"),
            *("num_train_examples", "dtype_policy"),
        )
    }
    fine_tune(
        options.model,
        options.task,
        options.output_dir,
        data_dir=options.data_dir,
        tfds_data_dir=options.tfds_data_dir,
        overwrite=options.overwrite,
        **settings,
    )
    directory = Path(options.output_dir)
    print(f"Written: {directory / 'model'}, {directory / 'report.md'}")
