"""Which heads of a small encoder of your own matter, on a laptop.

    keras-minilmv2 heads study out/mine_mlm/student --recipe recipes/heads_laptop.py \
        --corpus out/mine_mlm/prepared --data-dir glue_data --output-dir out/heads

The model is what `keras-minilmv2 pretrain` wrote.

Cost:    not measured
Result:  not measured
Source:  our own settings; the questions of Chiang & Chen, 2021
"""

from keras_minilmv2.runs.heads_cells import StudySettings

recipe = StudySettings(
    # Tasks.
    task=("sst2", "mrpc", "cola", "stsb"),
    seed=(0, 1, 2),
    # Heads.
    shares=(0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0),
    tuned_shares=(0.25, 0.5, 0.75, 1.0),
    # Text.
    sequence_length=64,
    # Fine-tuning.
    learning_rate=3e-4,
    epochs=1,
    task_batch_size=32,
    task_sequence_length=64,
    num_train_examples=8_000,
)
