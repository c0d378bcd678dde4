"""MiniLMv2 12x384 from RoBERTa large, an English student.

    keras-minilmv2 distill recipes/roberta_large_l12_h384.py --output-dir out \
        --set accumulation_steps=2

Cost:    254 hours (`plan --device 8xv100`); not measured
Result:  not measured; released model: MNLI-m 86.9, SQuAD 2.0 82.3
Source:  Wang et al., 2021, sections 4.1 and 4.2
"""

from keras_minilmv2 import Recipe

recipe = Recipe(
    # Teacher. 24 layers of 1,024; layer 19 is distilled.
    teacher="roberta_large_en",
    teacher_layer=19,
    # Student.
    student_num_layers=12,
    student_num_heads=12,
    student_hidden_dim=384,
    student_intermediate_dim=1_536,
    # Relations. 1,024 / 64 = 16 channels a head; 384 / 64 = 6.
    num_relation_heads=64,
    # Data. The paper takes corpora like those of RoBERTa, ten times as large.
    corpus=("tfds:wikipedia/20230601.en",),
    sequence_length=512,
    batch_size=256,  # global, sequences
    # Optimizer. 400,000 x 256 = 102M sequences.
    peak_learning_rate=6e-4,
    warmup_steps=4_000,
    total_steps=400_000,
)
