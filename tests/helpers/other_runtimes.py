"""Runs exports in ONNX Runtime and OpenVINO and notes what they answer.

By hand, in two environments: one of this package; one with tensorflow,
tensorflow-text, tf2onnx, onnxruntime and openvino.

    python tests/helpers/other_runtimes.py write DIRECTORY
    python tests/helpers/other_runtimes.py run DIRECTORY

The second writes tests/reference/other_runtimes.json, which test_other_runtimes.py
compares Keras with. The weights are those of tests/reference.
"""

import argparse
import json
from pathlib import Path

import numpy as np

TESTS = Path(__file__).parents[1]
ANSWERS = TESTS / "reference" / "other_runtimes.json"
LENGTH = 8
ENCODERS = ("bert_teacher", "roberta_teacher", "xlm_roberta")
WITH_HEADS = ("classifier", "regressor", "spans")


def models(names=ENCODERS + WITH_HEADS):
    """Models with fixed weights and their tokenizers, by name."""
    import keras_hub

    from keras_minilmv2 import load_backbone, load_tokenizer
    from keras_minilmv2.downstream.span_model import SpanModel

    heads = {
        "classifier": lambda b: keras_hub.models.BertTextClassifier(b, 3),
        "regressor": lambda b: keras_hub.models.BertTextClassifier(b, 1),
        "spans": SpanModel,
    }
    found = {}
    for name in names:
        path = TESTS / "reference" / (name if name in ENCODERS else "bert_teacher")
        model = backbone = load_backbone(path)
        if name in heads:
            model = heads[name](backbone)
            generator = np.random.default_rng(0)
            of_backbone = {id(variable) for variable in backbone.variables}
            for variable in model.variables:
                if id(variable) not in of_backbone:
                    variable.assign(generator.normal(size=variable.shape))
        found[name] = model, load_tokenizer(path)
    return found


def requests(names, vocabulary_size=18):
    """Inputs of the signature of token ids: the second row has padding."""
    generator = np.random.default_rng(1)
    token_ids = generator.integers(1, vocabulary_size, (2, LENGTH), "int32")
    mask = np.arange(LENGTH) < np.array([[LENGTH], [5]])
    segment_ids = np.arange(LENGTH) >= 3
    inputs = {
        "token_ids": np.where(mask, token_ids, 0),
        "padding_mask": mask,
        "segment_ids": segment_ids & mask,
    }
    return {name: inputs[name].astype("int32") for name in names}


def write(directory):
    """Exports the models."""
    from keras_minilmv2.serving.saved_model import export_saved_model

    for name, (model, tokenizer) in models().items():
        pairs = name == "spans"
        export_saved_model(model, tokenizer, directory / name, LENGTH, pairs=pairs)


def write_onnx(version, path):
    """The signature of token ids as an ONNX file."""
    # Its ops must be known, also those of the other signatures.
    import tensorflow_text  # noqa: F401
    from tf2onnx import convert, tf_loader

    graph, inputs, outputs, names = tf_loader.from_saved_model(
        str(version),
        None,
        None,
        tag=["serve"],
        signatures=["token_ids"],
        return_tensors_to_rename=True,
    )
    convert.from_graph_def(
        graph,
        input_names=inputs,
        output_names=outputs,
        opset=18,
        custom_op_handlers={"Erfc": (complement_of_erf, [])},
        tensors_to_rename=names,
        output_path=str(path),
    )


def complement_of_erf(context, node, name, args):
    """`erfc` of TensorFlow's exact GELU, which ONNX does not have, as 1 - erf."""
    del args
    erf = context.make_node("Erf", node.input[:1])
    one = context.make_const(f"{name}_one", np.array(1, "float32"))
    shapes, dtypes = node.output_shapes, node.output_dtypes
    context.remove_node(name)
    return context.make_node(
        "Sub",
        [one.output[0], erf.output[0]],
        outputs=node.output,
        shapes=shapes,
        dtypes=dtypes,
    )


def run(directory):
    """Answers of the runtimes, by export, runtime and output."""
    import onnxruntime
    import openvino
    import tf2onnx

    answers = {}
    for path in sorted(directory.iterdir()):
        onnx = path / "token_ids.onnx"
        write_onnx(path / "1", onnx)
        session = onnxruntime.InferenceSession(str(onnx))
        inputs = requests([value.name for value in session.get_inputs()])
        names = [output.name for output in session.get_outputs()]
        values = session.run(names, inputs)
        # The names of labels stay out: OpenVINO has no strings.
        numbers = {
            name: value
            for name, value in zip(names, values, strict=True)
            if value.dtype.kind == "f"
        }
        compiled = openvino.compile_model(
            openvino.convert_model(str(onnx), output=list(numbers)),
            "CPU",
            {"INFERENCE_PRECISION_HINT": "f32"},
        )
        answers[path.name] = {
            "ONNX Runtime": numbers,
            "OpenVINO": {
                output.get_any_name(): value
                for output, value in compiled(inputs).items()
            },
        }
    versions = {m.__name__: m.__version__ for m in (onnxruntime, openvino, tf2onnx)}
    return {"versions": versions, "answers": answers}


def _as_list(array):
    return np.round(array, 7).tolist() if array.dtype.kind == "f" else array.tolist()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=("write", "run"))
    parser.add_argument("directory", type=Path)
    options = parser.parse_args()
    if options.what == "write":
        write(options.directory)
    else:
        found = run(options.directory)
        ANSWERS.write_text(json.dumps(found, default=_as_list, indent=1) + "\n")
        print(f"Written: {ANSWERS}")
