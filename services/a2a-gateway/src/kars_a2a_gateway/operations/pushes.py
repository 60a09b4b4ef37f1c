"""The four operations on push configurations. What a caller stored as a secret is never shown again."""

import re
import time
import uuid
from collections.abc import Callable

from a2a.types import (
    DeleteTaskPushNotificationConfigRequest,
    GetTaskPushNotificationConfigRequest,
    ListTaskPushNotificationConfigsRequest,
    ListTaskPushNotificationConfigsResponse,
    TaskPushNotificationConfig,
)
from kars_common.errors import InvalidInputError, PermissionDeniedError

from kars_a2a_gateway.audit.recorder import Recorder
from kars_a2a_gateway.errors import A2AError, Kind, invalid, task_not_found
from kars_a2a_gateway.operations.admission import Call
from kars_a2a_gateway.outgoing.guard import Guard
from kars_a2a_gateway.push import outbox
from kars_a2a_gateway.storage.scripts import Database, Script
from kars_a2a_gateway.tasks import index
from kars_a2a_gateway.tasks.owners import Owner
from kars_a2a_gateway.tasks.runs import Runs

_MAX_SECRET_CHARS = 4096
_MAX_ID_CHARS = 256
_SCHEME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}")


class Pushes:
    """Registers where a task's events go."""

    def __init__(
        self,
        database: Database,
        runs: Runs,
        recorder: Recorder,
        guard: Guard,
        clock_s: Callable[[], float] = time.time,
    ) -> None:
        self._database = database
        self._runs = runs
        self._recorder = recorder
        self._guard = guard
        self._clock_s = clock_s

    def checked(self, call: Call, config: TaskPushNotificationConfig) -> TaskPushNotificationConfig:
        """Return a configuration that may be stored, with an id.

        Raises:
            A2AError: PUSH_NOTIFICATION_NOT_SUPPORTED, INVALID_PARAMS.
        """
        self._supported(call)
        try:
            self._guard.check_url(config.url, call.exposure.push_hosts)
        except (InvalidInputError, PermissionDeniedError) as exc:
            raise A2AError(
                Kind.INVALID_PARAMS,
                f"the push target is refused: {exc.message}",
                metadata={"why": exc.reason},
            ) from exc
        for secret in (config.token, config.authentication.credentials):
            if (
                len(secret) > _MAX_SECRET_CHARS
                or not secret.isascii()
                or not (secret.isprintable() or not secret)
            ):
                raise invalid("token and credentials are printable ASCII of one line")
        if config.HasField("authentication") and not _SCHEME.fullmatch(config.authentication.scheme):
            raise invalid("the scheme is not an HTTP authentication scheme", "authentication.scheme")
        if len(config.id) > _MAX_ID_CHARS:
            raise invalid("the id is too long", "id")
        stored = TaskPushNotificationConfig()
        stored.CopyFrom(config)
        stored.tenant = ""
        stored.id = config.id or str(uuid.uuid4())
        return stored

    async def create(self, call: Call, config: TaskPushNotificationConfig) -> TaskPushNotificationConfig:
        """Store a configuration of a task."""
        self._supported(call)
        owner, limits = call.owner, call.exposure.limits
        await self._own(owner, config.task_id)
        stored = self.checked(call, config)
        now_ms = int(self._clock_s() * 1000)
        if not await self._database.run(
            lambda: outbox.put(owner.agent, stored, now_ms, limits.max_push_configs)
        ):
            raise A2AError(
                Kind.QUOTA_EXCEEDED, f"a task has at most {limits.max_push_configs} configurations"
            )
        run = self._runs.get(owner.agent, stored.task_id)
        if run is not None:
            run.stores_every_event = True
        await self._record(call, "CreateTaskPushNotificationConfig", stored)
        return _shown(stored)

    async def get(
        self, call: Call, request: GetTaskPushNotificationConfigRequest
    ) -> TaskPushNotificationConfig:
        """Return one configuration, without its secrets."""
        self._supported(call)
        for config in await self._list(call.owner, request.task_id):
            if config.id == request.id:
                return _shown(config)
        raise task_not_found()

    async def list_all(
        self, call: Call, request: ListTaskPushNotificationConfigsRequest
    ) -> ListTaskPushNotificationConfigsResponse:
        """Return all configurations of a task, without their secrets; there are too few for pages."""
        self._supported(call)
        configs = await self._list(call.owner, request.task_id)
        return ListTaskPushNotificationConfigsResponse(configs=map(_shown, configs))

    async def delete(self, call: Call, request: DeleteTaskPushNotificationConfigRequest) -> None:
        """Remove a configuration; one that is not there is removed already."""
        self._supported(call)
        await self._own(call.owner, request.task_id)
        await self._database.run(lambda: outbox.delete(call.owner.agent, request.task_id, request.id))
        removed = TaskPushNotificationConfig(task_id=request.task_id, id=request.id)
        await self._record(call, "DeleteTaskPushNotificationConfig", removed)

    async def _list(self, owner: Owner, task_id: str) -> list[TaskPushNotificationConfig]:
        def script() -> Script[list[TaskPushNotificationConfig] | None]:
            if (yield from index.find(owner, task_id)) is None:
                return None
            return (yield from outbox.configs(owner.agent, task_id))

        configs = await self._database.run(script, durable=False)
        if configs is None:
            raise task_not_found()
        return configs

    async def _own(self, owner: Owner, task_id: str) -> None:
        if await self._database.run(lambda: index.find(owner, task_id), durable=False) is None:
            raise task_not_found()

    async def _record(self, call: Call, method: str, config: TaskPushNotificationConfig) -> None:
        fields = {"task": config.task_id, "config": config.id, "peer": call.peer}
        await self._recorder.durable(self._recorder.call(call.id, call.owner, call.principal, method, fields))

    def _supported(self, call: Call) -> None:
        if not call.exposure.allow_push:
            raise A2AError(Kind.PUSH_NOTIFICATION_NOT_SUPPORTED, "this agent has no push notifications")


def _shown(config: TaskPushNotificationConfig) -> TaskPushNotificationConfig:
    shown = TaskPushNotificationConfig()
    shown.CopyFrom(config)
    shown.ClearField("token")
    if config.HasField("authentication"):
        shown.authentication.ClearField("credentials")
    return shown
