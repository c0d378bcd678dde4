"""`keras-minilmv2 export`."""

from keras_minilmv2.commands.parsing import add_command


def add(commands):
    """Adds the command to a parser."""
    command = add_command(
        commands,
        "export",
        run,
        "write a model for TensorFlow Serving or Hugging Face transformers",
        """
  keras-minilmv2 export out/mine/student --output-dir serving/mine
  keras-minilmv2 export out/sst2 --output-dir serving/sst2 --sequence-length 32 64 128
  keras-minilmv2 export out/mine/student --form hugging_face --output-dir hf/mine""",
    )
    command.add_argument(
        "model", help="a student, or what finetune wrote; preset, handle or directory"
    )
    command.add_argument("--output-dir", required=True, metavar="DIR")
    command.add_argument(
        "--form",
        default="saved_model",
        choices=("saved_model", "hugging_face"),
        help="default: %(default)s",
    )
    command.add_argument(
        "--labels", nargs="+", metavar="NAME", help="names of a classifier's classes"
    )
    serving = command.add_argument_group("SavedModel")
    serving.add_argument(
        "--sequence-length",
        type=int,
        nargs="+",
        default=[128],
        metavar="TOKENS",
        help="one length, or several to pad to the smallest that fits; default: 128",
    )
    serving.add_argument(
        "--pairs", action="store_true", default=None, help="a row has two texts"
    )
    serving.add_argument(
        "--weights",
        default="float32",
        choices=("float32", "float16", "int8"),
        help="how matrices are stored; default: %(default)s",
    )
    serving.add_argument(
        "--normalize-embeddings",
        action="store_true",
        help="scale embeddings to length 1",
    )
    hugging_face = command.add_argument_group("Hugging Face")
    hugging_face.add_argument(
        "--facts", metavar="DIR", help="the run to tell of on the model card"
    )
    hugging_face.add_argument(
        "--sentence-transformers",
        action="store_true",
        help="let sentence-transformers load it, too",
    )
    hugging_face.add_argument(
        "--dense",
        action="store_true",
        help="write a pruned model at full shape, with zeros: no faster",
    )
    hugging_face.add_argument(
        "--overwrite", action="store_true", help="replace what DIR holds"
    )


def run(options):
    """Exports a model."""
    from keras_minilmv2.runs.export import export

    if options.form == "saved_model":
        lengths = options.sequence_length
        arguments = {
            "sequence_length": lengths[0] if len(lengths) == 1 else tuple(lengths),
            "pairs": options.pairs,
            "weights": options.weights,
            "normalize_embeddings": options.normalize_embeddings,
        }
    else:
        arguments = {
            "facts": options.facts,
            "sentence_transformers": options.sentence_transformers,
            "dense": options.dense,
            "overwrite": options.overwrite,
        }
    path = export(
        options.model,
        options.output_dir,
        options.form,
        labels=options.labels,
        **arguments,
    )
    print(f"Written: {path}")
    if options.dense:
        print("Heads and neurons that were removed are zeros in it: it is no faster.")
