"""All tasks by name."""

from keras_minilmv2.downstream.glue import GLUE_TASKS
from keras_minilmv2.downstream.mlqa import MLQA_TASKS
from keras_minilmv2.downstream.squad import SQUAD_TASKS
from keras_minilmv2.downstream.tasks import Task
from keras_minilmv2.utils.checks import check_choice

TASKS = {**GLUE_TASKS, **SQUAD_TASKS, **MLQA_TASKS}


def get_task(task):
    """Returns the `Task` of a name; a `Task` is returned as it is.

    Raises:
        ValueError: if there is no such task.
    """
    if isinstance(task, Task):
        return task
    check_choice(TASKS, task=task)
    return TASKS[task]


def get_trained_task(task):
    """As `get_task`, of tasks that have training data.

    Raises:
        ValueError: if there is no such task, or it is for evaluation alone.
    """
    task = get_task(task)
    if "train" not in task.splits:
        trained = [name for name, other in TASKS.items() if "train" in other.splits]
        check_choice(trained, task=task.name)
    return task
