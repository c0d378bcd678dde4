"""`keras-minilmv2 info`."""

from keras_minilmv2.commands.parsing import add_command, print_facts


def add(commands):
    """Adds the command to a parser."""
    command = add_command(
        commands,
        "info",
        run,
        "print what a model is and how the papers would distil it",
        """
  keras-minilmv2 info bert_large_en_uncased
  keras-minilmv2 info out/demo/student""",
    )
    command.add_argument("model", help="preset name, hf:// handle or directory")


def run(options):
    """Prints what a model is."""
    from keras_minilmv2.runs.info import model_facts

    print_facts(model_facts(options.model))
