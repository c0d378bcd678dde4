import hashlib
import json
import shutil
import subprocess

import numpy as np
import pytest
from small_exports import manifest_of

from keras_minilmv2.serving import serve_check as module
from keras_minilmv2.serving.serve_check import serve_check


@pytest.fixture
def copied_export(tmp_path, export_of):
    version = tmp_path / "model" / "1"
    shutil.copytree(export_of("word_piece"), version)
    return version


def sign(version, name):
    """Writes the checksum of a changed file into the manifest."""
    manifest = manifest_of(version)
    checksum = hashlib.sha256((version / name).read_bytes()).hexdigest()
    manifest["files"][name] = checksum
    (version / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.slow
def test_a_fresh_process_answers_as_keras_did(copied_export):
    lines = []
    check = serve_check(copied_export.parent, log=lines.append)
    assert check.version == copied_export
    assert check.tolerance == 1e-5
    assert check.differences.keys() == {
        f"{signature}/{name}"
        for signature, content in manifest_of(copied_export)["signatures"].items()
        for name in content["outputs"]
    }
    assert max(check.differences.values()) < 1e-5
    assert all(milliseconds > 0 for milliseconds in check.latencies.values())
    text = "\n".join(lines)
    assert "serving_default/sequence_output" in text
    assert "8 rows a request:" in text
    assert lines[-1] == f"All answers are Keras', within 1.0e-05: {copied_export}"


def test_a_difference_is_found(copied_export, capsys):
    path = copied_export / "samples.npz"
    arrays = dict(np.load(path))
    arrays["0/pooled_output"][1, 2] += 0.5
    arrays["2/mean"][0, 0] = np.nan
    np.savez(path, **arrays)
    module._check(str(copied_export))
    differences = json.loads(capsys.readouterr().out)["differences"]
    assert differences["serving_default/pooled_output"] == pytest.approx(0.5, abs=1e-5)
    assert differences["token_ids/pooled_output"] < 1e-5
    assert differences["embeddings/cls"] < 1e-5
    assert differences["embeddings/mean"] == np.inf


def answer(monkeypatch, code, stdout="", stderr=""):
    monkeypatch.setattr(
        subprocess,
        "run",
        lambda command, **_: subprocess.CompletedProcess(command, code, stdout, stderr),
    )


@pytest.mark.parametrize("difference", [2e-5, float("inf"), float("nan")])
def test_a_difference_above_the_tolerance_is_an_error(
    export_of, monkeypatch, difference
):
    version = export_of("word_piece")
    found = {"differences": {"embeddings/mean": difference}, "latencies": {}}
    answer(monkeypatch, 0, "a note\n" + json.dumps(found) + "\n")
    with pytest.raises(RuntimeError, match="must answer as Keras did") as caught:
        serve_check(version, log=lambda line: None)
    assert str(caught.value) == (
        "`directory` must answer as Keras did, within 1.0e-05. Received: "
        f"directory={version}, embeddings/mean differs by {difference:.1e}."
    )


def test_an_export_that_does_not_load_is_an_error(export_of, monkeypatch):
    version = export_of("word_piece")
    answer(monkeypatch, 1, stderr="Traceback\nOSError: no such op\n")
    with pytest.raises(RuntimeError, match="must load") as caught:
        serve_check(version)
    assert str(caught.value) == (
        f"`directory` must load. Received: directory={version}: OSError: no such op"
    )


@pytest.mark.parametrize("change", [b"changed", None])
def test_another_file_than_was_written_is_an_error(copied_export, change):
    file = copied_export / "saved_model.pb"
    if change is None:
        (copied_export / "fingerprint.pb").unlink()
    else:
        file.write_bytes(change)
    name = "saved_model.pb" if change else "fingerprint.pb"
    with pytest.raises(ValueError, match="as they were written") as caught:
        serve_check(copied_export)
    assert str(caught.value) == (
        "`directory` must hold the files of its export as they were written. "
        f"Received: directory={copied_export} with another or no {name}."
    )


@pytest.mark.parametrize("content", [None, "{", "no JSON"])
def test_an_export_without_manifest_is_an_error(copied_export, content):
    manifest = copied_export / "manifest.json"
    if content is None:
        manifest.unlink()
    else:
        manifest.write_text(content)
    with pytest.raises(ValueError, match="readable") as caught:
        serve_check(copied_export)
    assert str(caught.value) == (
        "`directory` must hold a readable manifest.json. "
        f"Received: directory={copied_export}."
    )


def test_a_name_that_leads_out_of_the_export_is_refused(copied_export):
    manifest = manifest_of(copied_export)
    outside = copied_export.parent / "secret"
    outside.write_text("mine")
    manifest["files"]["../secret"] = hashlib.sha256(b"mine").hexdigest()
    (copied_export / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="with another or no ../secret"):
        serve_check(copied_export)


@pytest.mark.parametrize("text", ["[]", "{}", '{"files": [1]}', "{"])
def test_a_damaged_manifest_is_refused(copied_export, text):
    (copied_export / "manifest.json").write_text(text)
    with pytest.raises(ValueError, match="must hold a readable manifest.json"):
        serve_check(copied_export)
