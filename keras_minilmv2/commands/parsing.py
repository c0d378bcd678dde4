"""What the parsers of the commands share."""

import argparse


def add_command(commands, name, run, summary, examples):
    """Adds the parser of a command.

    Args:
        commands: what `add_subparsers` gave.
        name: str.
        run: function of the parsed options.
        summary: str. A line that begins in lower case.
        examples: str. Lines to be shown as they are.
    """
    command = commands.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog="examples:" + examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(run=run)
    command.add_argument(
        "--traceback", action="store_true", help="show where an error came from"
    )
    return command


def add_group(commands, name, summary):
    """Adds a parser that has commands of its own; returns where they are added."""
    group = commands.add_parser(
        name, help=summary, description=summary[0].upper() + summary[1:] + "."
    )
    return group.add_subparsers(required=True, metavar="COMMAND")


def add_overwrite(command, what="the run that the output directory holds"):
    """Adds `--overwrite`."""
    command.add_argument("--overwrite", action="store_true", help=f"replace {what}")


def add_task_data(command):
    """Adds `--data-dir` and `--tfds-data-dir`."""
    command.add_argument(
        "--data-dir", metavar="DIR", help="the published files; default: TFDS"
    )
    command.add_argument(
        "--tfds-data-dir", metavar="DIR", help="where TFDS keeps its data"
    )


def add_assignments(command, what="the recipe"):
    """Adds `--set`."""
    command.add_argument(
        "--set",
        action="append",
        default=[],
        dest="assignments",
        metavar="FIELD=VALUE",
        help=f"change one field of {what}; may be repeated",
    )


def print_facts(facts):
    """Prints pairs of a name and a value, the values below each other."""
    width = max(len(name) for name, _ in facts)
    for name, value in facts:
        print(f"{name:<{width}}  {value}")
