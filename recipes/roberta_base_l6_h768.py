"""MiniLMv2 6x768 from RoBERTa base, an English student.

    keras-minilmv2 distill recipes/roberta_base_l6_h768.py --output-dir out \
        --set accumulation_steps=2

Cost:    170 hours (`plan --device 8xv100`); not measured
Result:  not measured; the paper has no such student
Source:  Wang et al., 2021, sections 4.1 and 4.2
"""

from keras_minilmv2 import Recipe

recipe = Recipe(
    # Teacher. 12 layers of 768; the last one is distilled.
    teacher="roberta_base_en",
    teacher_layer=12,
    # Student.
    student_num_layers=6,
    student_num_heads=12,
    student_hidden_dim=768,
    student_intermediate_dim=3_072,
    # Relations. 768 / 48 = 16 channels a head; 768 / 48 = 16.
    num_relation_heads=48,
    # Data. The paper takes corpora like those of RoBERTa, ten times as large.
    corpus=("tfds:wikipedia/20230601.en",),
    sequence_length=512,
    batch_size=256,  # global, sequences
    # Optimizer. 400,000 x 256 = 102M sequences.
    peak_learning_rate=6e-4,
    warmup_steps=4_000,
    total_steps=400_000,
)
