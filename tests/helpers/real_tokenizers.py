"""Tokenizers of real vocabularies."""

import functools

import keras_hub


@functools.cache
def real_tokenizer(data_dir, name):
    """A keras-nlp tokenizer by the name of its vocabulary."""
    vocabulary = data_dir / "vocab"
    if name.startswith("bert"):
        options = {"lowercase": True, "strip_accents": True}
        if name == "bert_cased":
            options = {"split_on_cjk": False}
        file = str(vocabulary / "bert-base-uncased" / "vocab.txt")
        return keras_hub.models.BertTokenizer(file, **options)
    if name == "roberta":
        files = ("vocab.json", "merges.txt")
        files = [str(vocabulary / "roberta-base" / file) for file in files]
        return keras_hub.models.RobertaTokenizer(*files)
    if name == "albert":
        model = (vocabulary / "albert-base-v2" / "spiece.model").read_bytes()
        return keras_hub.models.AlbertTokenizer(model)
    model = vocabulary / "xlm-roberta-base" / "sentencepiece.bpe.model"
    return keras_hub.models.XLMRobertaTokenizer(model.read_bytes())
