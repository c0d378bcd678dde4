"""Which heads of a small encoder of your own matter, on a laptop.

    keras-minilmv2 heads study out/mine_mlm/student --recipe recipes/heads_laptop.py \
        --corpus out/mine_mlm/prepared --data-dir glue_data --output-dir out/heads

The model is what `keras-minilmv2 pretrain` wrote.

Cost:    51 minutes for RoBERTa 4x128, 75 for ALBERT 4x192, on a core of an Intel Xeon
Result:  acceptable deductions of 0.00 to 0.13 nats, see "Two small encoders" in
         docs/heads.md (`--tuned-shares 0.5 0.75 1.0`, 3 seeds, 2026-12-01)
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
