"""`keras-minilmv2 prepare`."""

import sys

from keras_minilmv2.commands.parsing import add_command


def add(commands):
    """Adds the command to a parser."""
    command = add_command(
        commands,
        "prepare",
        run,
        "tokenize and pack a corpus once, for many runs",
        """
  keras-minilmv2 prepare my_texts more.txt.gz --tokenizer bert_base_en_uncased \\
      --sequence-length 512 --output-dir data/mine
  keras-minilmv2 prepare tfds:wikipedia/20230601.en --runner direct \\
      --tokenizer bert_base_en_uncased --sequence-length 512 --output-dir data/wiki
  keras-minilmv2 distill recipes/bert_base_l6_h384.py --set corpus=data/wiki \\
      --output-dir out/l6_h384""",
    )
    command.add_argument(
        "corpus", nargs="+", help="files, directories, globs, - or tfds:NAME"
    )
    command.add_argument(
        "--tokenizer",
        required=True,
        metavar="PRESET",
        help="preset name, hf:// handle or directory of the teacher",
    )
    command.add_argument("--sequence-length", required=True, type=int, metavar="TOKENS")
    command.add_argument("--output-dir", required=True, metavar="DIR")
    command.add_argument(
        "--document-separator",
        default="blank_line",
        choices=("blank_line", "line", "file"),
        help="what ends a document within a file; default: %(default)s",
    )
    command.add_argument(
        "--decode-errors",
        default="strict",
        choices=("strict", "replace"),
        help="what becomes of bytes that are not UTF-8; default: %(default)s",
    )
    command.add_argument(
        "--held-out-every",
        type=int,
        default=100,
        metavar="N",
        help="every N-th piece is held out; default: %(default)s",
    )
    command.add_argument("--tfds-data-dir", metavar="DIR")
    command.add_argument(
        "--num-workers", type=int, metavar="N", help="default: the number of cores"
    )
    command.add_argument(
        "--runner",
        choices=("direct", "flink", "dataflow"),
        help="prepare with Apache Beam, an extra, on this runner",
    )
    command.add_argument(
        "--pipeline-option",
        action="append",
        default=[],
        metavar="OPTION",
        help="an option of Apache Beam, such as --flink_master=HOST; may be repeated",
    )
    command.add_argument(
        "--overwrite", action="store_true", help="replace what DIR holds"
    )


def run(options):
    """Tokenizes and packs a corpus once."""
    from keras_minilmv2.backbones.loading import load_tokenizer
    from keras_minilmv2.data.preparation import prepare
    from keras_minilmv2.data.sources import log_skipped
    from keras_minilmv2.data.text import Corpus

    corpus = Corpus(
        options.corpus,
        document_separator=options.document_separator,
        decode_errors=options.decode_errors,
        tfds_data_dir=options.tfds_data_dir,
        held_out_every=options.held_out_every,
    )
    log_skipped(corpus.skipped, print)
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
