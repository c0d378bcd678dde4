"""MiniLM v1 6x384 from its assistant.

    keras-minilmv2 distill recipes/minilm_v1_bert_base_l12_h384.py \
        --output-dir out_assistant --set accumulation_steps=2
    keras-minilmv2 distill recipes/minilm_v1_assistant_l6_h384.py --output-dir out

Cost:    47 hours after the assistant's 127 (`plan --device 8xv100`); not measured
Result:  not measured; paper: MNLI-m 82.4, SQuAD 2.0 72.7
Source:  Wang et al., 2020 (MiniLM v1)
"""

from keras_minilmv2 import Recipe

recipe = Recipe(
    # Teacher. The assistant.
    teacher="out_assistant/student",
    teacher_layer=12,
    # Student.
    student_num_layers=6,
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
