"""MiniLMv2 3x384 from a real 6x384 BERT, in hours on a laptop: an English student.

    keras-minilmv2 distill recipes/laptop_l3_h384.py --set corpus=my_texts \
        --output-dir out

The corpus is plain text of your own, 12 million tokens or more: novels, a Wikipedia.

Cost:    30.7M tokens; 2.7 hours at the 3,100 tokens/s of 2 cores of an Intel Xeon
Result:  not measured in one run; in two, 30.3M tokens: docs/results.md
Source:  our own settings; the method of Wang et al., 2021
"""

from keras_minilmv2 import Recipe
from keras_minilmv2.runs.demo import packaged_teacher

recipe = Recipe(
    # Teacher. 6 layers of 384; the last one is distilled.
    teacher=packaged_teacher(),
    teacher_layer=6,
    # Student. Initialized with the embeddings and these layers of its teacher.
    student_num_layers=3,
    student_num_heads=12,
    student_hidden_dim=384,
    student_intermediate_dim=1_536,
    student_initialization="layers:1,3,6",
    # Relations. 384 / 48 = 8 channels a head on both sides.
    num_relation_heads=48,
    # Data. Short sequences: more of them in the same time.
    corpus=("texts",),
    sequence_length=64,
    batch_size=64,
    held_out_examples=128,
    # Optimizer. 7,500 x 64 x 64 = 30.7M tokens.
    peak_learning_rate=6e-4,
    warmup_steps=150,
    total_steps=7_500,
    # Run.
    evaluate_every=100,
    checkpoint_every=100,
)
