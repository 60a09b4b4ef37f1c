"""What a task's state means to whoever waits for it."""

from a2a.types import Task, TaskState

TERMINAL = frozenset(
    (
        TaskState.TASK_STATE_COMPLETED,
        TaskState.TASK_STATE_CANCELED,
        TaskState.TASK_STATE_FAILED,
        TaskState.TASK_STATE_REJECTED,
    )
)
INTERRUPTED = frozenset((TaskState.TASK_STATE_INPUT_REQUIRED, TaskState.TASK_STATE_AUTH_REQUIRED))


def ended(task: Task) -> bool:
    """Tell whether the task will never change again."""
    return task.status.state in TERMINAL


def rests(task: Task) -> bool:
    """Tell whether a blocking caller gets its answer now."""
    return task.status.state in TERMINAL or task.status.state in INTERRUPTED
