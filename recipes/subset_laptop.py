"""Which heads of a small encoder a task needs, on a laptop.

    keras-minilmv2 heads subset my_encoder --task sst2 --data-dir glue_data \
        --recipe recipes/subset_laptop.py --output-dir out/sst2_heads

Cost:    not measured
Result:  not measured
Source:  our own settings; the method of Li, Cotterell & Sachan, 2021
"""

from keras_minilmv2.runs.subset_cells import SubsetSettings

recipe = SubsetSettings(
    # What is compared.
    num_kept_heads=(6, 12, 24, 36, 48),
    method=("pipelined_bounded", "pipelined_gumbel", "absolute", "fisher", "random"),
    seed=(0, 1, 2),
    # Fine-tuning.
    learning_rate=1e-4,
    epochs=1,
    search_epochs=1,
    retraining_epochs=1,
    batch_size=32,
    sequence_length=64,
    num_train_examples=16_000,
    # Gates: few steps, which are spent where gates learn.
    gates_learning_rate=0.1,
    initial_temperature=10.0,
    final_temperature=0.01,
    cooldown=0.8,
)
