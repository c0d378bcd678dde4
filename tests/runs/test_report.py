"""Reports as notebooks show them."""

import base64

from keras_minilmv2.runs.report import report_text


def test_a_report_in_a_notebook_has_its_pictures_inside(tmp_path):
    (tmp_path / "curves.png").write_bytes(b"a picture")
    (tmp_path / "report.md").write_text(
        "# A run\n\n![Loss](curves.png)\n\n[text](history.csv)\n"
    )

    text = report_text(tmp_path)

    encoded = base64.b64encode(b"a picture").decode()
    assert text == (
        f"# A run\n\n![Loss](data:image/png;base64,{encoded})\n\n[text](history.csv)\n"
    )
