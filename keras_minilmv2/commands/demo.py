"""`keras-minilmv2 demo`."""

from keras_minilmv2.commands.parsing import add_command, add_overwrite


def add(commands):
    """Adds the command to a parser."""
    command = add_command(
        commands,
        "demo",
        run,
        "distil a real 6-layer teacher in minutes, without a download hub",
        """
  keras-minilmv2 demo --output-dir out/demo
  keras-minilmv2 demo --teacher bert_base_en_uncased --corpus my_texts --steps 1000""",
    )
    command.add_argument("--output-dir", default="out/demo", metavar="DIR")
    command.add_argument(
        "--teacher", help="preset name, hf:// handle or directory of a teacher"
    )
    command.add_argument(
        "--corpus",
        nargs="+",
        help="files, directories, globs, - or tfds:NAME; default: the documentation "
        "of Python's standard library",
    )
    command.add_argument("--steps", type=int, default=300, help="default: %(default)s")
    add_overwrite(command)


def run(options):
    """Runs the demo."""
    from keras_minilmv2.runs.demo import run_demo

    run_demo(
        options.output_dir,
        teacher=options.teacher,
        corpus=options.corpus,
        total_steps=options.steps,
        overwrite=options.overwrite,
    )
