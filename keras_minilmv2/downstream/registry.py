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
