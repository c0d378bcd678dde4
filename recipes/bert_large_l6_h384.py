"""MiniLMv2 6x384 from BERT large, an English student.

    keras-minilmv2 distill recipes/bert_large_l6_h384.py --output-dir out \
        --set accumulation_steps=2

Cost:    245 hours (`plan --device 8xv100`); not measured
Result:  not measured; paper: MNLI-m 83.0, SQuAD 2.0 74.3
Source:  Wang et al., 2021, sections 4.1 and 4.2
"""

from keras_minilmv2 import Recipe

recipe = Recipe(
    # Teacher. 24 layers of 1,024; layer 21 is distilled.
    teacher="bert_large_en_uncased",
    teacher_layer=21,
    # Student.
    student_num_layers=6,
    student_num_heads=12,
    student_hidden_dim=384,
    student_intermediate_dim=1_536,
    # Relations. 1,024 / 64 = 16 channels a head; 384 / 64 = 6.
    num_relation_heads=64,
    # Data. The paper adds BookCorpus, which TFDS does not have.
    corpus=("tfds:wikipedia/20230601.en",),
    sequence_length=512,
    batch_size=256,  # global, sequences
    # Optimizer. 400,000 x 256 = 102M sequences.
    peak_learning_rate=6e-4,
    warmup_steps=4_000,
    total_steps=400_000,
)
