"""MiniLM v1 6x768 from BERT base, to compare with.

    keras-minilmv2 distill recipes/minilm_v1_bert_base_l6_h768.py --output-dir out \
        --set accumulation_steps=8

Cost:    670 hours (`plan --device 8xv100`); not measured
Result:  not measured; paper: MNLI-m 84.0, SQuAD 2.0 76.4
Source:  Wang et al., 2020 (MiniLM v1)
"""

from keras_minilmv2 import Recipe

recipe = Recipe(
    # Teacher. 12 layers of 768; the last one is distilled.
    teacher="bert_base_en_uncased",
    teacher_layer=12,
    # Student.
    student_num_layers=6,
    student_num_heads=12,
    student_hidden_dim=768,
    student_intermediate_dim=3_072,
    # Objective. Attention distributions and value relations of 12 heads.
    objective="attention_values",
    num_relation_heads=12,
    # Data. The paper adds BookCorpus, which TFDS does not have.
    corpus=("tfds:wikipedia/20230601.en",),
    sequence_length=512,
    batch_size=1_024,  # global, sequences
    # Optimizer. 400,000 x 1,024 = 410M sequences.
    peak_learning_rate=5e-4,
    warmup_steps=4_000,
    total_steps=400_000,
)
