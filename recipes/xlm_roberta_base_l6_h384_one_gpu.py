"""6x384 from XLM-R base, for one GPU, in hours.

    keras-minilmv2 distill recipes/xlm_roberta_base_l6_h384_one_gpu.py --output-dir out

Cost:    2.2 hours (`plan --device a100`); not measured
         Without download and preparation of the corpus; a GPU without bfloat16 needs
         --set dtype_policy=float32, and longer.
Result:  not measured; none of this size in the papers
Source:  our own settings; the method of Wang et al., 2021
"""

from keras_minilmv2 import Recipe
from keras_minilmv2.data.corpora import WIKIPEDIA_IN_15_LANGUAGES

recipe = Recipe(
    # Teacher. 12 layers of 768; the last one is distilled.
    teacher="xlm_roberta_base_multi",
    teacher_layer=12,
    # Student.
    student_num_layers=6,
    student_num_heads=12,
    student_hidden_dim=384,
    student_intermediate_dim=1_536,
    # Relations. 768 / 48 = 16 channels a head; 384 / 48 = 8.
    num_relation_heads=48,
    # Data. The paper takes the corpus of XLM-R, CommonCrawl in 100 languages; these
    # are TFDS' Wikipedias in XNLI's 15 languages, in proportion to their sizes.
    corpus=WIKIPEDIA_IN_15_LANGUAGES,
    sequence_length=128,
    batch_size=256,  # global, sequences
    # Optimizer. 100,000 x 256 = 26M sequences.
    peak_learning_rate=6e-4,
    warmup_steps=4_000,
    total_steps=100_000,
    # Run. A quarter of the length costs less than a quarter; half precision.
    dtype_policy="mixed_bfloat16",
)
