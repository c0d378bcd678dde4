"""Which 12, 24, 36 or 72 of BERT base's 144 heads MNLI needs, as in the paper.

    keras-minilmv2 heads subset bert_base_en_uncased --task mnli --data-dir glue_data \
        --recipe recipes/subset_bert_base_mnli.py --output-dir out/mnli_heads

Cost:    not measured; for each seed 3 epochs of MNLI, and of each K 3 more (joint) and
         1 (pipelined)
Result:  not measured; the paper's table was not found
Source:  Li, Cotterell & Sachan, 2021, and its code
"""

from keras_minilmv2.runs.subset_cells import SubsetSettings

recipe = SubsetSettings(
    # What is compared. The paper's code is `joint_gumbel`, and `pipelined_gumbel`
    # without retraining; its text trains the latter again.
    num_kept_heads=(12, 24, 36, 72),
    method=(
        *("joint_gumbel", "pipelined_gumbel"),
        *("joint_straight_through", "pipelined_straight_through"),
        *("joint_l0", "pipelined_l0", "absolute"),
    ),
    seed=(0, 1, 2),
    # Fine-tuning. The paper's code does not warm up; the encoder here does.
    learning_rate=2e-5,
    epochs=3,
    search_epochs=1,
    retraining_epochs=1,
    batch_size=32,
    sequence_length=128,
    # Gates: 25,000 of 36,816 steps, or 8,333 of 12,272. The code clips both groups
    # together; here each is clipped for itself.
    gates_learning_rate=0.5,
    initial_temperature=1_000.0,
    final_temperature=1e-8,
    cooldown=0.68,
    gradient_clip_norm=1.0,
)
