"""Heat maps show the relations of the encoders that they are given."""

import numpy as np
import pytest
from small_runs import make_teacher

from keras_minilmv2.backbones.loading import load_backbone, load_tokenizer
from keras_minilmv2.distillation.heat_maps import relation_heat_maps


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = make_teacher(tmp_path_factory.mktemp("models") / "teacher")
    return load_backbone(path), load_tokenizer(path)


def test_heat_maps_are_distributions_over_tokens(model):
    backbone, tokenizer = model
    figure = relation_heat_maps(
        {"second": (backbone, 2), "last": (backbone, None)},
        tokenizer,
        "the king and the sea",
        num_relation_heads=4,
        pair="kv",
        relation_head=3,
    )
    first, last = figure.axes[0], figure.axes[1]
    assert [first.get_title(), last.get_title()] == ["second", "last"]
    words = [label.get_text() for label in first.get_xticklabels()]
    assert words == ["[CLS]", "the", "king", "and", "the", "sea", "[SEP]"]
    relations = [np.asarray(ax.images[0].get_array()) for ax in (first, last)]
    for relation in relations:
        assert relation.shape == (7, 7)
        np.testing.assert_allclose(relation.sum(axis=1), 1.0, rtol=1e-5)
    assert np.abs(relations[0] - relations[1]).max() > 1e-3
    assert "K-V relation, head 3 of 4" in figure.get_suptitle()


def test_long_texts_are_cut(model):
    backbone, tokenizer = model
    figure = relation_heat_maps({"x": (backbone, 1)}, tokenizer, "the sea " * 40, 2)
    assert len(figure.axes[0].get_xticklabels()) == 32
