"""MiniLMv2 12x384 from XLM-R large, a multilingual student.

    keras-minilmv2 distill recipes/xlm_roberta_large_l12_h384.py --output-dir out \
        --set accumulation_steps=4

Cost:    635 hours (`plan --device 8xv100`); not measured
Result:  not measured; paper: XNLI 72.9, MLQA F1 64.9
Source:  Wang et al., 2021, sections 4.1 and 4.2
"""

from keras_minilmv2 import Recipe
from keras_minilmv2.data.corpora import WIKIPEDIA_IN_15_LANGUAGES

recipe = Recipe(
    # Teacher. 24 layers of 1,024; layer 19 is distilled.
    teacher="xlm_roberta_large_multi",
    teacher_layer=19,
    # Student.
    student_num_layers=12,
    student_num_heads=12,
    student_hidden_dim=384,
    student_intermediate_dim=1_536,
    # Relations. 1,024 / 64 = 16 channels a head; 384 / 64 = 6.
    num_relation_heads=64,
    # Data. The paper takes the corpus of XLM-R, CommonCrawl in 100 languages; these
    # are TFDS' Wikipedias in XNLI's 15 languages, in proportion to their sizes.
    corpus=WIKIPEDIA_IN_15_LANGUAGES,
    sequence_length=512,
    batch_size=256,  # global, sequences
    # Optimizer. 1,000,000 x 256 = 256M sequences.
    peak_learning_rate=6e-4,
    warmup_steps=4_000,
    total_steps=1_000_000,
)
