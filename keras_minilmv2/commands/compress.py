"""`keras-minilmv2 compress`."""

from keras_minilmv2.commands.parsing import add_command, add_overwrite, add_task_data


def add(commands):
    """Adds the command to a parser."""
    command = add_command(
        commands,
        "compress",
        run,
        "make a fine-tuned model smaller and faster by removing heads and neurons",
        """
  keras-minilmv2 compress out/sst2 --data-dir glue_data --speedup 2 \\
      --output-dir out/sst2_small
  keras-minilmv2 compress out/sst2 --data-dir glue_data --speedup 3 --epochs 1 \\
      --output-dir out/sst2_smaller
  keras-minilmv2 compress out/sst2 --data-dir glue_data --budget parameters \\
      --speedup 4 --output-dir out/sst2_quarter""",
    )
    command.add_argument("model", help="what `finetune` wrote")
    command.add_argument(
        "--task", help="default: the one that the model was fine-tuned on"
    )
    add_task_data(command)
    command.add_argument("--output-dir", required=True, metavar="DIR")
    command.add_argument(
        "--speedup",
        type=float,
        default=2.0,
        metavar="TIMES",
        help="how many times as fast, or as small; default: %(default)g",
    )
    command.add_argument(
        "--budget",
        default="latency",
        help="latency (measured here), operations or parameters; default: %(default)s",
    )
    command.add_argument(
        "--latency-batch-size",
        type=int,
        default=32,
        metavar="N",
        help="sequences at a time whose speed counts; default: %(default)s",
    )
    command.add_argument(
        "--latency-length",
        type=int,
        default=128,
        metavar="TOKENS",
        help="of these sequences; default: %(default)s",
    )
    command.add_argument("--heads-only", action="store_true", help="keep all neurons")
    command.add_argument(
        "--num-calibration-examples",
        type=int,
        default=2_048,
        metavar="N",
        help="training examples of the search; default: %(default)s",
    )
    command.add_argument(
        "--num-rounds",
        type=int,
        default=3,
        metavar="N",
        help="steps to the asked speed; importance is computed again before each; "
        "default: %(default)s",
    )
    command.add_argument(
        "--no-least-squares",
        dest="least_squares",
        action="store_false",
        help="remove heads and neurons alone",
    )
    command.add_argument("--seed", type=int, default=0, metavar="N")
    command.add_argument(
        "--epochs",
        type=int,
        default=0,
        metavar="N",
        help="of fine-tuning afterwards, with the given model as teacher; default: 0",
    )
    command.add_argument(
        "--learning-rate", type=float, default=5e-5, metavar="RATE", help="of it"
    )
    command.add_argument("--batch-size", type=int, metavar="N", help="of it")
    command.add_argument(
        "--num-train-examples", type=int, metavar="N", help="of it; default: all"
    )
    command.add_argument(
        "--distill",
        type=float,
        default=0.5,
        metavar="SHARE",
        help="of its loss, how much compares with the teacher; default: %(default)g",
    )
    command.add_argument(
        "--relation-weight",
        type=float,
        default=0.0,
        metavar="WEIGHT",
        help="of the relation loss against the teacher, added to it; default: "
        "%(default)g, none",
    )
    add_overwrite(command)


def run(options):
    """Compresses a model."""
    from keras_minilmv2.runs.compress import CompressionSettings, compress

    settings = CompressionSettings(
        **{
            name: getattr(options, name)
            for name in CompressionSettings.field_types()
            if hasattr(options, name)
        }
    )
    compress(
        options.model,
        options.output_dir,
        settings,
        task=options.task,
        data_dir=options.data_dir,
        tfds_data_dir=options.tfds_data_dir,
        overwrite=options.overwrite,
    )
    print(f"Written: {options.output_dir}/model, {options.output_dir}/report.md")
