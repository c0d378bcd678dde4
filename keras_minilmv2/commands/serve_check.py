"""`keras-minilmv2 serve-check`."""

from keras_minilmv2.commands.parsing import add_command


def add(commands):
    """Adds the command to a parser."""
    command = add_command(
        commands,
        "serve-check",
        run,
        "load an export in a fresh process and compare its answers with Keras'",
        """
  keras-minilmv2 serve-check serving/mine""",
    )
    command.add_argument("directory", help="an export, or the directory of versions")


def run(options):
    """Checks an export."""
    from keras_minilmv2.serving.serve_check import serve_check

    serve_check(options.directory)
