"""The command line: parse, call, print."""

import argparse
import os
import sys
import tempfile

from keras_minilmv2.version import __version__


def main(arguments=None):
    """Runs one command.

    Args:
        arguments: list of str. Defaults to the command line's.

    Returns:
        int. 0 when all went well, 1 when a run diverged, 2 for bad input, 130 when
        interrupted.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
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
    except (ValueError, TypeError, OSError, ImportError, RuntimeError) as error:
        if options.traceback:
            raise
        print(f"keras-minilmv2: {' '.join(str(error).split())}", file=sys.stderr)
        return 1 if isinstance(error, RuntimeError) else 2
    return 0


def _parser():
    parser = argparse.ArgumentParser(
        prog="keras-minilmv2",
        description="Compress BERT, RoBERTa and XLM-R encoders by MiniLMv2 "
        "self-attention relation distillation.",
        epilog="example: keras-minilmv2 demo --output-dir out/demo",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    prepare = _command(
        commands,
        "prepare",
        _prepare,
        "tokenize and pack a corpus once, for many runs",
        """
  keras-minilmv2 prepare my_texts more.txt.gz --tokenizer bert_base_en_uncased \\
      --sequence-length 512 --output-dir data/mine
  keras-minilmv2 prepare tfds:wikipedia/20230601.en --runner direct \\
      --tokenizer bert_base_en_uncased --sequence-length 512 --output-dir data/wiki
  keras-minilmv2 distill recipes/bert_base_l6_h384.py --set corpus=data/wiki \\
      --output-dir out/l6_h384""",
    )
    prepare.add_argument(
        "corpus", nargs="+", help="files, directories, globs, - or tfds:NAME"
    )
    prepare.add_argument(
        "--tokenizer",
        required=True,
        metavar="PRESET",
        help="preset name, hf:// handle or directory of the teacher",
    )
    prepare.add_argument("--sequence-length", required=True, type=int, metavar="TOKENS")
    prepare.add_argument("--output-dir", required=True, metavar="DIR")
    prepare.add_argument(
        "--document-separator",
        default="blank_line",
        choices=("blank_line", "line", "file"),
        help="what ends a document within a file; default: %(default)s",
    )
    prepare.add_argument(
        "--decode-errors",
        default="strict",
        choices=("strict", "replace"),
        help="what becomes of bytes that are not UTF-8; default: %(default)s",
    )
    prepare.add_argument(
        "--held-out-every",
        type=int,
        default=100,
        metavar="N",
        help="every N-th piece is held out; default: %(default)s",
    )
    prepare.add_argument("--tfds-data-dir", metavar="DIR")
    prepare.add_argument(
        "--num-workers", type=int, metavar="N", help="default: the number of cores"
    )
    prepare.add_argument(
        "--runner",
        choices=("direct", "flink", "dataflow"),
        help="prepare with Apache Beam, an extra, on this runner",
    )
    prepare.add_argument(
        "--pipeline-option",
        action="append",
        default=[],
        metavar="OPTION",
        help="an option of Apache Beam, such as --flink_master=HOST; may be repeated",
    )
    prepare.add_argument(
        "--overwrite", action="store_true", help="replace what DIR holds"
    )

    distill = _command(
        commands,
        "distill",
        _distill,
        "distil a teacher into a student, as a recipe says",
        """
  keras-minilmv2 distill recipes/bert_base_l6_h384.py --output-dir out/l6_h384
  keras-minilmv2 distill recipes/demo.py --output-dir out/mine \\
      --set corpus=my_texts,more.txt.gz --set total_steps=1000
  zcat dump.gz | keras-minilmv2 distill recipes/demo.py --output-dir out/mine \\
      --set corpus=-""",
    )
    distill.add_argument(
        "recipe", help="a .py file that sets `recipe`, or a .json file"
    )
    distill.add_argument("--output-dir", required=True, metavar="DIR")
    distill.add_argument(
        "--set",
        action="append",
        default=[],
        dest="assignments",
        metavar="FIELD=VALUE",
        help="change one field of the recipe; may be repeated",
    )
    distill.add_argument(
        "--decode-errors",
        choices=("strict", "replace"),
        help="what becomes of bytes that are not UTF-8; short for "
        "--set decode_errors=...",
    )
    _add_overwrite(distill)

    demo = _command(
        commands,
        "demo",
        _demo,
        "distil a real 6-layer teacher in minutes, without a download hub",
        """
  keras-minilmv2 demo --output-dir out/demo
  keras-minilmv2 demo --teacher bert_base_en_uncased --corpus my_texts --steps 1000""",
    )
    demo.add_argument("--output-dir", default="out/demo", metavar="DIR")
    demo.add_argument(
        "--teacher", help="preset name, hf:// handle or directory of a teacher"
    )
    demo.add_argument(
        "--corpus",
        nargs="+",
        help="files, directories, globs, - or tfds:NAME; default: the documentation "
        "of Python's standard library",
    )
    demo.add_argument("--steps", type=int, default=300, help="default: %(default)s")
    _add_overwrite(demo)

    info = _command(
        commands,
        "info",
        _info,
        "say what a model is and how the papers would distil it",
        """
  keras-minilmv2 info bert_large_en_uncased
  keras-minilmv2 info out/demo/student""",
    )
    info.add_argument("model", help="preset name, hf:// handle or directory")
    return parser


def _command(commands, name, run, summary, examples):
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


def _add_overwrite(command):
    command.add_argument(
        "--overwrite",
        action="store_true",
        help="replace the run that the output directory holds",
    )


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


# TensorFlow takes seconds to import: `--help` and bad options do not wait for it.


def _prepare(options):
    from keras_minilmv2.backbones.loading import load_tokenizer
    from keras_minilmv2.data.preparation import prepare
    from keras_minilmv2.data.text import Corpus

    corpus = Corpus(
        options.corpus,
        document_separator=options.document_separator,
        decode_errors=options.decode_errors,
        tfds_data_dir=options.tfds_data_dir,
        held_out_every=options.held_out_every,
    )
    extra = {}
    if options.runner:
        from keras_minilmv2.data.beam import prepare_with_beam as prepare

        extra = {
            "runner": options.runner,
            "pipeline_options": options.pipeline_option,
        }
    manifest = prepare(
        corpus,
        load_tokenizer(options.tokenizer),
        options.sequence_length,
        options.output_dir,
        tokenizer_name=options.tokenizer,
        num_workers=options.num_workers,
        overwrite=options.overwrite,
        report=lambda progress: print(progress, file=sys.stderr),
        **extra,
    )
    for part in ("train", "held_out"):
        print(
            f"{part}: {manifest.num_examples(part):,} examples, "
            f"{manifest.num_tokens(part):,} tokens"
        )
    if corpus.num_decode_errors:
        print(f"Replaced byte sequences: {corpus.num_decode_errors}.")
    print(f"Written: {options.output_dir}")


def _distill(options):
    from keras_minilmv2.recipes import load_recipe
    from keras_minilmv2.runs import distill

    recipe = load_recipe(options.recipe).override(options.assignments)
    if options.decode_errors:
        recipe = recipe.override([f"decode_errors={options.decode_errors}"])
    run = distill(recipe, options.output_dir, overwrite=options.overwrite)
    if not run.finished:
        return
    before, *_, after = run.history.series("held_out_loss")[1]
    print(f"Held-out relation loss: {before:.4f} nats before, {after:.4f} after.")
    print(f"Written: {run.output_dir / 'student'}, {run.output_dir / 'report.md'}")


def _demo(options):
    from keras_minilmv2.demo import run_demo

    run_demo(
        options.output_dir,
        teacher=options.teacher,
        corpus=options.corpus,
        total_steps=options.steps,
        overwrite=options.overwrite,
    )


def _info(options):
    from keras_minilmv2.info import model_facts

    facts = model_facts(options.model)
    width = max(len(name) for name, _ in facts)
    for name, value in facts:
        print(f"{name:<{width}}  {value}")
