"""`keras-minilmv2 heads`: which attention heads matter."""

import dataclasses

from keras_minilmv2.commands.parsing import (
    add_assignments,
    add_command,
    add_group,
    add_overwrite,
    add_task_data,
)


def add(commands):
    """Adds the commands to a parser."""
    group = add_group(commands, "heads", "study which attention heads matter")
    command = add_command(
        group,
        "study",
        study,
        "measure which heads matter to pre-training and to tasks, and what may be "
        "given up",
        """
  keras-minilmv2 heads study out/mine_mlm/student --corpus my_texts --task sst2 mrpc \\
      --data-dir glue_data --output-dir out/heads
  keras-minilmv2 heads study out/mine_mlm/student --corpus out/mine_mlm/prepared \\
      --task sst2 mrpc cola stsb --data-dir glue_data --seed 0 1 2 3 \\
      --shares 0 0.1 0.25 0.5 0.75 --student out/mine/student --output-dir out/heads
  keras-minilmv2 heads study out/mine_mlm/student --recipe recipes/heads_laptop.py \\
      --corpus out/mine_mlm/prepared --data-dir glue_data --output-dir out/heads""",
    )
    command.add_argument(
        "model",
        nargs="+",
        help="what `pretrain` wrote, or a ...ForMaskedLM of transformers",
    )
    command.add_argument(
        "--corpus",
        nargs="+",
        required=True,
        metavar="TEXT",
        help="what it was pre-trained on, whose held-out part is read",
    )
    command.add_argument(
        "--recipe",
        metavar="FILE",
        help="a .py file that sets `recipe`, or a .json file: the settings that are "
        "not given here",
    )
    command.add_argument(
        "--task", nargs="+", metavar="TASK", help="needed without --recipe"
    )
    add_task_data(command)
    command.add_argument("--output-dir", required=True, metavar="DIR")
    command.add_argument(
        "--seed",
        type=int,
        nargs="+",
        metavar="N",
        help="of fine-tuning; default: 0 1 2; further ones are added to a finished "
        "study",
    )
    command.add_argument(
        "--shares",
        type=float,
        nargs="+",
        metavar="SHARE",
        help="of heads removed; default: 0 to 0.9 by tenths",
    )
    command.add_argument(
        "--tuned-shares",
        type=float,
        nargs="+",
        metavar="SHARE",
        help="those whose encoders are fine-tuned; default: all",
    )
    command.add_argument(
        "--student",
        nargs="+",
        default=[],
        metavar="DIR",
        help="other encoders to compare with",
    )
    command.add_argument(
        "--first-layers",
        type=int,
        nargs="+",
        metavar="N",
        help="truncated encoders to compare with; default: half of the layers",
    )
    for flag, help_text in (
        ("--num-train-examples", "of each task; default: all"),
        ("--epochs", "default: the task's"),
    ):
        command.add_argument(flag, type=int, metavar="N", help=help_text)
    command.add_argument("--learning-rate", type=float, metavar="RATE")
    add_assignments(command, "the study's settings")
    add_overwrite(command)
    _add_subset(group)


def _add_subset(group):
    command = add_command(
        group,
        "subset",
        subset,
        "keep exactly K heads for a task, by gates that are trained and other ways",
        """
  keras-minilmv2 heads subset bert_base_en_uncased --task sst2 --data-dir glue_data \\
      --num-kept-heads 36 --output-dir out/sst2_heads
  keras-minilmv2 heads subset my_encoder --task mnli --data-dir glue_data \\
      --num-kept-heads 12 24 36 72 --method joint_gumbel pipelined_bounded absolute \\
      random --seed 0 1 2 --output-dir out/mnli_heads
  keras-minilmv2 heads subset my_encoder --recipe recipes/heads_subset_laptop.py \\
      --task sst2 --data-dir glue_data --output-dir out/sst2_heads""",
    )
    command.add_argument("model", help="an encoder: a preset or a directory")
    command.add_argument("--task", required=True)
    add_task_data(command)
    command.add_argument("--output-dir", required=True, metavar="DIR")
    command.add_argument(
        "--recipe",
        metavar="FILE",
        help="a .py file that sets `recipe`, or a .json file: the settings that are "
        "not given here",
    )
    command.add_argument(
        "--num-kept-heads",
        type=int,
        nargs="+",
        metavar="K",
        help="of all layers together; default: 24",
    )
    command.add_argument(
        "--method",
        nargs="+",
        metavar="METHOD",
        help="joint_ or pipelined_ and gumbel, straight_through, bounded or l0; "
        "absolute, fisher, random, depth, compress; default: pipelined_bounded",
    )
    command.add_argument("--seed", type=int, nargs="+", metavar="N", help="default: 0")
    for flag, help_text in (
        ("--epochs", "of fine-tuning with all heads; default: the task's"),
        ("--search-epochs", "of gates alone; default: 1"),
        ("--retraining-epochs", "without the other heads; default: 1; 0 for none"),
        ("--num-train-examples", "default: all"),
        ("--num-held-out-examples", "to choose models on; default: 1000"),
    ):
        command.add_argument(flag, type=int, metavar="N", help=help_text)
    command.add_argument("--learning-rate", type=float, metavar="RATE")
    command.add_argument(
        "--gates-learning-rate",
        type=float,
        metavar="RATE",
        help="of the logits; default: 0.5",
    )
    command.add_argument(
        "--distill",
        type=float,
        metavar="SHARE",
        help="of the loss, how much compares with the encoder with all heads; "
        "default: 0",
    )
    command.add_argument(
        "--relation-weight",
        type=float,
        metavar="WEIGHT",
        help="of the relation loss against it; default: 0",
    )
    add_assignments(command, "the settings")
    add_overwrite(command)


def study(options):
    """Studies the heads of an encoder."""
    from keras_minilmv2.runs.heads import study_heads
    from keras_minilmv2.runs.heads_cells import StudySettings

    if len(options.model) > 1:
        raise ValueError(
            "`model` must be one model; others to compare with are named by "
            f"--student. Received: model={options.model}."
        )
    if options.recipe is None and options.task is None:
        raise ValueError("`task` must be given without a recipe. Received: task=None.")
    study_heads(
        options.model[0],
        options.output_dir,
        _settings(StudySettings, options),
        corpus=options.corpus,
        students=options.student,
        data_dir=options.data_dir,
        tfds_data_dir=options.tfds_data_dir,
        overwrite=options.overwrite,
    )
    print(f"Written: {options.output_dir}/report.md")


def subset(options):
    """Chooses heads of an encoder for a task."""
    from keras_minilmv2.runs.subset import prune_to_subset
    from keras_minilmv2.runs.subset_cells import SubsetSettings

    prune_to_subset(
        options.model,
        options.task,
        options.output_dir,
        _settings(SubsetSettings, options),
        data_dir=options.data_dir,
        tfds_data_dir=options.tfds_data_dir,
        overwrite=options.overwrite,
    )
    print(f"Written: {options.output_dir}/model, {options.output_dir}/report.md")


def _settings(settings_class, options):
    """Settings of a recipe, if one is given, and of what the command line names."""
    given = {
        name: getattr(options, name)
        for name in settings_class.field_types()
        if getattr(options, name, None) is not None
    }
    if options.recipe is None:
        settings = settings_class(**given)
    else:
        recipe = settings_class.load_recipe(options.recipe)
        settings = dataclasses.replace(recipe, **given)
    return settings.override(options.assignments)
