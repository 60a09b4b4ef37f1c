"""Events of a task: folding them into the task, and renaming its context on the way out.

An agent is not trusted: an event that names another task or another context than the one it belongs to is
refused before anything is done with it.
"""

from collections.abc import Iterable

from a2a.types import Artifact, Message, StreamResponse, Task, TaskArtifactUpdateEvent

from kars_a2a_gateway.errors import A2AError, Kind

MAX_ARTIFACTS = 1024
MAX_HISTORY = 4096
MAX_ID_CHARS = 256


def task_id_of(event: StreamResponse) -> str:
    """Return the task that an event is about; empty for a message without one."""
    match event.WhichOneof("payload"):
        case "task":
            return event.task.id
        case "message":
            return event.message.task_id
        case "status_update":
            return event.status_update.task_id
        case "artifact_update":
            return event.artifact_update.task_id
    raise A2AError(Kind.INVALID_AGENT_RESPONSE, "the agent sent an event without content")


def context_id_of(event: StreamResponse) -> str:
    """Return the context that an event names."""
    kind = event.WhichOneof("payload")
    return str(getattr(event, kind).context_id) if kind else ""


def check_belongs(event: StreamResponse, task_id: str, inner_context: str) -> None:
    """Refuse an event that is not about this task in this context.

    Raises:
        A2AError: INVALID_AGENT_RESPONSE.
    """
    named, context = task_id_of(event), context_id_of(event)
    is_message = event.WhichOneof("payload") == "message"
    if (named != task_id and not (is_message and not named)) or (context and context != inner_context):
        raise A2AError(Kind.INVALID_AGENT_RESPONSE, "the agent answered with another task or context")


def check_ids(event: StreamResponse) -> None:
    """Refuse ids that nobody should have to store.

    Raises:
        A2AError: INVALID_AGENT_RESPONSE.
    """
    for value in (task_id_of(event), context_id_of(event)):
        if len(value) > MAX_ID_CHARS or not value.isprintable():
            raise A2AError(
                Kind.INVALID_AGENT_RESPONSE, "the agent made an id that is too long or unprintable"
            )


def fold(task: Task, event: StreamResponse) -> None:
    """Bring a task up to date with one event that belongs to it."""
    match event.WhichOneof("payload"):
        case "task":
            task.CopyFrom(event.task)
        case "status_update":
            update = event.status_update
            if task.status.HasField("message") and len(task.history) < MAX_HISTORY:
                task.history.append(task.status.message)
            task.status.CopyFrom(update.status)
            task.metadata.MergeFrom(update.metadata)
        case "artifact_update":
            _fold_artifact(task, event.artifact_update)


def _fold_artifact(task: Task, update: TaskArtifactUpdateEvent) -> None:
    held = _artifact(task.artifacts, update.artifact.artifact_id)
    if held is None:
        # The first part of an artifact may claim to continue one; it is the first all the same.
        if len(task.artifacts) >= MAX_ARTIFACTS:
            raise A2AError(Kind.INVALID_AGENT_RESPONSE, "the agent made too many artifacts")
        task.artifacts.append(update.artifact)
    elif update.append:
        held.parts.extend(update.artifact.parts)
        held.metadata.MergeFrom(update.artifact.metadata)
    else:
        held.CopyFrom(update.artifact)


def _artifact(artifacts: Iterable[Artifact], artifact_id: str) -> Artifact | None:
    return next((artifact for artifact in artifacts if artifact.artifact_id == artifact_id), None)


def rename_context(event: StreamResponse, inner: str, outer: str) -> StreamResponse:
    """Return the event as the caller knows its context; the same object where the names agree."""
    if inner == outer:
        return event
    renamed = StreamResponse()
    renamed.CopyFrom(event)
    match renamed.WhichOneof("payload"):
        case "task":
            _rename_task(renamed.task, inner, outer)
        case "message":
            _rename_message(renamed.message, inner, outer)
        case "status_update":
            renamed.status_update.context_id = outer
            if renamed.status_update.status.HasField("message"):
                _rename_message(renamed.status_update.status.message, inner, outer)
        case "artifact_update":
            renamed.artifact_update.context_id = outer
    return renamed


def _rename_task(task: Task, inner: str, outer: str) -> None:
    task.context_id = outer
    messages = [*task.history, *([task.status.message] if task.status.HasField("message") else [])]
    for message in messages:
        _rename_message(message, inner, outer)


def _rename_message(message: Message, inner: str, outer: str) -> None:
    if message.context_id == inner:
        message.context_id = outer


def outer_task(task: Task, inner: str, outer: str) -> Task:
    """Return a task as the caller knows its context."""
    if inner == outer:
        return task
    renamed = Task()
    renamed.CopyFrom(task)
    _rename_task(renamed, inner, outer)
    return renamed
