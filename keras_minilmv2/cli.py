"""The command line: parse, call, print."""

import argparse
import io
import os
import sys
import tempfile

from keras_minilmv2.commands import (
    compress,
    demo,
    distill,
    evaluate,
    export,
    finetune,
    heads,
    info,
    layers,
    plan,
    prepare,
    pretrain,
    serve_check,
    shrink_vocabulary,
    student,
)
from keras_minilmv2.version import __version__

# They import TensorFlow, which takes seconds, when they run: `--help` does not wait.
COMMANDS = (
    demo,
    info,
    plan,
    prepare,
    distill,
    pretrain,
    student,
    layers,
    finetune,
    evaluate,
    compress,
    heads,
    shrink_vocabulary,
    export,
    serve_check,
)


def main(arguments=None):
    """Runs one command.

    Args:
        arguments: list of str. Defaults to the command line's.

    Returns:
        int. 0 when all went well, 1 when a run diverged or something unexpected
        happened, 2 for bad input, 130 when interrupted.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    for stream in (sys.stdout, sys.stderr):
        # The name of a file may be no UTF-8.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        _start_tensorflow()
        options.run(options)
    except KeyboardInterrupt:
        print("\nkeras-minilmv2: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of a pipe has what it wanted.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if options.traceback:
            raise
        message, code = _message_and_code(error)
        print(f"keras-minilmv2: {message}", file=sys.stderr)
        return code
    return 0


# Lines of an error of TensorFlow that come before what went wrong.
_OF_GRAPH = ("Graph execution error", "Detected at node")


def _message_and_code(error):
    """One line for an error, and the exit code."""
    import tensorflow as tf

    text = " ".join(str(error).split())
    if isinstance(error, ValueError | TypeError | OSError | ImportError) and text:
        return text, 2
    if isinstance(error, RuntimeError) and text:
        return text, 1
    name = type(error).__name__
    if isinstance(error, tf.errors.OpError):
        # The rest of the message is the graph that it happened in, and where.
        lines = [line for line in error.message.splitlines() if line[:1].strip(" \t<")]
        lines = [line for line in lines if not line.startswith(_OF_GRAPH)] or [name]
        return f"TensorFlow refused the input or ran out of a resource: {lines[0]}", 2
    if isinstance(error, MemoryError):
        return f"The memory of this machine is too small. {text}".rstrip(), 2
    return f"{name}: {text or 'no message'} (--traceback shows where)", 1


def _parser():
    parser = argparse.ArgumentParser(
        prog="keras-minilmv2",
        description="Compress BERT, RoBERTa and XLM-R encoders by MiniLMv2 "
        "self-attention relation distillation.",
        epilog="example: keras-minilmv2 demo --output-dir out/demo",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add(commands)
    return parser


# Notes on the machine that TensorFlow prints, whatever its log level, where nothing
# is wrong: no GPU is one of them.
_NOTES = ("I0000 ", "WARNING: All log messages before", "failed call to cuInit")


def _start_tensorflow():
    """Imports TensorFlow and finds its devices without its notes on standard error."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as notes:
        os.dup2(notes.fileno(), 2)
        try:
            import tensorflow as tf

            # Not the logical ones: several workers must be set up before those.
            tf.config.list_physical_devices()
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            notes.seek(0)
            for line in notes.read().decode(errors="replace").splitlines():
                if not any(note in line for note in _NOTES):
                    print(line, file=sys.stderr)
