"""`keras-minilmv2 shrink-vocabulary`."""

from keras_minilmv2.commands.parsing import add_command, add_overwrite


def add(commands):
    """Adds the command to a parser."""
    command = add_command(
        commands,
        "shrink-vocabulary",
        run,
        "keep the pieces of a vocabulary that a corpus uses",
        """
  keras-minilmv2 shrink-vocabulary xlm_roberta_base_multi --corpus en.txt de.txt \\
      --output-dir out/en_de --held-out held_out_en.txt""",
    )
    command.add_argument("model", help="preset name, hf:// handle or directory")
    command.add_argument(
        "--corpus", nargs="+", required=True, help="files, directories, globs, -"
    )
    command.add_argument("--output-dir", required=True, metavar="DIR")
    command.add_argument(
        "--min-count",
        type=int,
        default=1,
        metavar="N",
        help="pieces that occur less often are dropped; default: %(default)s",
    )
    command.add_argument(
        "--held-out",
        nargs="+",
        default=[],
        metavar="TEXT",
        help="texts to count unknown pieces in, before and after",
    )
    command.add_argument(
        "--corpus-characters",
        action="store_true",
        help="drop single characters, too, that the corpus does not have",
    )
    add_overwrite(command, "what the output directory holds")


def run(options):
    """Makes a vocabulary smaller and prints what became of it."""
    from keras_minilmv2.runs.shrink import shrink
    from keras_minilmv2.utils.tables import markdown_table

    rows = shrink(
        options.model,
        options.corpus,
        options.output_dir,
        min_count=options.min_count,
        all_characters=not options.corpus_characters,
        held_out=options.held_out,
        overwrite=options.overwrite,
    )
    print(markdown_table(["", "before", "after"], rows))
    print(f"Written: {options.output_dir}")
