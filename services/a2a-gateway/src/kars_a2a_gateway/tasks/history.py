"""How much of a task's history a caller asked for."""

from a2a.types import GetTaskRequest, ListTasksRequest, SendMessageConfiguration, Task

AsksForHistory = GetTaskRequest | ListTasksRequest | SendMessageConfiguration


def shortened(task: Task, request: AsksForHistory) -> Task:
    """Return the task with as many of its latest messages as were asked for; all when nothing was said."""
    if not request.HasField("history_length"):
        return task
    length = request.history_length
    if len(task.history) <= length:
        return task
    shorter = Task()
    shorter.CopyFrom(task)
    del shorter.history[: len(task.history) - length]
    return shorter
