"""Which heads of ALBERT base matter, to pre-training and to GLUE.

    keras-minilmv2 heads study hf://albert/albert-base-v2 \
        --recipe recipes/heads_albert_base.py --output-dir out/heads_albert_base \
        --corpus "tfds:wikipedia/20230601.en@train[:1%]"

Cost:    not measured; 12 shared heads, 7 tasks, 3 seeds, up to 22 fine-tunings a seed
Result:  not measured; the paper's numbers were not found
Source:  Chiang & Chen, 2021; fine-tuning and steps of a tenth: Michel et al., 2019
"""

from keras_minilmv2.runs.heads_cells import StudySettings

recipe = StudySettings(
    # Tasks. Without QQP: it is as large as MNLI, and as slow.
    task=("cola", "sst2", "mrpc", "stsb", "mnli", "qnli", "rte"),
    seed=(0, 1, 2),
    # Heads. A tenth goes between two computations of importance.
    shares=(0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0),
    order="iterative",
    kind="absolute",
    normalize=True,
    num_importance_examples=2_048,
    # Text.
    num_loss_examples=2_048,
    sequence_length=128,
    held_out_every=None,  # the model has not seen this corpus in this form
    # Fine-tuning.
    learning_rate=2e-5,
    epochs=3,
    task_batch_size=32,
    task_sequence_length=128,
)
