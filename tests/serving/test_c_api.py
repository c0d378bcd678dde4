"""Exports run without Python's TensorFlow, on the libraries inside the wheels."""

import base64
import json
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest
from families import make_backbone
from small_exports import KINDS, small_export

from keras_minilmv2.serving.samples import read_samples
from keras_minilmv2.serving.saved_model import export_saved_model

RUNNER = Path(__file__).with_name("c_api.py")
SITE_PACKAGES = Path(sysconfig.get_path("platlib"))

pytestmark = pytest.mark.skipif(
    not (SITE_PACKAGES / "tensorflow" / "libtensorflow_cc.so.2").exists(),
    reason="TensorFlow's wheel has no C library here",
)


def run(version, requests, directory):
    """Answers of the C library to requests, by place and output."""
    for request in requests:
        for name, values in request["inputs"].items():
            if isinstance(values[0], str | bytes):
                request["inputs"][name] = [
                    base64.b64encode(
                        value.encode() if isinstance(value, str) else value
                    ).decode()
                    for value in values
                ]
    (directory / "requests.json").write_text(json.dumps(requests))
    command = [sys.executable, str(RUNNER), str(SITE_PACKAGES), str(version)]
    process = subprocess.run(
        [*command, str(directory / "requests.json"), str(directory / "outputs.npz")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr[-2_000:]
    assert process.stdout == "ran without Python's tensorflow\n"
    with np.load(directory / "outputs.npz") as outputs:
        return dict(outputs)


def check(version, directory, tolerance):
    samples = read_samples(version)
    requests = [{"signature": s.signature, "inputs": dict(s.inputs)} for s in samples]
    answers = run(version, requests, directory)
    assert len(answers) == sum(len(sample.outputs) for sample in samples)
    for place, sample in enumerate(samples):
        for name, expected in sample.outputs.items():
            found = answers[f"{place}/{name}"]
            if expected.dtype.kind == "S":
                np.testing.assert_array_equal(found, expected)
            else:
                np.testing.assert_allclose(
                    found, expected, atol=tolerance, rtol=tolerance
                )


@pytest.mark.parametrize("kind", KINDS)
def test_the_c_library_gives_what_keras_gives(kind, export_of, tmp_path):
    check(export_of(kind), tmp_path, tolerance=1e-5)


@pytest.mark.slow
def test_the_c_library_fills_variables_that_are_stored_smaller(tmp_path):
    """After it restored what they are filled from."""
    version = small_export(tmp_path / "model", "word_piece", weights="int8")
    manifest = json.loads((version / "manifest.json").read_text())
    assert manifest["tolerance"] < 0.2
    check(version, tmp_path, manifest["tolerance"])
    texts = ["the quick brown fox"]
    request = {"signature": "embeddings", "inputs": {"text": texts}}
    mean = run(version, [request], tmp_path)["0/mean"]
    assert np.abs(mean).max() > 0.2


def test_the_c_library_takes_any_bytes(export_of, tmp_path):
    texts = [b"\xff\xfe", b"", b"a\x00b", b"fox", b"\xf0\x9f\x98\x80" * 50]
    requests = [
        {"signature": "embeddings", "inputs": {"text": list(texts)}},
        {"signature": "embeddings", "inputs": {"text": [b"fox"]}},
    ]
    answers = run(export_of("byte_pair"), requests, tmp_path)
    assert np.isfinite(answers["0/mean"]).all()
    np.testing.assert_allclose(answers["0/mean"][3], answers["1/mean"][0], atol=1e-6)


def real_tokenizers(directory):
    import keras_hub

    models = keras_hub.models
    roberta = directory / "roberta-base"
    xlm_r = directory / "xlm-roberta-base" / "sentencepiece.bpe.model"
    albert = directory / "albert-base-v2" / "spiece.model"
    bert = directory / "bert-base-uncased" / "vocab.txt"
    return {
        "bert": lambda: models.BertTokenizer(
            bert.read_text(encoding="utf-8").splitlines(),
            lowercase=True,
            strip_accents=True,
        ),
        "roberta": lambda: models.RobertaTokenizer(
            json.loads((roberta / "vocab.json").read_text(encoding="utf-8")),
            (roberta / "merges.txt").read_text(encoding="utf-8").splitlines(),
        ),
        "xlm_roberta": lambda: models.XLMRobertaTokenizer(xlm_r.read_bytes()),
        "albert": lambda: models.AlbertTokenizer(albert.read_bytes()),
    }


@pytest.mark.slow
@pytest.mark.parametrize("family", ["bert", "roberta", "xlm_roberta", "albert"])
@pytest.mark.parametrize("pairs", [False, True])
def test_real_vocabularies_on_the_c_library(family, pairs, data_dir, tmp_path):
    tokenizer = real_tokenizers(data_dir / "vocab")[family]()
    backbone = make_backbone(
        family, vocabulary_size=tokenizer.vocabulary_size(), max_sequence_length=64
    )
    corpus = sorted((data_dir / "corpus" / "multilingual").iterdir())
    texts = [file.read_text(encoding="utf-8")[:200] for file in corpus]
    version = export_saved_model(
        backbone,
        tokenizer,
        tmp_path / "model",
        (32, 64),
        pairs=pairs,
        sample_texts=texts,
    )
    check(version, tmp_path, tolerance=1e-5)
