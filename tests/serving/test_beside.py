import json
import re
import shlex

import pytest
from small_exports import manifest_of

from keras_minilmv2.serving.beside import write_beside
from keras_minilmv2.serving.samples import read_samples


@pytest.fixture
def directory(tmp_path, export_of):
    version = export_of("word_piece")
    directory = tmp_path / "my model's"
    directory.mkdir()
    write_beside(directory, manifest_of(version), read_samples(version))
    return directory


def test_the_readme_asks_every_signature(directory, export_of):
    text = (directory / "README.md").read_text()
    bodies = {}
    for block in re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL):
        words = shlex.split(block.replace("\\\n", ""))
        if "--data" in words:
            assert words[1] == "http://localhost:8501/v1/models/my%20model%27s:predict"
            body = json.loads(words[words.index("--data") + 1])
            bodies[body["signature_name"]] = body["instances"]
    signatures = manifest_of(export_of("word_piece"))["signatures"]
    assert bodies.keys() == signatures.keys()
    for name, rows in bodies.items():
        assert len(rows) == 2
        for row in rows:
            assert row.keys() == signatures[name]["inputs"].keys()
        for output, content in signatures[name]["outputs"].items():
            line = f"- `{output}`, {content['dtype']}: {content['description']}"
            assert line in text


def test_the_readme_names_the_ops_that_a_server_must_have(directory):
    text = (directory / "README.md").read_text()
    assert "`RegexSplitWithOffsets`" in text
    assert "TensorFlow Serving has them from 2.12.2 on." in text


@pytest.mark.parametrize(
    ("ops", "sentence"),
    [
        ([], "The graph has no ops but TensorFlow's own."),
        (
            [{"op": "New", "tensorflow_serving": None}],
            "The graph has ops of TF Text: `New`. Which releases of TensorFlow Serving "
            "have them is not known.",
        ),
    ],
)
def test_the_readme_of_other_ops(tmp_path, export_of, ops, sentence):
    version = export_of("word_piece")
    manifest = {**manifest_of(version), "custom_ops": ops}
    write_beside(tmp_path, manifest, read_samples(version))
    assert sentence in (tmp_path / "README.md").read_text()


def test_settings_name_the_directory(directory):
    text = (directory / "models.config").read_text()
    assert 'name: "my model\'s"' in text
    assert f"base_path: {json.dumps(str(directory))}" in text


def test_settings_are_what_the_server_reads(directory):
    text_format = pytest.importorskip("google.protobuf.text_format")
    config = pytest.importorskip("tensorflow_serving.config.model_server_config_pb2")
    text = (directory / "models.config").read_text()
    parsed = text_format.Parse(text, config.ModelServerConfig())
    (model,) = parsed.model_config_list.config
    assert (model.name, model.base_path) == (directory.name, str(directory))


def test_settings_that_are_there_are_kept(directory, export_of):
    for name in ("models.config", "batching_parameters.txt"):
        (directory / name).write_text("mine")
    version = export_of("word_piece")
    write_beside(directory, manifest_of(version), read_samples(version))
    assert (directory / "models.config").read_text() == "mine"
    assert (directory / "batching_parameters.txt").read_text() == "mine"


def test_a_readme_that_no_export_wrote_stays(tmp_path, export_of):
    version = export_of("word_piece")
    arguments = (tmp_path, manifest_of(version), read_samples(version))
    (tmp_path / "README.md").write_text("mine")
    write_beside(*arguments)
    assert (tmp_path / "README.md").read_text() == "mine"
    (tmp_path / "README.md").unlink()
    write_beside(*arguments)
    (tmp_path / "README.md").write_text("old\n" + (tmp_path / "README.md").read_text())
    write_beside(*arguments)
    assert not (tmp_path / "README.md").read_text().startswith("old")
