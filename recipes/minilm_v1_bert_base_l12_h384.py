"""MiniLM v1 12x384 from BERT base, the assistant of a smaller student.

    keras-minilmv2 distill recipes/minilm_v1_bert_base_l12_h384.py --output-dir out \
        --set accumulation_steps=2

Cost:    127 hours (`plan --device 8xv100`); not measured
Result:  not measured; the paper has no scores of this assistant
Source:  Wang et al., 2020 (MiniLM v1)
"""

from keras_minilmv2 import Recipe

recipe = Recipe(
    # Teacher. 12 layers of 768; the last one is distilled.
    teacher="bert_base_en_uncased",
    teacher_layer=12,
    # Student.
    student_num_layers=12,
    student_num_heads=12,
    student_hidden_dim=384,
    student_intermediate_dim=1_536,
    # Objective. Attention distributions and value relations of 12 heads.
    objective="attention_values",
    num_relation_heads=12,
    # Data. The paper adds BookCorpus, which TFDS does not have.
    corpus=("tfds:wikipedia/20230601.en",),
    sequence_length=512,
    batch_size=256,  # global, sequences
    # Optimizer. 400,000 x 256 = 102M sequences.
    peak_learning_rate=3e-4,
    warmup_steps=4_000,
    total_steps=400_000,
)
